"""`kill -9` in the middle of submissions and receipts: whatever was acknowledged is there afterwards."""

from __future__ import annotations

import hashlib
import itertools
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rapha.coordinator import operator
from rapha.coordinator.config import Work, initialise
from rapha.evidence import canonical, checkpoint, dsse, merkle
from rapha.evidence.keys import SigningKey, VerifyKey
from rapha.node.agent.client import AgentClient, Step, sign_entry
from rapha.researcher.client import CoordinatorClient
from rapha.spec.refusals import Refused
from rapha.spec.surface import Surface

PROGRAM = "import sys; from rapha.cli.main import run; sys.exit(run(sys.argv[1:]))"
ORIGIN = "rapha.demo/log"
DATA = "tabular.fna"
STATES = ("leased", "ticketed", "awaiting_approval", "admitted", "running", "guarding")
ENTRY: dict[str, Any] = {
    "dataset": "fna",
    "title": "FNA",
    "profile": DATA,
    "modality": "tabular",
    "fields": [{"name": "radius", "dtype": "float32"}],
    "purposes": ["research"],
    "price_per_record": "0",
    "provenance": {"source": "s", "licence": "l"},
    "records": 10,
    "patients": 10,
    "runtimes": ["python"],
    "assurance": "simulated",
}


class Server:
    """`rapha coordinator serve` as a real process, always at the same port."""

    def __init__(self, work: Path) -> None:
        self.work, self.port = work, "0"

    def start(self) -> str:
        url_file = self.work / "url"
        url_file.unlink(missing_ok=True)
        options = ["--work", str(self.work), "--port", self.port, "--url-file", str(url_file)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, "coordinator", "serve", *options], stdout=subprocess.DEVNULL
        )
        while not url_file.exists():
            assert self.process.poll() is None
            time.sleep(0.005)
        url = url_file.read_text().strip()
        self.port = url.rpartition(":")[2]
        return url

    def end(self, number: signal.Signals) -> None:
        self.process.send_signal(number)
        self.process.wait()


@contextmanager
def serving(work: Path) -> Iterator[Server]:
    initialise(Work(work), profile="demo")
    server = Server(work)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.end(signal.SIGKILL)


def sign_job(key: SigningKey) -> dsse.EnvelopeDict:
    job = {
        "name": "job",
        "nodes": "any",
        "not_after": "2099-01-01T00:00:00Z",
        "dataset": {"profile": DATA},
    }
    body = {"job": job, "nonce": secrets.token_hex(32)}
    subjects = {"job": canonical.digest(body)}
    return dsse.sign("job", subjects, body, profile="demo", audience="rapha-node", keys=[key])


def deliver(node: AgentClient, key: SigningKey, done: list[str]) -> None:
    """Take one job to its receipt; `done` gets its id once the receipt is acknowledged."""
    leased = node.lease()
    if leased is None:
        return
    for source, target in itertools.pairwise(STATES):
        node.transition(leased.id, Step(source, target))
    surface = Surface(job_id=leased.id, outcome="success", exit_class="success").dump()
    receipt = dsse.sign(
        "receipt", {}, {"job": {"id": leased.id}}, profile="demo", audience="rapha", keys=[key]
    )
    leaf = hashlib.sha256(leased.id.encode()).hexdigest()
    node.post_receipt(leased.id, surface, {"receipt": receipt, "log_leaf": leaf}, {})
    done.append(leased.id)


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    work = tmp_path / "w"
    developer, agent = SigningKey.generate(), SigningKey.generate()
    archive = tmp_path / "image.tar"
    archive.write_bytes(b"image")
    submitted: list[str] = []
    delivered: list[str] = []
    notes: list[str] = []
    with serving(work) as server:
        url = server.start()
        with CoordinatorClient(url) as anonymous:
            account = anonymous.register(
                organisation="A", contact="c", purpose="p", public_key=developer.verify_key.to_text()
            )
            log_key = VerifyKey.from_text(anonymous.checkpoint()["log_key"])
        api_key = operator.approve(work, account["id"])
        options: dict[str, Any] = {"node": "node-a", "origin": ORIGIN, "profile": "demo", "attempts": 1}
        with (
            CoordinatorClient(url, api_key, attempts=1) as client,
            AgentClient(url, agent, **options) as node,
        ):
            node.enrol(operator.invite(work, "node-a"))
            node.publish_catalogue([sign_entry({"version": 1, **ENTRY}, agent, "demo")])
            client.upload(archive)
            image = dsse.sign("image", {}, {}, profile="demo", audience="rapha-node", keys=[developer])

            def _submit() -> None:
                submitted.append(client.submit(sign_job(developer), image, archive)["id"])

            def _deliver() -> None:
                deliver(node, agent, delivered)
                notes.append(client.checkpoint()["checkpoint"])

            for _ in range(3):
                jobs, receipts = len(submitted) + 3, len(delivered) + 1
                threads = [threading.Thread(target=_until_gone, args=(call,)) for call in (_submit, _deliver)]
                for thread in threads:
                    thread.start()
                while len(submitted) < jobs or len(delivered) < receipts:
                    assert all(thread.is_alive() for thread in threads)
                    time.sleep(0.001)
                server.end(signal.SIGKILL)
                for thread in threads:
                    thread.join()
                server.start()
                found = {job["id"]: job["state"] for job in client.list()}
                assert set(submitted) <= set(found)
                assert {found[job] for job in delivered} <= {"delivered"}
            _check_log(client, log_key, notes, delivered)
        server.end(signal.SIGTERM)


def _until_gone(call: Any) -> None:
    while True:
        try:
            call()
        except Refused as refused:
            assert refused.code == "policy.unavailable", refused
            return


def _check_log(client: CoordinatorClient, log_key: VerifyKey, notes: list[str], delivered: list[str]) -> None:
    """Every checkpoint that was ever seen is a beginning of the last, and every receipt is in it."""
    heads = [checkpoint.verify(n, origin=ORIGIN, key=log_key) for n in notes]
    last = checkpoint.verify(client.checkpoint()["checkpoint"], origin=ORIGIN, key=log_key)
    assert last.size >= len(delivered) > 0
    for head in heads:
        proof = client.consistency(head.size, last.size)
        merkle.verify_consistency(head.size, head.root, last.size, last.root, proof)
    for job in delivered:
        place = client.bundle(job)["log"]
        head = checkpoint.verify(place["checkpoint"], origin=ORIGIN, key=log_key)
        leaf = merkle.leaf_hash(hashlib.sha256(job.encode()).digest())
        proof = [bytes.fromhex(h) for h in place["proof"]]
        merkle.verify_inclusion(leaf, place["index"], place["size"], proof, head.root)


def test_a_second_server_on_the_same_directory_is_refused(tmp_path: Path) -> None:
    with serving(tmp_path / "w") as server:
        server.start()
        options = ["serve", "--work", str(server.work), "--port", "0"]
        refused = subprocess.run(
            [sys.executable, "-c", PROGRAM, "coordinator", *options], capture_output=True, text=True
        )
        assert refused.returncode == 3
        assert "node.busy" in refused.stderr
        server.end(signal.SIGTERM)
