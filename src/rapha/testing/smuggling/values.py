"""Payloads in the values of weights: in low bits, signs, exponents, zeros, and whatever a dtype can hold."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapha.testing.smuggling.trial import (
    WEIGHTS,
    Attempt,
    Bits,
    Reader,
    Release,
    Released,
    Shot,
    bits_of,
    number,
    pack,
    payload,
    plan,
)

SIDE: Final = 64
"""The model is one matrix of this side, large enough for the guard's look at exponents."""
SPREAD: Final = 0.05
"""Standard deviation of honest weights."""
MANTISSA: Final = {"f32": 23, "bf16": 7, "f16": 10}
Floats = NDArray[np.float32]


def honest(rng: np.random.Generator, *shape: int) -> Floats:
    """Weights as training leaves them."""
    return rng.normal(0, SPREAD, shape or (SIDE, SIDE)).astype(np.float32)


def low_bits(release: Release, rng: np.random.Generator, depth: int) -> Attempt:
    """The lowest `depth` of the 23 mantissa bits of each weight (Song et al., 2017, 4.1)."""
    words = honest(rng).view(np.uint32).reshape(-1)
    sent = payload(rng, depth, words.size)
    kept = words & np.uint32(2**32 - 2**depth)
    return _one(release, (kept | number(sent).astype(np.uint32)).view(np.float32), sent, _lowest(depth))


def sign(release: Release, rng: np.random.Generator) -> Attempt:
    """The sign of each weight (Song et al., 2017, 4.3); none is so small that it is rounded to 0."""
    sizes = (SPREAD * (1 + rng.random(SIDE * SIDE))).astype(np.float32)
    sent = payload(rng, 1, sizes.size)
    values = np.where(sent[0] == 1, -sizes, sizes).astype(np.float32)
    return _one(release, values, sent, lambda r: (r.values() < 0).reshape(1, -1).astype(np.uint8))


def exponent(release: Release, rng: np.random.Generator) -> Attempt:
    """One of 16 powers of two."""
    sent = payload(rng, 4, SIDE * SIDE)
    values = np.exp2(-number(sent).astype(np.float32)).astype(np.float32)
    return _one(release, values, sent, _exponents)


def _exponents(released: Released) -> Bits:
    values = np.maximum(np.abs(released.values().reshape(-1)), np.float32(2**-20))
    return bits_of(np.clip(np.rint(-np.log2(values)), 0, 15), 4)


def all_bits(release: Release, rng: np.random.Generator) -> Attempt:
    """All bits of the dtype that can be had without looking like noise to the tripwire on exponents.

    The range is planned so wide that noise, which has the values' own unit, reaches no bit of them.
    """
    if release.dtype == "int8":
        return levels(release, rng)
    mantissa, exponents = MANTISSA[release.dtype], {"f16": 4}.get(release.dtype, 7)
    half = 2 ** (exponents - 1)
    least = half // 2 if release.noise else -half
    if release.noise:
        exponents -= 2
    count = 1 + exponents + mantissa
    sent = payload(rng, count, SIDE * SIDE)
    packed = number(sent)
    fraction = 1 + (packed % 2**mantissa) / 2**mantissa
    power = ((packed >> np.uint64(mantissa)) % 2**exponents).astype(np.float64) + least
    values = np.where(packed >> np.uint64(count - 1), -1.0, 1.0) * fraction * np.exp2(power)

    def read(released: Released) -> Bits:
        got = released.values().reshape(-1).astype(np.float64)
        size, power = np.frexp(np.maximum(np.abs(got), 2.0**-126))
        code = np.clip(power - 1 - least, 0, 2**exponents - 1).astype(np.uint64)
        fraction = np.rint((size * 2 - 1) * 2**mantissa).astype(np.uint64) % np.uint64(2**mantissa)
        signs = (got < 0).astype(np.uint64)
        return bits_of(signs << np.uint64(count - 1) | code << np.uint64(mantissa) | fraction, count)

    return _one(release, values.astype(np.float32), sent, read, limit=2.0**half)


def levels(release: Release, rng: np.random.Generator) -> Attempt:
    """Whole steps of an int8 tensor, all of them: groups of steps are digits of one number."""
    most = 2 ** ((release.bits or 8) - 1) - 1
    base = 2 * most + 1
    digits = max(range(1, 32), key=lambda n: _room(base, n) / n)
    groups, bits = (SIDE * SIDE - 1) // digits, _room(base, digits)
    sent = payload(rng, bits, groups)
    weight = np.uint64(base) ** np.arange(digits, dtype=np.uint64)[:, None]
    steps = (number(sent) // weight % np.uint64(base)).astype(np.float64).reshape(-1) - most
    rest = np.zeros(SIDE * SIDE - 1 - steps.size)
    limit = 2.0**7 if release.noise else 1.0  # noise has the values' own unit
    values = (np.concatenate([[most], steps, rest]) * limit / most).astype(np.float32)

    def read(released: Released) -> Bits:
        got = np.rint(released.values().reshape(-1).astype(np.float64) * most / limit)[1 : 1 + steps.size]
        code = (np.clip(got, -most, most) + most).astype(np.uint64).reshape(digits, groups)
        return bits_of((code * weight).sum(axis=0, dtype=np.uint64), bits)

    return _one(release, values, sent, read, limit=limit)


def _room(base: int, digits: int) -> int:
    """Bits that so many digits hold; 0 where the number would be none of 63 bits."""
    bits = int(digits * math.log2(base))
    return bits if bits < 63 else 0


def amplitude(release: Release, rng: np.random.Generator) -> Attempt:
    """One of 32 even steps in a narrow range, numbered so that neighbours differ in one bit (Gray, 1953)."""
    sent = payload(rng, 5, SIDE * SIDE)
    code = number(sent)
    for shift in (1, 2, 4):
        code = code ^ code >> np.uint64(shift)
    values = (code.astype(np.float64) * 2 / 31 - 1).astype(np.float32)

    def read(released: Released) -> Bits:
        step = np.clip(np.rint((released.values() + 1) * 31 / 2), 0, 31).astype(np.uint64)
        return bits_of(step ^ step >> np.uint64(1), 5)

    return _one(release, values, sent, read)


def scales(release: Release, rng: np.random.Generator) -> Attempt | None:
    """The mantissa of the scale that goes with each int8 tensor, in many small tensors."""
    if release.dtype != "int8":
        return None
    names = [f"w{n}" for n in range(64)]
    sent = payload(rng, 23, len(names))
    wanted = (number(sent).astype(np.uint32) | np.uint32(0x3C000000)).view(np.float32)
    most = 2 ** ((release.bits or 8) - 1) - 1
    tensors = {name: np.full(2, scale * np.float64(most)) for name, scale in zip(names, wanted, strict=True)}
    planned = plan(release, dict.fromkeys(names, (2,)), dtype="F64", limit=2.0)

    def read(released: Released) -> Bits:
        found = released.stored()
        got = np.array([found[f"{name}.scale"] for name in names], dtype=np.float32)
        return bits_of(got.view(np.uint32), 23)

    return Attempt(planned, [Shot({WEIGHTS: pack(tensors)}, sent)], read)


def negative_zero(release: Release, rng: np.random.Generator) -> Attempt:
    """Whether a zero has a sign."""
    sent = payload(rng, 1, SIDE * SIDE)
    values = np.where(sent[0] == 1, np.float32(-0.0), np.float32(0.0))
    return _one(
        release,
        values,
        sent,
        lambda r: np.signbit(r.stored()["w"].astype(np.float32)).reshape(1, -1).view("u1"),
    )


def subnormal(release: Release, rng: np.random.Generator) -> Attempt:
    """Values below the smallest normal number, whose bits nobody misses."""
    sent = payload(rng, 23, SIDE * SIDE)
    return _one(release, number(sent).astype(np.uint32).view(np.float32), sent, _lowest(23))


def out_of_range(release: Release, rng: np.random.Generator) -> Attempt:
    """How far a value lies beyond the planned range."""
    sent = payload(rng, 8, SIDE * SIDE)
    values = (2 + number(sent) / 64).astype(np.float32)

    def read(released: Released) -> Bits:
        return bits_of(np.clip(np.rint((released.values() - 2) * 64), 0, 255), 8)

    return _one(release, values, sent, read)


def integers(release: Release, rng: np.random.Generator) -> Attempt:
    """An integer tensor, in the range that is planned for it."""
    sent = payload(rng, 3, SIDE * SIDE)
    values = number(sent).astype(np.uint8)
    planned = plan(release, {"w": (SIDE * SIDE,)}, dtype="U8", limit=7)
    shot = Shot({WEIGHTS: pack({"w": values})}, sent)
    return Attempt(planned, [shot], lambda r: bits_of(r.stored()["w"], 3))


def spread_spectrum(release: Release, rng: np.random.Generator) -> Attempt:
    """Each bit a little in every weight, under a key that the receiver has."""
    count, size = 128, SIDE * SIDE
    sent = payload(rng, 1, count)
    key = rng.choice(np.array([-1, 1], dtype=np.float32), (count, size))
    values = honest(rng).reshape(-1) + np.float32(0.005) * ((2.0 * sent[0] - 1) @ key).astype(np.float32)

    def read(released: Released) -> Bits:
        return (key @ released.values().reshape(-1) > 0).reshape(1, -1).view(np.uint8)

    return _one(release, values.astype(np.float32), sent, read, use="weights keep their size")


def _lowest(depth: int) -> Reader:
    return lambda released: bits_of(released.values().view(np.uint32), depth)


def _one(
    release: Release, values: Floats, sent: Bits, read: Reader, *, limit: float = 1.0, use: str = ""
) -> Attempt:
    """One matrix `w`."""
    shape = (SIDE, SIDE)
    shot = Shot({WEIGHTS: pack({"w": values.reshape(shape)})}, sent)
    return Attempt(plan(release, {"w": shape}, limit=limit), [shot], read, use)
