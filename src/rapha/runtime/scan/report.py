"""What a scan found, and its forms for other tools: SARIF 2.1.0 and CycloneDX 1.6."""

from __future__ import annotations

import hashlib
from typing import Any, Final, Literal

from rapha.runtime.image.model import File, Image
from rapha.spec.base import Model
from rapha.spec.refusals import REGISTRY

SCANNER_VERSION: Final = "2"
MAX_REASON: Final = 400
Severity = Literal["refuse", "warn", "info"]
_LEVELS: Final[dict[Severity, str]] = {"refuse": "error", "warn": "warning", "info": "note"}


class Finding(Model):
    """One observation.

    Attributes:
        rule: a refusal code of the `image` family.
        severity: `refuse` where an entrypoint reaches it or its presence is enough, else `warn` or `info`.
        path: relative to the image's root; empty for the image as a whole.
        line: 1-based, or None where lines mean nothing.
    """

    rule: str
    severity: Severity
    path: str
    line: int | None
    reason: str
    fix: str


class ScanReport(Model):
    """The result for one image. Whether a finding refuses the job is the policy's decision.

    Attributes:
        ok: no finding has severity `refuse`.
        digest: the image's, or empty when it could not be read.
        files: how many files were looked at.
        scanner_version: code and rule table, `1/1`.
        base: diff ids of the allow-listed layers that were not judged, lowest first; empty where all was.
    """

    ok: bool
    digest: str
    findings: tuple[Finding, ...]
    scanner_version: str
    files: int
    base: tuple[str, ...] = ()


def writable(text: str) -> str:
    """`text` without lone surrogates, which no UTF-8 can hold."""
    return text.encode("utf-8", errors="backslashreplace").decode()


def quotable(text: str) -> str:
    """`text` as a reason can hold it: reasons quote the image's code, whatever its length."""
    return writable(text[:MAX_REASON])[:MAX_REASON]


def refusals(report: ScanReport) -> tuple[Finding, ...]:
    """The findings of severity `refuse`: what the shipped policy refuses for."""
    return tuple(finding for finding in report.findings if finding.severity == "refuse")


def sarif(report: ScanReport) -> dict[str, Any]:
    """The report as a SARIF 2.1.0 log (OASIS, 2020)."""
    rules = sorted({finding.rule for finding in report.findings})
    driver = {
        "name": "rapha scan",
        "version": report.scanner_version,
        "rules": [
            {
                "id": rule,
                "shortDescription": {"text": REGISTRY[rule].meaning},
                "help": {"text": REGISTRY[rule].fix},
            }
            for rule in rules
        ],
    }
    run = {
        "tool": {"driver": driver},
        "results": [_result(finding, rules.index(finding.rule)) for finding in report.findings],
        "properties": {"imageDigest": report.digest, "baseLayers": list(report.base)},
    }
    return {"$schema": "https://json.schemastore.org/sarif-2.1.0.json", "version": "2.1.0", "runs": [run]}


def _result(finding: Finding, index: int) -> dict[str, Any]:
    result: dict[str, Any] = {
        "ruleId": finding.rule,
        "ruleIndex": index,
        "level": _LEVELS[finding.severity],
        "message": {"text": f"{finding.reason} {finding.fix}"},
    }
    if finding.path:
        from urllib.parse import quote

        location: dict[str, Any] = {"artifactLocation": {"uri": quote(finding.path)}}
        if finding.line is not None:
            location["region"] = {"startLine": finding.line}
        result["locations"] = [{"physicalLocation": location}]
    return result


def _sha256(file: File) -> str:
    found = hashlib.sha256()
    with file.open() as opened:
        while part := opened.read(1024 * 1024):
            found.update(part)
    return found.hexdigest()


def sbom(image: Image) -> dict[str, Any]:
    """The image's files with their SHA-256, as a CycloneDX 1.6 bill of materials without a clock."""
    components = [
        {
            "type": "file",
            "bom-ref": f"file:{writable(path)}",
            "name": writable(path),
            "hashes": [{"alg": "SHA-256", "content": _sha256(file)}],
        }
        for path, file in image.files.items()
    ]
    subject = {
        "type": "container",
        "bom-ref": image.digest,
        "name": "job image",
        "hashes": [{"alg": "SHA-256", "content": image.digest.removeprefix("sha256:")}],
    }
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": subject},
        "components": components,
    }
