"""Strict models: every object that crosses a trust zone derives from `Model`.

Unknown fields refuse, values are immutable, and every error names the field and what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    StringConstraints,
    ValidationError,
)

from rapha.spec.refusals import Refused


def _on_the_calendar(text: str) -> str:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("there is no such day") from None
    return text


def _exactly(wanted: int) -> BeforeValidator:
    """For a `Literal`, since True == 1 and pydantic's takes the one for the other."""

    def check(value: object) -> object:
        if type(value) is not type(wanted):
            raise ValueError(f"Input should be {wanted!r}")
        return value

    return BeforeValidator(check)


One = Annotated[Literal[1], _exactly(1)]
Zero = Annotated[Literal[0], _exactly(0)]
Yes = Annotated[Literal[True], _exactly(True)]

PROTOCOL = 1
"""Version of every signed payload; a reader of one version refuses another."""

Profile = Literal["demo", "production"]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""Lower-case hex SHA-256."""
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
"""A short name that is safe in paths and URLs."""
KeyId = Sha256
"""SHA-256 of a key's SubjectPublicKeyInfo."""
Timestamp = Annotated[
    str,
    StringConstraints(
        # [0-9], not \d, which also matches the digits of other scripts.
        pattern=r"^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
        r"T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z$"
    ),
    AfterValidator(_on_the_calendar),
]
"""RFC 3339 in UTC, whole seconds; a day that the calendar has."""
PLAIN = r"^[^\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]+$"
"""Text that can't move a terminal's cursor, break a line, or turn the reading direction of what is shown."""
Money = Annotated[str, StringConstraints(pattern=r"^(0|[1-9][0-9]{0,11})(\.[0-9]{1,6})?$")]
"""Decimal string with at most the token's 6 decimals, never a float."""


class Model(BaseModel):
    """Immutable and closed: an unknown field is an error, not a note."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @classmethod
    def parse(cls, value: object, where: str = "") -> Self:
        """Validate `value`, a tree of JSON types.

        Raises:
            Refused: `schema.field_unknown`, `schema.field_missing` or `schema.field_invalid`, naming
                the field as a dotted path under `where`.
        """
        if not isinstance(value, Mapping):
            raise Refused("schema.field_invalid", f"{where or cls.__name__}: expected an object")
        try:
            return cls.model_validate(_jsonable(value))
        except ValidationError as error:
            raise refusal_from(error, where) from None

    def dump(self) -> dict[str, Any]:
        """The model as JSON types, every field present."""
        return self.model_dump(mode="json", by_alias=True)


def _jsonable(value: object) -> object:
    """Tuples come back from JSON as lists; strict models accept them only as tuples."""
    if isinstance(value, Mapping):
        return {k: _jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_jsonable(v) for v in value)
    return value


def refusal_from(error: ValidationError, where: str = "") -> Refused:
    """Turn pydantic's first error into a refusal that names the field."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    path = ".".join([where, *map(str, first["loc"])] if where else [str(p) for p in first["loc"]]) or "(top)"
    code = {"extra_forbidden": "schema.field_unknown", "missing": "schema.field_missing"}.get(
        first["type"], "schema.field_invalid"
    )
    said = {"schema.field_unknown": "is not a field here", "schema.field_missing": "is missing"}.get(code)
    return Refused(code, f"{path}: {said or first['msg']}")
