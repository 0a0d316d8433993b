"""A decision in plain words."""

from __future__ import annotations

from rapha.spec.policy import Decision
from rapha.spec.refusals import entry


def explain(decision: Decision) -> str:
    """What was decided, each failing rule, and the smallest change that would pass it."""
    sets = f"{len(decision.bundles)} policy set{'' if len(decision.bundles) == 1 else 's'}"
    if decision.allow:
        return f"Admitted: {sets} allow{'s' if len(decision.bundles) == 1 else ''} this job."
    count = len(decision.reasons)
    lines = [f"Refused, for {count} reason{'' if count == 1 else 's'}; all must be met ({sets})."]
    for number, reason in enumerate(decision.reasons, 1):
        lines += [
            "",
            f"{number}. {entry(reason.code).meaning} [{reason.code}]",
            f"   What is wrong:   {reason.message}",
            f"   Smallest change: {reason.fix}",
        ]
    return "\n".join(lines)
