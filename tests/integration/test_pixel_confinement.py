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
import subprocess
import sys
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
