"""The known-identifier tripwire: every encoding that a tensor can carry, and nothing that chance makes."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rapha.node.datasets import hunt, identifiers
from rapha.node.datasets.identifiers import choose, search, texts

RNG = np.random.default_rng(11)
WEIGHTS = RNG.normal(0, 0.05, 8192).astype("<f4").tobytes()
PATIENTS = [f"RX{n:08d}" for n in RNG.integers(0, 10**8, 400).tolist()]


def codes(text: str, dtype: object, scale: float = 1) -> bytes:
    numbers = np.frombuffer(text.encode(), np.uint8).astype(np.float32) / np.float32(scale)
    return numbers.astype(np.dtype(dtype)).tobytes()  # type: ignore[call-overload]


ENCODINGS: dict[str, Callable[[str], bytes]] = {
    "utf-8": str.encode,
    "lower": lambda t: t.lower().encode(),
    "utf-16-le": lambda t: t.encode("utf-16-le"),
    "utf-16-be": lambda t: t.encode("utf-16-be"),
    "utf-32-le": lambda t: t.encode("utf-32-le"),
    "utf-32-be": lambda t: t.encode("utf-32-be"),
    "backwards": lambda t: t[::-1].encode(),
    "backwards utf-16": lambda t: t[::-1].encode("utf-16-le"),
    "i8": lambda t: codes(t, "i1"),
    "i16": lambda t: codes(t, "<i2"),
    "i32": lambda t: codes(t, "<i4"),
    "i64": lambda t: codes(t, "<i8"),
    "i64 big-endian": lambda t: codes(t, ">i8"),
    "bf16": lambda t: codes(t, ml_dtypes.bfloat16),
    "bf16/255": lambda t: codes(t, ml_dtypes.bfloat16, 255),
    "bf16/128": lambda t: codes(t, ml_dtypes.bfloat16, 128),
    "f16": lambda t: codes(t, "<f2"),
    "f16/127": lambda t: codes(t, "<f2", 127),
    "f32": lambda t: codes(t, "<f4"),
    "f32/255": lambda t: codes(t, "<f4", 255),
    "f32/256 backwards": lambda t: codes(t[::-1], "<f4", 256),
    "hex": lambda t: t.encode().hex().encode(),
    "HEX": lambda t: t.encode().hex().upper().encode(),
    "base64": lambda t: base64.b64encode(t.encode()),
    "base64, second place": lambda t: base64.b64encode(b"?" + t.encode()),
    "base64, third place": lambda t: base64.b64encode(b"??" + t.encode()),
    "base64, unpadded, of URLs": lambda t: base64.urlsafe_b64encode(t.encode()).rstrip(b"="),
}


def hidden(payload: bytes, at: int, weights: bytes = WEIGHTS) -> memoryview:
    return memoryview(weights[:at] + payload + weights[at + len(payload) :])


@pytest.mark.parametrize("at", [0, 8, 1024, -1])
@pytest.mark.parametrize("name", ENCODINGS)
def test_every_encoding_is_found_wherever_it_is(name: str, at: int) -> None:
    payload = ENCODINGS[name](PATIENTS[7])
    place = at if at >= 0 else (len(WEIGHTS) - len(payload)) // 8 * 8
    assert search(hidden(payload, place), PATIENTS, "numbers").found


@pytest.mark.parametrize("name", ["utf-8", "utf-16-le", "utf-32-be", "hex", "base64"])
def test_text_in_bytes_is_found_at_any_offset(name: str) -> None:
    payload = ENCODINGS[name](PATIENTS[3])
    for at in range(64, 72):
        assert search(hidden(payload, at), PATIENTS, "numbers").found


@pytest.mark.parametrize("name", ["utf-8", "bf16", "f32/255", "utf-32-le"])
def test_a_text_across_two_chunks_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identifiers, "_CHUNK", 4096)
    payload = ENCODINGS[name](PATIENTS[3])
    for at in range(4096 - len(payload), 4097, 8):
        assert search(hidden(payload, at // 8 * 8), PATIENTS, "numbers").found


@pytest.mark.parametrize("width", [1, 2, 4])
def test_honest_weights_pass(width: int) -> None:
    normal = RNG.normal(0, 1, 2**20)
    made = {
        1: np.clip(np.rint(normal * 32), -127, 127).astype("i1"),
        2: (normal * 0.2).astype(ml_dtypes.bfloat16),
        4: (normal * 0.2).astype("<f4"),
    }[width]
    found = search(memoryview(made.tobytes()), PATIENTS, "numbers")
    assert not found.found and found.searched == len(PATIENTS)


@pytest.mark.parametrize(
    "table",
    [
        np.arange(1000, dtype="<i8"),
        np.arange(1000, dtype="<f4")[::-1].copy(),
        np.arange(256, dtype=ml_dtypes.bfloat16),
        np.full(1000, 48, dtype="i1"),
        np.tile(np.array([49, 50], dtype="<i2"), 500),
        np.zeros(1000, dtype="<f4"),
        np.eye(64, dtype="<f4") * 49,
    ],
    ids=["count", "count down", "bf16 count", "constant", "two in turn", "zeros", "identity"],
)
def test_ordinary_tables_spell_nobody(table: NDArray[Any]) -> None:
    plain = ["0123456789", "12345678", "87654321", "00000000", "121212121212", "00000001", "ABCDEFGHIJ"]
    found = search(memoryview(table.tobytes()), plain, "numbers")
    assert not found.found and found.too_short == len(plain)


MRNS = [f"{n:08d}" for n in np.random.default_rng(12).choice(9 * 10**7, 10**4, replace=False) + 10**7]
FEW = MRNS[:500]


def near_one(draw: np.random.Generator) -> NDArray[np.int8]:
    """The scales of a batch normalisation as int8: near one another, and most of them are digits."""
    scales = draw.normal(1, 0.05, 4096)
    scales[0] = 2.42
    return np.asarray(np.rint(scales / scales.max() * 127), dtype=np.int8)


@pytest.mark.parametrize(
    "make",
    [
        near_one,
        lambda draw: draw.integers(47, 59, 4096).astype("u1"),
        lambda draw: draw.integers(47, 59, 4096).astype("<i8"),
        lambda draw: draw.integers(48, 58, 4096).astype("<f4"),
        lambda draw: draw.integers(48, 58, 4096).astype(ml_dtypes.bfloat16),
        lambda draw: draw.integers(47, 59, 40).astype("u1"),
    ],
    ids=["int8 scales", "ages", "i64 ages", "f32 ages", "bf16 ages", "few ages"],
)
def test_weights_that_are_digits_themselves_spell_nobody(
    make: Callable[[np.random.Generator], NDArray[Any]],
) -> None:
    for seed in range(5):
        table = make(np.random.default_rng(seed))
        found = search(memoryview(table.tobytes()), MRNS, "numbers")
        assert not found.found and found.searched > 9900


def test_identifiers_among_such_weights_are_found() -> None:
    listed = ",".join(MRNS[:40]).encode()
    table = near_one(np.random.default_rng(1)).tobytes()
    assert search(hidden(listed, 1024, table), MRNS, "numbers").found


@pytest.mark.parametrize(
    "record",
    [
        FEW[3],
        f"MRN {FEW[3]} DOB 19570312;",
        f"MRN {FEW[3]} DOB 19570312;" * 60,
        FEW[3] * 200,
        "".join(f"{mrn}19570312" for mrn in FEW[:3]),
        "".join(FEW),
        "\n".join(f"{mrn},{7919 * n % 10**8:08d}" for n, mrn in enumerate(FEW)),
    ],
    ids=["alone", "record", "record, over and over", "over and over", "fixed width", "joined", "table"],
)
def test_what_else_a_record_holds_does_not_excuse_it(record: str) -> None:
    assert search(hidden(record.encode(), 64), FEW, "numbers").found
    assert search(memoryview(record.encode()), FEW, "numbers").found


def test_surroundings_are_bounded_and_hits_in_plenty_end_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, value in ((hunt, "_KNOWN", 4), (hunt, "_CHUNK", 64), (identifiers, "_GATHERED", 2048)):
        monkeypatch.setattr(module, name, value)
    table = np.random.default_rng(3).integers(47, 59, 4096).astype("u1").tobytes()
    assert not search(memoryview(table), MRNS, "numbers").found
    assert search(memoryview(",".join(MRNS).encode()), MRNS, "numbers").found


def test_one_record_over_and_over_explains_nothing_however_long_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hunt, "_CHUNK", 16)
    record = f"MRN {FEW[3]} DOB 19570312;".encode()
    assert search(memoryview(record * 400), FEW, "numbers").found


def test_where_every_number_is_an_identifier_none_tells() -> None:
    digits = np.random.default_rng(6).integers(48, 58, 3000).astype("u1")
    assert not hunt.Hunt({f"{n:03d}".encode(): n for n in range(1000)}, {}).finds([digits])


def test_one_place_read_both_ways_is_one_place() -> None:
    paired = {b"8042719": 0, b"9172408": 1}
    once = np.frombuffer(b"\x008042719", np.uint8)
    assert not hunt.Hunt({}, paired).finds([once])
    assert hunt.Hunt({}, paired).finds([once, once])


@pytest.mark.parametrize("before", range(4))
def test_base64_is_found_behind_any_number_of_other_digits(before: int) -> None:
    payload = b"\x00" + b"w" * before + base64.b64encode(PATIENTS[3].encode())
    assert search(hidden(payload, 64), PATIENTS, "numbers").found


@given(st.integers(1, 30), st.text("0123456789", min_size=1, max_size=600))
def test_more_hits_never_tell_less(hits: int, digits: str) -> None:
    texts_of = [{mrn.encode(): n for n, mrn in enumerate(FEW)}]
    around = hunt.Surroundings()
    around.add(bytearray(digits.encode()))
    assert around.unlikely(hits + 1, texts_of) or not around.unlikely(hits, texts_of)


def test_surroundings_say_what_chance_really_finds() -> None:
    """Hits among random digits, counted, against the number from which on they would be unlikely."""
    texts_of = [{f"{n:04d}".encode(): n for n in range(0, 10_000, 500)}]
    draw = np.random.default_rng(4)
    tables = [draw.integers(48, 58, 500).astype("u1").tobytes() for _ in range(1000)]
    around = hunt.Surroundings()
    around.add(bytearray(tables[0]))
    found = np.array([sum(text in t or text in t[::-1] for text in texts_of[0]) for t in tables])
    assert 1.7 < found.mean() < 2.05  # 2 · 497 places · 20 texts / 10^4, less what is found twice
    least = next(hits for hits in range(1, 30) if around.unlikely(hits, texts_of))
    assert 7 <= least <= 10  # of a Poisson law of mean 2, one in a thousand is 8 or more
    assert (found >= least).sum() <= 3


@pytest.mark.parametrize("plain", ["01122334", "00112233", "54433221", "013124235"])
def test_tables_of_indices_spell_nobody(plain: str) -> None:
    assert not texts(plain)
    assert texts(plain[:-1] + "7")


def test_short_identifiers_are_left_out_and_counted() -> None:
    short = [str(n) for n in range(100, 1000)]
    found = search(hidden(b"731", 64), [*short, *PATIENTS], "numbers")
    assert not found.found
    assert (found.searched, found.too_short) == (len(PATIENTS), len(short))


def test_what_chance_finds_once_it_does_not_find_twice() -> None:
    """Seven digits among so many bytes may be chance; those of two patients are not."""
    digits = [f"{n:07d}" for n in RNG.integers(10**6, 10**7, 2000).tolist()]
    wanted = choose(digits, len(WEIGHTS), "numbers")
    assert not wanted.certain and len(wanted.paired) > 1900
    one, other = (text.decode() for text in list(wanted.paired)[:2])
    once = hidden(one.encode(), 64)
    assert not search(once, digits, "numbers").found
    assert not search(hidden(one.encode(), 1024, bytes(once)), digits, "numbers").found
    assert search(hidden(other.encode("utf-16-le"), 1024, bytes(once)), digits, "numbers").found


def test_one_place_that_holds_two_identifiers_is_one_place() -> None:
    digits = ["8042719", "042719", *(f"{n:07d}" for n in RNG.integers(10**6, 10**7, 2000).tolist())]
    assert {b"8042719", b"042719"} <= choose(digits, len(WEIGHTS), "numbers").paired.keys()
    assert not search(hidden(b"8042719", 64), digits, "numbers").found
    assert not search(hidden(b"9172408", 64), digits, "numbers").found


def test_a_certain_text_is_found_though_a_shorter_one_lies_in_it() -> None:
    digits = ["8042719", "558042719", *(f"{n:07d}" for n in RNG.integers(10**6, 10**7, 2000).tolist())]
    wanted = choose(digits, len(WEIGHTS), "numbers")
    assert b"558042719" in wanted.certain and b"8042719" in wanted.paired
    assert search(hidden(b"558042719", 64), digits, "numbers").found


def test_digits_of_reported_numbers_are_counted_as_digits() -> None:
    reported = b'{"loss":0.123580427196,"note":"none"}'
    assert not search(memoryview(reported), ["80427196"], "text").found
    assert search(
        memoryview(reported.replace(b"none", b"RX80427196-B.77")), ["RX80427196-B.77"], "text"
    ).found


def test_a_long_uid_is_told_by_its_end() -> None:
    root = "1.2.826.0.1.3680043.8.498." + "7" * 20 + "."
    uid = root + "41083665290871236677"
    assert search(hidden(uid.encode("utf-16-le"), 64), [uid], "numbers").found
    assert search(hidden(uid[-64:].encode(), 64), [uid], "numbers").found


def test_names_beyond_ascii_are_looked_for() -> None:
    names = ["Đặng Thị Hồng Nhung", "Müller-Lüdenscheidt"]
    for payload in (
        names[0].encode(),
        names[1].encode(),
        names[1].encode("latin-1"),
        names[1].encode("utf-16-le"),
    ):
        assert search(hidden(payload, 64), names, "numbers").found


@pytest.mark.parametrize("weird", ["", " ", "\ud800abc\udfff-8841", "\x00" * 9, "A\x00B12345678C"])
def test_broken_identifiers_break_nothing(weird: str) -> None:
    assert not search(memoryview(WEIGHTS), [weird, PATIENTS[0]], "numbers").found


def test_nothing_to_search_and_nothing_to_look_for() -> None:
    assert not search(memoryview(b""), PATIENTS, "numbers").found
    assert search(memoryview(WEIGHTS), [], "numbers").searched == 0


def test_a_file_full_of_hits_is_no_burden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identifiers, "_GATHERED", 2**16)
    full = memoryview(b"8042719" * 2**15)
    digits = ["8042719", *(f"{n:07d}" for n in RNG.integers(10**6, 10**7, 2000).tolist())]
    assert not search(full, digits, "numbers").found


def test_many_identifiers_are_searched_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hunt, "_BLOCK", 100)
    assert search(hidden(PATIENTS[-1].encode(), 64), PATIENTS, "numbers").found


@settings(max_examples=60, deadline=None)
@given(
    st.text("ABCDEFGHJKLMNPQRSTUVWXYZ0123456789-", min_size=11, max_size=40),
    st.sampled_from(sorted(ENCODINGS)),
    st.integers(0, 500),
    st.binary(max_size=64),
)
def test_whoever_it_is(text: str, name: str, place: int, around: bytes) -> None:
    payload = ENCODINGS[name](text)
    found = search(hidden(payload, 8 * place), [text, *PATIENTS], "numbers")
    assert found.found or not texts(text)


@settings(max_examples=40, deadline=None)
@given(
    st.binary(max_size=2048),
    st.lists(st.text(max_size=150), max_size=20),
    st.sampled_from(["numbers", "text"]),
)
def test_any_bytes_and_any_identifiers_give_an_answer(data: bytes, listed: list[str], content: str) -> None:
    told = search(memoryview(data), listed, content)  # type: ignore[arg-type]
    assert told.searched + told.too_short == len(set(listed))
