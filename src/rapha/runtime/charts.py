"""A small SVG writer: elements, a linear scale, axes, and an accessible frame.

Elements are built as a tree, so text is escaped by the serialiser and never by hand. Charts carry no
style of their own: classes are coloured by the page's style sheet, in light, dark and print.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final
from xml.etree import ElementTree as Tree

from rapha.spec.surface import printable

Element = Tree.Element
Point = tuple[float, float]
Tick = tuple[float, str]
"""A place in [0, 1], and what is written there."""
UNIT_TICKS: Final[tuple[Tick, ...]] = tuple((k / 5, f"{k / 5:.1f}") for k in range(6))


class Markup(str):
    """Serialised markup, which a template includes as it is."""

    __slots__ = ()

    def __html__(self) -> str:
        """What an escaping template asks for."""
        return str(self)


@dataclass(frozen=True, slots=True)
class Scale:
    """Linear map of [0, 1] onto the pixels from `start` to `end`."""

    start: float
    end: float

    def at(self, value: float) -> float:
        """Pixel of `value`."""
        return self.start + value * (self.end - self.start)


@dataclass(frozen=True, slots=True)
class Frame:
    """Where the unit square lies in a chart: x grows to the right, y upwards."""

    x: Scale
    y: Scale

    def at(self, point: Point) -> Point:
        """Pixels of a point in the unit square."""
        return self.x.at(point[0]), self.y.at(point[1])


def shape(tag: str, class_: str, **attributes: float | str) -> Element:
    """An element without text. Numbers become pixels; `stroke_width` becomes `stroke-width`."""
    element = Tree.Element(tag, {"class": class_})
    for name, value in attributes.items():
        element.set(name.replace("_", "-"), value if isinstance(value, str) else _pixels(value))
    return element


def label(text: str, class_: str, **attributes: float | str) -> Element:
    """A `<text>`; what is not printable is shown as `?`."""
    element = shape("text", class_, **attributes)
    element.text = printable(text)
    return element


def polyline(frame: Frame, points: Iterable[Point], class_: str) -> Element:
    """The points, joined."""
    pixels = (frame.at(p) for p in points)
    return shape("polyline", class_, points=" ".join(f"{_pixels(x)},{_pixels(y)}" for x, y in pixels))


def dots(frame: Frame, points: Iterable[Point], class_: str) -> list[Element]:
    """A mark at each point."""
    return [shape("circle", class_, cx=x, cy=y, r=3.5) for x, y in map(frame.at, points)]


def axes(
    frame: Frame,
    x_name: str,
    y_name: str,
    x_ticks: Sequence[Tick] = UNIT_TICKS,
    y_ticks: Sequence[Tick] = UNIT_TICKS,
) -> list[Element]:
    """Grid, ticks and names of both axes; by default those of the unit square."""
    left, right, bottom, top = frame.x.start, frame.x.end, frame.y.start, frame.y.end
    parts: list[Element] = []
    for place, text in x_ticks:
        x = frame.x.at(place)
        parts.append(shape("line", "grid", x1=x, x2=x, y1=bottom, y2=top))
        parts.append(label(text, "tick", x=x, y=bottom + 16, text_anchor="middle"))
    for place, text in y_ticks:
        y = frame.y.at(place)
        parts.append(shape("line", "grid", x1=left, x2=right, y1=y, y2=y))
        parts.append(label(text, "tick", x=left - 6, y=y + 4, text_anchor="end"))
    middle = (bottom + top) / 2
    return [
        *parts,
        label(x_name, "axis", x=(left + right) / 2, y=bottom + 36, text_anchor="middle"),
        label(y_name, "axis", x=12, y=middle, text_anchor="middle", transform=f"rotate(-90 12 {middle:.0f})"),
    ]


def fixed(name: str, title: str, description: str, size: Point, parts: Sequence[Element]) -> Markup:
    """A chart that is drawn in a box of `size` pixels and scales as a whole."""
    box = f"0 0 {_pixels(size[0])} {_pixels(size[1])}"
    return _chart(name, title, description, parts, {"viewBox": box, "class": "plot"})


def fluid(name: str, title: str, description: str, height: float, parts: Sequence[Element]) -> Markup:
    """A chart as wide as its place, whose parts use percentages across: its text keeps its size."""
    size = {"width": "100%", "height": _pixels(height), "class": "bars"}
    return _chart(name, title, description, parts, size)


def ornament(height: float, parts: Sequence[Element]) -> Markup:
    """A drawing that only repeats the text beside it, hidden from assistive technology."""
    root = Tree.Element("svg", {"width": "100%", "height": _pixels(height), "aria-hidden": "true"})
    root.extend(parts)
    return Markup(Tree.tostring(root, encoding="unicode"))


def _chart(
    name: str, title: str, description: str, parts: Sequence[Element], attributes: dict[str, str]
) -> Markup:
    root = Tree.Element(
        "svg", {**attributes, "role": "img", "aria-labelledby": f"{name}-title {name}-description"}
    )
    for tag, text in (("title", title), ("desc", description)):
        element = Tree.SubElement(root, tag, {"id": f"{name}-{'title' if tag == 'title' else 'description'}"})
        element.text = printable(text)
    root.extend(parts)
    return Markup(Tree.tostring(root, encoding="unicode"))


def _pixels(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
