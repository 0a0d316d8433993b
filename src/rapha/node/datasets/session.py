"""The one job of a dataset process: resolve, serve, count, score. No socket to the pipeline in here.

The records of a job are stored in an order drawn from the hospital's key and the job's id, so that a
position tells nothing (files are often sorted by outcome) and does not link two jobs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import socket
import stat
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Final

import numpy as np

from rapha.evidence.canonical import dumps
from rapha.node.datasets import consent, control
from rapha.node.datasets.pseudonyms import HospitalKey, commit
from rapha.node.datasets.resolve import Selection, resolve, usable_cell
from rapha.node.sources.interface import Array, Records
from rapha.node.sources.parquet import ParquetSource
from rapha.runtime.broker.meter import Meter
from rapha.runtime.broker.meter import Usage as MeterUsage
from rapha.runtime.broker.serve import Broker
from rapha.runtime.broker.store import TableStore
from rapha.runtime.metrics import Labels, evaluate, parse_predictions
from rapha.spec import cohort as cohorts
from rapha.spec.dataset import Target
from rapha.spec.refusals import Refused
from rapha.spec.release_plan import TrustedMetric

MAX_COLUMNS: Final = 1024
"""Most predictions a record."""
_STOP_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class _Job:
    """What one `Resolve` prepared. Positions in `train` and `test` are those of `store`."""

    request: control.Resolve
    store: TableStore
    train: Array
    test: Array
    labels: Labels | None
    key: HospitalKey

    def derive(self, purpose: str) -> bytes:
        """A key of this job."""
        return self.key.derive(purpose, self.request.job_id)


class Session:
    """Holds the records of one job. Every method raises `Refused`, and nothing else on purpose.

    Args:
        on_first_record: called before the first record is handed over, from the serving thread.
    """

    def __init__(self, on_first_record: Callable[[], None]) -> None:
        self._on_first_record = on_first_record
        self._job: _Job | None = None
        self._meter: Meter | None = None
        self._recovered = False
        self._serving: Future[MeterUsage] | None = None
        self._stop = Event()
        self._threads = ThreadPoolExecutor(max_workers=1)

    def resolve(self, request: control.Resolve) -> control.Resolved:
        """Gate 5, in this order: the manifest's terms, then the data, then what depends on records.

        Raises:
            Refused: `schema.cohort_field`, `consent.*`, `node.key_unsafe`, `node.dataset_*`,
                `privacy.cohort_refused`; `policy.conflict` once records were metered.
        """
        if self._meter:
            raise Refused("policy.conflict", "records were metered; the cohort can't change any more")
        self._job = None
        manifest, folder = request.manifest, Path(request.folder)
        cohorts.check(request.cohort, manifest.fields)
        consent.check_permission(manifest, request.organisation, request.purpose)
        key = HospitalKey.load(Path(request.key_path))
        listed = consent.read_opt_outs(manifest, folder)
        records = ParquetSource().open(manifest, folder)
        try:
            selection = resolve(
                records,
                manifest,
                request.cohort,
                listed,
                max_records=request.max_records,
                seed=int.from_bytes(key.derive("sample", request.job_id)),
            )
            self._job = _prepare(request, records, selection, key)
            return _resolved(request, records, selection, key, listed)
        finally:
            records.close()

    def describe(self, request: control.Describe) -> control.Described:
        """Count what could be used by anyone. Raises `Refused` (`node.dataset_*`)."""
        folder = Path(request.folder)
        listed = consent.read_opt_outs(request.manifest, folder)
        records = ParquetSource().open(request.manifest, folder)
        try:
            usable = usable_cell(records.index, listed)
        finally:
            records.close()
        return control.Described(records=usable.records, patients=usable.patients)

    def serve(self, split: control.Split) -> socket.socket:
        """Start a session over `split` in a thread, after ending the last one; returns the job's end.

        Raises:
            Refused: what the last session failed with; `policy.conflict` before `resolve`;
                `node.restarted` where the journal is of an earlier process.
        """
        self.finish()
        job, meter = self._resolved_job(), self._metered()
        if self._recovered:
            raise Refused("node.restarted", "the job's journal is of an earlier process")
        broker = Broker(job.store, {"train": job.train, "test": job.test}, meter)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._stop = Event()
        self._serving = self._threads.submit(self._run, broker, ours, split, self._stop)
        return theirs

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
                target; `policy.conflict` before `resolve`.
        """
        self.finish()
        job = self._resolved_job()
        if job.labels is None:
            raise Refused("node.config", "the dataset's manifest names no target for metrics")
        rows = len(job.test)
        data = _read_predictions(descriptor, 4 * rows * MAX_COLUMNS)
        predictions = parse_predictions(data, rows, max(1, len(data) // (4 * rows)))
        seed = int.from_bytes(job.derive("bootstrap"))
        cell = job.request.manifest.minimum_cell
        return control.Scored(values=evaluate(metrics, job.labels, predictions, seed=seed, min_cell=cell))

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
            if self._meter:
                self._meter.close()
            self._job = self._meter = None
            self._threads.shutdown(wait=False, cancel_futures=True)

    def _resolved_job(self) -> _Job:
        if self._job is None:
            raise Refused("policy.conflict", "no cohort is resolved")
        return self._job

    def _metered(self) -> Meter:
        job = self._resolved_job()
        if self._meter is None:
            path, patients = Path(job.request.journal_path), job.store.patients
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


def _prepare(request: control.Resolve, records: Records, selection: Selection, key: HospitalKey) -> _Job:
    manifest, job_id = request.manifest, request.job_id
    chosen = np.concatenate([selection.train, selection.test])
    seed = int.from_bytes(key.derive("order", job_id))
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(chosen))
    is_test = order >= len(selection.train)
    columns = records.read(chosen[order])
    labels = [field.name for field in manifest.fields if field.label]
    test = np.flatnonzero(is_test)
    patients = selection.patient_of[chosen[order]]
    return _Job(
        request=request,
        store=TableStore(columns, patients, labels),
        train=np.flatnonzero(~is_test),
        test=test,
        labels=_labels(manifest.target, columns, patients, test) if manifest.target else None,
        key=key,
    )


def _labels(target: Target, columns: Mapping[str, Array], patients: Array, test: Array) -> Labels:
    values = columns[target.label][test]
    return Labels(
        target=values if target.positive is None else (values == target.positive).astype(np.int64),
        event=columns[target.event][test] == 1 if target.event else None,
        patient=patients[test],
    )


def _read_predictions(descriptor: int | None, limit: int) -> bytes:
    """The whole file behind `descriptor`. Raises `Refused` (`job.outputs`)."""
    if descriptor is None or not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise Refused("job.outputs", "predictions: not a regular file")
    with open(descriptor, "rb", closefd=False) as file:
        file.seek(0)
        data = file.read(limit + 1)
    if len(data) > limit:
        raise Refused("job.outputs", f"predictions: more than {MAX_COLUMNS} columns")
    return data


def _resolved(
    request: control.Resolve,
    records: Records,
    selection: Selection,
    key: HospitalKey,
    listed: frozenset[str],
) -> control.Resolved:
    manifest = request.manifest
    used = selection.funnel.used
    opt_out_key = key.derive("opt-outs", manifest.dataset)
    return control.Resolved(
        manifest=manifest.digest,
        dataset=manifest.commitment,
        cohort=_commitment(request, records, selection, key),
        # Keyed, since a short list of guessable identifiers could be found again from a bare digest.
        opt_out_version=commit(opt_out_key, dumps(sorted(listed))),
        funnel=selection.funnel.published(manifest.minimum_cell, manifest.billing_bucket),
        records=used.records,
        patients=used.patients,
        test_records=len(selection.test),
        fields=tuple(field for field in manifest.fields if field.served),
    )


def _commitment(request: control.Resolve, records: Records, selection: Selection, key: HospitalKey) -> str:
    """Which records, under a key of this job: the same when resolved again, unlike that of any other job."""
    digest = hashlib.sha256()
    locators = records.index.locators
    for name, positions in (("train", selection.train), ("test", selection.test)):
        digest.update(f"{name}:{len(positions)}\n".encode())
        wanted = np.zeros(len(locators), dtype=np.bool_)
        wanted[positions] = True
        for chosen, locator in zip(wanted, locators, strict=True):
            if chosen:
                digest.update(f"{locator}\n".encode())
    about = {
        "cohort": cohorts.dump(request.cohort),
        "dataset": request.manifest.commitment,
        "records": digest.hexdigest(),
    }
    return commit(key.derive("cohort", request.job_id), dumps(about))
