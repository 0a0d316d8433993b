"""`rapha job mock`: from a catalogue entry and a job's transforms to batches like those of the node."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from rapha.cli import main
from rapha.evidence import dsse
from rapha.evidence.keys import SigningKey
from rapha.node.agent.client import sign_entry
from rapha.researcher import mock
from rapha.researcher.project import init
from rapha.spec.dataset import CatalogueEntry
from rapha.spec.job import parse_job_file
from rapha.spec.refusals import Refused
from rapha.spec.transforms import Step
from rapha_trainer import RaphaDataLoader

FIELDS: list[dict[str, Any]] = [
    {"name": "pixels", "dtype": "int16", "shape": [0, 0], "path": "@pixels"},
    {"name": "photo", "dtype": "uint8", "shape": [0, 0, 3]},
    {"name": "ecg", "dtype": "int16", "shape": [0]},
    {"name": "labs", "dtype": "float32", "ragged": True},
    {"name": "codes", "dtype": "uint16", "ragged": True, "codes": {"E11": 7, "I10": 300}},
    {"name": "scanner", "dtype": "uint8", "codes": {"GE": 1, "Siemens": 2}},
    {"name": "fraction", "dtype": "float32", "path": "@slice_fraction"},
    {"name": "study", "dtype": "pseudonym", "path": "StudyInstanceUID"},
    {"name": "instance", "dtype": "pseudonym", "path": "SOPInstanceUID"},
    {"name": "modality", "dtype": "string", "path": "Modality"},
    {"name": "taken", "dtype": "date", "path": "StudyDate"},
    {"name": "y", "dtype": "int64", "label": True},
]
TRANSFORMS: dict[str, Any] = {
    "pixels": [{"window": {"center": 40, "width": 400}}, {"resize": [32, 24]}, {"dtype": "float16"}],
    "photo": [{"resize": [16, 16, 3]}],
    "ecg": [{"resize": [100]}, {"normalise": {"mean": 0, "scale": 500}}],
    "labs": [{"length": {"size": 4, "pad": -1}}, {"clip": {"min": -1, "max": 12}}],
}
FORMS = {
    "pixels": ("float16", (32, 24)),
    "photo": ("uint8", (16, 16, 3)),
    "ecg": ("float32", (100,)),
    "labs": ("float32", (4,)),
    "scanner": ("uint8", ()),
    "fraction": ("float32", ()),
    "study": ("uint8", (16,)),
    "instance": ("uint8", (16,)),
    "y": ("int64", ()),
}


def entry(**changes: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "dataset": "head-ct",
        "title": "Heads",
        "profile": "imaging.head-ct",
        "modality": "ct",
        "fields": FIELDS,
        "purposes": ["research/diagnosis"],
        "price_per_record": "1",
        "provenance": {"source": "a hospital", "licence": "none"},
        "records": 100,
        "patients": 20,
        "runtimes": ["python-torch"],
        "assurance": "simulated",
        **changes,
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A job's folder with a catalogue beside job.yaml."""
    job = init("tabular", tmp_path / "job")
    declared = yaml.safe_load(job.file.read_text())
    declared["not_after"] = "2027-12-31T00:00:00Z"
    declared["dataset"] = {
        "profile": "imaging.head-ct",
        "modality": "ct",
        "cohort": {"all": [{"field": "modality", "eq": "CT"}]},
        "max_records": 100,
        "transforms": TRANSFORMS,
    }
    job.file.write_text(yaml.safe_dump(declared))
    parse_job_file(job.file.read_text())
    (job.folder / "catalogue.json").write_text(json.dumps(entry()))
    return job.folder


def run(*arguments: object) -> int:
    return main.run(["job", "mock", *map(str, arguments)])


def test_a_batch_at_home_has_the_form_that_the_node_will_give(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "data.npz"
    assert run(folder, "--out", out, "--records", 40, "--seed", 3) == 0
    told = json.loads(capsys.readouterr().out)
    monkeypatch.delenv("RAPHA_BROKER_FD", raising=False)
    monkeypatch.setenv("RAPHA_HOME_DATA", str(out))

    forms = CatalogueEntry.parse(entry()).forms(
        parse_job_file((folder / "job.yaml").read_text()).dataset.transforms
    )
    loader = RaphaDataLoader(batch_size=32)
    assert {f.name: (f.dtype, f.shape, f.ragged) for f in loader.fields} == {
        name: (form.dtype, form.shape, form.ragged) for name, form in forms.items()
    }
    assert told["fields"].keys() == forms.keys()
    batch = next(iter(loader))
    for name, (dtype, shape) in FORMS.items():
        assert (batch[name].dtype.name, batch[name].shape) == (dtype, (32, *shape))
    assert set(batch) == {*FORMS, "codes"}
    assert [field.name for field in RaphaDataLoader(split="test").fields] == [f for f in forms if f != "y"]
    assert (loader.records, RaphaDataLoader(split="test").records) == (32, 8)


def test_values_follow_the_catalogue_and_the_transforms(folder: Path, tmp_path: Path) -> None:
    run(folder, "--out", tmp_path / "data.npz", "--records", 40)
    with np.load(tmp_path / "data.npz") as file:
        assert 0 <= file["pixels"].min() < file["pixels"].max() <= 1
        assert set(file["scanner"].tolist()) == {1, 2}
        assert set(file["codes"].tolist()) == {7, 300}
        assert 0 <= file["fraction"].min() < file["fraction"].max() <= 1
        assert file["labs"].min() == -1
        assert file["labs"].max() <= 12
        assert len(np.unique(file["study"], axis=0)) == 10
        assert len(np.unique(file["instance"], axis=0)) == 40


def test_the_same_seed_gives_the_same_file(folder: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert run(folder, "--out", tmp_path / name, "--records", 10, "--seed", seed) == 0
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b != c


def test_an_entry_alone_does_without_a_job(tmp_path: Path) -> None:
    (tmp_path / "entry.json").write_text(json.dumps(entry(fields=FIELDS[3:])))
    assert run(tmp_path / "entry.json", "--out", tmp_path / "data.npz") == 0


def test_a_size_that_varies_needs_the_transform_that_the_node_asks_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "entry.json").write_text(json.dumps(entry()))
    assert run(tmp_path / "entry.json", "--out", tmp_path / "data.npz") == 1
    assert "schema.transform: pixels" in capsys.readouterr().err
    assert not (tmp_path / "data.npz").exists()


def signed(value: dict[str, Any]) -> dsse.EnvelopeDict:
    return sign_entry(CatalogueEntry.parse(value).dump(), SigningKey.generate(), "demo")


def test_a_coordinators_answer_will_do(folder: Path, tmp_path: Path) -> None:
    other = entry(dataset="other", profile="tabular.other")
    answer = {
        "nodes": [{"node": "a", "entries": [signed(other), signed(entry())]}, {"node": "b", "entries": []}]
    }
    (tmp_path / "catalogue.json").write_text(json.dumps(answer))
    arguments = ("--job", folder, "--out", tmp_path / "data.npz", "--records", 4)
    assert run(tmp_path / "catalogue.json", *arguments) == 0
    assert run(tmp_path / "catalogue.json", *arguments, "--dataset", "other") == 1


WRONG: dict[str, tuple[Any, str]] = {
    "no object": ([], "schema.field_invalid"),
    "nothing": ({}, "schema.field_missing"),
    "more": (entry(more=1), "schema.field_unknown"),
    "a number for a list": ({"nodes": 1}, "schema.field_invalid"),
    "a number for a node": ({"nodes": [1]}, "schema.field_invalid"),
    "no entries": ({"nodes": [{"node": "a"}]}, "schema.field_invalid"),
    "an empty catalogue": ({"nodes": []}, "schema.field_invalid"),
    "no envelope": ({"payload": "e30="}, "schema.envelope"),
    "another profile": (entry(profile="imaging.other"), "schema.field_invalid"),
    "another modality": (entry(modality="mr"), "schema.field_invalid"),
    "no field of the cohort": (
        entry(fields=[f for f in FIELDS if f["name"] != "modality"]),
        "schema.cohort_field",
    ),
    "no field of a transform": (entry(fields=[f for f in FIELDS if f["name"] != "ecg"]), "schema.transform"),
    "a name that the file needs": (
        entry(fields=[*FIELDS, {"name": "labs__offsets", "dtype": "int8"}]),
        "schema.field_invalid",
    ),
}


@pytest.mark.parametrize(("catalogue", "code"), WRONG.values(), ids=WRONG.keys())
def test_what_does_not_fit_is_refused(
    folder: Path, tmp_path: Path, catalogue: Any, code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "catalogue.json").write_text(json.dumps(catalogue))
    assert run(folder, "--out", tmp_path / "data.npz", "--records", 4) == 1
    assert f"refused: {code}:" in capsys.readouterr().err
    assert not (tmp_path / "data.npz").exists()


@pytest.mark.parametrize(
    ("dtype", "code", "form"),
    [
        ("uint8", 300, {}),
        ("int8", 128, {"label": True}),
        ("int16", 65535, {"ragged": True}),
        ("float16", 65535, {"shape": [2, 2]}),
        ("bool", 2, {}),
    ],
)
def test_a_code_that_its_dtype_does_not_hold_is_refused(
    tmp_path: Path, dtype: str, code: int, form: dict[str, Any]
) -> None:
    fields = [FIELDS[3], {"name": "c", "dtype": dtype, "codes": {"a": 0, "b": code}, **form}]
    with pytest.raises(Refused, match="a code is past"):
        mock.write(CatalogueEntry.parse(entry(fields=fields)), {}, tmp_path / "d.npz", records=4, seed=0)
    assert not (tmp_path / "d.npz").exists()


@pytest.mark.parametrize(("records", "seed"), [(0, 0), (10**7 + 1, 0), (1, -1), (1, 2**64)])
def test_numbers_out_of_range_are_refused(tmp_path: Path, records: int, seed: int) -> None:
    plain = CatalogueEntry.parse(entry(fields=FIELDS[3:]))
    with pytest.raises(Refused, match="records is"):
        mock.write(plain, {}, tmp_path / "data.npz", records=records, seed=seed)


@pytest.mark.parametrize(
    ("field", "transforms"),
    [
        ({"shape": [65536, 65536, 65536]}, {"x": [{"resize": [2, 2, 2]}]}),
        ({"shape": [4096, 4096]}, {}),
        ({"shape": [4096], "ragged": True}, {}),
    ],
)
def test_a_catalogue_can_not_fill_the_machine(tmp_path: Path, field: Any, transforms: Any) -> None:
    steps = {name: tuple(Step.parse(step) for step in steps) for name, steps in transforms.items()}
    huge = CatalogueEntry.parse(entry(fields=[{"name": "x", "dtype": "int16", **field}]))
    with pytest.raises(Refused, match="bytes of memory"):
        mock.write(huge, steps, tmp_path / "data.npz", records=10**6, seed=0)


def test_files_that_are_not_there_are_found_out(folder: Path, tmp_path: Path) -> None:
    assert run(tmp_path / "none.json", "--out", tmp_path / "data.npz") == 3
    assert run(folder, "--out", tmp_path / "none" / "data.npz", "--records", 4) == 3


def test_nothing_but_a_file_is_replaced(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for out, why in ((pipe, "something else than a file"), (tmp_path, "directory"), (".", "directory")):
        assert run(folder, "--out", out, "--records", 4) == 3
        assert why in capsys.readouterr().err
    assert pipe.is_fifo()
