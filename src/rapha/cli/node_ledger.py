"""`rapha node ledger`: what a dataset gave away over all jobs, and what is left of its caps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rapha.cli.exits import NO, OK, UNKNOWN, emit, emit_json, leave, say
from rapha.spec.refusals import Refused

if TYPE_CHECKING:
    from rapha.node.datasets.ledger.messages import Shown
    from rapha.spec.dataset import DatasetManifest

app = typer.Typer(no_args_is_help=True, help=__doc__)

Work = Annotated[Path, typer.Option("--work", envvar="RAPHA_NODE", help="The node's work directory.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Name = Annotated[str, typer.Argument(help="The dataset's id.")]


@app.command()
def show(
    dataset: Name,
    work: Work,
    as_json: Json = False,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page with plots here.")] = None,
) -> None:
    """Jobs and totals against the caps. For the hospital's own eyes; it names no patient."""
    from rapha.node.datasets.ledger import page

    manifest, shown = _shown(work, dataset)
    if html is not None:
        try:
            html.write_text(page.render(manifest, shown), encoding="utf-8")
        except OSError as error:
            leave(UNKNOWN, f"{html}: {error.strerror}")
        say(f"written to {html}")
    if as_json:
        emit_json(shown.dump())
        return
    rows = [page.HEADS, *(page.row(line) for line in shown.jobs)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        emit("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    emit("")
    for total in page.totals(shown):
        emit(f"{total.spent:>16} of {total.cap:>16}  {total.name}{'  NOTHING LEFT' if total.over else ''}")


@app.command()
def check(dataset: Name, work: Work, as_json: Json = False) -> None:
    """Verify every byte of the ledger against its chain and the node's log, and the caps.

    Exit 1 if it was altered, is older than the node's log, or nothing is left of a cap; 3 if nobody can
    tell.
    """
    from rapha.node.datasets.ledger import page

    try:
        _, shown = _shown(work, dataset)
    except Refused as refused:
        said = f"{refused.code}: {refused.detail}"
        if as_json:
            emit_json({"ok": False, "reason": said, "used_up": []})
        leave(NO if refused.code == "node.ledger_invalid" else UNKNOWN, said)
    over = [total.name for total in page.totals(shown) if total.over]
    head = shown.balance.head if shown.balance else None
    if as_json:
        emit_json({"ok": not over, "reason": "", "used_up": over, "jobs": len(shown.jobs), "head": head})
    else:
        emit(f"verified: {len(shown.jobs)} jobs, head {head or 'none yet'}")
        for name in over:
            emit(f"nothing left: {name}")
    raise SystemExit(NO if over else OK)


def _shown(work: Path, name: str) -> tuple[DatasetManifest, Shown]:
    from rapha.node import config as configs
    from rapha.node import journal as journals
    from rapha.node.datasets.client import DatasetProcess
    from rapha.node.datasets.ledger.messages import Inspect
    from rapha.node.node import load_datasets
    from rapha.node.recover import seen

    config = configs.load(work / "node.json")
    found = [manifest for manifest, _ in load_datasets(work, config).values() if manifest.dataset == name]
    if not found:
        raise Refused("policy.dataset", f"this node has no dataset {name!r}")
    state = work.resolve() / config.state
    known = seen(journals.read(state / "journal.jsonl"), name)
    with DatasetProcess() as data:
        return found[0], data.inspect(Inspect(manifest=found[0], ledger=str(state / "ledger"), seen=known))
