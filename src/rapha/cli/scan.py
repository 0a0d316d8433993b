"""`rapha scan`: judge an image as the node would."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rapha.cli.exits import NO, OK, UNKNOWN, WRONG_CALL, emit, leave, say
from rapha.spec.refusals import Refused

if TYPE_CHECKING:
    from rapha.runtime.image import AllowList

app = typer.Typer(add_completion=False, help=__doc__)


@app.command()
def scan(
    image: Annotated[Path, typer.Argument(help="OCI layout: a folder or a tar of one.", exists=True)],
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")] = False,
    base: Annotated[
        Path | None,
        typer.Option(
            help="OCI layout or archive that a full image stands on, as for `rapha job build --base`: only "
            "what lies above its layers is judged, as by a node that allows it.",
            exists=True,
        ),
    ] = None,
    sarif: Annotated[Path | None, typer.Option(help="Write SARIF 2.1.0 to this file.")] = None,
    sbom: Annotated[Path | None, typer.Option(help="Write a CycloneDX 1.6 bill of materials.")] = None,
) -> None:
    """Scan an image for what the shipped policy refuses. Exit 0: nothing refuses; 1: something does.

    Without --base, all of a full image counts as the submitter's own code, its interpreter included.
    """
    from rapha.runtime import scan as scanner
    from rapha.runtime.image import EMPTY, read

    allow = EMPTY
    try:
        if base is not None:
            allow = _standing_on(base)
        report = scanner.run_in_process(image, allow=allow, packages=_packages(image))
    except Refused as refusal:
        if not refusal.code.startswith("image."):
            leave(UNKNOWN, f"could not find out: {refusal}")
        report = _unreadable(refusal)
    if sarif is not None:
        _write(sarif, scanner.sarif(report))
    if base is not None and report.digest and not report.base:
        leave(NO, f"{image} does not stand on the layers of {base}: build it with `rapha job build --base`")
    if sbom is not None and report.digest:
        with read(image, allow=allow) as opened:
            _write(sbom, scanner.sbom(opened))
    if as_json:
        emit(json.dumps(report.dump()))
    _summarise(report)
    leave(OK if report.ok else NO)


def _standing_on(base: Path) -> AllowList:
    """The allow-list of a node that offers `base`. Raises `Refused` (`image.*`)."""
    from rapha.runtime.image import AllowList, Runtime, inspect

    return AllowList(runtimes=(Runtime(name="base", layers=inspect(base).diff_ids),))


def _packages(image: Path) -> tuple[str, ...]:
    """The distributions beside the image's own: a full image brings all of its own, as at the node.

    Raises:
        Refused: `image.*`.
    """
    from rapha.runtime.image import inspect
    from rapha.runtime.sandbox.pyruntime import installed

    return () if inspect(image).kind == "full" else installed()


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
