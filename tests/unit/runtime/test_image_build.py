"""Images are the same bytes everywhere, ship no keys, and come back as they went in."""

from __future__ import annotations

import json
import os
import stat
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rapha.runtime.image import Limits, build, pack, read, tar, ustar
from rapha.runtime.image.build import SKIPPED
from rapha.runtime.image.stream import Stream
from rapha.spec.refusals import Refused

FILES = {
    "train.py": b"from pkg import model\n",
    "predict.py": b"print(1)\n",
    "pkg/__init__.py": b"",
    "pkg/model.py": b"x = 1\n",
    "Zeta.txt": b"\x00\xff" * 300,
    "data/\u00e9t\u00e9.txt": b"summer\n",
}
DIGEST = "sha256:8100bbc9e4184217ee61d52fbbfbce438d959d1b6c30f540889ba5ed48affa77"
"""Of FILES: pinned, so that a change of the format is seen as one."""

KEY = b"-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f\n"


def write(folder: Path, files: dict[str, bytes] | None = None) -> Path:
    for name, data in (FILES if files is None else files).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def make(source: Path, out: Path) -> str:
    return build(
        source, out, entrypoint=["python3", "train.py"], predict=["python3", "predict.py"], runtime="rt"
    )


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_digest_is_the_committed_one(tmp_path: Path) -> None:
    assert make(write(tmp_path / "s"), tmp_path / "o") == DIGEST


def test_nothing_but_paths_and_contents_counts(tmp_path: Path) -> None:
    first = make(write(tmp_path / "a"), tmp_path / "out-a")
    old = os.umask(0o077)
    try:
        write(tmp_path / "b", dict(reversed(FILES.items())))
    finally:
        os.umask(old)
    for number, path in enumerate(sorted((tmp_path / "b").rglob("*"))):
        os.utime(path, (number * 1000, number * 1000))
    (tmp_path / "b" / "train.py").chmod(0o755)
    assert make(tmp_path / "b", tmp_path / "out-b") == first
    assert content(tmp_path / "out-a") == content(tmp_path / "out-b")


def test_other_contents_paths_entries_or_runtime_give_another_digest(tmp_path: Path) -> None:
    source = write(tmp_path / "s")
    digests = {
        make(source, tmp_path / "1"),
        build(source, tmp_path / "2", entrypoint=["python3", "x.py"], predict=None, runtime="rt"),
        build(source, tmp_path / "3", entrypoint=["python3", "train.py"], predict=None, runtime="rt"),
        build(source, tmp_path / "4", entrypoint=["python3", "train.py"], predict=None, runtime="other"),
    }
    (source / "train.py").write_bytes(b"#")
    assert len(digests | {make(source, tmp_path / "5")}) == 5


def test_read_gives_what_was_built_from_a_folder_and_from_an_archive(tmp_path: Path) -> None:
    digest = make(write(tmp_path / "s"), tmp_path / "o")
    pack(tmp_path / "o", tmp_path / "1.tar")
    pack(tmp_path / "o", tmp_path / "2.tar")
    image = read(tmp_path / "o")
    assert (tmp_path / "1.tar").read_bytes() == (tmp_path / "2.tar").read_bytes()
    assert read(tmp_path / "1.tar") == image
    assert image.digest == digest
    assert image.entrypoint == ("python3", "train.py")
    assert image.predict == ("python3", "predict.py")
    assert (image.runtime, image.workdir) == ("rt", "/app")
    assert {path: file.read() for path, file in image.files.items()} == {
        f"app/{name}": data for name, data in sorted(FILES.items())
    }


def test_what_is_left_out_is_what_the_docstring_says(tmp_path: Path) -> None:
    source = write(tmp_path / "s", {"train.py": b"1"})
    write(source, {f"{name}/x" if "." not in name else name: KEY for name in SKIPPED})
    write(source, {".env": KEY, ".git/config": b"", "sub/.hidden": b"", "sub/__pycache__/a.pyc": b""})
    (source / "empty").mkdir()
    make(source, source / "image")
    make(source, source / "image")
    make(source, tmp_path / "other")
    assert set(read(tmp_path / "other").files) == {"app/train.py"}
    assert read(source / "image").digest == read(tmp_path / "other").digest


def test_an_earlier_image_is_replaced_whole_and_other_folders_are_not_touched(tmp_path: Path) -> None:
    source = write(tmp_path / "s")
    make(source, tmp_path / "o")
    (source / "train.py").write_bytes(b"2")
    digest = make(source, tmp_path / "o")
    assert read(tmp_path / "o").digest == digest
    write(tmp_path / "mine", {"thesis.txt": b"x"})
    with pytest.raises(Refused, match="name another folder"):
        make(source, tmp_path / "mine")
    assert content(tmp_path / "mine") == {"thesis.txt": b"x"}


def test_an_interrupted_build_can_be_repeated(tmp_path: Path) -> None:
    source = write(tmp_path / "s")
    digest = make(source, tmp_path / "o")
    (tmp_path / "o" / "oci-layout").unlink()
    (tmp_path / "o" / "rapha.incomplete").touch()
    with pytest.raises(Refused, match=r"image\.layout_invalid"):
        read(tmp_path / "o")
    assert make(source, tmp_path / "o") == digest


def _symlink(folder: Path) -> None:
    (folder / "link").symlink_to("/etc/passwd")


def _linked_folder(folder: Path) -> None:
    (folder / "link").symlink_to("/etc")


def _fifo(folder: Path) -> None:
    os.mkfifo(folder / "fifo")


def _key(folder: Path) -> None:
    (folder / "deploy.txt").write_bytes(b"# notes\n" + KEY)


def _raw_key(folder: Path) -> None:
    (folder / "results.hpke").write_bytes(b"A" * 43 + b"=\n")


def _backslash(folder: Path) -> None:
    (folder / "a\\b").touch()


def _decomposed(folder: Path) -> None:
    (folder / "e\u0301.txt").touch()


def _not_utf8(folder: Path) -> None:
    (Path(os.fsdecode(os.fsencode(folder) + b"/\xff"))).touch()


def _twins(folder: Path) -> None:
    (folder / "Readme").touch()
    (folder / "README").touch()


def _long(folder: Path) -> None:
    path = folder / ("a" * 120) / ("b" * 120)
    path.mkdir(parents=True)
    (path / "c").touch()


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (_symlink, "image.file_type"),
        (_linked_folder, "image.file_type"),
        (_fifo, "image.file_type"),
        (_key, "image.secret"),
        (_raw_key, "image.secret"),
        (_backslash, "image.path_unsafe"),
        (_decomposed, "image.path_unsafe"),
        (_not_utf8, "image.path_unsafe"),
        (_twins, "image.path_unsafe"),
        (_long, "image.too_large"),
    ],
)
def test_a_folder_that_can_not_be_shipped_is_refused(spoil: object, code: str, tmp_path: Path) -> None:
    source = write(tmp_path / "s")
    assert callable(spoil)
    spoil(source)
    with pytest.raises(Refused) as refused:
        make(source, tmp_path / "o")
    assert refused.value.code == code
    assert not (tmp_path / "o").exists()


def test_a_source_that_is_not_there_and_empty_entries_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"image\.not_found"):
        make(tmp_path / "none", tmp_path / "o")
    for entrypoint, predict in (([], None), (["python3"], [])):
        with pytest.raises(Refused, match=r"image\.entrypoint_missing"):
            build(tmp_path, tmp_path / "o", entrypoint=entrypoint, predict=predict, runtime="rt")


def test_the_tree_has_normal_modes_and_goes_only_into_an_empty_folder(tmp_path: Path) -> None:
    make(write(tmp_path / "s"), tmp_path / "o")
    old = os.umask(0o077)
    try:
        image = read(tmp_path / "o", tmp_path / "u")
    finally:
        os.umask(old)
    assert (image.tree, image.kind) == (tmp_path / "u", "slim")
    assert content(tmp_path / "u" / "app") == FILES
    modes = {stat.S_IMODE(p.lstat().st_mode) for p in (tmp_path / "u").rglob("*") if p.is_file()}
    folders = {stat.S_IMODE(p.lstat().st_mode) for p in (tmp_path / "u").rglob("*") if p.is_dir()}
    assert (modes, folders) == ({0o444}, {0o755})
    with pytest.raises(Refused, match="not empty"):
        read(tmp_path / "o", tmp_path / "u")
    assert content(tmp_path / "u" / "app") == FILES
    image.close()
    assert content(tmp_path / "u" / "app") == FILES


def test_a_temporary_tree_lives_as_long_as_the_image(tmp_path: Path) -> None:
    make(write(tmp_path / "s"), tmp_path / "o")
    with read(tmp_path / "o") as image:
        tree = image.tree
        assert image.files["app/train.py"].head(4) == b"from"
    assert not tree.exists()
    image = read(tmp_path / "o")
    tree = image.tree
    assert tree.exists()
    del image
    assert not tree.exists()


def test_the_layer_is_what_other_readers_see(tmp_path: Path) -> None:
    make(write(tmp_path / "s"), tmp_path / "o")
    index = json.loads((tmp_path / "o" / "index.json").read_text())
    blobs = tmp_path / "o" / "blobs" / "sha256"
    manifest = json.loads((blobs / index["manifests"][0]["digest"].removeprefix("sha256:")).read_text())
    with tarfile.open(blobs / manifest["layers"][0]["digest"].removeprefix("sha256:")) as archive:
        members = archive.getmembers()
        seen = {m.name: archive.extractfile(m).read() for m in members if m.isfile()}  # type: ignore[union-attr]
    assert seen == {f"app/{name}": data for name, data in FILES.items()}
    assert {(m.mtime, m.uid, m.gid, m.uname) for m in members} == {(0, 0, 0, "")}


_component = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=60)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.lists(_component, min_size=1, max_size=4).map("/".join), st.binary(max_size=1200)))
def test_every_archive_that_is_written_reads_back(files: dict[str, bytes]) -> None:
    archive = ustar.write(sorted(files.items()))
    reader = tar.Reader(Stream(iter([archive])), Limits(), "it")
    assert {e.name.decode(): b"".join(reader.contents()) for e in reader} == files
