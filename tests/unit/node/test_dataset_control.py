from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapha.node.datasets import frames, wire
from rapha.spec.refusals import REGISTRY, Refused

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    one, two = socket.socketpair()
    with one, two:
        yield one, two


def test_a_frame_and_its_descriptor_arrive_together(pair: Pair) -> None:
    reading, writing = os.pipe()
    frames.send(pair[0], {"a": 1})
    frames.send(pair[0], {"b": 2}, writing)
    os.close(writing)
    assert frames.receive(pair[1]) == ({"a": 1}, None)
    frame, descriptor = frames.receive(pair[1])
    assert frame == {"b": 2} and descriptor is not None and not os.get_inheritable(descriptor)
    os.write(descriptor, b"x")
    os.close(descriptor)
    assert os.read(reading, 2) == b"x"
    os.close(reading)


def test_the_end_of_the_peer_is_told(pair: Pair) -> None:
    pair[0].send(b"\x00\x00")
    pair[0].close()
    with pytest.raises(frames.Closed):
        frames.receive(pair[1])
    with pytest.raises(frames.Closed):
        frames.send(pair[1], {})


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ((frames.MAX_FRAME + 1).to_bytes(4), "schema.too_large"),
        (b"\xff\xff\xff\xff", "schema.too_large"),
        (b"\x00\x00\x00\x02[]", "schema.json"),
        (b"\x00\x00\x00\x03{ }", "schema.json"),
        (b"\x00\x00\x00\x02{]", "schema.json"),
        (b"\x00\x00\x00\x00", "schema.json"),
    ],
)
def test_what_is_no_frame_refuses(pair: Pair, data: bytes, code: str) -> None:
    pair[0].sendall(data)
    with pytest.raises(Refused) as refused:
        frames.receive(pair[1])
    assert refused.value.code == code


def test_descriptors_of_a_bad_frame_are_closed(pair: Pair) -> None:
    reading, writing = os.pipe()
    socket.send_fds(pair[0], [b"\x00\x00\x00\x02[]"], [writing, writing])
    os.close(writing)
    with pytest.raises(Refused):
        frames.receive(pair[1])
    assert os.read(reading, 1) == b"", "no copy of the writing end is left"
    os.close(reading)


@given(st.dictionaries(st.text(max_size=8), st.none() | st.booleans() | st.text(max_size=8), max_size=5))
def test_no_frame_but_a_request_is_performed(frame: dict[str, object]) -> None:
    with pytest.raises(Refused) as refused:
        wire.read_request(frame)
    assert refused.value.code.startswith("schema.")


@pytest.mark.parametrize(
    "frame",
    [
        {"command": "serve", "arguments": {"split": "validation"}},
        {"command": "serve", "arguments": {"split": "train", "hide_labels": False}},
        {"command": "score", "arguments": {"metrics": []}},
        {"command": "score", "arguments": {"metrics": ["labels"]}},
        {"command": "resolve", "arguments": {}},
        {"command": "exec", "arguments": {}},
    ],
)
def test_hostile_requests_refuse(frame: dict[str, object]) -> None:
    with pytest.raises(Refused, match="schema"):
        wire.read_request(frame)


@pytest.mark.parametrize("code", [c for c, e in REGISTRY.items() if e.depends_on_records])
def test_a_refusal_that_depends_on_records_takes_no_words_along(code: str) -> None:
    said = wire.refusal_frame(Refused(code, "9 patients, CANARY-1"))
    assert said == {"refused": {"code": code, "detail": REGISTRY[code].meaning}}


@pytest.mark.parametrize(
    "frame",
    [
        {},
        {"done": 1},
        {"done": {}, "more": 1},
        {"refused": {"code": "made.up", "detail": ""}},
        {"refused": {}},
    ],
)
def test_a_reply_of_another_form_refuses(frame: dict[str, object]) -> None:
    with pytest.raises(Refused, match=r"node\.internal"):
        wire.read_reply(frame)
