"""Gate 7: posture, policy and consent hold again with fresh evidence, and nothing can be reached.

Approval may have taken days. What is sealed is probed from inside the very walls the job will have.
"""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass
from typing import Final

from rapha.node.datasets.control import Prepared
from rapha.node.gates.attest import Attested, check, collect
from rapha.node.gates.consent import Consented
from rapha.node.gates.gap import Probes, WanGap, coordinator_address
from rapha.node.gates.intake import Admitted
from rapha.node.gates.policy import Allowed, allow
from rapha.node.gates.quantum import whole_quanta
from rapha.node.gates.scan import Scanned
from rapha.node.gates.walls import walls
from rapha.node.node import Node
from rapha.runtime.sandbox.interface import Ending, Limits
from rapha.spec.attestation import Posture
from rapha.spec.audited import longest_s
from rapha.spec.receipt import PROBES
from rapha.spec.refusals import Refused
from rapha.spec.units import parse_time

PROBE: Final = """
import json, os, socket, sys
def reach(what):
    try:
        what()
    except (OSError, ImportError) as error:
        return "unreachable"
    return "reachable"
marker, host, port, *paths = json.loads(sys.argv[1])
def connect(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as s:
        s.settimeout(2)
        s.connect(address)
answers = {"coordinator": reach(lambda: connect(socket.AF_INET, (host, port)))}
answers["ipv4"] = reach(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close())
answers["ipv6"] = reach(lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close())
answers["netlink"] = reach(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close())
for name, path in paths:
    answers[name] = reach(lambda: os.stat(path))
print(marker + json.dumps(answers))
"""
"""Runs inside the job's walls, before the job and without its image: isolated (`-I -S`), so that no file of
anybody's is imported but the standard library's; everything must be unreachable."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """Fresh evidence, and what was tried in vain: from inside the walls, and from the node itself.

    `prepared` is what the broker will serve.
    """

    posture: Posture
    probes: Probes
    prepared: Prepared


def seal(
    node: Node,
    admitted: Admitted,
    attested: Attested,
    scanned: Scanned,
    allowed: Allowed,
    consented: Consented,
    gap: WanGap,
    now: int,
) -> Sealed:
    """Decode the records, check again, sever the WAN, then probe.

    Raises:
        Refused: `posture.*`, `policy.*`, `consent.*`, `privacy.cohort_refused`.
    """
    _demand_in_time(admitted, now)
    # Before the WAN is severed, and before the last look at the rest: decoding may take long, and nothing of
    # the job runs yet.
    with whole_quanta(node):
        prepared = consented.recheck()
    _demand_in_time(admitted, int(time.time()))
    posture = collect(node, admitted.id)
    appraisal = check(node, admitted, posture, admitted.id, posture.nonce)
    if appraisal.measurement != attested.appraisal.measurement:
        raise Refused("posture.seal_failed", "the node changed since the job was admitted")
    if allow(node, admitted, attested, scanned).section != allowed.section:
        raise Refused("posture.seal_failed", "the policy decision changed since it was approved")
    # The last word to the coordinator before the silence.
    node.exit.progress(admitted.id, "running", longest_s(admitted.job, admitted.manifest))
    return Sealed(posture, gap.sever() | _probe(node, admitted, gap.hold), prepared)


def _demand_in_time(admitted: Admitted, now: int) -> None:
    if now > parse_time(admitted.job.not_after).timestamp():
        raise Refused("policy.job_expired", "expired while it waited for approval, or for its records")


def _probe(node: Node, admitted: Admitted, hold: int | None) -> Probes:
    host, port = coordinator_address(node.config)
    hidden = [
        ("dataset-folder", str(admitted.folder)),
        ("node-keys", str((node.root / node.config.keys).resolve())),
        ("node-state", str(node.state.resolve())),
    ]
    marker = f"{secrets.token_hex(16)} "
    argument = json.dumps([marker, host, port, *hidden])
    log = node.log_file(admitted.id, "probe")
    spec = walls(
        node,
        None,
        argv=(node.runtime.python, "-I", "-S", "-c", PROBE, argument),
        inputs={},
        limits=Limits(wall_s=20, cpu_s=20),
        log=log,
        hold=hold,
    )
    outcome = node.sandbox.start(spec).wait()
    lines = [x for x in log.read_text(errors="replace").splitlines() if x.startswith(marker)]
    if outcome.ending != Ending.exited or outcome.exit_code != 0 or len(lines) != 1:
        raise Refused("posture.seal_failed", "the probes could not be run")
    answers: dict[str, str] = json.loads(lines[0].removeprefix(marker))
    reached = sorted(name for name, answer in answers.items() if answer != "unreachable")
    if reached or answers.keys() != PROBES:
        raise Refused("posture.seal_failed", f"reachable from inside the walls: {', '.join(reached)}")
    return dict.fromkeys(answers, "unreachable")
