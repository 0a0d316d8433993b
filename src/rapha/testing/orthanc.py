"""A real PACS on loopback: Orthanc with its DICOMweb plugin, as Debian ships them.

Used by the demo and by the tests of the `dicomweb` source. It keeps what it holds below the folder that it
is given, opens no DICOM port, and is killed at the end.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from rapha.spec.refusals import Refused
from rapha.testing.front import Seen, Tls, front

PROGRAM: Final = "Orthanc"
PLUGIN: Final = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
START_S: Final = 30.0
_HOST: Final = "127.0.0.1"
_ROOT: Final = "/dicom-web"
_STARTS: Final = 3


@dataclass(frozen=True, slots=True)
class Orthanc:
    """A running server.

    Attributes:
        url: the root of its DICOMweb service, such as http://127.0.0.1:40111/dicom-web.
        port: of its own REST API on loopback, over http.
        log: what it says about itself.
        seen: the requests that came over https or with a token; empty without `tls` and `bearer`.
    """

    url: str
    port: int
    pid: int
    log: Path
    user: tuple[str, str] | None = field(default=None, repr=False)
    seen: list[Seen] = field(default_factory=list, repr=False)

    def store(self, files: Iterable[Path | bytes]) -> int:
        """Store whole PS3.10 files; how many.

        Raises:
            Refused: `node.internal` for one that the server doesn't take.
        """
        connection = http.client.HTTPConnection(_HOST, self.port, timeout=START_S)
        stored = 0
        try:
            for file in files:
                body = file if isinstance(file, bytes) else file.read_bytes()
                self._request(connection, "POST", "/instances", body)
                stored += 1
        finally:
            connection.close()
        return stored

    def get(self, path: str) -> Any:
        """What the server's own REST API gives for `path`, such as `/statistics`."""
        connection = http.client.HTTPConnection(_HOST, self.port, timeout=START_S)
        try:
            return json.loads(self._request(connection, "GET", path))
        finally:
            connection.close()

    def _request(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None = None
    ) -> bytes:
        headers = {}
        if self.user:
            headers["Authorization"] = "Basic " + base64.b64encode(":".join(self.user).encode()).decode()
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != http.HTTPStatus.OK:
            raise Refused("node.internal", f"Orthanc answers {method} {path} with {answer.status}")
        return content


def installed() -> bool:
    """Whether Orthanc and its DICOMweb plugin are on this machine."""
    return shutil.which(PROGRAM) is not None and PLUGIN.is_file()


@contextmanager
def orthanc(
    folder: Path,
    files: Iterable[Path | bytes] = (),
    *,
    users: Mapping[str, str] | None = None,
    tls: Tls | None = None,
    bearer: str | None = None,
    host: str = _HOST,
) -> Iterator[Orthanc]:
    """An Orthanc that holds `files` and answers on loopback; it is killed at the end.

    Args:
        folder: where it keeps its configuration, storage and log; made if it isn't there.
        files: whole PS3.10 files, as paths or bytes.
        users: names and passwords; without any, everyone on this machine may ask.
        tls: serve https with this certificate (`front.authority` makes one).
        bearer: the token that every request has to carry; not together with `users`.
        host: a name or address of loopback by which clients are told to reach it; with `tls` only.

    Raises:
        Refused: `node.internal` where it isn't installed, doesn't start, or doesn't take a file.
    """
    if not installed():
        raise Refused("node.internal", "Orthanc with its DICOMweb plugin is not installed")
    folder.mkdir(parents=True, exist_ok=True)
    child, server = _start(folder, dict(users or {}))
    with ExitStack() as around:
        around.callback(_kill, child)
        server.store(files)
        if tls or bearer:
            before = around.enter_context(front(server.url, tls=tls, bearer=bearer, host=host))
            server = replace(server, url=before.url, seen=before.seen)
        yield server


def _kill(child: subprocess.Popen[bytes]) -> None:
    # What it holds is for this one run, and its orderly end takes seconds.
    child.kill()
    child.wait()


def _start(folder: Path, users: dict[str, str]) -> tuple[subprocess.Popen[bytes], Orthanc]:
    # Another process may take the free port before Orthanc does: then it ends, and is started again.
    log, settings = folder / "orthanc.log", folder / "orthanc.json"
    environment = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8", "TMPDIR": str(folder)}
    for _ in range(_STARTS):
        port = _free_port()
        settings.write_text(json.dumps(_settings(folder, port, users)))
        with log.open("ab") as out:
            command = (PROGRAM, str(settings))
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=folder, env=environment
            )
        user = next(iter(users.items()), None)
        server = Orthanc(f"http://{_HOST}:{port}{_ROOT}", port, child.pid, log, user)
        try:
            if _ready(child, server):
                return child, server
        except BaseException:  # stopped while waiting: nobody else knows of it yet
            _kill(child)
            raise
        _kill(child)
    raise Refused("node.internal", f"Orthanc does not start: {log.read_text(errors='replace')[-500:]}")


def _ready(child: subprocess.Popen[bytes], server: Orthanc) -> bool:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and child.poll() is None:
        try:
            server.get("/system")
        except (OSError, http.client.HTTPException):
            time.sleep(0.02)
        else:
            return child.poll() is None
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


def _settings(folder: Path, port: int, users: dict[str, str]) -> dict[str, Any]:
    return {
        "Name": "rapha",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "Plugins": [str(PLUGIN)],
        "HttpPort": port,
        "HttpDescribeErrors": False,
        "RemoteAccessAllowed": False,
        "OrthancExplorerEnabled": False,
        "WebDavEnabled": False,
        "DicomServerEnabled": False,
        "DefaultEncoding": "Utf8",
        "AuthenticationEnabled": bool(users),
        "RegisteredUsers": users,
        "SaveJobs": False,
        "DicomWeb": {"Enable": True, "Root": f"{_ROOT}/", "EnableWado": False},
    }
