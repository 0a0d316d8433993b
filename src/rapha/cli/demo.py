"""`rapha demo`: the main job end to end, with real processes, on real data, on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from rapha.cli.exits import NO, OK, WRONG_CALL, emit, leave, say
from rapha.evidence import canonical, hpke
from rapha.evidence.verify import Verification, verify
from rapha.spec.refusals import Refused
from rapha.spec.trust import Trust

app = typer.Typer(add_completion=False)

CASES: Final = ("tabular", "outcomes")
PLANNED: Final = ("dicom", "fhir", "text", "genomics", "apple-health", "evaluate")
START_S: Final = 30.0


@app.command()
def demo(
    work: Annotated[Path, typer.Option(help="Where results and the small world go.")] = Path("demo-out"),
    case: Annotated[str, typer.Option(help=f"One of: {', '.join(CASES)}.")] = "tabular",
    keep: Annotated[bool, typer.Option(help="Keep the world (keys, logs, hospital folder).")] = True,
) -> None:
    """Run one signed job from submit to verified bundle: real patients' public data, simulated TEE."""
    if case in PLANNED:
        leave(WRONG_CALL, f"--case {case} is not built yet; there are: {', '.join(CASES)}")
    if case not in CASES:
        leave(WRONG_CALL, f"--case is one of: {', '.join(CASES)}")
    began = time.monotonic()
    verification = run_demo(work, case)
    if not keep:
        from rapha.testing.world import destroy

        destroy(work / "world")
    say(f"\ndone in {time.monotonic() - began:.1f} s; open {work / 'report.html'}")
    raise SystemExit(OK if verification.ok else NO)


def run_demo(work: Path, case: str) -> Verification:
    """The whole story; leaves bundle.json, trust.json, artifacts/ and report.html in `work`."""
    from rapha.testing import world as worlds

    _clear(work)
    with coordinator(work / "world" / "coordinator") as (url, origin, log_key):
        say(f"coordinator   {url}")
        world = worlds.create(work / "world", case, coordinator_url=url, origin=origin, log_key=log_key)
        _enrol(work / "world" / "coordinator", world.node)
        with node(world.node):
            say(f"hospital node {worlds.NODE}, dials out only; data in a read-only folder")
            follower = _submit(world, work / "world" / "coordinator", url)
            _watch(world, follower)
            results = world.company / "job" / "keys" / "results.hpke"
            data = follower.fetch(hpke.load(results), work)
    (work / "trust.json").write_bytes(world.trust.read_bytes())
    verification = _verify(work, data)
    _report(work, world, data, verification, case)
    return verification


@contextmanager
def coordinator(work: Path) -> Iterator[tuple[str, str, str]]:
    """A coordinator in its own process; yields its URL, its log's origin and public key."""
    from rapha.coordinator.config import Work, initialise
    from rapha.evidence.keys import SigningKey

    paths = Work(work)
    config = initialise(paths, profile="demo")
    key = SigningKey.load(paths.log_key).verify_key.to_text()
    url_file = work / "url"
    command = ["coordinator", "serve", "--work", str(work), "--port", "0", "--url-file", str(url_file)]
    with process(command, work / "serve.log"):
        yield _appears(url_file, work / "serve.log"), config.origin, key


@contextmanager
def node(work: Path) -> Iterator[None]:
    """A hospital node in its own process, ready for work."""
    ready = work / "ready"
    ready.unlink(missing_ok=True)
    with process(["node", "serve", "--work", str(work), "--ready-file", str(ready)], work / "serve.log"):
        _appears(ready, work / "serve.log")
        yield


@contextmanager
def process(arguments: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`rapha ARGUMENTS` as a child that is stopped by its pid at the end."""
    with log.open("ab") as out:
        child = subprocess.Popen(
            [sys.executable, "-m", "rapha", *arguments], stdin=subprocess.DEVNULL, stdout=out, stderr=out
        )
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(timeout=10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _appears(path: Path, log: Path) -> str:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if path.exists() and (text := path.read_text().strip()):
            return text
        time.sleep(0.01)
    raise Refused("node.internal", f"{path.name} did not appear; {log} says: {log.read_text()[-500:]}")


def _enrol(coordinator_work: Path, node_work: Path) -> None:
    from rapha.coordinator.operator import invite
    from rapha.node.agent.process import client_for
    from rapha.testing.world import NODE

    with client_for(node_work / "node.json") as client:
        client.enrol(invite(coordinator_work, NODE))


def _submit(world: Any, coordinator_work: Path, url: str) -> Any:
    from rapha.coordinator.operator import approve
    from rapha.evidence.keys import SigningKey
    from rapha.researcher.client import CoordinatorClient
    from rapha.researcher.follow import Follower, open_agreement

    key = SigningKey.load(world.developer)
    trust = Trust.parse(canonical.loads(world.trust.read_bytes()))
    with CoordinatorClient(url) as anonymous:
        account = anonymous.register(
            organisation="Acme Diagnostics",
            contact="dev@acme.example",
            purpose="research",
            public_key=key.verify_key.to_text(),
        )
    client = CoordinatorClient(url, approve(coordinator_work, account["id"]))
    project = world.project
    digest = project.build()
    signed = project.sign(key, "demo")
    say(f"image         {digest[:30]}…, built without a container engine")
    client.submit(signed.job, signed.image, project.pack())
    say(f"job           {signed.id[:16]}… submitted, signed by the developer\n")
    agreement = open_agreement(canonical.loads(world.agreement.read_bytes()), trust)
    return Follower(client, key, trust, agreement, signed.job)


def _watch(world: Any, follower: Any) -> None:
    from rapha.cli.progress import Gates

    done = threading.Event()
    people = threading.Thread(target=_people, args=(world, done), daemon=True)
    people.start()
    with Gates(world.node / "state" / "journal.jsonl") as display:
        try:
            last: Mapping[str, Any] = follower.watch(display.event)
        finally:
            done.set()
            people.join()
    if last["state"] != "delivered":
        raise Refused(str(last.get("code") or "node.internal"), str(last.get("detail") or ""))


def _people(world: Any, done: threading.Event) -> None:
    """The demo's owners and reviewer: they sign with their own key files what their desk shows."""
    from rapha.evidence.keys import SigningKey
    from rapha.node.desk import Desk
    from rapha.testing.world import NODE, OWNERS

    desk = Desk(world.node / "state" / "desk", NODE, "demo")
    signers = {
        "approval": [SigningKey.load(world.people / f"{name}.pem") for name in OWNERS],
        "review": [SigningKey.load(world.people / "reviewer.pem")],
    }
    verdicts = {"approval": "approve", "review": "release"}
    while not done.wait(0.02):
        for request in desk.waiting():
            for key in signers[request["kind"]]:
                if key.keyid not in request["answered"]:
                    desk.answer(request["job"], request["kind"], key, verdicts[request["kind"]])


def _verify(work: Path, data: bytes) -> Verification:
    trust = Trust.parse(canonical.loads((work / "trust.json").read_bytes()))
    result = verify(data, trust, datetime.now(UTC))
    passed = sum(s.verdict == "pass" for s in result.steps)
    emit(f"\nrapha verify {work / 'bundle.json'} --trust {work / 'trust.json'}")
    emit(f"  {'VERIFIED' if result.ok else 'NOT VERIFIED'}: {passed} of {len(result.steps)} steps passed")
    middle = len(data) // 2
    changed = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    tampered = verify(changed, trust, datetime.now(UTC))
    step = next((s for s in tampered.steps if s.verdict == "fail"), None)
    emit(f"  one byte changed: {'VERIFIED, which is a defect' if tampered.ok else 'fails'}")
    if step is not None:
        emit(f"    step {step.n} {step.id}: {step.reason[:90]}")
    if tampered.ok:
        raise Refused("node.internal", "a changed bundle verified")
    return result


def _report(work: Path, world: Any, data: bytes, verification: Verification, case: str) -> None:
    from rapha.cli.progress import timeline
    from rapha.node import journal
    from rapha.researcher.report import render

    metrics = json.loads((work / "artifacts" / "metrics.json").read_bytes())
    lines = timeline(journal.read(world.node / "state" / "journal.jsonl"))
    html = render(bundle=data, verification=verification, metrics=metrics, timeline=lines, case=case)
    (work / "report.html").write_text(html, encoding="utf-8")
    for name, value in sorted(metrics["trusted"].items()):
        if "." not in name:
            low, high = metrics["trusted"].get(f"{name}.low"), metrics["trusted"].get(f"{name}.high")
            emit(f"  {name:<10} {value:.3f}   (95% interval {low} to {high}; held-out patients)")


def _clear(work: Path) -> None:
    """Remove what an earlier demo left, and nothing else."""
    from rapha.testing.world import destroy

    work.mkdir(parents=True, exist_ok=True)
    destroy(work / "world")
    destroy(work / "artifacts")
    for name in ("bundle.json", "trust.json", "report.html"):
        (work / name).unlink(missing_ok=True)
