"""The one job of a dataset process: resolve, prepare, serve, count, score. No socket to anyone in here."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import BinaryIO, Final

from rapha.node.datasets import consent, control
from rapha.node.datasets.audit import Auditor
from rapha.node.datasets.feasibility import estimate
from rapha.node.datasets.groups import groups
from rapha.node.datasets.held import Job, resolved
from rapha.node.datasets.ledger.charge import Charge, afford
from rapha.node.datasets.ledger.entries import Released
from rapha.node.datasets.opening import Sources
from rapha.node.datasets.predictions import read_predictions
from rapha.node.datasets.prepare import Ready, prepare
from rapha.node.datasets.pseudonyms import HospitalKey
from rapha.node.datasets.resolve import resolve
from rapha.node.datasets.score import score
from rapha.node.datasets.sealed import unsealed
from rapha.node.sources.interface import Told
from rapha.runtime.broker.meter import Meter
from rapha.runtime.broker.meter import Usage as MeterUsage
from rapha.runtime.broker.serve import Broker
from rapha.spec import cohort as cohorts
from rapha.spec import subgroups
from rapha.spec.disclosure import Balance, Leakage, Price, Searched
from rapha.spec.refusals import Refused
from rapha.spec.release_plan import TrustedMetric

_STOP_SECONDS: Final = 30.0


class Session:
    """Holds the records of one job. Every method raises `Refused`, and nothing else on purpose.

    Args:
        on_first_record: called before the first record is handed over, from the serving thread.
        tell: called with progress.
    """

    def __init__(self, on_first_record: Callable[[], None], tell: Told) -> None:
        self._on_first_record = on_first_record
        self._sources = Sources(tell)
        self._job: Job | None = None
        self._ready: Ready | None = None
        self._meter: Meter | None = None
        self._auditor: Auditor | None = None
        self._recovered = False
        self._serving: Future[MeterUsage] | None = None
        self._stop = Event()
        self._threads = ThreadPoolExecutor(max_workers=1)

    def resolve(self, request: control.Resolve) -> control.Resolved:
        """Gate 5, in this order: the manifest's terms and caps, then the data, then what depends on records.

        Raises:
            Refused: `schema.cohort_field`, `consent.*`, `node.key_unsafe`, `node.dataset_*`,
                `privacy.cohort_refused`, `budget.disclosure`, `node.ledger_invalid`; `policy.conflict` once
                records were metered.
        """
        if self._meter or self._ready:
            raise Refused("policy.conflict", "records were prepared; the cohort can't change any more")
        self._drop()
        manifest, folder = request.manifest, Path(request.folder)
        manifest.forms(request.transforms)
        cohorts.check(request.cohort, manifest.fields)
        subgroups.check(request.subgroups, manifest.fields)
        consent.check_permission(manifest, request.organisation, request.purpose)
        key = HospitalKey.load(Path(request.key_path))
        listed = consent.read_opt_outs(manifest, folder)
        afford(request, listed)
        records = self._sources.open(manifest, folder, request.means)
        try:
            selection = resolve(
                records,
                manifest,
                request.cohort,
                listed,
                max_records=request.max_records,
                seed=int.from_bytes(key.derive("sample", request.job_id)),
                kind=request.kind,
            )
            answer = resolved(request, records, selection, key, listed)
            charge = Charge.admitted(request, records, selection, answer.opt_out_version)
        except BaseException:
            records.close()
            raise
        self._job = Job(request, records, selection, key, listed, charge)
        return answer

    def describe(self, request: control.Describe) -> control.Described:
        """Count what could be used by anyone. Raises `Refused` (`node.dataset_*`)."""
        return self._sources.describe(request)

    def estimate(self, request: control.Estimate) -> control.Estimated:
        """Count a cohort with noise, in buckets. Raises as `rapha.node.datasets.feasibility.estimate`."""
        return estimate(self._sources.open, request)

    def prepare(self) -> control.Prepared:
        """Decode the resolved records into the broker's store; the source is closed afterwards.

        Raises:
            Refused: `policy.conflict` before `resolve` or a second time; as `rapha.node.datasets.prepare`.
        """
        job = self._resolved_job()
        if self._ready:
            raise Refused("policy.conflict", "the records were prepared already")
        self._job = None  # a source that is closed can't be prepared from a second time
        try:
            self._ready = ready = prepare(job.records, job.selection, job.request, job.key, job.listed)
        finally:
            job.records.close()
        self._job = job
        manifest, used = job.request.manifest, ready.selection.funnel.used
        return control.Prepared(
            funnel=ready.selection.funnel.published(manifest.minimum_cell, manifest.billing_bucket),
            records=used.records,
            patients=used.patients,
            test_records=len(ready.test),
            content=ready.content,
            confinement=ready.store.confinement,
        )

    def reserve(self, price: Price) -> Balance:
        """Charge the disclosure ledger, before anything is served. Raises as `Charge.reserve`."""
        charge, ready = self._resolved_job().charge, self._prepared()
        balance = charge.reserve(price, ready.selection)
        told = {name: rows for name, rows in ready.subgroups.items() if name in charge.subgroups}
        self._ready = dataclasses.replace(ready, subgroups=told)
        return balance

    def settle(self, bits: int, released: Released) -> Balance:
        """Lower the charge to what left; nothing is served any more. Raises as `Charge.settle`."""
        return self._resolved_job().charge.settle(bits, released)

    def serve(self, split: control.Split, shadow: int | None = None) -> socket.socket:
        """Start a session over `split` in a thread, after ending the last one; returns the job's end.

        Those of check 8 (`audit`, and any of a shadow) add to no count.

        Raises:
            Refused: what the last session failed with; `policy.conflict` before `prepare` and `reserve`;
                `node.restarted` where the journal is of an earlier process.
        """
        self.finish()
        self._resolved_job().demand_split(split)
        ready, meter = self._prepared(), self._metered()
        if self._recovered:
            raise Refused("node.restarted", "the job's journal is of an earlier process")
        self._resolved_job().charge.demand()
        if split == "audit" or shadow is not None:
            broker = self._audited().broker(split, shadow)
        else:
            broker = Broker(ready.store, {"train": ready.train, "test": ready.test}, meter)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._stop = Event()
        self._serving = self._threads.submit(self._run, broker, ours, _told(split), self._stop)
        return theirs

    def groups(self, shadow: int | None = None) -> BinaryIO:
        """As `rapha.node.datasets.groups`. Raises `Refused` (`policy.conflict`) before `prepare`."""
        ready = self._prepared()
        return groups(ready, ready.train if shadow is None else self._audited().half(shadow))

    def usage(self) -> control.Used:
        """What was used; after a crash, what the journal of the crashed process says.

        Ends the running session first, so that no count can grow after it was told.

        Raises:
            Refused: what the session failed with; `policy.conflict` before `resolve`.
        """
        self.finish()
        return control.Used(**dataclasses.asdict(self._metered().usage()))

    def score(self, descriptor: int | None, metrics: tuple[TrustedMetric, ...]) -> control.Scored:
        """Trusted metrics of the predictions in `descriptor`, in the order in which `test` was served.

        Ends the running session first.

        Raises:
            Refused: `job.outputs` for predictions that don't fit; `node.config` for a dataset without a
                target; `policy.conflict` unless the ledger was charged.
        """
        self.finish()
        job, ready = self._resolved_job(), self._prepared()
        job.charge.demand()
        job.demand_read(self._metered().usage().unique_records, len(ready.test))
        return score(job, ready, descriptor, metrics)

    def observe(self, descriptor: int | None, shadow: int | None) -> control.Done:
        """Take predictions over `audit`. Raises `Refused` as `score`, and as `Auditor.observe`."""
        self.finish()
        self._resolved_job().charge.demand()
        auditor = self._audited()
        auditor.observe(shadow, read_predictions(descriptor, auditor.rows))
        return control.Done()

    def audit(self) -> Leakage:
        """What check 8 shows by now. Raises `Refused` as `Auditor`, and unless the ledger was charged."""
        self.finish()
        self._resolved_job().charge.demand()
        return self._audited().leakage()

    def search(self, descriptor: int | None, content: control.Content) -> Searched:
        """The known-identifier tripwire over the bytes in `descriptor`.

        Raises:
            Refused: `policy.conflict` before `prepare`; `node.internal` for bytes that could still change.
        """
        # What it imports is of no use before there is something to release.
        from rapha.node.datasets.identifiers import search

        with unsealed(descriptor) as data:
            return search(data, self._prepared().identifiers, content)

    def finish(self) -> None:
        """End the running session, if any, and raise what it failed with.

        Raises:
            Refused: `node.internal` if it does not end.
        """
        serving, self._serving = self._serving, None
        if serving is None:
            return
        self._stop.set()
        try:
            serving.result(timeout=_STOP_SECONDS)
        except TimeoutError:
            raise Refused("node.internal", "the broker does not stop") from None

    def close(self) -> None:
        """End everything, dropping the records. Idempotent; keeps the journal."""
        try:
            self.finish()
        finally:
            for closing in (self._meter, self._auditor):
                if closing:
                    closing.close()
            self._meter = self._auditor = None
            self._drop()
            self._threads.shutdown(wait=False, cancel_futures=True)

    def _drop(self) -> None:
        job, ready, self._job, self._ready = self._job, self._ready, None, None
        if ready:
            ready.store.close()
        if job:
            job.records.close()

    def _prepared(self) -> Ready:
        if self._ready is None:
            raise Refused("policy.conflict", "no records are prepared")
        return self._ready

    def _resolved_job(self) -> Job:
        if self._job is None:
            raise Refused("policy.conflict", "no cohort is resolved")
        return self._job

    def _audited(self) -> Auditor:
        if self._auditor is None:
            self._auditor = Auditor(self._resolved_job(), self._prepared(), self._metered().used())
        return self._auditor

    def _metered(self) -> Meter:
        job = self._resolved_job()
        if self._meter is None:
            path, patients = Path(job.request.journal_path), self._prepared().store.patients
            self._recovered = path.exists()
            if self._recovered:
                self._meter = Meter.recover(path, patients=patients, key=job.derive("meter"))
            else:
                cap = job.request.max_records
                self._meter = Meter.create(path, patients=patients, cap=cap, key=job.derive("meter"))
        return self._meter

    def _run(self, broker: Broker, sock: socket.socket, split: str, stop: Event) -> MeterUsage:
        with sock:
            return broker.serve(
                sock,
                split=split,
                hide_labels=split == "test",
                on_first_record=self._on_first_record,
                stop=stop,
            )


def _told(split: control.Split) -> str:
    """What a job is told that `split` is: nothing shows it that it runs for the audit."""
    return "train" if split == "train" else "test"
