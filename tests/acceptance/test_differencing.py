"""Two jobs whose difference would be about a few patients: the first is delivered, the second never runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from rapha.evidence import canonical, dsse
from rapha.node.gates.receipt import commit_ledger
from rapha.node.recover import LEDGER_TOLD, LEDGERED
from rapha.researcher.signing import SignedJob
from rapha.spec.refusals import REGISTRY, Refused
from rapha.spec.surface import Surface
from rapha.testing import stack as stacks
from rapha.testing.stack import Stack

CELL = 10
ASKED = "cohort: {all: [{field: mean_radius, gte: 6.0}]}"
FIRST = "cohort: {all: [{field: mean_radius, lt: 13.0}]}"
ATTACKS = (
    "cohort: {all: [{field: mean_radius, lt: 12.97}]}",
    "cohort: {not: {field: mean_radius, gte: 12.97}}",
    "cohort: {all: [{field: mean_radius, gte: 12.97}, {field: mean_radius, lt: 13.0}]}",
)
"""A few patients less than the first, the same in other words, and those few themselves."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    root = tmp_path_factory.mktemp("differencing")
    with stacks.stack(root) as stack, stacks.node(stack.world.node), stacks.people(stack.world):
        yield stack


def submitted(stack: Stack, folder: Path, cohort: str) -> SignedJob:
    """The world's job over another cohort."""
    project = stack.copy_project(folder)
    text = project.file.read_text()
    assert ASKED in text
    project.file.write_text(text.replace(ASKED, cohort))
    return stack.submit(project)


def counts(stack: Stack) -> tuple[int, int, int]:
    """Patients below 12.97, between that and 13.0, and above."""
    manifest = json.loads((stack.world.data / "manifest.json").read_bytes())
    table = parquet.read_table(stack.world.data / manifest["source"]["path"])
    opted_out = set((stack.world.data / manifest["opt_outs"]).read_text().split())
    names = table[manifest["patient_id"]].to_pylist()
    radius = [
        r for name, r in zip(names, table["mean_radius"].to_pylist(), strict=True) if name not in opted_out
    ]
    return (
        sum(r < 12.97 for r in radius),
        sum(12.97 <= r < 13.0 for r in radius),
        sum(r >= 13.0 for r in radius),
    )


def ledger(stack: Stack) -> Mapping[str, bytes]:
    folder = stack.world.node / "state" / "ledger"
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_second_of_two_jobs_that_differ_by_a_few_is_refused(running: Stack, tmp_path: Path) -> None:
    below, between, above = counts(running)
    assert 0 < between < CELL and min(below, above) > 10 * CELL, "each cohort would pass by itself"
    first = submitted(running, tmp_path / "first", FIRST)
    assert running.follow(first)["state"] == "delivered"
    bundle = running.fetch(first, tmp_path / "out")
    kept = ledger(running)
    for number, attack in enumerate(ATTACKS):
        second = submitted(running, tmp_path / str(number), attack)
        _refused_without_a_number(running, second)
    after = ledger(running)
    grown = next(name for name in kept if name.endswith("ledger.jsonl"))
    assert {**after, grown: b""} == {**kept, grown: b""}, "a refusal charges nothing"
    counted = [json.loads(line)["entry"]["event"] for line in after[grown][len(kept[grown]) :].splitlines()]
    assert after[grown].startswith(kept[grown]) and counted == ["answered"] * len(ATTACKS)

    # Of the ledger, the receipt carries a commitment, and the node's log what opens it.
    use: Any = dsse.unverified_predicate(canonical.loads(bundle)["receipt"])["dataset"]
    entries = {e.event: dict(e.data) for e in running.journal(first.id)}
    told = entries[LEDGER_TOLD]
    assert use["ledger"] == commit_ledger(told["entries"], told["head"], told["salt"])
    assert told["head"].encode() in kept[grown]
    assert entries[LEDGERED]["entries"] == told["entries"] + 1, "settled afterwards"


def _refused_without_a_number(stack: Stack, job: SignedJob) -> None:
    code = "privacy.cohort_refused"
    assert stack.follow(job)["code"] == code
    last = stack.client.get(job.id)
    assert (last["state"], last["code"]) == ("refused", code)
    assert last.get("detail") in (None, "", REGISTRY[code].meaning)
    with pytest.raises(Refused):
        stack.client.bundle(job.id)
    (ended,) = [e.data["surface"] for e in stack.journal(job.id) if e.event == "ended"]
    assert ended == Surface.ended(job.id, Refused(code)).dump(), "it follows from the code alone"
    gates = [e.data["gate"] for e in stack.journal(job.id) if e.event == "gate"]
    assert gates[-1] == "consent" and "train" not in gates, "nobody was asked, and nothing ran"
