"""The marks `peer` and `slow`, as tests/conftest.py obeys them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"
TESTS = """
import pytest

@pytest.mark.peer("sh")
def test_there(): pass

@pytest.mark.peer("sh", "no-such-program")
def test_missing(): pass

@pytest.mark.peer
def test_unnamed(): pass

@pytest.mark.slow
def test_long(): pass
"""


@pytest.mark.parametrize(
    ("environment", "summary"),
    [
        ({}, "1 passed, 2 skipped, 1 error "),
        ({"RAPHA_REQUIRE_PEERS": "1"}, "1 passed, 1 skipped, 2 errors "),
        ({"RAPHA_CAMPAIGN": "1"}, "2 passed, 1 skipped, 1 error "),
    ],
    ids=["here", "in CI", "campaign"],
)
def test_what_runs(tmp_path: Path, environment: dict[str, str], summary: str) -> None:
    shutil.copy(CONFTEST, tmp_path)
    (tmp_path / "test_marks.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nmarkers =\n    slow: long\n    peer: talks to a program\n"
    )
    base = {k: v for k, v in os.environ.items() if not k.startswith(("RAPHA_", "PYTEST_", "COV_"))}
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "-p", "no:cov", "."]
    done = subprocess.run(command, cwd=tmp_path, env=base | environment, capture_output=True, text=True)
    assert summary in done.stdout
    if not environment:
        assert "peer not installed: no-such-program" in done.stdout
