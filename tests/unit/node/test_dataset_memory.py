"""Records stay out of swap and of core files; and what the doctor says of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rapha.node.datasets import memory
from rapha.runtime.broker import memory as low
from rapha.spec.refusals import Refused

HEAD = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (HEAD, ()),
        ("", ()),
        (HEAD + "\n", ()),
        (HEAD + "/dev/sda2 partition 2097148 0 -2\n", ("/dev/sda2",)),
        (HEAD + "/swap\\040file file 1 0 -2\n/dev/zram0 partition 1 0 5\n", ("/swap\\040file", "/dev/zram0")),
    ],
)
def test_the_kernel_s_table_of_swaps(tmp_path: Path, text: str, found: tuple[str, ...]) -> None:
    (tmp_path / "swaps").write_text(text)
    assert low.active_swaps(tmp_path / "swaps") == found


def test_a_kernel_without_swap_has_no_table(tmp_path: Path) -> None:
    assert low.active_swaps(tmp_path / "swaps") == ()


def world(monkeypatch: pytest.MonkeyPatch, swaps: tuple[str, ...], lock: bool) -> list[str]:
    calls: list[str] = []
    monkeypatch.setattr(memory, "active_swaps", lambda: swaps)
    monkeypatch.setattr(memory, "may_lock", lambda: lock)
    monkeypatch.setattr(memory, "lock_all", lambda: calls.append("locked"))
    return calls


def test_a_host_that_does_not_swap(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = world(monkeypatch, (), lock=False)
    assert memory.check_swap("production") == "the host does not swap"
    memory.keep_out_of_swap()
    assert calls == []


def test_a_host_that_swaps_and_lets_us_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = world(monkeypatch, ("/dev/sda2",), lock=True)
    assert "locked in memory" in memory.check_swap("production")
    memory.keep_out_of_swap()
    assert calls == ["locked"]


def test_production_refuses_a_host_that_swaps_and_a_demo_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = world(monkeypatch, ("/dev/sda2",), lock=False)
    assert memory.check_swap("demo").startswith("WARNING")
    with pytest.raises(Refused) as refused:
        memory.check_swap("production")
    assert refused.value.code == "node.swap_on"
    memory.keep_out_of_swap()
    assert calls == []


def test_who_may_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda kind: (-1, -1))
    assert low.may_lock()
    monkeypatch.setattr("resource.getrlimit", lambda kind: (65536, 65536))
    for mask, may in (("0000000000004000", True), ("00000000ffffbfff", False), ("0", False)):
        text = f"Name:\tx\nCapEff:\t{mask}\n"
        monkeypatch.setattr(Path, "read_text", lambda *_, text=text, **__: text)
        assert low.may_lock() is may
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "")
    assert not low.may_lock()


CHILD = """
import os, resource, sys
from rapha.node.datasets import memory
memory.active_swaps = lambda: ("/dev/sda2",) if memory.may_lock() else ()
memory.harden()
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
held = bytearray(2**20)
locked = int(dict(line.split(":", 1) for line in open("/proc/self/status"))["VmLck"].split()[0])
print(resource.getrlimit(resource.RLIMIT_CORE), memory.may_lock(), locked > 1000)
import ctypes
print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
"""


def test_a_hardened_process() -> None:
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True)
    (limits, may, locked), dumpable = done.stdout.splitlines()[0].rsplit(" ", 2), done.stdout.splitlines()[1]
    assert (limits, dumpable) == ("(0, 0)", "0")
    assert may == locked


def test_memory_is_zero_left_out_of_core_files_and_wiped() -> None:
    held = low.anonymous(10_000)
    assert bytes(held) == bytes(len(held))
    held[:4] = b"\x01\x02\x03\x04"
    flags = _flags(low._address(held))
    assert {"dd", "dc"} <= flags  # not dumped, not copied into children
    assert "sh" not in flags  # private
    low.wipe(held)
    assert bytes(held) == bytes(len(held))
    assert len(low.anonymous(0)) == 1


def test_no_room_for_memory() -> None:
    with pytest.raises(MemoryError, match="no room"):
        low.anonymous(2**62)


def _flags(address: int) -> set[str]:
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split()[0]
        if "-" in head and not head.endswith(":"):
            start, end = (int(part, 16) for part in head.split("-"))
            inside = start <= address < end
        elif inside and head == "VmFlags:":
            return set(line.split()[1:])
    raise AssertionError("no such mapping")
