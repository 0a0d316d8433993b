"""Refusals as RFC 9457 problem details, and which HTTP status each code has."""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from rapha.coordinator.accounts import Unauthenticated
from rapha.spec.refusals import Refused, entry

MEDIA_TYPE: Final = "application/problem+json"
_STATUS: Final = {
    "schema.json": 400,
    "schema.envelope": 400,
    "schema.too_large": 413,
    "policy.not_found": 404,
    "policy.conflict": 409,
    "policy.job_replayed": 409,
    "policy.unavailable": 503,
    "budget.rate": 429,
    "budget.storage": 507,
}
_FAMILY: Final = {"schema": 422, "image": 422, "budget": 402, "node": 503, "posture": 503}
_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "code", "fix"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string"},
        "fix": {"type": "string"},
    },
    "additionalProperties": False,
}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI responses for the problem statuses that an operation may answer with."""
    content = {MEDIA_TYPE: {"schema": _SCHEMA}}
    return {s: {"description": "Refused; see `code` and `fix`.", "content": content} for s in statuses}


def status_of(refused: Refused) -> int:
    """The HTTP status of a refusal."""
    if isinstance(refused, Unauthenticated):
        return 401
    return _STATUS.get(refused.code, _FAMILY.get(refused.code.partition(".")[0], 403))


def problem(
    refused: Refused, status: int | None = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    """The one shape in which this API says no."""
    number = status if status is not None else status_of(refused)
    body = {
        "type": f"urn:rapha:refusal:{refused.code}",
        "title": entry(refused.code).meaning,
        "status": number,
        "detail": refused.detail,
        "code": refused.code,
        "fix": refused.fix,
    }
    extra = {"WWW-Authenticate": 'Bearer realm="rapha"'} if number == 401 else {}
    return JSONResponse(body, number, media_type=MEDIA_TYPE, headers={**extra, **(headers or {})})


def install(app: FastAPI) -> None:
    """Answer every failure as a problem; an unexpected one says nothing about its cause."""

    @app.exception_handler(Refused)
    async def _refused(_: Request, refused: Refused) -> JSONResponse:
        return problem(refused)

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return problem(Refused("schema.field_invalid", f"{where}: {first['msg']}"))

    @app.exception_handler(HTTPException)
    async def _http(_: Request, error: HTTPException) -> JSONResponse:
        code = "policy.not_found" if error.status_code == 404 else "schema.field_invalid"
        return problem(Refused(code, str(error.detail)), error.status_code, dict(error.headers or {}))

    @app.exception_handler(ClientDisconnect)
    async def _gone(_: Request, __: ClientDisconnect) -> JSONResponse:
        return problem(Refused("schema.json", "the body ended early"))

    @app.exception_handler(Exception)
    async def _unexpected(_: Request, __: Exception) -> JSONResponse:
        return problem(Refused("policy.unavailable"), 500)
