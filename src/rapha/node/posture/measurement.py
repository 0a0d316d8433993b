"""What runs on this node, as one digest that the parties can put into their agreement."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Final

import rapha
import rapha_trainer
from rapha.evidence import canonical

_SUFFIXES: Final = (".py", ".bpf", ".rego", ".json", ".html", ".css", ".yaml")


def measure(runtime_digest: str) -> str:
    """Hex SHA-256 over our own installed files, the interpreter's version and the job's runtime.

    Without hardware this is the node's own word; with a TEE, MRTD or MRENCLAVE take its place.
    """
    files: dict[str, str] = {}
    for package in (rapha, rapha_trainer):
        root = Path(str(package.__file__)).parent
        for path in sorted(root.rglob("*")):
            if path.suffix in _SUFFIXES and "__pycache__" not in path.parts and path.is_file():
                name = f"{root.name}/{path.relative_to(root).as_posix()}"
                files[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    version = ".".join(map(str, sys.version_info[:3]))
    return canonical.digest({"files": files, "python": version, "runtime": runtime_digest})
