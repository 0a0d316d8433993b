"""Index a mount of DICOM files against a bare loop of pydicom.

    python benchmarks/dicom_index.py [--files N] [--rounds N] [--memory N]

10,000 copies of pydicom's CT_small (a real CT with 258 elements), each with its own UIDs, all in the page
cache. Ours: `DicomSource().open`, end to end through two walled-off workers, their start and the index of
patients, UIDs, dates and slice positions included. Theirs: `dcmread(stop_before_pixels=True)` in one process,
times the number of workers. Rounds alternate and medians count. One JSON line a comparison:
{"name", "ours", "theirs", "ratio", "unit"}; unit is files a second. With `--memory N`, N instances are
described and indexed without files, and bytes for each are printed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from pydicom import dcmread
from pydicom.data import get_testdata_file

from rapha.node.sources.dicom import DicomSource
from rapha.node.sources.imaging.attributes import Decoder, Instance
from rapha.node.sources.imaging.records import ImagingRecords, prepare_plan
from rapha.node.sources.interface import Surroundings
from rapha.node.sources.workers.interface import Item
from rapha.spec.dataset import DatasetManifest, Field
from rapha.testing import dicoms

WORKERS = 2


def manifest() -> DatasetManifest:
    """What is indexed: the fields of an ordinary imaging dataset."""
    return dicoms.manifest(
        dicoms.pixels((128, 128)),
        Field(name="position", dtype="float32", path="@slice_position"),
        Field(name="modality", dtype="string", path="Modality"),
        Field(name="study", dtype="date", path="StudyDate"),
        Field(name="thickness", dtype="float32", path="SliceThickness"),
    )


def write(folder: Path, count: int) -> list[Path]:
    """`count` files in folders of 100, each its own instance; a hundred of them are a patient's."""
    name = get_testdata_file("CT_small.dcm")
    source = Path(str(name)).read_bytes()
    uid = str(dcmread(str(name)).SOPInstanceUID).encode()
    paths = []
    for number in range(count):
        path = folder / f"{number // 100:05d}" / f"{number:07d}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source.replace(uid, uid[:-8] + b"%08d" % (10_000_000 + number)))
        paths.append(path)
    return paths


def ours(root: Path, count: int) -> float:
    """Files a second, of an instance that knows none of them."""
    around = Surroundings(root, WORKERS, lambda what, done, total: None)
    start = time.perf_counter()
    records = DicomSource().open(manifest(), around)
    taken = time.perf_counter() - start
    assert len(records.index.patients) == count and not records.index.quarantine.any()
    records.close()
    return count / taken


def theirs(paths: list[Path]) -> float:
    """Files a second of pydicom alone, on as many cores."""
    start = time.perf_counter()
    for path in paths:
        dcmread(path, stop_before_pixels=True)
    return WORKERS * len(paths) / (time.perf_counter() - start)


class _Nowhere:
    pool_folder = None
    parallel = 1

    def item(self, args: bytes, instances: Sequence[Instance], frame: int) -> Item:
        """Never asked for."""
        raise NotImplementedError


def memory(count: int) -> None:
    """Bytes held for each of `count` instances, as index and as what it is made of, at most and after."""
    around = Surroundings(Path.cwd(), 1, lambda what, done, total: None)
    plan = prepare_plan(manifest(), around)
    tracemalloc.start()
    decoder = Decoder(plan.setup.wanted)
    paths = (f"{n // 100:05d}/{n:07d}.dcm" for n in range(count))
    instances = [decoder.decode(_reply(n, plan.setup.wanted), path) for n, path in enumerate(paths)]
    records = ImagingRecords(manifest(), instances, [], _Nowhere(), around, reading=plan)
    held, most = (size / count for size in tracemalloc.get_traced_memory())
    records.close()
    line = {"name": "dicom.index.memory", "held": held, "most": most, "unit": "bytes/instance", "of": count}
    print(json.dumps(line))


def _reply(n: int, wanted: Sequence[str]) -> bytes:
    """What a worker says of the nth image: a hundred make a series, three series a patient."""
    strings = [f"1.2.826.0.1.3680043.8.498.{10**24 + n}", f"1.2.826.{10**24 + n // 100}"]
    strings += [f"1.2.826.{n // 300}", f"1.2.3.{n // 300}", f"P{n // 300}"]
    strings += ["1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1", "CT"]
    place = [[-125.5, -130.25, n % 100 * 2.5], [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]]
    values = [{"StudyDate": "20200101", "SliceThickness": 2.5}.get(name) for name in wanted]
    return json.dumps([strings, [1, 512, 512, 1, 0], *place, values, []]).encode()


def main() -> None:
    """Print the JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=int, default=0)
    options = parser.parse_args()
    if options.memory:
        memory(options.memory)
        return
    with tempfile.TemporaryDirectory() as name:
        paths = write(Path(name) / "pacs", options.files)
        dicoms.seal(Path(name) / "pacs")
        rounds = [(ours(Path(name), options.files), theirs(paths)) for _ in range(options.rounds)]
        for path in [Path(name) / "pacs", *(Path(name) / "pacs").iterdir()]:
            path.chmod(0o700)
    mine, other = median(a for a, _ in rounds), median(b for _, b in rounds)
    line = {
        "name": "dicom.index_vs_pydicom",
        "ours": round(mine),
        "theirs": round(other),
        "ratio": round(mine / other, 3),
        "unit": "files/s",
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
