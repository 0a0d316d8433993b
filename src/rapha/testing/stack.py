"""Real processes on loopback: a coordinator, a hospital node, its people, and a researcher to drive them.

Used by the demo, the acceptance tests and the benchmarks.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rapha.evidence import canonical, hpke
from rapha.evidence.agreement import open_agreement
from rapha.evidence.keys import SigningKey
from rapha.node import journal
from rapha.node.desk import Desk, Kind
from rapha.researcher.client import CoordinatorClient
from rapha.researcher.follow import Follower
from rapha.researcher.project import Project
from rapha.researcher.signing import SignedJob
from rapha.spec.refusals import Refused
from rapha.spec.trust import Trust
from rapha.spec.verdicts import Verdict
from rapha.testing import world as worlds
from rapha.testing.hospital import Writer
from rapha.testing.world import World

START_S: Final = 30.0
RAPHA: Final = (sys.executable, "-m", "rapha")
Verdicts = Mapping[str, Verdict]
"""What each reviewer signs, by the name of the key file."""
RELEASE: Final[Verdicts] = dict.fromkeys(worlds.REVIEWERS, "release")


@contextmanager
def process(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A child that is stopped by its pid at the end; its output goes to `log`."""
    with log.open("ab") as out:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(timeout=15)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def appears(path: Path, child: subprocess.Popen[bytes], log: Path) -> str:
    """Wait until `child` has written `path`; its text.

    Raises:
        Refused: `node.internal` with the end of the child's log.
    """
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and child.poll() is None:
        if path.exists() and (text := path.read_text().strip()):
            return text
        time.sleep(0.01)
    raise Refused("node.internal", f"{path.name} did not appear: {log.read_text()[-500:]}")


@contextmanager
def coordinator(work: Path, options: Sequence[str] = ()) -> Iterator[str]:
    """A coordinator over an initialised work directory, with more options of `serve`; yields its URL."""
    url_file = work / "url"
    url_file.unlink(missing_ok=True)
    command = (
        *RAPHA,
        "coordinator",
        "serve",
        "--work",
        str(work),
        "--port",
        "0",
        "--url-file",
        str(url_file),
        *options,
    )
    with process(command, work / "serve.log") as child:
        yield appears(url_file, child, work / "serve.log")


@contextmanager
def node(work: Path, command: Sequence[str] = (*RAPHA, "node", "serve")) -> Iterator[subprocess.Popen[bytes]]:
    """A hospital node, ready for work."""
    ready, log = work / "ready", work / "serve.log"
    ready.unlink(missing_ok=True)
    with process((*command, "--work", str(work), "--ready-file", str(ready)), log) as child:
        appears(ready, child, log)
        yield child


@contextmanager
def people(world: World, verdicts: Verdicts = RELEASE) -> Iterator[None]:
    """Owners who approve, reviewers who sign `verdicts`: with their own key files, whatever the desk shows.

    A reviewer that `verdicts` does not name signs nothing.
    """
    done = threading.Event()
    thread = threading.Thread(target=_sign_all, args=(world, verdicts, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _sign_all(world: World, verdicts: Verdicts, done: threading.Event) -> None:
    desk = Desk(world.node / "state" / "desk", worlds.NODE, "demo")
    key = {name: SigningKey.load(world.people / f"{name}.pem") for name in (*worlds.OWNERS, *verdicts)}
    signers: dict[Kind, list[tuple[SigningKey, str]]] = {
        "approval": [(key[name], "approve") for name in worlds.OWNERS],
        "review": [(key[name], verdict) for name, verdict in verdicts.items()],
    }
    while not done.wait(0.02):
        for request in desk.waiting():
            for signer, verdict in signers[request["kind"]]:
                if signer.keyid not in request["answered"]:
                    try:
                        desk.answer(request["job"], request["kind"], signer, verdict)
                    except Refused:
                        break  # the node took the request off the desk meanwhile


@dataclass(slots=True)
class Stack:
    """A running coordinator with one world around it; the node is started by the caller.

    Attributes:
        client: the researcher's, with an approved account.
    """

    world: World
    url: str
    client: CoordinatorClient
    told: list[Mapping[str, Any]] = field(default_factory=list)

    @property
    def trust(self) -> Trust:
        """The researcher's and auditor's roots."""
        return Trust.parse(canonical.loads(self.world.trust.read_bytes()))

    @property
    def key(self) -> SigningKey:
        """The developer's key."""
        return SigningKey.load(self.world.developer)

    def submit(self, project: Project | None = None) -> SignedJob:
        """Build, sign and submit a project as it lies in its folder."""
        project = project or self.world.project
        project.build()
        signed = project.sign(self.key, "demo")
        self.client.submit(signed.job, signed.image, project.pack())
        return signed

    def follower(self, signed: SignedJob) -> Follower:
        """The researcher's client for one job."""
        agreement = open_agreement(canonical.loads(self.world.agreement.read_bytes()), self.trust).terms
        tickets = self.world.project.tickets
        return Follower(self.client, self.key, self.trust, agreement, signed.job, tickets)

    def follow(
        self, signed: SignedJob, tell: Callable[[Mapping[str, Any]], None] | None = None
    ) -> Mapping[str, Any]:
        """Watch a job to its end, answering evidence with a ticket; the last event."""
        return self.follower(signed).watch(tell or self.told.append)

    def fetch(self, signed: SignedJob, folder: Path) -> bytes:
        """Results into `folder`; the bundle's bytes."""
        results = self.world.project.folder / "keys" / "results.hpke"
        return self.follower(signed).fetch(hpke.load(results), folder)

    def journal(self, job: str) -> list[journal.Entry]:
        """The node's own log of a job."""
        entries = journal.read(self.world.node / "state" / "journal.jsonl")
        return [e for e in entries if e.job == job]

    def copy_project(self, folder: Path) -> Project:
        """The world's job in another folder, with the same result key, ready to be changed."""
        shutil.copytree(self.world.project.folder, folder)
        return Project(folder)


@dataclass(frozen=True, slots=True)
class Delivered:
    """One finished job: its results lie in `out` as `rapha demo` leaves them."""

    stack: Stack
    job: str
    out: Path
    bundle: bytes
    states: tuple[str, ...]


def deliver(stack: Stack, out: Path) -> Delivered:
    """Run the world's job to its results.

    Raises:
        Refused: the job's own code if it isn't delivered.
    """
    signed = stack.submit()
    states: list[str] = []
    last = stack.follow(signed, lambda event: states.append(str(event["state"])))
    if last["state"] != "delivered":
        raise Refused(str(last.get("code") or "node.internal"), str(last.get("detail") or ""))
    bundle = stack.fetch(signed, out)
    (out / "trust.json").write_bytes(stack.world.trust.read_bytes())
    return Delivered(stack, signed.id, out, bundle, tuple(states))


@contextmanager
def stack(
    root: Path, case: str = "tabular", options: Sequence[str] = (), writer: Writer | None = None
) -> Iterator[Stack]:
    """Make a world in `root`, start its coordinator with `options`, enrol its node and its developer.

    With `writer`, the hospital's dataset is what that writes.
    """
    from rapha.coordinator import operator
    from rapha.coordinator.config import Work, initialise
    from rapha.node.agent.process import client_for

    work = root / "coordinator"
    config = initialise(Work(work), profile="demo")
    log_key = SigningKey.load(Work(work).log_key).verify_key.to_text()
    with coordinator(work, options) as url:
        origin = config.origin
        world = worlds.create(root, case, coordinator_url=url, origin=origin, log_key=log_key, writer=writer)
        with client_for(world.node / "node.json") as agent:
            agent.enrol(operator.invite(work, worlds.NODE))
        key = SigningKey.load(world.developer).verify_key.to_text()
        with CoordinatorClient(url) as anonymous:
            account = anonymous.register(
                organisation="Acme Diagnostics",
                contact="dev@acme.example",
                purpose="research",
                public_key=key,
            )
        with CoordinatorClient(url, operator.approve(work, account["id"])) as client:
            yield Stack(world, url, client)
