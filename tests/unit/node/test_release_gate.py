"""Gate 10 alone: who was asked what, what is kept back, and the last look before an end is committed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rapha.evidence import canonical, dsse
from rapha.evidence.keys import SigningKey
from rapha.evidence.steps.case import AUDIENCE_NODE
from rapha.node.desk import Desk
from rapha.node.disclosure.page import read
from rapha.node.gates import release
from rapha.node.gates.guard import Guarded
from rapha.node.gates.outcome import Clock
from rapha.node.gates.release import Facts, Reviewed
from rapha.runtime.guard.codes import CHECKS
from rapha.runtime.guard.report import Check, GuardReport
from rapha.spec.agreement import Person
from rapha.spec.disclosure import Price
from rapha.spec.refusals import Refused
from rapha.spec.release_plan import ReleasePlan

JOB = "11" * 32
ANN, BEN, CAT, DEV, OTHER = (SigningKey.generate() for _ in range(5))
WEIGHTS = b"w" * 64
PLAN = ReleasePlan.parse(
    {
        **{"version": 1, "max_bytes": 100_000, "trusted_metrics": ["auroc"]},
        "weights": {
            **{"file": "model.safetensors", "release_dtype": "bf16"},
            "tensors": [{"name": "w", "dtype": "F32", "shape": [4, 4], "min": -1.0, "max": 1.0}],
        },
        "self_reported": {
            "file": "reported.json",
            "fields": [{"name": "loss", "type": "number", "min": 0, "max": 1, "decimals": 3}],
        },
    }
)


def person(key: SigningKey, name: str = "A") -> Person:
    return Person(name=name, role="output reviewer", key=key.verify_key.to_text())


class Case:
    """A node that waits at gate 10, as far as the gate looks."""

    def __init__(self, root: Path, plan: ReleasePlan = PLAN, required: int = 2) -> None:
        self.work, self.outbox = root / "work", root / "outbox"
        (self.work / "released").mkdir(parents=True)
        (self.work / "released" / "model.safetensors").write_bytes(WEIGHTS)
        self.outbox.mkdir()
        terms = SimpleNamespace(
            hospital=SimpleNamespace(name="St Elsewhere"),
            company=SimpleNamespace(name="Acme", id="acme"),
            developers=(person(DEV, "D. Eveloper"), person(OTHER, "O. Ther")),
            reviewers=(person(ANN), person(BEN), person(CAT)),
            reviews_required=required,
        )
        job = SimpleNamespace(
            **{"name": "fna", "kind": "train", "purpose": "research/diagnosis", "outputs": plan},
            dataset=SimpleNamespace(max_records=500),
            compute=SimpleNamespace(wall_clock_s=60, cpus=1, memory_bytes=2**30),
            **{"private": None, "predict": ("python3", "predict.py")},
        )
        test = SimpleNamespace(shadows=0, limit_s=1, most_tpr=1.0)
        manifest = SimpleNamespace(
            **{"billing_bucket": 10, "dataset": "fna", "title": "Aspirates", "target": None},
            disclosure=SimpleNamespace(leakage=test),
        )
        self.admitted: Any = SimpleNamespace(
            id=JOB, agreement=SimpleNamespace(terms=terms), job=job, manifest=manifest
        )
        config = SimpleNamespace(profile="demo", node="n-1", waits=SimpleNamespace(review_s=0))
        self.node: Any = SimpleNamespace(config=config, desk=Desk(root / "desk", "n-1", "demo"))
        envelope = dsse.sign(
            "job", {"job": JOB}, {"any": "thing"}, profile="demo", audience=AUDIENCE_NODE, keys=[DEV]
        )
        lease: Any = SimpleNamespace(job_envelope=envelope)
        self.facts = Facts(lease, "up to 10 patients", "simulated", Clock(60), 1, Price(bits=1000))
        report = GuardReport(
            ok=True,
            plan_digest="0" * 64,
            checks=tuple(
                Check(n=n, id=c.id, verdict="pass", reason="fine", does_not_show=c.does_not_show)
                for n, c in CHECKS.items()
            ),
            self_reported={"loss": 0.5} if plan.self_reported else {},
            covert_bound_bits=plan.released_bits(),
        )
        trusted = {"auroc": 0.9} if plan.trusted_metrics else {}
        files = {"model.safetensors": WEIGHTS, "metrics.json": b"{}", "reported.json": b"{}"}
        self.guarded = Guarded(report, "ab" * 32, files, trusted)

    def sign(self, key: SigningKey, verdict: str) -> None:
        self.node.desk.answer(JOB, "review", key, verdict)

    def review(self, *answers: tuple[SigningKey, str]) -> Reviewed:
        """What the gate says when these sign as soon as they are asked."""
        signing = list(answers)

        def stopped() -> bool:
            if not signing:
                return True
            self.sign(*signing.pop(0))
            return False

        self.node.config.waits.review_s = 30
        return release.review(self.node, self.admitted, self.guarded, self.facts, self.work, stopped)

    def confirm(self, reviewed: Reviewed) -> None:
        release.confirm(self.node, self.admitted, reviewed, self.outbox)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def refused(call: Any, *arguments: Any) -> str:
    with pytest.raises(Refused) as caught:
        call(*arguments)
    return caught.value.code


def test_two_yeses_release_all(case: Case) -> None:
    reviewed = case.review((ANN, "release"), (BEN, "release"))
    assert (reviewed.scope, len(reviewed.envelopes)) == ("all", 2)
    assert reviewed.guarded.files == case.guarded.files
    assert reviewed.bits >= PLAN.released_bits()
    case.confirm(reviewed)
    assert case.outbox.exists()
    assert (case.work / "released").exists()


@pytest.mark.parametrize("other", ["release", "metrics-only"])
def test_metrics_only_keeps_back_and_destroys_the_rest(case: Case, other: str) -> None:
    reviewed = case.review((ANN, "metrics-only"), (BEN, other))
    assert reviewed.scope == "metrics"
    assert set(reviewed.guarded.files) == {"metrics.json"}
    assert json.loads(reviewed.guarded.files["metrics.json"]) == {
        "trusted": {"auroc": 0.9},
        "self_reported": {},
    }
    assert reviewed.bits < PLAN.released_bits()
    assert reviewed.guarded.commitment == case.guarded.commitment, "still of the report that was reviewed"
    assert not (case.work / "released").exists()
    case.confirm(reviewed)


def test_what_each_verdict_costs_is_on_the_page(case: Case) -> None:
    reviewed = case.review((ANN, "release"), (BEN, "metrics-only"))
    page = read(case.node.desk.asked(JOB, "review")[1])
    assert page.digest == reviewed.asked.shown
    assert page.metrics_only is not None
    assert (page.metrics_only.bits, [f.name for f in page.metrics_only.files]) == (
        reviewed.bits,
        ["metrics.json"],
    )
    assert page.release.bits - 1 < sum(page.release.parts.values()) <= page.release.bits
    assert [p.name for p in page.written_by] == ["D. Eveloper"], "who signed the job, and nobody else"
    assert [p.key for p in page.reviewers] == [ANN.keyid, BEN.keyid, CAT.keyid]
    # The search and the guard looked at everything, whatever leaves: the times can say as much as before.
    assert page.metrics_only.parts["timing"] == page.release.parts["timing"]


def test_where_there_is_nothing_narrower_it_is_not_offered(tmp_path: Path) -> None:
    case = Case(tmp_path, PLAN.model_copy(update={"trusted_metrics": ()}))
    assert refused(case.review, (ANN, "metrics-only")) == "schema.field_invalid"
    page = read(case.node.desk.asked(JOB, "review")[1])
    assert (page.choices, page.metrics_only) == (("release", "refuse"), None)


def test_one_no_is_a_no(case: Case) -> None:
    assert refused(case.review, (ANN, "release"), (BEN, "refuse")) == "policy.review_refused"


def test_one_yes_is_not_two(case: Case) -> None:
    assert refused(case.review, (ANN, "release")) == "node.stopped"
    case.node.config.waits.review_s = 0
    arguments = (case.node, case.admitted, case.guarded, case.facts, case.work, lambda: False)
    assert refused(release.review, *arguments) == "policy.approval_missing"


@pytest.mark.parametrize(
    ("late", "code"),
    [
        ((CAT, "refuse"), "policy.review_refused"),
        ((CAT, "metrics-only"), "policy.review_refused"),
        ((ANN, "refuse"), "policy.review_refused"),
        ((ANN, "metrics-only"), "policy.review_refused"),
        ((OTHER, "release"), "policy.approval_invalid"),
    ],
)
def test_a_narrower_verdict_that_comes_late_holds_the_release_back(
    case: Case, late: tuple[SigningKey, str], code: str
) -> None:
    reviewed = case.review((ANN, "release"), (BEN, "release"))
    case.sign(*late)
    assert refused(case.confirm, reviewed) == code
    assert not case.outbox.exists()


def test_a_wider_verdict_that_comes_late_changes_nothing(case: Case) -> None:
    reviewed = case.review((ANN, "metrics-only"), (BEN, "release"))
    case.sign(CAT, "release")
    case.confirm(reviewed)
    assert case.outbox.exists()
    assert refused(case.sign, CAT, "refuse") == "policy.not_found", "the page is gone"


def test_a_narrower_verdict_that_is_taken_back_late_holds_the_release_back(case: Case) -> None:
    # Weights were destroyed by then: there is nothing wider to release.
    reviewed = case.review((ANN, "metrics-only"), (BEN, "release"))
    case.sign(ANN, "release")
    assert refused(case.confirm, reviewed) == "policy.review_refused"
    assert not case.outbox.exists()


@pytest.mark.parametrize("gone", [1, 2])
def test_answers_that_vanish_hold_the_release_back(case: Case, gone: int) -> None:
    reviewed = case.review((ANN, "release"), (BEN, "release"))
    for key in (ANN, BEN)[:gone]:
        (case.node.desk.root / JOB / f"review.{key.keyid}.json").unlink()
    assert refused(case.confirm, reviewed) == "policy.approval_missing"
    assert not case.outbox.exists()


def test_a_job_that_nobody_of_the_company_signed_has_no_page(case: Case) -> None:
    lease: Any = SimpleNamespace(
        job_envelope=dsse.sign(
            "job", {"job": JOB}, {}, profile="demo", audience=AUDIENCE_NODE, keys=[SigningKey.generate()]
        )
    )
    facts = Facts(lease, "up to 10 patients", "simulated", Clock(60), 1, Price(bits=1))
    assert refused(release.disclosure, case.node, case.admitted, case.guarded, facts).startswith("policy.")


def test_the_metrics_file_is_canonical() -> None:
    data = release.metrics_only({"b": 1.0, "a": 0.5})
    assert canonical.loads_canonical(data) == {"trusted": {"a": 0.5, "b": 1}, "self_reported": {}}


def test_a_page_that_cannot_be_taken_off_the_desk_holds_the_release_back(case: Case) -> None:
    reviewed = case.review((ANN, "release"), (BEN, "release"))
    request = case.node.desk.root / JOB / "review.request.json"
    request.unlink()
    request.mkdir()
    assert refused(case.confirm, reviewed) == "policy.approval_invalid"
    assert not case.outbox.exists()
