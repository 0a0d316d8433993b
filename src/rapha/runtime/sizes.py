"""Bits and bytes put into sizes that people know."""

from __future__ import annotations

from typing import Final

CT_SLICE_BITS: Final = 512 * 512 * 16
ROW_BYTES: Final = 64
"""An identifier row: a name, a date of birth, a number."""


def slices(bits: int) -> str:
    """How many CT slices of 512×512×16 bit `bits` are."""
    share = bits / CT_SLICE_BITS
    if share >= 10:
        return f"{share:,.0f}"
    return f"{share:.2f}" if share >= 0.005 or not bits else "less than 0.01"


def rows(bits: int) -> str:
    """How many identifier rows fit into `bits`."""
    return f"{bits // (8 * ROW_BYTES):,}"


def size(count: int) -> str:
    """Bytes for people: exact below 10 kB, then in decimal units."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= max(scale, 10**4):
            return f"{count / scale:,.1f} {unit}"
    return f"{count:,} bytes"
