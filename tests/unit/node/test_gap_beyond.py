"""Nothing is severed for a coordinator that severing can't cut off, nor beside a gap that is not lifted."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rapha.node.config import NodeConfig
from rapha.node.gates.gap import WanGap
from rapha.node.journal import Journal
from rapha.node.posture.airgap import client
from rapha.node.watch import Watch
from rapha.spec.refusals import Refused


@pytest.mark.parametrize("host", ["127.0.0.1", "10.1.2.3", "[::1]"])
def test_a_near_coordinator_refuses_before_anything_is_severed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    refuses(tmp_path, monkeypatch, host, "stays reachable")


def test_without_a_helper_nothing_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuses(tmp_path, monkeypatch, "192.0.2.1", "does not answer")


def refuses(root: Path, monkeypatch: pytest.MonkeyPatch, host: str, said: str) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("it was severed")

    monkeypatch.setattr(client, "sever", never)
    config = NodeConfig.parse(
        {
            "version": 1,
            "profile": "demo",
            "node": "st-marys-1",
            "coordinator": {"url": f"http://{host}:9", "audience": "rapha.test/log"},
            "datasets": [],
            "policy_bundles": ["policy"],
            "runtime": ["numpy"],
            "runtime_name": "rapha-python-3.11",
            "wan_interface": "eth0",
            "air_gap": {"hold": "hold", "socket": "gap.sock", "lan": ["10.0.0.0/8"]},
        }
    )
    with Journal(root / "journal.jsonl") as journal:
        node: Any = SimpleNamespace(
            root=root, state=root, journal=journal, stop=threading.Event(), config=config
        )
        with WanGap(node, "a" * 64, Watch(node, "a" * 64, node.stop)) as gap:
            with pytest.raises(Refused, match=said) as refused:
                gap.sever()
            assert refused.value.code == "posture.seal_failed"
            assert gap.hold is None
        assert [e for e in journal if e.event == "airgap"] == []
    assert not (root / "hold").exists()
