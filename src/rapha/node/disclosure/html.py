"""The page as HTML: self-contained, without script.

Printed it is one A4 page, and what has no room there comes after it, on sheets of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rapha.node.disclosure.page import Page
from rapha.node.disclosure.shown import CheckLine, Meter, Part
from rapha.node.disclosure.view import view
from rapha.runtime import charts, pages
from rapha.runtime.charts import Element, Markup

_LEAST: Final = 0.6
"""Percent of the width at which a bar can still be seen."""
_ROW: Final = 22.0
_STRIP: Final = 40.0


def render(page: Page) -> str:
    """The page, as HTML text to be written as UTF-8."""
    shown = view(page)
    return pages.render(
        "rapha.node.disclosure",
        "page.html",
        "page.css",
        page=shown,
        parts=_parts(shown.bound.parts),
        meters=_meters(shown.meters),
        strip=_strip(shown.checks),
    )


def _bar(class_: str, y: float, start: float, share: float) -> Element:
    width = max(_LEAST, min(100 * share, 100 - 100 * start))
    across = {"x": f"{min(100 * start, 100 - _LEAST):.2f}%", "width": f"{width:.2f}%"}
    return charts.shape("rect", class_, y=y, height=7, rx=2, **across)


def _line(row: int, name: str, value: str) -> list[Element]:
    y = row * _ROW + 11
    return [
        charts.label(name, "name", x="0", y=y),
        charts.label(value, "value", x="100%", y=y, text_anchor="end"),
        charts.shape("rect", "track", x="0", y=y + 4, width="100%", height=7, rx=2),
    ]


def _parts(parts: Sequence[Part]) -> Markup:
    """Where the bits of the bound are, each on the scale of the whole."""
    drawn: list[Element] = []
    for row, part in enumerate(parts):
        drawn += [*_line(row, part.name, f"{part.bits} bits"), _bar("bar", row * _ROW + 15, 0, part.share)]
    said = "; ".join(f"{p.name}: {p.bits} bits" for p in parts)
    return charts.fluid("parts", "Where those bits could be", said, _ROW * len(parts), drawn)


def _meters(meters: Sequence[Meter]) -> Markup | None:
    """What is spent of each cap of the dataset: earlier jobs, and this one on top."""
    if not meters:
        return None
    drawn: list[Element] = []
    for row, meter in enumerate(meters):
        y = row * _ROW + 15
        drawn += _line(row, meter.name, meter.said)
        if meter.before:
            drawn.append(_bar("bar over" if meter.over else "bar earlier", y, 0, meter.before))
        if meter.job:
            drawn.append(_bar("bar over" if meter.over else "bar", y, meter.before, meter.job))
    said = "; ".join(f"{m.name}: {m.said}" for m in meters)
    return charts.fluid("caps", "What is spent of the dataset's caps", said, _ROW * len(meters), drawn)


def _strip(checks: Sequence[CheckLine]) -> Markup:
    """One field a check, with its number, its verdict by form as well as by colour, and its name."""
    drawn: list[Element] = []
    share = 100 / max(1, len(checks))
    for at, check in enumerate(checks):
        x = at * share
        across = {"x": f"{x + 0.4:.2f}%", "width": f"{share - 0.8:.2f}%"}
        middle = f"{x + share / 2:.2f}%"
        drawn += [
            charts.shape("rect", f"field {check.verdict}", y=1, height=_STRIP - 2, rx=4, **across),
            charts.label(f"{check.n} {_SIGN[check.verdict]}", "mark", x=middle, y=17, text_anchor="middle"),
            charts.label(check.id, "tick", x=middle, y=32, text_anchor="middle"),
        ]
    said = "; ".join(f"{c.n} {c.id}: {c.mark}" for c in checks)
    return charts.fluid("strip", "The nine checks", said, _STRIP, drawn)


_SIGN: Final = {"pass": "✓", "fail": "✗", "not_run": "–", "not_resolvable": "?"}
