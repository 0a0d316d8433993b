"""Hostile files: every one is a reason, never a crash, a wrong pixel or unbounded memory.

What only our own reader sees is fuzzed here in process; what reaches a decoder in C is fuzzed in the pool
of walled-off workers that it runs in, where it may crash.
"""

from __future__ import annotations

import io
import random
import struct
import tracemalloc
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file

from rapha.node.sources.imaging import image as images
from rapha.node.sources.imaging.decode import Decoder
from rapha.node.sources.imaging.fragments import frames_of
from rapha.node.sources.imaging.image import Image
from rapha.node.sources.imaging.order import Args, Expect, RenderOrder, Setup, encode
from rapha.node.sources.interface import Quarantine
from rapha.node.sources.workers.interface import Item, Limits, Task, Unusable
from rapha.node.sources.workers.pool import Pool
from rapha.spec.refusals import Refused
from rapha.spec.transforms import Form, Step

PIXELS = np.arange(64, dtype="<i2").tobytes()
Part = tuple[int, bytes, bytes]
BASE: dict[int, tuple[bytes, bytes]] = {
    0x00080018: (b"UI", b"1.2.3\0"), 0x00080060: (b"CS", b"CT"), 0x00100020: (b"LO", b"P1"),
    0x00280002: (b"US", b"\1\0"), 0x00280004: (b"CS", b"MONOCHROME2 "), 0x00280010: (b"US", b"\x08\0"),
    0x00280011: (b"US", b"\x08\0"), 0x00280100: (b"US", b"\x10\0"), 0x00280101: (b"US", b"\x10\0"),
    0x00280102: (b"US", b"\x0f\0"), 0x00280103: (b"US", b"\1\0"), 0x00281052: (b"DS", b"0 "),
    0x00281053: (b"DS", b"1 "), 0x7FE00010: (b"OW", PIXELS),
}  # fmt: skip
SETUP = Setup(
    "frame", (RenderOrder("x", "pixels", Form("int16", (0, 0)), (Step.parse({"resize": [8, 8]}),)),)
)
ARGS = encode(Args(0, (Expect("1.2.3", "P1"),)))
DECODER = Decoder(SETUP)


def element(tag: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr)
    length = len(value) if length is None else length
    if vr in (b"OB", b"OW", b"SQ", b"UN", b"OV", b"OF", b"OD"):
        return head + struct.pack("<HI", 0, length) + value
    return head + struct.pack("<H", length) + value


def file_of(
    changed: dict[int, tuple[bytes, bytes] | None] | None = None, *, syntax: bytes = b"1.2.840.10008.1.2.1\0",
    body: bytes | None = None,
) -> bytes:  # fmt: skip
    parts = {**BASE, **(changed or {})}
    if body is None:
        body = b"".join(element(tag, *part) for tag, part in sorted(parts.items()) if part is not None)
    return bytes(128) + b"DICM" + element(0x00020010, b"UI", syntax) + body


def rendered(file: bytes, decoder: Decoder = DECODER, args: bytes = ARGS) -> bytes:
    out = memoryview(bytearray(SETUP.output_bytes))
    decoder(args, [io.BytesIO(file)], out)
    return bytes(out)


def refused(file: bytes, args: bytes = ARGS) -> Quarantine:
    with pytest.raises(Unusable) as caught:
        rendered(file, args=args)
    return caught.value.quarantine


def us(number: int) -> tuple[bytes, bytes]:
    return b"US", struct.pack("<H", number)


def test_the_file_that_the_others_are_made_of() -> None:
    assert rendered(file_of()) == PIXELS


class TestDescriptions:
    @pytest.mark.parametrize(
        ("changed", "reason"),
        [
            ({0x00280010: us(0)}, "PIXELS_INVALID"),
            ({0x00280011: us(0)}, "PIXELS_INVALID"),
            ({0x00280010: us(65535), 0x00280011: us(65535)}, "TOO_LARGE"),
            (
                {
                    0x00280010: (b"UL", struct.pack("<I", 2**31)),
                    0x00280011: (b"UL", struct.pack("<I", 2**31)),
                },
                "PIXELS_INVALID",
            ),
            ({0x00280010: (b"SS", struct.pack("<h", -8))}, "PIXELS_INVALID"),
            ({0x00280010: us(9)}, "PIXELS_INVALID"),
            ({0x00280010: None}, "FILE_INVALID"),
            ({0x00280010: (b"US", b"")}, "FILE_INVALID"),
            ({0x00280010: (b"US", b"\x08")}, "FILE_INVALID"),
            ({0x00280010: (b"US", b"\x08\0\x08\0")}, "FILE_INVALID"),
            ({0x00280010: (b"DS", b"8.5 ")}, "FILE_INVALID"),
            ({0x00280010: (b"FD", struct.pack("<d", float("nan")))}, "FILE_INVALID"),
            ({0x00280002: us(0)}, "PIXELS_INVALID"),
            ({0x00280002: us(2)}, "PIXELS_INVALID"),
            ({0x00280002: us(4)}, "PIXELS_INVALID"),
            ({0x00280002: us(65535)}, "PIXELS_INVALID"),
            ({0x00280004: None}, "PHOTOMETRIC_UNSUPPORTED"),
            ({0x00280004: (b"CS", b"RGB ")}, "PHOTOMETRIC_UNSUPPORTED"),
            ({0x00280004: (b"CS", b"\xff\xfe")}, "FILE_INVALID"),
            ({0x00280004: (b"CS", b"PALETTE COLOR ")}, "PHOTOMETRIC_UNSUPPORTED"),
            ({0x7FE00010: None}, "PIXELS_MISSING"),
            ({0x7FE00010: (b"OW", b"")}, "PIXELS_INVALID"),
            ({0x7FE00010: (b"OW", PIXELS[:-2])}, "PIXELS_INVALID"),
            ({0x00080018: None}, "CHANGED"),
            ({0x00100020: None}, "CHANGED"),
            ({0x00100020: (b"LO", b"P1\\P2 ")}, "CHANGED"),
        ],
    )
    def test_that_make_no_sense(self, changed: dict[int, tuple[bytes, bytes] | None], reason: str) -> None:
        assert refused(file_of(changed)).name == reason

    @pytest.mark.parametrize(
        "frames", [b"2147483648", b"4294967295", b"0 ", b"-1", b"2 ", b"1e9 ", b"1\\1 ", b"x ", b"1.5 "]
    )
    def test_number_of_frames(self, frames: bytes) -> None:
        assert refused(file_of({0x00280008: (b"IS", frames)})) in (
            Quarantine.PIXELS_INVALID,
            Quarantine.FILE_INVALID,
        )

    @pytest.mark.parametrize("allocated", [0, 1, 2, 7, 8, 12, 16, 24, 32, 64, 65535])
    @pytest.mark.parametrize("stored", [0, 1, 8, 12, 16, 32, 65535])
    @pytest.mark.parametrize("high", [0, 11, 15, 31, 65535])
    def test_bits(self, allocated: int, stored: int, high: int) -> None:
        file = file_of(
            {0x00280100: us(allocated), 0x00280101: us(stored), 0x00280102: us(high), 0x00280103: us(0)}
        )
        sound = allocated in (1, 8, 16) and 1 <= stored <= allocated and stored - 1 <= high < allocated
        if sound:
            assert len(rendered(file)) == 128
        else:
            assert refused(file) is Quarantine.PIXELS_INVALID

    @pytest.mark.parametrize("tag", [0x7FE00008, 0x7FE00009])
    @pytest.mark.parametrize("allocated", [1, 8, 16, 32, 64])
    def test_floats_of_odd_widths(self, tag: int, allocated: int) -> None:
        data = (b"OF" if tag == 0x7FE00008 else b"OD", bytes(512))
        file = file_of({0x00280100: us(allocated), tag: data, 0x7FE00010: None})
        if allocated == (32 if tag == 0x7FE00008 else 64):
            assert rendered(file) == bytes(128)
        else:
            assert refused(file) is Quarantine.PIXELS_INVALID

    def test_an_attribute_that_comes_twice(self) -> None:
        parts = b"".join(element(tag, *part) for tag, part in BASE.items())
        twice = parts.replace(element(0x00100020, b"LO", b"P1"), element(0x00100020, b"LO", b"P1") * 2)
        assert refused(file_of(body=twice)) is Quarantine.FILE_INVALID


class TestStructure:
    def test_cut_anywhere(self) -> None:
        whole = file_of()
        for end in range(len(whole)):
            assert refused(whole[:end]).name in ("FILE_INVALID", "PIXELS_MISSING", "PIXELS_INVALID")

    @pytest.mark.parametrize(
        ("tag", "length"),
        [(tag, length) for tag in sorted(BASE) for length in (0xFFFF, 0xFFFE, 1, 0x7FFF)]
        + [(0x7FE00010, length) for length in (0xFFFFFFFE, 0xFFFFFFFF, 2**31)],
    )
    def test_a_length_that_is_wrong(self, tag: int, length: int) -> None:
        body = b"".join(
            element(one, *part, length if one == tag else None) for one, part in sorted(BASE.items())
        )
        assert refused(file_of(body=body)).name in ("FILE_INVALID", "PIXELS_MISSING", "PIXELS_INVALID")

    @pytest.mark.parametrize("explicit", [True, False])
    @pytest.mark.parametrize("depth", [10, 10_000])
    def test_deep_sequences(self, depth: int, explicit: bool) -> None:
        sequence = struct.pack("<HH", 0x0008, 0x1140) + (b"SQ\0\0" if explicit else b"") + b"\xff" * 4
        item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
        ends = struct.pack("<HHIHHI", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
        nested = (sequence + item) * depth + ends * depth
        if not explicit:
            # A UN of undefined length is implicit inside, whatever the file is.
            nested = element(0x00081140, b"UN", item + nested + ends, 0xFFFFFFFF)
        body = nested + b"".join(element(tag, *part) for tag, part in sorted(BASE.items()))
        if depth == 10:
            assert rendered(file_of(body=body)) == PIXELS
        else:
            assert refused(file_of(body=body)) is Quarantine.FILE_INVALID

    @pytest.mark.parametrize(
        "sequence",
        [
            b"",
            b"\xfe\xff\x00\xe0\xff\xff\xff\xff",
            b"\xfe\xff\x00\xe0\x00\x00\x00\x00" * 3,
            b"\xfe\xff\x0d\xe0\0\0\0\0",
            b"\xfe\xff\xdd\xe0",
            b"\xfe\xff\x00\xe0\xff\xff\xff\x7f",
            b"\x10\0\x10\0LO\0\0",
        ],
    )
    def test_sequences_that_never_end(self, sequence: bytes) -> None:
        for tag in (0x00081140, 0x00283000, 0x52009229, 0x52009230):
            parts = {tag: (b"SQ", sequence), **{t: p for t, p in BASE.items() if t != 0x7FE00010}}
            body = b"".join(
                element(t, *p, 0xFFFFFFFF if t == tag else None) for t, p in sorted(parts.items())
            )
            assert isinstance(refused(file_of(body=body)), Quarantine)

    @pytest.mark.parametrize(
        "start",
        [
            b"",
            b"DICM",
            bytes(132),
            bytes(128) + b"DICM",
            bytes(128) + b"DICM\2\0\x10\0UI\xff\xff",
            b"\xff" * 5000,
        ],
    )
    def test_what_is_no_dicom_file(self, start: bytes) -> None:
        assert refused(start) is Quarantine.FILE_INVALID

    @pytest.mark.parametrize(
        "syntax", [b"", b"\0\0", b"1.2.840.10008.1.2.4.102\0", b"\xff\xff", b"1.2.840.10008.1.2\\1.2 "]
    )
    def test_transfer_syntaxes(self, syntax: bytes) -> None:
        assert refused(file_of(syntax=syntax)).name in ("FILE_INVALID", "SYNTAX_UNSUPPORTED")

    @pytest.mark.parametrize(
        "syntax", [b"1.2.840.10008.1.2\0", b"1.2.840.10008.1.2.2\0", b"1.2.840.10008.1.2.4.90\0"]
    )
    def test_another_syntax_than_the_file_is_in(self, syntax: bytes) -> None:
        assert refused(file_of(syntax=syntax)).name in ("FILE_INVALID", "PIXELS_MISSING", "PIXELS_INVALID")


class TestDeflated:
    SYNTAX = b"1.2.840.10008.1.2.1.99"

    @staticmethod
    def packed(body: bytes) -> bytes:
        engine = zlib.compressobj(9, zlib.DEFLATED, -15)
        return engine.compress(body) + engine.flush()

    def test_a_bomb_stops_at_the_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(images, "MAX_INFLATED_BYTES", 2**20)
        file = file_of(syntax=self.SYNTAX, body=self.packed(bytes(2**26)))
        tracemalloc.start()
        assert refused(file) is Quarantine.TOO_LARGE
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8 * 2**20

    def test_cut_and_corrupted(self) -> None:
        whole = self.packed(b"".join(element(tag, *part) for tag, part in sorted(BASE.items())))
        assert rendered(file_of(syntax=self.SYNTAX, body=whole)) == PIXELS
        for end in range(len(whole)):
            assert refused(file_of(syntax=self.SYNTAX, body=whole[:end])) is Quarantine.FILE_INVALID


class TestOffsetTables:
    """Three frames in five fragments; frame k starts at fragment 0, 1 and 3."""

    PARTS = (b"aa", b"bb", b"b\xff\xd9\0", b"c1", b"c\xff\xd9\0")

    def frames(
        self,
        basic: list[int] | bytes = b"",
        offsets: list[int] | None = None,
        lengths: list[int] | None = None,
        frames: int = 3,
        parts: tuple[bytes, ...] = PARTS,
    ) -> list[bytes]:
        table = basic if isinstance(basic, bytes) else struct.pack(f"<{len(basic)}I", *basic)
        items = b"".join(
            b"\xfe\xff\x00\xe0" + struct.pack("<I", len(part)) + part for part in (table, *parts)
        )
        data = items + b"\xfe\xff\xdd\xe0\0\0\0\0"
        wide = [struct.pack(f"<{len(one or [])}Q", *(one or [])) for one in (offsets, lengths)]
        found = frames_of(data, 0, frames, *wide)
        return [b"".join(data[start:end] for start, end in frame) for frame in found]

    def test_a_sound_table(self) -> None:
        # Items have 8 bytes of their own before their value.
        assert self.frames([0, 10, 32]) == [b"aa", b"bbb\xff\xd9\0", b"c1c\xff\xd9\0"]

    def test_no_table(self) -> None:
        assert self.frames(parts=(b"x\xff\xd9\0", b"bb", b"b\xff\xd9\0", b"c\xff\xd9")) == [
            b"x\xff\xd9\0", b"bbb\xff\xd9\0", b"c\xff\xd9",
        ]  # fmt: skip
        assert self.frames(parts=(b"1", b"2", b"3")) == [b"1", b"2", b"3"]
        assert self.frames(frames=1) == [b"".join(self.PARTS)]

    def test_an_extended_table(self) -> None:
        found = self.frames(offsets=[0, 10, 20], lengths=[2, 1, 2], parts=(b"aa", b"b\0", b"cc"))
        assert found == [b"aa", b"b", b"cc"]

    @pytest.mark.parametrize(
        "basic",
        [
            [0, 10], [0, 10, 32, 42], [1, 10, 32], [0, 11, 32], [0, 32, 10], [0, 0, 0], [0, 10, 2**32 - 1],
            [10, 20, 32], [0, 10, 1000], b"\0\0\0",
        ],
    )  # fmt: skip
    def test_a_table_that_points_elsewhere(self, basic: list[int] | bytes) -> None:
        with pytest.raises(Unusable):
            self.frames(basic)

    @pytest.mark.parametrize(
        ("offsets", "lengths"),
        [
            ([0, 10], [2, 2]),
            ([0, 10, 2**63], [2, 2, 2]),
            ([0, 10, 20], [2, 2]),
            ([0, 10, 20], [2, 2, 2**64 - 1]),
            ([0, 10, 20], [2, 2, 0]),
            ([0, 10, 20], []),
            ([0, 20, 10], [2, 2, 2]),
        ],
    )
    def test_an_extended_table_that_points_elsewhere(self, offsets: list[int], lengths: list[int]) -> None:
        with pytest.raises(Unusable):
            self.frames(offsets=offsets, lengths=lengths, parts=(b"aa", b"bb", b"cc"))

    def test_both_tables(self) -> None:
        with pytest.raises(Unusable):
            self.frames([0, 10, 20], offsets=[0, 10, 20], lengths=[2, 2, 2], parts=(b"aa", b"bb", b"cc"))

    @pytest.mark.parametrize("frames", [0, 4, 6, 2**31])
    def test_another_number_of_frames(self, frames: int) -> None:
        with pytest.raises(Unusable):
            self.frames(frames=frames)

    @pytest.mark.parametrize(
        "data",
        [
            b"", b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0\0\0\0\0", b"\xfe\xff\x00\xe0\xff\xff\xff\xff",
            b"\xfe\xff\x00\xe0\0\0\0\0", b"\xfe\xff\x00\xe0\0\0\0\0\xfe\xff\x00\xe0\xff\xff\xff\x7f",
            b"\xfe\xff\x00\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0", b"\x00" * 64,
        ],
    )  # fmt: skip
    def test_items_that_are_none(self, data: bytes) -> None:
        with pytest.raises(Unusable) as caught:
            frames_of(data, 0, 1, b"", b"")
        assert caught.value.quarantine is Quarantine.PIXELS_INVALID

    @given(st.binary(max_size=200), st.integers(-1, 5), st.binary(max_size=40), st.binary(max_size=40))
    @settings(max_examples=200, deadline=None)
    def test_anything_else(self, data: bytes, frames: int, offsets: bytes, lengths: bytes) -> None:
        try:
            found = frames_of(b"\xfe\xff\x00\xe0\0\0\0\0" + data, 0, frames, offsets, lengths)
        except Unusable:
            return
        assert len(found) == frames


def read(name: str) -> bytes:
    return Path(str(get_testdata_file(name))).read_bytes()


NATIVE = [
    read(name)
    for name in ("CT_small.dcm", "MR_small_implicit.dcm", "MR_small_bigendian.dcm", "eCT_Supplemental.dcm",
                 "image_dfl.dcm", "SC_rgb_small_odd.dcm", "liver_1frame.dcm", "rtdose_1frame.dcm")
]  # fmt: skip
ANY = Setup(
    "frame", (RenderOrder("x", "pixels", Form("float32", (0, 0)), (Step.parse({"resize": [8, 8]}),)),)
)


class TestFlippedBytes:
    @given(st.sampled_from(range(len(NATIVE))), st.data())
    @settings(max_examples=200, deadline=None)
    def test_in_files_that_no_decoder_sees(self, which: int, data: st.DataObject) -> None:
        original = NATIVE[which]
        image = Image(original)
        args = encode(Args(0, (Expect(image.sop_uid, image.patient_id),)))
        file = bytearray(original)
        # Mostly in the header, where it matters.
        place = st.one_of(st.integers(128, min(len(file), 4000) - 1), st.integers(0, len(file) - 1))
        for at, value in data.draw(st.lists(st.tuples(place, st.integers(0, 255)), min_size=1, max_size=8)):
            file[at] = value
        out = memoryview(bytearray(ANY.output_bytes))
        try:
            Decoder(ANY)(args, [io.BytesIO(bytes(file))], out)
        except Unusable as error:
            assert error.quarantine is not Quarantine.NONE
        else:
            assert np.isfinite(np.frombuffer(out, np.float32)).all()

    def test_in_files_that_decoders_see(self) -> None:
        names = (
            "MR_small_RLE.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_jp2klossless.dcm", "JPEG-LL.dcm",
            "JPGExtended.dcm", "SC_rgb_jpeg_dcmtk.dcm", "SC_rgb_jls_lossy_line.dcm", "emri_small_RLE.dcm",
        )  # fmt: skip
        chance = random.Random(7)
        items = []
        for name in names:
            original = read(name)
            image = Image(original)
            args = encode(Args(0, (Expect(image.sop_uid, image.patient_id),)))
            items.append(Item(args, data=(original,)))
            for _ in range(25):
                file = bytearray(original)
                start = chance.choice((132, image._start, len(file) // 2))
                for _ in range(chance.choice((1, 4, 20))):
                    file[chance.randrange(start, min(start + 3000, len(file)))] = chance.randrange(256)
                items.append(Item(args, data=(bytes(file[: chance.choice((len(file), len(file) - 500))]),)))
        with Pool(Task.DECODE, encode(ANY), folder=None, workers=2, output_bytes=ANY.output_bytes) as pool:
            found = {answer.ordinal: answer.quarantine for answer in pool.run(items)}
        assert len(found) == len(items)
        assert [found[n] for n in range(0, len(items), 26)] == [Quarantine.NONE] * len(names)
        reasons = Counter(found.values())
        assert reasons[Quarantine.PIXELS_INVALID] > 20
        assert reasons[Quarantine.TOO_SLOW] == 0


def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(2**31 + 1)
    with path.open("rb") as file, pytest.raises(Unusable) as caught:
        DECODER(ARGS, [file], memoryview(bytearray(SETUP.output_bytes)))
    assert caught.value.quarantine is Quarantine.TOO_LARGE


class TestStepsOfTheJob:
    """Which record falls out must not hang on the steps: two jobs would differ by the longest series."""

    LONG = file_of({
        0x00280008: (b"IS", b"256 "), 0x00280010: us(256), 0x00280011: us(256),
        0x7FE00010: (b"OW", bytes(2 * 256**3)),
    })  # fmt: skip
    HEAVY = ({"dtype": "float64"}, {"normalise": {"mean": 0.1, "scale": 1e-20}}, {"dtype": "float64"})
    LARGE = ({"resize": [64, 512, 512]}, *HEAVY, {"resize": [4, 4, 4]})

    def found(self, memory_bytes: int, *steps: object) -> list[Quarantine]:
        """Of a short series, the long one, one that claims too much, and the short one again."""
        parsed = tuple(Step.parse(step) for step in steps)
        setup = Setup("series", (RenderOrder("x", "pixels", Form("int16", (0, 0, 0)), parsed),))
        short = file_of()
        bomb = file_of({0x00280008: (b"IS", b"65535 "), 0x00280010: us(65535), 0x00280011: us(65535)})
        items = [Item(ARGS, data=(one,)) for one in (short, self.LONG, bomb, short)]
        with Pool(
            Task.DECODE, encode(setup), folder=None, workers=1, output_bytes=setup.output_bytes,
            limits=Limits(memory_bytes=memory_bytes),
        ) as pool:  # fmt: skip
            got = {answer.ordinal: answer.quarantine for answer in pool.run(items)}
        return [got[n] for n in range(4)]

    ALONE = (Quarantine.NONE, Quarantine.NONE, Quarantine.TOO_LARGE, Quarantine.NONE)

    def test_steps_that_there_is_no_room_for_refuse_all(self) -> None:
        assert self.found(2**28, {"resize": [4, 4, 4]}) == list(self.ALONE)
        with pytest.raises(Refused) as refused:
            self.found(2**28, *self.LARGE)
        assert str(refused.value) == str(Refused("privacy.cohort_refused"))

    def test_steps_that_widen_take_no_more_room_than_others(self) -> None:
        assert self.found(2**28, *self.HEAVY, {"resize": [4, 4, 4]}) == list(self.ALONE)
