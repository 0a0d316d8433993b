"""JSON that the coordinator carries and does not interpret."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator


def _as_sent(value: Any) -> Any:
    """`Model.parse` makes tuples of lists, for the strict models; what is only carried stays JSON."""
    if isinstance(value, dict):
        return {key: _as_sent(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_sent(item) for item in value]
    return value


JsonObject = Annotated[dict[str, Any], AfterValidator(_as_sent)]
"""An object whose inside is somebody else's to judge."""
