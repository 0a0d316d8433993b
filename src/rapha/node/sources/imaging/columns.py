"""From attributes to columns: what a cohort selects on, and the small fields that a job is served."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Final

import numpy as np

from rapha.node.sources.filter import Column
from rapha.node.sources.imaging.attributes import Instance, Scalar, Value, value_of
from rapha.node.sources.imaging.labels import Labels
from rapha.node.sources.imaging.rules import AGE, BIRTH, FIRST_DAY, Kind, Rule, date_of
from rapha.node.sources.imaging.series import Grouping, places
from rapha.node.sources.interface import Array, Mask, Quarantine
from rapha.runtime.broker.store import Ragged

OLDEST: Final = 90
"""Ages from here on are one (45 CFR 164.514(b)(2)(i)(C))."""

_AGE: Final = re.compile(r"([0-9]{1,3})([DWMY])")
_PER_YEAR: Final = {"D": 365.25, "W": 52.18, "M": 12.0, "Y": 1.0}
_DAY: Final = re.compile(r"([0-9]{4})\.?([0-9]{2})\.?([0-9]{2})")
_DAY_AND_TIME: Final = re.compile(
    r"([0-9]{4})([0-9]{2})([0-9]{2})(?:[0-9]{2}){0,3}(?:\.[0-9]{1,6})?(?:[+-][0-9]{4})?"
)
_TIME: Final = re.compile(r"([0-9]{2}):?([0-9]{2})?:?([0-9]{2})?(\.[0-9]{1,6})?")
_DOUBTED: Final = (Quarantine.PATIENT_INVALID, Quarantine.DUPLICATE)
_EPOCH: Final = date(1970, 1, 1).toordinal()

Reader = Callable[[Instance], Value]


@dataclass(frozen=True, slots=True)
class Held:
    """One field of every record.

    Attributes:
        values: length n, of the field's dtype; text as positions in `words`; identifiers as objects; several
            values a record as `Ragged`. Unspecified where `valid` is false.
    """

    values: Array | Ragged
    valid: Mask
    words: tuple[str, ...] | None = None
    dates: bool = False

    def column(self) -> Column:
        """For a cohort. Several values compare with nothing, so their number stands for them."""
        values = np.diff(self.values.offsets) if isinstance(self.values, Ragged) else self.values
        return Column(values, self.valid, self.words, self.dates)

    def take(self, positions: Array) -> Array | Ragged:
        """The values of some records, in that order."""
        if not isinstance(self.values, Ragged):
            return np.ascontiguousarray(self.values[positions])
        starts, stops = self.values.offsets[positions], self.values.offsets[positions + 1]
        offsets = np.concatenate([[0], np.cumsum(stops - starts)]).astype(np.int64)
        parts = [self.values.values[a:b] for a, b in zip(starts, stops, strict=True)]
        return Ragged(np.concatenate(parts) if parts else self.values.values[:0], offsets)


class Columns:
    """Every field of a dataset of images but the rendered ones; each is worked out when first asked for."""

    def __init__(
        self, rules: Sequence[Rule], instances: Sequence[Instance], records: Grouping, labels: Labels | None
    ) -> None:
        self._rules = {rule.field.name: rule for rule in rules}
        self._instances = instances
        self._records = records
        self._labels = labels
        self._held: dict[str, Held] = {}
        self._places: tuple[Array, Array] | None = None
        self._first_days: dict[str, int] | None = None
        self._owners = records.owners

    def held(self, name: str) -> Held:
        """The field called `name`. Precondition: it is one of the rules, and not rendered."""
        if name not in self._held:
            self._held[name] = self._make(self._rules[name])
        return self._held[name]

    def _make(self, rule: Rule) -> Held:
        match rule.kind:
            case Kind.SLICE_POSITION | Kind.SLICE_FRACTION:
                place = self._place()[rule.kind is Kind.SLICE_FRACTION]
                return _numbers(place, np.isfinite(place), rule.field.dtype)
            case Kind.FRAME:
                frames = np.array(self._records.frames, dtype=np.float64) + 1
                return _numbers(frames, self._owners >= 0, rule.field.dtype)
            case Kind.TEXT | Kind.AGE_BAND:
                return self._texts(rule)
            case Kind.IDENTIFIER:
                values = [str(self._value(rule, instance) or "") for instance in self._instances]
                held = np.array([*values, ""], dtype=object)  # the last is the owner of what is lost
                return self._spread(held, np.array([bool(value) for value in held], dtype=np.bool_))
            case Kind.NUMBER if rule.field.shape or rule.field.ragged:
                return self._rows(rule)
            case _:
                return self._scalars(rule)

    def _spread(self, values: Array, valid: Mask, words: tuple[str, ...] | None = None) -> Held:
        """From images to records. The last image is nobody's: -1 finds it."""
        return Held(values[self._owners], valid[self._owners] & (self._owners >= 0), words)

    def _scalars(self, rule: Rule) -> Held:
        read = self._reader(rule)
        numbers = [_number(read(instance)) for instance in self._instances]
        values = np.array([*numbers, math.nan])[self._owners]
        if rule.kind is Kind.DATE:
            valid = np.isfinite(values)
            return Held(np.where(valid, values, 0).astype(np.int32), valid, dates=True)
        if rule.kind in (Kind.DAYS, Kind.AGE) and rule.field.dtype not in ("float16", "float32", "float64"):
            values = np.floor(values)
        return _numbers(values, np.isfinite(values), rule.field.dtype)

    def _reader(self, rule: Rule) -> Reader:
        match rule.kind:
            case Kind.LABELLED:
                return self._label_reader(rule)
            case Kind.AGE:
                return lambda instance: _years(value_of(instance, rule.keyword))
            case Kind.DATE:
                return lambda instance: _since_epoch(value_of(instance, rule.keyword))
            case Kind.DAYS:
                return lambda instance: self._days(rule, instance)
            case _:
                return lambda instance: self._value(rule, instance)

    def _label_reader(self, rule: Rule) -> Reader:
        if self._labels is None:
            return lambda instance: None
        key, of = self._labels.key, self._labels.of[rule.field.name]

        def read(instance: Instance) -> Value:
            value = value_of(instance, key)
            label = of.get(value) if isinstance(value, str) else None  # none, or several, name no row
            return None if label is None else float(label)

        return read

    def _value(self, rule: Rule, instance: Instance) -> Value:
        return value_of(instance, rule.keyword)

    def _texts(self, rule: Rule) -> Held:
        band = rule.kind is Kind.AGE_BAND
        found = [_age_band(one) if band else _text(self._value(rule, one)) for one in self._instances]
        if rule.field.codes:
            codes = [rule.field.codes.get(text, -1) for text in found] + [-1]
            values = np.array(codes, dtype=np.int64)[self._owners]
            return _numbers(values.astype(np.float64), values >= 0, rule.field.dtype)
        words = {word: number for number, word in enumerate(dict.fromkeys([*found, ""]))}
        values = np.array([words[text] for text in found] + [words[""]], dtype=np.int64)
        return self._spread(values, values != words[""], tuple(words))

    def _rows(self, rule: Rule) -> Held:
        field = rule.field
        rows = [_row(self._value(rule, instance)) for instance in self._instances] + [()]
        if field.ragged:
            return self._ragged(rows, field.dtype)
        (width,) = field.shape
        fits = np.array([len(row) == width for row in rows], dtype=np.bool_)
        table = np.array([row if len(row) == width else (math.nan,) * width for row in rows])
        values, valid = _fitted(table, np.isfinite(table), field.dtype)
        return self._spread(values, fits & valid.all(axis=1))

    def _ragged(self, rows: list[tuple[float, ...]], dtype: str) -> Held:
        mine = [rows[owner] for owner in self._owners.tolist()]
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in mine])]).astype(np.int64)
        flat = np.array([number for row in mine for number in row], dtype=np.float64)
        values, valid = _fitted(flat, np.isfinite(flat), dtype)
        bad = np.concatenate([[0], np.cumsum(~valid)])
        return Held(Ragged(values, offsets), bad[offsets[1:]] == bad[offsets[:-1]])

    def _place(self) -> tuple[Array, Array]:
        if self._places is None:
            self._places = places(self._instances, self._records)
        return self._places

    def _days(self, rule: Rule, instance: Instance) -> float | None:
        """Days from the patient's first study to the date and time in an attribute."""
        first = self._first_day().get(instance.patient_id)
        stored, time = value_of(instance, rule.keyword), None
        if rule.vr == "TM":
            time, stored = _text(stored), instance.values.get(date_of(rule.keyword))
        elif rule.vr == "DT":
            time = _text(stored)[8:14].split("+")[0].split("-")[0] or None  # behind it: the zone
        day, part = _day(stored), _part_of_day(time)
        return None if day is None or first is None or part is None else day - first + part

    def _first_day(self) -> dict[str, int]:
        if self._first_days is None:
            # Every study counts, also one whose pixels fall out, but none that may be another patient's.
            whose = zip(self._records.members, self._records.quarantine, strict=True)
            doubted = {n for members, verdict in whose if verdict in _DOUBTED for n in members}
            firsts: dict[str, int] = {}
            for position, instance in enumerate(self._instances):
                if position in doubted:
                    continue
                day = _day(instance.values.get(FIRST_DAY))
                if day is not None and day < firsts.get(instance.patient_id, day + 1):
                    firsts[instance.patient_id] = day
            self._first_days = firsts
        return self._first_days


def _numbers(values: Array, valid: Mask, dtype: str) -> Held:
    return Held(*_fitted(values, valid, dtype))


def _fitted(values: Array, valid: Mask, dtype: str) -> tuple[Array, Mask]:
    """`values` in `dtype`; what it can't hold is not valid (a float narrows, an integer has to be exact)."""
    kind = np.dtype(dtype)
    if kind.kind == "f":
        with np.errstate(over="ignore"):
            narrow = values.astype(kind)
        return np.where(valid, narrow, kind.type(0)), valid & np.isfinite(narrow)
    info: Any = (0, 1) if kind.kind == "b" else (np.iinfo(kind).min, np.iinfo(kind).max)
    # 2^63 itself is a float64, and one past the largest int64.
    fits = valid & (values >= info[0]) & (values <= info[1]) & (values < 2.0**63)
    fits &= np.floor(np.where(fits, values, 0)) == np.where(fits, values, 0)
    return np.where(fits, values, 0).astype(kind), fits


def _number(value: Value) -> float:
    return value if isinstance(value, float) else math.nan


def _row(value: Value) -> tuple[float, ...]:
    parts: tuple[Scalar, ...] = value if isinstance(value, tuple) else () if value is None else (value,)
    return tuple(_number(part) for part in parts)


def _text(value: Value) -> str:
    if isinstance(value, tuple):
        return "\\".join(map(str, value))
    return "" if value is None else str(value)


def _day(value: Value) -> int | None:
    """A DA, or the date of a DT, as days of the calendar; None for what is neither, such as a range."""
    if not isinstance(value, str):
        return None
    if not (found := _DAY.fullmatch(value) or _DAY_AND_TIME.fullmatch(value)):
        return None
    try:
        return date(*map(int, found.groups())).toordinal()
    except ValueError:
        return None


def _since_epoch(value: Value) -> float | None:
    day = _day(value)
    return None if day is None else float(day - _EPOCH)


def _part_of_day(time: str | None) -> float | None:
    """A TM as a part of a day; None for what is none (PS3.5, 6.2: 60 is a leap second)."""
    if time is None:
        return 0.0
    if not (found := _TIME.fullmatch(time)):
        return None
    hours, minutes, seconds = (int(part or 0) for part in found.groups()[:3])
    if hours > 23 or minutes > 59 or seconds > 60:
        return None
    return (hours * 3600 + minutes * 60 + seconds + float(found.group(4) or 0)) / 86400


def _years(value: Value) -> float | None:
    if not isinstance(value, str) or not (found := _AGE.fullmatch(value)):
        return None
    return min(float(int(found.group(1)) / _PER_YEAR[found.group(2)]), float(OLDEST))


def _age_band(instance: Instance) -> str:
    """ "00-09" to "80-89", "90+", from the age or from the dates of birth and study; "" where unknown."""
    years = _years(instance.values.get(AGE))
    if years is None:
        born, seen = _day(instance.values.get(BIRTH)), _day(instance.values.get(FIRST_DAY))
        if born is None or seen is None or seen < born:
            return ""
        a, b = date.fromordinal(born), date.fromordinal(seen)
        years = float(b.year - a.year - ((b.month, b.day) < (a.month, a.day)))
    if years >= OLDEST:
        return f"{OLDEST}+"
    decade = int(years) // 10 * 10
    return f"{decade:02d}-{decade + 9:02d}"
