"""The known-identifier tripwire through a real dataset process: yes or no, and nothing of which."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from rapha.node.datasets import control
from rapha.node.datasets.client import DatasetProcess
from rapha.node.datasets.pseudonyms import HospitalKey
from rapha.spec import cohort
from rapha.spec.dataset import DatasetManifest, Field, Provenance
from rapha.spec.disclosure import Searched
from rapha.spec.refusals import Refused
from rapha.spec.release_plan import ReleasePlan
from rapha.testing.hospital import write_table

PATIENTS = 60
STUDY = "1.2.826.0.1.3680043.8.498.{}"
PLAN = ReleasePlan.parse(
    {
        "version": 1,
        "weights": {
            "file": "model.safetensors",
            "release_dtype": "bf16",
            "tensors": [{"name": "w", "dtype": "F32", "shape": [512], "min": -300, "max": 300}],
        },
        "self_reported": {
            "file": "reported.json",
            "fields": [{"name": "n", "type": "integer", "min": 0, "max": 9007199254740991}],
        },
        "max_bytes": 4096,
    }
)


def patient(number: int) -> str:
    return f"MRN-{(number * 7919 + 104729) * 31337 % 10**9:09d}"


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DatasetProcess]:
    root = tmp_path_factory.mktemp("hospital")
    HospitalKey.create(root / "phi.key")
    manifest = write_table(
        root,
        {
            "x": pa.array(np.arange(PATIENTS, dtype=np.float32)),
            "study": [STUDY.format(patient(n)[4:]) for n in range(PATIENTS)],
            "label": pa.array([n % 2 for n in range(PATIENTS)], pa.float32()),
        },
        [patient(n) for n in range(PATIENTS)],
        opt_outs=[],
        dataset="tripwire",
        title="tripwire",
        minimum_cell=3,  # a fifth of sixty is now and then fewer than ten
        profile="tabular.tripwire",
        modality="tabular",
        fields=(
            Field(name="x", dtype="float32"),
            Field(name="study", dtype="pseudonym"),
            Field(name="label", dtype="float32", label=True),
        ),
        provenance=Provenance(source="made for a test", licence="none"),
    )
    with DatasetProcess() as started:
        started.resolve(_request(root, manifest))
        started.prepare()
        yield started


def _request(root: Path, manifest: DatasetManifest) -> control.Resolve:
    return control.Resolve.parse(
        {
            "manifest": manifest.dump(),
            "folder": str(root),
            "means": {"workers": 1, "memory_bytes": 2**30, "shards": str(root / "shards")},
            "transforms": {},
            "cohort": cohort.dump(cohort.parse({"all": []})),
            "organisation": manifest.organisations[0],
            "purpose": manifest.purposes[0],
            "max_records": 1000,
            "job_id": "ab" * 32,
            "key_path": str(root / "phi.key"),
            "journal_path": str(root / "meter.journal"),
            "ledger": str(root / "ledger"),
        }
    )


def weights(payload: bytes = b"") -> bytes:
    """A released file as the guard writes it, with `payload` in its tensor."""
    assert PLAN.weights
    header = PLAN.weights.released_header()
    values = np.random.default_rng(4).standard_normal(512).astype("<f4").view("<u4") >> 16
    data = values.astype("<u2").tobytes()
    return len(header).to_bytes(8, "little") + header + data[:64] + payload + data[64 + len(payload) :]


@pytest.mark.parametrize(
    "payload",
    [
        patient(3).encode(),
        patient(59).lower().encode("utf-16-be"),
        patient(20).encode()[::-1],
        STUDY.format(patient(7)[4:]).encode(),
    ],
)
def test_an_identifier_of_the_job_is_found_in_weights(process: DatasetProcess, payload: bytes) -> None:
    told = process.search({"model.safetensors": weights(payload), "reported.json": b'{"n":1}'}, PLAN)
    assert told.found and told.file == "model.safetensors"
    assert set(told.dump()) == {"found", "searched", "too_short", "file"}


def test_what_spells_nobody_passes(process: DatasetProcess) -> None:
    stranger = b"MRN-999999998"
    told = process.search({"model.safetensors": weights(stranger), "reported.json": b'{"n":1}'}, PLAN)
    assert told == Searched(found=False, searched=2 * PATIENTS, too_short=0)


def test_weights_without_the_planned_header_are_nobodys(process: DatasetProcess) -> None:
    with pytest.raises(Refused) as refused:
        process.search({"model.safetensors": b"\x00" * 64}, PLAN)
    assert refused.value.code == "node.internal"


def test_bytes_that_could_still_change_are_not_searched(process: DatasetProcess) -> None:
    descriptor = os.memfd_create("released", os.MFD_ALLOW_SEALING)
    try:
        for passed in (descriptor, None):
            with pytest.raises(Refused) as refused:
                process._ask(control.Search(content="numbers"), passed)
            assert refused.value.code == "node.internal"
    finally:
        os.close(descriptor)
