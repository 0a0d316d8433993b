"""multipart/related answers: exactly a list of parts, or nothing."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapha.node.sources.imaging.multipart import Malformed, MediaType, media_type, parts

KIND = MediaType("multipart/related", {"boundary": "b"})
ONE = b"--b\r\nContent-Type: a/b\r\n\r\nbody\r\n--b--"


def test_parts_are_views_with_their_types() -> None:
    content = (
        b"--b\r\ncontent-type: image/jls; transfer-syntax=1.2\r\nContent-Length: 4\r\n\r\n\r\n-x\r\n--b--\r\n"
    )
    (part,) = parts(content, KIND, 1)
    assert part.kind == MediaType("image/jls", {"transfer-syntax": "1.2"})
    assert bytes(part.body) == b"\r\n-x"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"--b--",
        b"--b\r\n--b--",
        ONE[:-1],
        ONE[:-2],
        ONE[:-4],
        b"preamble\r\n" + ONE,
        b"\r\n\r\n" + ONE,
        ONE + b"epilogue",
        ONE + b"\r\n\r\n\r\n",
        ONE + b"\r\n--b\r\n\r\n",
        ONE.replace(b"\r\n--b--", b"\n--b--"),
        ONE.replace(b"--b--", b"--bc--"),
        ONE.replace(b"--b\r\n", b"--b \r\n"),
        ONE.replace(b"Content-Type: a/b", b"X: y"),
        ONE.replace(b"Content-Type: a/b", b"Content-Type: a"),
        ONE.replace(b"Content-Type: a/b", b"Content-Type : a/b"),
        ONE.replace(b"Content-Type: a/b", b"Content-Type: a/b\r\n folded: x"),
        ONE.replace(b"Content-Type: a/b", b"Content-Type: a/b\r\nContent-Type: c/d"),
        ONE.replace(b"Content-Type: a/b", b"Content-Type: a/b\r\nContent-Length: 5"),
        ONE.replace(b"Content-Type: a/b", b"Content-Type: a/b\r\nContent-Length: 04"),
        ONE.replace(b"Content-Type: a/b", b"Content-Type: a/b\r\nContent-Length: \xb2"),
        ONE.replace(b"Content-Type: a/b", b"Content-Type: a/b\r\nContent-Transfer-Encoding: base64"),
        ONE.replace(b"Content-Type: a/b", b"Content-Type: a/b" + b"\r\nX: y" * 20),
        ONE.replace(b"Content-Type: a/b", b"Content-Type: a/b\r\nX: " + b"y" * 5000),
        ONE.replace(b"body", b"body\r\n--b\r\nContent-Type: a/b\r\n\r\nsecond"),
    ],
)
def test_what_is_no_list_of_one_part(content: bytes) -> None:
    with pytest.raises(Malformed):
        parts(content, KIND, 1)


@pytest.mark.parametrize("boundary", ["", " ", "b ", "b" * 71, "b\r\n", "b\0", "é", "b;c"])
def test_boundaries_that_rfc_2046_does_not_have(boundary: str) -> None:
    with pytest.raises(Malformed):
        parts(ONE, MediaType("multipart/related", {"boundary": boundary}), 1)


def test_only_related_parts() -> None:
    with pytest.raises(Malformed):
        parts(ONE, MediaType("multipart/mixed", {"boundary": "b"}), 1)


def test_media_types_as_servers_write_them() -> None:
    assert media_type("application/dicom+json") == MediaType("application/dicom+json", {})
    assert media_type("Text/HTML ; Charset = utf-8 ").parameters == {"charset": "utf-8"}
    orthanc = 'multipart/related; type="image/jp2; transfer-syntax=1.2.840.10008.1.2.4.91"; boundary=x-1'
    assert media_type(orthanc).parameters["boundary"] == "x-1"
    assert media_type('a/b; c=""').parameters == {"c": ""}


@pytest.mark.parametrize(
    "text",
    ["", "a", "a/", "/b", "a/b;", "a/b; c", "a/b; c=", 'a/b; c="x', 'a/b; c="x\\""', "a/b c=d", "a/b, c/d",
     "a/b; c=d; C=e", "a/b\r\n", "a/b; c=" + "d" * 5000],
)  # fmt: skip
def test_what_is_no_media_type(text: str) -> None:
    with pytest.raises(Malformed):
        media_type(text)


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_parse_or_are_malformed(noise: bytes, wrapped: bool) -> None:
    content = b"--b\r\n" + noise + b"\r\n--b--" if wrapped else noise
    with contextlib.suppress(Malformed):
        for part in parts(content, KIND, 3):
            assert b"\r\n--b" not in bytes(part.body)


@given(st.text(max_size=100))
def test_any_text_is_a_media_type_or_malformed(text: str) -> None:
    with contextlib.suppress(Malformed):
        assert "/" in media_type(text).name


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=4))
def test_what_was_put_in_comes_out(bodies: list[bytes]) -> None:
    bodies = [body.replace(b"--b", b"") for body in bodies]
    content = b"".join(b"--b\r\nContent-Type: a/b\r\n\r\n" + body + b"\r\n" for body in bodies) + b"--b--"
    assert [bytes(part.body) for part in parts(content, KIND, 4)] == bodies
