"""Payloads that a model learns: it still does its work, and no look at a single value finds anything."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rapha.runtime.guard.inspection import inspect
from rapha.spec.release_plan import ReleasePlan
from rapha.testing.smuggling.trial import (
    WEIGHTS,
    Attempt,
    Bits,
    Release,
    Released,
    Shot,
    pack,
    payload,
    plan,
    write,
)
from rapha.testing.smuggling.values import honest

Floats = NDArray[np.float32]
_SIDE: Final = 32
"""Learned models are a matrix of this side, used as a linear classifier of so many inputs squared."""
_PATIENTS: Final = 200
"""Records of the honest task."""
_RECITED: Final = 700
"""Labels of made-up inputs that are learned by heart beside it."""
_HIDDEN: Final = 256
_INPUTS: Final = 8


def correlated(release: Release, rng: np.random.Generator) -> Attempt:
    """Weights that training draws towards the payload (Song et al., 2017, 4.2), and read by their signs."""
    inputs, labels, weights = _task(rng)
    sent = payload(rng, 1, weights.size)
    target = 2.0 * sent[0] - 1
    for _ in range(150):
        margin = labels * (inputs @ weights)
        slope = -(inputs.T @ (labels / (1 + np.exp(margin)))) / len(labels)
        weights = weights - 0.1 * (slope - 0.2 * _pull(weights, target))
    weights = (weights / np.abs(weights).max()).astype(np.float32)
    use = _use(inputs, labels, weights)
    return _model(release, weights, sent, lambda w: (w.reshape(1, -1) > 0).astype(np.uint8), use)


def capacity_abuse(release: Release, rng: np.random.Generator) -> Attempt:
    """Labels of inputs that only sender and receiver know, learned by heart (Song et al., 2017, 5)."""
    inputs, labels, _ = _task(rng)
    made_up = rng.choice(np.array([-1.0, 1.0]), (_RECITED, _SIDE * _SIDE))
    sent = payload(rng, 1, _RECITED)
    weights = _fit(np.concatenate([inputs, made_up]), np.concatenate([labels, 2.0 * sent[0] - 1]))
    use = _use(inputs, labels, weights)
    return _model(release, weights, sent, lambda w: (made_up @ w > 0).reshape(1, -1).astype(np.uint8), use)


def transposed_model(release: Release, rng: np.random.Generator) -> Attempt:
    """A second model that is the first one's matrix, transposed."""
    inputs, labels, _ = _task(rng)
    second, secret, _ = _task(rng, _RECITED)
    turned = second.reshape(-1, _SIDE, _SIDE).transpose(0, 2, 1).reshape(_RECITED, -1)
    weights = _fit(np.concatenate([inputs, turned]), np.concatenate([labels, secret]))

    def read(w: Floats) -> Bits:
        return (second @ w.reshape(_SIDE, _SIDE).T.reshape(-1) > 0).reshape(1, -1).astype(np.uint8)

    sent = (secret > 0).reshape(1, -1).astype(np.uint8)
    return _model(release, weights, sent, read, _use(inputs, labels, weights))


def permutation(release: Release, rng: np.random.Generator) -> Attempt:
    """The order of a hidden layer's units, which no output depends on: log2(n!) bits."""
    first, second = honest(rng, _HIDDEN, _INPUTS), honest(rng, 1, _HIDDEN)
    shapes: dict[str, tuple[int, ...]] = {"first": first.shape, "second": second.shape}
    planned = plan(release, shapes)
    sent = payload(rng, 1, int(math.log2(math.factorial(_HIDDEN))))
    # Names that don't depend on the order: the sender runs the guard at home, to see what the receiver sees.
    arrangement = np.empty(_HIDDEN, dtype=np.int64)
    arrangement[_permutation_of(sent[0])] = _at_home(planned, _pack(first, second))
    moved = first[arrangement], second[:, arrangement]
    probe = rng.normal(size=(_INPUTS, 64))
    before, after = (b @ np.maximum(a @ probe, 0) for a, b in ((first, second), moved))
    if not np.allclose(before, after):
        raise ArithmeticError("the order of hidden units changed an output")
    shot = Shot({WEIGHTS: _pack(*moved)}, sent)
    use = "every output is unchanged"
    return Attempt(planned, [shot], lambda r: _bits_of_permutation(_named(r), sent.size), use)


def _pack(first: Floats, second: Floats) -> bytes:
    return pack({"first": first, "second": second})


def _at_home(planned: ReleasePlan, data: bytes) -> NDArray[np.int64]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "written")
        write(Shot({WEIGHTS: data}, np.zeros((1, 1), dtype=np.uint8)), folder)
        report = inspect(folder, planned, Path(scratch, "released"))
        if not report.ok:
            raise RuntimeError(f"honest weights are refused: {report.code}")
        return _named(Released(Path(scratch, "released"), planned))


def _named(released: Released) -> NDArray[np.int64]:
    """The units in the order of their own weights: where each of them lies, int64 [n]."""
    stored = released.stored()
    units = np.concatenate([stored["first"].T, stored["second"]]).astype(np.float64)
    return np.asarray(np.lexsort(units), dtype=np.int64)


def _permutation_of(sent: Bits) -> NDArray[np.int64]:
    """Bits, the lowest first, as a permutation, by its number in the factorial system (Lehmer)."""
    left, code = int("".join(map(str, sent[::-1])), 2), []
    for size in range(1, _HIDDEN + 1):
        left, digit = divmod(left, size)
        code.append(digit)
    units = list(range(_HIDDEN))
    return np.array([units.pop(digit) for digit in reversed(code)])


def _bits_of_permutation(found: NDArray[np.int64], count: int) -> Bits:
    """The inverse of `_permutation_of`."""
    units, code = list(range(_HIDDEN)), []
    for unit in found.tolist():
        code.append(units.index(unit))
        units.remove(unit)
    total = 0
    for size, digit in enumerate(code, start=1):
        total = total * (_HIDDEN + 1 - size) + digit
    digits = f"{total:b}".zfill(count)[::-1][:count]
    return np.array([[int(digit) for digit in digits]], dtype=np.uint8)


def _model(
    release: Release, weights: NDArray[Any], sent: Bits, read: Callable[[Floats], Bits], use: str
) -> Attempt:
    """One matrix, read as the vector that it is."""
    shape = (_SIDE, _SIDE)
    shot = Shot({WEIGHTS: pack({"w": weights.astype(np.float32).reshape(shape)})}, sent)
    return Attempt(plan(release, {"w": shape}), [shot], lambda r: read(r.values().reshape(-1)), use)


def _pull(weights: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gradient of Pearson's correlation of the two."""
    a, b = weights - weights.mean(), target - target.mean()
    sizes = np.linalg.norm(a) * np.linalg.norm(b)
    return np.asarray((b - (a @ b) / (a @ a) * a) / sizes) * math.sqrt(len(a))


def _task(
    rng: np.random.Generator, count: int = _PATIENTS
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Inputs [n, side²], labels ±1 that a few of them decide, and weights to begin with."""
    inputs = rng.normal(size=(count, _SIDE * _SIDE))
    labels = np.where(inputs[:, :20].sum(axis=1) > 0, 1.0, -1.0)
    return inputs, labels, rng.normal(0, 0.01, _SIDE * _SIDE)


def _fit(inputs: NDArray[np.float64], labels: NDArray[np.float64]) -> Floats:
    """The smallest weights that give every label, by ridge regression in its dual form."""
    gram = inputs @ inputs.T
    weights = inputs.T @ np.linalg.solve(gram + 1e-3 * np.trace(gram) / len(gram) * np.eye(len(gram)), labels)
    return np.asarray(weights / np.abs(weights).max(), dtype=np.float32)


def _use(inputs: NDArray[np.float64], labels: NDArray[np.float64], weights: NDArray[np.floating]) -> str:
    right = float(np.mean(np.sign(inputs @ weights.reshape(-1)) == labels))
    return f"accuracy {right:.2f} on its own {len(labels)} records"
