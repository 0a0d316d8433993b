"""Two trainers that say the same values in every different way: what leaves is the same, to the byte.

Gate 9, the surface, the receipt and the outbox are the node's own. Only what is random by design is held
still: nonces and salts, the encryption to the recipient, and the commitment to the guard's own report, which
is hidden by such a salt.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rapha.evidence.keys import SigningKey
from rapha.node.datasets.control import Used
from rapha.node.gates import guard as guard_gate
from rapha.node.gates import receipt
from rapha.node.gates.guard import Guarded, guard
from rapha.node.gates.train import Ended, Trained
from rapha.runtime.guard.inspection import inspect
from rapha.runtime.sandbox.interface import Ending, Outcome
from rapha.spec.disclosure import NOT_ASKED, Balance, Searched, Spent
from rapha.spec.receipt import AirGap
from rapha.spec.release_plan import ReleasePlan

JOB = "a" * 64
PLAN = ReleasePlan.parse(
    {
        "version": 1,
        "weights": {
            "file": "model.safetensors",
            "release_dtype": "bf16",
            "tensors": [
                {"name": "w", "dtype": "F32", "shape": [4, 8], "min": -1, "max": 1},
                {"name": "b", "dtype": "F64", "shape": [3], "min": -1, "max": 1},
            ],
        },
        "self_reported": {
            "file": "reported.json",
            "fields": [
                {"name": "loss", "type": "number", "min": 0, "max": 1, "decimals": 3},
                {"name": "epochs", "type": "integer", "min": 0, "max": 100},
                {"name": "stopped", "type": "boolean"},
            ],
        },
        "trusted_metrics": ["brier"],
        "max_bytes": 4096,
    }
)
VALUES = np.random.default_rng(6).normal(0, 0.4, 35).clip(-0.99, 0.99)
VALUES[[3, 17]] = 0.0
VALUES[[5, 30]] = 1.0
REPORTED = [("loss", ["0.5", "0.50", "5e-1", "0.5000000001"]), ("epochs", ["7"]), ("stopped", ["true"])]
CLOCK = SimpleNamespace(quantum_s=60, boundary=lambda: datetime(2026, 1, 2, 3, 4, tzinfo=UTC))


@dataclass(frozen=True)
class Trainer:
    """All that a job may do differently with the same values."""

    library_order: bool
    wide_header: bool
    padding: int
    negative_zeros: bool
    beyond: float
    low_bits: int
    reported_order: tuple[int, ...]
    loss: int
    space: str
    reversed_files: bool
    times: tuple[int, int]
    mode: int
    log: bytes
    wall_s: float
    cpu_s: float
    memory: int
    detail: str

    def tensors(self) -> dict[str, np.ndarray[Any, Any]]:
        values = VALUES.copy()
        values[[5, 30]] = self.beyond
        if self.negative_zeros:
            values[[3, 17]] = -0.0
        w = values[:32].astype("<f4").reshape(4, 8)
        # What bfloat16 rounds away: no more than a quarter of its last place, so that no rounding changes.
        coarse = w.view("<u4") & 0xFFFF0000
        w = (coarse | np.uint32(self.low_bits)).view("<f4") if self.beyond == 1.0 else coarse.view("<f4")
        made = {"w": w, "b": values[32:].astype("<f8")}
        return dict(sorted(made.items(), key=lambda i: i[0])) if self.library_order else made

    def weights(self) -> bytes:
        header, data = {}, b""
        for name, array in self.tensors().items():
            raw = array.tobytes()
            dtype = {"f4": "F32", "f8": "F64"}[array.dtype.str[1:]]
            header[name] = {
                "dtype": dtype,
                "shape": list(array.shape),
                "data_offsets": [len(data), len(data) + len(raw)],
            }
            data += raw
        style = (", ", ": ") if self.wide_header else (",", ":")
        text = json.dumps(header, separators=style).encode() + b" " * self.padding
        return len(text).to_bytes(8, "little") + text + data

    def reported(self) -> bytes:
        said = [REPORTED[at] for at in self.reported_order]
        parts = [f'{self.space}"{name}":{self.space}{ways[self.loss % len(ways)]}' for name, ways in said]
        return ("{" + ",".join(parts) + self.space + "}").encode()

    def write(self, folder: Path) -> None:
        folder.mkdir()
        files = [("model.safetensors", self.weights()), ("reported.json", self.reported())]
        for name, data in reversed(files) if self.reversed_files else files:
            (folder / name).write_bytes(data)
            (folder / name).chmod(self.mode)
        for (name, _), time in zip(files, self.times, strict=True):
            os.utime(folder / name, (time, time))

    def outcome(self) -> Outcome:
        return Outcome(
            ending=Ending.exited,
            exit_code=0,
            wall_s=self.wall_s,
            cpu_s=self.cpu_s,
            peak_memory_bytes=self.memory,
            walls={"network": "none"},
            detail=self.detail,
        )


TRAINERS = st.builds(
    Trainer,
    library_order=st.booleans(),
    wide_header=st.booleans(),
    padding=st.integers(0, 7),
    negative_zeros=st.booleans(),
    beyond=st.sampled_from([1.0, 1.5, 3e38]),
    low_bits=st.integers(0, 2**13),
    reported_order=st.permutations(range(3)).map(tuple),
    loss=st.integers(0, 3),
    space=st.text(" \t\n\r", max_size=3),
    reversed_files=st.booleans(),
    times=st.tuples(st.integers(0, 2**31), st.integers(0, 2**31)),
    mode=st.sampled_from([0o400, 0o600, 0o644, 0o755]),
    log=st.binary(max_size=64),
    wall_s=st.floats(0.5, 60),
    cpu_s=st.floats(0.5, 60),
    memory=st.integers(1, 2**28),
    detail=st.text(max_size=30),
)
PLAINEST = Trainer(
    *(False, False, 0, False, 1.0, 0, (0, 1, 2), 0, "", False, (0, 0), 0o644, b"", 1.0, 1.0, 1, "")
)


class Data:
    """The dataset process of two jobs that read the same records and predicted the same."""

    def usage(self) -> Used:
        counts = {"unique_records": 57, "unique_patients": 43, "batches": 9, "capped": False}
        return Used.parse(
            {**counts, "transcript": "1" * 64, "used_root": "2" * 64, "first_record_served": True}
        )

    def search(self, files: dict[str, bytes], plan: ReleasePlan) -> Searched:
        return Searched(found=False, searched=43, too_short=0)


def section(**fields: Any) -> Any:
    return SimpleNamespace(dump=lambda: fields, **fields)


@pytest.fixture(autouse=True)
def _still(monkeypatch: pytest.MonkeyPatch) -> None:
    """What differs between any two runs of one job, held still."""
    monkeypatch.setattr("secrets.token_hex", lambda n: "5" * 2 * n)
    monkeypatch.setattr(Guarded, "commitment", property(lambda _: "6" * 64))
    monkeypatch.setattr("rapha.evidence.hpke.seal", lambda data, recipient, info: data)
    monkeypatch.setattr(receipt, "collect", lambda *_: section(quote="of the statement"))
    monkeypatch.setattr(receipt, "check", lambda *_: None)
    monkeypatch.setattr(guard_gate, "run_in_process", lambda d, plan, out, **_: inspect(d, plan, out))
    monkeypatch.setattr(
        guard_gate, "measure", lambda *_: {"brier": 0.125, "brier.low": 0.1, "brier.high": 0.2}
    )
    monkeypatch.setattr(guard_gate, "leakage", lambda *_: NOT_ASKED)


class Hospital:
    """A node and the ten gates before the receipt, as far as a job has no say in them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        party = SimpleNamespace(id="acme")
        terms = SimpleNamespace(company=party, hospital=party)
        job = SimpleNamespace(
            name="job",
            kind="train",
            purpose="research/diagnosis",
            image="sha256:" + "7" * 64,
            outputs=PLAN,
            recipient="8" * 64,
            private=None,
            dataset=SimpleNamespace(max_records=1000),
        )
        manifest = SimpleNamespace(billing_bucket=10, dataset="d", profile="tabular.d")
        self.admitted: Any = SimpleNamespace(
            id=JOB,
            job=job,
            private=None,
            manifest=manifest,
            image_envelope={},
            agreement=SimpleNamespace(envelope={}, terms=terms),
        )
        self.node: Any = SimpleNamespace(
            config=SimpleNamespace(node="n-1", profile="demo", quantum_s=60),
            runtime=SimpleNamespace(digest="9" * 64),
            sandbox=SimpleNamespace(name="bubblewrap"),
            receipt_key=KEY,
            previous_receipt=lambda: "0" * 64,
            journal=SimpleNamespace(append=lambda *_, **__: None),
            log_file=lambda job, name: folder / f"{name}.log",
        )
        resolved = SimpleNamespace(manifest="b" * 64, cohort="c" * 64, opt_out_version="d" * 64)
        self.consented: Any = SimpleNamespace(data=Data(), resolved=resolved)

    def leaves(self, trainer: Trainer) -> dict[str, bytes]:
        """Every file of the outbox, by its place in it."""
        work = self.folder / "work"
        work.mkdir()
        trainer.write(work / "outputs")
        self.node.log_file(JOB, "train").write_bytes(trainer.log)
        trained = Trained(work / "outputs", trainer.outcome())
        guarded = guard(self.node, self.admitted, self.consented, trained, work)
        assert not (work / "outputs").exists()
        outbox = work / "outbox"
        clock: Any = CLOCK
        receipt.issue(self.node, self.passed(trained, guarded), outbox, clock)
        return {str(p.relative_to(outbox)): p.read_bytes() for p in sorted(outbox.rglob("*")) if p.is_file()}

    def passed(self, trained: Trained, guarded: Guarded) -> Any:
        prepared = SimpleNamespace(funnel={"matched": 60}, content="e" * 64, confinement="memory")
        waived = dict.fromkeys(("interface", "mode", "wan_bytes_sent", "lifted"))
        airgap = AirGap.parse({**waived, "waiver": "test", "lan": [], "probes": {}, "reported_by": "host"})
        return SimpleNamespace(
            lease=SimpleNamespace(job_envelope={}),
            admitted=self.admitted,
            attested=SimpleNamespace(
                ticket={}, posture=section(), appraisal=SimpleNamespace(assurance="simulated")
            ),
            scanned=SimpleNamespace(section=section),
            allowed=SimpleNamespace(section=section()),
            consented=self.consented,
            approved=SimpleNamespace(envelopes=[]),
            sealed=SimpleNamespace(posture=section(), prepared=prepared),
            trained=trained,
            guarded=replace(guarded, balance=BALANCE),
            airgap=airgap,
            reviews=[],
            released="all",
            covert_bound_bits=4000,
            admitted_at=1_767_000_000.0,
        )


KEY = SigningKey.generate()
_CAPS = ("bits", "epsilon", "delta", "evaluations", "cohorts", "most_used")
BALANCE = Balance(
    dataset="d",
    jobs=1,
    **dict.fromkeys(_CAPS, Spent(spent=1, cap=2)),
    opt_out_version="d" * 64,
    head="a" * 64,
    entries=2,
)


def outbox(tmp_path_factory: pytest.TempPathFactory, trainer: Trainer) -> dict[str, bytes]:
    return Hospital(tmp_path_factory.mktemp("hospital")).leaves(trainer)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(trainer=TRAINERS)
def test_equal_values_leave_as_equal_bytes(
    tmp_path_factory: pytest.TempPathFactory, trainer: Trainer
) -> None:
    assert outbox(tmp_path_factory, trainer) == outbox(tmp_path_factory, PLAINEST)


def test_other_values_do_leave_as_other_bytes(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = outbox(tmp_path_factory, PLAINEST)
    monkeypatch.setitem(globals(), "VALUES", -VALUES)
    assert outbox(tmp_path_factory, PLAINEST) != before


def test_the_outbox_holds_what_it_should(tmp_path_factory: pytest.TempPathFactory) -> None:
    names = ["artifacts/metrics.json", "artifacts/model.safetensors", "artifacts/reported.json"]
    assert list(outbox(tmp_path_factory, PLAINEST)) == [*names, "core.json", "surface.json"]


def test_a_hit_of_the_tripwire_refuses_and_names_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital = Hospital(tmp_path)
    entries: list[dict[str, Any]] = []
    hospital.node.journal = SimpleNamespace(append=lambda *_, **fields: entries.append(fields))
    hit = Searched(found=True, searched=43, too_short=0, file="model.safetensors")
    monkeypatch.setattr(Data, "search", lambda *_: hit)
    with pytest.raises(Ended) as ended:
        hospital.leaves(PLAINEST)
    assert ended.value.code == "job.outputs"
    assert [entry["code"] for entry in entries] == ["guard.identifiers"]
    assert "model.safetensors" in entries[0]["reason"]
    assert not (tmp_path / "work" / "outbox").exists()
