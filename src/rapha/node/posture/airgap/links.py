"""Interfaces, addresses and routes through rtnetlink (linux/rtnetlink.h, linux/if_link.h).

A link down flushes routes of both families and most IPv6 addresses. They are kept as the bytes of the
kernel's own dump and put back as such, as `ip route save` and `restore` do.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Final

from rapha.node.posture.airgap.netlink import (
    F_APPEND,
    F_CREATE,
    ROUTE,
    Message,
    Netlink,
    attribute,
    attributes,
)
from rapha.spec.refusals import Refused

UP: Final = 0x1
LOOPBACK: Final = 0x8
ETHERNET: Final = 1
NEWLINK: Final = 16
EVENTS: Final = 0x1 | 0x40 | 0x400
"""Groups RTNLGRP_LINK, RTNLGRP_IPV4_ROUTE and RTNLGRP_IPV6_ROUTE."""

_GETLINK: Final = 18
_NEWADDR, _GETADDR = 20, 22
_NEWROUTE, _GETROUTE = 24, 26
_IFLA_NAME, _IFLA_LINK, _IFLA_MASTER, _IFLA_STATS64, _IFLA_NETNSID, _IFLA_XDP = 3, 5, 10, 23, 37, 43
_IFLA_LINKINFO, _INFO_KIND = 18, 1
_XDP_ATTACHED: Final = 2
_IFA_FLAGS, _IFA_TEMPORARY = 8, 0x01
_IFA_CACHEINFO: Final = 6
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_MULTIPATH, _RTA_CACHEINFO, _RTA_TABLE = 1, 4, 5, 9, 12, 15
_RTA_VIA, _RTA_EXPIRES = 18, 23
_UNICAST, _CLONED, _LOCAL_TABLE, _BY_KERNEL = 1, 0x200, 255, 2
_DEAD_OR_LINKDOWN: Final = 0x1 | 0x10
_ONLINK: Final = 0x4
_TICKS_A_SECOND: Final = 100
_WIDE: Final[dict[int, int]] = {socket.AF_INET: 8, socket.AF_INET6: 16}
"""A route shorter than this leads out into the world, halves of the default route (`0.0.0.0/1`) too; a
hospital's own 10.0.0.0/8 does not."""


@dataclass(frozen=True, slots=True)
class Link:
    """One interface. `parent` is what it is stacked on (VLAN, macvlan), `master` what it is a port of."""

    index: int
    name: str
    kind: int
    flags: int
    master: int
    parent: int
    xdp: bool
    tx_bytes: int
    tx_packets: int

    @property
    def up(self) -> bool:
        """Set up by the administrator, whatever the carrier says."""
        return bool(self.flags & UP)


def links() -> dict[int, Link]:
    """Every interface of this network namespace, by index.

    Raises:
        OSError: if the kernel doesn't answer.
    """
    with Netlink(ROUTE) as netlink:
        found = [link(m) for m in netlink.dump(Message(_GETLINK, bytes(16))) if m.type == NEWLINK]
    return {one.index: one for one in found}


def link(message: Message) -> Link:
    """Decode RTM_NEWLINK or RTM_DELLINK."""
    _, kind, index, flags, _ = struct.unpack_from("=HHiII", message.body)
    told = attributes(message.body[16:])
    stats = told.get(_IFLA_STATS64, bytes(32))
    # A parent in another namespace has an index of that namespace, which means nothing here; and what a
    # veth names there is its peer, not something that it sends through.
    peer = attributes(told.get(_IFLA_LINKINFO, b"")).get(_INFO_KIND, b"").startswith(b"veth")
    parent = 0 if peer or _IFLA_NETNSID in told else _number(told.get(_IFLA_LINK))
    return Link(
        index=index,
        name=told.get(_IFLA_NAME, b"").rstrip(b"\0").decode("utf-8", "replace"),
        kind=kind,
        flags=flags,
        master=_number(told.get(_IFLA_MASTER)),
        parent=parent,
        xdp=any(attributes(told.get(_IFLA_XDP, b"")).get(_XDP_ATTACHED, b"")),
        tx_packets=struct.unpack_from("=Q", stats, 8)[0],
        tx_bytes=struct.unpack_from("=Q", stats, 24)[0],
    )


def ports(all_links: dict[int, Link], index: int) -> list[Link]:
    """Ports of a bridge or bond, and theirs, nearest first."""
    return _beneath(all_links, index, lambda one: one.master)


def stacked(all_links: dict[int, Link], index: int) -> list[Link]:
    """Interfaces that send through this one (VLANs and the like), and those on top of them."""
    return _beneath(all_links, index, lambda one: one.parent)


def set_up(index: int, up: bool) -> None:
    """Set an interface up or down; nothing else of it changes.

    Raises:
        OSError: ENODEV if it is gone; EPERM without CAP_NET_ADMIN.
    """
    with Netlink(ROUTE) as netlink:
        netlink.ask(Message(NEWLINK, struct.pack("=HHiII", 0, 0, index, UP if up else 0, UP)))


def addresses(indexes: Collection[int]) -> tuple[bytes, ...]:
    """Bodies of RTM_NEWADDR of these interfaces.

    Privacy addresses (RFC 8981) are left out: the kernel makes new ones.
    """
    with Netlink(ROUTE) as netlink:
        found = [m.body for m in netlink.dump(Message(_GETADDR, bytes(8))) if m.type == _NEWADDR]
    return tuple(b for b in found if address_index(b) in indexes and not _temporary(b))


def routes(indexes: Collection[int]) -> tuple[bytes, ...]:
    """Bodies of RTM_NEWROUTE, of both families and all tables, that lead through these interfaces.

    The kernel's own entries of the local table are left out: they follow from the addresses.
    """
    return tuple(b for b in _routes() if _kept(b) and _ways(b) & set(indexes))


def ways_out(beyond: Collection[int]) -> frozenset[int]:
    """Interfaces, other than these, through which a wide route leads. 0 stands for a route that hides it."""
    wide = [b for b in _routes() if b[7] == _UNICAST and b[1] < _WIDE.get(b[0], 0) and _kept(b)]
    found = {index for body in wide for index in _ways(body) or {0}}
    loopback = {i for i, one in links().items() if one.flags & LOOPBACK}
    return frozenset(found - set(beyond) - loopback)


def default_wan() -> str:
    """Name of the one interface that default routes lead through.

    Raises:
        Refused: `posture.seal_failed` if there is none, or more than one.
    """
    known = links()
    names = sorted(known[i].name if i in known else "?" for i in ways_out(()))
    if len(names) != 1:
        raise Refused(
            "posture.seal_failed", f"default routes lead through {', '.join(names) or 'no interface'}"
        )
    return names[0]


def put_back(addresses_: Iterable[bytes], routes_: Iterable[bytes], onlink: bool) -> None:
    """Add what is missing of the saved addresses and routes; what the kernel refuses now is left out.

    Called again until nothing is missing: a gateway is refused until the route to it is there, and an IPv6
    route until the carrier is. With `onlink` gateways are taken on trust, for routes that stayed from a time
    when the kernel knew a way to their gateway.

    Raises:
        OSError: EPERM without CAP_NET_ADMIN.
    """
    for body in addresses_:
        _add(_NEWADDR, body)
    for body in sorted(routes_, key=_indirect):
        _add(_NEWROUTE, _replayable(body, _ONLINK if onlink and _indirect(body) else 0))


def address_index(body: bytes) -> int:
    """The interface that a saved address is on."""
    return int(struct.unpack_from("=I", body, 4)[0])


def route_indexes(body: bytes) -> set[int]:
    """The interfaces that a saved route leads through."""
    return _ways(body)


def address_key(body: bytes) -> bytes:
    """What makes an address the same: all but its flags, state and remaining life."""
    told = attributes(body[8:])
    rest = [attribute(k, v) for k, v in sorted(told.items()) if k not in {_IFA_FLAGS, _IFA_CACHEINFO}]
    return body[:2] + body[3:8] + b"".join(rest)


def route_key(body: bytes) -> bytes:
    """What makes a route the same: all but its state and remaining life."""
    told = attributes(_replayable(body, _ONLINK)[12:])
    rest = [attribute(k, v) for k, v in sorted(told.items()) if k not in {_RTA_CACHEINFO, _RTA_EXPIRES}]
    return body[:8] + b"".join(rest)


def _beneath(all_links: dict[int, Link], index: int, above: Callable[[Link], int]) -> list[Link]:
    # Each once: what a driver puts there need not be a tree.
    found: dict[int, Link] = {}
    level = {index}
    while level:
        seen = {index, *found}
        fresh = [one for one in all_links.values() if above(one) in level and one.index not in seen]
        found |= {one.index: one for one in fresh}
        level = {one.index for one in fresh}
    return list(found.values())


def _add(kind: int, body: bytes) -> None:
    with Netlink(ROUTE) as netlink:
        try:
            netlink.ask(Message(kind, body, F_CREATE | F_APPEND))
        except OSError as error:
            if error.errno == errno.EPERM:
                raise


def _routes() -> list[bytes]:
    with Netlink(ROUTE) as netlink:
        return [
            m.body
            for family in (socket.AF_INET, socket.AF_INET6)
            for m in netlink.dump(Message(_GETROUTE, struct.pack("=B11x", family)))
            if m.type == _NEWROUTE
        ]


def _kept(body: bytes) -> bool:
    cloned = struct.unpack_from("=I", body, 8)[0] & _CLONED
    table = _number(attributes(body[12:]).get(_RTA_TABLE)) or body[4]
    return not cloned and not (table == _LOCAL_TABLE and body[5] == _BY_KERNEL)


def _ways(body: bytes) -> set[int]:
    told = attributes(body[12:])
    found = {_number(told[_RTA_OIF])} if _RTA_OIF in told else set()
    paths = told.get(_RTA_MULTIPATH, b"")
    return found | {struct.unpack_from("=i", paths, at + 4)[0] for at in _hops(paths)}


def _hops(paths: bytes) -> list[int]:
    """Offsets of the next hops (struct rtnexthop) of RTA_MULTIPATH."""
    found, at = [], 0
    while at + 8 <= len(paths):
        length = struct.unpack_from("=H", paths, at)[0]
        if not 8 <= length <= len(paths) - at:
            raise ValueError("a next hop leaves its route")
        found.append(at)
        at += (length + 3) & ~3
    return found


def _indirect(body: bytes) -> bool:
    told = attributes(body[12:])
    return any(kind in told for kind in (_RTA_GATEWAY, _RTA_VIA, _RTA_MULTIPATH))


def _replayable(body: bytes, more: int = 0) -> bytes:
    """The same route as a request: state that only the kernel may say is cleared, a limited life kept."""
    told = attributes(body[12:])
    if _RTA_MULTIPATH in told:
        paths = bytearray(told[_RTA_MULTIPATH])
        for at in _hops(told[_RTA_MULTIPATH]):
            paths[at + 2] = paths[at + 2] & ~_DEAD_OR_LINKDOWN & 0xFF | more
        told[_RTA_MULTIPATH] = bytes(paths)
    cache = told.pop(_RTA_CACHEINFO, bytes(12))
    ticks = struct.unpack_from("=i", cache, 8)[0]
    if ticks > 0 and body[0] == socket.AF_INET6:  # learnt from a router: it must still run out
        told[_RTA_EXPIRES] = struct.pack("=I", max(1, ticks // _TICKS_A_SECOND))
    flags = struct.unpack_from("=I", body, 8)[0] & ~_DEAD_OR_LINKDOWN
    flags |= 0 if _RTA_MULTIPATH in told else more
    return body[:8] + struct.pack("=I", flags) + b"".join(attribute(k, v) for k, v in told.items())


def _temporary(body: bytes) -> bool:
    if body[0] != socket.AF_INET6:  # the same bit is IFA_F_SECONDARY there
        return False
    flags = _number(attributes(body[8:]).get(_IFA_FLAGS)) or body[2]
    return bool(flags & _IFA_TEMPORARY)


def _number(value: bytes | None) -> int:
    return struct.unpack("=I", value)[0] if value and len(value) == 4 else 0
