"""Quantities as people write them: `4GiB`, `20m`."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

from rapha.spec.refusals import Refused

_BYTES: Final = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600}


def parse_bytes(text: str) -> int:
    """`512MiB` → bytes. Raises `Refused` (`schema.field_invalid`)."""
    match = re.fullmatch(r"([1-9][0-9]{0,14})(KiB|MiB|GiB)?", text)
    if match is None:
        raise Refused("schema.field_invalid", f"{text!r} is not a size such as 512MiB or 4GiB")
    return int(match[1]) * _BYTES[match[2] or ""]


def parse_duration(text: str) -> int:
    """`20m` → seconds. Raises `Refused` (`schema.field_invalid`)."""
    match = re.fullmatch(r"([1-9][0-9]{0,6})(s|m|h)", text)
    if match is None:
        raise Refused("schema.field_invalid", f"{text!r} is not a duration such as 90s, 20m or 2h")
    return int(match[1]) * _SECONDS[match[2]]


def parse_time(text: str) -> datetime:
    """RFC 3339 UTC or Unix seconds → aware datetime. Raises `Refused` (`schema.field_invalid`)."""
    try:
        if re.fullmatch(r"[0-9]{1,11}", text):
            return datetime.fromtimestamp(int(text), UTC)
        parsed = datetime.fromisoformat(text)
        if parsed.tzinfo is None:
            raise Refused("schema.field_invalid", f"{text!r} has no time zone")
        return parsed.astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        raise Refused("schema.field_invalid", f"{text!r} is not RFC 3339 or Unix seconds") from None


def format_time(moment: datetime) -> str:
    """RFC 3339, UTC, whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
