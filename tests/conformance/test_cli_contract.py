"""The commands and JSON that others' scripts rely on, driven as they drive them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from rapha.researcher import project as projects
from rapha.testing.stack import RAPHA

PLAN = {
    "version": 1,
    "weights": {
        "file": "model.safetensors",
        "release_dtype": "bf16",
        "tensors": [{"name": "fc.weight", "dtype": "F32", "shape": [10, 4], "min": -16.0, "max": 16.0}],
    },
    "self_reported": {
        "file": "metrics.json",
        "fields": [{"name": "loss", "type": "number", "min": 0, "max": 100, "decimals": 3}],
    },
    "trusted_metrics": ["auroc", "accuracy"],
    "max_bytes": 1048576,
}


def _rapha(*arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*RAPHA, *map(str, arguments)], capture_output=True, check=False, timeout=120)


def _object(done: subprocess.CompletedProcess[bytes]) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(done.stdout)
    return value


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("conformance") / "job"
    projects.init("tabular", folder).build()
    return folder


@pytest.fixture
def outputs(tmp_path: Path) -> tuple[Path, Path]:
    folder = tmp_path / "outputs"
    folder.mkdir()
    weights = np.linspace(-20, 20, 40, dtype=np.float32).reshape(10, 4)
    (folder / "model.safetensors").write_bytes(safetensors.numpy.save({"fc.weight": weights}))
    (folder / "metrics.json").write_text('{"loss": 0.31}')
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(PLAN))
    return folder, plan


@pytest.mark.parametrize(
    "command",
    [
        "demo",
        "verify",
        "scan",
        *(
            f"job {c}"
            for c in (
                "init",
                "check",
                "build",
                "sign",
                "submit",
                "list",
                "status",
                "watch",
                "fetch",
                "cancel",
            )
        ),
        *(
            f"node {c}"
            for c in (
                "init",
                "enroll",
                "serve",
                "doctor",
                "stop",
                "datasets",
                "approvals",
                "releases",
                "audit",
            )
        ),
        *(f"coordinator {c}" for c in ("init", "serve", "migrate", "developers", "nodes")),
        *(f"policy {c}" for c in ("test", "explain", "check")),
        "sandbox run",
        "guard inspect",
    ],
)
def test_the_command_is_there_and_explains_itself(command: str) -> None:
    done = _rapha(*command.split(), "--help")
    assert done.returncode == 0
    assert b"--help" in done.stdout


@pytest.mark.parametrize(
    "call",
    [
        ("nothing-like-this",),
        ("verify",),
        ("demo", "--case", "no-such-case"),
        ("scan", "/nonexistent"),
        ("guard", "inspect", "/nonexistent", "--plan", "/nonexistent"),
        ("sandbox", "run", "--driver", "no-such-driver", "--", "true"),
    ],
)
def test_a_wrong_call_exits_2(call: tuple[str, ...]) -> None:
    assert _rapha(*call).returncode == 2


def test_scan_prints_one_json_object(built: Path, tmp_path: Path) -> None:
    sarif, sbom = tmp_path / "s.sarif", tmp_path / "b.json"
    done = _rapha("scan", built / "image", "--json", "--sarif", sarif, "--sbom", sbom)
    assert done.returncode == 0
    answer = _object(done)
    assert set(answer) >= {"ok", "digest", "findings"}
    assert answer["ok"] is True
    assert json.loads(sarif.read_bytes())["version"] == "2.1.0"
    assert json.loads(sbom.read_bytes())["bomFormat"] == "CycloneDX"


def test_scan_says_no_with_a_finding_that_has_a_fix(built: Path, tmp_path: Path) -> None:
    code = tmp_path / "job" / "code"
    projects.init("tabular", tmp_path / "job")
    (code / "train.py").write_text("import socket\n")
    projects.Project(tmp_path / "job").build()
    done = _rapha("scan", tmp_path / "job" / "image", "--json")
    assert done.returncode == 1
    finding = _object(done)["findings"][0]
    assert set(finding) >= {"rule", "severity", "path", "line", "reason", "fix"}
    assert (finding["severity"], finding["line"]) == ("refuse", 1)


def test_the_same_folder_builds_the_same_image(built: Path, tmp_path: Path) -> None:
    projects.init("tabular", tmp_path / "again")
    done = _rapha("job", "build", tmp_path / "again")
    assert done.returncode == 0
    assert done.stdout == _rapha("job", "build", built).stdout


def test_guard_inspect_rebuilds_what_conforms(outputs: tuple[Path, Path], tmp_path: Path) -> None:
    folder, plan = outputs
    done = _rapha("guard", "inspect", folder, "--plan", plan, "--out", tmp_path / "out", "--json")
    assert done.returncode == 0
    answer = _object(done)
    assert set(answer) >= {"ok", "checks", "released", "covert_bound_bits"}
    assert set(answer["checks"][0]) >= {"n", "id", "verdict", "reason", "does_not_show"}
    assert {f["name"] for f in answer["released"]} == {"model.safetensors", "metrics.json"}
    assert answer["covert_bound_bits"] >= 40 * 16


def test_guard_inspect_leaves_out_empty_when_it_says_no(outputs: tuple[Path, Path], tmp_path: Path) -> None:
    folder, plan = outputs
    (folder / "extra.bin").write_bytes(b"x")
    out = tmp_path / "out"
    done = _rapha("guard", "inspect", folder, "--plan", plan, "--out", out, "--json")
    assert done.returncode == 1
    assert _object(done)["ok"] is False
    assert not out.exists() or not list(out.iterdir())


def test_a_plan_that_is_not_valid_exits_2(outputs: tuple[Path, Path]) -> None:
    folder, plan = outputs
    plan.write_text(json.dumps({**PLAN, "max_bytes": -1}))
    assert _rapha("guard", "inspect", folder, "--plan", plan).returncode == 2


def test_sandbox_run_passes_the_exit_code_and_the_output(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    script = "open('/rapha/out/x','w').write('y'); raise SystemExit(7)"
    assert _rapha("sandbox", "run", "--out", out, "--", "python3", "-c", script).returncode == 7
    assert (out / "x").read_text() == "y"
    assert _rapha("sandbox", "run", "--timeout", "1", "--", "sleep", "30").returncode in (124, 127)
    assert (
        _rapha("sandbox", "run", "--timeout", "1", "--", "python3", "-c", "while 1: pass").returncode == 124
    )
