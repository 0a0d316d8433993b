from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rapha.cli.main import run
from rapha.evidence import bundle
from rapha.evidence import verify as verification
from rapha.evidence.keys import SigningKey
from rapha.evidence.verify import StepResult, Verification
from rapha.spec.receipt import SECTIONS


def key() -> str:
    return SigningKey.generate().verify_key.to_text()


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAPHA_TRUST", raising=False)


@pytest.fixture
def trust(tmp_path: Path) -> Path:
    path = tmp_path / "trust.json"
    value: dict[str, Any] = {
        **{"version": 1, "profile": "demo", "hospitals": [key()], "companies": [key()]},
        **{"log": {"origin": "log.example/1", "key": key()}, "policy_bundles": ["aa" * 32]},
        **{"simulated_tee": [key()], "least_assurance": "simulated"},
    }
    path.write_text(json.dumps(value))
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "bundle.json"
    parts: dict[str, Any] = {
        **{name: {} for name in SECTIONS},
        **{"version": 1, "profile": "demo", "receipt": {}, "attestation": {}, "log_salt": "", "log_leaf": ""},
    }
    path.write_bytes(bundle.assemble(parts, {"checkpoint": "", "index": 0, "size": 1, "proof": []}))
    return path


def call(*arguments: str | Path) -> int:
    return run(["verify", *map(str, arguments)])


GOOD = Verification(
    ok=True,
    assurance="simulated",
    steps=(StepResult(1, "format", "pass", "good"), StepResult(2, "anchor", "skipped", "not asked for")),
    proves=("one thing",),
    does_not_prove=("another",),
    unique_records=400,
    artifacts=({"name": "model.safetensors", "sha256": "aa" * 32},),
)


def test_yes_is_0(
    file: Path, trust: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rapha.cli.verify.verify_bundle", lambda *_: GOOD)
    assert call(file, "--trust", trust) == 0
    out, err = capsys.readouterr()
    assert "VERIFIED (assurance: simulated)" in out
    assert out.index("What this proves:") < out.index("one thing") < out.index("What this does not prove:")
    assert err == ""
    assert call(file, "--trust", trust, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "ok": True,
        "assurance": "simulated",
        "steps": [
            {"n": 1, "id": "format", "verdict": "pass", "reason": "good"},
            {"n": 2, "id": "anchor", "verdict": "skipped", "reason": "not asked for"},
        ],
        "proves": ["one thing"],
        "does_not_prove": ["another"],
        "unique_records": 400,
        "artifacts": [{"name": "model.safetensors", "sha256": "aa" * 32}],
    }


def test_no_is_1_and_names_the_step(file: Path, trust: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(file, "--trust", trust) == 1
    out, err = capsys.readouterr()
    assert "NOT VERIFIED (assurance: none)" in out
    assert "verification failed" in err
    assert call(file, "--trust", trust, "--json", "--at", "1800000000") == 1
    value = json.loads(capsys.readouterr().out)
    assert (value["ok"], value["unique_records"], value["artifacts"], value["proves"]) == (False, 0, [], [])
    assert [s["n"] for s in value["steps"]] == list(range(1, len(verification.STEPS) + 1))
    assert [s["verdict"] for s in value["steps"]] == ["pass", "pass", "fail"] + ["skipped"] * (
        len(verification.STEPS) - 3
    )


BYTES = {
    "empty": b"",
    "text": b"hello",
    "list": b"[]",
    "deep": b"[" * 100_000,
    "binary": bytes(range(256)),
    "duplicate keys": b'{"version":1,"version":1}',
    "pretty": json.dumps({"version": 1}, indent=1).encode(),
}


@pytest.mark.parametrize("data", BYTES.values(), ids=BYTES.keys())
def test_bytes_that_are_no_bundle_fail_the_first_step(
    data: bytes, file: Path, trust: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_bytes(data)
    assert call(file, "--trust", trust, "--json") == 1
    steps = json.loads(capsys.readouterr().out)["steps"]
    assert steps[0]["verdict"] == "fail"


def test_a_wrong_call_is_2(file: Path, trust: Path, tmp_path: Path) -> None:
    assert run(["verify"]) == 2
    assert call(file, file, "--trust", trust) == 2
    assert call(file, "--trust", trust, "--force") == 2
    assert call(tmp_path / "missing.json", "--trust", trust) == 2
    assert call(tmp_path, "--trust", trust) == 2
    for at in ("", "tomorrow", "2027-02-30T00:00:00Z", "2027-01-01T00:00:00", "-1", "1e9", "1" * 12):
        assert call(file, "--trust", trust, f"--at={at}") == 2


def test_no_trust_file_is_3_whatever_the_bundle_holds(
    file: Path, trust: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(file) == 3
    assert "never trusted" in capsys.readouterr().err
    monkeypatch.setenv("RAPHA_TRUST", str(trust))
    assert call(file) == 1
    monkeypatch.setenv("RAPHA_TRUST", "")
    assert call(file) == 3


TRUST_BYTES = {
    "empty": b"",
    "list": b"[]",
    "deep": b"[" * 50_000,
    "not UTF-8": b"\xff",
    "no field": b"{}",
    "unknown field": b'{"keys":[]}',
}


@pytest.mark.parametrize("data", TRUST_BYTES.values(), ids=TRUST_BYTES.keys())
def test_a_trust_file_that_is_not_usable_is_3(
    data: bytes, file: Path, trust: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trust.write_bytes(data)
    assert call(file, "--trust", trust, "--json") == 3
    assert capsys.readouterr().out == ""


def test_a_trust_file_that_pins_no_key_is_3(file: Path, trust: Path) -> None:
    value = json.loads(trust.read_text())
    for field, bad in (("hospitals", ["A" * 59 + "="]), ("log", {"origin": "x", "key": "A" * 59 + "="})):
        trust.write_text(json.dumps({**value, field: bad}))
        assert call(file, "--trust", trust) == 3


def test_a_trust_file_that_is_missing_or_a_folder_is_3(file: Path, tmp_path: Path) -> None:
    assert call(file, "--trust", tmp_path / "missing") == 3
    assert call(file, "--trust", tmp_path) == 3


def test_a_chain_that_cannot_be_asked_is_3(file: Path, trust: Path) -> None:
    assert call(file, "--trust", trust, "--rpc", "http://127.0.0.1:1") == 3


def test_nothing_is_written(file: Path, trust: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    call(file, "--trust", trust)
    assert sorted(tmp_path.iterdir()) == before
