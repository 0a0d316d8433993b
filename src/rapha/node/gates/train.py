"""Gate 8: the job's code runs behind the walls, and gets records only through the meter."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rapha.node.gates.consent import Consented
from rapha.node.gates.intake import Admitted
from rapha.node.gates.walls import limits_of, run, walls
from rapha.node.node import Node
from rapha.node.private.grouping import grouped
from rapha.runtime.sandbox.interface import Ending, Outcome
from rapha.spec.receipt import WALLS
from rapha.spec.refusals import Refused

_LOG_TAIL: Final = 65536
_FRAME: Final = re.compile(r'^\s+File "/app/([^"\n]{1,256})", line (\d{1,7})', re.M)
_ERROR: Final = re.compile(r"^([A-Za-z_][A-Za-z0-9_.]{0,63})(?::|$)", re.M)


@dataclass(frozen=True, slots=True)
class Trained:
    """Where the raw outputs lie, and how the run went."""

    outputs: Path
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Crash:
    """What may be said of a crash before the first record: class, and a file of the image with its line."""

    exception: str
    file: str
    line: int


class Ended(Refused):
    """The code ended badly, in one of the fixed classes; `crash` is used only if no record was served.

    Attributes:
        outcome: of the run that ended so; its resource use is told in quanta, as that of a success is.
    """

    def __init__(self, code: str, outcome: Outcome | None = None, crash: Crash | None = None) -> None:
        super().__init__(code, f"{crash.exception} at {crash.file}:{crash.line}" if crash else "")
        self.crash, self.outcome = crash, outcome


def train(
    node: Node,
    admitted: Admitted,
    consented: Consented,
    work: Path,
    hold: int | None = None,
    *,
    shadow: int | None = None,
    wall_s: float = math.inf,
) -> Trained:
    """Run the entrypoint; the sandbox keeps `hold` open as long as it lives.

    With a `shadow`, it trains that shadow model of check 8, and has no more than `wall_s`.

    Raises:
        Ended: `job.*`. Refused: `node.*`.
    """
    outputs = work / "outputs"
    outputs.mkdir(mode=0o700)
    log = node.log_file(admitted.id, "train" if shadow is None else "shadow")
    own = grouped(admitted.private, consented.data, work, shadow)
    with own as groups, consented.data.serve("train", shadow) as broker:
        spec = walls(
            node,
            admitted,
            argv=admitted.job.entrypoint,
            inputs={"plan.json": consented.plan_file, **groups},
            limits=limits_of(admitted, wall_s),
            log=log,
            broker=broker.fileno(),
            out=outputs,
            hold=hold,
        )
        outcome = run(node, spec)
    check_outcome(node, admitted, consented, outcome, log)
    check_run(node, consented, outcome)
    return Trained(outputs, outcome)


def check_run(node: Node, consented: Consented, outcome: Outcome) -> None:
    """Whether every wall of the driver held, and the job used what it was run for.

    Raises:
        Ended: `job.no_records`, `job.failed`. Refused: `node.sandbox_unavailable`.
    """
    missing = [name for name in sorted(WALLS[node.sandbox.name]) if not outcome.walls.get(name)]
    if missing:
        raise Refused("node.sandbox_unavailable", f"walls that were not seen to hold: {', '.join(missing)}")
    usage = consented.data.usage()
    if usage.unique_records == 0:
        raise Ended("job.failed" if usage.first_record_served else "job.no_records", outcome)


def check_outcome(node: Node, admitted: Admitted, consented: Consented, outcome: Outcome, log: Path) -> None:
    """Turn a bad end into the fixed classes of the surface.

    Raises:
        Ended: `job.*`. Refused: `node.stopped`, `node.sandbox_unavailable`.
    """
    if node.stop.is_set():
        raise Refused("node.stopped")
    if outcome.ending == Ending.failed_to_start:
        raise Refused("node.sandbox_unavailable", outcome.detail)
    code = {
        Ending.timeout: "job.time",
        Ending.memory: "job.memory",
        Ending.killed: "job.failed",
    }.get(outcome.ending)
    if code is not None:
        raise Ended(code, outcome)
    if outcome.exit_code != 0 and consented.data.usage().first_record_served:
        raise Ended("job.failed", outcome)
    if outcome.exit_code != 0:
        raise Ended("job.startup", outcome, find_crash(log, admitted))
    if outcome.anomalies:
        node.journal.append("outputs", admitted.id, anomalies=list(outcome.anomalies)[:16])
        raise Ended("job.outputs", outcome)


def find_crash(log: Path, admitted: Admitted) -> Crash | None:
    """The exception of a Python traceback in the run's log, if it was raised below the submitter's files."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_TAIL))
        text = file.read().decode(errors="replace")
    frames = [(f, int(n)) for f, n in _FRAME.findall(text) if f"app/{f}" in admitted.image.files]
    errors = _ERROR.findall(text[text.rfind("Traceback (most recent call last)") :]) if frames else []
    named = [e for e in errors if e != "Traceback"]
    return Crash(named[-1], f"app/{frames[-1][0]}", frames[-1][1]) if named else None
