import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapha.runtime.sandbox import program, start
from rapha.runtime.sandbox.interface import Ending, Outcome
from rapha.runtime.sandbox.launcher import cgroup, observe, stage, tree
from rapha.runtime.sandbox.launcher.order import Report, encode, read_order, read_report
from rapha.runtime.sandbox.launcher.sink import Sink
from rapha.spec.refusals import Refused

REPORT = Report("exited", 0, 1.5, 0.5, 1024, {"limits": "rlimits"}, ["x: FIFO"], [["a", 1, "00"]], "said")


def test_a_report_survives_the_pipe() -> None:
    assert read_report(encode(REPORT)) == REPORT


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"null", b'{"ending": "exited"}', b"{", b"\xff"])
def test_half_a_message_is_no_message(data: bytes) -> None:
    for read in (read_report, read_order):
        with pytest.raises((ValueError, TypeError)):
            read(data)


def test_the_launcher_imports_only_the_standard_librarys_light_half() -> None:
    code = "import sys, rapha.runtime.sandbox.launcher.__main__; print(*sys.modules)"
    env = {"PYTHONPATH": str(Path(start.__file__).parents[3])}
    loaded = subprocess.run(
        [sys.executable, "-S", "-s", "-P", "-c", code], env=env, capture_output=True, text=True
    )
    modules = set(loaded.stdout.split())
    assert "rapha.runtime.sandbox.launcher.supervise" in modules
    heavy = {"dataclasses", "inspect", "pathlib", "subprocess", "asyncio", "threading", "logging", "tempfile"}
    assert not modules & (heavy | {"pydantic", "numpy", "rapha.spec", "rapha.evidence"})


def test_output_is_kept_to_the_cap_and_then_dropped(tmp_path: Path) -> None:
    log = tmp_path / "log"
    fd = os.open(log, os.O_WRONLY | os.O_CREAT)
    sink = Sink(fd, 10, terminal=False)
    for stream, data in ((1, b"12345"), (2, b"6789"), (1, b"abcdef"), (2, b"more")):
        sink.take(data, stream)
    os.close(fd)
    assert log.read_bytes() == b"123456789a"
    assert sink.head == b"6789more"


@given(st.lists(st.binary(max_size=50), max_size=20), st.integers(1, 200))
def test_the_cap_holds_whatever_comes(parts: list[bytes], cap: int) -> None:
    reader, writer = os.pipe()
    sink = Sink(writer, cap, terminal=False)
    for part in parts:
        sink.take(part, 1)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        assert file.read() == b"".join(parts)[:cap]


def test_a_process_tree_is_found_measured_and_ended() -> None:
    # The root's own memory does not count, nor what other tests have running: only what is below it.
    code = (
        "import os, time\nif os.fork() == 0:\n    b = b'x' * (32 << 20)\n    os.fork()\n"
        "    print(flush=True)\ntime.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() + child.stdout.readline() == b"\n\n"
        below = tree.descendants(child.pid)
        assert len(below) == 2
        twice = tree.memory_bytes(child.pid, 1 << 40)
        once = tree.memory_bytes(child.pid, 1)
        assert twice > 60 << 20
        assert 30 << 20 < once < 60 << 20
        tree.kill(child.pid)
        child.kill()
    assert tree.descendants(os.getpid()).count(child.pid) == 0


def test_the_dead_hold_nothing() -> None:
    assert tree.memory_bytes(2**22 + 1, 0) == tree.Times().cpu_s([2**22 + 1]) == 0
    assert tree.status(2**22 + 1) == {}
    assert tree.descendants(2**22 + 1) == []
    assert tree.socket_bytes(2**22 + 1) == 0


def test_this_kernel_can_be_walked() -> None:
    assert tree.can_walk()


def test_walls_are_not_claimed_before_the_filter_is_there() -> None:
    assert observe.walls(2**22 + 1, 0) == {}


STATUS = {"Seccomp": "2", "NoNewPrivs": "1", "Uid": "7\t7\t7\t7", "Groups": ""} | {
    f"Cap{kind}": "0" * 16 for kind in ("Prm", "Eff", "Bnd", "Inh", "Amb")
}


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A process as /proc would show it, behind every wall."""
    status = dict(STATUS)
    monkeypatch.setattr(tree, "status", lambda _: status)
    monkeypatch.setattr(tree, "namespace", lambda pid, kind: f"{pid}{kind}")
    return status


def test_every_wall_is_named_when_it_holds(inside: dict[str, str]) -> None:
    held = observe.walls(5, 7)
    assert set(held) == {"namespaces", "no_new_privs", "capabilities", "seccomp"}
    assert set(held["namespaces"].split(",")) == set(observe.NAMESPACES)


@pytest.mark.parametrize(
    "broken",
    [
        {"NoNewPrivs": "0"},
        {"CapEff": "0000000000200000"},
        {"CapBnd": "000001ffffffffff"},
        {"CapAmb": "0000000000000001"},
        {"Uid": "0\t0\t0\t0"},
        {"Uid": "7\t7\t0\t7"},
        {"Groups": "0"},
    ],
)
def test_a_missing_wall_is_an_error(inside: dict[str, str], broken: dict[str, str]) -> None:
    inside.update(broken)
    with pytest.raises(observe.WallMissingError):
        observe.walls(5, 7)


def test_a_shared_namespace_is_an_error(inside: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "namespace", lambda pid, kind: kind if kind == "net" else f"{pid}{kind}")
    with pytest.raises(observe.WallMissingError, match="namespaces"):
        observe.walls(5, 7)


def test_a_cgroup_of_version_2_is_limited_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "_parents", lambda: [(cgroup._V2, [str(tmp_path)])])
    real = os.mkdir

    def mkdir(path: str, mode: int) -> None:  # as a kernel with both controllers enabled would
        real(path, mode)
        for name in ("memory.max", "memory.swap.max", "pids.max", "cgroup.procs"):
            (Path(path) / name).touch()

    monkeypatch.setattr("os.mkdir", mkdir)
    group = cgroup.make(1 << 30, 64)
    assert group is not None
    folder = Path(group.paths[0])
    assert group.mechanism == "cgroup-v2(memory,pids)"
    assert (folder / "memory.max").read_text() == str(1 << 30)
    assert (folder / "memory.swap.max").read_text() == "0"
    group.enter(77)
    assert (folder / "cgroup.procs").read_text() == "77"
    (folder / "memory.events").write_text("oom 0\noom_kill 0\n")
    assert not group.killed_for_memory()
    (folder / "memory.events").write_text("oom 3\noom_kill 1\n")
    (folder / "memory.peak").write_text("4096\n")
    assert (group.killed_for_memory(), group.peak()) == (True, 4096)


def test_a_cgroup_that_limits_no_memory_is_not_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroup, "_parents", lambda: [(cgroup._V2, [str(tmp_path), "/nowhere"])])
    assert cgroup.make(1 << 30, 64) is None
    assert list(tmp_path.iterdir()) == []


def test_groups_of_dead_launchers_are_removed_and_of_live_ones_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroup, "_parents", lambda: [(cgroup._V2, [str(tmp_path)])])
    (tmp_path / f"{cgroup.PREFIX}{2**22 + 1}").mkdir()
    (tmp_path / f"{cgroup.PREFIX}1").mkdir()
    cgroup.make(1 << 30, 64)
    assert [folder.name for folder in tmp_path.iterdir()] == [f"{cgroup.PREFIX}1"]


@pytest.mark.parametrize(
    ("table", "uid"),
    [
        ("0 0 4294967295", stage._SPARE_UIDS + os.getpid()),
        ("0 100000 65536", 65534),
        ("0 5 1\n65534 9 1", 65534),
    ],
)
def test_the_uid_is_one_that_this_namespace_maps(
    table: str, uid: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "uid_map").write_text(table)
    monkeypatch.setattr(stage, "_UID_MAP", str(tmp_path / "uid_map"))
    assert stage._spare_uid() == uid


def test_a_namespace_with_root_alone_has_no_uid_to_spare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "uid_map").write_text("0 1000 1")
    monkeypatch.setattr(stage, "_UID_MAP", str(tmp_path / "uid_map"))
    with pytest.raises(stage.StageError):
        stage._spare_uid()


def outcome(detail: str) -> Outcome:
    return Outcome(Ending.failed_to_start, 125, 0.0, 0.0, 0, {}, detail=detail)


@pytest.mark.parametrize("at", range(3))
def test_a_setting_that_forbids_is_named_with_its_fix(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    setting, forbids, fix = start._SYSCTLS[at]
    monkeypatch.setattr(start, "_sysctl", lambda asked: forbids if asked == setting else "")
    assert f"sysctl -w {fix}" in start.unavailable(outcome("bwrap: No permissions"))


def test_a_failure_of_namespaces_says_what_to_allow() -> None:
    said = start.unavailable(outcome("bwrap: Creating new namespace failed: Operation not permitted"))
    assert "user.max_user_namespaces" in said


def test_a_configured_program_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused) as refused:
        program.Program.find(tmp_path / "bwrap")
    assert refused.value.code == "node.sandbox_unavailable"


def test_no_program_at_all_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(Refused) as refused:
        program.Program.find()
    assert "bubblewrap" in refused.value.detail


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("MemTotal: 3200 kB\nMemAvailable: 100 kB\n", False),
        ("MemTotal: 3200 kB\nMemAvailable: 99 kB\n", True),
        ("MemTotal: 3200 kB\n", False),
        ("", False),
    ],
)
def test_a_host_without_memory_to_spare_is_seen(
    monkeypatch: pytest.MonkeyPatch, text: str, short: bool
) -> None:
    monkeypatch.setattr(tree, "_read", lambda path: text)
    assert tree.host_is_short() is short
