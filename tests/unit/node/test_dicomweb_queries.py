"""Searches of a PACS: narrow by construction, walked to their end, and held against what was asked."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapha.evidence.keys import write_private
from rapha.node.sources.dicomweb import DicomWebSource
from rapha.node.sources.imaging import qido
from rapha.node.sources.imaging.http import Pacs as Client
from rapha.node.sources.imaging.http import Target
from rapha.node.sources.imaging.narrow import MAX_DAYS, OfDays, OfPatient, OfStudy, searches
from rapha.node.sources.imaging.qido import Finder, Study
from rapha.node.sources.imaging.wire import Limits
from rapha.node.sources.interface import Quarantine, Surroundings
from rapha.spec import imaging
from rapha.spec.imaging import Scope
from rapha.spec.refusals import Refused
from rapha.testing.pacs import Image, Pacs, Trouble, manifest, pacs
from rapha.testing.troubles import TROUBLES

IMAGES = (
    Image("1.2.1", "1.2.1.1", "1.2.1.1.1", "P1", day="20240101"),
    Image("1.2.2", "1.2.2.1", "1.2.2.1.1", "P2", day="20240131"),
    Image("1.2.3", "1.2.3.1", "1.2.3.1.1", "P3", "MR", day="20240131"),
)
QUICK = Limits(call_s=2.0, attempts=1)
DAYS = OfDays("CT", date(2024, 1, 1), date(2024, 1, 7))


@contextlib.contextmanager
def finder(server: Pacs, folder: Path, page: int = 2) -> Iterator[Finder]:
    source = imaging.DicomWebSource.parse(
        {"kind": "dicomweb", "url": server.url, "scope": {"studies": ["1.2.1"]}}
    )
    with contextlib.closing(Client(source, folder, QUICK)) as client:
        yield Finder(client, page)


def opened(server: Pacs, folder: Path, scope: Mapping[str, Any], **source: Any) -> dict[str, int]:
    around = Surroundings(folder, 1, lambda _what, _done, _of: None)
    described = manifest({"url": server.url, "scope": scope, **source})
    with contextlib.closing(DicomWebSource(QUICK).open(described, around)) as records:
        return dict(zip(records.index.locators, records.index.quarantine.tolist(), strict=True))


@pytest.mark.parametrize(
    "uid",
    ["", "1", "1.", ".1", "1..2", "*", "1.*", "1.2,1.3", "1.2\\1.3", "1.2/..", "1.2?a=b", "1.2 ", "1." * 40],
)
def test_studies_that_are_none(uid: str) -> None:
    with pytest.raises(Refused) as refused:
        OfStudy(uid)
    assert refused.value.code == "node.query_broad"


@pytest.mark.parametrize(
    "text", ["", " ", "\t", "*", "?", "A*", "A?B", "A\\B", "A,B", "A\nB", "A\0", "A" * 65, "\u2003"]
)
def test_patients_that_would_be_many(text: str) -> None:
    with pytest.raises(Refused) as refused:
        OfPatient(text)
    assert refused.value.code == "node.query_broad"


@pytest.mark.parametrize("modality", ["", " ", "*", "ct", "C?", "CT\\MR", "CT,MR", "C" * 17])
def test_modalities_that_are_none(modality: str) -> None:
    with pytest.raises(Refused):
        OfDays(modality, date(2024, 1, 1), date(2024, 1, 1))


@pytest.mark.parametrize("days", [-1, MAX_DAYS, 36500])
def test_windows_that_are_none_or_too_long(days: int) -> None:
    with pytest.raises(Refused):
        OfDays("CT", date(2024, 1, 1), date(2024, 1, 1) + timedelta(days=days))


@given(st.dates(date(1, 1, 1), date(9990, 1, 1)), st.integers(0, 1000))
def test_a_window_is_walked_day_by_day_and_no_day_twice(since: date, length: int) -> None:
    until = since + timedelta(days=length)
    scope = Scope(modality="CT", since=since.isoformat(), until=until.isoformat())
    walked = [one for one in searches(scope, ()) if isinstance(one, OfDays)]
    days = [one.first + timedelta(days=n) for one in walked for n in range((one.last - one.first).days + 1)]
    assert days == [since + timedelta(days=n) for n in range(length + 1)]


@pytest.mark.parametrize("day", ["2024-02-31", "0000-01-01"])
def test_a_day_that_there_is_not(day: str) -> None:
    with pytest.raises(Refused) as refused:
        list(searches(Scope(modality="CT", since=day, until="2024-03-01"), ()))
    assert refused.value.code == "node.dataset_invalid"


def test_a_window_to_the_end_of_the_calendar() -> None:
    scope = Scope(modality="CT", since="9999-12-30", until="9999-12-31")
    assert len(list(searches(scope, ()))) == 1


@given(st.text(max_size=20), st.text(max_size=20))
def test_a_target_is_one_path_and_one_query(segment: str, value: str) -> None:
    with contextlib.suppress(UnicodeEncodeError):  # lone surrogates never get this far
        target = Target((segment,), (("PatientID", value),)).below("/root/").decode("ascii")
        path, _, query = target.partition("?")
        assert path.count("/") == 2 and query.count("=") == 1
        assert not set(target) & set("\r\n #&\\")


def test_every_search_carries_a_key(tmp_path: Path) -> None:
    (tmp_path / "group").write_text("P1\nP2")
    scopes: list[dict[str, Any]] = [
        {"studies": ["1.2.1"]}, {"patients": "group"},
        {"modality": "CT", "since": "2024-01-01", "until": "2024-02-15"},
    ]  # fmt: skip
    for scope in scopes:
        with pacs(IMAGES) as server:
            assert not any(opened(server, tmp_path, scope).values())
            for seen in server.seen:
                key = seen.asked("PatientID") or (seen.asked("ModalitiesInStudy") and seen.asked("StudyDate"))
                assert key or seen.path.startswith("/studies/1.2.")
                assert "metadata" in seen.path or seen.asked("includefield")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b"P1\n*\n", "node.query_broad"), (b"", "node.query_broad"), (b"\n \n", "node.query_broad"),
        (b"P?\n", "node.query_broad"), (b"P1\x00P2\n", "node.dataset_invalid"),
        (b"P1\x0bP2\n", "node.dataset_invalid"), (b"P1\xc2\x85P2\n", "node.dataset_invalid"),
        ("\u00a0P1".encode(), "node.dataset_invalid"), (b"P1,P2\n", "node.query_broad"),
        (b"\xff\n", "node.dataset_invalid"), (b"e\xcc\x81\n", "node.dataset_invalid"),
        (b"A" * 100, "node.query_broad"),
    ],
)  # fmt: skip
def test_a_broad_group_is_refused_before_a_byte_is_sent(tmp_path: Path, text: bytes, code: str) -> None:
    (tmp_path / "group").write_bytes(text)
    with pacs(IMAGES) as server:
        with pytest.raises(Refused) as refused:
            opened(server, tmp_path, {"patients": "group"})
        assert server.seen == []
    assert refused.value.code == code
    assert "P1" not in refused.value.detail


def test_an_unsafe_secret_or_authority_is_refused_before_a_byte_is_sent(tmp_path: Path) -> None:
    (tmp_path / "open").write_text("token")
    write_private(tmp_path / "empty", b"")
    for secret in ("open", "empty", "absent"):
        with pacs(IMAGES) as server:
            with pytest.raises(Refused) as refused:
                opened(server, tmp_path, {"studies": ["1.2.1"]}, auth="bearer", secret=secret)
            assert server.seen == []
        assert refused.value.code == "node.key_unsafe"


@pytest.mark.parametrize("name", ["another patient", "rows as a link"])
def test_a_study_of_someone_else(name: str, tmp_path: Path) -> None:
    with pacs(IMAGES, Trouble(TROUBLES[name], "/studies?")) as server, finder(server, tmp_path) as finds:
        if name == "another patient":
            with pytest.raises(Refused) as refused:
                finds.studies(OfPatient("P1"))
            assert refused.value.code == "node.dataset_invalid"
        else:
            assert [study.uid for study in finds.studies(OfPatient("P1"))[0]] == ["1.2.1"]


def test_a_study_of_another_day(tmp_path: Path) -> None:
    late = [Image("1.2.4", "1.2.4.1", "1.2.4.1.1", day="20240108")]
    with pacs(IMAGES) as server, finder(server, tmp_path) as finds:
        assert [study.uid for study in finds.studies(DAYS)[0]] == ["1.2.1"]
    unfiltered = Trouble(lambda _, answer: type(answer)(200, answer.kind, _listed(late)), "/studies?")
    with pacs(IMAGES, unfiltered) as server, finder(server, tmp_path) as finds, pytest.raises(Refused) as no:
        finds.studies(DAYS)
    assert no.value.code == "node.dataset_invalid"


def _listed(images: list[Image]) -> bytes:
    return json.dumps([image.header() for image in images]).encode()


def test_pages_until_there_is_none(tmp_path: Path) -> None:
    many = [Image("1.2.1", "1.2.1.1", f"1.2.1.1.{n}") for n in range(5)]
    with pacs(many) as server, finder(server, tmp_path) as finds:
        assert len(finds.images(Study("1.2.1"))) == 5
        assert [seen.asked("offset") for seen in server.seen] == [["0"], ["2"], ["4"], ["5"]]


def test_a_server_that_gives_less_than_a_page_at_a_time(tmp_path: Path) -> None:
    many = [Image("1.2.1", "1.2.1.1", f"1.2.1.1.{n}") for n in range(5)]

    def stingy(_: Any, answer: Any) -> Any:
        return type(answer)(200, answer.kind, json.dumps(json.loads(answer.body)[:1]).encode())

    with pacs(many, Trouble(stingy)) as server, finder(server, tmp_path) as finds:
        assert len(finds.images(Study("1.2.1"))) == 5


def test_no_end_of_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qido, "MAX_FOUND", 3)
    many = [Image("1.2.1", "1.2.1.1", f"1.2.1.1.{n}") for n in range(9)]
    with pacs(many) as server, finder(server, tmp_path) as finds, pytest.raises(Refused) as refused:
        finds.images(Study("1.2.1"))
    assert refused.value.code == "node.dataset_invalid"


def test_a_modality_that_was_not_asked_for_is_no_part_of_the_dataset(tmp_path: Path) -> None:
    both = [Image("1.2.1", "1.2.1.1", "1.2.1.1.1"), Image("1.2.1", "1.2.1.2", "1.2.1.2.1", modality="SR")]
    scope = {"modality": "CT", "since": "2024-01-01", "until": "2024-01-03"}

    def whatever(request: Any, answer: Any) -> Any:
        return type(answer)(
            200, answer.kind, _listed(both) if request.seen.asked("offset") == ["0"] else b"[]"
        )

    with pacs(both, Trouble(whatever, "instances?")) as server:
        assert opened(server, tmp_path, scope) == {"1.2.1.1.1": 0}


BAD = ["not-a-uid", "1.2." + "3" * 70, "1..2", "", "1.2/../3"]


@pytest.mark.parametrize("uid", BAD)
@pytest.mark.parametrize("which", ["study", "series", "sop"])
def test_a_malformed_uid_costs_what_has_it(which: str, uid: str, tmp_path: Path) -> None:
    changed: dict[str, Any] = {which: uid}
    bad = replace(Image("1.2.9", "1.2.9.1", "1.2.9.1.1", day="20240101"), **changed)
    scope = {"modality": "CT", "since": "2024-01-01", "until": "2024-01-01"}
    with pacs([IMAGES[0], bad]) as server:
        told = opened(server, tmp_path, scope)
    assert told.pop(IMAGES[0].sop) == Quarantine.NONE
    (name,) = told
    assert told[name] == Quarantine.UID_MISSING
    assert not uid or name == (bad.sop if which == "series" else uid)


def test_an_image_that_is_there_twice_costs_that_image(tmp_path: Path) -> None:
    again = [replace(IMAGES[0], series="1.2.1.2"), replace(IMAGES[0], sop="1.2.1.1.2")]
    with pacs([IMAGES[0], *again]) as server:
        told = opened(server, tmp_path, {"studies": ["1.2.1"]})
    assert told == {IMAGES[0].sop: Quarantine.DUPLICATE, "1.2.1.1.2": Quarantine.NONE}


def test_a_study_of_two_patients(tmp_path: Path) -> None:
    both = [IMAGES[0], replace(IMAGES[0], sop="1.2.1.1.2", patient="P2")]

    def listed(request: Any, answer: Any) -> Any:
        asked = [one for one in both if request.seen.asked("PatientID") == [one.patient]]
        start = int(request.seen.asked("offset")[0])
        return type(answer)(200, answer.kind, _listed(asked[start:]))

    # Both were asked for, and nobody can say whose study it is; of one, the other's image is a stranger.
    unclear = (Quarantine.PATIENT_INVALID, Quarantine.PATIENT_INVALID)
    for group, fates in (("P1\nP2", unclear), ("P1", (Quarantine.NONE, Quarantine.CHANGED))):
        (tmp_path / "group").write_text(group)
        with pacs(both, Trouble(listed, "/studies?")) as server:
            told = opened(server, tmp_path, {"patients": "group"})
        assert told == dict(zip((IMAGES[0].sop, "1.2.1.1.2"), fates, strict=True))


def test_a_server_that_ignores_case_widens_nothing(tmp_path: Path) -> None:
    both = [replace(IMAGES[0], patient="a-1"), replace(IMAGES[1], patient="A-1")]
    (tmp_path / "group").write_text("A-1")

    def whatever(request: Any, answer: Any) -> Any:
        first = request.seen.asked("offset") == ["0"]
        return type(answer)(200, answer.kind, _listed(both) if first else b"[]")

    with pacs(both, Trouble(whatever, "/studies?")) as server:
        assert opened(server, tmp_path, {"patients": "group"}) == {IMAGES[1].sop: Quarantine.NONE}


@pytest.mark.parametrize(
    ("day", "reason"),
    [
        ("", Quarantine.VALUE_MISSING),
        ("2024.01.01", Quarantine.FILE_INVALID),
        ("20240101x", Quarantine.FILE_INVALID),
    ],
)
def test_an_image_without_the_date_that_was_asked_for(day: str, reason: Quarantine, tmp_path: Path) -> None:
    scope = {"modality": "CT", "since": "2024-01-01", "until": "2024-01-01"}
    undated = replace(IMAGES[0], day=day)
    metadata = Trouble(lambda _, answer: type(answer)(200, answer.kind, _listed([undated])), "/metadata")
    with pacs(IMAGES, metadata) as server:
        assert opened(server, tmp_path, scope) == {IMAGES[0].sop: reason}


def test_a_volume_without_one_of_its_slices_is_none(tmp_path: Path) -> None:
    slices = [Image("1.2.1", "1.2.1.1", f"1.2.1.1.{n}") for n in range(3)]
    whole = Image("1.2.1", "1.2.1.2", "1.2.1.2.1")
    short = Trouble(lambda _, answer: type(answer)(200, answer.kind, _listed(slices[:2])), "1.2.1.1/metadata")
    around = Surroundings(tmp_path, 1, lambda _what, _done, _of: None)
    with pacs([*slices, whole], short) as server:
        scope = {"url": server.url, "scope": {"studies": ["1.2.1"]}, "record": "series"}
        described = manifest(scope, (0, 0, 0))
        with contextlib.closing(DicomWebSource(QUICK).open(described, around)) as records:
            told = dict(zip(records.index.locators, records.index.quarantine.tolist(), strict=True))
    lost = Quarantine.TRANSFER_FAILED
    assert told == {slices[0].sop: lost, slices[2].sop: lost, whole.series: Quarantine.NONE}


def test_a_refusal_does_not_wait_for_calls_that_nobody_needs(tmp_path: Path) -> None:
    over = threading.Event()

    def stuck() -> Iterator[bytes]:
        yield b"["
        over.wait(30)

    slow = Trouble(lambda _, answer: type(answer)(200, answer.kind, stuck()), "1.2.2/instances")
    broken = Trouble(TROUBLES["not JSON"], "1.2.1/instances")
    around = Surroundings(tmp_path, 1, lambda _what, _done, _of: None)
    with pacs(IMAGES, slow, broken) as server:
        described = manifest({"url": server.url, "scope": {"studies": ["1.2.1", "1.2.2"]}})
        with pytest.raises(Refused):
            DicomWebSource(Limits(call_s=60.0, idle_s=60.0)).open(described, around)
        assert not over.is_set() and not [t for t in threading.enumerate() if t.name.startswith("ahead")]
        over.set()
