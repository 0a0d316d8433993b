"""`rapha node releases`: what is listed and shown, what is signed, and by whom."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rapha.cli.main import run
from rapha.evidence import canonical, dsse
from rapha.evidence.keys import SigningKey
from rapha.node.config import NodeConfig
from rapha.node.desk import Desk
from rapha.node.disclosure.page import File, Outgoing, Page, Signer, checks
from rapha.node.setup import init
from rapha.spec.disclosure import NOT_ASKED
from rapha.spec.receipt import Review

JOB = "ab" * 32


@pytest.fixture
def work(tmp_path: Path) -> Path:
    config = NodeConfig.parse(
        {
            **{"version": 1, "profile": "demo", "node": "n-1", "datasets": [], "policy_bundles": ["policy"]},
            "coordinator": {"url": "http://127.0.0.1:1", "audience": "rapha.test/log"},
            **{"runtime": ["numpy"], "runtime_name": "python", "wan_waiver": "a test"},
        }
    )
    init(tmp_path / "node", config)
    for name in ("reviewer", "stranger"):
        SigningKey.generate().save(tmp_path / f"{name}.pem")
    return tmp_path / "node"


def waiting(work: Path, **changes: Any) -> Page:
    """A page on the node's desk."""
    key = SigningKey.load(work.parent / "reviewer.pem")
    person = Signer(name="R. Reviewer", role="output reviewer", key=key.keyid)
    leaves = Outgoing(bits=93, parts={"metrics": 93.0}, files=(File(name="metrics.json", bytes=600),))
    values: dict[str, Any] = {
        **{"job": JOB, "report": "d" * 64, "name": "fna", "kind": "train", "profile": "demo"},
        **{"assurance": "simulated", "hospital": "St Elsewhere", "node": "n-1", "company": "Acme"},
        **{"company_id": "acme", "written_by": (), "purpose": "research/diagnosis", "dataset": "fna"},
        **{"dataset_title": "Aspirates", "patients": "up to 10", "release": leaves, "metrics_only": leaves},
        **{"balance": None, "charge": None, "guarantee": None, "checks": checks((), None, NOT_ASKED, None)},
        **{"searched": None, "leakage": NOT_ASKED, "transforms": (), "trusted": {}, "self_reported": {}},
        **{"choices": ("release", "metrics-only", "refuse"), "reviewers": (person,), "required": 1},
    }
    page = Page(**{**values, **changes})
    asked = Review(job=page.job, verdict="release", report=page.report, shown=page.digest)
    desk(work).ask(asked, page.dump())
    return page


def desk(work: Path) -> Desk:
    return Desk(work / "state" / "desk", "n-1", "demo")


def releases(work: Path, *arguments: str) -> int:
    return run(["node", "releases", *arguments, "--work", str(work)])


def signed(work: Path, name: str = "reviewer") -> dict[str, Any]:
    key = SigningKey.load(work.parent / f"{name}.pem")
    envelope = json.loads((desk(work).root / JOB / f"review.{key.keyid}.json").read_bytes())
    statement = dsse.verify(envelope, [key.verify_key], kind="review", profile="demo", audience="n-1")
    return Review.parse(statement.predicate).dump()


def test_nothing_waits(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert releases(work, "list") == 0
    assert releases(work, "list", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"requests": []}
    for command in (["show", JOB], ["sign", JOB, "--key", str(work.parent / "reviewer.pem")]):
        assert releases(work, *command) == 1
        assert "policy.not_found" in capsys.readouterr().err


def test_what_waits_is_listed(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = waiting(work)
    assert releases(work, "list") == 0
    assert capsys.readouterr().out == f"{JOB}  fna of acme: 93 bits, 0 of 1 signed\n"
    assert releases(work, "list", "--json") == 0
    (request,) = json.loads(capsys.readouterr().out)["requests"]
    assert canonical.digest(request["shown"]) == page.digest


def test_the_page_is_shown_in_every_form(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = waiting(work)
    html, pdf = work.parent / "page.html", work.parent / "page.pdf"
    assert releases(work, "show", JOB[:12], "--html", str(html), "--pdf", str(pdf)) == 0
    assert capsys.readouterr().out == ""
    assert page.digest in html.read_text()
    assert pdf.read_bytes().startswith(b"%PDF-")
    assert releases(work, "show", JOB) == 0
    assert page.sentence in capsys.readouterr().out
    assert releases(work, "show", JOB, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"page": page.digest, "shown": page.dump()}


def test_a_page_that_cannot_be_written_is_not_found_out(work: Path) -> None:
    waiting(work)
    assert releases(work, "show", JOB, "--html", str(work / "no" / "such" / "folder.html")) == 3


@pytest.mark.parametrize(
    ("options", "verdict"),
    [([], "release"), (["--metrics-only"], "metrics-only"), (["--refuse"], "refuse")],
)
def test_each_verdict_signs_the_page_that_was_shown(
    work: Path, options: list[str], verdict: str, capsys: pytest.CaptureFixture[str]
) -> None:
    page = waiting(work)
    key = str(work.parent / "reviewer.pem")
    assert releases(work, "sign", JOB[:8], "--key", key, "--page", page.digest[:16], *options) == 0
    assert signed(work) == {"job": JOB, "verdict": verdict, "report": page.report, "shown": page.digest}
    assert f"R. Reviewer (output reviewer) signed '{verdict}'" in capsys.readouterr().err
    assert releases(work, "list") == 0
    assert "1 of 1 signed" in capsys.readouterr().out


def test_two_verdicts_in_one_call_are_a_wrong_call(work: Path) -> None:
    waiting(work)
    key = str(work.parent / "reviewer.pem")
    assert releases(work, "sign", JOB, "--key", key, "--refuse", "--metrics-only") == 2
    assert releases(work, "sign", JOB) == 2


@pytest.mark.parametrize(
    ("name", "options", "code"),
    [
        ("stranger", [], "policy.approval_invalid"),
        ("reviewer", ["--page", "00" * 32], "policy.approval_invalid"),
        ("reviewer", ["--metrics-only"], "schema.field_invalid"),
    ],
)
def test_what_would_not_count_is_not_signed(
    work: Path, name: str, options: list[str], code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    waiting(work, choices=("release", "refuse"), metrics_only=None)
    assert releases(work, "sign", JOB, "--key", str(work.parent / f"{name}.pem"), *options) == 1
    assert code in capsys.readouterr().err
    assert len(list((desk(work).root / JOB).iterdir())) == 1, "the request alone"


def test_a_changed_page_is_neither_shown_nor_signed(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    waiting(work)
    path = desk(work).root / JOB / "review.request.json"
    path.write_text(path.read_text().replace("up to 10", "up to 99"))
    key = str(work.parent / "reviewer.pem")
    for command in (["show", JOB], ["sign", JOB, "--key", key]):
        assert releases(work, *command) == 1
        assert "policy.approval_invalid" in capsys.readouterr().err


def test_a_page_is_named_by_enough_of_its_digest(work: Path) -> None:
    page = waiting(work)
    key = str(work.parent / "reviewer.pem")
    assert releases(work, "sign", JOB, "--key", key, "--page", page.digest[:7]) == 2
    assert len(list((desk(work).root / JOB).iterdir())) == 1, "the request alone"
    assert releases(work, "sign", JOB, "--key", key, "--page", page.digest[:8]) == 0


def test_the_command_on_the_page_signs_that_page_and_no_other(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    waiting(work)
    assert releases(work, "show", JOB) == 0
    printed = next(line for line in capsys.readouterr().out.splitlines() if "--metrics-only" in line)
    words = printed.split()[3:]
    command = [str(work.parent / "reviewer.pem") if word == "KEY" else word for word in words]
    waiting(work, patients="up to 20")
    assert releases(work, *command) == 1
    assert "policy.approval_invalid" in capsys.readouterr().err
    waiting(work)
    assert releases(work, *command) == 0
    assert signed(work)["verdict"] == "metrics-only"


def test_a_page_about_another_job_is_neither_listed_nor_shown_nor_signed(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = waiting(work)
    other = {**page.dump(), "job": "cd" * 32}
    asked = Review(job=JOB, verdict="release", report=page.report, shown=canonical.digest(other))
    desk(work).ask(asked, other)
    key = str(work.parent / "reviewer.pem")
    for command in (["list"], ["show", JOB], ["sign", JOB, "--key", key]):
        assert releases(work, *command) == 1
        assert "policy.approval_invalid" in capsys.readouterr().err
