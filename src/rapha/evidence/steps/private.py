"""Part of step 14: what was promised of the released weights, for a job that the hospital's trainer ran."""

from __future__ import annotations

from rapha.evidence.steps.case import Case
from rapha.spec.disclosure import Guarantee
from rapha.spec.private import PrivateTraining
from rapha.spec.refusals import Refused


def check_guarantee(case: Case) -> None:
    """The receipt has a guarantee exactly where the signed job asks for one, and no weaker one.

    That so much noise keeps so small an epsilon anyone can compute again from the numbers in it; that it was
    added is the word of the node, as strong as its evidence.

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
