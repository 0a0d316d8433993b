"""`rapha job mock`: synthetic records, so that a job's code can be tried at home."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from rapha.cli.exits import UNKNOWN, emit_json, leave, say
from rapha.evidence import canonical
from rapha.researcher.project import Project
from rapha.spec.job import DatasetRequest
from rapha.spec.transforms import Form

CATALOGUE: Final = "catalogue.json"


def mock(
    source: Annotated[
        Path,
        typer.Argument(help=f"A catalogue, or one entry of it, as JSON; or a job's folder with {CATALOGUE}."),
    ],
    out: Annotated[Path, typer.Option(help="The .npz file to write, for RAPHA_HOME_DATA.")],
    records: Annotated[int, typer.Option(help="How many records.")] = 256,
    seed: Annotated[int, typer.Option(help="The same seed gives the same file.")] = 0,
    job: Annotated[
        Path | None, typer.Option(help="The job's folder; its transforms apply. Default: SOURCE if a folder.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Which dataset, where the catalogue has more.")] = None,
) -> None:
    """Write synthetic records with the names, dtypes and shapes that the job will be handed.

    Prints the fields as JSON. Exit 0 written, 1 refused.
    """
    from rapha.researcher import mock as mocks

    folder = job or (source if source.is_dir() else None)
    catalogue = source / CATALOGUE if source.is_dir() else source
    request: DatasetRequest | None = Project(folder).load().dataset if folder else None
    entry = mocks.choose(mocks.entries(_read(catalogue)), request, dataset)
    transforms = request.transforms if request else {}
    try:
        forms = mocks.write(entry, transforms, out, records=records, seed=seed)
    except OSError as error:
        leave(UNKNOWN, f"{out}: {error.strerror}")
    say(f"{out}: {records} synthetic records of {entry.dataset}; no patient is in here")
    emit_json({"dataset": entry.dataset, "records": records, "seed": seed, "fields": _fields(forms)})


def _fields(forms: Mapping[str, Form]) -> dict[str, Any]:
    return {
        name: {"dtype": form.dtype, "shape": list(form.shape), "ragged": form.ragged}
        for name, form in forms.items()
    }


def _read(path: Path) -> Any:
    try:
        return canonical.loads(path.read_bytes())
    except OSError as error:
        leave(UNKNOWN, f"{path}: {error.strerror}")
