"""The port to a policy engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from rapha.runtime.policy.bundle import Bundle
from rapha.spec.policy import Reason


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one set says: `data.rapha.admission.allow` and `data.rapha.admission.deny`."""

    allow: bool
    deny: tuple[Reason, ...]


@dataclass(frozen=True, slots=True)
class Failure:
    """One set gave no usable answer; that refuses."""

    code: Literal["policy.undefined", "policy.error", "policy.timeout"]
    detail: str


Answer = Verdict | Failure


class Engine(Protocol):
    """Evaluates policy sets; one file an adapter."""

    @property
    def name(self) -> str:
        """Engine and version, as the receipt names it: 64 characters of `[A-Za-z0-9 ._+/-]`."""
        ...

    def decide(self, bundles: Sequence[Bundle], document: bytes, timeout_s: float) -> tuple[Answer, ...]:
        """Evaluate each set on its own against the same input.

        Precondition: `document` is canonical JSON. Result: exactly one answer a set, in order, within
        `timeout_s` seconds for all of them. Idempotent; no set sees another's rules or data. A set that
        is undefined, fails, crashes the engine or does not end is a `Failure`, never an exception.
        """
        ...
