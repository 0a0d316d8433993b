"""What handlers share: who calls, and a body that was read strictly and within bounds."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Annotated, Any, Final, TypeVar

from fastapi import Depends, Path, Query, Request
from fastapi.concurrency import run_in_threadpool
from sqlalchemy import Connection

from rapha.coordinator import accounts, requests
from rapha.coordinator.accounts import Developer, Unauthenticated
from rapha.coordinator.blobs import Upload
from rapha.coordinator.notify import MAX_WAIT_S
from rapha.coordinator.requests import Caller, Received
from rapha.coordinator.service import Service
from rapha.evidence import canonical
from rapha.spec.base import Model
from rapha.spec.refusals import Refused

M = TypeVar("M", bound=Model)
T = TypeVar("T")
STALL_S: Final = 30.0
"""A sender that is silent for longer loses the call."""
_EMPTY: Final = hashlib.sha256(b"").hexdigest()
_CHUNK: Final = 1 << 20


def service_of(request: Request) -> Service:
    """The coordinator that this application serves."""
    service = request.app.state.service
    assert isinstance(service, Service)  # noqa: S101  set where the application is made
    return service


async def developer(request: Request, service: Coordinator) -> Developer:
    """The developer whose API key came along. Raises `Unauthenticated`."""
    header = request.headers.get("authorization")
    now = service.now_ms()
    return await service.read(lambda db: accounts.authenticate(db, header, now=now))


async def node(request: Request, service: Coordinator) -> Caller:
    """The node that signed this very call, whose nonce is spent from here on.

    Raises:
        Refused: as `requests.open_request` and `requests.spend`.
    """
    header = request.headers.getlist(requests.HEADER)
    if len(header) != 1:
        raise Unauthenticated
    received = Received(request.method, _target(request), header[0])
    caller = await run_in_threadpool(_admit, service, received)
    if request.method == "GET" and caller.body_sha256 != _EMPTY:
        raise Refused("schema.envelope", "a GET has no body")
    return caller


async def party(request: Request, service: Coordinator) -> Developer | Caller:
    """Either side of a job."""
    if requests.HEADER in request.headers:
        return await node(request, service)
    return await developer(request, service)


Coordinator = Annotated[Service, Depends(service_of)]
AsDeveloper = Annotated[Developer, Depends(developer)]
AsNode = Annotated[Caller, Depends(node)]
AsParty = Annotated[Developer | Caller, Depends(party)]
Digest = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")]
ArtifactPath = Annotated[str, Path(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$")]
Wait = Annotated[float, Query(ge=0, le=MAX_WAIT_S, allow_inf_nan=False)]


async def read_json(request: Request, limit: int, caller: Developer | Caller | None) -> Any:
    """The body as strict JSON of at most `limit` bytes; a node's is what it signed.

    Raises:
        Refused: `schema.too_large`, `schema.json`, or `policy.not_authorised` for another body.
    """
    body = bytearray()
    async for chunk in _chunks(request):
        body += chunk
        if len(body) > limit:
            raise Refused("schema.too_large", f"the limit is {limit} bytes")
    data = bytes(body)
    if isinstance(caller, Caller):
        _check_signed(caller, hashlib.sha256(data).hexdigest())
    return canonical.loads(data, limit=limit)


async def read_model(request: Request, model: type[M], limit: int, caller: Developer | Caller | None) -> M:
    """The body as `model`. Raises `Refused` as `read_json` and `Model.parse`."""
    return model.parse(await read_json(request, limit, caller))


def declared(request: Request, limit: int) -> int:
    """How many bytes the body may have: what it declares, else all of `limit`.

    Raises:
        Refused: `schema.too_large` if it declares more than `limit`.
    """
    length = request.headers.get("content-length", "")
    if not re.fullmatch(r"[0-9]{1,18}", length):
        return max(0, limit)
    if int(length) > limit:
        raise Refused("schema.too_large", f"the upload passes the limit of {max(0, limit)} bytes")
    return int(length)


async def store(
    request: Request,
    service: Service,
    sha256: str,
    limit: int,
    rooms: Mapping[str, int],
    name: Callable[[Connection, int], T],
) -> T:
    """Receive a blob of at most `limit` bytes and name it in a table; no trace is left of one that isn't.

    Args:
        rooms: where the bytes are set aside before the first of them is taken (`BlobStore.reserve`).
        name: names the blob, given its size, in a write transaction.

    Raises:
        Refused: `budget.storage`, what `Upload` refuses, what `name` raises.
    """
    try:
        with service.blobs.reserve(limit, rooms), service.blobs.arriving(sha256):
            with service.blobs.upload(sha256, limit) as upload:
                await receive(request, upload)
            size = upload.size
            return await service.write(lambda db, _: name(db, size))
    finally:
        await run_in_threadpool(service.blobs.discard, sha256, service.is_named)


async def receive(request: Request, upload: Upload) -> None:
    """Stream the body into `upload` and keep it. Raises `Refused` as `Upload`."""
    buffer = bytearray()
    async for chunk in _chunks(request):
        buffer += chunk
        if len(buffer) >= _CHUNK:
            await run_in_threadpool(upload.write, bytes(buffer))
            buffer.clear()
    await run_in_threadpool(upload.write, bytes(buffer))
    await run_in_threadpool(upload.keep)


def check_digest(caller: Caller, sha256: str) -> None:
    """A stream's announced digest is the one that the node signed."""
    _check_signed(caller, sha256)


def body(model: type[Model] | dict[str, Any]) -> dict[str, Any]:
    """OpenAPI description of a JSON body that `read_model` reads."""
    schema = model if isinstance(model, dict) else model.model_json_schema()
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def stream() -> dict[str, Any]:
    """OpenAPI description of a body of bytes."""
    return {
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    }


async def _chunks(request: Request) -> AsyncIterator[bytes]:
    source = aiter(request.stream())
    while True:
        try:
            async with asyncio.timeout(STALL_S):
                chunk = await anext(source)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise Refused("schema.json", f"the body stopped for {STALL_S:.0f} s") from None
        yield chunk


def _check_signed(caller: Caller, sha256: str) -> None:
    if not hmac.compare_digest(caller.body_sha256, sha256):
        raise Refused("policy.not_authorised", "the body is not the one that was signed")


def _target(request: Request) -> str:
    path: bytes = request.scope.get("raw_path") or request.scope["path"].encode()
    query: bytes = request.scope["query_string"]
    return (path + (b"?" + query if query else b"")).decode("latin-1")


def _admit(service: Service, received: Received) -> Caller:
    now = service.clock()
    settings = service.config
    with service.database.read() as db:
        caller, nonce = requests.open_request(
            db, received, profile=settings.profile, origin=settings.origin, now=now
        )
    with service.database.write() as db:
        requests.spend(db, caller, nonce, now_ms=int(now.timestamp() * 1000))
    return caller
