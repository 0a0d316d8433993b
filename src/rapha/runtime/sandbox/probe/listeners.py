"""What listens on the host while the suite runs, and tells the secret to whoever gets through."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

from rapha.runtime.sandbox.probe.attempts import names


@contextlib.contextmanager
def open_in(folder: Path, secret: bytes) -> Iterator[dict[str, int]]:
    """Listeners on loopback, by path and by abstract name; a thread answers all of them until the end."""
    with contextlib.ExitStack() as kept:
        ends = {}
        for name, family, kind, address in (
            ("tcp4", socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
            ("udp4", socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
            ("tcp6", socket.AF_INET6, socket.SOCK_STREAM, ("::1", 0)),
            ("udp6", socket.AF_INET6, socket.SOCK_DGRAM, ("::1", 0)),
            ("named", socket.AF_UNIX, socket.SOCK_STREAM, str(folder / "named")),
            ("datagram", socket.AF_UNIX, socket.SOCK_DGRAM, str(folder / "datagram")),
            ("abstract", socket.AF_UNIX, socket.SOCK_STREAM, f"\0{folder.name}"),
        ):
            try:
                end = kept.enter_context(socket.socket(family, kind))
                end.bind(address)
            except OSError:
                if family != socket.AF_INET6:  # which a host may do without; its controls will say so
                    raise
                continue
            if kind == socket.SOCK_STREAM:
                end.listen(16)
            ends[name] = end
        for name in ("named", "datagram"):
            (folder / name).chmod(0o666)
        kept.enter_context(_served(list(ends.values()), secret))
        ports = ("tcp4", "tcp6", "udp4", "udp6")
        yield {name: ends[name].getsockname()[1] if name in ends else 0 for name in ports}


@contextlib.contextmanager
def _served(ends: list[socket.socket], secret: bytes) -> Iterator[None]:
    stop, stopped = socket.socketpair()
    with stop, stopped, selectors.DefaultSelector() as selector:
        for end in ends:
            end.setblocking(False)
            selector.register(end, selectors.EVENT_READ)
        selector.register(stopped, selectors.EVENT_READ)
        thread = threading.Thread(target=_serve, args=(selector, stopped, secret), name="rapha-probe")
        thread.start()
        try:
            yield
        finally:
            stop.send(b"x")
            thread.join()


def _serve(selector: selectors.BaseSelector, stopped: socket.socket, secret: bytes) -> None:
    while True:
        for key, _ in selector.select():
            end = key.fileobj
            assert isinstance(end, socket.socket)  # noqa: S101  nothing else was registered
            if end is stopped:
                return
            with contextlib.suppress(OSError):  # whoever asked is gone
                _tell(end, secret)


def _tell(end: socket.socket, secret: bytes) -> None:
    if end.type == socket.SOCK_STREAM:
        connection, _ = end.accept()
        with connection:
            connection.sendall(secret)
        return
    query, whence = end.recvfrom(512)
    end.sendto(names.answer(query) or secret, whence)
