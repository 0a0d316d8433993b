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
from rapha.spec.refusals import Refused
from rapha.spec.release_plan import HEADER_LIMIT, ORDER, WIDTH, Dtype

Entry = tuple[str, Dtype, tuple[int, ...]]
"""Name, dtype and shape of one tensor."""
_PADDING: Final = 7
"""Spaces after the JSON, at most: what alignment to 8 bytes needs."""
_STYLES: Final = ((",", ":"), (", ", ": "))
_FIELDS: Final = frozenset({"dtype", "shape", "data_offsets"})


def read(data: bytearray, expected: Sequence[Entry]) -> dict[str, memoryview]:
    """The raw bytes of each expected tensor, by name: views into `data`, little-endian, C order.

    Raises:
        Finding: any of check 2's codes.
    """
    header, start = _split(data)
    _check_names(header, expected)
    size = len(data) - start
    wanted = {name: (dtype, shape) for name, dtype, shape in expected}
    view, offset = memoryview(data).toreadonly()[start:], 0
    tensors: dict[str, memoryview] = {}
    for name, value in header.items():
        end = offset + _check_entry(name, value, *wanted[name], offset)
        tensors[name] = view[offset:end]
        offset = end
    if offset != size:
        raise Finding("guard.coverage", f"the tensors need {offset} bytes of data, the file has {size}")
    return tensors


def _split(data: bytearray) -> tuple[dict[str, Any], int]:
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or not 2 <= length <= min(HEADER_LIMIT, len(data) - 8):
        raise Finding("guard.header", f"a header of {length} bytes does not fit")
    text = bytes(data[8 : 8 + length])
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
    return header, 8 + length


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
