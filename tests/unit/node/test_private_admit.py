"""Before a private job runs: what the node checks, and that nothing of the image is in reach of its code."""

from __future__ import annotations

import json
import os
import threading
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import numpy as np
import pytest

from rapha.node.datasets.groups import groups
from rapha.node.gates.walls import walls
from rapha.node.private import admit as admits
from rapha.node.private.admit import PrivateRun, admit, demand_uncapped
from rapha.node.private.grouping import GROUPS, grouped
from rapha.runtime.sandbox.interface import Limits
from rapha.runtime.sandbox.pyruntime import PythonRuntime
from rapha.spec.dataset import DatasetManifest
from rapha.spec.disclosure import Caps
from rapha.spec.job import Job, JobFile
from rapha.spec.private import PREDICT, TRAIN
from rapha.spec.refusals import Refused
from rapha.spec.yaml import load
from rapha.testing import hospital
from rapha_trainer.private.settings import Settings

WRITTEN: dict[str, Any] = load(
    (files("rapha.researcher") / "templates" / "private" / "job.yaml").read_text(encoding="utf-8")
)
RUNTIME = PythonRuntime.discover(("torch", "numpy", "safetensors"))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> DatasetManifest:
    return hospital.write_flchain(tmp_path_factory.mktemp("flchain") / "data")


def job(**changed: Any) -> Job:
    written = WRITTEN | {"private": WRITTEN["private"] | changed}
    return JobFile.parse(written).to_job(image_digest="sha256:" + "ab" * 32, recipient="A" * 43 + "=")


def test_the_template_is_admitted_and_the_trainer_is_told_the_noise(
    manifest: DatasetManifest, tmp_path: Path
) -> None:
    found = admit(job(), manifest, RUNTIME, tmp_path)
    assert found is not None
    told = Settings.of(json.loads(found.settings.read_text()))
    assert told.noise_multiplier == found.guarantee.noise_multiplier > 1
    assert (told.steps, told.sample_rate, told.clip) == (200, 0.05, 1.0)
    assert told.inputs[2].shift == 1999.0
    assert told.inputs[2].scale == 4.0
    assert 1 <= told.at_once <= 4096


def test_a_job_with_code_of_its_own_is_not_private(manifest: DatasetManifest, tmp_path: Path) -> None:
    own = {**WRITTEN, "entrypoint": ["python3", "a.py"], "predict": ["python3", "b.py"], "private": None}
    parsed = JobFile.parse(own).to_job(image_digest="sha256:" + "ab" * 32, recipient="A" * 43 + "=")
    assert admit(parsed, manifest, RUNTIME, tmp_path) is None


AGE = WRITTEN["private"]["inputs"][0]
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a field that is not there": (
        {"inputs": [AGE | {"field": "nowhere"}, *[AGE] * 0]},
        "schema.plan_invalid",
    ),
    "a label that is none": ({"target": {"label": "mgus2", "task": "binary"}}, "schema.field_invalid"),
    "more than the dataset offers": ({"epsilon": 9.0}, "budget.disclosure"),
    "a delta beyond what it offers": ({"delta": 1.0e-5}, "budget.disclosure"),
    "what no noise keeps": ({"epsilon": 1e-6, "sample_rate": 1.0, "steps": 100_000}, "policy.private"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_the_node_cannot_do_refuses_before_anything_runs(
    what: str, manifest: DatasetManifest, tmp_path: Path
) -> None:
    changed, expected = REFUSED[what]
    tight = manifest.model_copy(update={"disclosure": Caps(epsilon=8.0, delta=5e-6)})
    with pytest.raises(Refused) as caught:
        admit(job(**changed), tight, RUNTIME, tmp_path)
    assert caught.value.code == expected
    assert not (tmp_path / admits.SETTINGS).exists()


@pytest.mark.parametrize("field", ["nowhere", "died_within_5y_not", "patient_id"])
def test_an_input_that_is_no_field_refuses(field: str, manifest: DatasetManifest, tmp_path: Path) -> None:
    inputs = [AGE | {"field": field}, *WRITTEN["private"]["inputs"][1:]]
    with pytest.raises(Refused, match="no input here"):
        admit(job(inputs=inputs), manifest, RUNTIME, tmp_path)


def test_an_input_of_another_shape_refuses(manifest: DatasetManifest, tmp_path: Path) -> None:
    inputs = [AGE | {"shape": [1]}, *WRITTEN["private"]["inputs"][1:]]
    with pytest.raises(Refused, match=r"age is \[\], not \[1\]"):
        admit(job(inputs=inputs), manifest, RUNTIME, tmp_path)


def test_a_dataset_offers_nothing_unless_its_manifest_says_so(
    manifest: DatasetManifest, tmp_path: Path
) -> None:
    closed = manifest.model_copy(update={"disclosure": Caps()})
    with pytest.raises(Refused, match="none, over all jobs") as caught:
        admit(job(), closed, RUNTIME, tmp_path)
    assert caught.value.code == "budget.disclosure"


def test_a_node_without_the_trainers_libraries_says_which(manifest: DatasetManifest, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="lacks safetensors") as caught:
        admit(job(), manifest, PythonRuntime.discover(("torch", "numpy")), tmp_path)
    assert caught.value.code == "policy.private"


@pytest.mark.parametrize("records", [10_000, 10_001])
def test_a_cohort_that_would_be_sampled_refuses_and_tells_no_number(records: int) -> None:
    demand_uncapped(job(), 9_999)
    with pytest.raises(Refused) as caught:
        demand_uncapped(job(), records)
    assert caught.value.code == "privacy.cohort_refused"


# Behind the walls


@pytest.fixture
def run(manifest: DatasetManifest, tmp_path: Path) -> PrivateRun:
    found = admit(job(), manifest, RUNTIME, tmp_path)
    assert found is not None
    return found


def spec_of(run: PrivateRun | None, app: Path, argv: tuple[str, ...], kind: str = "slim") -> Any:
    image = SimpleNamespace(kind=kind, path=("/evil/bin",), workdir="/evil", tree=app.parent)
    admitted: Any = SimpleNamespace(image=image, app=app, base=None, private=run, job=job())
    node: Any = SimpleNamespace(runtime=RUNTIME, stop=threading.Event())
    return walls(node, admitted, argv=argv, inputs={}, limits=Limits(), log=app.parent / "log")


@pytest.mark.parametrize("kind", ["slim", "full"])
@pytest.mark.parametrize("said", [TRAIN, PREDICT])
def test_nothing_of_the_image_is_in_the_trainers_reach(
    kind: str, said: tuple[str, ...], run: PrivateRun, tmp_path: Path
) -> None:
    """An image that would shadow torch, the trainer or the start of Python is not shown at all."""
    app = tmp_path / "image" / "app"
    for name in ("sitecustomize.py", "torch/__init__.py", "rapha_trainer/private/__main__.py", "numpy.py"):
        (app / name).parent.mkdir(parents=True, exist_ok=True)
        (app / name).write_text("raise SystemExit('shadowed')\n")
    spec = spec_of(run, app, said, kind)
    sources = [str(mount.source) for mount in spec.mounts]
    assert not [source for source in sources if source.startswith(str(tmp_path / "image"))]
    assert (spec.root, spec.cwd) == (None, "/")
    assert spec.argv == (RUNTIME.python, "-P", "-s", *said[1:])
    assert {name for name in spec.env if name not in RUNTIME.env} == {"RAPHA_IN", "RAPHA_OUT"}
    assert "/evil/bin" not in spec.env["PATH"]
    shown = {mount.dest for mount in spec.mounts if mount.dest.startswith("/rapha/in")}
    assert shown == {"/rapha/in/private.json"}


def test_a_job_with_code_is_shown_its_image(tmp_path: Path) -> None:
    app = tmp_path / "image" / "app"
    app.mkdir(parents=True)
    spec = spec_of(None, app, ("python3", "train.py"))
    assert [mount.dest for mount in spec.mounts if mount.source == app] == ["/app"]


@pytest.mark.parametrize("said", [("python3", "train.py"), (*TRAIN, "more"), TRAIN[:3], ("sh", "-c", "x")])
def test_no_other_command_is_ever_run_for_it(said: tuple[str, ...], run: PrivateRun, tmp_path: Path) -> None:
    with pytest.raises(Refused) as caught:
        spec_of(run, tmp_path / "app", said)
    assert caught.value.code == "node.internal"


# Who belongs to whom


def numbered(patients: list[int], served: list[int]) -> BinaryIO:
    ready: Any = SimpleNamespace(store=SimpleNamespace(patients=np.array(patients)))
    return groups(ready, np.array(served))


def test_groups_are_the_trains_patients_in_the_order_served_and_of_this_job_alone() -> None:
    with numbered([7, 3, 7, 9, 3, 1], [0, 2, 4, 3]) as file:
        found = np.frombuffer(file.read(), "<i4")
    assert found.tolist() == [1, 1, 0, 2]


def test_groups_are_a_file_only_while_the_trainer_runs(run: PrivateRun, tmp_path: Path) -> None:
    class Data:
        def groups(self, shadow: int | None) -> int:
            assert shadow is None
            with numbered([0, 0, 1], [0, 1, 2]) as file:
                return os.dup(file.fileno())

    data: Any = Data()
    with grouped(run, data, tmp_path) as shown:
        assert np.fromfile(shown[GROUPS], "<i4").tolist() == [0, 0, 1]
    assert not (tmp_path / GROUPS).exists()
    with grouped(None, data, tmp_path) as shown:
        assert shown == {}
