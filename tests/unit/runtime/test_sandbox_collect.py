import hashlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rapha.runtime.sandbox.launcher.collect import collect

LIMIT = 1 << 20


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """What a job left."""
    folder = tmp_path / "left"
    folder.mkdir()
    return folder


@pytest.fixture
def dest(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    folder = tmp_path / "dest"
    folder.mkdir()
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    yield folder, fd
    os.close(fd)


def test_plain_files_are_copied_and_hashed(left: Path, dest: tuple[Path, int]) -> None:
    content = os.urandom(300_000)
    (left / "model.safetensors").write_bytes(content)
    (left / "empty").touch(mode=0o000)
    outputs, anomalies = collect(str(left), dest[1], 64, LIMIT)
    assert anomalies == []
    assert outputs == [
        ["empty", 0, hashlib.sha256(b"").hexdigest()],
        ["model.safetensors", 300_000, hashlib.sha256(content).hexdigest()],
    ]
    assert (dest[0] / "model.safetensors").read_bytes() == content
    assert {file.stat().st_mode & 0o777 for file in dest[0].iterdir()} == {0o600}


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _symlink(path: Path) -> None:
    path.symlink_to("/etc/hostname")


def _dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def _magic_link(path: Path) -> None:
    path.symlink_to("/proc/self/fd/0")


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def _hard_link(path: Path) -> None:
    path.write_text("x")
    os.link(path, path.parent.parent / "outside")


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 19)


def _too_large(path: Path) -> None:
    path.write_bytes(bytes(LIMIT + 1))


def _huge_and_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


def _xattr(path: Path) -> None:
    path.write_text("x")
    os.setxattr(path, "user.data", b"42")


HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "fifo": (_fifo, "FIFO"),
    "symbolic link": (_symlink, "symbolic link"),
    "dangling link": (_dangling, "symbolic link"),
    "magic link": (_magic_link, "symbolic link"),
    "socket": (_socket, "socket"),
    "directory": (Path.mkdir, "directory"),
    "hard link": (_hard_link, "2 hard links"),
    "sparse": (_sparse, "sparse"),
    "too large": (_too_large, "bytes"),
    "huge": (_huge_and_sparse, "bytes"),
    "extended attribute": (_xattr, "extended attributes"),
}


@pytest.mark.parametrize(("make", "said"), HOSTILE.values(), ids=HOSTILE)
def test_anything_else_is_named_and_not_copied(
    make: Callable[[Path], None], said: str, left: Path, dest: tuple[Path, int]
) -> None:
    (left / "good").write_text("kept")
    try:
        make(left / "bad")
    except OSError as error:
        pytest.skip(f"this file system can't hold it: {error}")
    outputs, anomalies = collect(str(left), dest[1], 64, LIMIT)
    assert [name for name, _, _ in outputs] == ["good"]
    assert [line.partition(": ")[0] for line in anomalies] == ["bad"]
    assert said in anomalies[0]
    assert [file.name for file in dest[0].iterdir()] == ["good"]


BAD_NAMES = [".hidden", "a b", "a\nb", "\x1b[31m", "-rf", "naïve", "a" * 129, "a;b", "\u202e", "CON:"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_are_not_plain_are_refused_and_shown_safely(
    name: str, left: Path, dest: tuple[Path, int]
) -> None:
    (left / name).write_text("x")
    outputs, anomalies = collect(str(left), dest[1], 64, LIMIT)
    assert outputs == []
    assert len(anomalies) == 1
    assert anomalies[0].isascii()
    assert anomalies[0].isprintable()


def test_a_name_that_is_not_text_is_refused(left: Path, dest: tuple[Path, int]) -> None:
    Path(os.fsdecode(os.fsencode(left) + b"/\xff\xfe")).write_text("x")
    outputs, anomalies = collect(str(left), dest[1], 64, LIMIT)
    assert (outputs, len(anomalies)) == ([], 1)


def test_more_files_than_allowed_and_none_is_copied(left: Path, dest: tuple[Path, int]) -> None:
    for n in range(65):
        (left / f"f{n}").touch()
    assert collect(str(left), dest[1], 64, LIMIT) == ([], ["65 entries, at most 64 are read"])
    assert list(dest[0].iterdir()) == []


def test_the_cap_is_on_the_sum(left: Path, dest: tuple[Path, int]) -> None:
    for name in ("a", "b", "c"):
        (left / name).write_bytes(bytes(range(256)) * 2000)
    outputs, anomalies = collect(str(left), dest[1], 64, LIMIT)
    assert [name for name, _, _ in outputs] == ["a", "b"]
    assert anomalies[0].startswith("c: 512000 bytes")


def test_what_the_host_can_not_take_is_an_anomaly_and_leaves_nothing_behind(
    left: Path, dest: tuple[Path, int]
) -> None:
    (left / "taken").write_text("new")
    (dest[0] / "taken").write_text("old")
    outputs, anomalies = collect(str(left), dest[1], 64, LIMIT)
    assert (outputs, len(anomalies)) == ([], 1)
    assert (dest[0] / "taken").read_text() == "old"


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.from_regex(r"[a-z][a-z0-9._-]{0,8}", fullmatch=True), st.binary(max_size=64), max_size=8
    )
)
def test_every_file_is_copied_or_named(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]
) -> None:
    left, dest = tmp_path_factory.mktemp("left"), tmp_path_factory.mktemp("dest")
    for name, content in files.items():
        (left / name).write_bytes(content)
    fd = os.open(dest, os.O_RDONLY | os.O_DIRECTORY)
    try:
        outputs, anomalies = collect(str(left), fd, 64, LIMIT)
    finally:
        os.close(fd)
    assert anomalies == []
    assert {name: (dest / name).read_bytes() for name, _, _ in outputs} == files
