"""Words for the receipt's codes and counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from rapha.spec.dataset import LEAST_CELL
from rapha.spec.job import Kind
from rapha.spec.receipt import DatasetUse, Usage
from rapha.spec.release_plan import METRICS_FILE
from rapha.spec.verdicts import SENTENCE, Scope

RELEASED: Final[Mapping[Scope, str]] = {
    "all": "all that was planned",
    "metrics": "the trusted metrics alone, by the reviewers' verdict; the rest was destroyed",
}
REASONS: Final[Mapping[str, str]] = {
    "consent.opted_out": "opted out or withdrew; removed from the whole dataset before matching",
    "record.patient_missing": "no patient identifier",
    "record.patient_invalid": "patient identifier can't be used",
    "record.value_missing": "a value is missing",
    "record.value_not_finite": "a value is not a finite number",
    "record.uid_missing": "an image without a usable identifier of its own",
    "record.duplicate": "the same image identifier as another one",
    "record.file_unreadable": "the file can't be read",
    "record.file_invalid": "the file breaks the rules of its format",
    "record.too_large": "larger than an image may be",
    "record.too_slow": "took longer to decode than an image may",
    "record.decoder_crashed": "its decoder crashed, alone behind its walls",
    "record.syntax_unsupported": "compressed in a way that is not supported",
    "record.pixels_missing": "no pixels",
    "record.pixels_invalid": "the pixels can't be decoded",
    "record.photometric_unsupported": "a photometric interpretation that is not supported",
    "record.burned_in": "may show a name in its pixels: nothing says that none is burned in",
    "record.label_missing": "no label",
    "record.shape": "an image of another shape than the dataset's",
    "record.geometry": "slices that make no volume, or not in one place",
    "record.pair_missing": "no image of the other modality at the same place",
    "record.changed": "other bytes than those that were indexed",
    "record.transfer_failed": "the PACS did not deliver it",
}
CONFINEMENT: Final = {
    "memory": "in memory alone, by the host's word",
    "encrypted-shards": "in memory, and in shards under AES-256-GCM with a key in memory alone, "
    "by the host's word",
}
MEASURED: Final = {
    "train": "They are the metrics of image plus weights.",
    "evaluate": "They are the metrics of the image with the model in it, which the company brought: nothing "
    "was trained, and the model did not leave.",
}
COMPUTED: Final = (
    "No weights left. The numbers were computed by the node, and what they can still tell about patients is "
    "within the bound above."
)
OWN_WORDS: Final = (
    "No weights left. Beside numbers that the node computed, the job may have said values of its own that "
    "nobody checked; what all of them can tell about patients is within the bound above."
)
WHO: Final[Mapping[Kind, str]] = {
    "train": "training and test together",
    "evaluate": "all of them held out: no job trains on their records",
}
FEW: Final = 100
"""Patients up to which the report says that they are few."""


def patients(usage: Usage, dataset: DatasetUse, kind: Kind = "train") -> str:
    """How many people the result rests on, and what that means."""
    some = f"These records are of at most {usage.patients:,} patients, {WHO[kind]}."
    if usage.patients <= FEW:
        some += " That is few: whatever was measured on them says little about anybody else."
    cells = [int(count.removeprefix("<")) for count in dataset.funnel.values() if isinstance(count, str)]
    if cells and min(cells) < LEAST_CELL:
        some += (
            f" Groups of {min(cells)} patients and more are counted here, which only a demo may do: "
            f"elsewhere it takes {LEAST_CELL}."
        )
    return some


def hidden(released: Scope, names: Iterable[str], metrics: Mapping[str, Any]) -> str:
    """What no check excludes, by what left: files called `names`, and the node's `metrics` if at hand."""
    if set(names) - {METRICS_FILE}:
        return SENTENCE
    checked = released == "metrics" or (bool(metrics) and not metrics.get("self_reported"))
    return COMPUTED if checked else OWN_WORDS


def caution(usage: Usage) -> str:
    """What an interval over few patients doesn't say; nothing where they are many."""
    if usage.patients > FEW:
        return ""
    return (
        "With so few patients, an interval only tells how much those few differ from one another. One with "
        "no width means that all of them came out alike, not that the value is certain."
    )
