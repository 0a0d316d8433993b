"""Requests, replies and refusals of the dataset process as JSON types, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from rapha.node.datasets import control
from rapha.node.datasets.ledger import messages
from rapha.spec.refusals import REGISTRY, Refused

_REQUESTS: Final[dict[str, type[control.Request]]] = {
    "resolve": control.Resolve,
    "describe": control.Describe,
    "prepare": control.Prepare,
    "estimate": control.Estimate,
    "serve": control.Serve,
    "usage": control.Usage,
    "score": control.Score,
    "groups": control.Groups,
    "observe": control.Observe,
    "audit": control.Audit,
    "search": control.Search,
    "reserve": messages.Reserve,
    "settle": messages.Settle,
    "inspect": messages.Inspect,
    "close": control.Close,
}
_NAMES: Final = {kind: name for name, kind in _REQUESTS.items()}


def request_frame(request: control.Request) -> dict[str, Any]:
    """A request as JSON types."""
    return {"command": _NAMES[type(request)], "arguments": request.dump()}


def read_request(frame: dict[str, Any]) -> control.Request:
    """Parse a request. Raises `Refused` (`schema.*`)."""
    kind = _REQUESTS.get(str(frame.get("command")))
    if kind is None:
        raise Refused("schema.field_invalid", "command: not one of the dataset process's")
    return kind.parse(frame.get("arguments"), "arguments")


def refusal_frame(refused: Refused) -> dict[str, Any]:
    """A refusal as it may leave: a code that depends on records takes no words along."""
    entry = REGISTRY[refused.code]
    detail = entry.meaning if entry.depends_on_records else refused.detail
    return {"refused": {"code": refused.code, "detail": detail}}


def read_reply(frame: dict[str, Any]) -> Mapping[str, Any]:
    """The fields of a `done` reply.

    Raises:
        Refused: what the process refused, or `node.internal` if it sent something else.
    """
    match frame:
        case {"done": dict(done), **rest} if not rest:
            return done
        case {"refused": {"code": str(code), "detail": str(detail)}} if code in REGISTRY:
            raise Refused(code, detail)
        case _:
            raise Refused("node.internal", "the dataset process sent no reply")
