"""What the helper writes down and says: the journal's record, requests, and its state."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, StringConstraints

from rapha.node.posture.airgap.expressions import Network
from rapha.spec.base import PLAIN, Model, One, Sha256
from rapha.spec.lan import ranges as lan_ranges
from rapha.spec.refusals import Refused

Mode = Literal["link", "nftables"]
Phase = Literal["severing", "severed", "restoring"]
MAX_RANGES: Final = 64

Interface = Annotated[str, StringConstraints(pattern=r"^[!-.0-9;-~]{1,15}$")]
"""What the kernel takes for a name (IFNAMSIZ 16, no space, slash or colon)."""
Natural = Annotated[int, Field(ge=0)]
Text = Annotated[str, AfterValidator(lambda text: text[:4096])]
"""What a person reads. Cut, not refused: it names paths that a caller chose, and a helper that can't say what
is wrong is no helper."""
Hex = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{2}){1,8192}$")]
FilePath = Annotated[str, StringConstraints(pattern=PLAIN, min_length=1, max_length=4096)]


@dataclass(frozen=True, slots=True)
class Gap:
    """What to sever.

    Attributes:
        interface: the WAN interface's name.
        mode: `link` sets it down; `nftables` drops everything on it but the LAN ranges.
        lan: CIDR ranges that stay reachable through it; `link` leaves none.
    """

    interface: str
    mode: Mode
    lan: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Counters:
    """What the WAN interface (and its ports) had sent when sealed and when unsealed: the host's own word.

    Attributes:
        lan_packets, lan_bytes: sent to the LAN ranges through it while sealed; 0 in mode `link`.
        dropped_packets: stopped on their way out by our own rules; 0 in mode `link`.
    """

    tx_bytes_before: int
    tx_bytes_after: int
    tx_packets_before: int
    tx_packets_after: int
    lan_bytes: int
    lan_packets: int
    dropped_packets: int


class Device(Model):
    """One interface that is severed: the named one, its ports, or what is stacked on it."""

    index: Annotated[int, Field(ge=1)]
    name: Interface
    up: bool
    stacked: bool


class Lock(Model):
    """The file whose lock says that a job lives. `identity` is its device and inode number."""

    path: FilePath
    identity: Annotated[str, StringConstraints(pattern=r"^[0-9]{1,20}:[0-9]{1,20}$")]


class Reading(Model):
    """Counters at one moment, over the named interface and its ports."""

    tx_bytes: Natural
    tx_packets: Natural
    lan_bytes: Natural
    lan_packets: Natural
    dropped_packets: Natural


class Record(Model):
    """All that it takes to put the network back, written before anything is done.

    Attributes:
        boot, netns: what `devices` are numbered in; after a reboot they mean nothing.
        addresses, routes: as the kernel dumped them (bodies of RTM_NEWADDR and RTM_NEWROUTE), in hex.
        tables: the kernel's numbers of our nftables tables.
        broken: why the gap did not hold, the first reason; empty while it holds.
    """

    version: One
    id: Sha256
    phase: Phase
    interface: Interface
    mode: Mode
    lan: Annotated[tuple[str, ...], Field(max_length=MAX_RANGES)]
    boot: Text
    netns: Text
    lock: Lock
    devices: Annotated[tuple[Device, ...], Field(min_length=1)]
    addresses: tuple[Hex, ...]
    routes: tuple[Hex, ...]
    tables: tuple[Natural, ...] = ()
    before: Reading | None = None
    after: Reading | None = None
    broken: Text = ""

    def now(self, **changes: object) -> Record:
        """The same record with some fields changed."""
        return self.model_copy(update=changes)


class Outcome(Model):
    """How one gap ended. Without both readings it was never sealed."""

    version: One
    id: Sha256
    before: Reading | None
    after: Reading | None
    broken: Text


class State(Model):
    """What the helper knows. `unknown` says why it can't know, and that it holds what there is."""

    phase: Literal["open", "severing", "severed", "restoring", "unknown"]
    id: Sha256 | None
    interface: Interface | None
    mode: Mode | None
    held: bool
    broken: Text
    note: Text
    last: Outcome | None


class Sever(Model):
    """Close the gap. One descriptor comes with it: the locked file that `hold` names."""

    op: Literal["sever"]
    interface: Interface
    mode: Mode
    lan: Annotated[tuple[Annotated[str, StringConstraints(max_length=64)], ...], Field(max_length=MAX_RANGES)]
    hold: FilePath


class Lift(Model):
    """The caller is done with this gap; the answer says how far it is lifted."""

    op: Literal["lift"]
    id: Sha256


class Ask(Model):
    """What is the state?"""

    op: Literal["state"]


class Restore(Model):
    """The operator's last word. `force` restores though somebody holds the lock or the journal is unreadable;
    `interface` is then set up as well."""

    op: Literal["restore"]
    force: bool
    interface: Interface | None


Request = Sever | Lift | Ask | Restore


def networks(lan: Iterable[str]) -> tuple[Network, ...]:
    """LAN ranges, as `rapha.spec.lan` reads them.

    Raises:
        Refused: `posture.seal_failed`.
    """
    try:
        return lan_ranges(lan)
    except ValueError as error:
        raise Refused("posture.seal_failed", str(error)) from None
