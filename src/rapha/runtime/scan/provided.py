"""Which modules a job finds in the runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Provided:
    """The runtime's modules.

    Attributes:
        modules: top-level names beside the standard library.
        certain: this is the runtime that the job will meet, not one like it.
    """

    modules: frozenset[str]
    certain: bool


def of_distributions(packages: Sequence[str], certain: bool) -> Provided:
    """The modules of the installed distributions `packages` and of what they require.

    Raises:
        Refused: `node.config` if one of them is not installed.
    """
    # Imported here: only this reads the metadata of every installed distribution.
    from rapha.runtime.sandbox.pyruntime import SITE, PythonRuntime

    mounted = (mount.dest for mount in PythonRuntime.discover(packages).mounts)
    paths = (dest.removeprefix(SITE + "/") for dest in mounted if dest.startswith(SITE + "/"))
    tops = {path.partition("/")[0].partition(".")[0] for path in paths}
    return Provided(frozenset(tops | {"rapha_trainer"}), certain)
