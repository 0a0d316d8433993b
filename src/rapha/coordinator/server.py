"""The coordinator as a process: one HTTP server on one socket."""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path
from typing import Final

import uvicorn

from rapha.coordinator.app import create_app
from rapha.coordinator.config import Work, write_atomic
from rapha.coordinator.service import Service
from rapha.spec.refusals import Refused

GRACE_S: Final = 5
MAX_CONNECTIONS: Final = 1024


class _Server(uvicorn.Server):
    """Tells its address once it answers there, and ends long polls when it is told to stop."""

    def __init__(self, config: uvicorn.Config, service: Service, url: str, url_file: Path | None) -> None:
        super().__init__(config)
        self._service, self._url, self._url_file = service, url, url_file

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server`."""
        await super().startup(sockets)
        if self.started and self._url_file is not None:
            write_atomic(self._url_file, self._url + "\n")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server`."""
        self._service.notifier.close()
        await super().shutdown(sockets)


def bind(host: str, port: int, *, unsafe_plain_http: bool = False) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        Refused: `node.config` for an address that is no loopback one (API keys would cross the network
            in the clear; a TLS proxy on this host reaches loopback), or one that can't be bound.
    """
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        raise Refused("node.config", f"{host[:64]!r} is not an IP address") from None
    if not address.is_loopback and not unsafe_plain_http:
        raise Refused("node.config", f"{host} is not loopback: put a TLS proxy in front, or say so by option")
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    # The protocol is named because asyncio sets TCP_NODELAY only where it is; without it, answers wait 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((str(address), port))
    except OSError as error:
        listener.close()
        raise Refused("node.config", f"{host}:{port}: {error.strerror}") from None
    return listener


def url_of(listener: socket.socket) -> str:
    """The base URL of a bound socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(work: Work, listener: socket.socket, url_file: Path | None = None) -> None:
    """Serve until a signal ends it. `url_file` appears, whole, once the server answers.

    Raises:
        Refused: as `Service.open`.
    """
    service = Service.open(work)
    config = uvicorn.Config(
        create_app(service),
        access_log=False,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        lifespan="on",
        ws="none",
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=60,
        timeout_graceful_shutdown=GRACE_S,
    )
    _Server(config, service, url_of(listener), url_file).run(sockets=[listener])
