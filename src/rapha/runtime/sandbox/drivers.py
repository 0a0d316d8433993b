"""The drivers by name: the one place to add another wall."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from rapha.runtime.sandbox.bubblewrap import Bubblewrap
from rapha.runtime.sandbox.gvisor import Gvisor
from rapha.runtime.sandbox.interface import Sandbox
from rapha.spec.refusals import Refused

DRIVERS: Final[Mapping[str, Callable[[], Sandbox]]] = MappingProxyType(
    {"bubblewrap": Bubblewrap, "gvisor": Gvisor}
)


def driver(name: str) -> Sandbox:
    """The driver called `name`.

    Raises:
        Refused: `node.sandbox_unavailable` for a name that this build has no driver for.
    """
    make = DRIVERS.get(name)
    if make is None:
        raise Refused(
            "node.sandbox_unavailable", f"no driver {name!r} in this build; it has {', '.join(DRIVERS)}"
        )
    return make()
