"""The cohort: a declarative filter over a dataset's catalogue fields, never code.

    {"all": [cohort, …]}   {"any": [cohort, …]}   {"not": cohort}
    {"field": name, <one of eq ne gt gte lt lte in present>: value}

`{"all": []}` is every record. A comparison with a missing value is false, whichever operator it is;
`not` turns the outcome round, so `{"not": {"field": f, "eq": 1}}` keeps records without an `f`.

Numbers, truth values, texts and dates compare with their like: a date is written "2026-01-31". Codes and age
bands are texts. Texts and truth values have no order. Of a label, or of a field that holds several values,
a cohort can only ask whether it is `present`; of a pseudonym, nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any, Final, Literal, Protocol, cast, get_args

from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

from rapha.spec.refusals import Refused

MAX_DEPTH: Final = 8
MAX_NODES: Final = 256
MAX_VALUES: Final = 1024
MAX_LISTED: Final = 4096
"""Values in all lists of a cohort together: each is compared with every record."""
MAX_TEXT: Final = 128

Operator = Literal["eq", "ne", "gt", "gte", "lt", "lte", "in", "present"]
Scalar = bool | int | float | str
_OPERATORS: Final = frozenset(get_args(Operator))
_ORDERED: Final = frozenset({"gt", "gte", "lt", "lte"})
_DAY: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")  # fromisoformat also takes 20260131 and 2026-W05-6
_EPOCH: Final = date(1970, 1, 1).toordinal()


@dataclass(frozen=True, slots=True)
class Condition:
    """One comparison. `value` is a tuple for `in`, a bool for `present`, else a scalar."""

    field: str
    operator: Operator
    value: Scalar | tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class All:
    """Every part holds; with no part, always."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """At least one part holds."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """The part does not hold."""

    part: Node


Node = All | AnyOf | Not | Condition


class TypedField(Protocol):
    """What `check` needs to know of a catalogue field."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def label(self) -> bool: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def ragged(self) -> bool: ...


def parse(value: object, where: str = "cohort") -> Node:
    """Read a cohort from a tree of JSON types; a parsed one passes through.

    Raises:
        Refused: `schema.field_unknown`, `schema.field_missing`, `schema.field_invalid` with a dotted path,
            or `schema.too_large` past `MAX_DEPTH`, `MAX_NODES`, `MAX_VALUES`, `MAX_LISTED`
            or `MAX_TEXT`.
    """
    if isinstance(value, All | AnyOf | Not | Condition):
        value = dump(value)
    return _Reader().node(value, where, 1)


def dump(cohort: Node) -> dict[str, Any]:
    """The cohort as JSON types; `parse` reads it back to an equal cohort."""
    match cohort:
        case All(parts):
            return {"all": [dump(part) for part in parts]}
        case AnyOf(parts):
            return {"any": [dump(part) for part in parts]}
        case Not(part):
            return {"not": dump(part)}
        case Condition(field, operator, value):
            return {"field": field, operator: list(value) if isinstance(value, tuple) else value}


Cohort = Annotated[
    Node,
    PlainValidator(parse),
    PlainSerializer(dump, return_type=dict[str, Any]),
    WithJsonSchema({"type": "object", "description": "all | any | not | a condition on one field"}),
]
"""`Node` as a field of a model: read by `parse`, written by `dump`."""


def conditions(cohort: Node) -> Iterator[Condition]:
    """Every condition, from left to right."""
    match cohort:
        case All(parts) | AnyOf(parts):
            for part in parts:
                yield from conditions(part)
        case Not(part):
            yield from conditions(part)
        case Condition():
            yield cohort


def check(cohort: Node, fields: Iterable[TypedField]) -> None:
    """Type-check every condition against the catalogue's fields.

    A label takes `present` only: a cohort chosen by a label's value would tell the job the labels of the
    test split, which never cross (data-plane, "Broker and RaphaDataLoader"). A pseudonym takes nothing: a
    cohort that named one would link it to the identifier that the asker knows.

    Raises:
        Refused: `schema.cohort_field` for a field that is not there, an operator that does not fit its
            type, a pseudonym, or a label's value; `schema.field_invalid` for a value of another type.
    """
    known = {field.name: field for field in fields}
    for condition in conditions(cohort):
        field = known.get(condition.field)
        if field is None:
            raise Refused("schema.cohort_field", f"the dataset has no field {condition.field!r}")
        _check_condition(condition, field)


def day_number(text: str) -> int:
    """Days from 1970-01-01 to a day of the calendar, written YYYY-MM-DD and in no other way.

    Raises:
        ValueError: there is no such day, or it is written otherwise.
    """
    if not _DAY.fullmatch(text):
        raise ValueError("expected a date such as 2026-01-31")
    return date.fromisoformat(text).toordinal() - _EPOCH


def _check_condition(condition: Condition, field: TypedField) -> None:
    if field.dtype == "pseudonym":
        raise Refused("schema.cohort_field", f"{field.name} is a pseudonym; no cohort can ask for one")
    if condition.operator == "present":
        return
    if field.label:
        raise Refused("schema.cohort_field", f"{field.name} is a label; a cohort can only ask for `present`")
    if field.shape or field.ragged:
        what = f"{field.name} holds several values; a cohort can only ask for `present`"
        raise Refused("schema.cohort_field", what)
    if condition.operator in _ORDERED and field.dtype in ("bool", "string"):
        raise Refused("schema.cohort_field", f"{field.name} is a {field.dtype}; it has no order")
    values = condition.value if isinstance(condition.value, tuple) else (condition.value,)
    wanted = field.dtype if field.dtype in ("bool", "string", "date") else "number"
    if not all(_is_a(wanted, value) for value in values):
        example = " such as 2026-01-31" if wanted == "date" else ""
        detail = f"{field.name} is compared with something that is not a {wanted}{example}"
        raise Refused("schema.field_invalid", detail)


def _is_a(wanted: str, value: Scalar) -> bool:
    match wanted:
        case "bool":
            return isinstance(value, bool)
        case "string":
            return isinstance(value, str)
        case "date":
            return isinstance(value, str) and _is_day(value)
        case _:
            return not isinstance(value, bool | str)  # True is an int


def _is_day(text: str) -> bool:
    try:
        day_number(text)
    except ValueError:
        return False
    return True


class _Reader:
    """Counts nodes and listed values over the whole tree, so that breadth is limited as well as depth."""

    def __init__(self) -> None:
        self._nodes = self._listed = 0

    def node(self, value: object, where: str, depth: int) -> Node:
        self._nodes += 1
        if depth > MAX_DEPTH:
            raise Refused("schema.too_large", f"cohort: nested deeper than {MAX_DEPTH}")
        if self._nodes > MAX_NODES:
            raise Refused("schema.too_large", f"cohort: more than {MAX_NODES} parts")
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise Refused("schema.field_invalid", f"{where}: expected an object")
        if "field" in value:
            condition = _condition(value, where)
            self._listed += len(condition.value) if isinstance(condition.value, tuple) else 0
            if self._listed > MAX_LISTED:
                raise Refused("schema.too_large", f"cohort: more than {MAX_LISTED} values in its lists")
            return condition
        if len(value) != 1:
            raise Refused("schema.field_invalid", f"{where}: expected one of all, any, not, or a field")
        ((key, inner),) = value.items()
        return self._combined(key, inner, where, depth)

    def _combined(self, key: str, inner: object, where: str, depth: int) -> Node:
        match key:
            case "not":
                return Not(self.node(inner, f"{where}.not", depth + 1))
            case "all" | "any":
                if not isinstance(inner, list | tuple):
                    raise Refused("schema.field_invalid", f"{where}.{key}: expected a list")
                if key == "any" and not inner:
                    raise Refused("schema.field_invalid", f"{where}.any: at least one part is needed")
                parts = tuple(self.node(p, f"{where}.{key}.{i}", depth + 1) for i, p in enumerate(inner))
                return All(parts) if key == "all" else AnyOf(parts)
            case _ if key in _OPERATORS:
                raise Refused("schema.field_missing", f"{where}.field: is missing")
            case _:
                raise Refused("schema.field_unknown", f"{where}: {key[:64]!r} is not a field here")


def _condition(value: Mapping[str, object], where: str) -> Condition:
    field = value["field"]
    if not isinstance(field, str) or not 0 < len(field) <= MAX_TEXT or not field.isprintable():
        raise Refused("schema.field_invalid", f"{where}.field: expected the name of a catalogue field")
    operators = [key for key in value if key != "field"]
    unknown = next((key for key in operators if key not in _OPERATORS), None)
    if unknown is not None:
        raise Refused("schema.field_unknown", f"{where}: {unknown[:64]!r} is not an operator")
    if len(operators) != 1:
        raise Refused("schema.field_invalid", f"{where}: expected exactly one operator beside `field`")
    operator = cast(Operator, operators[0])
    return Condition(field, operator, _value(operator, value[operator], f"{where}.{operator}"))


def _value(operator: Operator, value: object, where: str) -> Scalar | tuple[Scalar, ...]:
    if operator == "in":
        if not isinstance(value, list | tuple) or not value:
            raise Refused("schema.field_invalid", f"{where}: expected a list of values")
        if len(value) > MAX_VALUES:
            raise Refused("schema.too_large", f"{where}: more than {MAX_VALUES} values")
        return tuple(_scalar(item, where) for item in value)
    if operator == "present" and not isinstance(value, bool):
        raise Refused("schema.field_invalid", f"{where}: expected true or false")
    return _scalar(value, where)


def _scalar(value: object, where: str) -> Scalar:
    if isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(value) <= 2**53 - 1:  # what canonical JSON can carry
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, str):
        if len(value) > MAX_TEXT:
            raise Refused("schema.too_large", f"{where}: text longer than {MAX_TEXT}")
        if value.isprintable():
            return value
    raise Refused("schema.field_invalid", f"{where}: expected a number, a text, true or false")
