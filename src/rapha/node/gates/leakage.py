"""Check 8, a part of gate 9: how many of the patients who trained the released weights an attack can find.

1. the released model's `predict` runs over what it was given and over the held-out split, mixed
2. the job's own code is trained again on halves of its patients, behind the same walls; the guard rebuilds
   what it leaves by the same plan; and `predict` runs on that, over the same records
3. the dataset process compares (`rapha.node.datasets.audit`), and tells rates

A shadow that fails is left out, and so is what is not done within the manifest's `limit_s`. The code is told
nothing of this, but it can count its records: code that behaves when it sees fewer passes. So a low rate is
no evidence about hostile code, and a high one is a leak whoever wrote it.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rapha.node.gates.consent import Consented
from rapha.node.gates.intake import Admitted
from rapha.node.gates.measure import predicted
from rapha.node.gates.train import Ended, Trained, train
from rapha.node.node import Node
from rapha.runtime.guard.confined import run_in_process
from rapha.spec.audited import demanded, untestable
from rapha.spec.disclosure import LEAST_MEMBERS, NOT_ASKED, Leakage
from rapha.spec.price import GUARD_S
from rapha.spec.refusals import Refused

_LEAST_S: Final = 1.0
"""Of what is left of the time: with less, nothing starts any more."""
_AGAIN: Final = "again"


def leakage(
    node: Node,
    admitted: Admitted,
    consented: Consented,
    trained: Trained,
    released: Path,
    work: Path,
    hold: int | None,
) -> Leakage:
    """Attack the weights in `released`, as far as the dataset's manifest asks; sandboxes keep `hold` open.

    Raises:
        Ended: `job.outputs` where even the lower end of the interval is above what the manifest allows; and
            where it sets such a limit and the job's own code let the test fail.
        Refused: `node.*`.
    """
    found = _found(_Attack(node, admitted, consented, released, work, hold))
    if found != NOT_ASKED:
        node.journal.append("leakage", admitted.id, **found.dump())
    most = admitted.manifest.disclosure.leakage.most_tpr
    if not demanded(admitted.job, admitted.manifest):
        return found
    if found.verdict == "not_run" or found.narrowed:
        refused = f"the test is demanded, and was not run: {found.reason}"
    elif found.low is not None and found.low > most:
        refused = f"at least {found.low:.4f} of the members are found, and {most} may be"
    else:
        return found
    node.journal.append("guard", admitted.id, code="guard.leakage", reason=refused)
    raise Ended("job.outputs", trained.outcome)


@dataclass(frozen=True, slots=True)
class _Attack:
    """What every run of it needs."""

    node: Node
    admitted: Admitted
    consented: Consented
    released: Path
    work: Path
    hold: int | None


def _found(attack: _Attack) -> Leakage:
    test, data = attack.admitted.manifest.disclosure.leakage, attack.consented.data
    if not test.shadows:
        return NOT_ASKED
    if reason := untestable(attack.admitted.job, attack.admitted.manifest):
        return Leakage(verdict="not_run", reason=reason)
    before = data.audit()
    if before.verdict == "not_resolvable" or before.members < LEAST_MEMBERS:
        return before
    try:
        _released(attack)
    except Ended:
        return before.model_copy(update={"reason": "the job's code failed to predict what it was given"})
    until = time.monotonic() + test.limit_s
    for number in range(test.shadows):
        if until - time.monotonic() < _LEAST_S:
            break
        try:
            _shadow(attack, number, until)
        except Ended as ended:
            attack.node.journal.append("shadow", attack.admitted.id, number=number, code=ended.code)
    return data.audit()


def _released(attack: _Attack) -> None:
    """Predict with the released weights, from a fresh copy that lies where a shadow's do.

    The code reads in /proc/self/mountinfo where its inputs lie, and sees how old they are.

    Raises:
        Ended: `job.*`. Refused: `node.*`.
    """
    folder = attack.work / _AGAIN
    released = folder / "released"
    released.mkdir(mode=0o700, parents=True)
    try:
        for path in attack.released.iterdir():
            shutil.copy(path, released)
        released.chmod(0o755)
        _observe(attack, released, None, float(attack.admitted.job.compute.wall_clock_s))
    finally:
        shutil.rmtree(folder)


def _shadow(attack: _Attack, number: int, until: float) -> None:
    """Train shadow `number`, rebuild it as a release would be, predict, and destroy what it made.

    Raises:
        Ended: `job.*` where the code failed or was too slow. Refused: `node.*`.
    """
    folder = attack.work / _AGAIN
    released = folder / "released"
    released.mkdir(mode=0o700, parents=True)
    try:
        trained = train(
            attack.node,
            attack.admitted,
            attack.consented,
            folder,
            attack.hold,
            shadow=number,
            wall_s=_left(until),
        )
        report = run_in_process(
            trained.outputs,
            attack.admitted.job.outputs,
            released,
            timeout_s=min(GUARD_S, _left(until)),
            scratch=folder,
            hold=attack.hold,
        )
        if not report.ok:
            raise Ended("job.outputs")
        released.chmod(0o755)
        _observe(attack, released, number, _left(until))
    finally:
        shutil.rmtree(folder)


def _observe(attack: _Attack, released: Path, shadow: int | None, wall_s: float) -> None:
    """Predict with what lies in `released`, and pass it on.

    Raises:
        Ended: `job.*`, also for predictions that don't fit. Refused: `node.*`.
    """
    with predicted(
        attack.node,
        attack.admitted,
        attack.consented,
        released,
        attack.work,
        attack.hold,
        "audit",
        wall_s=wall_s,
    ) as predictions:
        try:
            attack.consented.data.observe(shadow, predictions)
        except Refused as refused:
            if refused.code != "job.outputs":
                raise
            raise Ended(refused.code) from None


def _left(until: float) -> float:
    """Seconds until then, never so few that no limit could be set."""
    return max(_LEAST_S, until - time.monotonic())
