"""A job on a dataset that asks for check 8: its own code is the attacker's shadow, behind the same walls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rapha.evidence import canonical, dsse
from rapha.spec.dataset import DatasetManifest
from rapha.spec.disclosure import Leakage, LeakageTest
from rapha.testing import stack as stacks
from rapha.testing.hospital import Terms, write_flchain

pytestmark = pytest.mark.slow


def asking(root: Path, terms: Terms | None = None) -> DatasetManifest:
    """Flchain, where a limit is set that an honest model of 177 numbers keeps by far."""
    written = write_flchain(root, terms)
    test = LeakageTest(shadows=4, canaries=20, limit_s=300, most_tpr=0.1)
    caps = written.disclosure.model_copy(update={"leakage": test})
    manifest = written.model_copy(update={"disclosure": caps})
    (root / "manifest.json").write_text(json.dumps(manifest.dump(), indent=2) + "\n")
    return manifest


def test_weights_leave_with_what_an_attack_on_them_found(tmp_path: Path) -> None:
    with (
        stacks.stack(tmp_path, "outcomes", writer=asking) as stack,
        stacks.node(stack.world.node),
        stacks.people(stack.world),
    ):
        delivered = stacks.deliver(stack, tmp_path / "out")
        entries = stack.journal(delivered.job)
        state = stack.world.node / "state"
    found = Leakage.parse(next(dict(e.data) for e in entries if e.event == "leakage"))
    assert (found.verdict, found.shadows) == ("measured", 4)
    assert found.members > 6000 and found.non_members >= 1000
    assert found.tpr is not None and found.tpr < 0.02
    assert found.low is not None and found.high is not None and found.low <= found.tpr <= found.high
    assert found.auc == pytest.approx(0.5, abs=0.05)
    assert not [e for e in entries if e.event == "shadow"]  # none was left out
    # Shadows were given what the job had been given: everybody is counted once.
    counted: Any = next(e for e in entries if e.event == "counted").data
    assert counted["records"] == counted["patients"] == found.members + found.non_members
    assert not (state / "jobs" / delivered.job).exists()
    # Of what was found, the bundle carries a commitment and no number.
    section = canonical.loads(delivered.bundle)["guard"]
    assert "leakage" not in json.dumps(section) and len(section["report"]) == 64
    usage = dsse.unverified_predicate(canonical.loads(delivered.bundle)["receipt"])["usage"]
    assert usage["records"] == -(-counted["records"] // 10) * 10
