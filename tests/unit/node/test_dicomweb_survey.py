"""From a PACS's metadata to instances, and from instances to files; several calls at a time."""

from __future__ import annotations

import contextlib
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from rapha.node.sources.imaging.ahead import ahead
from rapha.node.sources.imaging.assemble import assembled
from rapha.node.sources.imaging.attributes import Instance
from rapha.node.sources.imaging.describe import Describer
from rapha.node.sources.imaging.headers import Attribute, Setup
from rapha.node.sources.imaging.http import Pacs as Client
from rapha.node.sources.imaging.order import Args, decode_args, encode
from rapha.node.sources.imaging.retrieval import Remote
from rapha.node.sources.imaging.wado import Breaker, Wado
from rapha.node.sources.imaging.wire import Limits
from rapha.node.sources.interface import Quarantine
from rapha.node.sources.workers.interface import Unusable
from rapha.spec.imaging import DicomWebSource
from rapha.testing.pacs import NAME, NATIVE, Image, Trouble, multipart, pacs
from rapha.testing.troubles import TROUBLES

IMAGE = Image("1.2.1", "1.2.1.1", "1.2.1.1.1", value=5)
SETUP = Setup(
    (Attribute("PatientName", 0x00100010, "PN"), Attribute("Modality", 0x00080060, "CS")), places=True
)
ARGS = encode(Args(0, ()))


def described(header: dict[str, Any]) -> Instance:
    return Describer(SETUP).instance(header, "there")


def groups(*places: float) -> list[dict[str, Any]]:
    return [
        {"00209113": {"vr": "SQ", "Value": [{"00200032": {"vr": "DS", "Value": [0, 0, place]}}]}}
        for place in places
    ]


SHARED = [{"00209116": {"vr": "SQ", "Value": [{"00200037": {"vr": "DS", "Value": [1, 0, 0, 0, 1, 0]}}]}}]


def several(frames: list[dict[str, Any]], shared: object = SHARED) -> dict[str, Any]:
    return {
        **IMAGE.header(),
        "00280008": {"vr": "IS", "Value": [len(frames)]},
        "52009229": {"vr": "SQ", "Value": shared},
        "52009230": {"vr": "SQ", "Value": frames},
    }


def test_an_image_is_described_without_a_name() -> None:
    found = described({**IMAGE.header(), "00083002": {"vr": "UI", "Value": [NATIVE]}})
    assert (found.sop_uid, found.rows, found.syntax, found.locator) == (IMAGE.sop, 4, NATIVE, "there")
    assert found.values == {"PatientName": None, "Modality": "CT"}
    assert NAME not in repr(found)


def test_frames_have_their_places() -> None:
    assert described(several(groups(0, 2.5, 5))).places == (0.0, 2.5, 5.0)
    assert described(several(groups(0, 2.5), [])).places == ()
    assert described(several([*groups(0), {}])).places == ()


def test_frames_that_lean_have_no_common_places() -> None:
    tilted = groups(0, 1)
    tilted[1]["00209116"] = {"vr": "SQ", "Value": [{"00200037": {"vr": "DS", "Value": [1, 0, 0, 0, 0, 1]}}]}
    assert described(several(tilted)).places == ()
    skewed = [{"00209116": {"vr": "SQ", "Value": [{"00200037": {"vr": "DS", "Value": [1, 0, 0, 1, 0, 0]}}]}}]
    assert described(several(groups(0, 1), skewed)).places == ()


@contextlib.contextmanager
def remote(folder: Path, *troubles: Trouble) -> Iterator[tuple[Remote, list[Any]]]:
    with pacs([IMAGE], *troubles) as server:
        source = DicomWebSource.parse(
            {"kind": "dicomweb", "url": server.url, "scope": {"studies": ["1.2.1"]}}
        )
        with contextlib.closing(Client(source, folder, Limits(call_s=2.0, attempts=1))) as client:
            yield Remote(Wado(client, Breaker()), "frame"), server.seen


def _whole(body: bytes, kind: str) -> Trouble:
    def change(request: Any, answer: Any) -> Any:
        if not request.seen.path.endswith(IMAGE.sop):
            return answer
        if kind == "multipart":
            return multipart([("application/dicom", body)])
        return type(answer)(200, kind, body)

    return Trouble(change, "/instances/")


def _stored() -> bytes:
    return assembled(IMAGE.header(), memoryview(IMAGE.pixels), NATIVE, None)


@pytest.mark.parametrize("kind", ["multipart", "application/dicom"])
def test_a_whole_instance_where_there_are_no_frames(kind: str, tmp_path: Path) -> None:
    missing = Trouble(TROUBLES["404"], "/frames/")
    with remote(tmp_path, missing, _whole(_stored(), kind)) as (retrieval, seen):
        item = retrieval.item(ARGS, [described(IMAGE.header())], 0)
        assert dcmread(io.BytesIO(item.data[0])).pixel_array[0, 0] == 5
        assert [one.path.rsplit("/", 1)[1] for one in seen] == ["metadata", "1", IMAGE.sop]


@pytest.mark.parametrize(
    ("body", "kind"),
    [(b"", "application/dicom"), (b"\0" * 200, "application/dicom"), (b"<html>", "text/html"),
     (b"GIF89a" + b"\0" * 200, "multipart")],
)  # fmt: skip
def test_a_whole_instance_that_is_none(body: bytes, kind: str, tmp_path: Path) -> None:
    missing = Trouble(TROUBLES["404"], "/frames/")
    with remote(tmp_path, missing, _whole(body, kind)) as (retrieval, _), pytest.raises(Unusable) as lost:
        retrieval.item(ARGS, [described(IMAGE.header())], 0)
    assert lost.value.quarantine is Quarantine.TRANSFER_FAILED


def test_one_frame_of_several_is_all_that_is_fetched(tmp_path: Path) -> None:
    frame = Trouble(lambda *_: multipart([("application/octet-stream", IMAGE.pixels)]), "/frames/")
    header = several(groups(0, 1, 2))

    def metadata(_: object, answer: Any) -> Any:
        return type(answer)(200, "application/dicom+json", json.dumps([header]).encode())

    with remote(tmp_path, frame, Trouble(metadata, "/metadata")) as (retrieval, seen):
        for number in (2, 1):
            item = retrieval.item(encode(Args(number, ())), [described(header)], number)
            assert decode_args(item.args).frame == 0
            assert dcmread(io.BytesIO(item.data[0])).NumberOfFrames == 1
        assert [one.path.rsplit("/", 1)[1] for one in seen] == ["metadata", "3", "2"]  # described once


def test_calls_ahead_are_in_order_and_not_too_many() -> None:
    begun: list[int] = []
    lock = threading.Lock()

    def call(number: int) -> int:
        with lock:
            begun.append(number)
        return number * number

    taken = ahead(call, range(100), 4)
    assert [next(taken) for _ in range(3)] == [0, 1, 4]
    assert len(begun) <= 3 + 4
    assert [*taken] == [n * n for n in range(3, 100)]
    assert list(ahead(call, [], 4)) == []


@pytest.mark.parametrize("parallel", [1, 3])
def test_what_a_call_raises_comes_in_its_turn(parallel: int) -> None:
    done = []
    with pytest.raises(ZeroDivisionError):
        for result in ahead(lambda number: 6 // number, [3, 2, 1, 0, 1], parallel):
            done.append(result)
    assert done == [2, 3, 6]
