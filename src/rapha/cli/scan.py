"""`rapha scan`: judge an image as the node would."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from rapha.cli.exits import NO, OK, UNKNOWN, WRONG_CALL, emit, leave, say
from rapha.spec.refusals import Refused

app = typer.Typer(add_completion=False, help=__doc__)


@app.command()
def scan(
    image: Annotated[Path, typer.Argument(help="OCI layout: a folder or a tar of one.", exists=True)],
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")] = False,
    sarif: Annotated[Path | None, typer.Option(help="Write SARIF 2.1.0 to this file.")] = None,
    sbom: Annotated[Path | None, typer.Option(help="Write a CycloneDX 1.6 bill of materials.")] = None,
) -> None:
    """Scan an image for what the shipped policy refuses. Exit 0: nothing refuses; 1: something does."""
    from rapha.runtime import scan as scanner
    from rapha.runtime.sandbox.pyruntime import installed

    try:
        report = scanner.run_in_process(image, packages=installed())
    except Refused as refusal:
        if not refusal.code.startswith("image."):
            leave(UNKNOWN, f"could not find out: {refusal}")
        report = _unreadable(refusal)
    if sarif is not None:
        _write(sarif, scanner.sarif(report))
    if sbom is not None and report.digest:
        from rapha.runtime.image import read

        with read(image) as opened:
            _write(sbom, scanner.sbom(opened))
    if as_json:
        emit(json.dumps(report.dump()))
    _summarise(report)
    leave(OK if report.ok else NO)


def _unreadable(refusal: Refused) -> Any:
    """An image that can't be read is a finding about the image as a whole."""
    from rapha.runtime.scan import Finding, ScanReport
    from rapha.runtime.scan.report import SCANNER_VERSION

    finding = Finding(
        rule=refusal.code, severity="refuse", path="", line=None, reason=refusal.detail, fix=refusal.fix
    )
    return ScanReport(ok=False, digest="", findings=(finding,), scanner_version=SCANNER_VERSION, files=0)


def _summarise(report: Any) -> None:
    for finding in report.findings:
        where = finding.path + (f":{finding.line}" if finding.line else "")
        line = f"{finding.severity:6} {finding.rule:22} {where or 'image'}: {finding.reason} {finding.fix}"
        # Paths and reasons quote the image: nothing in them may steer the terminal.
        say("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line))
    refusing = sum(finding.severity == "refuse" for finding in report.findings)
    say(f"{report.files} files, {len(report.findings)} findings, {refusing} refuse")


def _write(path: Path, document: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        leave(WRONG_CALL, f"{path}: {error.strerror}")
