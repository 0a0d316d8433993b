from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rapha.node.sources.imaging.attributes import Instance
from rapha.node.sources.imaging.columns import Columns
from rapha.node.sources.imaging.labels import Labels
from rapha.node.sources.imaging.rules import Kind, Plan, plan
from rapha.node.sources.imaging.series import Grouping, frames
from rapha.node.sources.interface import Quarantine
from rapha.runtime.broker.store import Ragged
from rapha.spec.dataset import Field
from rapha.spec.imaging import LabelTable
from rapha.spec.paths import SourceFile
from rapha.spec.refusals import Refused
from rapha.testing import dicoms

TABLE = LabelTable(
    path="labels", file=SourceFile(name="l.parquet", sha256="0" * 64, size=1), key="AccessionNumber"
)


def field(path: str, dtype: Any = "float32", **more: Any) -> Field:
    return Field(name="f", path=path, dtype=dtype, **more)


def planned(*fields: Field, columns: frozenset[str] = frozenset(), **source: Any) -> Plan:
    pixels = () if source.get("record") else (dicoms.pixels(),)
    return plan(dicoms.manifest(*pixels, *fields, **source), columns)


def instance(number: int = 0, patient: str = "P1", **values: Any) -> Instance:
    known = {"StudyDate": "20200101", "PatientAge": None, "PatientBirthDate": None, **values}
    return Instance(
        f"1.2.{number}", "1.2", "1", "1.9", patient, "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1",
        "CT", 1, 16, 16, 1, (0.0, 0.0, 2.5 * number), dicoms.AXIAL, known, f"{number}.dcm",
    )  # fmt: skip


def held(one: Field, *instances: Instance, labels: Labels | None = None) -> tuple[list[Any], list[bool]]:
    """The values and validity of a field over frames of some images."""
    columns = frozenset({one.where}) if one.label else frozenset()
    rules = planned(one, columns=columns).rules
    records = frames(instances, [Quarantine.NONE] * len(instances))
    found = Columns(rules, instances, records, labels).held("f")
    assert not isinstance(found.values, Ragged)
    words = found.words
    values = found.values.tolist()
    return [words[v] for v in values] if words else values, found.valid.tolist()


@pytest.mark.parametrize(
    "one",
    [
        field("Modality", "string"),
        field("ImageType", "string"),
        field("SOPClassUID", "string"),
        field("Modality", "uint8", codes={"CT": 0, "MR": 1}),
        field("ManufacturerModelName", "string"),
        field("StudyDescription", "string"),
        field("StudyDate", "date"),
        field("AcquisitionDateTime", "date"),
        field("StudyDate", "int32"),
        field("ContentTime", "float32"),
        field("SliceThickness"),
        field("Rows", "uint16"),
        field("PixelSpacing", shape=(2,)),
        field("ImageType", "uint8", codes={"ORIGINAL\\PRIMARY\\AXIAL": 1}),
        field("ImagePositionPatient", shape=(3,)),
        field("FrameTimeVector", ragged=True),
        field("PatientAge"),
        field("@age_band", "string"),
        field("@age_band", "uint8", codes={"50-59": 5}, label=True),
        field("@slice_position"),
        field("@slice_fraction", label=True),
        field("@frame", "int32"),
        field("PatientID", "pseudonym"),
        field("AccessionNumber", "pseudonym"),
        field("FrameOfReferenceUID", "pseudonym"),
    ],
    ids=lambda one: f"{one.where} as {one.dtype}",
)
def test_a_manifest_may_use(one: Field) -> None:
    assert planned(one, text=("StudyDescription",)).rules[-1].field is one


@pytest.mark.parametrize(
    "one",
    [
        field("PatientName", "string"),
        field("PatientName", "pseudonym"),
        field("ReferringPhysicianName", "string"),
        field("AccessionNumber", "string"),
        field("AccessionNumber", "uint8", codes={"A1": 1}),
        field("FrameOfReferenceUID", "string"),
        field("StudyInstanceUID", "string"),
        field("DeviceUID", "string"),
        field("OtherPatientIDs", "string"),
        field("StudyID", "string"),
        field("StudyID", "pseudonym"),
        field("PatientAddress", "string"),
        field("PatientTelephoneNumbers", "string"),
        field("InstitutionName", "string"),
        field("StationName", "string"),
        field("DeviceSerialNumber", "string"),
        field("MedicalRecordLocator", "string"),
        field("SeriesDescription", "string"),
        field("ProtocolName", "string"),
        field("PatientComments", "string"),
        field("PatientComments", "uint8", codes={"": 1}),
        field("PatientBirthDate", "date"),
        field("PatientBirthDate", "int32"),
        field("PatientBirthTime"),
        field("PatientAge", "string"),
        field("StudyDate", "string"),
        field("StudyTime", "date"),
        field("StudyDate", "int32", shape=(2,)),
        field("PixelData", "uint8"),
        field("PixelData", "string"),
        field("RequestAttributesSequence", "string"),
        field("RetrieveURL", "string"),
        field("StationAETitle", "string"),
        field("NoSuchKeyword"),
        field("(0009,1010)"),
        field("f"),
        field("@pixels"),
        field("@pixels", shape=(4,)),
        field("@pixels", shape=(4, 4, 4)),
        field("@pixels", "bool", shape=(4, 4)),
        field("@pixels", "string"),
        field("@pet", shape=(4, 4)),
        field("@unknown"),
        field("@age_band"),
        field("@age_band", "pseudonym"),
        field("@slice_position", "int32"),
        field("@slice_position", "string"),
        field("@frame", "string"),
        field("Modality", "uint8"),
        field("Modality", "int8", codes={"CT": 200}),
        field("SliceThickness", "string"),
        field("SliceThickness", "pseudonym"),
        field("SliceThickness", shape=(2, 2)),
        field("SliceThickness", codes={"1": 1}),
        field("column_of_no_table", label=True),
    ],
    ids=lambda one: f"{one.where} as {one.dtype} {one.shape}",
)
def test_a_manifest_may_not_use(one: Field) -> None:
    with pytest.raises(Refused) as refused:
        planned(one)
    assert refused.value.code == "node.dataset_invalid" and "field f " in str(refused.value.detail)


@pytest.mark.parametrize("keyword", ["PatientName", "PatientAddress", "PatientID", "StudyDate", "Nothing"])
def test_no_list_of_texts_lets_a_name_through(keyword: str) -> None:
    with pytest.raises(Refused, match=f"source.text: {keyword}"):
        planned(text=(keyword,))


def test_records_decide_which_pixels_there_are() -> None:
    pair = (field("@pet", shape=(4, 4)), Field(name="ct", path="@ct", dtype="int16", shape=(0, 0)))
    assert planned(*pair, record="pet-ct").rendered == ("f", "ct")
    assert planned(field("@pixels", shape=(0, 64, 64)), record="series").rendered == ("f",)
    for one in (field("@pixels", shape=(4, 4)), field("@slice_position"), field("@frame", "int32")):
        with pytest.raises(Refused):
            planned(one, dicoms.pixels((0, 4, 4)), record="series")


def test_a_label_of_an_image_is_none_of_its_series() -> None:
    table = TABLE.model_copy(update={"key": "SOPInstanceUID"})
    planned(labels=table)
    with pytest.raises(Refused, match="none of its series"):
        planned(dicoms.pixels((0, 4, 4)), record="series", labels=table)


def test_only_what_is_needed_is_read() -> None:
    assert planned().setup.wanted == ("BurnedInAnnotation",)
    assert "PatientBirthDate" in planned(field("@age_band", "string")).setup.wanted
    assert "PatientBirthDate" not in planned(field("PatientAge")).setup.wanted
    assert planned(field("Modality", "string")).setup.wanted == ("BurnedInAnnotation",)
    assert planned(field("StudyTime")).setup.wanted == ("BurnedInAnnotation", "StudyTime", "StudyDate")
    assert planned(labels=TABLE).setup.wanted == ("BurnedInAnnotation", "AccessionNumber")
    assert planned(field("@slice_position")).setup.places and not planned().setup.places


def test_a_label_of_the_table_comes_before_an_attribute() -> None:
    one = field("Rows", "float32", label=True)
    assert planned(one, columns=frozenset({"Rows"}), labels=TABLE).rules[-1].kind is Kind.LABELLED
    assert planned(one).rules[-1].kind is Kind.NUMBER


@pytest.mark.parametrize(
    ("age", "birth", "band"),
    [
        ("045Y", None, "40-49"),
        ("009Y", None, "00-09"),
        ("006M", None, "00-09"),
        ("089Y", None, "80-89"),
        ("090Y", None, "90+"),
        ("101Y", None, "90+"),
        (None, "19600101", "60-69"),
        (None, "19600102", "50-59"),
        (None, "1960.01.01", "60-69"),
        (None, "20210101", None),
        ("45", None, None),
        ("٠٤٥Y", None, None),
        (None, None, None),
    ],
)
def test_ages_become_bands(age: str | None, birth: str | None, band: str | None) -> None:
    values, valid = held(field("@age_band", "string"), instance(PatientAge=age, PatientBirthDate=birth))
    assert values == [band or ""] and valid == [band is not None]


@pytest.mark.parametrize(
    ("stored", "dtype", "expected"),
    [
        ("045Y", "int16", 45),
        ("006M", "float32", 0.5),
        ("006M", "uint8", 0),
        ("095Y", "float32", 90),
        ("999Y", "int8", 90),
        ("", "float32", None),
        (None, "int16", None),
        (45.0, "int16", None),
    ],
)
def test_ages_end_at_ninety(stored: Any, dtype: str, expected: float | None) -> None:
    values, valid = held(field("PatientAge", dtype), instance(PatientAge=stored))
    assert valid == [expected is not None] and (expected is None or values == [expected])


def test_dates_are_days_from_the_patients_first_study() -> None:
    images = [
        instance(0, "A", StudyDate="20200229", AcquisitionDate="20200301"),
        instance(1, "A", StudyDate="20200115", AcquisitionDate="20200115"),
        instance(2, "B", StudyDate="20200301", AcquisitionDate="2020.03.01"),
        instance(3, "C", StudyDate="20209999", AcquisitionDate="20200301"),
        instance(4, "A", StudyDate=None, AcquisitionDate="2020011"),
    ]
    values, valid = held(field("AcquisitionDate", "int32"), *images)
    assert valid == [True, True, True, False, False] and values[:3] == [46, 0, 0]


def test_day_zero_is_of_a_study_that_is_the_patients() -> None:
    dates = ("20200103", "20200101", "19000101", "19000101")
    images = [instance(n, StudyDate=day) for n, day in enumerate(dates)]
    verdicts = [Quarantine.NONE, Quarantine.PIXELS_INVALID, Quarantine.DUPLICATE, Quarantine.PATIENT_INVALID]
    rules = planned(field("StudyDate", "int32")).rules
    found = Columns(rules, images, frames(images, verdicts), None).held("f")
    assert np.asarray(found.values)[:2].tolist() == [2, 0]


@pytest.mark.parametrize(
    ("path", "stored", "days"),
    [
        ("StudyTime", "120000", 0.5),
        ("StudyTime", "060000.000000", 0.25),
        ("StudyTime", "18", 0.75),
        ("StudyTime", "18:00:00", 0.75),
        ("StudyTime", "240000", None),
        ("StudyTime", "101112.123456", 36672.123456 / 86400),
        ("StudyTime", "noon", None),
        ("AcquisitionDateTime", "20200102", 1.0),
        ("AcquisitionDateTime", "20200102120000.5+0100", 1.5),
        ("AcquisitionDateTime", "20200102+0100", 1.0),
        ("AcquisitionDateTime", "2020", None),
        ("AcquisitionDateTime", "20201302", None),
    ],
)
def test_times_are_parts_of_a_day(path: str, stored: str, days: float | None) -> None:
    values, valid = held(field(path, "float64"), instance(0, **{path: stored}))
    assert valid == [days is not None] and (days is None or values == [pytest.approx(days)])


def test_dates_are_selected_as_days_of_the_calendar() -> None:
    stored = ["19691231", "20200230", "20200101-20210101", "20200101x", "20200101\n"]
    images = [instance(0), *(instance(n, StudyDate=value) for n, value in enumerate(stored, 1))]
    values, valid = held(field("StudyDate", "date"), *images)
    assert values[:2] == [18262, -1] and valid == [True, True, False, False, False, False]


@pytest.mark.parametrize(
    ("dtype", "stored", "expected"),
    [
        ("float32", 2.5, 2.5),
        ("float16", 70000.0, None),
        ("int16", 2.5, None),
        ("int16", 3.0, 3),
        ("int8", 128.0, None),
        ("uint8", -1.0, None),
        ("int64", 2.0**63, None),
        ("int64", -(2.0**63), -(2**63)),
        ("bool", 1.0, True),
        ("bool", 2.0, None),
        ("float32", "2.5", None),
        ("float32", (1.0, 2.0), None),
        ("float32", None, None),
    ],
)
def test_numbers_are_held_exactly_or_not_at_all(dtype: str, stored: Any, expected: Any) -> None:
    values, valid = held(field("SliceThickness", dtype), instance(SliceThickness=stored))
    assert valid == [expected is not None] and (expected is None or values == [expected])


def test_rows_of_numbers() -> None:
    images = [instance(n, PixelSpacing=v) for n, v in enumerate([(1.0, 2.0), (1.0,) * 3, None, 1.0])]
    values, valid = held(field("PixelSpacing", shape=(2,)), *images)
    assert values[0] == [1.0, 2.0] and valid == [True, False, False, False]


def test_any_number_of_values() -> None:
    images = [instance(n, FrameTimeVector=v) for n, v in enumerate([(1.0, 2.0), None, 3.0, ("x", 1.0)])]
    rules = planned(field("FrameTimeVector", "int16", ragged=True)).rules
    records = frames(images, [Quarantine.NONE] * 4)
    found = Columns(rules, images, records, None).held("f")
    assert found.valid.tolist() == [True, True, True, False]
    taken = found.take(np.array([2, 0, 1]))
    assert isinstance(taken, Ragged)
    assert taken.values.tolist() == [3, 1, 2] and taken.offsets.tolist() == [0, 1, 3, 3]
    assert taken.values.dtype == np.int16 and found.column().values.tolist()[:3] == [2, 0, 1]
    nothing = found.take(np.array([], dtype=np.int64))
    assert isinstance(nothing, Ragged) and len(nothing.values) == 0 and nothing.offsets.tolist() == [0]


def test_codes_stand_for_texts_that_are_listed() -> None:
    images = [instance(n, BodyPartExamined=v) for n, v in enumerate(["HEAD", "CHEST", None, ("A", "B")])]
    codes = {"HEAD": 0, "A\\B": 7}
    values, valid = held(field("BodyPartExamined", "uint8", codes=codes), *images)
    assert values == [0, 0, 0, 7] and valid == [True, False, False, True]


def test_identifiers_come_as_they_are_for_whoever_makes_pseudonyms() -> None:
    images = [instance(0, AccessionNumber="A1"), instance(1, AccessionNumber=None)]
    values, valid = held(field("AccessionNumber", "pseudonym"), *images)
    assert values == ["A1", ""] and valid == [True, False]


def test_labels_are_joined_by_their_key() -> None:
    images = [instance(n, AccessionNumber=v) for n, v in enumerate(["A1", "A2", None, ("A1", "A3")])]
    labels = Labels("AccessionNumber", {"f": {"A1": 1.0, "None": 1.0, "('A1', 'A3')": 1.0}})
    values, valid = held(field("outcome", label=True), *images, labels=labels)
    assert values[0] == 1.0 and valid == [True, False, False, False]


def test_what_is_lost_has_no_values() -> None:
    records = Grouping()
    records.add_lost([("x", Quarantine.FILE_INVALID)])
    fields = [
        field("Modality", "string"), field("StudyDate", "date"), field("PatientID", "pseudonym"),
        field("PixelSpacing", shape=(2,)), field("@frame", "int32"), field("@age_band", "string"),
    ]  # fmt: skip
    for one in fields:
        found = Columns(planned(one).rules, [instance(PixelSpacing=None)], records, None).held("f")
        assert found.valid.tolist() == [False]
