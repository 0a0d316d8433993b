"""`rapha node keys`: the hospital's PHI keys, and whether a job's commitments come out the same again."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from rapha.cli.exits import NO, OK, UNKNOWN, emit, emit_json, leave

if TYPE_CHECKING:
    from rapha.node.datasets.keys import KeyRing
    from rapha.node.datasets.verify import Case, Finding
    from rapha.node.journal import Entry

app = typer.Typer(no_args_is_help=True, help=__doc__)

Work = Annotated[Path, typer.Option("--work", envvar="RAPHA_NODE", help="The node's work directory.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command()
def rotate(work: Work) -> None:
    """Make a new key; jobs from now on get it. Older keys are kept: back the folder `keys/phi` up."""
    emit(_ring(work).rotate().id)


@app.command("list")
def list_keys(work: Work, as_json: Json = False) -> None:
    """Every kept key, oldest first, and how many jobs are under it."""
    from rapha.node.datasets.verify import CONSENTED
    from rapha.spec.units import format_time

    jobs = [str(entry.data["key"]) for entry in _entries(work) if entry.event == CONSENTED]
    found = [
        {
            "key": kept.id,
            "current": kept.current,
            "since": format_time(datetime.fromtimestamp(kept.since, UTC)),
            "jobs": jobs.count(kept.id),
        }
        for kept in _ring(work)
    ]
    if as_json:
        emit_json({"keys": found})
        return
    for key in found:
        state = "current" if key["current"] else "kept"
        emit(f"{key['key']}  {state:<8} since {key['since']}  {key['jobs']} jobs")


@app.command()
def verify(
    job: Annotated[str, typer.Argument(help="The job's id.")], work: Work, as_json: Json = False
) -> None:
    """Compute again what a job committed to, with the key that it used. Exit 1 if anything differs.

    Opt-outs and revisions since then are differences too: each line says what came out.
    """
    from rapha.node.datasets.client import DatasetProcess
    from rapha.node.datasets.verify import verify as verify_case

    with TemporaryDirectory() as shards, DatasetProcess() as data:
        findings = verify_case(_case(work, job, Path(shards)), data)
    verdicts = {finding.verdict for finding in findings}
    if as_json:
        emit_json({"ok": verdicts == {"yes"}, "job": job, "checks": [_dump(f) for f in findings]})
    else:
        for finding in findings:
            emit(f"{finding.verdict:<8} {finding.id:<10} {finding.found}")
    raise SystemExit(NO if "no" in verdicts else UNKNOWN if "unknown" in verdicts else OK)


def _case(work: Path, job: str, shards: Path) -> Case:
    from rapha.node import config as configs
    from rapha.node.datasets.client import means
    from rapha.node.datasets.verify import COUNTED, Case, Commitments
    from rapha.node.node import load_datasets

    config = configs.load(work / "node.json")
    entries = [entry for entry in _entries(work) if entry.job == job]
    told = Commitments.told(entries)
    if told is None:
        leave(UNKNOWN, f"the node's log has no commitments of a job {job}")
    found = [d for d in load_datasets(work, config).values() if d[0].dataset == told.dataset]
    if not found:
        leave(UNKNOWN, f"this node has no dataset {told.dataset!r} any more")
    roots = [str(entry.data["used_root"]) for entry in entries if entry.event == COUNTED]
    manifest, folder = found[0]
    return Case(
        job=job,
        told=told,
        ring=_ring(work),
        manifest=manifest,
        folder=folder,
        means=means(config.preparation, shards.resolve()),
        journal=work.resolve() / config.state / "meters" / f"{job}.journal",
        used_root=roots[-1] if roots else None,
    )


def _ring(work: Path) -> KeyRing:
    from rapha.node import config as configs
    from rapha.node.datasets.keys import KeyRing

    return KeyRing((work / configs.load(work / "node.json").keys).resolve())


def _entries(work: Path) -> list[Entry]:
    from rapha.node import config as configs
    from rapha.node import journal as journals

    return journals.read(work / configs.load(work / "node.json").state / "journal.jsonl")


def _dump(finding: Finding) -> dict[str, str]:
    return {"id": finding.id, "verdict": finding.verdict, "found": finding.found}
