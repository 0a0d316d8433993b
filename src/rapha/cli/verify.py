"""`rapha verify`: one bundle, offline, against roots that the caller chose."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from rapha.cli.exits import NO, OK, UNKNOWN, WRONG_CALL, emit, emit_json, leave, say
from rapha.evidence import canonical
from rapha.evidence.keys import VerifyKey
from rapha.evidence.verify import Verification
from rapha.evidence.verify import verify as verify_bundle
from rapha.spec.refusals import Refused
from rapha.spec.trust import Trust
from rapha.spec.units import parse_time

app = typer.Typer(add_completion=False)


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="The bundle file.")],
    trust: Annotated[
        Path | None, typer.Option(help="Trust file with the roots; else $RAPHA_TRUST.", envvar="RAPHA_TRUST")
    ] = None,
    at: Annotated[str | None, typer.Option(help="Moment to verify at: RFC 3339 or Unix seconds.")] = None,
    rpc: Annotated[str | None, typer.Option(help="Chain endpoint for a live look at the anchor.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Verify BUNDLE step by step, and say what it proves and what it does not.

    Exit codes: 0 every required step passed; 1 a step failed; 2 the call is wrong; 3 could not find out.
    """
    if rpc is not None:
        leave(UNKNOWN, "no trust file names a chain yet, so --rpc has nothing to check against")
    try:
        now = parse_time(at) if at is not None else datetime.now(UTC)
    except Refused as refused:
        leave(WRONG_CALL, f"--at: {refused.detail}")
    roots = _roots(trust)
    try:
        data = bundle.read_bytes()
    except OSError as error:
        leave(WRONG_CALL, f"{bundle}: {error.strerror}")
    result = verify_bundle(data, roots, now)
    if as_json:
        emit_json(result.dump())
    else:
        _print(result)
    raise SystemExit(OK if result.ok else NO)


def _roots(path: Path | None) -> Trust:
    if path is None or not os.fspath(path):
        leave(
            UNKNOWN, "no trust file: give --trust FILE or set RAPHA_TRUST; keys in a bundle are never trusted"
        )
    try:
        trust = Trust.parse(canonical.loads(path.read_bytes()), path.name)
        for key in (*trust.hospitals, *trust.companies, trust.log.key, *trust.simulated_tee):
            VerifyKey.from_text(key)
    except OSError as error:
        leave(UNKNOWN, f"{path}: {error.strerror}")
    except Refused as refused:
        leave(UNKNOWN, f"the trust file is not usable: {refused.detail}")
    return trust


def _print(result: Verification) -> None:
    for step in result.steps:
        emit(f"{step.n:>2} {step.id:<12} {step.verdict:<7} {step.reason}")
    emit("")
    emit(f"{'VERIFIED' if result.ok else 'NOT VERIFIED'} (assurance: {result.assurance})")
    for title, lines in (
        ("What this proves", result.proves),
        ("What this does not prove", result.does_not_prove),
    ):
        emit(f"\n{title}:")
        for line in lines or ("nothing",):
            emit(f"  - {line}")
    if not result.ok:
        say("verification failed")
