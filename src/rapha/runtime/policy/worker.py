"""The child process that runs Rego: tasks in on stdin, one JSON line an answer on stdout.

The engine is a C++ library without a deadline of its own, and some rules crash it. So it runs in a process
that the parent can kill, with no environment (`opa.runtime` would show it), bounded memory and time, and
no way to write a file. Only this module imports the engine.

A task is {"modules": [[name, source], …], "data": JSON text, "input": JSON text, "queries": [path, …]} with
queries such as `rapha/admission/allow`, or {"…", "query": "x := …"}. An answer is [kind, text] with kind
`value`, `undefined` or `error`; each is flushed at once, so that a crash loses no answer before it.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

MAX_ANSWER: Final = 256 * 1024
MEMORY_BYTES: Final = 2**30
_PR_SET_PDEATHSIG: Final = 1


def main() -> None:
    """Read {"parent": pid, "cpu_s": seconds, "tasks": […]} and answer."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the engine prints its errors there
    request = json.load(sys.stdin.buffer)
    confine(request["parent"], request["cpu_s"])
    for task in request["tasks"]:
        for kind, text in run(task):
            line = [kind, text] if len(text) <= MAX_ANSWER else ["error", "the answer is too large"]
            answers.write(json.dumps(line) + "\n")
            answers.flush()


def confine(parent: int, cpu_s: int) -> None:
    """Die with the parent, and never use more than a policy can need."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the call
        os._exit(1)
    for limit, value in (
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    threading.Thread(target=_watch_memory, daemon=True).start()


def _watch_memory() -> None:
    # The engine's allocator reserves 256 GiB of addresses at its start, so neither RLIMIT_AS nor
    # RLIMIT_DATA can bound what it uses. Calls into the engine let other threads run.
    page = os.sysconf("SC_PAGESIZE")
    with Path("/proc/self/statm").open("rb", buffering=0) as statm:
        while int(statm.read(128).split()[1]) * page <= MEMORY_BYTES:
            time.sleep(0.02)
            statm.seek(0)
    os._exit(1)


def run(task: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Compile a task's modules once and answer its queries in order."""
    from regopy import Interpreter, RegoError

    queries = task.get("queries") or [None]
    try:
        engine = Interpreter()
        # Without this `not (1/0 > 1)` is true: an error inside a negation would read as permission.
        engine.strict_built_in_errors = True
        for name, source in task["modules"]:
            engine.add_module(name, source)
        engine.add_data_json(task["data"])
        # As a term and not as a value: the engine's value interface cuts texts at a NUL.
        engine.set_input_term(task["input"])
        compiled = engine.build(task.get("query"), task.get("queries", []))
        if not compiled.ok():
            raise ValueError("the rules do not compile")
    except (RegoError, ValueError) as error:
        yield from (("error", _brief(error)) for _ in queries)
        return
    for path in queries:
        try:
            output = engine.query_bundle_entrypoint(compiled, path) if path else engine.query_bundle(compiled)
        except (RegoError, ValueError) as error:
            yield "error", _brief(error)
            continue
        yield _read(output.ok(), str(output))


def _read(ok: bool, text: str) -> tuple[str, str]:
    if not ok:
        return "error", "a built-in function failed, or two rules disagree"
    return ("undefined", "") if text == "undefined" else ("value", text)


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


if __name__ == "__main__":
    main()
