"""Rotation, verification and feasibility on a real node folder: the CLI, the dataset process, real data."""

from __future__ import annotations

import json
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rapha.cli.main import run
from rapha.node.config import NodeConfig
from rapha.node.datasets import control
from rapha.node.datasets.client import DatasetProcess, means
from rapha.node.datasets.keys import KEPT, KeyRing
from rapha.node.datasets.verify import CONSENTED, COUNTED, Commitments
from rapha.node.journal import Journal
from rapha.node.node import read_manifest
from rapha.node.setup import init, offer
from rapha.spec import cohort
from rapha.spec.dataset import DatasetManifest
from rapha.spec.disclosure import Price
from rapha.testing.hospital import write_breast_fna
from rapha_trainer.session import BrokerSource
from rapha_trainer.source import Epoch

JOB = "ab" * 32
COHORT = {"field": "mean_radius", "gte": 12.0}
CONFIG: dict[str, Any] = {
    "version": 1,
    "profile": "demo",
    "node": "st-marys-1",
    "coordinator": {"url": "http://127.0.0.1:1", "audience": "here"},
    "datasets": [],
    "policy_bundles": ["policy"],
    "runtime": ["numpy"],
    "runtime_name": "python-torch",
    "wan_waiver": "demo",
}


@dataclass
class Site:
    """A node's work directory with one dataset."""

    work: Path
    config: NodeConfig
    folder: Path
    manifest: DatasetManifest

    @property
    def ring(self) -> KeyRing:
        return KeyRing(self.work / "keys")

    def request(self, key: Path, job: str = JOB) -> control.Resolve:
        meters = self.work / "state" / "meters"
        meters.mkdir(exist_ok=True)
        return control.Resolve(
            manifest=self.manifest,
            folder=str(self.folder),
            means=means(self.config.preparation, self.work / "state" / "shards"),
            transforms={},
            cohort=cohort.parse(COHORT),
            organisation="demo-ai",
            purpose="research/diagnosis",
            max_records=5000,
            job_id=job,
            key_path=str(key),
            journal_path=str(meters / f"{job}.journal"),
            ledger=str(self.work / "state" / "ledger"),
        )

    def rapha(self, *arguments: str) -> int:
        return run(["node", *arguments, "--work", str(self.work)])


def site_at(root: Path) -> Site:
    config = offer(root / "node", NodeConfig.parse(CONFIG), [str(root / "fna")])
    return Site(root / "node", config, root / "fna", read_manifest(root / "fna"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, control.Used]:
    """A site where a job ran under the first key; the key's id, and what the job used."""
    root = tmp_path_factory.mktemp("made")
    init(root / "node", NodeConfig.parse(CONFIG))
    write_breast_fna(root / "fna")
    return root, *train(site_at(root))


@pytest.fixture
def site(made: tuple[Path, str, control.Used], tmp_path: Path) -> Site:
    """A copy of that site."""
    shutil.copytree(made[0], tmp_path / "site")
    return site_at(tmp_path / "site")


@pytest.fixture
def trained(made: tuple[Path, str, control.Used]) -> tuple[str, control.Used]:
    """The key's id, and what was used."""
    return made[1:]


def read_some(job: socket.socket) -> None:
    """Two batches, as a job's loader asks for them."""
    source = BrokerSource(job.fileno(), "train")
    epoch = Epoch(
        batch_size=32,
        shuffle=True,
        seed=5,
        number=0,
        drop_last=False,
        indices=np.arange(64, dtype=np.uint32),
        prefetch=None,
    )
    try:
        assert sum(1 for _ in source.batches(epoch)) == 2
    finally:
        source._socket.close()


def train(site: Site) -> tuple[str, control.Used]:
    """Run a job as the gates do, as far as keys go."""
    key_id, path = site.ring.enlist()
    request = site.request(path)
    with DatasetProcess() as data, Journal(site.work / "state" / "journal.jsonl") as journal:
        resolved = data.resolve(request)
        journal.append(CONSENTED, JOB, **Commitments.of(key_id, request, resolved).dump())
        data.prepare()
        data.reserve(Price(bits=1000))
        with data.serve("train") as sock:
            read_some(sock)
        used = data.usage()
        journal.append(COUNTED, JOB, used_root=used.used_root)
    assert used.unique_records == 64
    return key_id, used


def verified(site: Site, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, str]]:
    capsys.readouterr()
    status = site.rapha("keys", "verify", JOB, "--json")
    shown = json.loads(capsys.readouterr().out)
    assert shown["ok"] == (status == 0) and shown["job"] == JOB
    return status, {check["id"]: check["verdict"] for check in shown["checks"]}


def test_a_job_verifies_under_its_own_key_after_rotations(
    site: Site, trained: tuple[str, control.Used], capsys: pytest.CaptureFixture[str]
) -> None:
    every = dict.fromkeys(("key", "manifest", "opt-outs", "cohort", "used"), "yes")
    assert verified(site, capsys) == (0, every)
    for _ in range(2):
        assert site.rapha("keys", "rotate") == 0
    assert verified(site, capsys) == (0, every)

    assert site.rapha("keys", "list", "--json") == 0
    listed = json.loads(capsys.readouterr().out)["keys"]
    assert [(key["current"], key["jobs"]) for key in listed] == [(False, 1), (False, 0), (True, 0)]
    assert listed[0]["key"] == trained[0] != listed[2]["key"]
    assert site.rapha("keys", "list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["kept", "kept", "current"]


def test_after_a_crash_and_a_rotation_the_journal_recovers_under_the_old_key(
    site: Site, trained: tuple[str, control.Used]
) -> None:
    key_id, used = trained
    site.ring.rotate()
    with DatasetProcess() as again:
        again.resolve(site.request(site.ring.path_of(key_id)))
        again.prepare()
        recovered = again.usage()
    assert (recovered.used_root, recovered.unique_records) == (used.used_root, used.unique_records)
    assert recovered.unique_patients == used.unique_patients


def test_a_rotation_while_people_decide_does_not_change_what_they_approved(site: Site) -> None:
    _, path = site.ring.enlist()
    request = site.request(path)
    with DatasetProcess() as data:
        approved = data.resolve(request)
        site.ring.rotate()
        assert data.resolve(request) == approved
        _, new = site.ring.enlist()
        other = data.resolve(site.request(new))
    assert other.cohort != approved.cohort and other.opt_out_version != approved.opt_out_version


def test_each_difference_is_named(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    opt_outs, journal = site.folder / "opt-outs.txt", site.work / "state" / "meters" / f"{JOB}.journal"
    before = opt_outs.read_text()
    opt_outs.write_text(before + "nobody-here\n")
    data = bytearray(journal.read_bytes())
    data[-40] ^= 1
    journal.write_bytes(data)
    told = {"key": "yes", "manifest": "yes", "opt-outs": "no", "cohort": "yes", "used": "no"}
    assert verified(site, capsys) == (1, told), "nobody's opt-out changes the list, and not the records"
    opt_outs.write_text(before + "fna-500\nfna-501\nfna-502\n")
    journal.unlink()
    assert verified(site, capsys) == (1, {**told, "cohort": "no", "used": "unknown"})


def test_what_is_not_there_any_more_can_not_be_verified(
    site: Site, trained: tuple[str, control.Used], capsys: pytest.CaptureFixture[str]
) -> None:
    site.ring.rotate()
    (site.work / "keys" / KEPT / f"{trained[0]}.key").unlink()
    assert verified(site, capsys) == (3, {"key": "unknown"})
    assert site.rapha("keys", "verify", "cd" * 32) == 3
    assert site.rapha("keys", "verify", "../../x") == 3


def test_a_dataset_that_is_gone_is_unknown_and_not_a_difference(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    (site.folder / "records").chmod(0o755)
    shutil.rmtree(site.folder / "records")
    status, verdicts = verified(site, capsys)
    assert status == 3 and verdicts["cohort"] == "unknown" and verdicts["used"] == "yes"
    assert site.rapha("keys", "verify", JOB) == 3
    assert "unknown  cohort" in capsys.readouterr().out
    offer(site.work, site.config, [])
    assert site.rapha("keys", "verify", JOB) == 3


def test_a_job_that_was_cut_off_verifies_as_far_as_it_came(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = site.work / "state" / "journal.jsonl"
    whole = journal.read_bytes().split(b"\n")
    journal.write_bytes(whole[0] + b"\n")  # without what was counted in the end
    status, verdicts = verified(site, capsys)
    assert status == 0 and verdicts["used"] == "yes"


def asked(site: Site, capsys: pytest.CaptureFixture[str], text: str) -> tuple[int, dict[str, Any]]:
    path = site.work / "cohort.yaml"
    path.write_text(text)
    capsys.readouterr()
    status = site.rapha("feasibility", "breast-fna", "--cohort", str(path), "--json")
    out = capsys.readouterr().out
    return status, json.loads(out) if out else {}


def test_a_cohort_is_counted_the_same_in_any_words(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    status, first = asked(site, capsys, "{field: mean_radius, gte: 12.0}")
    assert status == 0 and first["ok"] is True and first["bucket"] == 10
    assert first["patients"] == first["records"] and first["patients"] % 10 == 0
    assert asked(site, capsys, json.dumps({"all": [{"not": {"field": "mean_radius", "lt": 12.0}}]})) == (
        0,
        first,
    )


@pytest.mark.parametrize("text", ["{field: mean_radius, gt: 27.0}", "{field: mean_radius, lt: 27.0}"])
def test_a_small_cohort_and_a_small_rest_get_one_answer(
    site: Site, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    status, told = asked(site, capsys, text)
    assert (status, told["ok"], told["patients"], told["records"]) == (1, False, "<10", "<10")


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("{field: malignant, eq: 1}", 1),
        ("{field: patient_id, eq: fna-001}", 1),
        ("{field: mean_radius}", 1),
        ("[]", 1),
        ("{a: &x 1}", 1),
    ],
)
def test_what_is_no_cohort_of_this_dataset_refuses(
    site: Site, capsys: pytest.CaptureFixture[str], text: str, status: int
) -> None:
    assert asked(site, capsys, text) == (status, {})


def test_unknown_datasets_and_files_refuse(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    path = site.work / "cohort.yaml"
    path.write_text("{all: []}")
    assert site.rapha("feasibility", "nothing", "--cohort", str(path)) == 1
    assert site.rapha("feasibility", "breast-fna", "--cohort", str(path / "not")) == 2
