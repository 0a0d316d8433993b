"""The sandbox as a user who is not root, and what is said where user namespaces are forbidden."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rapha.runtime.sandbox.launcher import landlock

ROOT = os.geteuid() == 0
UID = 54321
"""Nobody's; it needs no name."""

AS_USER = """
import os, sys
from rapha.runtime.sandbox.launcher import system

def show(path):
    # The interpreter, where a 0700 home lies on the way: the same files at the same path, in this namespace.
    fd = os.open(path, os.O_PATH)
    tree = system.clone_mount(fd, path)
    top = '/' + path.split('/')[1]
    system.mount('test', top, 'tmpfs', 0, 'mode=0755')
    os.makedirs(path)
    system.attach_mount(tree, path)
    os.close(fd)
    os.close(tree)

uid, hidden, *command = sys.argv[1:]
if hidden:
    system.unshare(system.CLONE_NEWNS)
    system.mount('none', '/', '', system.MS_REC | system.MS_PRIVATE)
    show(hidden)
os.setgroups([])
os.setresgid(int(uid), int(uid), int(uid))
os.setresuid(int(uid), int(uid), int(uid))
os.chdir('/')
os.execv(command[0], command)
"""


def hidden_prefix() -> str:
    """The interpreter's prefix if other users can't reach it, else nothing."""
    prefix = Path(sys.base_prefix).resolve()
    ways = [prefix, *prefix.parents]
    return "" if all(way.stat().st_mode & 0o001 for way in ways) else str(prefix)


@pytest.fixture(scope="module")
def user() -> list[str]:
    """What to put in front of a command of the environment's own Python."""
    if not ROOT:
        return [sys.executable]  # we are one
    sources = Path(__file__).parents[2]
    for way in [Path(sys.executable).parent, *sources.parents, sources / "src"]:
        if not way.stat().st_mode & 0o001:
            pytest.skip(f"other users can't reach {way}")
    return [sys.executable, "-c", AS_USER, str(UID), hidden_prefix(), sys.executable]


def run(user: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "LANG": "C.UTF-8"}
    return subprocess.run(
        [*user, *arguments], capture_output=True, text=True, timeout=60, check=False, env=environment
    )


RUN = """
import dataclasses, json, sys
from rapha.runtime.sandbox.bubblewrap import Bubblewrap
from rapha.runtime.sandbox.interface import Limits, Spec
from rapha.runtime.sandbox.pyruntime import PythonRuntime
runtime = PythonRuntime.discover(())
limits = Limits(**json.loads(sys.argv[2]))
spec = Spec((runtime.python, '-c', sys.argv[1]), runtime.mounts, runtime.env, '/tmp', limits)
print(json.dumps(dataclasses.asdict(Bubblewrap().start(spec).wait())))
"""


def test_the_command_line_runs_a_command(user: list[str]) -> None:
    done = run(user, "-m", "rapha", "sandbox", "run", "--", "python3", "-c", "print('inside')")
    assert (done.returncode, done.stdout) == (0, "inside\n"), done.stderr


def test_every_wall_stands(user: list[str]) -> None:
    done = run(user, "-c", RUN, "import time; time.sleep(0.3)", "{}")
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    walls = outcome["walls"]
    assert (outcome["ending"], outcome["exit_code"]) == ("exited", 0)
    assert set(walls["namespaces"].split(",")) == {"user", "pid", "net", "ipc", "uts", "cgroup", "mnt"}
    assert (walls["capabilities"], walls["no_new_privs"], walls["seccomp"]) == ("none", "yes", "loaded")
    assert walls["host_uid"].endswith("(the node's own)")
    assert walls["landlock"] == landlock.describe(landlock.abi())


MAPS = """
import mmap, os, time
private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
kept = [mmap.mmap(-1, 4096, flags=private, prot=(1, 3)[n % 2]) for n in range(50_000)]
for _ in range(3):
    os.fork()
time.sleep(9)
"""
LIMITED = {
    "mappings that no page shows": (MAPS, {"memory_bytes": 128 << 20}, "memory"),
    "memory": ("x = bytearray(600 << 20); import time; time.sleep(9)", {"memory_bytes": 256 << 20}, "memory"),
    "time": ("import time; time.sleep(30)", {"wall_s": 0.5}, "timeout"),
    "files": ("[open('/dev/null') for _ in range(500)]", {"open_files": 64}, "exited"),
}


@pytest.mark.parametrize("name", LIMITED)
def test_every_limit_holds(name: str, user: list[str]) -> None:
    code, limits, ending = LIMITED[name]
    done = run(user, "-c", RUN, code, json.dumps(limits))
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["ending"] == ending, outcome
    assert outcome["exit_code"] != 0


FORBIDDEN = """
import json, os
from pathlib import Path
from rapha.node import doctor
from rapha.runtime.sandbox.bubblewrap import Bubblewrap
from rapha.runtime.sandbox.launcher import system
uid, gid = os.geteuid(), os.getegid()
try:
    system.unshare(system.CLONE_NEWUSER)
except OSError as error:
    raise SystemExit(f'no user namespace here: {error}')
Path('/proc/self/setgroups').write_text('deny')
Path('/proc/self/uid_map').write_text(f'1000 {uid} 1')
Path('/proc/self/gid_map').write_text(f'1000 {gid} 1')
Path('/proc/sys/user/max_user_namespaces').write_text('0')  # of this namespace, and not of the host
print(json.dumps(doctor.walls(Bubblewrap()).dump()))
"""


def test_the_doctor_names_the_setting_that_forbids_namespaces() -> None:
    before = Path("/proc/sys/user/max_user_namespaces").read_text()
    done = subprocess.run(
        [sys.executable, "-c", FORBIDDEN], capture_output=True, text=True, timeout=60, check=False
    )
    if "no user namespace here" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    assert (row["id"], row["ok"]) == ("sandbox", False)
    assert "sysctl -w user.max_user_namespaces=15000" in row["found"]
    assert Path("/proc/sys/user/max_user_namespaces").read_text() == before
