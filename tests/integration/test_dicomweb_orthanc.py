"""The `dicomweb` source against a real Orthanc: what is asked, what comes back, and who is trusted."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import UID

from rapha.evidence.keys import write_private
from rapha.node.sources.dicomweb import DicomWebSource
from rapha.node.sources.imaging import decode, order
from rapha.node.sources.imaging.records import ImagingRecords
from rapha.node.sources.imaging.wire import Limits
from rapha.node.sources.interface import Quarantine, Render, Surroundings
from rapha.spec.dataset import DatasetManifest
from rapha.spec.refusals import Refused
from rapha.spec.transforms import Form, Step
from rapha.testing.front import Seen, Tls, authority, front
from rapha.testing.orthanc import orthanc
from rapha.testing.pacs import manifest

pytestmark = pytest.mark.peer("Orthanc")

CT, MR = "CT_small.dcm", "MR_small.dcm"
CODED = (
    "JPEG2000.dcm", "emri_small_jpeg_ls_lossless.dcm", "MR_small_RLE.dcm", "SC_rgb_jpeg_dcmtk.dcm",
    "examples_palette.dcm", "ExplVR_BigEnd.dcm", "image_dfl.dcm", "SC_rgb_rle_2frame.dcm",
    "MR_small_bigendian.dcm",
)  # fmt: skip
"""Compressed, multi-frame, palette colour, big endian and deflated."""
QUICK = Limits(call_s=5.0, attempts=2, backoff_s=0.01)


def stored(name: str) -> Path:
    return Path(str(get_testdata_file(name, download=False)))


def copies(count: int, day: str = "20040119", patient: str = "1CT1") -> list[bytes]:
    """Small CT images of one new study."""
    data_set = dcmread(stored(CT))
    study = f"1.2.826.0.1.{day}.{sum(patient.encode())}"
    data_set.StudyInstanceUID, data_set.SeriesInstanceUID = UID(study), UID(f"{study}.1")
    data_set.StudyDate, data_set.PatientID = day, patient
    files = []
    for number in range(count):
        data_set.SOPInstanceUID = data_set.file_meta.MediaStorageSOPInstanceUID = UID(f"{study}.1.{number}")
        data_set.PixelData = np.full((128, 128), number, np.int16).tobytes()
        file = io.BytesIO()
        data_set.save_as(file)
        files.append(file.getvalue())
    return files


@contextmanager
def opened(
    url: str,
    folder: Path,
    scope: Mapping[str, Any],
    page: int = 500,
    *,
    shape: Sequence[int] = (0, 0),
    **source: Any,
) -> Iterator[ImagingRecords]:
    around = Surroundings(folder, 1, lambda _what, _done, _of: None)
    described = manifest({"url": url, "scope": scope, **source}, shape)
    with closing(DicomWebSource(QUICK, page).open(described, around)) as records:
        yield records


def studies_of(files: list[bytes]) -> dict[str, list[str]]:
    return {"studies": sorted({str(dcmread(io.BytesIO(file)).StudyInstanceUID) for file in files})}


def searches(seen: list[Seen]) -> list[Seen]:
    return [one for one in seen if "metadata" not in one.path and "frames" not in one.path]


class Kept:
    """A sink that remembers every value."""

    def __init__(self) -> None:
        self.values: dict[int, bytes] = {}

    def put(self, ordinal: int, field: str, value: memoryview) -> None:
        self.values[ordinal] = bytes(value)


def test_a_study_in_pages_and_its_pixels_through_real_workers(tmp_path: Path) -> None:
    files = copies(7)
    with orthanc(tmp_path / "pacs", files) as pacs, front(pacs.url) as before:
        with opened(before.url, tmp_path, studies_of(files), page=3) as records:
            assert (records.index.quarantine == 0).all()
            assert len(set(records.index.locators)) == 7
            offsets = [one.asked("offset") for one in searches(before.seen)]
            assert offsets == [["0"], ["3"], ["6"], ["7"]]
            sink = Kept()
            form = Form("float32", (128, 128))
            done = records.render(np.arange(7), [Render("pixels", form, (Step(resize=(128, 128)),))], sink)
        assert not done.quarantine.any()
        for ordinal, locator in enumerate(records.index.locators):
            assert (
                np.frombuffer(sink.values[ordinal], np.float32).min() == int(locator.rsplit(".", 1)[1]) - 1024
            )
        assert sum("/frames/1" in one.path for one in before.seen) == 7


def test_a_series_is_one_volume_in_the_order_of_its_places(tmp_path: Path) -> None:
    files = []
    for number, file in enumerate(copies(5)):
        data_set = dcmread(io.BytesIO(file))
        data_set.ImagePositionPatient = [0, 0, -10 * number]
        changed = io.BytesIO()
        data_set.save_as(changed)
        files.append(changed.getvalue())
    with ExitStack() as around:
        pacs = around.enter_context(orthanc(tmp_path / "pacs", files))
        found = opened(pacs.url, tmp_path, studies_of(files), shape=(0, 0, 0), record="series")
        sink, form, steps = Kept(), Form("float32", (5, 128, 128)), (Step(resize=(5, 128, 128)),)
        done = around.enter_context(found).render(np.arange(1), [Render("pixels", form, steps)], sink)
    assert not done.quarantine.any()
    volume = np.frombuffer(sink.values[0], np.float32).reshape(5, 128, 128)
    assert sorted(volume[:, 0, 0].tolist()) == [n - 1024 for n in range(5)]
    assert volume[0, 0, 0] in (-1024, -1020) and abs(volume[1, 0, 0] - volume[0, 0, 0]) == 1


def test_only_what_is_needed_is_asked_for_and_no_name_is_kept(tmp_path: Path) -> None:
    files = copies(2)
    with orthanc(tmp_path / "pacs", files) as pacs, front(pacs.url) as before:
        scope = {"modality": "CT", "since": "2004-01-18", "until": "2004-01-20"}
        with opened(before.url, tmp_path, scope) as records:
            asked = {field for one in searches(before.seen) for field in one.asked("includefield")}
            assert asked == {"StudyDate", "PatientID", "SOPInstanceUID", "SeriesInstanceUID"}
            assert all(one.headers["Accept-Encoding"] == "identity" for one in before.seen)
            item = records._retrieval.item(order.encode(order.Args(0, ())), [records._instances[0]], 0)
            held = repr((records._instances, records.index)).encode() + item.data[0]
            assert b"CompressedSamples" not in held and b"JFK IMAGING" not in held


def test_a_window_of_dates_is_walked_in_slices(tmp_path: Path) -> None:
    files = copies(1, "20040101") + copies(2, "20040119") + copies(1, "20040229") + copies(1, "20040301")
    with orthanc(tmp_path / "pacs", [*files, stored(MR)]) as pacs, front(pacs.url) as before:
        scope = {"modality": "CT", "since": "2004-01-01", "until": "2004-02-29"}
        with opened(before.url, tmp_path, scope) as records:
            assert len(records.index.locators) == 4
            assert not records.index.quarantine.any()
        days = sorted(one.asked("StudyDate")[0] for one in before.seen if one.path.endswith("/studies"))
        assert days[0] == "20040101-20040107"
        assert days[-1].endswith("-20040229")
        assert all(one.asked("ModalitiesInStudy") == ["CT"] for one in before.seen if one.asked("StudyDate"))


def test_a_group_of_patients(tmp_path: Path) -> None:
    files = copies(1, patient="A-1") + copies(1, patient="B-2") + copies(1, patient="C-3")
    (tmp_path / "group.txt").write_text("A-1\n\nC-3\nZ-9\n")
    group = {"patients": "group.txt"}
    with orthanc(tmp_path / "pacs", files) as pacs, opened(pacs.url, tmp_path, group) as records:
        assert sorted(records.index.patients) == ["A-1", "C-3"]


def test_a_study_that_is_not_there_is_named(tmp_path: Path) -> None:
    files = copies(1)
    with orthanc(tmp_path / "pacs", files) as pacs:
        scope = {"studies": [*studies_of(files)["studies"], "1.2.3.4"]}
        with opened(pacs.url, tmp_path, scope) as records:
            fates = dict(zip(records.index.locators, records.index.quarantine.tolist(), strict=True))
    assert fates.pop("1.2.3.4") == Quarantine.TRANSFER_FAILED
    assert list(fates.values()) == [0]


@pytest.mark.parametrize("name", [CT, MR, *CODED])
def test_pixels_from_the_pacs_are_those_of_the_file(name: str, tmp_path: Path) -> None:
    file = stored(name).read_bytes()
    if not dcmread(io.BytesIO(file)).get("PatientID"):  # what has no patient is no record
        data_set = dcmread(io.BytesIO(file))
        data_set.PatientID = "P1"
        changed = io.BytesIO()
        data_set.save_as(changed)
        file = changed.getvalue()
    with ExitStack() as around:
        pacs = around.enter_context(orthanc(tmp_path / "pacs", [file]))
        records = around.enter_context(opened(pacs.url, tmp_path, studies_of([file]), burned_in="waived"))
        assert not records.index.quarantine.any(), records.index.quarantine
        for position in range(len(records.index.locators)):
            assert _rendered(records, position, None) == _rendered(records, position, file)


def _rendered(records: ImagingRecords, position: int, file: bytes | None) -> bytes:
    """A record's pixels, from the PACS or from the file."""
    (member,) = records._records.members[position]
    instance, frame = records._instances[member], records._records.frames[position]
    args = order.encode(order.Args(frame, (order.Expect(instance.sop_uid, instance.patient_id),)))
    item = records._retrieval.item(args, [instance], frame)
    depth = (3,) if instance.samples == 3 or "palette" in instance.patient_id else ()
    sizes = (instance.rows, instance.columns)
    shape = (0, 0, *depth)
    step = Step(dtype="float32") if depth else Step(resize=sizes)
    fixed = (*sizes, *depth) if depth else shape
    setup = order.Setup("frame", (order.RenderOrder("pixels", "pixels", Form("float32", fixed), (step,)),))
    work = decode.make(order.encode(setup))
    out = bytearray(setup.output_bytes)
    if file is None:
        work(item.args, [io.BytesIO(data) for data in item.data], memoryview(out))
    else:
        work(args, [io.BytesIO(file)], memoryview(out))
    assert any(out)
    return bytes(out)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return authority(tmp_path_factory.mktemp("tls"))


def code_of(url: str, folder: Path, **source: Any) -> str:
    """ "ok", or why the dataset is refused."""
    try:
        with opened(url, folder, {"studies": studies_of(copies(1))["studies"]}, **source) as records:
            assert not records.index.quarantine.any()
    except Refused as refused:
        assert "hunter2" not in str(refused)
        return refused.code
    return "ok"


def test_tls_and_basic_authentication(tmp_path: Path, tls: Tls, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    other = authority(tmp_path / "other")
    for name, text in {"good": b"nurse:hunter2\n", "bad": b"nurse:hunter2x\n", "none": b"hunter2"}.items():
        write_private(tmp_path / name, text)
    write_private(tmp_path / "open", b"nurse:hunter2\n")
    (tmp_path / "open").chmod(0o644)
    with orthanc(tmp_path / "pacs", copies(1), users={"nurse": "hunter2"}, tls=tls, host="localhost") as pacs:
        basic = {"auth": "basic", "secret": "good", "ca": str(tls.ca)}
        assert code_of(pacs.url, tmp_path, **basic) == "ok"
        assert code_of(pacs.url.replace("localhost", "127.0.0.1"), tmp_path, **basic) == "ok"
        assert code_of(pacs.url, tmp_path, **basic | {"secret": "bad"}) == "node.dataset_missing"
        assert code_of(pacs.url, tmp_path, ca=str(tls.ca)) == "node.dataset_missing"
        asked = len(pacs.seen)
        assert code_of(pacs.url, tmp_path, **basic | {"ca": str(other.ca)}) == "node.dataset_missing"
        assert code_of(pacs.url, tmp_path, auth="basic", secret="good") == "node.dataset_missing"
        assert code_of(pacs.url, tmp_path, **basic | {"secret": "none"}) == "node.key_unsafe"
        assert code_of(pacs.url, tmp_path, **basic | {"secret": "open"}) == "node.key_unsafe"
        assert code_of(pacs.url, tmp_path, **basic | {"secret": "absent"}) == "node.key_unsafe"
        assert code_of(pacs.url, tmp_path, **basic | {"ca": "good"}) == "node.dataset_invalid"
        assert code_of(pacs.url, tmp_path, **basic | {"ca": "absent"}) == "node.dataset_missing"
        assert len(pacs.seen) == asked  # nobody got to ask anything
        # The very certificate of the PACS may be pinned too.
        assert code_of(pacs.url, tmp_path, **basic | {"ca": str(tls.pem)}) == "ok"
    assert "hunter2" not in caplog.text and "bnVyc2U6" not in caplog.text


def test_a_certificate_for_another_name(tmp_path: Path) -> None:
    elsewhere = authority(tmp_path / "tls", ["pacs.example"])
    with orthanc(tmp_path / "pacs", copies(1), tls=elsewhere, host="localhost") as pacs:
        assert code_of(pacs.url, tmp_path, ca=str(elsewhere.ca)) == "node.dataset_missing"
        assert pacs.seen == []


def test_a_bearer_token(tmp_path: Path) -> None:
    write_private(tmp_path / "good", b"aGVsbG8.hunter2~\n")
    write_private(tmp_path / "bad", b"aGVsbG8.hunter2\n")
    write_private(tmp_path / "split", b"hunter2\r\nX-Injected: 1")
    with orthanc(tmp_path / "pacs", copies(1), bearer="aGVsbG8.hunter2~") as pacs:
        assert code_of(pacs.url, tmp_path, auth="bearer", secret="good") == "ok"
        assert code_of(pacs.url, tmp_path, auth="bearer", secret="bad") == "node.dataset_missing"
        assert code_of(pacs.url, tmp_path, auth="bearer", secret="split") == "node.key_unsafe"
        assert code_of(pacs.url, tmp_path) == "node.dataset_missing"


def _study(modality: str, places: Sequence[float], value: int) -> list[bytes]:
    """A series of one PET-CT study, each slice filled with `value` plus its number."""
    files = []
    for number, (file, place) in enumerate(zip(copies(len(places)), places, strict=True)):
        data_set = dcmread(io.BytesIO(file))
        series = f"1.2.826.0.1.7.{value}"
        data_set.Modality, data_set.StudyInstanceUID = modality, UID("1.2.826.0.1.7")
        data_set.SeriesInstanceUID, data_set.FrameOfReferenceUID = UID(series), UID("1.2.826.0.1.7.9")
        data_set.SOPInstanceUID = data_set.file_meta.MediaStorageSOPInstanceUID = UID(f"{series}.{number}")
        data_set.ImagePositionPatient, data_set.ImageOrientationPatient = [0, 0, place], [1, 0, 0, 0, 1, 0]
        data_set.RescaleIntercept, data_set.RescaleSlope = 0, 1
        data_set.PixelData = np.full((128, 128), value + number, np.int16).tobytes()
        changed = io.BytesIO()
        data_set.save_as(changed)
        files.append(changed.getvalue())
    return files


def test_pet_slices_with_the_ct_at_their_place(tmp_path: Path) -> None:
    files = _study("PT", (0, 4, 8), 100) + _study("CT", (8, 6, 4, 2, 0), 1000)
    fields = [
        {"name": what, "dtype": "float32", "shape": [128, 128], "path": f"@{what}"} for what in ("pet", "ct")
    ]
    form = Form("float32", (128, 128))
    with orthanc(tmp_path / "pacs", files) as pacs:
        source = {"url": pacs.url, "scope": {"studies": ["1.2.826.0.1.7"]}, "record": "pet-ct"}
        described = DatasetManifest.parse({**manifest(source).dump(), "fields": fields})
        around = Surroundings(tmp_path, 1, lambda _what, _done, _of: None)
        with closing(DicomWebSource(QUICK).open(described, around)) as records:
            assert not records.index.quarantine.any()
            order_of = [int(locator.rsplit(".", 1)[1]) for locator in records.index.locators]
            both = {what: Kept() for what in ("pet", "ct")}

            class Sorted:
                def put(self, ordinal: int, field: str, value: memoryview) -> None:
                    both[field].put(ordinal, field, value)

            renders = [Render(what, form, ()) for what in both]
            assert not records.render(np.arange(3), renders, Sorted()).quarantine.any()
    for ordinal, number in enumerate(order_of):
        pet, ct = (np.frombuffer(both[what].values[ordinal], np.float32) for what in ("pet", "ct"))
        assert pet[0] == 100 + number and ct[0] == 1000 + 4 - 2 * number


def test_what_a_pacs_stores_under_a_malformed_uid_costs_itself_alone(tmp_path: Path) -> None:
    files = copies(1)
    bad = stored("bad_sequence.dcm").read_bytes()
    (tmp_path / "group").write_text("1CT1\nb2cbe507f250\n")
    with (
        orthanc(tmp_path / "pacs", [*files, bad]) as pacs,
        opened(pacs.url, tmp_path, {"patients": "group"}) as records,
    ):
        told = dict(zip(records.index.locators, records.index.quarantine.tolist(), strict=True))
    study = "05fa52f0e599f17b8186ff18fcdf2b5570a52206a75c4d03afebf5c475dc8758"
    assert told.pop(study) == Quarantine.UID_MISSING
    assert list(told.values()) == [0]
