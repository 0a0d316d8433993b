"""`rapha node`: a hospital's node, and the people who decide on it."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from rapha.cli import airgap, node_datasets, node_feasibility, node_keys, node_ledger, node_releases
from rapha.cli.exits import NO, OK, UNKNOWN, WRONG_CALL, emit, emit_json, leave, say
from rapha.cli.sandbox_driver import Driver
from rapha.evidence.keys import SigningKey
from rapha.node import config as configs
from rapha.node import journal as journals
from rapha.node.config import NodeConfig
from rapha.node.desk import Desk, Kind
from rapha.spec.base import Profile
from rapha.spec.refusals import Refused

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)
approvals = typer.Typer(no_args_is_help=True, help="Requests that wait for the owners.")
app.add_typer(approvals, name="approvals")
app.add_typer(node_releases.app, name="releases")
app.add_typer(airgap.app, name="airgap")
app.add_typer(node_datasets.app, name="datasets")
app.add_typer(node_keys.app, name="keys")
app.add_typer(node_ledger.app, name="ledger")
app.command("feasibility")(node_feasibility.feasibility)

Work = Annotated[Path, typer.Option("--work", envvar="RAPHA_NODE", help="The node's work directory.")]
Key = Annotated[Path, typer.Option("--key", help="Your own key (PEM).")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

PID = "node.pid"


@app.command()
def init(
    work: Work,
    name: Annotated[str, typer.Option(help="The node's id.")],
    coordinator: Annotated[str, typer.Option(help="Coordinator's URL.")],
    audience: Annotated[str, typer.Option(help="Coordinator's name, which signed requests are for.")],
    profile: Annotated[str, typer.Option(help="demo or production; can't be changed later.")] = "demo",
    wan_interface: Annotated[
        str | None, typer.Option(help="The interface to sever while a job trains.")
    ] = None,
    wan_waiver: Annotated[str | None, typer.Option(help="Why no WAN interface is severed.")] = None,
    sandbox: Annotated[Driver, typer.Option(help="Which walls jobs run in.")] = Driver.bubblewrap,
) -> None:
    """Make a node: keys, configuration, and the shipped policy."""
    from rapha.node.setup import init as init_node

    config = NodeConfig.parse(
        {
            "version": 1,
            "profile": _profile(profile),
            "node": name,
            "coordinator": {"url": coordinator, "audience": audience},
            "datasets": [],
            "policy_bundles": ["policy"],
            "runtime": ["torch", "numpy", "safetensors"],
            "runtime_name": "python-torch",
            "wan_interface": wan_interface,
            "wan_waiver": wan_waiver,
            "sandbox": sandbox.value,
        },
        "init",
    )
    init_node(work, config)
    if config.profile == "demo":
        # The simulated TEE's root: a demo node brings its own, and production can't name one.
        SigningKey.generate().save(work / config.keys / "tee-root.pem")
    emit(SigningKey.load(work / config.keys / "receipt.pem").verify_key.to_text())


@app.command()
def enroll(work: Work, token: Annotated[str, typer.Option(help="One-time token of the operator.")]) -> None:
    """Tell the coordinator this node's agent key."""
    from rapha.node.agent.process import client_for

    config = configs.load(work / "node.json")
    with client_for(work / "node.json") as client:
        client.enrol(token)
    emit(config.node)


@app.command()
def serve(
    work: Work, ready_file: Annotated[Path | None, typer.Option(help="Written once the node waits.")] = None
) -> None:
    """Take jobs, one at a time, until told to stop."""
    from rapha.cli.wiring import node_at
    from rapha.node.serve import serve as serve_node

    with node_at(work / "node.json") as node:
        pid = work / PID
        pid.write_text(f"{os.getpid()}\n")
        try:
            serve_node(node, ready_file)
        finally:
            pid.unlink(missing_ok=True)


@app.command()
def stop(
    work: Work, now: Annotated[bool, typer.Option("--now", help="End the running job, too.")] = False
) -> None:
    """The kill switch: end the node. Without --now, wait until no job runs."""
    try:
        pid = int((work / PID).read_text())
    except (OSError, ValueError):
        leave(OK, "the node is not running")
    while not now and _busy(work):
        time.sleep(0.2)
    os.kill(pid, signal.SIGTERM)
    say("told to stop")


@app.command()
def doctor(work: Work, as_json: Json = False) -> None:
    """Each requirement of the node's profile: pass or fail, and what to do. Exit 1 if any fails."""
    from rapha.cli.wiring import examine

    results = examine(work / "node.json")
    if as_json:
        emit_json({"ok": all(r.ok for r in results), "checks": [r.dump() for r in results]})
    else:
        for result in results:
            emit(f"{'pass' if result.ok else 'FAIL'}  {result.id:<18} {result.found}")
            if not result.ok:
                emit(f"      fix: {result.fix}")
    raise SystemExit(OK if all(r.ok for r in results) else NO)


@app.command()
def audit(work: Work, job: Annotated[str, typer.Option(help="Only this job.")] = "") -> None:
    """The node's own log, checked link by link. Exit 3 if it was altered."""
    config = configs.load(work / "node.json")
    for entry in journals.read(work / config.state / "journal.jsonl"):
        if not job or entry.job == job:
            emit(
                f"{entry.seq:>5} {entry.time} {entry.job[:12]:<12} {entry.event:<10} {json.dumps(entry.data)}"
            )


@approvals.command("list")
def list_approvals(work: Work, as_json: Json = False) -> None:
    """Requests for approval, with what would change since the last approved job."""
    _list(work, "approval", as_json)


@approvals.command("sign")
def sign_approval(
    job: str, work: Work, key: Key, refuse: Annotated[bool, typer.Option("--refuse", help="Say no.")] = False
) -> None:
    """Sign a request with your own key."""
    _desk(work).answer(job, "approval", SigningKey.load(key), "refuse" if refuse else "approve")


def _list(work: Path, kind: Kind, as_json: bool) -> None:
    found: list[dict[str, Any]] = [r for r in _desk(work).waiting() if r["kind"] == kind]
    if as_json:
        emit_json({"requests": found})
        return
    for request in found:
        emit(f"{request['job']}  answered by {len(request['answered'])}")
        emit(json.dumps(request["shown"], indent=1))


def _desk(work: Path) -> Desk:
    config = configs.load(work / "node.json")
    return Desk(work / config.state / "desk", config.node, config.profile)


def _busy(work: Path) -> bool:
    from rapha.node.recover import unfinished

    config = configs.load(work / "node.json")
    try:
        entries = journals.read(work / config.state / "journal.jsonl")
    except Refused as refused:
        leave(UNKNOWN, f"{refused.code}: {refused.detail}")
    return bool(unfinished(entries)[0])


def _profile(text: str) -> Profile:
    if text not in ("demo", "production"):
        leave(WRONG_CALL, "--profile is demo or production")
    return "demo" if text == "demo" else "production"
