"""A job's base model: a safetensors file inside the signed image, named by its digest in the signed job.

The node hands it to the job's code and reads no value of it. It is the submitter's own and leaves nowhere, so
what it holds is nobody's concern here; what is made sure of is that it is the file that was signed for, and
that it is tensors from the first byte to the last: no pickle, no archive, no text of its own beside them.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any, Final

from rapha.evidence import canonical
from rapha.runtime.image.model import APP, File
from rapha.spec.refusals import Refused
from rapha.spec.weights import HEADER_LIMIT, MAX_RANK, MAX_TENSORS, WIDTH

SUFFIX: Final = ".safetensors"
MAX_BYTES: Final = 2**33
MAX_NAME: Final = 512
"""Characters of a tensor's name."""
_FIELDS: Final = frozenset({"dtype", "shape", "data_offsets"})
_NAMED: Final = 8
"""Files that a refusal names: an image may hold hundreds of thousands, and the node's log keeps its words."""


def find(files: Mapping[str, Path], digest: str) -> Path:
    """The one file of `files` whose SHA-256 is `digest`, after `check`.

    Args:
        files: by the path that its owner knows it under; only those named `*.safetensors` are looked at.
        digest: lower-case hex.

    Raises:
        Refused: `image.base_missing` where none or several have that digest, saying which there are;
            `image.base_invalid` for a file that can't be read, is over `MAX_BYTES`, or that `check` refuses.
    """
    digests = {name: _digest(name, files[name]) for name in sorted(files) if name.endswith(SUFFIX)}
    found = [name for name, other in digests.items() if other == digest]
    if not found:
        there = _named("; ", [f"{name} is {other}" for name, other in digests.items()])
        raise Refused("image.base_missing", f"no {SUFFIX} file is {digest}; {there or 'there is none'}")
    if len(found) > 1:
        raise Refused("image.base_missing", f"the same file is there as {_named(' and as ', found)}")
    with _opened(found[0], files[found[0]]) as file:
        check(file)
    return files[found[0]]


def find_in(files: Mapping[str, File], digest: str) -> Path:
    """`find` among the submitter's own files of an image, those below /app. Raises as `find`."""
    return find({name: file.path for name, file in files.items() if name.startswith(APP)}, digest)


def check(file: BufferedReader) -> None:
    """Whether `file`, open at its start, is safetensors in the strict sense.

    1. a header of at most 1 MiB that is an object in strict JSON, no key twice
    2. tensors and no `__metadata__`, which is free text
    3. each entry is a dtype, a shape and the offsets that those two imply, and nothing else
    4. the tensors lie one behind the other and reach from the first byte of data to the last

    Raises:
        Refused: `image.base_invalid`.
    """
    size = os.fstat(file.fileno()).st_size
    header, start = _header(file, size)  # 1
    if "__metadata__" in header:  # 2
        raise _invalid("it has __metadata__; save the tensors again without")
    if not 1 <= len(header) <= MAX_TENSORS:
        raise _invalid(f"it has {len(header)} tensors; 1 to {MAX_TENSORS} are taken")
    spans = sorted(_span(name, entry) for name, entry in header.items())  # 3
    reached = 0
    for begin, end in spans:  # 4
        if begin != reached:
            raise _invalid(f"the data has a gap or an overlap at byte {min(begin, reached)}")
        reached = end
    if reached != size - start:
        raise _invalid(f"the tensors need {reached} bytes of data, and there are {size - start}")


def _header(file: BufferedReader, size: int) -> tuple[dict[str, Any], int]:
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or not 2 <= length <= min(HEADER_LIMIT, size - 8):
        raise _invalid("it does not start with the length of a safetensors header")
    text = file.read(length)
    if not text.startswith(b"{"):
        raise _invalid("its header does not start with {")
    try:
        header = canonical.loads(text.rstrip(b" "), limit=HEADER_LIMIT)
    except Refused as refused:
        raise _invalid(f"its header is {refused.detail}") from None
    if not isinstance(header, dict):
        raise _invalid("its header is not an object")
    return header, 8 + length


def _span(name: str, entry: object) -> tuple[int, int]:
    """First byte of a tensor's data and the one behind its last."""
    if not 1 <= len(name) <= MAX_NAME or not name.isprintable():
        raise _invalid(f"a tensor's name is not 1 to {MAX_NAME} printable characters")
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        raise _invalid(f"tensor {name}: an entry is dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in WIDTH:
        raise _invalid(f"tensor {name}: the dtype is none of {', '.join(WIDTH)}")
    if not _counts(shape) or len(shape) > MAX_RANK:
        raise _invalid(f"tensor {name}: a shape is at most {MAX_RANK} whole numbers")
    if not _counts(offsets) or len(offsets) != 2:
        raise _invalid(f"tensor {name}: data_offsets are two whole numbers")
    begin, end = offsets
    if end - begin != math.prod(shape) * WIDTH[dtype]:
        raise _invalid(f"tensor {name}: its data is not of the length that dtype and shape imply")
    return begin, end


def _counts(value: object) -> bool:
    # In Python True is 1, and a number with a point or beyond 2^53 would be a float here.
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def _named(between: str, said: list[str]) -> str:
    more = [f"{len(said) - _NAMED} more"] if len(said) > _NAMED else []
    return between.join([*said[:_NAMED], *more])


def _digest(name: str, path: Path) -> str:
    with _opened(name, path) as file:
        if os.fstat(file.fileno()).st_size > MAX_BYTES:
            raise _invalid(f"{name} is larger than {MAX_BYTES} bytes")
        return hashlib.file_digest(file, "sha256").hexdigest()


def _opened(name: str, path: Path) -> BufferedReader:
    try:
        return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except OSError as error:
        raise _invalid(f"{name}: {error.strerror}") from None


def _invalid(what: str) -> Refused:
    return Refused("image.base_invalid", what)
