"""Ranges of a hospital's own network that may stay reachable while its WAN is severed."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final

Range = ipaddress.IPv4Network | ipaddress.IPv6Network

SHORTEST: Final = {4: 8, 6: 16}
"""A prefix shorter than this is no hospital's; a hospital's own 10.0.0.0/8 is."""


def ranges(texts: Iterable[str]) -> tuple[Range, ...]:
    """LAN ranges, read strictly; the same for who configures, who severs and who verifies.

    Raises:
        ValueError: for what is no range in canonical form, leads out into the world, or is not unicast.
    """
    return tuple(_range(text) for text in texts)


def _range(text: str) -> Range:
    try:
        found = ipaddress.ip_network(text)
    except ValueError:
        raise ValueError(f"LAN range {text!r}: not a network") from None
    if str(found) != text:
        raise ValueError(f"LAN range {text!r}: write it as {found}")
    if found.prefixlen < SHORTEST[found.version]:
        raise ValueError(f"LAN range {text}: wider than /{SHORTEST[found.version]}")
    if found.is_multicast or found.is_unspecified or found.is_loopback:
        raise ValueError(f"LAN range {text}: not unicast")
    return found
