"""The fuzzer's targets, for a moment in every run of the tests and for longer in a campaign."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

FUZZER = Path(__file__).with_name("fuzz_guard.py")
TARGETS = ["fixed_plan", "any_plan", "self_reported", "report_of_a_process", "plan_of_a_job"]


def fuzz(target: str, corpus: Path, *options: str) -> None:
    """Run `target` until `options` end it."""
    pytest.importorskip("atheris", reason="the fuzzer is for Linux on x86-64")
    limits = ["-max_len=4096", "-timeout=30", "-rss_limit_mb=2048", f"-artifact_prefix={corpus.parent}/"]
    command = [sys.executable, str(FUZZER), target, *limits, *options, str(corpus)]
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory) as scratch:
        environment = os.environ | {"TMPDIR": scratch}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]


def test_a_short_slice_of_every_target(tmp_path: Path) -> None:
    fuzz("everything", tmp_path / "corpus", "-runs=2000", "-seed=7")


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_a_campaign(target: str, tmp_path: Path) -> None:
    seconds = os.environ.get("RAPHA_FUZZ_SECONDS", "60")
    fuzz(target, tmp_path / "corpus", f"-max_total_time={seconds}")
