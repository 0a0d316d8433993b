"""`rapha node airgap`: the helper that severs the WAN interface, and the operator's last word on it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from rapha.cli.exits import NO, OK, UNKNOWN, emit, emit_json, leave
from rapha.node.posture.airgap.model import State
from rapha.spec.refusals import Refused

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)

Socket = Annotated[Path, typer.Option("--socket", help="Where the helper listens.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command()
def serve(
    socket: Socket,
    journal: Annotated[Path, typer.Option("--journal", help="The helper's own folder.")],
    uid: Annotated[list[int], typer.Option("--uid", min=0, help="User that may sever; repeatable.")],
    run_as: Annotated[
        int | None, typer.Option("--run-as", min=1, help="User to become; not the node's own.")
    ] = None,
) -> None:
    """Run the helper (needs CAP_NET_ADMIN, and drops all else). A start restores what an earlier one left,
    once nobody holds the lock."""
    from rapha.node.posture.airgap.helper import Options
    from rapha.node.posture.airgap.helper import serve as serve_helper

    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    try:
        serve_helper(Options(socket, journal, frozenset(uid), run_as))
    except Refused as refused:
        leave(UNKNOWN, f"{refused.code}: {refused.detail}")


@app.command()
def state(socket: Socket, as_json: Json = False) -> None:
    """What is severed, and whether it holds. Exit 1 if it was broken, 3 if nobody can say."""
    from rapha.node.posture.airgap.client import state as ask

    try:
        told = ask(socket)
    except Refused as refused:
        leave(UNKNOWN, refused.detail)
    _show(told, as_json)
    raise SystemExit(UNKNOWN if told.phase == "unknown" else NO if told.broken else OK)


@app.command()
def restore(
    socket: Socket,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Restore though somebody holds the lock, or the journal is damaged: a job that lives then "
            "has the WAN back, and the node releases nothing of it.",
        ),
    ] = False,
    interface: Annotated[
        str | None, typer.Option("--interface", help="With --force: also set this interface up.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Put the network back now, if nobody holds the lock (root only). Exit 1 if it may not, or not yet."""
    from rapha.node.posture.airgap.client import restore as ask

    if interface is not None and not force:
        raise typer.BadParameter("--interface goes with --force: without it the journal says what to set up")
    told = ask(socket, force, interface)
    _show(told, as_json)
    raise SystemExit(OK if told.phase == "open" else NO)


def _show(told: State, as_json: bool) -> None:
    if as_json:
        emit_json(told.dump())
        return
    held = "held" if told.held else "free"
    emit(f"{told.phase:<10} {told.interface or '-':<16} {told.mode or '-':<9} {held}")
    for name, text in (("broken", told.broken), ("note", told.note)):
        if text:
            emit(f"{name}: {text}")
