"""The committed filter for this machine."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rapha.spec.refusals import Refused

FILTERS: Final = Path(__file__).parent / "filters"


@dataclass(frozen=True, slots=True)
class Filter:
    """BPF for one architecture."""

    arch: str
    program: bytes

    @property
    def digest(self) -> str:
        """Lower-case hex SHA-256 of the program."""
        return hashlib.sha256(self.program).hexdigest()


def load(arch: str | None = None) -> Filter:
    """The filter for `arch`, by default this machine's.

    Raises:
        Refused: `node.sandbox_unavailable` where there is none.
    """
    wanted = arch or platform.machine()
    file = FILTERS / f"{wanted}.bpf"
    if not file.is_file():
        raise Refused(
            "node.sandbox_unavailable", f"no seccomp filter for {wanted}; x86_64 and aarch64 have one"
        )
    return Filter(wanted, file.read_bytes())


@dataclass(frozen=True, slots=True)
class Section:
    """The `linux.seccomp` section of an OCI spec, as JSON; the same for every architecture."""

    text: str

    @property
    def digest(self) -> str:
        """Lower-case hex SHA-256 of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def load_oci() -> Section:
    """The committed section, made from the same tables as the filters."""
    return Section((FILTERS / "oci.json").read_text("ascii"))
