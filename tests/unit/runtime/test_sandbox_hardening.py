"""The smaller debts: what a terminal may be told, what /proc says instead, and what mappings cost."""

import itertools
import mmap
import os
import pty
import signal
import tty

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapha.runtime.sandbox.launcher import masks, tree
from rapha.runtime.sandbox.launcher.sink import Sink


def shown(chunks: list[bytes]) -> bytes:
    """What a terminal on stream 1 or 2 gets; the sink asks the stream whether it is one."""
    sink = Sink(-1, 1 << 20, terminal=True)
    return b"".join(sink._harmless(chunk, 1) for chunk in chunks)


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ([b"plain\n\ttext\r\n"], "plain\n\ttext\r\n"),
        (["größe – ’ 心臓 🫀".encode()], "größe – ’ 心臓 🫀"),
        ([b"\x1b[2Jx\x7f\x00\x07"], "[2Jx"),
        (["\x9b2Jx\x85\x90".encode()], "2Jx"),
        ([b"\x9b2J"], "\ufffd2J"),
        ([b"\xc2", b"\x9b2J"], "2J"),
        ([b"\xe2\x80", b"\x99"], "’"),
        ([b"\xf0", b"\x9f", b"\xab", b"\x80"], "🫀"),
        ([b"\xc0\x9b"], "\ufffd\ufffd"),
        ([b"\xed\xa0\x80"], "\ufffd" * 3),
        ([b"\xc2", b"x\x9b"], "\ufffdx\ufffd"),
        ([b"\xe2\x80"], ""),
    ],
)
def test_a_terminal_is_told_characters_only(chunks: list[bytes], expected: str) -> None:
    assert shown(chunks).decode() == expected


@given(st.binary(), st.lists(st.integers(0, 60)))
def test_no_control_comes_through_however_it_is_cut(data: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), max(len(data), *cuts, 0)]
    whole = shown([data[start:end] for start, end in itertools.pairwise(edges)])
    assert not ({*range(32), *range(127, 160)} - {*b"\t\n\r"}) & {*map(ord, whole.decode())}
    assert whole == shown([data])


def test_a_real_terminal_and_a_pipe_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = pty.openpty()
    tty.setraw(slave)
    reader, writer = os.pipe()
    try:
        sink = Sink(-1, 1 << 20, terminal=True)
        sink._decoders[slave] = sink._decoders[1]
        sink.take(b"\x1b[1mx\x9b", slave)
        assert os.read(master, 100) == "[1mx\ufffd".encode()
        sink.take(b"\x1b[1mx\x9b", writer)
        assert os.read(reader, 100) == b"\x1b[1mx\x9b"
    finally:
        for fd in (master, slave, reader, writer):
            os.close(fd)


def test_what_proc_says_instead_has_the_jobs_limit_and_no_counts() -> None:
    facades = masks.facades(512 << 20)
    sizes = dict(line.split(":") for line in facades["meminfo"].decode().splitlines())
    assert {sizes[name].split()[0] for name in ("MemTotal", "MemFree", "MemAvailable")} == {str(512 << 10)}
    lines = facades["stat"].decode().splitlines()
    assert sum(line.startswith("cpu") for line in lines) == 1 + (os.cpu_count() or 1)
    assert {number for line in lines for number in line.split()[1:]} <= {"0", "1"}


def test_only_what_this_kernel_has_is_covered() -> None:
    options = list(masks.arguments("/empty", {"meminfo": "/staged", "nosuch": "/staged"}))
    assert options[-3:] == ["--ro-bind", "/staged", "/proc/meminfo"]
    assert all(os.path.exists(dest) for dest in options[2::3])  # noqa: PTH110


def with_maps(count: int) -> int:
    """A child with at least `count` mappings."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        kept = [mmap.mmap(-1, 4096, prot=(1, 3)[n % 2]) for n in range(count)]
        os.write(writer, b"x")
        signal.pause()
        os._exit(len(kept) & 1)
    os.read(reader, 1)
    os.close(reader)
    os.close(writer)
    return child


def test_mappings_are_counted_that_no_page_shows() -> None:
    few, many = with_maps(0), with_maps(5000)
    try:
        maps = tree.Maps()
        assert maps.memory_bytes([few], 1 << 40) < 1 << 20
        assert maps.memory_bytes([few, many], 1 << 40) > 5000 * 300
        assert maps.memory_bytes([few, many], 1 << 20) > 1 << 20
    finally:
        for child in (few, many):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    assert maps.memory_bytes([few, many], 1 << 40) == 0


def test_an_uncounted_process_is_taken_for_the_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {pid: 1000 if pid == 1 else 10 for pid in range(1, 40)}
    read: list[int] = []

    def count(path: str) -> str:
        pid = int(path.split("/")[2])
        read.append(pid)
        return "\n" * counts[pid]

    monkeypatch.setattr(tree, "_read", count)
    maps = tree.Maps()
    pids = list(counts)
    assert maps.memory_bytes(pids, 1 << 40) == (1000 + 3 * 10 + 35 * 1000) * tree._MAP_BYTES
    assert len(read) == 4
    for _ in range(10):
        last = maps.memory_bytes(pids, 1 << 40)
    assert last == sum(counts.values()) * tree._MAP_BYTES
    assert tree.Maps().memory_bytes(pids, 20_000 * tree._MAP_BYTES) == sum(counts.values()) * tree._MAP_BYTES
