"""The pipeline's end of its link to the agent process, which alone talks to the coordinator.

Length-prefixed canonical JSON over an inherited socket pair: one request, one reply, in order. The agent
gets a closed set of requests; it holds no data key and has no code path to a record.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rapha.evidence import canonical
from rapha.spec.refusals import REGISTRY, Refused

HEADER: Final = struct.Struct("<I")
MAX_MESSAGE: Final = 32 * 1024 * 1024
REPLY_S: Final = 60.0
"""Longest that the agent may take beyond the wait that it is asked for; its own calls end well before."""
BYTES_PER_S: Final = 2**18
"""A link that is slower than this is a link that is down."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A job as the coordinator hands it over: nothing in it is believed yet."""

    job: str
    job_envelope: dict[str, Any]
    image_envelope: dict[str, Any] | None
    image_blob: str


def send(sock: socket.socket, value: Mapping[str, Any]) -> None:
    """Write one message."""
    data = canonical.dumps(dict(value))
    sock.sendall(HEADER.pack(len(data)) + data)


def receive(sock: socket.socket) -> dict[str, Any] | None:
    """Read one message; None at the end of the stream.

    Raises:
        Refused: `node.internal` for a frame that is too large or cut off, `schema.json`.
    """
    header = _exactly(sock, HEADER.size)
    if header is None:
        return None
    (length,) = HEADER.unpack(header)
    if length > MAX_MESSAGE:
        raise Refused("node.internal", "a message between node processes is too large")
    body = _exactly(sock, length)
    value = canonical.loads(body if body is not None else b"")
    if not isinstance(value, dict):
        raise Refused("node.internal", "a message between node processes is malformed")
    return value


def _exactly(sock: socket.socket, length: int) -> bytes | None:
    chunks = b""
    while len(chunks) < length:
        chunk = sock.recv(length - len(chunks))
        if not chunk:
            if chunks:
                raise Refused("node.internal", "a message between node processes was cut off")
            return None
        chunks += chunk
    return chunks


class Uplink:
    """Starts the agent and asks it things, one at a time; safe to call from several threads."""

    def __init__(self, config: Path) -> None:
        """Start the agent for the node whose `node.json` is `config`."""
        self._config = config
        self._lock = threading.Lock()
        self._start()

    def _start(self) -> None:
        self._sock, theirs = socket.socketpair()
        environment = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG", "SSL_CERT_FILE")}
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-m", "rapha.node.agent.process", str(self._config), str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env=environment,
        )
        theirs.close()

    def close(self) -> None:
        """End the agent."""
        self._sock.close()
        self._process.terminate()  # it keeps nothing that isn't kept elsewhere
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def publish(self, catalogue: list[dict[str, Any]]) -> None:
        """Tell the coordinator what datasets may be asked for."""
        self._call("publish", catalogue=catalogue)

    def lease(self, key: str, wait_s: float) -> Lease | None:
        """Ask for a job; None if there is none within `wait_s`. The same `key` gets a lost answer again."""
        reply = self._call("lease", within_s=wait_s, key=key, wait=wait_s)
        if reply.get("job") is None:
            return None
        return Lease(reply["job"], reply["job_envelope"], reply["image_envelope"], reply["image_blob"])

    def fetch_image(self, job: str, sha256: str, destination: Path, limit: int) -> None:
        """Download the image archive. Raises `Refused` (`image.not_found`, `image.digest_mismatch`)."""
        asked = {"job": job, "sha256": sha256, "destination": str(destination), "limit": limit}
        self._call("fetch_image", within_s=limit / BYTES_PER_S, **asked)

    def read_slot(self, job: str, slot: str, wait_s: float) -> dict[str, Any] | None:
        """What the researcher's client wrote, or None within `wait_s`."""
        reply = self._call("read_slot", within_s=wait_s, job=job, slot=slot, wait=wait_s)
        value = reply.get("value")
        return value if isinstance(value, dict) else None

    def write_slot(self, job: str, slot: str, value: Mapping[str, Any]) -> None:
        """Write once for the researcher's client."""
        self._call("write_slot", job=job, slot=slot, value=dict(value))

    def transition(self, job: str, state: str, surface: Mapping[str, Any] | None, more_s: int = 0) -> None:
        """Move the job's state at the coordinator; `surface` goes with an end, `more_s` adds to a silence."""
        told = dict(surface) if surface else None
        self._call("transition", job=job, state=state, surface=told, more_s=more_s)

    def state(self, job: str) -> str:
        """Where the coordinator has the job: a state's name."""
        return str(self._call("state", job=job)["state"])

    def release(self, job: str, outbox: Path) -> str:
        """Send the committed outbox; idempotent. Returns the state that the job is in now."""
        files = [p for p in outbox.rglob("*") if p.is_file()]
        # Each file is a call of its own.
        within = sum(REPLY_S + p.stat().st_size / BYTES_PER_S for p in files)
        return str(self._call("release", within_s=within, job=job, outbox=str(outbox))["state"])

    def _call(self, request: str, *, within_s: float = 0.0, **fields: Any) -> dict[str, Any]:
        with self._lock:
            if self._process.poll() is not None:
                self.close()
                self._start()
            try:
                self._sock.settimeout(within_s + REPLY_S)
                send(self._sock, {"request": request, **fields})
                reply = receive(self._sock)
            except TimeoutError:
                self.close()  # a late reply would be taken for the next one's; the next call starts afresh
                raise Refused("policy.unavailable", f"the agent did not answer {request} in time") from None
            except OSError as error:
                raise Refused("node.internal", f"the agent is gone: {error.strerror}") from None
        if reply is None:
            raise Refused("node.internal", "the agent is gone")
        if "refused" in reply:
            code = str(reply["refused"])
            raise Refused(code if code in REGISTRY else "node.internal", str(reply.get("detail", "")))
        return reply
