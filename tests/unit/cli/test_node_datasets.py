from __future__ import annotations

import json
from pathlib import Path

import pytest

from rapha.cli import node_datasets
from rapha.cli.main import run
from rapha.node.config import NodeConfig
from rapha.node.datasets import control
from rapha.node.setup import init, offer
from rapha.testing.hospital import write_breast_fna


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
    write_breast_fna(tmp_path / "data")
    offer(tmp_path / "node", config, [str(tmp_path / "data")])
    return tmp_path / "node"


def test_the_datasets_are_listed(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["node", "datasets", "--work", str(work)]) == 0
    assert capsys.readouterr().out.split()[:2] == ["breast-fna", "tabular.breast-fna"]
    assert run(["node", "datasets"]) == 2


def test_a_dataset_is_counted_and_what_fell_out_is_named(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check = ["node", "datasets", "check", "breast-fna", "--work", str(work)]
    assert run([*check, "--json"]) == 0
    counted = json.loads(capsys.readouterr().out)
    assert counted == {
        **{"records": 564, "patients": 564, "reasons": {}, "faults": []},
        **{"set_aside": 0, "aside": []},
    }
    assert run(check) == 0
    printed = capsys.readouterr().out
    assert "564  records of 564 patients" in printed and "set aside" not in printed


def test_what_is_no_record_is_counted_and_named(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    named = [
        control.Fault(locator=where, reason=what) for where, what in (("DIR", "dicomdir"), ("x", "link"))
    ]
    described = control.Described(
        records=1, patients=1, reasons={}, faults=(), set_aside=1500, aside=tuple(named)
    )
    monkeypatch.setattr(node_datasets, "_describe", lambda work, name: described)
    assert run(["node", "datasets", "check", "breast-fna", "--work", str(work)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1:] == [["1500", "set", "aside:", "no", "record"], ["dicomdir", "DIR"], ["link", "x"]]


def test_an_unknown_dataset_is_a_no(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["node", "datasets", "check", "nothing", "--work", str(work)]) == 1
    assert "policy.dataset" in capsys.readouterr().err
