"""From stored images to records: each frame, each series as a volume, or each PET slice with its CT.

A record that can't be formed is there all the same, with the reason, so that every image is accounted for.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

import numpy as np

from rapha.node.sources.imaging.attributes import Instance
from rapha.node.sources.imaging.planes import along, normal_of
from rapha.node.sources.interface import Array, Quarantine
from rapha.node.sources.tree import printable

TOLERANCE: Final = 1e-3
"""Of direction cosines, and of millimetres between two slices that would be one."""

MAX_CHOICES: Final = 256
"""CT series that a PET series is compared with. A study has a handful; of more, none is chosen."""

Lost = tuple[str, Quarantine]
"""What could not even be described: its locator, and why."""


@dataclass(slots=True)
class Grouping:
    """Records as they are formed, by position.

    Attributes:
        members: the images of each record, as positions in the instances, in the order in which they are
            decoded; the first speaks for the record. Empty for what is lost.
        frames: which frame of the first image, from 0.
        unused: images that belong to no record, by position.
    """

    members: list[tuple[int, ...]] = field(default_factory=list)
    frames: list[int] = field(default_factory=list)
    quarantine: list[Quarantine] = field(default_factory=list)
    locators: list[str] = field(default_factory=list)
    unused: list[int] = field(default_factory=list)

    def add(
        self, members: tuple[int, ...], locator: str, quarantine: Quarantine = Quarantine.NONE, frame: int = 0
    ) -> None:
        """Add a record."""
        self.members.append(members)
        self.frames.append(frame)
        self.quarantine.append(quarantine)
        self.locators.append(locator)

    def add_lost(self, lost: Iterable[Lost]) -> None:
        """Add what could not be described."""
        for locator, quarantine in lost:
            self.add((), locator, quarantine)

    @property
    def owners(self) -> Array:
        """int64[n]: the image that speaks for each record, -1 for what is lost."""
        return np.array([members[0] if members else -1 for members in self.members], dtype=np.int64)


def frames(instances: Sequence[Instance], verdicts: Sequence[Quarantine]) -> Grouping:
    """Every frame of every image. The locator is `SOPInstanceUID`, or `SOPInstanceUID:frame` from 1."""
    records = Grouping()
    for position, (instance, verdict) in enumerate(zip(instances, verdicts, strict=True)):
        # An image that can't be used is one record and not as many as it claims to have frames.
        if verdict is not Quarantine.NONE:
            records.add((position,), printable(instance.locator), verdict)
        elif instance.frames == 1:
            records.add((position,), instance.sop_uid)
        else:
            members = (position,)
            for frame in range(instance.frames):
                records.add(members, f"{instance.sop_uid}:{frame + 1}", frame=frame)
    return records


def volumes(instances: Sequence[Instance], verdicts: Sequence[Quarantine]) -> Grouping:
    """Every series, its images in the order of their place along the normal."""
    records = Grouping()
    for positions in _by_series(instances).values():
        members = [instances[position] for position in positions]
        verdict = next((v for v in map(verdicts.__getitem__, positions) if v), Quarantine.NONE)
        verdict = verdict or _alike(members)
        ordered = positions
        if verdict is Quarantine.NONE and len(members) > 1:
            verdict, ordered = _ordered(members, positions)
        locator = members[0].series_uid if verdict is Quarantine.NONE else printable(members[0].locator)
        records.add(tuple(ordered), locator, verdict)
    return records


def pairs(instances: Sequence[Instance], verdicts: Sequence[Quarantine]) -> Grouping:
    """Every PET slice with the CT slice at its place: the nearest, at most half a PET slice away.

    A slice is an image of one frame; what modality it is of, it says itself and not its series. The CT
    comes from one series of the same patient, study and frame of reference: of several, from the one that
    finds a slice for the most of the PET series.
    """
    records = Grouping()
    ct_of: dict[tuple[str, ...], dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    pet_of: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for position, instance in enumerate(instances):
        if instance.modality == "CT" and instance.frames == 1:
            ct_of[_together(instance)][instance.series_uid].append(position)
        elif instance.modality == "PT":
            pet_of[(*_together(instance), instance.series_uid)].append(position)
    used: set[int] = set()
    choices_of = {whose: [of[uid] for uid in sorted(of)] for whose, of in ct_of.items()}
    for whose, positions in pet_of.items():
        choices = choices_of.get(whose[:-1], [])
        used.update(positions, _pair_series(instances, verdicts, positions, choices, records))
    records.unused = [position for position in range(len(instances)) if position not in used]
    return records


def places(instances: Sequence[Instance], records: Grouping) -> tuple[Array, Array]:
    """Each record's place along its normal, mm, and from 0 to 1 in its series; NaN where there is none."""
    owners = records.owners
    along_normal = np.full(len(owners), math.nan)
    fractions = np.full(len(owners), math.nan)
    by_series: dict[tuple[str, str], list[int]] = defaultdict(list)
    for record, (owner, frame) in enumerate(zip(owners.tolist(), records.frames, strict=True)):
        if owner >= 0 and (place := _place(instances[owner], frame)) is not None:
            along_normal[record] = place
            if records.quarantine[record] is not Quarantine.NONE:
                continue  # where a broken image says it lies must not move the others
            by_series[(instances[owner].study_uid, instances[owner].series_uid)].append(record)
    for group in by_series.values():
        here = along_normal[group]
        span = float(here.max() - here.min())
        if span > TOLERANCE and _parallel(instances[owners[record]] for record in group):
            fractions[group] = (here - here.min()) / span
    return along_normal, fractions


def _by_series(instances: Sequence[Instance]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = defaultdict(list)
    for position, instance in enumerate(instances):
        # What names no series stands alone, and is quarantined for that.
        groups[instance.series_uid or f"?{position}"].append(position)
    return groups


def _alike(members: Sequence[Instance]) -> Quarantine:
    """Whether the images of a series can be one volume, their places apart."""
    first = members[0]
    if any(member.patient_id != first.patient_id for member in members):
        return Quarantine.PATIENT_INVALID
    if any(member.study_uid != first.study_uid for member in members):
        return Quarantine.UID_MISSING
    if len(members) > 1 and any(member.frames > 1 for member in members):
        return Quarantine.GEOMETRY
    sizes = {(member.rows, member.columns, member.samples) for member in members}
    return Quarantine.NONE if len(sizes) == 1 else Quarantine.SHAPE


def _ordered(members: Sequence[Instance], positions: list[int]) -> tuple[Quarantine, list[int]]:
    here = [_place(member, 0) for member in members]
    if not _parallel(members) or any(place is None for place in here):
        return Quarantine.GEOMETRY, positions
    ordered = sorted(zip((place for place in here if place is not None), positions, strict=True))
    steps = [after[0] - before[0] for before, after in pairwise(ordered)]
    if min(steps) < TOLERANCE:
        return Quarantine.GEOMETRY, positions
    return Quarantine.NONE, [position for _, position in ordered]


def _together(instance: Instance) -> tuple[str, ...]:
    return (instance.patient_id, instance.study_uid, instance.frame_of_reference)


def _pair_series(
    instances: Sequence[Instance],
    verdicts: Sequence[Quarantine],
    pet: list[int],
    choices: Sequence[list[int]],
    records: Grouping,
) -> Iterator[int]:
    """Add a record for each slice of a PET series; yields the CT slices that were used."""
    slices = [position for position in pet if instances[position].frames == 1]
    choices = choices if slices and len(choices) <= MAX_CHOICES else ()
    found = [_nearest(instances, slices, ct) for ct in choices]
    best = max(found, key=len, default={})
    for position in pet:
        instance, verdict = instances[position], verdicts[position]
        ct_slice = best.get(position)
        if not verdict:
            verdict = Quarantine.PAIR_MISSING if ct_slice is None else verdicts[ct_slice]
        locator = instance.sop_uid if verdict is Quarantine.NONE else printable(instance.locator)
        records.add((position,) if ct_slice is None else (position, ct_slice), locator, verdict)
    yield from best.values()


def _nearest(instances: Sequence[Instance], pet: list[int], ct: list[int]) -> dict[int, int]:
    """The CT slice for each PET slice that has one."""
    if not instances[pet[0]].frame_of_reference:
        return {}
    slices = sorted((place, p) for p in ct if (place := _place(instances[p], 0)) is not None)
    wanted = sorted((place, p) for p in pet if (place := _place(instances[p], 0)) is not None)
    if not slices or not wanted or not _parallel(instances[n] for _, n in (*slices, *wanted)):
        return {}
    reach = _spacing([place for place, _ in wanted]) / 2 + TOLERANCE
    here = [place for place, _ in slices]
    found: dict[int, int] = {}
    for place, position in wanted:
        after = bisect_left(here, place)
        near = min(range(max(after - 1, 0), min(after + 1, len(here))), key=lambda n: abs(here[n] - place))
        if abs(here[near] - place) <= reach:
            found[position] = slices[near][1]
    return found


def _spacing(ordered: list[float]) -> float:
    """The usual distance between slices; 0 where there is one place, so that only that will do.

    A gated or dynamic series has several images at each place.
    """
    gaps = np.diff(ordered)
    apart = gaps[gaps >= TOLERANCE]
    return float(np.median(apart)) if len(apart) else 0.0


def _place(instance: Instance, frame: int) -> float | None:
    """Along the normal, mm."""
    if instance.places:
        return instance.places[frame]
    if instance.position is None or instance.orientation is None or instance.frames > 1:
        return None
    normal = normal_of(instance.orientation)
    return None if normal is None else along(instance.position, normal)


def _parallel(members: Iterable[Instance]) -> bool:
    """Whether all have one orientation in one frame of reference, so that their places compare."""
    first: Sequence[float] | None = None
    references: set[str] = set()
    for member in members:
        orientation = member.orientation
        references.add(member.frame_of_reference)
        if orientation is None or len(references) > 1:
            return False
        if first is None:
            first = orientation
        elif orientation is not first and any(
            abs(a - b) > TOLERANCE for a, b in zip(first, orientation, strict=True)
        ):
            return False
    return True
