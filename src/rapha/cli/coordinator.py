"""`rapha coordinator`: run the control plane, and review who may use it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from rapha.cli.exits import WRONG_CALL, emit, emit_json, leave, say

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)
developers = typer.Typer(add_completion=False, no_args_is_help=True, help="Registrations and API keys.")
nodes = typer.Typer(add_completion=False, no_args_is_help=True, help="Invitations and enrolled nodes.")
app.add_typer(developers, name="developers")
app.add_typer(nodes, name="nodes")

Work = Annotated[Path, typer.Option("--work", envvar="RAPHA_COORDINATOR_WORK", help="Work directory.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object.")]


@app.command()
def init(
    work: Work,
    profile: Annotated[str, typer.Option(help="demo or production.")] = "demo",
    origin: Annotated[str | None, typer.Option(help="Names the log and this coordinator.")] = None,
) -> None:
    """Make a work directory: log key, store, config.json. Prints origin and log key as JSON."""
    from rapha.coordinator import config
    from rapha.evidence.keys import SigningKey

    if profile not in ("demo", "production"):
        leave(WRONG_CALL, "--profile is demo or production")
    paths = config.Work(work)
    made = config.initialise(paths, profile="demo" if profile == "demo" else "production", origin=origin)
    key = SigningKey.load(paths.log_key).verify_key.to_text()
    emit_json({"profile": made.profile, "origin": made.origin, "log_key": key})


@app.command()
def serve(
    work: Work,
    host: Annotated[str, typer.Option(help="IP address to bind.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8440,
    url_file: Annotated[Path | None, typer.Option(help="Written once the server answers.")] = None,
    unsafe_plain_http: Annotated[
        bool, typer.Option("--unsafe-plain-http", help="Bind beyond loopback without TLS.")
    ] = False,
) -> None:
    """Serve the API until a signal ends it. Prints the URL."""
    from rapha.coordinator import config, server

    if unsafe_plain_http:
        say("warning: API keys cross the network unencrypted unless a TLS proxy is in front")
    with server.bind(host, port, unsafe_plain_http=unsafe_plain_http) as listener:
        emit(server.url_of(listener))
        sys.stdout.flush()
        server.serve(config.Work(work), listener, url_file)


@app.command()
def migrate(work: Work) -> None:
    """Bring the store to this program's schema; no coordinator may be serving it."""
    from rapha.coordinator import operator

    emit(f"{work}: schema {operator.migrate(work)}")


@developers.command("list")
def list_developers(work: Work, as_json: AsJson = False) -> None:
    """Every registration."""
    from rapha.coordinator import operator

    _table("developers", operator.developers(work), ("id", "status", "organisation"), as_json)


@developers.command()
def approve(identity: Annotated[str, typer.Argument(metavar="ID")], work: Work) -> None:
    """Approve a developer and print the API key, this once; an earlier key stops working."""
    from rapha.coordinator import operator

    key = operator.approve(work, identity)
    say("keep this key: it is not stored and won't be shown again")
    emit(key)


@developers.command("revoke")
def revoke_developer(identity: Annotated[str, typer.Argument(metavar="ID")], work: Work) -> None:
    """Stop a developer's key at once."""
    from rapha.coordinator import operator

    operator.revoke_developer(work, identity)
    emit(f"{identity}: revoked")


@nodes.command("list")
def list_nodes(work: Work, as_json: AsJson = False) -> None:
    """Every node."""
    from rapha.coordinator import operator

    _table("nodes", operator.nodes(work), ("name", "status", "keyid"), as_json)


@nodes.command()
def invite(name: str, work: Work) -> None:
    """Print a one-time enrolment token for a node."""
    from rapha.coordinator import operator

    emit(operator.invite(work, name))


@nodes.command("revoke")
def revoke_node(name: str, work: Work) -> None:
    """Refuse a node from now on."""
    from rapha.coordinator import operator

    operator.revoke_node(work, name)
    emit(f"{name}: revoked")


def _table(name: str, rows: list[dict[str, Any]], columns: tuple[str, ...], as_json: bool) -> None:
    if as_json:
        emit_json({name: rows})
        return
    for row in rows:
        emit("  ".join(str(row[column] or "-") for column in columns))
