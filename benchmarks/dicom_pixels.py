"""CT from a mount against MONAI's reader, and a cached epoch against memcpy.

    python benchmarks/dicom_pixels.py [--files N] [--records N] [--rounds N]

CT slices of 512 x 512, uncompressed, int16 with a rescale, under a real scanner's header of 258 elements;
float32 in HU comes out. Ours also checks identity and hashes every byte. The cached epoch goes from a
prepared store in memory through a broker in a process of its own into the loader, shuffled; the other side
copies the same bytes once, batch by batch. Rounds take turns, and medians count. One JSON line a comparison:
{"name", "ours", "theirs", "ratio", "unit"}.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np

from rapha.node.sources.imaging import decode
from rapha.node.sources.imaging.order import Args, Expect, RenderOrder, Setup, encode
from rapha.node.sources.workers.interface import Item, Task
from rapha.node.sources.workers.pool import Pool
from rapha.runtime.broker.meter import Meter
from rapha.runtime.broker.prepared import Builder
from rapha.runtime.broker.serve import Broker
from rapha.spec.transforms import Form
from rapha_trainer import RaphaDataLoader
from rapha_trainer import session as sessions

SIDE, BATCH = 512, 16
POOLED = 20
"""How often each file comes in a round of the pool, whose start is part of it."""
FORM = Form("float32", (SIDE, SIDE))
SETUP = Setup("frame", (RenderOrder("pixels", "pixels", FORM),))
Round = Callable[[], float]


def write_mount(folder: Path, files: int) -> bytes:
    """Slices whose pixels differ, and the arguments that fit each of them."""
    import pydicom
    from pydicom.data import get_testdata_file

    data = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
    data.Rows = data.Columns = SIDE
    generator = np.random.default_rng(1)
    for number in range(files):
        data.PixelData = generator.integers(0, 3000, (SIDE, SIDE), dtype=np.int16).tobytes()
        data.save_as(folder / f"{number}.dcm")
    return encode(Args(0, (Expect(str(data.SOPInstanceUID), str(data.PatientID)),)))


def in_process(folder: Path, files: int, args: bytes) -> Round:
    """Our decoding of each file, in this process: images a second."""
    work = decode.make(encode(SETUP))
    out = memoryview(bytearray(SETUP.output_bytes))

    def epoch() -> float:
        begun = time.perf_counter()
        for number in range(files):
            with (folder / f"{number}.dcm").open("rb") as file:
                work(args, [file], out)
        return files / (time.perf_counter() - begun)

    return epoch


def pooled(folder: Path, files: int, args: bytes, workers: int) -> Round:
    """The same in walled-off workers, with their start and the way of the pixels back to this process."""

    def epoch() -> float:
        begun, done = time.perf_counter(), 0
        items = (Item(args, (f"{number % files}.dcm",)) for number in range(POOLED * files))
        setup = encode(SETUP)
        with Pool(
            Task.DECODE, setup, folder=folder, workers=workers, output_bytes=SETUP.output_bytes
        ) as pool:
            for answer in pool.run(items):
                assert not answer.quarantine
                done += 1
        assert done == POOLED * files
        return done / (time.perf_counter() - begun)

    return epoch


def monai(folder: Path, files: int) -> Round:
    """MONAI's reader over pydicom, pixels only."""
    from monai.transforms.io.array import LoadImage

    load = LoadImage(reader="PydicomReader", image_only=True)

    def epoch() -> float:
        begun = time.perf_counter()
        for number in range(files):
            assert load(folder / f"{number}.dcm").shape == (SIDE, SIDE)
        return files / (time.perf_counter() - begun)

    return epoch


@contextlib.contextmanager
def cached(records: int, folder: Path) -> Iterator[Round]:
    """Epochs of a prepared store through a broker and the loader: GB a second."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        theirs.close()
        _serve(records, folder, ours)
    ours.close()
    seeds = iter(range(10**6))

    def epoch() -> float:
        os.environ["RAPHA_BROKER_FD"] = str(theirs.fileno())
        loader = RaphaDataLoader(BATCH, shuffle=True, seed=next(seeds))
        begun, total = time.perf_counter(), 0
        for batch in loader:
            total += len(batch["pixels"]) + 0 * int(batch["pixels"][0, 0, 0])
        assert total == records
        return records * FORM.nbytes / (time.perf_counter() - begun) / 1e9

    yield epoch
    sessions._connected[theirs.fileno()].close()
    theirs.close()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, "the count is wrong"


def _serve(records: int, folder: Path, ours: socket.socket) -> None:
    builder = Builder({"pixels": FORM}, records, shards=folder, memory_bytes=2**40)
    generator = np.random.default_rng(2)
    for ordinal in range(records):
        builder.put(ordinal, "pixels", generator.random((SIDE, SIDE), dtype=np.float32).data)
    patients = np.arange(records)
    store = builder.finish(np.arange(records), {}, patients, ())
    meter = Meter.create(folder / "journal", patients=patients, cap=records, key=bytes(range(32)))
    usage = Broker(store, {"train": range(records), "test": range(0)}, meter).serve(ours)
    store.close()
    os._exit(usage.unique_records != records)


def memcpy(records: int) -> Round:
    """The same bytes, copied once into a buffer of one batch: GB a second."""
    data = np.random.default_rng(2).random((records, SIDE, SIDE), dtype=np.float32)
    slot = np.empty((BATCH, SIDE, SIDE), dtype=np.float32)

    def epoch() -> float:
        begun = time.perf_counter()
        for start in range(0, records, BATCH):
            part = data[start : start + BATCH]
            np.copyto(slot[: len(part)], part)
        return records * FORM.nbytes / (time.perf_counter() - begun) / 1e9

    return epoch


def race(name: str, ours: Round, theirs: Round, rounds: int, unit: str) -> None:
    """Print the comparison, after one round of each that doesn't count."""
    speeds: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for side in (0, 1) if number % 2 else (1, 0):
            speed = (ours, theirs)[side]()
            if number:
                speeds[side].append(speed)
    ratio = median(a / b for a, b in zip(*speeds, strict=True))
    figures = {"ours": round(median(speeds[0]), 2), "theirs": round(median(speeds[1]), 2)}
    print(json.dumps({"name": name, **figures, "ratio": round(ratio, 2), "unit": unit}))


def main() -> None:
    """Run the comparisons."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=100)
    parser.add_argument("--records", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with cached(given.records, folder) as epoch:
            race("dicom.cached_epoch_vs_memcpy", epoch, memcpy(given.records), given.rounds, "GB/s")
        mount = folder / "mount"
        mount.mkdir()
        args = write_mount(mount, given.files)
        theirs = monai(mount, given.files)
        race("dicom.ct_vs_monai", in_process(mount, given.files, args), theirs, given.rounds, "images/s")
        workers = len(os.sched_getaffinity(0))
        pool = pooled(mount, given.files, args, workers)
        race("dicom.ct_pool_vs_monai", pool, theirs, given.rounds, "images/s")


if __name__ == "__main__":
    main()
