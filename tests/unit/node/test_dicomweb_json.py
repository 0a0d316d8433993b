"""The DICOM JSON Model, read; and metadata and frames made into files."""

from __future__ import annotations

import contextlib
import io
import json
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread

from rapha.node.sources.imaging.assemble import NEEDED, Elsewhere, assembled
from rapha.node.sources.imaging.dicomjson import data_sets, items_at, values_at
from rapha.node.sources.imaging.multipart import Malformed
from rapha.node.sources.interface import Quarantine
from rapha.node.sources.workers.interface import Unusable
from rapha.testing.pacs import NAME, NATIVE, Image

ROWS, PATIENT, POSITION, COMMENTS = 0x00280010, 0x00100020, 0x00200032, 0x00204000
IMAGE = Image("1.2.1", "1.2.1.1", "1.2.1.1.1", value=7)
RLE = "1.2.840.10008.1.2.5"


@pytest.mark.parametrize(
    "content",
    [
        b"", b" ", b"{}", b"[", b"[]]", b"[{}", b"[{},]", b"[,]", b"[{} {}]", b"[1]", b"[null]", b'["a"]',
        b"[[]]", b"\xef\xbb\xbf[]", b"\xff", b'[{"a": 1, "a": 2}]', b'[{"b": {"a": 1, "a": 1}}]',
        b'[{"a": NaN}]', b'[{"a": Infinity}]', b'[{"a": 1e400}]', b'[{"a": ' + b"1" * 50 + b"}]",
        b'[{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}]", b'[{"a": ' + b"[" * 80 + b"]" * 80 + b"}]",
        b"[{}" + b",{}" * 2_200_000 + b"]",
    ],
)  # fmt: skip
def test_what_is_not_strict_json(content: bytes) -> None:
    with pytest.raises(Malformed):
        list(data_sets(content))


def test_an_empty_list_and_blanks() -> None:
    assert list(data_sets(b" [ ] \n")) == []
    assert list(data_sets(b'\t[{"a": 1} ,\r\n{}]')) == [{"a": 1}, {}]


@given(st.binary(max_size=200))
def test_any_bytes_parse_or_are_malformed(content: bytes) -> None:
    with contextlib.suppress(Malformed):
        assert all(isinstance(one, dict) for one in data_sets(content))


@pytest.mark.parametrize(
    ("tag", "vr", "attribute", "values"),
    [
        (ROWS, "US", {"vr": "US", "Value": [512]}, (512.0,)),
        (ROWS, "US", {"vr": "US"}, ()),
        (ROWS, "US", {"vr": "US", "Value": []}, ()),
        (ROWS, "US", {"vr": "UN", "Value": [512]}, (512.0,)),
        (POSITION, "DS", {"vr": "DS", "Value": [1, -2.5, "3.0e1"]}, (1.0, -2.5, 30.0)),
        (POSITION, "DS", {"vr": "DS", "Value": [None, ""]}, ()),
        (PATIENT, "LO", {"vr": "LO", "Value": [" a "]}, ("a",)),
        (PATIENT, "LO", {"vr": "LO", "Value": [None, "b"]}, ("", "b")),
        (PATIENT, "LO", {"vr": "LO", "Value": [None]}, ()),
        (PATIENT, "LO", {"vr": "LO", "Value": ["e\u0301"]}, ("\u00e9",)),
        (PATIENT, "LO", {"vr": "SH", "Value": ["x"]}, ("x",)),
        (COMMENTS, "LT", {"vr": "LT", "Value": ["a\\b"]}, ("a\\b",)),
    ],
)  # fmt: skip
def test_values(tag: int, vr: str, attribute: object, values: tuple[object, ...]) -> None:
    assert values_at({f"{tag:08X}": attribute}, tag, vr) == values


BAD_NUMBERS = [
    "a",
    "1_0",
    "٣",
    "nan",
    "inf",
    "0x1",
    "1" * 50,
    [1],
    {"a": 1},
    True,
    1.5,
    10**39 * 10**270,
    "--1",
]
BAD_TEXTS = [1, True, ["a"], {"Alphabetic": "a"}, "a\\b", "x" * 20000]


@pytest.mark.parametrize("value", BAD_NUMBERS)
def test_values_that_are_no_numbers(value: object) -> None:
    with pytest.raises(Unusable) as unusable:
        values_at({f"{ROWS:08X}": {"vr": "US", "Value": [value]}}, ROWS, "US")
    assert unusable.value.quarantine is Quarantine.FILE_INVALID


@pytest.mark.parametrize("value", BAD_TEXTS)
def test_values_that_are_no_texts(value: object) -> None:
    with pytest.raises(Unusable):
        values_at({f"{PATIENT:08X}": {"vr": "LO", "Value": [value]}}, PATIENT, "LO")


@pytest.mark.parametrize(
    "attribute",
    [1, "a", [], {}, {"vr": 1}, {"vr": None}, {"Value": [1]}, {"vr": "US", "Value": 1},
     {"vr": "US", "Value": {"a": 1}}, {"vr": "SQ", "Value": [{}]}, {"vr": "LO", "Value": ["1"]},
     {"vr": "US", "Value": [1] * 2000}, {"vr": "??", "Value": [1]}],
)  # fmt: skip
def test_attributes_that_are_none(attribute: object) -> None:
    with pytest.raises(Unusable):
        values_at({f"{ROWS:08X}": attribute}, ROWS, "US")


def test_half_of_a_surrogate_pair_is_no_identifier() -> None:
    (found,) = data_sets(b'[{"00100020": {"vr": "LO", "Value": ["a\\ud800"]}}]')
    (word,) = values_at(found, PATIENT, "LO")
    assert word == "a\ufffd"


@pytest.mark.parametrize(
    "attribute", [{"vr": "LO", "Value": []}, {"vr": "SQ", "Value": [1]}, {"Value": []}, 1]
)
def test_sequences_that_are_none(attribute: object) -> None:
    with pytest.raises(Unusable):
        items_at({"00089215": attribute}, 0x00089215)


def test_an_assembled_file_is_one_that_pydicom_reads_and_holds_no_name() -> None:
    data = assembled(IMAGE.header(), memoryview(IMAGE.pixels), NATIVE, None)
    data_set = dcmread(io.BytesIO(data))
    assert data_set.pixel_array[0, 0] == 7
    assert (data_set.PatientID, data_set.SOPInstanceUID) == ("P1", IMAGE.sop)
    assert "PatientName" not in data_set and "StudyDescription" not in data_set
    assert NAME.encode() not in data


def test_an_encapsulated_frame_is_one_fragment() -> None:
    data = assembled(IMAGE.header(), memoryview(b"odd"), RLE, None)
    end = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    assert data.endswith(struct.pack("<HHI", 0xFFFE, 0xE000, 4) + b"odd\0" + end)


def test_one_frame_of_several_keeps_its_own_groups() -> None:
    groups = [
        {"00209113": {"vr": "SQ", "Value": [{"00200032": {"vr": "DS", "Value": [n, 0, 0.5]}}]}}
        for n in range(3)
    ]
    several = {
        **IMAGE.header(),
        "00280008": {"vr": "IS", "Value": [3]},
        "52009230": {"vr": "SQ", "Value": groups},
    }
    data_set = dcmread(io.BytesIO(assembled(several, memoryview(IMAGE.pixels), NATIVE, 2)))
    (group,) = data_set.PerFrameFunctionalGroupsSequence
    assert data_set.NumberOfFrames == 1
    assert group.PlanePositionSequence[0].ImagePositionPatient == [2, 0, 0.5]
    with pytest.raises(Unusable):
        assembled(several, memoryview(IMAGE.pixels), NATIVE, 3)


@pytest.mark.parametrize(
    "change",
    [
        {"00281201": {"vr": "OW", "BulkDataURI": "http://192.0.2.1/"}},
        {"00280010": {"vr": "US", "BulkDataURI": "file:///etc/passwd"}},
        {"7FE00008": {"vr": "OF", "BulkDataURI": ""}},
        {"00280100": {"vr": "US", "Value": [1]}},
        {"00280100": {"vr": "US"}},
    ],
)
def test_what_metadata_only_link_to_is_fetched_whole(change: dict[str, Any]) -> None:
    with pytest.raises(Elsewhere):
        assembled({**IMAGE.header(), **change}, memoryview(IMAGE.pixels), NATIVE, None)


@pytest.mark.parametrize("syntax", ["", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99", "1.2.3"])
def test_frames_of_other_syntaxes_are_fetched_whole(syntax: str) -> None:
    with pytest.raises(Elsewhere):
        assembled(IMAGE.header(), memoryview(IMAGE.pixels), syntax, None)


@pytest.mark.parametrize(
    "attribute",
    [
        {"vr": "US", "Value": [70000]}, {"vr": "US", "Value": [-1]}, {"vr": "US", "Value": ["a"]},
        {"vr": "SQ", "Value": [{}]}, {"vr": "XX", "Value": [1]}, {"vr": "OW", "InlineBinary": "?"},
        {"vr": "OW", "InlineBinary": 1}, {"vr": "CS", "Value": ["a\\b"]}, {"vr": "CS", "Value": [1]},
        {"vr": "US", "Value": [1] * 40000}, {"vr": "US", "Value": 1}, {}, 1,
    ],
)  # fmt: skip
def test_values_that_fit_no_file(attribute: object) -> None:
    with pytest.raises(Unusable):
        assembled({**IMAGE.header(), "00280010": attribute}, memoryview(IMAGE.pixels), NATIVE, None)


@pytest.mark.parametrize("items", [[1], ["a"], [[]]])
def test_items_that_are_none(items: list[object]) -> None:
    with pytest.raises(Unusable):
        header = {**IMAGE.header(), "52009229": {"vr": "SQ", "Value": items}}
        assembled(header, memoryview(IMAGE.pixels), NATIVE, None)


def test_sequences_have_a_limit_on_depth() -> None:
    deep: dict[str, Any] = {"vr": "SQ", "Value": []}
    for _ in range(20):
        deep = {"vr": "SQ", "Value": [{"52009229": deep}]}
    with pytest.raises(Unusable):
        assembled({**IMAGE.header(), "52009229": deep}, memoryview(IMAGE.pixels), NATIVE, None)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
ATTRIBUTES = st.fixed_dictionaries(
    {},
    optional={
        "vr": st.sampled_from(["US", "DS", "IS", "SQ", "OW", "CS", "LO", "UN", "PN"]),
        "Value": ANY_JSON,
    },
)


@settings(max_examples=200)
@given(
    st.dictionaries(
        st.sampled_from(sorted(NEEDED & IMAGE.header().keys())), ATTRIBUTES | ANY_JSON, max_size=4
    )
)
def test_any_metadata_make_a_file_or_are_unusable(changes: dict[str, Any]) -> None:
    header = json.loads(json.dumps({**IMAGE.header(), **changes}))
    with contextlib.suppress(Unusable, Elsewhere):
        data = assembled(header, memoryview(IMAGE.pixels), NATIVE, None)
        assert data[128:132] == b"DICM"


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e299, max_value=1e299))
def test_numbers_survive(number: float) -> None:
    header = {**IMAGE.header(), "00281052": {"vr": "DS", "Value": [number]}}
    data = assembled(header, memoryview(IMAGE.pixels), NATIVE, None)
    start = data.index(struct.pack("<HH2s", 0x0028, 0x1052, b"DS"))
    (length,) = struct.unpack_from("<H", data, start + 6)
    assert float(data[start + 8 : start + 8 + length]) == number


@pytest.mark.parametrize("tag", ["52009229", "00283000", "00281053", "00281201"])
@pytest.mark.parametrize("vr", ["SQ", "UN", "OW", "DS"])
def test_a_value_that_is_only_linked_to_is_not_taken_for_none(tag: str, vr: str) -> None:
    linked = {**IMAGE.header(), tag: {"vr": vr, "BulkDataURI": "file:///etc/passwd"}}
    with pytest.raises(Elsewhere):
        assembled(linked, memoryview(IMAGE.pixels), NATIVE, None)


@pytest.mark.parametrize(
    ("photometric", "planar", "stored", "usable"),
    [("RGB", 0, None, True), ("RGB", 1, None, False), ("YBR_FULL", 0, None, False),
     ("YBR_FULL_422", 0, "1.2.840.10008.1.2.4.50", False), ("RGB", 1, RLE, False), ("RGB", 1, NATIVE, True)],
)  # fmt: skip
def test_colours_that_were_unpacked_on_the_way(
    photometric: str, planar: int, stored: str | None, usable: bool
) -> None:
    header = {
        **IMAGE.header(),
        "00280002": {"vr": "US", "Value": [3]},
        "00280004": {"vr": "CS", "Value": [photometric]},
        "00280006": {"vr": "US", "Value": [planar]},
        **({"00083002": {"vr": "UI", "Value": [stored]}} if stored else {}),
    }
    with contextlib.nullcontext() if usable else pytest.raises(Elsewhere):
        assembled(header, memoryview(bytes(96)), NATIVE, None)


def test_only_what_is_needed_stays_in_memory() -> None:
    content = json.dumps([IMAGE.header()] * 2).encode()
    assert (
        list(data_sets(content, frozenset(("00080018", "00080019"))))
        == [{"00080018": {"vr": "UI", "Value": [IMAGE.sop]}}] * 2
    )
