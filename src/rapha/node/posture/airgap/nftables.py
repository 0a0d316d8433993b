"""Our own two tables: everything is dropped on the severed devices but what goes to and from the LAN ranges.

Two walls, each enough for what it sees: a netdev table at ingress and egress of every device (all
ethertypes, also AF_PACKET, and what is forwarded or bridged; connection tracking is never asked, so an
established flow ends), and an inet table at output and forward by interface index, which a renamed device
does not shake off. Formats: linux/netfilter/nf_tables.h. The tables belong to no process: they outlive the
helper.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rapha.node.posture.airgap import expressions as exprs
from rapha.node.posture.airgap.expressions import Network, Said
from rapha.node.posture.airgap.netlink import (
    F_CREATE,
    NETFILTER,
    Message,
    Netlink,
    attribute,
    attributes,
    nested,
)

TABLE: Final = "rapha_airgap"
EVENTS: Final = 1 << 6
"""Group NFNLGRP_NFTABLES."""

_SUBSYSTEM: Final = 10
_NEWTABLE, _GETTABLE, _DELTABLE, _NEWCHAIN, _GETCHAIN, _NEWRULE, _GETRULE = 0, 1, 2, 3, 4, 6, 7
_INET, _NETDEV = 1, 5
_INGRESS, _EGRESS, _FORWARD, _OUTPUT = 0, 1, 2, 3
_ACCEPT, _DROP = 1, 0
_FIRST, _LAST = -500, 500
_NO_NF_TABLES: Final = {errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.EOPNOTSUPP, errno.EINVAL}
"""What a kernel without nf_tables answers: there is no table of ours then, and none can be made."""


@dataclass(frozen=True, slots=True)
class Base:
    """Where a chain hooks in. `device` is empty in the inet family."""

    family: int
    name: str
    hook: int
    priority: int
    policy: int
    device: str


@dataclass(frozen=True, slots=True)
class Tally:
    """What the kernel counted since the tables were made, outwards."""

    lan_packets: int
    lan_bytes: int
    dropped_packets: int


Chains = dict[Base, tuple[bytes, ...]]
"""Each chain's rules, a rule as its encoded expressions."""


def wanted(devices: Sequence[tuple[int, str]], lan: Sequence[Network]) -> Chains:
    """The whole of both tables for these devices (index and name), the named one first."""
    drop = exprs.counted(accept=False)
    made: Chains = {}
    for number, (_, name) in enumerate(devices):
        # Last at egress: what an earlier hook rewrote is judged as it would be sent.
        for hook, priority, inwards in ((_INGRESS, _FIRST, True), (_EGRESS, _LAST, False)):
            base = Base(_NETDEV, f"{'in' if inwards else 'out'}{number}", hook, priority, _DROP, name)
            made[base] = (*(rule for net in lan for rule in exprs.frames(net, inwards)), drop)
    rules = tuple(
        rule
        for index, _ in devices
        for rule in (*(r for net in lan for r in exprs.packets(net, index)), exprs.goes_to(index) + drop)
    )
    made[Base(_INET, "forward", _FORWARD, _LAST, _ACCEPT, "")] = rules
    made[Base(_INET, "output", _OUTPUT, _LAST, _ACCEPT, "")] = rules
    return made


def install(chains: Chains) -> None:
    """Make both tables, instead of any of that name, in one transaction.

    Raises:
        OSError: with the kernel's errno; nothing was changed then.
    """
    batch = [*_cleared(), *(_table(_NEWTABLE, family, F_CREATE) for family in (_INET, _NETDEV))]
    batch += [_chain(base) for base in chains]
    batch += [_rule(base, rule) for base, rules in chains.items() for rule in rules]
    _transact(batch)


def remove() -> None:
    """Delete our two tables by their exact name, where they are.

    Raises:
        OSError: with the kernel's errno.
    """
    if handles():
        _transact(_cleared())


def handles() -> tuple[int, ...]:
    """The kernel's numbers of our tables: a table that was deleted and made again has another.

    Raises:
        OSError: ENOTSUP if a table of ours is dormant, which is there but holds nothing.
    """
    found = []
    for family, body in _dump(_GETTABLE, _NEWTABLE):
        told = attributes(body)
        if family in {_INET, _NETDEV} and _text(told.get(1)) == TABLE:
            if any(told.get(2, b"")):
                raise OSError(errno.ENOTSUP, "a table of the air gap has flags")
            found.append(struct.unpack(">Q", told[4])[0])
    return tuple(sorted(found))


def present() -> dict[Base, tuple[bytes, ...]]:
    """Chains of our tables as the kernel has them.

    Raises:
        OSError: with the kernel's errno.
    """
    made: dict[tuple[int, str], Base] = {}
    for family, body in _dump(_GETCHAIN, _NEWCHAIN):
        told = attributes(body)
        if _text(told.get(1)) == TABLE:
            made[family, _text(told.get(3))] = _base(family, told)
    rules: dict[tuple[int, str], list[bytes]] = {key: [] for key in made}
    for family, body in _dump(_GETRULE, _NEWRULE):
        told = attributes(body)
        if _text(told.get(1)) == TABLE:
            rules.setdefault((family, _text(told.get(2))), []).append(told.get(4, b""))
    return {made[key]: tuple(found) for key, found in rules.items() if key in made}


def meaning(chains: Chains) -> dict[Base, tuple[Said, ...]]:
    """Chains in a form in which ours and the kernel's can be compared."""
    return {base: tuple(exprs.said(rule) for rule in rules) for base, rules in chains.items()}


def tally(chains: Chains) -> Tally:
    """Sum the counters: what passed the named device's egress, and what any wall dropped outwards."""
    lan_packets, lan_bytes, dropped = 0, 0, 0
    for base, rules in chains.items():
        for rule in rules:
            packets, size = exprs.count(rule)
            if not exprs.accepts(rule):
                dropped += packets if base.hook != _INGRESS or base.family == _INET else 0
            elif base.name == "out0":
                lan_packets, lan_bytes = lan_packets + packets, lan_bytes + size
    return Tally(lan_packets, lan_bytes, dropped)


def ours(event: Message) -> bool:
    """Does an nftables event tell of our tables? (The first attribute of each kind names the table.)"""
    if event.type >> 8 != _SUBSYSTEM or event.type & 0xFF == 15:  # NEWGEN only numbers the transaction
        return False
    return _text(attributes(event.body[4:]).get(1)) == TABLE


def _cleared() -> list[Message]:
    # Deleting what is not there fails the batch, so it is made first; the transaction is one either way.
    return [
        message
        for family in (_INET, _NETDEV)
        for message in (_table(_NEWTABLE, family, F_CREATE), _table(_DELTABLE, family))
    ]


def _table(kind: int, family: int, flags: int = 0) -> Message:
    return _message(kind, family, flags, attribute(1, _name(TABLE)))


def _chain(base: Base) -> Message:
    hook = attribute(1, struct.pack(">I", base.hook)) + attribute(2, struct.pack(">i", base.priority))
    if base.device:
        hook += attribute(3, _name(base.device))
    return _message(
        _NEWCHAIN,
        base.family,
        F_CREATE,
        attribute(1, _name(TABLE)),
        attribute(3, _name(base.name)),
        nested(4, hook),
        attribute(5, struct.pack(">I", base.policy)),
        attribute(7, _name("filter")),
    )


def _rule(base: Base, rule: bytes) -> Message:
    return _message(
        _NEWRULE,
        base.family,
        F_CREATE | 0x800,  # NLM_F_APPEND
        attribute(1, _name(TABLE)),
        attribute(2, _name(base.name)),
        nested(4, rule),
    )


def _base(family: int, told: dict[int, bytes]) -> Base:
    hook = attributes(told.get(4, b""))
    listed = [_text(name) for name in attributes(hook.get(4, b"")).values()]
    return Base(
        family=family,
        name=_text(told.get(3)),
        hook=struct.unpack(">I", hook.get(1, b"\xff" * 4))[0],
        priority=struct.unpack(">i", hook.get(2, bytes(4)))[0],
        policy=struct.unpack(">I", told.get(5, b"\xff" * 4))[0],
        device=_text(hook.get(3)) or ",".join(listed),
    )


def _message(kind: int, family: int, flags: int, *parts: bytes) -> Message:
    return Message(_SUBSYSTEM << 8 | kind, struct.pack("=BBH", family, 0, 0) + b"".join(parts), flags)


def _transact(batch: list[Message]) -> None:
    with Netlink(NETFILTER) as netlink:
        netlink.transact(batch, _SUBSYSTEM)


def _dump(kind: int, answer: int) -> list[tuple[int, bytes]]:
    request = Message(_SUBSYSTEM << 8 | kind, struct.pack("=BBH", socket.AF_UNSPEC, 0, 0))
    try:
        with Netlink(NETFILTER) as netlink:
            found = netlink.dump(request)
    except OSError as error:
        if error.errno in _NO_NF_TABLES:
            return []
        raise
    return [(m.body[0], m.body[4:]) for m in found if m.type == _SUBSYSTEM << 8 | answer]


def _name(text: str) -> bytes:
    return text.encode() + b"\0"


def _text(value: bytes | None) -> str:
    return (value or b"").rstrip(b"\0").decode("utf-8", "replace")
