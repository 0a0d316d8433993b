"""The hospital's own trainer: what one patient can move, and that the noise is real."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from opacus.grad_sample import GradSampleModule
from scipy import stats  # type: ignore[import-untyped]
from torch import Tensor

from rapha.spec.private import PrivateTraining
from rapha_trainer.private import batches, models, randomness, training
from rapha_trainer.private.clipping import clipped_sum
from rapha_trainer.private.randomness import Patients, gaussian, sample
from rapha_trainer.private.settings import Input, Net, Settings, Target

FIELDS = 5
PLAIN = Settings(
    net=Net("linear", (), "relu", frozen=False),
    inputs=(Input("x", (FIELDS,), 0.0, 1.0),),
    target=Target("y", "binary", 1.0, 1, 0.0, 1.0),
    loss="cross-entropy",
    clip=1.0,
    noise_multiplier=1.0,
    sample_rate=0.5,
    expected_batch=10,
    steps=3,
    learning_rate=1.0,
    optimizer="sgd",
    momentum=0.0,
    init_seed=0,
    at_once=64,
    weights_file="model.safetensors",
)
NETS = {
    "linear": PLAIN.net,
    "mlp": Net("mlp", (6, 4), "tanh", frozen=False),
    "cnn": Net("cnn", (4, 6), "relu", frozen=False),
    "head": Net("mlp", (6,), "gelu", frozen=True),
}


def made(kind: str, **changed: Any) -> Settings:
    shape = (8, 8) if kind == "cnn" else (FIELDS,)
    return dataclasses.replace(PLAIN, net=NETS[kind], inputs=(Input("x", shape, 0.0, 1.0),), **changed)


class Stream:
    """Bytes that look random and are the same in each run."""

    def __init__(self, seed: bytes = b"") -> None:
        self._seed, self._turn = seed, 0

    def __call__(self, count: int) -> bytes:
        self._turn += 1
        return hashlib.shake_256(self._seed + self._turn.to_bytes(8, "big")).digest(count)


def reader(features: NDArray[np.float32], labels: NDArray[np.float32]) -> training.Read:
    def read(given: Settings, indices: NDArray[np.int64]) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(indices), given.at_once):
            piece = indices[start : start + given.at_once]
            inputs = batches.inputs(given, {"x": torch.from_numpy(features[piece])})
            yield inputs, torch.from_numpy(labels[piece]).double()

    return read


def data(records: int, kind: str = "linear") -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    shape = (8, 8) if kind == "cnn" else (FIELDS,)
    generator = np.random.default_rng(7)
    features = generator.normal(size=(records, *shape)).astype(np.float32)
    return features, (features.reshape(records, -1)[:, 0] > 0).astype(np.float32)


def alone(records: int) -> Patients:
    return Patients.of(np.arange(records, dtype=np.int32))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """These models are small: threads cost more than they save."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# Who is in a step


def test_each_patient_is_in_with_the_declared_rate_for_themselves() -> None:
    patients, steps = alone(500), 400
    inside = np.zeros((steps, len(patients)))
    source = Stream()
    for step in range(steps):
        inside[step, sample(patients, 0.1, source)] = 1
    each = inside.sum(axis=0)
    # A binomial for each patient, and no two of them together more often than apart.
    assert each.mean() == pytest.approx(steps * 0.1, rel=0.02)
    assert each.var() == pytest.approx(steps * 0.1 * 0.9, rel=0.2)
    correlation: NDArray[np.float64] = np.asarray(np.corrcoef(inside[:, :100].T))
    together = correlation[np.triu_indices(100, 1)]
    assert abs(together.mean()) < 0.01
    assert together.std() == pytest.approx(1 / np.sqrt(steps), rel=0.1)


def test_one_record_stands_for_each_patient_and_each_of_theirs_may() -> None:
    groups = np.array([0, 1, 1, 2, 2, 2, 0, 3], np.int32)
    patients, seen = Patients.of(groups), set()
    for _ in range(200):
        chosen = sample(patients, 1.0)
        assert sorted(groups[chosen]) == [0, 1, 2, 3]
        seen.update(chosen.tolist())
    assert seen == set(range(8))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.floats(0.01, 1.0), st.binary(max_size=4))
def test_nobody_is_in_a_step_twice(groups: list[int], rate: float, seed: bytes) -> None:
    _, dense = np.unique(groups, return_inverse=True)
    chosen = sample(Patients.of(dense.astype(np.int32)), rate, Stream(seed))
    assert len(set(dense[chosen])) == len(chosen)


def test_another_patient_changes_nothing_for_those_before() -> None:
    few, more = alone(50), alone(51)
    drawn = Stream()(8 * 51)
    first = sample(few, 0.3, lambda n: drawn[:n])
    second = sample(more, 0.3, lambda n: drawn[:n])
    assert set(first.tolist()) == set(second.tolist()) - {50}


@pytest.mark.parametrize("groups", [[], [0, 2], [-1, 0], [[0, 1]]], ids=["nobody", "gap", "negative", "flat"])
def test_groups_that_are_none_are_told_so(groups: list[Any]) -> None:
    with pytest.raises(ValueError, match="groups"):
        Patients.of(np.array(groups, np.int32))


def test_there_is_no_way_to_pass_a_seed() -> None:
    """The declaration has one seed, and it reaches the initial weights alone."""
    seeds = [name for name in PrivateTraining.model_fields if "seed" in name]
    assert seeds == ["init_seed"] == [f.name for f in dataclasses.fields(Settings) if "seed" in f.name]
    source = "".join(inspect.getsource(module) for module in (training, randomness, batches))
    assert "init_seed" not in source
    assert not {"manual_seed", "random.seed", "default_rng", "torch.rand", "np.random"} & set(source.split())
    features, labels = data(40)
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        model = models.build(PLAIN)
        training.fit(PLAIN, model, alone(40), reader(features, labels))
        results.append(model.head.weight.detach().clone())
    assert not torch.equal(*results)


def test_the_initial_weights_follow_from_the_declared_seed_alone() -> None:
    first, again, other = (models.build(made("mlp", init_seed=seed)) for seed in (1, 1, 2))
    same = zip(first.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in same)
    assert not torch.equal(first.head.weight, other.head.weight)


# The noise


def test_the_noise_is_normal_with_the_standard_deviation_asked_for() -> None:
    drawn = gaussian(200_000, 2.5, Stream())
    assert drawn.std() == pytest.approx(2.5, rel=0.01)
    assert abs(drawn.mean()) < 0.02
    assert stats.kstest(drawn / 2.5, "norm").pvalue > 1e-3
    assert stats.kurtosis(drawn) == pytest.approx(0, abs=0.05)


def test_draws_are_not_those_of_each_other() -> None:
    drawn = gaussian(100_001, 1.0, Stream())
    assert len(drawn) == len(np.unique(drawn)) == 100_001
    for lag in (1, 2, 50_000):
        assert abs(np.corrcoef(drawn[:-lag], drawn[lag:])[0, 1]) < 0.02


def test_noise_is_finite_whatever_the_bytes_are() -> None:
    assert np.isfinite(gaussian(9, 1.0, bytes)).all()
    assert np.isfinite(gaussian(9, 1.0, lambda count: b"\xff" * count)).all()


def test_a_step_in_which_nobody_is_takes_noise_alone() -> None:
    given = made("linear", sample_rate=1e-6, steps=1, noise_multiplier=3.0, clip=2.0, expected_batch=4)
    moved = []
    for _ in range(400):
        model = models.build(given)
        before = model.head.weight.detach().clone()
        training.fit(given, model, alone(3), lambda _given, indices: iter(()) if not len(indices) else fail())
        moved += (model.head.weight.detach() - before).flatten().tolist()
    # Divided by what is expected, never by how many there were.
    assert np.std(moved) == pytest.approx(3.0 * 2.0 / 4, rel=0.08)


def fail() -> Iterator[tuple[Tensor, Tensor]]:
    raise AssertionError("somebody is in a step in which nobody should be")


@pytest.mark.parametrize("kind", NETS)
def test_what_moves_the_weights_is_the_clipped_sum_and_noise_of_sigma_times_clip(kind: str) -> None:
    """One step from the same weights with the same people: the spread is the noise, in every coordinate."""
    given = made(kind, sample_rate=1.0, steps=1, noise_multiplier=0.7, clip=0.5, expected_batch=1)
    features, labels = data(12, kind)
    moved = []
    for turn in range(60 if kind in ("linear", "head") else 12):
        model = models.build(given)
        trained = [p for p in model.parameters() if p.requires_grad]
        before = torch.cat([p.detach().flatten() for p in trained]).clone()
        training.fit(given, model, alone(12), reader(features, labels), Stream(bytes([turn])))
        moved.append(before - torch.cat([p.detach().flatten() for p in trained]))
    spread = torch.stack(moved).var(dim=0)
    assert float(spread.mean().sqrt()) == pytest.approx(0.7 * 0.5, rel=0.1)
    assert float(spread.min()) > 0


# The bound on one patient


@pytest.mark.parametrize("at_once", [2, 7, 64])
@pytest.mark.parametrize("kind", ["mlp", "head"])
def test_weights_made_to_show_rounding_show_nobody_elses_records(kind: str, at_once: int) -> None:
    """The submitter's own weights: a layer in which all but the last bit cancels, and that is made large.
    In a batch those bits depend on how many others there are: one patient would turn everybody's gradient."""
    width, people, outputs = 33, 40, 8
    net = Net("mlp", (outputs,), "relu", frozen=kind == "head")
    given = dataclasses.replace(PLAIN, net=net, inputs=(Input("x", (width,), 0.0, 1.0),), at_once=at_once)
    generator = np.random.default_rng(3)
    features = generator.normal(size=(people, width)).astype(np.float32)
    features[:, 16:32] = features[:, 15::-1]
    model = models.build(given)
    half = torch.from_numpy(generator.normal(size=(outputs, 16)).astype(np.float32)) * 1e8
    with torch.no_grad():
        cancelling = torch.cat([half, -half.flip(1), torch.zeros(outputs, 1)], dim=1)
        model.get_parameter("body.0.weight").copy_(cancelling)
    below, top = (model.body, model.head) if net.frozen else (torch.nn.Identity(), model)
    read = reader(features, np.ones(people, np.float32))

    def rows(indices: NDArray[np.int64]) -> list[Tensor]:
        pieces = [training._gradients(given, below, top, *piece) for piece in read(given, indices)]
        return [torch.cat(parts) for parts in zip(*pieces, strict=True)]

    everybody, rest = rows(np.arange(people)), rows(np.arange(1, people))
    assert any(part.abs().max() > 0 for part in everybody)
    assert all(torch.equal(whole[1:], part) for whole, part in zip(everybody, rest, strict=True))


def test_per_record_gradients_are_those_of_opacus() -> None:
    given, (features, labels) = made("cnn"), data(9, "cnn")
    model = models.build(given)
    (piece,) = reader(features, labels)(given, np.arange(9))
    rows = training._gradients(given, torch.nn.Identity(), model, *piece)
    wrapped = GradSampleModule(model, batch_first=True, loss_reduction="sum")
    inputs = piece[0].clone().requires_grad_()
    batches.losses(given, wrapped(inputs), piece[1]).backward()  # type: ignore[no-untyped-call]
    for row, parameter in zip(rows, wrapped.parameters(), strict=True):
        torch.testing.assert_close(row, parameter.grad_sample, atol=1e-5, rtol=1e-4)
    wrapped.to_standard_module()


@pytest.mark.parametrize("kind", NETS)
def test_per_record_gradients_are_those_of_each_record_alone(kind: str) -> None:
    given, (features, labels) = made(kind), data(9, kind)
    model = models.build(given)
    below, top = (model.body, model.head) if given.net.frozen else (torch.nn.Identity(), model)
    (piece,) = reader(features, labels)(given, np.arange(9))
    rows = training._gradients(given, below, top, *piece)
    for record in range(9):
        (single,) = reader(features, labels)(given, np.array([record]))
        model.zero_grad()
        batches.losses(given, model(single[0]), single[1]).backward()  # type: ignore[no-untyped-call]
        for row, parameter in zip(rows, top.parameters(), strict=True):
            assert parameter.grad is not None
            torch.testing.assert_close(row[record], parameter.grad, atol=1e-5, rtol=1e-4)


finite = st.floats(-(2.0**100), 2.0**100, width=32)
odd = st.sampled_from([float("nan"), float("inf"), float("-inf"), 3.4e38, -3.4e38, 1e-45, 0.0, -0.0])
gradients = st.lists(st.lists(finite | odd, min_size=6, max_size=6), min_size=1, max_size=8)


def as_tensors(rows: list[list[float]]) -> list[Tensor]:
    whole = torch.tensor(rows, dtype=torch.float32)
    return [whole[:, :4].reshape(-1, 2, 2), whole[:, 4:]]


def flat(parts: list[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts])


@settings(max_examples=300)
@given(gradients, st.floats(1e-6, 1e6), st.integers(0, 7))
def test_one_patient_more_or_less_moves_the_sum_by_no_more_than_the_clip(
    rows: list[list[float]], clip: float, who: int
) -> None:
    whole = flat(clipped_sum(as_tensors(rows), clip))
    assert torch.isfinite(whole).all()
    rest = [row for n, row in enumerate(rows) if n != who % len(rows)]
    without = flat(clipped_sum(as_tensors(rest), clip)) if rest else torch.zeros_like(whole)
    assert float((whole - without).norm()) <= clip


@given(gradients, st.floats(1e-6, 1e6))
def test_a_short_gradient_is_left_as_it_is(rows: list[list[float]], clip: float) -> None:
    short = [[max(-0.1, min(0.1, x)) * clip if not np.isnan(x) else 0.0 for x in row] for row in rows]
    torch.testing.assert_close(
        flat(clipped_sum(as_tensors(short), clip)),
        torch.tensor(short, dtype=torch.float32).double().sum(dim=0),
        rtol=1e-6,
        atol=1e-12 * clip,
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.sampled_from(sorted(NETS)), st.integers(0, 2**32))
def test_a_patient_with_many_records_moves_a_step_by_no_more_than_the_clip(
    own: int, kind: str, seed: int
) -> None:
    """The whole step, from who is sampled to the sum, with and without one patient of many wild records."""
    given = made(kind, sample_rate=1.0, steps=1, clip=0.3, noise_multiplier=1e-12, expected_batch=1)
    features, labels = data(10 + own, kind)
    generator = np.random.default_rng(seed)
    wild = generator.random(features[10:].shape) < 0.5
    features[10:][wild] = generator.choice([1e3, np.inf, np.nan, -1e38, 1e-38], wild.sum())
    groups = np.concatenate([np.arange(10), np.full(own, 10)]).astype(np.int32)
    moved = []
    for count in (10 + own, 10):
        model = models.build(given)
        before = flat([p.detach() for p in model.parameters()]).clone()
        training.fit(given, model, Patients.of(groups[:count]), reader(features, labels), Stream())
        moved.append(before - flat([p.detach() for p in model.parameters()]))
    assert float((moved[0] - moved[1]).norm()) <= 0.3 * (1 + 1e-4)


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("wild", [float("nan"), float("inf"), -1e38, 7.0, 0.5])
def test_a_wild_record_or_label_changes_nobody_elses_gradient_and_ends_nothing(
    task: Any, wild: float
) -> None:
    outputs = 3 if task == "multiclass" else 1
    target = Target("y", task, 1.0, outputs, 0.0, 1.0)
    given = made("mlp", target=target, loss="mse" if task == "regression" else "cross-entropy")
    features, labels = data(6)
    model = models.build(given)

    def rows() -> list[Tensor]:
        (piece,) = reader(features, labels)(given, np.arange(6))
        return training._gradients(given, torch.nn.Identity(), model, *piece)

    clean = rows()
    features[2], labels[3] = wild, wild
    for before, after in zip(clean, rows(), strict=True):
        torch.testing.assert_close(after[[0, 1, 4, 5]], before[[0, 1, 4, 5]])
    total = clipped_sum(rows(), 1.0)
    assert all(torch.isfinite(part).all() for part in total)


# What comes out


def test_a_frozen_body_is_not_trained() -> None:
    given, (features, labels) = made("head"), data(20)
    model = models.build(given)
    body = {name: tensor.clone() for name, tensor in model.body.state_dict().items()}
    head = model.head.weight.detach().clone()
    training.fit(given, model, alone(20), reader(features, labels))
    assert all(torch.equal(model.body.state_dict()[name], tensor) for name, tensor in body.items())
    assert not torch.equal(model.head.weight, head)


def test_it_learns_where_the_noise_allows_it() -> None:
    features, labels = data(2000)
    for optimizer, rate in (("sgd", 1.0), ("adam", 0.1)):
        given = made(
            "linear", sample_rate=0.1, expected_batch=200, steps=40, optimizer=optimizer, learning_rate=rate
        )
        model = models.build(given)
        training.fit(given, model, alone(2000), reader(features, labels))
        with torch.no_grad():
            right = (model(torch.from_numpy(features))[:, 0] > 0).numpy() == (labels > 0)
        assert right.mean() > 0.9


def test_how_many_records_are_in_memory_at_a_time_changes_nothing() -> None:
    features, labels = data(50)
    results = []
    for at_once in (50, 7, 1):
        given = made("mlp", at_once=at_once, sample_rate=1.0, steps=2)
        model = models.build(given)
        training.fit(given, model, alone(50), reader(features, labels), Stream())
        results.append(flat([p.detach() for p in model.parameters()]))
    torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(results[0], results[2], atol=1e-5, rtol=1e-4)


def test_a_prediction_is_a_probability_or_a_quantity_in_its_own_unit() -> None:
    raw = torch.tensor([[0.0], [2.0]])
    regression = Target("y", "regression", 1.0, 1, 10.0, 4.0)
    assert batches.predictions(regression, raw).flatten().tolist() == [10.0, 18.0]
    binary = batches.predictions(PLAIN.target, raw).flatten()
    assert binary[0] == 0.5
    many = batches.predictions(Target("y", "multiclass", 1.0, 3, 0.0, 1.0), torch.zeros(2, 3))
    torch.testing.assert_close(many.sum(dim=1), torch.ones(2))
