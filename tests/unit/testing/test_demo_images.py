"""The demo hospital's images: a volume written as CT, public files as they are, and a split that says so."""

from __future__ import annotations

import io
import plistlib
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

from rapha.node.datasets.pseudonyms import held_out
from rapha.spec.dataset import LEAST_CELL, DatasetManifest
from rapha.spec.refusals import Refused
from rapha.testing import head_ct, imaging, world
from rapha.testing.head_ct import Volume

SHAPE = (3, 4, 5)
VALUES = np.arange(-1024, -1024 + 60 * 60, 60, dtype="<i2").reshape(SHAPE)
ABOUT: dict[str, Any] = {
    "modality": "CT",
    "spacing": [0.5, 0.5, 2.0],
    "matrix": {"dtype": "int16", "filename": "matrix.dat", "shape": list(SHAPE)},
}


def project(path: Path, about: Any, matrix: bytes) -> Path:
    parts = {
        "p/main.plist": about if isinstance(about, bytes) else plistlib.dumps(about),
        "p/matrix.dat": matrix,
    }
    with tarfile.open(path, "w:gz") as tar:
        for name, data in parts.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[imaging.Archive]:
    folder = tmp_path_factory.mktemp("hospital")
    yield imaging.write_archive(folder / "archive")
    world.destroy(folder)


def test_a_project_is_read_upright_and_from_its_own_description(tmp_path: Path) -> None:
    volume = head_ct.read_volume(project(tmp_path / "v", ABOUT, VALUES.tobytes()))
    assert (volume.pixel_mm, volume.slice_mm) == (0.5, 2.0)
    assert np.array_equal(volume.values, VALUES[:, ::-1, :])


def changed(**changes: Any) -> dict[str, Any]:
    return {**ABOUT, **changes}


@pytest.mark.parametrize(
    ("about", "matrix"),
    [
        (b"not a plist", VALUES.tobytes()),
        (b'<?xml version="1.0"?><plist><dict>', VALUES.tobytes()),
        ({}, VALUES.tobytes()),
        ([], VALUES.tobytes()),
        (changed(modality="MR"), VALUES.tobytes()),
        (changed(spacing=[0.5, 0.6, 2.0]), VALUES.tobytes()),
        (changed(spacing=[0.5, 0.5, 0.0]), VALUES.tobytes()),
        (changed(spacing=[0.5, 0.5]), VALUES.tobytes()),
        (changed(matrix={**ABOUT["matrix"], "dtype": "float64"}), VALUES.tobytes()),
        (changed(matrix={**ABOUT["matrix"], "shape": [3, 4]}), VALUES.tobytes()),
        (changed(matrix={**ABOUT["matrix"], "shape": [3, 4, -5]}), VALUES.tobytes()),
        (changed(matrix={**ABOUT["matrix"], "shape": [2**20, 2**20, 2**20]}), VALUES.tobytes()),
        (changed(matrix={**ABOUT["matrix"], "filename": "../../etc/passwd"}), VALUES.tobytes()),
        (ABOUT, VALUES.tobytes()[:-1]),
        (ABOUT, VALUES.tobytes() + b"\0"),
    ],
)  # fmt: skip
def test_what_is_no_ct_project_is_told_from_one(tmp_path: Path, about: Any, matrix: bytes) -> None:
    with pytest.raises(ValueError, match=r"/v: "):
        head_ct.read_volume(project(tmp_path / "v", about, matrix))


def test_what_is_no_tar_is_told_from_one(tmp_path: Path) -> None:
    (tmp_path / "v").write_bytes(b"\x1f\x8b nothing")
    with pytest.raises(ValueError, match="not an InVesalius project"):
        head_ct.read_volume(tmp_path / "v")


def test_slices_are_ct_images_whose_values_and_places_are_the_volumes() -> None:
    volume = Volume(VALUES, 0.5, 2.0)
    images = [pydicom.dcmread(io.BytesIO(data)) for data in head_ct.head_slices(volume)]
    for number, image in enumerate(images):
        stored: NDArray[Any] = image.pixel_array * image.RescaleSlope + image.RescaleIntercept
        assert np.array_equal(stored, VALUES[number])
        assert image.SOPClassUID == pydicom.uid.CTImageStorage
        assert image.ImagePositionPatient == [0, 0, 2.0 * number]
        assert image.PixelSpacing == [0.5, 0.5]
    assert len({image.SOPInstanceUID for image in images}) == 3
    assert len({(i.StudyInstanceUID, i.SeriesInstanceUID, i.FrameOfReferenceUID) for i in images}) == 1


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_the_archive_is_read_only_and_holds_each_image_once(archive: imaging.Archive) -> None:
    for path in (archive.folder, *archive.folder.rglob("*")):
        assert not path.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH)
    headers = [pydicom.dcmread(p, specific_tags=["SOPInstanceUID", "Rows"]) for p in sorted(archive.files)]
    uids = [header.get("SOPInstanceUID") for header in headers]
    assert len(uids) > 30
    assert len(set(uids)) == len(uids)
    assert all(header.Rows >= 32 for header in headers)
    assert set(archive.patients) <= set(archive.files.values())


@pytest.mark.skipif(not head_ct.HEAD_CT.is_file(), reason="invesalius-examples is not installed")
def test_the_head_ct_is_among_them(archive: imaging.Archive) -> None:
    slices = [path for path, patient in archive.files.items() if patient == head_ct.HEAD_PATIENT]
    assert len(slices) == 108
    middle = pydicom.dcmread(archive.folder / "head-ct" / "054.dcm")
    # Air around, brain in the middle.
    values = middle.pixel_array.astype(int) + int(middle.RescaleIntercept)
    assert values[:8, :8].max() < -900
    assert 0 < np.median(values[110:146, 110:146]) < 80


def test_the_split_is_as_the_note_says(archive: imaging.Archive, tmp_path: Path) -> None:
    manifest = DatasetManifest.parse(imaging.write_dicom(tmp_path / "data").dump())
    names = sorted(archive.patients)
    held = held_out(manifest.salt, manifest.dataset, names, manifest.test_fraction)
    test = [archive.patients[n] for n, out in zip(names, held, strict=True) if out]
    train = [archive.patients[n] for n, out in zip(names, held, strict=True) if not out]
    for side in (test, train):
        assert frozenset.union(*side) == set(imaging.CODES)
    assert sum("CT" in found for found in test) >= imaging.CELL
    assert sum(bool(found - {"CT"}) for found in test) >= imaging.CELL
    assert not dict(zip(names, held, strict=True)).get(head_ct.HEAD_PATIENT)
    assert manifest.minimum_cell == imaging.CELL < LEAST_CELL
    (note, *_) = manifest.provenance.notes
    assert f"Only {len(names)} patients" in note
    assert "lowered from 10 to 3" in note
    world.destroy(tmp_path / "data")


def test_a_machine_without_the_public_files_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imaging, "_roots", lambda: iter(()))
    with pytest.raises(Refused) as caught:
        imaging.write_dicom(tmp_path / "data")
    assert caught.value.code == "node.dataset_missing"
    world.destroy(tmp_path / "data")


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_without_the_head_ct_nothing_speaks_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imaging, "HEAD_CT", tmp_path / "none")
    about = imaging.write_dicom(tmp_path / "data").provenance
    said = " ".join((about.source, about.licence, *about.notes))
    assert "head" not in said.lower()
    assert "GPL" not in said
    assert "Identifiers are as in the public files" in said
    world.destroy(tmp_path / "data")


def test_a_head_ct_that_can_not_be_read_has_a_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "v"
    broken.write_bytes(b"\x1f\x8b nothing")
    monkeypatch.setattr(imaging, "HEAD_CT", broken)
    monkeypatch.setattr(imaging, "read_volume", lambda: head_ct.read_volume(broken))
    monkeypatch.setattr(imaging, "_roots", lambda: iter(()))
    with pytest.raises(Refused) as caught:
        imaging.write_dicom(tmp_path / "data")
    assert caught.value.code == "node.dataset_missing"
