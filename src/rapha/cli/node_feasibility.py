"""`rapha node feasibility`: how many patients and records a cohort has, with noise and in buckets."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from rapha.cli.exits import NO, OK, emit, emit_json, leave

Work = Annotated[Path, typer.Option("--work", envvar="RAPHA_NODE", help="The node's work directory.")]


def feasibility(
    dataset: Annotated[str, typer.Argument(help="The dataset's id.")],
    cohort: Annotated[Path, typer.Option("--cohort", help="The cohort, YAML or JSON, as in job.yaml.")],
    work: Work,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Count a cohort: the same answer however often and in whatever words it is asked for.

    Exit 1 if the patients in it, or those it leaves out, may be fewer than the minimum cell, or if as many
    different cohorts were counted as the dataset's caps allow.
    """
    from rapha.cli.progress import Bar
    from rapha.node import config as configs
    from rapha.node import journal as journals
    from rapha.node.datasets import control
    from rapha.node.datasets.client import DatasetProcess, means
    from rapha.node.node import load_datasets
    from rapha.node.recover import seen
    from rapha.spec import cohort as cohorts
    from rapha.spec import yaml

    config = configs.load(work / "node.json")
    found = [d for d in load_datasets(work, config).values() if d[0].dataset == dataset]
    if not found:
        leave(NO, f"policy.dataset: this node has no dataset {dataset!r}")
    manifest, folder = found[0]
    asked = cohorts.parse(yaml.load(_text(cohort)))
    state = work.resolve() / config.state
    with TemporaryDirectory() as shards, Bar() as bar, DatasetProcess(tell=bar.tell) as data:
        answer = data.estimate(
            control.Estimate(
                manifest=manifest,
                folder=str(folder.resolve()),
                means=means(config.preparation, Path(shards).resolve()),
                cohort=asked,
                ledger=str(state / "ledger"),
                seen=seen(journals.read(state / "journal.jsonl"), manifest.dataset),
            )
        )
    enough = isinstance(answer.patients, int)
    if as_json:
        emit_json({"ok": enough, "dataset": dataset, **answer.dump(), "bucket": manifest.billing_bucket})
    else:
        emit(f"{answer.patients:>10}  patients\n{answer.records:>10}  records")
    raise SystemExit(OK if enough else NO)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{path} can't be read: {type(error).__name__}") from None
