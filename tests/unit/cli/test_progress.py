"""The live table of the gates: whatever a gate found is shown as it is, and never obeyed."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from rapha.cli import progress
from rapha.node.journal import Journal

HOSTILE = ["[/nope] of a company", "[red]hidden[/red]", ":warning:", "[link=http://evil.example]a[/link]"]


def shown(folder: Path, found: str, terminal: bool, monkeypatch: pytest.MonkeyPatch) -> str:
    out = io.StringIO()

    def console(file: object, **options: bool) -> Console:
        return Console(file=out, width=200, force_terminal=terminal, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(progress, "Console", console)
    with Journal(folder / "journal.jsonl") as log:
        for n, gate in enumerate(("intake", "posture")):
            log.append("gate", "j", gate=gate, verdict="started", at_ms=1000 * n)
            log.append("gate", "j", gate=gate, verdict="passed", at_ms=1000 * n + 500, found=found)
    with progress.Gates(folder / "journal.jsonl"):
        pass
    return out.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("found", HOSTILE)
def test_words_are_no_markup(
    found: str, terminal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shown(tmp_path, found, terminal, monkeypatch).count(found) >= 2


@pytest.mark.parametrize("terminal", [True, False])
def test_words_move_no_cursor(terminal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(tmp_path, "a\x1b[2J\x07b\nc\u202ed", terminal, monkeypatch)
    assert "a?[2J?b?c?d" in text
    assert "\x1b[2J" not in text
