"""What an approved developer may call, about their own objects only."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from sqlalchemy import Connection

from rapha.coordinator import accounts, blobs, jobs, receipts
from rapha.coordinator.accounts import Developer
from rapha.coordinator.api.calls import (
    ArtifactPath,
    AsDeveloper,
    AsParty,
    Coordinator,
    Digest,
    Wait,
    body,
    declared,
    read_model,
    store,
    stream,
)
from rapha.coordinator.jobs import Submission
from rapha.coordinator.notify import ROUTED
from rapha.coordinator.problems import documented
from rapha.coordinator.requests import Caller
from rapha.coordinator.schema import jobs as table
from rapha.spec import states

MAX_SUBMISSION: Final = 4 * 1024 * 1024
router = APIRouter(tags=["researcher"])


@router.get("/v1/developers/me", responses=documented(401))
async def me(caller: AsDeveloper) -> dict[str, Any]:
    """Who the API key belongs to."""
    return {
        "id": caller.id,
        "organisation": caller.organisation,
        "public_key": caller.key.to_text(),
        "status": "approved",
    }


@router.get("/v1/catalogue", responses=documented(401))
async def catalogue(_: AsDeveloper, service: Coordinator) -> dict[str, Any]:
    """Every enrolled node's signed catalogue entries."""
    return {"nodes": await service.read(accounts.catalogues)}


@router.put("/v1/blobs/{sha256}", responses=documented(400, 401, 403, 413, 422, 507), openapi_extra=stream())
async def put_blob(sha256: Digest, request: Request, caller: AsDeveloper, service: Coordinator) -> Response:
    """Upload an image archive under its digest: 201 when stored, 200 if the caller has it here already."""
    quota = service.config.quota_bytes

    def _left(db: Connection) -> int | None:
        return None if blobs.owns(db, caller.id, sha256) else blobs.room(db, caller.id, quota)

    left = await service.read(_left)
    if left is None:
        return JSONResponse({"sha256": sha256})
    limit = declared(request, min(left, service.config.max_blob_bytes))

    def _grant(db: Connection, size: int) -> None:
        blobs.grant(db, caller.id, sha256, size, quota=quota)

    await store(request, service, sha256, limit, {f"developer:{caller.id}": left}, _grant)
    return JSONResponse({"sha256": sha256}, 201)


@router.get(
    "/v1/blobs/{sha256}", responses=documented(400, 401, 403, 404, 409, 413, 422), response_class=FileResponse
)
async def get_blob(sha256: Digest, caller: AsParty, service: Coordinator) -> Response:
    """Download one's own image, or, as a node, the image of a job that one holds. Ranges work."""
    allowed = await service.read(lambda db: _may_read(db, caller, sha256))
    if not allowed:
        raise jobs.not_found()
    return FileResponse(service.blobs.path(sha256), media_type="application/octet-stream")


@router.post(
    "/v1/jobs",
    responses=documented(400, 401, 403, 409, 413, 422),
    openapi_extra=body(Submission),
    status_code=201,
)
async def submit(request: Request, caller: AsDeveloper, service: Coordinator) -> Response:
    """Submit a signed job: 201, or 200 with the same job if exactly this was submitted before."""
    asked = await read_model(request, Submission, MAX_SUBMISSION, caller)
    profile = service.config.profile

    def _submit(db: Connection, now: int) -> tuple[dict[str, Any], bool]:
        identity, new = jobs.submit(db, caller, asked, profile=profile, now=now)
        return jobs.view(db, jobs.require(db, identity)), new

    seen, new = await service.write(_submit, ROUTED)
    return JSONResponse(seen, 201 if new else 200, headers={"Location": f"/v1/jobs/{seen['id']}"})


@router.get("/v1/jobs", responses=documented(401, 404, 422))
async def list_jobs(
    caller: AsDeveloper,
    service: Coordinator,
    after: Annotated[str | None, Query(pattern=r"^[0-9a-f]{64}$")] = None,
    limit: Annotated[int, Query(ge=1, le=jobs.MAX_PAGE)] = 50,
) -> dict[str, Any]:
    """The caller's jobs, newest first; `next` is the cursor of the following page, or null."""
    page = await service.read(lambda db: jobs.list_owned(db, caller.id, after=after, limit=limit))
    return {"jobs": page, "next": page[-1]["id"] if len(page) == limit else None}


@router.get("/v1/jobs/{identity}", responses=documented(401, 404, 422))
async def get_job(identity: Digest, caller: AsDeveloper, service: Coordinator) -> dict[str, Any]:
    """One job's state, and how it ended."""
    return await service.read(lambda db: jobs.view(db, jobs.owned(db, identity, caller.id)))


@router.get("/v1/jobs/{identity}/explain", responses=documented(401, 404, 422))
async def explain(identity: Digest, caller: AsDeveloper, service: Coordinator) -> dict[str, Any]:
    """Each node as eligible, or every reason why not."""
    answers = await service.read(lambda db: jobs.explain(db, jobs.owned(db, identity, caller.id)))
    return {"id": identity, "nodes": [answer.dump() for answer in answers]}


@router.get("/v1/jobs/{identity}/events", responses=documented(401, 404, 422))
async def events(
    identity: Digest,
    caller: AsDeveloper,
    service: Coordinator,
    after: Annotated[int, Query(ge=0, le=2**31)] = 0,
    wait: Wait = 0.0,
) -> dict[str, Any]:
    """Events after number `after`; waits up to `wait` seconds for the first of them."""

    def _events(db: Connection) -> list[dict[str, Any]] | None:
        job = jobs.owned(db, identity, caller.id)
        found = jobs.events_after(db, identity, after)
        return found if found or job.state in states.ENDS else None

    return {"events": await service.poll(identity, wait, _events) or []}


@router.post("/v1/jobs/{identity}/cancel", responses=documented(401, 404, 409, 422))
async def cancel(identity: Digest, caller: AsDeveloper, service: Coordinator) -> dict[str, Any]:
    """Cancel a job from which nothing was released; twice is as good as once."""

    def _cancel(db: Connection, now: int) -> dict[str, Any]:
        jobs.cancel(db, identity, caller.id, now=now)
        return jobs.view(db, jobs.require(db, identity))

    return await service.write(_cancel, identity)


@router.get("/v1/jobs/{identity}/bundle", responses=documented(401, 404, 409, 422))
async def bundle(identity: Digest, caller: AsDeveloper, service: Coordinator) -> dict[str, Any]:
    """The bundle's core and its place in the log, once delivered."""
    return await service.read(lambda db: receipts.bundle(db, jobs.owned(db, identity, caller.id)))


@router.get(
    "/v1/jobs/{identity}/artifacts/{name}",
    responses=documented(401, 404, 409, 422),
    response_class=FileResponse,
)
async def artifact(
    identity: Digest, name: ArtifactPath, caller: AsDeveloper, service: Coordinator
) -> Response:
    """A delivered ciphertext. Ranges work."""
    sha256 = await service.read(lambda db: receipts.artifact(db, jobs.owned(db, identity, caller.id), name))
    return FileResponse(service.blobs.path(sha256), media_type="application/octet-stream")


def _may_read(db: Connection, caller: Developer | Caller, sha256: str) -> bool:
    if isinstance(caller, Developer):
        return blobs.owns(db, caller.id, sha256)
    held = (table.c.node == caller.node.name) & table.c.state.in_(states.HELD)
    query = table.select().where(held, table.c.image_blob == sha256).limit(1)
    return db.execute(query).first() is not None
