"""Trusted numbers in the report: order, names of subgroups, and what stands at the top."""

from __future__ import annotations

from rapha.researcher.report import metrics


def read(trusted: dict[str, float]) -> metrics.Metrics:
    return metrics.read({"trusted": trusted, "self_reported": {}})


def test_each_metric_is_followed_by_its_subgroups() -> None:
    found = read(
        {
            "brier@sex=1": 0.2,
            "brier": 0.1,
            "auroc@age_band=60-69": 0.8,
            "auroc@age_band=60-69.low": 0.7,
            "auroc@age_band=60-69.high": 0.9,
            "auroc": 0.85,
            "sensitivity_at_90": 0.5,
            "calibration_error": 0.03,
            "roc.3": 0.7,
        }
    )
    assert [row.name for row in found.trusted] == [
        *("AUROC", "AUROC, age_band = 60-69", "Brier score", "Brier score, sex = 1"),
        *("Calibration error", "Sensitivity at 90%"),
    ]
    assert found.trusted[1].interval == "0.700 to 0.900"
    assert all(row.meaning for row in found.trusted)
    assert found.headline == "AUROC 0.850" and found.roc is not None


def test_a_subgroup_is_never_the_headline() -> None:
    assert read({"auroc@sex=1": 0.9}).headline is None
    assert read({"auroc@sex=1": 0.9, "brier": 0.1}).headline == "Brier score 0.100"


def test_a_name_that_nobody_knows_is_shown_as_it_is() -> None:
    assert [row.name for row in read({"novel": 0.5, "auroc": 0.9}).trusted] == ["AUROC", "novel"]
