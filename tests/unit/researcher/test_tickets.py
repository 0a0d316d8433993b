from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rapha.evidence import canonical
from rapha.evidence.keys import SigningKey
from rapha.researcher import follow
from rapha.researcher.client import CoordinatorClient
from rapha.researcher.follow import Follower
from rapha.researcher.signing import sign_job
from rapha.researcher.tickets import Kept, Tickets
from rapha.spec.job import Job
from rapha.spec.refusals import Refused
from rapha.spec.trust import Trust

JOB = "11" * 32
KEPT = Kept(challenge="22" * 32, evidence="33" * 32, ticket={"payload": "a", "signatures": ["b"]})
KEY = SigningKey.generate()


def code(call: Any, *arguments: Any) -> str:
    with pytest.raises(Refused) as caught:
        call(*arguments)
    return caught.value.code


def test_one_ticket_is_kept_for_each_job_and_sent_again(tmp_path: Path) -> None:
    tickets = Tickets(tmp_path / "new" / "tickets")
    assert tickets.get(JOB) is None
    assert tickets.keep(JOB, KEPT) == KEPT.ticket
    assert tickets.again(JOB, KEPT.challenge, KEPT.evidence) == KEPT.ticket
    assert [p.name for p in tickets.root.iterdir()] == [f"{JOB}.json"]


@pytest.mark.parametrize("field", ["challenge", "evidence"])
def test_a_second_ticket_of_a_job_is_never_kept(tmp_path: Path, field: str) -> None:
    tickets = Tickets(tmp_path)
    tickets.keep(JOB, KEPT)
    other = KEPT.model_copy(update={field: "44" * 32, "ticket": {"payload": "b"}})
    assert code(tickets.keep, JOB, other) == "posture.ticket_reused"
    assert code(tickets.again, JOB, other.challenge, other.evidence) == "posture.ticket_reused"
    # A race of two clients over the same evidence ends with the one that was first.
    assert tickets.keep(JOB, KEPT.model_copy(update={"ticket": {"payload": "b"}})) == KEPT.ticket
    assert tickets.again(JOB, KEPT.challenge, KEPT.evidence) == KEPT.ticket


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b"\xff"])
def test_an_unreadable_ticket_is_not_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / f"{JOB}.json").write_bytes(data)
    tickets = Tickets(tmp_path)
    assert code(tickets.get, JOB) == "posture.ticket_reused"
    assert code(tickets.keep, JOB, KEPT) == "posture.ticket_reused"


class Hostile:
    """A coordinator that shows the job leased as often as it likes, with other evidence each time."""

    def __init__(self, evidence: list[dict[str, Any]], conflicts: bool = False) -> None:
        self.evidence, self.conflicts = evidence, conflicts
        self.slots: list[tuple[str, dict[str, Any]]] = []

    def events(self, job: str, *, after: int, wait: float) -> list[dict[str, Any]]:
        seen = [{"seq": n + 1, "state": "leased"} for n in range(len(self.evidence))]
        return [*seen, {"seq": len(seen) + 1, "state": "cancelled"}][after:]

    def put_exchange(self, job: str, slot: str, message: Mapping[str, Any]) -> None:
        found = dict(self.slots).get(slot)
        if self.conflicts and found is not None:
            raise Refused("policy.conflict")
        self.slots.append((slot, dict(message)))

    def get_exchange(self, job: str, slot: str, *, wait: float = 0.0) -> dict[str, Any] | None:
        return self.evidence.pop(0) if slot == "evidence" else dict(self.slots).get(slot)

    def tickets(self) -> list[dict[str, Any]]:
        return [message for slot, message in self.slots if slot == "ticket"]


def posture(node: str) -> dict[str, Any]:
    evidence = {"kind": "simulated", "certificate": {}, "quote": {}}
    return {
        **{"node": node, "nonce": "aa" * 32, "subject": "bb" * 32, "policy": "cc" * 32},
        **{"signing_key": KEY.verify_key.to_text(), "hpke_key": "A" * 43 + "=", "evidence": evidence},
    }


@pytest.fixture
def genuine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every node shown is a genuine one of the agreement."""
    monkeypatch.setattr(follow, "check_posture", lambda found, **_: None)


def follower(client: Hostile, folder: Path, job: Job) -> Follower:
    trust = cast("Trust", SimpleNamespace(profile="demo"))
    nothing = cast("Any", None)
    return Follower(
        cast("CoordinatorClient", client), KEY, trust, nothing, _signed(folder, job), Tickets(folder)
    )


def _signed(folder: Path, job: Job) -> dict[str, Any]:
    path = folder / "job.signed"
    if not path.exists():
        path.write_bytes(canonical.dumps(sign_job(job, KEY, "demo").job))
    envelope: dict[str, Any] = canonical.loads(path.read_bytes())
    return envelope


@pytest.fixture
def job() -> Job:
    return Job.parse(
        {
            **{"kind": "train", "name": "fna", "purpose": "research", "not_after": "2030-01-01T00:00:00Z"},
            **{"nodes": "any", "entrypoint": ["python3", "train.py"], "model": {"architecture": "mlp"}},
            "dataset": {"profile": "fna", "modality": "tabular", "cohort": {"all": []}, "max_records": 10},
            "outputs": {
                "version": 1,
                "max_bytes": 1024,
                "self_reported": {"file": "own.json", "fields": [{"name": "ok", "type": "boolean"}]},
            },
            **{"assurance": "simulated", "image": "sha256:" + "ab" * 32, "recipient": "A" * 43 + "="},
            "compute": {"cpus": 1, "memory_bytes": 2**30, "gpus": 0, "wall_clock_s": 60},
        }
    )


@pytest.mark.usefixtures("genuine")
def test_two_nodes_of_one_job_get_one_ticket(tmp_path: Path, job: Job) -> None:
    client = Hostile([posture("node-1"), posture("node-2")])
    assert code(follower(client, tmp_path, job).watch, lambda _: None) == "posture.ticket_reused"
    assert len(client.tickets()) == 1
    restarted = Hostile([posture("node-2")])
    assert code(follower(restarted, tmp_path, job).watch, lambda _: None) == "posture.ticket_reused"
    assert restarted.tickets() == []


@pytest.mark.usefixtures("genuine")
def test_a_restarted_client_sends_the_same_and_goes_on(tmp_path: Path, job: Job) -> None:
    client = Hostile([posture("node-1")])
    follower(client, tmp_path, job).watch(lambda _: None)
    again = Hostile([posture("node-1")])
    follower(again, tmp_path, job).watch(lambda _: None)
    assert again.slots == client.slots
    client.evidence, client.conflicts = [posture("node-1")], True
    assert follower(client, tmp_path, job).watch(lambda _: None)["state"] == "cancelled"


@pytest.mark.usefixtures("genuine")
def test_a_slot_that_somebody_else_wrote_stops_the_client(tmp_path: Path, job: Job) -> None:
    client = Hostile([posture("node-1")], conflicts=True)
    client.slots = [("challenge", {"nonce": "00" * 32})]
    assert code(follower(client, tmp_path, job).watch, lambda _: None) == "policy.conflict"
    assert client.tickets() == []
