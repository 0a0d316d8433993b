"""Datasets: the manifest, which stays in the hospital, and the catalogue entry, which may be published.

A manifest names the files by digest, so a node trains on the data that the owners approved or refuses.
The two objects are separate types, and `DatasetManifest.catalogue` is the one way from the first to the
second: a field that isn't copied there can't be published.
"""

from __future__ import annotations

import hashlib
from pathlib import PurePosixPath
from typing import Annotated, Any, Final, Literal

import rfc8785
from pydantic import AfterValidator, StringConstraints, model_validator
from pydantic import Field as Bounds

from rapha.spec.base import Model, Money, Name, One, Sha256
from rapha.spec.job import Assurance, Modality, Purpose

MAX_FIELDS: Final = 4096
MAX_FILES: Final = 4096


def _no_climbing(path: str) -> str:
    if ".." in PurePosixPath(path).parts:
        raise ValueError("`..` is not allowed in a path")
    return path


FieldName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
Column = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")]
Text = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]*$", max_length=500)]
"""One printable line."""
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
SourcePath = Annotated[
    str,
    StringConstraints(pattern=r"^[^\x00-\x1f\x7f]+$", max_length=1024),
    AfterValidator(_no_climbing),
]
"""A folder or file, absolute or relative to the manifest's own folder; `..` refuses."""
DType = Literal["float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool", "string"]
Count = Annotated[int, Bounds(ge=0, le=2**53 - 1)]


class Field(Model):
    """One typed field of a record.

    A `string` field can be filtered on and is never handed to a job: text carries identifiers. A label
    reaches a job with the training split only, and a cohort can't select on its value.
    """

    name: FieldName
    dtype: DType
    label: bool = False
    unit: Text = ""
    description: Text = ""

    @property
    def served(self) -> bool:
        """Whether a job may see this field."""
        return self.dtype != "string"

    @model_validator(mode="after")
    def _a_label_is_a_number(self) -> Field:
        if self.label and not self.served:
            raise ValueError("a label can't be a string; code it as a number")
        return self


class Provenance(Model):
    """Where the data comes from and under which terms, in words for people."""

    source: Text
    licence: Text
    citation: Text = ""
    notes: tuple[Text, ...] = ()


class Described(Model):
    """What manifest and catalogue entry say alike."""

    version: One = 1
    dataset: Name
    title: Annotated[Text, Bounds(min_length=1)]
    profile: Name
    modality: Modality
    fields: Annotated[tuple[Field, ...], Bounds(min_length=1, max_length=MAX_FIELDS)]
    purposes: tuple[Purpose, ...]
    price_per_record: Money
    currency: Literal["USDC"] = "USDC"
    minimum_cell: Annotated[int, Bounds(ge=1, le=10**6)] = 10
    billing_bucket: Annotated[int, Bounds(ge=1, le=10**6)] = 10
    test_fraction: Annotated[float, Bounds(ge=0.05, le=0.5)] = 0.2
    provenance: Provenance

    @model_validator(mode="after")
    def _fields_make_a_schema(self) -> Described:
        names = [field.name for field in self.fields]
        if len(set(names)) != len(names):
            raise ValueError("two fields have the same name")
        if not any(field.served and not field.label for field in self.fields):
            raise ValueError("no field is an input that a job may see")
        return self

    def field(self, name: str) -> Field | None:
        """The field called `name`, or None."""
        return next((field for field in self.fields if field.name == name), None)


class CatalogueEntry(Described):
    """What a researcher may know of a dataset before any agreement: no exact count, no path, no id."""

    records: Count
    patients: Count
    runtimes: tuple[Name, ...]
    assurance: Assurance

    @model_validator(mode="after")
    def _counts_are_bucketed(self) -> CatalogueEntry:
        if self.records % self.billing_bucket or self.patients % self.billing_bucket:
            raise ValueError("counts must be multiples of billing_bucket")
        return self


class SourceFile(Model):
    """One file of the source, pinned by content."""

    name: FileName
    sha256: Sha256
    size: Count


class Source(Model):
    """Where the records are and how they are written."""

    kind: Literal["folder"]
    format: Literal["parquet"]
    path: SourcePath
    files: Annotated[tuple[SourceFile, ...], Bounds(min_length=1, max_length=MAX_FILES)]

    @model_validator(mode="after")
    def _each_file_once(self) -> Source:
        if len({file.name for file in self.files}) != len(self.files):
            raise ValueError("a file is named twice")
        return self


class Target(Model):
    """What trusted metrics are computed against.

    Attributes:
        label: the label field.
        positive: its value that is the positive class; None where the label is a class number (an integer
            field), or a quantity or time (a float field).
        event: label field that is 1 where `label` is the time of an event and 0 where it is censored.
    """

    label: FieldName
    positive: float | None = 1.0
    event: FieldName | None = None


class DatasetManifest(Described):
    """A dataset as its hospital describes it. It never leaves the hospital; its digest does.

    `salt` is 32 random bytes, made once and kept when the manifest is revised: it hides the data behind
    `commitment` and keys the test split, which has to outlive rotations of the hospital's PHI key (a
    patient that changed sides would let a later job train on an earlier job's test labels).
    """

    source: Source
    patient_id: Column
    target: Target | None = None
    organisations: tuple[Name, ...]
    consent_basis: Text = ""
    opt_outs: SourcePath
    salt: Sha256

    @model_validator(mode="after")
    def _columns_are_distinct(self) -> DatasetManifest:
        if self.field(self.patient_id):
            raise ValueError("patient_id can't be a field: a job would see it")
        for name in (self.target.label, self.target.event) if self.target else ():
            field = self.field(name) if name else None
            if name and not (field and field.label):
                raise ValueError("target must name fields with label: true")
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical manifest: any change of data, consent or price changes it."""
        return _digest(self.dump())

    @property
    def commitment(self) -> str:
        """Salted SHA-256 of which data this is: it stays the same when price or permissions change."""
        files = sorted((file.dump() for file in self.source.files), key=lambda file: str(file["name"]))
        return _digest(
            {
                "dataset": self.dataset,
                "fields": [field.dump() for field in self.fields],
                "files": files,
                "patient_id": self.patient_id,
                "salt": self.salt,
            }
        )

    def catalogue(
        self, *, records: int, patients: int, runtimes: tuple[str, ...], assurance: Assurance
    ) -> CatalogueEntry:
        """The publishable entry, from exact counts: floored to the bucket, and 0 below the minimum cell."""
        if patients < self.minimum_cell:
            records = patients = 0
        common = {name: getattr(self, name) for name in Described.model_fields}
        bucket = self.billing_bucket
        return CatalogueEntry(
            **common,
            records=records - records % bucket,
            patients=patients - patients % bucket,
            runtimes=runtimes,
            assurance=assurance,
        )


def _digest(value: Any) -> str:
    return hashlib.sha256(rfc8785.dumps(value)).hexdigest()
