"""Differencing through the real dataset process on real data, and a node's log that knows an older ledger."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rapha.cli.main import run
from rapha.evidence import canonical
from rapha.node.config import NodeConfig
from rapha.node.datasets import control
from rapha.node.datasets.client import DatasetProcess
from rapha.node.datasets.keys import KeyRing
from rapha.node.datasets.ledger.entries import Seen
from rapha.node.datasets.ledger.messages import Inspect, Shown
from rapha.node.journal import Journal
from rapha.node.node import read_manifest
from rapha.node.recover import LEDGERED
from rapha.node.setup import init, offer
from rapha.spec import cohort
from rapha.spec.dataset import DatasetManifest
from rapha.spec.disclosure import Balance, Caps, Price
from rapha.spec.refusals import REGISTRY, Refused
from rapha.testing.hospital import write_breast_fna

CONFIG: dict[str, Any] = {
    "version": 1,
    "profile": "demo",
    "node": "node-1",
    "coordinator": {"url": "http://127.0.0.1:9", "audience": "test"},
    "datasets": [],
    "policy_bundles": ["policy"],
    "runtime": ["numpy"],
    "runtime_name": "python-torch",
    "wan_waiver": "a test",
}
PRICE = Price(bits=1000, evaluations=1)
ALL: dict[str, Any] = {"all": []}


def below(limit: float) -> dict[str, Any]:
    return {"field": "mean_radius", "lt": limit}


@dataclass
class Site:
    """A node's folder with one dataset."""

    root: Path
    manifest: DatasetManifest
    jobs: int = 0

    @property
    def work(self) -> Path:
        return self.root / "node"

    @property
    def ledger(self) -> Path:
        return self.work / "state" / "ledger"

    def request(self, text: dict[str, Any], **changes: Any) -> control.Resolve:
        _, key = KeyRing((self.work / "keys").resolve()).enlist()
        self.jobs += 1
        values: dict[str, Any] = {
            "manifest": self.manifest,
            "folder": str(self.root / "fna"),
            "means": control.Means(workers=1, memory_bytes=2**30, shards=str(self.root / "shards")),
            "transforms": {},
            "cohort": cohort.parse(text),
            "organisation": "demo-ai",
            "purpose": "research/diagnosis",
            "max_records": 5000,
            "job_id": f"{self.jobs:064x}",
            "key_path": str(key),
            "journal_path": str(self.root / f"{self.jobs}.journal"),
            "ledger": str(self.ledger),
            "price": PRICE,
        }
        return control.Resolve(**{**values, **changes})

    def run(self, text: dict[str, Any], **changes: Any) -> Balance:
        """A job from gate 5 to its end."""
        with DatasetProcess() as data:
            data.resolve(self.request(text, **changes))
            data.prepare()
            data.reserve(PRICE)
            data.serve("train").close()
            return data.settle(10, "nothing")

    def refused(self, *requests: control.Resolve) -> None:
        """Each is refused at gate 5, in the same words."""
        with DatasetProcess() as data:
            for request in requests:
                with pytest.raises(Refused) as refused:
                    data.resolve(request)
                assert refused.value.code == "privacy.cohort_refused"
                assert refused.value.detail == REGISTRY[refused.value.code].meaning

    def shown(self, seen: Seen | None = None) -> Shown:
        with DatasetProcess() as data:
            return data.inspect(Inspect(manifest=self.manifest, ledger=str(self.ledger), seen=seen))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    init(tmp_path / "node", NodeConfig.parse(CONFIG))
    made = write_breast_fna(tmp_path / "fna").dump()
    made["salt"] = "5a" * 32  # so that the same few people are between two cohorts each time
    (tmp_path / "fna" / "manifest.json").write_bytes(canonical.dumps(made))
    config = offer(tmp_path / "node", NodeConfig.parse(CONFIG), [str(tmp_path / "fna")])
    assert config.datasets
    yield Site(tmp_path, read_manifest(tmp_path / "fna"))


def test_differencing_two_cohorts_is_refused_and_counted_for_nobody(site: Site) -> None:
    first = site.run(below(13.0))
    assert (first.jobs, first.bits.spent, first.evaluations.spent) == (1, 10, 0)
    few = below(13.03)
    site.refused(site.request(few), site.request(few), site.request(few, max_records=300))
    # In other words, the same few people: who is between the two.
    above = {"field": "mean_radius", "gte": 11.0}
    site.run({"all": [below(13.0), above]})
    site.refused(site.request({"all": [few, above]}), site.request({"all": [few, {"not": below(13.0)}]}))
    shown = site.shown()
    assert shown.balance is not None and len(shown.jobs) == shown.balance.cohorts.spent == 2


def test_an_evaluation_may_follow_on_the_same_cohort_and_not_beside_it(site: Site) -> None:
    site.run(below(13.0))
    with DatasetProcess() as data:
        data.resolve(site.request(below(13.0), kind="evaluate"))
        data.prepare()
        assert data.reserve(PRICE).jobs == 2
    site.refused(site.request(below(13.03), kind="evaluate"))  # one held-out patient more


def test_nothing_is_served_before_it_was_charged_nor_after_it_was_settled(site: Site) -> None:
    with DatasetProcess() as data:
        data.resolve(site.request(ALL))
        data.prepare()
        with pytest.raises(Refused, match=r"policy\.conflict"):
            data.serve("train")
        _measures_nothing(data)
        data.reserve(PRICE)
        with pytest.raises(Refused, match=r"policy\.conflict"):
            data.reserve(PRICE)
        data.serve("train").close()
        data.settle(5, "nothing")
        with pytest.raises(Refused, match=r"policy\.conflict"):
            data.serve("test")
        _measures_nothing(data)
    with DatasetProcess() as data:
        data.resolve(site.request(ALL, ledger=None))
        data.prepare()
        with pytest.raises(Refused, match=r"policy\.conflict"):
            data.reserve(PRICE)


def _measures_nothing(data: DatasetProcess) -> None:
    for ask in (
        lambda: data.score(b"", ("auroc",)),
        lambda: data.observe(None, b""),
        data.audit,
    ):
        with pytest.raises(Refused) as refused:
            ask()
        assert (refused.value.code, "before the ledger is charged" in refused.value.detail) == (
            "policy.conflict",
            True,
        )


def test_a_cap_that_is_reached_is_told_at_gate_5(site: Site) -> None:
    site.manifest = site.manifest.model_copy(update={"disclosure": Caps(bits=1005)})
    site.run(ALL)
    with DatasetProcess() as data, pytest.raises(Refused) as refused:
        data.resolve(site.request(ALL))
    assert refused.value.code == "budget.disclosure" and "bits" in refused.value.detail


def test_what_a_job_asks_is_counted_and_refused_in_the_end_whatever_the_records_are(site: Site) -> None:
    """Else each refusal would be one exact bit about who matches, as many times as anybody likes."""
    site.manifest = site.manifest.model_copy(update={"disclosure": Caps(feasibility=3)})
    site.run(below(13.0))
    site.refused(site.request(below(13.03)), site.request(below(13.03)), site.request(below(0.0)))
    same = {"not": {"field": "mean_radius", "gte": 13.0}}  # the people of the first job in other words
    for text, changes in ((same, {}), (below(7.0), {}), (ALL, {}), (below(13.0), {"max_records": 99})):
        with DatasetProcess() as data, pytest.raises(Refused) as refused:
            data.resolve(site.request(text, **changes))
        assert refused.value.code == "budget.disclosure" and "feasibility" in refused.value.detail
    site.refused(site.request(below(13.03)))
    site.run(below(13.0))
    assert site.shown().feasibility.left == 0


def test_a_killed_process_stays_charged_at_its_worst(site: Site) -> None:
    with DatasetProcess() as data:
        data.resolve(site.request(ALL))
        data.prepare()
        data.reserve(PRICE)
        os.kill(data.pid, signal.SIGKILL)
        with pytest.raises(Refused, match=r"node\.internal"):
            data.settle(1, "nothing")
    shown = site.shown()
    assert [(line.released, line.charged.bits) for line in shown.jobs] == [(None, 1000)]


def test_who_opts_out_between_jobs_is_left_out_and_noted(site: Site) -> None:
    site.run(ALL)
    with (site.root / "fna" / "opt-outs.txt").open("a") as file:
        file.write("fna-100\n")
    site.run(ALL)
    shown = site.shown()
    assert [line.departed for line in shown.jobs] == [0, 1]
    assert len({line.opt_out_version for line in shown.jobs}) == 2
    assert shown.uses["1"] == 1


def test_the_command_line_knows_an_older_copy(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    balance = site.run(ALL)
    kept = site.root / "kept"
    shutil.copytree(site.ledger, kept)
    with Journal(site.work / "state" / "journal.jsonl") as journal:
        dataset = site.manifest.dataset
        journal.append(LEDGERED, "", dataset=dataset, entries=balance.entries, head=balance.head)
        node = ["--work", str(site.work)]
        assert run(["node", "ledger", "check", dataset, *node]) == 0
        page = site.root / "ledger.html"
        assert run(["node", "ledger", "show", dataset, *node, "--html", str(page)]) == 0
        assert (
            run(["node", "ledger", "show", dataset, *node, "--html", str(site.root / "no" / "p.html")]) == 3
        )
        html = page.read_text()
        assert "demo-ai" in html and "<script" not in html and "fna-" not in html.replace("breast-fna", "")
        capsys.readouterr()
        assert run(["node", "ledger", "show", dataset, *node, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["balance"]["jobs"] == 1
        later = site.run(below(14.0))
        journal.append(LEDGERED, "", dataset=dataset, entries=later.entries, head=later.head)
        assert run(["node", "ledger", "check", dataset, *node]) == 0
        shutil.rmtree(site.ledger)
        shutil.copytree(kept, site.ledger)
        assert run(["node", "ledger", "check", dataset, *node, "--json"]) == 1
        assert run(["node", "ledger", "show", dataset, *node]) == 3
        assert run(["node", "ledger", "show", "nothing", *node]) == 1
