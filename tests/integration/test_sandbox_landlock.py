"""Landlock from inside a sandbox: what it denies where nothing else does, and what it leaves."""

import errno
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rapha.runtime.sandbox.bubblewrap import Bubblewrap
from rapha.runtime.sandbox.interface import Ending, Limits, Outcome, Spec
from rapha.runtime.sandbox.launcher import landlock
from rapha.runtime.sandbox.pyruntime import PythonRuntime

ABI = landlock.abi()
pytestmark = pytest.mark.skipif(ABI == 0, reason="this kernel has no Landlock")


@pytest.fixture(scope="module")
def runtime() -> PythonRuntime:
    return PythonRuntime.discover(())


def inside(runtime: PythonRuntime, code: str, log: Path) -> tuple[Outcome, str]:
    argv = (runtime.python, "-c", f"import os, signal, socket\n{code}")
    spec = Spec(argv, runtime.mounts, runtime.env, "/tmp", Limits(wall_s=20), log=log)
    outcome = Bubblewrap().start(spec).wait()
    return outcome, log.read_text()


def test_what_is_in_force_is_recorded(runtime: PythonRuntime, tmp_path: Path) -> None:
    outcome, _ = inside(runtime, "pass", tmp_path / "log")
    assert outcome.walls["landlock"] == landlock.describe(ABI)


DENIED = {
    "a device that anyone may write to": "os.open('/dev/full', os.O_WRONLY)",
    "its own place in the queue of the killed": "open('/proc/self/oom_score_adj', 'w')",
    "its name": "open('/proc/self/comm', 'w')",
}
SCOPED = {"a signal to the first process": "os.kill(1, 0)"}


@pytest.mark.parametrize("name", [*DENIED, *(SCOPED if ABI >= 6 else ())])
def test_only_landlock_denies(name: str, runtime: PythonRuntime, tmp_path: Path) -> None:
    code = f"try:\n    {(DENIED | SCOPED)[name]}\nexcept PermissionError as error:\n    print(error.errno)"
    outcome, said = inside(runtime, code, tmp_path / "log")
    assert outcome.exit_code == 0
    assert said in {f"{errno.EACCES}\n", f"{errno.EPERM}\n"}


WRITES = """
for folder in ('/tmp', '/dev/shm', '/rapha/out'):
    os.chdir(folder)
    os.makedirs('a/b')
    open('a/x', 'w').write('12345')
    os.truncate('a/x', 2)
    os.symlink('x', 'a/link')
    os.mkfifo('a/fifo')
    listener = socket.socket(socket.AF_UNIX)
    listener.bind('a/socket')
    os.rename('a/x', 'x') if refer else os.rename('a/x', 'a/y')
    for name in os.listdir('a'):
        os.rmdir('a/b') if name == 'b' else os.unlink('a/' + name)
    os.rmdir('a')
open('/dev/null', 'w').write('gone')
open('/dev/stdout', 'w').write('through a pipe\\n')
child = os.fork()
if child == 0:
    signal.pause()
os.kill(child, signal.SIGTERM)
assert os.waitpid(child, 0)[1] == signal.SIGTERM
abstract = socket.socket(socket.AF_UNIX)
abstract.bind(chr(0) + 'workers')
abstract.listen()
socket.socket(socket.AF_UNIX).connect(chr(0) + 'workers')
"""


def test_what_a_job_needs_is_left(runtime: PythonRuntime, tmp_path: Path) -> None:
    outcome, said = inside(runtime, f"refer = {ABI >= 2}{WRITES}", tmp_path / "log")
    assert (outcome.exit_code, said) == (0, "through a pipe\n")


NARROWER = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
rights = ctypes.c_uint64(1 << 2)
ruleset = libc.syscall(444, ctypes.byref(rights), ctypes.c_size_t(8), 0)
assert ruleset >= 0 and libc.syscall(446, ruleset, 0) == 0
try:
    open('/rapha/python/bin/python3', 'rb')
except PermissionError:
    print('narrower')
"""


def test_a_job_can_only_narrow_itself(runtime: PythonRuntime, tmp_path: Path) -> None:
    assert inside(runtime, NARROWER, tmp_path / "log")[1] == "narrower\n"


LEFT = """
print(sorted(map(int, os.listdir('/proc/self/fd')))[:-1], 'LC_ALL' in os.environ)
print([line.split()[1] for line in open('/proc/self/status') if line.startswith('SigIgn')])
"""


def test_the_wrapper_leaves_nothing_of_itself(runtime: PythonRuntime, tmp_path: Path) -> None:
    argv = ("/bin/sh", "-c", "exec cat /proc/self/status")
    mounts = runtime.mounts
    spec = Spec(argv, mounts, runtime.env, "/tmp", Limits(wall_s=20), log=tmp_path / "log")
    assert Bubblewrap().start(spec).wait().exit_code == 127  # no shell in the runtime
    _, said = inside(runtime, LEFT, tmp_path / "log")
    descriptors, ignored = said.splitlines()
    assert descriptors == "[0, 1, 2] False"
    own = 1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1)
    own |= 3 << 31  # 32 and 33 are the C library's, which lets nobody set them; who ran this test may have
    assert int(ignored.strip("[]'"), 16) & ~own == 0  # Python's own, set again by the command


@pytest.fixture
def distribution(tmp_path: Path) -> Iterator[Path]:
    """A root of another make: a shell and its libraries, mount points, no Python; and a hostile preload."""
    root = tmp_path / "root"
    for name in ("proc", "dev", "tmp", "etc", "bin", "rapha/in", "rapha/out", "rapha/lib", "rapha/node"):
        (root / name).mkdir(parents=True)
    for program in ("/bin/sh", "/bin/cat"):
        if not Path(program).is_file():
            pytest.skip(f"no {program} here")
        shutil.copy(program, root / "bin")
    for library in _needed():
        (root / library[1:]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, root / library[1:])
    yield root


def _needed() -> list[str]:
    lines = subprocess.run(["ldd", "/bin/sh", "/bin/cat"], capture_output=True, text=True, check=True).stdout
    return sorted({word for word in lines.split() if word.startswith("/") and not word.endswith(":")})


def test_a_root_without_python_has_the_wall_too(distribution: Path, tmp_path: Path) -> None:
    argv = ("sh", "-c", "echo fine; echo x > /tmp/x && cat /tmp/x; echo x > /dev/full || echo denied")
    outcome = in_root(distribution, argv, tmp_path / "log", {"PATH": "/bin"})
    said = (tmp_path / "log").read_text().splitlines()
    assert outcome.walls["landlock"] == landlock.describe(ABI)
    assert [line for line in said if "Permission denied" not in line] == ["fine", "x", "denied"]
    assert len(said) == 4


def in_root(root: Path, argv: tuple[str, ...], log: Path, env: dict[str, str]) -> Outcome:
    return Bubblewrap().start(Spec(argv, (), env, "/", Limits(wall_s=20), log=log, root=root)).wait()


@pytest.mark.parametrize("by", ["environment", "file"])
def test_nothing_of_the_root_runs_before_the_wall(by: str, distribution: Path, tmp_path: Path) -> None:
    library = distribution / "tmp.so"
    library.write_bytes(b"not a library")  # the loader says so, in each process that it would preload it into
    env = {"PATH": "/bin"}
    if by == "environment":
        env["LD_PRELOAD"] = "/tmp.so"
    else:
        (distribution / "etc/ld.so.preload").write_text("/tmp.so\n")
    outcome = in_root(distribution, ("sh", "-c", ":"), tmp_path / "log", env)
    assert outcome.ending is Ending.exited, outcome
    assert (tmp_path / "log").read_text().count("cannot be preloaded") == 1  # in the shell alone


@pytest.mark.parametrize(
    ("argv", "code"), [(("nosuch",), 127), (("/nosuch/x",), 127), (("/etc",), 127), (("/etc/text",), 127)]
)
def test_what_cannot_be_executed_did_not_start(
    argv: tuple[str, ...], code: int, distribution: Path, tmp_path: Path
) -> None:
    (distribution / "etc/text").write_text("no program")
    outcome = in_root(distribution, argv, tmp_path / "log", {"PATH": "/bin:/sbin"})
    assert (outcome.ending, outcome.exit_code) == (Ending.failed_to_start, code)
    assert f"execvp {argv[0]}" in outcome.detail


def test_a_script_without_a_first_line_is_the_shells(distribution: Path, tmp_path: Path) -> None:
    script = distribution / "bin/hello"
    script.write_text("echo hello $1\n")
    script.chmod(0o755)
    in_root(distribution, ("hello", "you"), tmp_path / "log", {"PATH": "/bin"})
    assert (tmp_path / "log").read_text() == "hello you\n"


SIXTEEN = """
import ctypes, json
from rapha.runtime.sandbox.bubblewrap import Bubblewrap
from rapha.runtime.sandbox.interface import Limits, Spec
from rapha.runtime.sandbox.launcher import landlock
from rapha.runtime.sandbox.pyruntime import PythonRuntime
for _ in range(16):  # as many domains as the kernel stacks
    landlock.restrict(landlock.abi(), landlock.Rights(0, 3, 0))
runtime = PythonRuntime.discover(())
spec = Spec((runtime.python, '-c', "print('ran')"), runtime.mounts, runtime.env, '/', Limits())
outcome = Bubblewrap().start(spec).wait()
print(json.dumps([outcome.ending, outcome.exit_code, outcome.walls.get('landlock'), outcome.detail]))
"""


@pytest.mark.skipif(ABI < 4, reason="needs domains that leave mounting possible")
def test_a_wall_that_the_kernel_has_and_does_not_build_stops_the_start() -> None:
    done = subprocess.run([sys.executable, "-c", SIXTEEN], capture_output=True, text=True, check=True)
    ending, code, wall, detail = json.loads(done.stdout)
    assert (ending, code, wall) == ("failed_to_start", 125, None)
    assert "Argument list too long" in detail
