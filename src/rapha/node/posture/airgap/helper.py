"""The privileged process: one loop over a socket, the lock, and the kernel's notices."""

from __future__ import annotations

import codecs
import os
import select
import signal
import socket
import stat
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

from rapha.node.posture.airgap import wire
from rapha.node.posture.airgap.journal import Journal
from rapha.node.posture.airgap.keeper import Keeper
from rapha.node.posture.airgap.model import Ask, Lift, Request, Restore, Sever, State
from rapha.node.posture.airgap.privileges import drop
from rapha.spec.refusals import Refused

_TICK_S: Final = 0.1
_REQUEST_S: Final = 2.0
_PATH_MAX: Final = 107
"""sun_path holds 108 bytes with its end."""


@dataclass(frozen=True, slots=True)
class Options:
    """How the helper runs.

    Attributes:
        socket: where it listens; the folder and the peer's uid decide who may ask.
        journal: its folder.
        uids: users that may sever; root and the helper's own user always may.
        run_as: the user to become; None keeps the one that it was started as.
        parent: a descriptor that ends when the starter is gone; then the helper ends too, once nothing is
            severed. None for a service.
    """

    socket: Path
    journal: Path
    uids: frozenset[int]
    run_as: int | None = None
    parent: int | None = None


def serve(options: Options) -> None:
    """Run until told to end. A gap that is closed stays closed then, and the next start takes it up.

    Raises:
        Refused: `posture.seal_failed` or `node.busy` if the helper can't start.
    """
    journal = Journal(options.journal)
    with listening(options) as listener:
        if options.run_as is not None:
            journal.give_to(options.run_as)
        # RFC 8785 sorts keys by this codec, and the user to become may not be able to read it later.
        codecs.lookup("utf-16be")
        drop(options.run_as)
        Helper(options, listener, Keeper(journal)).run()
    journal.close()


def listening(options: Options) -> socket.socket:
    """The listening socket, instead of one that a dead helper left (the journal's lock says it is dead).

    Raises:
        Refused: `posture.seal_failed`.
    """
    path = options.socket
    if len(os.fsencode(path)) > _PATH_MAX:
        raise Refused("posture.seal_failed", f"{path}: longer than {_PATH_MAX} bytes")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        if os.path.lexists(path):
            if not stat.S_ISSOCK(path.lstat().st_mode):
                raise Refused("posture.seal_failed", f"{path}: something else is there")
            path.unlink()
        mask = os.umask(0o117)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        if os.geteuid() == 0 and len(options.uids) == 1:
            os.chown(path, min(options.uids), -1)
        listener.listen(16)
    except (OSError, Refused) as error:
        listener.close()
        if isinstance(error, Refused):
            raise
        raise Refused("posture.seal_failed", f"{path}: {error.strerror}") from None
    return listener


class Helper:
    """The loop. Requests are served one at a time, each within its deadline."""

    def __init__(self, options: Options, listener: socket.socket, keeper: Keeper) -> None:
        self._options = options
        self._listener = listener
        self._keeper = keeper
        self._told_to_end = False
        self._parent = options.parent

    def run(self) -> None:
        """Until SIGTERM or SIGINT; or until the parent is gone and nothing is severed."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)
        while not self._told_to_end:
            readable = self._wait()
            if self._parent in readable:
                self._parent = None
            if self._options.parent is not None and self._parent is None and self._abandoned():
                return
            if self._listener.fileno() in readable:
                self._serve_one()
            self._keeper.tick()

    def _abandoned(self) -> bool:
        return self._keeper.state().phase in {"open", "unknown"}

    def _wait(self) -> set[int | None]:
        watched = [self._listener.fileno(), *self._keeper.monitors]
        if self._parent is not None:
            watched.append(self._parent)
        readable, _, _ = select.select(watched, [], [], 5.0 if self._keeper.idle else _TICK_S)
        return set(readable)

    def _end(self, number: int, frame: FrameType | None) -> None:
        self._told_to_end = True

    def _serve_one(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            peer = wire.peer(connection)
            if peer.uid not in self._options.uids | {0, os.geteuid()}:
                return
            connection.settimeout(_REQUEST_S)
            try:
                wire.send(connection, self._answered(connection, peer.uid))
            except OSError:  # the peer left; what it asked for stands, and the lock decides what follows
                return

    def _answered(self, connection: socket.socket, uid: int) -> dict[str, object]:
        try:
            value, descriptors = wire.receive(connection, _REQUEST_S)
        except Refused as refused:
            return wire.refusal(refused)
        try:
            return wire.answer(self._do(wire.request(value), descriptors, uid))
        except Refused as refused:
            return wire.refusal(refused)
        finally:
            # At once: the open file behind it is what the lock belongs to.
            wire.shut(descriptors)

    def _do(self, request: Request, descriptors: list[int], uid: int) -> State:
        if len(descriptors) != isinstance(request, Sever):
            raise Refused(
                "schema.field_invalid", "a request to sever comes with one descriptor, others with none"
            )
        match request:
            case Sever():
                return self._keeper.sever(request, descriptors[0])
            case Lift():
                self._keeper.tick()
                return self._keeper.state()
            case Restore():
                if uid not in {0, os.geteuid()}:
                    raise Refused("policy.not_authorised", "only root restores by hand")
                return self._keeper.restore(request.force, request.interface)
            case Ask():
                return self._keeper.state()
