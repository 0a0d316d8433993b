"""Check 2: a strict safetensors reader, and nothing that the plan does not already say.

The format's own library accepts duplicate names, free metadata, 100 MB of white space and bytes that
also read as other formats. Here the header is parsed, then written again from what was understood, and
must be the same bytes: no escape, number form, order of keys or white space is left to choose, but for
the two JSON styles that writers use. Tensors lie in the plan's order (`rapha_trainer`) or the library's
(`safetensors.*.save_file`); the rebuilt file has one order, so that choice does not leave.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, Final

from rapha.evidence import canonical
from rapha.runtime.guard.codes import Finding
from rapha.runtime.guard.reading import Source, part
from rapha.spec.refusals import Refused
from rapha.spec.weights import HEADER_LIMIT, ORDER, WIDTH, Dtype

Entry = tuple[str, Dtype, tuple[int, ...]]
"""Name, dtype and shape of one tensor."""
_PADDING: Final = 7
"""Spaces after the JSON, at most: what alignment to 8 bytes needs."""
_STYLES: Final = ((",", ":"), (", ", ": "))
_FIELDS: Final = frozenset({"dtype", "shape", "data_offsets"})


def read(source: Source, expected: Sequence[Entry]) -> dict[str, int]:
    """Where the bytes of each expected tensor begin, by name: little-endian, C order, as long as planned.

    Raises:
        Finding: any of check 2's codes.
    """
    length = int.from_bytes(part(source, 0, 8), "little")
    if source.size < 8 or not 2 <= length <= min(HEADER_LIMIT, source.size - 8):
        raise Finding("guard.header", f"a header of {length} bytes does not fit")
    start = 8 + length
    begins = layout(part(source, 8, length), source.size - start, expected)
    return {name: start + begin for name, begin in begins.items()}


def layout(text: bytes, size: int, expected: Sequence[Entry]) -> dict[str, int]:
    """Where the bytes of each expected tensor begin in the `size` bytes of data after the header `text`.

    Raises:
        Finding: any of check 2's codes.
    """
    header = _parsed(text)
    _check_names(header, expected)
    wanted = {name: (dtype, shape) for name, dtype, shape in expected}
    begins: dict[str, int] = {}
    offset = 0
    for name, value in header.items():
        begins[name] = offset
        offset += _check_entry(name, value, *wanted[name], offset)
    if offset != size:
        raise Finding("guard.coverage", f"the tensors need {offset} bytes of data, the file has {size}")
    return begins


def _parsed(text: bytes) -> dict[str, Any]:
    plain = text.rstrip(b" ")
    if len(text) - len(plain) > _PADDING:
        raise Finding("guard.header", f"more than {_PADDING} spaces after the header")
    try:
        header = canonical.loads(plain, limit=HEADER_LIMIT)
    except Refused as refusal:
        raise Finding("guard.header", refusal.detail) from None
    if not isinstance(header, dict):
        raise Finding("guard.header", "the header is not an object")
    if plain not in (json.dumps(header, separators=style).encode() for style in _STYLES):
        raise Finding("guard.header", "the header is not written in either plain JSON style")
    return header


def _check_names(header: dict[str, Any], expected: Sequence[Entry]) -> None:
    if "__metadata__" in header:
        raise Finding("guard.metadata")
    names = [name for name, _, _ in expected]
    planned = frozenset(names)
    strangers = [name for name in header if name not in planned]
    if strangers:
        raise Finding("guard.names", f"tensor {strangers[0][:80]!a} is not in the plan")
    missing = [name for name in names if name not in header]
    if missing:
        raise Finding("guard.names", f"tensor {missing[0]} is in the plan and not in the file")
    library = [e[0] for e in sorted(expected, key=lambda e: (ORDER.index(e[1]), e[0]))]
    if list(header) not in (names, library):
        raise Finding("guard.order")


def _check_entry(name: str, value: Any, dtype: Dtype, shape: tuple[int, ...], begin: int) -> int:
    """Bytes of the tensor, if its entry is exactly what the plan implies at offset `begin`."""
    if not isinstance(value, dict) or value.keys() != _FIELDS:
        raise Finding("guard.header", f"tensor {name}: an entry is dtype, shape and data_offsets")
    if value["dtype"] != dtype:
        raise Finding("guard.dtype", f"tensor {name}: planned {dtype}")
    # Compared as text: in Python [True] == [1] == [1.0].
    if json.dumps(value["shape"]) != json.dumps(shape):
        raise Finding("guard.shape", f"tensor {name}: planned {list(shape)}")
    size = math.prod(shape) * WIDTH[dtype]
    if json.dumps(value["data_offsets"]) != json.dumps([begin, begin + size]):
        raise Finding("guard.offsets", f"tensor {name}: expected [{begin}, {begin + size}]")
    return size
