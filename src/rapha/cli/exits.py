"""Exit codes, the same everywhere, and the two streams: data to stdout, words to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any, Final, NoReturn

OK: Final = 0
NO: Final = 1
"""Refused, findings, or verification failed."""
WRONG_CALL: Final = 2
UNKNOWN: Final = 3
"""Could not find out; treat as no."""


def say(text: str) -> None:
    """Words for a person."""
    print(text, file=sys.stderr)  # noqa: T201  the one place that prints


def emit(text: str) -> None:
    """Data for a program or a pipe."""
    print(text)  # noqa: T201


def emit_json(value: Mapping[str, Any]) -> None:
    """One JSON object."""
    emit(json.dumps(dict(value), indent=1, ensure_ascii=False))


def leave(code: int, text: str = "") -> NoReturn:
    """End the command."""
    if text:
        say(text)
    raise SystemExit(code)
