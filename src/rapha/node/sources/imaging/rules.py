"""Which attributes a manifest may use, and as what (PS3.15, E; 45 CFR 164.514).

A field's path is a keyword of PS3.6 or one of the computed ones below. The rules, as `plan` applies them:
  1. rendered: `@pixels`, or `@pet` and `@ct` where a record is a pair; numbers with a shape
  2. computed: `@age_band` (text, 00-09 to 80-89 and 90+), `@slice_position` (mm along the normal),
     `@slice_fraction` (0 to 1 within the series) and `@frame` (from 1)
  3. a column of the label table, for a label
  4. identifiers (UI, PN, AE, and texts that name or locate a person, a place or a request): six of them as
     `pseudonym`, else not at all; SOP Class UID identifies nobody
  5. dates and times: as `date` to select on, or as a number of days from the patient's first study; a birth
     date only as an age band
  6. ages: as a number of years, at most 90, or as an age band
  7. free text: only what `source.text` names, apart from what describes the device
  8. code strings: as text, or as numbers through `codes`
  9. numbers: as numbers
Everything else, private attributes included, refuses.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from rapha.node.sources.imaging.attributes import STRUCTURE
from rapha.node.sources.imaging.headers import Attribute, Setup
from rapha.spec.dataset import DatasetManifest, Field
from rapha.spec.imaging import Imaging
from rapha.spec.refusals import Refused

PSEUDONYMS: Final = (
    "PatientID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPInstanceUID",
    "AccessionNumber",
    "FrameOfReferenceUID",
)
FIRST_DAY: Final = "StudyDate"
"""The patient's first of these is day 0."""
BIRTH: Final = "PatientBirthDate"
AGE: Final = "PatientAge"
BURNED: Final = "BurnedInAnnotation"

_RENDERED: Final = {"@pixels": ("frame", "series"), "@pet": ("pet-ct",), "@ct": ("pet-ct",)}
_COMPUTED: Final = {
    "@slice_position": ("frame", "pet-ct"),
    "@slice_fraction": ("frame", "pet-ct"),
    "@frame": ("frame",),
}
_DEVICE: Final = frozenset((
    "Manufacturer", "ManufacturerModelName", "SoftwareVersions", "ConvolutionKernel", "FilterType",
    "SequenceName", "ReceiveCoilName", "TransmitCoilName", "PulseSequenceName", "ReconstructionMethod",
))  # fmt: skip
"""Texts that a vendor wrote, and no member of staff."""
_PERSONAL: Final = (
    "Address", "Telephone", "Telecom", "Locator", "Residence", "BirthName", "BirthPlace", "Insurance",
    "Occupation", "MilitaryRank", "BranchOfService", "EthnicGroup", "Religious", "Institution", "Station",
    "Person", "Physician", "Operator", "SerialNumber", "DeviceUID", "Owner", "PlacerOrder", "FillerOrder",
)  # fmt: skip
"""Parts of keywords whose text is about a person or leads to one (PS3.15, table E.1-1)."""
_TEXT: Final = frozenset(("LO", "LT", "SH", "ST", "UC", "UT"))
_NUMBER: Final = frozenset(("DS", "IS", "FL", "FD", "SL", "SS", "UL", "US", "SV", "UV"))
_INTEGERS: Final = frozenset(("int8", "int16", "int32", "int64", "uint8", "uint16"))


class Kind(Enum):
    """How a field's values come about."""

    RENDERED = auto()
    AGE_BAND = auto()
    SLICE_POSITION = auto()
    SLICE_FRACTION = auto()
    FRAME = auto()
    LABELLED = auto()
    IDENTIFIER = auto()
    DATE = auto()
    DAYS = auto()
    AGE = auto()
    TEXT = auto()
    NUMBER = auto()


@dataclass(frozen=True, slots=True)
class Rule:
    """One field, and how it is read. `keyword` and `vr` are the attribute's, "" for what has none."""

    field: Field
    kind: Kind
    keyword: str = ""
    vr: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to read for a manifest: `setup` for every header, `rules` for every field, in its order."""

    setup: Setup
    rules: tuple[Rule, ...]

    @property
    def rendered(self) -> tuple[str, ...]:
        """The fields that are decoded."""
        return tuple(rule.field.name for rule in self.rules if rule.kind is Kind.RENDERED)


def plan(manifest: DatasetManifest, columns: frozenset[str] = frozenset()) -> Plan:
    """Check every field against rules 1 to 9.

    Args:
        columns: of the label table.

    Raises:
        Refused: `node.dataset_invalid`, naming the field and the rule.
    """
    source = manifest.source
    if not isinstance(source, Imaging):
        raise Refused("node.internal", "not a source of images")
    if manifest.patient_id != "PatientID":
        raise Refused("node.dataset_invalid", "patient_id: a patient of DICOM images is known by PatientID")
    if source.labels and source.labels.key == "SOPInstanceUID" and source.record == "series":
        raise Refused("node.dataset_invalid", "source.labels: a label of one image is none of its series")
    for keyword in source.text:
        if _vr(keyword) not in _TEXT or _is_personal(keyword):
            raise Refused("node.dataset_invalid", f"source.text: {keyword} is not free text about an image")
    rules = tuple(_rule(field, source, columns) for field in manifest.fields)
    places = any(rule.kind in (Kind.SLICE_POSITION, Kind.SLICE_FRACTION) for rule in rules)
    keywords = dict.fromkeys([BURNED, *_keywords(rules)])
    if source.labels:
        keywords[source.labels.key] = None
    wanted = tuple(_attribute(keyword) for keyword in keywords if keyword not in STRUCTURE)
    return Plan(Setup(wanted, places), rules)


def _rule(field: Field, source: Imaging, columns: frozenset[str]) -> Rule:
    where = field.where
    if field.label and where in columns:  # 3.
        return Rule(field, Kind.LABELLED)
    if where in _RENDERED:  # 1.
        return _rendered(field, source)
    if where == "@age_band":
        return _of_text(field, Kind.AGE_BAND, "")
    if where in _COMPUTED:  # 2.
        if source.record not in _COMPUTED[where] or field.codes or field.shape or field.ragged:
            raise _refused(field, "that is one number of a frame")
        if where != "@frame" and field.dtype not in ("float16", "float32", "float64"):
            raise _refused(field, "that is a float")
        return Rule(_numeric(field), Kind[where[1:].upper()])
    return _attribute_rule(field, source)


def _attribute_rule(field: Field, source: Imaging) -> Rule:
    where, vr = field.where, _vr(field.where)
    if field.dtype == "pseudonym" or where in PSEUDONYMS:  # 4.
        if where not in PSEUDONYMS or field.dtype != "pseudonym":
            raise _refused(field, f"an identifier is a `pseudonym`, of {', '.join(PSEUDONYMS)}")
        return Rule(field, Kind.IDENTIFIER, where)
    if where == "SOPClassUID":
        return _of_text(field, Kind.TEXT, where)
    match vr:
        case "DA" | "DT" | "TM":  # 5.
            return _dated(field, vr)
        case "AS":  # 6.
            if where != AGE or field.codes or field.shape or field.ragged:
                raise _refused(field, "an age is one number of years, or @age_band")
            return Rule(_numeric(field), Kind.AGE, where)
        case "CS":  # 8.
            return _of_text(field, Kind.TEXT, where)
        case _ if vr in _TEXT:
            return _free_text(field, source)
        case _ if vr in _NUMBER:  # 9.
            if field.codes or len(field.shape) > 1 or 0 in field.shape or (field.ragged and field.shape):
                raise _refused(field, "that is a number, or a row of them")
            return Rule(_numeric(field), Kind.NUMBER, where)
        case _:
            raise _refused(
                field, f"an attribute of VR {vr} can't be a field" if vr else "PS3.6 has no such keyword"
            )


def _free_text(field: Field, source: Imaging) -> Rule:
    if _is_personal(field.where):  # 4.
        raise _refused(field, "that names a person, a place or a request")
    if field.where not in _DEVICE and field.where not in source.text:  # 7.
        raise _refused(field, "free text; name it in source.text if nobody is named there")
    return _of_text(field, Kind.TEXT, field.where)


def _rendered(field: Field, source: Imaging) -> Rule:
    if source.record not in _RENDERED[field.where]:
        raise _refused(field, f"a record of {source.record} has no such pixels")
    axes = 3 if source.record == "series" else 2
    channels = len(field.shape) == axes + 1 and (field.shape[0] in (1, 3) or field.shape[-1] in (1, 3))
    if field.label or field.ragged or field.codes or field.dtype == "bool":
        raise _refused(field, "pixels are numbers and an input")
    if len(field.shape) != axes and not channels:
        raise _refused(field, f"its shape is {axes} axes, with one of 1 or 3 channels last or first")
    return Rule(_numeric(field), Kind.RENDERED)


def _dated(field: Field, vr: str) -> Rule:
    if field.codes or field.shape or field.ragged:
        raise _refused(field, "that is one date")
    if field.where == BIRTH or "Birth" in field.where:
        raise _refused(field, "a birth date is read as @age_band only")
    if field.dtype == "date":
        if vr == "TM":
            raise _refused(field, "a time of day is no date")
        return Rule(field, Kind.DATE, field.where, vr)
    if vr == "TM" and not _vr(date_of(field.where)):
        raise _refused(field, "a time of day has to have a date beside it")
    return Rule(_numeric(field), Kind.DAYS, field.where, vr)


def date_of(keyword: str) -> str:
    """The date beside a time, such as StudyDate for StudyTime."""
    return keyword.removesuffix("Time") + "Date"


def _of_text(field: Field, kind: Kind, keyword: str) -> Rule:
    if field.shape or field.ragged:
        raise _refused(field, "that is one text")
    if (field.dtype == "string") == bool(field.codes):
        raise _refused(field, "text is a string, or a number with codes")
    if field.dtype not in ("string", *_INTEGERS, "float32", "float64"):
        raise _refused(field, f"a {field.dtype} can't stand for a text")
    if field.dtype in ("int8", "uint8", "int16") and field.codes:
        limit = {"int8": 127, "uint8": 255, "int16": 32767}[field.dtype]
        if max(field.codes.values()) > limit:
            raise _refused(field, f"a code is past what a {field.dtype} holds")
    return Rule(field, kind, keyword)


def _numeric(field: Field) -> Field:
    if field.dtype in ("string", "date", "pseudonym"):
        raise _refused(field, "that is a number")
    return field


def _is_personal(keyword: str) -> bool:
    return keyword.endswith(("ID", "IDs")) or any(part in keyword for part in _PERSONAL)


def _keywords(rules: Iterable[Rule]) -> list[str]:
    found: list[str] = []
    for rule in rules:
        if rule.kind is Kind.AGE_BAND:
            found += [AGE, BIRTH, FIRST_DAY]
        elif rule.kind is Kind.DAYS:
            found += [rule.keyword, FIRST_DAY]
            if rule.vr == "TM":
                found.append(date_of(rule.keyword))
        elif rule.keyword:
            found.append(rule.keyword)
    return found


def _attribute(keyword: str) -> Attribute:
    from pydicom.datadict import tag_for_keyword

    return Attribute(keyword, int(tag_for_keyword(keyword) or 0), _vr(keyword))


def _vr(keyword: str) -> str:
    """Its VR in PS3.6, the first where there are several; "" where the keyword isn't there."""
    from pydicom.datadict import dictionary_VR, tag_for_keyword

    tag = tag_for_keyword(keyword)
    return dictionary_VR(tag).split(" ")[0] if tag is not None else ""


def _refused(field: Field, rule: str) -> Refused:
    return Refused("node.dataset_invalid", f"field {field.name} ({field.where}): {rule}")
