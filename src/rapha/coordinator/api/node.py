"""What an enrolled node may call, each call signed; and the exchange, which both sides use."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from sqlalchemy import Connection, Row

from rapha.coordinator import exchange, jobs, leases, receipts
from rapha.coordinator.accounts import Developer
from rapha.coordinator.api.calls import (
    ArtifactPath,
    AsNode,
    AsParty,
    Coordinator,
    Digest,
    Wait,
    body,
    check_digest,
    declared,
    read_json,
    read_model,
    store,
    stream,
)
from rapha.coordinator.exchange import Slot
from rapha.coordinator.leases import Heartbeat, LeaseRequest, NodeTransition
from rapha.coordinator.notify import ROUTED
from rapha.coordinator.problems import documented
from rapha.coordinator.receipts import ReceiptPosted
from rapha.coordinator.requests import Caller
from rapha.spec.refusals import Refused
from rapha.spec.states import Actor

MAX_SMALL: Final = 16 * 1024
MAX_SURFACE: Final = 256 * 1024
MAX_CATALOGUE: Final = 8 * 1024 * 1024
ContentDigest = Annotated[str, Header(alias="X-Content-SHA256", pattern=r"^[0-9a-f]{64}$")]
router = APIRouter(tags=["node"])


@router.put(
    "/v1/node/catalogue",
    responses=documented(400, 401, 403, 413, 422),
    openapi_extra=body({"type": "array", "items": {"type": "object"}}),
)
async def publish(request: Request, caller: AsNode, service: Coordinator) -> dict[str, Any]:
    """Replace the node's catalogue by a list of entries that it signed."""
    entries = await read_json(request, MAX_CATALOGUE, caller)
    if not isinstance(entries, list):
        raise Refused("schema.field_invalid", "expected a list of signed entries")
    profile = service.config.profile
    routed = await service.write(
        lambda db, now: leases.publish(db, caller.node, entries, profile=profile, now=now), ROUTED
    )
    service.notifier.publish(routed)
    return {"entries": len(entries)}


@router.post(
    "/v1/node/leases",
    responses={**documented(400, 401, 403, 413, 422), 204: {"description": "No job for this node."}},
    openapi_extra=body(LeaseRequest),
)
async def lease(request: Request, caller: AsNode, service: Coordinator, wait: Wait = 0.0) -> Response:
    """Take the oldest routed job that this node may run; waits up to `wait` seconds for one."""
    asked = await read_model(request, LeaseRequest, MAX_SMALL, caller)

    async def _take() -> dict[str, Any] | None:
        if not await service.read(lambda db: leases.available(db, caller.node, asked, now=service.now_ms())):
            return None
        return await service.write(lambda db, now: leases.lease(db, caller.node, asked, now=now))

    found = await service.notifier.wait(ROUTED, wait, _take)
    if found is None:
        return Response(status_code=204)
    service.notifier.publish([found["id"]])
    return JSONResponse(found)


@router.get("/v1/node/jobs", responses=documented(400, 401, 403, 413, 422))
async def open_jobs(caller: AsNode, service: Coordinator) -> dict[str, Any]:
    """The jobs that the node holds."""
    return {"jobs": await service.read(lambda db: leases.open_jobs(db, caller.node))}


@router.get("/v1/node/jobs/{identity}", responses=documented(400, 401, 403, 404, 413, 422))
async def node_job(identity: Digest, caller: AsNode, service: Coordinator) -> dict[str, Any]:
    """Where one of the node's jobs is."""
    job = await service.read(lambda db: leases.held(db, identity, caller.node))
    return {"id": identity, "state": job.state}


@router.post(
    "/v1/node/jobs/{identity}/heartbeat",
    responses=documented(400, 401, 403, 404, 413, 422),
    openapi_extra=body(Heartbeat),
)
async def heartbeat(
    identity: Digest, request: Request, caller: AsNode, service: Coordinator
) -> dict[str, Any]:
    """Declare another silent period; the answer tells of a cancellation."""
    asked = await read_model(request, Heartbeat, MAX_SMALL, caller)
    job = await service.write(lambda db, now: leases.renew(db, identity, caller.node, asked, now=now))
    return {"id": identity, "state": job.state}


@router.post(
    "/v1/node/jobs/{identity}/transitions",
    responses=documented(400, 401, 403, 404, 409, 413, 422),
    openapi_extra=body(NodeTransition),
)
async def transition(
    identity: Digest, request: Request, caller: AsNode, service: Coordinator
) -> dict[str, Any]:
    """Take one step of the job; the same step again changes nothing."""
    asked = await read_model(request, NodeTransition, MAX_SURFACE, caller)
    await service.write(lambda db, now: leases.move(db, identity, caller.node, asked, now=now), identity)
    return {"id": identity, "state": asked.target}


@router.put(
    "/v1/node/jobs/{identity}/artifacts/{name}",
    responses=documented(400, 401, 403, 404, 409, 413, 422, 507),
    openapi_extra=stream(),
)
async def put_artifact(
    identity: Digest,
    name: ArtifactPath,
    request: Request,
    caller: AsNode,
    service: Coordinator,
    sha256: ContentDigest,
) -> dict[str, Any]:
    """Upload a ciphertext; nobody can fetch it before the receipt names it."""
    check_digest(caller, sha256)
    config = service.config

    def _rooms(db: Connection) -> dict[str, int]:
        job = leases.held(db, identity, caller.node)
        receipts.check_uploading(job)
        return receipts.rooms(db, job, name, config)

    def _stage(db: Connection, size: int) -> str | None:
        job = leases.held(db, identity, caller.node)
        return receipts.stage(db, job, name, sha256, size, config=config)

    rooms = await service.read(_rooms)
    limit = declared(request, min(config.max_blob_bytes, *rooms.values()))
    before = await store(request, service, sha256, limit, rooms, _stage)
    if before is not None:
        await run_in_threadpool(service.blobs.discard, before, service.is_named)
    return {"name": name, "sha256": sha256}


@router.post(
    "/v1/node/jobs/{identity}/receipt",
    responses=documented(400, 401, 403, 404, 409, 413, 422),
    openapi_extra=body(
        {
            "type": "object",
            "required": ["surface", "bundle", "artifacts"],
            "properties": {
                "surface": {"type": "object"},
                "bundle": {"type": "object"},
                "artifacts": {"type": "array"},
            },
        }
    ),
)
async def receipt(identity: Digest, request: Request, caller: AsNode, service: Coordinator) -> dict[str, Any]:
    """Store the receipt, log it, deliver: one transaction. The same receipt again changes nothing."""
    asked = await read_model(request, ReceiptPosted, receipts.MAX_BYTES, caller)
    profile = service.config.profile

    def _post(db: Connection, now: int) -> dict[str, Any]:
        job = leases.held(db, identity, caller.node)
        receipts.post(db, job, caller.node, asked, service.log, profile=profile, now=now)
        return receipts.position(db, identity)

    return {"id": identity, "log": await service.write(_post, identity)}


@router.put(
    "/v1/jobs/{identity}/exchange/{slot}",
    responses=documented(400, 401, 403, 404, 409, 413, 422),
    openapi_extra=body({"type": "object"}),
    tags=["exchange"],
)
async def put_exchange(
    identity: Digest, slot: Slot, request: Request, caller: AsParty, service: Coordinator
) -> dict[str, Any]:
    """Write one message for the other side, once."""
    message = await read_json(request, exchange.MAX_BYTES, caller)
    if not isinstance(message, dict):
        raise Refused("schema.field_invalid", "expected an object")
    writer = Actor.NODE if isinstance(caller, Caller) else Actor.RESEARCHER

    def _put(db: Connection, _: int) -> None:
        exchange.put(db, _job_of(db, identity, caller), slot, writer, message)

    await service.write(_put, identity)
    return {"slot": slot}


@router.get(
    "/v1/jobs/{identity}/exchange/{slot}",
    responses={**documented(400, 401, 403, 404, 413, 422), 204: {"description": "Nothing is there yet."}},
    tags=["exchange"],
)
async def get_exchange(
    identity: Digest, slot: Slot, caller: AsParty, service: Coordinator, wait: Wait = 0.0
) -> Response:
    """Read a message; waits up to `wait` seconds for it."""

    def _get(db: Connection) -> tuple[dict[str, Any] | None] | None:
        job = _job_of(db, identity, caller)
        found = exchange.get(db, job, slot)
        return (found,) if found is not None or exchange.over(job) else None

    answer = await service.poll(identity, wait, _get)
    if answer is None or answer[0] is None:
        return Response(status_code=204)
    return JSONResponse(answer[0])


def _job_of(db: Connection, identity: str, caller: Developer | Caller) -> Row[Any]:
    if isinstance(caller, Caller):
        return leases.held(db, identity, caller.node)
    return jobs.owned(db, identity, caller.id)
