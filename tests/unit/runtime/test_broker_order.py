"""The order of an epoch: a bijection at every size, well mixed, and the same on both sides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import rapha_trainer.order
from rapha.runtime.broker import order
from rapha.runtime.broker.order import MAX_RECORDS, positions

WORDS = st.integers(0, 2**64 - 1)


def whole(records: int, seed: int = 0, epoch: int = 0) -> list[int]:
    return [int(position) for position in positions(records, seed, epoch, 0, records)]


def test_the_job_has_the_same_code() -> None:
    ours, theirs = (Path(str(module.__file__)).read_bytes() for module in (order, rapha_trainer.order))
    assert ours == theirs


@given(st.integers(0, 3000), WORDS, WORDS)
def test_every_record_comes_once(records: int, seed: int, epoch: int) -> None:
    assert sorted(whole(records, seed, epoch)) == list(range(records))


@pytest.mark.parametrize("records", [2**16 - 1, 2**16, 2**16 + 1, 2**18 - 3, 10**6])
def test_every_record_comes_once_at_sizes_that_are_odd_for_a_network(records: int) -> None:
    seen = np.bincount(positions(records, 3, 4, 0, records), minlength=records)
    assert seen.max() == seen.min() == 1


@given(st.integers(1, MAX_RECORDS), WORDS, WORDS, st.data())
def test_any_piece_is_the_piece_of_the_whole(
    records: int, seed: int, epoch: int, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, records))
    stop = min(records, start + data.draw(st.integers(0, 50)))
    piece = positions(records, seed, epoch, start, stop)
    assert piece.dtype == np.int64
    assert len(set(piece.tolist())) == stop - start
    assert all(0 <= position < records for position in piece.tolist())
    one_by_one = [int(positions(records, seed, epoch, i, i + 1)[0]) for i in range(start, stop)]
    assert piece.tolist() == one_by_one


def test_the_largest_order_reaches_its_ends_once() -> None:
    # A walk through 2^32-1 records takes a minute; that no two of a sample meet is checked instead.
    starts = range(0, MAX_RECORDS, MAX_RECORDS // 64)
    pieces = [positions(MAX_RECORDS, 7, 0, s, min(s + 2000, MAX_RECORDS)) for s in starts]
    together = np.concatenate(pieces)
    assert len(np.unique(together)) == len(together)
    assert together.max() < MAX_RECORDS


@pytest.mark.parametrize(
    ("records", "seed", "epoch", "start", "stop"),
    [
        (2**32, 0, 0, 0, 1),
        (-1, 0, 0, 0, 0),
        (5, 0, 0, 3, 2),
        (5, 0, 0, -1, 2),
        (5, 0, 0, 0, 6),
        (5, -1, 0, 0, 5),
        (5, 2**64, 0, 0, 5),
        (5, 0, 2**64, 0, 5),
    ],
)
def test_what_is_out_of_range_is_refused(records: int, seed: int, epoch: int, start: int, stop: int) -> None:
    with pytest.raises(ValueError, match=r"records|seed"):
        positions(records, seed, epoch, start, stop)


def test_it_does_not_change_from_version_to_version() -> None:
    # Receipts name epochs by seed and number; whoever audits them has to draw the same order.
    assert whole(10, 1, 1) == [5, 8, 3, 1, 4, 6, 2, 9, 7, 0]
    assert positions(2**32 - 1, 5, 6, 2**32 - 4, 2**32 - 1).tolist() == [804402994, 3620149655, 3130806525]


def test_seeds_and_epochs_differ() -> None:
    assert len({tuple(whole(50, seed, epoch)) for seed in range(8) for epoch in range(8)}) == 64


def chi_square(counts: NDArray[np.float64]) -> float:
    expected = counts.sum() / counts.size
    return float(((counts - expected) ** 2 / expected).sum())


def test_every_order_of_four_records_is_about_as_likely() -> None:
    seen = [tuple(whole(4, seed)) for seed in range(12_000)]
    _, counts = np.unique(seen, axis=0, return_counts=True)
    assert counts.size == 24
    assert 400 < counts.min() <= counts.max() < 600


@pytest.mark.parametrize("records", [1000, 1024, 65_537, 10**8])
def test_where_a_record_goes_tells_nothing_of_where_its_neighbours_go(records: int) -> None:
    count = min(records, 40_000)
    bins = 16
    where = positions(records, 11, 0, 0, count) * bins // records
    pairs = np.zeros((bins, bins))
    np.add.at(pairs, (where[:-1], where[1:]), 1)
    # 255 degrees of freedom: mean 255, deviation 23.
    assert chi_square(pairs) < 255 + 6 * 23
    if count < records:
        assert chi_square(pairs.sum(axis=0)) < 15 + 6 * 6


def test_a_batch_is_spread_over_the_whole_split() -> None:
    records, batch = 10**6, 4096
    for number in range(8):
        first = np.sort(positions(records, 1, 0, number * batch, (number + 1) * batch))
        # Kolmogorov-Smirnov: beyond 2.2 / sqrt(n) by chance once in 10,000 times.
        distance = np.abs(first / records - (np.arange(batch) + 0.5) / batch).max()
        assert distance < 2.2 / np.sqrt(batch)
