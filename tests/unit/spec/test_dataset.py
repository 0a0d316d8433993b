from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapha.spec.dataset import CatalogueEntry, DatasetManifest
from rapha.spec.refusals import Refused

MANIFEST: dict[str, Any] = {
    "version": 1,
    "dataset": "breast-fna",
    "title": "Breast aspirates",
    "profile": "tabular.breast-fna",
    "modality": "tabular",
    "fields": [
        {"name": "mean_radius", "dtype": "float32"},
        {"name": "malignant", "dtype": "float32", "label": True},
    ],
    "purposes": ["research/diagnosis"],
    "price_per_record": "0.25",
    "provenance": {"source": "a registry", "licence": "CC BY 4.0"},
    "source": {
        "kind": "folder",
        "format": "parquet",
        "path": "records",
        "files": [{"name": "a.parquet", "sha256": "0" * 64, "size": 10}],
    },
    "patient_id": "patient_id",
    "target": {"label": "malignant"},
    "organisations": ["demo-ai"],
    "consent_basis": "approved registry",
    "opt_outs": "opt-outs.txt",
    "salt": "ab" * 32,
}


def manifest(**changes: Any) -> DatasetManifest:
    return DatasetManifest.parse({**copy.deepcopy(MANIFEST), **changes}, "manifest")


def test_defaults_are_those_of_the_design() -> None:
    made = manifest()
    assert (made.minimum_cell, made.billing_bucket, made.test_fraction) == (10, 10, 0.2)
    assert DatasetManifest.parse(made.dump()) == made


def test_the_digest_covers_everything_and_the_commitment_only_the_data() -> None:
    made, dearer = manifest(), manifest(price_per_record="0.26")
    assert made.digest != dearer.digest and made.commitment == dearer.commitment
    for change in ({"salt": "cd" * 32}, {"dataset": "other"}, {"patient_id": "pid"}):
        assert manifest(**change).commitment != made.commitment


def test_the_order_of_files_is_not_part_of_the_commitment() -> None:
    files = [{"name": n, "sha256": n[0] * 64, "size": 1} for n in ("a.parquet", "b.parquet")]
    one = manifest(source={**MANIFEST["source"], "files": files})
    two = manifest(source={**MANIFEST["source"], "files": files[::-1]})
    assert one.commitment == two.commitment and one.digest != two.digest


def test_the_catalogue_entry_is_bucketed_and_tells_nothing_of_the_hospital() -> None:
    fields = [{**MANIFEST["fields"][0], "path": "t_lab.parquet"}, MANIFEST["fields"][1]]
    made = manifest(fields=fields)
    entry = made.catalogue(records=569, patients=564, runtimes=("py311",), assurance="simulated")
    assert (entry.records, entry.patients) == (560, 560)
    published = repr(entry.dump()).replace("'path': ''", "")
    for secret in ("salt", "opt", "path", "parquet", "patient_id", "sha256", "organisations", "ab" * 32):
        assert secret not in published.replace("'patients'", "")


def test_a_small_dataset_publishes_no_count() -> None:
    made = manifest(billing_bucket=1)
    assert made.catalogue(records=90, patients=9, runtimes=(), assurance="tee").records == 0
    assert made.catalogue(records=90, patients=10, runtimes=(), assurance="tee").patients == 10


def test_an_entry_with_exact_counts_refuses() -> None:
    entry = manifest().catalogue(records=569, patients=564, runtimes=(), assurance="simulated").dump()
    with pytest.raises(Refused, match="billing_bucket"):
        CatalogueEntry.parse({**entry, "records": 569})


def _source(**changes: Any) -> dict[str, Any]:
    return {"source": {**MANIFEST["source"], **changes}}


def _file(**changes: Any) -> dict[str, Any]:
    return _source(files=[{"name": "a.parquet", "sha256": "0" * 64, "size": 10, **changes}])


def _field(**changes: Any) -> dict[str, Any]:
    return {"fields": [{"name": "x", "dtype": "float32", **changes}], "target": None}


BAD: list[tuple[str, dict[str, Any]]] = [
    ("another version", {"version": 2}),
    ("an unknown field", {"script": "import os"}),
    ("a source that climbs", _source(path="../records")),
    ("a source that climbs inside", _source(path="a/../../b")),
    ("a source with NUL", _source(path="a\x00b")),
    ("an empty source", _source(path="")),
    ("an unknown kind", _source(kind="url")),
    ("an unknown format", _source(format="pickle")),
    ("no file", _source(files=[])),
    ("a file twice", _source(files=MANIFEST["source"]["files"] * 2)),
    ("a file with a slash", _file(name="../a.parquet")),
    ("a hidden file", _file(name=".parquet")),
    ("a file with a newline", _file(name="a.parquet\n")),
    ("a short digest", _file(sha256="00")),
    ("an upper-case digest", _file(sha256="A" * 64)),
    ("a negative size", _file(size=-1)),
    ("opt-outs that climb", {"opt_outs": "x/../../y"}),
    ("no opt-outs", {"opt_outs": None}),
    ("a salt of the wrong length", {"salt": "ab"}),
    ("a price as a float", {"price_per_record": 0.25}),
    ("a negative price", {"price_per_record": "-1"}),
    ("an unknown currency", {"currency": "EUR"}),
    ("a minimum cell of nobody", {"minimum_cell": 0}),
    ("a bool for a count", {"minimum_cell": True}),
    ("a bucket of zero", {"billing_bucket": 0}),
    ("no test split", {"test_fraction": 0.0}),
    ("all test split", {"test_fraction": 1.0}),
    ("NaN", {"test_fraction": float("nan")}),
    ("a patient id that is a field", {"patient_id": "mean_radius"}),
    ("a target that is no label", {"target": {"label": "mean_radius"}}),
    ("a target that is not there", {"target": {"label": "other"}}),
    ("no field", {"fields": []}),
    ("a field twice", {"fields": [MANIFEST["fields"][0]] * 2}),
    ("labels only", _field(label=True)),
    ("text only", _field(dtype="string")),
    ("a text label", _field(dtype="string", label=True)),
    ("an unknown type", _field(dtype="object")),
    ("a field with a space", _field(name="a b")),
    ("a purpose with a wildcard", {"purposes": ["research/*"]}),
    ("an organisation that is a path", {"organisations": ["../x"]}),
    ("a title of two lines", {"title": "a\nb"}),
]


@pytest.mark.parametrize("changes", [b[1] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_manifests_refuse(changes: dict[str, Any]) -> None:
    with pytest.raises(Refused) as refused:
        manifest(**changes)
    assert refused.value.code.startswith("schema.field_")


@given(
    st.sampled_from(sorted(MANIFEST)),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=6,
    ),
)
def test_any_value_anywhere_parses_or_refuses(name: str, value: object) -> None:
    try:
        made = manifest(**{name: value})
    except Refused as refused:
        assert refused.code.startswith("schema.field_")
    else:
        assert len(made.digest) == len(made.commitment) == 64
