"""The other half of the bar: whatever conforms to a plan leaves, and of its writer nothing goes with it."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
import safetensors
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rapha.runtime.guard import rebuild, values
from rapha.runtime.guard.inspection import inspect
from rapha.runtime.guard.report import GuardReport
from rapha.runtime.guard.rounding import DTYPES
from rapha.spec.release_plan import ReleasePlan
from rapha.spec.weights import MAX_TENSORS, ORDER

FILE, NUMBERS = "w.safetensors", "m.json"
RELEASES: list[dict[str, Any]] = [
    *({"release_dtype": name} for name in ("f32", "bf16", "f16", "int8")),
    *({"release_dtype": "int8", "bits": bits} for bits in range(2, 9)),
    {"release_dtype": "bf16", "noise": {"std": 0.5}},
    {"release_dtype": "int8", "bits": 4, "noise": {"std": 0.5}},
]
Array = npt.NDArray[Any]
Arrays = Mapping[str, tuple[str, Array]]


def drawn(dtype: str, shape: tuple[int, ...], seed: int = 0) -> Array:
    draw = np.random.default_rng(seed)
    if dtype == "BOOL":
        return draw.integers(0, 2, shape).astype("u1")
    if dtype in ("F64", "F32", "F16", "BF16"):
        return (draw.standard_normal(shape) * 3).astype(DTYPES[dtype])
    return draw.integers(0, 100, shape).astype(DTYPES[dtype])


def plan_for(arrays: Arrays, **weights: Any) -> ReleasePlan:
    tensors = [
        {
            "name": n,
            "dtype": d,
            "shape": list(a.shape),
            "min": 0 if d in ("U8", "BOOL") else -8,
            "max": 1 if d == "BOOL" else 8,
        }
        for n, (d, a) in arrays.items()
    ]
    part = {"file": FILE, "release_dtype": "bf16", "tensors": tensors, **weights}
    return ReleasePlan.parse({"version": 1, "max_bytes": 2**28, "weights": part})


def written(arrays: Arrays, spaced: bool = False, padding: int = 0) -> bytes:
    header: dict[str, Any] = {}
    data = b""
    for name, (dtype, array) in arrays.items():
        raw = array.tobytes()
        ends = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": ends}
        data += raw
    text = (json.dumps(header) if spaced else json.dumps(header, separators=(",", ":"))).encode()
    text += b" " * padding
    return struct.pack("<Q", len(text)) + text + data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    out = tmp_path / "in"
    out.mkdir()
    return out


def accepted(folder: Path, plan: ReleasePlan) -> tuple[GuardReport, bytes]:
    out = folder.parent / "out"
    report = inspect(folder, plan, out)
    assert report.ok, report.checks
    data = (out / FILE).read_bytes()
    (out / FILE).unlink()
    assert plan.weights is not None
    assert len(data) == plan.weights.released_bytes
    found = {n: (e["dtype"], tuple(e["shape"])) for n, e in safetensors.deserialize(data)}  # type: ignore[no-untyped-call]
    assert found == {name: (dtype, shape) for name, dtype, shape in plan.weights.released}
    return report, data


@pytest.mark.parametrize("release", RELEASES, ids=str)
@pytest.mark.parametrize("rank", [0, 1, 2, 5, 16])
def test_every_dtype_in_every_rank(folder: Path, release: dict[str, Any], rank: int) -> None:
    shape = (2,) * min(rank, 5) + (1,) * max(0, rank - 5)
    arrays = {f"t.{d}": (d, drawn(d, shape)) for d in ORDER}
    for style in (False, True):
        (folder / FILE).write_bytes(written(arrays, style, padding=3))
        accepted(folder, plan_for(arrays, **release))


@pytest.mark.parametrize("count", [1, 2, 100, 3000, MAX_TENSORS])
def test_one_tensor_to_thousands(folder: Path, count: int) -> None:
    arrays = {f"block.{n}.w": ("F32", drawn("F32", (3,), n % 7)) for n in range(count)}
    (folder / FILE).write_bytes(written(arrays))
    report, _ = accepted(folder, plan_for(arrays))
    assert [t.tensor for t in report.transforms] == list(arrays)


LENGTHS = [1, values.PART - 1, values.PART, values.PART + 1, 2 * values.PART, 3 * values.PART + 7]


@pytest.mark.parametrize("release", RELEASES[:4], ids=str)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("threads", [False, True], ids=["alone", "threads"])
def test_parts_join_without_a_seam(
    folder: Path, length: int, release: dict[str, Any], threads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuild, "_WORTH_THREADS", 0 if threads else 2**40)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    arrays = {"a": ("F32", drawn("F32", (length,))), "b": ("I16", drawn("I16", (length,)))}
    plan = plan_for(arrays, **release)
    (folder / FILE).write_bytes(written(arrays))
    _, data = accepted(folder, plan)
    found = {n: e for n, e in safetensors.deserialize(data)}  # type: ignore[no-untyped-call]  # noqa: C416
    held = np.clip(arrays["a"][1], -8, 8)
    whole = np.frombuffer(bytes(found["a"]["data"]), DTYPES[found["a"]["dtype"]]).astype("<f8")
    if release["release_dtype"] == "int8":
        scale = np.frombuffer(bytes(found["a.scale"]["data"]), "<f4")[0]
        assert scale == np.float32(np.abs(held).max().astype(float) / 127)
        assert (whole == np.rint(held.astype("<f8") / float(scale))).all()
    else:
        assert (whole == held.astype(DTYPES[found["a"]["dtype"]]).astype("<f8")).all()
    assert (np.frombuffer(bytes(found["b"]["data"]), "<i2") == np.clip(arrays["b"][1], -8, 8)).all()


def _numpy(arrays: Arrays) -> bytes:
    return safetensors.numpy.save({n: a.view(np.bool_) if d == "BOOL" else a for n, (d, a) in arrays.items()})


def _torch(arrays: Arrays) -> bytes:
    torch = pytest.importorskip("torch")
    save = pytest.importorskip("safetensors.torch").save
    result: bytes = save(
        {
            n: torch.from_numpy(a.view("i2")).view(torch.bfloat16)
            if d == "BF16"
            else torch.from_numpy(a.view(np.bool_) if d == "BOOL" else a)
            for n, (d, a) in arrays.items()
        }
    )
    return result


@pytest.mark.parametrize("write", [_numpy, _torch], ids=["safetensors.numpy", "safetensors.torch"])
@pytest.mark.parametrize("release", ["f32", "bf16", "f16", "int8"])
def test_what_the_library_writes(folder: Path, write: Callable[[Arrays], bytes], release: str) -> None:
    arrays = {f"layer{i}.{d.lower()}": (d, drawn(d, (4, 3), i)) for i, d in enumerate(reversed(ORDER))}
    plan = plan_for(arrays, release_dtype=release)
    (folder / FILE).write_bytes(write(arrays))
    _, by_library = accepted(folder, plan)
    (folder / FILE).write_bytes(written(arrays))
    assert accepted(folder, plan)[1] == by_library


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize(
    "fill", [0.0, -0.0, 1.0, 7.999, 1e-30, -1e30, 5e-324, 32.0, 63.0], ids=lambda v: f"{v:g}"
)
def test_tensors_of_one_value(folder: Path, dtype: str, fill: float) -> None:
    with np.errstate(over="ignore", under="ignore"):
        array = np.clip(np.full(9000, fill), -6e4, 6e4).astype(DTYPES[dtype])
    arrays = {"w": (dtype, array)}
    (folder / FILE).write_bytes(written(arrays))
    accepted(folder, plan_for(arrays))


INTEGERS = ["I64", "I32", "I16", "I8", "U8"]


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("make", [np.zeros, np.ones, np.arange], ids=["zeros", "ones", "counting"])
def test_tables_of_integers(folder: Path, dtype: str, make: Callable[[int], Array]) -> None:
    arrays = {"w": (dtype, (make(5000) % 100).astype(DTYPES[dtype]))}
    (folder / FILE).write_bytes(written(arrays))
    accepted(folder, plan_for(arrays))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("scale", [1e-6, 1e-2, 1.0, 1e3])
def test_networks_of_any_scale(folder: Path, seed: int, scale: float) -> None:
    draw = np.random.default_rng(seed)
    array = (draw.standard_t(2, 20_000) * scale).astype("<f4")  # heavy tails
    array[draw.random(20_000) < 0.3] = 0
    arrays = {"w": ("F32", array)}
    for release in RELEASES[:4]:
        (folder / FILE).write_bytes(written(arrays))
        accepted(folder, plan_for(arrays, **release))


def test_a_bound_that_rounds_outwards_is_in_range(folder: Path) -> None:
    """Rounded once, from F64, the bound goes up; rounded twice it would not, and the check must know."""
    bound = 1 + 2**-8 + 2**-40
    tensor = {"name": "w", "dtype": "F64", "shape": [2], "min": -bound, "max": bound}
    part = {"file": FILE, "release_dtype": "bf16", "tensors": [tensor]}
    plan = ReleasePlan.parse({"version": 1, "max_bytes": 2**16, "weights": part})
    (folder / FILE).write_bytes(written({"w": ("F64", np.array([5.0, -5.0]))}))
    _, data = accepted(folder, plan)
    assert np.frombuffer(data[-4:], ml_dtypes.bfloat16).astype(float).tolist() == [1 + 2**-7, -1 - 2**-7]


BASE = st.lists(st.floats(-8, 8, width=16), min_size=4, max_size=4)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    base=BASE,
    low_bits=st.lists(st.integers(0, 2**15 - 1), min_size=4, max_size=4),
    negative=st.booleans(),
    beyond=st.floats(8.0, 2.0**100, width=32),
    order=st.booleans(),
    spaced=st.booleans(),
    fields=st.permutations(["dtype", "shape", "data_offsets"]),
    padding=st.integers(0, 7),
    moment=st.integers(0, 2**31),
    mode=st.sampled_from([0o400, 0o644, 0o777, 0o1666]),
    indent=st.none() | st.integers(0, 4),
    decimals=st.sampled_from(["{:.4f}", "{:.6f}", "{:.4e}"]),
)
def test_nothing_of_the_writer_leaves(
    tmp_path: Path,
    base: list[float],
    low_bits: list[int],
    negative: bool,
    beyond: float,
    order: bool,
    spaced: bool,
    fields: list[str],
    padding: int,
    moment: int,
    mode: int,
    indent: int | None,
    decimals: str,
) -> None:
    """Same values once clipped and rounded, everything else the writer's choice: the same bytes leave."""
    folder = tmp_path / "in"
    folder.mkdir(exist_ok=True)
    plain = np.array(base).astype(ml_dtypes.bfloat16).astype("<f4")
    plan_json = plan_for(
        {"w": ("F32", plain), "a.b": ("F32", plain), "n": ("I16", np.zeros(2, "<i2"))}
    ).dump()
    plan_json["self_reported"] = {
        "file": NUMBERS,
        "fields": [
            {"name": "loss", "type": "number", "min": 0, "max": 9, "decimals": 2},
            {"name": "ok", "type": "boolean"},
        ],
    }
    plan = ReleasePlan.parse(plan_json)

    def leaves(
        arrays: dict[str, Array], make: Callable[[dict[str, Array]], bytes], numbers: str
    ) -> dict[str, bytes]:
        for name, data in ((FILE, make(arrays)), (NUMBERS, numbers.encode())):
            (folder / name).unlink(missing_ok=True)
            (folder / name).write_bytes(data)
            (folder / name).chmod(mode)
            os.utime(folder / name, (moment, moment))
        out = tmp_path / "out"
        report = inspect(folder, plan, out)
        assert report.ok, report.checks
        files = {path.name: path.read_bytes() for path in out.iterdir()}
        for path in out.iterdir():
            assert path.stat().st_mode & 0o777 == 0o600
            assert int(path.stat().st_mtime) != moment
            path.unlink()
        return files

    names = ["w", "a.b", "n"]
    clean = {"w": plain, "a.b": np.array([8, -8, 0, 1], "<f4"), "n": np.array([8, -8], "<i2")}
    # Bits below the release dtype only lengthen what they are added to, here by less than half a step.
    busy = (plain.view("<u4") | (np.array(low_bits, "<u4") & 0x7FFF)).view("<f4")
    busy = np.where(np.isin(plain.view("<u4") >> 23 & 0xFF, [0]), plain, busy).astype("<f4")
    zero = np.float32(-0.0) if negative else np.float32(0.0)
    far = np.array([beyond, -beyond, zero, 1], "<f4")
    other = {"w": busy, "a.b": far, "n": np.array([30000, -30000], "<i2")}

    def plainly(arrays: dict[str, Array]) -> bytes:
        return written({n: ("I16" if n == "n" else "F32", arrays[n]) for n in names})

    def oddly(arrays: dict[str, Array]) -> bytes:
        library = sorted(names, key=lambda n: (n == "n", n))
        made = written({n: ("I16" if n == "n" else "F32", arrays[n]) for n in (library if order else names)})
        (length,) = struct.unpack("<Q", made[:8])
        header = {n: {f: e[f] for f in fields} for n, e in json.loads(made[8 : 8 + length]).items()}
        text = (json.dumps(header) if spaced else json.dumps(header, separators=(",", ":"))).encode()
        text += b" " * padding
        return struct.pack("<Q", len(text)) + text + made[8 + length :]

    numbers = json.dumps({"ok": True, "loss": 0.25})
    again = json.dumps({"loss": float(decimals.format(0.2503)), "ok": True}, indent=indent)
    assert leaves(clean, plainly, numbers) == leaves(other, oddly, again)
