"""Verify an OCI image layout (image-spec 1.1) and give what it holds as an `Image`."""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from rapha.evidence import canonical
from rapha.runtime.image import store
from rapha.runtime.image.layers import Filesystem, gunzip
from rapha.runtime.image.model import (
    CONFIG_TYPE,
    DEFAULT_LIMITS,
    LAYER_TYPE,
    MANIFEST_TYPE,
    PREDICT_LABEL,
    RUNTIME_LABEL,
    Image,
    Limits,
)
from rapha.spec.refusals import Refused

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}\Z")
_MAX_ARGUMENTS: Final = 256
_MAX_TEXT: Final = 4096


def read(source: Path, limits: Limits = DEFAULT_LIMITS) -> Image:
    """Read a layout folder or an archive of one as hostile input.

    Steps: 1 the layout's version; 2 one manifest in the index; 3 every blob is one that the manifest
    names and has its digest and size; 4 config; 5 each layer decompresses, under a limit, to its
    diff id; 6 the layers, applied in order, leave a tree of plain files.

    Raises:
        Refused: an `image.*` code that names the path, blob or field.
    """
    blobs = store.load(source, limits)
    _check_version(_document(blobs, store.LAYOUT_FILE, limits))  # 1
    descriptor = _only_manifest(_document(blobs, store.INDEX_FILE, limits))  # 2
    layout = _Layout(blobs, limits)
    manifest = layout.document(descriptor, MANIFEST_TYPE)
    config = layout.document(_object(manifest, "config"), CONFIG_TYPE)
    layers = _array(manifest, "layers")
    if len(layers) > limits.layers:
        raise Refused("image.too_large", f"{len(layers)} layers, the limit is {limits.layers}")
    stored = [layout.blob(layer) for layer in layers]
    layout.check_nothing_else()  # 3
    filesystem = _unpacked(layers, stored, _diff_ids(config), limits)  # 5, 6
    return _image(str(descriptor["digest"]), config, dict(sorted(filesystem.files.items())))  # 4


class _Layout:
    """Blobs by digest, each checked when it is taken."""

    def __init__(self, files: Mapping[str, bytes], limits: Limits) -> None:
        self._files = files
        self._limits = limits
        self._taken: set[str] = {store.LAYOUT_FILE, store.INDEX_FILE}

    def blob(self, descriptor: object) -> bytes:
        """The bytes that a descriptor names (image-spec 1.1, descriptor.md)."""
        fields = _checked(descriptor, "descriptor")
        digest, size = fields.get("digest"), fields.get("size")
        if not isinstance(digest, str) or not _DIGEST.match(digest):
            raise _invalid(f"descriptor digest {digest!r} is not a sha256")
        path = f"{store.BLOBS}/{digest.removeprefix('sha256:')}"
        if path not in self._files:
            raise Refused("image.not_found", f"blob {digest} is absent")
        data = self._files[path]
        if type(size) is not int or size != len(data):
            raise Refused("image.digest_mismatch", f"blob {digest}: {len(data)} bytes, not {size!r}")
        if "sha256:" + hashlib.sha256(data).hexdigest() != digest:
            raise Refused("image.digest_mismatch", f"blob {digest} has another digest")
        self._taken.add(path)
        return data

    def document(self, descriptor: Mapping[str, Any], media_type: str) -> Mapping[str, Any]:
        """The JSON object that a descriptor of `media_type` names."""
        if descriptor.get("mediaType") != media_type:
            raise _invalid(f"media type {descriptor.get('mediaType')!r}, expected {media_type}")
        value = _parse(self.blob(descriptor), media_type, self._limits)
        if media_type == MANIFEST_TYPE:
            _check_manifest(value)
        return value

    def check_nothing_else(self) -> None:
        """No blob but those taken: an unnamed one would travel unsigned."""
        extra = sorted(self._files.keys() - self._taken)
        if extra:
            raise _invalid(f"{extra[0][:200]!r} is not named by the manifest")


def _check_version(layout: Mapping[str, Any]) -> None:
    if layout.get("imageLayoutVersion") != "1.0.0":
        raise _invalid(f"imageLayoutVersion {layout.get('imageLayoutVersion')!r}, expected '1.0.0'")


def _check_manifest(manifest: Mapping[str, Any]) -> None:
    _check_schema(manifest, "manifest")
    if manifest.get("mediaType", MANIFEST_TYPE) != MANIFEST_TYPE or "manifests" in manifest:
        raise _invalid("the manifest claims to be something else too")


def _check_schema(document: Mapping[str, Any], what: str) -> None:
    version = document.get("schemaVersion")
    if type(version) is not int or version != 2:
        raise _invalid(f"{what}: schemaVersion {version!r}, expected 2")


def _only_manifest(index: Mapping[str, Any]) -> Mapping[str, Any]:
    _check_schema(index, "index")
    manifests = _array(index, "manifests")
    if len(manifests) != 1:
        raise _invalid(f"the index names {len(manifests)} manifests, expected exactly one image")
    return _checked(manifests[0], "index.manifests[0]")


def _diff_ids(config: Mapping[str, Any]) -> list[object]:
    rootfs = _object(config, "rootfs")
    if rootfs.get("type") != "layers":
        raise _invalid("config: rootfs.type is not 'layers'")
    return _array(rootfs, "diff_ids")


def _unpacked(
    layers: list[object], stored: list[bytes], diff_ids: list[object], limits: Limits
) -> Filesystem:
    if len(layers) != len(diff_ids):
        raise _invalid(f"{len(layers)} layers and {len(diff_ids)} diff ids")
    filesystem = Filesystem(limits)
    room = limits.unpacked
    for number, (descriptor, data, diff_id) in enumerate(zip(layers, stored, diff_ids, strict=True)):
        what = f"layer {number}"
        archive = _decompress(_checked(descriptor, what).get("mediaType"), data, room, limits, what)
        room -= len(archive)
        if "sha256:" + hashlib.sha256(archive).hexdigest() != diff_id:
            raise Refused("image.digest_mismatch", f"{what} is not what its diff id says")
        filesystem.apply(archive, what)
    return filesystem


def _decompress(media_type: object, data: bytes, room: int, limits: Limits, what: str) -> bytes:
    if media_type == LAYER_TYPE:
        if len(data) > room:
            raise Refused("image.too_large", f"{what}: the layers are over {limits.unpacked} bytes")
        return data
    if media_type == LAYER_TYPE + "+gzip":
        return gunzip(data, room, limits.entries, what)
    if media_type == LAYER_TYPE + "+zstd":
        raise _invalid(f"{what}: zstd is not supported; use tar or tar+gzip")
    raise _invalid(f"{what}: media type {str(media_type)[:100]!r} is not an OCI tar layer")


def _image(digest: str, config: Mapping[str, Any], files: Mapping[str, bytes]) -> Image:
    if config.get("os") != "linux":
        raise _invalid(f"config: os {config.get('os')!r}, expected 'linux'")
    run = _object(config, "config") if config.get("config") is not None else {}
    labels = _object(run, "Labels") if run.get("Labels") is not None else {}
    return Image(
        digest=digest,
        entrypoint=_argv(run.get("Entrypoint"), "Entrypoint") + _argv(run.get("Cmd"), "Cmd"),
        predict=_predict(labels.get(PREDICT_LABEL)),
        runtime=_runtime(labels.get(RUNTIME_LABEL)),
        workdir=_workdir(run.get("WorkingDir")),
        files=files,
    )


def _argv(value: object, what: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > _MAX_ARGUMENTS:
        raise _invalid(f"config: {what} is not a list of at most {_MAX_ARGUMENTS} arguments")
    for argument in value:
        _check_text(argument, what)
    return tuple(value)


def _check_text(value: object, what: str) -> None:
    if not isinstance(value, str) or len(value) > _MAX_TEXT or not value.isprintable():
        raise _invalid(f"config: {what} has a value that is not printable text up to {_MAX_TEXT} characters")


def _runtime(label: object) -> str | None:
    if label is not None:
        _check_text(label, RUNTIME_LABEL)
    return None if label is None else str(label)


def _predict(label: object) -> tuple[str, ...] | None:
    if label is None:
        return None
    if not isinstance(label, str):
        raise _invalid(f"config: label {PREDICT_LABEL} is not a string")
    try:
        argv = _argv(canonical.loads(label.encode()), PREDICT_LABEL)
    except (Refused, UnicodeEncodeError):
        raise _invalid(f"config: label {PREDICT_LABEL} is not a JSON list of strings") from None
    if not argv:
        raise _invalid(f"config: label {PREDICT_LABEL} is empty")
    return argv


def _workdir(value: object) -> str:
    if value in (None, ""):
        return "/"
    _check_text(value, "WorkingDir")
    if not isinstance(value, str) or not value.startswith("/") or posixpath.normpath(value) != value:
        raise Refused("image.path_unsafe", f"config: WorkingDir {str(value)[:200]!r} is not a plain path")
    return value


def _document(blobs: Mapping[str, bytes], name: str, limits: Limits) -> Mapping[str, Any]:
    if name not in blobs:
        raise Refused("image.layout_invalid", f"{name} is absent: not an OCI layout")
    return _parse(blobs[name], name, limits)


def _parse(data: bytes, what: str, limits: Limits) -> Mapping[str, Any]:
    try:
        return _checked(canonical.loads(data, limit=limits.json), what)
    except Refused as refusal:
        code = "image.too_large" if refusal.code == "schema.too_large" else "image.layout_invalid"
        raise Refused(code, f"{what}: {refusal.detail}") from None


def _checked(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _invalid(f"{what} is not an object")
    return value


def _object(parent: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return _checked(parent.get(name), name)


def _array(parent: Mapping[str, Any], name: str) -> list[object]:
    value = parent.get(name)
    if not isinstance(value, list):
        raise _invalid(f"{name} is not a list")
    return value


def _invalid(why: str) -> Refused:
    return Refused("image.layout_invalid", why)
