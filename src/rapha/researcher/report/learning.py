"""Learning curves: self-reported numbers whose names end in an epoch, such as `loss_e01`, `loss_e02`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from rapha.runtime import charts
from rapha.runtime.charts import Frame, Markup, Scale, Tick

Values = tuple[tuple[int, float], ...]
"""(epoch, value), by rising epoch."""

_NAME: Final = re.compile(r"([A-Za-z0-9_.:@+-]{1,64}?)_e([0-9]{1,4})")
_SIZE: Final = (340.0, 376.0)
_FRAME: Final = Frame(Scale(52, 330), Scale(330, 46))
_STEPS: Final = (1, 2, 5, 10)
_TICKS: Final = 6
"""About so many on an axis."""
_SMALLEST: Final = 1e-12
_LARGEST: Final = 1e15
"""Values beyond are not drawn; a plan's own ranges end near 2^53."""


def curves(reported: Mapping[str, Any]) -> dict[str, Values]:
    """The series of two epochs or more; a name that gives one epoch twice is none."""
    found: dict[str, list[tuple[int, float]]] = {}
    for name, value in reported.items():
        match = _NAME.fullmatch(name)
        if match and _drawable(value):
            found.setdefault(match[1], []).append((int(match[2]), float(value)))
    return {
        name: tuple(sorted(points))
        for name, points in sorted(found.items())
        if len(points) > 1 and len({epoch for epoch, _ in points}) == len(points)
    }


def belongs(name: str, drawn: Mapping[str, Values]) -> bool:
    """Whether a self-reported field is a point of one of the curves `drawn`."""
    match = _NAME.fullmatch(name)
    return match is not None and match[1] in drawn


def chart(number: int, name: str, values: Values) -> Markup:
    """Curve `number` of a page: `name` over epochs, with zero on the axis."""
    epochs = [epoch for epoch, _ in values]
    x_low, x_high = epochs[0], epochs[-1]
    y_ticks, y_low, y_high = _scale([value for _, value in values])
    points = [((e - x_low) / (x_high - x_low), (v - y_low) / (y_high - y_low)) for e, v in values]
    parts = charts.axes(_FRAME, "Epoch", name, _epochs(x_low, x_high), y_ticks)
    parts.append(charts.polyline(_FRAME, points, "line"))
    parts += charts.dots(_FRAME, points, "dot")
    parts.append(charts.shape("line", "line", x1=_FRAME.x.start, x2=_FRAME.x.start + 26, y1=12, y2=12))
    parts.append(charts.label(f"{name}, self-reported", "legend", x=_FRAME.x.start + 34, y=16))
    said = "; ".join(f"epoch {epoch}: {value:g}" for epoch, value in values)
    title = f"{name} in each epoch, as the job says"
    return charts.fixed(
        f"learning-{number}", title, f"Self-reported, checked by nobody. {said}.", _SIZE, parts
    )


def _drawable(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= _LARGEST  # NaN isn't, and an int may be too large for math.isfinite


def _scale(values: Sequence[float]) -> tuple[tuple[Tick, ...], float, float]:
    """Ticks at round numbers, and the ends of an axis from the first to the last of them."""
    low, high = min(0.0, *values), max(0.0, *values)
    if high - low < _SMALLEST:
        low, high = 0.0, 1.0
    raw = (high - low) / (_TICKS - 1)
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(s * unit for s in _STEPS if s * unit >= raw * (1 - 1e-9))
    first, last = math.floor(low / step), math.ceil(high / step)
    ticks = tuple(((k - first) / (last - first), f"{k * step:g}") for k in range(first, last + 1))
    return ticks, first * step, last * step


def _epochs(first: int, last: int) -> tuple[Tick, ...]:
    step = max(1, math.ceil((last - first) / (_TICKS - 1)))
    return tuple(((epoch - first) / (last - first), str(epoch)) for epoch in range(first, last + 1, step))
