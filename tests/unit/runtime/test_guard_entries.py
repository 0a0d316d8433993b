"""Tricks in the folder that a hostile job leaves: entries that are almost the planned file."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from rapha.evidence import canonical
from rapha.runtime.guard.codes import Finding
from rapha.runtime.guard.inspection import inspect
from rapha.runtime.guard.reading import Held
from rapha.testing.outputs import WEIGHTS, holding, plan_of, refused


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    out = tmp_path / "in"
    out.mkdir()
    return out


def _socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's path is short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def _device(kind: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        try:
            os.mknod(path, 0o666 | kind, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("only root makes devices")

    return make


def _holes(path: Path) -> None:
    data = holding(b"\x01\x02")
    with path.open("wb") as file:
        file.write(data[:4096])
        file.seek(len(data) - 4096)
        file.write(data[-4096:])


def _attribute(name: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.write_bytes(holding(b"\x01\x02"))
        try:
            os.setxattr(path, name, b"1234567")
        except OSError:
            pytest.skip("no such attributes here")

    return make


def _conforming(mode: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.write_bytes(holding(b"\x01\x02"))
        path.chmod(mode)

    return make


def _empty(size: int) -> Callable[[Path], None]:
    """A file that is a hole of `size` bytes."""

    def make(path: Path) -> None:
        path.touch()
        os.truncate(path, size)

    return make


def _linked(path: Path) -> None:
    path.write_bytes(holding(b"\x01\x02"))
    (path.parent.parent / "second").hardlink_to(path)


ENTRIES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "socket": ("guard.not_regular", _socket),
    "FIFO": ("guard.not_regular", os.mkfifo),
    "character device": ("guard.not_regular", _device(0o020000)),
    "block device": ("guard.not_regular", _device(0o060000)),
    "folder": ("guard.not_regular", lambda p: p.mkdir()),
    "link to itself": ("guard.not_regular", lambda p: p.symlink_to(p.name)),
    "link to a device": ("guard.not_regular", lambda p: p.symlink_to("/dev/zero")),
    "link to our memory": ("guard.not_regular", lambda p: p.symlink_to("/proc/self/mem")),
    "link up": ("guard.not_regular", lambda p: p.symlink_to("../in")),
    "setgid": ("guard.not_regular", _conforming(0o2644)),
    "setuid": ("guard.not_regular", _conforming(0o4644)),
    "hard link": ("guard.links", _linked),
    "user attribute": ("guard.xattr", _attribute("user.mrn")),
    "trusted attribute": ("guard.xattr", _attribute("trusted.mrn")),
    "holes": ("guard.sparse", _holes),
    "nothing but a hole": ("guard.sparse", _empty(len(holding(b"")))),
    "empty": ("guard.file_size", lambda p: p.touch()),
    "a petabyte": ("guard.file_size", _empty(2**43)),
    "a name that differs in case": ("guard.extra_file", lambda p: p.with_name("W.safetensors").touch()),
    "a name with a dot": ("guard.extra_file", lambda p: p.with_name("w.safetensors.").touch()),
    "a name with a space": ("guard.extra_file", lambda p: p.with_name("w.safetensors ").touch()),
    "a name in another form": ("guard.extra_file", lambda p: p.with_name("w.safetensor\u0073\u0301").touch()),
    "a name that turns the text": ("guard.extra_file", lambda p: p.with_name("\u202ew").touch()),
    "the longest name": ("guard.extra_file", lambda p: p.with_name("n" * 255).touch()),
    "a backup": ("guard.extra_file", lambda p: p.with_name("w.safetensors~").touch()),
    "lost+found": ("guard.extra_file", lambda p: p.with_name("lost+found").mkdir()),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_entries_that_are_not_the_planned_file(folder: Path, name: str) -> None:
    code, make = ENTRIES[name]
    make(folder / WEIGHTS)
    assert refused(folder, plan_of()) == code


def test_a_source_that_ends_too_soon_is_a_change() -> None:
    with pytest.raises(Finding, match=r"guard\.changed"):
        Held(b"abc").read_into(bytearray(2), 2)


def test_reports_stay_small(folder: Path) -> None:
    (folder / ("x" * 255)).touch()
    assert len(canonical.dumps(inspect(folder, plan_of()).dump())) < 2**13
