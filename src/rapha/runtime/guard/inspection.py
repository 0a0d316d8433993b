"""The guard's checks in order, over one folder and one plan."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from rapha.evidence import canonical
from rapha.runtime.guard import reading, reported, tensors
from rapha.runtime.guard.codes import Finding
from rapha.runtime.guard.report import GuardReport, Ledger, ReleasedFile, Transform, refusal
from rapha.spec.release_plan import ReleasePlan, WeightsPlan
from rapha.spec.reported import Reported

if TYPE_CHECKING:
    from collections.abc import Mapping


def inspect(directory: Path, plan: ReleasePlan, out: Path | None = None) -> GuardReport:
    """Run checks 1 to 7 on `directory` and, on a yes, write the rebuilt files to `out`.

    `out` is an empty or new folder; on a no it stays empty. Hostile files give a report, never an
    exception; memory is at most the planned input plus the planned output.
    """
    ledger, work = Ledger(), _Work(plan)
    try:
        work.run(directory, ledger)
        if out is not None:
            write_files(out, work.files)
    except Finding as finding:
        return refusal(plan, finding, ledger)
    except MemoryError:
        return refusal(plan, Finding("guard.memory"), ledger)
    return GuardReport(
        ok=True,
        plan_digest=canonical.digest(plan.dump()),
        checks=ledger.checks(),
        released=_released(work.files),
        transforms=work.transforms,
        self_reported=work.reported,
        covert_bound_bits=plan.released_bits(),
    )


class _Work:
    """What the checks hand to one another."""

    def __init__(self, plan: ReleasePlan) -> None:
        self.plan = plan
        self.files: dict[str, bytearray] = {}
        self.transforms: tuple[Transform, ...] = ()
        self.reported: dict[str, Reported] = {}

    def run(self, directory: Path, ledger: Ledger) -> None:
        """All checks. Raises `Finding` at the first that fails."""
        raw = reading.read_outputs(directory, self.plan)
        ledger.passed(1, f"{len(raw)} planned files, nothing else")
        if self.plan.weights:
            self._weights(raw[self.plan.weights.file], self.plan.weights, ledger)
        else:
            for n in (2, 3, 4, 5):
                ledger.skipped(n, "the plan names no weights")
        self._reported(raw, ledger)
        self._polyglots(raw, ledger)

    def _weights(self, data: bytearray, plan: WeightsPlan, ledger: Ledger) -> None:
        # numpy takes longer to load than everything else here, and reports alone don't need it.
        from rapha.runtime.guard import tripwires, values

        found = tensors.read(data, [(t.name, t.dtype, t.shape) for t in plan.tensors])
        ledger.passed(2, f"{len(found)} tensors, exactly as planned")
        values.check(found, plan)
        ledger.passed(3, "all values are finite")
        self.files[plan.file], self.transforms = values.rebuild(found, plan)
        moved = sum(t.clipped for t in self.transforms)
        ledger.passed(4, f"{moved} values clipped, rounded to {plan.release_dtype}")
        ledger.passed(5, "rebuilt from the plan and read back")
        tripwires.check_entropy(found, plan)

    def _reported(self, raw: Mapping[str, bytearray], ledger: Ledger) -> None:
        part = self.plan.self_reported
        trusted = "; the node computes the trusted metrics" if self.plan.trusted_metrics else ""
        if part is None:
            ledger.skipped(6, f"the plan names no self-reported fields{trusted}")
            return
        self.reported = reported.rebuild(raw[part.file], part)
        self.files[part.file] = bytearray(canonical.dumps(self.reported))
        ledger.passed(6, f"{len(self.reported)} self-reported values, typed, clipped and rounded{trusted}")

    def _polyglots(self, raw: Mapping[str, bytearray], ledger: Ledger) -> None:
        from rapha.runtime.guard import tripwires

        for files in (raw, self.files):
            for name, data in files.items():
                tripwires.check_polyglot(name, data)
        ledger.passed(7, "no mark of another format or a random payload; identifiers were not searched")


def _released(files: Mapping[str, bytearray]) -> tuple[ReleasedFile, ...]:
    return tuple(
        ReleasedFile(name=name, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
        for name, data in sorted(files.items())
    )


def write_files(out: Path, files: Mapping[str, bytearray]) -> None:
    """All files or none, in a folder that was empty or absent.

    Raises:
        Finding: `guard.out`.
    """
    written: list[Path] = []
    try:
        out.mkdir(mode=0o700, exist_ok=True)
        if any(out.iterdir()):
            raise Finding("guard.out", "the folder for released files is not empty")
        for name, data in sorted(files.items()):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            handle = os.open(out / name, flags, 0o600)
            written.append(out / name)
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
    except (OSError, ValueError) as error:
        for path in written:
            path.unlink(missing_ok=True)
        raise Finding("guard.out", f"the rebuilt files can't be written: {error}") from None
