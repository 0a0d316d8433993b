"""The row `air-gap` of the doctor asks the helper, and says what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from rapha.node import doctor
from rapha.node.config import NodeConfig
from rapha.node.posture.airgap import client
from rapha.node.posture.airgap.model import State
from rapha.node.posture.interface import Producer
from rapha.runtime.sandbox.interface import Sandbox
from rapha.spec.refusals import Refused

CONFIG: dict[str, Any] = {
    "version": 1,
    "profile": "demo",
    "node": "st-marys-1",
    "coordinator": {"url": "http://192.0.2.1:1", "audience": "here"},
    "datasets": [],
    "policy_bundles": ["policy"],
    "runtime": ["numpy"],
    "runtime_name": "python-torch",
    "wan_interface": "lo",
    "air_gap": {"lan": ["10.20.0.0/16", "fd00:20::/32"], "socket": "gap.sock"},
}
OPEN: dict[str, Any] = {
    "phase": "open",
    "id": None,
    "interface": None,
    "mode": None,
    "held": False,
    "broken": "",
    "note": "",
    "last": None,
}


class Walls:
    def check(self) -> dict[str, str]:
        return {}


def no_hardware() -> Producer:
    raise Refused("posture.evidence_invalid")


def row(root: Path, **fields: Any) -> doctor.Check:
    config = NodeConfig.parse(CONFIG | fields)
    rows = doctor.checks(root / "node.json", config, cast(Sandbox, Walls()), no_hardware)
    return next(one for one in rows if one.id == "air-gap")


def helper(monkeypatch: pytest.MonkeyPatch, **fields: Any) -> None:
    monkeypatch.setattr(client, "state", lambda socket: State.parse(OPEN | fields))


def test_a_helper_that_does_not_answer(tmp_path: Path) -> None:
    found = row(tmp_path)
    assert not found.ok
    assert "does not answer" in found.found and "service started" in found.found
    assert str(tmp_path / "gap.sock") in found.found


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"phase": "unknown", "note": "the journal is damaged"}, "rapha node airgap restore"),
        ({"phase": "severed", "held": True, "broken": "lo was set up"}, "lo was set up"),
    ],
)
def test_a_helper_with_trouble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: dict[str, Any], said: str
) -> None:
    helper(monkeypatch, **told)
    found = row(tmp_path)
    assert (found.ok, said in found.found, bool(found.fix)) == (False, True, True)


def test_an_interface_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(monkeypatch)
    found = row(tmp_path, wan_interface="nowhere0")
    assert not found.ok
    assert "there is no interface nowhere0" in found.found


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.9.9.9", "[::1]", "10.20.30.40", "[fd00:20::7]", "[::ffff:10.20.0.1]", "localhost"],
)
def test_a_coordinator_that_stays_reachable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    helper(monkeypatch)
    found = row(tmp_path, coordinator={"url": f"http://{host}:1", "audience": "here"})
    assert not found.ok
    assert "stays reachable while lo is severed" in found.found


@pytest.mark.parametrize("url", ["http://192.0.2.1:99999", "http://[::1", "http://:80"])
def test_a_coordinator_that_is_no_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    helper(monkeypatch)
    found = row(tmp_path, coordinator={"url": url, "audience": "here"})
    assert (found.ok, found.found.startswith("node.config: coordinator")) == (False, True)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({}, "lo by nftables, the helper answers"),
        ({"phase": "severed", "held": True}, "severed for a job"),
        ({"phase": "restoring", "note": "restoring: still missing 1 routes"}, "still missing 1 routes"),
    ],
)
def test_a_helper_that_is_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: dict[str, Any], said: str
) -> None:
    helper(monkeypatch, **told)
    found = row(tmp_path)
    assert found.ok, found.found
    assert said in found.found


def test_a_waiver_or_nothing(tmp_path: Path) -> None:
    assert row(tmp_path, wan_interface=None, wan_waiver="trial host").found == "waived: trial host"
    assert not row(tmp_path, wan_interface=None).ok
