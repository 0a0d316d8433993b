"""Declared transforms can't make a table larger than the node may hold, and the refusal counts nobody."""

from __future__ import annotations

from typing import Any

import pytest

from rapha.node.datasets import control
from rapha.node.datasets.prepare import check_room
from rapha.spec.cohort import All
from rapha.spec.dataset import DatasetManifest
from rapha.spec.refusals import Refused

FIELDS: list[dict[str, Any]] = [
    {"name": "plane", "dtype": "uint8", "shape": [4, 4]},
    {"name": "labs", "dtype": "float32", "ragged": True},
    {"name": "note", "dtype": "string"},
]
BIG = {"plane": [{"resize": [64, 64]}], "labs": [{"length": {"size": 1024}}]}
BUCKET = 10


def request(transforms: dict[str, Any], memory_bytes: int, max_records: int = 10**9) -> control.Resolve:
    files = [{"name": "a", "sha256": "0" * 64, "size": 1}]
    manifest = DatasetManifest.parse(
        {
            **{"dataset": "d", "title": "t", "profile": "tabular.d", "modality": "tabular", "fields": FIELDS},
            **{"purposes": ["research/diagnosis"], "price_per_record": "0", "patient_id": "patient_id"},
            **{"provenance": {"source": "s", "licence": "l"}, "organisations": ["demo-ai"]},
            **{"opt_outs": "o", "salt": "5a" * 32, "billing_bucket": BUCKET},
            "source": {"kind": "folder", "format": "parquet", "path": "r", "files": files},
        }
    )
    return control.Resolve.parse(
        {
            **{"manifest": manifest.dump(), "folder": "/d", "transforms": transforms, "cohort": {"all": []}},
            **{"means": {"workers": 1, "memory_bytes": memory_bytes, "shards": "/s"}, "key_path": "/k"},
            **{"organisation": "demo-ai", "purpose": "research/diagnosis", "max_records": max_records},
            **{"job_id": "ab" * 32, "journal_path": "/j"},
        }
    )


def refuses(asked: control.Resolve, count: int, rendered: tuple[str, ...] = ()) -> bool:
    assert asked.cohort == All(())
    try:
        check_room(asked, asked.manifest.forms(asked.transforms), rendered, count)
    except Refused as refused:
        assert refused.code == "schema.transform"
        assert not any(character.isdigit() for character in refused.detail)
        return True
    return False


@pytest.mark.parametrize("name", ["plane", "labs"])
def test_what_grows_past_the_memory_refuses(name: str) -> None:
    one = request({name: BIG[name]}, memory_bytes=4096 * 1000)
    assert not refuses(one, 900)
    assert refuses(one, 1100)


def test_fields_count_together() -> None:
    assert refuses(request(BIG, memory_bytes=2 * 4096 * 1000), 1100)


def test_a_dtype_alone_never_refuses() -> None:
    assert not refuses(request({"plane": [{"dtype": "float64"}]}, memory_bytes=0), 10**8)


def test_what_is_rendered_has_room_of_its_own() -> None:
    asked = request({"plane": BIG["plane"]}, memory_bytes=0)
    assert refuses(asked, 100)
    assert not refuses(asked, 100, ("plane",))


def test_a_cap_bounds_what_can_be_needed() -> None:
    assert not refuses(request({"plane": BIG["plane"]}, 4096 * 20, max_records=20), 20)


@pytest.mark.parametrize("limit", range(4096 * 1000, 4096 * 1030, 4096 * 5))
def test_no_limit_tells_one_record_from_another_of_its_bucket(limit: int) -> None:
    asked = request({"plane": BIG["plane"]}, memory_bytes=limit)
    for bucket in range(990, 1040, BUCKET):
        assert len({refuses(asked, count) for count in range(bucket, bucket + BUCKET)}) == 1
