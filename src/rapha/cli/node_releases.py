"""`rapha node releases`: read the one page about what would leave, and sign it or don't."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rapha.cli.exits import UNKNOWN, WRONG_CALL, emit, emit_json, leave, say
from rapha.evidence.keys import SigningKey
from rapha.node import config as configs
from rapha.node.desk import LEAST_PREFIX, Desk
from rapha.node.disclosure.page import Page, read
from rapha.spec.refusals import Refused
from rapha.spec.verdicts import Verdict

app = typer.Typer(no_args_is_help=True, help="Outputs that wait for the reviewers.")

Work = Annotated[Path, typer.Option("--work", envvar="RAPHA_NODE", help="The node's work directory.")]
Job = Annotated[str, typer.Argument(help="The job's id, or a beginning of it that no other has.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command("list")
def list_releases(work: Work, as_json: Json = False) -> None:
    """Outputs that wait: the job, its covert bound, and how many answered."""
    found: list[dict[str, Any]] = [r for r in _desk(work).waiting() if r["kind"] == "review"]
    if as_json:
        emit_json({"requests": found})
        return
    for request in found:
        page = _page(request["job"], request["shown"])
        answered = f"{len(request['answered'])} of {page.required} signed"
        emit(f"{request['job']}  {page.name} of {page.company_id}: {page.release.bits:,} bits, {answered}")
    if not found:
        say("nothing waits")


@app.command()
def show(
    job: Job,
    work: Work,
    html: Annotated[Path | None, typer.Option("--html", help="Write the page as HTML.")] = None,
    pdf: Annotated[Path | None, typer.Option("--pdf", help="Write the page as PDF, one A4 page.")] = None,
    as_json: Json = False,
) -> None:
    """The disclosure report of one job, made anew from the data that a signature would cover."""
    page = _page(*_desk(work).asked(job, "review"))
    if html is not None:
        from rapha.node.disclosure.html import render as as_html

        _write(html, as_html(page).encode())
    if pdf is not None:
        from rapha.node.disclosure.pdf import render as as_pdf

        _write(pdf, as_pdf(page))
    if as_json:
        emit_json({"page": page.digest, "shown": page.dump()})
    elif html is None and pdf is None:
        from rapha.node.disclosure.text import render as as_text

        emit(as_text(page))


@app.command()
def sign(
    job: Job,
    work: Work,
    key: Annotated[Path, typer.Option("--key", help="Your own key (PEM).")],
    metrics_only: Annotated[
        bool, typer.Option("--metrics-only", help="Let only the node's own metrics leave.")
    ] = False,
    refuse: Annotated[bool, typer.Option("--refuse", help="Say no: nothing leaves.")] = False,
    page: Annotated[
        str, typer.Option("--page", help="Sign only if the page's digest begins like this.")
    ] = "",
) -> None:
    """Sign a disclosure report with your own key: release what was planned, unless you say otherwise."""
    if metrics_only and refuse:
        leave(WRONG_CALL, "--metrics-only and --refuse are two verdicts")
    if 0 < len(page) < LEAST_PREFIX:
        leave(WRONG_CALL, f"--page: the first {LEAST_PREFIX} characters of the digest, or more")
    verdict: Verdict = "refuse" if refuse else "metrics-only" if metrics_only else "release"
    desk = _desk(work)
    asked = _page(*desk.asked(job, "review"))
    if not asked.digest.startswith(page.lower()):
        raise Refused("policy.approval_invalid", f"the page that waits is {asked.digest[:16]}…, not this one")
    signing = SigningKey.load(key)
    name = _reviewer(asked, signing)
    desk.answer(asked.job, "review", signing, verdict, seen=asked.digest)
    say(f"{name} signed {verdict!r} for {asked.name}, page {asked.digest[:16]}…")


def _page(job: str, shown: Any) -> Page:
    """The page that is shown for `job`. Raises `Refused` (`policy.approval_invalid`, `schema.*`)."""
    page = read(shown)
    if page.job != job:
        raise Refused("policy.approval_invalid", "the page is about another job than the one that asks")
    return page


def _reviewer(page: Page, key: SigningKey) -> str:
    """Who that is. A key of nobody who was asked would end the job, so it signs nothing.

    Raises:
        Refused: `policy.approval_invalid`.
    """
    for person in page.reviewers:
        if person.key == key.keyid:
            return f"{person.name} ({person.role})"
    raise Refused("policy.approval_invalid", f"key {key.keyid[:16]}… is of no reviewer in the agreement")


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        leave(UNKNOWN, f"{path}: {error.strerror}")


def _desk(work: Path) -> Desk:
    config = configs.load(work / "node.json")
    return Desk(work / config.state / "desk", config.node, config.profile)
