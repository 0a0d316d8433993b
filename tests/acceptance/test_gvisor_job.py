"""The main job, torch and all, on a node whose jobs run under the second driver."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from rapha.evidence.verify import verify
from rapha.spec.receipt import WALLS
from rapha.spec.units import parse_time
from rapha.testing import stack as stacks


@pytest.mark.peer("runsc")
def test_the_main_job_is_delivered_from_a_second_kernel(tmp_path: Path) -> None:
    with stacks.stack(tmp_path / "world") as stack, stacks.people(stack.world):
        path = stack.world.node / "node.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"sandbox": "gvisor"}))
        with stacks.node(stack.world.node):
            delivered = stacks.deliver(stack, tmp_path / "out")
        closed = [e for e in stack.journal(delivered.job) if e.event == "closed"]
        result = verify(delivered.bundle, stack.trust, parse_time(closed[-1].time).replace(microsecond=0))
    assert result.ok, [step for step in result.steps if step.verdict == "fail"]
    receipt = json.loads(base64.b64decode(json.loads(delivered.bundle)["receipt"]["payload"]))["predicate"]
    assert receipt["sandbox"]["driver"] == "gvisor"
    assert receipt["sandbox"]["walls"].keys() >= WALLS["gvisor"]
    metrics = json.loads((delivered.out / "artifacts" / "metrics.json").read_bytes())["trusted"]
    assert metrics["auroc.low"] > 0.9
