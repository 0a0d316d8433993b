from __future__ import annotations

from typing import Any

import pytest

from rapha.spec.dataset import DatasetManifest
from rapha.spec.job import DatasetRequest
from rapha.spec.refusals import Refused
from rapha.spec.transforms import Form, Step, form_after

IMAGE = Form("int16", (0, 0))
LABS = Form("float32", (), ragged=True)


def steps(*raw: dict[str, Any]) -> tuple[Step, ...]:
    return tuple(Step.parse(step, "step") for step in raw)


def request(transforms: object) -> DatasetRequest:
    return DatasetRequest.parse(
        {
            **{"profile": "dicom.ct", "modality": "dicom", "cohort": {"all": []}, "max_records": 10},
            "transforms": transforms,
        }
    )


def test_a_step_is_written_as_it_was_read() -> None:
    raw = {
        "pixels": [{"window": {"center": 40.0, "width": 80.0}}, {"resize": [64, 64]}, {"dtype": "float16"}]
    }
    read = request(raw)
    assert read.dump()["transforms"] == raw
    assert DatasetRequest.parse(read.dump()) == read


@pytest.mark.parametrize(
    "step",
    [
        {},
        {"window": None},
        {"resize": [64, 64], "dtype": "int8"},
        {"resize": []},
        {"resize": [1, 2, 3, 4]},
        {"resize": [0, 4]},
        {"resize": [70000]},
        {"dtype": "object"},
        {"dtype": "complex64"},
        {"window": {"center": 1.0, "width": 0.0}},
        {"window": {"center": 1e39, "width": 1.0}},
        {"normalise": {"mean": 0.0, "scale": 0.0}},
        {"clip": {"min": 2.0, "max": 1.0}},
        {"length": {"size": 0}},
        {"run": "rm"},
    ],
)
def test_what_is_no_step_refuses(step: dict[str, Any]) -> None:
    with pytest.raises(Refused, match=r"schema\."):
        Step.parse(step, "step")


@pytest.mark.parametrize(
    ("form", "raw", "after"),
    [
        (IMAGE, [{"resize": [8, 8]}], Form("int16", (8, 8))),
        (IMAGE, [{"window": {"center": 0.0, "width": 1.0}}, {"resize": [8, 9]}], Form("float32", (8, 9))),
        (IMAGE, [{"resize": [8, 8]}, {"dtype": "uint8"}], Form("uint8", (8, 8))),
        (Form("uint8", (0, 0, 3)), [{"resize": [4, 4, 3]}], Form("uint8", (4, 4, 3))),
        (Form("float32", (7,)), [], Form("float32", (7,))),
        (LABS, [{"length": {"size": 5}}], Form("float32", (5,))),
        (LABS, [{"normalise": {"mean": 1.0, "scale": 2.0}}], Form("float32", (), ragged=True)),
        (Form("int16", (2,), ragged=True), [{"length": {"size": 5}}], Form("int16", (5, 2))),
    ],
)
def test_the_form_is_known_before_a_record_is_read(
    form: Form, raw: list[dict[str, Any]], after: Form
) -> None:
    assert form_after("x", form, steps(*raw)) == after


@pytest.mark.parametrize(
    ("form", "raw"),
    [
        (IMAGE, []),
        (IMAGE, [{"resize": [8]}]),
        (IMAGE, [{"resize": [8, 8, 8]}]),
        (IMAGE, [{"length": {"size": 5}}, {"resize": [8, 8]}]),
        (LABS, [{"resize": [8]}]),
        (IMAGE, [{"resize": [65536, 65536]}]),
        (IMAGE, [{"resize": [65536, 65536]}, {"resize": [8, 8]}]),
        (Form("uint8", (0, 0, 0)), [{"resize": [4096, 4096]}, {"resize": [8, 8, 8]}]),
        (Form("uint8", (65536,), True), [{"length": {"size": 65536}}, {"resize": [8, 8]}]),
    ],
)
def test_steps_that_do_not_fit_refuse(form: Form, raw: list[dict[str, Any]]) -> None:
    with pytest.raises(Refused, match=r"schema\.transform"):
        form_after("x", form, steps(*raw))


def test_a_large_image_may_be_windowed_before_it_shrinks() -> None:
    mammogram = Form("uint16", (5928, 4728))
    raw: list[dict[str, Any]] = [{"window": {"center": 40, "width": 80}}, {"resize": [512, 512]}]
    assert form_after("x", mammogram, steps(*raw)) == Form("float32", (512, 512))


def manifest(fields: list[dict[str, Any]], **changes: Any) -> DatasetManifest:
    return DatasetManifest.parse(
        {
            **{"dataset": "head-ct", "title": "Head CT", "profile": "dicom.head-ct", "modality": "dicom"},
            **{"purposes": ["research/diagnosis"], "price_per_record": "0", "patient_id": "PatientID"},
            **{"provenance": {"source": "a PACS", "licence": "none"}, "organisations": ["demo-ai"]},
            **{"opt_outs": "opt-outs.txt", "salt": "ab" * 32, "source": {"kind": "dicom", "path": "archive"}},
            "fields": fields,
            **changes,
        }
    )


PIXELS: dict[str, Any] = {"name": "pixels", "dtype": "int16", "shape": [0, 0], "path": "@pixels"}
LABEL: dict[str, Any] = {"name": "is_ct", "dtype": "int8", "label": True, "path": "Modality"}


def test_a_label_is_not_transformed_and_neither_is_what_is_not_served() -> None:
    made = manifest([PIXELS, LABEL, {"name": "age_band", "dtype": "string", "path": "@age_band"}])
    resize = steps({"resize": [8, 8]})
    assert list(made.forms({"pixels": resize})) == ["pixels", "is_ct"]
    for name in ("is_ct", "age_band", "absent"):
        with pytest.raises(Refused, match=r"schema\.transform"):
            made.forms({"pixels": resize, name: steps({"dtype": "int16"})})


@pytest.mark.parametrize(
    "field",
    [
        {"name": "modality", "dtype": "string", "path": "Modality"},
        {"name": "x", "dtype": "string", "shape": [2]},
        {"name": "x", "dtype": "pseudonym", "ragged": True},
        {"name": "x", "dtype": "date", "label": True},
        {"name": "x", "dtype": "int8", "label": True, "shape": [2], "path": "y"},
        {"name": "x", "dtype": "int8", "ragged": True, "shape": [0]},
        {"name": "x", "dtype": "string", "codes": {"a": 1}},
    ],
)
def test_a_field_that_contradicts_itself_or_gives_a_label_away_refuses(field: dict[str, Any]) -> None:
    with pytest.raises(Refused, match=r"schema\.field_invalid"):
        manifest([PIXELS, LABEL, field])


WEB: dict[str, Any] = {
    "kind": "dicomweb",
    "url": "https://pacs.example/dicom-web",
    "scope": {"studies": ["1.2"]},
}


@pytest.mark.parametrize(
    "changes",
    [
        {"url": "http://pacs.example/dicom-web"},
        {"url": "https://user:password@pacs.example/"},
        {"url": "file:///etc/passwd"},
        {"scope": {}},
        {"scope": {"modality": "CT"}},
        {"scope": {"modality": "CT", "since": "2024-01-01"}},
        {"scope": {"modality": "CT", "since": "2024-02-01", "until": "2024-01-01"}},
        {"scope": {"modality": "C*", "since": "2024-01-01", "until": "2024-02-01"}},
        {"scope": {"studies": ["1.2"], "patients": "group.txt"}},
        {"scope": {"studies": ["1.2.*"]}},
        {"auth": "basic"},
        {"secret": "password.txt"},
        {"scope": {"patients": "../../etc/passwd"}},
    ],
)
def test_a_pacs_that_would_be_asked_too_much_or_in_clear_refuses(changes: dict[str, Any]) -> None:
    manifest([PIXELS], source=WEB)
    with pytest.raises(Refused, match=r"schema\."):
        manifest([PIXELS], source={**WEB, **changes})


def test_how_to_log_in_is_not_part_of_which_data_it_is() -> None:
    plain = manifest([PIXELS], source=WEB)
    secret = manifest([PIXELS], source={**WEB, "auth": "bearer", "secret": "token"})
    assert plain.commitment == secret.commitment and plain.digest != secret.digest
    other = manifest([PIXELS], source={**WEB, "scope": {"studies": ["1.3"]}})
    assert other.commitment != plain.commitment
