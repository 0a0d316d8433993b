"""How long something took tells nothing of the records: not which rule refused, nor what the ledger did."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rapha.node import pipeline
from rapha.node.gates import consent as gate
from rapha.node.gates import outcome
from rapha.node.gates.outcome import Clock
from rapha.node.gates.quantum import whole_quanta
from rapha.node.recover import TRAINING
from rapha.spec.refusals import Refused


class Waits:
    """A stop that only notes how long it was to wait, in place of waiting."""

    def __init__(self) -> None:
        self.waited: list[float] = []

    def wait(self, seconds: float) -> bool:
        self.waited.append(seconds)
        return False


def node(quantum_s: int = 1) -> Any:
    config = SimpleNamespace(quantum_s=quantum_s, profile="demo", preparation=None)
    return SimpleNamespace(stop=Waits(), config=config)


@pytest.mark.parametrize("fails", [False, True])
def test_a_step_takes_whole_quanta_however_it_ends(fails: bool) -> None:
    here = node()
    begun = time.monotonic()
    try:
        with whole_quanta(here):
            time.sleep(0.05)
            if fails:
                raise Refused("privacy.cohort_refused")
    except Refused:
        assert fails
    (waited,) = here.stop.waited
    assert 0.5 < waited <= 0.95 and waited + time.monotonic() - begun >= 1


@pytest.mark.parametrize("rule", ["resolve", "demand_uncapped"])
def test_whichever_rule_refuses_a_cohort_does_so_after_whole_quanta(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rule: str
) -> None:
    def refuse(*_: object) -> None:
        raise Refused("privacy.cohort_refused")

    for name in (
        "check_swap",
        "check_testable",
        "check_measurable",
        "means",
        "seen",
        "worst",
        "_meter_journal",
    ):
        monkeypatch.setattr(gate, name, lambda *_: None)
    monkeypatch.setattr(gate, "Resolve", SimpleNamespace)
    monkeypatch.setattr(gate, "demand_uncapped", refuse)
    here = node()
    here.phi = SimpleNamespace(enlist=lambda: ("k", tmp_path))
    here.state, here.journal = tmp_path, None
    job = SimpleNamespace(
        kind="train", purpose="p", private=object(), outputs=SimpleNamespace(subgroups=()),
        dataset=SimpleNamespace(transforms={}, cohort=None, max_records=1),
    )  # fmt: skip
    company = SimpleNamespace(id="c")
    terms = SimpleNamespace(terms=SimpleNamespace(company=company))
    admitted: Any = SimpleNamespace(
        job=job, id="j", folder=tmp_path, agreement=terms, manifest=SimpleNamespace(dataset="d")
    )
    found = SimpleNamespace(records=1)
    data: Any = SimpleNamespace(resolve=refuse if rule == "resolve" else lambda _: found)
    with pytest.raises(Refused):
        gate.consent(here, admitted, data, tmp_path)
    assert len(here.stop.waited) == 1


@pytest.mark.parametrize("refused", [False, True])
def test_the_clock_runs_while_the_ledger_is_charged(monkeypatch: pytest.MonkeyPatch, refused: bool) -> None:
    events: list[tuple[str, dict[str, Any]]] = []
    here: Any = SimpleNamespace(
        journal=SimpleNamespace(append=lambda event, job, **data: events.append((event, data)))
    )
    monkeypatch.setattr(outcome, "worst", lambda _: (20, 10))
    clock, begun = Clock(1), time.time()

    def reserve() -> None:
        assert clock._started is not None and not events
        time.sleep(0.2)
        if refused:
            raise Refused("budget.disclosure")

    charge: Any = SimpleNamespace(reserve=reserve)
    admitted: Any = SimpleNamespace(id="j")
    if refused:
        with pytest.raises(Refused):
            pipeline._begin(here, admitted, clock, charge)
        assert events == []
    else:
        pipeline._begin(here, admitted, clock, charge)
        ((event, data),) = events
        assert event == TRAINING and data["records"] == 20
        assert 0 <= data["started_ms"] / 1000 - int(begun * 1000) / 1000 < 0.15
    assert clock.boundary().timestamp() >= begun + 1
