"""A small minimum cell is a setting of demos; a production node refuses the dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rapha.node.config import NodeConfig
from rapha.node.node import load_datasets
from rapha.spec.dataset import LEAST_CELL, Field, Provenance
from rapha.spec.refusals import Refused
from rapha.testing import world
from rapha.testing.hospital import write_table

DEMO = NodeConfig.parse(
    {
        **{"version": 1, "profile": "demo", "node": "st-marys-1", "datasets": ["data"]},
        **{"coordinator": {"url": "http://127.0.0.1:1", "audience": "here"}, "wan_waiver": "demo"},
        **{"policy_bundles": ["policy"], "runtime": ["numpy"], "runtime_name": "python-torch"},
    }
)
# What such a node needs besides is refused elsewhere.
PRODUCTION = DEMO.model_copy(update={"profile": "production"})


def dataset(root: Path, **described: Any) -> None:
    write_table(
        root / "data",
        {"x": np.zeros(3, np.float32)},
        ["a", "b", "c"],
        dataset="small",
        title="Small",
        profile="tabular.small",
        modality="tabular",
        fields=(Field(name="x", dtype="float32"),),
        provenance=Provenance(source="made here", licence="none"),
        **described,
    )


@pytest.mark.parametrize("cell", [1, 3, LEAST_CELL - 1])
def test_a_small_cell_is_for_demos(tmp_path: Path, cell: int) -> None:
    dataset(tmp_path, minimum_cell=cell)
    assert load_datasets(tmp_path, DEMO)["tabular.small"][0].minimum_cell == cell
    with pytest.raises(Refused) as caught:
        load_datasets(tmp_path, PRODUCTION)
    assert caught.value.code == "node.config"
    assert "minimum_cell" in caught.value.detail
    world.destroy(tmp_path / "data")


@pytest.mark.parametrize("described", [{}, {"minimum_cell": LEAST_CELL}])
def test_the_usual_cell_is_for_all(tmp_path: Path, described: dict[str, int]) -> None:
    dataset(tmp_path, **described)
    for config in (DEMO, PRODUCTION):
        assert load_datasets(tmp_path, config)["tabular.small"][0].minimum_cell == LEAST_CELL
    world.destroy(tmp_path / "data")
