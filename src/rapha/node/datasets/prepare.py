"""From the records of a job to what the broker serves: decoded, transformed, in an order of the job's own.

1. order: drawn from the hospital's key and the job's id, so that a position tells nothing (files are often
   sorted by outcome) and does not link two jobs
2. render: pixels are decoded by walled-off workers, straight into memory or encrypted shards
3. quarantine: what can't be decoded falls out, and the cells are checked again
4. read: the small fields of what is left; identifiers become pseudonyms of the job; declared transforms
5. consent: decoding may take hours, so the opt-outs are read once more
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from rapha.node.datasets import consent, control
from rapha.node.datasets.pseudonyms import HospitalKey, commit
from rapha.node.datasets.resolve import Selection, after_preparation
from rapha.node.sources.interface import Array, Mask, Records, Render, Rendered
from rapha.runtime.broker.prepared import Builder, PreparedStore
from rapha.runtime.broker.store import Ragged
from rapha.runtime.metrics import Labels
from rapha.runtime.transforms import apply_column
from rapha.spec.dataset import DatasetManifest, Field, Target
from rapha.spec.refusals import Refused
from rapha.spec.transforms import Form

Columns = dict[str, Array | Ragged]
_WIDEST: Final = 8
"""Times as large as it was: what a dtype alone can make of a field."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A job's records, served by position in `store`.

    Attributes:
        train, test: positions, int64.
        order: of `test`, as the source has them, whatever order the job gets.
        labels: what trusted metrics compare with; None where the manifest names no target.
        selection: what is left of the resolved records.
        content: keyed digest of the stored bytes that each record was decoded from.
        subgroups: by name, which held-out records are measured apart.
        identifiers: of the patients, and whatever else of these records becomes a pseudonym.
    """

    store: PreparedStore
    train: Array
    test: Array
    order: Array
    labels: Labels | None
    selection: Selection
    content: str
    identifiers: frozenset[str]
    subgroups: Mapping[str, Mask]


def prepare(
    records: Records,
    selection: Selection,
    request: control.Resolve,
    key: HospitalKey,
    listed: frozenset[str],
) -> Ready:
    """Steps 1 to 5. The caller closes `records`.

    Args:
        listed: the opt-outs that `selection` was made without.

    Raises:
        Refused: `privacy.cohort_refused` when too few patients are left, or somebody opted out meanwhile; as
            `check_room`; `node.dataset_*`, `node.disk_full`, `node.internal`.
    """
    manifest = request.manifest
    # 1. order
    positions = _ordered(selection, int.from_bytes(key.derive("order", request.job_id)))
    is_test = np.arange(len(positions)) >= len(selection.train)
    # 2. render
    forms = manifest.forms(request.transforms)
    renders = tuple(Render(n, forms[n], request.transforms.get(n, ())) for n in records.rendered)
    check_room(request, forms, records.rendered, len(positions))
    builder = _builder(renders, len(positions), request.means)
    try:
        rendered = _render(records, positions, renders, builder)
        # 3. quarantine
        left = after_preparation(selection, positions, rendered.quarantine, manifest)
        keep = np.flatnonzero(rendered.quarantine == 0)
        positions, is_test = positions[keep], is_test[keep]
        # 4. read
        read = records.read(positions)
        identifiers = _identifiers(records, positions, read, manifest)
        columns = _columns(read, request, key)
        labels = [field.name for field in manifest.fields if field.label]
        patients = selection.patient_of[positions]
        content = _content(records, positions, rendered, keep, key.derive("content", request.job_id))
        subgroups = _subgroups(records, positions[is_test], request)
        # 5. consent
        if consent.read_opt_outs(manifest, Path(request.folder)) != listed:
            raise Refused("privacy.cohort_refused")
        store = builder.finish(keep, columns, patients, labels, order=tuple(forms))
    except BaseException:
        builder.close()
        raise
    test = np.flatnonzero(is_test)
    scored = _labels(manifest.target, columns, patients, test) if manifest.target else None
    return Ready(
        store,
        np.flatnonzero(~is_test),
        test,
        np.argsort(positions[test]),
        scored,
        left,
        content,
        identifiers,
        subgroups,
    )


def _ordered(selection: Selection, seed: int) -> Array:
    # Each split in one piece, of which the broker then needs no list.
    shuffled = np.random.Generator(np.random.PCG64(seed)).permutation
    return np.concatenate([shuffled(selection.train), shuffled(selection.test)])


def _builder(renders: Sequence[Render], records: int, means: control.Means) -> Builder:
    forms = {render.field: render.form for render in renders}
    return Builder(forms, records, shards=Path(means.shards), memory_bytes=means.memory_bytes)


def check_room(
    request: control.Resolve, forms: Mapping[str, Form], rendered: tuple[str, ...], count: int
) -> None:
    """Whether what transforms make of the fields that aren't rendered, all held in memory, may be so large.

    It depends on `count` as far as the published funnel tells it: by the bucket.

    Raises:
        Refused: `schema.transform`.
    """
    manifest = request.manifest
    bucket = manifest.billing_bucket
    count = min(count + bucket - count % bucket, request.max_records)
    fields = [f for f in manifest.fields if f.served and f.name not in rendered]
    given = sum(field.form.nbytes for field in fields if not field.form.ragged)
    wanted = sum(forms[field.name].nbytes for field in fields if not forms[field.name].ragged)
    if count * wanted > max(request.means.memory_bytes, count * given * _WIDEST):
        raise Refused("schema.transform", "the records would get larger than the node may hold in memory")


def _render(records: Records, positions: Array, renders: tuple[Render, ...], builder: Builder) -> Rendered:
    if not renders:
        return Rendered(np.zeros(len(positions), dtype=np.uint8), [b""] * len(positions))
    return records.render(positions, renders, builder)


def _subgroups(records: Records, held: Array, request: control.Resolve) -> dict[str, Mask]:
    named = (pair for subgroup in request.subgroups for pair in subgroup.groups.items())
    return {name: records.select(condition)[held] for name, condition in named}


def _identifiers(
    records: Records, positions: Array, read: Mapping[str, Array | Ragged], manifest: DatasetManifest
) -> frozenset[str]:
    listed = records.index.patients
    patients = {listed[position] for position in positions.tolist()}
    others = [read[f.name] for f in manifest.fields if f.dtype == "pseudonym" and f.name in read]
    return frozenset(patients.union(*(o.tolist() for o in others if not isinstance(o, Ragged)))) - {""}


def _columns(read: Mapping[str, Array | Ragged], request: control.Resolve, key: HospitalKey) -> Columns:
    fields = {field.name: field for field in request.manifest.fields}
    return {name: _column(column, fields[name], request, key) for name, column in read.items()}


def _column(
    column: Array | Ragged, field: Field, request: control.Resolve, key: HospitalKey
) -> Array | Ragged:
    if field.dtype == "pseudonym":
        if isinstance(column, Ragged):
            raise Refused("node.internal", "an identifier has no variable length")
        column = key.pseudonyms(request.job_id, field.where, column.tolist())
    return apply_column(column, field.form, request.transforms.get(field.name, ()))


def _labels(target: Target, columns: Columns, patients: Array, test: Array) -> Labels:
    values = _plain(columns[target.label])[test]
    return Labels(
        target=values if target.positive is None else (values == target.positive).astype(np.int64),
        event=_plain(columns[target.event])[test] == 1 if target.event else None,
        patient=patients[test],
    )


def _plain(column: Array | Ragged) -> Array:
    if isinstance(column, Ragged):
        raise Refused("node.internal", "a label has no variable length")
    return column


def _content(records: Records, positions: Array, rendered: Rendered, keep: Array, key: bytes) -> str:
    """Which bytes were decoded for which record, in the source's order and not in the job's."""
    locators, digest = records.index.locators, hashlib.sha256()
    for position, ordinal in sorted(zip(positions.tolist(), keep.tolist(), strict=True)):
        digest.update(f"{locators[position]}\n".encode() + rendered.content[ordinal])
    return commit(key, digest.digest())
