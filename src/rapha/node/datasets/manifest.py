"""Read a manifest file."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from rapha.evidence.canonical import loads
from rapha.node.sources.folder import read_small
from rapha.spec.dataset import DatasetManifest

MAX_BYTES: Final = 16 * 2**20


def load(path: Path) -> DatasetManifest:
    """The manifest at `path`; paths inside it are relative to its folder.

    Raises:
        Refused: `node.dataset_missing`, `node.dataset_invalid` (a link or special file), `schema.*` with
            the field that is wrong.
    """
    return DatasetManifest.parse(loads(read_small(path.name, path.parent, MAX_BYTES)), "manifest")
