"""nftables rules as the expressions that the kernel runs (linux/netfilter/nf_tables.h).

Addresses and types are compared at fixed offsets of the frame itself. The type is read from the link
header, where a VLAN tag shows, so that a tagged frame with a LAN address is no LAN frame.
"""

from __future__ import annotations

import ipaddress
import struct
from typing import Final

from rapha.node.posture.airgap.netlink import attribute, attributes, nested, pairs

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_LINK_HEADER, _NETWORK_HEADER = 0, 1
_EQUAL, _AT_MOST, _AT_LEAST = 0, 3, 5
_META_OIF, _META_NFPROTO = 5, 15
_NFPROTO: Final = {4: b"\x02", 6: b"\x0a"}
_ETHERTYPE: Final = {4: b"\x08\x00", 6: b"\x86\xdd"}
_ARP: Final = b"\x08\x06"
_ARP_ETHERNET_IPV4: Final = b"\x00\x01\x08\x00\x06\x04"
_SOURCE: Final = {4: 12, 6: 8}
_DESTINATION: Final = {4: 16, 6: 24}
_ARP_SENDER, _ARP_TARGET = 14, 24
_LINK_LOCAL: Final = ipaddress.IPv6Network("fe80::/10")
_SOLICITED_NODE: Final = ipaddress.IPv6Network("ff02::1:ff00:0/104")
_NESTED_IN: Final = {"cmp": {3}, "bitwise": {4, 5}, "immediate": {2}}
_DATA_VALUE, _DATA_VERDICT, _VERDICT_CODE = 1, 2, 1

Said = tuple[tuple[str, tuple[tuple[int, bytes], ...]], ...]
"""Expressions in a form that two encodings of the same rule share; counters without their values."""


def frames(lan: Network, inwards: bool) -> tuple[bytes, ...]:
    """Rules of a netdev chain that count and accept frames from (`inwards`) or to a LAN range.

    ARP (RFC 826) passes for addresses of the range; so does neighbour discovery (RFC 4861), by its own
    marks: hop limit 255, a target in the range, no room for more than one link-layer address.
    """
    version = lan.version
    far = (_SOURCE if inwards else _DESTINATION)[version]
    ip = _ethertype(_ETHERTYPE[version])
    rules = [ip + _within(far, lan)]
    if isinstance(lan, ipaddress.IPv4Network):
        sender = _ARP_SENDER if inwards else _ARP_TARGET
        rules.append(_ethertype(_ARP) + _at(0, _ARP_ETHERNET_IPV4) + _within(sender, lan))
    elif inwards:
        rules.append(ip + _within(far, _LINK_LOCAL) + _discovery(lan))
    else:
        rules += [ip + _within(far, near) + _discovery(lan) for near in (_LINK_LOCAL, _SOLICITED_NODE)]
    return tuple(rule + counted(accept=True) for rule in rules)


def packets(lan: Network, index: int) -> tuple[bytes, ...]:
    """Rules of an inet chain that accept what goes to a LAN range through the interface."""
    ours = goes_to(index) + _meta(_META_NFPROTO, _NFPROTO[lan.version])
    rules = [ours + _within(_DESTINATION[lan.version], lan)]
    if isinstance(lan, ipaddress.IPv6Network):
        rules += [
            ours + _within(_DESTINATION[6], near) + _discovery(lan) for near in (_LINK_LOCAL, _SOLICITED_NODE)
        ]
    return tuple(rule + counted(accept=True) for rule in rules)


def goes_to(index: int) -> bytes:
    """True for what leaves through this interface, whatever its name is by then."""
    return _meta(_META_OIF, struct.pack("=I", index))


def counted(accept: bool) -> bytes:
    """Count, then accept or drop."""
    code = attribute(_VERDICT_CODE, struct.pack(">I", int(accept)))
    verdict = nested(2, nested(_DATA_VERDICT, code))
    return _expression("counter") + _expression("immediate", _be32(1, 0), verdict)


def accepts(expressions: bytes) -> bool:
    """Does a rule end in accept?"""
    return said(expressions)[-1:] == said(counted(accept=True))[-1:]


def count(expressions: bytes) -> tuple[int, int]:
    """Packets and bytes of the counters in a rule of the kernel's."""
    packets_, bytes_ = 0, 0
    for name, data in _each(expressions):
        if name == "counter":
            told = attributes(data)
            bytes_ += struct.unpack(">Q", told[1])[0]
            packets_ += struct.unpack(">Q", told[2])[0]
    return packets_, bytes_


def said(expressions: bytes) -> Said:
    """What a rule says, ours or the kernel's: flags, order of attributes and counts set aside."""
    return tuple(
        (name, () if name == "counter" else tuple(sorted(_flat(name, data))))
        for name, data in _each(expressions)
    )


def _each(expressions: bytes) -> list[tuple[str, bytes]]:
    found = []
    for _, element in pairs(expressions):
        told = attributes(element)
        found.append((told[1].rstrip(b"\0").decode("ascii", "replace"), told.get(2, b"")))
    return found


def _flat(name: str, data: bytes) -> list[tuple[int, bytes]]:
    inner = _NESTED_IN.get(name, set())
    return [(kind, _cleared(value) if kind in inner else value) for kind, value in pairs(data)]


def _cleared(data: bytes) -> bytes:
    told = [(k, _cleared(v) if k == _DATA_VERDICT else v) for k, v in pairs(data)]
    return b"".join(attribute(k, v) for k, v in told)


def _discovery(lan: ipaddress.IPv6Network) -> bytes:
    """ICMPv6 neighbour solicitation or advertisement, after the source or destination was judged."""
    return (
        _load(_NETWORK_HEADER, 4, 2)
        + _compare(_AT_MOST, struct.pack(">H", 32))
        + _at(6, b"\x3a\xff")
        + _load(_NETWORK_HEADER, 40, 2)
        + _compare(_AT_LEAST, b"\x87\x00")
        + _load(_NETWORK_HEADER, 40, 2)
        + _compare(_AT_MOST, b"\x88\x00")
        + _at(41, b"\x00")
        + _within(48, lan)
    )


def _within(offset: int, network: Network) -> bytes:
    mask, wanted = network.netmask.packed, network.network_address.packed
    size = len(mask)
    bitwise = _expression(
        "bitwise",
        _be32(1, 1),
        _be32(2, 1),
        _be32(3, size),
        nested(4, attribute(_DATA_VALUE, mask)),
        nested(5, attribute(_DATA_VALUE, bytes(size))),
        _be32(6, 0),
    )
    return _load(_NETWORK_HEADER, offset, size) + bitwise + _compare(_EQUAL, wanted)


def _at(offset: int, wanted: bytes) -> bytes:
    return _load(_NETWORK_HEADER, offset, len(wanted)) + _compare(_EQUAL, wanted)


def _ethertype(wanted: bytes) -> bytes:
    return _load(_LINK_HEADER, 12, 2) + _compare(_EQUAL, wanted)


def _meta(key: int, wanted: bytes) -> bytes:
    return _expression("meta", _be32(2, key), _be32(1, 1)) + _compare(_EQUAL, wanted)


def _load(base: int, offset: int, length: int) -> bytes:
    return _expression("payload", _be32(1, 1), _be32(2, base), _be32(3, offset), _be32(4, length))


def _compare(operation: int, wanted: bytes) -> bytes:
    return _expression("cmp", _be32(1, 1), _be32(2, operation), nested(3, attribute(_DATA_VALUE, wanted)))


def _expression(name: str, *data: bytes) -> bytes:
    return nested(1, attribute(1, name.encode() + b"\0"), nested(2, *data))


def _be32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack(">I", value))
