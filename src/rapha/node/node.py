"""A node put together: configuration, keys, agreements, data, walls, and its one exit."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from rapha.evidence import dsse, hpke
from rapha.evidence.keys import SigningKey
from rapha.node import config as configs
from rapha.node.config import NodeConfig
from rapha.node.datasets.keys import KeyRing
from rapha.node.desk import Desk
from rapha.node.exit import Exit
from rapha.node.journal import Journal
from rapha.node.posture.interface import Producer
from rapha.runtime.policy.bundle import Bundle
from rapha.runtime.sandbox.interface import Sandbox
from rapha.runtime.sandbox.pyruntime import PythonRuntime
from rapha.spec.agreement import Agreement
from rapha.spec.dataset import LEAST_CELL, DatasetManifest
from rapha.spec.refusals import Refused
from rapha.spec.trust import Trust


@dataclass(frozen=True, slots=True)
class SignedAgreement:
    """An agreement that both parties signed."""

    terms: Agreement
    digest: str
    envelope: dsse.EnvelopeDict


@dataclass(frozen=True, slots=True)
class Node:
    """Everything a gate may use. Gates get their inputs from here and from the gates before them."""

    root: Path
    config: NodeConfig
    trust: Trust
    agreements: tuple[SignedAgreement, ...]
    datasets: Mapping[str, tuple[DatasetManifest, Path]]
    policies: tuple[Bundle, ...]
    policy_digest: str
    receipt_key: SigningKey
    hpke_key: X25519PrivateKey
    phi: KeyRing
    runtime: PythonRuntime
    sandbox: Sandbox
    producer: Producer
    journal: Journal
    desk: Desk
    exit: Exit
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def state(self) -> Path:
        """The node's own writable folder."""
        return self.root / self.config.state

    def dataset(self, profile: str) -> tuple[DatasetManifest, Path]:
        """The dataset of a profile and the folder of its manifest.

        Raises:
            Refused: `policy.dataset` if this node offers none.
        """
        try:
            return self.datasets[profile]
        except KeyError:
            raise Refused("policy.dataset", f"this node has no dataset of profile {profile!r}") from None

    def log_file(self, job: str, name: str) -> Path:
        """Where a run's capped stdout and stderr are kept. They stay on the node, also after the job."""
        folder = self.state / "logs" / job
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return folder / f"{name}.log"

    def previous_receipt(self) -> str:
        """Digest of the node's last receipt; zeros before the first."""
        receipts = [e.data["receipt"] for e in self.journal if e.event == "committed"]
        return str(receipts[-1]) if receipts else "0" * 64


@dataclass(frozen=True, slots=True)
class Keys:
    """The node's keys, each read from an owner-only file."""

    receipt: SigningKey
    hpke: X25519PrivateKey
    phi: KeyRing

    @classmethod
    def load(cls, folder: Path) -> Keys:
        """Raises `Refused` (`node.key_unsafe`), also for a PHI key that no job has asked for yet."""
        phi = KeyRing(folder.resolve())
        phi.current()
        return cls(SigningKey.load(folder / "receipt.pem"), hpke.load(folder / "hpke.key"), phi)


def load_agreements(root: Path, config: NodeConfig, trust: Trust) -> tuple[SignedAgreement, ...]:
    """Every agreement in force or not; gates look at the dates."""
    found = configs.load_agreements(root / config.agreements, trust)
    return tuple(SignedAgreement(*parts) for parts in found)


def load_datasets(root: Path, config: NodeConfig) -> dict[str, tuple[DatasetManifest, Path]]:
    """Profile → manifest and folder.

    Raises:
        Refused: `node.config` for two datasets of one profile, or in production for a minimum cell below
            `LEAST_CELL`; `node.dataset_*`.
    """
    found: dict[str, tuple[DatasetManifest, Path]] = {}
    for name in config.datasets:
        folder = (root / name).resolve()
        manifest = read_manifest(folder)
        if manifest.profile in found:
            raise Refused("node.config", f"two datasets have the profile {manifest.profile!r}")
        if config.profile == "production" and manifest.minimum_cell < LEAST_CELL:
            raise Refused(
                "node.config", f"{manifest.dataset}: a minimum_cell below {LEAST_CELL} is for demos"
            )
        found[manifest.profile] = (manifest, folder)
    return found


def read_manifest(folder: Path) -> DatasetManifest:
    """`manifest.json` of a dataset folder. Raises `Refused` (`node.dataset_*`)."""
    from rapha.evidence import canonical

    path = folder / "manifest.json"
    try:
        return DatasetManifest.parse(canonical.loads(path.read_bytes()), path.name)
    except OSError as error:
        raise Refused("node.dataset_missing", f"{path}: {error.strerror}") from None
    except Refused as refused:
        raise Refused("node.dataset_invalid", f"{path.name}: {refused.detail}") from None


def load_policies(root: Path, config: NodeConfig, trust: Trust) -> tuple[Bundle, ...]:
    """The policy bundles, which must be exactly the pinned ones.

    Raises:
        Refused: `policy.error`.
    """
    bundles = tuple(Bundle.load(root / name) for name in config.policy_bundles)
    if sorted(b.digest for b in bundles) != sorted(trust.policy_bundles):
        raise Refused("policy.error", "the policy bundles on disk are not the ones pinned in trust.json")
    return bundles
