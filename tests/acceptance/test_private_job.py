"""A private job from submit to verified bundle: the hospital's own trainer, on real patients' public data."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from safetensors import safe_open

from rapha.evidence import canonical, dsse
from rapha.evidence.verify import verify
from rapha.spec.disclosure import Guarantee
from rapha.spec.refusals import Refused
from rapha.testing import stack as stacks
from rapha.testing.stack import Delivered, Stack


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    root = tmp_path_factory.mktemp("private")
    with (
        stacks.stack(root, case="private") as stack,
        stacks.node(stack.world.node),
        stacks.people(stack.world),
    ):
        yield stack


@pytest.fixture(scope="module")
def delivered(private: Stack, tmp_path_factory: pytest.TempPathFactory) -> Delivered:
    return stacks.deliver(private, tmp_path_factory.mktemp("delivered"))


def test_the_bundle_proves_the_guarantee(delivered: Delivered) -> None:
    found = verify(delivered.bundle, delivered.stack.trust, datetime.now(UTC))
    assert found.ok, [step for step in found.steps if step.verdict == "fail"]
    (line,) = [line for line in found.proves if "differential privacy" in line]
    assert "epsilon 3, delta 1e-06, unit = patient" in line


def test_the_receipt_says_what_was_done(delivered: Delivered) -> None:
    receipt = dsse.unverified_predicate(canonical.loads(delivered.bundle)["receipt"])
    promised = Guarantee.parse(receipt["guarantee"])
    asked = delivered.stack.world.project.load().private
    assert asked is not None
    assert promised.noise_multiplier > 1
    assert (promised.epsilon, promised.delta, promised.steps) == (asked.epsilon, asked.delta, asked.steps)


def test_a_model_that_learned_from_many_and_told_of_nobody(delivered: Delivered) -> None:
    metrics = json.loads((delivered.out / "artifacts" / "metrics.json").read_bytes())
    assert metrics["trusted"]["auroc"] > 0.75
    assert metrics["self_reported"] == {}
    with safe_open(delivered.out / "artifacts" / "model.safetensors", framework="pt") as file:
        assert sorted(file.keys()) == ["head.bias", "head.weight"]


def test_the_owners_and_the_reviewer_saw_the_promise(delivered: Delivered) -> None:
    approved = next(e for e in delivered.stack.journal(delivered.job) if e.event == "approved")
    scope = approved.data["scope"]
    assert scope["guarantee"]["unit"] == "patient"
    assert scope["private"]["model"] == {"kind": "linear"}


def test_nothing_of_the_run_says_how_many_patients_there_were(delivered: Delivered) -> None:
    counted = next(e for e in delivered.stack.journal(delivered.job) if e.event == "counted")
    # As a number of its own: digests and base64 hold any four digits now and then.
    exact = re.compile(rb"(?<![0-9A-Za-z+/=])%d(?![0-9A-Za-z+/=])" % counted.data["patients"])
    bucket = 10
    if counted.data["patients"] % bucket:  # else it is the bucket, which is told
        assert not exact.search(delivered.bundle)
    assert not list(delivered.stack.world.node.rglob("groups.i32"))
    logs = delivered.stack.world.node / "state" / "logs" / delivered.job
    assert not exact.search((logs / "train.log").read_bytes())


def test_an_image_that_shadows_the_trainer_has_no_effect(private: Stack, tmp_path: Path) -> None:
    """It is refused by the scanner; and what the scanner takes for data is not shown to the trainer."""
    project = private.copy_project(tmp_path / "shadow")
    evil = project.folder / "code" / "rapha_trainer" / "private"
    evil.mkdir(parents=True)
    for folder in (evil, evil.parent):
        (folder / "__init__.py").write_text("raise SystemExit('shadowed')\n")
    last = private.follow(private.submit(project))
    assert (last["state"], last["code"]) == ("refused", "policy.scan")


def test_a_promise_that_the_dataset_does_not_offer_is_refused_with_words(
    private: Stack, tmp_path: Path
) -> None:
    project = private.copy_project(tmp_path / "greedy")
    project.file.write_text(project.file.read_text().replace("epsilon: 3.0", "epsilon: 12.0"))
    last = private.follow(private.submit(project))
    assert (last["state"], last["code"]) == ("refused", "budget.disclosure")
    assert "epsilon 8" in last["detail"]


def test_a_cohort_that_would_be_sampled_is_refused_without_a_number(private: Stack, tmp_path: Path) -> None:
    project = private.copy_project(tmp_path / "sampled")
    text = project.file.read_text().replace("max_records: 10000", "max_records: 100")
    project.file.write_text(text)
    last = private.follow(private.submit(project))
    assert (last["state"], last["code"], last["detail"]) == ("refused", "privacy.cohort_refused", None)


def test_a_private_job_that_brings_a_command_is_not_even_signed(private: Stack, tmp_path: Path) -> None:
    project = private.copy_project(tmp_path / "command")
    project.file.write_text(project.file.read_text() + "entrypoint: [python3, train.py]\n")
    with pytest.raises(Refused, match="hospital's program"):
        project.build()
