"""Full images: links, bases, compressions and platforms, read as hostile input and kept inside the root."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from rapha.runtime.image import FULL, AllowList, Image, Limits, Runtime, read
from rapha.runtime.image.documents import host_platform
from rapha.runtime.image.model import MOUNT_POINTS
from rapha.spec.refusals import Refused

OCI = "application/vnd.oci.image."
DOCKER = "application/vnd.docker."
LAYER = OCI + "layer.v1.tar"
UNSAFE, TYPE = "image.path_unsafe", "image.file_type"
LARGE, INVALID = "image.too_large", "image.layout_invalid"
Member = tuple[tarfile.TarInfo, bytes]
Json = dict[str, Any]


def member(name: str, data: bytes = b"x", **fields: Any) -> Member:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def folder(name: str, **fields: Any) -> Member:
    return member(name, b"", type=tarfile.DIRTYPE, **fields)


def sym(name: str, target: str) -> Member:
    return member(name, b"", type=tarfile.SYMTYPE, linkname=target)


def hard(name: str, target: str) -> Member:
    return member(name, b"", type=tarfile.LNKTYPE, linkname=target)


def special(name: str, kind: bytes) -> Member:
    return member(name, b"", type=kind)


def layer(*members: Member, form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def sha(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def describe(media: str, data: bytes, **more: Any) -> Json:
    return {"mediaType": media, "digest": sha(data), "size": len(data), **more}


def dump(value: object) -> bytes:
    return json.dumps(value).encode()


class Made:
    """An image of the given uncompressed layers; parts may be changed before `write`."""

    def __init__(self, *layers: bytes, stored: list[bytes] | None = None, media: str = LAYER) -> None:
        self.layers = layers
        self.stored = list(layers) if stored is None else stored
        self.media = media
        self.manifest_type = OCI + "manifest.v1+json"
        self.config_type = OCI + "config.v1+json"
        self.run: Json = {"Entrypoint": ["python3", "train.py"], "WorkingDir": "/app"}
        self.architecture = "amd64"
        self.index: list[Json] | None = None
        self.more: list[bytes] = []

    @property
    def config(self) -> bytes:
        rootfs = {"type": "layers", "diff_ids": [sha(data) for data in self.layers]}
        about = {"os": "linux", "architecture": self.architecture}
        return dump({**about, "config": self.run, "rootfs": rootfs})

    @property
    def manifest(self) -> bytes:
        body = {
            "schemaVersion": 2,
            "mediaType": self.manifest_type,
            "config": describe(self.config_type, self.config),
            "layers": [describe(self.media, data) for data in self.stored],
        }
        return dump(body)

    def entry(self, **more: Any) -> Json:
        return describe(self.manifest_type, self.manifest, **more)

    def blobs(self) -> list[bytes]:
        return [*self.stored, self.config, self.manifest, *self.more]

    def write(self, at: Path) -> Path:
        (at / "blobs" / "sha256").mkdir(parents=True)
        for data in self.blobs():
            (at / "blobs" / "sha256" / sha(data)[7:]).write_bytes(data)
        index = [self.entry()] if self.index is None else self.index
        (at / "index.json").write_bytes(dump({"schemaVersion": 2, "manifests": index}))
        (at / "oci-layout").write_bytes(dump({"imageLayoutVersion": "1.0.0"}))
        return at


def allowing(*layers: bytes) -> AllowList:
    return AllowList(runtimes=(Runtime(name="base", layers=tuple(sha(data) for data in layers)),))


def contents(image: Image) -> dict[str, bytes]:
    return {path: file.read() for path, file in image.files.items()}


def code_of(make: Callable[[], Image]) -> str:
    with pytest.raises(Refused) as refused:
        make()
    return refused.value.code


TRAIN = member("app/train.py", b"print(1)\n")

# --- what is accepted ------------------------------------------------------------------------------


def test_the_tree_is_what_the_layers_say_with_normal_modes_and_mount_points(tmp_path: Path) -> None:
    below = layer(
        folder("tmp", mode=0o1777), member("usr/bin/python3", b"elf", mode=0o755), sym("bin", "usr/bin")
    )
    image = read(
        Made(below, layer(TRAIN, sym("app/py", "/bin/python3"))).write(tmp_path / "i"), tmp_path / "t"
    )
    assert (image.kind, image.runtime, image.base) == ("full", None, ())
    assert contents(image) == {"app/train.py": b"print(1)\n", "usr/bin/python3": b"elf"}
    assert image.links == {"app/py": "/bin/python3", "bin": "usr/bin"}
    assert image.added == {"app/train.py", "usr/bin/python3", "app/py", "bin"}
    assert (image.files["usr/bin/python3"].executable, image.files["app/train.py"].executable) == (
        True,
        False,
    )
    assert stat.S_IMODE((image.tree / "usr/bin/python3").lstat().st_mode) == 0o555
    assert str((image.tree / "bin").readlink()) == "usr/bin"
    assert all(not any((image.tree / path).iterdir()) for path in MOUNT_POINTS)
    assert sorted(p.name for p in image.tree.iterdir()) == [
        "app",
        "bin",
        "dev",
        "proc",
        "rapha",
        "tmp",
        "usr",
    ]


def _packed(data: bytes) -> Iterator[tuple[str, bytes]]:
    half = len(data) // 2
    skippable = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"meta"
    frames = zstd.compress(data[:half]) + skippable + zstd.compress(data[half:])
    yield LAYER + "+gzip", gzip.compress(data)
    yield LAYER + "+gzip", gzip.compress(data[:half]) + gzip.compress(b"") + gzip.compress(data[half:])
    yield LAYER + "+zstd", zstd.compress(data)
    yield LAYER + "+zstd", frames
    yield DOCKER + "image.rootfs.diff.tar.gzip", gzip.compress(data)
    yield DOCKER + "image.rootfs.diff.tar", data


def test_every_compression_gives_the_same_tree(tmp_path: Path) -> None:
    data = layer(TRAIN, member("app/large.bin", bytes(range(256)) * 4000))
    for number, (media, packed) in enumerate(_packed(data)):
        made = Made(data, stored=[packed], media=media)
        if media.startswith(DOCKER):
            made.manifest_type = DOCKER + "distribution.manifest.v2+json"
            made.config_type = DOCKER + "container.image.v1+json"
        with read(made.write(tmp_path / str(number))) as image:
            assert contents(image)["app/large.bin"] == bytes(range(256)) * 4000


BASE = layer(
    member("usr/bin/su", b"su", mode=0o4755),
    member("usr/bin/ping", b"ping", pax_headers={"SCHILY.xattr.security.capability": "\x01\x02"}),
    member("usr/include/xt_DSCP.h", b"D"),
    member("usr/include/xt_dscp.h", b"d"),
    member("usr/lib/systemd/system-a\\x2db.slice", b"s"),
    member("usr/lib/e\u0301", b"decomposed"),
    member("usr/twice", b"1"),
    member("usr/twice", b"2"),
    sym("usr/up", "../../../usr/bin"),
    hard("usr/bin/sudo", "usr/bin/su"),
    member("/etc/hosts", b"h", pax_headers={"VENDOR.note": "1"}),
)


def test_an_allow_listed_base_may_hold_what_distributions_hold(tmp_path: Path) -> None:
    made = Made(BASE, layer(TRAIN, hard("app/su", "usr/bin/su"), member("usr/twice", b"3")))
    with read(made.write(tmp_path / "i"), allow=allowing(BASE)) as image:
        found = contents(image)
        assert image.base == (sha(BASE),)
        assert image.added == {"app/train.py", "app/su", "usr/twice"}
        assert (found["usr/include/xt_DSCP.h"], found["usr/include/xt_dscp.h"]) == (b"D", b"d")
        assert (found["usr/twice"], found["app/su"], found["etc/hosts"]) == (b"3", b"su", b"h")
        assert stat.S_IMODE((image.tree / "usr/bin/su").stat().st_mode) == 0o555
        assert not os.listxattr(image.tree / "usr/bin/ping")
    assert code_of(lambda: read(tmp_path / "i")) == TYPE


def test_a_base_is_allowed_only_whole_and_first() -> None:
    allow = AllowList(
        runtimes=(
            Runtime(name="short", layers=("sha256:" + "1" * 64,)),
            Runtime(name="long", layers=("sha256:" + "1" * 64, "sha256:" + "2" * 64)),
        )
    )
    ids = tuple("sha256:" + digit * 64 for digit in "123")
    assert allow.base_of(ids) == ids[:2]
    assert allow.base_of((ids[0], ids[2])) == ids[:1]
    assert allow.base_of((ids[1], ids[0])) == allow.base_of(()) == ()


def test_names_go_where_links_point_inside_the_root(tmp_path: Path) -> None:
    below = layer(
        folder("usr/lib"), sym("lib", "usr/lib"), sym("abs", "/usr/lib"), sym("deep", "lib/../lib/."),
        sym("dangling", "var/made"), sym("climb", "usr/../usr"),
    )  # fmt: skip
    above = layer(
        member("lib/a", b"1"), member("abs/b", b"2"), member("deep/c", b"3"), member("dangling/d", b"4"),
        member("climb/lib/e", b"5"), hard("f", "lib/a"), hard("again", "lib"),
    )  # fmt: skip
    with read(Made(below, above).write(tmp_path / "i")) as image:
        found = contents(image)
        assert {path: found[path] for path in found if path != "f"} == {
            "usr/lib/a": b"1", "usr/lib/b": b"2", "usr/lib/c": b"3", "var/made/d": b"4", "usr/lib/e": b"5",
        }  # fmt: skip
        assert (found["f"], image.links["again"]) == (b"1", "usr/lib")


def test_whiteouts_act_on_lower_layers_only_wherever_they_stand(tmp_path: Path) -> None:
    below = layer(
        member("d/old"), member("e/old"), member("gone"), sym("l", "e"), hard("kept", "gone"), sym("m", "d")
    )
    above = layer(
        member("d/new"), member(".wh.d", b""), member(".wh.gone", b""), member(".wh.never", b""),
        member("none/.wh.x", b""), member("l/.wh.old", b""), member("e/fresh"), member("gone/inside"),
        member(".wh.m", b""), member("n/.wh..wh..opq", b""),
    )  # fmt: skip
    with read(Made(below, above).write(tmp_path / "i")) as image:
        assert set(image.files) == {"d/new", "e/fresh", "gone/inside", "kept"}
        assert image.links == {"l": "e"}


def test_path_is_kept_only_where_it_is_plain_folders(tmp_path: Path) -> None:
    table: list[tuple[object, tuple[str, ...]]] = [
        (["HOME=/root", "PATH=/opt/venv/bin:/usr/bin"], ("/opt/venv/bin", "/usr/bin")),
        (["PATH=/usr/bin:bin"], ()),
        (["PATH=/usr/bin:"], ()),
        (["PATH=/usr/../bin"], ()),
        (["PATH=/a", "PATH=/b"], ()),
        (["PATH=$HOME/bin"], ()),
        ("PATH=/a", ()),
        ([7], ()),
    ]
    for number, (env, expected) in enumerate(table):
        made = Made(layer(TRAIN))
        made.run["Env"] = env
        with read(made.write(tmp_path / str(number))) as image:
            assert image.path == expected


# --- what is refused -------------------------------------------------------------------------------

HOSTILE: dict[str, tuple[tuple[Member, ...], str]] = {
    "symlink out": ((sym("app/l", "../../etc"),), UNSAFE),
    "symlink that dips out": ((sym("app/l", "../../app/x"),), UNSAFE),
    "absolute symlink that climbs": ((sym("app/l", "/../etc"),), UNSAFE),
    "symlink to nothing": ((sym("app/l", ""),), UNSAFE),
    "symlink with an escape": ((sym("app/l", "a\x1b[2J"),), UNSAFE),
    "symlink that hides its end": ((sym("app/l", "a\u202egpj"),), UNSAFE),
    "symlink over the path limit": ((sym("app/l", "a/" * 600),), LARGE),
    "loop": ((sym("a", "b"), sym("b", "a"), member("a/x")), UNSAFE),
    "loop on itself": ((sym("a", "a"), member("a/x")), UNSAFE),
    "hard link out": ((hard("app/l", "../etc/passwd"),), UNSAFE),
    "absolute hard link": ((hard("app/l", "/etc/passwd"),), UNSAFE),
    "hard link to nothing": ((hard("app/l", "app/none"),), UNSAFE),
    "hard link to a folder": ((member("app/a/b"), hard("l", "app/a")), UNSAFE),
    "setuid": ((member("app/s", mode=0o4755),), TYPE),
    "setgid folder": ((folder("app/s", mode=0o2755),), TYPE),
    "capability": ((member("app/s", pax_headers={"SCHILY.xattr.security.capability": "x"}),), TYPE),
    "device": ((special("dev/null", tarfile.CHRTYPE),), TYPE),
    "disk": ((special("dev/sda", tarfile.BLKTYPE),), TYPE),
    "fifo": ((special("run/p", tarfile.FIFOTYPE),), TYPE),
    "twins": ((member("app/a"), member("app/A")), UNSAFE),
    "twins across a link": ((member("d/a"), sym("l", "d"), member("l/A")), UNSAFE),
    "one file by two names": ((member("d/a"), sym("l", "d"), member("l/a")), UNSAFE),
    "file and link": ((member("d/a"), sym("d/a/", "x")), UNSAFE),
    "below a whiteout": ((member(".wh.a/b"),), UNSAFE),
    "whiteout folder": ((folder(".wh.a"),), TYPE),
    "whiteout link": ((sym(".wh.a", "b"),), TYPE),
    "aufs": ((folder(".wh..wh.plnk"),), UNSAFE),
    "deep through links": (
        (folder("d/" * 60), sym("l", "d/" * 60), sym("l2", "l/" + "e/" * 60), member("l2/x")), LARGE
    ),
    "content in /tmp": ((member("tmp/x"),), UNSAFE),
    "content in /proc": ((folder("proc/self"),), UNSAFE),
    "link in /dev": ((sym("dev/fd", "/proc/self/fd"),), UNSAFE),
    "/tmp is a link": ((sym("tmp", "app"),), UNSAFE),
    "/rapha is a link": ((sym("rapha", "app"),), UNSAFE),
    "/rapha/in is a file": ((member("rapha/in"),), UNSAFE),
}  # fmt: skip


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A folder for the tree, beside one that nothing may touch."""
    (tmp_path / "sentinel").mkdir()
    (tmp_path / "sentinel" / "file").write_bytes(b"mine")
    (tmp_path / "tree").mkdir()
    yield tmp_path / "tree"
    assert [p.name for p in (tmp_path / "sentinel").iterdir()] == ["file"]
    assert (tmp_path / "sentinel" / "file").read_bytes() == b"mine"


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_layer_is_refused_and_leaves_nothing(name: str, tmp_path: Path, outside: Path) -> None:
    members, code = HOSTILE[name]
    image = Made(layer(TRAIN), layer(*members)).write(tmp_path / "i")
    assert code_of(lambda: read(image, outside)) == code
    assert not any(outside.iterdir())


def test_what_a_base_may_hold_a_layer_above_it_may_not(tmp_path: Path) -> None:
    allow = allowing(BASE)
    for number, bad in enumerate(
        (member("usr/include/XT_dscp.h"), member("app/s", mode=0o4755), member("/x"))
    ):
        image = Made(BASE, layer(bad)).write(tmp_path / str(number))
        assert code_of(lambda at=image: read(at, allow=allow)) in (UNSAFE, TYPE)  # type: ignore[misc]


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_no_base_holds_devices(kind: bytes, tmp_path: Path) -> None:
    base = layer(special("dev/x", kind))
    assert code_of(lambda: read(Made(base).write(tmp_path / "i"), allow=allowing(base))) == TYPE


def _frame(dictionary: bool, window: int) -> bytes:
    data = layer(TRAIN, member("app/words", b"words and words and other words " * 40))
    if dictionary:
        trained = zstd.ZstdDict(b"words and other words " * 20, is_raw=True)
        return zstd.compress(data, zstd_dict=trained)
    options = {int(zstd.CompressionParameter.window_log): window}
    stream = zstd.ZstdCompressor(options=options)
    return stream.compress(data) + stream.flush()


@pytest.mark.parametrize(
    ("media", "packed", "code"),
    [
        ("+zstd", zstd.compress(layer(TRAIN))[:-2], INVALID),
        ("+zstd", zstd.compress(layer(TRAIN)) + b"tail", INVALID),
        ("+zstd", b"", INVALID),
        ("+zstd", b"\x50\x2a\x4d\x18\0\0\0\0" * 90_000, LARGE),
        ("+zstd", zstd.compress(bytes(200 * 1024 * 1024)), LARGE),
        ("+gzip", gzip.compress(bytes(200 * 1024 * 1024), 9), LARGE),
        ("+gzip", gzip.compress(b"") * 90_000, LARGE),
    ],
)
def test_a_hostile_stream_is_refused(
    media: str, packed: bytes, code: str, tmp_path: Path, outside: Path
) -> None:
    made = Made(layer(TRAIN), stored=[packed], media=LAYER + media)
    limits = replace(FULL, entries=40_000)
    # Zeros from the first byte end an archive, so the bombs are met while its tail is looked for.
    assert code_of(lambda: read(made.write(tmp_path / "i"), outside, limits=limits)) in (code, INVALID)
    assert not any(outside.iterdir())


@pytest.mark.parametrize(("dictionary", "window"), [(True, 20), (False, 30)])
def test_zstd_frames_that_need_a_dictionary_or_much_memory_are_refused(
    dictionary: bool, window: int, tmp_path: Path
) -> None:
    made = Made(layer(TRAIN), stored=[_frame(dictionary, window)], media=LAYER + "+zstd")
    with pytest.raises(Refused, match="not zstd"):
        read(made.write(tmp_path / "i"))


def _bomb(size: int) -> bytes:
    """The start of an archive whose one file is `size` zeros."""
    return member("app/zeros", b"", size=size)[0].tobuf(tarfile.USTAR_FORMAT)


@pytest.mark.parametrize("pack", [zstd.compress, gzip.compress])
def test_a_bomb_in_a_file_is_refused_soon(
    pack: Callable[[bytes], bytes], tmp_path: Path, outside: Path
) -> None:
    packed = pack(_bomb(7 * 1024**3) + bytes(200 * 1024 * 1024))
    made = Made(layer(TRAIN), stored=[packed], media=LAYER + ("+gzip" if pack is gzip.compress else "+zstd"))
    assert code_of(lambda: read(made.write(tmp_path / "i"), outside)) == LARGE
    assert not any(outside.iterdir())


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"unpacked": 4000}, LARGE),
        ({"stored": 4000}, LARGE),
        ({"entries": 3}, LARGE),
        ({"names": 40}, LARGE),
        ({"layers": 0}, LARGE),
        ({"keep_free": 2**62}, "node.disk_full"),
    ],
)
def test_every_limit_holds(changed: dict[str, int], code: str, tmp_path: Path, outside: Path) -> None:
    data = layer(*(member(f"app/{n}", b"x" * 600) for n in range(6)))
    limits = replace(FULL, **changed)
    assert code_of(lambda: read(Made(data).write(tmp_path / "i"), outside, limits=limits)) == code
    assert not any(outside.iterdir())


def test_implied_folders_and_hard_links_count(tmp_path: Path) -> None:
    implied = layer(*(member("/".join(f"{n}{d}" for d in range(30)) + "/f") for n in range(10)))
    limits = replace(FULL, entries=100)
    assert code_of(lambda: read(Made(implied).write(tmp_path / "1"), limits=limits)) == LARGE
    copies = layer(member("a", b"x" * 3000), *(hard(f"h{n}", "a") for n in range(9)))
    limits = Limits(unpacked=20_000)
    assert code_of(lambda: read(Made(copies).write(tmp_path / "2"), limits=limits)) == LARGE


def test_long_chains_of_links_are_not_followed_for_ever(tmp_path: Path) -> None:
    chain = [sym("l0", "d" + "/." * 400), folder("d")]
    chain += [sym(f"l{n}", f"l{n - 1}" + "/." * 400) for n in range(1, 30)]
    data = layer(*chain, *(member(f"l29/{n}") for n in range(100)))
    limits = replace(FULL, entries=150)
    assert code_of(lambda: read(Made(data).write(tmp_path / "i"), limits=limits)) == LARGE


# --- index and manifest ----------------------------------------------------------------------------

OTHER = {"os": "linux", "architecture": "s390x"}
HOST = dict(zip(("os", "architecture"), host_platform(), strict=True))
UNKNOWN = {"os": "unknown", "architecture": "unknown"}


def _attestation(kind: str = "application/vnd.in-toto+json") -> tuple[bytes, list[bytes]]:
    statement, config = dump({"_type": "x"}), dump({"os": "unknown"})
    body = {
        "schemaVersion": 2,
        "mediaType": OCI + "manifest.v1+json",
        "config": describe(OCI + "config.v1+json", config),
        "layers": [describe(kind, statement)],
    }
    return dump(body), [statement, config]


def test_of_several_platforms_this_machines_is_taken(tmp_path: Path) -> None:
    mine, other = Made(layer(TRAIN)), Made(layer(member("other")))
    made, blobs = _attestation()
    inner = dump(
        {
            "schemaVersion": 2,
            "manifests": [
                mine.entry(platform=HOST),
                other.entry(platform=OTHER),
                describe(
                    OCI + "manifest.v1+json", b"never exported", platform={**OTHER, "architecture": "arm"}
                ),
                describe(OCI + "manifest.v1+json", made, platform=UNKNOWN),
            ],
        }
    )
    mine.more = [*other.blobs(), made, *blobs, inner]
    mine.index = [describe(OCI + "index.v1+json", inner)]
    with read(mine.write(tmp_path / "i")) as image:
        assert (image.digest, set(image.files)) == (sha(mine.manifest), {"app/train.py"})


def _two(first: Json | None, second: Json | None) -> Made:
    made, other = Made(layer(TRAIN)), Made(layer(member("other")))
    made.more = other.blobs()
    made.index = [
        made.entry(**({"platform": first} if first else {})),
        other.entry(**({"platform": second} if second else {})),
    ]
    return made


def _twice_nested() -> Made:
    made = Made(layer(TRAIN))
    inner = dump({"schemaVersion": 2, "manifests": [made.entry()]})
    outer = dump({"schemaVersion": 2, "manifests": [describe(OCI + "index.v1+json", inner)]})
    made.more, made.index = [inner, outer], [describe(OCI + "index.v1+json", outer)]
    return made


def _odd_attestation() -> Made:
    made = Made(layer(TRAIN))
    body, blobs = _attestation("application/octet-stream")
    made.more = [body, *blobs]
    made.index = [made.entry(), describe(OCI + "manifest.v1+json", body, platform=UNKNOWN)]
    return made


def _media(media: str) -> Made:
    return Made(layer(TRAIN), media=media)


def _elsewhere() -> Made:
    made = Made(layer(TRAIN))
    made.index = [made.entry(urls=["https://example.org/layer"])]
    return made


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda: _two(None, None), INVALID),
        (lambda: _two(HOST, HOST), INVALID),
        (lambda: _two(OTHER, {**OTHER, "architecture": "arm"}), INVALID),
        (lambda: _two({"os": "linux"}, OTHER), INVALID),
        (_twice_nested, INVALID),
        (_odd_attestation, INVALID),
        (_elsewhere, INVALID),
        (lambda: _media(LAYER + "+encrypted"), "image.encrypted"),
        (lambda: _media(LAYER + "+gzip+encrypted"), "image.encrypted"),
        (lambda: _media(OCI + "layer.nondistributable.v1.tar+gzip"), INVALID),
        (lambda: _media(DOCKER + "image.rootfs.foreign.diff.tar.gzip"), INVALID),
    ],
)
def test_a_layout_that_is_not_one_readable_image_is_refused(
    make: Callable[[], Made], code: str, tmp_path: Path
) -> None:
    assert code_of(lambda: read(make().write(tmp_path / "i"))) == code


def test_a_docker_archive_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(layer(member("manifest.json", b"[]"), member("abc/layer.tar", b"")))
    with pytest.raises(Refused, match="docker-archive, not an OCI one"):
        read(tmp_path / "a.tar")


# --- against an oracle, mutated, and large -----------------------------------------------------------

_names = st.lists(st.sampled_from("abcd"), min_size=1, max_size=3).map("/".join)
_layers = st.lists(
    st.dictionaries(
        _names, st.one_of(st.binary(max_size=20), st.sampled_from([None, "wh", "opq"])), max_size=6
    ),
    min_size=1,
    max_size=4,
)


def _oracle(stack: list[dict[str, bytes | str | None]]) -> tuple[dict[str, bytes], list[bytes]]:
    """Files left by layers of files, folders (None) and whiteouts, on plain dictionaries."""
    files: dict[str, bytes] = {}
    archives = []
    for above in stack:
        plain = {p: d for p, d in above.items() if isinstance(d, bytes | None)}
        used = {p: d for p, d in plain.items() if not any(q.startswith(p + "/") for q in plain) or d is None}
        used = {
            p: d
            for p, d in used.items()
            if not any(p.startswith(q + "/") and used[q] is not None for q in used)
        }
        hidden = [p for p, d in above.items() if d == "wh"]
        opaque = [p + "/" for p, d in above.items() if d == "opq"]
        files = {
            p: d
            for p, d in files.items()
            if not any(p == h or p.startswith(h + "/") for h in hidden)
            and not any(p.startswith(o) for o in opaque)
        }
        for path, data in used.items():
            # A file takes the place of a folder and all in it, and what is above a path becomes a folder.
            above_it = {path.rsplit("/", n)[0] for n in range(1, path.count("/") + 1)}
            files = {p: d for p, d in files.items() if p not in above_it}
            if data is None:
                files.pop(path, None)
            else:
                files = {p: d for p, d in files.items() if not p.startswith(path + "/")} | {path: data}
        whiteouts = [
            member((p.rpartition("/")[0] + "/.wh." + p.rpartition("/")[2]).lstrip("/"), b"") for p in hidden
        ]
        whiteouts += [member(o + ".wh..wh..opq", b"") for o in opaque]
        archives.append(
            layer(*(folder(p) if d is None else member(p, d) for p, d in used.items()), *whiteouts)
        )
    return files, archives


@settings(max_examples=120, deadline=None)
@given(stack=_layers)
def test_random_layers_leave_what_an_oracle_says(
    stack: list[dict[str, bytes | str | None]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    files, archives = _oracle(stack)
    with read(Made(*archives).write(tmp_path_factory.mktemp("o") / "i")) as image:
        assert contents(image) == files
        assert {str(p.relative_to(image.tree)) for p in image.tree.rglob("*") if p.is_file()} == files.keys()


_GOOD = layer(
    TRAIN,
    folder("d"),
    sym("l", "d"),
    member("l/x"),
    hard("h", "d/x"),
    member("n" * 120),
    member(".wh.q", b""),
)
_FORMS = {"": _GOOD, "+gzip": gzip.compress(_GOOD), "+zstd": zstd.compress(_GOOD)}


@settings(max_examples=200, deadline=None)
@given(
    form=st.sampled_from(sorted(_FORMS)),
    edits=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=5),
)
def test_a_mutated_layer_reads_or_refuses_and_stays_in_its_folder(
    form: str, edits: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    stored = bytearray(_FORMS[form])
    for at, value in edits:
        stored[at % len(stored)] = value
    where = tmp_path_factory.mktemp("m")
    # The diff id is that of the mutated archive, so that every reader behind the digests sees it.
    made = Made(bytes(stored) if not form else _GOOD, stored=[bytes(stored)], media=LAYER + form)
    try:
        read(made.write(where / "i"), where / "t")
    except Refused as refused:
        assert refused.code.startswith("image.")
        assert not any((where / "t").iterdir())
    assert sorted(p.name for p in where.iterdir()) == ["i", "t"]


_MEASURE = """
import resource, sys
from pathlib import Path
from rapha.runtime.image import read
with read(Path(sys.argv[1])) as image:
    print(len(image.files) + len(image.links), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
def test_a_hundred_thousand_entries_need_little_memory(tmp_path: Path) -> None:
    names = [f"usr/lib/python3/site-packages/package_{n // 100}/module_{n}.py" for n in range(100_000)]
    entries = (member(name) if n % 50 == 0 else sym(name, "module.py") for n, name in enumerate(names))
    image = Made(layer(*entries, form=tarfile.USTAR_FORMAT)).write(tmp_path / "i")
    command = [sys.executable, "-c", _MEASURE, str(image)]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert int(found[0]) == 100_000
    assert int(found[1]) < 512
