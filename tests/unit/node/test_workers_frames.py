from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapha.node.sources.interface import Quarantine
from rapha.node.sources.workers import frames
from rapha.node.sources.workers.interface import Item, Limits

paths = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20)
items = st.builds(
    Item,
    st.binary(max_size=50),
    st.lists(paths, max_size=4).map(tuple),
    st.lists(st.binary(max_size=50), max_size=4).map(tuple),
)


@given(st.lists(items, max_size=5), st.integers(0, 2**40))
def test_items_arrive_as_they_were_sent(sent: list[Item], start: int) -> None:
    stream = b"".join(frames.encode_item(start + n, item) for n, item in enumerate(sent))
    found = list(frames.read_items(io.BytesIO(stream)))
    assert found == [((start + n) % 2**32, item) for n, item in enumerate(sent)]


@given(
    st.lists(st.tuples(st.integers(0, 2**32 - 1), st.binary(max_size=40), st.booleans()), max_size=6),
    st.integers(1, 7),
)
def test_answers_arrive_in_pieces_of_any_size(sent: list[tuple[int, bytes, bool]], piece: int) -> None:
    stream = b"".join(frames.encode_answer(n, Quarantine.NONE, r, spent=s) for n, r, s in sent)
    received, found = bytearray(), []
    for start in range(0, len(stream), piece):
        received += stream[start : start + piece]
        while (frame := frames.take_answer(received)) is not None:
            found.append((frame.ordinal, frame.reply, frame.spent))
    assert found == sent
    assert not received


@given(st.binary(max_size=60))
def test_any_bytes_are_a_frame_or_garbage(data: bytes) -> None:
    received = bytearray(data)
    try:
        frame = frames.take_answer(received)
    except frames.GarbageError:
        return
    if frame is None:
        assert bytes(received) == data
    else:
        assert frame.verdict is Quarantine.NONE or not frame.reply
        head = frames.encode_answer(frame.ordinal, frame.verdict, frame.reply, spent=frame.spent)
        if frame.mark:
            head = frames.encode_mark(frame.ordinal)
        assert head + received == data


def test_each_verdict_arrives() -> None:
    for verdict in Quarantine:
        frame = frames.take_answer(bytearray(frames.encode_answer(1, verdict, b"")))
        assert frame is not None
        assert (frame.verdict, frame.spent) == (verdict, False)


def test_a_mark_is_no_answer() -> None:
    frame = frames.take_answer(bytearray(frames.encode_mark(7)))
    assert frame is not None
    assert (frame.ordinal, frame.mark, frame.chosen, frame.verdict) == (7, True, False, Quarantine.NONE)


@pytest.mark.parametrize(
    "data",
    [
        b"\0\0\0\0\x7f\0\0\0\0",
        b"\0\0\0\0\x17\0\0\0\0",
        b"\0\0\0\0\x08\x01\0\0\0x",
        b"\0\0\0\0\x40\x01\0\0\0x",
        b"\0\0\0\0\xc0\0\0\0\0",
        b"\0\0\0\0\0\x01\0\x10\0",
        b"\0\0\0\0\0\xff\xff\xff\xff",
    ],
)
def test_garbage_is_seen_before_its_end(data: bytes) -> None:
    with pytest.raises(frames.GarbageError):
        frames.take_answer(bytearray(data))


LIMITS = Limits(memory_bytes=100, file_bytes=40)


@pytest.mark.parametrize(
    ("item", "fits"),
    [
        (Item(b""), True),
        (Item(b"x", ("a/b", "ä\udcff")), True),
        (Item(b"", data=(bytes(40),)), True),
        (Item(b"", data=(bytes(41),)), False),
        (Item(b"", data=(bytes(40), bytes(11))), False),
        (Item(bytes(frames.MAX_ARGS + 1)), False),
        (Item(b"", ("a",) * (frames.MAX_STORED + 1)), False),
        (Item(b"", ("",)), False),
        (Item(b"", ("a\0b",)), False),
        (Item(b"", ("\ud800",)), False),
        (Item(b"", ("a" * frames.MAX_PATH,)), False),
    ],
)
def test_what_fits(item: Item, fits: bool) -> None:
    assert frames.fits(item, LIMITS) is fits
