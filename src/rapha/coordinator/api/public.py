"""What anyone may call: health, registration, enrolment, the transparency log."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request

from rapha.coordinator import accounts, log
from rapha.coordinator.accounts import Enrolment, Registration
from rapha.coordinator.api.calls import Coordinator, body, read_model
from rapha.coordinator.problems import documented
from rapha.evidence.merkle import MAX_SIZE

MAX_FORM: Final = 16 * 1024
Index = Annotated[int, Query(ge=0, le=MAX_SIZE)]
router = APIRouter(tags=["public"])


@router.get("/healthz", responses=documented(503))
async def healthz(service: Coordinator) -> dict[str, Any]:
    """Whether the store answers; profile, and the origin that signed requests and checkpoints name."""
    size = await service.read(log.size)
    settings = service.config
    return {"status": "ok", "profile": settings.profile, "origin": settings.origin, "log_size": size}


@router.post(
    "/v1/developers", responses=documented(400, 409, 413, 422, 429), openapi_extra=body(Registration)
)
async def register(request: Request, service: Coordinator) -> dict[str, Any]:
    """Ask for early access; an operator reviews it. The same registration again changes nothing."""
    asked = await read_model(request, Registration, MAX_FORM, None)
    limit = service.config.max_pending
    return await service.write(lambda db, now: accounts.register(db, asked, max_pending=limit, now=now))


@router.post("/v1/nodes/enrol", responses=documented(400, 401, 409, 413, 422), openapi_extra=body(Enrolment))
async def enrol(request: Request, service: Coordinator) -> dict[str, Any]:
    """Bind an invited node to its key. The same enrolment again changes nothing."""
    asked = await read_model(request, Enrolment, MAX_FORM, None)
    await service.write(lambda db, now: accounts.enrol(db, asked, now=now))
    settings = service.config
    return {
        "node": asked.name,
        "profile": settings.profile,
        "origin": settings.origin,
        "log_key": service.log_key,
    }


@router.get("/v1/log/checkpoint")
async def checkpoint(service: Coordinator) -> dict[str, Any]:
    """The newest signed checkpoint, and the key that the log says is its own."""
    note = await service.read(service.log.latest)
    return {"checkpoint": note, "origin": service.config.origin, "log_key": service.log_key}


@router.get("/v1/log/inclusion", responses=documented(422))
async def inclusion(service: Coordinator, index: Index, size: Index) -> dict[str, Any]:
    """Proof that leaf `index` is in the tree of `size` leaves (RFC 9162)."""
    proof = await service.read(lambda db: log.inclusion(db, index, size))
    return {"index": index, "size": size, "proof": proof}


@router.get("/v1/log/consistency", responses=documented(422))
async def consistency(service: Coordinator, first: Index, second: Index) -> dict[str, Any]:
    """Proof that the tree of `second` leaves extends the one of `first` (RFC 9162)."""
    proof = await service.read(lambda db: log.consistency(db, first, second))
    return {"first": first, "second": second, "proof": proof}


@router.get("/v1/log/leaves", responses=documented(422))
async def leaves(service: Coordinator, start: Index, end: Index) -> dict[str, Any]:
    """Leaf hashes of [start, end), at most 1000."""
    return {"start": start, "end": end, "leaves": await service.read(lambda db: log.leaves(db, start, end))}
