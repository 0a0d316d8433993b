from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.multival import MultiValue

from rapha.node.sources.imaging import attributes, headers, planes, walk
from rapha.node.sources.imaging.attributes import Decoder, Instance, value_of
from rapha.node.sources.imaging.values import values_of
from rapha.node.sources.interface import Quarantine
from rapha.node.sources.workers.interface import Unusable
from rapha.testing import dicoms
from rapha.testing.dicoms import Image

KEYWORDS = (
    "StudyDate",
    "BodyPartExamined",
    "SliceThickness",
    "PixelSpacing",
    "StudyDescription",
    "ImageType",
)
IDENTITY = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID", "Modality")
SYNTAXES = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99")


def attribute(keyword: str) -> headers.Attribute:
    tag = tag_for_keyword(keyword)
    assert tag is not None
    return headers.Attribute(keyword, int(tag), dictionary_VR(tag).split(" ")[0])


SETUP = headers.Setup(tuple(map(attribute, KEYWORDS)), places=True)
WORK = headers.make(SETUP.encode())


def reply_to(data: bytes) -> bytes:
    return WORK(b"", [io.BytesIO(data)], memoryview(b""))


def read(data: bytes) -> Instance:
    return Decoder(SETUP.wanted).decode(reply_to(data), "here")


def verdict(data: bytes) -> Quarantine:
    """What the reader says of a file that it can't describe, or of its pixels."""
    try:
        return read(data).flaw
    except Unusable as unusable:
        return unusable.quarantine


def explicit(tag: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    """An element in explicit VR little endian; `length` lies about the value where it is given."""
    group, element = divmod(tag, 0x10000)
    long = vr in (b"OB", b"OW", b"SQ", b"UN", b"UT")
    count = len(value) if length is None else length
    head = struct.pack("<HH2sHI", group, element, vr, 0, count) if long else b""
    return (head or struct.pack("<HH2sH", group, element, vr, count)) + value


def with_element(element: bytes, image: Image | None = None) -> bytes:
    """An image with one more element in front of its pixels."""
    data = dicoms.stored(image or Image())
    at = data.index(struct.pack("<HH", 0x7FE0, 0x0010))
    return data[:at] + element + data[at:]


def sequence(tag: int, inner: bytes) -> bytes:
    return explicit(tag, b"SQ", struct.pack("<HHI", 0xFFFE, 0xE000, len(inner)) + inner)


def with_frame(vr: bytes, position: bytes) -> bytes:
    """An image of one frame, whose functional group says in `vr` where it lies."""
    place = sequence(0x00209113, explicit(0x00200032, vr, position))
    place += sequence(0x00209116, explicit(0x00200037, b"DS", b"1\\0\\0\\0\\1\\0 "))
    return with_element(sequence(0x52009230, place))


def nested(depth: int) -> bytes:
    item = struct.pack("<HHI", 0xFFFE, 0xE000, walk.UNDEFINED)
    ends = struct.pack("<HHIHHI", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    return (explicit(0x00400275, b"SQ", b"", walk.UNDEFINED) + item) * depth + ends * depth


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_header_is_read_in_every_way_it_may_be_written(syntax: str) -> None:
    image = Image(patient="Ü-7", number=3, syntax=syntax, more={"SpecificCharacterSet": "ISO_IR 192"})
    found = read(dicoms.stored(image))
    assert (found.sop_uid, found.series_uid) == (dicoms.sop_uid(image), dicoms.series_uid(image))
    assert (found.patient_id, found.modality, found.syntax) == ("Ü-7", "CT", syntax)
    assert (found.rows, found.columns, found.samples, found.frames) == (16, 16, 1, 1)
    assert found.position == (0.0, 0.0, 7.5) and found.orientation == dicoms.AXIAL
    assert found.values["StudyDate"] == "20200101" and found.values["PixelSpacing"] == (1.0, 1.0)
    assert found.values["ImageType"] is None and found.flaw is Quarantine.NONE


@pytest.mark.parametrize("kind", ["CT", "MR", "CR", "DX", "MG", "US", "PT", "OT", "NM"])
def test_every_kind_of_image_is_described(kind: str) -> None:
    assert read(dicoms.stored(Image(kind))).modality == kind


def test_pydicom_reads_the_same_from_its_own_files() -> None:
    """pydicom's files are of many makers, character sets and syntaxes; both readers have to agree."""
    folder = Path(str(get_testdata_file("CT_small.dcm"))).parent
    compared = 0
    for path in sorted(folder.glob("*.dcm")):
        if verdict(path.read_bytes()) in (Quarantine.NONE, Quarantine.PIXELS_MISSING):
            compared += _compare(path)
    assert compared > 60


def _compare(path: Path) -> bool:
    try:
        found = read(path.read_bytes())
    except Unusable:
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = dcmread(path, stop_before_pixels=True)
        for keyword in (*KEYWORDS, *IDENTITY, "ImagePositionPatient", "ImageOrientationPatient"):
            value = theirs.get(keyword)
            if keyword.endswith("UID") and not str(value or "0").replace(".", "").isdigit():
                continue
            assert value_of(found, keyword) == _plain(value), f"{path.name}: {keyword}"
    return True


def _plain(value: object) -> object:
    if isinstance(value, MultiValue):
        return tuple(part if part == "" else _plain(part) for part in value) or None
    if isinstance(value, int | float):
        return float(value)
    return str(value).strip() or None if value is not None else None


def test_what_every_header_is_read_for_is_as_in_the_dictionary() -> None:
    assert set(headers.OWN) == set(map(attribute, attributes.STRUCTURE))


def test_frames_of_an_enhanced_image_have_places() -> None:
    image = dicoms.enhanced(Image(), [0.0, 2.0, 4.5])
    found = read(dicoms.encoded(image))
    assert found.frames == 3 and found.places == (0.0, 2.0, 4.5) and found.orientation == dicoms.AXIAL
    image.PerFrameFunctionalGroupsSequence[1].PlanePositionSequence[0].ImagePositionPatient = None
    assert read(dicoms.encoded(image)).places == ()


@pytest.mark.parametrize(
    ("vr", "position", "expected"),
    [
        (b"DS", b"1\\2\\3 ", (3.0,)),
        (b"UN", b"1\\2\\3 ", (3.0,)),
        (b"FD", struct.pack("<3d", 1, 2, 3), (3.0,)),
        (b"DS", b"1\\2\\1e308 ", ()),
        (b"DS", b"1\\2 ", ()),
        (b"LO", b"a\\b\\c ", None),
        (b"LO", b"nan\\1\\2 ", None),
        (b"DS", b"\\1\\2\\3", None),
    ],
)
def test_a_frames_place_is_three_numbers(
    vr: bytes, position: bytes, expected: tuple[float, ...] | None
) -> None:
    data = with_frame(vr, position)
    if expected is None:
        assert verdict(data) is Quarantine.FILE_INVALID
    else:
        assert read(data).places == expected


def test_bytes_of_unknown_order_are_no_number() -> None:
    data = dicoms.stored(Image(syntax=walk.BIG_ENDIAN))
    rows = struct.pack(">HH2sHH", 0x0028, 0x0010, b"US", 2, 16)
    assert rows in data
    unknown = struct.pack(">HH2sHIH", 0x0028, 0x0010, b"UN", 0, 2, 16)
    assert verdict(data.replace(rows, unknown)) is Quarantine.FILE_INVALID


@pytest.mark.parametrize(
    ("charset", "stored", "expected"),
    [
        ("ISO_IR 100", "Müller".encode("latin-1"), "Müller"),
        ("ISO_IR 192", "Müller".encode(), "Müller"),
        ("ISO_IR 192", "Mu\u0308ller".encode(), "Müller"),
        ("ISO_IR 192", b" P1 \0", "P1"),
        ("\\ISO 2022 IR 87", b"\x1b$B;3ED\x1b(B", "山田"),
        ("ISO_IR 192", b"M\xfcller", attributes.clean("\ufffd")),
        ("ISO_IR 999", "Müller".encode(), "\ufffd"),
        ("", "Müller".encode(), "\ufffd"),
        ("ISO 2022 IR 149", b"\x1b$)C\xb1", "\ufffd"),
        ("", b"P\x1b(B1", "\ufffd"),
        ("ISO_IR 100", b"P\x1b(B1", "\ufffd"),
        ("ISO 2022 IR 100", b"P\x1b(B1", "P1"),
    ],
)
def test_identifiers_are_compared_as_text_and_never_guessed(
    charset: str, stored: bytes, expected: str
) -> None:
    stored += b" " * (len(stored) % 2)
    ds = dicoms.dataset(Image(patient="@" * len(stored)))
    data = dicoms.encoded(ds).replace(b"@" * len(stored), stored)
    term = charset.encode() + b" " * (len(charset) % 2)
    uid = explicit(0x00080005, b"CS", term)
    at = data.index(struct.pack("<HH", 0x0008, 0x0016))
    found = read(data[:at] + uid + data[at:]).patient_id
    assert found == expected or ("\ufffd" in found and "\ufffd" in expected)


@pytest.mark.parametrize(
    ("vr", "raw", "expected"),
    [
        (b"DS", b"1.5\\-2e1 ", (1.5, -20.0)),
        (b"IS", b" +7 ", (7.0,)),
        (b"DS", b"1\\ ", (1.0,)),
        (b"DS", b"\\1\\ ", Quarantine.FILE_INVALID),
        (b"IS", b"1\\\\2 ", Quarantine.FILE_INVALID),
        (b"UV", struct.pack("<Q", 2**53 + 1), Quarantine.FILE_INVALID),
        (b"US", b"\x01\0\x02\0", (1.0, 2.0)),
        (b"FD", struct.pack("<d", 0.25), (0.25,)),
        (b"LO", b" a \\b", ("a", "b")),
        (b"LT", b"a\\b ", ("a\\b",)),
        (b"CS", b"  ", ()),
        (b"CS", b"\xff", ("\ufffd",)),
        (b"DS", b"nan", Quarantine.FILE_INVALID),
        (b"DS", b"inf", Quarantine.FILE_INVALID),
        (b"DS", b"1e999", Quarantine.FILE_INVALID),
        (b"DS", b"1_000", Quarantine.FILE_INVALID),
        (b"DS", b"0x10", Quarantine.FILE_INVALID),
        (b"DS", b"1-2", Quarantine.FILE_INVALID),
        (b"DS", "١٢".encode(), Quarantine.FILE_INVALID),
        (b"FL", struct.pack("<f", float("nan")), Quarantine.FILE_INVALID),
        (b"US", b"\x01\0\x02", Quarantine.FILE_INVALID),
        (b"US", bytes(2 * 1025), Quarantine.TOO_LARGE),
        (b"CS", b"\\" * 1024, Quarantine.TOO_LARGE),
        (b"LT", b"x" * 10_241, Quarantine.TOO_LARGE),
        (b"OB", b"x", Quarantine.FILE_INVALID),
        (b"SQ", b"", Quarantine.FILE_INVALID),
    ],
)
def test_values_are_what_the_standard_says_or_nothing(
    vr: bytes, raw: bytes, expected: attributes.Values | Quarantine
) -> None:
    try:
        assert values_of(vr, raw, "<", ()) == expected
    except Unusable as unusable:
        assert unusable.quarantine is expected


def with_delimiter(data: bytes) -> bytes:
    at = data.index(struct.pack("<HHI", 0x0010, 0x0020, 4))
    return data[:at] + struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + data[at:]


GOOD = dicoms.stored(Image())
DATA_SET = GOOD.index(struct.pack("<HH2s", 8, 0x16, b"UI"))
LONG_TEXT = explicit(0x00081030, b"UT", b"x" * 100_000)
TOO_LONG = explicit(0x00400275, b"UT", b"x", 2**32 - 2)
BAD = {
    "empty": (b"", Quarantine.FILE_INVALID),
    "zeros": (bytes(4096), Quarantine.FILE_INVALID),
    "only the preamble": (GOOD[:128], Quarantine.FILE_INVALID),
    "only the mark": (GOOD[:132], Quarantine.FILE_INVALID),
    "no preamble": (GOOD[132:], Quarantine.FILE_INVALID),
    "no file meta": (GOOD[:132] + GOOD[DATA_SET:], Quarantine.FILE_INVALID),
    "cut in the file meta": (GOOD[:180], Quarantine.FILE_INVALID),
    "cut in the header": (GOOD[:520], Quarantine.FILE_INVALID),
    "cut in the pixels": (GOOD[:-100], Quarantine.PIXELS_INVALID),
    "cut before the pixels": (GOOD[: GOOD.index(b"\xe0\x7f\x10\0")], Quarantine.PIXELS_MISSING),
    "a length past the end": (with_element(TOO_LONG), Quarantine.FILE_INVALID),
    "pixels of 4 GB": (GOOD[:-516] + struct.pack("<I", 2**32 - 2) + GOOD[-512:], Quarantine.NONE),
    "native pixels of no length": (
        GOOD[:-516] + struct.pack("<I", walk.UNDEFINED) + GOOD[-512:],
        Quarantine.PIXELS_INVALID,
    ),
    "10 GB of frames": (dicoms.stored(Image(more={"NumberOfFrames": 60000})), Quarantine.PIXELS_INVALID),
    "2^31 frames": (dicoms.stored(Image(more={"NumberOfFrames": 2**31 - 1})), Quarantine.TOO_LARGE),
    "65535 rows": (dicoms.stored(Image(more={"Rows": 65535})), Quarantine.PIXELS_INVALID),
    "minus one frame": (dicoms.stored(Image(more={"NumberOfFrames": -1})), Quarantine.FILE_INVALID),
    "half a frame": (with_element(b"").replace(b"2.5 ", b"2.x "), Quarantine.FILE_INVALID),
    "a patient twice": (with_element(explicit(0x00100020, b"LO", b"P002")), Quarantine.FILE_INVALID),
    "a syntax twice": (
        GOOD[:DATA_SET] + explicit(0x00020010, b"UI", b"1.2.840.10008.1.2\0") + GOOD[DATA_SET:],
        Quarantine.FILE_INVALID,
    ),
    "a delimiter of no sequence": (
        GOOD[:DATA_SET] + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0) + GOOD[DATA_SET:],
        Quarantine.FILE_INVALID,
    ),
    "a delimiter of no sequence, implicit": (
        with_delimiter(dicoms.stored(Image(syntax=walk.IMPLICIT))),
        Quarantine.FILE_INVALID,
    ),
    "a VR that isn't one": (with_element(explicit(0x00400275, b"ZZ", b"")), Quarantine.FILE_INVALID),
    "a number as text": (with_element(explicit(0x00280103, b"LO", b"no")), Quarantine.NONE),
    "nested 15 deep": (with_element(nested(15)), Quarantine.NONE),
    "nested 17 deep": (with_element(nested(17)), Quarantine.TOO_LARGE),
    "nested 100,000 deep": (with_element(nested(100_000)), Quarantine.TOO_LARGE),
    "a sequence that never ends": (
        with_element(explicit(0x00400275, b"SQ", b"", walk.UNDEFINED)),
        Quarantine.FILE_INVALID,
    ),
    "300,000 elements": (with_element(explicit(0x00090010, b"LO", b"") * 300_000), Quarantine.TOO_LARGE),
    "a description of 100 kB": (with_element(LONG_TEXT), Quarantine.FILE_INVALID),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_hostile_files_get_a_reason(name: str) -> None:
    data, expected = BAD[name]
    assert verdict(data) is expected


def test_a_deflated_bomb_ends_at_a_limit() -> None:
    data = dicoms.stored(Image(syntax="1.2.840.10008.1.2.1.99"))
    at = data.index(b"1.2.840.10008.1.2.1.99") + 22
    _, start = walk.meta_of(io.BytesIO(data), ())
    assert start >= at
    engine = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    bomb = explicit(0x00090010, b"UN", bytes(64 * 2**20))
    packed = engine.compress(bomb) + engine.flush()
    assert verdict(data[:start] + packed) is Quarantine.FILE_INVALID
    assert verdict(data[:start] + b"\xff" * 100) is Quarantine.FILE_INVALID
    assert verdict(data[: start + 40]) is Quarantine.FILE_INVALID


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"# a README, and no image", headers.Aside.OTHER),
        (b"\x89PNG\r\n\x1a\n" + bytes(200), headers.Aside.OTHER),
        (Path(str(get_testdata_file("DICOMDIR"))).read_bytes(), headers.Aside.DIRECTORY),
    ],
)
def test_what_is_no_image_is_set_aside_by_name(data: bytes, expected: headers.Aside) -> None:
    assert headers.ASIDE[reply_to(data)] is expected


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_change_of_bytes_escapes_with_another_error(data: st.DataObject) -> None:
    """Whatever is done to a file, the answer is a description or one of the reasons."""
    bent = bytearray(dicoms.encoded(dicoms.enhanced(Image(), [0.0, 2.0])))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(128, len(bent) - 1))
        bent[at] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFE, 0xFF, bent[at] ^ 1]))
    end = data.draw(st.integers(0, len(bent)))
    for changed in (bytes(bent), bytes(bent[:end])):
        try:
            reply = reply_to(changed)
        except Unusable as unusable:
            assert unusable.quarantine is not Quarantine.NONE
        else:
            assert reply in headers.ASIDE or Decoder(SETUP.wanted).decode(reply, "here").frames >= 1


@given(st.binary(max_size=300))
def test_any_bytes_behind_the_mark_are_survived(tail: bytes) -> None:
    assert verdict(bytes(128) + b"DICM" + tail) is not Quarantine.NONE


REPLY = reply_to(GOOD).decode()


@pytest.mark.parametrize(
    "reply",
    [
        "", "[]", "{}", "null", "[1,2,3,4,5,6]", "[" * 100_000, "\xff", '{"aside":"not-dicom"}',
        REPLY.replace("[1,16,16,1,0]", "[0,16,16,1,0]"),
        REPLY.replace("[1,16,16,1,0]", "[99999999,16,16,1,0]"),
        REPLY.replace("[1,16,16,1,0]", "[1,16,16,1,99]"),
        REPLY.replace("[1,16,16,1,0]", "[true,16,16,1,0]"),
        REPLY.replace("[1,16,16,1,0]", "[1.5,16,16,1,0]"),
        REPLY.replace("[1,16,16,1,0]", "[1,65536,16,1,0]"),
        REPLY.replace("[1,16,16,1,0]", "[1,16,-1,1,0]"),
        REPLY.replace("[1,16,16,1,0]", f"[1,16,16,{'9' * 400},0]"),
        REPLY.replace('["2.25.', '["2.25:'),
        REPLY.replace('"P001"', '"\\ud800"'),
        REPLY.replace('"CT"', "1"),
        REPLY.replace('"CT"', '"' + "x" * 20_000 + '"'),
        REPLY.replace("[0.0,0.0,0.0]", "[0.0,0.0]"),
        REPLY.replace("[0.0,0.0,0.0]", "[0.0,0.0,NaN]"),
        REPLY.replace("[0.0,0.0,0.0]", "[0.0,0.0,1e999]"),
        REPLY.replace('"20200101"', '{"a":1}'),
        REPLY.replace('"20200101"', "[]"),
        REPLY.replace('"20200101",', ""),
    ],
)  # fmt: skip
def test_a_worker_that_was_taken_over_is_not_believed(reply: str) -> None:
    with pytest.raises(Unusable) as refused:
        Decoder(SETUP.wanted).decode(reply.encode("latin-1"), "here")
    assert refused.value.quarantine is Quarantine.DECODER_CRASHED


def test_equal_values_are_held_once() -> None:
    decoder = Decoder(SETUP.wanted)
    one = decoder.decode(reply_to(dicoms.stored(Image(number=1))), "a")
    two = decoder.decode(reply_to(dicoms.stored(Image(number=2))), "b")
    assert one.values is two.values and one.orientation is two.orientation
    assert one.series_uid is two.series_uid and one.sop_uid != two.sop_uid


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (dicoms.AXIAL, (0.0, 0.0, 1.0)),
        ((0.0, 1.0, 0.0, 0.0, 0.0, -1.0), (-1.0, 0.0, 0.0)),
        ((1.0, 0.0, 0.0, 1.0, 0.0, 0.0), None),
        ((0.0,) * 6, None),
        ((5.0, 0.0, 0.0, 0.0, 5.0, 0.0), None),
    ],
)
def test_a_normal_needs_a_plane(orientation: tuple[float, ...], expected: tuple[float, ...] | None) -> None:
    assert planes.normal_of(orientation) == expected
