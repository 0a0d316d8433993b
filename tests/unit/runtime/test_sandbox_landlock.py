"""Landlock's parts one by one: what an ABI has, what is told, and domains of child processes."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapha.runtime.sandbox.launcher import domain, interpreter, landlock, lock, system

ABI = landlock.abi()
needs_landlock = pytest.mark.skipif(ABI == 0, reason="this kernel has no Landlock")


@pytest.mark.parametrize(
    ("version", "paths", "tcp", "scopes"),
    [
        (0, 0, 0, 0),
        (1, 0x1FFF, 0, 0),
        (2, 0x3FFF, 0, 0),
        (3, 0x7FFF, 0, 0),
        (4, 0x7FFF, 3, 0),
        (5, 0xFFFF, 3, 0),
        (6, 0xFFFF, 3, 3),
        (7, 0xFFFF, 3, 3),
    ],
)
def test_the_rights_of_an_abi(version: int, paths: int, tcp: int, scopes: int) -> None:
    assert landlock.rights(version) == (paths, tcp, scopes)


def test_no_rule_lets_devices_be_made_or_commanded() -> None:
    devices = landlock.MAKE_BLOCK | landlock.MAKE_CHAR | landlock.IOCTL_DEV
    assert (landlock.READ | landlock.WRITE) & devices == 0


@pytest.mark.parametrize(
    ("version", "said"),
    [(0, "none"), (1, "abi 1 (paths)"), (4, "abi 4 (paths, tcp)"), (7, "abi 7 (paths, tcp, scopes)")],
)
def test_the_wall_in_words(version: int, said: str) -> None:
    assert landlock.describe(version) == said


def answering(number: int) -> Callable[..., int]:
    def call(_number: int, what: str, *_arguments: object) -> int:
        raise OSError(number, os.strerror(number), what)

    return call


@pytest.mark.parametrize("number", [38, 95])
def test_a_kernel_without_it_or_that_was_told_not_to(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "call", answering(number))
    assert landlock.abi() == 0


def test_a_kernel_that_does_not_say_is_not_taken_for_one_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "call", answering(1))
    with pytest.raises(PermissionError):
        landlock.abi()


def test_of_a_newer_kernel_what_is_known_is_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "call", lambda *_: 99)
    assert landlock.describe(landlock.abi()) == "abi 7 (paths, tcp, scopes)"


def in_child(act: Callable[[], object]) -> str:
    """What `act` raised, in a process of its own."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        said = "nothing"
        try:
            act()
        except BaseException as error:  # noqa: BLE001  this is the child: it reports and exits
            said = f"{type(error).__name__}: {error}"
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        said = answer.read()
    os.waitpid(child, 0)
    return said


@needs_landlock
def test_a_domain_denies_all_but_its_rules(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()

    def write(folder: Path) -> None:
        rules = [(str(inside), landlock.WRITE), ("/dev/null", landlock.WRITE)]  # a file's share of it
        landlock.restrict(ABI, landlock.rights(ABI)._replace(tcp=0, scopes=0), rules)
        (folder / "x").write_text("x")
        Path("/dev/null").write_text("x")

    assert in_child(lambda: write(inside)) == "nothing"
    assert in_child(lambda: write(outside)).startswith("PermissionError: [Errno 13]")


@needs_landlock
def test_a_rule_for_what_is_not_there_makes_no_domain() -> None:
    said = in_child(lambda: landlock.restrict(ABI, landlock.rights(ABI), [("/nosuch", landlock.READ)]))
    assert said.startswith("FileNotFoundError")


@needs_landlock
def test_a_domain_of_nothing_is_an_error() -> None:
    assert in_child(lambda: landlock.restrict(ABI, landlock.Rights(0, 0, 0))).startswith(
        "OSError: [Errno 42]"
    )


def fails_to_take(monkeypatch: pytest.MonkeyPatch, part: str) -> str:
    """What `domain.enter` says if the kernel took the domain without one of its parts."""
    real = landlock.restrict
    rules = [] if part == "paths" else [("/", landlock.READ)]

    def weaker(version: int, handled: landlock.Rights, _rules: object) -> None:
        real(version, handled._replace(**{part: 0}), rules)

    monkeypatch.setattr(landlock, "restrict", weaker)
    monkeypatch.setattr(domain, "_INIT", os.getpid())

    def enter() -> None:
        import socket

        with socket.socket(socket.AF_INET) as tcp:
            domain.enter(ABI, tcp.fileno())

    return in_child(enter)


@needs_landlock
@pytest.mark.parametrize("part", landlock.rights(ABI).names if ABI else ["paths"])
def test_a_part_that_is_not_in_force_is_found_out(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fails_to_take(monkeypatch, part) == f"UnprovenError: landlock: {part} is not denied"


@needs_landlock
def test_what_failed_before_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(domain, "_PROBE", "/nosuch")
    said = in_child(lambda: domain.enter(ABI, -1))
    assert said == "UnprovenError: landlock: paths is denied already: No such file or directory"


def told_by(version: int, *argv: str) -> tuple[str, int]:
    """What `lock.main` tells, and how the command ended."""
    order, reader, writer = os.memfd_create("order"), *os.pipe()
    os.write(order, lock.encode(version, list(argv), {"PATH": "/usr/bin:/bin"}))
    os.lseek(order, 0, os.SEEK_SET)
    child = os.fork()
    if child == 0:
        os.dup2(os.open("/dev/null", os.O_WRONLY), 2)
        lock.main(order, writer, -1)
    os.close(writer)
    os.close(order)
    with os.fdopen(reader) as answer:
        said = answer.read()
    return said, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_where_the_kernel_has_none_the_command_still_runs() -> None:
    assert told_by(0, "sh", "-c", "exit 7") == ("ready\n", 7)


def test_a_command_that_is_not_there_is_told() -> None:
    assert told_by(0, "nosuch") == ("ready\nnot executed\n", 127)


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]*", fullmatch=True)


@given(st.integers(0, 7), st.lists(TEXT, min_size=1), st.dictionaries(NAMES, TEXT))
def test_an_order_comes_out_as_it_went_in(version: int, argv: list[str], env: dict[str, str]) -> None:
    found, arguments, variables = lock.decode(lock.encode(version, argv, env))
    assert (found, [os.fsdecode(a) for a in arguments]) == (version, argv)
    assert {os.fsdecode(name): os.fsdecode(value) for name, value in variables.items()} == env


ALL = b"paths\ntcp\nscopes\nready\n"
FAILURES = {
    "started": (7, ALL, "the job's own words", ("", False)),
    "started without Landlock": (0, b"ready\n", "", ("", False)),
    "started on an older kernel": (3, b"paths\nready\n", "", ("", False)),
    "no such command": (7, ALL + b"not executed\n", "rapha: execvp x", ("rapha: execvp x", True)),
    "nothing told": (7, b"", "Traceback", ("Traceback", False)),
    "nothing said": (
        7,
        b"paths\nready\n",
        "",
        ("landlock was not seen to hold: scopes, tcp", False),
    ),
    "not yet ready": (1, b"paths\n", "", ("landlock was not seen to hold: ready", False)),
    "cut": (1, b"paths\nrea", "", ("landlock was not seen to hold: ready", False)),
    "no text": (1, b"\xff\xfe\n", "", ("landlock was not seen to hold: paths, ready", False)),
}


@pytest.mark.parametrize("name", FAILURES)
def test_what_the_pipe_told(name: str) -> None:
    version, told, said, found = FAILURES[name]
    assert lock.failure(version, told, said) == found


def test_the_interpreters_parts_are_there_and_nothing_of_the_packages() -> None:
    parts = interpreter.parts()
    assert all(part.dest.startswith(f"{interpreter.HOME}/") for part in parts)
    assert all(not part.source or Path(part.source).exists() for part in parts)
    library = Path(sys.base_prefix) / sys.platlibdir / f"python3.{sys.version_info.minor}"
    hidden = {Path(part.dest).name for part in parts if not part.source}
    assert hidden == {name for name in ("site-packages", "dist-packages") if (library / name).is_dir()}


def test_the_loader_reads_no_list_of_the_roots() -> None:
    content = interpreter.loader()
    assert b"/etc/ld.so.preload" not in content
    assert content.startswith(b"\x7fELF")


@pytest.mark.parametrize("content", [b"", b"/etc/ld.so.preload\0/etc/ld.so.preload\0"])
def test_an_unknown_loader_is_not_used(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "ld-linux-x86-64.so.2"
    file.write_bytes(content)
    monkeypatch.setattr(system, "loaded_libraries", lambda: [str(file)])
    with pytest.raises(interpreter.LayoutError):
        interpreter.loader()


def test_a_process_without_a_known_loader_is_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "loaded_libraries", lambda: ["/lib/libc.so.6"])
    with pytest.raises(interpreter.LayoutError):
        interpreter.parts()
