"""One worker as its pool sees it: what it was given, what it said, and how long it has been at it."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from rapha.node.sources.workers import frames
from rapha.node.sources.workers.interface import Item
from rapha.node.sources.workers.template import Template, kill, start_refusal
from rapha.runtime.broker.memory import anonymous, wipe
from rapha.spec.refusals import Refused

_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
"""Without these a worker truncates the memory under the pool, which dies by SIGBUS."""
_RECEIVE: Final = 2**18
_SEND_BUFFER: Final = 2**20


class Staging:
    """Where one worker at a time writes its output, and the pool's own copy of it.

    Attributes:
        shared: it is not certain that its last worker is gone, so no other may have it.

    Raises:
        Refused: `node.internal` when the host has no room.
    """

    def __init__(self, size: int) -> None:
        self.shared = False
        try:
            self.fd = os.memfd_create("rapha-staging", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            try:
                os.posix_fallocate(self.fd, 0, size)  # running out later would be a SIGBUS
                fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _SEALS)
                self._theirs = mmap.mmap(self.fd, size)
                self._theirs.madvise(mmap.MADV_DONTDUMP)
                self._ours = anonymous(size)
            except BaseException:
                os.close(self.fd)
                raise
        except (OSError, MemoryError):
            raise Refused("node.internal", f"no memory for a worker's output of {size} bytes") from None

    def take(self) -> memoryview:
        """The output, out of the worker's reach; read-only, valid until the next `take`.

        The worker's side is zeroed: what a task leaves unwritten must not be another patient's.
        """
        ours = ctypes.addressof(ctypes.c_char.from_buffer(self._ours))
        theirs = ctypes.addressof(ctypes.c_char.from_buffer(self._theirs))
        ctypes.memmove(ours, theirs, len(self._theirs))
        wipe(self._theirs)
        return memoryview(self._ours)[: len(self._theirs)].toreadonly()

    def wipe(self) -> None:
        """Overwrite both sides."""
        wipe(self._theirs)
        wipe(self._ours)

    def close(self) -> None:
        """Wipe and let go; the mappings go with their last view."""
        self.wipe()
        os.close(self.fd)


@dataclass(frozen=True, slots=True)
class Given:
    """An item that is with a worker.

    Attributes:
        again: the worker that it was with before ended at it, and may have been broken by then.
    """

    ordinal: int
    item: Item
    again: bool = False


class Hand:
    """Fork a worker from `template`. Not thread-safe.

    Attributes:
        given: what it has not answered yet; it works on the first.
        since: the clock when it began with that one, or when it was forked.
        began: its walls are up.
        chosen: it is at the second part of the first item.
        ended: it is dead, or said what no worker says; nothing more is expected of it.
        answered: how many items it has done.

    Raises:
        Refused: `node.internal` where the host or the template gives no more.
    """

    def __init__(self, template: Template, staging: Staging | None, clock: Callable[[], float]) -> None:
        try:
            self.sock, theirs = socket.socketpair()
        except OSError as error:
            raise Refused("node.internal", f"no room for another worker: {error.strerror}") from None
        try:
            with theirs:
                self._pidfd = template.fork(theirs, None if staging is None else staging.fd)
        except BaseException:
            self.sock.close()
            raise
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        self.staging, self._clock = staging, clock
        self.since, self.began, self.ended, self.answered = clock(), False, False, 0
        self.chosen = False
        self.given: deque[Given] = deque()
        self._pace = 1.0
        self._sending, self._outbox = memoryview(b""), list[bytes]()
        self._received = bytearray()

    @property
    def exclusive(self) -> bool:
        """Nothing may be queued behind what it holds: its output is taken first, or its bytes are handled."""
        return bool(self.given) and (self.staging is not None or bool(self.given[-1].item.data))

    def room(self, most: int, ahead_s: float) -> bool:
        """Whether to give it another item: up to `most`, and not more than keeps it busy for `ahead_s`."""
        if self.ended or self.exclusive:
            return False
        return len(self.given) < max(1, min(most, int(ahead_s / self._pace)))

    def give(self, ordinal: int, item: Item) -> None:
        """Queue an item."""
        if not self.given:
            self.since = self._clock()
        self.given.append(Given(ordinal, item))
        self._outbox.append(frames.encode_item(ordinal, item))

    @property
    def sending(self) -> bool:
        """Whether bytes wait for room in the socket."""
        return bool(self._sending)

    def flush(self) -> None:
        """Send what the socket takes. A worker that is gone is found by `receive`."""
        if self._outbox:
            self._sending, self._outbox = memoryview(b"".join((self._sending, *self._outbox))), []
        try:
            while self._sending:
                self._sending = self._sending[self.sock.send(self._sending) :]
        except BlockingIOError:
            pass
        except OSError:
            self._sending = memoryview(b"")

    def receive(self) -> list[frames.Frame]:
        """Everything it has said by now: answers to the first items it was given, in their order.

        Sets `ended` at its death, or at a word that no worker says.

        Raises:
            Refused: its walls could not be had.
        """
        found: list[frames.Frame] = []
        while not self.ended:
            try:
                part = self.sock.recv(_RECEIVE)
            except BlockingIOError:
                break
            except OSError:
                part = b""
            if not part:
                self.ended = True
                break
            self._received += part
            self._understand(found)
        self._keep_pace(len(found))
        return found

    def _understand(self, found: list[frames.Frame]) -> None:
        if not self.began:
            word, self._received = bytes(self._received[:1]), self._received[1:]
            if word != frames.READY:
                raise start_refusal(bytes(self._received))
            self.began, self.since = True, self._clock()
        try:
            while self._received:
                if len(found) == len(self.given):
                    raise frames.GarbageError
                frame = frames.take_answer(self._received)
                if frame is None:
                    return
                if frame.ordinal != self.given[len(found)].ordinal & 0xFFFFFFFF:
                    raise frames.GarbageError
                if frame.mark:
                    if self.chosen:
                        raise frames.GarbageError
                    self.chosen, self.since = True, self._clock()
                    continue
                found.append(replace(frame, chosen=self.chosen))
                self.chosen = False
        except frames.GarbageError:
            self.ended = True

    def _keep_pace(self, answered: int) -> None:
        if answered:
            now = self._clock()
            self._pace += 0.3 * ((now - self.since) / answered - self._pace)
            self._pace = max(self._pace, 1e-6)
            self.since = now
            self.answered += answered

    def end(self) -> Staging | None:
        """Kill it; returns its staging as it is, since the last answer may still show it."""
        self.ended = True
        self.sock.close()
        gone = kill(self._pidfd)
        os.close(self._pidfd)
        staging, self.staging = self.staging, None
        if staging is not None:
            staging.shared = not gone
        return staging
