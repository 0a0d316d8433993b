"""One run: fork, watch, end, and say what happened."""

from __future__ import annotations

import _thread
import json
import os
import resource
import select
import signal
import time
from typing import Final

from rapha.runtime.sandbox.launcher import landlock, lock, observe, sentry, tree
from rapha.runtime.sandbox.launcher.cgroup import Group
from rapha.runtime.sandbox.launcher.enter import Pipes, exec_bubblewrap
from rapha.runtime.sandbox.launcher.order import Order, Report
from rapha.runtime.sandbox.launcher.sink import KEPT, Sink
from rapha.runtime.sandbox.launcher.stage import Stage

_TICK_S: Final = 0.05
_LOOK_S: Final = 0.002
"""How often the walls are looked for until they stand; a short command is gone soon after."""
_STAND_S: Final = 10.0
"""How long the walls may take to stand; a job whose walls nobody has seen goes no further."""
_LONGEST_TICK_S: Final = 0.5
_FASTEST_BYTES_S: Final = 4 << 30
"""What one processor can fill in a second, at most: far from its limit a job is counted less often."""
_BUSY_SHARE: Final = 4
"""A tick is at least this many times what the last count took, so that a crowd can't eat a core."""
_DEATH_S: Final = 10.0
_CHUNK: Final = 1 << 16
_LAST_WORDS_S: Final = 1.0
_STATUS, _REPORT = 0, -1
_STREAMS: Final = (1, 2, _STATUS, _REPORT)
"""What comes through each pipe of `Pipes`."""
_EXIT_CODES: Final = {"timeout": 124, "memory": 137, "killed": 137}
_NOT_BUILT, _NOT_EXECUTED = 125, 127
_SIGNALLED: Final = 128
_CPU_SIGNALS: Final = (_SIGNALLED + signal.SIGKILL, _SIGNALLED + signal.SIGXCPU)


class UnkillableError(Exception):
    """Processes of the sandbox outlive SIGKILL; nothing may be collected from under them."""


class Supervisor:
    """Holds the child from fork to the last reaped process."""

    def __init__(self, order: Order, stage: Stage, group: Group | None) -> None:
        self._order, self._stage, self._group = order, stage, group
        self._sink = Sink(order.log, order.log_bytes, order.terminal)
        self._status = self._reported = b""
        self._walls: dict[str, str] = {}
        self._maps, self._times = tree.Maps(), tree.Times()
        self._used = self._peak = 0
        self._streams: dict[int, int] = {}
        self._handed_on: _thread.LockType | None = None
        self._cpu_s = 0.0

    def run(self) -> Report:
        """Start the command and see it to its end; afterwards no process of it lives.

        Raises:
            UnkillableError: one does.
        """
        started = time.monotonic()
        monitor = self._fork()
        pidfd = os.pidfd_open(monitor)
        detail = ""
        try:
            ending = self._watch(pidfd, started)
        except observe.WallMissingError as missing:
            ending, detail = "failed_to_start", f"wall missing: {missing}"
        finally:
            os.close(pidfd)
            self._end_tree()
            wall_s = time.monotonic() - started
            self._drain()
        return self._report(ending, detail, wall_s)

    def _fork(self) -> int:
        ends = [os.pipe() for _ in Pipes._fields]
        pipes = Pipes(*(writer for _, writer in ends))
        launcher = os.getpid()
        child = os.fork()
        if child == 0:
            exec_bubblewrap(self._order, self._stage, self._group, pipes, launcher)
        for fd in pipes:
            os.close(fd)
        streams = dict(zip((reader for reader, _ in ends), _STREAMS, strict=True))
        self._streams = {fd: stream for fd, stream in streams.items() if stream in {_STATUS, _REPORT}}
        self._handed_on = self._sink.follow({fd: n for fd, n in streams.items() if fd not in self._streams})
        return child

    def _watch(self, pidfd: int, started: float) -> str:
        """Until bubblewrap ends or a limit is passed; returns the ending, "" for bubblewrap's own."""
        poller = select.poll()
        for fd in (pidfd, self._order.control, *self._streams):
            poller.register(fd, select.POLLIN)
        deadline = started + self._order.wall_s
        count_at = started
        while True:
            now = time.monotonic()
            if now >= deadline:
                return "timeout"
            if now >= count_at:
                if passed := self._passed_limit():
                    return passed
                took = time.monotonic() - now
                count_at = now + max(_TICK_S, _BUSY_SHARE * took, self._safe_s())
            next_s = min(count_at, deadline, count_at if self._walls else now + _LOOK_S)
            ready = {fd for fd, _ in poller.poll(max(0.0, next_s - time.monotonic()) * 1000 + 1)}
            self._observe()
            if not self._walls and now > started + _STAND_S:
                raise observe.WallMissingError(f"no filter seen after {_STAND_S:.0f} seconds")
            if self._order.control in ready:
                return "killed"
            for fd in ready & self._streams.keys():
                if not self._read(fd):
                    poller.unregister(fd)
            if pidfd in ready:
                return ""

    def _safe_s(self) -> float:
        """How long from the last count no limit can be passed: of memory, where a cgroup holds it, never."""
        processors = os.cpu_count() or 1  # a job may leave the few that the launcher was pinned to
        filled = (self._order.memory_bytes - self._used) / (_FASTEST_BYTES_S * processors)
        if self._group:
            filled = _LONGEST_TICK_S
        return min(_LONGEST_TICK_S, filled, (self._order.cpu_s - self._cpu_s) / processors)

    def _passed_limit(self) -> str:
        pids = tree.descendants(os.getpid())
        held = sum(map(tree.tmpfs_bytes, (self._stage.out, self._stage.tmp, self._stage.shm)))
        held += sentry.memory_bytes(pids) if self._order.runsc else self._in_kernel(pids, held)
        self._used = held + tree.memory_bytes(os.getpid(), self._order.memory_bytes - held)
        self._peak = max(self._peak, self._used)
        self._cpu_s = max(self._cpu_s, self._times.cpu_s(pids), self._group.cpu_s() if self._group else 0.0)
        if self._used > self._order.memory_bytes:
            return "memory"
        if self._group.killed_for_memory() if self._group else tree.host_is_short():
            return "memory"
        return "timeout" if self._cpu_s > self._order.cpu_s else ""

    def _in_kernel(self, pids: list[int], held: int) -> int:
        """Memory that is in no process and a cgroup would count: what pipes and sockets may hold, and
        mappings."""
        if self._group:
            return 0
        init = self._said("child-pid")
        queues = tree.pipe_bytes(pids) + (tree.socket_bytes(init) if init else 0)
        return queues + self._maps.memory_bytes(pids, self._order.memory_bytes - held - queues)

    def _observe(self) -> None:
        init = self._said("child-pid")
        if init and not self._walls:
            uid = os.geteuid() if self._stage.uid is None else self._stage.uid
            self._walls = sentry.walls(os.getpid(), uid) if self._order.runsc else observe.walls(init, uid)

    def _said(self, key: str) -> int | None:
        """A number that bubblewrap reported: JSON objects, one after another."""
        text, decoder, at = self._status.decode("ascii", "replace"), json.JSONDecoder(), 0
        while at < len(text):
            try:
                value, at = decoder.raw_decode(text, at)
            except ValueError:
                return None
            if key in value:
                return int(value[key])
            at += len(text[at:]) - len(text[at:].lstrip())
        return None

    def _read(self, fd: int) -> bool:
        data = os.read(fd, _CHUNK)
        match self._streams[fd]:
            case stream if stream == _STATUS:
                self._status += data
                self._observe()
            case _:
                self._reported += data[: KEPT - len(self._reported)]
        return bool(data)

    def _end_tree(self) -> None:
        """Kill and reap until no child is left. As subreaper the launcher inherits every orphan, and a pid
        namespace's init is reaped only after all that lived in it."""
        give_up = time.monotonic() + _DEATH_S
        while True:
            tree.kill(os.getpid())
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                return
            if time.monotonic() > give_up:
                raise UnkillableError(f"alive after SIGKILL: {tree.descendants(os.getpid())}")
            time.sleep(0.002)

    def _drain(self) -> None:
        """What is still in the pipes; nobody writes any more."""
        for fd in self._streams:
            while self._read(fd):
                pass
            os.close(fd)
        killed = select.poll()
        killed.register(self._order.control, select.POLLIN)
        wait_s = _LAST_WORDS_S
        while self._handed_on and not self._handed_on.acquire(timeout=wait_s):
            wait_s = _TICK_S
            if killed.poll(0):  # whoever reads the output may take their time, until they have us killed
                return

    def _report(self, ending: str, detail: str, wall_s: float) -> Report:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        counted = self._group.cpu_s() if self._group else 0.0
        cpu_s = max(self._cpu_s, usage.ru_utime + usage.ru_stime, counted)
        code = self._said("exit-code")
        failure = self._failure()
        if not ending:
            ending = self._own_ending(None if failure.detail else code, cpu_s)
        if ending == "failed_to_start":
            detail = detail or failure.detail or self._sink.head.decode("utf-8", "backslashreplace").strip()
            code = _NOT_EXECUTED if failure.absent or "execvp" in detail else _NOT_BUILT
        peak = max(self._peak, self._group.peak() if self._group else 0)
        exit_code = _EXIT_CODES.get(ending, code or 0)
        return Report(ending, exit_code, wall_s, cpu_s, peak, self._all_walls(), [], [], detail)

    def _failure(self) -> sentry.Failure:
        """Why the command was not started although bubblewrap was, and whether for its absence."""
        if self._order.runsc:
            return sentry.failure(self._reported)
        head = self._sink.head.decode("utf-8", "backslashreplace").strip()
        return sentry.Failure(*lock.failure(self._stage.landlock, self._reported, head))

    def _own_ending(self, code: int | None, cpu_s: float) -> str:
        """How it ended if nobody here ended it; `code` is None where the command was never executed."""
        if self._group and self._group.killed_for_memory():
            return "memory"
        if code is None:
            return "failed_to_start"
        return "timeout" if code in _CPU_SIGNALS and cpu_s >= self._order.cpu_s else "exited"

    def _all_walls(self) -> dict[str, str]:
        limits = [self._group.mechanism] if self._group else []
        observed = self._walls or {"namespaces": "ended before they could be looked at"}
        if not self._order.runsc and not lock.failure(self._stage.landlock, self._reported, "")[0]:
            observed = observed | {"landlock": landlock.describe(self._stage.landlock)}
        return self._stage.walls | observed | {"limits": ", ".join([*limits, "supervisor", "rlimits"])}
