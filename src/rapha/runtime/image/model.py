"""What an image is once it has been read: plain files on disk under plain paths, and what starts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Annotated, BinaryIO, Final, Literal, Self

from pydantic import Field, StringConstraints

from rapha.spec.base import Model, Name

RUNTIME_LABEL: Final = "rapha.runtime"
"""Config label that names the node's runtime the image is made for."""
PREDICT_LABEL: Final = "rapha.predict"
"""Config label that carries the predict entry as a JSON array of strings."""
WORKDIR: Final = "/app"
"""Where the submitter's files are inside the sandbox."""
APP: Final = "app/"
"""Prefix of those files in `Image.files`."""
MOUNT_POINTS: Final = ("proc", "dev", "tmp", "rapha/in", "rapha/out", "rapha/lib", "rapha/node")
"""Folders that the sandbox covers; a full image may name them, and puts nothing into them."""

MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE: Final = "application/vnd.oci.image.index.v1+json"
CONFIG_TYPE: Final = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE: Final = "application/vnd.oci.image.layer.v1.tar"
EMPTY_TYPE: Final = "application/vnd.oci.empty.v1+json"
STATEMENT_TYPE: Final = "application/vnd.in-toto+json"
"""Artifact type of a referrer that carries a statement about the image."""
ENVELOPE_TYPE: Final = "application/vnd.dsse.envelope.v1+json"
"""Media type of the statement's DSSE envelope, as cosign has it."""

Kind = Literal["slim", "full"]
DiffId = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
"""Digest of a layer's uncompressed archive."""
_GIB: Final = 1024**3


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of a hostile image is read, in bytes unless said otherwise. Past one: `image.too_large`."""

    stored: int = 256 * 1024 * 1024
    """All blobs together, as stored."""
    unpacked: int = 256 * 1024 * 1024
    """All layers together, after decompression; a hard link counts as a copy."""
    entries: int = 20_000
    """Archive entries over all layers, and files and folders that they make."""
    layers: int = 32
    path: int = 1024
    """Bytes of one path in UTF-8, also after links are followed."""
    component: int = 255
    """Bytes of one path component (NAME_MAX)."""
    depth: int = 32
    """Components of one path, also after links are followed."""
    json: int = 1024 * 1024
    """One JSON document: index, manifest or config."""
    names: int = 16 * 1024 * 1024
    """All paths and link targets together: they are held in memory."""
    ratio: int = 100
    """Times that compressed layers may grow, beyond the first 64 MiB."""
    keep_free: int = 256 * 1024 * 1024
    """Room that is left on the disk; less is `node.disk_full`."""


SLIM: Final = Limits()
FULL: Final = Limits(
    stored=16 * _GIB, unpacked=40 * _GIB, entries=300_000, layers=128, depth=64, names=64 * 1024 * 1024
)
DEFAULT_LIMITS: Final = SLIM


class Runtime(Model):
    """A base that the node's institution accepts: a name and its layers' diff ids, lowest first."""

    name: Name
    layers: Annotated[tuple[DiffId, ...], Field(min_length=1, max_length=128)]


class AllowList(Model):
    """The bases on which full images may stand; empty accepts none."""

    runtimes: tuple[Runtime, ...] = ()

    def base_of(self, diff_ids: tuple[str, ...]) -> tuple[str, ...]:
        """The longest entry with which `diff_ids` begin; empty if there is none."""
        found = [r.layers for r in self.runtimes if diff_ids[: len(r.layers)] == r.layers]
        return max(found, key=len, default=())


EMPTY: Final = AllowList()


@dataclass(frozen=True, slots=True)
class File:
    """One file of an unpacked image.

    Attributes:
        path: where it is on this machine; below `Image.tree`, mode 0444 or 0555.
        size: bytes.
        executable: whether the image gives anyone leave to run it.
    """

    path: Path
    size: int
    executable: bool = False

    def open(self) -> BinaryIO:
        """Open it for reading; a link put in its place is not followed (OSError)."""
        return os.fdopen(os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb")

    def read(self) -> bytes:
        """All of it. Look at `size` first: a full image's files may be larger than memory."""
        with self.open() as file:
            return file.read()

    def head(self, n: int) -> bytes:
        """The first `n` bytes, or fewer where there are fewer."""
        with self.open() as file:
            return file.read(n)


class Files(Mapping[str, File]):
    """Files by path, held as one number each: hundreds of thousands fit in little memory."""

    __slots__ = ("_about", "_tree")

    def __init__(self, tree: Path, about: Mapping[str, tuple[int, bool]]) -> None:
        """`about` gives size and executability by path; sorted by path here."""
        self._tree = tree
        self._about = {path: 2 * size + runs for path, (size, runs) in sorted(about.items())}

    def __getitem__(self, path: str) -> File:
        about = self._about[path]
        return File(self._tree / path, about >> 1, bool(about & 1))

    def __contains__(self, path: object) -> bool:
        return path in self._about

    def __iter__(self) -> Iterator[str]:
        return iter(self._about)

    def __len__(self) -> int:
        return len(self._about)


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Image:
    """A verified image, unpacked: what was hashed is what was written, and what is scanned and mounted.

    A context manager: where `read` made the folder itself, `close` removes it, and so does losing the
    last reference.

    Attributes:
        digest: `sha256:` and the hex digest of the manifest's bytes.
        entrypoint: argv that starts the job: the config's Entrypoint followed by its Cmd (image-spec
            1.1, config.md). Empty when the config names neither.
        predict: argv that computes predictions, or None.
        runtime: the runtime label, or None.
        workdir: absolute path in which both start.
        files: by path relative to the root (`app/train.py`), sorted by path; without links. The config's
            user, volumes, ports and environment are not here: the sandbox never honours them.
        tree: the folder on this machine that holds the root.
        links: target, as the image spells it, by path of the symbolic link.
        added: paths of files and links that layers above the allow-listed base added or changed; all of
            them where there is no such base.
        base: the diff ids of the allow-listed base; empty for slim images and unknown bases.
        referrers: DSSE envelopes that came with the layout and name this image; not verified here.
        path: PATH of a full image's config, if it is plain absolute folders.
    """

    digest: str
    entrypoint: tuple[str, ...]
    predict: tuple[str, ...] | None
    runtime: str | None
    workdir: str
    files: Mapping[str, File] = field(compare=False)  # the digest says which they are
    tree: Path = field(compare=False)
    links: Mapping[str, str] = field(default_factory=dict)
    added: frozenset[str] = frozenset()
    base: tuple[str, ...] = ()
    referrers: tuple[bytes, ...] = ()
    path: tuple[str, ...] = ()
    temporary: bool = field(default=False, compare=False, repr=False)

    @property
    def kind(self) -> Kind:
        """`slim`: source for the node's runtime that its label names; `full`: a root of its own."""
        return "full" if self.runtime is None else "slim"

    def close(self) -> None:
        """Remove the tree if `read` made the folder for it; a second call does nothing."""
        if self.temporary:
            shutil.rmtree(self.tree, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
