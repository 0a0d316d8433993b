"""`rapha node doctor`: each requirement of the profile, looked at for real, with what to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rapha.node import config as configs
from rapha.node.config import NodeConfig
from rapha.node.datasets.keys import KeyRing
from rapha.node.datasets.memory import check_swap
from rapha.node.gates.gap import check_beyond, coordinator_address, socket_of
from rapha.node.node import Keys, load_agreements, load_datasets, load_policies
from rapha.node.posture.airgap import client
from rapha.node.posture.airgap.probe import resolve
from rapha.node.posture.interface import Producer
from rapha.runtime.sandbox.bubblewrap import Bubblewrap
from rapha.runtime.sandbox.interface import Sandbox
from rapha.runtime.sandbox.pyruntime import PythonRuntime
from rapha.spec.refusals import Refused


@dataclass(frozen=True, slots=True)
class Check:
    """One requirement: what was found, and the fix if it fails."""

    id: str
    ok: bool
    found: str
    fix: str

    def dump(self) -> dict[str, Any]:
        """JSON form."""
        return {"id": self.id, "ok": self.ok, "found": self.found, "fix": self.fix}


def checks(
    path: Path,
    config: NodeConfig,
    sandbox: Sandbox,
    producer: Callable[[], Producer],
    guards: Sandbox | None = None,
) -> list[Check]:
    """Look at everything; nothing is changed. `guards` is the output guard's sandbox, always bubblewrap."""
    root = path.parent.resolve()

    def trust() -> str:
        found = configs.load_trust(root / config.trust)
        if found.profile != config.profile:
            raise Refused("policy.profile_mismatch", "trust.json is of another profile")
        return f"{len(found.hospitals)} hospital and {len(found.companies)} company roots"

    def agreements() -> str:
        found = load_agreements(root, config, configs.load_trust(root / config.trust))
        if not found:
            raise Refused("policy.agreement", "there is no agreement")
        if config.profile == "production" and any(a.terms.documents is None for a in found):
            raise Refused("policy.agreement", "an agreement names no reviews and BAA/DPA by digest")
        return ", ".join(a.terms.id for a in found)

    def datasets() -> str:
        found = load_datasets(root, config)
        if not found:
            raise Refused("node.dataset_missing", "no dataset is configured")
        return ", ".join(m.dataset for m, _ in found.values())

    def attestation() -> str:
        measurement = producer().measurement
        pinned = load_agreements(root, config, configs.load_trust(root / config.trust))
        if not any(measurement in a.terms.measurements for a in pinned):
            raise Refused("posture.evidence_invalid", f"no agreement accepts measurement {measurement}")
        return f"measurement {measurement}"

    looks: list[tuple[str, Callable[[], str]]] = [
        ("keys", lambda: Keys.load(root / config.keys).receipt.keyid[:16] + "…"),
        ("phi-key", lambda: _phi_keys(KeyRing((root / config.keys).resolve()))),
        ("trust", trust),
        ("agreements", agreements),
        ("datasets", datasets),
        ("policy", lambda: _policies(root, config)),
        ("runtime", lambda: f"{len(PythonRuntime.discover(config.runtime).distributions)} distributions"),
        ("sandbox", lambda: _walls(sandbox)),
        ("swap", lambda: check_swap(config.profile)),
        ("attestation", attestation),
        ("air-gap", lambda: _air_gap(root, config)),
    ]
    if config.sandbox != Bubblewrap.name:  # which the guard needs nevertheless
        at = [name for name, _ in looks].index("sandbox") + 1
        looks.insert(at, ("guard-sandbox", lambda: _walls(guards or Bubblewrap())))
    return [_look(name, look) for name, look in looks]


def walls(sandbox: Sandbox) -> Check:
    """The row `sandbox` alone: the walls that held, or what forbids them and the setting to change."""
    return _look("sandbox", lambda: _walls(sandbox))


def _walls(sandbox: Sandbox) -> str:
    return ", ".join(f"{name}={found}" for name, found in sandbox.check().items())


def _air_gap(root: Path, config: NodeConfig) -> str:
    if config.wan_interface is None:
        if config.wan_waiver is None:
            raise Refused("posture.seal_failed", "neither wan_interface nor wan_waiver is set")
        return f"waived: {config.wan_waiver}"
    told = client.state(socket_of(root, config))
    if told.phase == "unknown":
        raise Refused(
            "posture.seal_failed",
            f"the helper holds what there is: {told.note}; look, then `rapha node airgap restore --force`",
        )
    if told.broken:
        raise Refused("posture.seal_failed", f"the gap under way was broken: {told.broken}")
    if config.wan_interface not in client.interfaces():
        raise Refused("posture.seal_failed", f"there is no interface {config.wan_interface}: see `ip link`")
    check_beyond(config, resolve(*coordinator_address(config)))
    lasting = f", {told.phase} {'for a job' if told.held else 'still'}" if told.phase != "open" else ""
    note = f" ({told.note})" if told.note else ""
    return f"{config.wan_interface} by {config.air_gap.mode}, the helper answers{lasting}{note}"


def _phi_keys(ring: KeyRing) -> str:
    kept = list(ring)
    current = next(key for key in kept if key.current)
    return f"{current.id[:16]}…, owner-only; {len(kept) - 1} older kept"


def _policies(root: Path, config: NodeConfig) -> str:
    found = load_policies(root, config, configs.load_trust(root / config.trust))
    return ", ".join(b.digest[:16] + "…" for b in found)


def _look(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, True, look(), "")
    except Refused as refused:
        return Check(name, False, f"{refused.code}: {refused.detail}", refused.fix)
