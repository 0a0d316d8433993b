"""`rapha policy`: exit codes, and data on stdout."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from rapha.cli.main import run
from rapha.runtime.policy.bundle import DEFAULT, EXAMPLE

HEAD = "package rapha.admission\n\nimport rego.v1\n\n"


@pytest.fixture
def document(tmp_path: Path) -> Path:
    return write(tmp_path / "input.json")


def write(path: Path, **job: Any) -> Path:
    value = json.loads((DEFAULT / EXAMPLE).read_text())
    value["job"] |= job
    path.write_text(json.dumps(value))
    return path


def a_set(folder: Path, rules: str) -> Path:
    folder.mkdir()
    (folder / "rule.rego").write_text(HEAD + rules)
    return folder


def test_check_says_yes(document: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["policy", "check", "--input", str(document), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["allow"] is True


def test_check_reads_stdin(document: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(document.read_bytes())))
    assert run(["policy", "check", "--input", "-"]) == 0


def test_check_says_no_with_the_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = write(tmp_path / "input.json", purpose="marketing")
    assert run(["policy", "check", "--input", str(document)]) == 1
    out = capsys.readouterr().out
    assert out.startswith("deny\n")
    assert "policy.purpose: " in out


def test_explain_says_what_to_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = write(tmp_path / "input.json", budget_max=None)
    assert run(["policy", "explain", "--input", str(document)]) == 1
    assert "Add `budget` to the job." in capsys.readouterr().out
    assert run(["policy", "explain", "--input", str(document), "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert [reason["code"] for reason in answer["reasons"]] == ["budget.required"]
    assert "Smallest change" in answer["explanation"]


WRONG: dict[str, bytes] = {
    "not JSON": b"{",
    "not UTF-8": b"\xff",
    "a list": b"[]",
    "a fact missing": b'{"job": {}}',
    "a key twice": b'{"job": {}, "job": {}}',
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("command", ["check", "explain"])
def test_a_document_that_is_not_valid_is_a_wrong_call(tmp_path: Path, name: str, command: str) -> None:
    path = tmp_path / "input.json"
    path.write_bytes(WRONG[name])
    assert run(["policy", command, "--input", str(path)]) == 2


@pytest.mark.parametrize("arguments", [["check"], ["check", "--input", "/nonexistent"], ["nonsense"], []])
def test_a_wrong_call(arguments: list[str]) -> None:
    assert run(["policy", *arguments]) == 2


def test_a_set_without_an_answer_is_unknown(document: Path, tmp_path: Path) -> None:
    silent = a_set(tmp_path / "silent", "x := 1\n")
    arguments = ["policy", "check", "--input", str(document), "--bundle"]
    assert run([*arguments, str(silent)]) == 3
    assert run([*arguments, str(tmp_path / "none")]) == 3


def test_a_rule_that_denies_is_a_no_whatever_another_set_fails_to_say(document: Path, tmp_path: Path) -> None:
    silent = a_set(tmp_path / "silent", "x := 1\n")
    deny = a_set(tmp_path / "deny", "default allow := false\n\ndeny := set()\n")
    arguments = ["policy", "check", "--input", str(document), "--bundle", str(silent), "--bundle", str(deny)]
    assert run(arguments) == 1


def test_test_fails_with_a_rule_that_has_no_test(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rule = 'deny contains {"code": "policy.scan", "message": "m", "fix": "f"} if input.none\n'
    assert run(["policy", "test", str(a_set(tmp_path / "set", rule))]) == 1
    assert "FAIL" in capsys.readouterr().out


def test_test_of_a_set_that_does_not_load_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "stray.txt").write_text("x")
    assert run(["policy", "test", str(tmp_path)]) == 3
    assert run(["policy", "test", str(tmp_path / "none")]) == 2


def test_test_of_a_set_without_any_demand_or_test_is_a_no(tmp_path: Path) -> None:
    assert run(["policy", "test", str(a_set(tmp_path / "set", "default allow := false\n"))]) == 1


def test_test_passes_on_a_tested_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = a_set(tmp_path / "set", "default allow := false\n")
    (folder / "rule_test.rego").write_text(
        "package rapha.admission_test\n\nimport rego.v1\n\ntest_allow_never if {\n"
        "\tnot data.rapha.admission.allow\n}\n"
    )
    assert run(["policy", "test", str(folder)]) == 0
    assert capsys.readouterr().out.startswith("pass  rule_test.rego")
