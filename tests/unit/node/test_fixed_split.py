"""No job trains on a patient whom any other job is measured on, whatever else differs between them."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rapha.node.datasets.resolve import Selection, resolve
from rapha.node.sources.interface import Index
from rapha.spec.cohort import Node, parse
from rapha.spec.dataset import DatasetManifest
from rapha.spec.refusals import Refused

PATIENTS = 300
SALT = "5a" * 32


def manifest(**changes: Any) -> DatasetManifest:
    base = {
        "version": 1,
        "dataset": "d",
        "title": "d",
        "profile": "tabular.d",
        "modality": "tabular",
        "fields": [{"name": "x", "dtype": "float32"}],
        "purposes": ["research/diagnosis"],
        "price_per_record": "0.25",
        "provenance": {"source": "made for a test", "licence": "none"},
        "source": {
            "kind": "folder",
            "format": "parquet",
            "path": "records",
            "files": [{"name": "p.parquet", "sha256": "00" * 32, "size": 1}],
        },
        "patient_id": "patient_id",
        "organisations": ["demo-ai"],
        "opt_outs": "opt-outs.txt",
        "salt": SALT,
    }
    return DatasetManifest.parse({**base, **changes})


class Held:
    """Records of patients, of whom a cohort matches what `matched` says: any cohort at all."""

    def __init__(
        self, patients: list[str], matched: np.ndarray[Any, Any], broken: np.ndarray[Any, Any]
    ) -> None:
        self.index = Index(patients, broken.astype(np.uint8) * 4, [str(n) for n in range(len(patients))])
        self.aside, self.rendered = (), ()
        self._matched = matched

    def select(self, cohort: Node) -> Any:
        return self._matched

    def read(self, positions: Any) -> Any:
        raise NotImplementedError

    def render(self, positions: Any, renders: Any, sink: Any) -> Any:
        raise NotImplementedError

    def close(self) -> None:
        """Nothing is open."""


JOBS = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32),
        "share": st.floats(0.3, 1),
        "cap": st.integers(60, 2000),
        "opted_out": st.integers(0, 20),
        "broken": st.floats(0, 0.2),
        "kind": st.sampled_from(["train", "train", "evaluate"]),
        "revised": st.sampled_from(
            [
                {},
                {"minimum_cell": 12},
                {"billing_bucket": 50},
                {"price_per_record": "9.00", "title": "revised"},
                {"organisations": ["other-ai"], "purposes": ["research/other"]},
                {"fields": [{"name": "x", "dtype": "float32"}, {"name": "y", "dtype": "int8"}]},
                {"disclosure": {"evaluations": 3}},
            ]
        ),
    }
)


def sides(job: dict[str, Any]) -> tuple[set[str], set[str]] | None:
    """Patients that the job trains on and is measured on; None where the cohort is refused."""
    draw = np.random.default_rng(job["seed"])
    records = draw.permutation(np.repeat(np.arange(PATIENTS), draw.integers(1, 4, PATIENTS)))
    patients = [f"p{number}" for number in records]
    matched = np.isin(records, np.flatnonzero(draw.random(PATIENTS) < job["share"]))
    held = Held(patients, matched, draw.random(len(records)) < job["broken"])
    try:
        chosen: Selection = resolve(
            held,
            manifest(**job["revised"]),
            parse({"all": []}),
            frozenset(f"p{n}" for n in draw.choice(PATIENTS, job["opted_out"], replace=False)),
            max_records=job["cap"],
            seed=job["seed"],
            kind=job["kind"],
        )
    except Refused as refused:
        assert refused.code == "privacy.cohort_refused"
        return None
    return {patients[n] for n in chosen.train}, {patients[n] for n in chosen.test}


@settings(max_examples=60, deadline=None)
@given(jobs=st.lists(JOBS, min_size=2, max_size=4))
def test_no_job_trains_on_what_another_is_measured_on(jobs: list[dict[str, Any]]) -> None:
    """Cohorts, caps, seeds, orders, opt-outs, unreadable records, kinds and revisions of the manifest differ.

    The hospital's key is no part of it at all, so that its rotations change nothing.
    """
    found = [both for job in jobs if (both := sides(job))]
    trained = set().union(*(train for train, _ in found)) if found else set()
    measured = set().union(*(test for _, test in found)) if found else set()
    assert not trained & measured


def test_the_split_is_of_the_salt_and_the_dataset() -> None:
    """A manifest with another salt is another dataset to the split: it is kept when a manifest is revised."""
    job = {"seed": 1, "share": 1.0, "cap": 2000, "opted_out": 0, "broken": 0.0, "kind": "train"}
    same, other = sides({**job, "revised": {}}), sides({**job, "revised": {"salt": "a5" * 32}})
    assert same and other and same[1] != other[1]
    assert sides({**job, "revised": {"test_fraction": 0.3}})[1] > same[1]  # type: ignore[index]
