"""The broker's end of the socket: whole messages in, whole messages out, never faster than it can bear."""

from __future__ import annotations

import array
import errno
import fcntl
import logging
import select
import socket
import termios
import time
from dataclasses import dataclass
from threading import Event
from typing import Final

from rapha.runtime.broker import wire

_POLL_MS: Final = 200
_DRAIN_SECONDS: Final = 0.005
_SO_PASSRIGHTS: Final = 83
_log: Final = logging.getLogger("rapha.broker")


@dataclass(slots=True)
class Pace:
    """A token bucket for messages that hand nothing over, so that a job can't keep the broker spinning."""

    rate: float = 2000.0
    burst: float = 2000.0
    tokens: float = 2000.0
    last: float = 0.0

    def spend(self, stop: Event) -> None:
        """Take one token; without one, wait until it is there or `stop` is set."""
        now = time.monotonic()
        self.tokens = min(self.burst, self.tokens + (now - self.last) * self.rate) - 1
        self.last = now
        if self.tokens < 0:
            stop.wait(-self.tokens / self.rate)


class Channel:
    """One AF_UNIX SOCK_SEQPACKET socket, used until the other end is gone or `stop` is set."""

    def __init__(self, sock: socket.socket, stop: Event) -> None:
        sock.setblocking(False)
        _refuse_descriptors(sock)
        self._sock, self._stop = sock, stop

    def receive(self) -> bytes | None:
        """The next message; None at the end. Descriptors that come along all the same are dropped."""
        while not self._stop.is_set():
            try:
                message = self._sock.recv(wire.MAX_MESSAGE + 1)
            except BlockingIOError:
                self._wait(select.POLLIN)
                continue
            except ConnectionError:
                return None
            # An empty message and the end look alike to recv.
            if message or not self._hung_up():
                return message
            return None
        return None

    def send(self, reply: bytes, descriptors: tuple[int, ...]) -> bool:
        """Whether the reply is on its way. A job that doesn't read makes the broker wait, not spin."""
        while not self._stop.is_set():
            try:
                if descriptors and not self._drained():
                    if self._hung_up():
                        return False  # it can ask for nothing more, and reads nothing
                    self._stop.wait(_DRAIN_SECONDS)
                    continue
                if descriptors:
                    socket.send_fds(self._sock, [reply], list(descriptors), socket.MSG_NOSIGNAL)
                else:
                    self._sock.send(reply, socket.MSG_NOSIGNAL)
                return True
            except BlockingIOError:
                self._wait(select.POLLOUT)
            except OSError as error:
                if error.errno == errno.ETOOMANYREFS:
                    # Someone else of this user has them in flight; that must not end this job's session.
                    self._stop.wait(_POLL_MS / 1000)
                    continue
                _log.info("the job can't be answered: %s", error)
                return False
        return False

    def shut_down(self) -> None:
        """End it for both sides. Idempotent."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError as error:
            _log.debug("already shut: %s", error)

    def _wait(self, event: int) -> None:
        poll = select.poll()
        poll.register(self._sock, event)
        poll.poll(_POLL_MS)

    def _drained(self) -> bool:
        """Whether the job has read all replies.

        Descriptors in flight are limited for all processes of a user together (unix(7), ETOOMANYREFS). A job
        that asks for the ring again and again and reads nothing would use them up for everyone's brokers.
        """
        unread = array.array("i", [0])
        fcntl.ioctl(self._sock, termios.TIOCOUTQ, unread)
        return not unread[0]

    def _hung_up(self) -> bool:
        poll = select.poll()
        poll.register(self._sock, select.POLLRDHUP)
        return bool(poll.poll(0))


def _refuse_descriptors(sock: socket.socket) -> None:
    """Let the kernel refuse descriptors that the job passes.

    One that is dropped here may be the last reference to something whose closing takes as long as the job
    wants, such as a connection that lingers (socket(7), SO_LINGER).
    """
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
        _log.debug("this kernel (before 6.16) can't refuse descriptors; they are dropped")
