"""The JSON of an image: strict objects, and what a config says about starting it."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from rapha.evidence import canonical
from rapha.runtime.image.model import PREDICT_LABEL, RUNTIME_LABEL, Limits
from rapha.spec.refusals import Refused

_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
_MAX_ARGUMENTS: Final = 256
_MAX_TEXT: Final = 4096
_PLAIN_FOLDER: Final = re.compile(r"(/[A-Za-z0-9_.+-]+)+\Z")


@dataclass(frozen=True, slots=True)
class Config:
    """What an image's config says, checked. Names are those of `Image`."""

    entrypoint: tuple[str, ...]
    predict: tuple[str, ...] | None
    runtime: str | None
    workdir: str
    path: tuple[str, ...]
    diff_ids: tuple[str, ...]


def parse(data: bytes, what: str, limits: Limits) -> Mapping[str, Any]:
    """A JSON object. Raises `Refused` (`image.layout_invalid`, `image.too_large`)."""
    try:
        return as_object(canonical.loads(data, limit=limits.json), what)
    except Refused as refusal:
        code = "image.too_large" if refusal.code == "schema.too_large" else "image.layout_invalid"
        raise Refused(code, f"{what}: {refusal.detail}") from None


def as_object(value: object, what: str) -> Mapping[str, Any]:
    """`value`, which must be a JSON object."""
    if not isinstance(value, dict):
        raise invalid(f"{what} is not an object")
    return value


def object_in(parent: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The member `name`, which must be an object."""
    return as_object(parent.get(name), name)


def array_in(parent: Mapping[str, Any], name: str) -> list[Any]:
    """The member `name`, which must be a list."""
    value = parent.get(name)
    if not isinstance(value, list):
        raise invalid(f"{name} is not a list")
    return value


def check_schema(document: Mapping[str, Any], what: str) -> None:
    """Raises `Refused` unless `schemaVersion` is the number 2."""
    version = document.get("schemaVersion")
    if type(version) is not int or version != 2:
        raise invalid(f"{what}: schemaVersion {version!r}, expected 2")


def invalid(why: str) -> Refused:
    """The refusal of a layout whose JSON is not what image-spec 1.1 says."""
    return Refused("image.layout_invalid", why)


def host_platform() -> tuple[str, str]:
    """(os, architecture) of this machine in the words of image-spec 1.1, image-index.md."""
    system = os.uname()
    return system.sysname.lower(), _ARCHITECTURES.get(system.machine, system.machine)


def read_config(config: Mapping[str, Any]) -> Config:
    """Check a config and take what the sandbox honours; user, volumes, ports and environment are not.

    Raises:
        Refused: `image.layout_invalid`, `image.path_unsafe` for the working folder.
    """
    if config.get("os") != "linux":
        raise invalid(f"config: os {config.get('os')!r}, expected 'linux'")
    run = object_in(config, "config") if config.get("config") is not None else {}
    labels = object_in(run, "Labels") if run.get("Labels") is not None else {}
    return Config(
        entrypoint=_argv(run.get("Entrypoint"), "Entrypoint") + _argv(run.get("Cmd"), "Cmd"),
        predict=_predict(labels.get(PREDICT_LABEL)),
        runtime=_runtime(labels.get(RUNTIME_LABEL)),
        workdir=_workdir(run.get("WorkingDir")),
        path=_path(run.get("Env")),
        diff_ids=_diff_ids(config),
    )


def _diff_ids(config: Mapping[str, Any]) -> tuple[str, ...]:
    rootfs = object_in(config, "rootfs")
    found = array_in(rootfs, "diff_ids")
    if rootfs.get("type") != "layers" or not all(isinstance(diff_id, str) for diff_id in found):
        raise invalid("config: rootfs is not a list of layers")
    return tuple(found)


def _argv(value: object, what: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > _MAX_ARGUMENTS:
        raise invalid(f"config: {what} is not a list of at most {_MAX_ARGUMENTS} arguments")
    return tuple(_text(argument, what) for argument in value)


def _text(value: object, what: str) -> str:
    if not isinstance(value, str) or len(value) > _MAX_TEXT or not value.isprintable():
        raise invalid(f"config: {what} has a value that is not printable text up to {_MAX_TEXT} characters")
    return value


def _runtime(label: object) -> str | None:
    return None if label is None else _text(label, RUNTIME_LABEL)


def _predict(label: object) -> tuple[str, ...] | None:
    if label is None:
        return None
    if not isinstance(label, str):
        raise invalid(f"config: label {PREDICT_LABEL} is not a string")
    try:
        argv = _argv(canonical.loads(label.encode()), PREDICT_LABEL)
    except (Refused, UnicodeEncodeError):
        raise invalid(f"config: label {PREDICT_LABEL} is not a JSON list of strings") from None
    if not argv:
        raise invalid(f"config: label {PREDICT_LABEL} is empty")
    return argv


def _workdir(value: object) -> str:
    if value in (None, ""):
        return "/"
    text = _text(value, "WorkingDir")
    if not text.startswith("/") or posixpath.normpath(text) != text:
        raise Refused("image.path_unsafe", f"config: WorkingDir {text[:200]!r} is not a plain path")
    return text


def _path(env: object) -> tuple[str, ...]:
    """PATH, where it is plain absolute folders; anything else in the environment is not looked at."""
    values = [e for e in env if isinstance(e, str) and e.startswith("PATH=")] if isinstance(env, list) else []
    folders = values[0].removeprefix("PATH=").split(":") if len(values) == 1 else []
    plain = all(_PLAIN_FOLDER.match(f) and posixpath.normpath(f) == f and len(f) <= 255 for f in folders)
    return tuple(folders) if plain and len(folders) <= 32 else ()
