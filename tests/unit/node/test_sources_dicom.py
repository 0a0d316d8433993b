from __future__ import annotations

import hashlib
import io
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rapha.node.datasets import control
from rapha.node.datasets.opening import Sources
from rapha.node.sources import tree
from rapha.node.sources.dicom import DicomSource
from rapha.node.sources.imaging.records import ImagingRecords
from rapha.node.sources.interface import Quarantine, Render, Surroundings
from rapha.spec import cohort
from rapha.spec.dataset import DatasetManifest, Field
from rapha.spec.imaging import LabelTable
from rapha.spec.paths import SourceFile
from rapha.spec.refusals import Refused
from rapha.spec.transforms import Form, Step
from rapha.testing import dicoms
from rapha.testing.dicoms import Image

FRAME = Form("int16", (16, 16))


class Kept:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.values: dict[tuple[int, str], bytes] = {}

    def put(self, ordinal: int, field: str, value: memoryview) -> None:
        self.values[(ordinal, field)] = bytes(value)

    def array(self, ordinal: int, field: str, form: Form) -> np.ndarray[Any, Any]:
        return np.frombuffer(self.values[(ordinal, field)], form.dtype).reshape(form.shape)


class Mount:
    """A folder of images that is sealed while it is open, and comes apart afterwards."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.pacs = root / "pacs"
        self.pacs.mkdir()
        self.told: list[tuple[str, int, int]] = []
        self.source = DicomSource()

    def add(self, name: str, image: Image) -> Path:
        return dicoms.write(self.pacs / name, image)

    def unseal(self) -> None:
        for folder, _, _ in os.walk(self.pacs):
            Path(folder).chmod(0o755)

    def open(self, manifest: DatasetManifest | None = None) -> ImagingRecords:
        dicoms.seal(self.pacs)
        return self.source.open(manifest or dicoms.manifest(), self.around())

    def around(self) -> Surroundings:
        return Surroundings(self.root, 2, lambda *told: self.told.append(told))


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    made = Mount(tmp_path)
    yield made
    made.unseal()


def render(records: ImagingRecords, *renders: Render) -> tuple[list[Quarantine], Kept]:
    kept = Kept()
    readable = np.flatnonzero(records.index.quarantine == 0)
    found = records.render(readable, renders or (Render("pixels", FRAME, ()),), kept)
    assert [bool(digest) for digest in found.content] == [verdict == 0 for verdict in found.quarantine]
    return [Quarantine(verdict) for verdict in found.quarantine.tolist()], kept


def test_a_mount_is_indexed_selected_read_and_rendered(mount: Mount) -> None:
    for number in range(3):
        mount.add(f"b/{number}.dcm", Image(patient="P2", number=number))
    mount.add("a/0", Image("MR", patient="P1"))
    (mount.pacs / "README").write_text("not an image")
    manifest = dicoms.manifest(
        dicoms.pixels(),
        Field(name="kind", path="Modality", dtype="string"),
        Field(name="z", path="@slice_position", dtype="float32"),
        Field(name="who", path="PatientID", dtype="pseudonym"),
    )
    records = mount.open(manifest)
    assert records.index.patients == ["P1", "P2", "P2", "P2"] and not records.index.quarantine.any()
    assert records.index.locators[1:] == [dicoms.sop_uid(Image(patient="P2", number=n)) for n in range(3)]
    assert [(one.locator, one.reason) for one in records.aside] == [("README", "not-dicom")]
    assert records.select(cohort.parse({"field": "kind", "eq": "CT"})).tolist() == [False, True, True, True]
    read = records.read(np.array([3, 0]))
    assert {name: np.asarray(value).tolist() for name, value in read.items()} == {
        "z": [5.0, 0.0], "who": ["P2", "P1"],
    }  # fmt: skip
    verdicts, kept = render(records)
    assert verdicts == [Quarantine.NONE] * 4
    stored = dicoms.dataset(Image(patient="P2", number=2)).pixel_array
    assert np.array_equal(kept.array(3, "pixels", FRAME), stored - 1024)
    assert mount.told[0] == ("finding", 0, 0) and ("indexing", 5, 5) in mount.told
    assert mount.told[-1] == ("decoding", 4, 4)


def test_only_what_changed_is_read_again(mount: Mount) -> None:
    for number in range(4):
        mount.add(f"{number}.dcm", Image(number=number))
    first = mount.open()
    mount.told.clear()
    again = mount.open()
    assert mount.told == [("finding", 0, 0)] and again.index.locators == first.index.locators
    mount.unseal()
    mount.add("2.dcm", Image(number=9))
    (mount.pacs / "3.dcm").unlink()
    mount.told.clear()
    changed = mount.open()
    assert ("indexing", 1, 1) in mount.told
    expected = [dicoms.sop_uid(Image(number=number)) for number in (0, 1, 9)]
    assert changed.index.locators == expected


def test_a_file_that_changed_since_it_was_indexed_falls_out(mount: Mount) -> None:
    paths = [mount.add(f"{number}.dcm", Image(number=number)) for number in range(4)]
    records = mount.open()
    mount.unseal()
    for path in paths:
        path.chmod(0o644)
    dicoms.write(paths[0], Image(number=0, patient="P999"))
    dicoms.write(paths[1], Image(number=7))
    paths[2].unlink()
    verdicts, kept = render(records)
    assert verdicts[:2] == [Quarantine.CHANGED] * 2 and verdicts[2:] == [
        Quarantine.FILE_UNREADABLE,
        Quarantine.NONE,
    ]
    assert set(kept.values) == {(3, "pixels")}


def test_series_become_volumes(mount: Mount) -> None:
    for number in (2, 0, 1):
        mount.add(f"{9 - number}.dcm", Image(number=number))
    records = mount.open(dicoms.manifest(dicoms.pixels((0, 16, 16)), record="series"))
    form = Form("int16", (3, 16, 16))
    verdicts, kept = render(records, Render("pixels", form, (Step(resize=(3, 16, 16)),)))
    assert verdicts == [Quarantine.NONE]
    stored = [dicoms.dataset(Image(number=number)).pixel_array - 1024 for number in range(3)]
    assert np.array_equal(kept.array(0, "pixels", form), np.stack(stored))


def test_pet_and_ct_are_rendered_together(mount: Mount) -> None:
    for number, image in enumerate(dicoms.pet_ct("P1", 3)):
        mount.add(f"{number}.dcm", image)
    fields = (
        Field(name="pet", path="@pet", dtype="float32", shape=(16, 16)),
        Field(name="ct", path="@ct", dtype="float32", shape=(16, 16)),
    )
    records = mount.open(dicoms.manifest(*fields, record="pet-ct"))
    form = Form("float32", (16, 16))
    verdicts, kept = render(records, Render("pet", form, ()), Render("ct", form, ()))
    assert verdicts == [Quarantine.NONE] * 3 and len(kept.values) == 6
    stored = dicoms.dataset(Image("PT", number=1)).pixel_array * 0.5
    assert np.array_equal(kept.array(1, "pet", form), stored)
    assert [one.reason for one in records.aside] == ["unpaired"] * 3


def test_labels_come_from_a_table_beside_the_images(mount: Mount) -> None:
    for number in range(3):
        mount.add(f"{number}.dcm", Image(number=number))
    sink = io.BytesIO()
    keys = [dicoms.sop_uid(Image(number=number)) for number in (2, 0)]
    pq.write_table(pa.table({"SOPInstanceUID": keys, "bleed": pa.array([1, 0], pa.int8())}), sink)
    (mount.root / "labels.parquet").write_bytes(sink.getvalue())
    (mount.root / "labels.parquet").chmod(0o444)
    file = SourceFile(
        name="labels.parquet", sha256=hashlib.sha256(sink.getvalue()).hexdigest(), size=len(sink.getvalue())
    )
    table = LabelTable(path=".", file=file, key="SOPInstanceUID")
    label = Field(name="outcome", path="bleed", dtype="int8", label=True)
    records = mount.open(dicoms.manifest(dicoms.pixels(), label, labels=table))
    assert records.index.quarantine.tolist() == [0, Quarantine.LABEL_MISSING, 0]
    assert records.index.locators[1] == "1.dcm"
    outcome = records.read(np.array([0, 2]))["outcome"]
    assert isinstance(outcome, np.ndarray) and outcome.tolist() == [0, 1] and outcome.dtype == np.int8


def test_copies_leave_one_and_impostors_none(mount: Mount) -> None:
    mount.add("a.dcm", Image(number=1))
    mount.add("copy.dcm", Image(number=1))
    mount.add("b.dcm", Image(number=2))
    mount.add("impostor.dcm", Image(number=2, more={"Rows": 15}))
    records = mount.open()
    assert [Quarantine(q).name for q in records.index.quarantine] == ["NONE", "DUPLICATE", "DUPLICATE"]
    assert records.index.locators[1:] == ["b.dcm", "impostor.dcm"]
    assert [(one.locator, one.reason) for one in records.aside] == [("copy.dcm", "copy")]


def test_another_name_of_the_same_file_is_a_copy(mount: Mount) -> None:
    os.link(mount.add("a.dcm", Image()), mount.pacs / "b.dcm")
    records = mount.open()
    assert [(one.locator, one.reason) for one in records.aside] == [("b.dcm", "copy")]


def test_the_hospital_is_told_of_what_is_no_record(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    mount.add("good.dcm", Image())
    for name in ("NOTES.txt", "x.txt"):
        (mount.pacs / name).write_bytes(b"seen by radiology " * 10)
    (mount.root / "opt-outs.txt").write_text("")
    dicoms.seal(mount.pacs)
    means = control.Means(workers=1, memory_bytes=0, shards="/")
    manifest = dicoms.manifest()
    ask = control.Describe(manifest=manifest, folder=str(mount.root), means=means)
    monkeypatch.setattr(control, "MAX_FAULTS", 1)
    told = Sources(lambda what, done, total: None).describe(ask)
    assert (told.records, told.faults, told.set_aside) == (1, (), 2)
    assert told.aside == (control.Fault(locator="NOTES.txt", reason="not-dicom"),)


def test_a_tree_that_can_be_written_is_refused(mount: Mount) -> None:
    path = mount.add("a/b/0.dcm", Image())
    dicoms.seal(mount.pacs)
    for writable in (mount.pacs, mount.pacs / "a" / "b", path):
        mode = writable.stat().st_mode
        writable.chmod(mode | 0o200)
        with pytest.raises(Refused) as refused:
            mount.source.open(dicoms.manifest(), mount.around())
        assert refused.value.code == "node.dataset_writable"
        writable.chmod(mode)
    assert len(mount.open().index.patients) == 1


def test_a_read_only_mount_passes_and_another_below_it_is_asked(
    mount: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount.add("a/0.dcm", Image())
    real, flags = os.fstatvfs, {"flag": os.ST_RDONLY}

    class Status:
        def __init__(self, fd: int) -> None:
            self.f_flag = real(fd).f_flag | flags["flag"]

    monkeypatch.setattr(os, "fstatvfs", Status)
    assert len(tree.walk("pacs", mount.root).files) == 1
    devices = iter(range(100))
    real_fstat = os.fstat

    def another_device(fd: int) -> os.stat_result:
        flags["flag"] = 0 if next(devices) else os.ST_RDONLY
        status = list(real_fstat(fd))
        status[2] = next(devices)
        return os.stat_result(status)

    monkeypatch.setattr(os, "fstat", another_device)
    with pytest.raises(Refused) as refused:
        tree.walk("pacs", mount.root)
    assert refused.value.code == "node.dataset_writable"


def test_a_writable_mount_of_the_same_device_is_found_below_a_read_only_one(
    mount: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    (mount.pacs / "hole").mkdir()
    real, root = os.fstatvfs, mount.pacs.stat().st_ino

    class Status:
        def __init__(self, fd: int) -> None:
            bound_again = os.fstat(fd).st_ino != root
            self.f_flag = 0 if bound_again else real(fd).f_flag | os.ST_RDONLY

    monkeypatch.setattr(os, "fstatvfs", Status)
    with pytest.raises(Refused, match="hole can be written"):
        tree.walk("pacs", mount.root)


def test_a_folder_to_write_into_unseen_is_refused(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    dicoms.seal(mount.pacs)
    mount.pacs.chmod(0o755)
    (mount.pacs / "drop").mkdir()
    (mount.pacs / "drop").chmod(0o333)
    real = os.open

    def shut(path: Any, *args: Any, **named: Any) -> int:
        if path == "drop":
            raise PermissionError
        return real(path, *args, **named)

    monkeypatch.setattr(tree, "read_only", lambda fd, folder, name: True)
    monkeypatch.setattr(os, "open", shut)
    with pytest.raises(Refused, match="drop can be written"):
        tree.walk("pacs", mount.root)


@pytest.mark.parametrize(
    ("mode", "mine", "writable"),
    [
        (0o444, True, False),
        (0o644, True, True),
        (0o644, False, False),
        (0o464, False, True),
        (0o446, False, True),
    ],
)
def test_mode_bits_are_compared_with_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, mine: bool, writable: bool
) -> None:
    path = tmp_path / "pacs" / "x"
    path.parent.mkdir()
    path.write_bytes(b"")
    path.chmod(mode)
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid if mine and os.getuid() else 54321)
    if mine and not os.getuid():
        monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(tree, "read_only", lambda fd, folder, name: True)
    if writable:
        with pytest.raises(Refused, match="x can be written"):
            tree.walk("pacs", tmp_path)
    else:
        assert len(tree.walk("pacs", tmp_path).files) == 1


def test_nothing_special_is_opened_and_everything_is_named(mount: Mount) -> None:
    mount.add("good.dcm", Image())
    os.mkfifo(mount.pacs / "fifo")
    (mount.pacs / "link.dcm").symlink_to("good.dcm")
    (mount.pacs / "loop").symlink_to(".")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(mount.pacs / "socket"))
    records = mount.open()
    assert {(one.locator, one.reason) for one in records.aside} == {
        ("fifo", "special"), ("link.dcm", "link"), ("loop", "link"), ("socket", "special"),
    }  # fmt: skip
    assert len(records.index.patients) == 1


def test_a_tree_has_limits(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "MAX_DEPTH", 3)
    monkeypatch.setattr(tree, "MAX_PATH_BYTES", 40)
    mount.add("1/2/fine.dcm", Image(number=1))
    mount.add("1/2/3/deep.dcm", Image(number=2))
    mount.add("long-" * 10, Image(number=3))
    records = mount.open()
    assert records.index.quarantine.tolist() == [0, Quarantine.TOO_LARGE, Quarantine.TOO_LARGE]
    assert records.index.locators[1:] == ["1/2/3", "long-" * 10]
    monkeypatch.setattr(tree, "MAX_FILES", 0)
    with pytest.raises(Refused, match="more than 0 files"):
        mount.open()


def test_entries_that_are_no_files_have_a_limit_too(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    mount.add("good.dcm", Image())
    for number in range(3):
        (mount.pacs / f"link{number}").symlink_to("good.dcm")
    monkeypatch.setattr(tree, "MAX_FILES", 2)
    with pytest.raises(Refused, match="more than 2 files, or other entries"):
        mount.open()


@pytest.mark.parametrize("seconds", [-(2**31), 2**34])
def test_a_file_of_any_age_is_indexed(mount: Mount, seconds: int) -> None:
    os.utime(mount.add("old.dcm", Image()), (seconds, seconds))
    assert mount.open().index.quarantine.tolist() == [0]


def test_what_can_not_be_looked_at_is_a_lost_record(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    mount.add("gone.dcm", Image(number=1))
    mount.add("shut/1.dcm", Image(number=2))
    mount.add("torn/1.dcm", Image(number=3))
    mount.add("z.dcm", Image(number=4))
    real_open, real_scan, real_stat = os.open, os.scandir, os.stat

    def stat(name: Any, **options: Any) -> os.stat_result:
        if name == "gone.dcm":
            raise FileNotFoundError(name)
        return real_stat(name, **options)

    def open_(name: Any, *rest: Any, **options: Any) -> int:
        if name == "shut":
            raise PermissionError(name)
        return real_open(name, *rest, **options)

    def scandir(fd: Any) -> Any:
        if isinstance(fd, int) and Path(f"/proc/self/fd/{fd}").readlink().name == "torn":
            raise OSError(5, "Input/output error")
        return real_scan(fd)

    dicoms.seal(mount.pacs)
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", stat)
        patch.setattr(os, "open", open_)
        patch.setattr(os, "scandir", scandir)
        found = tree.walk("pacs", mount.root)
    assert [one.path for one in found.files] == ["z.dcm"]
    assert sorted(found.lost) == [(n, Quarantine.FILE_UNREADABLE) for n in ("gone.dcm", "shut", "torn")]


def test_names_that_are_no_text_are_used_and_shown_escaped(mount: Mount) -> None:
    odd = os.fsdecode(b"M\xfcller \n.dcm")
    mount.add(odd, Image(number=1))
    (mount.pacs / os.fsdecode(b"\xff")).write_bytes(bytes(10))
    records = mount.open()
    assert records.index.quarantine.tolist() == [0, Quarantine.FILE_INVALID]
    assert records.index.locators[1] == "\\xff" and render(records)[0] == [Quarantine.NONE]
    assert tree.printable(odd) == "M\\xfcller \\u{a}.dcm"


def test_no_two_names_look_alike() -> None:
    names = [
        os.fsencode(name) for name in ("a\nb", "a\\nb", "a\\u{a}b", "\x85", "\\u{85}", "\u202e", "ä", "")
    ]
    names += [b"\x85", b"\\x85", b"\xff", b"\\", b"\\\\"]
    shown = [tree.printable(os.fsdecode(name)) for name in names]
    assert len(set(shown)) == len(names) and all(map(str.isprintable, shown))
    assert tree.printable("a folder/ä.dcm") == "a folder/ä.dcm"


@pytest.mark.parametrize("kind", ["missing", "file", "link"])
def test_a_root_that_is_no_folder_is_refused(tmp_path: Path, kind: str) -> None:
    if kind == "file":
        (tmp_path / "pacs").write_bytes(b"")
    elif kind == "link":
        (tmp_path / "pacs").symlink_to(tmp_path)
    with pytest.raises(Refused) as refused:
        DicomSource().open(dicoms.manifest(), Surroundings(tmp_path, 1, lambda *told: None))
    expected = "node.dataset_missing" if kind == "missing" else "node.dataset_invalid"
    assert refused.value.code == expected


def test_an_empty_tree_is_refused(mount: Mount) -> None:
    with pytest.raises(Refused, match="no record"):
        mount.open()
