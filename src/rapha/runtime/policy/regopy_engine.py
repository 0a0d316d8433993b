"""rego-cpp through `regopy`: every set in its own interpreter, all of them in one child process."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, Final

from rapha.evidence import canonical
from rapha.runtime.policy import child
from rapha.runtime.policy.bundle import Bundle
from rapha.runtime.policy.interface import Answer, Failure, Verdict
from rapha.spec.policy import Reason
from rapha.spec.refusals import Refused

MAX_REASONS: Final = 64

QUERY: Final = (
    "x := [data.rapha.admission.allow, is_set(data.rapha.admission.deny),"
    " count(data.rapha.admission.deny), data.rapha.admission.deny]"
)
_VERDICT: Final = re.compile(
    r'\{"expressions":\[true\], "bindings":\{"x":\[(?P<allow>true|false),true,(?P<count>\d{1,9}),'
)


class RegopyEngine:
    """`Engine` over regopy."""

    @property
    def name(self) -> str:
        return f"regopy {version('regopy')}"

    def decide(self, bundles: Sequence[Bundle], document: bytes, timeout_s: float) -> tuple[Answer, ...]:
        outcome = child.run([child.Task(bundle, document, QUERY) for bundle in bundles], timeout_s)
        answers = [read(kind, text) for kind, text in outcome.answers]
        missing = len(bundles) - len(answers)
        return (*answers, *[_no_answer(outcome.ending, timeout_s)] * missing)


def read(kind: child.Kind, text: str) -> Answer:
    """What one answer to `QUERY` means.

    The verdict and the number of reasons are matched as text from the front, before anything that an
    input could have put there: the engine writes a text with a quote in it unescaped.
    """
    if kind == "undefined":
        return Failure("policy.undefined", "the set defines no `allow` or no `deny` in rapha.admission")
    if kind == "error":
        return Failure("policy.error", f"the engine could not evaluate the set: {text}")
    verdict = _VERDICT.match(text)
    if verdict is None:
        return Failure("policy.error", "`allow` is not a boolean, or `deny` is not a set")
    try:
        deny = _reasons(canonical.loads(text.encode())["bindings"]["x"])
    except (Refused, ValueError) as error:
        return Failure("policy.error", f"`deny` is not a set of {{code, message, fix}}: {error}")
    if len(deny) != int(verdict["count"]):
        return Failure("policy.error", "the reasons can't be read")
    return Verdict(verdict["allow"] == "true", deny)


def _reasons(answer: Any) -> tuple[Reason, ...]:
    if not isinstance(answer, list) or len(answer) != 4 or not isinstance(answer[3], list):
        raise ValueError("unreadable")
    if len(answer[3]) > MAX_REASONS:
        raise ValueError(f"more than {MAX_REASONS} reasons")
    return tuple(Reason.parse(item, "deny") for item in answer[3])


def _no_answer(ending: child.Ending, timeout_s: float) -> Failure:
    if ending == "timeout":
        return Failure("policy.timeout", f"no answer within {timeout_s:g} s")
    return Failure("policy.error", "the engine crashed")
