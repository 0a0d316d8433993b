"""The disclosure ledger's check of a new cohort: 1,000,000 patients, 64 earlier cohorts.

Ours: tokens found again, 64 bitmaps read and verified, the partition refined, every cell counted. Theirs: the
bare numpy and pyroaring work below it, with no file, no digest and no token: 64 bitmaps to arrays, a bit set
for each member, and one `numpy.unique` over the signatures.
"""

from __future__ import annotations

import json
import resource
import secrets
import tempfile
import time
from pathlib import Path

import numpy as np
from pyroaring import BitMap

from rapha.node.datasets.ledger.chain import Chain
from rapha.node.datasets.ledger.cohorts import Cohort, write
from rapha.node.datasets.ledger.ledger import COHORTS as COHORTS_FOLDER
from rapha.node.datasets.ledger.ledger import Asker, opened
from rapha.node.datasets.ledger.population import Population
from rapha.node.sources.interface import Array
from rapha.spec.dataset import DatasetManifest
from rapha.spec.disclosure import Price

PATIENTS, COHORTS, RUNS = 10**6, 64, 3
NOW = "2026-01-01T00:00:00Z"


def main() -> None:
    """Print one JSON line."""
    generator = np.random.default_rng(7)
    # As two hospitals' worth of departments and years: 16 attributes that cohorts are made of.
    attributes = generator.random((16, PATIENTS)) < 0.5
    tokens = np.frombuffer(secrets.token_bytes(16 * PATIENTS), dtype="<u8").reshape(-1, 2)
    held = generator.random(PATIENTS) < 0.2
    manifest = _manifest()
    with tempfile.TemporaryDirectory() as folder:
        chosen = [_cohort(attributes, number) for number in range(COHORTS + 1)]
        _fill(
            Path(folder), manifest, _people(tokens, held, np.ones(PATIENTS, dtype=np.bool_)), chosen[:COHORTS]
        )
        people = _people(tokens, held, chosen[COHORTS])
        ours = min(_check(Path(folder), manifest, people) for _ in range(RUNS))
    bitmaps = [BitMap(np.flatnonzero(members).astype(np.uint32)) for members in chosen[:COHORTS]]
    theirs = min(_bare(bitmaps) for _ in range(RUNS))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(
        json.dumps(
            {
                "name": "ledger-check",
                "ours": round(ours, 3),
                "theirs": round(theirs, 3),
                "ratio": round(ours / theirs, 2),
                "unit": "s",
                "peak_mib": peak,
            }
        )
    )


def _fill(folder: Path, manifest: DatasetManifest, everybody: Population, chosen: list[Array]) -> None:
    """A ledger with these cohorts, written without the checks that would take most of the time."""
    with opened(folder, manifest, None) as ledger:
        ledger.reserve(Price(bits=1), _asker(0), everybody, everybody, NOW)
        first = ledger.account.jobs[_asker(0).job].reserved
        ordinals = ledger.dictionary.find(everybody.patients)
        place = ledger.folder
    with Chain.open(place) as chain:
        for number, members in enumerate(chosen[1:], 1):
            cohort = Cohort.of(ordinals[members], ordinals[members])
            digest = write(place / COHORTS_FOLDER, cohort)
            chain.append(first.model_copy(update={"job": _asker(number).job, "cohort": digest}), NOW)


def _cohort(attributes: Array, number: int) -> Array:
    """Who has two attributes: another two for each number."""
    pairs = [(a, b) for a in range(16) for b in range(a)]
    first, second = pairs[number % len(pairs)]
    members: Array = attributes[first] & attributes[second]
    return members


def _people(tokens: Array, held: Array, chosen: Array) -> Population:
    everyone = np.arange(PATIENTS)
    return Population(tokens, held, everyone, np.zeros(PATIENTS, dtype=np.int64), chosen)


def _asker(number: int) -> Asker:
    return Asker(f"{number:064x}", "acme", "research/diagnosis", "train", "0" * 64)


def _check(folder: Path, manifest: DatasetManifest, people: Population) -> float:
    started = time.process_time()
    with opened(folder, manifest, None) as ledger:
        ledger.check(Price(bits=1), _asker(COHORTS), people)
    return time.process_time() - started


def _bare(bitmaps: list[BitMap]) -> float:
    started = time.process_time()
    signature = np.zeros(PATIENTS, dtype=np.uint64)
    for number, bitmap in enumerate(bitmaps):
        signature[np.frombuffer(bitmap.to_array(), dtype=np.uint32)] |= np.uint64(1 << number)
    np.unique(signature, return_inverse=True)
    return time.process_time() - started


def _manifest() -> DatasetManifest:
    return DatasetManifest.parse(
        {
            "dataset": "bench",
            "title": "bench",
            "profile": "tabular.bench",
            "modality": "tabular",
            "fields": [{"name": "x", "dtype": "int64"}],
            "purposes": ["research/diagnosis"],
            "price_per_record": "0",
            "minimum_cell": 1,
            "provenance": {"source": "made for a benchmark", "licence": "none"},
            "source": {
                "kind": "folder",
                "format": "parquet",
                "path": "r",
                "files": [{"name": "a", "sha256": "0" * 64, "size": 1}],
            },
            "patient_id": "patient_id",
            "organisations": ["acme"],
            "opt_outs": "o",
            "salt": secrets.token_hex(32),
            "disclosure": {"cohorts": COHORTS + 1},
        }
    )


if __name__ == "__main__":
    main()
