"""Which nodes may run a job, and why not: a pure function of the job and the catalogues."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from rapha.coordinator.accounts import Node


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a job says about where it runs."""

    nodes: Literal["any"] | tuple[str, ...]
    dataset_profile: str


@dataclass(frozen=True, slots=True)
class Eligibility:
    """A node's answer: eligible, or every reason why not."""

    node: str
    reasons: tuple[str, ...]

    @property
    def eligible(self) -> bool:
        """Whether nothing speaks against the node."""
        return not self.reasons

    def dump(self) -> dict[str, Any]:
        """As JSON types."""
        return {"node": self.node, "eligible": self.eligible, "reasons": list(self.reasons)}


def judge(wanted: Wanted, node: Node) -> Eligibility:
    """Judge one node."""
    reasons = []
    if wanted.nodes != "any" and node.name not in wanted.nodes:
        reasons.append("the job does not list this node")
    if wanted.dataset_profile not in node.profiles:
        reasons.append(f"its catalogue has no dataset of profile {wanted.dataset_profile}")
    return Eligibility(node.name, tuple(reasons))


def explain(wanted: Wanted, nodes: Iterable[Node]) -> list[Eligibility]:
    """Judge every enrolled node; a listed node that isn't enrolled is named as well."""
    judged = [judge(wanted, node) for node in nodes]
    known = {answer.node for answer in judged}
    listed = () if wanted.nodes == "any" else wanted.nodes
    return judged + [Eligibility(name, ("it is not enrolled here",)) for name in listed if name not in known]
