"""The second driver: gVisor's `runsc`, which answers the job's system calls in a kernel of its own.

The same launcher stages, supervises and collects. `runsc` itself runs fenced by bubblewrap: as nobody of the
host, in namespaces that die with the launcher, and with nothing but the staged root in reach.

Two things differ for the job. Its socket is descriptor 0. At `Limits.processes` no fork is refused: gVisor
gets no more tasks from the host, panics, and takes the job with it (exit code 2).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from rapha.runtime.sandbox import seccomp, start
from rapha.runtime.sandbox.interface import Running, Spec
from rapha.runtime.sandbox.program import Program
from rapha.spec.refusals import Refused

BROKER_FD: Final = 0
"""Where a job finds its socket here: `runsc` hands on stdin, stdout and stderr, and nothing else."""
_FOLDERS: Final = "/usr/local/bin:/usr/bin:/bin"
_ANSWER_S: Final = 10.0
_PLATFORMS: Final = ("systrap", "ptrace")
"""How gVisor gets hold of system calls, by choice; both need no device. A release has one or both."""
_FLAGS: Final = (
    ("rootless", "rootless"),  # namespaces are the fence's; cgroups are the launcher's
    ("ignore-cgroups", "ignore-cgroups"),
    ("network", "network=none"),
    ("oci-seccomp", "oci-seccomp"),  # without it the spec's filter is not loaded, and nobody says so
    ("host-uds", "host-uds=none"),
    ("host-fifo", "host-fifo=none"),
)
"""What must hold: a release without one of these flags is refused."""
_IF_KNOWN: Final = (("overlay2", "overlay2=none"), ("directfs", "directfs=false"))
"""Newer defaults that would keep files in gVisor's memory, or give the second kernel descriptors of ours."""
_ALLOCATION: Final = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TOP_PAD_": str(64 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MKL_DYNAMIC": "FALSE",
}
"""A page that is mapped, touched and given back costs this kernel microseconds each time, and training does
so with every large tensor: the C library keeps what it has instead. And MKL takes the processors that gVisor
shows for one core; the node has said how many threads there are."""
_FLAG: Final = re.compile(r"^  -([A-Za-z0-9_-]+)\b", re.MULTILINE)
_PLATFORM: Final = re.compile(r"^  -platform\b.*\n?.*", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Runsc:
    """A `runsc` executable, and how to run it.

    Attributes:
        version: as it calls itself.
        flags: before the subcommand.
    """

    path: Path
    version: str
    platform: str
    flags: tuple[str, ...]

    @classmethod
    def find(cls, configured: Path | None = None) -> Runsc:
        """The configured one, else the distribution's.

        Raises:
            Refused: `node.sandbox_unavailable`: there is none, it does not answer, or it lacks a flag that a
                wall needs.
        """
        found = str(configured) if configured is not None else shutil.which("runsc", path=_FOLDERS)
        if found is None:
            raise Refused("node.sandbox_unavailable", "no runsc: install the package `runsc` (gVisor)")
        if not os.access(found, os.X_OK) or not Path(found).is_file():
            raise Refused("node.sandbox_unavailable", f"{found} is not an executable")
        path = Path(found).resolve()
        about = path.stat()
        return _ask(path, about.st_ino, about.st_mtime_ns, about.st_size)


class Gvisor:
    """The driver; cheap to make, holds nothing."""

    name: Final = "gvisor"

    def __init__(self, program: Path | None = None) -> None:
        self._configured = program

    def check(self) -> Mapping[str, str]:
        """See `Sandbox.check`."""
        return start.check(self.start)

    def start(self, spec: Spec) -> Running:
        """See `Sandbox.start`."""
        runsc = Runsc.find(self._configured)
        rules = seccomp.load_oci()
        seen = {
            "driver": self.name,
            "runsc": runsc.version,
            "platform": runsc.platform,
            "seccomp_filter": f"oci sha256:{rules.digest}",
        }
        env = _ALLOCATION | ({} if spec.broker is None else {"RAPHA_BROKER_FD": str(BROKER_FD)})
        walls = start.Walls(rules.text, seen, (str(runsc.path), *runsc.flags), env)
        return start.start(spec, Program.find(), walls)


@lru_cache(maxsize=4)
def _ask(path: Path, _inode: int, _mtime: int, _size: int) -> Runsc:
    """What the program at `path` says of itself; asked again once the file is another one."""
    version = _said(path, "--version").partition("\n")[0].removeprefix("runsc version ").strip()
    usage = _said(path, "flags")
    known = set(_FLAG.findall(usage))
    missing = [name for name, _ in _FLAGS if name not in known]
    platforms = _PLATFORM.search(usage)
    platform = next((p for p in _PLATFORMS if platforms and re.search(rf"\b{p}\b", platforms[0])), None)
    if not version or missing or platform is None:
        lacks = ", ".join(missing) or "a known platform"
        raise Refused("node.sandbox_unavailable", f"{path} lacks {lacks}: install runsc of 2022-12 or newer")
    flags = [flag for name, flag in (*_FLAGS, *_IF_KNOWN) if name in known]
    return Runsc(path, version, platform, (*(f"-{flag}" for flag in flags), f"-platform={platform}"))


def _said(path: Path, argument: str) -> str:
    try:
        answer = subprocess.run(
            [path, argument], capture_output=True, timeout=_ANSWER_S, env={}, cwd="/", check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise Refused("node.sandbox_unavailable", f"{path} {argument}: {error}") from None
    return (answer.stdout + answer.stderr).decode("utf-8", "replace")
