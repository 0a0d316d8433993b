"""Imaging sources in a manifest: a read-only mount of DICOM files, or a PACS over DICOMweb (PS3.18)."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field as Bounds
from pydantic import StringConstraints, model_validator

from rapha.spec.base import Model
from rapha.spec.paths import SourceFile, SourcePath

Keyword = Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Za-z0-9]{0,63}$")]
"""An attribute's keyword in PS3.6, such as `SeriesDescription`."""
Uid = Annotated[str, StringConstraints(pattern=r"^(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+$", max_length=64)]
"""A DICOM unique identifier (PS3.5, 9.1)."""
Day = Annotated[str, StringConstraints(pattern=r"^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])$")]
CodeString = Annotated[str, StringConstraints(pattern=r"^[A-Z0-9_ ]{1,16}$")]
"""A value of VR CS (PS3.5, 6.2)."""


class LabelTable(Model):
    """A Parquet file that labels images: every label field whose path is one of its columns.

    Attributes:
        key: the attribute, and the file's column, by which a row finds its images.
    """

    path: SourcePath
    file: SourceFile
    key: Literal["PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "AccessionNumber"]


class Imaging(Model):
    """What a mount and a PACS have in common.

    Attributes:
        record: what is counted and billed: each frame, each series as a volume, or each slice of a PET
            series with the CT slice at its place.
        burned_in: US, SC and OT images that don't say that no identity is burned into their pixels
            (Burned In Annotation, PS3.3 C.7.6.1.1.5) fall out, unless the hospital waives that.
        text: free-text attributes that string fields may be read from; all others are suppressed.
        labels: labels that are not in the images themselves.
    """

    record: Literal["frame", "series", "pet-ct"] = "frame"
    burned_in: Literal["quarantine", "waived"] = "quarantine"
    text: Annotated[tuple[Keyword, ...], Bounds(max_length=64)] = ()
    labels: LabelTable | None = None

    def identity(self) -> dict[str, Any]:
        """Which data this is: what decides which records there are, and what they hold."""
        return self.dump()


class DicomSource(Imaging):
    """A read-only mount of a PACS archive."""

    kind: Literal["dicom"]
    path: SourcePath


class Scope(Model):
    """What a search may ask for; exactly one way of narrowing it. A search without one is a broad scan.

    Attributes:
        studies: Study Instance UIDs.
        patients: a text file of Patient IDs, one a line: a group that the hospital drew up.
        modality, since, until: a modality with a window of study dates, both inclusive.
    """

    studies: Annotated[tuple[Uid, ...], Bounds(max_length=65536)] = ()
    patients: SourcePath | None = None
    modality: CodeString | None = None
    since: Day | None = None
    until: Day | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        window = (self.modality, self.since, self.until)
        ways = [bool(self.studies), self.patients is not None, all(w is not None for w in window)]
        if sum(ways) != 1 or (any(w is not None for w in window) and not ways[2]):
            raise ValueError("a scope is studies, or patients, or modality with since and until")
        if self.since and self.until and self.since > self.until:
            raise ValueError("`since` is after `until`")
        return self


class DicomWebSource(Imaging):
    """A PACS over DICOMweb: QIDO-RS to find, WADO-RS to retrieve.

    Attributes:
        url: the service's root, such as https://pacs.example/dicom-web.
        auth: how to log in; `secret` names an owner-only file with `user:password`, or a bearer token.
        ca: a PEM file of the only authorities to trust for `url`; by default the system's.
    """

    kind: Literal["dicomweb"]
    url: Annotated[
        str,
        StringConstraints(pattern=r"^https?://[A-Za-z0-9.:\[\]_-]+(/[A-Za-z0-9._~/-]*)?$", max_length=512),
    ]
    scope: Scope
    auth: Literal["none", "basic", "bearer"] = "none"
    secret: SourcePath | None = None
    ca: SourcePath | None = None

    @model_validator(mode="after")
    def _safe(self) -> Self:
        if (self.auth == "none") != (self.secret is None):
            raise ValueError("`auth` and `secret` come together")
        parts = urlsplit(self.url)
        if parts.scheme != "https" and parts.hostname not in ("127.0.0.1", "::1", "localhost"):
            raise ValueError("a PACS on the network needs https: records and passwords travel there")
        return self

    def identity(self) -> dict[str, Any]:
        """As `Imaging.identity`, without how to log in."""
        return {k: v for k, v in self.dump().items() if k not in ("auth", "secret", "ca")}
