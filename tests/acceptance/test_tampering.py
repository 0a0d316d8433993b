"""A bundle that was changed anywhere does not verify: by accident, by strangers, or by its own node."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from rapha.evidence import bundle as bundles
from rapha.evidence import canonical, dsse
from rapha.evidence.keys import SigningKey
from rapha.evidence.verify import verify
from rapha.spec.trust import Trust
from rapha.testing import forge
from rapha.testing import stack as stacks
from rapha.testing.stack import Delivered
from rapha.testing.world import NODE

FLIPS = 600
CONTEXT = ("profile", "protocol", "audience")


@pytest.fixture(scope="module")
def trust(delivered: Delivered) -> Trust:
    return delivered.stack.trust


def _failed(data: bytes, trust: Trust, now: datetime | None = None) -> str:
    """The step that failed; empty if the bundle verified."""
    result = verify(data, trust, now or datetime.now(UTC))
    return next((s.id for s in result.steps if s.verdict == "fail"), "")


def test_the_untouched_bundle_verifies(delivered: Delivered, trust: Trust) -> None:
    result = verify(delivered.bundle, trust, datetime.now(UTC))
    assert result.ok
    assert result.assurance == "simulated"
    assert [s.verdict for s in result.steps] == ["pass"] * 18 + ["skipped"]
    assert result.unique_records > 0
    assert {a["name"] for a in result.artifacts} == {"model.safetensors", "metrics.json"}
    assert any("simulated" in line for line in result.does_not_prove)


def test_any_single_byte_changed_fails(delivered: Delivered, trust: Trust) -> None:
    random_places = random.Random(20260101).sample(range(len(delivered.bundle)), FLIPS)
    for place in [0, len(delivered.bundle) - 1, *random_places]:
        for mask in (0x01, 0x20):
            data = bytearray(delivered.bundle)
            data[place] ^= mask
            assert _failed(bytes(data), trust), f"byte {place} flipped by {mask:#x} still verifies"


@pytest.mark.parametrize("section", sorted(bundles.CORE | {"log"}))
def test_each_section_removed_or_emptied_fails(delivered: Delivered, trust: Trust, section: str) -> None:
    replacement: Any
    for replacement in ("absent", None, {}, [], "", 0, True):
        parts = canonical.loads(delivered.bundle)
        if replacement == "absent":
            del parts[section]
        else:
            parts[section] = replacement
        assert _failed(canonical.dumps(parts), trust), f"{section} = {replacement!r} verifies"


@pytest.mark.parametrize("entry", sorted(bundles.LOG))
def test_each_part_of_the_log_removed_or_emptied_fails(
    delivered: Delivered, trust: Trust, entry: str
) -> None:
    replacement: Any
    for replacement in ("absent", None, {}, "", -1, 10**9, True, ["00" * 32]):
        parts = canonical.loads(delivered.bundle)
        if replacement == "absent":
            del parts["log"][entry]
        else:
            parts["log"][entry] = replacement
        assert _failed(canonical.dumps(parts), trust), f"log.{entry} = {replacement!r} verifies"


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d + b"\n",
        lambda d: b" " + d,
        lambda d: d[:-1],
        lambda d: b"",
        lambda d: b"[]",
        lambda d: b"null",
        lambda d: b'{"version":1}',
        lambda d: b"\xff" + d,
        lambda d: json.dumps(json.loads(d), indent=1).encode(),
        lambda d: d.replace(b'"version":1', b'"version":1,"version":1'),
        lambda d: d.replace(b'"version":1}', b'"version":2}'),
        lambda d: b"[" * 100_000,
        lambda d: b'{"a":' * 10_000,
    ],
)
def test_malformed_bytes_fail(delivered: Delivered, trust: Trust, change: Callable[[bytes], bytes]) -> None:
    assert _failed(change(delivered.bundle), trust) == "format"


def test_a_bundle_wholly_signed_by_other_keys_fails(
    delivered: Delivered, trust: Trust, tmp_path: Path
) -> None:
    data, other = forge.resigned_by_strangers(delivered.bundle)
    assert verify(data, other, datetime.now(UTC)).ok, "the control: it is right under its own roots"
    assert _failed(data, trust) == "agreement"


def test_a_bundle_from_the_future_fails(delivered: Delivered, trust: Trust) -> None:
    assert _failed(delivered.bundle, trust, datetime.now(UTC) - timedelta(hours=1)) == "receipt"


@pytest.mark.parametrize(("name", "step"), [(f.name, f.step) for f in forge.FORGERIES])
def test_a_node_that_signs_something_else_is_caught(
    delivered: Delivered, trust: Trust, name: str, step: str
) -> None:
    forgery = next(f for f in forge.FORGERIES if f.name == name)
    data = forge.by_the_node(delivered.stack.world, delivered.bundle, forgery)
    assert _failed(data, trust) == step


@pytest.mark.parametrize(
    ("section", "person", "step"), [("approvals", "guardian", "approval"), ("reviews", "reviewer", "review")]
)
def test_people_who_were_shown_different_things_did_not_agree(
    delivered: Delivered, trust: Trust, section: str, person: str, step: str
) -> None:
    world = delivered.stack.world
    key = SigningKey.load(world.people / f"{person}.pem")

    def shown_another(parts: dict[str, Any]) -> None:
        envelopes = parts[section]
        body = next(e for e in envelopes if e["signatures"][0]["keyid"] == key.keyid)
        claims = {k: v for k, v in dsse.unverified_predicate(body).items() if k not in CONTEXT}
        again = dsse.sign(
            section.removesuffix("s"),
            {"job": claims["job"]},
            {**claims, "shown": "0" * 64},
            profile="demo",
            audience=NODE,
            keys=[key],
        )
        others = [e for e in envelopes if e is not body] or [body]
        parts[section] = [*others, again]

    forgery = forge.Forgery("shown another", step, sections=shown_another)
    assert _failed(forge.by_the_node(world, delivered.bundle, forgery), trust) == step


def test_the_forger_itself_makes_bundles_that_verify(delivered: Delivered, trust: Trust) -> None:
    # The control of the table above: re-signed without a change, everything passes.
    data = forge.by_the_node(delivered.stack.world, delivered.bundle, forge.NOTHING)
    assert data != delivered.bundle
    assert not _failed(data, trust)


def test_the_command_says_so_by_its_exit_code(delivered: Delivered, tmp_path: Path) -> None:
    changed = tmp_path / "changed.json"
    changed.write_bytes(delivered.bundle.replace(b'"released"', b'"Released"', 1))
    ok = _rapha(
        "verify", str(delivered.out / "bundle.json"), "--trust", str(delivered.out / "trust.json"), "--json"
    )
    assert ok.returncode == 0
    answer: dict[str, Any] = json.loads(ok.stdout)
    assert set(answer) == {
        "ok",
        "assurance",
        "steps",
        "proves",
        "does_not_prove",
        "unique_records",
        "artifacts",
    }
    assert _rapha("verify", str(changed), "--trust", str(delivered.out / "trust.json")).returncode == 1
    assert _rapha("verify", str(changed)).returncode == 3
    assert (
        _rapha("verify", str(tmp_path / "none"), "--trust", str(delivered.out / "trust.json")).returncode == 2
    )


def _rapha(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*stacks.RAPHA, *arguments], capture_output=True, check=False, env={"PATH": "/usr/bin:/bin"}
    )
