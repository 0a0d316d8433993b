"""The demo hospital's images: public CT, MR and X-ray images of real patients, kept as a PACS would.

They come from two places on this machine, and nothing is downloaded:

- a head CT of 108 slices, which Debian's `invesalius-examples` holds as a raw volume, written here as DICOM
  CT Image Storage (PS3.3 A.3) under identifiers made up here;
- the files that pydicom and pydicom-data use for their own tests, as they are, identifiers included.
"""

from __future__ import annotations

import hashlib
import importlib.util
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rapha.node.datasets.pseudonyms import held_out
from rapha.spec.dataset import DatasetManifest, Field, Provenance, Target
from rapha.spec.imaging import DicomSource, DicomWebSource, Scope
from rapha.spec.refusals import Refused
from rapha.testing.head_ct import HEAD_CT, HEAD_PATIENT, Volume, head_slices, read_volume
from rapha.testing.hospital import Terms, Writer, describe

DATASET: Final = "ct-or-not"
CODES: Final = {"CT": 1, "MR": 0, "CR": 0}
"""What the label says of each modality; images of any other have no label and fall out."""
OPTED_OUT: Final = "204"
"""A patient of pydicom-data's, with an ultrasound clip."""
CELL: Final = 3
TEST_FRACTION: Final = 0.4
_KEYS: Final = 4096
_UIDS: Final = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
_LEAST_ROWS: Final = 32
"""pydicom's examples of a DICOMDIR are cut down to 16×16 pixels and show nothing."""


@dataclass(frozen=True, slots=True)
class Archive:
    """Image files below one folder.

    Attributes:
        files: whose image each is; "" where it doesn't say.
        patients: patients with a labelled image, and the modalities of their images.
    """

    folder: Path
    files: Mapping[Path, str]
    patients: Mapping[str, frozenset[str]]


def write_archive(folder: Path) -> Archive:
    """Fill `folder`, which is made, and take its write permissions away.

    Raises:
        FileExistsError: `folder` is there already.
        ModuleNotFoundError: pydicom is not installed.
        Refused: `node.dataset_missing` for a head CT that is there and can't be read.
    """
    folder.mkdir(parents=True)
    patients: dict[str, set[str]] = {}
    files: dict[Path, str] = {}
    for source, about in _public_files():
        target = folder / source.parent.name / source.name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(source.read_bytes())
        patient = files[target] = about["PatientID"]
        # An image under a malformed UID is stored, and is no record.
        if patient and about["Modality"] in CODES and all(_valid(about[uid]) for uid in _UIDS):
            patients.setdefault(patient, set()).add(about["Modality"])
    if HEAD_CT.is_file():
        (folder / "head-ct").mkdir()
        for number, data in enumerate(head_slices(_head_ct())):
            target = folder / "head-ct" / f"{number:03d}.dcm"
            target.write_bytes(data)
            files[target] = HEAD_PATIENT
        patients[HEAD_PATIENT] = {"CT"}
    for path in (*files, *{file.parent for file in files}, folder):
        path.chmod(0o444 if path.is_file() else 0o555)
    return Archive(folder, files, {name: frozenset(found) for name, found in patients.items()})


def _head_ct() -> Volume:
    try:
        return read_volume()
    except (OSError, ValueError) as error:
        raise Refused("node.dataset_missing", str(error)) from None


def _valid(uid: str) -> bool:
    from pydicom import config
    from pydicom.uid import UID

    return UID(uid, validation_mode=config.IGNORE).is_valid


def _public_files() -> Iterator[tuple[Path, dict[str, str]]]:
    """Part-10 files with an image, and who and what is on them, each instance once: the first by name.

    Some of them are damaged on purpose. They stay in, as long as their header says which image they are.
    """
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    seen: set[str] = set()
    wanted = [*_UIDS, "PatientID", "Modality", "Rows"]
    for path in sorted(p for root in _roots() for p in root.iterdir() if p.is_file()):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what pydicom finds wrong with its own examples
                header = dcmread(path, specific_tags=wanted)
                about = {keyword: str(header.get(keyword) or "") for keyword in wanted}
        except (InvalidDicomError, EOFError, ValueError, NotImplementedError, AttributeError, TypeError):
            continue
        uid, rows = about["SOPInstanceUID"], about["Rows"]
        if uid and uid not in seen and rows.isdecimal() and int(rows) >= _LEAST_ROWS:
            seen.add(uid)
            yield path, about


def _roots() -> Iterator[Path]:
    for package, below in (("pydicom", "data/test_files"), ("data_store", "data")):
        found = importlib.util.find_spec(package)
        if found and found.origin and (root := Path(found.origin).parent / below).is_dir():
            yield root


def write_dicom(root: Path, terms: Terms | None = None) -> DatasetManifest:
    """The archive as a read-only mount: `archive/`, its manifest and opt-outs below `root`.

    Raises:
        FileExistsError: there is a dataset in `root` already.
        ModuleNotFoundError: pydicom is not installed.
        Refused: `node.dataset_missing` where too few of the files are on this machine.
    """
    archive = write_archive(root / "archive")
    return _manifest(root, archive.patients, terms, DicomSource(kind="dicom", path="archive"))


@contextmanager
def pacs(folder: Path) -> Iterator[Writer]:
    """A running Orthanc that holds the archive, and a writer of datasets that are read from it.

    Args:
        folder: where the archive and Orthanc's own files go.

    Raises:
        Refused: `node.internal` where Orthanc is not installed or doesn't start.
    """
    from rapha.testing.orthanc import orthanc

    archive = write_archive(folder / "archive")
    held = {path: patient for path, patient in archive.files.items() if patient}
    with orthanc(folder / "orthanc", held) as server:
        # It keeps the padding of an identifier whose VR is UN, and no search finds that.
        found = {patient["MainDicomTags"]["PatientID"] for patient in server.get("/patients?expand")}
        usable = {name: what for name, what in archive.patients.items() if name in found}

        def write(root: Path, terms: Terms) -> DatasetManifest:
            root.mkdir(parents=True)
            listed = "\n".join(sorted(found & set(held.values())))
            (root / "patients.txt").write_text(listed + "\n", encoding="utf-8")
            scope = Scope(patients="patients.txt")
            return _manifest(
                root, usable, terms, DicomWebSource(kind="dicomweb", url=server.url, scope=scope)
            )

        yield write


def _manifest(
    root: Path,
    patients: Mapping[str, frozenset[str]],
    terms: Terms | None,
    source: DicomSource | DicomWebSource,
) -> DatasetManifest:
    return describe(
        root,
        opt_outs=(OPTED_OUT,),
        terms=terms,
        dataset=DATASET,
        title="CT or another kind of image: public CT, MR and X-ray images",
        profile="imaging.ct-or-not",
        modality="imaging",
        fields=FIELDS,
        source=source,
        patient_id="PatientID",
        target=Target(label="is_ct"),
        test_fraction=TEST_FRACTION,
        minimum_cell=CELL,
        salt=salt(patients),
        provenance=_provenance(len(patients), HEAD_PATIENT in patients),
    )


FIELDS: Final = (
    Field(name="pixels", dtype="float32", shape=(0, 0), path="@pixels", description="CT in HU"),
    Field(name="patient", dtype="pseudonym", path="PatientID", description="whose image, for this job only"),
    Field(name="rows", dtype="int32", path="Rows", description="of the image as stored"),
    Field(name="body_part", dtype="string", path="BodyPartExamined"),
    Field(name="age_band", dtype="string", path="@age_band"),
    Field(
        name="is_ct",
        dtype="float32",
        label=True,
        path="Modality",
        codes=CODES,
        description="1 CT, 0 MR or X-ray",
    ),
)


def _provenance(patients: int, head: bool) -> Provenance:
    examples = "pydicom and pydicom-data: their test files"
    made_up = "The head CT's identifiers were made up for the demo; the others" if head else "Identifiers"
    return Provenance(
        source=f"invesalius-examples (Debian): one head CT; {examples}" if head else examples,
        licence="GPL-2 (InVesalius); MIT (pydicom, pydicom-data)" if head else "MIT (pydicom, pydicom-data)",
        notes=(
            f"Only {patients} patients have a CT, MR or X-ray image: the minimum cell is lowered from 10 to "
            f"{CELL} for the demo. With so few, no metric says how well a model does elsewhere.",
            f"Public images of real patients. {made_up} are as in the public files.",
            "The test split is the same in every demo on the same images: the first in a row of keys that "
            f"holds out at least {CELL} patients of each class and has each modality on both sides"
            + (", and trains on the head CT." if head else "."),
            "CT values are Hounsfield units and the others are not, so that a model may tell CT by the value "
            "of air alone.",
        ),
    )


def salt(patients: Mapping[str, frozenset[str]]) -> str:
    """A key whose split is as the manifest's note says.

    Real datasets draw theirs at random, and have so many patients that any will do.

    Raises:
        Refused: `node.dataset_missing`.
    """
    names = sorted(patients)
    for number in range(_KEYS):
        drawn = hashlib.sha256(f"rapha demo, test split {number}".encode()).hexdigest()
        held = dict(zip(names, held_out(drawn, DATASET, names, TEST_FRACTION), strict=True))
        test, train = ([patients[name] for name in names if held[name] is side] for side in (True, False))
        known = all(any(modality in found for found in side) for side in (test, train) for modality in CODES)
        if known and min(_of_each_class(test)) >= CELL and not held.get(HEAD_PATIENT):
            return drawn
    raise Refused("node.dataset_missing", "too few images on this machine; pydicom-data has them")


def _of_each_class(patients: Sequence[frozenset[str]]) -> list[int]:
    codes = [{CODES[modality] for modality in found} for found in patients]
    return [sum(code in found for found in codes) for code in sorted(set(CODES.values()))]
