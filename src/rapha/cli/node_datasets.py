"""`rapha node datasets`: what the node offers, and what in it can't be used."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from rapha.cli.exits import NO, OK, WRONG_CALL, emit, emit_json, leave

if TYPE_CHECKING:
    from rapha.node.datasets.control import Described

app = typer.Typer(invoke_without_command=True, help=__doc__)

WORK = typer.Option("--work", envvar="RAPHA_NODE", help="The node's work directory.")


@app.callback()
def datasets(context: typer.Context, work: Annotated[Path | None, WORK] = None) -> None:
    """Datasets that this node offers."""
    from rapha.node import config as configs
    from rapha.node.node import load_datasets

    if context.invoked_subcommand is not None:
        return
    if work is None:
        leave(WRONG_CALL, "--work is missing")
    for manifest, folder in load_datasets(work, configs.load(work / "node.json")).values():
        emit(f"{manifest.dataset:<24} {manifest.profile:<24} {folder}")


@app.command()
def check(
    dataset: Annotated[str, typer.Argument(help="The dataset's id.")],
    work: Annotated[Path, WORK],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Index a dataset and count what can be used, exactly; name what can't, and why. Exit 1 if nothing can.

    What is no record, such as a link or another kind of file, is counted apart and named too.

    For the hospital's own eyes: the names of files and images are not for publication.
    """
    described = _describe(work, dataset)
    if as_json:
        emit_json(described.dump())
    else:
        emit(f"{described.records:>10}  records of {described.patients} patients can be used")
        for reason, count in sorted(described.reasons.items()):
            emit(f"{count:>10}  {reason}")
        for fault in described.faults:
            emit(f"            {fault.reason:<32} {fault.locator}")
        if described.set_aside:
            emit(f"{described.set_aside:>10}  set aside: no record")
        for other in described.aside:
            emit(f"            {other.reason:<32} {other.locator}")
    raise SystemExit(OK if described.records else NO)


def _describe(work: Path, name: str) -> Described:
    from rapha.cli.progress import Bar
    from rapha.node import config as configs
    from rapha.node.datasets.client import DatasetProcess, means
    from rapha.node.node import load_datasets

    config = configs.load(work / "node.json")
    found = [d for d in load_datasets(work, config).values() if d[0].dataset == name]
    if not found:
        leave(NO, f"policy.dataset: this node has no dataset {name!r}")
    manifest, folder = found[0]
    with TemporaryDirectory() as shards, Bar() as bar, DatasetProcess(tell=bar.tell) as data:
        return data.describe(manifest, folder, means(config.preparation, Path(shards).resolve()))
