"""Build an OCI image layout (image-spec 1.1) from a folder, without a container engine.

The bytes depend on nothing but the files' paths and contents, the entries and the runtime's name:
no times, owners, modes, folder order or compressor version. So two people who build the same source
get the same digest, and the digest can be signed and compared.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rapha.evidence import canonical
from rapha.runtime.image import secrets, store, ustar
from rapha.runtime.image.documents import read_config
from rapha.runtime.image.layout import LAYER_TYPES, Descriptor, Layout, find_manifest
from rapha.runtime.image.model import (
    APP,
    CONFIG_TYPE,
    DEFAULT_LIMITS,
    FULL,
    LAYER_TYPE,
    MANIFEST_TYPE,
    PREDICT_LABEL,
    RUNTIME_LABEL,
    WORKDIR,
)
from rapha.runtime.image.paths import Spellings, clean, parents
from rapha.runtime.image.reader import inspect, read
from rapha.runtime.image.stream import Compression
from rapha.spec.refusals import Refused

SKIPPED: Final = frozenset({"__pycache__", "keys", "job.yaml"})
"""Names that are never shipped, besides those that start with a dot: bytecode is rebuilt, `keys/` holds
the submitter's keys, and a changed budget in `job.yaml` must not change the image."""
_MARKER: Final = "rapha.incomplete"
_SUFFIXES: Final[dict[Compression, str]] = {"none": "", "gzip": "+gzip", "zstd": "+zstd"}
# What a base says about starting it, which the job's own entry replaces.
_REPLACED: Final = frozenset({"Cmd", "Entrypoint", "Healthcheck", "OnBuild", "ArgsEscaped"})


def build(
    source: Path, out: Path, *, entrypoint: Sequence[str], predict: Sequence[str] | None, runtime: str
) -> str:
    """Write the files of `source` as `/app` of an image layout at `out`; the manifest's digest, `sha256:…`.

    Left out: names in `SKIPPED` and names that start with a dot, at any depth; other OCI layouts; empty
    folders. `out` may be inside `source`; an earlier layout there is replaced.

    Raises:
        Refused: `image.not_found` for a source that can't be read, `image.file_type` for links and
            special files, `image.path_unsafe`, `image.too_large`, `image.secret` for a file that looks
            like a key, `image.entrypoint_missing` for an empty entry.
    """
    layer = _layer(source, out, entrypoint, predict)
    labels = {RUNTIME_LABEL: runtime, **_predict_label(predict)}
    config = canonical.dumps(
        {
            # The layer is source code for the node's runtime; image-spec requires an architecture, and
            # naming the builder's own would make the digest depend on the machine.
            "architecture": "amd64",
            "os": "linux",
            "config": {"Entrypoint": list(entrypoint), "WorkingDir": WORKDIR, "Labels": labels},
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
        }
    )
    return _write_image(out, config, [descriptor_of(LAYER_TYPE, layer)], [(_digest(layer), (layer,))])


def build_full(
    source: Path, out: Path, *, base: Path, entrypoint: Sequence[str], predict: Sequence[str] | None
) -> str:
    """As `build`, on the layers of `base`, an OCI layout or an archive of one, which stay as they are.

    The result names no runtime of the node: its own root is what runs. It is the same bytes for the same
    base and source. Of the base's config all stays but what starts it.

    Raises:
        Refused: what `build` raises, and for the base what `inspect` raises.
    """
    layer = _layer(source, out, entrypoint, predict)
    with store.Store(base, FULL) as opened:
        below = Layout(opened, FULL)
        manifest = find_manifest(below)
        read_config(manifest.config)
        if len(manifest.layers) >= FULL.layers:
            raise Refused("image.too_large", f"the base has {len(manifest.layers)} layers, room for none")
        config = _config_on(manifest.config, layer, list(entrypoint), predict)
        layers = [*map(_layer_of_base, manifest.layers), descriptor_of(LAYER_TYPE, layer)]
        blobs = [(blob.digest, below.chunks(blob)) for blob in manifest.layers]
        return _write_image(out, config, layers, [*blobs, (_digest(layer), (layer,))])


def pack(layout: Path, archive: Path) -> None:
    """Write the layout as one tar, for upload; the same layout gives the same bytes.

    Raises:
        Refused: what `read` does for a slim image, what `inspect` does for a full one; a layout that
            would be refused is not packed.
    """
    if inspect(layout).kind == "slim":
        read(layout).close()
    temporary = archive.with_name(archive.name + ".tmp")
    with store.Store(layout, FULL) as opened:
        files = ((name, size, opened.chunks(name)) for name, size in sorted(opened.sizes.items()))
        try:
            with temporary.open("wb") as file:
                file.writelines(ustar.stream(files, ("blobs", store.BLOBS)))
            temporary.replace(archive)
        finally:
            temporary.unlink(missing_ok=True)


def _layer(source: Path, out: Path, entrypoint: Sequence[str], predict: Sequence[str] | None) -> bytes:
    if not entrypoint or (predict is not None and not predict):
        raise Refused("image.entrypoint_missing", "the entrypoint or the predict entry is empty")
    files = _collect(source, out.resolve())
    folders = sorted({parent for path in files for parent in parents(path)} | {WORKDIR[1:]})
    return ustar.write(sorted(files.items()), folders)


def _collect(source: Path, out: Path) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    spellings = Spellings()
    room = DEFAULT_LIMITS.unpacked
    pending = [source]
    while pending:
        folder = pending.pop()
        for path in _listed(folder, out):
            name = clean(os.fsencode(APP + path.relative_to(source).as_posix()), DEFAULT_LIMITS)
            spellings.claim(name)
            mode = path.lstat().st_mode
            if stat.S_ISDIR(mode):
                pending.append(path)
                continue
            if not stat.S_ISREG(mode):
                raise Refused("image.file_type", f"{path} is a link or a special file; ship plain files")
            files[name] = _contents(path, room)
            room -= len(files[name])
            if len(files) > DEFAULT_LIMITS.entries:
                raise Refused("image.too_large", f"over {DEFAULT_LIMITS.entries} files")
    return files


def _listed(folder: Path, out: Path) -> list[Path]:
    try:
        found = [p for p in folder.iterdir() if p.name not in SKIPPED and not p.name.startswith(".")]
    except OSError as error:
        raise Refused("image.not_found", f"{folder}: {error.strerror}") from None
    return [p for p in found if p.resolve() != out and not (p / store.LAYOUT_FILE).is_file()]


def _contents(path: Path, room: int) -> bytes:
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123
            data = file.read(room + 1)
    except OSError as error:
        raise Refused("image.not_found", f"{path}: {error.strerror}") from None
    if len(data) > room:
        raise Refused("image.too_large", f"the files are over {DEFAULT_LIMITS.unpacked} bytes")
    for secret in secrets.find(path.name, data):
        raise Refused("image.secret", f"{path}, line {secret.line}, looks like {secret.kind}; remove it")
    return data


def _predict_label(predict: Sequence[str] | None) -> dict[str, str]:
    return {} if predict is None else {PREDICT_LABEL: json.dumps(list(predict))}


def _config_on(
    base: Mapping[str, Any], layer: bytes, entrypoint: list[str], predict: Sequence[str] | None
) -> bytes:
    run = {key: value for key, value in (base.get("config") or {}).items() if key not in _REPLACED}
    labels = {k: v for k, v in (run.get("Labels") or {}).items() if k not in (RUNTIME_LABEL, PREDICT_LABEL)}
    run |= {
        "Entrypoint": entrypoint,
        "WorkingDir": WORKDIR,
        "Labels": labels | _predict_label(predict),
    }
    made = {**base, "config": run}
    made["rootfs"] = {"type": "layers", "diff_ids": [*base["rootfs"]["diff_ids"], _digest(layer)]}
    if isinstance(base.get("history"), list):
        made["history"] = [*base["history"], {"created_by": "rapha job build"}]
    return canonical.dumps(made)


def _layer_of_base(layer: Descriptor) -> dict[str, Any]:
    """The same blob under OCI's name of its type, where the base has Docker's."""
    media_type = LAYER_TYPE + _SUFFIXES[LAYER_TYPES[layer.media_type]]
    return {"mediaType": media_type, "digest": layer.digest, "size": layer.size}


def _write_image(
    out: Path,
    config: bytes,
    layers: list[dict[str, Any]],
    blobs: list[tuple[str, Iterable[bytes]]],
) -> str:
    manifest = canonical.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": descriptor_of(CONFIG_TYPE, config),
            "layers": layers,
        }
    )
    index = canonical.dumps({"schemaVersion": 2, "manifests": [descriptor_of(MANIFEST_TYPE, manifest)]})
    small = [(_digest(data), (data,)) for data in (config, manifest)]
    _write_layout(out, [*blobs, *small], index)
    return _digest(manifest)


def _write_layout(out: Path, blobs: list[tuple[str, Iterable[bytes]]], index: bytes) -> None:
    """Replace the layout at `out`. `oci-layout` is removed first and written last: a crash leaves none."""
    folder = out / store.BLOBS
    if out.exists() and any(out.iterdir()) and not _is_layout(out):
        raise Refused(
            "image.layout_invalid", f"{out} holds something else than an image; name another folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    (out / _MARKER).touch()
    (out / store.LAYOUT_FILE).unlink(missing_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for digest, chunks in blobs:
        with (folder / digest.removeprefix("sha256:")).open("wb") as file:
            file.writelines(chunks)
    (out / store.INDEX_FILE).write_bytes(index)
    (out / store.LAYOUT_FILE).write_bytes(canonical.dumps({"imageLayoutVersion": "1.0.0"}))
    (out / _MARKER).unlink()


def _is_layout(out: Path) -> bool:
    return (out / store.LAYOUT_FILE).is_file() or (out / _MARKER).is_file()


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def descriptor_of(media_type: str, data: bytes) -> dict[str, Any]:
    """The descriptor of a blob (image-spec 1.1, descriptor.md)."""
    return {"mediaType": media_type, "digest": _digest(data), "size": len(data)}
