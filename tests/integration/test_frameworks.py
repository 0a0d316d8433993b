"""The loader in a plain torch loop, in Lightning's Trainer and in MONAI's, over records from a real broker.

Lightning saves the loader's place with its checkpoints and restores it: a run that was broken off in the
middle of an epoch goes on with exactly the batches of an uninterrupted one, and no record is counted anew.
"""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch

from rapha.runtime.broker.meter import Meter, Usage
from rapha.runtime.broker.serve import Broker
from rapha.runtime.broker.store import TableStore
from rapha_trainer import RaphaDataLoader
from rapha_trainer import session as sessions

# Both speak of how they use torch, not of the loader.
lightning_deprecates = pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec:FutureWarning")
ignite_deprecates = pytest.mark.filterwarnings(r"ignore:`torch.jit.\w+` is deprecated:DeprecationWarning")
RECORDS, TRAIN = 150, 120
SIDE = 12


def images() -> dict[str, np.ndarray[Any, Any]]:
    """Bright in the upper or lower half, and the label says which."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, RECORDS)
    pixels = rng.normal(0, 0.3, (RECORDS, 1, SIDE, SIDE)).astype("f4")
    for image, upper in zip(pixels, y, strict=True):
        image[:, : SIDE // 2] += upper
    return {"id": np.arange(RECORDS), "pixels": pixels, "y": y}


class Served:
    """A broker in a thread; `usage` ends its session."""

    def __init__(self, journal: Path) -> None:
        patients = np.arange(RECORDS)
        self._meter = Meter.create(journal, patients=patients, cap=RECORDS, key=bytes(range(32)))
        split = {"train": patients[:TRAIN], "test": patients[TRAIN:]}
        self._broker = Broker(TableStore(images(), patients, ["y"]), split, self._meter)
        self._threads = ThreadPoolExecutor(1)
        self._ends: tuple[socket.socket, ...] = ()
        self._usage: Future[Usage]

    def begin(self) -> str:
        """Start a session; returns what RAPHA_BROKER_FD is to be."""
        self._ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._usage = self._threads.submit(self._broker.serve, self._ends[0])
        return str(self._ends[1].fileno())

    def usage(self) -> Usage:
        for source in list(sessions._connected.values()):
            source.close()
        if self._ends:
            self._ends[1].close()
            used = self._usage.result(timeout=20)
            self._ends[0].close()
        return used

    def close(self) -> None:
        self.usage()
        self._threads.shutdown()
        self._meter.close()


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    served = Served(tmp_path / "journal")
    monkeypatch.setenv("RAPHA_BROKER_FD", served.begin())
    yield served
    served.close()


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(SIDE * SIDE, 2))


def accuracy(model: torch.nn.Module) -> float:
    data = images()
    with torch.no_grad():
        guessed = model(torch.from_numpy(data["pixels"][TRAIN:])).argmax(1).numpy()
    return float((guessed == data["y"][TRAIN:]).mean())


def test_a_plain_torch_loop_learns(served: Served) -> None:
    model = network()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    for batch in RaphaDataLoader(16, shuffle=True, epochs=6, as_torch=True):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(batch["pixels"]), batch["y"]).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    assert accuracy(model) > 0.9
    assert served.usage().unique_records == TRAIN


# Lightning --------------------------------------------------------------------------------------------------


class Stopped(Exception):  # noqa: N818  the run is broken off on purpose
    """As a crash would end it."""


class Lit(lightning.LightningModule):
    """Remembers the records of each step, and saves a checkpoint and stops after `stop_after` of them."""

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__()
        self.model = network()
        self.stop_after = stop_after
        self.steps: list[list[int]] = []

    def training_step(self, batch: dict[str, torch.Tensor], _: int) -> torch.Tensor:
        self.steps.append(batch["id"].tolist())
        return torch.nn.functional.cross_entropy(self.model(batch["pixels"]), batch["y"])

    def on_train_batch_end(self, *_: Any) -> None:
        if len(self.steps) == self.stop_after:
            self.trainer.save_checkpoint(str(Path(self.trainer.default_root_dir) / "middle.ckpt"))
            raise Stopped

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


class LitValidated(Lit):
    """Remembers the records that it was validated on, too."""

    def __init__(self) -> None:
        super().__init__()
        self.validated: list[int] = []

    def validation_step(self, batch: dict[str, torch.Tensor], _: int) -> None:
        self.validated += batch["id"].tolist()


def trainer(folder: Path, max_epochs: int = 2, **kwargs: Any) -> lightning.Trainer:
    return lightning.Trainer(
        max_epochs=max_epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **kwargs,
    )


def train_loader() -> RaphaDataLoader:
    return RaphaDataLoader(16, shuffle=True, seed=5, as_torch=True)


def order(epochs: int) -> list[list[int]]:
    """The ids of each batch, by the loader alone."""
    loader = RaphaDataLoader(16, shuffle=True, seed=5, epochs=epochs)
    return [batch["id"].tolist() for batch in loader]


@lightning_deprecates
def test_lightning_fits_two_epochs(served: Served, tmp_path: Path) -> None:
    module = Lit()
    trainer(tmp_path).fit(module, train_loader())
    assert module.steps == order(2)
    assert served.usage().unique_records == TRAIN


# 8 batches an epoch: in the first, after it, in the second, and before the very last batch.
@lightning_deprecates
@pytest.mark.parametrize("stop_after", [1, 3, 8, 11, 15])
def test_lightning_resumes_exactly(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    whole = Lit()
    trainer(tmp_path).fit(whole, train_loader())
    counted = served.usage()
    monkeypatch.setenv("RAPHA_BROKER_FD", served.begin())

    broken = Lit(stop_after)
    with pytest.raises(Stopped):
        trainer(tmp_path).fit(broken, train_loader())
    resumed = Lit()
    trainer(tmp_path).fit(resumed, train_loader(), ckpt_path=str(tmp_path / "middle.ckpt"))

    assert broken.steps + resumed.steps == whole.steps
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    assert served.usage().unique_records == counted.unique_records == TRAIN


@lightning_deprecates
def test_lightning_goes_on_from_the_end_of_an_epoch(served: Served, tmp_path: Path) -> None:
    saved = tmp_path / "end.ckpt"
    short = trainer(tmp_path, max_epochs=1)
    short.fit(Lit(), train_loader())
    short.save_checkpoint(saved)
    resumed = Lit()
    trainer(tmp_path, max_epochs=3).fit(resumed, train_loader(), ckpt_path=str(saved))
    assert resumed.steps == order(3)[8:]


@lightning_deprecates
def test_lightning_validates_on_held_out_indices(served: Served, tmp_path: Path) -> None:
    module = LitValidated()
    fit = RaphaDataLoader(16, indices=range(100), as_torch=True)
    held_out = RaphaDataLoader(16, indices=range(100, TRAIN), as_torch=True)
    trainer(tmp_path).fit(module, fit, held_out)
    assert sorted(itertools.chain(*module.steps)) == sorted([*range(100)] * 2)
    # Lightning looks at it before the first epoch, and after each.
    assert sorted(module.validated) == sorted([*range(100, TRAIN)] * 3)


@lightning_deprecates
@pytest.mark.parametrize("stop_after", [2, 3, 4])
def test_lightning_takes_part_of_an_epoch(served: Served, tmp_path: Path, stop_after: int) -> None:
    broken, resumed = Lit(stop_after), Lit()
    with pytest.raises(Stopped):
        trainer(tmp_path, limit_train_batches=3).fit(broken, train_loader())
    saved = str(tmp_path / "middle.ckpt")
    trainer(tmp_path, limit_train_batches=3).fit(resumed, train_loader(), ckpt_path=saved)
    expected = order(2)
    assert broken.steps + resumed.steps == [*expected[:3], *expected[8:11]]


@lightning_deprecates
def test_lightning_counts_passes_of_several_epochs(served: Served, tmp_path: Path) -> None:
    def loader() -> RaphaDataLoader:
        return RaphaDataLoader(16, shuffle=True, seed=5, epochs=2, as_torch=True)

    broken, resumed = Lit(19), Lit()
    with pytest.raises(Stopped):
        trainer(tmp_path).fit(broken, loader())
    trainer(tmp_path).fit(resumed, loader(), ckpt_path=str(tmp_path / "middle.ckpt"))
    assert broken.steps + resumed.steps == order(4)


# MONAI ------------------------------------------------------------------------------------------------------


@ignite_deprecates
def test_monai_trains_over_image_dictionaries(served: Served) -> None:
    from monai.engines.trainer import SupervisedTrainer
    from monai.transforms.compose import Compose
    from monai.transforms.intensity.dictionary import ScaleIntensityRanged
    from monai.transforms.spatial.dictionary import RandFlipd

    model, seen = network(), []
    scale = ScaleIntensityRanged("image", a_min=-1, a_max=2, b_min=-1, b_max=2, clip=True)
    augment = Compose([scale, RandFlipd("image", prob=0.5, spatial_axis=1)])
    augment.set_random_state(seed=0)

    def prepare(batch: dict[str, Any], device: Any, non_blocking: bool, **_: Any) -> Any:
        seen.append(batch["id"].tolist())
        images = torch.stack([augment({"image": image})["image"].as_tensor() for image in batch["image"]])
        return images.to(device), batch["label"].to(device)

    loader = RaphaDataLoader(
        16, shuffle=True, seed=5, as_torch=True, rename={"pixels": "image", "y": "label"}
    )
    SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=6,
        train_data_loader=loader,
        network=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05),
        loss_function=torch.nn.CrossEntropyLoss(),
        prepare_batch=prepare,
    ).run()
    assert seen == order(6)
    assert accuracy(model) > 0.9
    assert served.usage().unique_records == TRAIN
