"""Carry attempts out, one process each, and say on stdout what came of each: a line of JSON.

Called as `main(WORLD, IDS)` by a `-c` command, inside a sandbox or outside.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import select
import signal
import sys
from dataclasses import replace
from typing import Any, Final

from rapha.runtime.sandbox.probe.attempts import catalogue, processes, scratch
from rapha.runtime.sandbox.probe.attempts.kit import INSIDE, SCRATCH, Attempt, HeldError, World

DEADLINE_S: Final = 10.0
REACHED, REFUSED, DIED, HUNG, BROKEN = "reached", "refused", "died", "hung", "broken"
BEGUN: Final = "begun"
"""Of an attempt whose wall is the end of everything: it was there to be ended."""
_HOW: Final = 200
_REPORT: Final = 4096


def main(arguments: list[str]) -> None:
    """`arguments`: the world as JSON, and the ids to try, comma-separated."""
    processes.FOUND_OPEN[:] = _open_now()
    world = _world(arguments[0])
    wanted = arguments[1].split(",")
    known = {attempt.id: attempt for attempt in catalogue.ALL}
    if world.place == SCRATCH:
        scratch.enter(world)
    for name in wanted:
        sys.stdout.write(json.dumps({"id": name, **_try(known[name], world)}) + "\n")
        sys.stdout.flush()


def alone(arguments: list[str]) -> None:
    """As `main` for one attempt, in this very process, so that its end is the sandbox's."""
    world = _world(arguments[0])
    (attempt,) = (attempt for attempt in catalogue.ALL if attempt.id == arguments[1])
    sys.stdout.write(json.dumps({"id": attempt.id, "result": BEGUN, "code": 0, "how": ""}) + "\n")
    sys.stdout.flush()
    sys.stdout.write(json.dumps({"id": attempt.id, **_outcome(attempt, world)}) + "\n")
    sys.stdout.flush()


def _world(text: str) -> World:
    """Inside, it is the driver that says where the broker's socket is."""
    world = World(**json.loads(text))
    given = os.environ.get("RAPHA_BROKER_FD") if world.place == INSIDE else None
    return world if given is None else replace(world, broker=int(given))


def _open_now() -> list[int]:
    found = []
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        with contextlib.suppress(OSError):  # the listing's own is gone by now
            os.fstat(int(name))
            found.append(int(name))
    return sorted(found)


def _try(attempt: Attempt, world: World) -> dict[str, Any]:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _become_quiet()
        os.write(writer, json.dumps(_outcome(attempt, world)).encode()[:_REPORT])
        os._exit(0)
    os.close(writer)
    try:
        return _await(reader, child)
    finally:
        os.close(reader)


def _become_quiet() -> None:
    """A session of its own, to be killed as one, and no words of its own among the results."""
    os.setsid()
    null = os.open("/dev/null", os.O_RDWR)
    for stream in (1, 2):
        os.dup2(null, stream)
    if resource.getrlimit(resource.RLIMIT_CORE)[0]:
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def _outcome(attempt: Attempt, world: World) -> dict[str, Any]:
    try:
        how = attempt.run(world)
    except HeldError as held:
        return {"result": REFUSED, "code": 0, "how": str(held)[:_HOW]}
    except OSError as error:
        return {"result": REFUSED, "code": error.errno or 0, "how": _words(error)[:_HOW]}
    except MemoryError:
        return {"result": REFUSED, "code": errno.ENOMEM, "how": "no memory"}
    except Exception as error:  # noqa: BLE001  a defect of the attempt is an answer too: it shows nothing
        return {"result": BROKEN, "code": 0, "how": repr(error)[:_HOW]}
    return {"result": REACHED, "code": 0, "how": str(how)[:_HOW]}


def _words(error: OSError) -> str:
    """Without the number, which is named elsewhere."""
    file = "" if error.filename is None else f": {error.filename}"
    return f"{error.strerror or error}{file}"


def _await(reader: int, child: int) -> dict[str, Any]:
    poller = select.poll()
    poller.register(reader, select.POLLIN)
    late = not poller.poll(DEADLINE_S * 1000)
    data = b"" if late else os.read(reader, _REPORT)
    if not data and not late:  # it closed its end without a word: it is dying
        status = os.waitpid(child, 0)[1]
        return _died(os.waitstatus_to_exitcode(status))
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if late:
        return {"result": HUNG, "code": 0, "how": f"no answer after {DEADLINE_S:.0f} s"}
    return dict(json.loads(data))


def _died(code: int) -> dict[str, Any]:
    if code >= 0:
        return {"result": BROKEN, "code": 0, "how": f"ended with {code} and said nothing"}
    return {"result": DIED, "code": code, "how": f"killed by {signal.Signals(-code).name}"}
