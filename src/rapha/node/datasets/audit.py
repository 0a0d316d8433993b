"""Check 8 where the records are: who trained the model, and who did not, without saying so to anyone.

Members are the patients whose training records the meter counted, non-members those whose records of the
held-out split it counted.
The pipeline runs the job's own code again, on halves of the members that are drawn here, and passes
predictions back; labels, and who was in which half, never leave this process. What comes out is `Leakage`.

A shadow is metered like a job, on a meter of its own that is thrown away: its records were all counted and
paid for when the job itself was given them. Of the held-out split a shadow is served inputs alone.

Canaries (`canaries`) say how this training remembers, and not what the released weights hold, which never
saw a wrong label.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rapha.node.datasets import canaries, control
from rapha.node.datasets.canaries import Relabelled
from rapha.node.datasets.held import Job
from rapha.node.datasets.prepare import Ready
from rapha.node.datasets.subgroups import column, subgroups
from rapha.runtime.broker.meter import Meter
from rapha.runtime.broker.serve import Broker
from rapha.runtime.leakage import lira, rates
from rapha.runtime.leakage.confidence import Floats, Scale, Truth, confidences, scale_of
from rapha.runtime.leakage.lira import Mask
from rapha.spec.disclosure import LEAST_MEMBERS, LEAST_NON_MEMBERS, LEAST_SHADOWS, Leakage
from rapha.spec.refusals import Refused

Indices = NDArray[np.int64]
_ORDER, _CANARIES, _HALVES = range(3)
"""What is drawn from the job's secret, apart; each pair of halves has its own number from `_HALVES` on."""


class Auditor:
    """The attack on one job's released weights.

    Args:
        job, ready: the job and its records.
        used: dense indices of all records that the job was handed so far.

    Raises:
        Refused: `node.config` for a dataset without a target; `policy.conflict` where the job was handed no
            record to train on.
    """

    def __init__(self, job: Job, ready: Ready, used: Indices) -> None:
        if (target := job.request.manifest.target) is None:
            raise Refused("node.config", "the dataset's manifest names no target for metrics")
        self._job, self._store, self._target = job, ready.store, target
        self._asked = job.request.manifest.disclosure.leakage
        self._seed = int.from_bytes(job.derive("leakage"))
        self._meter: Meter | None = None
        trained, tested = np.intersect1d(used, ready.train), np.intersect1d(used, ready.test)
        if not len(trained):
            raise Refused("policy.conflict", "the job was handed no record to train on")
        # Mixed, so that a place in the list says nothing.
        self._listed = self._generator(_ORDER).permutation(np.concatenate([trained, tested]))
        self._patient = np.unique(ready.store.patients[self._listed], return_inverse=True)[1]
        self._records = np.bincount(self._patient)
        self._member = np.ones(len(self._records), dtype=np.bool_)
        self._member[self._patient[np.isin(self._listed, tested)]] = False
        self._held = ready.selection.held
        labels = column(ready.store, target.label, self._listed)
        self._canaries = canaries.choose(
            np.flatnonzero(self._member),
            self._patient,
            labels,
            target,
            self._asked.canaries,
            self._generator(_CANARIES),
        )
        self._truth, self._planted = self._true(labels), self._true(self._canaries.planted(labels))
        self._outs = lira.Outs(len(self._records))
        self._scale = Scale(False)
        self._model: Floats | None = None
        self._training: int | None = None
        self._trained: set[int] = set()
        self._seen: set[int] = set()
        self._of_canaries: list[tuple[Floats, Mask]] = []

    @property
    def rows(self) -> int:
        """Records of which a prediction is wanted: those of members and of non-members."""
        return len(self._listed)

    def broker(self, split: control.Split, shadow: int | None) -> Broker:
        """What is predicted for the attack (`audit`), as the job's `test`; or what a shadow trains on.

        Raises:
            Refused: `policy.conflict` for a shadow that was not asked for; `node.disk_full`, `node.internal`.
        """
        if split == "audit":
            self._note_training()
            return Broker(self._store, {"train": range(0), "test": self._listed}, self._new_meter())
        if split != "train" or shadow is None:
            raise Refused("policy.conflict", "a shadow trains, and predicts for the audit")
        wrong = self._listed[self._canaries.records]
        store = Relabelled(self._store, self._target.label, wrong, self._canaries.labels)
        broker = Broker(store, {"train": self.half(shadow), "test": range(0)}, self._new_meter())
        self._training = shadow
        return broker

    def half(self, shadow: int) -> Indices:
        """Dense indices of the records that a shadow trains on, in the order served.

        Raises:
            Refused: `policy.conflict` for a shadow that was not asked for.
        """
        inside = (self._member & ~self._without(shadow))[self._patient]
        return np.sort(self._listed[inside])

    def observe(self, shadow: int | None, predictions: NDArray[np.float32]) -> None:
        """Take the predictions of the released model (None), which come first, or of a shadow.

        Raises:
            Refused: `job.outputs` for predictions that don't fit, and for a shadow that read none of its
                records, or came to nothing; `policy.conflict` out of order.
        """
        if shadow is None:
            self._scale = scale_of(self._truth, predictions)
            self._model = self._by_patient(self._truth, predictions)
            return
        if self._model is None or shadow in self._seen:
            raise Refused("policy.conflict", "the released model comes first, and each shadow once")
        without = self._without(shadow)
        if shadow not in self._trained:
            raise Refused("job.outputs", "the shadow read none of its records")
        confidence = _comparable(self._by_patient(self._truth, predictions), self._model)
        if len(self._canaries.patients):
            wrong = self._by_patient(self._planted, predictions)[self._canaries.patients]
            self._of_canaries.append((wrong, ~without[self._canaries.patients]))
        self._outs.add(without, confidence)
        self._seen.add(shadow)

    def leakage(self) -> Leakage:
        """What the attack shows so far; before anything was observed, whether it can show anything."""
        members = int(np.count_nonzero(self._member))
        found = Leakage(
            verdict="not_run",
            members=members,
            non_members=len(self._member) - members,
            shadows=len(self._seen),
        )
        if members < LEAST_MEMBERS:
            return _told(found, reason=f"the job was given records of fewer than {LEAST_MEMBERS} patients")
        if found.non_members < LEAST_NON_MEMBERS:
            few, narrowed = f"fewer than {LEAST_NON_MEMBERS} non-members", self._held >= LEAST_NON_MEMBERS
            reason = f"{few} in what the job asked for and read; the dataset has more" if narrowed else few
            return _told(found, verdict="not_resolvable", narrowed=narrowed, reason=reason)
        if self._model is None or len(self._seen) < LEAST_SHADOWS:
            return _told(found, reason=f"fewer than {LEAST_SHADOWS} shadow models were trained")
        scores = self._outs.scores(self._model)
        known = np.isfinite(scores)
        if np.count_nonzero(known & ~self._member) < LEAST_NON_MEMBERS:
            return _told(found, reason="non-members are in every half that was trained")
        return self._measured(found, scores, known)

    def close(self) -> None:
        """Drop the meter of the last shadow. Idempotent."""
        if self._meter:
            self._meter.close()
        self._meter = None

    def _measured(self, found: Leakage, scores: Floats, known: Mask) -> Leakage:
        members, others = scores[known & self._member], scores[known & ~self._member]
        above = rates.threshold(others)
        rate = rates.found(members, above)
        low, high = rate.interval
        groups = subgroups(self._store, self._listed, self._patient)
        within = {name: inside & known for name, inside in groups.items()}
        cell = self._job.request.manifest.minimum_cell
        worst = rates.worst(within, scores, self._member, above, cell)
        return _told(
            found,
            verdict="measured",
            tpr=rate.value,
            low=low,
            high=high,
            auc=rates.auc(members, others),
            worst=worst[0] if worst else "",
            worst_tpr=worst[1].value if worst else None,
            canaries=self._remembered(),
        )

    def _remembered(self) -> float | None:
        """The share of planted canaries that are told from those left out."""
        if not self._of_canaries:
            return None
        confidence, planted = (np.stack(parts) for parts in zip(*self._of_canaries, strict=True))
        inside, outside = lira.canary_scores(confidence, planted)
        if len(outside) < LEAST_NON_MEMBERS or not len(inside):
            return None
        return rates.found(inside, rates.threshold(outside)).value

    def _without(self, shadow: int) -> Mask:
        """bool[patients]: whom this shadow trains without, were they members.

        A random half of members and of non-members alike: who has more shadows to be compared with would
        otherwise be told by that alone. A shadow of odd number has the other half of the one before it, so
        that everybody is left out equally often.

        Raises:
            Refused: `policy.conflict` for a shadow that was not asked for.
        """
        if not 0 <= shadow < self._asked.shadows:
            raise Refused("policy.conflict", "the dataset's manifest asks for no such shadow")
        generator = self._generator(_HALVES + shadow // 2)
        half = np.zeros(len(self._member), dtype=np.bool_)
        for group in (np.flatnonzero(self._member), np.flatnonzero(~self._member)):
            half[generator.permutation(group)[: len(group) // 2]] = True
        return ~half if shadow % 2 else half

    def _true(self, labels: NDArray[Any]) -> Truth:
        target = self._target
        event = column(self._store, target.event, self._listed) == 1 if target.event else None
        if target.positive is not None:
            return Truth((labels == target.positive).astype(np.int64), event)
        return Truth(labels, event)

    def _by_patient(self, truth: Truth, predictions: NDArray[np.float32]) -> Floats:
        """The mean confidence over each patient's records, float64[patients]."""
        each = confidences(truth, predictions, self._scale)
        mean: Floats = np.bincount(self._patient, weights=each) / self._records
        return mean

    def _generator(self, purpose: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64([self._seed, purpose]))

    def _note_training(self) -> None:
        """A shadow trained only if it was handed records; its meter is about to go."""
        if self._meter and self._training is not None and self._meter.usage().unique_records:
            self._trained.add(self._training)
        self._training = None

    def _new_meter(self) -> Meter:
        """A meter whose journal has no name any more: it ends with this process, however it ends."""
        self.close()
        with tempfile.TemporaryDirectory(dir=Path(self._job.request.means.shards).parent) as folder:
            self._meter = Meter.create(
                Path(folder, "journal"),
                patients=self._store.patients,
                cap=self._job.request.max_records,
                key=self._job.derive("leakage-meter"),
            )
        return self._meter


def _comparable(confidence: Floats, model: Floats) -> Floats:
    """A shadow's `confidence`, no farther from what the released `model` shows than that is wide, or large.

    Training may diverge on a half. Averaged with the others, one such shadow would hide half of the members.

    Raises:
        Refused: `job.outputs` where more than half of the patients lie farther away.
    """
    lowest, highest = float(model.min()), float(model.max())
    width = max(highest - lowest, abs(lowest), abs(highest)) or np.inf
    if not lowest - width <= float(np.median(confidence)) <= highest + width:
        raise Refused("job.outputs", "the shadow came to nothing like the released model")
    return np.clip(confidence, lowest - width, highest + width)


def _told(found: Leakage, **changes: Any) -> Leakage:
    return Leakage(**{**found.model_dump(), **changes})
