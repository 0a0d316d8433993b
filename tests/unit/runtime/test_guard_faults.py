"""What happens around the guard: races, a kernel or a disk that says no, a process that is not the guard."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from rapha.runtime.guard import inspection, reading, rebuild, values
from rapha.runtime.guard.codes import Finding
from rapha.runtime.guard.confined import run_in_process
from rapha.runtime.guard.inspection import inspect
from rapha.runtime.guard.reading import part
from rapha.runtime.guard.released import Outgoing, folder_for
from rapha.runtime.guard.rounding import scale_of
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
    honest = os.preadv

    def racing(handle: int, buffers: list[Any], offset: int) -> int:
        change(folder / "metrics.json")
        return honest(handle, buffers, offset)

    (folder / "metrics.json").chmod(0o644)
    monkeypatch.setattr(os, "preadv", racing)
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
    monkeypatch.setattr(os, "preadv", lambda *_: 0)
    assert inspect(folder, PLAN).code == "guard.changed"


def test_no_memory_is_undecided(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> Any:
        raise MemoryError

    monkeypatch.setattr(inspection, "open_outputs", full)
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
    def cast(work: Any, _: str) -> Any:
        return np.full(len(work), 1.0 if len(work) == 2 else wrong, "<f4")  # two of them are the bounds

    monkeypatch.setattr(values, "cast", cast)
    report = inspect(folder, PLAN)
    assert (report.ok, report.code) == (False, "guard.rebuild")


@pytest.mark.parametrize("wrong", [0.0, -1.0, np.inf, np.nan])
def test_a_scale_is_checked_too(folder: Path, monkeypatch: pytest.MonkeyPatch, wrong: float) -> None:
    plan = ReleasePlan.parse(PLAN_JSON | {"weights": PLAN_JSON["weights"] | {"release_dtype": "int8"}})
    monkeypatch.setattr(values, "scale_of", lambda *_: wrong)
    assert inspect(folder, plan).code == "guard.rebuild"


def test_a_disk_that_is_full_in_the_middle_leaves_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, written = os.write, []

    def full(handle: int, data: Any) -> int:
        written.append(handle)
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "no space")
        return honest(handle, data[:7])

    monkeypatch.setattr(os, "write", full)
    report = inspect(folder, PLAN, tmp_path / "out")
    assert (report.code, report.decided) == ("guard.out", False)
    assert not any((tmp_path / "out").iterdir())


def test_a_disk_that_fails_while_it_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "preadv", failing(errno.EIO))
    assert inspect(folder, PLAN).code == "guard.unreadable"


def test_threads_that_cannot_be_started_are_undecided(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> Any:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(rebuild, "_WORTH_THREADS", 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(ThreadPoolExecutor, "submit", none)
    report = inspect(folder, PLAN)
    assert (report.code, report.decided) == ("guard.memory", False)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_finding_in_a_thread_is_a_finding(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: float
) -> None:
    monkeypatch.setattr(rebuild, "_WORTH_THREADS", 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    tensor = {"name": "w", "dtype": "F32", "shape": [3_000_000], "min": -1.0, "max": 1.0}
    part = PLAN_JSON["weights"] | {"tensors": [tensor]}
    plan = ReleasePlan.parse({"version": 1, "max_bytes": 2**24, "weights": part})
    array = np.zeros(3_000_000, "<f4")
    array[2_500_000] = bad
    (folder / "metrics.json").unlink()
    safetensors.numpy.save_file({"w": array}, folder / "model.safetensors")
    assert inspect(folder, plan, tmp_path / "out").code == "guard.not_finite"
    assert not any((tmp_path / "out").iterdir())


def test_a_file_that_changes_between_two_readings_stays_in_range(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """int8 reads twice; whoever could write in between would gain nothing, and is found out."""
    plan = ReleasePlan.parse(PLAN_JSON | {"weights": PLAN_JSON["weights"] | {"release_dtype": "int8"}})
    honest = scale_of

    def racing(*arguments: Any) -> float:
        path = folder / "model.safetensors"
        data = path.read_bytes()
        path.write_bytes(data[:-4] + np.array([np.nan], "<f4").tobytes())
        return honest(*arguments)

    monkeypatch.setattr(values, "scale_of", racing)
    assert inspect(folder, plan, tmp_path / "out").code == "guard.not_finite"
    assert not any((tmp_path / "out").iterdir())


def test_a_file_that_goes_between_looks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = reading._check_names

    def racing(handle: int, planned: frozenset[str]) -> None:
        honest(handle, planned)
        (folder / "metrics.json").unlink()

    monkeypatch.setattr(reading, "_check_names", racing)
    assert inspect(folder, PLAN).code == "guard.unreadable"


@pytest.mark.parametrize(("refuses", "code"), [(stat.S_ISDIR, "directory"), (stat.S_ISREG, "unreadable")])
def test_what_cannot_be_shared_with_the_sandbox(
    folder: Path, monkeypatch: pytest.MonkeyPatch, refuses: Callable[[int], bool], code: str
) -> None:
    honest = os.fchmod

    def owned(handle: int, mode: int) -> None:
        if refuses(os.fstat(handle).st_mode):
            raise PermissionError(errno.EPERM, "not ours")
        honest(handle, mode)

    monkeypatch.setattr(os, "fchmod", owned)
    report = run_in_process(folder, PLAN)
    assert (report.ok, report.code) == (False, f"guard.{code}")


def test_a_folder_that_fills_up_between_looks(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(Finding, match=r"guard\.out"), folder_for(tmp_path / "out") as out:
        (tmp_path / "out/model.safetensors").touch()
        out.file("model.safetensors", 9)
    assert (tmp_path / "out/model.safetensors").exists()  # not ours to delete


def test_only_what_tripwires_ask_for_is_kept() -> None:
    outgoing = Outgoing("w", 2**24, None)
    for _ in range(16):
        outgoing.write(bytes(range(256)) * 4096)
    assert part(outgoing, 0, 300) == bytes(range(256)) + bytes(range(44))
    assert part(outgoing, 2**24 - 3, 9) == b"\xfd\xfe\xff"
    assert part(outgoing, 2**23, 8) == bytes(range(8))
    with pytest.raises(Finding, match=r"guard\.rebuild"):
        part(outgoing, 2**23 + 99, 8)
    assert outgoing.finish().bytes == 2**24


def test_a_file_of_another_size_is_not_finished() -> None:
    outgoing = Outgoing("w", 9, None)
    outgoing.write(b"12345678")
    with pytest.raises(Finding, match=r"guard\.rebuild"):
        outgoing.finish()
