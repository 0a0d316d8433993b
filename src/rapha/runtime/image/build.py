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
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rapha.evidence import canonical
from rapha.runtime.image import secrets, store, tar
from rapha.runtime.image.model import (
    APP,
    CONFIG_TYPE,
    DEFAULT_LIMITS,
    LAYER_TYPE,
    MANIFEST_TYPE,
    PREDICT_LABEL,
    RUNTIME_LABEL,
    WORKDIR,
)
from rapha.runtime.image.paths import Tree, clean, parents
from rapha.runtime.image.reader import read
from rapha.spec.refusals import Refused

SKIPPED: Final = frozenset({"__pycache__", "keys", "job.yaml"})
"""Names that are never shipped, besides those that start with a dot: bytecode is rebuilt, `keys/` holds
the submitter's keys, and a changed budget in `job.yaml` must not change the image."""
_MARKER: Final = "rapha.incomplete"


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
    if not entrypoint or (predict is not None and not predict):
        raise Refused("image.entrypoint_missing", "the entrypoint or the predict entry is empty")
    files = _collect(source, out.resolve())
    folders = sorted({parent for path in files for parent in parents(path)} | {WORKDIR[1:]})
    layer = tar.write(sorted(files.items()), folders)
    config = _config(layer, list(entrypoint), predict, runtime)
    manifest = canonical.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": _descriptor(CONFIG_TYPE, config),
            "layers": [_descriptor(LAYER_TYPE, layer)],
        }
    )
    index = canonical.dumps({"schemaVersion": 2, "manifests": [_descriptor(MANIFEST_TYPE, manifest)]})
    _write_layout(out, [layer, config, manifest], index)
    return _digest(manifest)


def pack(layout: Path, archive: Path) -> None:
    """Write the layout folder as one tar, for upload; the same layout gives the same bytes.

    Raises:
        Refused: what `read` does; a layout that would be refused is not packed.
    """
    read(layout)
    files = store.load(layout, DEFAULT_LIMITS)
    temporary = archive.with_name(archive.name + ".tmp")
    temporary.write_bytes(tar.write(sorted(files.items()), ("blobs", store.BLOBS)))
    temporary.replace(archive)


def _collect(source: Path, out: Path) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    tree = Tree()
    room = DEFAULT_LIMITS.unpacked
    pending = [source]
    while pending:
        folder = pending.pop()
        for path in _listed(folder, out):
            name = clean(os.fsencode(APP + path.relative_to(source).as_posix()), DEFAULT_LIMITS)
            tree.claim(name)
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


def _config(layer: bytes, entrypoint: list[str], predict: Sequence[str] | None, runtime: str) -> bytes:
    labels = {RUNTIME_LABEL: runtime}
    if predict is not None:
        labels[PREDICT_LABEL] = json.dumps(list(predict))
    return canonical.dumps(
        {
            # The layer is source code for the node's runtime; image-spec requires an architecture, and
            # naming the builder's own would make the digest depend on the machine.
            "architecture": "amd64",
            "os": "linux",
            "config": {"Entrypoint": entrypoint, "WorkingDir": WORKDIR, "Labels": labels},
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
        }
    )


def _write_layout(out: Path, blobs: list[bytes], index: bytes) -> None:
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
    for blob in blobs:
        (folder / hashlib.sha256(blob).hexdigest()).write_bytes(blob)
    (out / store.INDEX_FILE).write_bytes(index)
    (out / store.LAYOUT_FILE).write_bytes(canonical.dumps({"imageLayoutVersion": "1.0.0"}))
    (out / _MARKER).unlink()


def _is_layout(out: Path) -> bool:
    return (out / store.LAYOUT_FILE).is_file() or (out / _MARKER).is_file()


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _descriptor(media_type: str, data: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": _digest(data), "size": len(data)}
