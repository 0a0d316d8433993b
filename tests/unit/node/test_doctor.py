from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from rapha.node import doctor, setup
from rapha.node.config import NodeConfig
from rapha.node.doctor import Check
from rapha.node.posture.interface import Producer
from rapha.runtime.sandbox.interface import Sandbox
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
    "wan_waiver": "demo",
}


@dataclass(frozen=True)
class Walls:
    """What a sandbox says of this host, or why it can't."""

    refused: Refused | None = None

    def check(self) -> dict[str, str]:
        if self.refused:
            raise self.refused
        return {"seccomp": "on"}


def no_hardware() -> Producer:
    raise Refused("posture.evidence_invalid", "no attestation hardware answers on this host")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    setup.init(tmp_path / "node", NodeConfig.parse(CONFIG))
    return tmp_path / "node"


def look(
    root: Path, walls: Walls | None = None, guards: Walls | None = None, **fields: Any
) -> dict[str, Check]:
    config = NodeConfig.parse({**CONFIG, **fields})
    found = doctor.checks(
        root / "node.json",
        config,
        cast(Sandbox, walls or Walls()),
        no_hardware,
        cast(Sandbox, guards or Walls()),
    )
    return {c.id: c for c in found}


IDS = [
    "keys",
    "phi-key",
    "trust",
    "agreements",
    "datasets",
    "policy",
    "runtime",
    "sandbox",
    "swap",
    "attestation",
]


def test_every_requirement_is_listed_with_what_to_do(root: Path) -> None:
    found = look(root)
    assert list(found) == [*IDS, "air-gap"]
    good = {"keys", "phi-key", "runtime", "sandbox", "swap", "air-gap"}
    assert {c.id for c in found.values() if c.ok} == good
    for check in found.values():
        assert check.dump() == {"id": check.id, "ok": check.ok, "found": check.found, "fix": check.fix}
        assert check.found
        assert bool(check.fix) != check.ok


def test_no_secret_is_shown(root: Path) -> None:
    secret = (root / "keys" / "phi.key").read_bytes()
    shown = "".join(c.found for c in look(root).values())
    assert secret.hex() not in shown
    assert repr(secret) not in shown


BROKEN: dict[str, tuple[str, Callable[[Path], object]]] = {
    "key gone": ("keys", lambda root: (root / "keys" / "receipt.pem").unlink()),
    "key readable by others": ("keys", lambda root: (root / "keys" / "receipt.pem").chmod(0o644)),
    "HPKE key cut": ("keys", lambda root: os.truncate(root / "keys" / "hpke.key", 5)),
    "PHI key cut": ("phi-key", lambda root: os.truncate(root / "keys" / "phi.key", 31)),
    "PHI key of zeros": ("phi-key", lambda root: (root / "keys" / "phi.key").write_bytes(bytes(32))),
    "trust garbage": ("trust", lambda root: (root / "trust.json").write_bytes(b"\xff")),
    "trust a folder": ("trust", lambda root: (root / "trust.json").mkdir()),
    "agreement garbage": ("agreements", lambda root: (root / "agreements" / "a.json").write_text("{")),
}


@pytest.mark.parametrize(("check", "break_"), BROKEN.values(), ids=BROKEN.keys())
def test_what_is_broken_fails_and_the_rest_is_still_looked_at(
    root: Path, check: str, break_: Callable[[Path], object]
) -> None:
    break_(root)
    found = look(root)
    assert not found[check].ok
    assert found[check].fix
    assert len(found) == len(IDS) + 1


FIELDS: dict[str, tuple[str, dict[str, Any]]] = {
    "dataset missing": ("datasets", {"datasets": ["nowhere"]}),
    "policy missing": ("policy", {"policy_bundles": ["nowhere"]}),
    "package missing": ("runtime", {"runtime": ["no-such-distribution-here"]}),
    "air gap not decided": ("air-gap", {"wan_waiver": None}),
}


@pytest.mark.parametrize(("check", "fields"), FIELDS.values(), ids=FIELDS.keys())
def test_a_configuration_that_does_not_hold_fails(root: Path, check: str, fields: dict[str, Any]) -> None:
    assert not look(root, **fields)[check].ok


def test_a_host_without_a_sandbox_fails(root: Path) -> None:
    found = look(root, Walls(Refused("node.sandbox_unavailable", "no user namespaces")))
    assert found["sandbox"].found == "node.sandbox_unavailable: no user namespaces"


def test_the_guard_needs_its_own_sandbox_where_jobs_have_another(root: Path) -> None:
    refused = Walls(Refused("node.sandbox_unavailable", "no user namespaces"))
    assert "guard-sandbox" not in look(root, guards=refused), "the row sandbox says it"
    found = look(root, guards=refused, sandbox="gvisor")
    assert found["sandbox"].ok and not found["guard-sandbox"].ok
    assert found["guard-sandbox"].found == "node.sandbox_unavailable: no user namespaces"
    assert found["guard-sandbox"].fix
    found = look(root, sandbox="gvisor")
    assert list(found) == [*IDS[:8], "guard-sandbox", *IDS[8:], "air-gap"]
    assert found["guard-sandbox"].ok
