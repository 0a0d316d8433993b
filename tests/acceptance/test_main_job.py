"""The main job from submit to verified bundle, with real processes and real data."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from pyarrow import parquet
from safetensors import safe_open

from rapha.evidence import canonical, dsse
from rapha.node import journal
from rapha.node.pipeline import GATES
from rapha.testing.stack import Delivered


def test_every_gate_passed_in_order(delivered: Delivered) -> None:
    passed = [
        e.data["gate"]
        for e in delivered.stack.journal(delivered.job)
        if e.event == "gate" and e.data["verdict"] == "passed"
    ]
    assert tuple(passed) == GATES


def test_the_researcher_saw_the_states_of_the_table(delivered: Delivered) -> None:
    assert delivered.states[:6] == (
        "submitted",
        "routed",
        "leased",
        "ticketed",
        "awaiting_approval",
        "admitted",
    )
    assert delivered.states[-3:] == ("released", "logged", "delivered")


def test_weights_are_the_planned_tensors_in_bf16(delivered: Delivered) -> None:
    plan = delivered.stack.world.project.load().outputs.weights
    assert plan is not None
    with safe_open(delivered.out / "artifacts" / "model.safetensors", framework="pt") as file:
        assert sorted(file.keys()) == sorted(t.name for t in plan.tensors)
        assert {str(file.get_slice(k).get_dtype()) for k in file.keys()} == {"BF16"}  # noqa: SIM118  not a dict


def test_trusted_metrics_are_those_of_a_model_that_learned(delivered: Delivered) -> None:
    metrics = json.loads((delivered.out / "artifacts" / "metrics.json").read_bytes())["trusted"]
    assert metrics["auroc.low"] > 0.9
    assert metrics["accuracy"] > 0.9
    assert metrics["brier"] < 0.1


def test_train_and_test_records_are_both_counted(delivered: Delivered) -> None:
    counted = next(e for e in delivered.stack.journal(delivered.job) if e.event == "counted")
    manifest = json.loads((delivered.stack.world.data / "manifest.json").read_bytes())
    lines = (delivered.stack.world.data / manifest["opt_outs"]).read_text().splitlines()
    opted_out = sum(bool(line) and not line.startswith("#") for line in lines)
    rows = parquet.read_table(delivered.stack.world.data / manifest["source"]["path"]).num_rows
    assert rows == 569
    assert opted_out > 0
    assert counted.data["records"] == rows - opted_out
    receipt = dsse.unverified_predicate(canonical.loads(delivered.bundle)["receipt"])
    assert receipt["usage"]["records"] == -(-counted.data["records"] // 10) * 10
    assert receipt["usage"]["counts"] == "hospital-asserted"


def test_nothing_of_the_job_is_left_on_the_node_but_its_log(delivered: Delivered) -> None:
    state = delivered.stack.world.node / "state"
    assert not (state / "jobs" / delivered.job).exists()
    assert not (state / "outbox" / delivered.job).exists()
    assert not (state / "desk" / delivered.job).exists()


def test_no_record_is_in_anything_that_the_coordinator_stores_or_logs(delivered: Delivered) -> None:
    needles = list(_needles(delivered.stack.world.data))
    assert len(needles) > 1000
    checked = 0
    for path in (delivered.stack.world.root / "coordinator").rglob("*"):
        if path.is_file():
            checked += 1
            data = path.read_bytes()
            found = [n for n in needles if n in data]
            assert not found, f"{path.name} holds {found[0]!r}"
    assert checked >= 3


def test_the_needles_are_found_where_records_are(delivered: Delivered) -> None:
    # The control of the test above: the same search finds identifiers in the hospital's own file.
    table = parquet.read_table(_source(delivered.stack.world.data))
    text = ",".join(map(str, table.column(table.column_names[0]).to_pylist())).encode()
    rows = b"".join(
        struct.pack("<2f", *row)
        for row in zip(*(table.column(n).to_pylist() for n in _floats(table)[:2]), strict=True)
    )
    needles = list(_needles(delivered.stack.world.data))
    assert sum(n in text or n in rows for n in needles) > 500


def _needles(folder: Path) -> set[bytes]:
    """What a record looks like: identifiers, and two neighbouring measurements as text or as float32."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    table = parquet.read_table(_source(folder))
    found = {str(v).encode() for v in table.column(manifest["patient_id"]).to_pylist()}
    names = _floats(table)
    for first, second in zip(
        table.column(names[0]).to_pylist(), table.column(names[1]).to_pylist(), strict=True
    ):
        found.add(struct.pack("<2f", first, second))
        found.add(f"{first:g},{second:g}".encode())
        found.add(f"{first:g}, {second:g}".encode())
    return found


def _floats(table: object) -> list[str]:
    return [f.name for f in table.schema if str(f.type) == "float"]  # type: ignore[attr-defined]


def _source(folder: Path) -> Path:
    manifest = json.loads((folder / "manifest.json").read_bytes())
    path: Path = folder / manifest["source"]["path"]
    return next(path.glob("*.parquet")) if path.is_dir() else path


def test_the_nodes_log_is_whole(delivered: Delivered) -> None:
    entries = journal.read(delivered.stack.world.node / "state" / "journal.jsonl")
    assert [e.seq for e in entries] == list(range(len(entries)))
