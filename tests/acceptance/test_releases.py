"""A release refused, a release signed, and the metrics alone: real processes, two reviewers."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from rapha.cli.main import run
from rapha.evidence import canonical, dsse
from rapha.evidence.keys import SigningKey
from rapha.evidence.verify import verify
from rapha.node.desk import Desk
from rapha.researcher.report import render
from rapha.researcher.signing import SignedJob
from rapha.spec.receipt import Review
from rapha.spec.refusals import Refused
from rapha.testing import forge
from rapha.testing import stack as stacks
from rapha.testing.forge import Forgery
from rapha.testing.stack import Delivered, Stack, Verdicts
from rapha.testing.world import NODE, REVIEWERS

WAIT_S = 4
"""How long this node waits for its reviewers."""
MIXED: Verdicts = {"reviewer": "release", "statistician": "metrics-only"}
ONE: Verdicts = {"reviewer": "release"}
CONTEXT = ("profile", "protocol", "audience")


@pytest.fixture(scope="module")
def reviewing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A coordinator and a hospital whose node is started by each test."""
    with stacks.stack(tmp_path_factory.mktemp("reviewing")) as stack:
        file = stack.world.node / "node.json"
        config = json.loads(file.read_bytes())
        config["waits"] = {**config.get("waits", {}), "review_s": WAIT_S}
        file.write_text(json.dumps(config))
        yield stack


@pytest.fixture(scope="module")
def narrow(reviewing: Stack, tmp_path_factory: pytest.TempPathFactory) -> Delivered:
    """The main job, of which one reviewer released the metrics alone."""
    with stacks.node(reviewing.world.node), stacks.people(reviewing.world, MIXED):
        return stacks.deliver(reviewing, tmp_path_factory.mktemp("narrow"))


def test_metrics_only_delivers_the_nodes_numbers_and_no_byte_of_the_job(narrow: Delivered) -> None:
    assert [p.name for p in (narrow.out / "artifacts").iterdir()] == ["metrics.json"]
    metrics = json.loads((narrow.out / "artifacts" / "metrics.json").read_bytes())
    assert metrics["self_reported"] == {}
    assert metrics["trusted"]["auroc"] > 0.9
    result = verify(narrow.bundle, narrow.stack.trust, datetime.now(UTC))
    assert result.ok
    assert [a["name"] for a in result.artifacts] == ["metrics.json"]
    assert any("2 output reviewer(s)" in line and "metrics alone" in line for line in result.proves)


def test_the_receipt_says_so_and_its_bound_is_that_of_the_metrics(narrow: Delivered) -> None:
    receipt = dsse.unverified_predicate(canonical.loads(narrow.bundle)["receipt"])
    plan = narrow.stack.world.project.load().outputs
    assert receipt["released"] == "metrics"
    assert 0 < receipt["covert_bound_bits"] < plan.released_bits()


def test_the_researchers_report_shows_it(narrow: Delivered) -> None:
    html = render(
        bundle=narrow.bundle,
        verification=verify(narrow.bundle, narrow.stack.trust, datetime.now(UTC)),
        metrics=json.loads((narrow.out / "artifacts" / "metrics.json").read_bytes()),
        timeline=(),
        case="tabular",
    )
    assert "the trusted metrics alone, by the reviewers" in html.replace("&#39;", "'")
    assert "model.safetensors" not in html


def test_nothing_that_was_kept_back_is_left_anywhere(narrow: Delivered) -> None:
    state = narrow.stack.world.node / "state"
    assert not (state / "jobs" / narrow.job).exists()
    assert not (state / "outbox" / narrow.job).exists()
    with pytest.raises(Refused):
        narrow.stack.client.artifact(narrow.job, "model.safetensors")


def _weights_back(parts: dict[str, Any], narrow: Delivered) -> None:
    """The weights as they were planned, told in every place of the bundle where they would be."""
    weights = narrow.stack.world.project.load().outputs.weights
    assert weights is not None
    found = {"name": weights.file, "sha256": "0" * 64, "bytes": weights.released_bytes}
    parts["guard"]["released"].append(found)
    parts["surface"]["artifacts"].append({**found, "cipher_sha256": "0" * 64})


def _subjects_back(subjects: dict[str, str]) -> None:
    subjects["artifact:model.safetensors"] = subjects["ciphertext:model.safetensors"] = "0" * 64


def _signed(narrow: Delivered, name: str, verdict: str) -> Callable[[dict[str, Any]], None]:
    """Let reviewer `name` have signed `verdict` over the same page."""
    key = SigningKey.load(narrow.stack.world.people / f"{name}.pem")

    def change(parts: dict[str, Any]) -> None:
        first = dsse.unverified_predicate(parts["reviews"][0])
        claims = {k: v for k, v in first.items() if k not in CONTEXT} | {"verdict": verdict}
        subject = {"job": claims["job"]}
        again = dsse.sign("review", subject, claims, profile="demo", audience=NODE, keys=[key])
        others = [e for e in parts["reviews"] if e["signatures"][0]["keyid"] != key.keyid]
        parts["reviews"] = [*others, again]

    return change


def _all_of_it(bits: int) -> Callable[[dict[str, Any]], None]:
    return lambda receipt: receipt.update(released="all", covert_bound_bits=bits)


def _forgeries(narrow: Delivered) -> Mapping[str, Forgery]:
    bits = narrow.stack.world.project.load().outputs.released_bits() + 1000

    def widened(parts: dict[str, Any]) -> None:
        _weights_back(parts, narrow)
        parts["guard"]["covert_bound_bits"] = bits

    def low(parts: dict[str, Any]) -> None:
        parts["guard"]["covert_bound_bits"] = 3

    def refused(parts: dict[str, Any]) -> None:
        for name in REVIEWERS:
            _signed(narrow, name, "refuse")(parts)

    def told(parts: dict[str, Any]) -> None:
        parts["surface"]["self_reported"] = {"loss_e01": 0.5}

    return {
        "called all": Forgery("", "guard", receipt=_all_of_it(bits)),
        "weights of a release that nobody signed": Forgery(
            "", "review", sections=widened, receipt=_all_of_it(bits), subjects=_subjects_back
        ),
        "weights under metrics only": Forgery(
            "", "guard", sections=lambda p: _weights_back(p, narrow), subjects=_subjects_back
        ),
        "a bound that the metrics exceed": Forgery(
            "", "guard", sections=low, receipt=lambda r: r.update(covert_bound_bits=3)
        ),
        "self-reported values told": Forgery("", "surface", sections=told),
        "an unknown scope": Forgery("", "receipt", receipt=lambda r: r.update(released="weights")),
        "no scope": Forgery("", "receipt", receipt=lambda r: r.pop("released")),
        "one reviewer's verdict left out": Forgery("", "review", sections=lambda p: p["reviews"].pop()),
        "one reviewer twice": Forgery(
            "", "review", sections=lambda p: p.update(reviews=[p["reviews"][0], p["reviews"][0]])
        ),
        "narrower than both signed": Forgery(
            "", "review", sections=_signed(narrow, "statistician", "release")
        ),
        "one refused": Forgery("", "review", sections=_signed(narrow, "reviewer", "refuse")),
        "both refused": Forgery("", "review", sections=refused),
        "an approver as a reviewer": Forgery("", "review", sections=_signed(narrow, "guardian", "release")),
    }


def test_the_forger_changes_nothing_where_it_is_told_nothing(narrow: Delivered) -> None:
    data = forge.by_the_node(narrow.stack.world, narrow.bundle, forge.NOTHING)
    assert verify(data, narrow.stack.trust, datetime.now(UTC)).ok


def test_both_signing_metrics_only_verifies_as_well(narrow: Delivered) -> None:
    # The control of the table: the verdicts may be changed by who signed them, and the narrowest counts.
    again = Forgery("", "", sections=_signed(narrow, "reviewer", "metrics-only"))
    data = forge.by_the_node(narrow.stack.world, narrow.bundle, again)
    assert verify(data, narrow.stack.trust, datetime.now(UTC)).ok


def test_a_node_that_lies_about_the_verdict_is_caught(narrow: Delivered) -> None:
    missed = {}
    for name, forgery in _forgeries(narrow).items():
        data = forge.by_the_node(narrow.stack.world, narrow.bundle, forgery)
        result = verify(data, narrow.stack.trust, datetime.now(UTC))
        step = next((s.id for s in result.steps if s.verdict == "fail"), "")
        if step != forgery.step:
            missed[name] = step
    assert not missed


def test_weights_of_a_release_that_one_narrowed_do_not_verify(
    delivered: Delivered, narrow: Delivered
) -> None:
    """Everything is as in a full release, but one reviewer had signed the metrics alone."""
    signed = _signed(delivered, "statistician", "metrics-only")
    data = forge.by_the_node(delivered.stack.world, delivered.bundle, Forgery("", "", sections=signed))
    result = verify(data, delivered.stack.trust, datetime.now(UTC))
    assert next(s.id for s in result.steps if s.verdict == "fail") == "review"
    less = Forgery("", "", receipt=lambda r: r.update(released="metrics"))
    data = forge.by_the_node(delivered.stack.world, delivered.bundle, less)
    result = verify(data, delivered.stack.trust, datetime.now(UTC))
    assert next(s.id for s in result.steps if s.verdict == "fail") == "guard"


def test_two_people_sign_by_the_command_and_all_is_released(reviewing: Stack, tmp_path: Path) -> None:
    with (
        stacks.node(reviewing.world.node),
        stacks.people(reviewing.world, {}),
        _followed(reviewing) as signed,
    ):
        _wait_for_page(reviewing, signed)
        command = ("node", "releases")
        work = ("--work", str(reviewing.world.node))
        pdf = tmp_path / "page.pdf"
        assert run([*command, "show", signed.id[:12], "--pdf", str(pdf), *work]) == 0
        for name in REVIEWERS:
            key = str(reviewing.world.people / f"{name}.pem")
            assert run([*command, "sign", signed.id[:12], "--key", key, *work]) == 0
        assert _end(reviewing, signed)["state"] == "delivered"
    data = reviewing.fetch(signed, tmp_path)
    result = verify(data, reviewing.trust, datetime.now(UTC))
    assert {a["name"] for a in result.artifacts} == {"model.safetensors", "metrics.json"}
    assert any("all that was planned" in line for line in result.proves)
    assert pdf.read_bytes().startswith(b"%PDF-")


@pytest.mark.parametrize("other", ["release", pytest.param("metrics-only", marks=pytest.mark.slow)])
def test_a_release_refused(reviewing: Stack, other: Any) -> None:
    verdicts: Verdicts = {"reviewer": other, "statistician": "refuse"}
    with stacks.node(reviewing.world.node), stacks.people(reviewing.world, verdicts):
        signed = reviewing.submit()
        last = reviewing.follow(signed)
    assert (last["state"], last["code"]) == ("refused", "policy.review_refused")
    _nothing_left(reviewing, signed)


def _stranger(stack: Stack, signed: SignedJob) -> None:
    _answer(stack, signed, SigningKey.generate(), {})


def _another_page(stack: Stack, signed: SignedJob) -> None:
    key = SigningKey.load(stack.world.people / "statistician.pem")
    _answer(stack, signed, key, {"shown": "0" * 64})


def _one_key_twice(stack: Stack, signed: SignedJob) -> None:
    folder = stack.world.node / "state" / "desk" / signed.id
    _until(lambda: len(list(folder.glob("review.*.json"))) > 1)
    answer = next(p for p in folder.glob("review.*.json") if p.name != "review.request.json")
    shutil.copy(answer, folder / "review.0123.json")


def _nobody(stack: Stack, signed: SignedJob) -> None:
    return


@pytest.mark.parametrize(
    ("meddle", "code"),
    [
        (_nobody, "policy.approval_missing"),
        pytest.param(_one_key_twice, "policy.approval_missing", marks=pytest.mark.slow),
        pytest.param(_stranger, "policy.approval_invalid", marks=pytest.mark.slow),
        pytest.param(_another_page, "policy.approval_invalid", marks=pytest.mark.slow),
    ],
)
def test_one_reviewer_is_not_two(
    reviewing: Stack, meddle: Callable[[Stack, SignedJob], None], code: str
) -> None:
    with (
        stacks.node(reviewing.world.node),
        stacks.people(reviewing.world, ONE),
        _followed(reviewing) as signed,
    ):
        _wait_for_page(reviewing, signed)
        meddle(reviewing, signed)
        last = _end(reviewing, signed)
    # Which it was stays in the hospital: after a record was served there is one word for all of it.
    assert (last["state"], last["code"], last.get("detail")) == ("failed", "job.failed", None)
    found = [e.data for e in reviewing.journal(signed.id) if e.event == "gate" and e.data.get("code")]
    assert [(f["gate"], f["code"]) for f in found] == [("release", code)]
    _nothing_left(reviewing, signed)


def test_killed_while_it_waits_for_reviewers_nothing_is_left(reviewing: Stack) -> None:
    with (
        stacks.node(reviewing.world.node) as child,
        stacks.people(reviewing.world, ONE),
        _followed(reviewing) as signed,
    ):
        _wait_for_page(reviewing, signed)
        child.kill()
        child.wait()
    _nothing_to_fetch(reviewing, signed)
    with stacks.node(reviewing.world.node):
        last = _end(reviewing, signed)
        assert (last["state"], last["code"]) == ("failed", "node.restarted")
    _nothing_left(reviewing, signed)


@contextmanager
def _followed(stack: Stack) -> Iterator[SignedJob]:
    """A submitted job with the researcher's client beside it, which gives the node its ticket."""
    signed = stack.submit()
    thread = threading.Thread(target=_follow, args=(stack, signed), daemon=True)
    thread.start()
    yield signed
    thread.join(timeout=1)


def _follow(stack: Stack, signed: SignedJob) -> None:
    try:
        stack.follow(signed)
    except Refused:
        pass  # the job ended; the test looks at how


def _wait_for_page(stack: Stack, signed: SignedJob) -> None:
    page = stack.world.node / "state" / "desk" / signed.id / "review.request.json"
    _until(lambda: page.exists() or any(e.event == "ended" for e in stack.journal(signed.id)))
    assert page.exists(), [e.data for e in stack.journal(signed.id)][-2:]


def _answer(stack: Stack, signed: SignedJob, key: SigningKey, changes: Mapping[str, str]) -> None:
    """An answer that no command would sign."""
    desk = Desk(stack.world.node / "state" / "desk", NODE, "demo")
    request = json.loads((desk.root / signed.id / "review.request.json").read_bytes())
    claims = Review.parse({**request["claims"], **changes}).dump()
    envelope = dsse.sign("review", {"job": signed.id}, claims, profile="demo", audience=NODE, keys=[key])
    temporary = desk.root / signed.id / "writing"
    temporary.write_text(json.dumps(envelope))
    temporary.rename(desk.root / signed.id / f"review.{key.keyid}.json")


def _end(stack: Stack, signed: SignedJob) -> dict[str, Any]:
    ends = ("failed", "refused", "delivered", "cancelled")
    _until(lambda: stack.client.get(signed.id)["state"] in ends)
    return stack.client.get(signed.id)


def _nothing_left(stack: Stack, signed: SignedJob) -> None:
    state = stack.world.node / "state"
    for folder in ("jobs", "outbox", "desk"):
        assert not (state / folder / signed.id).exists(), folder
    _nothing_to_fetch(stack, signed)


def _nothing_to_fetch(stack: Stack, signed: SignedJob) -> None:
    for get in (stack.client.bundle, lambda job: stack.client.artifact(job, "metrics.json")):
        with pytest.raises(Refused):
            get(signed.id)


def _until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 40
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)
