"""The pipeline's end of the link: an agent that is silent or gone is replaced, never waited for."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rapha.node import uplink
from rapha.node.exit import Exit
from rapha.node.uplink import Uplink
from rapha.spec.refusals import Refused

AGENT = """
import socket, sys, time
from rapha.node.uplink import receive, send
sock = socket.socket(fileno=int(sys.argv[2]))
while (asked := receive(sock)) is not None:
    if asked["job"] == "slow":
        time.sleep(60)
    if asked["job"] == "gone":
        sys.exit()
    send(sock, {"state": "late" if asked["job"] == "slow" else "running"})
"""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[str]]]:
    commands: list[list[str]] = []
    real = subprocess.Popen

    def _start(command: list[str], **options: Any) -> Any:
        commands.append(command)
        return real([sys.executable, "-c", AGENT, *command[-2:]], **options)

    monkeypatch.setattr(subprocess, "Popen", _start)
    yield commands


def test_the_agent_is_isolated_and_replaced(
    started: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    link = Uplink(Path("node.json"))
    try:
        assert Exit(link).state("a") == "running"
        assert started[0][:4] == [sys.executable, "-I", "-m", "rapha.node.agent.process"]
        monkeypatch.setattr(uplink, "REPLY_S", 0.2)
        with pytest.raises(Refused, match=r"policy\.unavailable"):
            link.state("slow")
        monkeypatch.setattr(uplink, "REPLY_S", 30.0)
        assert link.state("a") == "running"
        with pytest.raises(Refused, match=r"node\.internal: the agent is gone"):
            link.state("gone")
        link._process.wait(timeout=10)
        assert link.state("a") == "running"
        assert len(started) == 3
    finally:
        link.close()
    assert isinstance(link._sock, socket.socket) and link._sock.fileno() == -1
