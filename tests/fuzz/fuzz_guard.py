"""Coverage-guided fuzzing of the guard: `fuzz_guard.py TARGET [libFuzzer options] [CORPUS]`.

Every target holds the guard to the same: it answers with a report or a typed refusal, never an exception; and
what it lets out is what the plan says, by the reference library's reading, and by its own once more.
"""

from __future__ import annotations

import json
import math
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import atheris

with atheris.instrument_imports(include=["rapha.runtime.guard", "rapha.spec", "rapha.evidence.canonical"]):
    from rapha.evidence import canonical
    from rapha.runtime.guard.codes import CODES, Finding
    from rapha.runtime.guard.inspection import inspect
    from rapha.runtime.guard.process import believed
    from rapha.runtime.guard.report import GuardReport
    from rapha.spec.refusals import Refused
    from rapha.spec.release_plan import ReleasePlan
    from rapha.spec.weights import INTEGER_RANGE, WIDTH, WeightsPlan

import ml_dtypes
import numpy as np
import safetensors

WEIGHTS, NUMBERS = "w.safetensors", "m.json"
FLOATS: Final = ("F64", "F32", "F16", "BF16")
ONE_OF_EACH: Final = ReleasePlan.parse(
    {
        "version": 1,
        "max_bytes": 2**20,
        "weights": {
            "file": WEIGHTS,
            "release_dtype": "bf16",
            "tensors": [
                *({"name": t.lower(), "dtype": t, "shape": [2, 2], "min": -2, "max": 2} for t in FLOATS),
                {"name": "i64", "dtype": "I64", "shape": [], "min": -5, "max": 1000},
                {"name": "u8", "dtype": "U8", "shape": [3], "min": 0, "max": 9},
                {"name": "mask", "dtype": "BOOL", "shape": [4], "min": 0, "max": 1},
            ],
        },
    }
)
FIELDS: Final[list[dict[str, Any]]] = [
    {"name": "loss", "type": "number", "min": -1, "max": 100, "decimals": 3},
    {"name": "epochs", "type": "integer", "min": -3, "max": 50},
    {"name": "converged", "type": "boolean"},
    {"name": "optimiser", "type": "enum", "options": ["adam", "sgd"]},
]
SELF_REPORTED: Final = ReleasePlan.parse(
    {"version": 1, "max_bytes": 4096, "self_reported": {"file": NUMBERS, "fields": FIELDS}}
)
DTYPES: Final[dict[str, Any]] = {
    **{"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": ml_dtypes.bfloat16, "I64": "<i8", "I32": "<i4"},
    **{"I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "u1"},
}


class Room:
    """Two folders, one that the guard reads and one that it writes.

    They lie below TMPDIR, best in memory, and stay there: libFuzzer ends a process without asking Python.
    """

    def __init__(self) -> None:
        top = Path(tempfile.mkdtemp(prefix="fuzz-guard-"))
        self.given, self.made = top / "in", top / "out"
        self.given.mkdir()
        self.made.mkdir()

    def ask(self, files: dict[str, bytes], plan: ReleasePlan) -> tuple[GuardReport, dict[str, bytes]]:
        """The guard's report on `files`, and what it let out."""
        for folder in (self.given, self.made):
            for path in folder.iterdir():
                path.unlink()
        for name, data in files.items():
            (self.given / name).write_bytes(data)
        report = inspect(self.given, plan, self.made)
        assert GuardReport.parse(canonical.loads(canonical.dumps(report.dump()))) == report
        released = {path.name: path.read_bytes() for path in self.made.iterdir()}
        assert report.agrees_with(plan)
        assert report.ok == bool(released)
        assert report.ok == (report.code is None)
        if not report.ok:
            failed = [(c.n, c.reason.isprintable()) for c in report.checks if c.verdict == "fail"]
            assert failed == [(CODES[report.code or ""][0], True)]
            assert report.decided, report.checks
        return report, released


ROOM: Final = Room()


def check_weights(data: bytes, plan: WeightsPlan) -> None:
    """`data` was released under `plan`: it is canonical, complete, and every value is in range."""
    assert len(data) == plan.released_bytes
    found = dict(safetensors.deserialize(data))  # type: ignore[no-untyped-call]
    assert {n: (e["dtype"], tuple(e["shape"])) for n, e in found.items()} == {
        name: (dtype, shape) for name, dtype, shape in plan.released
    }
    for tensor in plan.tensors:
        entry = found[tensor.name]
        values = np.frombuffer(bytes(entry["data"]), DTYPES[entry["dtype"]]).astype(np.float64)
        if tensor.floating and plan.release_dtype == "int8":
            assert np.abs(values).max() <= plan.levels
            continue
        low, high = tensor.min, tensor.max
        if tensor.floating:
            # Bounds round as values do: by at most half a step of the coarsest dtype, or its smallest number.
            slack = 2.0**-8 if plan.release_dtype == "bf16" else 2.0**-11
            low, high = low - abs(low) * slack - 1e-7, high + abs(high) * slack + 1e-7
        assert values.min() >= low and values.max() <= high
        assert not (np.signbit(values) & (values == 0)).any()


def again(data: bytes, plan: WeightsPlan) -> None:
    """The guard on what it let out, planned as it is now, lets out the same bytes."""
    planned = {tensor.name: tensor for tensor in plan.tensors}
    tensors: list[dict[str, Any]] = []
    for name, dtype, shape in plan.laid_out:
        tensor = planned.get(name)
        small = tensor is None or (dtype == "I8" and tensor.floating)
        bounds = (-127, 127) if dtype == "I8" else (0, 3.4e38)
        low, high = bounds if small or tensor is None else (tensor.min, tensor.max)
        tensors.append({"name": name, "dtype": dtype, "shape": shape, "min": low, "max": high})
    release = "f32" if plan.release_dtype == "int8" else plan.release_dtype
    weights = {"file": WEIGHTS, "release_dtype": release, "tensors": tensors}
    report, released = ROOM.ask(
        {WEIGHTS: data}, ReleasePlan.parse({"version": 1, "max_bytes": 2**24, "weights": weights})
    )
    # A scale is a tensor of its own here, and may look like a mark that it did not look like before.
    assert released == {WEIGHTS: data} or report.code == "guard.polyglot", report.checks


def fixed_plan(data: bytes) -> None:
    """Any bytes as a file of weights."""
    report, released = ROOM.ask({WEIGHTS: data}, ONE_OF_EACH)
    if report.ok and ONE_OF_EACH.weights:
        check_weights(released[WEIGHTS], ONE_OF_EACH.weights)
        again(released[WEIGHTS], ONE_OF_EACH.weights)


def _tensor(draw: Any, n: int) -> dict[str, Any]:
    dtype = draw.PickValueInList(list(WIDTH))
    shape = [draw.ConsumeIntInRange(1, 3) for _ in range(draw.ConsumeIntInRange(0, 4))]
    if dtype in FLOATS:
        bounds = sorted(draw.ConsumeFloatInRange(-70000.0, 70000.0) for _ in "ab")
    else:
        bounds = sorted(draw.ConsumeIntInRange(*INTEGER_RANGE[dtype]) for _ in "ab")
    return {"name": f"t{n}", "dtype": dtype, "shape": shape, "min": bounds[0], "max": bounds[1]}


def _file(draw: Any, tensors: list[dict[str, Any]]) -> bytes:
    """A file as a writer makes it from whatever is left, and sometimes not quite so."""
    header: dict[str, Any] = {}
    data = b""
    for tensor in tensors:
        size = math.prod(tensor["shape"]) * WIDTH[tensor["dtype"]]
        raw = draw.ConsumeBytes(size).ljust(size, b"\x00")
        header[tensor["name"]] = {
            "dtype": tensor["dtype"],
            "shape": tensor["shape"],
            "data_offsets": [len(data), len(data) + size],
        }
        data += raw
    text = json.dumps(header, separators=(",", ":")).encode()
    if draw.ConsumeIntInRange(0, 9) == 0:
        at = draw.ConsumeIntInRange(0, len(text))
        text = text[:at] + draw.ConsumeBytes(4) + text[at + draw.ConsumeIntInRange(0, 4) :]
    return struct.pack("<Q", len(text)) + text + data


def any_plan(data: bytes) -> None:
    """A plan and a file that mostly conforms to it."""
    draw = atheris.FuzzedDataProvider(data)
    tensors = [_tensor(draw, n) for n in range(draw.ConsumeIntInRange(1, 4))]
    weights = {"file": WEIGHTS, "release_dtype": draw.PickValueInList(["bf16", "f16", "f32", "int8"])}
    if draw.ConsumeBool():
        weights["bits"] = draw.ConsumeIntInRange(2, 8)
    try:
        plan = ReleasePlan.parse(
            {"version": 1, "max_bytes": 2**24, "weights": weights | {"tensors": tensors}}
        )
    except Refused:
        return
    report, released = ROOM.ask({WEIGHTS: _file(draw, tensors)}, plan)
    if report.ok and plan.weights:
        check_weights(released[WEIGHTS], plan.weights)
        again(released[WEIGHTS], plan.weights)


def self_reported(data: bytes) -> None:
    """Any bytes as a self-reported file."""
    report, released = ROOM.ask({NUMBERS: data}, SELF_REPORTED)
    if not report.ok:
        return
    values = json.loads(released[NUMBERS])
    assert canonical.dumps(values) == released[NUMBERS]
    assert values.keys() == {field["name"] for field in FIELDS}
    assert -1 <= values["loss"] <= 100 and round(values["loss"], 3) == values["loss"]
    assert type(values["epochs"]) is int and -3 <= values["epochs"] <= 50
    assert type(values["converged"]) is bool
    assert values["optimiser"] in ("adam", "sgd")
    assert ROOM.ask(released, SELF_REPORTED)[1] == released


def report_of_a_process(data: bytes) -> None:
    """Any bytes as the answer of a process that says it is the guard."""
    try:
        report = believed(data, ONE_OF_EACH)
    except Finding as finding:
        assert finding.code == "guard.died"
        return
    assert report.plan_digest == canonical.digest(ONE_OF_EACH.dump())


def plan_of_a_job(data: bytes) -> None:
    """Any bytes as a plan: refused, or its sizes and prices can be told."""
    try:
        plan = ReleasePlan.parse(canonical.loads(data), "plan")
    except Refused:
        return
    assert plan.released_bytes <= plan.max_bytes
    assert plan.released_bits() >= 0
    assert ReleasePlan.parse(plan.dump()) == plan


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    target.__name__: target
    for target in (fixed_plan, any_plan, self_reported, report_of_a_process, plan_of_a_job)
}


def everything(data: bytes) -> None:
    """The first byte chooses a target, the rest is for it."""
    if data:
        list(TARGETS.values())[data[0] % len(TARGETS)](data[1:])


def seeds() -> dict[str, bytes]:
    """For each target what it accepts, so that a campaign begins behind the first wall."""
    assert ONE_OF_EACH.weights is not None
    header: dict[str, Any] = {}
    data = b""
    for tensor in ONE_OF_EACH.weights.tensors:
        raw = np.ones(tensor.shape, DTYPES[tensor.dtype]).tobytes()
        ends = [len(data), len(data) + len(raw)]
        header[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": ends}
        data += raw
    text = json.dumps(header, separators=(",", ":")).encode()
    weights = struct.pack("<Q", len(text)) + text + data
    numbers = json.dumps({"loss": 0.25, "epochs": 4, "converged": True, "optimiser": "adam"}).encode()
    report = canonical.dumps(ROOM.ask({WEIGHTS: weights}, ONE_OF_EACH)[0].dump())
    return {
        "fixed_plan": weights,
        "any_plan": bytes(range(200)),
        "self_reported": numbers,
        "report_of_a_process": report,
        "plan_of_a_job": canonical.dumps(ONE_OF_EACH.dump()),
    }


def main() -> None:
    """Fuzz one target, or `everything`."""
    name, options = sys.argv[1], sys.argv[2:]
    corpus = next((Path(option) for option in options if not option.startswith("-")), None)
    if corpus is not None:
        corpus.mkdir(parents=True, exist_ok=True)
        for n, (target, seed) in enumerate(seeds().items()):
            if name == "everything":
                (corpus / f"seed-{target}").write_bytes(bytes([n]) + seed)
            elif name == target:
                (corpus / f"seed-{target}").write_bytes(seed)
    run = everything if name == "everything" else TARGETS[name]
    atheris.Setup([sys.argv[0], *options], run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
