"""The report's charts, words for numbers, and colours."""

from __future__ import annotations

import re
from importlib import resources
from itertools import pairwise
from xml.etree import ElementTree as Tree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapha.researcher.report import plots, view
from rapha.researcher.report.lines import GateLine, duration
from rapha.runtime import charts
from rapha.runtime.sizes import size as sized
from rapha.spec.release_plan import CURVE_POINTS

HOSTILE = "</svg><script>alert(1)</script>&\x00\u202e\ud800"


def percent(element: Tree.Element, name: str) -> float:
    return float(element.attrib[name].removesuffix("%"))


def parsed(chart: str) -> Tree.Element:
    return Tree.fromstring(chart)  # noqa: S314  (our own output)


def of_class(chart: str, class_: str) -> list[Tree.Element]:
    return [e for e in parsed(chart).iter() if class_ in e.attrib.get("class", "").split()]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 ms"),
        (0.0414, "41 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.0 s"),
        (7.94, "7.9 s"),
        (119.9, "119.9 s"),
        (120, "2 min"),
        (3600, "60 min"),
        (7200, "2.0 h"),
    ],
)
def test_duration(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0 bytes"),
        (9_999, "9,999 bytes"),
        (10_000, "10.0 kB"),
        (2_500_000, "2.5 MB"),
        (7_000_000_000, "7.0 GB"),
    ],
)
def test_size(count: int, said: str) -> None:
    assert sized(count) == said


@pytest.mark.parametrize(
    ("bits", "slices", "rows", "size"),
    [
        (0, "0.00", "0", "0 bytes"),
        (511, "less than 0.01", "0", "64 bytes"),
        (512, "less than 0.01", "1", "64 bytes"),
        (4_194_304, "1.00", "8,192", "524.3 kB"),
        (419_430_400, "100", "819,200", "52.4 MB"),
    ],
)
def test_covert_bound_in_known_sizes(bits: int, slices: str, rows: str, size: str) -> None:
    covert = view.covert(bits, 1)
    assert (covert.slices, covert.rows, covert.size) == (slices, rows, size)


def test_curve_points_lie_where_the_node_measured_them() -> None:
    everything = {f"{name}.{k}": 0.5 for name, n in CURVE_POINTS.items() for k in range(1, n + 1)}
    assert [x for x, _ in plots.roc_points(everything)] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    tenths = [x for x, _ in plots.calibration_points(everything)]
    assert tenths == [0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95]


def test_no_line_is_drawn_across_a_suppressed_point() -> None:
    chart = plots.calibration([(0.05, 0.0), (0.15, 0.1), (0.35, 0.4), (0.85, 0.8), (0.95, 1.0)])
    joined = [e.attrib["points"].split() for e in of_class(chart, "line") if e.tag == "polyline"]
    assert [len(points) for points in joined] == [2, 2]
    assert len(of_class(chart, "dot")) == 5


def test_axes_put_the_unit_square_upright() -> None:
    dots = of_class(plots.roc([(0.0, 0.0), (1.0, 1.0)], "0.5"), "dot")
    (x0, y0), (x1, y1) = ((float(d.attrib["cx"]), float(d.attrib["cy"])) for d in dots)
    assert x0 < x1 and y0 > y1


def test_a_suppressed_count_is_hollow_and_said_as_a_limit() -> None:
    chart = plots.funnel({"matched": 100, "used": "<10"})
    (hollow,) = of_class(chart, "hollow")
    assert percent(hollow, "width") == 10
    assert "used: fewer than 10 patients" in chart


@pytest.mark.parametrize("stages", [{}, {"matched": 0, "used": 0}, {"matched": "<10", "used": "<10"}])
def test_an_empty_funnel_is_still_a_chart(stages: dict[str, plots.Count]) -> None:
    assert len(of_class(plots.funnel(stages), "bar")) == len(stages)


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=12))
def test_gates_follow_one_another_inside_the_chart(seconds: list[float]) -> None:
    lines = [GateLine(f"g{n}", "passed", s, "") for n, s in enumerate(seconds)]
    bars = of_class(plots.timeline(lines), "bar")
    starts = [percent(bar, "x") for bar in bars]
    assert all(before <= after for before, after in pairwise(starts))
    assert all(percent(b, "x") >= 0 and percent(b, "x") + percent(b, "width") <= 100.02 for b in bars)
    assert all(percent(bar, "width") >= 0.39 for bar in bars)


def test_hostile_text_stays_text() -> None:
    chart = plots.timeline([GateLine(HOSTILE, "refused", 1.0, HOSTILE)])
    root = parsed(chart)
    assert {e.tag for e in root.iter()} == {"svg", "title", "desc", "text", "rect"}
    assert "</svg><script>alert(1)</script>&??? (refused)" in "".join(root.itertext())


def test_an_ornament_is_hidden_from_assistive_technology() -> None:
    root = parsed(plots.interval(0.9, 0.8, 1.0))
    assert root.attrib["aria-hidden"] == "true" and "role" not in root.attrib


def test_numbers_are_written_without_an_exponent() -> None:
    assert charts.shape("rect", "bar", x=1e-9, y=1234567.891).attrib == {
        "class": "bar",
        "x": "0",
        "y": "1234567.89",
    }


def palettes() -> list[dict[str, str]]:
    css = resources.files("rapha.researcher.report").joinpath("report.css").read_text("utf-8")
    blocks = re.findall(r":root \{(.*?)\}", css, re.S)
    return [dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", block)) for block in blocks]


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2."""
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("palette", palettes(), ids=["light", "dark", "print"])
def test_contrast_meets_wcag_aa(palette: dict[str, str]) -> None:
    text = [("ink", "paper"), ("soft", "paper"), ("good", "paper"), ("bad", "paper")]
    text += [("ink", "panel"), ("soft", "panel"), ("warn-ink", "warn")]
    graphics = [("accent", "paper"), ("accent", "panel"), ("soft", "paper"), ("warn-rule", "paper")]
    assert all(contrast(palette[a], palette[b]) >= 4.5 for a, b in text)
    assert all(contrast(palette[a], palette[b]) >= 3 for a, b in graphics)


def test_there_are_three_palettes() -> None:
    assert [sorted(p) for p in palettes()] == [sorted(palettes()[0])] * 3
