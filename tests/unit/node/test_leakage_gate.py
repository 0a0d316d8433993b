"""Check 8 in gate 9: what is run, what is left out, when it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rapha.node.gates import leakage as gate
from rapha.node.gates.train import Ended, Trained
from rapha.node.journal import Journal
from rapha.spec.disclosure import NOT_ASKED, Caps, Leakage, LeakageTest
from rapha.spec.refusals import Refused

JOB = "a" * 64
ABLE = Leakage(verdict="not_run", members=6000, non_members=1500, reason="no shadow was trained yet")
FOUND = Leakage(verdict="measured", members=6000, non_members=1500, shadows=6, tpr=0.05, low=0.03, high=0.08)
WEIGHTS = b"as they may leave"
HELD: Any = SimpleNamespace(cpu_s=1.0)
ASKED = LeakageTest(shadows=6)


@dataclass
class World:
    """A job on a dataset that asks for the test, and everything that the gate calls."""

    work: Path
    journal: Journal
    test: LeakageTest = ASKED
    before: Leakage = ABLE
    after: Leakage = FOUND
    now: float = 0.0
    each_s: float = 10.0
    fails: dict[int | None, Refused] = field(default_factory=dict)
    unfit: dict[int | None, Refused] = field(default_factory=dict)
    rejected: set[int] = field(default_factory=set)
    trained: list[tuple[int | None, float]] = field(default_factory=list)
    observed: list[int | None] = field(default_factory=list)
    shown: list[list[bytes]] = field(default_factory=list)
    job: Any = None

    def __post_init__(self) -> None:
        self.job = self.job or SimpleNamespace(
            kind="train",
            private=None,
            predict=("p",),
            outputs=SimpleNamespace(weights=object(), trusted_metrics=("auroc",)),
            compute=SimpleNamespace(wall_clock_s=1200),
        )

    def run(self) -> Leakage:
        manifest = SimpleNamespace(disclosure=Caps(leakage=self.test), target=object())
        admitted = SimpleNamespace(id=JOB, job=self.job, manifest=manifest)
        asked = iter((self.before, self.after))
        data = SimpleNamespace(audit=lambda: next(asked), observe=self._observe)
        released = self.work.parent / "released"
        return gate.leakage(
            cast(Any, SimpleNamespace(journal=self.journal)),
            cast(Any, admitted),
            cast(Any, SimpleNamespace(data=data)),
            Trained(self.work / "outputs", HELD),
            released,
            self.work,
            None,
        )

    def train(self, *given: Any, shadow: int | None, wall_s: float) -> Trained:
        folder = given[3]
        (folder / "outputs").mkdir()
        (folder / "outputs" / "model.safetensors").write_bytes(b"a patient, perhaps")
        self.trained.append((shadow, wall_s))
        self.now += self.each_s
        if shadow in self.fails:
            raise self.fails[shadow]
        return Trained(folder / "outputs", HELD)

    def rebuild(self, *given: Any, timeout_s: float, **_: Any) -> Any:
        assert 0 < timeout_s <= 60
        assert not list(given[2].iterdir())
        return SimpleNamespace(ok=self.trained[-1][0] not in self.rejected)

    @contextmanager
    def predicted(self, *given: Any, wall_s: float) -> Iterator[Path]:
        assert given[6] == "audit" and wall_s >= 1
        assert given[3] == self.work / "again" / "released"  # the code can read in which folder it lies
        self.shown.append([path.read_bytes() for path in given[3].iterdir()])
        yield given[3]

    def _observe(self, shadow: int | None, predictions: Path) -> None:
        assert predictions.name == "released"
        if shadow in self.unfit:
            raise self.unfit[shadow]
        self.observed.append(shadow)

    def entries(self, event: str) -> list[dict[str, Any]]:
        return [dict(e.data) for e in self.journal if e.event == event]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    work = tmp_path / "work"
    work.mkdir()
    (tmp_path / "released").mkdir()
    (tmp_path / "released" / "model.safetensors").write_bytes(WEIGHTS)
    with Journal(tmp_path / "journal.jsonl") as journal:
        made = World(work, journal)
        monkeypatch.setattr(gate, "train", made.train)
        monkeypatch.setattr(gate, "run_in_process", made.rebuild)
        monkeypatch.setattr(gate, "predicted", made.predicted)
        monkeypatch.setattr(gate, "time", SimpleNamespace(monotonic=lambda: made.now))
        yield made


def test_the_released_model_is_observed_and_then_each_shadow(world: World) -> None:
    assert world.run() == FOUND
    assert world.observed == [None, *range(6)]
    assert [number for number, _ in world.trained] == list(range(6))
    assert not list(world.work.iterdir())  # nothing of a shadow is left
    assert world.shown == [[WEIGHTS], *[[]] * 6]
    assert world.entries("leakage") == [FOUND.dump()]


def test_where_the_manifest_asks_for_none_nothing_runs(world: World) -> None:
    world.test = LeakageTest()
    assert world.run() is NOT_ASKED
    assert not world.trained and not world.entries("leakage")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"kind": "evaluate"}, "nothing was trained"),
        ({"predict": None}, "no trusted metrics"),
        ({"outputs": SimpleNamespace(weights=object(), trusted_metrics=())}, "no trusted metrics"),
        ({"outputs": SimpleNamespace(weights=None, trusted_metrics=())}, "no weights"),
    ],
)
def test_a_job_that_cannot_be_tested_is_not(world: World, change: dict[str, Any], why: str) -> None:
    world.job = SimpleNamespace(**{**vars(world.job), **change})
    found = world.run()
    assert found.verdict == "not_run" and why in found.reason
    assert not world.trained and not world.observed


@pytest.mark.parametrize(
    "before",
    [
        Leakage(verdict="not_resolvable", members=6000, non_members=999, reason="fewer than 1000"),
        Leakage(verdict="not_run", members=99, non_members=1500, reason="fewer than 100 patients"),
    ],
)
def test_what_no_shadow_can_resolve_trains_none(world: World, before: Leakage) -> None:
    world.before = before
    assert world.run() == before
    assert not world.trained and not world.observed


def test_a_shadow_that_fails_is_left_out_and_journalled(world: World) -> None:
    world.fails[1] = Ended("job.failed")
    world.unfit[2] = Refused("job.outputs", "3 columns do not cover the classes")
    world.rejected = {4}
    assert world.run() == FOUND
    assert world.observed == [None, 0, 3, 5]
    left_out = [(e["number"], e["code"]) for e in world.entries("shadow")]
    assert left_out == [(1, "job.failed"), (2, "job.outputs"), (4, "job.outputs")]
    assert not list(world.work.iterdir())


@pytest.mark.parametrize("code", ["node.stopped", "node.sandbox_unavailable"])
def test_what_the_node_cannot_do_ends_the_job(world: World, code: str) -> None:
    world.fails[2] = Refused(code)
    with pytest.raises(Refused) as refused:
        world.run()
    assert refused.value.code == code and not isinstance(refused.value, Ended)
    assert len(world.trained) == 3 and not list(world.work.iterdir())


def test_a_dataset_process_that_failed_ends_the_job(world: World) -> None:
    world.unfit[0] = Refused("node.internal", "the dataset process ended")
    with pytest.raises(Refused, match=r"node\.internal"):
        world.run()


def test_what_is_not_done_in_time_is_left_out(world: World) -> None:
    world.test, world.each_s = LeakageTest(shadows=100, limit_s=35), 10
    world.run()
    assert world.trained == [(0, 35), (1, 25), (2, 15), (3, 5)]


def test_a_shadow_never_has_more_time_than_is_left(world: World) -> None:
    world.test, world.each_s = LeakageTest(shadows=100, limit_s=7200), 7199.5
    world.run()
    assert world.trained == [(0, 7200)]


def test_more_members_found_than_allowed_refuses(world: World) -> None:
    world.test = LeakageTest(shadows=6, most_tpr=0.02)
    with pytest.raises(Ended) as ended:
        world.run()
    assert ended.value.code == "job.outputs" and ended.value.outcome is HELD
    assert world.entries("guard")[0]["code"] == "guard.leakage"


def test_chance_alone_does_not_refuse(world: World) -> None:
    # The rate itself, 0.05, is above; the lower end of its interval, 0.03, is not.
    world.test = LeakageTest(shadows=6, most_tpr=0.04)
    assert world.run() == FOUND


def test_of_private_training_whatever_is_found_is_for_people_to_read(world: World) -> None:
    world.test = LeakageTest(shadows=6, most_tpr=0.01)
    world.job.private = object()
    assert world.run() == FOUND


def fail_to_predict(world: World) -> None:
    world.unfit[None] = Refused("job.outputs", "not one prediction a record")


def fail_every_shadow(world: World) -> None:
    world.fails = {n: Ended("job.failed") for n in range(6)}
    world.after = ABLE


def take_too_few(world: World) -> None:
    world.before = Leakage(verdict="not_run", members=99, non_members=1500, reason="fewer than 100")


@pytest.mark.parametrize("evade", [fail_to_predict, fail_every_shadow, take_too_few])
def test_code_that_lets_the_test_fail_releases_nothing_where_it_is_demanded(world: World, evade: Any) -> None:
    evade(world)
    world.test = LeakageTest(shadows=6, most_tpr=0.5)
    with pytest.raises(Ended) as ended:
        world.run()
    assert ended.value.code == "job.outputs"
    assert "demanded" in world.entries("guard")[0]["reason"]


@pytest.mark.parametrize("evade", [fail_to_predict, fail_every_shadow, take_too_few])
def test_where_it_is_not_demanded_people_read_that_it_was_not_run(world: World, evade: Any) -> None:
    evade(world)
    found = world.run()
    assert found.verdict == "not_run" and found.reason and found.tpr is None


def test_a_job_that_chose_too_few_patients_to_resolve_it_releases_nothing(world: World) -> None:
    world.before = Leakage(verdict="not_resolvable", members=3000, non_members=999, narrowed=True)
    assert world.run() == world.before
    world.test = LeakageTest(shadows=6, most_tpr=0.5)
    with pytest.raises(Ended) as ended:
        world.run()
    assert ended.value.code == "job.outputs" and not world.trained


def test_too_few_patients_to_resolve_it_are_not_the_jobs_doing(world: World) -> None:
    world.before = Leakage(verdict="not_resolvable", members=6000, non_members=500, reason="fewer")
    world.test = LeakageTest(shadows=6, most_tpr=0.5)
    assert world.run() == world.before
