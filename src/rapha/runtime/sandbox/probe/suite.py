"""Run every attempt inside and outside, and judge."""

from __future__ import annotations

import contextlib
import os
import platform
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from rapha.runtime.sandbox.interface import BROKER_FD, Ending, Limits, Mount, Outcome, Running, Sandbox, Spec
from rapha.runtime.sandbox.probe import control, world
from rapha.runtime.sandbox.probe.attempts import catalogue, outputs
from rapha.runtime.sandbox.probe.attempts.kit import Attempt
from rapha.runtime.sandbox.probe.verdict import LeftOut, Probe, Report, Result, Tried, judge, read
from rapha.runtime.sandbox.probe.world import Outside
from rapha.runtime.sandbox.pyruntime import PythonRuntime, installed
from rapha.runtime.sandbox.start import unavailable
from rapha.spec.refusals import Refused

UNSAFE_NONE: Final = "unsafe-none"
"""The driver's name where the sandbox is off."""
_IN: Final = "/rapha/in"
_ATTEMPTS: Final = Path(catalogue.__file__).parent
_MIB: Final = 1 << 20
TOGETHER: Final = Limits(
    wall_s=120,
    cpu_s=120,
    memory_bytes=512 * _MIB,
    processes=64,
    open_files=256,
    out_bytes=8 * _MIB,
    tmp_bytes=16 * _MIB,
)
_ALONE: Final = Limits(
    wall_s=30,
    cpu_s=30,
    memory_bytes=64 * _MIB,
    processes=64,
    out_bytes=64 * _MIB,
    tmp_bytes=64 * _MIB,
    log_bytes=_MIB // 4,
)
_OWN: Final = {
    "limits.cpu": replace(_ALONE, cpu_s=1),
    "limits.cpu_children": replace(_ALONE, cpu_s=1),
    "limits.wall": replace(_ALONE, wall_s=3.0),
    "limits.processes": replace(_ALONE, memory_bytes=512 * _MIB),
    "limits.threads": replace(_ALONE, memory_bytes=512 * _MIB),
    "limits.outlive": replace(_ALONE, memory_bytes=256 * _MIB),
    "limits.log": replace(_ALONE, memory_bytes=256 * _MIB),
}
"""What of `_ALONE` is other for an attempt that goes past one limit and must not meet another first."""
_LOG, _OUTLIVE = "limits.log", "limits.outlive"
_TIMED: Final = frozenset({"limits.cpu", "limits.cpu_children", "limits.wall"})
_AT_ONCE: Final = 4
"""Sandboxes of the second kind, which wait for most of their time."""


def selected(outside: Outside, machine: str) -> tuple[tuple[Attempt, ...], tuple[LeftOut, ...]]:
    """The attempts for this user and processor, and why others are left out."""
    chosen, left = [], []
    for attempt in catalogue.ALL:
        if attempt.x86 and machine != "x86_64":
            left.append(LeftOut(attempt.id, f"a door of x86-64, not of {machine}"))
        elif attempt.root and not outside.root:
            left.append(LeftOut(attempt.id, "only root can do it outside: probe as root to have it tried"))
        elif attempt.capability >= 0 and not outside.capabilities >> attempt.capability & 1:
            left.append(LeftOut(attempt.id, f"capability {attempt.capability} is taken from this root"))
        else:
            chosen.append(attempt)
    return tuple(chosen), tuple(left)


def probe(sandbox: Sandbox | None, only: Callable[[Attempt], bool] = lambda _: True) -> Report:
    """Try everything against `sandbox`; None is no walls at all, and everything gets through.

    Args:
        sandbox: the driver.
        only: which attempts, by default all that this host offers.

    Raises:
        Refused: `node.sandbox_unavailable`: no sandbox starts, or the host has nothing to make a world of.
    """
    with contextlib.ExitStack() as kept:
        try:
            outside = kept.enter_context(world.made())
        except OSError as error:
            raise Refused("node.sandbox_unavailable", f"nothing to be reached can be made: {error}") from None
        folder = Path(
            kept.enter_context(tempfile.TemporaryDirectory(prefix="rapha-controls-", dir="/var/tmp"))
        )
        chosen, left = selected(outside, platform.machine())
        chosen = tuple(filter(only, chosen))
        suite = _Suite(sandbox, outside, folder)
        controls, inside = suite.run(chosen)
        rows = [judge(a, controls.get(a.id), inside.get(a.id)) for a in chosen]
    return Report(
        driver=sandbox.name if sandbox else UNSAFE_NONE,
        walls=suite.walls,
        probes=tuple(row for row in rows if isinstance(row, Probe)),
        left_out=(*left, *(row for row in rows if isinstance(row, LeftOut))),
    )


Found = dict[str, Tried]


@dataclass
class _Suite:
    sandbox: Sandbox | None
    outside: Outside
    folder: Path

    def __post_init__(self) -> None:
        self.walls: dict[str, str] = {}

    def run(self, chosen: Sequence[Attempt]) -> tuple[Found, Found]:
        """What came of `chosen` outside, and inside."""
        controls: Found = {}
        inside: Found = {}
        for attempts, batch in ((catalogue.TOGETHER, self._together), (catalogue.LEFT, self._left)):
            mine = [attempt for attempt in chosen if attempt in attempts]
            if mine:
                outside, within = batch(mine)
                controls |= outside
                inside |= within
        mine = [attempt for attempt in chosen if attempt in catalogue.ALONE]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for attempt, (outer, inner) in zip(mine, pool.map(self._alone, mine), strict=True):
                controls[attempt.id], inside[attempt.id] = outer, inner
        return controls, inside

    def _together(self, attempts: Sequence[Attempt]) -> tuple[Found, Found]:
        with self._started(attempts, TOGETHER, "main") as started:
            controls = control.together(self.outside, attempts, TOGETHER, self._new("together"))
            if started is None:
                return controls, controls
            outcome = self._waited(started.running)
        return controls, _heard(started.log, attempts, outcome)

    def _left(self, attempts: Sequence[Attempt]) -> tuple[Found, Found]:
        """Attempts that leave something: it counts if it is there for whoever comes to collect."""
        folder = self._new("left")
        collected = self._new("collected")
        with self._started(attempts, TOGETHER, "main", out=collected) as started:
            controls = control.together(self.outside, attempts, TOGETHER, folder)
            controls = {a.id: _arrived(a, controls[a.id], folder / a.place / "out") for a in attempts}
            if started is None:
                return controls, controls
            outcome = self._waited(started.running)
        inside = _heard(started.log, attempts, outcome)
        return controls, {a.id: _arrived(a, inside[a.id], collected) for a in attempts}

    def _alone(self, attempt: Attempt) -> tuple[Tried, Tried]:
        limits = _OWN.get(attempt.id, _ALONE)
        with self._started([attempt], limits, "alone") as started:
            folder = self.folder / f"alone-{attempt.id}"
            tried, said, lives = control.alone(self.outside, attempt, limits, folder)
            outer = _past_the_end(attempt, tried, said, lives, limits)
            if started is None:
                return outer, outer
            outcome = self._waited(started.running)
            lives = started.lives()
        inner = _ended(attempt, _heard(started.log, [attempt], outcome)[attempt.id], outcome)
        return outer, _past_the_end(attempt, inner, started.log.stat().st_size, lives, limits)

    def _waited(self, running: Running) -> Outcome:
        """The outcome; where not even the first sandbox starts, there is nothing to be found out.

        Raises:
            Refused: `node.sandbox_unavailable`.
        """
        outcome = running.wait()
        if not self.walls and outcome.ending is Ending.failed_to_start:
            raise Refused("node.sandbox_unavailable", unavailable(outcome))
        self.walls = self.walls or dict(outcome.walls)
        return outcome

    def _new(self, name: str) -> Path:
        path = self.folder / name
        path.mkdir()
        return path

    @contextlib.contextmanager
    def _started(
        self, attempts: Sequence[Attempt], limits: Limits, entry: str, out: Path | None = None
    ) -> Iterator[_Started | None]:
        """The attempts under way inside, under the Spec that a job gets; None where there is no inside."""
        if self.sandbox is None:
            yield None
            return
        runtime = PythonRuntime.discover(installed())
        log = self.folder / f"log-{entry}-{attempts[0].id}"
        given = Mount(_ATTEMPTS, f"{_IN}/{_ATTEMPTS.relative_to(world.SOURCES).as_posix()}")
        argv = (runtime.python, *control.arguments(_IN, self.outside.inside(limits), attempts, entry))
        with control.broker() as (ours, theirs):
            spec = Spec(
                argv=argv,
                mounts=(*runtime.mounts, given),
                env={**runtime.env, "RAPHA_BROKER_FD": str(BROKER_FD)},
                cwd="/tmp",  # noqa: S108  as `rapha sandbox run`
                limits=limits,
                broker=theirs.fileno(),
                out=out,
                log=log,
            )
            running = self.sandbox.start(spec)
            theirs.close()
            try:
                yield _Started(running, log, lambda: control.still_open(ours))
            finally:
                running.kill()
                running.wait()


@dataclass(frozen=True, slots=True)
class _Started:
    running: Running
    log: Path
    lives: Callable[[], bool]


def _heard(log: Path, attempts: Sequence[Attempt], outcome: Outcome) -> Found:
    """What the attempts said, and of those that said nothing how their sandbox ended."""
    data = log.read_bytes()
    silent = Tried(Result.broken, 0, f"said nothing; the sandbox: {outcome.ending} {outcome.exit_code}")
    return dict.fromkeys((attempt.id for attempt in attempts), silent) | read(data, [a.id for a in attempts])


def _arrived(attempt: Attempt, tried: Tried, folder: Path) -> Tried:
    """Whether what was left is in `folder`, as whoever collects finds it."""
    if tried.result is not Result.reached:
        return tried
    path = folder / outputs.NAMES[attempt.id]
    if not os.path.lexists(path):
        return Tried(Result.refused, 0, "not collected")
    if attempt.id == outputs.PROGRAM and not path.stat().st_mode & stat.S_ISUID:
        return Tried(Result.refused, 0, "collected as plain data")
    return tried


def _ended(attempt: Attempt, tried: Tried, outcome: Outcome) -> Tried:
    """An attempt that had begun and said no more was stopped by what ended its sandbox.

    Only the limit that it went past is a wall that held; time that ran out on another is no answer.
    """
    if tried.result is not Result.begun:
        return tried
    if outcome.ending is (Ending.timeout if attempt.id in _TIMED else Ending.memory):
        return Tried(Result.refused, 0, f"the sandbox was ended: {outcome.ending}")
    if outcome.ending is Ending.timeout:
        return Tried(Result.hung, 0, "no end of it before the sandbox's")
    if outcome.exit_code:
        return Tried(Result.died, 0, f"everything in the sandbox ended, with {outcome.exit_code}")
    return Tried(Result.broken, 0, "it ended well and said nothing")


def _past_the_end(attempt: Attempt, tried: Tried, said: int, lives: bool, limits: Limits) -> Tried:
    """Two attempts are judged by what is there afterwards: the words kept, and a process that stayed."""
    if attempt.id == _LOG and tried.result in {Result.reached, Result.begun, Result.broken}:
        if said > limits.log_bytes:
            return Tried(Result.reached, 0, f"{said} bytes kept")
        if said == limits.log_bytes:
            return Tried(Result.refused, 0, f"{said} bytes kept, the rest dropped")
    if attempt.id == _OUTLIVE and tried.result is Result.reached:
        return tried if lives else Tried(Result.refused, 0, "it died with the sandbox")
    return tried
