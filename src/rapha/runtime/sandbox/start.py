"""What every driver does: check what the launcher is asked, start it, and type what it answers.

The work is the launcher's, a process of its own (`rapha.runtime.sandbox.launcher`).
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from rapha.runtime.sandbox import sources
from rapha.runtime.sandbox.interface import MAX_FILES, Ending, Limits, Outcome, Output, Running, Spec
from rapha.runtime.sandbox.launcher.order import Order, Report, encode, read_report
from rapha.runtime.sandbox.program import Program
from rapha.runtime.sandbox.pyruntime import PythonRuntime
from rapha.spec.refusals import Refused

_SOURCES: Final = Path(__file__).parents[3]
"""The directory that holds the `rapha` package, all that the launcher may import beside the library."""
_LAUNCHER: Final = ("-m", "rapha.runtime.sandbox.launcher")
"""Without a site directory or the node's environment: our sources and the standard library alone."""
_LOOK: Final = "import time; time.sleep(0.3); assert 'Seccomp:\\t2\\n' in open('/proc/self/status').read()"
"""It stays long enough for its walls to be looked at, and then looks for the filter from inside."""
_REPORT_LIMIT: Final = 1 << 20
_SYSCTLS: Final = (
    ("kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
    ("kernel/apparmor_restrict_unprivileged_userns", "1", "kernel.apparmor_restrict_unprivileged_userns=0"),
    ("user/max_user_namespaces", "0", "user.max_user_namespaces=15000"),
)
"""A setting that forbids user namespaces, the value that does, and what to set instead."""


@dataclass(frozen=True, slots=True)
class Walls:
    """What a driver adds to a spec.

    Attributes:
        seccomp: the filter as the order takes it.
        runsc: gVisor's program and flags; empty for bubblewrap's own walls.
        env: variables over the spec's own.
        seen: what goes into `Outcome.walls` beside what the launcher saw.
    """

    seccomp: str
    seen: Mapping[str, str]
    runsc: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)


def start(spec: Spec, program: Program, walls: Walls) -> Run:
    """Start the launcher on `spec`; see `Sandbox.start`."""
    with contextlib.ExitStack() as kept:
        ours, theirs = socket.socketpair()
        kept.enter_context(theirs)
        try:
            order = Order(
                argv=list(spec.argv),
                env={**spec.env, **walls.env},
                cwd=spec.cwd,
                mounts=[[_source(mount.source, mount.dest), mount.dest] for mount in spec.mounts],
                root=_root(spec.root),
                bwrap=str(program.path),
                libraries=str(program.libraries or ""),
                seccomp=walls.seccomp,
                runsc=list(walls.runsc),
                parent=os.getpid(),
                control=theirs.fileno(),
                out=kept.enter_context(_out(spec.out)),
                log=kept.enter_context(_log(spec.log)),
                broker=-1 if spec.broker is None else spec.broker,
                hold=-1 if spec.hold is None else spec.hold,
                terminal=spec.output_to_terminal,
                max_files=MAX_FILES,
                **{name: getattr(spec.limits, name) for name in Limits.__slots__},
            )
            return Run(order, ours, walls.seen)
        except BaseException:
            ours.close()
            raise


def check(begin: Callable[[Spec], Running]) -> Mapping[str, str]:
    """See `Sandbox.check`: the node's Python starts and ends under every wall of the driver's `start`."""
    runtime = PythonRuntime.discover(())
    argv = (runtime.python, "-I", "-S", "-c", _LOOK)
    limits = Limits(wall_s=20, memory_bytes=256 << 20)
    outcome = begin(Spec(argv, runtime.mounts, runtime.env, "/", limits)).wait()
    if outcome.ending is not Ending.exited or outcome.exit_code or "no_new_privs" not in outcome.walls:
        raise Refused("node.sandbox_unavailable", unavailable(outcome))
    return outcome.walls


class Run:
    """`Running`. A thread of its own starts the launcher and stays until that is gone: a death signal is tied
    to the thread that forked, not to its process."""

    def __init__(self, order: Order, control: socket.socket, walls: Mapping[str, str]) -> None:
        self._order, self._control, self._walls = order, control, walls
        self._started, self._done = threading.Event(), threading.Event()
        self._killing = threading.Lock()
        self._failure: OSError | None = None
        self._answer = b""
        self._pid = 0
        threading.Thread(target=self._hold, name="rapha-sandbox", daemon=True).start()
        self._started.wait()
        if self._failure is not None:
            raise Refused("node.sandbox_unavailable", f"the launcher does not start: {self._failure}")

    @property
    def pid(self) -> int:
        return self._pid

    def wait(self) -> Outcome:
        self._done.wait()
        try:
            report = read_report(self._answer)
        except (ValueError, TypeError):
            raise Refused("node.internal", "the sandbox's supervisor ended without a report") from None
        if report.no_room:
            raise Refused(
                "node.disk_full", f"outputs can't be copied: {report.no_room}; none of them was kept"
            )
        return _outcome(report, self._walls)

    def kill(self) -> None:
        with self._killing:
            if not self._done.is_set():
                with contextlib.suppress(OSError):  # it is ending by itself
                    self._control.shutdown(socket.SHUT_WR)

    def _hold(self) -> None:
        try:
            launcher = _spawn(self._order)
        except OSError as error:
            self._failure = error
            self._finish()
            return
        self._pid = launcher.pid
        self._started.set()
        with launcher:
            self._answer = _read_all(self._control)
        self._finish()

    def _finish(self) -> None:
        with self._killing:
            self._control.close()
            self._done.set()
        self._started.set()


def _spawn(order: Order) -> subprocess.Popen[bytes]:
    """Start the launcher and give it its order."""
    command = [sys.executable, "-S", "-s", "-P", *_LAUNCHER]
    inherited = [fd for fd in (order.control, order.out, order.log, order.broker, order.hold) if fd >= 0]
    launcher = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=None if order.terminal else subprocess.DEVNULL,
        pass_fds=inherited,
        env={"PYTHONPATH": str(_SOURCES), "PYTHONUTF8": "1"},
        cwd="/",
        start_new_session=True,
    )
    assert launcher.stdin is not None  # noqa: S101  a PIPE was asked for
    with contextlib.suppress(BrokenPipeError), launcher.stdin:
        launcher.stdin.write(encode(order))
    return launcher


def _read_all(control: socket.socket) -> bytes:
    chunks = []
    while chunk := control.recv(1 << 16):
        chunks.append(chunk)
        if sum(map(len, chunks)) > _REPORT_LIMIT:
            return b""
    return b"".join(chunks)


def _outcome(report: Report, walls: Mapping[str, str]) -> Outcome:
    return Outcome(
        ending=Ending(report.ending),
        exit_code=report.exit_code,
        wall_s=report.wall_s,
        cpu_s=report.cpu_s,
        peak_memory_bytes=report.peak_memory_bytes,
        walls={**walls, **report.walls},
        anomalies=tuple(report.anomalies),
        outputs=tuple(Output(*output) for output in report.outputs),
        detail=report.detail,
    )


def unavailable(outcome: Outcome) -> str:
    """Why a sandbox that should start did not, and which setting of this host to change."""
    said = outcome.detail or f"{outcome.ending} with exit code {outcome.exit_code}"
    fixes = [fix for setting, forbids, fix in _SYSCTLS if _sysctl(setting) == forbids]
    if fixes:
        return f"{said}; set {' and '.join(f'`sysctl -w {fix}`' for fix in fixes)}"
    if "amespace" in said or "setting up uid map" in said:
        return f"{said}; allow user namespaces (`sysctl -w {_SYSCTLS[-1][2]}`), in a container /proc unmasked"
    return said


def _sysctl(setting: str) -> str:
    file = Path("/proc/sys") / setting
    return file.read_text().strip() if file.is_file() else ""


def _source(source: Path | None, dest: str) -> str:
    if source is None:
        return ""
    try:
        real = source.resolve(strict=True)
        sources.check(real, dest)
    except FileNotFoundError:
        raise Refused("node.config", f"mount source {source} does not exist") from None
    except (OSError, RuntimeError) as error:
        raise Refused("node.config", f"mount source {source} can't be read: {error}") from None
    return str(real)


def _root(root: Path | None) -> str:
    if root is None:
        return ""
    if not root.is_dir():
        raise Refused("node.config", f"root {root} is not a directory")
    return str(root.resolve())


@contextlib.contextmanager
def _out(folder: Path | None) -> Iterator[int]:
    """A descriptor of the empty directory `folder`, -1 for None."""
    if folder is None:
        yield -1
        return
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise Refused("node.config", f"out {folder}: {error.strerror}") from None
    try:
        if os.listdir(fd):  # noqa: PTH208  by descriptor, so that what is checked is what is used
            raise Refused("node.config", f"out {folder} is not empty")
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _log(file: Path | None) -> Iterator[int]:
    """A descriptor of `file`, emptied and readable by its owner alone; -1 for None."""
    if file is None:
        yield -1
        return
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(file, flags, 0o600)
    except OSError as error:
        raise Refused("node.config", f"log {file}: {error.strerror}") from None
    try:
        yield fd
    finally:
        os.close(fd)
