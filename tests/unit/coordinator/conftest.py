"""A coordinator that really serves, in a thread, with a clock that tests can move."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import secrets
import shutil
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from rapha.coordinator import config, operator, server
from rapha.coordinator.app import create_app
from rapha.coordinator.config import Work
from rapha.coordinator.service import Service
from rapha.evidence import canonical, dsse
from rapha.evidence.keys import SigningKey
from rapha.node.agent.client import AgentClient, Step, sign_entry
from rapha.researcher.client import CoordinatorClient
from rapha.spec.surface import Surface

TLS = ssl.create_default_context()
"""Unused over loopback, and slow to make for every client."""
PROFILE_OF_DATA = "tabular.breast-fna"


class _PromptServer(uvicorn.Server):
    """Looks more often whether it is to stop."""

    async def main_loop(self) -> None:
        while not self.should_exit:
            await asyncio.sleep(0.002)


class Running:
    """A served coordinator: start, stop and start again on the same work directory."""

    def __init__(self, root: Path, template: Path) -> None:
        self.work = Work(root / "coordinator")
        self.root = root
        shutil.copytree(template, self.work.root)
        self.config = config.load(self.work)
        self.ahead = timedelta(0)
        self.start()

    def start(self) -> None:
        self.service = Service.open(self.work, clock=lambda: datetime.now(UTC) + self.ahead)
        self._listener = server.bind("127.0.0.1", 0)
        self.url = server.url_of(self._listener)
        self.http = httpx.Client(base_url=self.url, verify=TLS)
        settings = uvicorn.Config(create_app(self.service), log_level="error", access_log=False, ws="none")
        self._server = _PromptServer(settings)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._listener]})
        self._thread.start()
        while not self._server.started:
            time.sleep(0.002)

    def stop(self) -> None:
        self.http.close()
        self.service.notifier.close()
        self._server.should_exit = True
        self._thread.join()
        self._listener.close()

    def researcher(self, name: str = "Acme", key: SigningKey | None = None) -> Researcher:
        return Researcher(self, name, key or SigningKey.generate())

    def node(self, name: str = "node-a", profiles: tuple[str, ...] = (PROFILE_OF_DATA,)) -> Node:
        return Node(self, name, profiles)


class Researcher:
    """An approved developer with a client."""

    def __init__(self, running: Running, name: str, key: SigningKey) -> None:
        self.key = key
        body = {"organisation": name, "contact": "a@b.example", "purpose": "r"}
        said = running.http.post("/v1/developers", json={**body, "public_key": key.verify_key.to_text()})
        self.id = said.json()["id"]
        self.api_key = operator.approve(running.work.root, self.id)
        self.client = CoordinatorClient(running.url, self.api_key, attempts=1)
        headers = {"Authorization": f"Bearer {self.api_key}"}
        self.http = httpx.Client(base_url=running.url, headers=headers, verify=TLS)
        self.archive = running.root / f"{self.id}.tar"
        self.archive.write_bytes(b"image of " + self.id.encode())

    def close(self) -> None:
        self.client.close()
        self.http.close()

    def sign(self, **changes: Any) -> dsse.EnvelopeDict:
        return sign_job(self.key, **changes)

    def submit(self, **changes: Any) -> str:
        job = self.client.submit(self.sign(**changes), self.image(), self.archive)
        return str(job["id"])

    def image(self) -> dsse.EnvelopeDict:
        return dsse.sign(
            "image", {"image": "b" * 64}, {}, profile="demo", audience="rapha-node", keys=[self.key]
        )


class Node:
    """An enrolled node with a client and a published catalogue."""

    def __init__(self, running: Running, name: str, profiles: tuple[str, ...]) -> None:
        self.name, self.key = name, SigningKey.generate()
        self.root = running.root
        token = operator.invite(running.work.root, name)
        self.client = AgentClient(
            running.url, self.key, node=name, origin=running.config.origin, profile="demo", attempts=1
        )
        self.client.enrol(token)
        self.client.publish_catalogue([sign_entry(catalogue_entry(p), self.key, "demo") for p in profiles])

    def close(self) -> None:
        self.client.close()

    def advance(self, job: str, *names: str) -> None:
        for source, target in itertools.pairwise(names):
            self.client.transition(job, Step(source, target))

    def run(self, job: str) -> None:
        """From leased to guarding."""
        self.advance(job, "leased", "ticketed", "awaiting_approval", "admitted", "running", "guarding")

    def upload(self, job: str, name: str = "model.safetensors", content: bytes = b"ciphertext") -> str:
        path = self.root / f"upload-{name}"
        path.write_bytes(content)
        return self.client.upload_artifact(job, name, path)

    def release(self, job: str) -> dict[str, Any]:
        sha256 = self.upload(job)
        return self.client.post_receipt(job, self.surface(job), self.core(job), {"model.safetensors": sha256})

    def surface(self, job: str) -> dict[str, Any]:
        return Surface(job_id=job, outcome="success", exit_class="success").dump()

    def core(self, job: str) -> dict[str, Any]:
        claims = {"job": {"id": job}}
        receipt = dsse.sign("receipt", {}, claims, profile="demo", audience="rapha", keys=[self.key])
        return {"receipt": receipt, "log_leaf": hashlib.sha256(job.encode()).hexdigest()}


def sign_job(key: SigningKey, **changes: Any) -> dsse.EnvelopeDict:
    """A signed job; keyword arguments replace parts of it."""
    profile = changes.pop("profile", "demo")
    job: dict[str, Any] = {
        "name": "job-1",
        "nodes": "any",
        "not_after": "2099-01-01T00:00:00Z",
        "image": "sha256:" + "b" * 64,
        "dataset": {"profile": PROFILE_OF_DATA},
        **changes,
    }
    body = {"job": job, "nonce": secrets.token_hex(32)}
    subjects = {"job": canonical.digest(body), "image": "b" * 64}
    return dsse.sign("job", subjects, body, profile=profile, audience="rapha-node", keys=[key])


def catalogue_entry(profile: str) -> dict[str, Any]:
    return {
        "version": 1,
        "dataset": "fna",
        "title": "FNA",
        "profile": profile,
        "modality": "tabular",
        "fields": [{"name": "radius", "dtype": "float32", "label": False, "unit": "", "description": ""}],
        "purposes": ["research/diagnosis"],
        "price_per_record": "0",
        "currency": "USDC",
        "minimum_cell": 10,
        "billing_bucket": 10,
        "test_fraction": 0.2,
        "provenance": {"source": "s", "licence": "l", "citation": "", "notes": []},
        "records": 560,
        "patients": 560,
        "runtimes": ["python-torch"],
        "assurance": "simulated",
    }


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh work directory to copy: making one takes longer than most tests."""
    work = Work(tmp_path_factory.mktemp("template") / "coordinator")
    config.initialise(work, profile="demo")
    return work.root


@pytest.fixture
def running(tmp_path: Path, template: Path) -> Iterator[Running]:
    served = Running(tmp_path, template)
    yield served
    served.stop()


@pytest.fixture
def made() -> Iterator[Callable[[Any], Any]]:
    """Close what a test makes."""
    things: list[Any] = []

    def _keep(thing: Any) -> Any:
        things.append(thing)
        return thing

    yield _keep
    for thing in things:
        thing.close()


@pytest.fixture
def alice(running: Running, made: Callable[[Any], Any]) -> Researcher:
    researcher: Researcher = made(running.researcher("Acme"))
    return researcher


@pytest.fixture
def bob(running: Running, made: Callable[[Any], Any]) -> Researcher:
    researcher: Researcher = made(running.researcher("Bolt"))
    return researcher


@pytest.fixture
def node(running: Running, made: Callable[[Any], Any]) -> Node:
    enrolled: Node = made(running.node())
    return enrolled


@pytest.fixture
def other_node(running: Running, made: Callable[[Any], Any]) -> Node:
    enrolled: Node = made(running.node("node-b"))
    return enrolled
