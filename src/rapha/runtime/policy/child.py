"""Runs tasks in a `worker` process and brings back what it answered before it ended."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from rapha.runtime.policy.bundle import Bundle

_COMMAND: Final = (sys.executable, "-I", "-m", "rapha.runtime.policy.worker")

Kind = Literal["value", "undefined", "error"]
Ending = Literal["ended", "crashed", "timeout"]


@dataclass(frozen=True, slots=True)
class Task:
    """A set to compile, and the rules (`rapha/admission/allow`) or the one query to evaluate."""

    bundle: Bundle
    document: bytes
    query: str | None = None
    rules: tuple[str, ...] = ()

    def wire(self) -> dict[str, Any]:
        """The task as `worker` reads it."""
        wire: dict[str, Any] = {
            "modules": self.bundle.modules,
            "data": self.bundle.data,
            "input": self.document.decode(),
        }
        return wire | ({"query": self.query} if self.query is not None else {"queries": self.rules})


@dataclass(frozen=True, slots=True)
class Outcome:
    """(kind, text) for each query until the child ended, and how it ended."""

    answers: tuple[tuple[Kind, str], ...]
    ending: Ending


def run(tasks: Sequence[Task], timeout_s: float) -> Outcome:
    """Run `tasks` in one fresh child that is killed after `timeout_s` seconds, start included."""
    request = json.dumps(
        {"parent": os.getpid(), "cpu_s": math.ceil(timeout_s) + 1, "tasks": [task.wire() for task in tasks]}
    )
    try:
        done = subprocess.run(
            _COMMAND,
            input=request.encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=timeout_s,
            env={},
            cwd="/",
            check=False,
        )
    except subprocess.TimeoutExpired as expired:
        return Outcome(_lines(expired.stdout or b""), "timeout")
    except OSError:
        return Outcome((), "crashed")
    endings: dict[int, Ending] = {0: "ended", -signal.SIGXCPU: "timeout"}
    return Outcome(_lines(done.stdout), endings.get(done.returncode, "crashed"))


def _lines(stdout: bytes) -> tuple[tuple[Kind, str], ...]:
    # A last line without its newline was cut off by the end of the child.
    return tuple((kind, text) for kind, text in map(json.loads, stdout.split(b"\n")[:-1]))
