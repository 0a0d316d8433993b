from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from rapha.node import config as configs
from rapha.node import setup
from rapha.node.config import NodeConfig
from rapha.node.node import Keys
from rapha.spec.refusals import Refused

CONFIG: dict[str, Any] = {
    "version": 1,
    "profile": "demo",
    "node": "st-marys-1",
    "coordinator": {"url": "http://127.0.0.1:1", "audience": "here"},
    "datasets": [],
    "policy_bundles": ["policy"],
    "runtime": ["numpy"],
    "runtime_name": "python-torch",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    setup.init(tmp_path / "node", NodeConfig.parse(CONFIG))
    return tmp_path / "node"


def test_a_new_node_has_its_own_keys_that_only_its_owner_reads(root: Path, tmp_path: Path) -> None:
    for name in ("receipt.pem", "agent.pem", "hpke.key", "phi.key"):
        assert stat.S_IMODE((root / "keys" / name).stat().st_mode) == 0o600
    assert stat.S_IMODE((root / "keys").stat().st_mode) == 0o700
    assert len((root / "keys" / "phi.key").read_bytes()) == 32
    other = tmp_path / "other"
    setup.init(other, NodeConfig.parse(CONFIG))
    assert Keys.load(root / "keys").receipt.keyid != Keys.load(other / "keys").receipt.keyid
    assert (root / "keys" / "phi.key").read_bytes() != (other / "keys" / "phi.key").read_bytes()


def test_the_configuration_and_the_shipped_policy_are_there(root: Path) -> None:
    assert configs.load(root / "node.json") == NodeConfig.parse(CONFIG)
    assert list((root / "policy").rglob("*.rego"))


def test_a_node_is_never_set_up_over_another(root: Path) -> None:
    before = (root / "keys" / "receipt.pem").read_bytes()
    with pytest.raises(Refused) as caught:
        setup.init(root, NodeConfig.parse(CONFIG))
    assert caught.value.code == "policy.conflict"
    assert (root / "keys" / "receipt.pem").read_bytes() == before


def test_keys_that_are_there_are_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "receipt.pem").write_text("kept")
    with pytest.raises(FileExistsError):
        setup.init(tmp_path, NodeConfig.parse(CONFIG))
    assert (tmp_path / "keys" / "receipt.pem").read_text() == "kept"


def test_datasets_are_offered_by_replacing_the_whole_file(root: Path) -> None:
    changed = setup.offer(root, NodeConfig.parse(CONFIG), ["datasets/a"])
    assert changed.datasets == ("datasets/a",)
    assert configs.load(root / "node.json") == changed
    assert [p.name for p in root.iterdir() if p.name.startswith(".")] == []


def test_an_agreement_is_put_where_the_node_reads_it(root: Path) -> None:
    setup.pin_agreement(root, NodeConfig.parse(CONFIG), "a-1", {"payload": ""})
    assert json.loads((root / "agreements" / "a-1.json").read_text()) == {"payload": ""}
