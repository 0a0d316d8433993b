"""An attack on the whole mechanism finds no more than was promised; and without the noise it finds far more.

One run is enough (Steinke, Nasr and Jagielski, NeurIPS 2023). A thousand patients are in the data or not by
the toss of a coin; the gradient of each has an axis of its own, and is far beyond the clip. An attacker who
knows all but the coins looks along each axis and guesses. Under epsilon no guess is right more often than
e^epsilon / (1 + e^epsilon), so from how many are right follows a lower bound of epsilon, with confidence.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped]
from torch import Tensor

from rapha.node.private.accounting import epsilon
from rapha_trainer.private import models, training
from rapha_trainer.private.randomness import Patients
from rapha_trainer.private.settings import Input, Net, Settings, Target

DELTA, CANARIES, GUESSES, CONFIDENCE = 1e-6, 1000, 400, 0.999
SETTINGS = Settings(
    net=Net("linear", (), "relu", frozen=False),
    inputs=(Input("x", (CANARIES,), 0.0, 1.0),),
    target=Target("y", "binary", 1.0, 1, 0.0, 1.0),
    loss="cross-entropy",
    clip=1.0,
    noise_multiplier=2.0,
    sample_rate=0.5,
    expected_batch=1,
    steps=4,
    learning_rate=1e-6,
    optimizer="sgd",
    momentum=0.0,
    init_seed=0,
    at_once=256,
    weights_file="model.safetensors",
)
PROMISED = epsilon(SETTINGS.noise_multiplier, SETTINGS.sample_rate, SETTINGS.steps, DELTA)


def lower_bound(given: Settings, seed: int) -> float:
    """Of epsilon, from the surest guesses for and against; 0 where they are no better than coins."""
    coins = np.random.default_rng(seed).random(CANARIES) < 0.5
    inside = np.flatnonzero(coins)

    def read(_given: Settings, indices: NDArray[np.int64]) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(indices), given.at_once):
            own = inside[indices[start : start + given.at_once]]
            axes = torch.zeros(len(own), CANARIES)
            axes[torch.arange(len(own)), torch.from_numpy(own)] = 1000.0
            yield axes, torch.ones(len(own), dtype=torch.float64)

    model = models.build(given)
    torch.nn.init.zeros_(model.head.weight)  # so that each gradient begins at its longest
    training.fit(given, model, Patients.of(np.arange(len(inside), dtype=np.int32)), read)
    order = np.argsort(model.head.weight.detach()[0].double().numpy())
    right = coins[order[-GUESSES:]].sum() + (~coins[order[:GUESSES]]).sum()
    share = float(stats.beta.ppf(1 - CONFIDENCE, right, 2 * GUESSES - right + 1))
    return max(0.0, math.log(share / (1 - share)))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_an_attack_finds_no_more_than_is_promised_and_not_nothing() -> None:
    assert 0 < lower_bound(SETTINGS, 1) <= PROMISED


def test_the_attack_finds_noise_that_is_missing() -> None:
    for noise, rate in ((0.02, 1.0), (0.1, 1.0)):
        weak = dataclasses.replace(SETTINGS, noise_multiplier=noise, sample_rate=rate)
        assert lower_bound(weak, 2) > PROMISED
