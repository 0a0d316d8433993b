"""Small DICOM files of many kinds, the same bytes for the same arguments.

Pixels are a function of the instance's number unless given; UIDs are under 2.25 (PS3.5, B.2) and follow from
the patient, series and number. Nothing is random and no clock is read.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.tag import Tag
from pydicom.uid import UID, ExplicitVRLittleEndian

from rapha.spec.dataset import DatasetManifest, Field, Provenance
from rapha.spec.imaging import DicomSource

AXIAL: Final = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CLASSES: Final = {
    "CT": "1.2.840.10008.5.1.4.1.1.2",
    "MR": "1.2.840.10008.5.1.4.1.1.4",
    "CR": "1.2.840.10008.5.1.4.1.1.1",
    "DX": "1.2.840.10008.5.1.4.1.1.1.1",
    "MG": "1.2.840.10008.5.1.4.1.1.1.2",
    "US": "1.2.840.10008.5.1.4.1.1.6.1",
    "PT": "1.2.840.10008.5.1.4.1.1.128",
    "OT": "1.2.840.10008.5.1.4.1.1.7",
    "NM": "1.2.840.10008.5.1.4.1.1.20",
}
ENHANCED_CT: Final = "1.2.840.10008.5.1.4.1.1.2.1"
_PLANES: Final = frozenset(("CT", "MR", "PT"))


@dataclass(frozen=True)
class Image:
    """What to write.

    Attributes:
        number: within the series; the z position is `z`, or `number * spacing`.
        data: the pixels: [rows, columns], [frames, rows, columns] or [..., 3]; int16, uint16 or uint8.
        more: any further attributes, by keyword; None removes one.
    """

    modality: str = "CT"
    patient: str = "P001"
    study: int = 1
    series: int = 1
    number: int = 0
    date: str = "20200101"
    z: float | None = None
    spacing: float = 2.5
    size: tuple[int, int] = (16, 16)
    data: np.ndarray[Any, Any] | None = None
    orientation: Sequence[float] = AXIAL
    syntax: str = ExplicitVRLittleEndian
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def place(self) -> float:
        """z, mm."""
        return self.number * self.spacing if self.z is None else self.z


def uid(*parts: object) -> str:
    """A UID that follows from `parts`."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:16], 'big')}"


def study_uid(image: Image) -> str:
    """Study Instance UID of an image."""
    return uid(image.patient, image.study)


def series_uid(image: Image) -> str:
    """Series Instance UID of an image."""
    return uid(image.patient, image.study, image.modality, image.series)


def sop_uid(image: Image) -> str:
    """SOP Instance UID of an image."""
    return uid(image.patient, image.study, image.modality, image.series, image.number)


def dataset(image: Image) -> FileDataset:
    """The data set, uncompressed, ready to be changed and saved."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(CLASSES[image.modality])
    meta.MediaStorageSOPInstanceUID = UID(sop_uid(image))
    meta.TransferSyntaxUID = UID(image.syntax)
    implicit, little = meta.TransferSyntaxUID.is_implicit_VR, meta.TransferSyntaxUID.is_little_endian
    ds = FileDataset("", {}, b"\0" * 128, meta, is_implicit_VR=implicit, is_little_endian=little)
    _identity(ds, image)
    if image.modality in _PLANES:
        _plane(ds, image)
    if image.modality == "CT":
        ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "-1024", "1", "HU"
    elif image.modality == "PT":
        ds.RescaleIntercept, ds.RescaleSlope, ds.Units = "0", "0.5", "BQML"
    _pixels(ds, image)
    for keyword, value in image.more.items():
        if value is not None:
            setattr(ds, keyword, value)
        elif keyword in ds:
            delattr(ds, keyword)
    return ds


def encoded(ds: Dataset) -> bytes:
    """The data set as a file's bytes."""
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def stored(image: Image) -> bytes:
    """The image as a file's bytes."""
    return encoded(dataset(image))


def write(path: Path, image: Image) -> Path:
    """Write one image; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(stored(image))
    return path


def enhanced(image: Image, places: Sequence[float]) -> FileDataset:
    """An Enhanced CT image with a frame at each z of `places` (PS3.3, A.38)."""
    rows, columns = image.size
    data = np.stack([_pattern(rows, columns, index) for index in range(len(places))])
    ds = dataset(Image(**{**image.__dict__, "data": data}))
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = UID(ENHANCED_CT)
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness",
                    "RescaleSlope", "RescaleIntercept", "RescaleType"):  # fmt: skip
        if keyword in ds:
            delattr(ds, keyword)
    ds.SharedFunctionalGroupsSequence = Items([_shared(image)])
    ds.PerFrameFunctionalGroupsSequence = Items([_frame(image, place) for place in places])
    return ds


def pet_ct(patient: str, slices: int, *, ct_slices: int | None = None) -> list[Image]:
    """A PET series and the CT series that attenuation was corrected with, in one frame of reference."""
    shared = {"FrameOfReferenceUID": uid(patient, "frame")}
    pet = [Image("PT", patient, series=1, number=n, spacing=4.0, more=dict(shared)) for n in range(slices)]
    ct = [
        Image("CT", patient, series=2, number=n, spacing=2.0, size=(32, 32), more=dict(shared))
        for n in range(ct_slices if ct_slices is not None else 2 * slices)
    ]
    return pet + ct


def pixels(size: tuple[int, ...] = (16, 16), dtype: Any = "int16") -> Field:
    """The usual rendered field."""
    return Field(name="pixels", dtype=dtype, shape=size, path="@pixels")


def manifest(*fields: Field, folder: str = "pacs", **source: Any) -> DatasetManifest:
    """A dataset of the mount `folder`, beside the manifest; without fields, of 16 by 16 pixels.

    Args:
        source: more of `DicomSource`, such as `record`.
    """
    return DatasetManifest(
        dataset="images",
        title="Images made for a test",
        profile="imaging.test",
        modality="imaging",
        fields=fields or (pixels(),),
        purposes=(),
        price_per_record="0.01",
        provenance=Provenance(source="made for a test", licence="none"),
        source=DicomSource(kind="dicom", path=folder, **source),
        patient_id="PatientID",
        organisations=(),
        opt_outs="opt-outs.txt",
        salt="5a" * 32,
    )


def seal(folder: Path) -> Path:
    """Take write permission from everything below, as a read-only mount would."""
    for path in (*sorted(folder.rglob("*"), reverse=True), folder):
        writable = path.lstat().st_mode & 0o222
        if writable and not path.is_symlink() and (path.is_dir() or path.is_file()):
            path.chmod(path.stat().st_mode & 0o555)
    return folder


def _identity(ds: Dataset, image: Image) -> None:
    ds.SOPClassUID = UID(CLASSES[image.modality])
    ds.SOPInstanceUID = UID(sop_uid(image))
    ds.StudyInstanceUID, ds.SeriesInstanceUID = UID(study_uid(image)), UID(series_uid(image))
    ds.PatientID, ds.PatientName = image.patient, f"Test^{image.patient}"
    ds.PatientBirthDate, ds.PatientSex = "19600615", "O"
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = image.date
    ds.StudyTime = "120000"
    ds.AccessionNumber, ds.StudyID = f"A{image.patient}", str(image.study)
    ds.Modality, ds.InstanceNumber, ds.SeriesNumber = image.modality, image.number + 1, image.series
    ds.Manufacturer, ds.ManufacturerModelName = "Rapha", "Test"
    ds.StudyDescription = f"Study of {image.patient}"
    ds.BodyPartExamined = "HEAD"


def _plane(ds: Dataset, image: Image) -> None:
    normal = np.cross(image.orientation[:3], image.orientation[3:])
    ds.ImagePositionPatient = [float(part) for part in normal * image.place]
    ds.ImageOrientationPatient = list(image.orientation)
    ds.FrameOfReferenceUID = UID(uid(image.patient, image.study, "frame"))
    ds.PixelSpacing, ds.SliceThickness = [1.0, 1.0], image.spacing


def _pattern(rows: int, columns: int, number: int) -> np.ndarray[Any, Any]:
    line = np.arange(rows * columns, dtype=np.int64).reshape(rows, columns)
    return ((line * 7 + number * 13) % 1000).astype(np.int16)


def _pixels(ds: Dataset, image: Image) -> None:
    data = image.data
    if data is None:
        data = _pattern(*image.size, image.number)
    colour = data.ndim > 2 and data.shape[-1] == 3
    if data.ndim - colour == 3:
        ds.NumberOfFrames = data.shape[0]
    ds.Rows, ds.Columns = data.shape[-3:-1] if colour else data.shape[-2:]
    ds.SamplesPerPixel = 3 if colour else 1
    ds.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        ds.PlanarConfiguration = 0
    bits = data.dtype.itemsize * 8
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = bits, bits, bits - 1
    ds.PixelRepresentation = int(data.dtype.kind == "i")
    big = ds.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.2"
    stored = np.ascontiguousarray(data, dtype=data.dtype.newbyteorder(">" if big else "<")).tobytes()
    ds.add_new(Tag(0x7FE00010), "OW" if bits > 8 else "OB", stored + b"\0" * (len(stored) % 2))


def _shared(image: Image) -> Dataset:
    group, orientation, measures, rescale = Dataset(), Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = list(image.orientation)
    measures.PixelSpacing, measures.SliceThickness = [1.0, 1.0], image.spacing
    rescale.RescaleIntercept, rescale.RescaleSlope, rescale.RescaleType = "-1024", "1", "HU"
    group.PlaneOrientationSequence = Items([orientation])
    group.PixelMeasuresSequence = Items([measures])
    group.PixelValueTransformationSequence = Items([rescale])
    return group


def _frame(image: Image, place: float) -> Dataset:
    group, position = Dataset(), Dataset()
    normal = np.cross(image.orientation[:3], image.orientation[3:])
    position.ImagePositionPatient = [float(part) for part in normal * place]
    group.PlanePositionSequence = Items([position])
    return group
