"""What happens around the guard: races, a kernel or a disk that says no, a process that is not the guard."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from rapha.runtime.guard import reading, values
from rapha.runtime.guard.inspection import inspect
from rapha.runtime.guard.process import run_in_child
from rapha.spec.release_plan import ReleasePlan

PLAN_JSON: dict[str, Any] = {
    "version": 1,
    "weights": {
        "file": "model.safetensors",
        "release_dtype": "bf16",
        "tensors": [{"name": "w", "dtype": "F32", "shape": [100], "min": -1.0, "max": 1.0}],
    },
    "self_reported": {"file": "metrics.json", "fields": [{"name": "done", "type": "boolean"}]},
    "max_bytes": 4096,
}
PLAN = ReleasePlan.parse(PLAN_JSON)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    out = tmp_path / "in"
    out.mkdir()
    safetensors.numpy.save_file({"w": np.linspace(-2, 2, 100, dtype="<f4")}, out / "model.safetensors")
    (out / "metrics.json").write_text('{"done":true}')
    return out


def failing(number: int) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize(
    ("number", "code", "decided"),
    [
        (errno.ENOSYS, "guard.directory", False),
        (errno.EACCES, "guard.unreadable", True),
        (errno.EXDEV, "guard.not_regular", True),
    ],
)
def test_a_kernel_that_refuses_is_a_no(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: str, decided: bool
) -> None:
    monkeypatch.setattr(reading, "_beneath", failing(number))
    report = inspect(folder, PLAN)
    assert (report.ok, report.code, report.decided) == (False, code, decided)


@pytest.mark.parametrize(
    ("number", "ok"), [(errno.ENOTSUP, True), (errno.EIO, False)], ids=["no attributes", "failing disk"]
)
def test_file_systems_without_attributes_pass(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int, ok: bool
) -> None:
    monkeypatch.setattr(os, "listxattr", failing(number))
    assert inspect(folder, PLAN).ok is ok


def test_labels_of_the_host_pass(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "listxattr", lambda _: ["security.selinux"])
    assert inspect(folder, PLAN).ok


def test_a_folder_that_cannot_be_listed_is_undecided(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "scandir", failing(errno.EIO))
    report = inspect(folder, PLAN)
    assert (report.code, report.decided) == ("guard.directory", False)


def _appended(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


@pytest.mark.parametrize(
    "change", [_appended, lambda p: p.write_bytes(b"{}"), os.utime, lambda p: p.chmod(0o600)]
)
def test_a_file_that_changes_while_it_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    honest = reading._read

    def racing(handle: int, size: int) -> bytearray:
        change(folder / "metrics.json")
        return honest(handle, size)

    (folder / "metrics.json").chmod(0o644)
    monkeypatch.setattr(reading, "_read", racing)
    assert inspect(folder, PLAN).code == "guard.changed"


def test_a_file_that_is_swapped_between_looks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = reading._beneath

    @contextmanager
    def racing(handle: int, name: str, flags: int) -> Iterator[int]:
        if flags & os.O_NONBLOCK:
            (folder / "new").write_bytes((folder / name).read_bytes())
            (folder / "new").replace(folder / name)
        with honest(handle, name, flags) as opened:
            yield opened

    monkeypatch.setattr(reading, "_beneath", racing)
    assert inspect(folder, PLAN).code == "guard.changed"


def test_a_short_read_is_a_change(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "readv", lambda *_: 0)
    assert inspect(folder, PLAN).code == "guard.changed"


def test_no_memory_is_undecided(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> Any:
        raise MemoryError

    monkeypatch.setattr(reading, "read_outputs", full)
    report = inspect(folder, PLAN)
    assert (report.code, report.decided) == ("guard.memory", False)


def test_a_full_disk_leaves_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []

    def second_fails(handle: int) -> None:
        synced.append(handle)
        if len(synced) == 2:
            raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "fsync", second_fails)
    report = inspect(folder, PLAN, tmp_path / "out")
    assert (report.ok, report.code, report.released) == (False, "guard.out", ())
    assert not any((tmp_path / "out").iterdir())


def test_an_output_folder_that_cannot_be_made(folder: Path, tmp_path: Path) -> None:
    assert inspect(folder, PLAN, tmp_path / "none/out").code == "guard.out"
    assert inspect(folder, PLAN, tmp_path / "a\x00b").code == "guard.out"


@pytest.mark.parametrize("wrong", [2.0, -2.0, -0.0, np.nan, np.inf])
def test_our_own_output_is_checked_like_anyones(
    folder: Path, monkeypatch: pytest.MonkeyPatch, wrong: float
) -> None:
    monkeypatch.setattr(values, "_cast", lambda work, _: np.full(len(work), wrong))
    monkeypatch.setattr(values, "_error", lambda *_: 0.0)
    report = inspect(folder, PLAN)
    assert (report.ok, report.code) == (False, "guard.rebuild")


@pytest.mark.parametrize("wrong", [0.0, -1.0, np.inf, np.nan])
def test_a_scale_is_checked_too(folder: Path, monkeypatch: pytest.MonkeyPatch, wrong: float) -> None:
    plan = ReleasePlan.parse(PLAN_JSON | {"weights": PLAN_JSON["weights"] | {"release_dtype": "int8"}})
    monkeypatch.setattr(values, "_scale", lambda *_: wrong)
    monkeypatch.setattr(values, "_quantise", lambda work, _: np.zeros(len(work), np.int8))
    monkeypatch.setattr(values, "_error", lambda *_: 0.0)
    assert inspect(folder, plan).code == "guard.rebuild"


def program(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    "text", ["exit 0", "exec 0<&-; exit 1", "cat", "kill -9 $$", "head -c 20000000 /dev/zero", "exit 2"]
)
def test_a_child_that_is_not_the_guard(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(sys, "executable", program(tmp_path / "child", text))
    report = run_in_child(folder, PLAN, tmp_path / "out")
    assert (report.ok, report.decided, report.code) == (False, False, "guard.died")
    assert not (tmp_path / "out").exists()


def test_a_child_that_hangs_is_killed(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", program(tmp_path / "child", "exec sleep 60"))
    assert run_in_child(folder, PLAN, timeout_s=0.2).code == "guard.time"
