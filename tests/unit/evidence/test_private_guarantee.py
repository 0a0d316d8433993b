"""The receipt has a guarantee exactly where the signed job asks for one, and no weaker one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from rapha.evidence.steps.private import check_guarantee
from rapha.spec.disclosure import Guarantee
from rapha.spec.private import PrivateTraining
from rapha.spec.refusals import Refused

ASKED = PrivateTraining.parse(
    {
        "model": {"kind": "linear"},
        "inputs": [{"field": "x"}],
        "target": {"label": "y", "task": "binary"},
        "loss": "cross-entropy",
        "epsilon": 3.0,
        "delta": 1e-6,
        "clip": 1.5,
        "sample_rate": 0.05,
        "expected_batch": 100,
        "steps": 200,
        "learning_rate": 0.5,
    }
)
PROMISED = Guarantee(
    epsilon=3.0, delta=1e-6, noise_multiplier=1.5, sample_rate=0.05, steps=200, clip=1.5, accountant="rdp"
)


def case(asked: PrivateTraining | None, promised: Guarantee | None) -> Any:
    receipt = SimpleNamespace(guarantee=promised, released="all")
    return SimpleNamespace(job=SimpleNamespace(private=asked), receipt=receipt, proves=[])


def test_a_kept_promise_is_among_what_is_proved() -> None:
    checked = case(ASKED, PROMISED)
    check_guarantee(checked)
    (line,) = checked.proves
    assert "epsilon 3, delta 1e-06, unit = patient" in line
    assert "by the node's word" in line
    assert "weights alone" in line


def test_a_promise_beyond_what_was_asked_for_is_kept_too() -> None:
    more = {"epsilon": 2.0, "delta": 1e-9, "noise_multiplier": 3.0}
    check_guarantee(case(ASKED, PROMISED.model_copy(update=more)))


def test_a_job_with_code_of_its_own_proves_nothing_of_the_kind() -> None:
    checked = case(None, None)
    check_guarantee(checked)
    assert checked.proves == []


def test_of_weights_that_did_not_leave_nothing_is_said_and_all_is_checked() -> None:
    for promised in (PROMISED, PROMISED.model_copy(update={"epsilon": 4.0})):
        checked = case(ASKED, promised)
        checked.receipt.released = "metrics"
        if promised == PROMISED:
            check_guarantee(checked)
        else:
            with pytest.raises(Refused, match="weaker"):
                check_guarantee(checked)
        assert checked.proves == []


BAD: dict[str, tuple[PrivateTraining | None, dict[str, Any] | None]] = {
    "a promise that nobody asked for": (None, {}),
    "no promise": (ASKED, None),
    "a larger epsilon": (ASKED, {"epsilon": 3.001}),
    "a larger delta": (ASKED, {"delta": 2e-6}),
    "fewer steps": (ASKED, {"steps": 199}),
    "another share": (ASKED, {"sample_rate": 0.04}),
    "another clip": (ASKED, {"clip": 1.0}),
    "another mechanism": (ASKED, {"mechanism": "laplace"}),
    "another accountant": (ASKED, {"accountant": "believe-me"}),
    "a promise beyond what the noise keeps": (ASKED, {"epsilon": 2.0}),
    "a promise of everything": (ASKED, {"epsilon": 0.0}),
    "a delta of none": (ASKED, {"delta": 0.0}),
    "too little noise": (ASKED, {"noise_multiplier": 1.3}),
    "hardly any noise": (ASKED, {"noise_multiplier": 1e-9}),
    "noise whose square is none": (ASKED, {"noise_multiplier": 5e-324}),
}


@pytest.mark.parametrize("what", BAD)
def test_a_receipt_that_promises_something_else_refuses(what: str) -> None:
    asked, changed = BAD[what]
    promised = None if changed is None else PROMISED.model_copy(update=changed)
    checked = case(asked, promised)
    with pytest.raises(Refused) as caught:
        check_guarantee(checked)
    assert caught.value.code == "policy.private"
    assert checked.proves == []
