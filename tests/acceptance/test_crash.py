"""`kill -9` of the node at every gate: nothing is released, and the next start puts everything right."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rapha.evidence.verify import verify
from rapha.node.pipeline import GATES
from rapha.researcher.signing import SignedJob
from rapha.spec.refusals import Refused
from rapha.spec.units import parse_time
from rapha.testing import stack as stacks
from rapha.testing.killer import KILLER
from rapha.testing.stack import Stack

EARLY = ("intake", "scan", "policy", "approval")
BEFORE_COMMIT = ["accepted", *(f"gate/{g}/started" for g in GATES if g not in EARLY), "gate/receipt/passed"]
LATER = [
    *(f"gate/{g}/started" for g in EARLY),
    *(f"gate/{g}/passed" for g in GATES[:-1]),
    *("counted", "approved", "ticket"),
]
AFTER_COMMIT = ["committed"]


@pytest.fixture(scope="module")
def crashing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with stacks.stack(tmp_path_factory.mktemp("crashing")) as stack, stacks.people(stack.world):
        yield stack


@pytest.mark.parametrize("point", BEFORE_COMMIT)
def test_killed_before_commit_nothing_is_released(crashing: Stack, point: str) -> None:
    _nothing_released(crashing, point)


@pytest.mark.slow
@pytest.mark.parametrize("point", LATER)
def test_killed_after_a_gate_nothing_is_released(crashing: Stack, point: str) -> None:
    _nothing_released(crashing, point)


def _nothing_released(stack: Stack, point: str) -> None:
    signed = _killed_at(stack, point)
    state = stack.world.node / "state"
    _no_child_is_left(stack)
    _nothing_to_fetch(stack, signed)
    with stacks.node(stack.world.node):
        last = _end(stack, signed)
        assert (last["state"], last["code"]) == ("failed", "node.restarted")
        assert not list((state / "jobs").glob("*"))
        assert not list((state / "outbox").glob("*"))
        assert not list((state / "desk").glob("*"))
        _nothing_to_fetch(stack, signed)
        if point == BEFORE_COMMIT[-1]:
            assert _runs(stack) == "delivered"
    if GATES.index(_gate(point)) > GATES.index("train"):
        assert (state / "meters" / f"{signed.id}.journal").stat().st_size > 0, "counts are kept"


@pytest.mark.parametrize("point", AFTER_COMMIT)
def test_killed_after_commit_exactly_that_is_released(crashing: Stack, point: str, tmp_path: Path) -> None:
    signed = _killed_at(crashing, point)
    _nothing_to_fetch(crashing, signed)
    core = (crashing.world.node / "state" / "outbox" / signed.id / "core.json").read_bytes()
    with stacks.node(crashing.world.node):
        assert _end(crashing, signed)["state"] == "delivered"
    data = crashing.fetch(signed, tmp_path)
    assert core[1:-1].split(b'"log_leaf"')[0] in data
    finished = [e for e in crashing.journal(signed.id) if e.event == "closed"]
    result = verify(data, crashing.trust, parse_time(finished[-1].time).replace(microsecond=0))
    assert result.ok
    assert sum(e.event == "committed" for e in crashing.journal(signed.id)) == 1


def test_told_to_stop_in_the_middle_of_training_nothing_is_released(crashing: Stack) -> None:
    with stacks.node(crashing.world.node) as child:
        signed = crashing.submit()
        thread = threading.Thread(target=_follow, args=(crashing, signed))
        thread.start()
        _wait_until(lambda: _reached(crashing, signed, "gate/train/started"))
        child.terminate()
        child.wait(timeout=20)
        thread.join(timeout=30)
    _no_child_is_left(crashing)
    last = crashing.client.get(signed.id)
    assert last["state"] in ("failed", "refused")
    assert last["code"] in ("node.stopped", "job.failed")
    _nothing_to_fetch(crashing, signed)


def _killed_at(stack: Stack, point: str) -> SignedJob:
    command = (sys.executable, "-c", KILLER)
    os.environ["KILL_AT"] = point
    try:
        with stacks.node(stack.world.node, command) as child:
            signed = stack.submit()
            thread = threading.Thread(target=_follow, args=(stack, signed))
            thread.start()
            assert child.wait(timeout=60) == -9
    finally:
        del os.environ["KILL_AT"]
    _threads.append(thread)
    return signed


_threads: list[threading.Thread] = []


@pytest.fixture(autouse=True, scope="module")
def _join() -> Iterator[None]:
    yield
    for thread in _threads:
        thread.join(timeout=30)


def _follow(stack: Stack, signed: SignedJob) -> None:
    try:
        stack.follow(signed)
    except Refused:
        pass  # the job ended; the test looks at how


def _end(stack: Stack, signed: SignedJob) -> dict[str, object]:
    _wait_until(
        lambda: stack.client.get(signed.id)["state"] in ("failed", "refused", "delivered", "cancelled")
    )
    return stack.client.get(signed.id)


def _runs(stack: Stack) -> str:
    return str(stack.follow(stack.submit())["state"])


def _nothing_to_fetch(stack: Stack, signed: SignedJob) -> None:
    with pytest.raises(Refused):
        stack.client.bundle(signed.id)
    for name in ("model.safetensors", "metrics.json"):
        with pytest.raises(Refused):
            stack.client.artifact(signed.id, name)


def _no_child_is_left(stack: Stack) -> None:
    # The launcher, the trainer, the dataset process and the guard die with the node.
    _wait_until(lambda: not _children(stack))


def _children(stack: Stack) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        mine = (
            "rapha.node.datasets.process",
            "rapha.runtime.sandbox",
            "bwrap",
            "rapha.runtime.guard",
            "train.py",
        )
        if any(name in command for name in mine) and "pytest" not in command:
            found.append(command)
    return found


def _reached(stack: Stack, signed: SignedJob, point: str) -> bool:
    return any(
        "/".join([e.event, *[str(e.data[k]) for k in ("gate", "verdict") if k in e.data]]) == point
        for e in stack.journal(signed.id)
    )


def _gate(point: str) -> str:
    return point.split("/")[1] if "/" in point else "intake"


def _wait_until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 40
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)
