"""The walls of the child that runs Rego."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rapha.runtime.policy import child, worker
from rapha.runtime.policy.bundle import Bundle

HEAD = "package rapha.admission\n\nimport rego.v1\n\n"
QUERY = "x := data.rapha.admission.x"


def task(rules: str, **changes: Any) -> dict[str, Any]:
    return {"modules": [["a.rego", HEAD + rules]], "data": "{}", "input": "{}", "query": QUERY} | changes


def value(text: str) -> list[tuple[str, str]]:
    return [("value", f'{{"expressions":[true], "bindings":{{"x":{text}}}}}')]


def outcome(rules: str) -> child.Outcome:
    return child.run([child.Task(Bundle.of({"a.rego": HEAD + rules}, "{}"), b"{}", QUERY)], 20)


def test_a_task_is_answered_in_order() -> None:
    assert list(worker.run(task("x := 1\n"))) == value("1")
    rules = ("rapha/admission/y", "rapha/admission/x")
    two = task("x := 1\n\ny := 2\n", query=None, queries=rules)
    assert list(worker.run(two)) == [("value", '{"expressions":[2]}'), ("value", '{"expressions":[1]}')]


def test_what_does_not_compile_is_an_error_for_each_query() -> None:
    broken = task("x := \n", query=None, queries=["rapha/admission/x", "rapha/admission/y"])
    assert [kind for kind, _ in worker.run(broken)] == ["error", "error"]


@pytest.mark.parametrize(
    ("rules", "kind"), [("y := 1\n", "undefined"), ("x := 1 / 0\n", "error"), ("x := 1\n", "value")]
)
def test_the_kinds_of_answer(rules: str, kind: str) -> None:
    assert [found for found, _ in worker.run(task(rules))] == [kind]


def test_the_child_has_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAPHA_SECRET", "hunter2")
    assert outcome("x := object.get(opa.runtime(), [`env`, `RAPHA_SECRET`], `none`)\n").answers == tuple(
        value('"none"')
    )


def test_what_was_answered_before_a_crash_is_kept() -> None:
    good = child.Task(Bundle.of({"a.rego": HEAD + "x := 1\n"}, "{}"), b"{}", QUERY)
    crash = HEAD + "x if y with input as {}\ny if z == 0\nz := count(input)\n"
    ended = child.run([good, child.Task(Bundle.of({"a.rego": crash}, "{}"), b"{}", QUERY), good], 20)
    assert ended == child.Outcome(tuple(value("1")), "crashed")  # type: ignore[arg-type]


def test_an_answer_too_large_is_an_error() -> None:
    large = outcome('x := [s | some i in numbers.range(1, 30000); s := "0123456789"]\n')
    assert [kind for kind, _ in large.answers] == ["error"]


def test_an_engine_that_cannot_start_is_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "_COMMAND", ("/nonexistent",))
    assert outcome("x := 1\n") == child.Outcome((), "crashed")


def _start(code: str, rules: str, parent: int) -> subprocess.CompletedProcess[bytes]:
    request = {"parent": parent, "cpu_s": 20, "tasks": [task(rules)]}
    program = f"from rapha.runtime.policy import worker; {code}; worker.main()"
    return subprocess.run(
        [sys.executable, "-I", "-c", program],
        input=json.dumps(request).encode(),
        capture_output=True,
        timeout=60,
    )


def test_a_child_without_its_parent_ends() -> None:
    done = _start("pass", "x := 1\n", parent=1 if os.getpid() != 1 else 2)
    assert (done.returncode, done.stdout) == (1, b"")


def test_a_hungry_policy_is_ended() -> None:
    done = _start(
        "worker.MEMORY_BYTES = 1", "x := count([i | some i in numbers.range(1, 90000)])\n", os.getpid()
    )
    assert (done.returncode, done.stdout) == (1, b"")


def test_the_child_can_write_no_file(tmp_path: Path) -> None:
    target = tmp_path / "out"
    code = f"worker.run = lambda task: [('value', str(open({str(target)!r}, 'w').write('x')))]"
    _start(code, "x := 1\n", os.getpid())
    assert target.read_bytes() == b""
