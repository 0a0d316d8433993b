"""`rapha sandbox run --airgap`: the same gap as around a job, for as long as the command lives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from rapha.cli.exits import UNKNOWN, leave, say
from rapha.spec.refusals import Refused

HELPER: Final = Path("/run/rapha/sandbox-airgap")
"""Where a helper of our own keeps its journal: the next start finds what a killed one left."""


@contextmanager
def severed(airgap: bool, wan: str | None, socket: Path | None) -> Iterator[int | None]:
    """The WAN severed inside the block; yields the lock that the sandbox is to hold, None without `airgap`.

    Leaves with 3 if it can't be severed, and afterwards if it did not hold.
    """
    if not airgap:
        yield None
        return
    from rapha.node.posture.airgap import client

    with ExitStack() as stack:
        try:
            path = socket or stack.enter_context(client.local(HELPER))
            gap = client.Gap(wan or client.default_wan(), "nftables")
            hold = stack.enter_context(client.Hold.create(path.parent))
            made = client.sever(path, gap, hold.fd)
        except Refused as refused:
            leave(UNKNOWN, f"{refused.code}: {refused.detail}")
        say(f"air gap: {gap.interface} severed")
        yield hold.fd
        hold.release()
        try:
            counted = made.lift()
        except Refused as refused:
            leave(UNKNOWN, f"{refused.code}: {refused.detail}")
        sent = counted.tx_bytes_after - counted.tx_bytes_before
        say(f"air gap: lifted; {sent} bytes sent, {counted.dropped_packets} packets stopped")
