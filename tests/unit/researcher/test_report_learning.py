"""Learning curves of self-reported numbers, and the report's words on few patients."""

from __future__ import annotations

import math
from typing import Any
from xml.etree import ElementTree as Tree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapha.node.datasets.resolve import OPTED_OUT
from rapha.node.sources.interface import Quarantine
from rapha.researcher.report import learning, metrics, words
from rapha.spec.receipt import DatasetUse, Usage

HEX = "0" * 64
LOSSES = {"loss_e01": 0.7, "loss_e02": 0.4, "loss_e03": 0.1}


def dots(chart: str) -> list[tuple[float, float]]:
    root = Tree.fromstring(chart)  # noqa: S314  (our own output)
    marks = [e for e in root.iter() if e.attrib.get("class") == "dot"]
    return [(float(e.attrib["cx"]), float(e.attrib["cy"])) for e in marks]


def texts(chart: str) -> list[str]:
    root = Tree.fromstring(chart)  # noqa: S314  (our own output)
    return [str(e.text) for e in root.iter() if e.attrib.get("class") == "tick"]


def test_epochs_are_ordered_by_number_and_curves_by_name() -> None:
    reported = {"val_e2": 2.0, "loss_e10": 0.1, "loss_e9": 0.2, "val_e1": 1, "seed": 7}
    assert learning.curves(reported) == {"loss": ((9, 0.2), (10, 0.1)), "val": ((1, 1.0), (2, 2.0))}


@pytest.mark.parametrize(
    "reported",
    [
        {},
        {"loss": 0.3},
        {"loss_e01": 0.3},
        {"loss_e1": 0.3, "loss_e01": 0.4, "loss_e2": 0.1},
        {"loss_e1": True, "loss_e2": False},
        {"loss_e1": "low", "loss_e2": "lower"},
        {"loss_e1": math.nan, "loss_e2": math.inf},
        {"loss_e1": 1e300, "loss_e2": 1e301},
        {"loss_e1": 10**400, "loss_e2": -(10**400)},
        {"loss_e1": [1], "loss_e2": {"a": 1}},
        {"_e1": 1.0, "_e2": 2.0},
        {"loss_e12345": 1.0, "loss_e12346": 2.0},
        {"a\nb_e1": 1.0, "a\nb_e2": 2.0},
        {"<b>_e1": 1.0, "<b>_e2": 2.0},
        {"loss_e\u0661": 1.0, "loss_e\u0662": 2.0},
    ],
)
def test_what_is_no_series_is_no_curve(reported: dict[str, Any]) -> None:
    assert learning.curves(reported) == {}


def test_a_curve_falls_where_its_values_fall_and_says_whose_word_it_is() -> None:
    ((name, values),) = learning.curves(LOSSES).items()
    chart = learning.chart(1, name, values)
    xs, ys = zip(*dots(chart), strict=True)
    assert list(xs) == sorted(xs)
    assert list(ys) == sorted(ys)  # downwards on the page
    assert "loss, self-reported" in chart
    assert "checked by nobody" in chart
    assert "epoch 3: 0.1" in chart


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ((0.0, 0.0), ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        ((0.7, 0.1), ["0", "0.2", "0.4", "0.6", "0.8"]),
        ((1.0, 2.5), ["0", "0.5", "1", "1.5", "2", "2.5"]),
        ((-3.0, 4.0), ["-4", "-2", "0", "2", "4"]),
        ((0.0, 1e15), ["0", "2e+14", "4e+14", "6e+14", "8e+14", "1e+15"]),
    ],
)
def test_the_axis_has_round_numbers_and_zero(values: tuple[float, ...], ticks: list[str]) -> None:
    chart = learning.chart(1, "loss", tuple(enumerate(values, start=1)))
    assert [text for text in texts(chart) if text not in ("1", "2")] == [
        tick for tick in ticks if tick not in ("1", "2")
    ]


reported_numbers = st.floats(-1e15, 1e15) | st.integers(-(2**53), 2**53)


@given(st.dictionaries(st.integers(0, 9999), reported_numbers, min_size=2, max_size=40))
def test_every_point_lies_inside_the_axes(series: dict[int, float]) -> None:
    found = learning.curves({f"loss_e{epoch}": value for epoch, value in series.items()})
    for name, values in found.items():
        points = dots(learning.chart(1, name, values))
        assert len(points) == len(values)
        assert all(51.9 <= x <= 330.1 and 45.9 <= y <= 330.1 for x, y in points)


@given(st.dictionaries(st.text(max_size=12), st.none() | st.booleans() | st.floats() | st.text(max_size=4)))
def test_nothing_that_a_job_may_name_breaks_it(reported: dict[str, Any]) -> None:
    drawn = learning.curves(reported)
    for number, (name, values) in enumerate(drawn.items()):
        Tree.fromstring(learning.chart(number, name, values))  # noqa: S314  (our own output)


def test_what_is_drawn_is_not_listed_again() -> None:
    shown = metrics.read({"trusted": {}, "self_reported": {**LOSSES, "seed": 7, "other_e1": 1.0}})
    assert [name for name, _ in shown.learning] == ["loss"]
    assert shown.self_reported == (("other_e1", "1"), ("seed", "7"))
    ((_, curve),) = shown.learning
    assert curve.points == (("1", "0.7"), ("2", "0.4"), ("3", "0.1"))


def test_every_reason_of_the_node_has_words() -> None:
    reasons = {kind.reason for kind in Quarantine if kind is not Quarantine.NONE}
    assert words.REASONS.keys() == reasons | {OPTED_OUT}
    assert len(set(words.REASONS.values())) == len(words.REASONS)


def usage(patients: int) -> Usage:
    commitments = ("records_commitment", "patients_commitment", "used_root", "transcript")
    return Usage.parse(
        {
            **{"records": patients, "patients": patients, "bucket": 10, "cap": 1000},
            **{"counts": "hospital-asserted", **dict.fromkeys(commitments, HEX)},
        }
    )


def use(**funnel: int | str) -> DatasetUse:
    hexes = dict.fromkeys(("manifest", "cohort", "opt_out_version", "content", "ledger"), HEX)
    about = {"id": "d", "profile": "imaging.d", "confinement": "memory", **hexes}
    return DatasetUse.parse({**about, "funnel": {"used": 20, **funnel}})


def test_few_patients_are_called_few() -> None:
    assert words.patients(usage(20), use()).startswith("These records are of at most 20 patients")
    assert "training and test" in words.patients(usage(20), use(), "train")
    assert "training and test" not in words.patients(usage(20), use(), "evaluate")
    assert "That is few" in words.patients(usage(words.FEW), use())
    assert "That is few" not in words.patients(usage(words.FEW + 10), use())
    assert words.caution(usage(20))
    assert not words.caution(usage(words.FEW + 10))


def test_a_cell_below_the_usual_is_named() -> None:
    assert "Groups of 3 patients" in words.patients(usage(20), use(readable="<3"))
    assert "Groups of" not in words.patients(usage(20), use(readable="<10"))
    assert "Groups of" not in words.patients(usage(20), use())
