"""The agent between a pipeline's requests and a coordinator, both played by the test."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rapha.evidence import canonical, dsse
from rapha.evidence.keys import SigningKey
from rapha.node.agent.client import Leased, Step
from rapha.node.agent.process import LONGEST_S, MARGIN_S, Agent, serve
from rapha.node.config import NodeConfig
from rapha.node.uplink import receive, send
from rapha.spec.refusals import Refused
from rapha.spec.states import Actor, State, transition

JOB = "a" * 64
KEY = SigningKey.generate()
CONFIG = NodeConfig.parse(
    {
        "version": 1,
        "profile": "demo",
        "node": "node-a",
        "coordinator": {"url": "http://127.0.0.1:1", "audience": "rapha.demo/log"},
        "datasets": [],
        "policy_bundles": ["policy"],
        "runtime": ["numpy"],
        "runtime_name": "python",
        "wan_waiver": "test",
        "waits": {"challenge_s": 1, "ticket_s": 1, "approval_s": 500, "review_s": 700},
    }
)


class Coordinator:
    """What `AgentClient` is to the agent, over the real table of states."""

    def __init__(self) -> None:
        self.state_of = State.LEASED
        self.steps: list[Step] = []
        self.slots: dict[str, dict[str, Any]] = {}
        self.uploads: dict[str, str] = {}
        self.receipt: Any = None
        self.catalogue: list[dsse.EnvelopeDict] = []
        job = {"job": {"compute": {"wall_clock_s": 60}}, "nonce": "0" * 64}
        self.envelope = dsse.sign("job", {}, job, profile="demo", audience="rapha-node", keys=[KEY])

    def lease(self, wait: float, *, key: str, silent_period_s: int) -> Leased | None:
        return Leased(JOB, self.envelope, {"image": 1}, "b" * 64)

    def state(self, job: str) -> str:
        return str(self.state_of)

    def transition(self, job: str, step: Step) -> None:
        if State(step.source) != self.state_of:
            raise Refused("policy.conflict", f"the job is {self.state_of}")
        transition(self.state_of, State(step.target), Actor.NODE)
        self.state_of = State(step.target)
        self.steps.append(step)

    def put_exchange(self, job: str, slot: str, message: dict[str, Any]) -> None:
        self.slots[slot] = message

    def get_exchange(self, job: str, slot: str, wait: float) -> dict[str, Any] | None:
        return self.slots.get(slot)

    def upload_artifact(self, job: str, name: str, path: Path) -> str:
        self.uploads[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        return self.uploads[name]

    def post_receipt(self, job: str, surface: Any, core: Any, named: dict[str, str]) -> dict[str, Any]:
        assert self.state_of in (State.GUARDING, State.IN_REVIEW, State.DELIVERED)
        self.state_of, self.receipt = State.DELIVERED, (surface, core, named)
        return {}

    def publish_catalogue(self, entries: list[dsse.EnvelopeDict]) -> None:
        self.catalogue = entries

    def download_blob(self, sha256: str, destination: Path, limit: int) -> None:
        raise Refused("image.not_found")


@pytest.fixture
def coordinator() -> Coordinator:
    return Coordinator()


@pytest.fixture
def pipeline(coordinator: Coordinator) -> Iterator[Any]:
    """Ask the agent as `Uplink` does, over a socket pair."""
    ours, theirs = socket.socketpair()
    agent = Agent(coordinator, CONFIG, KEY)  # type: ignore[arg-type]
    thread = threading.Thread(target=serve, args=(agent, theirs))
    thread.start()

    def _ask(request: str, **fields: Any) -> dict[str, Any]:
        send(ours, {"request": request, **fields})
        reply = receive(ours)
        assert reply is not None
        return reply

    yield _ask
    ours.close()
    thread.join()
    theirs.close()


def advance(pipeline: Any, *names: str) -> None:
    for name in names:
        assert pipeline("transition", job=JOB, state=name, surface=None) == {}


def surface(code: str, outcome: str = "refused") -> dict[str, Any]:
    return {"job_id": JOB, "outcome": outcome, "code": code, "detail": None}


def outbox(root: Path) -> Path:
    (root / "artifacts").mkdir(parents=True)
    (root / "artifacts" / "model.safetensors").write_bytes(b"ciphertext")
    (root / "surface.json").write_bytes(canonical.dumps({"job_id": JOB}))
    (root / "core.json").write_bytes(canonical.dumps({"receipt": {}}))
    return root


def test_a_job_goes_through_and_each_silence_is_declared(
    pipeline: Any, coordinator: Coordinator, tmp_path: Path
) -> None:
    leased = pipeline("lease", key="ab" * 32, wait=0)
    assert (leased["job"], leased["image_blob"]) == (JOB, "b" * 64)
    assert leased["job_envelope"] == coordinator.envelope
    advance(pipeline, "ticketed", "awaiting_approval", "admitted", "running")
    periods = [step.silent_period_s for step in coordinator.steps]
    assert periods == [MARGIN_S, MARGIN_S + 500, MARGIN_S + 760, MARGIN_S + 760]
    box = outbox(tmp_path / "outbox")
    assert pipeline("release", job=JOB, outbox=str(box)) == {"state": "delivered"}
    assert [step.target for step in coordinator.steps][-1] == "guarding"
    assert coordinator.receipt == ({"job_id": JOB}, {"receipt": {}}, coordinator.uploads)


@pytest.mark.parametrize(("more_s", "declared"), [(5000, 5000), (-5000, 0)])
def test_a_job_whose_model_is_attacked_may_be_silent_for_longer(
    pipeline: Any, coordinator: Coordinator, more_s: int, declared: int
) -> None:
    pipeline("lease", key="ab" * 32, wait=0)
    advance(pipeline, "ticketed", "awaiting_approval", "admitted")
    assert pipeline("transition", job=JOB, state="running", surface=None, more_s=more_s) == {}
    assert coordinator.steps[-1].silent_period_s == MARGIN_S + 760 + declared


def test_releasing_again_after_a_lost_answer_sends_the_same(
    pipeline: Any, coordinator: Coordinator, tmp_path: Path
) -> None:
    coordinator.state_of = State.RUNNING
    box = outbox(tmp_path / "outbox")
    pipeline("release", job=JOB, outbox=str(box))
    first, coordinator.uploads = coordinator.receipt, {}
    assert pipeline("release", job=JOB, outbox=str(box)) == {"state": "delivered"}
    assert coordinator.receipt == first
    assert coordinator.uploads == {}


def test_an_end_carries_its_surface(pipeline: Any, coordinator: Coordinator) -> None:
    pipeline("lease", key="ab" * 32, wait=0)
    said = surface("policy.denied")
    assert pipeline("transition", job=JOB, state="refused", surface=said) == {}
    step = coordinator.steps[-1]
    assert (step.code, step.surface, step.silent_period_s) == ("policy.denied", said, None)


def test_a_restarted_agent_goes_on_from_where_the_coordinator_is(
    pipeline: Any, coordinator: Coordinator
) -> None:
    coordinator.state_of = State.ADMITTED
    advance(pipeline, "running")
    assert coordinator.steps[-1].silent_period_s == LONGEST_S  # the job's own limit isn't known any more


def test_a_cancellation_stops_the_job_and_its_end_needs_no_telling(
    pipeline: Any, coordinator: Coordinator, tmp_path: Path
) -> None:
    pipeline("lease", key="ab" * 32, wait=0)
    coordinator.state_of = State.CANCELLED
    assert pipeline("transition", job=JOB, state="ticketed", surface=None)["refused"] == "job.cancelled"
    assert pipeline("read_slot", job=JOB, slot="ticket", wait=0.001)["refused"] == "job.cancelled"
    assert pipeline("transition", job=JOB, state="failed", surface=surface("job.cancelled", "failed")) == {}
    box = outbox(tmp_path / "outbox")
    assert pipeline("release", job=JOB, outbox=str(box)) == {"state": "cancelled"}
    assert coordinator.receipt is None


def test_slots_and_catalogue_pass_through(pipeline: Any, coordinator: Coordinator) -> None:
    assert pipeline("read_slot", job=JOB, slot="challenge", wait=0) == {"value": None}
    pipeline("write_slot", job=JOB, slot="evidence", value={"quote": "q"})
    assert pipeline("read_slot", job=JOB, slot="evidence", wait=0) == {"value": {"quote": "q"}}
    pipeline("publish", catalogue=[{"dataset": "fna"}])
    statement = dsse.verify(
        coordinator.catalogue[0], [KEY.verify_key], kind="catalogue", profile="demo", audience="rapha"
    )
    assert statement.predicate == {"entry": {"dataset": "fna"}}


def test_what_the_agent_does_not_know_it_refuses(pipeline: Any, coordinator: Coordinator) -> None:
    for request, fields in (
        ("open_record", {}),
        ("lease", {}),
        ("release", {"job": JOB, "outbox": "/nonexistent"}),
        ("transition", {"job": JOB, "state": 5, "surface": None}),
    ):
        coordinator.state_of = State.GUARDING
        assert pipeline(request, **fields)["refused"] in ("node.internal", "schema.field_invalid")
    nowhere = {"job": JOB, "sha256": "b" * 64, "destination": "/nonexistent", "limit": 1}
    assert pipeline("fetch_image", **nowhere)["refused"] == "image.not_found"
    assert pipeline("transition", job=JOB, state="delivered", surface=None)["refused"] == "policy.conflict"
