"""Self-reported fields of a release plan, and the checks that all parts of a plan share."""

from __future__ import annotations

import math
import re
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Annotated, Final, Literal

from pydantic import AllowInfNan, Field, StringConstraints, model_validator

from rapha.spec.base import Model
from rapha.spec.refusals import Refused

Number = int | Annotated[float, AllowInfNan(True)]
"""Non-finite bounds are refused below, with a message that names the tensor or field."""

Reported = bool | int | float | str
"""A value that a job states about itself, as it is released."""
MAX_FIELDS: Final = 256
LARGEST_INTEGER: Final = 2**53 - 1
"""RFC 8785 has no larger one."""
_NAME: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_:@+-]|\.(?!\.)){0,190}(?<!\.)")
_MAX_FILE: Final = 64
_FILE: Final = r"[A-Za-z0-9_](?:\.?[A-Za-z0-9_-])*\.?"
FileName = Annotated[str, StringConstraints(pattern=f"^{_FILE}$", max_length=_MAX_FILE)]
"""The plain name of a released file, wherever it is said: no dot at its start, no two in a row."""


def invalid(message: str) -> Refused:
    return Refused("schema.plan_invalid", message)


def check_name(name: str, what: str) -> None:
    if not _NAME.fullmatch(name) or name == "__metadata__":
        raise invalid(f"{what} {name[:64]!a} is not a plain name: letters, digits and _ . : @ + - only")


def check_file(name: str, suffix: str) -> None:
    if len(name) > _MAX_FILE or not re.fullmatch(_FILE, name) or not name.endswith(suffix):
        raise invalid(f"file {name[:64]!a} must be a plain name that ends in {suffix}")


def check_bounds(low: Number, high: Number, where: str) -> None:
    # Integers are compared as they are: a huge one can't become a float.
    if any(isinstance(x, float) and not math.isfinite(x) for x in (low, high)):
        raise invalid(f"{where}: min and max must be finite")
    if any(isinstance(x, int) and abs(x) > LARGEST_INTEGER for x in (low, high)):
        raise invalid(f"{where}: whole numbers beyond 2^53 - 1 are written with an exponent")
    if low > high:
        raise invalid(f"{where}: min is above max")


def unique(names: list[str], what: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise invalid(f"{what} {name!a} is named twice")
        seen.add(name)


class NumberField(Model):
    """A number, clipped to the range and rounded to `decimals`."""

    name: str
    type: Literal["number"]
    min: Number
    max: Number
    decimals: Annotated[int, Field(ge=0, le=9)]

    @model_validator(mode="after")
    def _consistent(self) -> NumberField:
        check_bounds(self.min, self.max, f"field {self.name}")
        # Every value, scaled by its decimals, must be an exact double.
        if max(abs(self.min), abs(self.max)) * 10**self.decimals > 2**53:
            raise invalid(f"field {self.name}: the range is too wide for {self.decimals} decimals")
        return self

    def release(self, value: object) -> Reported:
        """`value`, clipped and rounded. Raises ValueError for anything but a finite number."""
        if not isinstance(value, int | float) or isinstance(value, bool) or not -math.inf < value < math.inf:
            raise ValueError("a finite number is planned")
        return float(self.rounded(min(max(value, self.min), self.max)))

    def rounded(self, value: Number) -> Decimal:
        """`value` rounded half to even at `decimals`; no negative zero."""
        return Decimal(repr(value)).quantize(Decimal(1).scaleb(-self.decimals), ROUND_HALF_EVEN) + 0

    def values(self) -> int:
        """How many different values can leave."""
        span = self.rounded(self.max) - self.rounded(self.min)
        return int(span.scaleb(self.decimals)) + 1

    def widest(self) -> int:
        """Most characters of a released value."""
        return 24


class IntegerField(Model):
    """A whole number, clipped to the range."""

    name: str
    type: Literal["integer"]
    min: Annotated[int, Field(ge=-LARGEST_INTEGER, le=LARGEST_INTEGER)]
    max: Annotated[int, Field(ge=-LARGEST_INTEGER, le=LARGEST_INTEGER)]

    @model_validator(mode="after")
    def _consistent(self) -> IntegerField:
        check_bounds(self.min, self.max, f"field {self.name}")
        return self

    def release(self, value: object) -> Reported:
        """`value`, clipped. Raises ValueError for anything but a whole number."""
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError("a whole number is planned")
        return min(max(value, self.min), self.max)

    def values(self) -> int:
        """How many different values can leave."""
        return self.max - self.min + 1

    def widest(self) -> int:
        """Most characters of a released value."""
        return 17


class BooleanField(Model):
    """True or false."""

    name: str
    type: Literal["boolean"]

    def release(self, value: object) -> Reported:
        """`value`. Raises ValueError for anything but true and false."""
        if not isinstance(value, bool):
            raise ValueError("true or false is planned")
        return value

    def values(self) -> int:
        """How many different values can leave."""
        return 2

    def widest(self) -> int:
        """Most characters of a released value."""
        return 5


class EnumField(Model):
    """One of the strings that the plan lists."""

    name: str
    type: Literal["enum"]
    options: tuple[str, ...]

    @model_validator(mode="after")
    def _consistent(self) -> EnumField:
        if not 1 <= len(self.options) <= 256:
            raise invalid(f"field {self.name}: 1 to 256 options")
        for option in self.options:
            check_name(option, f"field {self.name}: option")
        unique(list(self.options), f"field {self.name}: option")
        return self

    def release(self, value: object) -> Reported:
        """`value`. Raises ValueError for anything but a planned option."""
        if not isinstance(value, str) or value not in self.options:
            raise ValueError("one of the planned options is expected")
        return value

    def values(self) -> int:
        """How many different values can leave."""
        return len(self.options)

    def widest(self) -> int:
        """Most characters of a released value."""
        return 2 + max(map(len, self.options))


ReportedField = Annotated[NumberField | IntegerField | BooleanField | EnumField, Field(discriminator="type")]


class SelfReportedPlan(Model):
    """Numbers that the job states about itself; they leave marked as such."""

    file: str
    fields: tuple[ReportedField, ...]

    @model_validator(mode="after")
    def _consistent(self) -> SelfReportedPlan:
        check_file(self.file, ".json")
        if not 1 <= len(self.fields) <= MAX_FIELDS:
            raise invalid(f"self_reported names 1 to {MAX_FIELDS} fields")
        for field in self.fields:
            check_name(field.name, "field")
        unique([f.name for f in self.fields], "field")
        return self

    @property
    def input_bytes(self) -> int:
        """Largest file that is read."""
        return 64 + sum(len(f.name) + 256 for f in self.fields)

    @property
    def released_bytes(self) -> int:
        """Upper bound of the file that is released: `{"name":value,…}` in canonical JSON."""
        return 2 + sum(len(f.name) + 4 + f.widest() for f in self.fields)

    def bits(self) -> float:
        """log2 of the number of files that can be released under this plan."""
        return sum(math.log2(f.values()) for f in self.fields)
