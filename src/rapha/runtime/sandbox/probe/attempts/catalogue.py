"""All attempts, by the way in which they are run."""

from __future__ import annotations

from typing import Final

from rapha.runtime.sandbox.probe.attempts.doors import DOORS
from rapha.runtime.sandbox.probe.attempts.files import FILES
from rapha.runtime.sandbox.probe.attempts.kernel import KERNEL
from rapha.runtime.sandbox.probe.attempts.kit import Attempt
from rapha.runtime.sandbox.probe.attempts.limits import ENDINGS, LIMITS
from rapha.runtime.sandbox.probe.attempts.memory import MEMORY
from rapha.runtime.sandbox.probe.attempts.namespaces import NAMESPACES
from rapha.runtime.sandbox.probe.attempts.network import NETWORK
from rapha.runtime.sandbox.probe.attempts.outputs import OUTPUTS
from rapha.runtime.sandbox.probe.attempts.processes import PROCESSES

TOGETHER: Final[tuple[Attempt, ...]] = tuple(
    attempt
    for catalogue in (NETWORK, KERNEL, DOORS, MEMORY, NAMESPACES, FILES, PROCESSES, LIMITS)
    for attempt in catalogue.attempts
)
"""One sandbox does for all of these; each gets a process."""
ALONE: Final[tuple[Attempt, ...]] = tuple(ENDINGS.attempts)
"""Each of these gets a sandbox."""
LEFT: Final[tuple[Attempt, ...]] = tuple(OUTPUTS.attempts)
"""One sandbox does for all of these, and what it leaves is what counts."""
ALL: Final = (*TOGETHER, *LEFT, *ALONE)
