"""multipart/related answers (RFC 2387, RFC 2046, PS3.18 8.6.1.2.1), as strict as a hostile server deserves.

A parser that is lenient about where a part ends lets a server hide one image behind another; what is not
exactly a list of parts is refused whole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

MAX_HEADER: Final = 4096
"""Bytes of a part's header block, or of a Content-Type."""
MAX_HEADERS: Final = 16
_WORD: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_TYPE: Final = re.compile(rf"({_WORD}/{_WORD})")
_PARAMETER: Final = re.compile(rf'[ \t]*;[ \t]*({_WORD})[ \t]*=[ \t]*(?:({_WORD})|"([^"\\\x00-\x1f\x7f]*)")')
_BOUNDARY: Final = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
_HEADER: Final = re.compile(rf"({_WORD}):[ \t]*([\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?)?[ \t]*")


class Malformed(ValueError):  # noqa: N818  a verdict on what was read
    """Not what the grammar allows. It carries no byte of what was read."""


@dataclass(frozen=True, slots=True)
class MediaType:
    """A Content-Type: lower-case `name`, and its parameters by lower-case name."""

    name: str
    parameters: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Part:
    """One part; its body is a view into the answer."""

    kind: MediaType
    body: memoryview


def media_type(text: str) -> MediaType:
    """Parse a Content-Type (RFC 9110, 8.3). Raises `Malformed`, also where a parameter comes twice."""
    found = _TYPE.match(text) if len(text) <= MAX_HEADER else None
    if found is None:
        raise Malformed("not a media type")
    at, parameters = found.end(), dict[str, str]()
    while at < len(text.rstrip(" \t")):
        one = _PARAMETER.match(text, at)
        if one is None or one[1].lower() in parameters:
            raise Malformed("not a media type")
        parameters[one[1].lower()] = one[2] if one[2] is not None else one[3]
        at = one.end()
    return MediaType(found[1].lower(), parameters)


def parts(content: bytes, kind: MediaType, limit: int) -> tuple[Part, ...]:
    """The parts of an answer whose Content-Type is `kind`: at least one, at most `limit`.

    Raises:
        Malformed: no or no valid boundary, bytes before the first or after the last part, an unended or
            unlabelled part, a Content-Length that isn't the part's, or too many parts.
    """
    boundary = kind.parameters.get("boundary", "")
    if kind.name != "multipart/related" or not _BOUNDARY.fullmatch(boundary):
        raise Malformed("no boundary")
    dash = b"--" + boundary.encode("ascii")
    at = 2 if content.startswith(b"\r\n") else 0  # the empty preamble that some servers send
    if not content.startswith(dash + b"\r\n", at):
        raise Malformed("bytes before the first part")
    at += len(dash) + 2
    found: list[Part] = []
    while True:
        end = content.find(b"\r\n" + dash, at)
        if end < 0:
            raise Malformed("the last part has no end")
        if len(found) == limit:
            raise Malformed("too many parts")
        found.append(_part(content, at, end))
        at = end + 2 + len(dash)
        if content.startswith(b"--", at):
            break
        if not content.startswith(b"\r\n", at):
            raise Malformed("a part does not end with the boundary")
        at += 2
    if content[at + 2 : at + 6].strip(b"\r\n") or len(content) > at + 6:
        raise Malformed("bytes after the last part")
    return tuple(found)


def _part(content: bytes, start: int, end: int) -> Part:
    head_end = content.find(b"\r\n\r\n", start, min(end, start + MAX_HEADER))
    if head_end < 0:
        raise Malformed("a part has no header")
    headers = _headers(content[start:head_end])
    body = memoryview(content)[head_end + 4 : end]
    if headers.get("content-transfer-encoding", "binary").lower() != "binary":
        raise Malformed("a part is encoded")
    length = headers.get("content-length")
    if length is not None and (not length.isascii() or not length.isdigit() or length != str(len(body))):
        raise Malformed("a part's length is not what it says")
    if "content-type" not in headers:
        raise Malformed("a part has no type")
    return Part(media_type(headers["content-type"]), body)


def _headers(block: bytes) -> dict[str, str]:
    lines = block.decode("latin-1").split("\r\n")
    if len(lines) > MAX_HEADERS:
        raise Malformed("too many headers")
    headers: dict[str, str] = {}
    for line in lines:
        found = _HEADER.fullmatch(line)
        if found is None or found[1].lower() in headers:
            raise Malformed("not a header")
        headers[found[1].lower()] = found[2] or ""
    return headers
