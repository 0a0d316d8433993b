"""A node that decodes an archive and holds the records, as `test_pixel_confinement.py` has it run and die.

    python confined_node.py SOURCE SHARDS MEMORY_BYTES

SOURCE is a folder with DICOM files and `args.json`, which says what is expected of each. It prints one line
once every record is prepared and was served, then waits for a line.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Final

import numpy as np

from rapha.node.datasets import memory
from rapha.node.sources.imaging.order import Args, Expect, RenderOrder, Setup, encode
from rapha.node.sources.workers.interface import Item, Task
from rapha.node.sources.workers.pool import Pool
from rapha.runtime.broker.prepared import Builder, PreparedStore
from rapha.spec.transforms import Form, Normalise, Step, Window

SHAPE: Final = (32, 64)
TO_BYTES: Final = Normalise(mean=0, scale=1 / 255)
STEPS: Final[dict[str, tuple[str, tuple[Step, ...]]]] = {
    "stored": ("int16", ()),
    "rescaled": ("float32", ()),
    "half": ("float32", (Step(dtype="float16"),)),
    "windowed": (
        "float32",
        (Step(window=Window(center=0, width=4000)), Step(normalise=TO_BYTES), Step(dtype="uint8")),
    ),
}  # fmt: skip
SETUP: Final = Setup(
    "frame",
    tuple(RenderOrder(name, "pixels", Form(dtype, SHAPE), steps) for name, (dtype, steps) in STEPS.items()),
)


def prepare(source: Path, shards: Path, memory_bytes: int, *, workers: int = 2) -> PreparedStore:
    """Every file of `source`, decoded and put, in the order of `args.json`."""
    expected: dict[str, list[str]] = json.loads((source / "args.json").read_text())
    items = [
        Item(encode(Args(0, (Expect(uid, who),))), (name,)) for name, (uid, who) in sorted(expected.items())
    ]
    forms = {order.field: order.after for order in SETUP.renders}
    builder = Builder(forms, len(items), shards=shards, memory_bytes=memory_bytes)
    with Pool(
        Task.DECODE, encode(SETUP), folder=source, workers=workers, output_bytes=SETUP.output_bytes
    ) as pool:
        for answer in pool.run(items):
            if answer.quarantine:
                raise AssertionError((items[answer.ordinal].paths, answer.quarantine))
            at = 0
            for name, form in forms.items():
                builder.put(answer.ordinal, name, answer.output[at : at + form.nbytes])
                at += form.nbytes
    every = np.arange(len(items))
    return builder.finish(every, {}, np.zeros(len(items), np.int64), [])


def main(source: Path, shards: Path, memory_bytes: int) -> None:
    memory.harden()
    store = prepare(source, shards, memory_bytes)
    for field in store.fields:
        out = np.empty((len(store), *field.shape), field.dtype)
        store.gather(field.name, np.arange(len(store)), out)
    print(store.confinement, flush=True)
    sys.stdin.readline()
    store.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
