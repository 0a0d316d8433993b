"""Building on a base, and the statements that travel with an image."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rapha.runtime.image import AllowList, Runtime, attach, build, build_full, inspect, pack, read
from rapha.runtime.image.layout import MAX_ENVELOPE, MAX_REFERRERS
from rapha.spec.refusals import Refused

Json = dict[str, Any]
ENTRY = ["python3", "train.py"]


def sha(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def describe(media: str, data: bytes) -> Json:
    return {"mediaType": media, "digest": sha(data), "size": len(data)}


def base_layer() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo("usr/bin/python3")
        info.size, info.mode = 3, 0o4755
        archive.addfile(info, io.BytesIO(b"elf"))
    return out.getvalue()


LAYER = base_layer()


def base(at: Path, packed: bytes | None = None) -> Path:
    """A base as Docker exports it: its media types, a command, labels, a history."""
    stored = gzip.compress(LAYER, mtime=0) if packed is None else packed
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {
                "Cmd": ["bash"],
                "Env": ["PATH=/usr/local/bin:/usr/bin"],
                "Labels": {"maker": "us", "rapha.runtime": "not-this"},
            },
            "rootfs": {"type": "layers", "diff_ids": [sha(LAYER)]},
            "history": [{"created_by": "debuerreotype"}],
        }
    ).encode()
    docker = "application/vnd.docker."
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": docker + "distribution.manifest.v2+json",
            "config": describe(docker + "container.image.v1+json", config),
            "layers": [describe(docker + "image.rootfs.diff.tar.gzip", stored)],
        }
    ).encode()
    (at / "blobs" / "sha256").mkdir(parents=True)
    for data in (stored, config, manifest):
        (at / "blobs" / "sha256" / sha(data)[7:]).write_bytes(data)
    index = {"schemaVersion": 2, "manifests": [describe(docker + "distribution.manifest.v2+json", manifest)]}
    (at / "index.json").write_text(json.dumps(index))
    (at / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return at


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "train.py").write_text("print(1)\n")
    return tmp_path / "code"


def content(at: Path) -> dict[str, bytes]:
    return {str(p.relative_to(at)): p.read_bytes() for p in at.rglob("*") if p.is_file()}


# --- on a base ---------------------------------------------------------------------------------------


def test_a_full_image_is_the_base_and_one_layer_the_same_bytes_twice(tmp_path: Path, source: Path) -> None:
    below = base(tmp_path / "base")
    digests = {
        build_full(source, tmp_path / name, base=below, entrypoint=ENTRY, predict=["python3", "p.py"])
        for name in ("1", "2")
    }
    assert len(digests) == 1
    assert content(tmp_path / "1") == content(tmp_path / "2")
    allow = AllowList(runtimes=(Runtime(name="base", layers=(sha(LAYER),)),))
    with read(tmp_path / "1", allow=allow) as image:
        assert {image.digest} == digests
        assert (image.kind, image.base) == ("full", (sha(LAYER),))
        assert image.added == {"app/train.py"}
        assert (image.entrypoint, image.predict) == (tuple(ENTRY), ("python3", "p.py"))
        assert (image.workdir, image.path) == ("/app", ("/usr/local/bin", "/usr/bin"))
    blobs = content(tmp_path / "1" / "blobs" / "sha256")
    configs = [json.loads(data) for data in blobs.values() if b"rootfs" in data]
    assert configs[0]["config"]["Labels"] == {"maker": "us", "rapha.predict": '["python3", "p.py"]'}
    assert "Cmd" not in configs[0]["config"]
    assert len(configs[0]["history"]) == 2
    media = [
        json.loads(d)["layers"][0]["mediaType"] for d in blobs.values() if d.startswith(b'{"config":{"d')
    ]
    assert media == ["application/vnd.oci.image.layer.v1.tar+gzip"]


def test_a_full_image_is_packed_and_a_base_may_be_an_archive(tmp_path: Path, source: Path) -> None:
    below = base(tmp_path / "base")
    with tarfile.open(tmp_path / "base.tar", "w") as archive:
        archive.add(below, ".")
    digest = build_full(source, tmp_path / "1", base=tmp_path / "base.tar", entrypoint=ENTRY, predict=None)
    assert digest == build_full(source, tmp_path / "2", base=below, entrypoint=ENTRY, predict=None)
    pack(tmp_path / "1", tmp_path / "1.tar")
    pack(tmp_path / "2", tmp_path / "2.tar")
    assert (tmp_path / "1.tar").read_bytes() == (tmp_path / "2.tar").read_bytes()
    assert inspect(tmp_path / "1.tar").digest == digest
    assert inspect(tmp_path / "1.tar").kind == "full"


def test_a_base_that_is_not_what_it_says_is_refused_and_leaves_no_image(tmp_path: Path, source: Path) -> None:
    below = base(tmp_path / "base")
    blob = below / "blobs" / "sha256" / sha(gzip.compress(LAYER, mtime=0))[7:]
    blob.write_bytes(blob.read_bytes()[:-1] + b"!")
    with pytest.raises(Refused, match=r"image\.digest_mismatch"):
        build_full(source, tmp_path / "o", base=below, entrypoint=ENTRY, predict=None)
    with pytest.raises(Refused, match=r"image\.layout_invalid"):
        inspect(tmp_path / "o")
    with pytest.raises(Refused, match=r"image\.not_found"):
        build_full(source, tmp_path / "o", base=tmp_path / "none", entrypoint=ENTRY, predict=None)
    with pytest.raises(Refused, match=r"image\.entrypoint_missing"):
        build_full(source, tmp_path / "o", base=below, entrypoint=[], predict=None)


def test_what_is_not_packed_leaves_no_file(tmp_path: Path, source: Path) -> None:
    build(source, tmp_path / "o", entrypoint=ENTRY, predict=None, runtime="rt")
    next((tmp_path / "o" / "blobs" / "sha256").iterdir()).write_bytes(b"")
    with pytest.raises(Refused):
        pack(tmp_path / "o", tmp_path / "a.tar")
    assert not list(tmp_path.glob("a.tar*"))


# --- statements --------------------------------------------------------------------------------------


@pytest.fixture
def image(tmp_path: Path, source: Path) -> Path:
    build(source, tmp_path / "image", entrypoint=ENTRY, predict=None, runtime="rt")
    return tmp_path / "image"


def test_statements_travel_with_the_image_and_leave_its_digest(image: Path, tmp_path: Path) -> None:
    digest = inspect(image).digest
    for envelope in (b'{"b":1}', b'{"a":1}', b'{"b":1}'):
        attach(image, envelope)
    pack(image, tmp_path / "a.tar")
    for where in (image, tmp_path / "a.tar"):
        with read(where) as found:
            assert (found.digest, found.referrers) == (digest, (b'{"a":1}', b'{"b":1}'))
    index = json.loads((image / "index.json").read_text())
    assert [entry.get("artifactType") for entry in index["manifests"]] == [
        None,
        "application/vnd.in-toto+json",
        "application/vnd.in-toto+json",
    ]


def test_statements_are_bounded(image: Path) -> None:
    with pytest.raises(Refused, match=r"image\.too_large"):
        attach(image, b"x" * (MAX_ENVELOPE + 1))
    for number in range(MAX_REFERRERS):
        attach(image, b"%d" % number)
    with pytest.raises(Refused, match=r"image\.too_large"):
        attach(image, b"one more")
    assert len(inspect(image).referrers) == MAX_REFERRERS


def _put(image: Path, data: bytes) -> Json:
    (image / "blobs" / "sha256" / sha(data)[7:]).write_bytes(data)
    return describe("application/vnd.oci.image.manifest.v1+json", data)


def _referrer(image: Path, change: Callable[[Json], None]) -> None:
    """Attach a statement, then change its manifest."""
    attach(image, b"{}")
    index = json.loads((image / "index.json").read_text())
    old = image / "blobs" / "sha256" / index["manifests"][1]["digest"][7:]
    manifest = json.loads(old.read_text())
    old.unlink()
    change(manifest)
    index["manifests"][1] = _put(image, json.dumps(manifest).encode())
    (image / "index.json").write_text(json.dumps(index))


def _other_subject(manifest: Json) -> None:
    manifest["subject"]["digest"] = "sha256:" + "0" * 64


def _other_size(manifest: Json) -> None:
    manifest["subject"]["size"] += 1


def _other_artifact(manifest: Json) -> None:
    manifest["artifactType"] = "application/vnd.example.malware"


def _other_layer(manifest: Json) -> None:
    manifest["layers"][0]["mediaType"] = "application/vnd.oci.image.layer.v1.tar"


def _two_layers(manifest: Json) -> None:
    manifest["layers"] *= 2


def _no_layer(manifest: Json) -> None:
    manifest["layers"] = []


def _subject_is_text(manifest: Json) -> None:
    manifest["subject"] = "the image"


def _image_config(manifest: Json) -> None:
    manifest["config"]["mediaType"] = "application/vnd.oci.image.config.v1+json"


@pytest.mark.parametrize(
    "change",
    [
        _other_subject, _other_size, _other_artifact, _other_layer, _two_layers, _no_layer, _subject_is_text,
        _image_config,
    ],
)  # fmt: skip
def test_what_is_attached_is_a_statement_about_this_image_or_refused(
    change: Callable[[Json], None], image: Path
) -> None:
    _referrer(image, change)
    with pytest.raises(Refused, match=r"image\.layout_invalid"):
        inspect(image)


def test_an_unchanged_referrer_is_read_and_a_blob_of_none_is_not(image: Path) -> None:
    _referrer(image, lambda manifest: None)
    assert inspect(image).referrers == (b"{}",)
    _put(image, b"nobody names me")
    with pytest.raises(Refused, match="named by no manifest"):
        inspect(image)
