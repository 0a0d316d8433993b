"""`rapha policy`: run a policy set's tests, decide on an input document, explain the decision."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Final, Literal

import typer

from rapha.cli.exits import NO, OK, UNKNOWN, WRONG_CALL, emit, emit_json, leave, say
from rapha.evidence import canonical
from rapha.runtime.policy.bundle import DEFAULT, Bundle
from rapha.runtime.policy.evaluate import TIMEOUT_S, evaluate
from rapha.runtime.policy.explain import explain as in_words
from rapha.runtime.policy.suite import run_suite
from rapha.spec.policy import AdmissionInput, Decision
from rapha.spec.refusals import Refused

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Test, check and explain admission policy."
)

_NO_ANSWER: Final = frozenset({"policy.undefined", "policy.error", "policy.timeout"})

Input = Annotated[Path, typer.Option("--input", help="The input document, JSON; `-` is stdin.")]
Bundles = Annotated[
    list[Path] | None,
    typer.Option("--bundle", help="A policy set; may be repeated. Default: the shipped set."),
]
Timeout = Annotated[float, typer.Option("--timeout", min=0.01, max=600, help="Seconds for all sets.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command()
def test(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", show_default="the shipped set", help="A policy set.")
    ] = DEFAULT,
) -> None:
    """Run the Rego tests of a policy set, and demand an allow and a deny test for each deny rule.

    Exit codes: 0 all pass; 1 a test fails or is missing; 2 DIR is no folder; 3 the set can't be loaded.
    """
    if not folder.is_dir():
        leave(WRONG_CALL, f"{folder} is not a folder")
    try:
        results = run_suite(folder)
    except Refused as refused:
        leave(UNKNOWN, f"{refused.code}: {refused.detail}")
    for result in results:
        emit(f"{'pass' if result.passed else 'FAIL'}  {result.file:<24} {result.name}")
        if not result.passed:
            emit(f"      {result.problem}")
    failed = sum(not result.passed for result in results)
    say(f"{len(results) - failed} passed, {failed} failed")
    raise SystemExit(NO if failed or not results else OK)


@app.command()
def check(
    document: Input, bundle: Bundles = None, timeout: Timeout = TIMEOUT_S, as_json: AsJson = False
) -> None:
    """Decide on an input document.

    Exit codes: 0 admitted; 1 refused; 2 the document is not valid; 3 a set gave no answer.
    """
    decision = _decide(document, bundle, timeout)
    if as_json:
        emit_json(decision.dump())
    else:
        emit("allow" if decision.allow else "deny")
        for reason in decision.reasons:
            emit(f"{reason.code}: {reason.message}")
    raise SystemExit(_exit(decision))


@app.command()
def explain(
    document: Input, bundle: Bundles = None, timeout: Timeout = TIMEOUT_S, as_json: AsJson = False
) -> None:
    """Say in plain words which rules refuse an input document, and the smallest change that passes each.

    Exit codes: as `rapha policy check`.
    """
    decision = _decide(document, bundle, timeout)
    if as_json:
        emit_json({**decision.dump(), "explanation": in_words(decision)})
    else:
        emit(in_words(decision))
    raise SystemExit(_exit(decision))


def _decide(path: Path, folders: list[Path] | None, timeout_s: float) -> Decision:
    try:
        raw = sys.stdin.buffer.read(canonical.MAX_BYTES + 1) if str(path) == "-" else path.read_bytes()
        document = AdmissionInput.parse(canonical.loads(raw))
    except OSError as error:
        leave(WRONG_CALL, f"{path}: {error.strerror}")
    except Refused as refused:
        leave(WRONG_CALL, f"{path}: {refused.code}: {refused.detail}")
    try:
        bundles = [Bundle.load(folder) for folder in folders or [DEFAULT]]
    except Refused as refused:
        leave(UNKNOWN, f"{refused.code}: {refused.detail}")
    return evaluate(bundles, document, timeout_s)


def _exit(decision: Decision) -> Literal[0, 1, 3]:
    # A rule that denies is a no, whatever another set failed to say.
    if decision.allow:
        return OK
    return UNKNOWN if all(reason.code in _NO_ANSWER for reason in decision.reasons) else NO
