"""What the second driver is made of: the program's answers, the OCI spec, the root, what is counted."""

import errno
import importlib.util
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapha.runtime.sandbox import gvisor, seccomp, sources, start
from rapha.runtime.sandbox.gvisor import Gvisor, Runsc
from rapha.runtime.sandbox.interface import Limits, Spec
from rapha.runtime.sandbox.launcher import collect, oci, rootfs, sentry, system, tree
from rapha.runtime.sandbox.launcher.observe import NAMESPACES, WallMissingError
from rapha.runtime.sandbox.launcher.order import Order, Report, encode
from rapha.spec.refusals import Refused

TOOL = Path(__file__).parents[3] / "tools/gen_seccomp.py"
USAGE = "".join(
    f"  -{name}\n    \twhat it does\n"
    for name in ("rootless", "ignore-cgroups", "network", "oci-seccomp", "host-uds", "host-fifo")
)
PTRACE = (
    '  -platform value\n    \tspecifies which platform to use: ptrace (default), kvm. (default "ptrace")\n'
)
SYSTRAP = "  -platform value\n    \tspecifies which platform to use: systrap (default), ptrace, kvm.\n"
ORDER = Order(
    argv=["python3", "-c", "x"], env={"A": "b"}, cwd="/tmp", mounts=[], root="", bwrap="/bwrap", libraries="",
    seccomp='{"defaultAction": "SCMP_ACT_ERRNO"}', runsc=["/usr/bin/runsc", "-network=none"], parent=1,
    control=3, out=-1, log=-1, broker=-1, hold=-1, terminal=False, max_files=64,
    **{name: getattr(Limits(), name) for name in Limits.__slots__},
)  # fmt: skip


def program(folder: Path, usage: str, version: str = "runsc version release-20250101.0") -> Path:
    (folder / "usage").write_text(usage)
    path = folder / "runsc"
    path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "{version}" || cat {folder}/usage\n')
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def _forget() -> None:
    """Each stand-in is asked anew."""
    gvisor._ask.cache_clear()


@pytest.mark.parametrize(
    ("usage", "platform", "extra"),
    [
        (USAGE + PTRACE, "ptrace", set()),
        (USAGE + SYSTRAP, "systrap", set()),
        (
            USAGE + PTRACE + "  -overlay2 value\n  -directfs\n",
            "ptrace",
            {"-overlay2=none", "-directfs=false"},
        ),
    ],
)
def test_a_program_is_run_by_what_it_offers(
    usage: str, platform: str, extra: set[str], tmp_path: Path
) -> None:
    found = Runsc.find(program(tmp_path, usage))
    assert (found.version, found.platform) == ("release-20250101.0", platform)
    wanted = {
        "-rootless",
        "-ignore-cgroups",
        "-network=none",
        "-oci-seccomp",
        "-host-uds=none",
        "-host-fifo=none",
    }
    assert set(found.flags) == wanted | extra | {f"-platform={platform}"}


@pytest.mark.parametrize(
    "usage",
    [
        "",
        PTRACE,
        USAGE,
        USAGE + "  -platform value\n    \tspecifies which platform to use: kvm (default).\n",
        *(
            USAGE.replace(f"  -{name}\n", "  -other\n") + PTRACE
            for name in ("oci-seccomp", "network", "host-uds")
        ),
    ],
)
def test_a_program_without_a_wall_is_refused(usage: str, tmp_path: Path) -> None:
    with pytest.raises(Refused) as refused:
        Runsc.find(program(tmp_path, usage))
    assert refused.value.code == "node.sandbox_unavailable"
    assert "install" in refused.value.detail


def test_another_file_is_asked_again(tmp_path: Path) -> None:
    assert Runsc.find(program(tmp_path, USAGE + PTRACE)).platform == "ptrace"
    program(tmp_path, USAGE + SYSTRAP)
    os.utime(tmp_path / "runsc", (1, 1))
    assert Runsc.find(tmp_path / "runsc").platform == "systrap"


def test_no_program_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(Refused) as refused:
        Gvisor().start(Spec(("x",), (), {}, "/", Limits()))
    assert refused.value.code == "node.sandbox_unavailable"
    assert "install the package `runsc`" in refused.value.detail
    for useless in (tmp_path, tmp_path / "absent"):
        with pytest.raises(Refused):
            Gvisor(useless).check()


def test_a_program_that_does_not_answer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "runsc"
    path.write_text("#!/bin/sh\nexec sleep 60\n")
    path.chmod(0o755)
    monkeypatch.setattr(gvisor, "_ANSWER_S", 0.1)
    with pytest.raises(Refused):
        Runsc.find(path)


def test_the_spec_asks_for_every_wall() -> None:
    spec = json.loads(oci.config(ORDER, 65534))
    process = spec["process"]
    assert process["user"] == {"uid": 65534, "gid": 65534}
    assert (process["args"], process["env"], process["capabilities"]) == (ORDER.argv, ["A=b"], {})
    assert process["noNewPrivileges"] is True
    assert "terminal" not in process
    assert spec["linux"]["seccomp"] == {"defaultAction": "SCMP_ACT_ERRNO"}
    limits = {limit["type"]: limit["hard"] for limit in process["rlimits"]}
    assert limits["RLIMIT_NOFILE"] == ORDER.open_files
    assert limits["RLIMIT_FSIZE"] == max(ORDER.out_bytes, ORDER.tmp_bytes)
    assert {m["destination"] for m in spec["mounts"]} == {"/proc", "/sys", "/tmp", "/dev/shm"}


@given(
    st.lists(st.text(), min_size=1),
    st.dictionaries(st.text(), st.text()),
)
def test_the_spec_carries_any_argument(argv: list[str], env: dict[str, str]) -> None:
    plain = {name: value for name, value in env.items() if name.isidentifier() and name.isascii()}
    spec = json.loads(oci.config(ORDER._replace(argv=argv, env=plain), 0))
    assert spec["process"]["args"] == argv
    assert dict(pair.split("=", 1) for pair in spec["process"]["env"]) == plain


def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gen_seccomp_oci", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_section_is_what_the_tables_say() -> None:
    pytest.importorskip("pyseccomp")
    assert seccomp.load_oci().text == tool().oci_section()


def section() -> dict[str, Any]:
    return dict(json.loads(seccomp.load_oci().text))


def answer(call: str, *arguments: int) -> str:
    """What gVisor's rules say: the first rule of the call whose comparisons all hold, else the default."""
    values = [*arguments, *[0] * (6 - len(arguments))]
    for rule in section()["syscalls"]:
        compared = rule.get("args", [])
        if call in rule["names"] and all(values[a["index"]] & a["value"] == a["valueTwo"] for a in compared):
            return str(rule["action"]).removeprefix("SCMP_ACT_")
    return str(section()["defaultAction"]).removeprefix("SCMP_ACT_")


@pytest.mark.parametrize(
    ("call", "arguments", "action"),
    [
        ("read", (), "ALLOW"),
        ("clone3", (), "TRACE"),
        ("socket", (1,), "ALLOW"),
        ("socket", (2,), "ERRNO"),
        ("socket", (1 | 1 << 32,), "ALLOW"),
        ("socket", (2 | 1 << 32,), "ERRNO"),
        ("clone", (0x11,), "ALLOW"),
        ("clone", (0x10000011,), "ERRNO"),
        ("unshare", (), "ERRNO"),
        ("ptrace", (), "ERRNO"),
        ("io_uring_setup", (), "ERRNO"),
        ("memfd_create", (), "ERRNO"),
        ("mount", (), "ERRNO"),
        ("ioctl", (0, 0x5401), "ALLOW"),
        ("ioctl", (0, 0x5412), "ERRNO"),
        ("prctl", (15,), "ALLOW"),
        ("prctl", (4,), "ERRNO"),
        ("mmap", (0, 0, 3, 0x22), "ALLOW"),
        ("mmap", (0, 0, 3, 0x21), "ERRNO"),
        ("mmap", (0, 0, 3, 0x01), "ALLOW"),
        ("mmap", (0, 0, 3, 0x40022), "ERRNO"),
        ("mknodat", (0, 0, 0o010644), "ALLOW"),
        ("mknodat", (0, 0, 0o020644), "ERRNO"),
    ],
)
def test_the_section_says_what_the_filter_says(call: str, arguments: tuple[int, ...], action: str) -> None:
    assert answer(call, *arguments) == action


@pytest.mark.parametrize(
    ("said", "absent"),
    [
        ("starting sandbox: creating process: failed to load /x: no such file or directory", True),
        ('starting sandbox: error finding executable "x" in PATH [/bin]: no such file or directory', True),
        ("cannot create gofer process: gofer: fork/exec /proc/self/exe: no such file or directory", False),
        ("starting sandbox: creating process: failed to load /x: exec format error", True),
        ("cannot create sandbox: cannot read client sync file: waiting for sandbox to start: EOF", False),
    ],
)
def test_what_runsc_says_is_read(said: str, absent: bool) -> None:
    report = json.dumps({"msg": said, "level": "error"}).encode()
    assert sentry.failure(report + report) == (said, absent)


@given(st.binary(max_size=200))
def test_any_report_is_read(report: bytes) -> None:
    failure = sentry.failure(report)
    assert bool(failure.detail) or not report.decode("utf-8", "replace").strip()


STATUS = {"Seccomp": "2", "NoNewPrivs": "1", "Uid": "7\t7\t7\t7"}


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> dict[int, dict[str, str]]:
    """A sandbox as /proc shows it: 20 the second kernel, 30 the gofer, 40 what the job runs in."""
    table = {pid: dict(STATUS) for pid in (20, 30, 40)}
    names = {20: "runsc-sandbox\0boot", 30: "runsc-gofer\0", 40: "runsc-sandbox-stub"}
    monkeypatch.setattr(tree, "descendants", lambda root: [pid for pid in table if root != 20 or pid == 40])
    monkeypatch.setattr(tree, "command", lambda pid: names[pid])
    monkeypatch.setattr(tree, "status", lambda pid: table[pid])
    monkeypatch.setattr(tree, "namespace", lambda pid, kind: f"{pid}{kind}")
    return table


def test_every_wall_is_named_when_it_holds(processes: dict[int, dict[str, str]]) -> None:
    held = sentry.walls(1, 7)
    assert set(held) == {"namespaces", "no_new_privs", "capabilities", "seccomp"}
    assert set(held["namespaces"].split(",")) == set(NAMESPACES)


@pytest.mark.parametrize("pid", [20, 30])
@pytest.mark.parametrize(
    "broken", [{"NoNewPrivs": "0"}, {"Uid": "0\t0\t0\t0"}, {"Uid": "7\t7\t0\t7"}, {"Uid": ""}]
)
def test_a_missing_wall_is_an_error(
    processes: dict[int, dict[str, str]], pid: int, broken: dict[str, str]
) -> None:
    processes[pid].update(broken)
    with pytest.raises(WallMissingError):
        sentry.walls(1, 7)


@pytest.mark.parametrize("pid", [20, 30])
def test_nothing_is_claimed_before_the_filters_are_there(
    processes: dict[int, dict[str, str]], pid: int
) -> None:
    processes[pid]["Seccomp"] = "0"
    assert sentry.walls(1, 7) == {}


@pytest.mark.parametrize("pid", [20, 30, 40])
def test_nothing_is_claimed_before_the_job_runs(processes: dict[int, dict[str, str]], pid: int) -> None:
    del processes[pid]
    assert sentry.walls(1, 7) == {}


@pytest.mark.parametrize("kind", ["user", "net", "pid", "mnt"])
def test_a_shared_namespace_is_an_error(
    processes: dict[int, dict[str, str]], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree, "namespace", lambda pid, asked: asked if asked == kind else f"{pid}{asked}")
    with pytest.raises(WallMissingError):
        sentry.walls(1, 7)


def test_a_memory_file_is_counted_once_and_the_brokers_is_not() -> None:
    before = sentry.memory_bytes([os.getpid()])
    ours, ring = os.memfd_create("runsc-memory"), os.memfd_create("rapha-ring")
    again = os.dup(ours)
    for fd in (ours, ring):
        os.posix_fallocate(fd, 0, 1 << 20)
    os.fchmod(ring, 0o444)
    assert sentry.memory_bytes([os.getpid(), os.getpid(), 2**22 + 1]) - before == 1 << 20
    for fd in (ours, ring, again):
        os.close(fd)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[rootfs.Root]:
    made = rootfs.Root(str(tmp_path))
    yield made
    made.close()


def test_places_are_made_where_there_is_room(root: rootfs.Root, tmp_path: Path) -> None:
    assert root.place("a/b/c", folder=True) == f"{tmp_path}/a/b/c"
    root.place("a/b/file", folder=False)
    assert (tmp_path / "a/b/c").is_dir()
    assert (tmp_path / "a/b/file").is_file()
    root.place("a/b", folder=True)
    root.place("a/b/file", folder=False)


@pytest.mark.parametrize(("dest", "folder"), [("file", True), ("folder", False), ("file/x", False)])
def test_a_place_of_the_other_kind_is_none(
    root: rootfs.Root, tmp_path: Path, dest: str, folder: bool
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="irectory"):
        root.place(dest, folder)


def test_a_folder_to_start_in_is_looked_for_as_from_inside(root: rootfs.Root, tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("/app")
    for folder in ("/", "/app", "/link", "/../app"):
        root.need_folder(folder)
    for folder in ("/file", "/absent", str(tmp_path)):
        with pytest.raises(OSError, match="directory"):
            root.need_folder(folder)


@pytest.mark.parametrize("dest", ["link", "link/x", "link/deep/x", "dangling", "loop/x"])
@pytest.mark.parametrize("folder", [True, False])
def test_no_place_lies_behind_a_link(
    root: rootfs.Root, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, dest: str, folder: bool
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (tmp_path / "link").symlink_to(outside)
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError):
        root.place(dest, folder)
    assert list(outside.iterdir()) == []


def socket_at(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        here = os.getcwd()  # noqa: PTH109  the name has to be short
        os.chdir(path.parent)
        made.bind(path.name)
        os.chdir(here)


@pytest.mark.parametrize("dest", ["/rapha/in", "/rapha/in/released", "/app", "/app/deep"])
@pytest.mark.parametrize(("make", "kind"), [(socket_at, "socket"), (os.mkfifo, "FIFO")])
def test_a_way_to_a_process_of_the_host_is_never_mounted(
    dest: str, make: Callable[[Path], None], kind: str, tmp_path: Path
) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    make(tmp_path / "a/b/x")
    for source in (tmp_path, tmp_path / "a/b/x"):
        with pytest.raises(Refused) as refused:
            sources.check(source, dest)
        assert refused.value.code == "node.config"
        assert kind in refused.value.detail


def test_a_device_is_never_mounted() -> None:
    with pytest.raises(Refused, match="character device"):
        sources.check(Path("/dev/null"), "/app/x")


def test_files_folders_and_links_are_mounted(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/file").touch()
    (tmp_path / "link").symlink_to("/dev")
    (tmp_path / "loop").symlink_to(tmp_path)
    sources.check(tmp_path, "/rapha/in")


def test_a_source_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_MAX_ENTRIES", 3)
    for name in "abcd":
        (tmp_path / name).touch()
    with pytest.raises(Refused) as refused:
        sources.check(tmp_path, "/app")
    assert refused.value.code == "node.config"
    sources.check(tmp_path, "/usr/lib/x")  # the node's own runtime may be larger


def test_a_source_that_can_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def scandir(path: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(Refused) as refused:
        start._source(tmp_path, "/rapha/in")
    assert refused.value.code == "node.config"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_keeps_nothing_and_blames_nobody(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, dest = tmp_path / "source", tmp_path / "dest"
    source.mkdir()
    dest.mkdir()
    for name in "abc":
        (source / name).write_bytes(b"x" * 1000)
    real, left = os.write, [1500]

    def write(fd: int, data: bytes) -> int:
        if not left[0]:
            raise OSError(number, os.strerror(number))
        written = real(fd, data[: left[0]])
        left[0] -= written
        return written

    monkeypatch.setattr(os, "write", write)
    fd = os.open(dest, os.O_RDONLY)
    with pytest.raises(collect.NoRoomError):
        collect.collect(str(source), fd, 64, 1 << 20)
    os.close(fd)
    assert list(dest.iterdir()) == []


def test_a_full_disk_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    report = Report("exited", 0, 1.0, 1.0, 1, {}, [], [], "", "No space left on device")
    run = object.__new__(start.Run)
    run._answer, run._walls = encode(report), {}
    run._done = threading.Event()
    run._done.set()
    with pytest.raises(Refused) as refused:
        run.wait()
    assert refused.value.code == "node.disk_full"


def test_a_walk_into_mounts_still_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc")
    fd = os.open(tmp_path, os.O_PATH)
    for name in ("link/passwd", "link/.", "..", "/etc"):
        with pytest.raises(OSError):
            system.open_in(fd, name, os.O_PATH)
    os.close(fd)
