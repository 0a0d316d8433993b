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
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from rapha.node import journal
from rapha.node.journal import Entry
from rapha.node.pipeline import GATES
from rapha.researcher.report import GateLine
from rapha.spec.refusals import Refused

REFRESH_S: Final = 0.05


class Gates:
    """Shows gates as they start and end; plain lines where the output is no terminal."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._console = Console(file=sys.stderr, highlight=False)
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
        found = str(entry.data.get("found") or entry.data.get("code", ""))
        self._ended[name] = (verdict, at - self._began.get(name, at), found)
        if not self._console.is_terminal:
            line = (
                f"{GATES.index(name) + 1:>3} {name:<10} {verdict:<8} {self._ended[name][1]:5.2f} s  {found}"
            )
            self._console.print(line, soft_wrap=True)

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
                table.add_row(str(n), name, Spinner("dots"), f"{seconds:.2f}", "")
            else:
                table.add_row(str(n), Text(name, "dim"), "", "", "")
        table.add_row("", Text("job", "dim"), "", "", Text(" → ".join(self._states), "dim"))
        return table


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
