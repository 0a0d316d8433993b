"""Hostile images: each is refused with a code, whatever reads it; none raises anything else."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rapha.runtime.image import Image, Limits, read, tar, ustar
from rapha.runtime.image.stream import Stream
from rapha.spec.refusals import Refused

OCI = "application/vnd.oci.image."
LAYER = OCI + "layer.v1.tar"
Json = dict[str, Any]


def member(name: str, data: bytes = b"x", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def special(name: str, kind: bytes, link: str = "", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, b"", type=kind, linkname=link, **fields)


def layer(*members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def sha(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Layout:
    """An image layout whose parts a test can spoil before it is written."""

    def __init__(self, *layers: bytes, media: str = LAYER, stored: list[bytes] | None = None) -> None:
        self.stored = list(layers) if stored is None else stored
        self.config: Json = {
            "architecture": "amd64",
            "os": "linux",
            "config": {
                "Entrypoint": ["python3", "train.py"],
                "WorkingDir": "/app",
                "Labels": {"rapha.runtime": "python-torch"},
            },
            "rootfs": {"type": "layers", "diff_ids": [sha(data) for data in layers]},
        }
        self.manifest: Json = {
            "schemaVersion": 2,
            "mediaType": OCI + "manifest.v1+json",
            "layers": [{"mediaType": media, "digest": sha(d), "size": len(d)} for d in self.stored],
        }
        self.index: Json = {"schemaVersion": 2, "manifests": [{"mediaType": OCI + "manifest.v1+json"}]}
        self.version: Any = {"imageLayoutVersion": "1.0.0"}
        self.extra: dict[str, bytes] = {}
        self.last: Callable[[Json, Json], None] = lambda manifest, descriptor: None

    def files(self) -> dict[str, bytes]:
        config = json.dumps(self.config).encode()
        self.manifest.setdefault(
            "config", {"mediaType": OCI + "config.v1+json", "digest": sha(config), "size": len(config)}
        )
        descriptor = self.index["manifests"][0] if self.index["manifests"] else {}
        self.last(self.manifest, descriptor)
        manifest = json.dumps(self.manifest).encode()
        descriptor.setdefault("digest", sha(manifest))
        descriptor.setdefault("size", len(manifest))
        blobs = {f"blobs/sha256/{sha(d)[7:]}": d for d in (*self.stored, config, manifest)}
        top = {"oci-layout": json.dumps(self.version).encode(), "index.json": json.dumps(self.index).encode()}
        return {**top, **blobs, **self.extra}

    def write(self, folder: Path) -> Path:
        for name, data in self.files().items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        return folder

    def tar(self, path: Path) -> Path:
        path.write_bytes(layer(*(member(name, data) for name, data in self.files().items())))
        return path


def contents(image: Image) -> dict[str, bytes]:
    return {path: file.read() for path, file in image.files.items()}


PLAIN = (member("app/train.py", b"print(1)\n"), member("app/pkg/a.py", b""))


def code_of(make: Callable[[], Image]) -> str:
    with pytest.raises(Refused) as refused:
        make()
    return refused.value.code


# --- what is accepted ------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_each_common_form_of_tar_is_read(form: int, tmp_path: Path) -> None:
    long = "app/" + "d" * 90 + "/" + "f" * 90 + ".txt"
    members = (
        special("./", tarfile.DIRTYPE),
        special("./app/", tarfile.DIRTYPE, mode=0o1777),
        member("./app/train.py", b"1", mtime=1700000000.5 if form == tarfile.PAX_FORMAT else 5, uname="ann"),
        member(long, b"2"),
        member("app/\u00e9.txt", b"3"),
    )
    image = read(Layout(layer(*members, form=form)).write(tmp_path))
    assert contents(image) == {"app/train.py": b"1", long: b"2", "app/\u00e9.txt": b"3"}


@pytest.mark.parametrize("members", [1, 3])
def test_gzip_layers_of_one_and_of_several_members(members: int, tmp_path: Path) -> None:
    data = layer(*PLAIN)
    step = -(-len(data) // members)
    packed = b"".join(gzip.compress(data[at : at + step]) for at in range(0, len(data), step))
    layout = Layout(data, media=LAYER + "+gzip", stored=[packed])
    found = contents(read(layout.write(tmp_path / "f")))
    assert found == {"app/pkg/a.py": b"", "app/train.py": b"print(1)\n"}
    assert read(layout.tar(tmp_path / "a.tar")) == read(tmp_path / "f")


def test_layers_lie_over_each_other_and_whiteouts_remove_what_is_below(tmp_path: Path) -> None:
    below = layer(
        member("app/a", b"old"), member("app/gone", b""), member("app/d/x", b""), member("app/e/y", b""),
        member("app/folder/z", b""), member("app/file", b""),
    )  # fmt: skip
    above = layer(
        member("app/a", b"new"), member("app/.wh.gone", b""), member("app/.wh.d", b""),
        member("app/e/.wh..wh..opq", b""), member("app/e/fresh", b"1"), member("app/folder", b"now a file"),
        member("app/file/inside", b"now a folder"),
    )  # fmt: skip
    assert contents(read(Layout(below, above).write(tmp_path))) == {
        "app/a": b"new",
        "app/e/fresh": b"1",
        "app/file/inside": b"now a folder",
        "app/folder": b"now a file",
    }


def test_entrypoint_and_cmd_are_one_argv_and_absent_fields_have_the_specs_defaults(tmp_path: Path) -> None:
    layout = Layout(layer(*PLAIN))
    layout.config["config"] |= {"Cmd": ["train.py"], "Entrypoint": ["python3"], "WorkingDir": ""}
    image = read(layout.write(tmp_path / "1"))
    assert (image.entrypoint, image.workdir) == (("python3", "train.py"), "/")
    layout = Layout(layer(*PLAIN))
    del layout.config["config"]
    image = read(layout.write(tmp_path / "2"))
    assert (image.entrypoint, image.predict, image.runtime) == ((), None, None)


def test_what_docker_adds_to_an_archive_is_not_read(tmp_path: Path) -> None:
    layout = Layout(layer(*PLAIN))
    layout.extra = {"manifest.json": b"not json", "repositories": b"{}"}
    assert read(layout.tar(tmp_path / "a.tar")).entrypoint == ("python3", "train.py")


# --- layers ----------------------------------------------------------------------------------------

UNSAFE = "image.path_unsafe"
TYPE = "image.file_type"
LARGE = "image.too_large"
INVALID = "image.layout_invalid"

HOSTILE_LAYERS: dict[str, tuple[bytes, str]] = {
    "parent folder": (layer(member("app/../../etc/passwd")), UNSAFE),
    "absolute": (layer(member("/etc/passwd")), UNSAFE),
    "dot inside": (layer(member("app/./train.py")), UNSAFE),
    "double slash": (layer(member("app//train.py")), UNSAFE),
    "only dots": (layer(member("..")), UNSAFE),
    "backslash": (layer(member("app\\..\\train.py")), UNSAFE),
    "newline": (layer(member("app/a\nb")), UNSAFE),
    "escape sequence": (layer(member("app/\x1b[2J")), UNSAFE),
    "right to left": (layer(member("app/\u202eyp.niart")), UNSAFE),
    "zero width": (layer(member("app/tra\u200bin.py")), UNSAFE),
    "decomposed": (layer(member("app/e\u0301")), UNSAFE),
    "not utf-8": (layer(member("app/\udcff"), form=tarfile.GNU_FORMAT), UNSAFE),
    "same twice": (layer(member("app/a"), member("app/a", b"y")), UNSAFE),
    "same twice by dot": (layer(member("app/a"), member("./app/a", b"y")), UNSAFE),
    "case twins": (layer(member("app/a"), member("app/A")), UNSAFE),
    "case twins of folders": (layer(member("app/d/a"), member("app/D/b")), UNSAFE),
    "compatibility twins": (layer(member("app/fi"), member("app/\ufb01")), UNSAFE),
    "sharp s": (layer(member("app/strasse"), member("app/stra\u00dfe")), UNSAFE),
    "file and folder": (layer(member("app/a"), member("app/a/b")), UNSAFE),
    "folder and file": (layer(member("app/a/b"), member("app/a")), UNSAFE),
    "root as a file": (layer(member(".")), UNSAFE),
    "symlink out": (layer(special("app/l", tarfile.SYMTYPE, "../../etc")), UNSAFE),
    "absolute symlink": (layer(special("app/l", tarfile.SYMTYPE, "/etc/passwd")), UNSAFE),
    "hard link out": (layer(special("app/l", tarfile.LNKTYPE, "../etc/passwd")), UNSAFE),
    "absolute hard link": (layer(special("app/l", tarfile.LNKTYPE, "/etc/shadow")), UNSAFE),
    "symlink inside": (layer(member("app/a"), special("app/l", tarfile.SYMTYPE, "a")), TYPE),
    "hard link inside": (layer(member("app/a"), special("app/l", tarfile.LNKTYPE, "app/a")), TYPE),
    "character device": (layer(special("app/d", tarfile.CHRTYPE, devmajor=1, devminor=3)), TYPE),
    "block device": (layer(special("app/d", tarfile.BLKTYPE, devmajor=8)), TYPE),
    "fifo": (layer(special("app/p", tarfile.FIFOTYPE)), TYPE),
    "contiguous": (layer(special("app/c", tarfile.CONTTYPE)), TYPE),
    "unknown type": (layer(special("app/c", b"Z")), TYPE),
    "sparse": (layer(special("app/s", tarfile.GNUTYPE_SPARSE)), TYPE),
    "pax sparse": (layer(member("app/s", pax_headers={"GNU.sparse.major": "1"})), TYPE),
    "setuid": (layer(member("app/s", mode=0o4755)), TYPE),
    "setgid": (layer(member("app/s", mode=0o2755)), TYPE),
    "capability": (layer(member("app/s", pax_headers={"SCHILY.xattr.security.capability": "x"})), TYPE),
    "unknown pax record": (layer(member("app/s", pax_headers={"VENDOR.x": "1"})), INVALID),
    "global pax header": (layer(special("app/s", b"g")), TYPE),
    "whiteout of nothing": (layer(member("app/.wh.a", b"")), UNSAFE),
    "opaque whiteout of nothing": (layer(member("app/.wh..wh..opq", b"")), UNSAFE),
    "whiteout of the parent": (layer(member("app/.wh...", b"")), UNSAFE),
    "whiteout of nobody": (layer(member("app/.wh.", b"")), UNSAFE),
    "hard link metadata of aufs": (layer(member("app/.wh..wh.plnk", b"")), UNSAFE),
    "whiteout with a body": (layer(member("app/.wh.a", b"x")), TYPE),
    "deep": (layer(member("app/" + "d/" * 40 + "f")), LARGE),
    "long": (layer(member("app/" + "/".join(["d" * 200] * 6))), LARGE),
    "long name": (layer(member("app/" + "n" * 256)), LARGE),
    "not a tar": (b"hello" * 1000, INVALID),
    "empty": (b"", INVALID),
    "one zero block": (bytes(512), INVALID),
    "cut in a header": (layer(*PLAIN)[:700], INVALID),
    "cut in the data": (layer(member("app/a", b"x" * 5000))[:1024], INVALID),
    "no end": (layer(member("app/a"))[:1024], INVALID),
    "tail": (layer(*PLAIN) + layer(member("app/b")), INVALID),
    "dirty padding": (layer(member("app/a"))[:600] + b"!" + layer(member("app/a"))[601:], INVALID),
    "bad checksum": (layer(member("app/a"))[:148] + b"0000000\0" + layer(member("app/a"))[156:], INVALID),
    "folder with a body": (layer(member("app/a/", b"x", type=tarfile.DIRTYPE)), INVALID),
}


@pytest.mark.parametrize("name", HOSTILE_LAYERS)
def test_a_hostile_layer_is_refused(name: str, tmp_path: Path) -> None:
    data, code = HOSTILE_LAYERS[name]
    layout = Layout(data)
    assert code_of(lambda: read(layout.write(tmp_path / "f"))) == code
    assert code_of(lambda: read(layout.tar(tmp_path / "a.tar"))) == code


def _header(**fields: bytes) -> bytes:
    """One file header with raw fields, and its checksum made right."""
    block = bytearray(ustar.write([("app/a", b"")])[:512])
    for name, value in fields.items():
        at = {"size": 124, "mode": 100, "name": 0, "flag": 156, "magic": 257}[name]
        block[at : at + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _extended(flag: bytes, body: bytes) -> bytes:
    size = b"%011o\0" % len(body)
    return _header(flag=flag, size=size, name=b"pax\0\0") + body + bytes(-len(body) % 512)


END = bytes(1024)
RAW_LAYERS: dict[str, tuple[bytes, str]] = {
    "negative size": (_header(size=b"-0000000001\0") + END, INVALID),
    "binary size": (_header(size=b"\x80" + bytes(11)) + END, INVALID),
    "size beyond the end": (_header(size=b"00000077777\0") + END, INVALID),
    "size beyond any limit": (_header(size=b"77777777777\0") + END, LARGE),
    "not ustar": (_header(magic=bytes(8)) + END, INVALID),
    "bytes after the name's end": (_header(name=b"app/a\0b") + END, INVALID),
    "pax without an entry": (_extended(b"x", b"13 path=app/b\n"[:13]) + END, INVALID),
    "pax path out of the root": (_extended(b"x", b"17 path=../../ab\n") + _header() + END, UNSAFE),
    "pax twice": (_extended(b"x", b"14 path=app/b\n") * 2 + _header() + END, INVALID),
    "pax record twice": (_extended(b"x", b"14 path=app/b\n" * 2) + _header() + END, INVALID),
    "pax and gnu name": (
        _extended(b"x", b"14 path=app/b\n") + _extended(b"L", b"app/c\0") + _header() + END,
        INVALID,
    ),
    "pax length wrong": (_extended(b"x", b"99 path=app/b\n") + _header() + END, INVALID),
    "pax length zero": (_extended(b"x", b"0 path=app/b\n") + _header() + END, INVALID),
    "pax without equals": (_extended(b"x", b"9 path//\n") + _header() + END, INVALID),
    "pax NUL": (_extended(b"x", b"14 path=app/\0\n") + _header() + END, INVALID),
    "pax other size": (_extended(b"x", b"8 size=9"[:7] + b"\n") + _header() + END, INVALID),
    "pax size": (_extended(b"x", b"9 size=7\n"[:9]) + _header() + END, INVALID),
    "gnu name with NUL": (_extended(b"L", b"app/a\0b\0") + _header() + END, INVALID),
    "gnu name as a folder": (_extended(b"L", b"app/a/\0") + _header() + END, INVALID),
    "huge extended header": (_extended(b"x", b"1" * 70_000) + _header() + END, LARGE),
}


@pytest.mark.parametrize("name", RAW_LAYERS)
def test_a_malformed_header_is_refused(name: str, tmp_path: Path) -> None:
    data, code = RAW_LAYERS[name]
    assert code_of(lambda: read(Layout(data).write(tmp_path))) == code


@pytest.mark.parametrize(
    ("packed", "code"),
    [
        (gzip.compress(layer(*PLAIN))[:-3], INVALID),
        (gzip.compress(layer(*PLAIN)) + b"tail", INVALID),
        (b"not gzip", INVALID),
        (b"", INVALID),
        (gzip.compress(bytes(3 * 1024 * 1024)), LARGE),
        (gzip.compress(b"") * 300, LARGE),
    ],
)
def test_a_hostile_gzip_is_refused(packed: bytes, code: str, tmp_path: Path) -> None:
    layout = Layout(layer(*PLAIN), media=LAYER + "+gzip", stored=[packed])
    assert (
        code_of(lambda: read(layout.write(tmp_path), limits=Limits(unpacked=1024 * 1024, entries=100)))
        == code
    )


@pytest.mark.parametrize(
    "limits",
    [
        Limits(stored=2000),
        Limits(unpacked=2000),
        Limits(entries=1),
        Limits(layers=0),
        Limits(path=5),
        Limits(component=3),
        Limits(depth=1),
        Limits(json=40),
    ],
)
def test_every_limit_holds(limits: Limits, tmp_path: Path) -> None:
    layout = Layout(layer(*PLAIN))
    assert code_of(lambda: read(layout.write(tmp_path / "f"), limits=limits)) == LARGE
    assert code_of(lambda: read(layout.tar(tmp_path / "a.tar"), limits=limits)) == LARGE


# --- layout ----------------------------------------------------------------------------------------


def _set(part: str, key: str, value: object) -> Callable[[Layout], None]:
    def spoil(layout: Layout) -> None:
        getattr(layout, part)[key] = value

    return spoil


def _run(key: str, value: object) -> Callable[[Layout], None]:
    def spoil(layout: Layout) -> None:
        layout.config["config"][key] = value

    return spoil


def _descriptor(key: str, value: object) -> Callable[[Layout], None]:
    def spoil(layout: Layout) -> None:
        layout.last = lambda _, descriptor: descriptor.update({key: value})

    return spoil


def _of_layer(key: str, value: object) -> Callable[[Layout], None]:
    def spoil(layout: Layout) -> None:
        layout.manifest["layers"][0][key] = value

    return spoil


def _extra_blob(layout: Layout) -> None:
    layout.extra = {f"blobs/sha256/{sha(b'more')[7:]}": b"more"}


def _changed_blob(layout: Layout) -> None:
    stored = layout.stored[0]
    layout.extra = {f"blobs/sha256/{sha(stored)[7:]}": stored.replace(b"print(1)", b"print(2)")}


def _version(layout: Layout) -> None:
    layout.version = {"imageLayoutVersion": "2.0.0"}


def _version_text(layout: Layout) -> None:
    layout.version = ["1.0.0"]


def _no_manifest(layout: Layout) -> None:
    layout.index["manifests"] = []


def _two_manifests(layout: Layout) -> None:
    layout.index["manifests"].append({"mediaType": OCI + "manifest.v1+json"})


def _duplicate_key(layout: Layout) -> None:
    layout.extra = {"index.json": b'{"schemaVersion": 2, "schemaVersion": 2, "manifests": []}'}


def _deep_json(layout: Layout) -> None:
    layout.extra = {"index.json": b"[" * 100_000}


MISMATCH = "image.digest_mismatch"
HOSTILE_LAYOUTS: dict[str, tuple[Callable[[Layout], None], str]] = {
    "another version": (_version, INVALID),
    "version is a list": (_version_text, INVALID),
    "no manifest": (_no_manifest, INVALID),
    "two manifests": (_two_manifests, INVALID),
    "duplicate key": (_duplicate_key, INVALID),
    "deep json": (_deep_json, INVALID),
    "index schema": (_set("index", "schemaVersion", 1), INVALID),
    "index schema is true": (_set("index", "schemaVersion", True), INVALID),
    "manifest schema": (_set("manifest", "schemaVersion", "2"), INVALID),
    "manifest is an index too": (_set("manifest", "manifests", []), INVALID),
    "manifest of another type": (_set("manifest", "mediaType", "text/plain"), INVALID),
    "nested index": (_descriptor("mediaType", OCI + "index.v1+json"), INVALID),
    "docker's type": (
        _descriptor("mediaType", "application/vnd.docker.distribution.manifest.v2+json"),
        INVALID,
    ),
    "digest of another algorithm": (_descriptor("digest", "sha512:" + "0" * 128), INVALID),
    "digest as a path": (_descriptor("digest", "sha256:../../../etc/passwd"), INVALID),
    "digest with a newline": (_descriptor("digest", "sha256:" + "0" * 64 + "\n"), INVALID),
    "digest is a number": (_descriptor("digest", 7), INVALID),
    "manifest absent": (_descriptor("digest", "sha256:" + "0" * 64), "image.not_found"),
    "manifest size": (_descriptor("size", 1), MISMATCH),
    "size is true": (_descriptor("size", True), MISMATCH),
    "layer size": (_of_layer("size", 10**9), MISMATCH),
    "layer absent": (_of_layer("digest", "sha256:" + "1" * 64), "image.not_found"),
    "layer is zstd": (_of_layer("mediaType", LAYER + "+zstd"), INVALID),
    "layer is foreign": (_of_layer("mediaType", OCI + "layer.nondistributable.v1.tar"), INVALID),
    "layer type is a list": (_of_layer("mediaType", [LAYER]), INVALID),
    "blob changed": (_changed_blob, MISMATCH),
    "blob nobody names": (_extra_blob, INVALID),
    "no config": (_set("manifest", "config", None), INVALID),
    "layers is an object": (_set("manifest", "layers", {}), INVALID),
    "layer is a text": (_set("manifest", "layers", ["x"]), INVALID),
    "another system": (_set("config", "os", "windows"), INVALID),
    "no rootfs": (_set("config", "rootfs", None), INVALID),
    "too few diff ids": (_set("config", "rootfs", {"type": "layers", "diff_ids": []}), INVALID),
    "another diff id": (_set("config", "rootfs", {"type": "layers", "diff_ids": ["sha256:0"]}), MISMATCH),
    "rootfs of another type": (_set("config", "rootfs", {"type": "x", "diff_ids": []}), INVALID),
    "run config is a list": (_set("config", "config", ["x"]), INVALID),
    "entrypoint is a text": (_run("Entrypoint", "python3 train.py"), INVALID),
    "entrypoint has a number": (_run("Entrypoint", ["python3", 1]), INVALID),
    "entrypoint has a NUL": (_run("Entrypoint", ["python3", "a\0b"]), INVALID),
    "entrypoint has a surrogate": (_run("Entrypoint", ["python3", "\ud800"]), INVALID),
    "entrypoint is long": (_run("Entrypoint", ["x"] * 300), INVALID),
    "working folder is relative": (_run("WorkingDir", "app"), UNSAFE),
    "working folder climbs": (_run("WorkingDir", "/app/../etc"), UNSAFE),
    "working folder is a number": (_run("WorkingDir", 5), INVALID),
    "labels is a list": (_run("Labels", []), INVALID),
    "runtime is a list": (_run("Labels", {"rapha.runtime": []}), INVALID),
    "predict is not json": (_run("Labels", {"rapha.predict": "python3 p.py"}), INVALID),
    "predict is a number": (_run("Labels", {"rapha.predict": 5}), INVALID),
    "predict is empty": (_run("Labels", {"rapha.predict": "[]"}), INVALID),
    "predict is a surrogate": (_run("Labels", {"rapha.predict": "\ud800"}), INVALID),
}


@pytest.mark.parametrize("name", HOSTILE_LAYOUTS)
def test_a_hostile_layout_is_refused(name: str, tmp_path: Path) -> None:
    spoil, code = HOSTILE_LAYOUTS[name]
    layout = Layout(layer(*PLAIN))
    spoil(layout)
    assert code_of(lambda: read(layout.write(tmp_path / "f"))) == code
    assert code_of(lambda: read(layout.tar(tmp_path / "a.tar"))) == code


def _blob_link(folder: Path) -> None:
    blob = next((folder / "blobs" / "sha256").iterdir())
    blob.rename(folder / "elsewhere")
    blob.symlink_to(folder / "elsewhere")


def _folder_link(folder: Path) -> None:
    (folder / "blobs").rename(folder / "elsewhere")
    (folder / "blobs").symlink_to(folder / "elsewhere")


def _index_fifo(folder: Path) -> None:
    (folder / "index.json").unlink()
    os.mkfifo(folder / "index.json")


def _index_device(folder: Path) -> None:
    (folder / "index.json").unlink()
    (folder / "index.json").symlink_to("/dev/zero")


def _blob_folder(folder: Path) -> None:
    (folder / "blobs" / "sha256" / "more").mkdir()


def _index_gone(folder: Path) -> None:
    (folder / "index.json").unlink()


def _many_blobs(folder: Path) -> None:
    for number in range(1100):
        (folder / "blobs" / "sha256" / str(number)).touch()


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (_blob_link, TYPE),
        (_folder_link, TYPE),
        (_index_fifo, TYPE),
        (_index_device, TYPE),
        (_blob_folder, TYPE),
        (_index_gone, INVALID),
        (_many_blobs, LARGE),
    ],
)
def test_a_hostile_folder_is_refused(spoil: Callable[[Path], None], code: str, tmp_path: Path) -> None:
    folder = Layout(layer(*PLAIN)).write(tmp_path / "f")
    spoil(folder)
    assert code_of(lambda: read(folder)) == code


def test_a_source_that_is_no_image_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").mkdir()
    assert code_of(lambda: read(tmp_path / "none")) == "image.not_found"
    assert code_of(lambda: read(tmp_path / "fifo")) == "image.not_found"
    assert code_of(lambda: read(tmp_path / "text")) == INVALID
    assert code_of(lambda: read(tmp_path / "empty")) == INVALID


@pytest.mark.parametrize(
    ("extra", "code"),
    [
        (member("../../etc/cron.d/x"), UNSAFE),
        (member("index.json", b"{}"), UNSAFE),
        (member("INDEX.JSON", b"{}"), UNSAFE),
        (special("blobs/sha256/" + "0" * 64, tarfile.SYMTYPE, "/etc/passwd"), TYPE),
        (special("pipe", tarfile.FIFOTYPE), TYPE),
    ],
)
def test_a_hostile_archive_of_a_good_layout_is_refused(
    extra: tuple[tarfile.TarInfo, bytes], code: str, tmp_path: Path
) -> None:
    files = [member(name, data) for name, data in Layout(layer(*PLAIN)).files().items()]
    (tmp_path / "a.tar").write_bytes(layer(*files, extra))
    assert code_of(lambda: read(tmp_path / "a.tar")) == code


# --- mutation --------------------------------------------------------------------------------------

_GOOD = layer(
    *PLAIN, member("app/" + "n" * 120, b"long"), special("app/d", tarfile.DIRTYPE), form=tarfile.PAX_FORMAT
)
_GOOD_ARCHIVE = layer(*(member(name, data) for name, data in Layout(_GOOD).files().items()))
_edits = st.lists(
    st.tuples(st.integers(0, len(_GOOD_ARCHIVE) - 1), st.integers(0, 255)), min_size=1, max_size=6
)


def _mutated(data: bytes, edits: list[tuple[int, int]]) -> bytes:
    changed = bytearray(data)
    for at, value in edits:
        changed[at % len(changed)] = value
    return bytes(changed)


@settings(max_examples=250, deadline=None)
@given(edits=_edits)
def test_a_mutated_layer_reads_or_refuses(
    edits: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    # The layout names the mutated layer rightly, so that every reader behind the digests sees it.
    path = Layout(_mutated(_GOOD, edits)).write(tmp_path_factory.mktemp("m"))
    try:
        image = read(path)
    except Refused as refused:
        assert refused.code.startswith("image.")
    else:
        assert all(not name.startswith("/") and ".." not in name.split("/") for name in image.files)


@settings(max_examples=150, deadline=None)
@given(edits=_edits, cut=st.integers(0, len(_GOOD_ARCHIVE)))
def test_a_mutated_or_cut_archive_reads_or_refuses(
    edits: list[tuple[int, int]], cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated.tar"
    path.write_bytes(_mutated(_GOOD_ARCHIVE, edits)[:cut])
    try:
        read(path)
    except Refused as refused:
        assert refused.code.startswith("image.")


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=3000))
def test_arbitrary_bytes_are_no_archive(data: bytes) -> None:
    try:
        entries = list(tar.Reader(Stream(iter([data])), Limits(), "it"))
    except Refused:
        return
    assert entries == [] and not data.strip(b"\0")
