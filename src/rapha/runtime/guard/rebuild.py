"""Checks 3 to 5 over a file of weights: part by part, in the one order that a released file has.

Memory is a few parts, whatever the file's size. Where it pays, parts are worked on by threads: numpy and the
hash let go of the interpreter's lock.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Final, NamedTuple, TypeVar

import numpy as np

from rapha.runtime.guard import tripwires, values
from rapha.runtime.guard.codes import Finding
from rapha.runtime.guard.reading import Source
from rapha.runtime.guard.released import Outgoing
from rapha.runtime.guard.report import Transform
from rapha.runtime.guard.rounding import DTYPES, Array
from rapha.runtime.guard.tensors import layout
from rapha.runtime.guard.values import PART, Piece, Recipe
from rapha.spec.weights import WIDTH, TensorPlan, WeightsPlan

_T = TypeVar("_T")
_WORTH_THREADS: Final = 2**24
"""Bytes; a smaller file is done before threads would be up."""
_MOST_THREADS: Final = 4


def rebuild(
    source: Source, begins: Mapping[str, int], plan: WeightsPlan, out: Outgoing
) -> tuple[Transform, ...]:
    """Write the released form of `source` to `out`; what was done to each tensor, in the plan's order.

    `begins` is what `tensors.read` says of `source`.

    Raises:
        Finding: any code of checks 3 to 5, and `guard.entropy`.
    """
    _header(plan, out)
    with ExitStack() as stack:
        work = _Work(source, begins, plan, _threads(plan, stack))
        tallies = work.write(out)
        for tensor in plan.tensors:
            if tripwires.may_be_random(tensor, tallies[tensor.name].largest):
                tripwires.check_entropy(tensor, (work.raw(tensor, *part) for part in _parts(tensor)))
    return tuple(tallies[tensor.name].transform() for tensor in plan.tensors)


def _header(plan: WeightsPlan, out: Outgoing) -> None:
    """The header, which our own reader must find to be what the plan says of the file."""
    header = plan.released_header()
    layout(header, out.size - 8 - len(header), plan.released)
    out.write(len(header).to_bytes(8, "little") + header)


def _threads(plan: WeightsPlan, stack: ExitStack) -> ThreadPoolExecutor | None:
    count = min(_MOST_THREADS, len(os.sched_getaffinity(0)))
    if count < 2 or plan.input_bytes < _WORTH_THREADS:
        return None
    pool = ThreadPoolExecutor(count, "guard")
    stack.callback(pool.shutdown, wait=True, cancel_futures=True)
    return pool


class _Step(NamedTuple):
    """One part of one tensor: `size` elements from number `at`."""

    recipe: Recipe
    at: int
    size: int


class _Tally:
    """What was done to one tensor so far."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._clipped = 0
        self._error = 0.0
        self.largest = 0.0

    def add(self, piece: Piece) -> None:
        self._clipped += piece.clipped
        self._error = max(self._error, piece.error)
        self.largest = max(self.largest, piece.largest)

    def transform(self) -> Transform:
        return Transform(
            tensor=self._recipe.tensor.name,
            dtype=self._recipe.tensor.dtype,
            released_as=self._recipe.target,
            clipped=self._clipped,
            largest_error=self._error,
            noise_std=self._recipe.noise,
        )


class _Work:
    """The tensors of one file."""

    def __init__(
        self,
        source: Source,
        begins: Mapping[str, int],
        plan: WeightsPlan,
        pool: ThreadPoolExecutor | None,
    ) -> None:
        self._source = source
        self._begins = begins
        self._plan = plan
        self._pool = pool

    def write(self, out: Outgoing) -> dict[str, _Tally]:
        """All tensors in the released file's order, with the scales among them; what was done to each."""
        scales = self._scales() if self._plan.release_dtype == "int8" else {}
        recipes = {
            t.name: Recipe.of(t, self._plan, scales.get(f"{t.name}.scale")) for t in self._plan.tensors
        }
        tallies = {name: _Tally(recipe) for name, recipe in recipes.items()}
        laid_out = [name for name, _, _ in self._plan.laid_out]
        pieces = self._each(values.rebuilt, [recipes[name] for name in laid_out if name in recipes])
        for name in laid_out:
            if name in scales:
                out.write(np.array([scales[name]], DTYPES["F32"]))
                continue
            for at, _ in _parts(recipes[name].tensor):
                piece = next(pieces)
                if at == 0:
                    tripwires.check_start(name, piece.data.view(np.uint8)[: tripwires.START].tobytes())
                out.write(piece.data.view(np.uint8))
                tallies[name].add(piece)
        return tallies

    def raw(self, tensor: TensorPlan, at: int, size: int) -> Array:
        """A copy of `size` elements as they came, from number `at`."""
        raw = np.empty(size, DTYPES[tensor.dtype])
        self._source.read_into(raw.view(np.uint8), self._begins[tensor.name] + at * WIDTH[tensor.dtype])
        return raw

    def _scales(self) -> dict[str, float]:
        """By the name that they are released under."""
        recipes = [Recipe.of(tensor, self._plan) for tensor in self._plan.tensors if tensor.floating]
        largest = self._each(values.largest, recipes)
        scales: dict[str, float] = {}
        for recipe in recipes:
            name = f"{recipe.tensor.name}.scale"
            scales[name] = values.scale_from(max(next(largest) for _ in _parts(recipe.tensor)), recipe)
            values.confirm_scale(name, scales[name])
        return scales

    def _each(self, work: Callable[[Array, Recipe], _T], recipes: Iterable[Recipe]) -> Iterator[_T]:
        """What `work` makes of each part of each recipe's tensor, in order."""
        steps = (_Step(recipe, at, size) for recipe in recipes for at, size in _parts(recipe.tensor))

        def run(batch: list[_Step]) -> list[_T]:
            return [work(self.raw(s.recipe.tensor, s.at, s.size), s.recipe) for s in batch]

        for done in _in_order(self._pool, (partial(run, batch) for batch in _batches(steps))):
            yield from done


def _parts(tensor: TensorPlan) -> Iterator[tuple[int, int]]:
    """First element and length of each part."""
    for at in range(0, tensor.elements, PART):
        yield at, min(PART, tensor.elements - at)


def _batches(steps: Iterable[_Step]) -> Iterator[list[_Step]]:
    """Small steps together, so that each batch is worth a thread's while."""
    batch: list[_Step] = []
    elements = 0
    for step in steps:
        batch.append(step)
        elements += step.size
        if elements >= PART:
            yield batch
            batch, elements = [], 0
    if batch:
        yield batch


def _in_order(pool: ThreadPoolExecutor | None, tasks: Iterable[Callable[[], _T]]) -> Iterator[_T]:
    """What each task returns, in order; in threads a few are done ahead."""
    if pool is None:
        yield from (task() for task in tasks)
        return
    ahead: deque[Future[_T]] = deque()
    for task in tasks:
        try:
            ahead.append(pool.submit(task))
        except RuntimeError:
            raise Finding("guard.memory", "no thread can be started") from None
        if len(ahead) > 2 * _MOST_THREADS:
            yield ahead.popleft().result()
    while ahead:
        yield ahead.popleft().result()
