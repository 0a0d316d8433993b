"""The node's side, which needs no privilege: sever, wait until lifted, read the counters."""

from __future__ import annotations

import contextlib
import os
import socket as sockets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from rapha.node.posture.airgap import wire
from rapha.node.posture.airgap.hold import Hold
from rapha.node.posture.airgap.links import default_wan, links
from rapha.node.posture.airgap.model import Counters, Gap, Outcome, Reading, State
from rapha.node.posture.airgap.probe import Target, probe, resolve
from rapha.spec.refusals import Refused

__all__ = [
    "Counters",
    "Gap",
    "Hold",
    "Severed",
    "Target",
    "await_open",
    "default_wan",
    "interfaces",
    "local",
    "probe",
    "resolve",
    "restore",
    "sever",
    "state",
]

_ANSWER_S: Final = 30.0
_LIFT_S: Final = 60.0
_START_S: Final = 20.0
_PAUSE_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Severed:
    """A gap that is closed, as the kernel said when it was.

    Leaving the `with` block changes nothing: the helper lifts when nobody holds the lock, and only `lift`
    proves that it did.
    """

    socket: Path
    id: str
    gap: Gap

    def __enter__(self) -> Severed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give up waiting. The lock alone decides when the gap is lifted, so there is nothing to tell."""

    def check(self) -> None:
        """Does it hold right now, and did it all the time?

        Raises:
            Refused: `posture.seal_failed` if it was broken, lifted, or nobody can say.
        """
        told = state(self.socket)
        if told.id != self.id or told.phase != "severed" or told.broken:
            raise Refused("posture.seal_failed", told.broken or told.note or f"the gap is {told.phase}")

    def lift(self, deadline_s: float = _LIFT_S) -> Counters:
        """Wait until the network is back as it was; let go of every share of the lock first.

        A helper that is restarted meanwhile is asked again. Once lifted, the same answer comes every time
        until the next gap.

        Raises:
            Refused: `posture.seal_failed` if the gap was broken, something was sent, or it isn't lifted in
                time.
        """
        deadline = time.monotonic() + deadline_s
        note = "the helper does not answer"
        while time.monotonic() < deadline:
            try:
                told = _ask(self.socket, {"op": "lift", "id": self.id})
            except OSError:  # between two lives of the helper
                told = None
            if told is not None:
                if told.id != self.id and told.last is not None and told.last.id == self.id:
                    return _counters(self.gap, told.last)
                if told.id != self.id or told.phase == "unknown":
                    raise Refused("posture.seal_failed", told.note or "the helper knows nothing of this gap")
                note = "somebody still holds the lock" if told.held else told.note or told.phase
            time.sleep(_PAUSE_S)
        raise Refused("posture.seal_failed", f"the gap is not lifted: {note}")


def sever(socket: Path, gap: Gap, hold: int) -> Severed:
    """Close the gap, for as long as anybody holds the lock of `hold` (`Hold.fd`).

    Precondition: the lock is held. Result: the kernel says that the interface is severed. Not idempotent: a
    second gap is refused while there is one.

    Raises:
        Refused: `posture.seal_failed` saying why; whatever was begun is undone once the lock is free.
    """
    asked = {
        "op": "sever",
        "interface": gap.interface,
        "mode": gap.mode,
        "lan": list(gap.lan),
        "hold": str(_path_of(hold)),
    }
    try:
        told = _ask(socket, asked, hold)
    except OSError as error:
        raise _unanswered(socket, error) from None
    except Refused as refused:
        raise Refused("posture.seal_failed", refused.detail) from None
    if told.phase != "severed" or told.id is None or told.broken:
        raise Refused("posture.seal_failed", told.broken or f"the gap is {told.phase}")
    return Severed(socket, told.id, gap)


def state(socket: Path) -> State:
    """What the helper knows.

    Raises:
        Refused: `posture.seal_failed` if it doesn't answer.
    """
    try:
        return _ask(socket, {"op": "state"})
    except OSError as error:
        raise _unanswered(socket, error) from None


def await_open(socket: Path, stopped: Callable[[], bool], deadline_s: float = _LIFT_S) -> None:
    """Wait until an earlier gap is lifted; before the lock is taken, which would keep that gap closed.

    Raises:
        Refused: `posture.seal_failed` if the helper does not answer, does not know, or is not done in time;
            `node.stopped` once `stopped` says so.
    """
    deadline = time.monotonic() + deadline_s
    while (told := state(socket)).phase != "open":
        if told.phase == "unknown" or time.monotonic() > deadline:
            raise Refused("posture.seal_failed", f"an earlier gap is {told.phase}: {told.note}")
        if stopped():
            raise Refused("node.stopped")
        time.sleep(_PAUSE_S)


def interfaces() -> frozenset[str]:
    """Names of this host's network interfaces.

    Raises:
        Refused: `posture.seal_failed` if the kernel does not say.
    """
    try:
        return frozenset(one.name for one in links().values())
    except OSError as error:
        raise Refused("posture.seal_failed", f"network interfaces: {error.strerror}") from None


def restore(socket: Path, force: bool, interface: str | None) -> State:
    """The operator's word (root only): restore now; with `force` though somebody holds the lock.

    Raises:
        Refused: `posture.seal_failed` or `policy.not_authorised`.
    """
    try:
        return _ask(socket, {"op": "restore", "force": force, "interface": interface})
    except OSError as error:
        raise _unanswered(socket, error) from None


@contextlib.contextmanager
def local(folder: Path) -> Iterator[Path]:
    """A helper of one's own, for a root caller without the service; yields its socket.

    It outlives a caller that dies, until nobody holds the lock and the network is restored. Killed itself,
    the next `local` of the same folder takes up where it was.

    Raises:
        Refused: `posture.seal_failed` if it doesn't start.
    """
    folder = folder.absolute()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / "airgap.sock"
    reading, writing = os.pipe()
    command = [sys.executable, "-I", "-m", "rapha.node.posture.airgap", "--socket", str(path)]
    command += ["--journal", str(folder / "journal"), "--parent", str(reading)]
    try:
        with (folder / "helper.log").open("wb") as log:
            helper = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(reading,),
                start_new_session=True,
            )
    finally:
        os.close(reading)
    try:
        _await_start(helper, path, folder / "helper.log")
        yield path
    finally:
        os.close(writing)
        try:
            helper.wait(_LIFT_S)
        except subprocess.TimeoutExpired:
            helper.returncode = 0  # it goes on without us, as it must


def _await_start(helper: subprocess.Popen[bytes], path: Path, log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while helper.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if _server(path) == helper.pid:  # and not one that an earlier caller left
                return
        time.sleep(_PAUSE_S)
    said = log.read_text(encoding="utf-8", errors="replace").strip()[-500:]
    raise Refused("posture.seal_failed", f"the air-gap helper did not start: {said or 'no answer'}")


def _ask(path: Path, value: dict[str, Any], descriptor: int | None = None) -> State:
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as connection:
        connection.settimeout(_ANSWER_S)
        connection.connect(str(path))
        wire.send(connection, value, descriptor)
        try:
            answer, descriptors = wire.receive(connection, _ANSWER_S)
        except Refused as refused:  # half an answer is none: the helper died over it
            raise ConnectionError(refused.detail) from None
        wire.shut(descriptors)
        return wire.state(answer)


def _server(path: Path) -> int:
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as connection:
        connection.settimeout(_ANSWER_S)
        connection.connect(str(path))
        return wire.peer(connection).pid


def _path_of(fd: int) -> Path:
    try:
        return Path(f"/proc/self/fd/{fd}").readlink()
    except OSError as error:
        raise Refused("posture.seal_failed", f"hold: {error.strerror}") from None


def _counters(gap: Gap, outcome: Outcome) -> Counters:
    before, after = outcome.before, outcome.after
    if outcome.broken or before is None or after is None:
        raise Refused(
            "posture.seal_failed", f"the air gap did not hold: {outcome.broken or 'it was never closed'}"
        )
    return _told(before, after)


def _told(before: Reading, after: Reading) -> Counters:
    return Counters(
        tx_bytes_before=before.tx_bytes,
        tx_bytes_after=after.tx_bytes,
        tx_packets_before=before.tx_packets,
        tx_packets_after=after.tx_packets,
        lan_bytes=after.lan_bytes - before.lan_bytes,
        lan_packets=after.lan_packets - before.lan_packets,
        dropped_packets=after.dropped_packets - before.dropped_packets,
    )


def _unanswered(path: Path, error: OSError) -> Refused:
    return Refused(
        "posture.seal_failed",
        f"the air-gap helper does not answer at {path}: {error.strerror or error}; "
        "is the service started, and may this user open its socket?",
    )
