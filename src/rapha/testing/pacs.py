"""A PACS in memory that answers DICOMweb (PS3.18) as it should, or otherwise (`rapha.testing.troubles`).

Anyone can hold their own client against it: every trouble can be had for searches, metadata,
frames or whole instances, the first few times or always.
"""

from __future__ import annotations

import contextlib
import json
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

from rapha.spec.dataset import DatasetManifest
from rapha.testing.front import Seen

ROOT: Final = "/dicom-web"
NATIVE: Final = "1.2.840.10008.1.2.1"
SIDE: Final = 4
"""Rows and columns of every image: 16 bits a pixel."""
NAME: Final = "Sentinel^Patricia"
"""Every patient's name: nothing of it may be kept anywhere."""
JSON: Final = "application/dicom+json"
BOUNDARY: Final = "a-part-of-it"

Body = bytes | Iterable[bytes]


@dataclass(frozen=True, slots=True)
class Image:
    """One stored image."""

    study: str
    series: str
    sop: str
    patient: str = "P1"
    modality: str = "CT"
    day: str = "20240102"
    value: int = 0

    @property
    def pixels(self) -> bytes:
        """Its frame: `value`, then `value + 1`, row by row."""
        count = SIDE * SIDE
        return struct.pack(f"<{count}H", *((self.value + i) % 4096 for i in range(count)))

    def header(self) -> dict[str, Any]:
        """Its metadata in the DICOM JSON Model."""
        return {
            "00080016": {"vr": "UI", "Value": ["1.2.840.10008.5.1.4.1.1.2"]},
            "00080018": {"vr": "UI", "Value": [self.sop]},
            "00080020": {"vr": "DA", "Value": [self.day]},
            "00080060": {"vr": "CS", "Value": [self.modality]},
            "00081030": {"vr": "LO", "Value": [f"for {NAME}"]},
            "00100010": {"vr": "PN", "Value": [{"Alphabetic": NAME}]},
            "00100020": {"vr": "LO", "Value": [self.patient]},
            "00100030": {"vr": "DA", "Value": ["19550315"]},
            "0020000D": {"vr": "UI", "Value": [self.study]},
            "0020000E": {"vr": "UI", "Value": [self.series]},
            "00280002": {"vr": "US", "Value": [1]},
            "00280004": {"vr": "CS", "Value": ["MONOCHROME2"]},
            "00280010": {"vr": "US", "Value": [SIDE]},
            "00280011": {"vr": "US", "Value": [SIDE]},
            "00280100": {"vr": "US", "Value": [16]},
            "00280101": {"vr": "US", "Value": [12]},
            "00280102": {"vr": "US", "Value": [11]},
            "00280103": {"vr": "US", "Value": [0]},
        }


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes over the wire; a body in pieces has no Content-Length and ends with the connection."""

    status: int
    kind: str
    body: Body
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked, and what the PACS holds."""

    seen: Seen
    images: Sequence[Image]


Change = Callable[[Request, Answer], Answer | None]
"""Makes trouble of an honest answer; None hangs up."""


@dataclass(slots=True)
class Trouble:
    """When to answer otherwise.

    Attributes:
        change: one of `troubles.TROUBLES`, or any other.
        where: a part of the path that it is for, such as `/frames/`; `instances?` is a search for images.
        times: how often, before the PACS is honest again.
    """

    change: Change
    where: str = ""
    times: int = 10**9


@dataclass(frozen=True, slots=True)
class Pacs:
    """A running server: its DICOMweb root, and what it was asked so far."""

    url: str
    seen: list[Seen] = field(default_factory=list)


@contextmanager
def pacs(images: Sequence[Image], *troubles: Trouble) -> Iterator[Pacs]:
    """A PACS on loopback that holds `images`; of several troubles for a request, the first counts."""
    seen: list[Seen] = []
    server = _Server(images, troubles, seen)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield Pacs(f"http://127.0.0.1:{server.server_port}{ROOT}", seen)
    finally:
        server.over.set()
        server.shutdown()
        thread.join()
        server.server_close()


def manifest(source: Mapping[str, Any], shape: Sequence[int] = (SIDE, SIDE)) -> DatasetManifest:
    """A dataset of frames: their pixels, kind and age band; `source` is completed to a `dicomweb` one."""
    fields = [
        {"name": "pixels", "dtype": "float32", "shape": list(shape), "path": "@pixels"},
        {"name": "kind", "dtype": "string", "path": "Modality"},
        {"name": "age", "dtype": "string", "path": "@age_band"},
    ]
    return DatasetManifest.parse(
        {
            "version": 1, "dataset": "scans", "title": "Scans", "profile": "imaging", "modality": "ct",
            "fields": fields, "purposes": [], "price_per_record": "0", "opt_outs": "none", "salt": "0" * 64,
            "provenance": {"source": "test", "licence": "none"}, "patient_id": "PatientID",
            "organisations": [], "source": {"kind": "dicomweb", **source},
        }
    )  # fmt: skip


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, images: Sequence[Image], troubles: Sequence[Trouble], seen: list[Seen]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.images, self.troubles, self.seen = images, troubles, seen
        self.over = threading.Event()
        self.lock = threading.Lock()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is the point of many a test."""

    def trouble_for(self, seen: Seen) -> Change | None:
        with self.lock:
            self.seen.append(seen)
            for trouble in self.troubles:
                asked = seen.path + ("?" if seen.query else "")
                if trouble.where in asked and trouble.times > 0:
                    trouble.times -= 1
                    return trouble.change
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 2**16  # head and body in one packet: a client's delayed acknowledgement costs 40 ms
    disable_nagle_algorithm = True
    timeout = 30.0
    server: _Server

    def do_GET(self) -> None:
        """Answer honestly, or with trouble."""
        parts = urlsplit(self.path)
        query = tuple(parse_qsl(parts.query, keep_blank_values=True))
        seen = Seen("GET", parts.path.removeprefix(ROOT), query, dict(self.headers.items()))
        change = self.server.trouble_for(seen)
        answer: Answer | None = honest(self.server.images, seen)
        if change is not None and answer is not None:
            answer = change(Request(seen, self.server.images), answer)
        if answer is None:
            self.close_connection = True
            return
        self._send(answer)

    def _send(self, answer: Answer) -> None:
        whole = isinstance(answer.body, bytes)
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.kind)
        if isinstance(answer.body, bytes) and not any(n == "Content-Length" for n, _ in answer.headers):
            self.send_header("Content-Length", str(len(answer.body)))
        for name, value in answer.headers:
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = not whole or bool(answer.headers)
        with contextlib.suppress(OSError):
            for piece in [answer.body] if isinstance(answer.body, bytes) else answer.body:
                if self.server.over.is_set():
                    return
                self.wfile.write(piece)
                self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the name is the base class's
        """Nothing on stderr; `seen` tells."""


def honest(images: Sequence[Image], seen: Seen) -> Answer:
    """What a PACS that holds `images` answers (PS3.18, 10.4 and 10.6)."""
    match seen.path.strip("/").split("/"):
        case ["studies"]:
            return _page(_each_once(_matching(images, seen), lambda image: image.study), seen)
        case ["studies", study, "instances"]:
            return _page([i for i in _matching(images, seen) if i.study == study], seen)
        case ["studies", study, "series", series, "metadata"]:
            return as_json([i.header() for i in images if (i.study, i.series) == (study, series)])
        case ["studies", study, "series", series, "instances", sop, *rest]:
            found = [i for i in images if (i.study, i.series, i.sop) == (study, series, sop)]
            return _instance(found[0], rest) if found else Answer(404, "text/plain", b"")
        case _:
            return Answer(404, "text/plain", b"")


def _instance(image: Image, rest: Sequence[str]) -> Answer:
    match rest:
        case ["metadata"]:
            return as_json([image.header()])
        case ["frames", "1"]:
            part = f"application/octet-stream; transfer-syntax={NATIVE}"
            return multipart([(part, image.pixels)])
        case _:
            return Answer(406, "text/plain", b"")


def multipart(parts: Sequence[tuple[str, bytes]]) -> Answer:
    """A multipart/related answer of (content type, body)s."""
    body = b""
    for kind, content in parts:
        head = f"--{BOUNDARY}\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\n\r\n"
        body += head.encode() + content + b"\r\n"
    kind = f'multipart/related; type="application/octet-stream"; boundary={BOUNDARY}'
    return Answer(200, kind, body + f"--{BOUNDARY}--".encode())


def _matching(images: Sequence[Image], seen: Seen) -> list[Image]:
    found = list(images)
    for key, attribute in (
        ("PatientID", "patient"),
        ("ModalitiesInStudy", "modality"),
        ("Modality", "modality"),
    ):
        for value in seen.asked(key):
            found = [image for image in found if getattr(image, attribute) == value]
    for days in seen.asked("StudyDate"):
        first, _, last = days.partition("-")
        found = [image for image in found if first <= image.day <= last]
    return found


def _each_once(images: Sequence[Image], key: Callable[[Image], str]) -> list[Image]:
    return list({key(image): image for image in images}.values())


def _page(images: Sequence[Image], seen: Seen) -> Answer:
    start = int(next(iter(seen.asked("offset")), "0"))
    count = int(next(iter(seen.asked("limit")), "1000"))
    # As many servers do, with more than was asked for: names and birth dates among it.
    return as_json([image.header() for image in images[start : start + count]])


def as_json(value: object) -> Answer:
    """An answer in the DICOM JSON Model."""
    return Answer(200, JSON, json.dumps(value).encode())
