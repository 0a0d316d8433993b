"""A slow, broken or hostile PACS: every image is decoded or named with a reason, and nothing hangs."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest

from rapha.node.sources.dicomweb import DicomWebSource
from rapha.node.sources.imaging import decode, qido, records
from rapha.node.sources.imaging.records import ImagingRecords
from rapha.node.sources.imaging.wire import Limits
from rapha.node.sources.interface import Quarantine, Render, Surroundings
from rapha.node.sources.workers.interface import Answer, Item, Task, Unusable
from rapha.spec.dataset import DatasetManifest
from rapha.spec.refusals import Refused
from rapha.spec.transforms import Form
from rapha.testing import pacs as pacs_module
from rapha.testing.pacs import NAME, SIDE, Image, Request, Trouble, manifest, pacs
from rapha.testing.troubles import TROUBLES

IMAGES = (
    Image("1.2.1", "1.2.1.1", "1.2.1.1.1", "P1", value=1),
    Image("1.2.1", "1.2.1.1", "1.2.1.1.2", "P1", value=2),
    Image("1.2.2", "1.2.2.1", "1.2.2.1.1", "P2", value=3),
)
ALL_READ = {image.sop: "ok" for image in IMAGES}
QUICK = Limits(call_s=0.3, idle_s=0.2, attempts=2, backoff_s=0.01)
INVALID, MISSING = "node.dataset_invalid", "node.dataset_missing"
STUDIES = {"studies": ["1.2.1", "1.2.2"]}


class HereAndNow:
    """The pool's interface in this process: what is tested here is what reaches it."""

    def __init__(
        self, task: Task, setup: bytes, *, folder: Path | None, workers: int, output_bytes: int
    ) -> None:
        assert task is Task.DECODE and folder is None
        self._work, self._out = decode.make(setup), bytearray(output_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def run(self, items: Iterable[Item]) -> Iterator[Answer]:
        for ordinal, item in enumerate(items):
            verdict, reply = Quarantine.NONE, b""
            try:
                reply = self._work(item.args, [io.BytesIO(data) for data in item.data], memoryview(self._out))
            except Unusable as unusable:
                verdict = unusable.quarantine
            yield Answer(ordinal, verdict, reply, memoryview(self._out))


@pytest.fixture(autouse=True)
def _in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "Pool", HereAndNow)


class Kept:
    """A sink that remembers the first pixel of each record."""

    def __init__(self) -> None:
        self.first: dict[int, float] = {}

    def put(self, ordinal: int, field: str, value: memoryview) -> None:
        assert field == "pixels" and value.nbytes == 4 * SIDE * SIDE
        self.first[ordinal] = float(np.frombuffer(value, np.float32)[0])


def opened(url: str, folder: Path, scope: Mapping[str, Any] = STUDIES) -> ImagingRecords:
    around = Surroundings(folder, 1, lambda _what, _done, _of: None)
    return DicomWebSource(QUICK, page=2).open(manifest({"url": url, "scope": scope}), around)


def fates(found: ImagingRecords) -> dict[str, str]:
    """Every record's fate: "ok" where its pixels are the stored ones."""
    index = found.index
    told = {name: Quarantine(int(q)).reason for name, q in zip(index.locators, index.quarantine, strict=True)}
    readable = np.flatnonzero(index.quarantine == 0)
    sink = Kept()
    done = found.render(readable, [Render("pixels", Form("float32", (SIDE, SIDE)), ())], sink)
    values = {image.sop: image.value for image in IMAGES}
    for ordinal, position in enumerate(readable.tolist()):
        verdict, name = Quarantine(int(done.quarantine[ordinal])), index.locators[position]
        told[name] = verdict.reason if verdict else "ok"
        assert verdict or sink.first[ordinal] == values[name]
    assert NAME.split("^")[0] not in repr(found._instances)
    return told


def outcome(url: str, folder: Path) -> str | dict[str, str]:
    try:
        found = opened(url, folder)
        try:
            return fates(found)
        finally:
            found.close()
    except Refused as refused:
        assert not any(image.sop in refused.detail or image.patient in refused.detail for image in IMAGES)
        return refused.code


def all_are(reason: str) -> dict[str, str]:
    return {image.sop: f"record.{reason}" for image in IMAGES}


def test_an_honest_one(tmp_path: Path) -> None:
    with pacs(IMAGES) as server:
        assert outcome(server.url, tmp_path) == ALL_READ


NONE_THERE = {"1.2.1": "record.transfer_failed", "1.2.2": "record.transfer_failed"}
SEARCHES: dict[str, str | dict[str, str]] = {
    **dict.fromkeys(
        (
            "infinite pages", "repeated pages", "huge body", "huge length", "negative length",
            "packed", "two types", "wrong type", "no type", "login page", "empty", "redirect to itself",
            "redirect to another host", "redirect to a file", "not an array", "not JSON", "not UTF-8",
            "array of text", "trailing bytes", "deep JSON", "nested sequences", "wide JSON", "huge number",
            "number past a double", "NaN", "a tag twice", "no UIDs", "another study", "another image",
        ),
        INVALID,
    ),
    **dict.fromkeys(("slow body", "hangs up", "401", "403", "500", "503", "503 for an hour"), MISSING),
    "short body": MISSING,
    "nothing": NONE_THERE,
    "404": NONE_THERE,
}  # fmt: skip


@pytest.mark.parametrize("name", SEARCHES)
def test_searches(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qido, "MAX_PAGES", 40)
    with pacs(IMAGES, Trouble(TROUBLES[name], "instances?")) as server:
        assert outcome(server.url, tmp_path) == SEARCHES[name]
        assert len(server.seen) <= 100


def test_a_window_of_dates_needs_no_field_that_reads_a_date(tmp_path: Path) -> None:
    scope = {"modality": "CT", "since": "2024-01-01", "until": "2024-01-07"}
    with pacs(IMAGES) as server:
        asked = manifest({"url": server.url, "scope": scope}).dump()
        asked["fields"] = [field for field in asked["fields"] if field["name"] != "age"]
        around = Surroundings(tmp_path, 1, lambda _what, _done, _of: None)
        found = DicomWebSource(QUICK, page=2).open(DatasetManifest.parse(asked, "manifest"), around)
        try:
            assert fates(found) == ALL_READ
        finally:
            found.close()


def test_a_found_study_that_shows_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "group.txt").write_text("P1\nP2\n")
    with pacs(IMAGES, Trouble(TROUBLES["404"], "1.2.1/instances")) as server:
        found = opened(server.url, tmp_path, {"patients": "group.txt"})
        try:
            told = fates(found)
        finally:
            found.close()
    assert told == {"1.2.1": "record.transfer_failed", "1.2.2.1.1": "ok"}


@pytest.mark.parametrize("patient", [["A" * 6000, "B" * 6000], ["\ufb2c" * 5000]])
def test_a_value_past_every_limit_costs_its_image(patient: list[str], tmp_path: Path) -> None:
    def change(request: Request, answer: pacs_module.Answer) -> pacs_module.Answer:
        said = json.loads(bytes(answer.body)) if isinstance(answer.body, bytes) else []
        for header in said:
            if header["00080018"]["Value"] == [IMAGES[0].sop]:
                header["00100020"] = {"vr": "LO", "Value": patient}
        return replace(answer, body=json.dumps(said).encode())

    with pacs(IMAGES, Trouble(change, "1.2.1.1/metadata")) as server:
        told = outcome(server.url, tmp_path)
    assert isinstance(told, dict)
    assert told.pop(IMAGES[0].sop) != "ok"
    assert set(told.values()) == {"ok"} and len(told) == 2


METADATA = {
    **dict.fromkeys(
        (
            "short body", "negative length", "packed", "two types", "wrong type", "no type", "login page",
            "nothing", "empty", "redirect to itself", "redirect to another host", "redirect to a file",
            "not an array", "not JSON", "not UTF-8", "array of text", "trailing bytes", "deep JSON",
            "nested sequences", "wide JSON", "huge number", "number past a double", "NaN", "a tag twice",
            "no UIDs", "another image", "slow body", "hangs up", "403", "404", "500", "503",
            "503 for an hour",
        ),
        "record.transfer_failed",
    ),
    **dict.fromkeys(("another study", "another patient"), "record.changed"),
    **dict.fromkeys(
        (
            "two patients", "rows as text", "rows as a list", "values as an object",
            "an attribute as a number", "an attribute without a VR", "rows past 16 bits",
            "half a frame count", "true as a number",
        ),
        "record.file_invalid",
    ),
    "rows as a link": "record.pixels_missing",
    "a million frames": "record.too_large",
    **dict.fromkeys(("huge body", "huge length"), "ok"),  # asked for one by one, they are of a fair size
}  # fmt: skip


@pytest.mark.parametrize("name", METADATA)
def test_metadata_of_a_series(name: str, tmp_path: Path) -> None:
    with pacs(IMAGES, Trouble(TROUBLES[name], "1.2.1.1/metadata")) as server:
        expected = {image.sop: METADATA[name] for image in IMAGES[:2]} | {IMAGES[2].sop: "ok"}
        assert outcome(server.url, tmp_path) == expected


FRAMES = {
    **dict.fromkeys(
        (
            "short body", "negative length", "packed", "two types", "wrong type", "no type", "login page",
            "nothing", "empty", "redirect to itself", "redirect to another host", "redirect to a file",
            "huge body", "huge length", "slow body", "hangs up", "403", "404", "500", "no boundary",
            "another boundary", "cut multipart", "unended multipart", "a boundary in the pixels", "two parts",
            "a part of HTML", "an unknown syntax", "503", "503 for an hour",
        ),
        "record.transfer_failed",
    ),
    "a short frame": "record.pixels_invalid",
}  # fmt: skip


@pytest.mark.parametrize("name", FRAMES)
def test_frames_of_an_image(name: str, tmp_path: Path) -> None:
    lost = IMAGES[1].sop
    with pacs(IMAGES, Trouble(TROUBLES[name], f"{lost}/frames/")) as server:
        assert outcome(server.url, tmp_path) == ALL_READ | {lost: FRAMES[name]}


@pytest.mark.parametrize("where", ["instances?", "metadata", "/frames/"])
@pytest.mark.parametrize("name", ["429 for a moment", "503", "hangs up", "short body"])
def test_one_failure_is_asked_again(name: str, where: str, tmp_path: Path) -> None:
    with pacs(IMAGES, Trouble(TROUBLES[name], where, times=1)) as server:
        assert outcome(server.url, tmp_path) == ALL_READ


def _all_rendered(url: str, folder: Path) -> None:
    with contextlib.closing(opened(url, folder, {"studies": ["1.2.1"]})) as found:
        readable = np.flatnonzero(found.index.quarantine == 0)
        found.render(readable, [Render("pixels", Form("float32", (SIDE, SIDE)), ())], Kept())


@pytest.mark.parametrize("name", ["401", "503", "500", "slow body", "hangs up"])
@pytest.mark.parametrize("where", ["/metadata", "/instances/1"])
def test_a_pacs_that_is_gone_refuses_the_dataset(name: str, where: str, tmp_path: Path) -> None:
    crowd = [Image("1.2.1", f"1.2.1.{n}", f"1.2.1.{n}.1") for n in range(60)]
    with pacs(crowd, Trouble(TROUBLES[name], where)) as server, pytest.raises(Refused) as refused:
        _all_rendered(server.url, tmp_path)
    assert refused.value.code == MISSING


def test_metadata_of_another_patient_at_the_last_moment(tmp_path: Path) -> None:
    lost = IMAGES[0].sop
    with pacs(IMAGES, Trouble(TROUBLES["another patient"], f"{lost}/metadata")) as server:
        assert outcome(server.url, tmp_path) == ALL_READ | {lost: "record.changed"}


def test_an_image_that_nobody_searched_for_is_named(tmp_path: Path) -> None:
    late = Image("1.2.1", "1.2.1.1", "1.2.1.1.3")

    def smuggled(_: object, answer: Any) -> Any:
        body = answer.body.decode().removesuffix("]") + "," + json.dumps(late.header()) + "]"
        return type(answer)(200, answer.kind, body.encode())

    with pacs(IMAGES, Trouble(smuggled, "1.2.1.1/metadata")) as server:
        assert outcome(server.url, tmp_path) == ALL_READ | {late.sop: "record.changed"}
