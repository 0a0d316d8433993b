"""Check 6, the job's own numbers: typed, clipped, rounded, and written again from the plan."""

from __future__ import annotations

from rapha.evidence import canonical
from rapha.runtime.guard.codes import Finding
from rapha.spec.refusals import Refused
from rapha.spec.reported import Reported, ReportedField, SelfReportedPlan


def rebuild(data: bytes, plan: SelfReportedPlan) -> dict[str, Reported]:
    """The planned fields' values, by name. Numbers out of range are clipped.

    Raises:
        Finding: any of check 6's codes.
    """
    try:
        stated = canonical.loads(data, limit=plan.input_bytes)
    except Refused as refusal:
        raise Finding("guard.report_json", refusal.detail) from None
    if not isinstance(stated, dict):
        raise Finding("guard.report_json", "not an object")
    planned = [field.name for field in plan.fields]
    for name in stated:
        if name not in planned:
            raise Finding("guard.report_fields", f"{name[:80]!a} is not in the plan")
    for name in planned:
        if name not in stated:
            # An absent field would be one more value, so absence is not a choice.
            raise Finding("guard.report_fields", f"{name} is in the plan and not reported")
    return {field.name: _value(field, stated[field.name]) for field in plan.fields}


def _value(field: ReportedField, value: object) -> Reported:
    try:
        return field.release(value)
    except ValueError as error:
        raise Finding("guard.report_type", f"{field.name}: {error}") from None
