"""Every bad input ends in its own code with a fix, and the next job runs."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from rapha.cli.main import run
from rapha.evidence.keys import SigningKey
from rapha.researcher.project import Project
from rapha.researcher.signing import SignedJob
from rapha.spec.refusals import REGISTRY, Refused
from rapha.testing.stack import Stack

GOOD = """
import numpy as np
from rapha_trainer import RaphaDataLoader, release

for batch in RaphaDataLoader(batch_size=64):
    pass
release.weights({"w": np.zeros(1, np.float32)})
"""
JOB = """
version: 1
kind: train
name: tiny
purpose: research/diagnosis
not_after: 2027-12-31T00:00:00Z
nodes: any
recipient: keys/results.hpke.pub
image: ./image
entrypoint: [python3, train.py]
model: {architecture: none}
dataset:
  profile: tabular.breast-fna
  modality: tabular
  cohort: {all: [{field: mean_radius, gte: 6.0}]}
  max_records: 1000
outputs:
  version: 1
  weights:
    file: model.safetensors
    release_dtype: bf16
    tensors: [{name: w, dtype: F32, shape: [1], min: -1.0, max: 1.0}]
  max_bytes: 4096
compute: {cpus: 1, memory: 512MiB, gpus: 0, wall_clock: 30s}
assurance: simulated
"""


@dataclass(frozen=True)
class Bad:
    """One bad input that reaches the node: how the job differs, and the code that it must end in."""

    name: str
    code: str
    train: str = GOOD
    job: Callable[[str], str] = str
    says: str = ""


def _after_records(line: str) -> str:
    return GOOD.replace("    pass\n", f"    {line}\n")


def _replace(old: str, new: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        assert old in text
        return text.replace(old, new)

    return change


AT_THE_NODE = (
    Bad("imports socket", "policy.scan", "import socket\n" + GOOD),
    Bad("imports socket in a helper", "policy.scan", "from helper import x\n" + GOOD),
    Bad("executes text", "policy.scan", GOOD + "exec('x = 1')\n"),
    Bad("starts a program", "policy.scan", "import subprocess\n" + GOOD),
    Bad("crashes before the first record", "job.startup", "1 / 0\n", says="ZeroDivisionError app/train.py:1"),
    Bad("exits before the first record", "job.startup", "raise SystemExit(3)\n"),
    Bad("crashes after the first record", "job.failed", _after_records("raise RuntimeError(batch)")),
    Bad(
        "tells the number of records by the name of a class",
        "job.failed",
        GOOD.replace("for batch", "raise type(f'N{len(RaphaDataLoader())}', (Exception,), {})\nfor batch"),
    ),
    Bad("asks for no record", "job.no_records", GOOD.replace("RaphaDataLoader(batch_size=64)", "()")),
    Bad(
        "opens the loader and crashes",
        "job.startup",
        "from rapha_trainer import RaphaDataLoader\nRaphaDataLoader()\n1 / 0\n",
    ),
    Bad("hides a module that the node's probe needs", "policy.scan", "import json\n" + GOOD),
    Bad("writes an extra file", "job.outputs", GOOD + "open('/rapha/out/extra', 'w').write('x')\n"),
    Bad("writes a symlink", "job.outputs", GOOD + "import os; os.symlink('/etc/passwd', '/rapha/out/l')\n"),
    Bad("writes nothing", "job.outputs", GOOD.replace("release.weights", "dict")),
    Bad("NaN weights", "job.outputs", GOOD.replace("np.zeros(1, ", "np.full(1, np.nan, ")),
    Bad(
        "another shape, by hand",
        "job.outputs",
        GOOD + "open('/rapha/out/model.safetensors', 'wb').write(b'x')\n",
    ),
    Bad("runs past its time", "job.time", GOOD + "while True: pass\n", _replace("30s", "3s")),
    Bad("sleeps past its time", "job.time", GOOD + "import time; time.sleep(60)\n", _replace("30s", "3s")),
    Bad("uses too much memory", "job.memory", GOOD + "x = np.ones(2**28)\n"),
    Bad("empty cohort", "privacy.cohort_refused", job=_replace("gte: 6.0", "gte: 6000.0")),
    Bad("cohort of a few", "privacy.cohort_refused", job=_replace("gte: 6.0", "gte: 27.0")),
    Bad("everybody but a few", "privacy.cohort_refused", job=_replace("gte: 6.0", "lt: 27.0")),
    Bad("unknown cohort field", "schema.cohort_field", job=_replace("mean_radius", "surname")),
    Bad("purpose outside the agreement", "policy.denied", job=_replace("research/diagnosis", "marketing")),
    Bad(
        "more assurance than there is",
        "posture.assurance_low",
        job=_replace("assurance: simulated", "assurance: tee"),
    ),
    Bad(
        "more bytes than the agreement",
        "policy.outputs",
        job=lambda t: t.replace("shape: [1]", "shape: [1000000]").replace("4096", "4000000"),
    ),
)


@pytest.fixture
def project(running: Stack, tmp_path: Path) -> Project:
    made = running.copy_project(tmp_path / "job")
    for path in (made.folder / "code").iterdir():
        path.unlink()
    (made.folder / "code" / "helper.py").write_text("import urllib.request\nx = 1\n")
    (made.folder / "code" / "json.py").write_text("raise SystemExit('shadowed')\n")
    return made


def _harmless(project: Project) -> None:
    (project.folder / "code" / "helper.py").unlink()
    (project.folder / "code" / "json.py").unlink()


def _write(project: Project, train: str = GOOD, job: str = JOB) -> Project:
    (project.folder / "code" / "train.py").write_text(train)
    project.file.write_text(job)
    return project


TWINS = (
    *("imports socket in a helper", "executes text", "exits before the first record", "writes a symlink"),
    *("NaN weights", "sleeps past its time", "empty cohort", "purpose outside the agreement"),
)
"""Each is close to another in the table: the campaign runs them."""


@pytest.mark.parametrize(
    "bad",
    [pytest.param(b, marks=[pytest.mark.slow] * (b.name in TWINS), id=b.name) for b in AT_THE_NODE],
)
def test_ends_in_its_own_code_at_the_node(running: Stack, project: Project, bad: Bad) -> None:
    if "helper" not in bad.name:
        (project.folder / "code" / "helper.py").unlink()
    if "hides a module" not in bad.name:
        (project.folder / "code" / "json.py").unlink()
    signed = running.submit(_write(project, bad.train, bad.job(JOB)))
    code = _end(running, signed)
    assert code == bad.code
    assert REGISTRY[code].fix
    told = running.client.get(signed.id)
    if bad.says:
        surface = str(told)
        assert all(word in surface for word in bad.says.replace(":", " ").split())
    if REGISTRY[code].depends_on_records or code in ("job.failed", "job.outputs"):
        assert not told.get("detail")


def test_the_next_job_runs(running: Stack, project: Project) -> None:
    _harmless(project)
    assert _end(running, running.submit(_write(project))) == ""


def _end(running: Stack, signed: SignedJob) -> str:
    """The code that a job ended in; empty if it was delivered. The client may refuse by itself first."""
    try:
        last = running.follow(signed)
    except Refused as refused:
        with contextlib.suppress(Refused):
            running.client.cancel(signed.id)
        return refused.code
    return str(last.get("code") or "")


@pytest.mark.parametrize(
    ("name", "text", "code"),
    [
        ("broken YAML", JOB.replace("version: 1", "version: [1", 1), "schema.yaml"),
        ("a tab", JOB.replace("kind:", "\tkind:"), "schema.yaml"),
        ("an alias bomb", "a: &a [x]\nb: [*a, *a]\n", "schema.yaml"),
        ("a duplicate key", JOB + "kind: train\n", "schema.yaml"),
        ("an unknown field", JOB + "network: true\n", "schema.field_unknown"),
        ("an unknown nested field", JOB.replace("gpus: 0,", "gpus: 0, tpus: 1,"), "schema.field_unknown"),
        ("a missing field", JOB.replace("assurance: simulated", ""), "schema.field_missing"),
        ("a wrong type", JOB.replace("max_records: 1000", "max_records: many"), "schema.field_invalid"),
        ("a plan that contradicts itself", JOB.replace("min: -1.0", "min: 2.0"), "schema.plan_invalid"),
        ("no file", None, "schema.yaml"),
    ],
)
def test_is_caught_before_it_is_sent(
    project: Project, capsys: pytest.CaptureFixture[str], name: str, text: str | None, code: str
) -> None:
    if text is None:
        project.file.unlink()
    else:
        project.file.write_text(text)
    assert run(["job", "check", str(project.folder)]) == 1
    said = capsys.readouterr().err
    assert f"refused: {code}:" in said
    assert "fix: " in said


def test_an_expired_job_is_refused(running: Stack, project: Project) -> None:
    _write(project, job=JOB.replace("2027-12-31", "2020-12-31"))
    with pytest.raises(Refused) as refused:
        running.submit(project)
    assert refused.value.code == "policy.job_expired"


def test_an_image_that_is_not_the_signed_one_is_refused(running: Stack, project: Project) -> None:
    _write(project).build()
    signed = project.sign(running.key, "demo")
    (project.folder / "code" / "train.py").write_text(GOOD + "# changed after signing\n")
    project.build()
    running.client.submit(signed.job, signed.image, project.pack())
    assert _end(running, signed) == "image.digest_mismatch"


def test_an_archive_that_is_no_image_is_refused(running: Stack, project: Project, tmp_path: Path) -> None:
    _write(project).build()
    signed = project.sign(running.key, "demo")
    junk = tmp_path / "junk.tar"
    junk.write_bytes(b"\x00" * 10240)
    running.client.submit(signed.job, signed.image, junk)
    assert _end(running, signed).startswith("image.")


def test_an_image_signed_by_somebody_else_is_refused(running: Stack, project: Project) -> None:
    _write(project).build()
    signed = project.sign(running.key, "demo")
    stranger = project.sign(SigningKey.generate(), "demo")
    with contextlib.suppress(Refused):
        running.client.submit(signed.job, stranger.image, project.pack())
        assert _end(running, signed) in ("image.signature_invalid", "image.unsigned")
        return
    pytest.fail("the coordinator refused what only the node can judge")


def test_a_job_signed_by_somebody_else_is_refused(running: Stack, project: Project) -> None:
    _write(project).build()
    signed = project.sign(SigningKey.generate(), "demo")
    with pytest.raises(Refused) as refused:
        running.client.submit(signed.job, signed.image, project.pack())
    assert refused.value.code == "policy.signature_invalid"


def test_a_job_for_another_profile_is_refused(running: Stack, project: Project) -> None:
    _write(project).build()
    signed = project.sign(running.key, "production")
    with pytest.raises(Refused) as refused:
        running.client.submit(signed.job, signed.image, project.pack())
    assert refused.value.code == "policy.profile_mismatch"


def test_submitting_again_changes_nothing_and_a_replay_by_the_coordinator_is_refused(
    running: Stack, project: Project
) -> None:
    _harmless(project)
    signed = running.submit(_write(project))
    assert _end(running, signed) == ""
    running.client.submit(signed.job, signed.image, project.pack())
    assert running.client.get(signed.id)["state"] == "delivered"
    released = [e for e in running.journal(signed.id) if e.event == "committed"]
    _hand_out_again(running, signed.id)
    _wait_for(lambda: any(e.event == "replayed" for e in running.journal(signed.id)))
    assert [e for e in running.journal(signed.id) if e.event == "committed"] == released


def _hand_out_again(running: Stack, job: str) -> None:
    """What a dishonest coordinator would do: offer a finished job once more."""
    store = next((running.world.root / "coordinator").glob("*.db"))
    with contextlib.closing(sqlite3.connect(store, timeout=10)) as db, db:
        db.execute("UPDATE jobs SET state = 'routed', lease_until = NULL, node = NULL WHERE id = ?", (job,))


def _wait_for(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextlib.contextmanager
def _changed_mode(path: Path, mode: int) -> Iterator[None]:
    before = path.stat().st_mode
    path.chmod(mode)
    try:
        yield
    finally:
        path.chmod(before)


def test_a_dataset_that_can_be_written_is_refused(running: Stack, project: Project) -> None:
    _harmless(project)
    with _changed_mode(running.world.data / "records", 0o755):
        assert _end(running, running.submit(_write(project))) == "node.dataset_writable"
    assert _end(running, running.submit(_write(project))) == ""


def test_a_dataset_that_is_missing_is_refused(running: Stack, project: Project) -> None:
    _harmless(project)
    records = running.world.data / "records"
    hidden = running.world.data / "elsewhere"
    records.rename(hidden)
    try:
        assert _end(running, running.submit(_write(project))) == "node.dataset_missing"
    finally:
        hidden.rename(records)
    assert _end(running, running.submit(_write(project))) == ""
