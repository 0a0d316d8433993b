"""Notices that a job is over at the coordinator while the node waits for people.

The coordinator sees when it is asked. So it is asked at one pace from the lease until the end is published,
whatever the job does in between: the questions say nothing about when training or the guard ended. While
the WAN is severed nobody can be asked, and it comes back at a whole quantum.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Final, Self

from rapha.node.exit import Exit
from rapha.spec.refusals import Refused
from rapha.spec.states import ENDED_WITH_CODE

EVERY_S: Final = 2.0


class Watch:
    """Asks for a job's state every `EVERY_S` in a thread of its own; a context manager."""

    def __init__(self, exit_: Exit, job: str, stop: threading.Event) -> None:
        self._exit, self._job, self._stop = exit_, job, stop
        self._over, self._done = threading.Event(), threading.Event()
        self._asking = threading.Event()
        self._asking.set()
        self._thread = threading.Thread(target=self._ask, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def stopped(self) -> bool:
        """Whether the node is told to stop.

        Raises:
            Refused: `job.cancelled` if the coordinator has ended the job.
        """
        if self._over.is_set():
            raise Refused("job.cancelled", "the job is over at the coordinator")
        return self._stop.is_set()

    def pause(self) -> None:
        """Ask nothing: the WAN is about to be severed."""
        self._asking.clear()

    def resume(self) -> None:
        """Ask again."""
        self._asking.set()

    def _ask(self) -> None:
        while not self._done.wait(EVERY_S):
            if not self._asking.is_set():
                continue
            try:
                state = self._exit.state(self._job)
            except Refused:
                continue  # a coordinator that can't be asked has not cancelled anything
            if state in ENDED_WITH_CODE:
                self._over.set()
