"""The agent process: the pipeline asks over an inherited socket, the agent calls the coordinator.

    python -I -m rapha.node.agent.process NODE_JSON FD

It holds the key that signs requests and nothing else: no data key, no path to a record, and a closed set
of requests (`Uplink`).
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from rapha.evidence import canonical, dsse
from rapha.evidence.keys import SigningKey
from rapha.node.agent.client import AgentClient, Step, sign_entry
from rapha.node.agent.transport import MAX_WAIT_S
from rapha.node.config import NodeConfig
from rapha.node.config import load as load_config
from rapha.node.uplink import receive, send
from rapha.spec.refusals import Refused
from rapha.spec.states import ENDED_WITH_CODE, State
from rapha.spec.states import parse as parse_state

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
MARGIN_S: Final = 3600
"""Silence that is no alarm in any state: a restart, a slow disk, a lost link."""
LONGEST_S: Final = 90 * 86400


class Agent:
    """Answers the pipeline's requests; one coordinator, one job at a time."""

    def __init__(self, client: AgentClient, config: NodeConfig, key: SigningKey) -> None:
        self._client, self._config, self._key = client, config, key
        self._states: dict[str, State] = {}
        self._run_s: dict[str, int] = {}
        self._requests: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
            "publish": self._publish,
            "lease": self._lease,
            "fetch_image": self._fetch_image,
            "read_slot": self._read_slot,
            "write_slot": self._write_slot,
            "transition": self._transition,
            "release": self._release,
            "state": self._state,
        }

    def answer(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """One reply: what was asked for, or `{"refused", "detail"}`."""
        try:
            handler = self._requests.get(str(message.get("request")))
            if handler is None:
                raise Refused("node.internal", "the agent has no such request")
            return handler(message)
        except Refused as refused:
            return {"refused": refused.code, "detail": refused.detail}
        except (KeyError, TypeError) as error:
            return {"refused": "node.internal", "detail": f"a malformed request: {error!r:.200}"}
        except OSError as error:
            return {"refused": "node.internal", "detail": f"{error.filename}: {error.strerror}"}

    def _publish(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        profile = self._config.profile
        self._client.publish_catalogue([sign_entry(e, self._key, profile) for e in asked["catalogue"]])
        return {}

    def _lease(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        waits = self._config.waits
        silent = waits.challenge_s + waits.ticket_s + MARGIN_S
        leased = self._client.lease(min(asked["wait"], MAX_WAIT_S), key=asked["key"], silent_period_s=silent)
        if leased is None:
            return {"job": None}
        self._states[leased.id] = State.LEASED
        self._run_s[leased.id] = _wall_clock(leased.job)
        return {
            "job": leased.id,
            "job_envelope": leased.job,
            "image_envelope": leased.image,
            "image_blob": leased.image_blob,
        }

    def _fetch_image(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        self._client.download_blob(asked["sha256"], Path(asked["destination"]), asked["limit"])
        return {}

    def _read_slot(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        deadline = time.monotonic() + asked["wait"]
        while True:
            left = max(0.0, deadline - time.monotonic())
            value = self._client.get_exchange(asked["job"], asked["slot"], min(left, MAX_WAIT_S))
            if value is not None or left == 0.0:
                return {"value": value}
            self._check_not_over(asked["job"])

    def _write_slot(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        self._client.put_exchange(asked["job"], asked["slot"], asked["value"])
        return {}

    def _transition(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        job, surface = asked["job"], asked["surface"]
        target = parse_state(asked["state"])
        if surface is None:
            self._advance(job, target, more_s=int(asked.get("more_s", 0)))
            return {}
        try:
            self._advance(job, target, surface)
        except Refused:
            # An end that the coordinator has already (a cancellation, a lost lease) needs no telling.
            if parse_state(self._client.state(job)) not in ENDED_WITH_CODE:
                raise
        self._forget(job)
        return {}

    def _release(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        job, outbox = asked["job"], Path(asked["outbox"])
        state = parse_state(self._client.state(job))
        if state in ENDED_WITH_CODE:
            return {"state": state}  # cancelled or given up meanwhile: nothing may follow
        if state is State.RUNNING:
            self._advance(job, State.GUARDING)
            state = State.GUARDING
        named = {p.name: p for p in sorted((outbox / "artifacts").iterdir())}
        if state in (State.GUARDING, State.IN_REVIEW):
            digests = {name: self._client.upload_artifact(job, name, p) for name, p in named.items()}
        else:
            digests = {name: _digest(p) for name, p in named.items()}
        surface = canonical.loads_canonical((outbox / "surface.json").read_bytes())
        core = canonical.loads_canonical((outbox / "core.json").read_bytes())
        self._client.post_receipt(job, surface, core, digests)
        self._forget(job)
        return {"state": State.DELIVERED}

    def _state(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        return {"state": parse_state(self._client.state(asked["job"]))}

    def _advance(
        self, job: str, target: State, surface: Mapping[str, Any] | None = None, more_s: int = 0
    ) -> None:
        """Take the job to `target` from where the coordinator has it."""
        source = self._states.get(job) or parse_state(self._client.state(job))
        step = Step(
            source,
            target,
            code=surface["code"] if surface else None,
            detail=surface["detail"] if surface else None,
            surface=surface,
            silent_period_s=self._silence(job, target, more_s) if surface is None else None,
        )
        try:
            self._client.transition(job, step)
        except Refused as refused:
            self._states.pop(job, None)
            if refused.code == "policy.conflict":
                self._check_not_over(job)
            raise
        self._states[job] = target

    def _check_not_over(self, job: str) -> None:
        if parse_state(self._client.state(job)) is State.CANCELLED:
            raise Refused("job.cancelled")

    def _silence(self, job: str, state: State, more_s: int) -> int:
        """How long nothing may be heard from here on: people decide, or the WAN is severed."""
        waits, run_s = self._config.waits, self._run_s.get(job, LONGEST_S) + max(0, more_s)
        spans = {
            State.AWAITING_APPROVAL: waits.approval_s,
            State.ADMITTED: run_s + waits.review_s,
            State.RUNNING: run_s + waits.review_s,
        }
        return min(LONGEST_S, spans.get(state, 0) + MARGIN_S)

    def _forget(self, job: str) -> None:
        self._states.pop(job, None)
        self._run_s.pop(job, None)


def serve(agent: Agent, sock: socket.socket) -> None:
    """Answer until the pipeline closes its end."""
    while (message := receive(sock)) is not None:
        send(sock, agent.answer(message))


def main(arguments: list[str]) -> None:
    """Start from the command line that `Uplink` gives."""
    path, descriptor = Path(arguments[0]), int(arguments[1])
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the pipeline tells the end first, then closes the socket
    config = load_config(path)
    with socket.socket(fileno=descriptor) as sock, client_for(path) as client:
        serve(Agent(client, config, agent_key(path, config)), sock)


def die_with_parent() -> None:
    """The agent ends with the pipeline that started it, however that ended; its key is in no core dump."""
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in ((_PR_SET_PDEATHSIG, signal.SIGKILL), (_PR_SET_DUMPABLE, 0)):
        if libc.prctl(option, value, 0, 0, 0) != 0:
            raise Refused("node.internal", f"prctl({option}): {os.strerror(ctypes.get_errno())}")


def client_for(path: Path) -> AgentClient:
    """The client of the node whose `node.json` is `path`.

    Raises:
        Refused: `node.config`, `node.key_unsafe`.
    """
    config = load_config(path)
    return AgentClient(
        config.coordinator.url,
        agent_key(path, config),
        node=config.node,
        origin=config.coordinator.audience,
        profile=config.profile,
    )


def agent_key(path: Path, config: NodeConfig) -> SigningKey:
    """The key that signs this node's requests. Raises `Refused` (`node.key_unsafe`)."""
    return SigningKey.load(path.parent / config.keys / "agent.pem")


def _wall_clock(envelope: dsse.EnvelopeDict) -> int:
    """What the job says it may run, in seconds: a hint for the lease only, so it is bounded, not believed."""
    compute = dsse.unverified_predicate(envelope).get("job", {}).get("compute", {})
    seconds = compute.get("wall_clock_s") if isinstance(compute, dict) else None
    return seconds if isinstance(seconds, int) and 0 < seconds <= LONGEST_S else LONGEST_S


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main(sys.argv[1:])
