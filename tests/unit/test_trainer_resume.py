"""Passes, epochs and resuming: which batch comes next is exact, and a state that doesn't fit is refused."""

from __future__ import annotations

import copy
import itertools
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rapha_trainer import RaphaDataLoader

RECORDS = 23


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("home") / "home.npz"
    np.savez(path, id=np.arange(RECORDS), x=np.arange(RECORDS, dtype="f4"))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAPHA_BROKER_FD", raising=False)
        patch.setenv("RAPHA_HOME_DATA", str(path))
        yield path


def ids(batches: Any) -> list[list[int]]:
    return [batch["id"].tolist() for batch in batches]


def test_each_pass_goes_on_with_the_next_epoch() -> None:
    loader = RaphaDataLoader(5, shuffle=True, seed=3)
    passes = [ids(loader) for _ in range(3)]
    whole = ids(RaphaDataLoader(5, shuffle=True, seed=3, epochs=3))
    assert list(itertools.chain(*passes)) == whole
    assert passes[0] != passes[1] != passes[2]
    assert loader.epoch == 3


def test_set_epoch_chooses_the_order_of_the_next_pass() -> None:
    loader = RaphaDataLoader(5, shuffle=True, seed=3)
    first, second = ids(loader), ids(loader)
    loader.set_epoch(1)
    assert (loader.epoch, ids(loader)) == (1, second)
    loader.set_epoch(0)
    assert ids(loader) == first
    loader.set_epoch(2**63 - 1)
    assert sorted(itertools.chain(*ids(itertools.islice(loader, 5)))) == list(range(RECORDS))


@pytest.mark.parametrize("wrong", [-1, 2**63, 1.0, True, "1", None])
def test_an_epoch_is_a_number(wrong: Any) -> None:
    with pytest.raises(ValueError, match="epoch must be"):
        RaphaDataLoader().set_epoch(wrong)


def test_a_framework_counts_passes_and_a_resumed_one_goes_on() -> None:
    """As Lightning does: `batch_sampler.sampler.set_epoch` before each pass, from 0 on."""
    whole = ids(RaphaDataLoader(5, shuffle=True, epochs=4))
    loader = RaphaDataLoader(5, shuffle=True, epochs=2)
    loader.batch_sampler.sampler.set_epoch(1)
    assert ids(itertools.islice(loader, 3)) == whole[10:13]
    state = loader.state_dict()
    for number, expected in ((1, whole[13:]), (0, whole[:10])):
        loader.load_state_dict(state)
        loader.batch_sampler.sampler.set_epoch(number)
        assert ids(loader) == expected


def test_taking_all_batches_but_not_the_end_ends_the_epoch_too() -> None:
    """Lightning counts batches by len() and never asks for the one after the last."""
    loader = RaphaDataLoader(5, shuffle=True, seed=3)
    passes = [ids(itertools.islice(loader, len(loader))) for _ in range(3)]
    assert list(itertools.chain(*passes)) == ids(RaphaDataLoader(5, shuffle=True, seed=3, epochs=3))


def test_a_pass_that_is_broken_off_ends_its_epoch() -> None:
    loader = RaphaDataLoader(5, shuffle=True, seed=3)
    list(itertools.islice(loader, 2))
    expected = RaphaDataLoader(5, shuffle=True, seed=3)
    expected.set_epoch(1)
    assert ids(loader) == ids(expected)


def test_an_iterator_that_is_never_asked_changes_nothing() -> None:
    loader = RaphaDataLoader(5)
    iter(loader), iter(loader)
    assert (loader.epoch, ids(loader)) == (0, ids(RaphaDataLoader(5)))


@pytest.mark.parametrize(
    ("kwargs", "batches"),
    [
        ({}, 5),
        ({"drop_last": True}, 4),
        ({"epochs": 3}, 15),
        ({"epochs": 0}, 0),
        ({"drop_last": True, "epochs": 2}, 8),
        ({"indices": [1, 1, 2, 3, 4, 5]}, 2),
        ({"indices": []}, 0),
        ({"batch_size": 100, "drop_last": True}, 0),
        ({"batch_size": 100}, 1),
    ],
)
def test_the_length_is_that_of_a_pass_wherever_reading_stands(kwargs: dict[str, Any], batches: int) -> None:
    loader = RaphaDataLoader(**{"batch_size": 5, **kwargs})
    assert len(loader) == len(ids(loader)) == len(loader) == batches
    list(itertools.islice(loader, 1))
    assert len(loader) == batches


MODES = st.sampled_from(
    [
        {},
        {"shuffle": True, "seed": 9},
        {"indices": [4, 4, 1, 22, 0, 7, 7]},
        {"drop_last": True, "shuffle": True},
    ]
)


@given(MODES, st.integers(1, 25), st.integers(1, 4), st.integers(0, 60), st.integers(1, 3))
def test_a_resumed_loader_goes_on_as_if_nothing_had_happened(
    mode: dict[str, Any], size: int, epochs: int, taken: int, passes: int
) -> None:
    def stream(loader: RaphaDataLoader) -> Iterator[list[int]]:
        for _ in range(passes):
            yield from ids(loader)

    whole = list(stream(RaphaDataLoader(size, epochs=epochs, **mode)))
    taken = min(taken, len(whole))
    before = RaphaDataLoader(size, epochs=epochs, **mode)
    batches = itertools.chain.from_iterable(before for _ in range(passes))
    seen = ids(itertools.islice(batches, taken))
    state = json.loads(json.dumps(before.state_dict()))

    after = RaphaDataLoader(size, epochs=epochs, **mode)
    after.load_state_dict(state)
    assert after.state_dict() == state
    a_pass = len(after)
    done = taken // a_pass if a_pass else passes
    rest = [batch for _ in range(passes - done) for batch in ids(after)]
    assert seen + rest == whole


def test_an_iterator_made_to_look_does_not_lose_the_place() -> None:
    loader = RaphaDataLoader(5, shuffle=True)
    list(itertools.islice(loader, 2))
    state = loader.state_dict()
    other = RaphaDataLoader(5, shuffle=True)
    other.load_state_dict(state)
    iter(other)
    assert other.state_dict() == state
    assert ids(other) == ids(RaphaDataLoader(5, shuffle=True))[2:]


def test_more_epochs_than_before_go_on_with_the_pass() -> None:
    short = RaphaDataLoader(5, shuffle=True, epochs=2)
    first = ids(short)
    long = RaphaDataLoader(5, shuffle=True, epochs=4)
    long.load_state_dict(short.state_dict())
    assert first + ids(long) == ids(RaphaDataLoader(5, shuffle=True, epochs=4))


def test_a_state_says_where_reading_stands() -> None:
    loader = RaphaDataLoader(5, shuffle=True, seed=2**64 - 1)
    list(itertools.islice(loader, 2))
    assert loader.state_dict() == {
        "version": 1,
        "first_epoch": 0,
        "epoch": 0,
        "position": 10,
        "split": "train",
        "records": RECORDS,
        "batch_size": 5,
        "shuffle": True,
        "seed": 2**64 - 1,
        "drop_last": False,
        "indices": None,
    }


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"version": 2}, "version"),
    ({"version": True}, "version"),
    ({"batch_size": 4}, "batch_size=4"),
    ({"seed": 1}, "seed=1"),
    ({"shuffle": 1}, "shuffle=1"),
    ({"records": RECORDS + 1}, "records"),
    ({"split": "test"}, "split"),
    ({"drop_last": True}, "drop_last"),
    ({"indices": "0" * 64}, "indices"),
    ({"epoch": -1}, "epoch"),
    ({"epoch": 2**63}, "epoch"),
    ({"epoch": True}, "epoch"),
    ({"epoch": 1.0}, "epoch"),
    ({"first_epoch": 1}, "first_epoch"),
    ({"position": 3}, "no batch"),
    ({"position": 25}, "no batch"),
    ({"position": 2**70}, "position"),
    ({"position": None}, "position"),
    ({"more": 0}, "keys"),
]


@pytest.mark.parametrize(("change", "said"), WRONG, ids=[str(change) for change, _ in WRONG])
def test_a_state_of_another_loader_is_refused(change: dict[str, Any], said: str) -> None:
    loader = RaphaDataLoader(5, shuffle=True)
    with pytest.raises(ValueError, match=said):
        loader.load_state_dict({**loader.state_dict(), **change})
    assert loader.epoch == 0


STATE = [
    "version", "first_epoch", "epoch", "position", "split", "records", "batch_size", "shuffle", "seed",
    "drop_last", "indices",
]  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)


@given(st.sampled_from(STATE), VALUES | st.integers(0, 30))
def test_any_state_is_refused_or_can_be_read_from(name: str, value: Any) -> None:
    loader = RaphaDataLoader(5, shuffle=True)
    try:
        loader.load_state_dict({**loader.state_dict(), name: value})
    except ValueError:
        assert loader.epoch == 0
    else:
        assert len(next(iter(loader))["id"]) in (3, 5)


@pytest.mark.parametrize("wrong", [{}, None, [], "state", {"epoch": 1}])
def test_what_is_no_state_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="state_dict"):
        RaphaDataLoader().load_state_dict(wrong)


def test_an_older_iteration_is_over_at_home_as_on_the_node() -> None:
    older = iter(RaphaDataLoader(5))
    next(older)
    next(iter(RaphaDataLoader(5)))
    with pytest.raises(RuntimeError, match="another iteration"):
        next(older)


def test_workers_are_refused_in_words() -> None:
    with pytest.raises(ValueError, match="num_workers must be 0; use no worker"):
        RaphaDataLoader(num_workers=2)
    with pytest.raises(TypeError, match=r"other process or copied|another process or copied"):
        pickle.dumps(RaphaDataLoader())
    with pytest.raises(TypeError, match="num_workers=0"):
        copy.deepcopy(RaphaDataLoader())


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_torch_loader_around_it_says_what_to_do(shuffle: bool) -> None:
    with pytest.raises(TypeError, match="iterate over it instead"):
        next(iter(torch.utils.data.DataLoader(RaphaDataLoader(), shuffle=shuffle)))  # type: ignore[arg-type]


def test_a_torch_loader_with_workers_says_what_to_do() -> None:
    """In a process of its own: torch takes seconds to end a worker whose first batch failed."""
    script = (
        "import os, torch\nfrom rapha_trainer import RaphaDataLoader\n"
        "try:\n    next(iter(torch.utils.data.DataLoader(RaphaDataLoader(), num_workers=1)))\n"
        "except TypeError as error:\n    os._exit('num_workers=0' not in str(error))\n"
        "os._exit(2)"
    )
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.DEVNULL, timeout=60)
    assert done.returncode == 0


def test_a_forked_process_is_told() -> None:
    loader = RaphaDataLoader()
    pid = os.fork()
    if pid == 0:
        try:
            iter(loader)
        except RuntimeError as error:
            os._exit(int("num_workers=0" in str(error)))
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1


def test_fields_come_under_other_keys() -> None:
    loader = RaphaDataLoader(5, rename={"x": "image"})
    assert [field.name for field in loader.fields] == ["id", "image"]
    assert next(iter(loader))["image"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("wrong", [{"y": "label"}, {"x": "id"}, {"x": "z", "id": "z"}, {"x": 1}])
def test_a_wrong_renaming_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="rename"):
        RaphaDataLoader(rename=wrong)


def test_a_renamed_label_may_be_hidden() -> None:
    loader = RaphaDataLoader(split="test", rename={"x": "image", "label": "target"})
    assert [field.name for field in loader.fields] == ["id", "image"]
