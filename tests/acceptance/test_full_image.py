"""A full OCI image through every gate: its own root and Python, on a base that the node allows by digest."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from rapha.evidence.verify import verify
from rapha.researcher.project import Project
from rapha.spec.units import parse_time
from rapha.testing import stack as stacks
from rapha.testing.stack import Stack

TRAIN = '''"""Logistic regression by gradient descent, with the image's own numpy."""

import os


import numpy as np

from rapha_trainer import RaphaDataLoader, release

assert os.path.isfile("/etc/our-distribution"), "this is the image's own root"

names, rows, labels = [], [], []
loader = RaphaDataLoader(batch_size=64)
names = [field.name for field in loader.fields if not field.label]
label = next(field.name for field in loader.fields if field.label)
for batch in loader:
    rows.append(np.stack([np.asarray(batch[name], dtype=np.float64) for name in names], axis=1))
    labels.append(np.asarray(batch[label], dtype=np.float64).copy())
x, y = np.concatenate(rows), np.concatenate(labels)
mean, scale = x.mean(0), x.std(0) + 1e-9
z = (x - mean) / scale
w, b = np.zeros(z.shape[1]), 0.0
for _ in range(400):
    p = 1 / (1 + np.exp(-np.clip(z @ w + b, -30, 30)))
    w -= 0.5 * (z.T @ (p - y) / len(y) + 0.01 * w)
    b -= 0.5 * (p - y).mean()
release.weights({"w": (w / scale).astype(np.float32), "b": np.array([b - (w / scale) @ mean], np.float32)})
'''
PREDICT = '''"""The same model on the released weights."""

import json
from pathlib import Path


import numpy as np

from rapha_trainer import RaphaDataLoader, release

data = Path("/rapha/in/released/model.safetensors").read_bytes()
start = 8 + int.from_bytes(data[:8], "little")
tensors = {}
for name, entry in json.loads(data[8:start]).items():
    raw = data[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]]
    tensors[name] = (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4").reshape(entry["shape"])
loader = RaphaDataLoader(batch_size=256, split="test")
names = [field.name for field in loader.fields if not field.label]
for batch in loader:
    x = np.stack([np.asarray(batch[name], dtype=np.float32) for name in names], axis=1)
    release.predictions((1 / (1 + np.exp(-np.clip(x @ tensors["w"] + tensors["b"], -30, 30))))[:, None])
'''
OUTPUTS = """outputs:
  version: 1
  weights:
    file: model.safetensors
    release_dtype: bf16
    tensors:
      - {name: w, dtype: F32, shape: [30], min: -4096.0, max: 4096.0}
      - {name: b, dtype: F32, shape: [1], min: -4096.0, max: 4096.0}
  trusted_metrics: [auroc, accuracy]
  max_bytes: 4096
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An OCI layout with this interpreter, its libraries and numpy, and the diff id of its one layer."""
    folder = tmp_path_factory.mktemp("base")
    archive = folder / "layer.tar"
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as layer:
        for source, inside in sorted(contents(), key=lambda pair: pair[1]):
            layer.add(source, inside, recursive=False)
        for name, target in (("opt/python/bin/python3", version()), ("bin/sh", "/opt/python/bin/python3")):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            layer.addfile(link)
        told = tarfile.TarInfo("etc/our-distribution")
        told.size = 2
        layer.addfile(told, io.BytesIO(b"1\n"))
    data = archive.read_bytes()
    archive.unlink()
    diff_id = digest(data)
    config = {
        **{"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [diff_id]}},
        "config": {"Env": ["PATH=/opt/python/bin:/bin", "HTTP_PROXY=http://evil"], "User": "root"},
    }
    layout(folder / "layout", config, gzip.compress(data, 1, mtime=0))
    return folder / "layout", diff_id


def version() -> str:
    return f"python{sys.version_info.major}.{sys.version_info.minor}"


def contents() -> Iterator[tuple[Path, str]]:
    prefix, inside = Path(sys.base_prefix), f"opt/python/lib/{version()}"
    program = (prefix / "bin" / version()).resolve()
    yield program, f"opt/python/bin/{version()}"
    library = prefix / "lib" / version()
    left_out = {"site-packages", "dist-packages", "test", "idlelib", "__pycache__", "ensurepip", "lib2to3"}
    for path in library.rglob("*"):
        if path.is_file() and not left_out & set(path.relative_to(library).parts):
            yield path.resolve(), f"{inside}/{path.relative_to(library)}"
    for file in metadata.files("numpy") or ():
        path = Path(str(file.locate()))
        if path.is_file() and ".." not in file.parts and "__pycache__" not in file.parts:
            yield path, f"{inside}/site-packages/{file}"
    yield from libraries([program, *library.glob("lib-dynload/*.so")])


def libraries(programs: list[Path]) -> Iterator[tuple[Path, str]]:
    """What the dynamic loader finds for them, where it finds it."""
    told = subprocess.run(["ldd", *map(str, programs)], capture_output=True, text=True, check=True).stdout
    # numpy's own libraries name the C++ runtime as well.
    for path in {*re.findall(r"(/\S+\.so[.\d]*)", told), *extra()} - {*map(str, programs)}:
        yield Path(path).resolve(), path.lstrip("/")


def extra() -> Iterator[str]:
    for name in (
        "libgcc_s.so.1",
        "libstdc++.so.6",
        "libm.so.6",
        "libpthread.so.0",
        "libdl.so.2",
        "librt.so.1",
    ):
        for folder in ("/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/usr/lib64"):
            if os.path.exists(f"{folder}/{name}"):  # noqa: PTH110
                yield f"{folder}/{name}"
                break


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def layout(folder: Path, config: object, layer: bytes) -> None:
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def blob(data: bytes, kind: str) -> dict[str, object]:
        (blobs / digest(data).removeprefix("sha256:")).write_bytes(data)
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": digest(data), "size": len(data)}

    manifest = {
        **{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json"},
        "config": blob(json.dumps(config).encode(), "config.v1+json"),
        "layers": [blob(layer, "layer.v1.tar+gzip")],
    }
    index = {"schemaVersion": 2, "manifests": [blob(json.dumps(manifest).encode(), "manifest.v1+json")]}
    (folder / "index.json").write_text(json.dumps(index))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


@pytest.fixture(scope="module")
def allowing(base: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with stacks.stack(tmp_path_factory.mktemp("allowing")) as stack, stacks.people(stack.world):
        allow(stack, [{"name": "our-distribution", "layers": [base[1]]}])
        yield stack


def allow(stack: Stack, images: list[dict[str, object]]) -> None:
    path = stack.world.node / "node.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"images": images}))


def project(stack: Stack, folder: Path, base: Path, train: str = TRAIN) -> Project:
    made = stack.copy_project(folder)
    for old in (folder / "code").iterdir():
        old.unlink()
    (folder / "code" / "train.py").write_text(train)
    (folder / "code" / "predict.py").write_text(PREDICT)
    text = (folder / "job.yaml").read_text()
    start = text.index("outputs:")
    end = text.index("compute:")
    (folder / "job.yaml").write_text(text[:start] + OUTPUTS + text[end:])
    made.build(base=base)
    return made


def submit(stack: Stack, made: Project) -> str:
    signed = made.sign(stack.key, "demo")
    stack.client.submit(signed.job, signed.image, made.pack())
    last = stack.follow(signed)
    out = made.folder / "results"
    if last["state"] == "delivered":
        bundle = stack.fetch(signed, out)
        closed = [e for e in stack.journal(signed.id) if e.event == "closed"]
        assert verify(bundle, stack.trust, parse_time(closed[-1].time).replace(microsecond=0)).ok
    return str(last.get("code") or last["state"])


@pytest.mark.parametrize("driver", ["bubblewrap", pytest.param("gvisor", marks=pytest.mark.peer("runsc"))])
def test_it_trains_in_its_own_root(
    allowing: Stack, base: tuple[Path, str], tmp_path: Path, driver: str
) -> None:
    path = allowing.world.node / "node.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sandbox": driver}))
    made = project(allowing, tmp_path / "job", base[0])
    with stacks.node(allowing.world.node):
        assert submit(allowing, made) == "delivered"
    metrics = json.loads((made.folder / "results" / "artifacts" / "metrics.json").read_bytes())["trusted"]
    assert metrics["auroc.low"] > 0.9
    assert metrics["accuracy"] > 0.85


REFUSED = {
    "a socket in what was added": ("import socket\n" + TRAIN, "policy.scan"),
    "native code of the submitter's": (TRAIN + "\nimport ctypes\n", "policy.scan"),
    "the host's root": (
        TRAIN.replace("import numpy", "open('/etc/hostname').read()\nimport numpy", 1),
        "job.startup",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_only_what_was_added_is_judged_and_it_is(
    allowing: Stack, base: tuple[Path, str], tmp_path: Path, name: str
) -> None:
    train, code = REFUSED[name]
    with stacks.node(allowing.world.node):
        assert submit(allowing, project(allowing, tmp_path / "job", base[0], train)) == code


def test_a_base_that_is_not_allowed_refuses(allowing: Stack, base: tuple[Path, str], tmp_path: Path) -> None:
    allow(allowing, [])
    try:
        with stacks.node(allowing.world.node):
            made = project(allowing, tmp_path / "job", base[0])
            assert submit(allowing, made) in {"image.runtime_unknown", "image.file_type"}
    finally:
        allow(allowing, [{"name": "our-distribution", "layers": [base[1]]}])
