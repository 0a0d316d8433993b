"""`rapha demo --case dicom`: a job learns from real images, in a read-only mount and in a real Orthanc."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from rapha.cli.demo import offered
from rapha.evidence import canonical, dsse
from rapha.evidence.verify import verify
from rapha.node import journal
from rapha.node.pipeline import GATES
from rapha.spec.dataset import DatasetManifest
from rapha.spec.refusals import Refused
from rapha.spec.trust import Trust
from rapha.testing import head_ct, imaging
from rapha.testing import stack as stacks
from rapha.testing.hospital import Terms
from rapha.testing.world import World, destroy

EPOCHS = 12


@dataclass(frozen=True)
class Demo:
    """What one run of the command left."""

    pacs: str
    work: Path
    said: str

    @property
    def world(self) -> World:
        return World(self.work / "world", "dicom")

    @property
    def receipt(self) -> Any:
        return dsse.unverified_predicate(canonical.loads((self.work / "bundle.json").read_bytes())["receipt"])

    @property
    def metrics(self) -> Any:
        return json.loads((self.work / "artifacts" / "metrics.json").read_bytes())

    def entries(self, event: str) -> list[dict[str, Any]]:
        found = journal.read(self.world.node / "state" / "journal.jsonl")
        return [dict(entry.data) for entry in found if entry.event == event]


@pytest.fixture(scope="module", params=["mount", pytest.param("orthanc", marks=pytest.mark.peer("Orthanc"))])
def demo(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    work = tmp_path_factory.mktemp(request.param)
    command = [sys.executable, "-m", "rapha", "demo", "--case", "dicom", "--pacs", request.param]
    done = subprocess.run([*command, "--work", str(work)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    yield Demo(request.param, work, done.stderr + done.stdout)
    destroy(work / "world")


def test_it_says_where_the_images_are_and_that_the_cell_is_small(demo: Demo) -> None:
    place = "read-only folder" if demo.pacs == "mount" else "PACS (Orthanc)"
    assert place in demo.said
    assert "the minimum cell is lowered from 10 to 3 for the demo" in " ".join(demo.said.split())


def test_every_gate_passed_and_the_bundle_verifies(demo: Demo) -> None:
    passed = [e["gate"] for e in demo.entries("gate") if e["verdict"] == "passed"]
    assert tuple(passed) == GATES
    trust = Trust.parse(canonical.loads((demo.work / "trust.json").read_bytes()))
    assert verify((demo.work / "bundle.json").read_bytes(), trust, datetime.now(UTC)).ok


def test_every_labelled_image_was_counted_and_no_other(demo: Demo, tmp_path: Path) -> None:
    archive = imaging.write_archive(tmp_path / "archive")
    (counted,) = demo.entries("counted")
    lost = demo.pacs == "orthanc"  # one patient's identifier is kept with its padding, and not found
    assert counted["patients"] == len(archive.patients) - lost
    assert demo.receipt["usage"]["patients"] == -(-counted["patients"] // 10) * 10
    if head_ct.HEAD_CT.is_file():
        assert counted["records"] == 127 - lost
    destroy(archive.folder)


def test_the_funnel_has_the_images_that_may_show_a_name(demo: Demo) -> None:
    funnel = demo.receipt["dataset"]["funnel"]
    assert funnel["record.burned_in"] >= 10
    assert funnel["consent.opted_out"] == "<3"
    # What can't be read to begin with is counted by its reason alone, whatever the cohort.
    assert funnel["matched"] == funnel["readable"] == funnel["used"]
    assert demo.receipt["dataset"]["confinement"] == "memory"


def test_the_released_weights_tell_ct_on_patients_that_were_held_out(demo: Demo) -> None:
    plan = demo.world.project.load().outputs.weights
    assert plan is not None
    with safe_open(demo.work / "artifacts" / "model.safetensors", framework="pt") as file:
        assert sorted(file.keys()) == sorted(tensor.name for tensor in plan.tensors)
        assert {str(file.get_slice(k).get_dtype()) for k in file.keys()} == {"BF16"}  # noqa: SIM118
    assert demo.metrics["trusted"]["auroc"] > 0.8  # chance is 0.5
    assert demo.metrics["trusted"]["accuracy"] > 0.7  # the larger class has less


def test_the_report_shows_the_learning_curve_and_how_few_the_patients_are(demo: Demo) -> None:
    losses = [demo.metrics["self_reported"][f"loss_e{n:02d}"] for n in range(1, EPOCHS + 1)]
    assert losses[-1] < losses[0] / 2
    html = (demo.work / "report.html").read_text()
    assert "Learning curve: loss" in html
    assert all(f"epoch {n}: {loss:g}" in html for n, loss in enumerate(losses, start=1))
    patients = demo.receipt["usage"]["patients"]
    assert f"These records are of at most {patients} patients" in html
    assert "That is few" in html


def test_neither_pixels_nor_identifiers_are_outside_the_hospitals_data(demo: Demo) -> None:
    needles = list(_needles(demo))
    assert len(needles) > 10
    checked = 0
    for folder in (demo.world.root / "coordinator", demo.world.node, demo.world.company):
        for path in folder.rglob("*"):
            if path.is_file():
                checked += 1
                data = path.read_bytes()
                assert not [needle for needle in needles if needle in data], path
    assert checked > 10


def _needles(demo: Demo) -> Iterator[bytes]:
    """Identifiers, and rows of the head CT as stored, as decoded and as the job's transforms leave them."""
    manifest = json.loads((demo.world.data / "manifest.json").read_bytes())
    for name in ("CQ500-CT-310", "JXD191021006", "PANCREAS_0001", head_ct.HEAD_PATIENT):
        yield name.encode()
    assert manifest["minimum_cell"] == imaging.CELL
    if not head_ct.HEAD_CT.is_file():
        return
    for values in head_ct.read_volume().values[20:100:10]:
        row = values[120, 60:188].astype(np.float32)
        yield (row + 1024).astype("<u2").tobytes()
        yield row.tobytes()
        yield np.clip((row + 2000) / 4000, 0, 1).astype(np.float32).tobytes()


def test_a_dataset_that_cannot_be_opened_ends_the_demo_with_its_code(tmp_path: Path) -> None:
    def damaged(root: Path, terms: Terms) -> DatasetManifest:
        manifest = imaging.write_dicom(root, terms)
        (root / "archive").chmod(0o777)
        return manifest

    root = tmp_path / "world"
    with (
        stacks.stack(root, "dicom", writer=damaged) as stack,
        stacks.node(stack.world.node),
        pytest.raises(Refused) as caught,
    ):
        offered(stack)
    assert caught.value.code == "node.dataset_writable"
    destroy(root)
