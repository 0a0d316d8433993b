"""What an image is once it has been read: plain bytes under plain paths, and what starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

RUNTIME_LABEL: Final = "rapha.runtime"
"""Config label that names the node's runtime the image is made for."""
PREDICT_LABEL: Final = "rapha.predict"
"""Config label that carries the predict entry as a JSON array of strings."""
WORKDIR: Final = "/app"
"""Where the submitter's files are inside the sandbox."""
APP: Final = "app/"
"""Prefix of those files in `Image.files`."""

MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE: Final = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE: Final = "application/vnd.oci.image.layer.v1.tar"


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of a hostile image is read, in bytes unless said otherwise. Past one: `image.too_large`."""

    stored: int = 256 * 1024 * 1024
    """All blobs together, as stored."""
    unpacked: int = 256 * 1024 * 1024
    """All layers together, after decompression."""
    entries: int = 20_000
    """Archive entries over all layers."""
    layers: int = 32
    path: int = 1024
    """Bytes of one path in UTF-8."""
    component: int = 255
    """Bytes of one path component (NAME_MAX)."""
    depth: int = 32
    """Components of one path."""
    json: int = 1024 * 1024
    """One JSON document: index, manifest or config."""


DEFAULT_LIMITS: Final = Limits()


@dataclass(frozen=True, slots=True)
class Image:
    """A verified image, held in memory: what was hashed is what is scanned and unpacked.

    Attributes:
        digest: `sha256:` and the hex digest of the manifest's bytes.
        entrypoint: argv that starts the job: the config's Entrypoint followed by its Cmd (image-spec
            1.1, config.md). Empty when the config names neither.
        predict: argv that computes predictions, or None.
        runtime: the runtime label, or None.
        workdir: absolute path in which both start.
        files: contents by path relative to the root (`app/train.py`), sorted by path. The config's
            environment, user and volumes are not here: the sandbox never honours them.
    """

    digest: str
    entrypoint: tuple[str, ...]
    predict: tuple[str, ...] | None
    runtime: str | None
    workdir: str
    files: Mapping[str, bytes]
