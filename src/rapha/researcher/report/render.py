"""One self-contained HTML file: no script, no request, every word from the arguments.

A bundle that did not verify is shown as its failed verification and nothing else: none of its claims is
worth a place on a page that people trust. Hostile text is met three times: what is not printable becomes
`?`, the template escapes, and the page's own content security policy allows one style sheet and no more.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

from rapha.evidence.verify import Verification
from rapha.researcher.report import view
from rapha.researcher.report.lines import GateLine
from rapha.researcher.report.svg import Markup
from rapha.spec.surface import printable

if TYPE_CHECKING:
    from jinja2 import Environment

SENTENCE: Final = (
    "Automated checks cannot exclude that weights encode patient data; the maximum is the bound above."
)


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
    style = _resource("report.css")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return (
        _environment()
        .get_template("report.html")
        .render(
            case=case,
            job=job,
            verification=verification,
            simulated=verification.ok and verification.assurance == "simulated",
            sentence=SENTENCE,
            style=Markup(style),
            style_digest=digest,
        )
    )


def _environment() -> Environment:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    return Environment(
        autoescape=True,
        finalize=_plain,
        loader=FunctionLoader(_resource),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _plain(value: object) -> object:
    # Markup of our own is left as it is; text loses controls, bidirectional overrides and lone surrogates.
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _resource(name: str) -> str:
    return resources.files("rapha.researcher.report").joinpath(name).read_text("utf-8")
