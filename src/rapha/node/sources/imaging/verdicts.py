"""Which images can't be used, as far as their descriptions tell."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Final

from rapha.node.sources.identifiers import judge_identifier
from rapha.node.sources.imaging.attributes import Instance
from rapha.node.sources.imaging.rules import BURNED
from rapha.node.sources.interface import Quarantine
from rapha.spec.imaging import Imaging

_STORAGE: Final = "1.2.840.10008.5.1.4.1.1."
_CAPTURED: Final = frozenset(("3", "6", "7"))
"""SOP classes under `_STORAGE`: ultrasound multi-frame, ultrasound, secondary capture (PS3.4, B.5)."""
_CAPTURED_MODALITIES: Final = frozenset(("US", "SC", "OT"))

Same = Callable[[Instance, Instance], bool]
"""Whether two images of one SOP Instance UID are the same bytes."""


def judge(instance: Instance, source: Imaging, *, pixels: bool) -> Quarantine:
    """Why an image can't be used, or NONE.

    Args:
        pixels: whether any field is rendered; if none is, what is wrong with pixels doesn't matter.
    """
    if not (instance.sop_uid and instance.series_uid and instance.study_uid):
        return Quarantine.UID_MISSING
    if verdict := judge_patient(instance.patient_id):
        return verdict
    if not pixels:
        return Quarantine.NONE
    if instance.flaw:
        return instance.flaw
    if not (instance.rows and instance.columns):
        return Quarantine.PIXELS_MISSING
    if source.burned_in == "quarantine" and _may_show_a_name(instance):
        return Quarantine.BURNED_IN
    return Quarantine.NONE


def judge_patient(patient: str) -> Quarantine:
    """As `judge_identifier`; several identifiers are none: whose image would it be?"""
    return Quarantine.PATIENT_INVALID if "\\" in patient else judge_identifier(patient)


def _may_show_a_name(instance: Instance) -> bool:
    """Burned In Annotation (PS3.3, C.7.6.1.1.5): YES always counts; screens' copies have to say NO."""
    burned = instance.values.get(BURNED)
    storage, _, kind = instance.sop_class.partition(_STORAGE)
    captured = not storage and kind.split(".")[0] in _CAPTURED
    captured = captured or instance.modality in _CAPTURED_MODALITIES
    return burned != "NO" if captured else burned not in (None, "NO")


def settle_duplicates(
    instances: Sequence[Instance], verdicts: list[Quarantine], same: Same
) -> frozenset[int]:
    """Images that share a SOP Instance UID: identical copies leave one, and others can't be told apart.

    Result: positions of the superfluous copies; the verdicts of the others are changed in place.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for position, instance in enumerate(instances):
        if instance.sop_uid:
            groups[instance.sop_uid].append(position)
    copies: set[int] = set()
    for positions in groups.values():
        if len(positions) == 1:
            continue
        first, *others = positions
        if all(same(instances[first], instances[other]) for other in others):
            copies.update(others)
        else:
            for position in positions:
                verdicts[position] = Quarantine.DUPLICATE
    return frozenset(copies)


def settle_studies(instances: Sequence[Instance], verdicts: list[Quarantine]) -> None:
    """A study is of one patient (PS3.3, A.1.2): of several, nobody can say whose images they are.

    An identifier that differs in its case, or one that was corrected in some images and not in others,
    would let an image past the opt-out of its own patient. `verdicts` are changed in place.
    """
    known: dict[str, str] = {}
    mixed: set[str] = set()
    for instance, verdict in zip(instances, verdicts, strict=True):
        patient, study = instance.patient_id, instance.study_uid
        if not study or judge_patient(patient) or verdict is Quarantine.DUPLICATE:
            continue
        if known.setdefault(study, patient) != patient:
            mixed.add(study)
    for position, instance in enumerate(instances):
        if instance.study_uid in mixed and not judge_patient(instance.patient_id):
            verdicts[position] = Quarantine.PATIENT_INVALID
