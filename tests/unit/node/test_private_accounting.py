"""The noise that the node adds keeps the promise: by two accountants, and by another method."""

from __future__ import annotations

import dp_accounting
import pytest
from dp_accounting import pld
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants.analysis import rdp as opacus_rdp

from rapha.node.private.accounting import LEAST, epsilon, guarantee, noise_multiplier
from rapha.spec.accountant import ORDERS, spent
from rapha.spec.private import PrivateTraining
from rapha.spec.refusals import Refused

BASE = {
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
CASES = [(0.7, 0.01, 1000, 1e-5), (1.1, 0.05, 300, 1e-6), (2.0, 0.2, 50, 1e-5), (5.0, 1.0, 20, 1e-6)]


def declared(**changed: float) -> PrivateTraining:
    return PrivateTraining.parse(BASE | changed)


@pytest.mark.parametrize(("noise", "rate", "steps", "delta"), CASES)
def test_two_accountants_agree(noise: float, rate: float, steps: int, delta: float) -> None:
    rdp = opacus_rdp.compute_rdp(q=rate, noise_multiplier=noise, steps=steps, orders=ORDERS)
    theirs, _ = opacus_rdp.get_privacy_spent(orders=ORDERS, rdp=rdp, delta=delta)
    assert epsilon(noise, rate, steps, delta) == pytest.approx(theirs, abs=1e-6)
    assert spent(noise, rate, steps, delta) == pytest.approx(theirs, abs=1e-6)


@pytest.mark.parametrize(("noise", "rate", "steps", "delta"), CASES[1:3])
def test_a_tighter_method_finds_no_more(noise: float, rate: float, steps: int, delta: float) -> None:
    accountant = pld.PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    step = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise))
    accountant.compose(dp_accounting.SelfComposedDpEvent(step, steps))
    assert accountant.get_epsilon(delta) <= epsilon(noise, rate, steps, delta)


@settings(max_examples=8, deadline=None)
@given(st.floats(0.1, 16.0), st.floats(1e-9, 1e-5), st.floats(1e-4, 1.0), st.integers(1, 2000))
def test_the_noise_keeps_the_promise_and_is_hardly_more_than_needed(
    wanted: float, delta: float, rate: float, steps: int
) -> None:
    private = declared(epsilon=wanted, delta=delta, sample_rate=rate, steps=steps)
    try:
        noise = noise_multiplier(private)
    except Refused as refused:
        assert refused.code == "policy.private"
        return
    assert epsilon(noise, rate, steps, delta) <= wanted
    assert noise == LEAST or epsilon(noise * 0.998, rate, steps, delta) > wanted


@settings(max_examples=12, deadline=None)
@given(st.floats(0.3, 900.0), st.floats(1e-15, 1e-2), st.floats(1e-6, 1.0), st.integers(1, 100_000))
def test_who_reads_a_receipt_computes_what_the_node_computed(
    noise: float, delta: float, rate: float, steps: int
) -> None:
    assert spent(noise, rate, steps, delta) == pytest.approx(epsilon(noise, rate, steps, delta), rel=1e-7)


def test_what_rounding_takes_for_nothing_is_not_promised() -> None:
    """At this rate the divergence of a step is lost beside 1, and a hundred thousand of them are not."""
    assert epsilon(500.0, 1e-6, 100_000, 1e-6) > 0
    with pytest.raises(Refused, match="larger epsilon"):
        noise_multiplier(declared(epsilon=1e-3, sample_rate=1e-6, steps=1))


def test_a_promise_that_no_noise_keeps_refuses_and_says_what_to_change() -> None:
    with pytest.raises(Refused, match="fewer steps") as caught:
        noise_multiplier(declared(epsilon=1e-6, sample_rate=1.0, steps=100_000))
    assert caught.value.code == "policy.private"


def test_more_steps_a_larger_share_or_a_smaller_promise_take_more_noise() -> None:
    base = noise_multiplier(declared())
    for changed in ({"steps": 400}, {"sample_rate": 0.1}, {"epsilon": 1.5}, {"delta": 1e-8}):
        assert noise_multiplier(declared(**changed)) > base


def test_the_guarantee_says_what_was_done() -> None:
    private = declared()
    found = guarantee(private)
    assert (found.epsilon, found.delta, found.unit, found.mechanism) == (3.0, 1e-6, "patient", "dp-sgd")
    assert (found.clip, found.sample_rate, found.steps) == (1.5, 0.05, 200)
    assert epsilon(found.noise_multiplier, found.sample_rate, found.steps, found.delta) <= found.epsilon


def test_clip_learning_rate_and_batch_cost_no_privacy() -> None:
    base = noise_multiplier(declared())
    assert base == noise_multiplier(declared(clip=9.0, learning_rate=9.0, expected_batch=7))
