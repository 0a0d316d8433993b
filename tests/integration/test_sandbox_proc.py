"""What a job reads in /proc: its own limits, nothing that counts the host, and what can't be hidden."""

import os
from pathlib import Path

import pytest

from rapha.runtime.sandbox.bubblewrap import Bubblewrap
from rapha.runtime.sandbox.interface import Limits, Mount, Spec
from rapha.runtime.sandbox.launcher import interpreter
from rapha.runtime.sandbox.pyruntime import PythonRuntime, installed


def inside(code: str, log: Path, mounts: tuple[Mount, ...] = (), packages: tuple[str, ...] = ()) -> str:
    runtime = PythonRuntime.discover(packages)
    argv = (runtime.python, "-c", f"import os\n{code}")
    limits = Limits(wall_s=20, memory_bytes=512 << 20)
    spec = Spec(argv, (*runtime.mounts, *mounts), runtime.env, "/tmp", limits, log=log)
    outcome = Bubblewrap().start(spec).wait()
    assert outcome.exit_code == 0, log.read_text()
    return log.read_text()


def test_memory_is_the_limit_and_processors_are_counted(tmp_path: Path) -> None:
    code = "print(open('/proc/meminfo').readline().split()[1], os.sysconf('SC_NPROCESSORS_ONLN'))"
    assert inside(code, tmp_path / "log").split() == [str(512 << 10), str(os.sysconf("SC_NPROCESSORS_ONLN"))]


READABLE = """
for folder, _, names in os.walk('/proc'):
    first = (folder + '/').split('/')[2]
    if first.isdigit() or first in ('self', 'thread-self'):
        continue
    for name in names:
        try:
            if open(folder + '/' + name, 'rb').read(1):
                print(folder + '/' + name)
        except OSError:
            pass
"""
STATIC = {
    "cpuinfo", "crypto", "devices", "dma", "execdomains", "fb", "filesystems", "misc", "version",
    "uptime", "mounts", "meminfo", "stat", "vmstat",
}  # fmt: skip
"""What describes the kernel and the processor, the clock, its own mounts, and our own three."""


def test_nothing_readable_counts_the_host(tmp_path: Path) -> None:
    found = inside(READABLE, tmp_path / "log").split()
    top = {path for path in found if not path.startswith(("/proc/sys/", "/proc/net/", "/proc/sysvipc/"))}
    assert {path.removeprefix("/proc/") for path in top} <= STATIC
    counters = {"nr", "inode-nr", "file-nr", "dentry-state", "boot_id", "entropy_avail", "aio-nr"}
    shared = {path for path in found if path.startswith(("/proc/sys/fs/", "/proc/sys/kernel/"))}
    assert not {path.rpartition("/")[2] for path in shared} & counters


def test_mountinfo_tells_of_the_jobs_own_sources_and_nothing_else(tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.mkdir()
    code = "for line in open('/proc/self/mountinfo'): print(line.split()[3], line.split()[4])"
    said = inside(code, tmp_path / "log", (Mount(given, "/app"),))
    runtime = PythonRuntime.discover(())
    sources = [given, *(mount.source for mount in runtime.mounts if mount.source)]
    sources += [Path(part.source) for part in interpreter.parts() if part.source]
    ours = {str(source.resolve()) for source in sources}
    for shown, dest in (line.split() for line in said.splitlines()):
        # A file system that is mounted somewhere shows paths from its own root.
        own = any(path.endswith(shown) for path in ours) or dest.startswith(("/dev/", "/proc/"))
        assert own or shown == "/" or shown.count("/") == 1, (shown, dest)


PSUTIL = """
import psutil
psutil.virtual_memory(), psutil.swap_memory(), psutil.cpu_times(), psutil.boot_time()
psutil.cpu_percent(0.01)
process = psutil.Process()
process.memory_info(), process.cpu_times(), process.create_time(), process.num_threads()
print(psutil.virtual_memory().total, psutil.cpu_count())
"""


@pytest.mark.skipif(not installed(["psutil"]), reason="psutil is not here")
def test_psutil_works(tmp_path: Path) -> None:
    said = inside(PSUTIL, tmp_path / "log", packages=("psutil",))
    assert said.split()[0] == str(512 << 20)
