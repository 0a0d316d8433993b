"""A real head CT as DICOM: the volume of Debian's `invesalius-examples`, under identifiers made up here."""

from __future__ import annotations

import io
import math
import plistlib
import tarfile
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from xml.parsers.expat import ExpatError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from pydicom import Dataset

HEAD_CT: Final = Path("/usr/share/doc/invesalius-examples/examples/Cranium.inv3")
HEAD_PATIENT: Final = "DEMO-HEAD-CT"
_OFFSET: Final = 1024
"""Stored value of 0 HU: then every value of the volume fits 12 bits, unsigned, as scanners store them."""
_LARGEST_PLIST: Final = 2**20
_MOST_VOXELS: Final = 2**28


@dataclass(frozen=True, slots=True)
class Volume:
    """A CT volume.

    Attributes:
        values: int16 [slices, rows, columns] in HU, from the feet to the head, each slice upright.
        pixel_mm: distance between pixels, rows and columns alike.
        slice_mm: distance between slices.
    """

    values: NDArray[np.int16]
    pixel_mm: float
    slice_mm: float


def read_volume(path: Path = HEAD_CT) -> Volume:
    """The volume in an InVesalius 3 project: a tar of `main.plist` and a matrix of int16.

    Raises:
        OSError: it can't be read.
        ValueError: it is not such a project.
    """
    import numpy as np

    try:
        with tarfile.open(path) as tar:
            names = {Path(name).name: name for name in tar.getnames()}
            about = plistlib.loads(_member(tar, names, "main.plist", _LARGEST_PLIST))
            name, shape, spacing = _described(about)
            data = _member(tar, names, name, 2 * math.prod(shape))
    except (tarfile.TarError, ExpatError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not an InVesalius project: {error}") from None
    if len(data) != 2 * math.prod(shape):
        raise ValueError(f"{path}: the matrix is not what main.plist says")
    # The toolkit that wrote it counts rows from the bottom. It doesn't say which side is the patient's left.
    values = np.frombuffer(data, "<i2").reshape(shape)[:, ::-1, :]
    return Volume(values, spacing[0], spacing[2])


def _described(about: Any) -> tuple[str, tuple[int, ...], tuple[float, ...]]:
    """Name of the matrix, its shape, and the spacing of columns, rows and slices."""
    matrix = about["matrix"]
    shape = tuple(int(side) for side in matrix["shape"])
    spacing = tuple(float(step) for step in about["spacing"])
    if about["modality"] != "CT" or matrix["dtype"] != "int16":
        raise ValueError("not a CT volume of int16")
    if len(shape) != 3 or min(shape) < 1 or math.prod(shape) > _MOST_VOXELS:
        raise ValueError("not the shape of a volume")
    if len(spacing) != 3 or spacing[0] != spacing[1] or not 0 < min(spacing) <= max(spacing) < math.inf:
        raise ValueError("not the spacing of a volume")
    return str(matrix["filename"]), shape, spacing


def _member(tar: tarfile.TarFile, names: Mapping[str, str], name: str, limit: int) -> bytes:
    file = tar.extractfile(names[name]) if name in names else None
    if file is None:
        raise ValueError(f"{tar.name!r}: has no {name}")
    with file:
        return file.read(limit + 1)


def head_slices(volume: Volume) -> Iterator[bytes]:
    """`volume` as CT Image Storage files (PS3.10), one a slice, in order."""
    study, series, frame = (_uid(part) for part in ("study", "series", "frame of reference"))
    for number, values in enumerate(volume.values):
        image = _head(volume, number)
        image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = study, series, frame
        image.PixelData = (values.astype("<i4") + _OFFSET).clip(0, 4095).astype("<u2").tobytes()
        data = io.BytesIO()
        image.save_as(data, enforce_file_format=True)
        yield data.getvalue()


def _head(volume: Volume, number: int) -> Dataset:
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SOPClassUID = CTImageStorage
    image.SOPInstanceUID = _uid(f"slice {number}")
    _, rows, columns = volume.values.shape
    attributes: dict[str, Any] = {
        # Type 2: has to be there, may be empty where it isn't known (PS3.5, 7.4.3).
        **dict.fromkeys(("StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName"), ""),
        **dict.fromkeys(("PatientBirthDate", "PatientSex", "StudyID", "Manufacturer", "KVP"), ""),
        **{"PatientID": HEAD_PATIENT, "PatientName": "Demo^Head", "PatientIdentityRemoved": "YES"},
        "DeidentificationMethod": "Header written for the demo from a raw volume",
        **{"Modality": "CT", "BodyPartExamined": "HEAD", "PatientPosition": "HFS"},
        **{"ImageType": ["DERIVED", "PRIMARY", "AXIAL"], "SeriesNumber": 1, "AcquisitionNumber": None},
        "InstanceNumber": number + 1,
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "ImagePositionPatient": [0, 0, round(number * volume.slice_mm, 6)],
        "PixelSpacing": [volume.pixel_mm, volume.pixel_mm],
        **{"SliceThickness": volume.slice_mm, "PositionReferenceIndicator": ""},
        **{"Rows": rows, "Columns": columns, "SamplesPerPixel": 1},
        **{"PhotometricInterpretation": "MONOCHROME2", "PixelRepresentation": 0},
        **{"BitsAllocated": 16, "BitsStored": 12, "HighBit": 11},
        **{"RescaleIntercept": -_OFFSET, "RescaleSlope": 1, "RescaleType": "HU"},
        **{"WindowCenter": 40, "WindowWidth": 400, "BurnedInAnnotation": "NO"},
    }
    for keyword, value in attributes.items():
        setattr(image, keyword, value)
    return image


def _uid(part: str) -> str:
    # The same in every demo (PS3.5 B.2: a UUID as a decimal number under 2.25).
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_URL, f'rapha:demo:head-ct:{part}').int}"
