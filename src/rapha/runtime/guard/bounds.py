"""What a released file of weights may hold, held against its bytes without numpy and without parsing.

The guard's process makes the file, and whoever copies it out looks at it here: at the one header that the
plan has, and at every integer, since a plan's bits count an integer by its range. A float is counted by its
whole width, so nothing that it holds is beyond the stated bound, and it is not looked at.
"""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Iterator
from typing import Final, NamedTuple

from rapha.runtime.guard.codes import Finding
from rapha.spec.weights import INTEGER_RANGE, WIDTH, WeightsPlan

SMALLEST_SCALE: Final = 2.0**-126
"""The smallest normal F32, as in `rounding`, which needs numpy."""
_ARRAYS: Final = {"F32": "f", "I64": "q", "I32": "i", "I16": "h"}


class _Span(NamedTuple):
    """Bytes `begin` to `end` of the file: elements of `dtype` from `low` to `high`."""

    begin: int
    end: int
    dtype: str
    low: float
    high: float


class Bounds:
    """One file of weights, seen in order: parts of whole elements, such as multiples of 8 bytes."""

    def __init__(self, plan: WeightsPlan) -> None:
        header = plan.released_header()
        self._head = len(header).to_bytes(8, "little") + header
        self._spans = list(_spans(plan, len(self._head)))
        self._first = 0
        self._at = 0
        self._size = plan.released_bytes

    def see(self, piece: memoryview) -> None:
        """The next bytes. Raises `Finding` (`guard.rebuild`) where the plan does not let them out."""
        begin, end = self._at, self._at + len(piece)
        self._at = end
        head = self._head[begin:end]
        if piece[: len(head)] != head:
            raise Finding("guard.rebuild", "not the header that the plan has")
        while self._first < len(self._spans) and self._spans[self._first].begin < end:
            span = self._spans[self._first]
            part = piece[max(span.begin - begin, 0) : span.end - begin].tobytes()
            if not _within(part, span):
                raise Finding("guard.rebuild", f"a value of {span.dtype} that the plan does not let out")
            if span.end > end:
                return
            self._first += 1

    def finish(self) -> None:
        """Raises `Finding` (`guard.rebuild`) where there were more or fewer bytes than planned."""
        if self._at != self._size:
            raise Finding("guard.rebuild", f"{self._at} bytes instead of {self._size}")


def _spans(plan: WeightsPlan, offset: int) -> Iterator[_Span]:
    """What is to be looked at, in the file's order; neighbours with the same bounds are one."""
    ranges: dict[str, tuple[float, float]] = {
        t.name: (-plan.levels, plan.levels) if t.floating else (int(t.min), int(t.max)) for t in plan.tensors
    }
    last: _Span | None = None
    for name, dtype, shape in plan.laid_out:
        begin, offset = offset, offset + math.prod(shape) * WIDTH[dtype]
        if dtype in INTEGER_RANGE:
            span = _Span(begin, offset, dtype, *ranges[name])
        elif plan.release_dtype == "int8":  # its scale; F32 has no larger value that is finite
            span = _Span(begin, offset, dtype, SMALLEST_SCALE, sys.float_info.max)
        else:
            continue
        if last and last[1:] == (begin, *span[2:]):
            span = span._replace(begin=last.begin)
        elif last:
            yield last
        last = span
    if last:
        yield last


def _within(part: bytes, span: _Span) -> bool:
    if WIDTH[span.dtype] == 1:
        wraps = 256 if span.low < 0 else 0
        least = int(span.low) + wraps
        allowed = bytes((least + n) % 256 for n in range(int(span.high - span.low) + 1))
        return not _others(part, allowed)
    values = array(_ARRAYS[span.dtype])
    values.frombytes(part)
    if sys.byteorder == "big":
        values.byteswap()
    if span.dtype == "F32":  # few, and a NaN would not compare
        return all(span.low <= value <= span.high for value in values)
    return (span.low, span.high) == INTEGER_RANGE[span.dtype] or (
        span.low <= min(values) and max(values) <= span.high
    )


def _others(part: bytes, allowed: bytes) -> bool:
    """Whether `part` has a byte that is not in `allowed`."""
    if len(allowed) > 250:  # then looking for each of the others is faster
        return any(other not in allowed and other in part for other in range(256))
    return bool(part.translate(None, allowed))
