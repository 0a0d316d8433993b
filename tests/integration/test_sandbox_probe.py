"""The escape suite against the real walls, against walls with a hole, and against none."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from rapha.runtime.sandbox.bubblewrap import Bubblewrap
from rapha.runtime.sandbox.drivers import driver
from rapha.runtime.sandbox.interface import Mount, Running, Spec
from rapha.runtime.sandbox.probe import suite
from rapha.runtime.sandbox.probe.attempts import catalogue
from rapha.runtime.sandbox.probe.attempts.kit import Attempt
from rapha.runtime.sandbox.probe.verdict import Report, Verdict


def left(report: Report) -> list[str]:
    """What was not held, in words."""
    return [f"{row.verdict} {row.id}: {row.how}" for row in report.probes if row.verdict is not Verdict.held]


def test_bubblewrap_holds_all_of_them() -> None:
    command = [sys.executable, "-c", "from rapha.cli.main import main; main()", "sandbox", "probe", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    report = json.loads(done.stdout)
    assert [row for row in report["probes"] if row["verdict"] != "held"] == []
    assert (done.returncode, report["ok"], report["driver"]) == (0, True, "bubblewrap")
    assert {row["control"] for row in report["probes"]} == {"reached"}
    assert report["counts"] == {"held": len(report["probes"]), "escaped": 0, "no_control": 0}
    assert len(report["probes"]) >= 60
    assert report["walls"]["no_new_privs"] == "yes"
    assert "0 escaped" in done.stderr


def lasting(attempt: Attempt) -> bool:
    """All but those that take long by their nature."""
    return attempt not in catalogue.ALONE


def test_without_a_sandbox_all_of_them_get_through() -> None:
    report = suite.probe(None, lasting)
    assert report.driver == "unsafe-none"
    assert {row.verdict for row in report.probes} == {Verdict.escaped}
    assert len(report.probes) >= 60


class _Hole:
    """Bubblewrap, with a folder of the host that nobody asked for."""

    name = "bubblewrap with a hole"

    def __init__(self, hole: Path) -> None:
        self._hole = hole

    def check(self) -> Mapping[str, str]:
        return {}

    def start(self, spec: Spec) -> Running:
        return Bubblewrap().start(replace(spec, mounts=(*spec.mounts, Mount(self._hole, str(self._hole)))))


def test_one_hole_in_real_walls_is_found() -> None:
    report = suite.probe(_Hole(Path("/var/tmp")), lambda attempt: attempt.family == "files")
    escaped = {row.id for row in report.probes if row.verdict is Verdict.escaped}
    assert {"files.secret", "files.up", "files.link", "files.folder"} <= escaped
    assert {"files.passwd", "files.sources", "files.write"}.isdisjoint(escaped)


def brief(attempt: Attempt) -> bool:
    return attempt.family in {"network", "descriptors", "identity", "processes"}


@pytest.mark.peer("runsc")
def test_gvisor_holds_a_short_slice() -> None:
    report = suite.probe(driver("gvisor"), brief)
    assert left(report) == []
    assert len(report.probes) >= 40


@pytest.mark.slow
@pytest.mark.peer("runsc")
def test_gvisor_holds_all_of_them() -> None:
    report = suite.probe(driver("gvisor"))
    assert left(report) == []
    assert report.driver == "gvisor"
    assert len(report.probes) >= 60
