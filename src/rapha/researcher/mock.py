"""Synthetic records for a job at home, from what a node's catalogue says and what the job declares.

A batch has exactly the keys, dtypes, shapes and hidden labels that it will have on the node: each raw value
is drawn at random in the form that the catalogue gives, and goes through the node's own transforms.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from rapha.evidence import dsse
from rapha.runtime.broker.store import Ragged
from rapha.runtime.transforms import apply_column, apply_one
from rapha.spec import cohort as cohorts
from rapha.spec.dataset import PSEUDONYM_BYTES, CatalogueEntry, Field
from rapha.spec.job import DatasetRequest
from rapha.spec.refusals import Refused
from rapha.spec.transforms import Form, Step
from rapha_trainer import mock
from rapha_trainer import source as trainer

MAX_RECORDS: Final = 10**7
_SIDES: Final = (48, 97)
"""Where an axis differs between records: from this size to below that one."""
_BOUNDS: Final = {
    "@slice_fraction": (0.0, 1.0),
    "@slice_position": (-200.0, 200.0),
    "PatientAge": (18.0, 90.0),
}
"""Fields whose range is known from where they are read."""

_RECORDS_EACH: Final = 4
MAX_BYTES: Final = 2**34
"""Of all records drawn, in memory. A catalogue is someone else's, and may name sizes that no machine has."""

Columns = dict[str, mock.Values]
Steps = tuple[Step, ...]
Transforms = Mapping[str, Steps]


def entries(value: object) -> tuple[CatalogueEntry, ...]:
    """The entries in a catalogue entry, in its signed envelope, or in what a coordinator's catalogue answers.

    Signatures are not checked: what is drawn from an entry is data for one's own machine.

    Raises:
        Refused: `schema.*` for anything else.
    """
    return tuple(CatalogueEntry.parse(entry, "catalogue") for entry in _found(value))


def _found(value: object) -> Iterator[object]:
    if isinstance(value, Mapping) and "nodes" in value:
        for node in _list(value, "nodes"):
            for envelope in _list(node, "entries"):
                yield from _found(envelope)
    elif isinstance(value, Mapping) and "payload" in value:
        yield dsse.unverified_predicate(value).get("entry")
    else:
        yield value


def _list(value: object, name: str) -> list[Any]:
    items = value.get(name) if isinstance(value, Mapping) else None
    if not isinstance(items, list):
        raise Refused("schema.field_invalid", f"catalogue: {name}: expected a list")
    return items


def choose(
    found: Sequence[CatalogueEntry], request: DatasetRequest | None, dataset: str | None = None
) -> CatalogueEntry:
    """The entry that a job asks for, or that has the name `dataset`; the job's cohort must fit its fields.

    Raises:
        Refused: `schema.field_invalid` where no entry or entries of several schemas are meant;
            `schema.cohort_field`.
    """
    meant = [
        entry
        for entry in found
        if (dataset is None or entry.dataset == dataset)
        and (request is None or (entry.profile, entry.modality) == (request.profile, request.modality))
    ]
    if not meant or any(entry.fields != meant[0].fields for entry in meant):
        offered = ", ".join(sorted({f"{entry.dataset} ({entry.profile})" for entry in found})) or "none"
        raise Refused("schema.field_invalid", f"catalogue: name one of these datasets: {offered}")
    if request is not None:
        cohorts.check(request.cohort, meant[0].fields)
    return meant[0]


def write(
    entry: CatalogueEntry, transforms: Transforms, path: Path, *, records: int, seed: int
) -> dict[str, Form]:
    """Write a file for `RAPHA_HOME_DATA`.

    Args:
        transforms: of the job, or none.
        records: how many, 1 … 10^7.
        seed: 0 … 2^64-1.

    Returns:
        The form of each field in it, as a job is handed it.

    Raises:
        Refused: `schema.transform`; `schema.field_invalid` for a number out of range, more than 16 GiB, or
            a field's name that can't be in the file.
        OSError: the file can't be written.
    """
    if not (1 <= records <= MAX_RECORDS and 0 <= seed < 2**64):
        raise Refused("schema.field_invalid", f"records is 1 to {MAX_RECORDS}, seed 0 to 2^64-1")
    forms = entry.forms(transforms)
    served = [field for field in entry.fields if field.served]
    if (needed := sum(_bytes(field, forms[field.name], records) for field in served)) > MAX_BYTES:
        raise Refused("schema.field_invalid", f"records: {needed} bytes of memory, the limit is {MAX_BYTES}")
    columns: Columns = {
        field.name: _column(field, forms[field.name], transforms.get(field.name, ()), records, seed)
        for field in served
    }
    try:
        mock.write(path, columns, [field.name for field in served if field.label], entry.test_fraction)
    except ValueError as error:
        raise Refused("schema.field_invalid", f"catalogue: {error}") from None
    return forms


def _bytes(field: Field, form: Form, records: int) -> int:
    """About what drawing a field takes: its column, and what that is drawn from as 8-byte floats."""
    values = records * (mock.MEAN_LENGTH if field.ragged else 1)
    raw = 8 * math.prod(size or _SIDES[1] for size in field.shape)
    return (records if not form.ragged else values) * form.nbytes + raw * (
        1 if _is_rendered(field) else values
    )


def _is_rendered(field: Field) -> bool:
    """Whether its values are drawn and transformed one by one: images and signals."""
    return not field.ragged and (len(field.shape) > 1 or 0 in field.shape)


def _column(field: Field, form: Form, steps: Steps, records: int, seed: int) -> mock.Values:
    rng = mock.generator(seed, field.name)
    if _is_rendered(field):
        return _rendered(field, form, steps, records, rng)
    raw = _pseudonyms(field, records, rng) if field.dtype == "pseudonym" else _raw(field, records, rng)
    column = Ragged(raw.values, raw.offsets) if isinstance(raw, mock.Column) else raw
    done = apply_column(column, field.form, steps)
    return mock.Column(done.values, done.offsets) if isinstance(done, Ragged) else done


def _rendered(field: Field, form: Form, steps: Steps, records: int, rng: Generator) -> NDArray[Any]:
    """Images and signals, one at a time: before a resize they may be far larger than after it."""
    result = np.empty((records, *form.shape), form.dtype)
    for one in result:
        shape = tuple(size or int(rng.integers(*_SIDES)) for size in field.shape)
        drawn = _coded(field, mock.value(np.dtype(field.dtype), shape, rng), rng)
        one[...] = apply_one(drawn, field.form, steps)
    return result


def _raw(field: Field, records: int, rng: Generator) -> mock.Values:
    drawn = mock.column(
        trainer.Field(field.name, field.dtype, field.shape, field.label, field.ragged), records, rng
    )
    if isinstance(drawn, mock.Column):
        return mock.Column(_coded(field, drawn.values, rng), drawn.offsets)
    if field.where in _BOUNDS and not field.label:
        return rng.uniform(*_BOUNDS[field.where], drawn.shape).astype(drawn.dtype)
    return _coded(field, drawn, rng)


def _coded(field: Field, values: NDArray[Any], rng: Generator) -> NDArray[Any]:
    """`values`, or where the catalogue lists the numbers that stand for texts, some of those."""
    if not field.codes:
        return values
    codes = np.array(sorted(set(field.codes.values())))
    with np.errstate(over="ignore"):
        held = codes.astype(values.dtype)
    if not np.array_equal(held, codes):  # as the node refuses the dataset
        raise Refused("schema.field_invalid", f"catalogue: {field.name}: a code is past what its dtype holds")
    return rng.choice(held, values.shape)


def _pseudonyms(field: Field, records: int, rng: Generator) -> NDArray[np.uint8]:
    """16 bytes a record; some records have the same patient, study or series, and none the same instance."""
    each = 1 if field.where == "SOPInstanceUID" else _RECORDS_EACH
    ids = rng.integers(0, 256, (-(-records // each), PSEUDONYM_BYTES), dtype=np.uint8)
    return np.repeat(ids, each, axis=0)[:records]
