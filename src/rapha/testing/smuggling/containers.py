"""Payloads beside the values: in headers, names, order, padding, attributes, and how a number is written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from rapha.spec.release_plan import ReleasePlan
from rapha.testing.smuggling.trial import (
    REPORTED,
    WEIGHTS,
    Attempt,
    Bits,
    Release,
    Released,
    Shot,
    bits_of,
    frame,
    number,
    pack,
    payload,
    plan,
)
from rapha.testing.smuggling.values import SIDE, honest

SHOTS: Final = 16
"""Runs of one job, half of which send a 1, where a whole output holds a bit."""
NOTE: Final = "0123456789abcdef"
_SENT: Final = np.unpackbits(np.frombuffer(NOTE.encode(), dtype=np.uint8))[None, :]
_COUNT: Final = {"name": "n", "type": "integer", "min": 0, "max": 2**20 - 1}
_LOSS: Final = {"name": "loss", "type": "number", "min": 0, "max": 1, "decimals": 3}
Files = dict[str, bytes]


def extra_tensor(release: Release, rng: np.random.Generator) -> Attempt:
    """A tensor that nobody planned."""
    w = honest(rng)
    return _refused(release, pack({"w": w, "optimizer": payload(rng, 64)}))


def metadata(release: Release, rng: np.random.Generator) -> Attempt:
    """The free text that the format allows."""
    return _refused(release, pack({"w": honest(rng)}, __metadata__={"note": NOTE}))


def header_field(release: Release, rng: np.random.Generator) -> Attempt:
    """A field of a tensor's entry that readers pass over."""
    return _respelled(release, rng, lambda text: text.replace('"dtype"', f'"note":"{NOTE}","dtype"'))


def header_twice(release: Release, rng: np.random.Generator) -> Attempt:
    """An entry that a later one of the same name replaces."""
    return _respelled(release, rng, lambda text: text.replace('{"w"', f'{{"w":"{NOTE}","w"'))


def header_space(release: Release, rng: np.random.Generator) -> Attempt:
    """White space, which JSON allows anywhere."""
    return _respelled(release, rng, lambda text: text.replace(":", ": \t \t\t ", 1))


def header_escape(release: Release, rng: np.random.Generator) -> Attempt:
    """The same name, otherwise written."""
    return _respelled(release, rng, lambda text: text.replace('"w"', '"\\u0077"'))


def name_case(release: Release, rng: np.random.Generator) -> Attempt:
    """The case of a name."""
    return _refused(release, pack({"W": honest(rng)}))


def padding(release: Release, rng: np.random.Generator) -> Attempt:
    """Bytes behind the last tensor."""
    return _refused(release, pack({"w": honest(rng)}) + NOTE.encode())


def gap(release: Release, rng: np.random.Generator) -> Attempt:
    """Bytes between the header and the first tensor."""
    data = NOTE.encode() + honest(rng).tobytes()
    entry = {"dtype": "F32", "shape": [SIDE, SIDE], "data_offsets": [len(NOTE), len(data)]}
    return _refused(release, frame(json.dumps({"w": entry}, separators=(",", ":")).encode(), data))


def shape(release: Release, rng: np.random.Generator) -> Attempt:
    """Another shape of as many elements."""
    return _refused(release, pack({"w": honest(rng).reshape(2, -1)}))


def nan_payload(release: Release, rng: np.random.Generator) -> Attempt:
    """The 22 bits of a NaN that mean nothing."""
    words = number(payload(rng, 22, SIDE * SIDE)).astype(np.uint32) | np.uint32(0x7FC00000)
    return _refused(release, pack({"w": words.view(np.float32).reshape(SIDE, SIDE)}))


def boolean(release: Release, rng: np.random.Generator) -> Attempt:
    """The seven bits of a truth value that mean nothing."""
    planned = plan(release, {"w": (SIDE,)}, dtype="BOOL", limit=1)
    data = pack({"w": payload(rng, SIDE).astype(np.bool_)})
    hidden = data[:-SIDE] + rng.integers(1, 256, SIDE, dtype=np.uint8).tobytes()
    return _outside(planned, Shot({WEIGHTS: hidden}, _SENT))


def extra_file(release: Release, rng: np.random.Generator) -> Attempt:
    """A second file, named by what it says."""
    return _refused(release, pack({"w": honest(rng)}), files={NOTE: b""})


def attribute(release: Release, rng: np.random.Generator) -> Attempt:
    """An extended attribute of the file."""
    data = pack({"w": honest(rng)})
    return _refused(release, data, lambda at: os.setxattr(at / WEIGHTS, "user.note", NOTE.encode()))


def hole(release: Release, rng: np.random.Generator) -> Attempt:
    """Which blocks of the file are there at all."""
    data = pack({"w": honest(rng)})

    def dig(folder: Path) -> None:
        with (folder / WEIGHTS).open("wb") as file:
            file.seek(len(data) - 4)
            file.write(data[-4:])

    return _refused(release, data, dig)


def second_link(release: Release, rng: np.random.Generator) -> Attempt:
    """Another name for the file, elsewhere."""
    data = pack({"w": honest(rng)})
    return _refused(release, data, lambda at: os.link(at / WEIGHTS, at.parent / NOTE))


def zip_archive(release: Release, rng: np.random.Generator) -> Attempt:
    """Weights that also open as an archive."""
    end = b"PK\x05\x06" + bytes(18)
    return _refused(release, pack({"w": honest(rng)})[: -len(end)] + end)


def tensor_order(release: Release, rng: np.random.Generator) -> Attempt:
    """Which tensor comes first: in the plan's order, or in the library's."""
    tensors = {name: honest(rng) for name in ("beta", "alpha")}
    planned = plan(release, dict.fromkeys(tensors, (SIDE, SIDE)))
    ways = [{WEIGHTS: pack(tensors)}, {WEIGHTS: pack(dict(sorted(tensors.items())))}]
    return _either(planned, ways, lambda header, _: header.index(b"alpha") < header.index(b"beta"))


def header_style(release: Release, rng: np.random.Generator) -> Attempt:
    """The two ways in which writers write JSON."""
    tight = pack({"w": honest(rng)})
    wide = _respell(tight, lambda text: text.replace(",", ", ").replace(":", ": "))
    planned = plan(release, {"w": (SIDE, SIDE)})
    return _either(planned, [{WEIGHTS: tight}, {WEIGHTS: wide}], lambda header, _: b": " in header)


def file_times(release: Release, rng: np.random.Generator) -> Attempt:
    """Which file was written first, and when."""
    data = {WEIGHTS: pack({"w": honest(rng)}), REPORTED: b'{"n":1}'}
    planned = plan(release, {"w": (SIDE, SIDE)}, reported=[_COUNT])

    def read(_: bytes, folder: Path) -> bool:
        return (folder / REPORTED).stat().st_mtime_ns < (folder / WEIGHTS).stat().st_mtime_ns

    attempt = _either(planned, [data, dict(reversed(data.items()))], read)
    shots = [Shot(shot.files, shot.sent, partial(_stamp, tuple(shot.files))) for shot in attempt.shots]
    return Attempt(planned, shots, attempt.read)


def _stamp(order: tuple[str, ...], folder: Path) -> None:
    for second, name in enumerate(order):
        os.utime(folder / name, (second, second))


def reported_form(release: Release, rng: np.random.Generator) -> Attempt:
    """How a number and its neighbours are written."""
    weights = pack({"w": honest(rng)})
    planned = plan(release, {"w": (SIDE, SIDE)}, reported=[_COUNT, _LOSS])
    forms = (b'{"n":1,"loss":0.5}', b'{ "loss" : 5.00e-1 ,\n"n":1 }')
    ways = [{WEIGHTS: weights, REPORTED: form} for form in forms]
    return _either(planned, ways, lambda _, folder: (folder / REPORTED).read_bytes() == forms[1])


def reported_value(release: Release, rng: np.random.Generator) -> Attempt:
    """A value that the job states of itself, in the range that is planned for it."""
    sent = payload(rng, 20, 1)
    stated = json.dumps({"n": int(number(sent)[0])}).encode()
    planned = plan(release, {"w": (SIDE, SIDE)}, reported=[_COUNT])
    shot = Shot({WEIGHTS: pack({"w": honest(rng)}), REPORTED: stated}, sent.T)
    return Attempt(planned, [shot], lambda r: bits_of(np.array(r.reported()["n"]), 20).T)


def _refused(
    release: Release, data: bytes, finish: Callable[[Path], None] | None = None, files: Files | None = None
) -> Attempt:
    """A file in place of the weights, or more beside it."""
    return _outside(plan(release, {"w": (SIDE, SIDE)}), Shot({WEIGHTS: data, **(files or {})}, _SENT, finish))


def _respelled(release: Release, rng: np.random.Generator, spell: Callable[[str], str]) -> Attempt:
    """Honest weights under another header that readers take for the same, or for more."""
    return _refused(release, _respell(pack({"w": honest(rng)}), spell))


def _outside(planned: ReleasePlan, shot: Shot) -> Attempt:
    """Should it get by, all of it is taken to have arrived: nobody has to find it first."""
    return Attempt(planned, [shot], lambda _: shot.sent)


def _respell(data: bytes, spell: Callable[[str], str]) -> bytes:
    length = int.from_bytes(data[:8], "little")
    return frame(spell(data[8 : 8 + length].decode().rstrip()).encode(), data[8 + length :])


def _either(planned: ReleasePlan, ways: Sequence[Files], read: Callable[[bytes, Path], bool]) -> Attempt:
    """A bit a run: which of two ways the output is written; `read` gets the released header and folder."""
    shots = [Shot(ways[n % 2], np.full((1, 1), n % 2, dtype=np.uint8)) for n in range(SHOTS)]

    def bit(released: Released) -> Bits:
        data = released.bytes(WEIGHTS)
        header = data[8 : 8 + int.from_bytes(data[:8], "little")]
        return np.full((1, 1), read(header, released.folder), dtype=np.uint8)

    return Attempt(planned, shots, bit)
