"""`rapha sandbox probe`: the escape suite, its table, and what it makes of the exit code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

from rapha.cli.exits import NO, OK, UNKNOWN, emit_json, say
from rapha.cli.sandbox_driver import Driver

if TYPE_CHECKING:
    from rapha.runtime.sandbox.probe.verdict import Report

_STYLES: Final = {"held": "green", "escaped": "bold red", "no_control": "yellow"}

_PAGE: Final = 160
"""Columns where no terminal says how many there are."""
_VERDICTS: Final = 33
"""Columns that the verdicts and the lines between columns take."""
_LEAST: Final = 12


def probe(
    driver: Annotated[Driver, typer.Option(help="Which walls.")] = Driver.bubblewrap,
    no_sandbox: Annotated[
        bool,
        typer.Option("--no-sandbox", help="Only the controls: what gets through where there are no walls."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Attack the walls from inside, and show that each attempt works without them.

    Exits with 0 if every attempt was held, 1 if any escaped, 3 if it could not be found out.
    """
    from rapha.runtime.sandbox import drivers
    from rapha.runtime.sandbox.probe import suite

    report = suite.probe(None if no_sandbox else drivers.driver(driver.value))
    if as_json:
        emit_json(report.dump())
    else:
        _table(report)
    _summarise(report)
    raise typer.Exit(OK if report.ok else NO if report.escaped else UNKNOWN)


def _table(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console.width = _PAGE
    names = max((len(row.id) for row in report.probes), default=0)
    words = max(2 * _LEAST, console.width - names - _VERDICTS)
    what, how = words * 2 // 5, words - words * 2 // 5
    table = Table(title=f"Escape attempts against {report.driver}", title_justify="left")
    for heading in ("attempt", "outside", "inside", "what", "how"):
        table.add_column(heading, no_wrap=True)
    family = ""
    for row in sorted(report.probes, key=lambda probe: probe.family):  # stable: the suite's order within
        if family and row.family != family:
            table.add_section()
        family = row.family
        verdict = Text(row.verdict.value.replace("_", " "), _STYLES[row.verdict.value])
        said = Text(_cut(_printable(row.how), how))
        table.add_row(row.id, row.control.value, verdict, _cut(row.what, what), said)
    console.print(table)


def _cut(text: str, width: int) -> str:
    # rich takes what doesn't fit from every column, the verdict's too.
    return text if len(text) <= width else text[: width - 1] + "…"


def _printable(text: str) -> str:
    """What an attempt said comes from inside: nothing in it may steer the terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _summarise(report: Report) -> None:
    for row in report.probes:
        if row.verdict.value != "held":
            say(f"{row.verdict.value.replace('_', ' ')}: {row.id}: {row.what}: {_printable(row.how)}")
    for one in report.left_out:
        say(f"left out: {one.id}: {_printable(one.why)}")
    counts = ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in report.counts.items())
    say(f"{report.driver}: {counts}, {len(report.left_out)} left out")
