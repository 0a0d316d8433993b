"""What is asked of a process that says it is the guard, and of the room that it works in."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from rapha.evidence import canonical
from rapha.runtime.guard import bounds, rounding
from rapha.runtime.guard.codes import CHECKS, CODES, Finding
from rapha.runtime.guard.confined import run_in_process
from rapha.runtime.guard.inspection import inspect
from rapha.runtime.guard.process import believed, run_in_child, take
from rapha.runtime.guard.report import refusal
from rapha.runtime.sandbox.interface import Ending, Outcome, Running, Spec
from rapha.spec.refusals import Refused
from rapha.spec.release_plan import ReleasePlan
from rapha.spec.sections import GUARD_CHECKS

PLAN_JSON: dict[str, Any] = {
    "version": 1,
    "weights": {
        "file": "model.safetensors",
        "release_dtype": "bf16",
        "tensors": [{"name": "w", "dtype": "F32", "shape": [100], "min": -1.0, "max": 1.0}],
    },
    "self_reported": {
        "file": "metrics.json",
        "fields": [{"name": "loss", "type": "number", "min": 0, "max": 9, "decimals": 2}],
    },
    "max_bytes": 4096,
}
PLAN = ReleasePlan.parse(PLAN_JSON)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    out = tmp_path / "in"
    out.mkdir()
    safetensors.numpy.save_file({"w": np.linspace(-2, 2, 100, dtype="<f4")}, out / "model.safetensors")
    (out / "metrics.json").write_text('{"loss":0.126}')
    return out


class Answering:
    """A sandbox, by its production interface, that does what a test says instead of running anything."""

    name = "answering"

    def __init__(self, act: Callable[[Spec], Outcome]) -> None:
        self._act = act
        self.pid = 0

    def check(self) -> Mapping[str, str]:
        return {}

    def start(self, spec: Spec) -> Running:
        outcome = self._act(spec)

        class Done:
            pid = 0

            def wait(self) -> Outcome:
                return outcome

            def kill(self) -> None:
                return None

        return Done()


def ended(ending: Ending = Ending.exited, code: int = 0, anomalies: tuple[str, ...] = ()) -> Outcome:
    return Outcome(ending, code, 0.1, 0.1, 1, {}, anomalies)


def lying(change: Callable[[Path, dict[str, Any]], object]) -> Callable[[Spec], Outcome]:
    """The real guard's answer, with `change` made to its files and report."""

    def act(spec: Spec) -> Outcome:
        assert spec.out is not None
        given = next(m.source for m in spec.mounts if m.dest == "/rapha/in/outputs")
        assert given is not None
        report = inspect(given, PLAN, spec.out).dump()
        change(spec.out, report)
        (spec.out / "report.guard").write_bytes(canonical.dumps(report))
        return ended()

    return act


def refuse(_: Spec) -> Outcome:
    raise Refused("node.sandbox_unavailable", "no namespaces")


LIES: dict[str, tuple[str, Callable[[Spec], Outcome]]] = {
    "no sandbox": ("guard.sandbox", refuse),
    "late": ("guard.time", lambda _: ended(Ending.timeout, 124)),
    "out of memory": ("guard.died", lambda _: ended(Ending.memory, 137)),
    "killed": ("guard.died", lambda _: ended(Ending.killed, 137)),
    "crashed": ("guard.died", lambda _: ended(code=139)),
    "no report": ("guard.died", lambda _: ended()),
    "anomalies": ("guard.died", lambda _: ended(anomalies=("x: FIFO",))),
    "other bytes": ("guard.died", lying(lambda out, _: (out / "metrics.json").write_bytes(b'{"loss":9.13}'))),
    "extra file": ("guard.died", lying(lambda out, _: (out / "more").write_bytes(b"x"))),
    "file missing": ("guard.died", lying(lambda out, _: (out / "metrics.json").unlink())),
    "too large": ("guard.died", lying(lambda out, _: (out / "metrics.json").write_bytes(bytes(9999)))),
    "other plan": ("guard.died", lying(lambda _, report: report.update(plan_digest="0" * 64))),
    "fewer files": ("guard.died", lying(lambda _, report: report.update(released=[]))),
    "unknown field": ("guard.died", lying(lambda _, report: report.update(note="Mary Smith"))),
}
SAYINGS: dict[str, dict[str, Any]] = {
    "another number": {"self_reported": {"loss": 0.14}},
    "a number of more decimals": {"self_reported": {"loss": 0.126}},
    "text for a number": {"self_reported": {"loss": "MRN 1234567"}},
    "a number that is not planned": {"self_reported": {"loss": 0.13, "mrn": 1234567}},
    "no numbers": {"self_reported": {}},
    "a smaller bound": {"covert_bound_bits": 0},
    "a yes with a code": {"code": "guard.entropy"},
    "a yes that is undecided": {"decided": False},
    "a no that releases": {"ok": False, "code": "guard.entropy"},
    "no checks": {"checks": []},
    "no transforms": {"transforms": []},
}
NO = inspect(Path("/nowhere"), PLAN).dump()
"""An honest no."""


@pytest.mark.parametrize("name", LIES)
def test_a_process_is_not_believed(folder: Path, tmp_path: Path, name: str) -> None:
    code, act = LIES[name]
    report = run_in_process(folder, PLAN, tmp_path / "out", sandbox=Answering(act))
    assert (report.ok, report.decided, report.code) == (False, False, code)
    assert not any((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("name", SAYINGS)
def test_a_report_that_the_plan_does_not_allow_is_not_believed(
    folder: Path, tmp_path: Path, name: str
) -> None:
    act = lying(lambda _, report: report.update(SAYINGS[name]))
    report = run_in_process(folder, PLAN, tmp_path / "out", sandbox=Answering(act))
    assert (report.ok, report.decided, report.code) == (False, False, "guard.died")
    assert not any((tmp_path / "out").glob("*"))


@pytest.mark.parametrize(
    "values", [{"loss": "MRN 1234567"}, {"loss": 0.126}, {"loss": 0.13, "mrn": 1}, {}, {"loss": True}]
)
def test_numbers_that_are_not_planned_are_not_believed_from_any_file(
    folder: Path, tmp_path: Path, values: dict[str, Any]
) -> None:
    """What it says, the file that it writes and the digest agree, and none of it is in the plan."""

    def change(out: Path, report: dict[str, Any]) -> None:
        data = canonical.dumps(values)
        (out / "metrics.json").write_bytes(data)
        told = {"name": "metrics.json", "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        kept = [file for file in report["released"] if file["name"] != "metrics.json"]
        report.update(self_reported=values, released=[*kept, told])

    report = run_in_process(folder, PLAN, tmp_path / "out", sandbox=Answering(lying(change)))
    assert (report.ok, report.decided, report.code) == (False, False, "guard.died")
    assert not any((tmp_path / "out").glob("*"))


def test_an_honest_sandbox_is_believed(folder: Path, tmp_path: Path) -> None:
    report = run_in_process(folder, PLAN, tmp_path / "out", sandbox=Answering(lying(lambda *_: None)))
    assert report.ok
    take(tmp_path / "out", report, PLAN, None)
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(PLAN.files)


def test_an_input_that_changes_behind_the_sandbox_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    act = lying(lambda *_: os.utime(folder / "metrics.json"))
    report = run_in_process(folder, PLAN, tmp_path / "out", sandbox=Answering(act))
    assert (report.ok, report.code) == (False, "guard.changed")
    assert not any((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("scratch", ["none", "in/metrics.json"])
def test_no_room_to_work_in_is_undecided(folder: Path, tmp_path: Path, scratch: str) -> None:
    report = run_in_process(folder, PLAN, tmp_path / "out", scratch=tmp_path / scratch)
    assert (report.ok, report.decided, report.code) == (False, False, "guard.sandbox")


@pytest.mark.parametrize(
    "change",
    [
        {"code": None},
        {"code": "guard.none"},
        {"code": "guard.header"},
        {"decided": True},
        {"covert_bound_bits": 0},
        {"self_reported": {"loss": 0.13}},
        {"ok": True},
    ],
)
def test_a_no_is_no_more_than_that(change: dict[str, Any]) -> None:
    assert believed(canonical.dumps(NO), PLAN).code == "guard.directory"
    with pytest.raises(Finding, match=r"guard\.died"):
        believed(canonical.dumps(NO | change), PLAN)


def test_a_yes_to_numbers_or_weights_alone_is_believed(folder: Path) -> None:
    for kept, left in (("weights", "metrics.json"), ("self_reported", "model.safetensors")):
        plan = ReleasePlan.parse({"version": 1, "max_bytes": 4096, kept: PLAN_JSON[kept]})
        (folder / left).rename(folder.parent / left)
        report = inspect(folder, plan)
        assert report.ok and believed(canonical.dumps(report.dump()), plan) == report
        (folder.parent / left).rename(folder / left)


@pytest.mark.parametrize("answer", [b"", b"{}", b"[]", b"\xff", b"Traceback", b"null"])
def test_nonsense_is_no_report(answer: bytes) -> None:
    with pytest.raises(Finding, match=r"guard\.died"):
        believed(answer, PLAN)


def test_every_code_has_a_refusal_report() -> None:
    for code, (n, _) in CODES.items():
        report = refusal(PLAN, Finding(code))
        assert [check.n for check in report.checks if check.verdict == "fail"] == [n]


NAMES = {
    **{"a": ("F32", -4.0, 4.0, 300), "b": ("F32", -4.0, 4.0, 50), "count": ("I64", 0, 1000, 7)},
    **{"short": ("I16", -5, 5, 9), "wide": ("I32", -(2**31), 2**31 - 1, 3), "tiny": ("I8", -3, 100, 11)},
    **{"byte": ("U8", 1, 250, 13), "all": ("U8", 0, 255, 5), "mask": ("BOOL", 0, 1, 8)},
}
KINDS = {"F32": "<f4", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?"}
TENSORS = [
    {"name": name, "dtype": dtype, "shape": [size], "min": low, "max": high}
    for name, (dtype, low, high, size) in NAMES.items()
]
INT8 = ReleasePlan.parse(
    {
        **{"version": 1, "max_bytes": 2**16},
        "weights": {"file": "w.safetensors", "release_dtype": "int8", "bits": 2, "tensors": TENSORS},
    }
)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    out = tmp_path / "numbers"
    out.mkdir()
    made = {
        name: np.linspace(low, high, size).astype(KINDS[dtype])
        for name, (dtype, low, high, size) in NAMES.items()
    }
    safetensors.numpy.save_file(made, out / "w.safetensors")
    return out


def _spot(name: str) -> int:
    """Where the bytes of `name` end in the released file."""
    assert INT8.weights
    header = INT8.weights.released_header()
    return 8 + len(header) + int(canonical.loads(header.strip())[name]["data_offsets"][1])


def written(name: str, form: str, value: float) -> Callable[[bytes], bytes]:
    """The last element of `name`, as another."""

    def change(data: bytes) -> bytes:
        last = struct.pack(form, value)
        return data[: _spot(name) - len(last)] + last + data[_spot(name) :]

    return change


WEIGHT_LIES: dict[str, Callable[[bytes], bytes]] = {
    "random bytes": lambda data: os.urandom(len(data)),
    "random values": lambda data: data[: len(data) - 300] + os.urandom(300),
    "another header": lambda data: data.replace(b'"mask"', b'"MRN1"', 1),
    "a longer header": lambda data: (int.from_bytes(data[:8], "little") + 8).to_bytes(8, "little") + data[8:],
    "2 of two bits": written("a", "b", 2),
    "-2 of two bits": written("b", "b", -2),
    "-128": written("a", "b", -128),
    "a count below": written("count", "<q", -1),
    "a count beyond": written("count", "<q", 1001),
    "a huge count": written("count", "<q", 2**62),
    "a short below": written("short", "<h", -6),
    "a short beyond": written("short", "<h", 6),
    "an I8 below": written("tiny", "b", -4),
    "an I8 beyond": written("tiny", "b", 101),
    "a byte below": written("byte", "B", 0),
    "a byte beyond": written("byte", "B", 251),
    "a boolean of 2": written("mask", "B", 2),
    "a scale of NaN": written("a.scale", "<f", float("nan")),
    "an infinite scale": written("b.scale", "<f", float("inf")),
    "a scale of 0": written("a.scale", "<f", 0.0),
    "a negative scale": written("a.scale", "<f", -1.0),
}


def told(out: Path, report: dict[str, Any], data: bytes) -> None:
    """Other weights, and a report that agrees with them."""
    (out / "w.safetensors").write_bytes(data)
    report["released"][0].update(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))


def swapping(change: Callable[[bytes], bytes]) -> Callable[[Spec], Outcome]:
    """A guard that was taken over: it writes other weights, and its report agrees with them."""

    def act(spec: Spec) -> Outcome:
        assert spec.out is not None
        given = next(m.source for m in spec.mounts if m.dest == "/rapha/in/outputs")
        assert given is not None
        report = inspect(given, INT8, spec.out).dump()
        told(spec.out, report, change((spec.out / "w.safetensors").read_bytes()))
        (spec.out / "report.guard").write_bytes(canonical.dumps(report))
        return ended()

    return act


@pytest.mark.parametrize("name", WEIGHT_LIES)
def test_weights_that_the_plan_does_not_let_out_are_not_believed(
    whole: Path, tmp_path: Path, name: str
) -> None:
    report = run_in_process(whole, INT8, tmp_path / "out", sandbox=Answering(swapping(WEIGHT_LIES[name])))
    assert (report.ok, report.decided, report.code) == (False, False, "guard.died")
    assert not any((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("name", WEIGHT_LIES)
def test_a_child_is_not_believed_either(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    out = tmp_path / "out"

    def ask(request: bytes, timeout_s: float) -> bytes:
        report = inspect(whole, INT8, out).dump()
        told(out, report, WEIGHT_LIES[name]((out / "w.safetensors").read_bytes()))
        return canonical.dumps(report)

    monkeypatch.setattr("rapha.runtime.guard.process._ask", ask)
    report = run_in_child(whole, INT8, out)
    assert (report.ok, report.decided, report.code) == (False, False, "guard.died")
    assert not any(out.glob("*"))


EDGES = {
    **{"a": ("b", (-1, 0, 1)), "count": ("<q", (0, 1000)), "short": ("<h", (-5, 5))},
    **{"wide": ("<i", (-(2**31), 2**31 - 1)), "tiny": ("b", (-3, 100)), "byte": ("B", (1, 250))},
    **{"all": ("B", (0, 255)), "mask": ("B", (0, 1)), "a.scale": ("<f", (2.0**-126, 3.4028234663852886e38))},
}


@pytest.mark.parametrize("name", EDGES)
def test_all_that_the_plan_lets_out_is_believed(whole: Path, tmp_path: Path, name: str) -> None:
    form, values = EDGES[name]
    for n, value in enumerate(values):
        sandbox = Answering(swapping(written(name, form, value)))
        assert run_in_process(whole, INT8, tmp_path / f"out{n}", sandbox=sandbox).ok


def _see(data: bytes, size: int) -> None:
    assert INT8.weights
    seen = bounds.Bounds(INT8.weights)
    for at in range(0, len(data), size):
        seen.see(memoryview(data)[at : at + size])
    seen.finish()


def test_weights_are_held_against_the_plan_in_parts_of_any_number(whole: Path, tmp_path: Path) -> None:
    assert INT8.weights and inspect(whole, INT8, tmp_path / "out").ok
    data = (tmp_path / "out" / "w.safetensors").read_bytes()
    for size in (8, 64, 1024, len(data)):
        _see(data, size)
        for change in WEIGHT_LIES.values():
            with pytest.raises(Finding, match=r"guard\.rebuild"):
                _see(change(data), size)
    assert bounds.SMALLEST_SCALE == rounding.SMALLEST_SCALE


def test_weights_that_end_too_soon_are_not_believed(whole: Path, tmp_path: Path) -> None:
    assert INT8.weights and inspect(whole, INT8, tmp_path / "out").ok
    seen = bounds.Bounds(INT8.weights)
    seen.see(memoryview((tmp_path / "out" / "w.safetensors").read_bytes()[:-8]))
    with pytest.raises(Finding, match=r"guard\.rebuild"):
        seen.finish()


def test_a_bundle_tells_exactly_the_guards_checks() -> None:
    assert {n: text.id for n, text in CHECKS.items()} == dict(enumerate(GUARD_CHECKS, 1))
