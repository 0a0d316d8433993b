from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rapha.node.sources.imaging import series
from rapha.node.sources.imaging.attributes import Instance
from rapha.node.sources.imaging.records import ImagingRecords
from rapha.node.sources.imaging.verdicts import Same
from rapha.node.sources.interface import Quarantine, Surroundings
from rapha.node.sources.workers.interface import Item
from rapha.spec import cohort
from rapha.spec.dataset import DatasetManifest, Field
from rapha.spec.refusals import Refused
from rapha.testing import dicoms

CT, PT, US = ("1.2.840.10008.5.1.4.1.1." + end for end in ("2", "128", "6.1"))
CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
SERIES = dicoms.manifest(dicoms.pixels((0, 16, 16)), record="series")
PAIRS = dicoms.manifest(
    Field(name="pet", path="@pet", dtype="float32", shape=(16, 16)),
    Field(name="ct", path="@ct", dtype="int16", shape=(16, 16)),
    record="pet-ct",
)


class Nowhere:
    pool_folder: Path | None = None
    parallel = 1

    def item(self, args: bytes, instances: Sequence[Instance], frame: int) -> Item:
        raise NotImplementedError


def image(number: int = 0, **changes: Any) -> Instance:
    plain = Instance(
        f"1.2.{number}", "1.7.1", "1.8.1", "1.9.1", "P1", CT, "1.2.840.10008.1.2.1", "CT", 1, 16, 16, 1,
        (0.0, 0.0, 2.0 * number), dicoms.AXIAL, {"BurnedInAnnotation": None}, f"{number}.dcm",
    )  # fmt: skip
    return replace(plain, **changes)


def pet(number: int, z: float, **changes: Any) -> Instance:
    changes = {"series_uid": "1.7.9", "modality": "PT", "sop_class": PT, "position": (0.0, 0.0, z), **changes}
    return image(100 + number, **changes)


def formed(
    manifest: DatasetManifest,
    *images: Instance,
    lost: Sequence[tuple[str, Quarantine]] = (),
    same: Same | None = None,
) -> ImagingRecords:
    around = Surroundings(Path.cwd(), 1, lambda what, done, total: None)
    if same is None:
        return ImagingRecords(manifest, images, lost, Nowhere(), around)
    return ImagingRecords(manifest, images, lost, Nowhere(), around, same=same)


def verdicts(records: ImagingRecords) -> list[Quarantine]:
    return [Quarantine(value) for value in records.index.quarantine.tolist()]


def only(manifest: DatasetManifest, *images: Instance) -> Quarantine:
    """The verdict on the one record that the images make."""
    (verdict,) = verdicts(formed(manifest, *images))
    return verdict


FRAME = dicoms.manifest()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, Quarantine.NONE),
        ({"sop_uid": ""}, Quarantine.UID_MISSING),
        ({"series_uid": ""}, Quarantine.UID_MISSING),
        ({"study_uid": ""}, Quarantine.UID_MISSING),
        ({"patient_id": ""}, Quarantine.PATIENT_MISSING),
        ({"patient_id": "P1\\P2"}, Quarantine.PATIENT_INVALID),
        ({"patient_id": "P\ufffd"}, Quarantine.PATIENT_INVALID),
        ({"patient_id": "P\u200b1"}, Quarantine.PATIENT_INVALID),
        ({"patient_id": "P" * 129}, Quarantine.PATIENT_INVALID),
        ({"patient_id": "P\x1b1"}, Quarantine.PATIENT_INVALID),
        ({"flaw": Quarantine.PIXELS_INVALID}, Quarantine.PIXELS_INVALID),
        ({"rows": 0}, Quarantine.PIXELS_MISSING),
        ({"modality": "US"}, Quarantine.BURNED_IN),
        ({"modality": "OT"}, Quarantine.BURNED_IN),
        ({"modality": "CT", "sop_class": CAPTURE}, Quarantine.BURNED_IN),
        ({"modality": "CT", "sop_class": CAPTURE + ".4"}, Quarantine.BURNED_IN),
        ({"modality": "MR", "sop_class": US}, Quarantine.BURNED_IN),
        ({"modality": "CT", "sop_class": "1.2.840.10008.5.1.4.1.1.6"}, Quarantine.BURNED_IN),
        ({"modality": "CT", "sop_class": "1.2.840.10008.5.1.4.1.1.3.1"}, Quarantine.BURNED_IN),
        ({"modality": "ES", "sop_class": "1.2.840.10008.5.1.4.1.1.77.1.1"}, Quarantine.NONE),
        ({"modality": "CT", "sop_class": ""}, Quarantine.NONE),
        ({"modality": "US", "values": {"BurnedInAnnotation": "NO"}}, Quarantine.NONE),
        ({"modality": "US", "values": {"BurnedInAnnotation": "YES"}}, Quarantine.BURNED_IN),
        ({"modality": "US", "values": {"BurnedInAnnotation": "no"}}, Quarantine.BURNED_IN),
        ({"values": {"BurnedInAnnotation": "YES"}}, Quarantine.BURNED_IN),
        ({"values": {"BurnedInAnnotation": ("NO", "YES")}}, Quarantine.BURNED_IN),
    ],
)
def test_an_image_that_can_not_be_used_says_why(changes: dict[str, Any], expected: Quarantine) -> None:
    records = formed(FRAME, image(1, **changes))
    assert verdicts(records) == [expected]
    unreadable = expected in (Quarantine.PATIENT_MISSING, Quarantine.PATIENT_INVALID)
    assert records.index.patients == ["" if unreadable else "P1"]
    assert records.index.locators[0] == ("1.2.1" if expected is Quarantine.NONE else "1.dcm")


def test_a_hospital_may_vouch_for_its_screens() -> None:
    assert only(dicoms.manifest(burned_in="waived"), image(modality="US", sop_class=US)) is Quarantine.NONE


def test_pixels_that_nobody_asks_for_may_be_missing() -> None:
    plain = dicoms.manifest(Field(name="rows", path="Rows", dtype="int32"))
    assert only(plain, image(flaw=Quarantine.PIXELS_MISSING, modality="US")) is Quarantine.NONE
    assert only(plain, image(rows=0)) is Quarantine.VALUE_MISSING
    labelled = dicoms.manifest(dicoms.pixels(), Field(name="y", path="Columns", dtype="int32", label=True))
    assert only(labelled, image(columns=0)) is Quarantine.PIXELS_MISSING


def test_missing_values_and_labels_have_reasons_of_their_own() -> None:
    place = Field(name="z", path="@slice_position", dtype="float32")
    assert only(dicoms.manifest(dicoms.pixels(), place), image(position=None)) is Quarantine.VALUE_MISSING
    label = place.model_copy(update={"label": True})
    assert only(dicoms.manifest(dicoms.pixels(), label), image(position=None)) is Quarantine.LABEL_MISSING


def test_frames_are_records_of_their_own() -> None:
    fields = (
        Field(name="n", path="@frame", dtype="int32"),
        Field(name="z", path="@slice_position", dtype="float64"),
        Field(name="part", path="@slice_fraction", dtype="float64"),
    )
    many = image(1, frames=3, places=(1.0, 2.0, 5.0), position=None)
    records = formed(dicoms.manifest(dicoms.pixels(), *fields), many)
    assert records.index.locators == ["1.2.1:1", "1.2.1:2", "1.2.1:3"]
    read = records.read(np.array([2, 0]))
    assert {name: np.asarray(value).tolist() for name, value in read.items()} == {
        "n": [3, 1], "z": [5.0, 1.0], "part": [1.0, 0.0],
    }  # fmt: skip


SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)


@pytest.mark.parametrize("changes", [{"orientation": SAGITTAL}, {"frame_of_reference": "1.9.2"}])
def test_a_series_of_stacks_that_do_not_compare_has_no_fractions(changes: dict[str, Any]) -> None:
    part = Field(name="part", path="@slice_fraction", dtype="float64")
    stacks = [
        image(1, frames=2, places=(0.0, 5.0), position=None),
        image(2, frames=2, places=(90.0, 95.0), position=None, **changes),
    ]
    records = formed(dicoms.manifest(dicoms.pixels(), part), *stacks)
    assert verdicts(records) == [Quarantine.VALUE_MISSING] * 4


def test_an_image_that_can_not_be_used_is_one_record_however_many_frames_it_claims() -> None:
    assert only(FRAME, image(frames=60_000, flaw=Quarantine.PIXELS_INVALID)) is Quarantine.PIXELS_INVALID


def test_identical_copies_leave_one_and_others_none() -> None:
    images = [image(1), image(1, locator="b.dcm"), image(2)]
    records = formed(FRAME, *images, same=lambda a, b: True)
    assert verdicts(records) == [Quarantine.NONE] * 2
    assert [(one.locator, one.reason) for one in records.aside] == [("b.dcm", "copy")]
    records = formed(FRAME, *images)
    assert verdicts(records) == [Quarantine.DUPLICATE, Quarantine.DUPLICATE, Quarantine.NONE]
    assert records.index.patients == ["", "", "P1"] and records.aside == ()
    assert records.index.locators == ["1.dcm", "b.dcm", "1.2.2"]


def test_what_is_lost_is_counted_and_named() -> None:
    records = formed(FRAME, image(1), lost=[("bad.dcm", Quarantine.FILE_INVALID)])
    assert records.index.locators == ["1.2.1", "bad.dcm"] and records.index.patients == ["P1", ""]
    assert verdicts(records) == [Quarantine.NONE, Quarantine.FILE_INVALID]
    assert formed(FRAME, lost=[("bad.dcm", Quarantine.TOO_SLOW)]).index.locators == ["bad.dcm"]
    with pytest.raises(Refused, match="no record"):
        formed(FRAME)


def test_a_source_of_too_many_frames_is_refused() -> None:
    with pytest.raises(Refused, match="more than"):
        formed(FRAME, *(image(n, frames=65_536) for n in range(400)))


def test_frames_that_are_only_promised_refuse_no_others() -> None:
    empty = [image(n, frames=65_536, flaw=Quarantine.PIXELS_INVALID) for n in range(1, 400)]
    assert verdicts(formed(FRAME, image(0), *empty)) == [Quarantine.NONE] + [Quarantine.PIXELS_INVALID] * 399


def test_a_study_of_two_patients_is_nobodys() -> None:
    images = [image(0), image(1, patient_id="p1"), image(2, patient_id=""), image(3, study_uid="1.8.2")]
    records = formed(FRAME, *images)
    assert verdicts(records) == [
        Quarantine.PATIENT_INVALID, Quarantine.PATIENT_INVALID, Quarantine.PATIENT_MISSING, Quarantine.NONE,
    ]  # fmt: skip
    assert records.index.patients == ["", "", "", "P1"]


def test_an_impostor_falls_out_and_leaves_the_study_alone() -> None:
    images = [image(0), image(1), image(1, patient_id="P2", locator="x.dcm")]
    assert verdicts(formed(FRAME, *images)) == [Quarantine.NONE, Quarantine.DUPLICATE, Quarantine.DUPLICATE]


def test_an_identifier_that_can_not_be_read_is_never_told() -> None:
    assert formed(FRAME, image(1, sop_uid="", patient_id="P\ufffd")).index.patients == [""]


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        ([image(2), image(0), image(1)], Quarantine.NONE),
        ([image(0)], Quarantine.NONE),
        ([image(0, position=None)], Quarantine.NONE),
        ([image(0, frames=9, position=None)], Quarantine.NONE),
        ([image(0), image(1, position=None)], Quarantine.GEOMETRY),
        ([image(0), image(1, orientation=(1.0, 0.0, 0.0, 0.0, 0.0, 1.0))], Quarantine.GEOMETRY),
        ([image(n, orientation=(0.0,) * 6) for n in (0, 1)], Quarantine.GEOMETRY),
        ([image(0), image(1, position=(0.0, 0.0, 0.0))], Quarantine.GEOMETRY),
        ([image(0), image(1, frames=2)], Quarantine.GEOMETRY),
        ([image(0), image(1, rows=32)], Quarantine.SHAPE),
        ([image(0), image(1, frame_of_reference="1.9.2")], Quarantine.GEOMETRY),
        ([image(0), image(1, patient_id="P2")], Quarantine.PATIENT_INVALID),
        ([image(0), image(1, study_uid="1.8.2")], Quarantine.UID_MISSING),
        ([image(0), image(1, flaw=Quarantine.PIXELS_INVALID)], Quarantine.PIXELS_INVALID),
        ([image(0), image(0, locator="x")], Quarantine.DUPLICATE),
    ],
)
def test_a_series_is_one_volume_or_says_why_not(images: list[Instance], expected: Quarantine) -> None:
    assert only(SERIES, *images) is expected


def test_series_are_sorted_along_their_normal_and_kept_apart() -> None:
    other = [image(n, series_uid="1.7.2", patient_id="P2", study_uid="1.8.2") for n in (10, 12, 11)]
    records = formed(SERIES, image(2), image(0), *other, image(1, series_uid=""))
    assert records.index.locators == ["1.7.1", "1.7.2", "1.dcm"]
    assert records.index.patients == ["P1", "P2", "P1"]
    order = [[records._instances[m].sop_uid for m in members] for members in records._records.members]
    assert order == [["1.2.0", "1.2.2"], ["1.2.10", "1.2.11", "1.2.12"], ["1.2.1"]]


def test_a_pet_slice_is_paired_with_the_nearest_ct() -> None:
    images = [pet(0, 0.0), pet(1, 4.0), pet(2, 8.0), pet(3, 12.0)] + [image(n) for n in range(6)]
    records = formed(PAIRS, *images)
    assert verdicts(records) == [Quarantine.NONE] * 4
    pairs = [records._instances[members[1]].position for members in records._records.members]
    assert [place[2] for place in pairs if place] == [0.0, 4.0, 8.0, 10.0]
    assert [one.locator for one in records.aside] == ["1.dcm", "3.dcm"], "named, though in no pair"
    assert records.index.locators[0] == "1.2.100"


@pytest.mark.parametrize(
    "images",
    [
        [pet(0, 0.0), pet(1, 4.0)],
        [pet(0, 0.0), pet(1, 4.0), image(8)],
        [pet(0, 0.0), pet(1, 4.0), image(0, study_uid="1.8.2")],
        [pet(0, 0.0), pet(1, 4.0), image(0, frame_of_reference="1.9.2")],
        [pet(0, 0.0, frame_of_reference=""), image(0, frame_of_reference="")],
        [pet(0, 0.0), pet(1, 4.0), image(0, patient_id="P2", study_uid="1.8.2")],
        [pet(0, 0.0), pet(1, 4.0), image(0, orientation=(1.0, 0.0, 0.0, 0.0, 0.0, 1.0))],
        [pet(0, 0.0, position=None), pet(1, 4.0, position=None), image(0)],
        [pet(0, 1.0), image(0)],
    ],
)
def test_a_pet_slice_without_its_ct_falls_out(images: list[Instance]) -> None:
    found = verdicts(formed(PAIRS, *images))
    assert found == [Quarantine.PAIR_MISSING] * sum(one.modality == "PT" for one in images)


def test_of_too_many_ct_series_none_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    images = [pet(0, 0.0), *(image(n, position=(0.0, 0.0, 0.0), series_uid=f"1.7.{n}") for n in (1, 2))]
    monkeypatch.setattr(series, "MAX_CHOICES", 2)
    assert verdicts(formed(PAIRS, *images)) == [Quarantine.NONE]
    monkeypatch.setattr(series, "MAX_CHOICES", 1)
    assert verdicts(formed(PAIRS, *images)) == [Quarantine.PAIR_MISSING]


def test_images_are_of_the_modality_that_they_say() -> None:
    mixed = [pet(0, 0.0), pet(1, 4.0, modality="CT"), pet(2, 4.0)]
    records = formed(PAIRS, *mixed, image(0), image(2))
    assert verdicts(records) == [Quarantine.NONE] * 2
    assert [one.locator for one in records.aside] == ["101.dcm"]


@pytest.mark.parametrize(
    "odd",
    [
        pet(1, 4.0, frames=2, places=(4.0, 8.0)),
        pet(1, 4.0, orientation=None),
        pet(1, 4.0, position=None),
    ],
)
def test_an_image_without_one_place_costs_only_its_own_pair(odd: Instance) -> None:
    records = formed(PAIRS, pet(0, 0.0), odd, image(0), image(2), image(3, frames=2, places=(4.0, 8.0)))
    assert verdicts(records) == [Quarantine.NONE, Quarantine.PAIR_MISSING]


def test_one_ct_series_serves_a_pet_series() -> None:
    images = [pet(n, 4.0 * n) for n in range(3)]
    images += [image(n, position=(0.0, 0.0, 4.0 * n), series_uid="1.7.3") for n in range(2)]
    images += [image(10 + n, position=(0.0, 0.0, 4.0 * n + 1.0), series_uid="1.7.4") for n in range(3)]
    records = formed(PAIRS, *images)
    chosen = {records._instances[members[1]].series_uid for members in records._records.members}
    assert chosen == {"1.7.4"} and verdicts(records) == [Quarantine.NONE] * 3


def test_a_ct_slice_that_can_not_be_used_takes_its_pair_along() -> None:
    images = [pet(0, 0.0), image(0, flaw=Quarantine.PIXELS_INVALID)]
    assert verdicts(formed(PAIRS, *images)) == [Quarantine.PIXELS_INVALID]
    with pytest.raises(Refused, match="no record"):
        formed(PAIRS, image(0))


def test_cohorts_select_on_what_is_described() -> None:
    manifest = dicoms.manifest(
        dicoms.pixels(), Field(name="kind", path="Modality", dtype="string"),
        Field(name="rows", path="Rows", dtype="int32"),
    )  # fmt: skip
    images = [image(0), image(1, modality="MR", rows=32), image(2, flaw=Quarantine.PIXELS_INVALID)]
    records = formed(manifest, *images, lost=[("x", Quarantine.FILE_INVALID)])

    def chosen(value: object) -> list[bool]:
        node = cohort.parse(value)
        cohort.check(node, manifest.fields)
        return [bool(one) for one in records.select(node)]

    assert chosen({"all": []}) == [True] * 4
    assert chosen({"field": "kind", "eq": "CT"}) == [True, False, True, False]
    assert chosen({"field": "rows", "gt": 16}) == [False, True, False, False]
    assert chosen({"field": "pixels", "present": True}) == [True, True, False, False]
    assert chosen({"not": {"field": "kind", "present": True}}) == [False, False, False, True]


def test_closing_drops_everything_and_may_be_repeated() -> None:
    records = formed(FRAME, image(1))
    records.close()
    records.close()
    assert records.index.patients == [] and len(records.index.quarantine) == 0 and not records.aside
