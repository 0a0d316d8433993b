"""The default driver: namespaces by bubblewrap, seccomp, rlimits, cgroups, and a supervisor over them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from rapha.runtime.sandbox import seccomp, start
from rapha.runtime.sandbox.interface import Running, Spec
from rapha.runtime.sandbox.program import Program


class Bubblewrap:
    """The driver; cheap to make, holds nothing."""

    name: Final = "bubblewrap"

    def __init__(self, program: Path | None = None) -> None:
        self._configured = program

    def check(self) -> Mapping[str, str]:
        """See `Sandbox.check`."""
        return start.check(self.start)

    def start(self, spec: Spec) -> Running:
        """See `Sandbox.start`."""
        rules = seccomp.load()
        seen = {"driver": self.name, "seccomp_filter": f"{rules.arch} sha256:{rules.digest}"}
        program = Program.find(self._configured)
        return start.start(spec, program, start.Walls(rules.program.hex(), seen))
