"""What a worker that was taken over can reach: nothing, tried from inside; and what others see of it."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pytest

from rapha.node.sources.interface import Quarantine
from rapha.node.sources.workers import walls
from rapha.node.sources.workers.interface import Item, Task
from rapha.node.sources.workers.pool import Pool
from rapha.node.sources.workers.template import start_refusal
from rapha.runtime.guard.process import ENVIRONMENT
from rapha.runtime.sandbox import seccomp
from rapha.spec.refusals import Refused

TASK: Final = Path(__file__).parent / "unsafe_worker_task.py"
TOOL: Final = Path(__file__).parents[3] / "tools/gen_seccomp.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("walls")
    (root / "outside").write_bytes(b"secret")
    folder = root / "archive"
    folder.mkdir()
    (folder / "a").write_bytes(b"one")
    (folder / "link").symlink_to("../outside")
    return folder


@pytest.fixture(scope="module")
def pool(folder: Path) -> Iterator[Pool]:
    with Pool(Task.DECODE, b"", folder=folder, workers=1, _unsafe_test_module=TASK) as pool:
        yield pool


def ask(pool: Pool, args: bytes) -> Any:
    (answer,) = pool.run([Item(args)])
    assert answer.quarantine is Quarantine.NONE
    return json.loads(answer.reply)


def test_no_call_to_the_kernel_reaches_anyone(pool: Pool) -> None:
    found = ask(pool, b"system")
    assert {name: number for name, number in found.items() if number != errno.EPERM} == {}
    assert len(found) > 30


def test_no_path_leads_out_and_nothing_can_be_written(pool: Pool, folder: Path) -> None:
    where = json.dumps([str(folder.parent / "outside"), str(folder)]).encode()
    found = ask(pool, b"paths:" + where)
    denied = {errno.EACCES, errno.EPERM}
    assert {name: number for name, number in found.items() if number not in denied} == {}
    assert sorted(entry.name for entry in folder.iterdir()) == ["a", "link"]
    assert (folder / "a").read_bytes() == b"one"


def test_what_it_may_read_it_can(pool: Pool) -> None:
    (answer,) = pool.run([Item(b"x", ("a",))])
    assert answer.reply == b"x|one"


def test_it_holds_its_streams_its_socket_and_the_folder(pool: Pool) -> None:
    found = ask(pool, b"self")
    assert found["fds"] == [0, 1, 2, 3, 4]
    assert set(found["env"]) <= set(ENVIRONMENT)


def test_what_the_kernel_says_of_it(pool: Pool) -> None:
    pid = ask(pool, b"self")["pid"]
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    assert [int(status[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Amb")] == [0] * 4
    assert (status["NoNewPrivs"], status["Seccomp"], status["Threads"]) == ("1", "2", "1")
    assert Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "1000"
    limits = Path(f"/proc/{pid}/limits").read_text()
    for name in ("Max core file size", "Max file size", "Max processes"):
        (line,) = [line for line in limits.splitlines() if line.startswith(name)]
        assert line.removeprefix(name).split()[:2] == ["0", "0"], name
    (line,) = [line for line in limits.splitlines() if line.startswith("Max open files")]
    assert int(line.split()[4]) <= walls.DESCRIPTORS


def test_a_task_that_starts_a_thread_is_refused(folder: Path) -> None:
    with (
        Pool(Task.DECODE, b"thread", folder=folder, workers=1, _unsafe_test_module=TASK) as pool,
        pytest.raises(Refused, match=r"node.sandbox_unavailable: a worker's walls: a thread runs") as refused,
    ):
        list(pool.run([Item(b"")]))
    assert refused.value.code == "node.sandbox_unavailable"


@pytest.mark.parametrize("setup", [b"raise", b"die"])
def test_a_task_that_does_not_start_is_refused_without_its_words(setup: bytes) -> None:
    with (
        Pool(Task.DECODE, setup, folder=None, workers=1, _unsafe_test_module=TASK) as pool,
        pytest.raises(Refused) as refused,
    ):
        list(pool.run([Item(b"")]))
    assert refused.value.code == "node.internal"
    assert "word" not in refused.value.detail.replace("no word", "")


@pytest.mark.parametrize(
    ("setup", "said"),
    [
        (b"no landlock", "this kernel has no Landlock"),
        (b"landlock refused", "Invalid argument"),
        (b"leaky landlock", "landlock does not hold"),
        (b"seccomp refused", "Invalid argument"),
        (b"leaky seccomp", "seccomp does not hold"),
        (b"capabilities refused", "Invalid argument"),
        (b"no filter", "no seccomp filter for riscv64"),
        (b"swap", "Invalid argument"),
    ],
)
def test_without_a_wall_there_is_no_worker(folder: Path, setup: bytes, said: str) -> None:
    with (
        Pool(Task.DECODE, setup, folder=folder, workers=2, _unsafe_test_module=TASK) as pool,
        pytest.raises(Refused, match=said) as refused,
    ):
        list(pool.run([Item(b"")] * 5))
    assert refused.value.code == "node.sandbox_unavailable"


def test_where_nobody_may_lock_memory_the_node_has_judged_the_host_already() -> None:
    with Pool(Task.DECODE, b"swap, no locking", folder=None, workers=1, _unsafe_test_module=TASK) as pool:
        assert ask(pool, b"self")["pid"]


def test_a_network_namespace_is_not_needed(folder: Path) -> None:
    with Pool(
        Task.DECODE, b"no network namespaces", folder=folder, workers=1, _unsafe_test_module=TASK
    ) as pool:
        assert ask(pool, b"system")["inet socket"] == errno.EPERM


def test_a_wall_that_does_not_hold_is_found() -> None:
    with pytest.raises(walls.WallError, match="it does not hold"):
        walls._proven(lambda: None, errno.EPERM, "it")

    def other() -> None:
        raise OSError(errno.ENOENT, "gone")

    with pytest.raises(walls.WallError, match="it: gone"):
        walls._proven(other, errno.EPERM, "it")


def test_what_the_kernel_refuses_is_a_wall() -> None:
    with pytest.raises(walls.WallError, match="Operation not permitted"), walls.required():
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"wall: landlock: \x1b[31mno", "node.sandbox_unavailable"),
        (b"task: ValueError at x.py:1", "node.internal"),
        (b"", "node.internal"),
        (b"\xff" * 9999, "node.internal"),
    ],
)
def test_what_a_process_says_when_it_fails_to_start(line: bytes, code: str) -> None:
    refused = start_refusal(line)
    assert refused.code == code
    assert refused.detail.isprintable()
    assert len(refused.detail) < 400


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gen_seccomp_worker", TOOL)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
def test_the_committed_filter_is_what_the_table_compiles_to(arch: str) -> None:
    tool = generator()
    if tool.compiler_version() != (seccomp.FILTERS / "libseccomp.version").read_text().strip():
        pytest.skip("another libseccomp emits other bytes for the same rules")
    assert tool.compile_worker(arch) == (Path(walls.__file__).parent / f"{arch}.bpf").read_bytes()


def test_the_filter_allows_less_than_a_job_has() -> None:
    tool = generator()
    # A job's mappings are private or files, as its memory is counted where it is resident; a worker's is not.
    assert set(tool.WORKER_ALLOWED) - set(tool.ALLOWED) == {"mmap"}
