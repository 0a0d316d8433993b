"""What a hostile review did to the walls, kept: each of these once got through."""

import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from rapha.runtime.sandbox import start as starting
from rapha.runtime.sandbox.bubblewrap import Bubblewrap
from rapha.runtime.sandbox.interface import Ending, Limits, Outcome, Spec
from rapha.runtime.sandbox.launcher import interpreter, landlock, tree
from rapha.runtime.sandbox.pyruntime import PythonRuntime

MIB = 1 << 20
NO_CGROUP = "cgroup._parents = lambda: []"
NO_LANDLOCK = "landlock.abi = lambda: 0"


def on_a_host(monkeypatch: pytest.MonkeyPatch, lacking: str) -> None:
    """Start launchers on a host without something."""
    run = "import sys; from rapha.runtime.sandbox.launcher import __main__ as launcher, cgroup, landlock"
    monkeypatch.setattr(starting, "_LAUNCHER", ("-c", f"{run}; {lacking}; sys.exit(launcher.main())"))


Run = Callable[..., tuple[Outcome, str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    runtime = PythonRuntime.discover(())

    def begin(code: str, **limits: float) -> tuple[Outcome, str]:
        given = Limits(**{"wall_s": 20, "memory_bytes": 256 * MIB, **limits})  # type: ignore[arg-type]
        argv = (runtime.python, "-c", f"import os, signal, time\n{code}")
        log = tmp_path / "log"
        spec = Spec(argv, runtime.mounts, runtime.env, "/tmp", given, log=log)
        return Bubblewrap().start(spec).wait(), log.read_text()

    return begin


def shadow_by_zip(node: Path) -> None:
    """The first place that Python looks for its library in."""
    version = f"{sys.version_info.major}{sys.version_info.minor}"
    with zipfile.ZipFile(node / f"python/{sys.platlibdir}/python{version}.zip", "w") as file:
        file.writestr("encodings/__init__.py", "raise SystemExit(99)")


def shadow_by_configuration(node: Path) -> None:
    (node / "python/pyvenv.cfg").write_text("home = /hostile\n")
    (node / "python/bin/python3._pth").write_text("/hostile\n")


def shadow_by_processor(node: Path) -> None:
    """Where a loader looks before the folder that it is told of."""
    for level in ("x86-64-v2", "x86-64-v3", "x86-64-v4"):
        folder = node / f"lib/glibc-hwcaps/{level}"
        folder.mkdir(parents=True)
        (folder / "libc.so.6").write_bytes(b"not a library")


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """A root with a shell, and a place for each part of the node's interpreter, as an image may have."""
    root = tmp_path / "root"
    for name in ("proc", "dev", "tmp", "bin", "rapha/in", "rapha/out", "rapha/lib"):
        (root / name).mkdir(parents=True)
    lines = subprocess.run(["ldd", "/bin/sh"], capture_output=True, text=True, check=True).stdout
    needed = {word for word in lines.split() if word.startswith("/") and not word.endswith(":")}
    for file in ("/bin/sh", *needed):
        (root / file[1:]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, root / file[1:])
    for source, dest in [*interpreter.parts(), ("/bin/sh", interpreter.LOADER)]:
        folder = not source or Path(source).is_dir()
        (root / dest[1:] if folder else (root / dest[1:]).parent).mkdir(parents=True, exist_ok=True)
        if not folder:
            (root / dest[1:]).touch()
    return root


@pytest.mark.parametrize("shadow", [shadow_by_zip, shadow_by_configuration, shadow_by_processor])
def test_nothing_that_a_root_has_beside_the_nodes_python_runs_before_the_wall(
    shadow: Callable[[Path], None], prepared: Path, tmp_path: Path
) -> None:
    shadow(prepared / interpreter.HOME[1:])
    argv = (
        "sh",
        "-c",
        "exec 2> /dev/null; echo ran; cd /rapha/node/python && echo *; echo x > /dev/full || echo held",
    )
    limits = Limits(wall_s=20)
    spec = Spec(argv, (), {"PATH": "/bin"}, "/", limits, log=tmp_path / "log", root=prepared)
    outcome = Bubblewrap().start(spec).wait()
    said = (tmp_path / "log").read_text().splitlines()
    assert outcome.walls["landlock"] == landlock.describe(landlock.abi())
    assert said[:2] == ["ran", f"bin {sys.platlibdir}"]
    assert "held" in said


UNWAITED = """
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # then their time is added to nobody's
while True:
    if os.fork() == 0:
        began = time.monotonic()
        while time.monotonic() < began + {lifetime}: pass
        os._exit(0)
    try:
        os.wait()
    except ChildProcessError:
        pass
"""


def test_the_time_of_children_that_nobody_waits_for_counts(run: Run) -> None:
    outcome, _ = run(UNWAITED.format(lifetime=0.01), wall_s=10, cpu_s=1)
    if "cgroup" not in outcome.walls["limits"]:
        pytest.skip("no cgroup here, and these live too shortly for the supervisor alone")
    assert (outcome.ending, outcome.exit_code) == (Ending.timeout, 124)
    assert 1 <= outcome.cpu_s < 5
    assert outcome.wall_s < 9


def test_the_supervisor_keeps_the_time_of_what_has_ended(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_host(monkeypatch, NO_CGROUP)
    outcome, _ = run(UNWAITED.format(lifetime=0.2), wall_s=15, cpu_s=1)
    assert outcome.ending is Ending.timeout
    assert outcome.wall_s < 14


HOPPER = """
import ctypes, mmap
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for _ in range(150):  # a crowd, so that to count it takes longer than a hop
    if os.fork() == 0:
        signal.pause()
if os.fork() == 0:
    held = mmap.mmap(-1, 768 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    held.madvise(14)  # huge pages: then a fork is quick
    ends, at = time.monotonic() + 4, 0
    while time.monotonic() < ends:
        if at < len(held):
            held[at:at + (8 << 20)] = bytes(8 << 20)
            at += 8 << 20
        if os.fork():
            os._exit(0)
    os._exit(0)
time.sleep(5)
"""


def test_memory_that_moves_from_process_to_process_is_counted(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_host(monkeypatch, NO_CGROUP)
    outcome, _ = run(HOPPER)
    assert (outcome.ending, outcome.exit_code) == (Ending.memory, 137)


PIPES = """
for _ in range(100):
    if os.fork() == 0:
        try:
            while True:
                _, end = os.pipe()
                os.set_blocking(end, False)
                try:
                    while True: os.write(end, bytes(4096))
                except BlockingIOError: pass
        except OSError: time.sleep(5)
time.sleep(5)
"""


def test_what_pipes_hold_is_counted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_host(monkeypatch, NO_CGROUP)
    outcome, _ = run(PIPES)
    assert (outcome.ending, outcome.exit_code) == (Ending.memory, 137)


def test_a_few_pipes_cost_little(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_host(monkeypatch, NO_CGROUP)
    outcome, _ = run("held = [os.pipe() for _ in range(200)]\ntime.sleep(0.3)", memory_bytes=64 * MIB)
    assert outcome.ending is Ending.exited


def test_what_was_met_too_late_is_looked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def children(parent: int) -> list[int]:
        """One process, another at each look."""
        if parent != 1:
            return []
        seen.append(100 + len(seen))
        return seen[-1:]

    monkeypatch.setattr(tree, "_children", children)
    monkeypatch.setattr(tree, "_held", lambda pid: MIB if pid == 103 else 0)  # the others are gone
    assert tree.memory_bytes(1, MIB) == MIB
    assert seen == [100, 101, 102, 103]


def test_the_first_process_is_out_of_reach_without_landlock_too(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_host(monkeypatch, NO_LANDLOCK)
    outcome, said = run("print(os.listdir('/proc/1'), os.path.lexists('/proc/1/mem'), os.getppid())")
    assert outcome.walls["landlock"] == "none"
    assert said == "[] False 1\n"


def test_limits_hold_while_nobody_reads_the_output() -> None:
    flood = "import os\nwhile True: os.write(1, b'x' * 65536)"
    command = [
        sys.executable,
        "-m",
        "rapha",
        "sandbox",
        "run",
        "--timeout",
        "0.5",
        "--",
        "python3",
        "-c",
        flood,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(1) == b"x"
        give_up = time.monotonic() + 10
        while len(tree.descendants(process.pid)) > 1:  # the launcher alone waits, to hand on what was said
            assert time.monotonic() < give_up
            time.sleep(0.02)
        assert process.poll() is None
        _, said = process.communicate(timeout=20)
    assert (process.returncode, said) == (124, b"sandbox: timeout\n")


def test_who_waits_for_a_reader_can_be_killed(tmp_path: Path) -> None:
    runtime = PythonRuntime.discover(())
    argv = (runtime.python, "-c", "import os\nwhile True: os.write(1, b'x' * 65536)")
    reader, writer = os.pipe()
    kept = os.dup(1)
    os.dup2(writer, 1)  # what the launcher inherits
    try:
        limits = Limits(wall_s=0.5)
        spec = Spec(argv, runtime.mounts, runtime.env, "/tmp", limits, output_to_terminal=True)
        running = Bubblewrap().start(spec)
    finally:
        os.dup2(kept, 1)
    time.sleep(1.5)
    running.kill()
    outcome = running.wait()
    for fd in (reader, writer, kept):
        os.close(fd)
    assert outcome.ending is Ending.timeout
    assert outcome.wall_s < 1.4
