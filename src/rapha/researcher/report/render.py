"""The report as one self-contained HTML file.

A bundle that did not verify is shown as its failed verification and nothing else: none of its claims is
worth a place on a page that people trust. How hostile text is met: `rapha.runtime.pages`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rapha.evidence.verify import Verification
from rapha.researcher.report import view
from rapha.researcher.report.lines import GateLine
from rapha.runtime import pages


def render(
    *,
    bundle: bytes,
    verification: Verification,
    metrics: Mapping[str, Any],
    timeline: Sequence[GateLine],
    case: str,
) -> str:
    """The report of one job, as HTML text to be written as UTF-8.

    Args:
        bundle: the bytes that `verification` is about.
        verification: the verdict of `rapha.evidence.verify.verify`.
        metrics: the parsed `metrics.json`; empty where the job releases none.
        timeline: the node's journal of the gates; empty where the reader has none.
        case: what the reader calls this job, such as `tabular`.

    Raises:
        Refused: `schema.*` where bundle or metrics are not what was verified.
    """
    job = view.read(bundle, verification, metrics, timeline) if verification.ok else None
    return pages.render(
        "rapha.researcher.report",
        "report.html",
        "report.css",
        case=case,
        job=job,
        verification=verification,
        simulated=verification.ok and verification.assurance == "simulated",
    )
