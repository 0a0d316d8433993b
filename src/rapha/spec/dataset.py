"""Datasets: the manifest, which stays in the hospital, and the catalogue entry, which may be published.

A manifest names the files by digest, so a node trains on the data that the owners approved or refuses.
The two objects are separate types, and `DatasetManifest.catalogue` is the one way from the first to the
second: a field that isn't copied there can't be published.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import rfc8785
from pydantic import Field as Bounds
from pydantic import StringConstraints, model_validator

from rapha.spec.base import Model, Money, Name, One, Sha256
from rapha.spec.disclosure import Caps
from rapha.spec.imaging import DicomSource, DicomWebSource
from rapha.spec.job import Assurance, Modality, Purpose
from rapha.spec.paths import SourceFile, SourcePath, Text
from rapha.spec.transforms import Form, Step, check_names, form_after

MAX_FIELDS: Final = 4096
MAX_FILES: Final = 4096
LEAST_CELL: Final = 10
"""The smallest minimum cell that a production node accepts; a demo may go below."""


FieldName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
Column = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")]
Code = Annotated[int, Bounds(ge=0, le=65535)]
DType = Literal[
    "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "bool",
    "string", "date", "pseudonym",
]  # fmt: skip
PSEUDONYM_BYTES: Final = 16
Count = Annotated[int, Bounds(ge=0, le=2**53 - 1)]


class Field(Model):
    """One typed field of a record.

    A `string` or `date` can be filtered on and is never handed to a job: text carries identifiers, and a
    date is one (45 CFR 164.514). A number read from a date is its distance in days from the patient's first.
    A label reaches a job with the training split only, and a cohort can't select on its value. A
    `pseudonym` is an identifier under a key of the job, 16 bytes; it can't be filtered on.

    Attributes:
        shape: of one record; an axis of 0 differs between records, and a job has to resize it.
        ragged: a record holds any number of values of this dtype and shape.
        path: where the source finds it, such as a DICOM keyword; by default the field's own name.
        codes: the number that stands for each text found there; a text that isn't listed is missing.
    """

    name: FieldName
    dtype: DType
    label: bool = False
    shape: Annotated[tuple[Annotated[int, Bounds(ge=0, le=65536)], ...], Bounds(max_length=4)] = ()
    ragged: bool = False
    path: Text = ""
    codes: Annotated[dict[Text, Code], Bounds(max_length=1024)] = Bounds(default_factory=dict)
    unit: Text = ""
    description: Text = ""

    @property
    def served(self) -> bool:
        """Whether a job may see this field."""
        return self.dtype not in ("string", "date")

    @property
    def where(self) -> str:
        """Where the source finds it."""
        return self.path or self.name

    @property
    def form(self) -> Form:
        """One record's value before any transform. Precondition: served."""
        if self.dtype == "pseudonym":
            return Form("uint8", (PSEUDONYM_BYTES,))
        return Form(self.dtype, self.shape, self.ragged)

    @model_validator(mode="after")
    def _a_label_is_a_number(self) -> Field:
        if self.label and self.dtype in ("string", "date", "pseudonym"):
            raise ValueError("a label can't be a string; code it as a number")
        return self

    @model_validator(mode="after")
    def _only_numbers_have_a_form(self) -> Field:
        plain = self.dtype in ("string", "date", "pseudonym")
        if plain and (self.shape or self.ragged or self.codes):
            raise ValueError(f"a {self.dtype} has no shape, length or codes")
        if self.label and (self.shape or self.ragged):
            raise ValueError("a label is one number a record")
        if self.ragged and 0 in self.shape:
            raise ValueError("the values of a ragged field have one shape")
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
    minimum_cell: Annotated[int, Bounds(ge=1, le=10**6)] = LEAST_CELL
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
        labelled = {field.where for field in self.fields if field.label}
        if any(field.where in labelled for field in self.fields if not field.label):
            # A cohort could select on it, or a job read it with the test split.
            raise ValueError("a field is read from the same place as a label")
        hidden = {field.where for field in self.fields if field.dtype == "pseudonym"}
        if any(field.where in hidden for field in self.fields if field.dtype != "pseudonym"):
            # A cohort could select on the identifier, and a job then link it to its pseudonym.
            raise ValueError("a field is read from the same place as a pseudonym")
        return self

    def field(self, name: str) -> Field | None:
        """The field called `name`, or None."""
        return next((field for field in self.fields if field.name == name), None)

    def forms(self, transforms: Mapping[str, tuple[Step, ...]]) -> dict[str, Form]:
        """What a job is handed of each served field, in order, after its declared `transforms`.

        Raises:
            Refused: `schema.transform` for a field that isn't served, a label, or steps that don't fit.
        """
        served = [field for field in self.fields if field.served]
        check_names(transforms, frozenset(field.name for field in served if not field.label))
        return {f.name: form_after(f.name, f.form, transforms.get(f.name, ())) for f in served}


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


class FolderSource(Model):
    """A read-only folder of tables, pinned by content."""

    kind: Literal["folder"]
    format: Literal["parquet"]
    path: SourcePath
    files: Annotated[tuple[SourceFile, ...], Bounds(min_length=1, max_length=MAX_FILES)]

    @model_validator(mode="after")
    def _each_file_once(self) -> FolderSource:
        if len({file.name for file in self.files}) != len(self.files):
            raise ValueError("a file is named twice")
        return self

    def identity(self) -> dict[str, Any]:
        """Which data this is, wherever it is mounted."""
        files = sorted((file.dump() for file in self.files), key=lambda file: str(file["name"]))
        return {"kind": self.kind, "files": files}


Source = Annotated[FolderSource | DicomSource | DicomWebSource, Bounds(discriminator="kind")]
"""Where the records are and how they are written."""


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
    disclosure: Caps = Caps()

    @model_validator(mode="after")
    def _columns_are_distinct(self) -> DatasetManifest:
        if self.field(self.patient_id):
            raise ValueError("patient_id can't be a field: a job would see it")
        if any(f.where == self.patient_id and f.dtype != "pseudonym" for f in self.fields):
            raise ValueError("only a pseudonym can be read from patient_id: a job would see it")
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
        return _digest(
            {
                "dataset": self.dataset,
                "fields": [field.dump() for field in self.fields],
                "patient_id": self.patient_id,
                "salt": self.salt,
                "source": self.source.identity(),
            }
        )

    def catalogue(
        self, *, records: int, patients: int, runtimes: tuple[str, ...], assurance: Assurance
    ) -> CatalogueEntry:
        """The publishable entry, from exact counts: floored to the bucket, and 0 below the minimum cell."""
        if patients < self.minimum_cell:
            records = patients = 0
        common = {name: getattr(self, name) for name in Described.model_fields}
        # Where the hospital keeps a value is its own business.
        common["fields"] = tuple(field.model_copy(update={"path": ""}) for field in self.fields)
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
