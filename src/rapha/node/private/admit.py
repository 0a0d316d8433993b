"""Whether this node can do a private job, and with how much noise: known before anything runs.

All of it follows from the signed job and the published fields of the dataset, so each refusal may say why.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rapha.node.private.accounting import guarantee
from rapha.runtime.sandbox.pyruntime import PythonRuntime
from rapha.spec.dataset import DatasetManifest
from rapha.spec.disclosure import Guarantee
from rapha.spec.job import Job
from rapha.spec.private import PREDICT, TRAIN, PrivateTraining
from rapha.spec.refusals import Refused

SETTINGS: Final = "private.json"
"""What the trainer is told, below /rapha/in."""
NEEDED: Final = ("torch", "numpy", "safetensors")
_ALONE: Final = ("-P", "-s")
"""Neither the working folder nor a user's packages are looked through for a module."""


@dataclass(frozen=True, slots=True)
class PrivateRun:
    """How the hospital's own trainer is run for one job.

    Attributes:
        guarantee: what is promised of the released weights.
        settings: the file that is `SETTINGS` inside.
    """

    guarantee: Guarantee
    settings: Path

    def argv(self, python: str, said: tuple[str, ...]) -> tuple[str, ...]:
        """The node's own command for what the job calls `entrypoint` or `predict`.

        Raises:
            Refused: `node.internal` for any other command: a private job has no code to run.
        """
        if said not in (TRAIN, PREDICT):
            raise Refused("node.internal", "a private job was about to run a command of its own")
        return (python, *_ALONE, *said[1:])


def admit(job: Job, manifest: DatasetManifest, runtime: PythonRuntime, work: Path) -> PrivateRun | None:
    """None for a job with code of its own; else what its trainer is told, written below `work`.

    Raises:
        Refused: `policy.private`, `schema.field_invalid`, `schema.transform`; `budget.disclosure` where the
            dataset offers no private training, or less.
    """
    private = job.private
    if private is None:
        return None
    check_runtime(runtime)
    check_fields(private, job, manifest)
    check_caps(private, manifest)
    promised = guarantee(private)
    settings = work / SETTINGS
    settings.write_text(json.dumps(settings_of(job, private, promised)))
    settings.chmod(0o444)
    return PrivateRun(promised, settings)


def settings_of(job: Job, private: PrivateTraining, promised: Guarantee) -> dict[str, Any]:
    """What `rapha_trainer.private.settings` reads."""
    if job.outputs.weights is None:
        raise Refused("node.internal", "a private job without weights passed its schema")
    return {
        "private": private.dump(),
        "affine": [list(i.affine) for i in private.inputs],
        "noise_multiplier": promised.noise_multiplier,
        "at_once": private.records_at_once(job.compute.memory_bytes),
        "weights_file": job.outputs.weights.file,
    }


def check_runtime(runtime: PythonRuntime) -> None:
    """Raises `Refused` (`policy.private`) where this node's runtime lacks what the trainer imports."""
    if missing := [name for name in NEEDED if name not in runtime.distributions]:
        raise Refused(
            "policy.private", f"this node trains no private models: its runtime lacks {', '.join(missing)}"
        )


def check_caps(private: PrivateTraining, manifest: DatasetManifest) -> None:
    """What a dataset offers over all jobs bounds what one may ask for; what is left of it, the ledger says.

    Raises:
        Refused: `budget.disclosure`.
    """
    caps = manifest.disclosure
    if private.epsilon > caps.epsilon or private.delta > caps.delta:
        offered = f"epsilon {caps.epsilon:g} and delta {caps.delta:g}" if caps.epsilon else "none"
        raise Refused("budget.disclosure", f"private training on this dataset: {offered}, over all jobs")


def demand_uncapped(job: Job, records: int) -> None:
    """All records of the cohort are there, and no sample of them.

    A sample of fixed size has one patient's records in the place of others', so that one patient more or less
    would move many, and the promise is about one.

    Raises:
        Refused: `privacy.cohort_refused`, which says no number.
    """
    if records >= job.dataset.max_records:
        raise Refused(
            "privacy.cohort_refused", "the cohort reaches max_records: private training takes no sample"
        )


def check_fields(private: PrivateTraining, job: Job, manifest: DatasetManifest) -> None:
    """Each input is a field that a job is served, in the declared shape; the label is a label.

    Raises:
        Refused: `schema.field_invalid`, `schema.transform`.
    """
    forms = manifest.forms(job.dataset.transforms)
    for wanted in private.inputs:
        field, form = manifest.field(wanted.field), forms.get(wanted.field)
        if field is None or form is None or field.label:
            raise Refused("schema.field_invalid", f"private.inputs: {wanted.field} is no input here")
        if form.ragged or not form.settled or form.shape != wanted.shape:
            raise Refused(
                "schema.field_invalid",
                f"private.inputs: {wanted.field} is {list(form.shape)}{' a value' if form.ragged else ''}, "
                f"not {list(wanted.shape)}",
            )
    label = manifest.field(private.target.label)
    if label is None or not label.label:
        raise Refused("schema.field_invalid", f"private.target: {private.target.label} is no label")
