"""Verify an OCI image layout (image-spec 1.1), and unpack it while it is verified."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rapha.runtime.image import documents, layers
from rapha.runtime.image.layout import LAYER_TYPES, Layout, Manifest, find_manifest
from rapha.runtime.image.model import (
    EMPTY,
    FULL,
    SLIM,
    AllowList,
    DiffId,
    Files,
    Image,
    Kind,
    Limits,
)
from rapha.runtime.image.place import add_mount_points, place
from rapha.runtime.image.pool import Pool
from rapha.runtime.image.store import Store
from rapha.runtime.image.stream import Budget, decompressed, hashed
from rapha.spec.refusals import Refused


@dataclass(frozen=True, slots=True)
class Summary:
    """What is known of an image without unpacking it; names are those of `Image`."""

    digest: str
    kind: Kind
    entrypoint: tuple[str, ...]
    predict: tuple[str, ...] | None
    diff_ids: tuple[DiffId, ...]
    referrers: tuple[bytes, ...]


def read(
    source: Path, into: Path | None = None, allow: AllowList = EMPTY, limits: Limits | None = None
) -> Image:
    """Read a layout folder or an archive of one as hostile input, and unpack it.

    Each blob is read once: it is hashed, decompressed, hashed again as its diff id, and taken apart in
    one pass. Contents wait under numbers until all of that held, so a refusal leaves nothing behind.

    Steps: 1 to 7 of `find_manifest`; 8 the config; 9 each layer has its digest and, decompressed under a
    limit, its diff id; 10 the layers, applied in order, leave a tree; 11 that tree is written.

    Args:
        source: a folder or a tar.
        into: an absent or empty folder that receives the tree and that nobody else writes. None: a
            temporary folder, removed with the image.
        allow: the bases on which a full image may stand; layers of no such base are the submitter's.
        limits: by default `SLIM` or `FULL`, by the image's kind.

    Raises:
        Refused: an `image.*` code that names the path, blob or field; `node.disk_full`.
    """
    with Store(source, limits or FULL) as opened:
        layout = Layout(opened, limits or FULL)
        manifest = find_manifest(layout)
        config = documents.read_config(manifest.config)  # 8
        layout.limits = limits or (FULL if config.runtime is None else SLIM)
        _check_sizes(layout, manifest, config)
        base = allow.base_of(config.diff_ids) if config.runtime is None else ()
        with _destination(into) as folder, Pool(folder, layout.limits) as pool:
            filesystem = _unpack(layout, manifest, config, len(base), pool)  # 9, 10
            if config.runtime is None:
                add_mount_points(filesystem.tree)
            files, links, added = layers.listing(filesystem.tree, len(base))
            place(filesystem.tree, pool, folder)  # 11
    image = Image(
        digest=manifest.descriptor.digest,
        entrypoint=config.entrypoint,
        predict=config.predict,
        runtime=config.runtime,
        workdir=config.workdir,
        files=Files(folder, files),
        tree=folder,
        links=dict(sorted(links.items())),
        added=frozenset(added),
        base=base,
        referrers=manifest.referrers,
        path=config.path if config.runtime is None else (),
        temporary=into is None,
    )
    if into is None:
        weakref.finalize(image, shutil.rmtree, folder, ignore_errors=True)
    return image


def inspect(source: Path, limits: Limits | None = None) -> Summary:
    """Verify every blob's digest, without unpacking; what is inside the layers is not looked at.

    Raises:
        Refused: what steps 1 to 8 of `read` raise.
    """
    with Store(source, limits or FULL) as opened:
        layout = Layout(opened, limits or FULL)
        manifest = find_manifest(layout)
        config = documents.read_config(manifest.config)
        layout.limits = limits or (FULL if config.runtime is None else SLIM)
        _check_sizes(layout, manifest, config)
        for layer in manifest.layers:
            for _ in layout.chunks(layer):
                pass
    return Summary(
        digest=manifest.descriptor.digest,
        kind="full" if config.runtime is None else "slim",
        entrypoint=config.entrypoint,
        predict=config.predict,
        diff_ids=config.diff_ids,
        referrers=manifest.referrers,
    )


def _check_sizes(layout: Layout, manifest: Manifest, config: documents.Config) -> None:
    layout.store.check_size(layout.limits)
    if len(manifest.layers) > layout.limits.layers:
        raise Refused(
            "image.too_large", f"{len(manifest.layers)} layers, the limit is {layout.limits.layers}"
        )
    if len(manifest.layers) != len(config.diff_ids):
        raise documents.invalid(f"{len(manifest.layers)} layers and {len(config.diff_ids)} diff ids")


def _unpack(
    layout: Layout, manifest: Manifest, config: documents.Config, base: int, pool: Pool
) -> layers.Filesystem:
    budget = Budget(layout.limits)
    filesystem = layers.Filesystem(layout.limits, pool, budget)
    above = layers.FULL_RULES if config.runtime is None else layers.SLIM_RULES
    for number, (layer, diff_id) in enumerate(zip(manifest.layers, config.diff_ids, strict=True)):
        what = f"layer {number}"
        compression = LAYER_TYPES[layer.media_type]
        archive = decompressed(compression, layout.chunks(layer), budget, layout.limits, what)
        rules = layers.BASE_RULES if number < base else above
        filesystem.apply(hashed(archive, diff_id, f"{what}, decompressed,"), what, rules)
    return filesystem


@contextmanager
def _destination(into: Path | None) -> Iterator[Path]:
    """The folder for the tree; as it was, or gone if it was temporary, where unpacking ends in an error."""
    folder = Path(tempfile.mkdtemp(prefix="rapha-image-")) if into is None else into
    if into is not None:
        into.mkdir(parents=True, exist_ok=True)
        if any(into.iterdir()):
            raise Refused("image.layout_invalid", f"{into} is not empty")
    try:
        yield folder
    except BaseException:
        _clear(folder)
        if into is None:
            folder.rmdir()
        raise


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
