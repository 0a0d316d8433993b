"""The pipeline's side of the dataset process: typed, synchronous, and raising what the process refuses."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from rapha.node.config import Preparation
from rapha.node.datasets import control
from rapha.node.datasets.channel import Channel
from rapha.node.datasets.ledger import messages
from rapha.node.datasets.ledger.entries import Released
from rapha.node.datasets.sealed import sealed, searchable
from rapha.spec.dataset import DatasetManifest
from rapha.spec.disclosure import Balance, Leakage, Price, Searched
from rapha.spec.price import search_s
from rapha.spec.refusals import Refused
from rapha.spec.release_plan import ReleasePlan, TrustedMetric

_SCORE_SECONDS: Final = 60.0
_SCORE_SECONDS_A_BYTE: Final = 10 / 4e5
"""Ten seconds for 10^5 predictions: several times what they take."""


class DatasetProcess(Channel):
    """What a dataset process can be asked. Made, left and ended as a `Channel`."""

    def resolve(self, request: control.Resolve) -> control.Resolved:
        """Gate 5: consent, cohort, cells. May be asked again until the first `serve`.

        Raises:
            Refused: `schema.cohort_field`, `consent.*`, `privacy.cohort_refused`, `node.*`.
        """
        return control.Resolved.parse(self._ask(request, long=True)[0])

    def describe(self, manifest: DatasetManifest, folder: Path, means: control.Means) -> control.Described:
        """Exact counts of usable records and their patients, opt-outs removed, and what fell out.

        Raises:
            Refused: `node.dataset_*`.
        """
        request = control.Describe(manifest=manifest, folder=str(folder.resolve()), means=means)
        return control.Described.parse(self._ask(request, long=True)[0])

    def prepare(self) -> control.Prepared:
        """Decode the resolved records; once, before `serve`.

        Raises:
            Refused: `privacy.cohort_refused` when too few patients are left, `policy.conflict`, `node.*`.
        """
        return control.Prepared.parse(self._ask(control.Prepare(), long=True)[0])

    def estimate(self, request: control.Estimate) -> control.Estimated:
        """Bucketed counts of a cohort, for its feasibility.

        Raises:
            Refused: `schema.cohort_field`, `node.*`.
        """
        return control.Estimated.parse(self._ask(request, long=True)[0])

    def reserve(self, price: Price) -> Balance:
        """Charge the job's worst case to the disclosure ledger, durably; before the first `serve`.

        Raises:
            Refused: `budget.disclosure`, `privacy.cohort_refused`, `policy.conflict` a second time, `node.*`.
        """
        return Balance.parse(self._ask(messages.Reserve(price=price))[0])

    def settle(self, bits: int, released: Released) -> Balance:
        """Lower the charge to what left; a job that never gets here stays charged as the worst case.

        Raises:
            Refused: `policy.conflict` for a job that was not charged, or was settled otherwise, `node.*`.
        """
        return Balance.parse(self._ask(messages.Settle(bits=bits, released=released))[0])

    def inspect(self, request: messages.Inspect) -> messages.Shown:
        """A dataset's disclosure ledger in numbers, every byte of it checked.

        Raises:
            Refused: `node.ledger_invalid`, `node.*`.
        """
        return messages.Shown.parse(self._ask(request, long=True)[0])

    def serve(self, split: control.Split, shadow: int | None = None) -> socket.socket:
        """Serve a split of the prepared records, ending an earlier session; returns the job's end.

        With a `shadow`, `train` is that shadow's half of it.

        Close it here once the job has its own copy: the session ends when the last copy is closed.

        Raises:
            Refused: `policy.conflict`, `node.*`, or what the earlier session failed with.
        """
        _, descriptor = self._ask(control.Serve(split=split, shadow=shadow))
        if descriptor is None:
            raise Refused("node.internal", "the dataset process gave no socket")
        return socket.socket(fileno=descriptor)

    def groups(self, shadow: int | None = None) -> int:
        """A descriptor of the patients' numbers, for the hospital's own trainer; close it here.

        With a `shadow`, of that shadow's half.

        Raises:
            Refused: `policy.conflict` before `prepare`, `node.*`.
        """
        _, descriptor = self._ask(control.Groups(shadow=shadow))
        if descriptor is None:
            raise Refused("node.internal", "the dataset process gave no file")
        return descriptor

    def usage(self) -> control.Used:
        """Exact counts, after ending the session that runs.

        After a crash, resolve the same job in a new process and ask it: the answer is the journal's.

        Raises:
            Refused: `node.journal_invalid`, `node.*`, or what the session failed with.
        """
        return control.Used.parse(self._ask(control.Usage())[0])

    def score(self, predictions: Path | bytes, metrics: tuple[TrustedMetric, ...]) -> dict[str, float]:
        """Trusted metrics by name, rounded, over the test split in the order in which it was served.

        A value that rests on a small cell is left out (`rapha.runtime.metrics.evaluate`).

        Raises:
            Refused: `job.outputs` if they are not one finite float32 a record in the file, `schema.*`,
                `node.dataset_slow` if they take longer than any of their size should, `node.*`.
        """
        descriptor = _open_predictions(predictions)
        try:
            limit_s = _SCORE_SECONDS + _SCORE_SECONDS_A_BYTE * os.fstat(descriptor).st_size
            reply, _ = self._ask(control.Score(metrics=metrics), descriptor, long=True, limit_s=limit_s)
            return control.Scored.parse(reply).values
        finally:
            os.close(descriptor)

    def search(self, files: Mapping[str, bytes], plan: ReleasePlan) -> Searched:
        """The known-identifier tripwire over rebuilt files, up to the first hit.

        Raises:
            Refused: `policy.conflict` before `prepare`, `node.*`.
        """
        searched = too_short = 0
        deadline = time.monotonic() + search_s(plan)
        for name, content, data in searchable(files, plan):
            with sealed(data) as descriptor:
                within = max(0.0, deadline - time.monotonic())
                reply = self._ask(control.Search(content=content), descriptor, long=True, limit_s=within)[0]
            told = Searched.parse(reply)
            if told.found:
                return told.model_copy(update={"file": name})
            searched, too_short = max(searched, told.searched), max(too_short, told.too_short)
        return Searched(found=False, searched=searched, too_short=too_short)

    def observe(self, shadow: int | None, predictions: Path | bytes) -> None:
        """Take predictions over `audit`: of the released model (None), which come first, or of a shadow.

        Raises:
            Refused: `job.outputs` if they are not one finite float32 a record in the file, or don't cover the
                classes; `policy.conflict` out of order; `node.*`.
        """
        descriptor = _open_predictions(predictions)
        try:
            control.Done.parse(self._ask(control.Observe(shadow=shadow), descriptor, long=True)[0])
        finally:
            os.close(descriptor)

    def audit(self) -> Leakage:
        """What check 8 shows; before anything was observed, whether it can show anything.

        Raises:
            Refused: `node.config` for a dataset without a target, `policy.conflict` before training, `node.*`
        """
        return Leakage.parse(self._ask(control.Audit(), long=True)[0])


def means(allowed: Preparation, shards: Path) -> control.Means:
    """What a dataset process may spend; `shards` is the folder for what doesn't fit in memory."""
    workers = allowed.workers or len(os.sched_getaffinity(0))
    return control.Means(workers=workers, memory_bytes=allowed.memory_bytes, shards=str(shards))


def _open_predictions(predictions: Path | bytes) -> int:
    """A descriptor to pass. Raises `Refused` (`job.outputs`) where the job left something else."""
    if isinstance(predictions, bytes):
        descriptor = os.memfd_create("predictions", os.MFD_CLOEXEC)
        with open(descriptor, "wb", closefd=False) as file:
            file.write(predictions)
        return descriptor
    try:
        # The job chose what lies there: a link must not be followed, a FIFO must not hang the node.
        return os.open(predictions, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise Refused("job.outputs", f"predictions: {error.strerror}") from None
