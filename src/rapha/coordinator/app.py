"""The HTTP application: routers over one `Service`, and the sweep that notices what time has ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from fastapi import FastAPI
from sqlalchemy.exc import SQLAlchemyError
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rapha.coordinator import leases, problems, requests
from rapha.coordinator.api import node, public, researcher
from rapha.coordinator.service import Service
from rapha.spec.refusals import Refused

_log = logging.getLogger(__name__)
SWEEP_S: Final = 1.0
_FORGET_EVERY: Final = 60
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}


class SafeHeaders:
    """Adds the headers that keep an answer from being cached, sniffed or framed."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""

        async def _send(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        await self._app(scope, receive, _send if scope["type"] == "http" else send)


def create_app(service: Service) -> FastAPI:
    """The application over an open service; it closes the service when it ends."""

    @asynccontextmanager
    async def _lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.notifier.start()
        sweeping = asyncio.create_task(_sweep_forever(service))
        try:
            yield
        finally:
            sweeping.cancel()
            with suppress(asyncio.CancelledError):
                await sweeping
            service.close()

    app = FastAPI(
        title="Rapha coordinator",
        version="1",
        lifespan=_lifespan,
        docs_url=None,  # those pages load scripts from third parties
        redoc_url=None,
    )
    app.state.service = service
    problems.install(app)
    for part in (public, researcher, node):
        app.include_router(part.router)
    app.add_middleware(SafeHeaders)
    return app


async def _sweep_forever(service: Service) -> None:
    rounds = 0
    while True:
        await asyncio.sleep(SWEEP_S)
        rounds += 1
        try:
            await _sweep(service, forget=rounds % _FORGET_EVERY == 0)
        except (Refused, SQLAlchemyError):
            # The store is busy or its disk is full; what is overdue stays so until the next round.
            _log.exception("the sweep could not run")


async def _sweep(service: Service, *, forget: bool) -> None:
    now = service.now_ms()
    if await service.read(lambda db: leases.overdue(db, now=now)):
        service.notifier.publish(await service.write(lambda db, at: leases.sweep(db, now=at)))
    if forget:
        await service.write(lambda db, at: requests.forget_old(db, now_ms=at))
