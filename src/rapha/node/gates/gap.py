"""The WAN severed from gate 7 until no code of the job lives (gates, section 2).

The helper that holds CAP_NET_ADMIN is another process; this side has a lock that says "a job lives". The
launcher and the sandbox's init inherit it, so that it outlives a node that is killed, and the helper lifts
nothing while anybody holds it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from rapha.node.config import NodeConfig
from rapha.node.gates.outcome import Clock
from rapha.node.node import Node
from rapha.node.posture.airgap import client
from rapha.node.posture.airgap.probe import Target, probe, resolve
from rapha.node.watch import Watch
from rapha.spec.lan import ranges
from rapha.spec.receipt import AirGap
from rapha.spec.refusals import Refused

Probes = dict[str, Literal["unreachable"]]


class WanGap:
    """One job's air gap: open until `sever`, and put back whatever happens; a context manager.

    With a waiver it severs nothing, and says so in the receipt.
    """

    def __init__(self, node: Node, job: str, watch: Watch) -> None:
        self._node, self._job, self._watch = node, job, watch
        self._hold: client.Hold | None = None
        self._severed: client.Severed | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._drop_hold()
        if self._severed is not None:
            self._severed.close()

    @property
    def hold(self) -> int | None:
        """A descriptor for the job's sandboxes to keep open; None where nothing is severed."""
        return None if self._hold is None else self._hold.fd

    @property
    def moments(self) -> int:
        """How many moments of the job can be seen from outside: its end, and when the WAN came back."""
        return 1 if self._severed is None else 2

    def sever(self) -> Probes:
        """Sever, and try from this host to reach the coordinator.

        Returns:
            What was tried in vain; empty with a waiver.

        Raises:
            Refused: `posture.seal_failed`.
        """
        config = self._node.config
        if config.wan_interface is None:
            if config.wan_waiver is None:
                raise Refused("posture.seal_failed", "no WAN interface is named and no waiver says why not")
            return {}
        host, port = coordinator_address(config)
        known = resolve(host, port)  # afterwards no name server answers
        check_beyond(config, known)
        client.await_open(socket_of(self._node.root, config), self._node.stop.is_set)
        self._watch.pause()
        self._hold = client.Hold.create(self._node.root / config.air_gap.hold)
        wanted = client.Gap(config.wan_interface, config.air_gap.mode, config.air_gap.lan)
        self._note("severing", interface=wanted.interface, mode=wanted.mode)
        self._severed = client.sever(socket_of(self._node.root, config), wanted, self._hold.fd)
        if (found := probe(host, port, known)) != "unreachable":
            raise Refused(
                "posture.seal_failed", f"{host}:{port} is {found} although {wanted.interface} is severed"
            )
        self._note("severed")
        return {"wan": "unreachable"}

    def lift(self, clock: Clock) -> AirGap:
        """Put the WAN back at the next whole quantum, and prove it; the receipt's section without probes.

        Precondition: no code of the job lives.

        Raises:
            Refused: `posture.seal_failed` if anything was sent meanwhile, or somebody undid the gap.
        """
        if self._severed is not None:
            # The coordinator sees when the node is back: a moment that the job could choose.
            clock.wait_for_quantum()
            self._put_back(self._severed)
        return _section(self._node.config)

    def put_back(self) -> None:
        """After a job that ended in between, at the moment that is told: what goes wrong is journalled.

        The job has no receipt, so there is nothing to refuse any more.
        """
        if self._severed is not None:
            try:
                self._put_back(self._severed)
            except Refused as refused:
                self._note("trouble", code=refused.code, detail=refused.detail)

    def _put_back(self, severed: client.Severed) -> None:
        self._severed = None
        self._note("lifting")
        try:
            self._drop_hold()
            counted = severed.lift()
        finally:
            severed.close()
            self._watch.resume()
        self._note("lifted", counters=asdict(counted))

    def _drop_hold(self) -> None:
        if self._hold is not None:
            self._hold.release()
            self._hold = None

    def _note(self, event: str, **data: Any) -> None:
        self._node.journal.append("airgap", self._job, verdict=event, at_ms=int(time.time() * 1000), **data)


def _section(config: NodeConfig) -> AirGap:
    severed = config.wan_interface is not None
    return AirGap(
        interface=config.wan_interface,
        waiver=None if severed else config.wan_waiver,
        mode=config.air_gap.mode if severed else None,
        lan=config.air_gap.lan if severed else (),
        probes={},
        wan_bytes_sent=0 if severed else None,
        lifted=True if severed else None,
        reported_by="host",
    )


def socket_of(root: Path, config: NodeConfig) -> Path:
    """Where the helper listens; `root` is the folder of `node.json`."""
    return root / config.air_gap.socket


def check_beyond(config: NodeConfig, known: Sequence[Target]) -> None:
    """See that severing can cut the coordinator off, before anything is severed for nothing.

    Raises:
        Refused: `posture.seal_failed` if one of its addresses is this host's own or in a range that stays
            reachable.
    """
    lan = ranges(config.air_gap.lan)
    for target in known:
        told = ip_address(target.address[0])
        address = (told.ipv4_mapped if isinstance(told, IPv6Address) else None) or told
        if address.is_loopback or any(address in one for one in lan):
            raise Refused(
                "posture.seal_failed",
                f"the coordinator is at {address}, which stays reachable while {config.wan_interface} is "
                "severed: it must be beyond the WAN, and outside of `lan`",
            )


def coordinator_address(config: NodeConfig) -> tuple[str, int]:
    """Host and port of the coordinator.

    Raises:
        Refused: `node.config`.
    """
    try:
        url = urlsplit(config.coordinator.url)
        host, port = url.hostname, url.port or (443 if url.scheme == "https" else 80)
    except ValueError as error:
        raise Refused("node.config", f"coordinator: {config.coordinator.url}: {error}") from None
    if host is None:
        raise Refused("node.config", f"coordinator: {config.coordinator.url} names no host")
    return host, port
