"""RFC 8785 canonical JSON, and the only JSON reader for signed bytes."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any, Final

import rfc8785

from rapha.spec.refusals import Refused

MAX_BYTES: Final = 64 * 1024 * 1024
MAX_DEPTH: Final = 64


def dumps(value: Any) -> bytes:
    """RFC 8785 bytes of a tree of JSON types.

    Raises:
        Refused: `schema.json` for what RFC 8785 can't express (NaN, integers beyond 2^53, lone surrogates).
    """
    try:
        return rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, RecursionError, UnicodeError) as error:
        raise Refused("schema.json", f"not canonical JSON: {error}") from None


def loads(data: bytes, *, limit: int = MAX_BYTES) -> Any:
    """Parse strict JSON: UTF-8, no duplicate key, NaN, infinity or lone surrogate, bounded size and depth.

    An integer of 2^53 or more is a float, and refuses where it is not how RFC 8785 writes one.

    Raises:
        Refused: `schema.json` or `schema.too_large`.
    """
    if len(data) > limit:
        raise Refused("schema.too_large", f"{len(data)} bytes, the limit is {limit}")
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_exact,
        )
        if b"\\u" in data:  # only an escape can spell half of a surrogate pair, and it has no UTF-8 form
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise Refused("schema.json", f"not strict JSON: {error}") from None
    _check_depth(value)
    return value


def loads_canonical(data: bytes, *, limit: int = MAX_BYTES) -> Any:
    """Parse and demand that `data` is the canonical form, so that no byte of it is free.

    Raises:
        Refused: `schema.json` or `schema.too_large`.
    """
    value = loads(data, limit=limit)
    if dumps(value) != data:
        raise Refused("schema.json", "the bytes are not RFC 8785 canonical JSON")
    return value


def digest(value: Any) -> str:
    """Lower-case hex SHA-256 of the canonical form."""
    return hashlib.sha256(dumps(value)).hexdigest()


def _check_depth(value: Any) -> None:
    # On the parsed tree, level by level: brackets inside strings neither count nor cancel others out, and
    # what recurses over the tree afterwards is safe. The parser itself is bounded by the interpreter's limit.
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        inner = [v for v in level if isinstance(v, dict | list)]
        if not inner:
            return
        level = [part for v in inner for part in (v.values() if isinstance(v, dict) else v)]
    raise Refused("schema.json", f"nested deeper than {MAX_DEPTH}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("duplicate key")
    return result


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _exact(text: str) -> int | float:
    # RFC 8785 writes every number as a double: from 2^53 to 10^21 they look like integers.
    value = int(text)
    if abs(value) < 2**53:
        return value
    number = _finite(text)
    if rfc8785.dumps(number) != text.encode():
        raise ValueError("an integer is beyond 2^53 and not how a double is written")
    return number


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is beyond what a double holds")
    return value
