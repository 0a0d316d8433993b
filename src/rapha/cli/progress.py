"""A live table of the gates, read from the node's own journal: what gate, how long, what it found."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from rapha.node import journal, progress
from rapha.node.datasets.control import Progress as Told
from rapha.node.journal import Entry
from rapha.node.pipeline import GATES
from rapha.researcher.report import GateLine
from rapha.spec.refusals import Refused
from rapha.spec.surface import printable

REFRESH_S: Final = 0.05


class Gates:
    """Shows gates as they start and end; plain lines where the output is no terminal."""

    def __init__(self, log: Path) -> None:
        self._log = log
        # What gates found names organisations and jobs: text of others, which is no markup.
        self._console = Console(file=sys.stderr, highlight=False, markup=False, emoji=False)
        self._states: list[str] = []
        self._began: dict[str, float] = {}
        self._ended: dict[str, tuple[str, float, str]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._live = Live(console=self._console, refresh_per_second=12, transient=False)

    def __enter__(self) -> Gates:
        if self._console.is_terminal:
            self._live.start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._read()
        if self._console.is_terminal:
            self._live.update(self._table())
            self._live.stop()

    def event(self, event: Mapping[str, Any]) -> None:
        """A state of the job, as the researcher sees it."""
        self._states.append(str(event["state"]))

    def _follow(self) -> None:
        while not self._stop.wait(REFRESH_S):
            self._read()
            if self._console.is_terminal:
                self._live.update(self._table())

    def _read(self) -> None:
        try:
            entries = journal.read(self._log)
        except Refused:
            return  # a line is being written; the next look has it whole
        for entry in entries:
            if entry.event == "gate":
                self._take(entry)

    def _take(self, entry: Entry) -> None:
        name, verdict = str(entry.data["gate"]), str(entry.data["verdict"])
        at = float(entry.data["at_ms"]) / 1000
        if verdict == "started":
            self._began.setdefault(name, at)
            return
        if name in self._ended:
            return
        found = printable(str(entry.data.get("found") or entry.data.get("code", "")))
        self._ended[name] = (verdict, at - self._began.get(name, at), found)
        if not self._console.is_terminal:
            line = (
                f"{GATES.index(name) + 1:>3} {name:<10} {verdict:<8} {self._ended[name][1]:5.2f} s  {found}"
            )
            self._console.print(line, soft_wrap=True)

    def _how_far(self) -> str:
        """Of records being opened or decoded, by the running job's own account."""
        told = progress.read(self._log.parent)
        if told is None:
            return ""
        return f"{told.stage} {told.done:,}" + (f" of {told.total:,}" if told.total else "")

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        for title in ("", "gate", "", "seconds", "found"):
            table.add_column(title)
        for n, name in enumerate(GATES, start=1):
            if name in self._ended:
                verdict, seconds, found = self._ended[name]
                mark = Text("pass", "green") if verdict == "passed" else Text("NO", "bold red")
                table.add_row(str(n), name, mark, f"{seconds:.2f}", found)
            elif name in self._began:
                seconds = time.time() - self._began[name]
                table.add_row(str(n), name, Spinner("dots"), f"{seconds:.2f}", self._how_far())
            else:
                table.add_row(str(n), Text(name, "dim"), "", "", "")
        table.add_row("", Text("job", "dim"), "", "", Text(" → ".join(self._states), "dim"))
        return table


class Bar:
    """One bar for whatever is being done, on stderr; a line a stage where that is no terminal."""

    def __init__(self) -> None:
        console = Console(file=sys.stderr, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=not console.is_terminal,
        )
        self._stages: dict[str, TaskID] = {}

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def tell(self, told: Told) -> None:
        """Show how far a stage has come."""
        if told.stage not in self._stages:
            self._stages[told.stage] = self._progress.add_task(told.stage, total=None)
        total = told.total or None
        self._progress.update(self._stages[told.stage], completed=told.done, total=total)


def timeline(entries: Iterable[Entry]) -> list[GateLine]:
    """The gates of the last job in a journal, for the report. Durations come from the entries' clock."""
    began: dict[str, float] = {}
    lines: list[GateLine] = []
    for entry in entries:
        if entry.event == "accepted":
            began, lines = {}, []
        if entry.event != "gate":
            continue
        name, verdict = str(entry.data["gate"]), str(entry.data["verdict"])
        at = float(entry.data["at_ms"]) / 1000
        if verdict == "started":
            began[name] = at
        else:
            found = str(entry.data.get("found") or entry.data.get("code", ""))
            shown: Literal["passed", "refused"] = "passed" if verdict == "passed" else "refused"
            lines.append(GateLine(name, shown, max(0.0, at - began.get(name, at)), found))
    return lines
