from __future__ import annotations

import ast
import importlib
import json
from pathlib import Path

import pytest

from rapha.cli import exits, main
from rapha.cli.main import COMMANDS, run
from rapha.spec.refusals import Refused


def test_help_lists_every_command_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["-h"], ["help"]):
        assert run(arguments) == 0
        out, err = capsys.readouterr()
        assert all(f"  {name} " in out for name in COMMANDS)
        assert err == ""


def test_no_command_is_a_wrong_call() -> None:
    assert run([]) == 2


def test_the_version_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("rapha ")


@pytest.mark.parametrize(
    "name", ["nope", "", "--verify", "Verify", "verify ", "../verify", "\x00", "rapha.cli"]
)
def test_an_unknown_command_is_a_wrong_call_and_says_so_on_stderr(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([name]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "there is no command" in err


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help_and_refuses_an_unknown_option(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([name, "--help"]) == 0
    assert "Usage" in capsys.readouterr().out
    assert run([name, "--no-such-option"]) == 2


REFUSALS = [
    ("schema.json", 1),
    ("policy.denied", 1),
    ("job.outputs", 1),
    ("node.busy", 3),
    ("node.config", 3),
]


@pytest.mark.parametrize(("code", "expected"), REFUSALS)
def test_a_refusal_is_its_code_its_fix_and_an_exit_code(
    code: str, expected: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuses(**_: object) -> None:
        raise Refused(code, "because")

    monkeypatch.setattr(importlib.import_module(COMMANDS["verify"][0]), "app", refuses)
    assert run(["verify"]) == expected
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"refused: {code}: because\nfix: {Refused(code).fix}\n"


@pytest.mark.parametrize(("left", "expected"), [(None, 0), (0, 0), (3, 3), (137, 137), ("words", 1), ("", 0)])
def test_the_exit_code_of_a_command_is_handed_on(
    left: int | str | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leaves(**_: object) -> None:
        raise SystemExit(left)

    monkeypatch.setattr(importlib.import_module(COMMANDS["verify"][0]), "app", leaves)
    assert run(["verify"]) == expected


def test_main_ends_with_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["rapha", "nope"])
    with pytest.raises(SystemExit) as caught:
        main.main()
    assert caught.value.code == 2


def test_the_codes_are_those_of_the_contract() -> None:
    assert (exits.OK, exits.NO, exits.WRONG_CALL, exits.UNKNOWN) == (0, 1, 2, 3)
    with pytest.raises(SystemExit) as caught:
        exits.leave(exits.UNKNOWN)
    assert caught.value.code == 3


def test_json_is_one_object_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    exits.emit_json({"a": "é"})
    out, err = capsys.readouterr()
    assert json.loads(out) == {"a": "é"}
    assert err == ""


def test_starting_imports_no_command() -> None:
    """Each is imported when it is called: the table's modules appear in no import of `main`."""
    tree = ast.parse(Path(main.__file__).read_text(encoding="utf-8"))
    imported = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert not imported & {module for module, _ in COMMANDS.values()}
