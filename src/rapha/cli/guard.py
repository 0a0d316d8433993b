"""`rapha guard`: what would leave, and what would not, from a folder of outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from rapha.cli.exits import NO, OK, UNKNOWN, WRONG_CALL, emit, emit_json, leave, say
from rapha.evidence import canonical
from rapha.runtime.guard.process import in_use, run_in_child
from rapha.runtime.guard.report import GuardReport
from rapha.spec.refusals import Refused
from rapha.spec.release_plan import ReleasePlan

PLAN_LIMIT: Final = 2**24
TIMEOUT_S: Final = 600.0

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Check a job's outputs against its release plan, and rebuild them."""


@app.command()
def inspect(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that a job left.")],
    plan: Annotated[Path, typer.Option(metavar="PLAN", help="Release plan, JSON.")],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Empty or new folder for the rebuilt files.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Run checks 1 to 7 on DIR, and write the rebuilt files to --out if the answer is yes.

    Exit codes: 0 yes; 1 no; 2 the call or the plan is wrong; 3 could not find out.
    """
    release_plan = _plan(plan)
    if not _is_folder(directory):
        leave(WRONG_CALL, f"{directory} is not a folder")
    if in_use(out):
        leave(WRONG_CALL, f"{out} is not an empty or new folder")
    if out is not None and _resolved(directory) in (_resolved(out), *_resolved(out).parents):
        leave(WRONG_CALL, f"{out} lies in {directory}, where only the job's own files may be")
    report = run_in_child(directory, release_plan, out, TIMEOUT_S)
    if as_json:
        emit_json(report.dump())
    else:
        for file in report.released:
            emit(f"{file.sha256}  {file.name}")
    _say(report)
    raise SystemExit((OK if report.ok else NO) if report.decided else UNKNOWN)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name that is too long, a folder of somebody else
        return False


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:  # a name that is too long, a circle of links
        leave(WRONG_CALL, f"{path}: {error}")


def _plan(path: Path) -> ReleasePlan:
    try:
        with path.open("rb") as stream:
            return ReleasePlan.parse(canonical.loads(stream.read(PLAN_LIMIT + 1), limit=PLAN_LIMIT), "plan")
    except OSError as error:
        leave(WRONG_CALL, f"{path}: {error.strerror}")
    except Refused as refusal:
        leave(WRONG_CALL, f"{refusal.code}: {refusal.detail}")


def _say(report: GuardReport) -> None:
    for check in report.checks:
        say(f"{check.n} {check.id:<10} {check.verdict:<8} {check.reason}")
    verdict = "yes" if report.ok else "no" if report.decided else "could not find out"
    say(f"{verdict}: at most {report.covert_bound_bits} bits can be hidden in what leaves")
