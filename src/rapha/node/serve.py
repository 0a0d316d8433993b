"""The node's main loop: recover, publish, take one job at a time, stop when told."""

from __future__ import annotations

import hashlib
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from rapha.evidence.steps.gates import policy_digest
from rapha.node import config as configs
from rapha.node import node as nodes
from rapha.node import pipeline
from rapha.node.config import NodeConfig
from rapha.node.datasets.client import DatasetProcess, means
from rapha.node.desk import Desk
from rapha.node.exit import Exit
from rapha.node.gates import outcome
from rapha.node.journal import Journal
from rapha.node.node import Keys, Node
from rapha.node.posture.interface import Producer
from rapha.node.recover import ENDED, OPEN, charge, destroy, next_boundary, unfinished
from rapha.node.uplink import Uplink
from rapha.runtime.sandbox.interface import Sandbox
from rapha.runtime.sandbox.pyruntime import PythonRuntime
from rapha.spec.dataset import CatalogueEntry
from rapha.spec.refusals import Refused
from rapha.spec.units import format_time

LEASE_WAIT_S: Final = 5.0
RETRY_S: Final = 1.0
LONGEST_PAUSE_S: Final = 300.0


@contextmanager
def assemble(
    path: Path, config: NodeConfig, runtime: PythonRuntime, sandbox: Sandbox, producer: Producer
) -> Iterator[Node]:
    """Everything a node needs, or a refusal that says what is missing; closes what it opened.

    Args:
        path: `node.json`.
        producer: where evidence comes from; the caller chose it by the profile.

    Raises:
        Refused: `node.*`, `policy.error`, `policy.agreement`.
    """
    root = path.parent.resolve()
    trust = configs.load_trust(root / config.trust)
    if trust.profile != config.profile:
        raise Refused("policy.profile_mismatch", "node.json and trust.json are of different profiles")
    keys = Keys.load(root / config.keys)
    state = root / config.state
    with Journal(state / "journal.jsonl") as journal:
        uplink = Uplink(path)
        try:
            yield Node(
                root=root,
                config=config,
                trust=trust,
                agreements=nodes.load_agreements(root, config, trust),
                datasets=nodes.load_datasets(root, config),
                policies=nodes.load_policies(root, config, trust),
                policy_digest=policy_digest(trust.policy_bundles),
                receipt_key=keys.receipt,
                hpke_key=keys.hpke,
                phi=keys.phi,
                runtime=runtime,
                sandbox=sandbox,
                producer=producer,
                journal=journal,
                desk=Desk(state / "desk", config.node, config.profile),
                exit=Exit(uplink),
            )
        finally:
            uplink.close()


def serve(node: Node, ready: Path | None = None) -> None:
    """Run until told to stop (SIGTERM or SIGINT ends the running job, too).

    Args:
        ready: written once the node is published and waits for work.
    """
    waiting = _Waiting(node)
    node.journal.append("started", time=format_time(datetime.now(UTC)))
    recover(node)
    while not node.stop.is_set():
        try:
            node.exit.publish(catalogue(node))
            break
        except Refused as refused:
            _hold(node, refused)
    if ready is not None:
        ready.write_text("ready\n")
    settling = Settling()
    while not node.stop.is_set():
        try:
            settling.settle_all(node)
            with waiting:
                lease = node.exit.lease(lease_key(node), LEASE_WAIT_S)
            if lease is not None:
                pipeline.run(node, lease)
        except _Stopped:
            break
        except Refused as refused:
            _hold(node, refused)
    node.journal.append("stopped")


def recover(node: Node) -> None:
    """Fail what a crash cut off, and destroy what it made; decided jobs are told again later."""
    cut_off, _ = unfinished(node.journal)
    for job in cut_off:
        destroy(node.state / "outbox" / job)
    for folder in (node.state / "jobs").glob("*"):
        destroy(folder)
    for folder in (node.state / "desk").glob("*"):
        node.desk.clear(folder.name)
    for job in cut_off:
        _fail(node, job)
    known = set(unfinished(node.journal)[1])
    for folder in (node.state / "outbox").glob("*"):
        if folder.name not in known:
            destroy(folder)


def _fail(node: Node, job: str) -> None:
    """End a job that was cut off; after training began, at a whole quantum, as any other end is told."""
    refused = pipeline.charged(node, job, Refused("node.restarted"))
    surface = outcome.ended(job, refused, outcome.Clock(node.config.quantum_s))
    if (began := charge(node.journal.of(job))) is not None:
        boundary = next_boundary(began.started, node.config.quantum_s, time.time())
        if node.stop.wait(max(0.0, boundary - time.time())):
            return  # the next start does it
    node.journal.append(ENDED, job, surface=surface.dump(), reason="the node stopped in the middle")


def lease_key(node: Node) -> str:
    """The same until a job was accepted: one whose lease was granted to a process that died comes again."""
    accepted = [e.job for e in node.journal if e.event == OPEN]
    last = accepted[-1] if accepted else ""
    return hashlib.sha256(f"rapha-lease-v1\n{node.config.node}\n{last}".encode()).hexdigest()


class Settling:
    """Tells every decided job that the coordinator doesn't have yet.

    One that it will not take does not hold up another, nor new work: it is tried again after pauses that
    grow, which are forgotten with the process.
    """

    def __init__(self) -> None:
        self._pause: dict[str, tuple[float, float]] = {}

    def settle_all(self, node: Node) -> None:
        """Try each job that is due; what goes wrong is journalled."""
        for job in unfinished(node.journal)[1]:
            due, pause = self._pause.get(job, (0.0, RETRY_S))
            if node.stop.is_set() or time.monotonic() < due:
                continue
            try:
                pipeline.settle(node, job)
            except (Refused, OSError) as error:
                refused = error if isinstance(error, Refused) else Refused("node.internal", str(error))
                node.journal.append("trouble", job, code=refused.code, detail=refused.detail)
                self._pause[job] = (time.monotonic() + pause, min(2 * pause, LONGEST_PAUSE_S))
            else:
                self._pause.pop(job, None)


def catalogue(node: Node) -> list[CatalogueEntry]:
    """What may be published of each dataset; a dataset that can't be opened is left out and journalled."""
    entries = []
    for manifest, folder in node.datasets.values():
        try:
            limit = node.config.preparation.limit_s
            with DatasetProcess(stopped=node.stop.is_set, limit_s=limit) as data:
                counts = data.describe(
                    manifest, folder, means(node.config.preparation, node.state.resolve() / "shards")
                )
        except Refused as refused:
            node.journal.append("dataset", dataset=manifest.dataset, code=refused.code, detail=refused.detail)
            continue
        entries.append(
            manifest.catalogue(
                records=counts.records,
                patients=counts.patients,
                runtimes=(node.config.runtime_name,),
                assurance="simulated" if node.config.profile == "demo" else node.trust.least_assurance,
            )
        )
    return entries


class _Stopped(Exception):  # noqa: N818  a signal, not a defect
    """Told to stop while waiting for work."""


class _Waiting:
    """SIGTERM and SIGINT set `node.stop`; while waiting for work they also end the wait at once."""

    def __init__(self, node: Node) -> None:
        self._node, self._idle = node, False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._told)

    def __enter__(self) -> None:
        self._idle = True
        if self._node.stop.is_set():
            raise _Stopped

    def __exit__(self, *_: object) -> None:
        self._idle = False

    def _told(self, *_: object) -> None:
        self._node.stop.set()
        if self._idle:
            self._idle = False
            raise _Stopped


def _hold(node: Node, refused: Refused) -> None:
    node.journal.append("trouble", code=refused.code, detail=refused.detail)
    node.stop.wait(RETRY_S)
