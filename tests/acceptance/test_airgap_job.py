"""The main job on a node whose WAN is really severed: in a network namespace, with the coordinator outside.

The packets are counted where they would arrive.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rapha.evidence.verify import verify
from rapha.node.journal import Entry
from rapha.researcher.signing import SignedJob
from rapha.spec.refusals import Refused
from rapha.spec.units import parse_time
from rapha.testing import stack as stacks
from rapha.testing.killer import KILLER
from rapha.testing.stack import RAPHA, Delivered, Stack

# Of this process alone: what a killed run left on the host is in nobody's way.
NETWORK = f"10.{203 + os.getpid() // 250 % 40}.{os.getpid() % 250}"
PEER, HOSPITAL, WAN = f"{NETWORK}.1", f"{NETWORK}.2", "wan0"
pytestmark = [
    pytest.mark.peer("ip"),
    pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace with a peer outside it needs root"),
]


@dataclass
class Peer:
    """The far end of the WAN, and when a packet came in, in milliseconds since the epoch."""

    namespace: str
    interface: str
    packets: list[int] = field(default_factory=list)

    def command(self, *words: str) -> Sequence[str]:
        """A command line that runs in the hospital's namespace."""
        return ("ip", "netns", "exec", self.namespace, *words)

    def between(self, start: int, end: int) -> list[int]:
        """Packets that came in while it was severed."""
        return [at for at in self.packets if start <= at <= end]


@pytest.fixture(scope="module")
def peer() -> Iterator[Peer]:
    made = Peer(f"rapha-test-{os.getpid()}", f"rt{os.getpid()}"[:15])
    inside = ("ip", "-n", made.namespace)
    commands: list[Sequence[str]] = [
        ("ip", "netns", "add", made.namespace),
        ("ip", "link", "add", made.interface, "type", "veth", "peer", "name", WAN, "netns", made.namespace),
        ("ip", "addr", "add", f"{PEER}/30", "dev", made.interface),
        ("ip", "link", "set", made.interface, "up"),
        (*inside, "addr", "add", f"{HOSPITAL}/30", "dev", WAN),
        (*inside, "link", "set", "lo", "up"),
        (*inside, "link", "set", WAN, "up"),
        (*inside, "route", "add", "default", "via", PEER),
    ]
    try:
        for command in commands:
            subprocess.run(command, check=True, capture_output=True)
        with sniffing(made):
            yield made
    finally:
        subprocess.run(("ip", "netns", "del", made.namespace), check=False, capture_output=True)


@contextmanager
def sniffing(peer: Peer) -> Iterator[None]:
    done = threading.Event()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as tap:
        tap.bind((peer.interface, 0))
        tap.settimeout(0.2)

        def listen() -> None:
            while not done.is_set():
                try:
                    _, (_, _, kind, *_rest) = tap.recvfrom(65535)
                except TimeoutError:
                    continue
                if kind != socket.PACKET_OUTGOING:
                    peer.packets.append(int(time.time() * 1000))

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


@pytest.fixture(scope="module")
def behind(peer: Peer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A world whose node is in the namespace, with an air-gap helper beside it."""
    root = tmp_path_factory.mktemp("behind")
    options = ("--host", PEER, "--unsafe-plain-http")
    with stacks.stack(root, options=options) as stack, stacks.people(stack.world), helper(peer, root):
        path = stack.world.node / "node.json"
        config = json.loads(path.read_text()) | {
            "wan_interface": WAN,
            "wan_waiver": None,
            "air_gap": {
                "mode": "nftables",
                "lan": [],
                "socket": str(root / "gap.sock"),
                "hold": str(root / "hold"),
            },
        }
        path.write_text(json.dumps(config))
        yield stack


@contextmanager
def helper(peer: Peer, root: Path) -> Iterator[None]:
    serve = (
        "node",
        "airgap",
        "serve",
        "--socket",
        str(root / "gap.sock"),
        "--journal",
        str(root / "gap"),
        "--uid",
        "0",
    )
    log = root / "gap.log"
    with stacks.process(peer.command(*RAPHA, *serve), log) as child:
        deadline = time.monotonic() + 30
        while not (root / "gap.sock").exists():
            assert child.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        yield


def node(peer: Peer, stack: Stack, *command: str) -> Any:
    return stacks.node(stack.world.node, peer.command(*(command or (*RAPHA, "node", "serve"))))


def told(stack: Stack, job: str) -> dict[str, Entry]:
    return {e.data["verdict"]: e for e in stack.journal(job) if e.event == "airgap"}


@pytest.fixture(scope="module")
def delivered(peer: Peer, behind: Stack, tmp_path_factory: pytest.TempPathFactory) -> Delivered:
    with node(peer, behind):
        return stacks.deliver(behind, tmp_path_factory.mktemp("delivered"))


def test_not_a_packet_arrives_while_the_job_lives(peer: Peer, delivered: Delivered) -> None:
    events = told(delivered.stack, delivered.job)
    start, end = events["severed"].data["at_ms"], events["lifting"].data["at_ms"]
    assert end > start
    assert peer.between(start, end) == []
    assert peer.between(0, start) and peer.between(end, 1 << 60), "before and after it is reached"


def test_training_and_predictions_ran_in_between(delivered: Delivered) -> None:
    order = [
        (e.event, e.data.get("gate"), e.data.get("verdict")) for e in delivered.stack.journal(delivered.job)
    ]
    severed, lifting = order.index(("airgap", None, "severed")), order.index(("airgap", None, "lifting"))
    assert severed < order.index(("gate", "train", "started"))
    assert order.index(("gate", "guard", "passed")) < lifting < order.index(("gate", "release", "started"))


def test_the_receipt_says_so_and_verifies(delivered: Delivered) -> None:
    bundle = json.loads(delivered.bundle)
    finished = [e for e in delivered.stack.journal(delivered.job) if e.event == "closed"]
    now = parse_time(finished[-1].time).replace(microsecond=0)
    result = verify(delivered.bundle, delivered.stack.trust, now)
    assert result.ok, [step for step in result.steps if step.verdict == "fail"]
    seal = next(step for step in result.steps if step.id == "seal")
    assert f"{WAN} severed (nftables)" in seal.reason
    assert "8 probes unreachable" in seal.reason
    assert bundle["profile"] == "demo"


@pytest.mark.parametrize(
    "point",
    ["airgap/severing", "airgap/severed", "gate/train/started", "gate/guard/passed", "airgap/lifting"],
)
def test_a_killed_node_stays_dark_until_its_job_is_dead(peer: Peer, behind: Stack, point: str) -> None:
    os.environ["KILL_AT"] = point
    try:
        with node(peer, behind, sys.executable, "-c", KILLER) as child:
            signed = behind.submit()
            thread = threading.Thread(target=_follow, args=(behind, signed))
            thread.start()
            assert child.wait(timeout=60) == -9
    finally:
        del os.environ["KILL_AT"]
    killed, events = int(time.time() * 1000), told(behind, signed.id)
    if "severed" in events and "lifting" not in events:
        assert peer.between(events["severed"].data["at_ms"], killed) == []
    assert "lifted" not in events
    with node(peer, behind):
        thread.join(timeout=60)
        last = behind.client.get(signed.id)
        assert (last["state"], last["code"]) == ("failed", "node.restarted")


def test_without_the_helper_no_record_is_served(peer: Peer, behind: Stack, tmp_path: Path) -> None:
    path = behind.world.node / "node.json"
    before = path.read_text()
    config = json.loads(before)
    config["air_gap"]["socket"] = str(tmp_path / "nobody.sock")
    path.write_text(json.dumps(config))
    try:
        with node(peer, behind):
            last = behind.follow(behind.submit())
    finally:
        path.write_text(before)
    assert (last["state"], last["code"]) == ("refused", "posture.seal_failed")


def _follow(stack: Stack, signed: SignedJob) -> None:
    try:
        stack.follow(signed)
    except Refused:
        return  # the node dies under it, which is the point
