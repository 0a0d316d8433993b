"""Decoded pixels are on no disk: the whole new content of it is searched for pixels that are known.

An archive of images, each a noise that occurs nowhere else, is decoded by real workers into memory and into
encrypted shards. While the node lives, after it ended, and after it was killed, every file that it could have
written is searched for runs of those pixels in each form they take.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import mmap
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from rapha.node.datasets import control
from rapha.node.datasets.client import DatasetProcess
from rapha.node.datasets.pseudonyms import HospitalKey
from rapha.spec import cohort
from rapha.spec.disclosure import Price
from rapha.spec.refusals import Refused
from rapha.testing import dicoms
from rapha_trainer.session import BrokerSource
from rapha_trainer.source import Epoch

NODE: Final = Path(__file__).parent / "confined_node.py"
RUN: Final = 64
"""Bytes of a pattern: so many bytes of noise are found again by no accident."""
SYNTAXES: Final = (
    ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian,
    RLELossless, JPEGLSLossless, JPEG2000Lossless,
)  # fmt: skip
MODES: Final = {"memory": 2**30, "encrypted-shards": 20_000}
"""The bytes of memory that the node may spend; the archive is larger than the second."""
FIELDS: Final = 4
"""Rendered fields, each a file of its own where they are encrypted."""
ENDS: Final = {"close": None, "kill -9": signal.SIGKILL, "crash": signal.SIGSEGV}


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("confined_node", NODE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Archive:
    """A folder of images and the patterns of their pixels, in every form."""

    folder: Path
    patterns: dict[str, bytes]


def image(number: int, pixels: NDArray[np.int16], syntax: UID, path: Path) -> tuple[str, str]:
    """Write a CT image; returns its SOP Instance UID and Patient ID."""
    uid, patient = UID(f"1.2.826.0.1.3680043.8.498.{number + 1}"), f"PATIENT{number}"
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = CTImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = uid
    data.PatientID, data.Modality = patient, "CT"
    data.StudyInstanceUID = data.SeriesInstanceUID = "1.2.3.4"
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
    data.RescaleSlope, data.RescaleIntercept = "0.5", "-100"
    stored = pixels.astype(">i2" if syntax == ExplicitVRBigEndian else "<i2").tobytes()
    data.PixelData = stored
    data["PixelData"].VR = "OW"
    if syntax in (RLELossless, JPEG2000Lossless, JPEGLSLossless):
        _compress(data, pixels, syntax)
    data.save_as(
        path,
        enforce_file_format=True,
        implicit_vr=syntax == ImplicitVRLittleEndian,
        little_endian=syntax != ExplicitVRBigEndian,
    )
    return uid, patient


def _compress(data: Dataset, pixels: NDArray[np.int16], syntax: UID) -> None:
    if syntax == JPEGLSLossless:
        import jpeg_ls

        data.PixelData = encapsulate([bytes(jpeg_ls.encode_array(pixels.view(np.uint16)))])
        return
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    plugin = "gdcm" if syntax == RLELossless else "pylibjpeg"
    data.compress(syntax, encoding_plugin=plugin, generate_instance_uid=False)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    folder = tmp_path_factory.mktemp("archive")
    patterns: dict[str, bytes] = {}
    rng, expected, node = np.random.default_rng(), {}, load()
    for number, syntax in enumerate(SYNTAXES):
        pixels = rng.integers(-4000, 4000, node.SHAPE, dtype=np.int16)
        expected[f"{number}.dcm"] = image(number, pixels, syntax, folder / f"{number}.dcm")
        row = pixels[11]
        patterns |= {
            f"{number} little endian": row.astype("<i2").tobytes()[:RUN],
            f"{number} big endian": row.astype(">i2").tobytes()[:RUN],
            f"{number} float32": (row * np.float32(0.5) - 100).astype("<f4").tobytes()[:RUN],
            f"{number} float64": (row * 0.5 - 100).astype("<f8").tobytes()[:RUN],
            f"{number} float16": (row * np.float32(0.5) - 100).astype("<f2").tobytes()[:RUN],
        }
    (folder / "args.json").write_text(json.dumps(expected))
    # What the node holds is searched for as it is too, the windowed bytes among it.
    store = node.prepare(folder, tmp_path_factory.mktemp("none"), 2**30)
    for field in store.fields:
        out = np.empty((len(SYNTAXES), *field.shape), field.dtype)
        store.gather(field.name, np.arange(len(SYNTAXES)), out)
        for number in range(len(SYNTAXES)):
            run = out[number, 11].tobytes()[:RUN]
            assert len(set(run)) > RUN // 4
            patterns[f"{number} {field.name}"] = run
    store.close()
    for number in range(len(SYNTAXES)):
        # The arithmetic above is what the node does, so its variants are of the right values.
        assert patterns[f"{number} rescaled"] == patterns[f"{number} float32"]
        assert patterns[f"{number} half"] == patterns[f"{number} float16"]
    return Archive(folder, patterns)


def search(files: Iterable[Path], patterns: dict[str, bytes]) -> list[str]:
    """Which pattern is in which file."""
    found = []
    for path in files:
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            if size := os.fstat(file.fileno()).st_size:
                with mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ) as content:
                    found += [f"{name} in {path}" for name, run in patterns.items() if content.find(run) >= 0]
    return found


def below(*folders: Path) -> Iterator[Path]:
    """Every regular file under `folders`."""
    for folder in folders:
        for root, _, names in os.walk(folder):
            yield from (p for name in names if (p := Path(root, name)).is_file() and not p.is_symlink())


def unnamed(process: int) -> list[Path] | None:
    """Files without a name that `process` holds on a disk; None where it may not be looked at."""
    folder = Path(f"/proc/{process}/fd")
    try:
        return [path for path in folder.iterdir() if _is_unnamed(path)]
    except PermissionError:
        return None


def _is_unnamed(path: Path) -> bool:
    target = str(path.readlink())
    return target.startswith("/") and target.endswith(" (deleted)") and not target.startswith("/memfd:")


@dataclass(frozen=True)
class Node:
    """A running node and the only folders that it was told of."""

    process: subprocess.Popen[str]
    work: Path
    temporary: Path

    @property
    def folders(self) -> Sequence[Path]:
        return (self.work, self.temporary, Path("/dev/shm"))


@contextlib.contextmanager
def running(archive: Archive, root: Path, mode: str) -> Iterator[Node]:
    """A node that has prepared the archive."""
    work, temporary = root / "work", root / "tmp"
    work.mkdir()
    temporary.mkdir()
    command = [sys.executable, str(NODE), str(archive.folder), str(work / "shards"), str(MODES[mode])]
    environment = {"PATH": os.environ["PATH"], "TMPDIR": str(temporary), "PYTHONDONTWRITEBYTECODE": "1"}
    pipe: Any = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, cwd=work, env=environment
    ) as process:
        assert process.stdout
        try:
            assert process.stdout.readline().strip() == mode
            yield Node(process, work, temporary)
        finally:
            process.kill()


def end(node: Node, how: signal.Signals | None) -> None:
    if how is None:
        node.process.communicate("end\n", timeout=20)
        assert node.process.returncode == 0
    else:
        node.process.send_signal(how)
        assert node.process.wait(20) == -how


@pytest.mark.parametrize("how", sorted(ENDS))
@pytest.mark.parametrize("mode", sorted(MODES))
def test_no_pixel_is_in_any_file(archive: Archive, tmp_path: Path, mode: str, how: str) -> None:
    with running(archive, tmp_path, mode) as node:
        assert search(below(*node.folders), archive.patterns) == []
        held = unnamed(node.process.pid)
        if held is not None:  # else only root may look, since the node is closed to its own user
            assert len(held) == (FIELDS if mode == "encrypted-shards" else 0)
            assert all(path.stat().st_size for path in held)
            assert search(held, archive.patterns) == []
        end(node, ENDS[how])
        assert search(below(*node.folders), archive.patterns) == []
        assert list(below(node.work, node.temporary)) == []


def test_the_search_finds_what_is_there(archive: Archive, tmp_path: Path) -> None:
    (tmp_path / "deep/er").mkdir(parents=True)
    for number, (name, run) in enumerate(archive.patterns.items()):
        planted = tmp_path / "deep/er" / str(number)
        planted.write_bytes(os.urandom(1000 + number) + run + os.urandom(100))
        assert f"{name} in {planted}" in search(below(tmp_path), {name: run})
    assert search(below(archive.folder), archive.patterns)


PATIENTS: Final = 40
HOSPITAL: Final = dicoms.manifest(dicoms.pixels((32, 64))).model_copy(
    update={
        "minimum_cell": 3,
        "test_fraction": 0.3,
        "organisations": ("demo-ai",),
        "consent_basis": "made for a test",
        "purposes": ("research",),
    }
)


@dataclass(frozen=True)
class Hospital:
    """A PACS in `root`, beside the key and the list of opt-outs, and what its pixels look like."""

    root: Path
    patterns: dict[str, bytes]

    def request(self, mode: str) -> control.Resolve:
        shards = str(self.root / "shards")
        return control.Resolve(
            manifest=HOSPITAL,
            folder=str(self.root),
            means=control.Means(workers=2, memory_bytes=MODES[mode], shards=shards),
            transforms={},
            cohort=cohort.parse({"all": []}),
            organisation="demo-ai",
            purpose="research",
            max_records=PATIENTS,
            job_id="ab" * 32,
            key_path=str(self.root / "phi.key"),
            journal_path=str(self.root / "meter.journal"),
            ledger=str(self.root / "ledger"),
        )


@pytest.fixture
def hospital(tmp_path: Path) -> Iterator[Hospital]:
    patterns, rng = {}, np.random.default_rng()
    for number in range(PATIENTS):
        data = rng.integers(-4000, 4000, (32, 64), dtype=np.int16)
        image = dicoms.Image(patient=f"P{number}", size=data.shape, data=data)
        dicoms.write(tmp_path / "pacs" / str(number), image)
        served = data[11] - np.int16(1024)
        for name, row in (("stored", data[11]), ("served", served)):
            for kind in ("<i2", ">i2", "<f4", "<f8"):
                patterns[f"{number} {name} {kind}"] = row.astype(kind).tobytes()[:RUN]
    dicoms.seal(tmp_path / "pacs")
    HospitalKey.create(tmp_path / "phi.key")
    (tmp_path / "opt-outs.txt").write_text("")
    yield Hospital(tmp_path, patterns)
    (tmp_path / "pacs").chmod(0o755)


def kin(process: int) -> Iterator[int]:
    """A process and all below it."""
    yield process
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for child in children.read_text().split():
                yield from kin(int(child))


def pixels_in(job: socket.socket, split: control.Split) -> bytes:
    epoch = Epoch(
        batch_size=8, shuffle=split == "train", seed=0, number=0, drop_last=False, indices=None, prefetch=None
    )
    source = BrokerSource(job.fileno(), split)
    try:
        return b"".join(np.array(batch["pixels"]).tobytes() for batch in source.batches(epoch))
    finally:
        source._socket.close()


class Disk:
    """What is searched: all that the processes of a job were told of, hold open, or may make."""

    def __init__(self, hospital: Hospital) -> None:
        self._hospital = hospital
        self._temporary = {path for place in self._places() for path in place.iterdir()}

    def search(self, process: int | None = None) -> list[str]:
        """Which pattern is where."""
        new = [path for place in self._places() for path in place.iterdir() if path not in self._temporary]
        files = [*below(self._hospital.root, *filter(Path.is_dir, new)), *filter(Path.is_file, new)]
        for each in () if process is None else kin(process):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                files += unnamed(each) or []
        pacs = self._hospital.root / "pacs"
        return search((file for file in files if not file.is_relative_to(pacs)), self._hospital.patterns)

    def left(self) -> list[Path]:
        """Files of the hospital that the job should not have left."""
        return list(below(self._hospital.root / "shards"))

    @staticmethod
    def _places() -> set[Path]:
        return {Path(place) for place in (tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm")}


@pytest.mark.parametrize("end", ["close", "kill -9", "kill -9 while decoding"])
@pytest.mark.parametrize("mode", sorted(MODES))
def test_no_pixel_of_a_whole_job_is_in_any_file(hospital: Hospital, mode: str, end: str) -> None:
    disk = Disk(hospital)
    found: list[str] = []
    stages: list[str] = []

    def tell(told: control.Progress) -> None:
        stages.append(told.stage)
        found.extend(disk.search(process.pid))
        if told.stage == "decoding" and end == "kill -9 while decoding":
            process.kill()

    with DatasetProcess(tell=tell) as process:
        process.resolve(hospital.request(mode))
        assert disk.search(process.pid) == []
        if end == "kill -9 while decoding":
            with pytest.raises(Refused, match="the dataset process ended"):
                process.prepare()
        else:
            assert process.prepare().confinement == mode
            process.reserve(Price(bits=1000))
            served = b""
            splits: tuple[control.Split, ...] = ("train", "test")
            for split in splits:
                with process.serve(split) as job:
                    served += pixels_in(job, split)
                assert disk.search(process.pid) == []
            assert all(hospital.patterns[f"{number} served <i2"] in served for number in range(PATIENTS))
            if end == "kill -9":
                process.kill()
    assert {"indexing", "decoding"} <= set(stages)
    assert found == [] and disk.search() == [] and disk.left() == []
    planted = hospital.root / "planted"
    planted.write_bytes(hospital.patterns["7 stored <i2"])
    assert disk.search()


def test_what_failed_is_not_prepared_from_again_before_it_is_resolved_again(hospital: Hospital) -> None:
    (hospital.root / "shards").write_text("no folder")
    with DatasetProcess() as process:
        process.resolve(hospital.request("encrypted-shards"))
        for code in ("node.internal", "policy.conflict"):
            with pytest.raises(Refused) as refused:
                process.prepare()
            assert refused.value.code == code
        process.resolve(hospital.request("memory"))
        assert process.prepare().records == PATIENTS


@pytest.mark.slow
def test_nothing_new_on_the_whole_disk_holds_a_pixel(
    archive: Archive, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    stamp = tmp_path_factory.mktemp("stamp") / "stamp"
    stamp.write_bytes(b"")
    os.utime(stamp, (stamp.stat().st_mtime - 2,) * 2)
    for mode in MODES:
        (tmp_path / mode).mkdir()
        with running(archive, tmp_path / mode, mode) as node:
            end(node, signal.SIGKILL)
    planted = tmp_path / "planted"
    shutil.copyfile(archive.folder / "0.dcm", planted)
    finder = shutil.which("find")
    assert finder
    command = [finder, "/", "-xdev", "-type", "f", "-newer", str(stamp), "-size", "+0", "-print0"]
    listed = subprocess.run(command, capture_output=True, check=False).stdout.split(b"\0")
    new = [Path(os.fsdecode(name)) for name in listed if name]
    ours = [path for path in new if not path.is_relative_to(archive.folder) and path != planted]
    assert planted in new
    assert search([planted], archive.patterns)
    assert search((path for path in ours if os.access(path, os.R_OK)), archive.patterns) == []
