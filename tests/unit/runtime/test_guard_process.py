"""The guard as a process, in and out of the sandbox, and its command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from rapha.cli.main import run
from rapha.evidence import canonical
from rapha.runtime.guard import process
from rapha.runtime.guard.confined import run_in_process
from rapha.runtime.guard.inspection import inspect
from rapha.runtime.guard.process import ENVIRONMENT, encode_request, run_in_child
from rapha.runtime.guard.report import GuardReport
from rapha.spec.release_plan import ReleasePlan

PLAN_JSON: dict[str, Any] = {
    "version": 1,
    "weights": {
        "file": "model.safetensors",
        "release_dtype": "bf16",
        "tensors": [{"name": "w", "dtype": "F32", "shape": [100], "min": -1.0, "max": 1.0}],
    },
    "self_reported": {
        "file": "metrics.json",
        "fields": [{"name": "loss", "type": "number", "min": 0, "max": 9, "decimals": 2}],
    },
    "max_bytes": 4096,
}
PLAN = ReleasePlan.parse(PLAN_JSON)
Runner = Callable[[Path, ReleasePlan, Path | None], GuardReport]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    out = tmp_path / "in"
    out.mkdir()
    safetensors.numpy.save_file({"w": np.linspace(-2, 2, 100, dtype="<f4")}, out / "model.safetensors")
    (out / "metrics.json").write_text('{"loss":0.126}')
    return out


@pytest.fixture(params=[run_in_child, run_in_process], ids=["child", "sandbox"])
def runner(request: pytest.FixtureRequest) -> Runner:
    chosen: Runner = request.param
    return chosen


def test_a_process_says_and_writes_what_inspect_does(folder: Path, runner: Runner, tmp_path: Path) -> None:
    here = inspect(folder, PLAN, tmp_path / "here")
    there = runner(folder, PLAN, tmp_path / "there")
    assert there.ok
    assert there.dump() == here.dump()
    for file in here.released:
        assert (tmp_path / "there" / file.name).read_bytes() == (tmp_path / "here" / file.name).read_bytes()
    assert runner(folder, PLAN, None).released == here.released


def test_a_no_leaves_the_folder_empty(folder: Path, runner: Runner, tmp_path: Path) -> None:
    (folder / "metrics.json").write_text('{"loss":"Mary Smith"}')
    report = runner(folder, PLAN, tmp_path / "out")
    assert (report.ok, report.decided, report.code) == (False, True, "guard.report_type")
    assert not any((tmp_path / "out").glob("*"))


def test_a_folder_in_use_is_left_alone(folder: Path, runner: Runner, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/metrics.json").write_text("mine")
    report = runner(folder, PLAN, tmp_path / "out")
    assert (report.decided, report.code) == (False, "guard.out")
    assert (tmp_path / "out/metrics.json").read_text() == "mine"


def test_a_missing_folder_is_undecided(runner: Runner, tmp_path: Path) -> None:
    report = runner(tmp_path / "none", PLAN, tmp_path / "out")
    assert (report.ok, report.decided, report.code) == (False, False, "guard.directory")


def test_a_deadline(folder: Path, tmp_path: Path) -> None:
    report = run_in_child(folder, PLAN, tmp_path / "out", timeout_s=0.001)
    assert (report.decided, report.code) == (False, "guard.time")
    assert not any((tmp_path / "out").glob("*"))


REQUEST: dict[str, Any] = {"directory": "/nowhere", "plan": PLAN_JSON, "out": None}


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (b"", 2),
        (b"not JSON", 2),
        (b"[]", 2),
        (canonical.dumps(REQUEST | {"more": 1}), 2),
        (canonical.dumps(REQUEST | {"directory": "relative"}), 2),
        (canonical.dumps(REQUEST | {"directory": "/a\x00b"}), 2),
        (canonical.dumps(REQUEST | {"plan": PLAN_JSON | {"max_bytes": 1}}), 2),
        (encode_request(Path("/nowhere"), PLAN, None), 3),
    ],
)
def test_the_process_answers_every_request_with_its_exit_code(request_: bytes, code: int) -> None:
    command = [sys.executable, "-I", "-B", "-m", "rapha.runtime.guard"]
    done = subprocess.run(command, input=request_, capture_output=True, env=ENVIRONMENT, check=False)
    assert done.returncode == code
    assert b"Traceback" not in done.stderr
    assert bool(done.stdout) == (code != 2)


def command(folder: Path, *more: str, plan: Any = PLAN_JSON) -> int:
    path = folder.parent / "plan.json"
    path.write_text(plan if isinstance(plan, str) else json.dumps(plan))
    return run(["guard", "inspect", str(folder), "--plan", str(path), *more])


def test_the_command_says_yes(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(folder, "--json", "--out", str(tmp_path / "out")) == 0
    said = capsys.readouterr()
    report = json.loads(said.out)
    assert report["ok"] is True
    assert {"n", "id", "verdict", "reason", "does_not_show"} == set(report["checks"][0])
    assert {f["name"] for f in report["released"]} == {p.name for p in (tmp_path / "out").iterdir()}
    assert report["covert_bound_bits"] == PLAN.released_bits()
    assert "bits can be hidden" in said.err
    assert command(folder) == 0
    assert "model.safetensors" in capsys.readouterr().out


def test_the_command_says_no(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "ct.dcm").write_bytes(bytes(128) + b"DICM")
    assert command(folder, "--json", "--out", str(tmp_path / "out")) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False
    assert not any((tmp_path / "out").glob("*"))


@pytest.mark.parametrize(
    "plan", ["", "{}", "[1]", '{"version":1,"version":1}', json.dumps(PLAN_JSON | {"max_bytes": 1})]
)
def test_a_plan_that_is_not_valid_is_a_wrong_call(
    folder: Path, plan: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(folder, "--json", plan=plan) == 2
    assert capsys.readouterr().out == ""


def test_wrong_calls(folder: Path, tmp_path: Path) -> None:
    assert command(folder / "none") == 2
    assert run(["guard", "inspect", str(folder), "--plan", str(tmp_path / "none.json")]) == 2
    assert run(["guard", "inspect", str(folder)]) == 2
    assert command(folder, "--out", str(folder)) == 2
    assert command(folder, "--out", str(folder / "metrics.json")) == 2
    assert command(folder, "--out", str(folder / "metrics.json/out")) == 2
    assert command(folder, "--out", "n" * 300) == 2
    assert command(tmp_path / ("n" * 300)) == 2


def test_a_path_that_json_does_not_hold_is_undecided(folder: Path, tmp_path: Path) -> None:
    for given, out in ((tmp_path / os.fsdecode(b"\xff"), None), (folder, tmp_path / os.fsdecode(b"\xff"))):
        report = run_in_child(given, PLAN, out)
        assert (report.decided, report.code) == (False, "guard.directory")


def test_a_working_folder_that_is_gone_is_undecided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert run_in_child(Path("in"), PLAN).code == "guard.directory"


def test_a_process_that_cannot_be_started_is_undecided(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    report = run_in_child(folder, PLAN, tmp_path / "out")
    assert (report.decided, report.code) == (False, "guard.died")


def test_a_process_without_a_deadline_is_undecided(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Timer, "start", none)
    report = run_in_child(folder, PLAN, tmp_path / "out")
    assert (report.decided, report.code) == (False, "guard.memory")


def test_who_is_interrupted_leaves_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a process, nor half a file, nor a thread that holds the interpreter until the deadline."""
    started: list[subprocess.Popen[bytes]] = []

    def interrupted(child: subprocess.Popen[bytes], _: bytes) -> bytes:
        started.append(child)
        (tmp_path / "out").mkdir()
        (tmp_path / "out/model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(process, "_talk", interrupted)
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        run_in_child(folder, PLAN, tmp_path / "out")
    assert not any((tmp_path / "out").iterdir())
    assert started[0].wait() != 0
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            thread.join()
    assert threading.active_count() <= before


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


def test_a_child_that_dies_before_it_reads_a_long_plan(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = [PLAN_JSON["weights"]["tensors"][0] | {"name": f"layer.{n}.weight"} for n in range(5000)]
    weights = PLAN_JSON["weights"] | {"tensors": tensors}
    plan = ReleasePlan.parse({"version": 1, "max_bytes": 2**22, "weights": weights})
    monkeypatch.setattr(sys, "executable", program(tmp_path / "child", "exit 0"))
    assert run_in_child(folder, plan).code == "guard.died"


@pytest.mark.parametrize("where", [".", "o", "o/p", "../in/o", "link/o"])
def test_released_files_do_not_go_where_the_job_left_its_own(
    folder: Path, tmp_path: Path, where: str
) -> None:
    (tmp_path / "plan.json").write_bytes(canonical.dumps(PLAN.dump()))
    before = sorted(path.name for path in folder.iterdir())
    out = folder / where
    if where.startswith("link"):
        (tmp_path / "link").symlink_to(folder)
        out = tmp_path / where
    code = run(["guard", "inspect", str(folder), "--plan", str(tmp_path / "plan.json"), "--out", str(out)])
    assert code == 2
    assert sorted(path.name for path in folder.iterdir()) == before
