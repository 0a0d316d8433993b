"""The guard's checks in order, over one folder and one plan."""

from __future__ import annotations

from pathlib import Path

from rapha.evidence import canonical
from rapha.runtime.guard import reported, tensors, tripwires
from rapha.runtime.guard.codes import Finding
from rapha.runtime.guard.reading import PlainFile, open_outputs, part
from rapha.runtime.guard.released import Folder, Outgoing, folder_for
from rapha.runtime.guard.report import GuardReport, Ledger, ReleasedFile, Transform, refusal
from rapha.spec.release_plan import ReleasePlan
from rapha.spec.reported import Reported
from rapha.spec.weights import WeightsPlan


def inspect(directory: Path, plan: ReleasePlan, out: Path | None = None) -> GuardReport:
    """Run checks 1 to 7 on `directory` and, on a yes, leave the rebuilt files in `out`.

    `out` is an empty or new folder; on a no it is empty again. Hostile files give a report, never an
    exception; memory does not grow with the files.
    """
    ledger, work = Ledger(), _Work(plan)
    try:
        with folder_for(out) as folder, open_outputs(directory, plan) as files:
            work.run(files, folder, ledger)
    except Finding as finding:
        return refusal(plan, finding, ledger)
    except MemoryError:
        return refusal(plan, Finding("guard.memory"), ledger)
    return GuardReport(
        ok=True,
        plan_digest=canonical.digest(plan.dump()),
        checks=ledger.checks(),
        released=tuple(sorted(work.released, key=lambda file: file.name)),
        transforms=work.transforms,
        self_reported=work.reported,
        covert_bound_bits=plan.released_bits(),
    )


class _Work:
    """What the checks hand to one another."""

    def __init__(self, plan: ReleasePlan) -> None:
        self.plan = plan
        self.released: list[ReleasedFile] = []
        self.transforms: tuple[Transform, ...] = ()
        self.reported: dict[str, Reported] = {}

    def run(self, files: dict[str, PlainFile], folder: Folder, ledger: Ledger) -> None:
        """All checks. Raises `Finding` at the first that fails."""
        ledger.passed(1, f"{len(files)} planned files, nothing else")
        made: list[Outgoing] = []
        if self.plan.weights:
            made.append(self._weights(files[self.plan.weights.file], self.plan.weights, folder, ledger))
        else:
            for n in (2, 3, 4, 5):
                ledger.skipped(n, "the plan names no weights")
        made += self._reported(files, folder, ledger)
        for name, file in files.items():
            tripwires.check_polyglot(name, file)
        for outgoing in made:
            tripwires.check_polyglot(outgoing.name, outgoing)
        ledger.passed(7, "no mark of another format or a random payload; identifiers were not searched")
        self.released = [outgoing.finish() for outgoing in made]

    def _weights(self, file: PlainFile, plan: WeightsPlan, folder: Folder, ledger: Ledger) -> Outgoing:
        # numpy takes longer to load than everything else here, and reports alone don't need it.
        from rapha.runtime.guard.rebuild import rebuild

        begins = tensors.read(file, [(t.name, t.dtype, t.shape) for t in plan.tensors])
        ledger.passed(2, f"{len(begins)} tensors, exactly as planned")
        outgoing = folder.file(plan.file, plan.released_bytes)
        self.transforms = rebuild(file, begins, plan, outgoing)
        ledger.passed(3, "all values are finite")
        moved = sum(t.clipped for t in self.transforms)
        noise = f", noise of standard deviation {plan.noise_std:g} added" if plan.noise else ""
        width = f" of {plan.int8_bits} bits" if plan.int8_bits else ""
        ledger.passed(4, f"{moved} values clipped{noise}, rounded to {plan.release_dtype}{width}")
        ledger.passed(5, "rebuilt from the plan and read back")
        return outgoing

    def _reported(self, files: dict[str, PlainFile], folder: Folder, ledger: Ledger) -> list[Outgoing]:
        planned = self.plan.self_reported
        trusted = "; the node computes the trusted metrics" if self.plan.trusted_metrics else ""
        if planned is None:
            ledger.skipped(6, f"the plan names no self-reported fields{trusted}")
            return []
        file = files[planned.file]
        self.reported = reported.rebuild(part(file, 0, file.size), planned)
        data = canonical.dumps(self.reported)
        outgoing = folder.file(planned.file, len(data))
        outgoing.write(data)
        ledger.passed(6, f"{len(self.reported)} self-reported values, typed, clipped and rounded{trusted}")
        return [outgoing]
