"""What `--driver` takes."""

from __future__ import annotations

from enum import StrEnum


class Driver(StrEnum):
    """The walls by name; `rapha.runtime.sandbox.drivers` has them."""

    bubblewrap = "bubblewrap"
    gvisor = "gvisor"
