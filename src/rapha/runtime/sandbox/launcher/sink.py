"""Where stdout and stderr of a sandbox go."""

from __future__ import annotations

import _thread  # `threading` takes milliseconds to import
import codecs
import os
import select
from typing import Final

_CHUNK: Final = 1 << 16
KEPT: Final = 2000
"""Bytes of stderr that may say why a command did not start."""
_CONTROLS: Final = dict.fromkeys({*range(32), *range(127, 160)} - {*b"\n\r\t"})
"""What a terminal would obey, the 8-bit forms (C1) among it; the job's words may not drive the terminal of
who runs it."""


class Sink:
    """stdout and stderr of the sandbox: kept up to a cap, then read and dropped.

    They are read by a thread of its own. Who reads our output may stop, and a disk may hang: then the job
    waits with its words, and its supervisor does not.
    """

    def __init__(self, log: int, cap: int, terminal: bool) -> None:
        self._log, self._left, self._terminal = log, cap, terminal
        self._decoders = {stream: codecs.getincrementaldecoder("utf-8")("replace") for stream in (1, 2)}
        self.head = b""

    def follow(self, streams: dict[int, int]) -> _thread.LockType:
        """Take all that comes from descriptors, each for stream 1 or 2, and close them, in a thread that ends
        with the last; returns a lock that is free once it has."""
        ended = _thread.allocate_lock()
        ended.acquire()
        _thread.start_new_thread(self._pump, (streams, ended))
        return ended

    def take(self, data: bytes, stream: int) -> None:
        """Account for `data` of stream 1 or 2."""
        kept, self._left = data[: self._left], self._left - min(self._left, len(data))
        if self._log >= 0:
            _write_all(self._log, kept)
        if stream == 2 and len(self.head) < KEPT:
            self.head += data[: KEPT - len(self.head)]
        if self._terminal:
            _write_all(stream, self._harmless(data, stream) if os.isatty(stream) else data)

    def _pump(self, streams: dict[int, int], ended: _thread.LockType) -> None:
        poller, left = select.poll(), dict(streams)
        for fd in left:
            poller.register(fd, select.POLLIN)
        while left:
            for fd, _ in poller.poll():
                if data := os.read(fd, _CHUNK):
                    self.take(data, left[fd])
                else:
                    poller.unregister(fd)
                    os.close(fd)
                    del left[fd]
        ended.release()

    def _harmless(self, data: bytes, stream: int) -> bytes:
        """UTF-8 without controls. What is no UTF-8 becomes U+FFFD: alone, a byte of a character may be one of
        them. A character that ends in the next chunk waits for it."""
        return self._decoders[stream].decode(data).translate(_CONTROLS).encode()


def _write_all(fd: int, data: bytes) -> None:
    while data:
        try:
            data = data[os.write(fd, data) :]
        except OSError:
            return  # a full disk or a closed terminal must not end the job: the text is dropped
