"""`rapha demo` before and around the run: what it refuses, what it removes, and that nothing stays behind."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from rapha.cli import demo
from rapha.cli.main import run


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that a run was begun in; none goes on."""
    began: list[Path] = []

    def missing(work: Path, case: str, pacs: demo.Pacs) -> None:
        began.append(work)
        raise ModuleNotFoundError("no", name="pydicom")

    monkeypatch.setattr(demo, "run_demo", missing)
    return began


@pytest.mark.parametrize(
    "wrong",
    [
        ("--case", "nope"),
        ("--case", "fhir"),
        ("--case", ""),
        ("--case", "dicom", "--pacs", "nope"),
        ("--pacs", "orthanc"),
        ("--case", "outcomes", "--pacs", "mount"),
    ],
)
def test_a_wrong_call_begins_nothing(wrong: tuple[str, ...], tmp_path: Path, ran: list[Path]) -> None:
    assert run(["demo", "--work", str(tmp_path / "work"), *wrong]) == 2
    assert (ran, list(tmp_path.iterdir())) == ([], [])


def test_a_folder_that_can_not_be_made_is_found_out(
    tmp_path: Path, ran: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for work in (tmp_path / "file", tmp_path / "file" / "below"):
        assert run(["demo", "--work", str(work)]) == 3
        assert str(work) in capsys.readouterr().err
    assert not ran


def test_data_that_is_not_installed_has_a_code(
    tmp_path: Path, ran: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["demo", "--work", str(tmp_path), "--case", "dicom"]) == 3
    assert "node.dataset_missing: case dicom needs pydicom" in capsys.readouterr().err
    assert ran == [tmp_path]


@pytest.mark.parametrize("name", ["world", "artifacts"])
@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_no_demo_has_made_is_not_removed(name: str, kind: str, tmp_path: Path, ran: list[Path]) -> None:
    work, kept = tmp_path / "work", tmp_path / "kept"
    for folder in (work, kept, kept / "hospital"):
        folder.mkdir()
    (work / "bundle.json").write_text("{}")
    if kind == "link":
        (work / name).symlink_to(kept)
    elif kind == "file":
        (work / name).touch()
    else:
        (work / name).mkdir()
    if name == "artifacts" and kind == "folder":
        (work / "bundle.json").unlink()
    assert run(["demo", "--work", str(work)]) == 1
    assert os.path.lexists(work / name)
    assert (kept / "hospital").is_dir()
    assert not ran


def test_what_an_earlier_demo_left_is_removed(tmp_path: Path, ran: list[Path]) -> None:
    for folder in ("world/coordinator", "world/hospital/data", "artifacts"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("bundle.json", "trust.json", "report.html", "mine.txt"):
        (tmp_path / name).touch()
    (tmp_path / "world/hospital/data").chmod(0o555)
    run(["demo", "--work", str(tmp_path)])
    assert sorted(path.name for path in tmp_path.iterdir()) == [".rapha-demo", "mine.txt"]
    assert ran


def test_results_that_somebody_fetched_are_not_removed(tmp_path: Path, ran: list[Path]) -> None:
    (tmp_path / "artifacts").mkdir()
    for name in ("bundle.json", "trust.json", "artifacts/model.safetensors"):
        (tmp_path / name).touch()
    assert run(["demo", "--work", str(tmp_path)]) == 1
    assert (tmp_path / "artifacts/model.safetensors").exists() and (tmp_path / "bundle.json").exists()
    assert not ran


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_run_in_order(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run ends by an exception, so that every process it started is stopped by whoever started it."""
    stopped: list[bool] = []

    def told(*_: object) -> None:
        try:
            signal.raise_signal(number)
        finally:
            signal.raise_signal(number)  # a second one doesn't break off the stopping
            stopped.append(True)

    before = signal.signal(number, signal.SIG_DFL)
    try:
        monkeypatch.setattr(demo, "run_demo", told)
        assert run(["demo", "--work", str(tmp_path)]) == 128 + number
        assert stopped
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)
