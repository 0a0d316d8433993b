"""`rapha node ledger`: what it says where nothing can be found out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rapha.cli.main import run
from rapha.node.config import NodeConfig
from rapha.node.setup import init


@pytest.fixture
def work(tmp_path: Path) -> Path:
    config = NodeConfig.parse(
        {
            **{"version": 1, "profile": "demo", "node": "n-1", "datasets": [], "policy_bundles": ["policy"]},
            "coordinator": {"url": "http://127.0.0.1:1", "audience": "rapha.test/log"},
            **{"runtime": ["numpy"], "runtime_name": "python", "wan_waiver": "a test"},
        }
    )
    init(tmp_path / "node", config)
    return tmp_path / "node"


def test_an_unknown_dataset_can_not_be_checked(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check = ["node", "ledger", "check", "nothing", "--work", str(work)]
    assert run([*check, "--json"]) == 3
    said = capsys.readouterr()
    reason = "policy.dataset: this node has no dataset 'nothing'"
    assert json.loads(said.out) == {"ok": False, "reason": reason, "used_up": []}
    assert reason in said.err
    assert run(check) == 3
    assert capsys.readouterr().out == ""


def test_the_ledger_of_an_unknown_dataset_is_not_shown(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["node", "ledger", "show", "nothing", "--work", str(work)]) == 1
    assert "policy.dataset" in capsys.readouterr().err
