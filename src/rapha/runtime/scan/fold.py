"""Strings that an expression spells out: constants, and what is put together from them."""

from __future__ import annotations

import ast
from typing import Final

_MAX_DEPTH: Final = 32
_MAX_TEXT: Final = 4096


def fold(node: ast.expr, depth: int = 0) -> str | None:
    """The text of a constant expression, or None. `"sys" + "tem"` is as plain as `"system"`."""
    if depth > _MAX_DEPTH:
        return None
    match node:
        case ast.Constant(value=str(text)):
            found: str | None = text
        case ast.Constant(value=bytes(raw)):
            found = raw.decode("latin-1")
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            found = _concatenated([left, right], "", depth)
        case ast.JoinedStr(values=values):
            found = _concatenated(values, "", depth)
        case ast.FormattedValue(value=value, conversion=-1, format_spec=None):
            found = fold(value, depth + 1)
        case ast.Subscript(value=value, slice=ast.Slice(lower=lower, upper=upper, step=step)):
            found = _sliced(fold(value, depth + 1), (lower, upper, step))
        case ast.Call(func=ast.Attribute(value=on, attr=method), args=arguments):
            found = _called(on, method, arguments, depth)
        case _:
            found = None
    return found if found is None or len(found) <= _MAX_TEXT else None


def _concatenated(parts: list[ast.expr], separator: str, depth: int) -> str | None:
    texts = [fold(part, depth + 1) for part in parts]
    return None if None in texts else separator.join(text for text in texts if text is not None)


def _sliced(text: str | None, bounds: tuple[ast.expr | None, ...]) -> str | None:
    numbers: list[int | None] = []
    for bound in bounds:
        value = None if bound is None else _integer(bound)
        if bound is not None and value is None:
            return None
        numbers.append(value)
    return None if text is None or numbers[2] == 0 else text[slice(*numbers)]


def _integer(node: ast.expr) -> int | None:
    match node:
        case ast.Constant(value=int(number)):
            return number
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(number))):
            return -number
    return None


def _called(on: ast.expr, method: str, arguments: list[ast.expr], depth: int) -> str | None:
    text = fold(on, depth + 1)
    match method, arguments:
        case "join", [ast.List(elts=parts) | ast.Tuple(elts=parts)] if text is not None:
            return _concatenated(parts, text, depth)
        case "lower" | "upper" | "strip" | "decode" | "encode" | "swapcase", [] if text is not None:
            return text if method in ("decode", "encode") else str(getattr(text, method)())
        case "replace", [old, new] if text is not None:
            before, after = fold(old, depth + 1), fold(new, depth + 1)
            return None if before is None or after is None or len(text) > 256 else text.replace(before, after)
    return None
