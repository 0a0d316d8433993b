"""Whether check 8 of the guard can be held with a job, whether it must be, and how long it may take."""

from __future__ import annotations

from rapha.spec.dataset import DatasetManifest
from rapha.spec.job import Job
from rapha.spec.refusals import Refused


def untestable(job: Job, manifest: DatasetManifest) -> str:
    """Why a membership test that the manifest asks for can't be held; empty where it can."""
    if job.kind != "train":
        return "nothing was trained here"
    if job.outputs.weights is None:
        return "no weights are released"
    if job.predict is None or not job.outputs.trusted_metrics:
        return "the job plans no trusted metrics, so nothing of it predicts"
    if manifest.target is None:
        return "the dataset's manifest names no target"
    return ""


def demanded(job: Job, manifest: DatasetManifest) -> bool:
    """Whether weights leave only once the test was passed.

    Of an evaluation nothing was trained here. Private training is tested and never refused for it: to refuse
    by what was found in the records would be an answer about them that its guarantee does not cover.
    """
    test = manifest.disclosure.leakage
    return test.shadows > 0 and test.most_tpr < 1 and job.kind == "train" and job.private is None


def check_testable(job: Job, manifest: DatasetManifest) -> None:
    """Where the test is demanded, whether it can be held at all; known before anything runs.

    Raises:
        Refused: `node.config` for a dataset that lacks what it needs, `policy.leakage` for a job that does.
    """
    if not demanded(job, manifest):
        return
    if manifest.target is None:
        raise Refused("node.config", "disclosure.leakage demands a test, and the manifest names no target")
    if reason := untestable(job, manifest):
        raise Refused("policy.leakage", reason)


def longest_s(job: Job, manifest: DatasetManifest) -> int:
    """Seconds that the test may add to a job: one more prediction, and all shadows together."""
    test = manifest.disclosure.leakage
    if not test.shadows or untestable(job, manifest):
        return 0
    return job.compute.wall_clock_s + test.limit_s
