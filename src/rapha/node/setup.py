"""`rapha node init`: a work directory with keys, configuration and the shipped policy."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rapha.evidence import hpke
from rapha.evidence.keys import SigningKey
from rapha.node.config import NodeConfig
from rapha.node.datasets.keys import CURRENT
from rapha.node.datasets.pseudonyms import HospitalKey
from rapha.runtime.policy.bundle import DEFAULT
from rapha.spec.refusals import Refused
from rapha.spec.trust import Trust


def init(root: Path, config: NodeConfig) -> None:
    """Make the folders, every key the node needs, and `node.json`.

    Raises:
        Refused: `policy.conflict` if there is a node already.
    """
    if (root / "node.json").exists():
        raise Refused("policy.conflict", f"{root} is already a node's work directory")
    keys = root / config.keys
    for folder in (root, keys, root / config.state, root / config.agreements):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    SigningKey.generate().save(keys / "receipt.pem")
    SigningKey.generate().save(keys / "agent.pem")
    hpke.generate(keys / "hpke.key")
    HospitalKey.create(keys / CURRENT)
    for name in config.policy_bundles:
        shutil.copytree(DEFAULT, root / name)
    write_json(root / "node.json", config.dump())


def pin_trust(root: Path, config: NodeConfig, trust: Trust) -> None:
    """Write the node's own trust file."""
    write_json(root / config.trust, trust.dump())


def pin_agreement(root: Path, config: NodeConfig, name: str, envelope: dict[str, Any]) -> None:
    """Put an agreement where the node reads it."""
    write_json(root / config.agreements / f"{name}.json", envelope)


def offer(root: Path, config: NodeConfig, datasets: Sequence[str]) -> NodeConfig:
    """Set which dataset folders the node offers."""
    changed = config.model_copy(update={"datasets": tuple(datasets)})
    write_json(root / "node.json", changed.dump())
    return changed


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file as a whole."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
