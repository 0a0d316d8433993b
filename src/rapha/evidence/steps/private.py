"""Part of step 14: what was promised of the released weights, for a job that the hospital's trainer ran."""

from __future__ import annotations

from typing import Final

from rapha.evidence.steps.case import Case
from rapha.spec.accountant import spent
from rapha.spec.disclosure import ACCOUNTANT, Guarantee
from rapha.spec.private import PrivateTraining
from rapha.spec.refusals import Refused

_ROUNDING: Final = 1 + 1e-6
"""Between the accountant by which the node chose the noise and the one here."""


def check_guarantee(case: Case) -> None:
    """The receipt has a guarantee exactly where the signed job asks for one, and no weaker one.

    That so much noise keeps so small an epsilon is computed again from the numbers in it; that it was added
    is the word of the node, as strong as its evidence.

    Raises:
        Refused: `policy.private`.
    """
    private, promised = case.job.private, case.receipt.guarantee
    if private is None and promised is None:
        return
    if private is None or promised is None:
        raise Refused(
            "policy.private", "the receipt has a guarantee that the job did not ask for, or lacks one"
        )
    _check_terms(private, promised)
    if case.receipt.released != "all":  # then no weights left, and nothing is to be said of them
        return
    case.proves.append(
        "by the node's word, the hospital's own trainer made these weights, with differential privacy: "
        f"epsilon {promised.epsilon:g}, delta {promised.delta:g}, unit = patient; for the weights alone"
    )


def _check_terms(private: PrivateTraining, promised: Guarantee) -> None:
    if promised.epsilon > private.epsilon or promised.delta > private.delta:
        raise Refused("policy.private", "the guarantee is weaker than the signed job asks for")
    told = (promised.mechanism, promised.sample_rate, promised.steps, promised.clip)
    if told != ("dp-sgd", private.sample_rate, private.steps, private.clip):
        raise Refused("policy.private", "the guarantee is of another training than the signed job declares")
    if promised.accountant != ACCOUNTANT:
        raise Refused("policy.private", f"the guarantee is by another accountant than {ACCOUNTANT}")
    kept = promised.delta > 0 and promised.epsilon * _ROUNDING >= spent(
        promised.noise_multiplier, promised.sample_rate, promised.steps, promised.delta
    )
    if not kept:
        raise Refused("policy.private", "so little noise does not keep the epsilon of the guarantee")
