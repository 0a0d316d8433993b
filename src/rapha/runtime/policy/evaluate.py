"""The decision: every policy set must allow, and none may deny."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from rapha.evidence import canonical
from rapha.runtime.policy.bundle import Bundle
from rapha.runtime.policy.interface import Answer, Engine, Failure
from rapha.runtime.policy.regopy_engine import RegopyEngine
from rapha.spec.policy import AdmissionInput, Decision, Reason
from rapha.spec.refusals import entry

TIMEOUT_S: Final = 10.0


def evaluate(
    bundles: Sequence[Bundle],
    document: AdmissionInput,
    timeout_s: float = TIMEOUT_S,
    engine: Engine | None = None,
) -> Decision:
    """Decide on `document` with every set, each on its own; Python takes the AND.

    So that a hospital's set can only narrow ours: in one interpreter, a module in our package could add
    a second `allow`. No set at all refuses. Call `Decision.require()` to act on the result.

    Raises:
        ValueError: `timeout_s` is not a positive number of seconds.
    """
    if not (math.isfinite(timeout_s) and timeout_s > 0):
        raise ValueError("timeout_s must be a positive number of seconds")
    engine = engine or RegopyEngine()
    data = canonical.dumps(document.dump())
    if bundles:
        answers = engine.decide(bundles, data, timeout_s)
        reasons = [r for _, answer in zip(bundles, answers, strict=True) for r in _against(answer)]
    else:
        reasons = [_reason("policy.undefined", "no policy set is configured")]
    return Decision(
        allow=not reasons,
        reasons=tuple(dict.fromkeys(reasons)),
        bundles=tuple(bundle.digest for bundle in bundles),
        input=canonical.digest(document.dump()),
        engine=engine.name,
    )


def _against(answer: Answer) -> tuple[Reason, ...]:
    if isinstance(answer, Failure):
        return (_reason(answer.code, answer.detail),)
    if not answer.allow and not answer.deny:
        return (_reason("policy.denied", "a policy set does not allow the job and names no reason"),)
    return answer.deny


def _reason(code: str, detail: str) -> Reason:
    line = "".join(c if c.isprintable() else " " for c in detail)[:500]
    return Reason(code=code, message=line, fix=entry(code).fix)
