"""Ways in which a PACS is slow, broken or hostile, by name: for `rapha.testing.pacs.Trouble`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from rapha.testing.pacs import (
    BOUNDARY,
    JSON,
    NATIVE,
    ROOT,
    Answer,
    Body,
    Change,
    Image,
    Request,
    as_json,
    honest,
    multipart,
)

_DRIP_S: Final = 0.05
_END: Final = f"\r\n--{BOUNDARY}--".encode()
_NATIVE_TYPE: Final = f"application/octet-stream; transfer-syntax={NATIVE}"
_UNKNOWN_TYPE: Final = "application/octet-stream; transfer-syntax=1.2.3"


def _text(answer: Answer) -> bytes:
    return answer.body if isinstance(answer.body, bytes) else b"".join(answer.body)


def _onas_json(change: Callable[[list[Any]], object]) -> Change:
    return lambda _, answer: replace(
        answer, body=json.dumps(change(json.loads(_text(answer) or b"[]"))).encode()
    )


def _with(tag: str, attribute: object) -> Change:
    return _onas_json(lambda sets: [{**one, tag: attribute} for one in sets])


def _on_bytes(change: Callable[[bytes], bytes]) -> Change:
    return lambda _, answer: replace(answer, body=change(_text(answer)))


def _instead(status: int, kind: str = "text/plain", body: Body = b"", **headers: str) -> Change:
    extra = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return lambda _, __: Answer(status, kind, body, extra)


def _endless(piece: bytes, pause: float) -> Iterator[bytes]:
    while True:
        yield piece
        time.sleep(pause)


def _new_every_time(request: Request, answer: Answer) -> Answer:
    number = int(next(iter(request.seen.asked("offset")), "0"))
    if request.seen.path == "/studies":
        return as_json([Image(f"1.2.9.{number}", "1.2.8", "1.2.7").header()])
    study = request.seen.path.split("/")[2]
    return as_json([Image(study, "1.2.8", f"1.2.7.{number}").header()])


def _first_page_again(request: Request, answer: Answer) -> Answer:
    query = tuple((name, value) for name, value in request.seen.query if name != "offset")
    return honest(request.images, replace(request.seen, query=query))


TROUBLES: Final[Mapping[str, Change]] = {
    "infinite pages": _new_every_time,
    "repeated pages": _first_page_again,
    "slow body": lambda _, answer: replace(answer, body=_endless(b" ", _DRIP_S)),
    "huge body": lambda _, answer: replace(answer, body=_endless(b" " * 2**20, 0.0)),
    "huge length": lambda _, answer: replace(answer, headers=(("Content-Length", str(10 * 2**30)),)),
    "short body": lambda _, a: replace(a, headers=(("Content-Length", str(len(_text(a)) + 9)),)),
    "negative length": lambda _, answer: replace(answer, headers=(("Content-Length", "-1"),)),
    "packed": lambda _, answer: replace(answer, headers=(("Content-Encoding", "gzip"),)),
    "two types": lambda _, answer: replace(answer, headers=(("Content-Type", "text/html"),)),
    "wrong type": lambda _, answer: replace(answer, kind="text/plain"),
    "no type": lambda _, answer: replace(answer, kind=""),
    "login page": _instead(200, "text/html", b"<html>log in</html>"),
    "nothing": _instead(204),
    "empty": lambda _, answer: replace(answer, body=b""),
    "redirect to itself": _instead(302, Location=f"{ROOT}/studies"),
    "redirect to another host": _instead(307, Location="http://192.0.2.1/"),
    "redirect to a file": _instead(301, Location="file:///etc/passwd"),
    "hangs up": lambda _, __: None,
    "401": _instead(401, WWW_Authenticate="Basic"),
    "403": _instead(403),
    "404": _instead(404),
    "500": _instead(500),
    "503": _instead(503),
    "503 for an hour": _instead(503, Retry_After="3600"),
    "429 for a moment": _instead(429, Retry_After="0"),
    "not an array": _instead(200, JSON, b'{"00080018": {"vr": "UI"}}'),
    "not JSON": _instead(200, JSON, b"[{]"),
    "not UTF-8": _instead(200, JSON, b'[{"00080018": {"vr": "UI", "Value": ["\xff"]}}]'),
    "array of text": _instead(200, JSON, b'["00080018"]'),
    "trailing bytes": _on_bytes(lambda body: body + b"[]"),
    "deep JSON": _instead(200, JSON, b'[{"00080018": ' + b"[" * 100_000 + b"]" * 100_000 + b"}]"),
    "nested sequences": _with(
        "52009230", json.loads('{"vr":"SQ","Value":[{"52009230":' * 40 + '{"vr":"SQ"}' + "}]}" * 40)
    ),
    "wide JSON": _instead(200, JSON, b"[{}" + b",{}" * 3_000_000 + b"]"),
    "huge number": _instead(200, JSON, b'[{"00280010": {"vr": "US", "Value": [' + b"9" * 10**6 + b"]}}]"),
    "number past a double": _instead(200, JSON, b'[{"00280010": {"vr": "DS", "Value": [1e999]}}]'),
    "NaN": _instead(200, JSON, b'[{"00280010": {"vr": "US", "Value": [NaN]}}]'),
    "a tag twice": _on_bytes(lambda body: body.replace(b'{"00080016"', b'{"00080060": 1, "00080016"')),
    "no UIDs": _onas_json(lambda sets: [{k: v for k, v in one.items() if k != "00080018"} for one in sets]),
    "another study": _with("0020000D", {"vr": "UI", "Value": ["1.2.66"]}),
    "another patient": _with("00100020", {"vr": "LO", "Value": ["someone else"]}),
    "another image": _with("00080018", {"vr": "UI", "Value": ["1.2.77"]}),
    "two patients": _with("00100020", {"vr": "LO", "Value": ["P1\\P2"]}),
    "rows as text": _with("00280010", {"vr": "LO", "Value": ["four"]}),
    "rows as a list": _with("00280010", {"vr": "US", "Value": [[4]]}),
    "rows as a link": _with("00280010", {"vr": "US", "BulkDataURI": "file:///etc/passwd"}),
    "values as an object": _with("00280010", {"vr": "US", "Value": {"0": 4}}),
    "an attribute as a number": _with("00280010", 4),
    "an attribute without a VR": _with("00280010", {"Value": [4]}),
    "rows past 16 bits": _with("00280010", {"vr": "US", "Value": [70000]}),
    "half a frame count": _with("00280008", {"vr": "IS", "Value": [1.5]}),
    "a million frames": _with("00280008", {"vr": "IS", "Value": [10**6]}),
    "true as a number": _with("00280010", {"vr": "US", "Value": [True]}),
    "no boundary": lambda _, answer: replace(answer, kind="multipart/related"),
    "another boundary": lambda _, answer: replace(answer, kind="multipart/related; boundary=another"),
    "cut multipart": _on_bytes(lambda body: body[: len(body) // 2]),
    "unended multipart": _on_bytes(lambda body: body[:-2]),
    "a boundary in the pixels": _on_bytes(lambda body: body[:-30] + _END + body[-30:]),
    "two parts": lambda _, __: multipart([("application/octet-stream", b"\0" * 32)] * 2),
    "a part of HTML": lambda _, __: multipart([("text/html", b"<html>")]),
    "a short frame": lambda _, __: multipart([(_NATIVE_TYPE, b"\0")]),
    "an unknown syntax": lambda _, __: multipart([(_UNKNOWN_TYPE, b"\0" * 32)]),
}  # fmt: skip
"""Ways to answer otherwise, by name."""
