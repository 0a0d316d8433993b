"""The guard as a process, in and out of the sandbox, and its command."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from rapha.cli.main import run
from rapha.evidence import canonical
from rapha.runtime.guard.codes import CODES, Finding
from rapha.runtime.guard.confined import run_in_process
from rapha.runtime.guard.inspection import inspect
from rapha.runtime.guard.process import ENVIRONMENT, believed, encode_request, run_in_child, take
from rapha.runtime.guard.report import GuardReport, refusal
from rapha.runtime.sandbox.interface import Ending, Outcome, Running, Spec
from rapha.spec.refusals import Refused
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


class Answering:
    """A sandbox, by its production interface, that does what a test says instead of running anything."""

    name = "answering"

    def __init__(self, act: Callable[[Spec], Outcome]) -> None:
        self._act = act
        self.pid = 0

    def check(self) -> Mapping[str, str]:
        return {}

    def start(self, spec: Spec) -> Running:
        outcome = self._act(spec)

        class Done:
            pid = 0

            def wait(self) -> Outcome:
                return outcome

            def kill(self) -> None:
                return None

        return Done()


def ended(ending: Ending = Ending.exited, code: int = 0, anomalies: tuple[str, ...] = ()) -> Outcome:
    return Outcome(ending, code, 0.1, 0.1, 1, {}, anomalies)


def lying(change: Callable[[Path, dict[str, Any]], object]) -> Callable[[Spec], Outcome]:
    """The real guard's answer, with `change` made to its files and report."""

    def act(spec: Spec) -> Outcome:
        assert spec.out is not None
        given = next(m.source for m in spec.mounts if m.dest == "/rapha/in/outputs")
        assert given is not None
        report = inspect(given, PLAN, spec.out).dump()
        change(spec.out, report)
        (spec.out / "report.guard").write_bytes(canonical.dumps(report))
        return ended()

    return act


def refuse(_: Spec) -> Outcome:
    raise Refused("node.sandbox_unavailable", "no namespaces")


LIES: dict[str, tuple[str, Callable[[Spec], Outcome]]] = {
    "no sandbox": ("guard.sandbox", refuse),
    "late": ("guard.time", lambda _: ended(Ending.timeout, 124)),
    "out of memory": ("guard.died", lambda _: ended(Ending.memory, 137)),
    "killed": ("guard.died", lambda _: ended(Ending.killed, 137)),
    "crashed": ("guard.died", lambda _: ended(code=139)),
    "no report": ("guard.died", lambda _: ended()),
    "anomalies": ("guard.died", lambda _: ended(anomalies=("x: FIFO",))),
    "other bytes": ("guard.died", lying(lambda out, _: (out / "metrics.json").write_bytes(b'{"loss":9.13}'))),
    "extra file": ("guard.died", lying(lambda out, _: (out / "more").write_bytes(b"x"))),
    "file missing": ("guard.died", lying(lambda out, _: (out / "metrics.json").unlink())),
    "too large": ("guard.died", lying(lambda out, _: (out / "metrics.json").write_bytes(bytes(9999)))),
    "other plan": ("guard.died", lying(lambda _, report: report.update(plan_digest="0" * 64))),
    "fewer files": ("guard.died", lying(lambda _, report: report.update(released=[]))),
    "unknown field": ("guard.died", lying(lambda _, report: report.update(note="Mary Smith"))),
}


@pytest.mark.parametrize("name", LIES)
def test_a_process_is_not_believed(folder: Path, tmp_path: Path, name: str) -> None:
    code, act = LIES[name]
    report = run_in_process(folder, PLAN, tmp_path / "out", sandbox=Answering(act))
    assert (report.ok, report.decided, report.code) == (False, False, code)
    assert not any((tmp_path / "out").glob("*"))


def test_an_honest_sandbox_is_believed(folder: Path, tmp_path: Path) -> None:
    report = run_in_process(folder, PLAN, tmp_path / "out", sandbox=Answering(lying(lambda *_: None)))
    assert report.ok
    take(tmp_path / "out", report, PLAN, None)
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(PLAN.files)


@pytest.mark.parametrize("answer", [b"", b"{}", b"[]", b"\xff", b"Traceback", b"null"])
def test_nonsense_is_no_report(answer: bytes) -> None:
    with pytest.raises(Finding, match=r"guard\.died"):
        believed(answer, PLAN)


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


def test_every_code_has_a_refusal_report() -> None:
    for code, (n, _) in CODES.items():
        report = refusal(PLAN, Finding(code))
        assert [check.n for check in report.checks if check.verdict == "fail"] == [n]


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
