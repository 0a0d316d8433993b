"""How a job's end is told: quantised in time, in buckets, priced in bits."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rapha.node.gates import cost
from rapha.node.gates.consent import Consented
from rapha.node.gates.guard import Guarded
from rapha.node.gates.intake import Admitted
from rapha.node.gates.train import Ended
from rapha.node.recover import next_boundary
from rapha.spec.price import PriceContext, covert_bound_bits
from rapha.spec.refusals import Refused
from rapha.spec.surface import Artifact, Quanta, Surface, bucketed, startup_fault
from rapha.spec.verdicts import Scope, outgoing

if TYPE_CHECKING:
    from rapha.node.gates.passed import Passed
    from rapha.node.gates.receipt import Artifact as Sealed


class Clock:
    """Publishes outcomes at multiples of a quantum after training began: the end time tells little."""

    def __init__(self, quantum_s: int) -> None:
        self.quantum_s = quantum_s
        self._started: float | None = None
        self._boundary: float | None = None

    def start(self) -> float:
        """Training begins now; as Unix time."""
        self._started = time.time()
        return self._started

    def boundary(self) -> datetime:
        """The next moment at which an outcome may be published: fixed by the first call."""
        now = time.time()
        if self._boundary is None:
            started = now if self._started is None else self._started
            steps = math.ceil((now - started) / self.quantum_s)
            # Whole seconds, since that is how the receipt says it.
            self._boundary = float(math.ceil(started + steps * self.quantum_s))
        return datetime.fromtimestamp(self._boundary, UTC)

    def wait_for_quantum(self) -> None:
        """Hold what can be seen from outside until the next multiple of the quantum."""
        if self._started is not None:
            now = time.time()
            time.sleep(max(0.0, next_boundary(self._started, self.quantum_s, now) - now))

    def wait_for_boundary(self) -> None:
        """Hold what is to be told until the boundary; without training there is nothing to hide.

        Where the boundary was missed, because deletion took long, until a whole quantum after it.
        """
        if self._started is not None:
            boundary, now = self.boundary().timestamp(), time.time()
            # It lies a quantum ahead, and less than a second more; farther only if the clock was set back.
            ahead = 0 <= boundary - now <= self.quantum_s + 1
            until = boundary if ahead else next_boundary(boundary, self.quantum_s, now)
            time.sleep(max(0.0, until - now))


def quanta(clock: Clock) -> Quanta:
    """Steps of the published resource use."""
    return cost.quanta(clock.quantum_s)


def price_context(admitted: Admitted, clock: Clock, moments: int, scope: Scope = "all") -> PriceContext:
    """As `rapha.node.gates.cost.price_context`."""
    return cost.price_context(admitted, clock.quantum_s, moments, scope)


def covert_bound(
    admitted: Admitted, guarded: Guarded, clock: Clock, moments: int, scope: Scope = "all"
) -> int:
    """Bits about records that everything released of this job can carry, at most."""
    bound = covert_bound_bits(price_context(admitted, clock, moments, scope))
    return max(bound, guarded.report.covert_bound_bits) if scope == "all" else bound


def in_words(consented: Consented) -> str:
    """How many patients a person is told: a bucket."""
    bucket = consented.request.manifest.billing_bucket
    return f"up to {bucketed(consented.resolved.patients, bucket)} patients"


def success(passed: Passed, artifacts: list[Sealed], clock: Clock) -> Surface:
    """The surface of a released job."""
    used = passed.consented.data.usage()
    bucket, cap = passed.admitted.manifest.billing_bucket, passed.admitted.job.dataset.max_records
    end = passed.trained.outcome
    return Surface.success(
        passed.admitted.id,
        outgoing(passed.admitted.job.outputs, passed.released),
        artifacts=tuple(
            Artifact(name=a.name, sha256=a.sha256, cipher_sha256=a.cipher_sha256, bytes=a.size)
            for a in artifacts
        ),
        metrics=passed.guarded.trusted,
        self_reported=passed.guarded.report.self_reported if passed.released == "all" else {},
        records_bucket=at_most(used.unique_records, bucket, cap),
        patients_bucket=at_most(used.unique_patients, bucket, cap),
        usage=quanta(clock).usage(end.wall_s, end.cpu_s, end.peak_memory_bytes),
    )


class Told(Refused):
    """A refusal after training began, with what was used by then."""

    def __init__(self, cause: Refused, records: int, patients: int, wall_s: float) -> None:
        super().__init__(cause.code, cause.detail)
        self.crash = cause.crash if isinstance(cause, Ended) else None
        run = cause.outcome if isinstance(cause, Ended) else None
        self.cpu_s, self.memory_bytes = (run.cpu_s, run.peak_memory_bytes) if run else (0.0, 0)
        self.records, self.patients, self.wall_s = records, patients, wall_s


@contextmanager
def metered(admitted: Admitted, consented: Consented) -> Iterator[None]:
    """From training on, a refusal carries what was used: failures are billed and ledgered too."""
    started = time.monotonic()
    try:
        yield
    except Refused as refused:
        bucket, wall_s = admitted.manifest.billing_bucket, time.monotonic() - started
        try:
            used = consented.data.usage()
        except Refused as unknown:
            # Nobody knows what was served, so all that could be is taken for served.
            raise Told(Refused("job.failed", unknown.detail), *worst(admitted), wall_s) from refused
        records, patients = (bucketed(n, bucket) for n in (used.unique_records, used.unique_patients))
        raise Told(refused, records, patients, wall_s) from refused


def worst(admitted: Admitted) -> tuple[int, int]:
    """What a job whose counts are lost is billed: records and patients, both the bucket of its cap."""
    most = bucketed(admitted.job.dataset.max_records, admitted.manifest.billing_bucket)
    return most, most


def ended(job: str, refused: Refused, clock: Clock) -> Surface:
    """The surface of a refusal or failure: the constructor cuts it down to what may be said."""
    if not isinstance(refused, Told):
        return Surface.ended(job, refused)
    crash = refused.crash
    fault = startup_fault(crash.exception, crash.file, crash.line, frozenset({crash.file})) if crash else None
    return Surface.ended(
        job,
        refused,
        startup=fault,
        records_bucket=refused.records,
        patients_bucket=refused.patients,
        usage=quanta(clock).usage(refused.wall_s, refused.cpu_s, refused.memory_bytes),
    )


def at_most(count: int, bucket: int, cap: int) -> int:
    """`count` rounded up to the bucket, and no more than the cap."""
    return min(bucketed(count, bucket), cap)
