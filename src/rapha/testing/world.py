"""A whole small world on one machine: a company, a hospital with its node, their agreement and roots.

Used by the demo, the tests and the benchmarks. Everything in it is made by the same code as in production;
only the TEE is simulated, and the data is public.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from rapha.evidence import dsse
from rapha.evidence.keys import SigningKey
from rapha.evidence.steps.case import AUDIENCE_ALL
from rapha.node.config import NodeConfig
from rapha.node.posture.measurement import measure
from rapha.node.setup import init, offer, pin_agreement, pin_trust, write_json
from rapha.researcher.project import RUNTIME, Project
from rapha.researcher.project import init as init_project
from rapha.runtime.policy.bundle import Bundle
from rapha.runtime.sandbox.pyruntime import PythonRuntime
from rapha.spec.agreement import Agreement
from rapha.spec.trust import Trust
from rapha.spec.units import format_time
from rapha.testing import hospital, imaging

NODE: Final = "st-elsewhere-1"
HOSPITAL: Final = "st-elsewhere"
COMPANY: Final = "acme-diagnostics"
OWNERS: Final = ("guardian", "dpo")
REVIEWERS: Final = ("reviewer", "statistician")
WAIVER: Final = "demo: one machine, no WAN interface; the trainer has no route of its own"
RUNTIME_PACKAGES: Final = ("torch", "numpy", "safetensors")
TERMS: Final = hospital.Terms(
    organisations=(COMPANY,),
    purposes=("research/diagnosis", "research/prognosis"),
    price_per_record="0",
)
"""Free of charge: nothing is due, so no settlement is needed."""
WRITERS: Final[dict[str, hospital.Writer]] = {
    "tabular": hospital.write_breast_fna,
    "outcomes": hospital.write_flchain,
    "dicom": imaging.write_dicom,
    "evaluate": hospital.write_flchain,
    "private": hospital.write_flchain,
}


@dataclass(frozen=True, slots=True)
class World:
    """Where everything is."""

    root: Path
    case: str

    @property
    def node(self) -> Path:
        """The node's work directory."""
        return self.root / "hospital" / "node"

    @property
    def people(self) -> Path:
        """Key files of the hospital's owners and reviewers."""
        return self.root / "hospital" / "people"

    @property
    def data(self) -> Path:
        """The read-only dataset folder."""
        return self.root / "hospital" / "data" / self.case

    @property
    def company(self) -> Path:
        """The company's folder: its keys and jobs."""
        return self.root / "company"

    @property
    def developer(self) -> Path:
        """The developer's key."""
        return self.company / "developer.pem"

    @property
    def project(self) -> Project:
        """The job."""
        return Project(self.company / "job")

    @property
    def trust(self) -> Path:
        """The auditor's and researcher's trust file."""
        return self.root / "trust.json"

    @property
    def agreement(self) -> Path:
        """The signed agreement, as the researcher holds it."""
        return self.company / "agreement.json"


def create(
    root: Path,
    case: str,
    *,
    coordinator_url: str,
    origin: str,
    log_key: str,
    quantum_s: int = 1,
    writer: hospital.Writer | None = None,
) -> World:
    """Make a world whose node dials `coordinator_url`.

    Args:
        case: one of `WRITERS`, and the template of that name.
        origin, log_key: name and public key of the coordinator's log.
        writer: what writes the hospital's dataset, in place of the case's own.
    """
    world = World(root, case)
    config = _config(coordinator_url, origin, quantum_s)
    init(world.node, config)
    (writer or WRITERS[case])(world.data, TERMS)
    config = offer(world.node, config, [str(world.data.resolve())])
    keys = _people(world)
    runtime = PythonRuntime.discover(RUNTIME_PACKAGES)
    terms = _agreement(world, keys, measure(runtime.digest))
    trust = _trust(world, config, keys, origin, log_key)
    pin_trust(world.node, config, trust)
    write_json(world.trust, trust.dump())
    envelope = dsse.sign(
        "agreement",
        {"agreement": "0" * 64},
        terms.dump(),
        profile="demo",
        audience=AUDIENCE_ALL,
        keys=[keys["hospital"], keys["company"]],
    )
    pin_agreement(world.node, config, terms.id, envelope)
    write_json(world.agreement, envelope)
    init_project(case, world.project.folder)
    return world


def _config(coordinator_url: str, origin: str, quantum_s: int) -> NodeConfig:
    return NodeConfig.parse(
        {
            "version": 1,
            "profile": "demo",
            "node": NODE,
            "coordinator": {"url": coordinator_url, "audience": origin},
            "datasets": [],
            "policy_bundles": ["policy"],
            "runtime": list(RUNTIME_PACKAGES),
            "runtime_name": RUNTIME,
            "wan_waiver": WAIVER,
            "quantum_s": quantum_s,
        }
    )


def destroy(root: Path) -> None:
    """Delete a world, read-only data included."""
    if not root.exists():
        return
    for path in [root, *root.rglob("*")]:
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o700)
    shutil.rmtree(root)


def _people(world: World) -> dict[str, SigningKey]:
    places = {
        "hospital": world.people / "hospital.pem",
        "company": world.company / "company.pem",
        "developer": world.developer,
        "tee": world.node / "keys" / "tee-root.pem",
        **{name: world.people / f"{name}.pem" for name in (*OWNERS, *REVIEWERS)},
    }
    keys = {}
    for name, path in places.items():
        keys[name] = SigningKey.generate()
        keys[name].save(path)
    return keys


def _agreement(world: World, keys: dict[str, SigningKey], measurement: str) -> Agreement:
    from rapha.node.node import read_manifest

    manifest = read_manifest(world.data)
    now = datetime.now(UTC)
    text = {name: key.verify_key.to_text() for name, key in keys.items()}
    receipt_key = SigningKey.load(world.node / "keys" / "receipt.pem").verify_key.to_text()
    return Agreement.parse(
        {
            "id": f"{COMPANY}-{world.case}",
            "hospital": {"id": HOSPITAL, "name": "St Elsewhere Hospital", "key": text["hospital"]},
            "company": {"id": COMPANY, "name": "Acme Diagnostics", "key": text["company"]},
            "not_before": format_time(now - timedelta(days=1)),
            "not_after": format_time(now + timedelta(days=365)),
            "developers": [{"name": "A. Developer", "role": "developer", "key": text["developer"]}],
            "approvers": [
                {"name": "C. Guardian", "role": "Caldicott Guardian", "key": text["guardian"]},
                {"name": "D. Officer", "role": "Data Protection Officer", "key": text["dpo"]},
            ],
            "approvals_required": 2,
            "reviewers": [
                {"name": "R. Reviewer", "role": "output reviewer", "key": text["reviewer"]},
                {"name": "S. Statistician", "role": "disclosure statistician", "key": text["statistician"]},
            ],
            "reviews_required": 2,
            "nodes": [{"id": NODE, "receipt_key": receipt_key}],
            "measurements": [measurement],
            "datasets": [manifest.dataset],
            "purposes": list(manifest.purposes),
            "max_output_bytes": 1048576,
            "price_per_record": manifest.price_per_record,
            "billing_bucket": manifest.billing_bucket,
            "currency": "USDC",
            "least_assurance": "simulated",
            "documents": None,
        }
    )


def _trust(world: World, config: NodeConfig, keys: dict[str, SigningKey], origin: str, log_key: str) -> Trust:
    bundles = [Bundle.load(world.node / name).digest for name in config.policy_bundles]
    return Trust.parse(
        {
            "version": 1,
            "profile": "demo",
            "hospitals": [keys["hospital"].verify_key.to_text()],
            "companies": [keys["company"].verify_key.to_text()],
            "log": {"origin": origin, "key": log_key},
            "policy_bundles": bundles,
            "simulated_tee": [keys["tee"].verify_key.to_text()],
            "least_assurance": "simulated",
        }
    )
