from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rapha.evidence import canonical, dsse
from rapha.evidence.keys import SigningKey
from rapha.node.desk import Desk
from rapha.spec.agreement import Person
from rapha.spec.receipt import Approval, Review
from rapha.spec.refusals import Refused

SHOWN = {"who": "Acme", "patients": "up to 10"}
CHOICES = ("release", "metrics-only", "refuse")
REPORT = {"report": "ff" * 32, "covert_bound_bits": 8_000_000, "choices": list(CHOICES)}
JOB, OTHER_JOB = "11" * 32, "22" * 32
ANN, BEN, EVE = (SigningKey.generate() for _ in range(3))
CLAIMS = Approval(
    job=JOB,
    verdict="approve",
    policy="aa" * 32,
    manifest="bb" * 32,
    cohort="cc" * 32,
    measurement="dd" * 32,
    changes="ee" * 32,
    shown=canonical.digest(SHOWN),
)
REVIEW = Review(job=JOB, verdict="release", report="ff" * 32, shown=canonical.digest(REPORT))


def person(key: SigningKey) -> Person:
    return Person(name="A", role="Caldicott Guardian", key=key.verify_key.to_text())


PEOPLE = [person(ANN), person(BEN)]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    made = Desk(tmp_path / "desk", "hospital-1", "demo")
    made.ask(CLAIMS, SHOWN)
    return made


def collect(desk: Desk, required: int = 1, **changed: Any) -> list[dsse.EnvelopeDict]:
    expected = changed.get("expected", CLAIMS)
    offered = ("approve",) if isinstance(expected, Approval) else CHOICES
    arguments: dict[str, Any] = {
        **{"expected": expected, "people": PEOPLE, "timeout_s": 0.0, "offered": offered},
        **{"stopped": lambda: False, **changed},
    }
    return [answer.envelope for answer in desk.collect(required=required, **arguments)]


def verdicts(desk: Desk, required: int = 1, **changed: Any) -> list[str]:
    return [
        str(dsse.unverified_predicate(e)["verdict"])
        for e in collect(desk, required, expected=REVIEW, **changed)
    ]


def code(desk: Desk, required: int = 1, **changed: Any) -> str:
    with pytest.raises(Refused) as caught:
        collect(desk, required, **changed)
    return caught.value.code


def put(desk: Desk, claims: dict[str, Any], *keys: SigningKey, **changed: Any) -> None:
    """An answer that was not made by `Desk.answer`."""
    context: dict[str, Any] = {"profile": "demo", "audience": "hospital-1", **changed}
    subject = context.pop("subject", JOB)
    kind = context.pop("kind", "approval")
    envelope = dsse.sign(kind, {"job": subject}, claims, keys=keys or [ANN], **context)
    (desk.root / JOB / f"approval.{(keys or [ANN])[0].keyid}.json").write_text(json.dumps(envelope))


def test_two_of_two_answers_are_enough_and_one_is_not(desk: Desk) -> None:
    assert code(desk, 2) == "policy.approval_missing"
    desk.answer(JOB, "approval", ANN, "approve")
    assert code(desk, 2) == "policy.approval_missing"
    desk.answer(JOB, "approval", BEN, "approve")
    answers = collect(desk, 2)
    assert {a["signatures"][0]["keyid"] for a in answers} == {ANN.keyid, BEN.keyid}


def test_one_person_twice_is_one(desk: Desk) -> None:
    desk.answer(JOB, "approval", ANN, "approve")
    folder = desk.root / JOB
    shutil.copy(folder / f"approval.{ANN.keyid}.json", folder / f"approval.{BEN.keyid}.json")
    desk.answer(JOB, "approval", ANN, "approve")
    assert code(desk, 2) == "policy.approval_missing"
    assert code(desk, 2, people=[person(ANN), person(ANN)]) == "policy.approval_missing"


def test_no_requirement_is_not_a_yes(desk: Desk) -> None:
    assert code(desk, 0) == "policy.approval_missing"


def test_nobody_who_may_sign_is_not_a_yes(desk: Desk) -> None:
    assert code(desk, people=[]) == "policy.approval_missing"
    desk.answer(JOB, "approval", ANN, "approve")
    assert code(desk, people=[]) == "policy.approval_invalid"


def test_one_no_is_a_no(desk: Desk) -> None:
    desk.answer(JOB, "approval", ANN, "approve")
    desk.answer(JOB, "approval", BEN, "refuse")
    assert code(desk) == "policy.approval_refused"


@pytest.fixture
def reviewing(tmp_path: Path) -> Desk:
    made = Desk(tmp_path / "reviews", "hospital-1", "demo")
    made.ask(REVIEW, REPORT)
    return made


@pytest.mark.parametrize(
    ("first", "second"),
    [("release", "release"), ("release", "metrics-only"), ("metrics-only", "metrics-only")],
)
def test_reviewers_may_say_different_yeses(reviewing: Desk, first: str, second: str) -> None:
    reviewing.answer(JOB, "review", ANN, first)
    assert code(reviewing, 2, expected=REVIEW) == "policy.approval_missing"
    reviewing.answer(JOB, "review", BEN, second)
    assert sorted(verdicts(reviewing, 2)) == sorted([first, second])


@pytest.mark.parametrize("yes", ["release", "metrics-only"])
def test_one_refusal_is_a_no_whatever_the_others_say(reviewing: Desk, yes: str) -> None:
    reviewing.answer(JOB, "review", ANN, yes)
    reviewing.answer(JOB, "review", BEN, "refuse")
    # Enough said yes, and before: the refusal still counts, since it lies on the desk.
    assert code(reviewing, 1, expected=REVIEW) == "policy.review_refused"
    reviewing.answer(JOB, "review", BEN, yes)
    assert verdicts(reviewing, 2) == [yes, yes]


def test_a_verdict_that_is_not_offered_is_neither_signed_nor_taken(reviewing: Desk) -> None:
    reviewing.answer(JOB, "review", ANN, "metrics-only")
    assert code(reviewing, expected=REVIEW, offered=("release", "refuse")) == "policy.approval_invalid"
    shown = {**REPORT, "choices": ["release", "refuse"]}
    reviewing.ask(REVIEW.model_copy(update={"shown": canonical.digest(shown)}), shown)
    with pytest.raises(Refused) as caught:
        reviewing.answer(JOB, "review", BEN, "metrics-only")
    assert caught.value.code == "schema.field_invalid"


def test_no_choices_no_verdict(reviewing: Desk) -> None:
    shown = {"report": "ff" * 32}
    reviewing.ask(REVIEW.model_copy(update={"shown": canonical.digest(shown)}), shown)
    with pytest.raises(Refused) as caught:
        reviewing.answer(JOB, "review", BEN, "release")
    assert caught.value.code == "schema.field_invalid"


def test_one_key_has_one_verdict(reviewing: Desk) -> None:
    reviewing.answer(JOB, "review", ANN, "release")
    kept = (reviewing.root / JOB / f"review.{ANN.keyid}.json").read_bytes()
    reviewing.answer(JOB, "review", ANN, "metrics-only")
    (reviewing.root / JOB / "review.0.json").write_bytes(kept)
    assert code(reviewing, expected=REVIEW) == "policy.approval_invalid"
    reviewing.answer(JOB, "review", ANN, "refuse")
    assert code(reviewing, expected=REVIEW) == "policy.review_refused"


def test_who_signs_after_the_page_was_taken_away_is_told_so(reviewing: Desk) -> None:
    reviewing.answer(JOB, "review", ANN, "release")
    reviewing.close(JOB, "review")
    reviewing.close(JOB, "review")
    assert verdicts(reviewing) == ["release"]
    with pytest.raises(Refused) as caught:
        reviewing.answer(JOB, "review", BEN, "refuse")
    assert caught.value.code == "policy.not_found"


@pytest.mark.parametrize("take", [Desk.close, lambda desk, job, kind: desk.clear(job)])
def test_an_answer_that_crosses_with_the_decision_is_told_so(
    reviewing: Desk, monkeypatch: pytest.MonkeyPatch, take: Callable[..., None]
) -> None:
    sign = dsse.sign

    def slowly(*arguments: Any, **named: Any) -> dsse.EnvelopeDict:
        take(reviewing, JOB, "review")  # the node decides while the reviewer's key is at work
        return sign(*arguments, **named)

    monkeypatch.setattr("rapha.node.desk.dsse.sign", slowly)
    with pytest.raises(Refused) as caught:
        reviewing.answer(JOB, "review", ANN, "refuse")
    assert caught.value.code == "policy.not_found"


def test_a_request_is_found_by_a_beginning_of_its_job(desk: Desk) -> None:
    assert desk.asked(JOB, "approval") == (JOB, SHOWN)
    assert desk.asked(JOB[:8], "approval")[0] == JOB
    desk.ask(CLAIMS.model_copy(update={"job": JOB[:60] + "2222"}), SHOWN)
    for name in (JOB[:7], "", JOB[:60], OTHER_JOB, "../" + JOB, "*" * 8, "/" + JOB):
        with pytest.raises(Refused) as caught:
            desk.asked(name, "approval")
        assert caught.value.code == "policy.not_found"
    with pytest.raises(Refused):
        desk.asked(JOB, "review")


def test_a_request_in_another_jobs_folder_is_not_shown(desk: Desk) -> None:
    (desk.root / JOB).rename(desk.root / OTHER_JOB)
    with pytest.raises(Refused) as caught:
        desk.asked(OTHER_JOB, "approval")
    assert caught.value.code == "policy.approval_invalid"


def test_the_node_stopping_ends_the_wait(desk: Desk) -> None:
    assert code(desk, stopped=lambda: True, timeout_s=60.0) == "node.stopped"


def test_an_answer_by_a_stranger_refuses(desk: Desk) -> None:
    desk.answer(JOB, "approval", EVE, "approve")
    assert code(desk) == "policy.approval_invalid"


FORGED: dict[str, Callable[[Desk], None]] = {
    "another job": lambda desk: put(desk, {**CLAIMS.dump(), "job": OTHER_JOB}),
    "another job as subject": lambda desk: put(desk, CLAIMS.dump(), subject=OTHER_JOB),
    "another cohort": lambda desk: put(desk, {**CLAIMS.dump(), "cohort": "00" * 32}),
    "another cohort, refused": lambda desk: put(
        desk, {**CLAIMS.dump(), "cohort": "00" * 32, "verdict": "refuse"}
    ),
    "extra claim": lambda desk: put(desk, {**CLAIMS.dump(), "note": "ok"}),
    "missing claim": lambda desk: put(desk, {"job": JOB, "verdict": "approve"}),
    "verdict true": lambda desk: put(desk, {**CLAIMS.dump(), "verdict": True}),
    "verdict unknown": lambda desk: put(desk, {**CLAIMS.dump(), "verdict": "Approve"}),
    "a review": lambda desk: put(desk, REVIEW.dump(), kind="review"),
    "production": lambda desk: put(desk, CLAIMS.dump(), profile="production"),
    "another node": lambda desk: put(desk, CLAIMS.dump(), audience="hospital-2"),
    "two people in one": lambda desk: put(desk, CLAIMS.dump(), ANN, BEN),
    "a person and a stranger": lambda desk: put(desk, CLAIMS.dump(), ANN, EVE),
}


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED.keys())
def test_a_forged_answer_refuses(desk: Desk, forge: Callable[[Desk], None]) -> None:
    forge(desk)
    assert code(desk) == "policy.approval_invalid"


def test_every_changed_byte_of_an_answer_refuses_or_changes_nothing(desk: Desk) -> None:
    desk.answer(JOB, "approval", ANN, "approve")
    path = desk.root / JOB / f"approval.{ANN.keyid}.json"
    data = path.read_bytes()
    good = json.loads(data)
    for i in range(0, len(data), 5):
        path.write_bytes(data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :])
        try:
            assert collect(desk) == [good]
        except Refused as refused:
            assert refused.code == "policy.approval_invalid"


GARBAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_bytes(b"yes"),
    "null": lambda path: path.write_bytes(b"null"),
    "list": lambda path: path.write_bytes(b"[]"),
    "not UTF-8": lambda path: path.write_bytes(b"\xff\xfe"),
    "deep": lambda path: path.write_bytes(b"[" * 50_000),
    "duplicate keys": lambda path: path.write_bytes(b'{"payload":"","payload":""}'),
    "large": lambda path: path.write_bytes(b" " * (2**20 + 1)),
    "directory": lambda path: path.mkdir(),
    "link": lambda path: path.symlink_to("approval.request.json"),
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "FIFO": os.mkfifo,
}


@pytest.mark.parametrize("make", GARBAGE.values(), ids=GARBAGE.keys())
def test_garbage_in_the_folder_refuses_and_never_blocks(desk: Desk, make: Callable[[Path], object]) -> None:
    desk.answer(JOB, "approval", ANN, "approve")
    make(desk.root / JOB / "approval.x.json")
    assert code(desk) == "policy.approval_invalid"


REQUESTS: dict[str, bytes] = {
    "empty": b"",
    "list": b"[]",
    "no claims": b'{"job":"","kind":"approval","shown":{}}',
    "claims are text": b'{"job":"","kind":"approval","shown":{},"claims":""}',
    "kind is a path": b'{"job":"","kind":"../../x","shown":{},"claims":{}}',
    "deep": b"[" * 50_000,
}


@pytest.mark.parametrize("data", REQUESTS.values(), ids=REQUESTS.keys())
def test_an_unreadable_request_refuses(desk: Desk, data: bytes) -> None:
    (desk.root / JOB / "approval.request.json").write_bytes(data)
    for call in (desk.waiting, lambda: desk.answer(JOB, "approval", ANN, "approve")):
        with pytest.raises(Refused) as caught:
            call()
        assert caught.value.code == "policy.approval_invalid"


def test_a_changed_request_does_not_pass_for_what_the_node_asked(desk: Desk) -> None:
    path = desk.root / JOB / "approval.request.json"
    path.write_text(path.read_text().replace("cc" * 32, "00" * 32))
    desk.answer(JOB, "approval", ANN, "approve")
    assert code(desk) == "policy.approval_invalid"


@pytest.mark.parametrize(("kind", "verdict"), [("approval", "approve"), ("review", "release")])
def test_a_person_does_not_sign_what_they_were_not_shown(desk: Desk, kind: Any, verdict: str) -> None:
    desk.ask(REVIEW, REPORT)
    path = desk.root / JOB / f"{kind}.request.json"
    request = json.loads(path.read_text())
    request["shown"] = {**request["shown"], "covert_bound_bits": 12}
    path.write_text(json.dumps(request))
    with pytest.raises(Refused) as caught:
        desk.answer(JOB, kind, ANN, verdict)
    assert caught.value.code == "policy.approval_invalid"
    # And where the claims were changed to fit, the node does not take the signature for its own question's.
    request["claims"]["shown"] = canonical.digest(request["shown"])
    path.write_text(json.dumps(request))
    desk.answer(JOB, kind, ANN, verdict)
    assert code(desk, expected=CLAIMS if kind == "approval" else REVIEW) == "policy.approval_invalid"


def test_a_report_that_is_not_shown_is_neither_asked_for_nor_signed(desk: Desk) -> None:
    other = {**REPORT, "report": "00" * 32}
    with pytest.raises(Refused) as caught:
        desk.ask(REVIEW.model_copy(update={"shown": canonical.digest(other)}), other)
    assert caught.value.code == "policy.approval_invalid"


def test_an_answer_needs_a_request_and_one_of_its_verdicts(desk: Desk) -> None:
    for job, kind, verdict, expected in (
        (OTHER_JOB, "approval", "approve", "policy.not_found"),
        (JOB, "review", "release", "policy.not_found"),
        (JOB, "approval", "release", "schema.field_invalid"),
        (JOB, "approval", "", "schema.field_invalid"),
    ):
        with pytest.raises(Refused) as caught:
            desk.answer(job, kind, ANN, verdict)  # type: ignore[arg-type]
        assert caught.value.code == expected


def test_what_waits_is_listed_with_who_answered_and_cleared(desk: Desk) -> None:
    desk.answer(JOB, "approval", ANN, "approve")
    (waiting,) = desk.waiting()
    assert waiting["shown"] == SHOWN
    assert waiting["answered"] == [ANN.keyid]
    desk.clear(JOB)
    desk.clear(JOB)
    assert desk.waiting() == []
    assert list(desk.root.iterdir()) == []


def test_a_folder_that_goes_while_the_desk_is_read_is_no_trouble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(tmp_path, "n", "demo")
    (tmp_path / ("a" * 64)).mkdir()
    glob = Path.glob

    def going(folder: Path, pattern: str) -> Any:
        if folder != tmp_path:
            raise FileNotFoundError(folder)
        return glob(folder, pattern)

    monkeypatch.setattr(Path, "glob", going)
    assert desk.waiting() == []


@pytest.mark.parametrize(
    "make", [os.mkfifo, os.mkdir, lambda p: p.symlink_to("/dev/zero")], ids=["fifo", "folder", "symlink"]
)
def test_a_request_that_is_no_file_refuses_and_hangs_nobody(desk: Desk, make: Callable[[Path], None]) -> None:
    path = desk.root / JOB / "approval.request.json"
    path.unlink()
    make(path)
    for call in (desk.waiting, lambda: desk.asked(JOB, "approval")):
        with pytest.raises(Refused) as caught:
            call()
        assert caught.value.code == "policy.approval_invalid"


@pytest.mark.parametrize(
    "change",
    [{"job": "\x1b[2J"}, {"job": OTHER_JOB}, {"job": {}}, {"kind": "review"}, {"shown": {}}],
    ids=str,
)
def test_a_request_that_is_not_what_its_place_says_is_neither_listed_nor_signed(
    desk: Desk, change: dict[str, Any]
) -> None:
    path = desk.root / JOB / "approval.request.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    calls = (
        desk.waiting,
        lambda: desk.asked(JOB, "approval"),
        lambda: desk.answer(JOB, "approval", ANN, "approve"),
    )
    for call in calls:
        with pytest.raises(Refused) as caught:
            call()
        assert caught.value.code == "policy.approval_invalid"
    assert list((desk.root / JOB).iterdir()) == [path]


def test_a_request_is_answered_in_its_own_folder_alone(desk: Desk) -> None:
    for job in (f"../{desk.root.name}/{JOB}", f"./{JOB}", f"{JOB}/."):
        with pytest.raises(Refused):
            desk.answer(job, "approval", ANN, "approve")
    assert [p.name for p in (desk.root / JOB).iterdir()] == ["approval.request.json"]


def test_what_was_swapped_after_it_was_read_is_not_signed(reviewing: Desk) -> None:
    _, shown = reviewing.asked(JOB, "review")
    swapped = {**REPORT, "covert_bound_bits": 8}
    reviewing.ask(REVIEW.model_copy(update={"shown": canonical.digest(swapped)}), swapped)
    with pytest.raises(Refused) as caught:
        reviewing.answer(JOB, "review", ANN, "release", seen=canonical.digest(shown))
    assert caught.value.code == "policy.approval_invalid"
    assert [p.name for p in (reviewing.root / JOB).iterdir()] == ["review.request.json"]
    reviewing.answer(JOB, "review", ANN, "release", seen=canonical.digest(swapped))


def test_a_request_that_cannot_be_closed_is_a_no(reviewing: Desk) -> None:
    path = reviewing.root / JOB / "review.request.json"
    path.unlink()
    path.mkdir()
    with pytest.raises(Refused) as caught:
        reviewing.close(JOB, "review")
    assert caught.value.code == "policy.approval_invalid"
