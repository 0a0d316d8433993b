"""What a job may use, what it leaves, and how it dies."""

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rapha.runtime.sandbox import start as starting
from rapha.runtime.sandbox.bubblewrap import Bubblewrap
from rapha.runtime.sandbox.interface import Ending, Limits, Mount, Outcome, Running, Spec
from rapha.runtime.sandbox.launcher import cgroup, tree
from rapha.runtime.sandbox.pyruntime import PythonRuntime
from rapha.spec.refusals import Refused

MIB = 1 << 20


@pytest.fixture(scope="module")
def runtime() -> PythonRuntime:
    return PythonRuntime.discover(())


Start = Callable[..., Running]


@pytest.fixture
def start(runtime: PythonRuntime, tmp_path: Path) -> Start:
    def begin(code: str, out: Path | None = None, cwd: str = "/tmp", **limits: float) -> Running:
        given = Limits(**{"wall_s": 20, "memory_bytes": 256 * MIB, **limits})  # type: ignore[arg-type]
        argv = (runtime.python, "-c", f"import os, signal, sys, time\n{code}")
        return Bubblewrap().start(
            Spec(argv, runtime.mounts, runtime.env, cwd, given, out=out, log=tmp_path / "log")
        )

    return begin


def said(folder: Path) -> str:
    return (folder / "log").read_text()


def until(condition: Callable[[], bool]) -> None:
    """Wait for what must come; fails rather than hangs."""
    give_up = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def alive(pid: int) -> bool:
    return tree.status(pid).get("State", "X")[0] not in "ZX"


@pytest.mark.parametrize("code", [0, 1, 7, 124, 137, 255])
def test_the_exit_code_is_the_commands(start: Start, code: int) -> None:
    outcome = start(f"os._exit({code})").wait()
    assert (outcome.ending, outcome.exit_code) == (Ending.exited, code)


def test_a_command_that_a_signal_ends_has_exited(start: Start) -> None:
    outcome = start("os.kill(os.getpid(), signal.SIGTERM)").wait()
    assert (outcome.ending, outcome.exit_code) == (Ending.exited, 128 + signal.SIGTERM)


@pytest.mark.parametrize(
    "code",
    [
        "time.sleep(60)",
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)",
        "os.kill(os.getpid(), signal.SIGSTOP)",
        "os.fork() and time.sleep(60); os.setsid(); time.sleep(60)",
        "while True: os.write(1, b'x' * 65536)",
    ],
)
def test_the_wall_clock_ends_it(start: Start, code: str) -> None:
    outcome = start(code, wall_s=0.5).wait()
    assert (outcome.ending, outcome.exit_code) == (Ending.timeout, 124)


def test_cpu_time_is_summed_over_processes(start: Start) -> None:
    outcome = start("for _ in range(2): os.fork()\nwhile True: pass", cpu_s=1).wait()
    assert (outcome.ending, outcome.exit_code) == (Ending.timeout, 124)


HOGS = {
    "one process": "x = [bytearray(os.urandom(1024) * 1024) for _ in range(1024)]",
    "children": """
for _ in range(4):
    if os.fork() == 0:
        x = bytearray(os.urandom(1024) * 1024 * 100)
        time.sleep(60)
time.sleep(60)""",
    "tmpfs": """
for name in ('/tmp/x', '/dev/shm/x', '/rapha/out/x'):
    with open(name, 'wb') as file:
        for _ in range(120):
            file.write(bytes(1 << 20))
time.sleep(60)""",
    "in another session": """
if os.fork() == 0:
    os.setsid()
    x = bytearray(os.urandom(1024) * 1024 * 400)
time.sleep(60)""",
}

KERNEL_HOGS = {
    "socket buffers": """
import socket
held = []
for _ in range(4):
    if os.fork() == 0:
        try:
            while True:
                pair = socket.socketpair()
                held.append(pair)
                for end in pair:
                    end.setblocking(False)
                    try:
                        while True: end.send(bytes(1 << 16))
                    except BlockingIOError: pass
        except OSError: time.sleep(60)
time.sleep(60)""",
    "messages of closed sockets": """
import socket
held = []
for _ in range(1000):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    theirs.send(bytes(200_000))
    theirs.close()
    held.append(ours)
time.sleep(60)""",
}
"""Memory that no process maps."""


@pytest.mark.parametrize("code", KERNEL_HOGS.values(), ids=KERNEL_HOGS)
def test_what_sockets_hold_is_counted(start: Start, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _without_cgroup(monkeypatch)
    outcome = start(code, open_files=2000).wait()
    assert (outcome.ending, outcome.exit_code) == (Ending.memory, 137)


def test_a_socket_can_not_hold_more_than_the_default(start: Start, tmp_path: Path) -> None:
    code = """
import socket
end = socket.socketpair()[0]
end.settimeout(1)
end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
try: end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 24)
except PermissionError: print('refused')"""
    start(code).wait()
    assert said(tmp_path) == "refused\n"


def test_a_few_sockets_cost_little(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    _without_cgroup(monkeypatch)
    code = "import socket\nheld = [socket.socketpair() for _ in range(20)]\ntime.sleep(0.3)"
    assert start(code, memory_bytes=128 * MIB).wait().ending is Ending.exited


@pytest.mark.parametrize("code", HOGS.values(), ids=HOGS)
def test_memory_is_summed_over_processes_and_tmpfs(start: Start, code: str) -> None:
    outcome = start(code, tmp_bytes=128 * MIB, out_bytes=128 * MIB).wait()
    assert (outcome.ending, outcome.exit_code) == (Ending.memory, 137)


@pytest.mark.parametrize("code", HOGS.values(), ids=HOGS)
def test_the_supervisor_alone_is_enough(start: Start, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The launcher is another process: give it a larger kernel limit than the one that it supervises.
    _without_cgroup(monkeypatch)
    outcome = start(code, tmp_bytes=128 * MIB, out_bytes=128 * MIB).wait()
    assert (outcome.ending, outcome.exit_code) == (Ending.memory, 137)
    assert outcome.walls["limits"] == "supervisor, rlimits"


def _without_cgroup(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start launchers on a host that offers no cgroup."""
    run = "import sys; from rapha.runtime.sandbox.launcher import __main__ as launcher, cgroup"
    run += "; cgroup._parents = lambda: []; sys.exit(launcher.main())"
    monkeypatch.setattr(starting, "_LAUNCHER", ("-c", run))


def test_pages_that_a_fork_shares_are_counted_once(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    _without_cgroup(monkeypatch)
    code = """
x = bytearray(os.urandom(1024) * 1024 * 100)
children = [os.fork() or (time.sleep(0.4), os._exit(0)) for _ in range(4)]
for _ in children: os.wait()"""
    assert start(code).wait().ending is Ending.exited


def test_a_fork_bomb_is_bounded(start: Start, tmp_path: Path) -> None:
    code = """
born = 0
try:
    while True:
        if os.fork() == 0: time.sleep(60)
        born += 1
except OSError as error:
    print(born, error)"""
    outcome = start(code, processes=40).wait()
    assert outcome.ending is Ending.exited
    assert "Resource temporarily unavailable" in said(tmp_path)
    assert int(said(tmp_path).split()[0]) <= 40


@pytest.mark.parametrize("place", ["/tmp", "/dev/shm", "/rapha/out"])
def test_a_tmpfs_can_be_filled_with_neither_bytes_nor_files(start: Start, place: str, tmp_path: Path) -> None:
    code = f"""
import errno
for attempt in ('bytes', 'files'):
    try:
        for n in range(10000):
            with open(f'{place}/{{attempt if attempt == "bytes" else n}}', 'ab') as file:
                file.write(bytes(1 << 20 if attempt == 'bytes' else 0))
    except OSError as error:
        print(attempt, error.errno in (errno.ENOSPC, errno.EFBIG))"""
    start(code, tmp_bytes=8 * MIB, out_bytes=8 * MIB).wait()
    assert said(tmp_path) == "bytes True\nfiles True\n"


def test_open_files_core_files_and_locked_memory_are_bounded(start: Start, tmp_path: Path) -> None:
    code = """
import resource
kinds = (resource.RLIMIT_NOFILE, resource.RLIMIT_CORE, resource.RLIMIT_MSGQUEUE)
print(*[resource.getrlimit(kind)[1] for kind in kinds])
try: resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
except ValueError: print('not raised')"""
    start(code, open_files=64).wait()
    assert said(tmp_path) == "64 0 0\nnot raised\n"


def test_the_log_is_capped_and_the_job_goes_on(start: Start, tmp_path: Path) -> None:
    outcome = start("for _ in range(64): os.write(1, b'x' * 65536)\nos._exit(5)", log_bytes=1000).wait()
    assert outcome.exit_code == 5
    assert said(tmp_path) == "x" * 1000
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


def test_outputs_are_copied_and_the_rest_is_named(start: Start, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    code = """
import socket
os.chdir('/rapha/out')
open('model.safetensors', 'wb').write(b'w' * 100000)
os.symlink('/etc/passwd', 'link'); os.mkfifo('fifo'); os.mkdir('folder'); open('folder/x', 'w').write('x')
open('one', 'w').write('1'); os.link('one', 'two'); open('bad\\n', 'w')
open('sparse', 'wb').truncate(1 << 20); socket.socket(socket.AF_UNIX).bind('socket')
os.chmod('.', 0)"""
    outcome = start(code, out=out).wait()
    assert [(o.name, o.size) for o in outcome.outputs] == [("model.safetensors", 100000)]
    assert outcome.outputs[0].sha256 == hashlib.sha256(b"w" * 100000).hexdigest()
    assert [file.name for file in out.iterdir()] == ["model.safetensors"]
    named = {line.partition(": ")[0] for line in outcome.anomalies}
    assert named == {"link", "fifo", "folder", "one", "two", "bad\\n", "sparse", "socket"}


def test_a_background_process_can_not_write_outputs_while_they_are_read(start: Start, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    code = """
ready, go = os.pipe()
if os.fork() == 0:
    os.setsid()
    os.write(go, b'x')
    while True:
        with open('/rapha/out/f', 'wb') as file: file.write(os.urandom(4096))
os.read(ready, 1)
time.sleep(0.1)"""
    outcome = start(code, out=out).wait()
    assert outcome.ending is Ending.exited
    for output in outcome.outputs:
        assert hashlib.sha256((out / output.name).read_bytes()).hexdigest() == output.sha256


@pytest.mark.parametrize("how", ["timeout", "killed"])
def test_nothing_is_collected_from_a_run_that_was_ended(start: Start, how: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    running = start(
        "open('/rapha/out/x', 'w').write('x'); print('left', flush=True); time.sleep(60)",
        out=out,
        wall_s=1 if how == "timeout" else 20,
    )
    if how == "killed":
        until(lambda: said(tmp_path) == "left\n")
        running.kill()
        running.kill()
    outcome = running.wait()
    assert outcome == running.wait()
    assert (outcome.ending.value, outcome.outputs, list(out.iterdir())) == (how, (), [])
    running.kill()


def test_no_process_outlives_the_wait(start: Start, tmp_path: Path) -> None:
    running = start("[os.fork() for _ in range(3)]; os.setsid(); print('up', flush=True); time.sleep(60)")
    until(lambda: said(tmp_path).count("up") == 8 or not alive(running.pid))
    below = tree.descendants(running.pid)
    assert len(below) >= 8
    running.kill()
    running.wait()
    assert not any(alive(pid) for pid in [running.pid, *below])


NODE = """
import sys, threading, time
from rapha.runtime.sandbox.bubblewrap import Bubblewrap
from rapha.runtime.sandbox.interface import Limits, Spec
from rapha.runtime.sandbox.pyruntime import PythonRuntime
runtime = PythonRuntime.discover(())
code = "import os, time; [os.fork() for _ in range(2)]; os.setsid(); time.sleep(60)"
started = []
def begin():
    spec = Spec((runtime.python, "-c", code), runtime.mounts, runtime.env, "/tmp", Limits())
    started.append(Bubblewrap().start(spec))
thread = threading.Thread(target=begin)
thread.start()
thread.join()
print(started[0].pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("victim", ["node", "launcher"])
def test_sigkill_of_the_node_or_of_the_launcher_ends_everything(victim: str) -> None:
    with subprocess.Popen([sys.executable, "-c", NODE], stdout=subprocess.PIPE, text=True) as node:
        assert node.stdout is not None
        launcher = int(node.stdout.readline())
        # monitor, init, and the four; and the thread that called start is gone without ending them
        until(lambda: len(tree.descendants(launcher)) >= 6)
        below = tree.descendants(launcher)
        os.kill(node.pid if victim == "node" else launcher, signal.SIGKILL)
        until(lambda: not any(map(alive, [launcher, *below])))
        node.kill()


def test_a_lost_supervisor_is_a_refusal_and_not_an_outcome(start: Start) -> None:
    running = start("time.sleep(60)")
    os.kill(running.pid, signal.SIGKILL)
    with pytest.raises(Refused) as refused:
        running.wait()
    assert refused.value.code == "node.internal"


def test_no_cgroup_is_left_behind(start: Start) -> None:
    start("pass").wait()
    for _, parents in cgroup._parents():
        for parent in parents:
            with contextlib.suppress(OSError):
                names = [
                    entry.name for entry in Path(parent).iterdir() if entry.name.startswith(cgroup.PREFIX)
                ]
                assert all(alive(int(name.removeprefix(cgroup.PREFIX))) for name in names)


def test_two_sandboxes_do_not_see_each_other(start: Start, tmp_path: Path) -> None:
    first = start("open('/tmp/x', 'w').write('1'); time.sleep(60)")
    second = start(
        "print(os.listdir('/tmp'), [p for p in os.listdir('/proc') if p.isdigit() and int(p) > 2])"
    )
    second.wait()
    assert said(tmp_path) == "[] []\n"
    first.kill()
    first.wait()


def run(spec: Spec) -> Outcome:
    return Bubblewrap().start(spec).wait()


def test_a_command_that_is_not_there_did_not_start(runtime: PythonRuntime) -> None:
    outcome = run(Spec(("nosuch",), runtime.mounts, runtime.env, "/tmp", Limits()))
    assert (outcome.ending, outcome.exit_code) == (Ending.failed_to_start, 127)
    assert "nosuch" in outcome.detail


def test_a_folder_that_is_not_there_is_no_place_to_start_in(runtime: PythonRuntime) -> None:
    outcome = run(Spec((runtime.python,), runtime.mounts, runtime.env, "/nosuch", Limits()))
    assert (outcome.ending, outcome.exit_code) == (Ending.failed_to_start, 125)


def test_sources_and_places_of_no_use_are_refused(runtime: PythonRuntime, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "x").touch()
    link = tmp_path / "link"
    link.symlink_to(full / "x")
    absent = tmp_path / "absent"
    for mounts, out, log in (
        ((Mount(absent, "/app"),), None, None),
        ((), full, None),
        ((), absent, None),
        ((), full / "x", None),
        ((), None, link),
        ((), None, absent / "log"),
    ):
        with pytest.raises(Refused) as refused:
            run(Spec(("python3",), mounts, {}, "/tmp", Limits(), out=out, log=log))
        assert refused.value.code == "node.config"


def test_a_program_that_is_no_bubblewrap_makes_no_sandbox(runtime: PythonRuntime) -> None:
    with pytest.raises(Refused) as refused:
        Bubblewrap(Path("/bin/true")).check()
    assert refused.value.code == "node.sandbox_unavailable"


def test_the_callers_descriptors_are_closed_again(start: Start) -> None:
    start("pass").wait()
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  a count
    start("pass").wait()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
