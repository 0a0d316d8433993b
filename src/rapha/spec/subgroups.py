"""Parts of the held-out patients that a plan has measured apart, by the value of a field that is no label."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Final, Protocol

from pydantic import Field, StringConstraints, model_validator

from rapha.spec import cohort
from rapha.spec.base import Model
from rapha.spec.reported import invalid, unique

MAX_SUBGROUPS: Final = 8
"""Values that one plan may name, over all fields."""
GROUP_PATTERN: Final = r"@[a-z][a-z0-9_]{0,63}=[A-Za-z0-9_+-]{1,32}"
"""How a subgroup is written behind a metric's name: `auroc@sex=1`."""

Value = (
    bool
    | Annotated[int, Field(ge=-(10**9), le=10**9)]
    | Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_+-]{1,32}$")]
)


class CodedField(cohort.TypedField, Protocol):
    """What `check` needs to know of a catalogue field."""

    @property
    def codes(self) -> dict[str, int]: ...


class Subgroup(Model):
    """One field, and the values whose patients are measured apart."""

    field: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
    values: Annotated[tuple[Value, ...], Field(min_length=1, max_length=MAX_SUBGROUPS)]

    @model_validator(mode="after")
    def _each_once(self) -> Subgroup:
        unique([_written(value) for value in self.values], f"value of {self.field}")
        return self

    @property
    def groups(self) -> dict[str, cohort.Condition]:
        """By name, such as `sex=1`: which records are in it."""
        return {f"{self.field}={_written(v)}": cohort.Condition(self.field, "eq", v) for v in self.values}


def check(subgroups: Iterable[Subgroup], fields: Iterable[CodedField]) -> None:
    """Each is of a field that a cohort could ask for, and of a value that the field may have.

    Raises:
        Refused: `schema.cohort_field`, `schema.field_invalid` as `rapha.spec.cohort.check`;
            `schema.plan_invalid` for a number that stands for no text of a coded field.
    """
    known = {field.name: field for field in fields}
    for subgroup in subgroups:
        for condition in subgroup.groups.values():
            cohort.check(condition, known.values())
            codes = known[subgroup.field].codes
            if codes and condition.value not in codes.values():
                raise invalid(f"subgroup {subgroup.field}: {condition.value} is none of the field's codes")


def planned(subgroups: tuple[Subgroup, ...], measured: bool) -> None:
    """The checks that need no dataset.

    Args:
        measured: whether the plan has a trusted metric that is one number.

    Raises:
        Refused: `schema.plan_invalid`.
    """
    unique([subgroup.field for subgroup in subgroups], "subgroup field")
    if sum(len(subgroup.values) for subgroup in subgroups) > MAX_SUBGROUPS:
        raise invalid(f"the plan names more than {MAX_SUBGROUPS} subgroups")
    if subgroups and not measured:
        raise invalid("the plan names subgroups, and no trusted metric that is one number")


def _written(value: bool | int | str) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
