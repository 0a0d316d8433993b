"""What the pipeline does with the air gap; the helper itself has tests of its own, in network namespaces."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rapha.node.config import NodeConfig
from rapha.node.gates import gap
from rapha.node.gates.gap import WanGap, coordinator_address
from rapha.node.gates.outcome import Clock
from rapha.node.journal import Journal
from rapha.node.posture.airgap import client
from rapha.node.watch import Watch
from rapha.spec.refusals import Refused

JOB = "a" * 64
CONFIG: dict[str, Any] = {
    "version": 1,
    "profile": "demo",
    "node": "st-marys-1",
    "coordinator": {"url": "http://192.0.2.1:9", "audience": "rapha.test/log"},
    "datasets": [],
    "policy_bundles": ["policy"],
    "runtime": ["numpy"],
    "runtime_name": "rapha-python-3.11",
    "air_gap": {"hold": "hold"},
}
COUNTERS = client.Counters(5, 5, 1, 1, 0, 0, 7)


class Severed:
    """A gap as the helper tells of it."""

    def __init__(self) -> None:
        self.lifts: list[str] = []
        self.refuses: Refused | None = None

    def lift(self) -> client.Counters:
        self.lifts.append("lift")
        if self.refuses:
            raise self.refuses
        return COUNTERS

    def close(self) -> None:
        self.lifts.append("close")


@pytest.fixture
def helper(monkeypatch: pytest.MonkeyPatch) -> Severed:
    made = Severed()
    monkeypatch.setattr(client, "sever", lambda socket, gap, hold: made)
    monkeypatch.setattr(client, "await_open", lambda socket, stopped: None)
    monkeypatch.setattr(gap, "probe", lambda host, port, known: "unreachable")
    return made


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Any]:
    with Journal(tmp_path / "journal.jsonl") as journal:
        yield SimpleNamespace(root=tmp_path, state=tmp_path, journal=journal, stop=threading.Event())


def gap_of(node: Any, **fields: Any) -> WanGap:
    node.config = NodeConfig.parse(CONFIG | fields)
    return WanGap(node, JOB, Watch(node, JOB, node.stop))


def told(node: Any) -> list[str]:
    return [e.data["verdict"] for e in node.journal if e.event == "airgap"]


def test_a_waiver_severs_nothing_and_says_so(made: Any) -> None:
    with gap_of(made, wan_waiver="trial host") as one:
        assert (one.sever(), one.hold, one.moments) == ({}, None, 1)
        section = one.lift(Clock(1))
        one.put_back()
    assert (section.interface, section.waiver, section.wan_bytes_sent) == (None, "trial host", None)
    assert told(made) == []


def test_neither_interface_nor_waiver_refuses(made: Any) -> None:
    with gap_of(made) as one, pytest.raises(Refused, match=r"posture\.seal_failed"):
        one.sever()


def test_an_interface_is_severed_and_lifted_once(made: Any, helper: Severed) -> None:
    with gap_of(made, wan_interface="eth0") as one:
        assert one.sever() == {"wan": "unreachable"}
        assert one.hold is not None and one.moments == 2
        section = one.lift(Clock(1))
        one.put_back()
        assert one.hold is None
    assert helper.lifts == ["lift", "close"]
    assert (section.interface, section.mode, section.wan_bytes_sent, section.lifted) == (
        "eth0",
        "nftables",
        0,
        True,
    )
    assert told(made) == ["severing", "severed", "lifting", "lifted"]


@pytest.mark.parametrize("found", ["reachable", "unknown"])
def test_a_coordinator_that_may_be_within_reach_refuses(
    made: Any, helper: Severed, monkeypatch: pytest.MonkeyPatch, found: str
) -> None:
    monkeypatch.setattr(gap, "probe", lambda host, port, known: found)
    with gap_of(made, wan_interface="eth0") as one:
        with pytest.raises(Refused, match=r"posture\.seal_failed"):
            one.sever()
        one.put_back()
    assert helper.lifts == ["lift", "close"]


def test_bytes_that_left_refuse_the_release(made: Any, helper: Severed) -> None:
    helper.refuses = Refused("posture.seal_failed", "12 bytes were sent")
    with gap_of(made, wan_interface="eth0") as one:
        one.sever()
        with pytest.raises(Refused, match="12 bytes"):
            one.lift(Clock(1))
    assert "lifted" not in told(made)


def test_after_a_job_that_failed_trouble_is_noted_and_ends_nothing(made: Any, helper: Severed) -> None:
    helper.refuses = Refused("posture.seal_failed", "somebody brought it up")
    with gap_of(made, wan_interface="eth0") as one:
        one.sever()
        one.put_back()
    assert told(made)[-1] == "trouble"


def test_a_defect_in_between_lets_go_of_the_lock(made: Any, helper: Severed) -> None:
    with pytest.raises(ZeroDivisionError), gap_of(made, wan_interface="eth0") as one:
        one.sever()
        _ = 1 / 0
    assert one.hold is None
    assert helper.lifts == ["close"]


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://127.0.0.1:9", ("127.0.0.1", 9)),
        ("https://rapha.example", ("rapha.example", 443)),
        ("http://[::1]/x", ("::1", 80)),
    ],
)
def test_the_coordinator_is_where_its_url_says(url: str, address: tuple[str, int]) -> None:
    config = NodeConfig.parse(CONFIG | {"coordinator": {"url": url, "audience": "rapha.test/log"}})
    assert coordinator_address(config) == address
