"""Where a loader stands in its records, and the state in which that outlives it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

VERSION: Final = 1
MAX_EPOCH: Final = 2**63 - 1
_NUMBERS: Final = ("first_epoch", "epoch", "position")


@dataclass(slots=True)
class Place:
    """`position` records of `epoch` were handed out, in a pass that began with epoch `first`."""

    first: int
    epoch: int
    position: int


@dataclass(frozen=True, slots=True)
class PassSampler:
    """As much of torch's sampler as frameworks use: they call `set_epoch` before each pass, from 0 on.

    Lightning restores no loader from a checkpoint taken between epochs; it relies on this call.
    """

    set_epoch: Callable[[int], None]

    @property
    def sampler(self) -> PassSampler:
        """Itself."""
        return self


def check(name: str, value: object, low: int, high: int) -> None:
    """Raises `ValueError` unless `value` is a whole number within low … high."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high}, not {value!r}")


def write(place: Place, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A place as JSON types, with the arguments that fix which records come in which batch."""
    numbers = (place.first, place.epoch, place.position)
    return {"version": VERSION, **dict(zip(_NUMBERS, numbers, strict=True)), **arguments}


def read(state: Mapping[str, Any], arguments: Mapping[str, Any]) -> Place:
    """The place that a state names, of a loader with exactly these arguments.

    Raises:
        ValueError: it is of another loader, or no state.
    """
    if not isinstance(state, Mapping) or state.keys() != {"version", *_NUMBERS, *arguments}:
        raise ValueError("this must be what RaphaDataLoader.state_dict gave; other keys are in it")
    if type(state["version"]) is not int or state["version"] != VERSION:
        raise ValueError(f"the state must be of version {VERSION}, not {state['version']!r}")
    for name, value in arguments.items():
        if type(state[name]) is not type(value) or state[name] != value:
            raise ValueError(f"the state is of a loader with {name}={state[name]!r}; this one has {value!r}")
    for name in _NUMBERS:
        check(name, state[name], 0, MAX_EPOCH)
    if state["first_epoch"] > state["epoch"]:
        raise ValueError("first_epoch must not be after epoch")
    return Place(state["first_epoch"], state["epoch"], state["position"])
