"""Workers that parse and decode hostile files, and the loop that keeps them busy.

An item is lost only by what it does itself. The worker answers each item as soon as it is done, in order, so
the first one unanswered is the one that it died of, hung on or lied about, unless an earlier one broke the
worker: so that item has another try, in a worker that has seen nothing yet. What was queued behind it goes to
other workers. In its second part, which the job chose, no item is lost: the run ends (see `InParts`).

What a worker that was taken over can still do, until it is replaced: answer wrongly for the items it is given
from then on. It can't see the output of another item, nor reach anything but its socket and the folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import selectors
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, Self

from rapha.node.sources.interface import Quarantine
from rapha.node.sources.workers import frames
from rapha.node.sources.workers.clock import Clock
from rapha.node.sources.workers.hand import Given, Hand, Staging
from rapha.node.sources.workers.interface import Answer, Item, Limits, Task
from rapha.node.sources.workers.template import Template
from rapha.node.sources.workers.worker import Order
from rapha.spec.refusals import Refused

_AHEAD: Final = 64
_AHEAD_S: Final = 0.02
"""Most items queued in a worker, and seconds of work; more would lie there while another worker is idle."""
_LIFE: Final = 50_000
"""Items before a worker is replaced: what leaks, or was taken over unnoticed, does not stay for ever."""
_START_S: Final = 30.0
_MOST_HUNG: Final = 64
"""Workers killed at their deadline before the source as a whole is refused; else an archive of files that
hang a decoder would hold the node for days."""
_MOST_STILLBORN: Final = 3
"""Workers in a row that die before they say that their walls are up."""


class Pool:
    """Up to `workers` processes that run `task`; use it as a context manager, in one thread that outlives it.

    Args:
        task: what they run.
        setup: for its `make`, which runs once.
        folder: where the paths of items begin; None where items have none.
        output_bytes: of each item; 0 where the reply is all.
        _unsafe_test_module: a file to run in place of `task`, for the tests of the walls; no configuration
            leads here.

    Raises:
        Refused: `node.dataset_missing` for the folder; `node.sandbox_unavailable` where a wall can't be had;
            `node.internal` where the task or a worker doesn't start.
    """

    def __init__(
        self,
        task: Task,
        setup: bytes,
        *,
        folder: Path | None,
        workers: int,
        output_bytes: int = 0,
        limits: Limits = Limits(),  # noqa: B008  frozen
        _unsafe_test_module: Path | None = None,
    ) -> None:
        if workers < 1 or output_bytes < 0:
            raise ValueError("a pool has a worker, and output of no negative size")
        unsafe = None if _unsafe_test_module is None else str(_unsafe_test_module)
        self._order = Order(
            task.value, unsafe, folder is not None, output_bytes, limits.memory_bytes, limits.file_bytes
        )
        self._setup, self._folder, self._workers, self._limits = setup, folder, workers, limits
        self._template: Template | None = None
        self._hands: list[Hand] = []
        self._spare: list[Staging] = []
        self._left: list[Staging] = []
        self._returned: deque[Given] = deque()
        self._answers: deque[Answer] = deque()
        self._clock = Clock()
        self._hung = self._stillborn = 0
        self._running = False

    def __enter__(self) -> Self:
        """Start; the workers themselves are forked when there is work."""
        with _opened(self._folder) as folder:
            self._template = Template(self._order, self._setup, folder)
        return self

    def __exit__(self, *_: object) -> None:
        """Kill every process of the pool, and wipe what it held."""
        while self._hands:
            self._end(self._hands[0])
        self._recycle()
        while self._spare:
            self._spare.pop().close()
        if self._template is not None:
            self._template.close()

    def run(self, items: Iterable[Item]) -> Iterator[Answer]:
        """An answer for each item, in any order, each once; lazy on both sides.

        Raises:
            Refused: `node.dataset_invalid` where too many items hang; `privacy.cohort_refused` where an
                item's second part fails; as the class does.
        """
        if self._template is None or self._running:
            raise RuntimeError("a pool runs once at a time, inside its `with`")
        self._template.wait()
        self._running = True
        numbered = (Given(ordinal, item) for ordinal, item in enumerate(items))
        try:
            while self._fill(numbered):
                self._collect()
                self._fill(numbered)  # at work while the caller looks at the answers
                while self._answers:
                    answer = self._answers.popleft()
                    with self._clock.stopped():
                        yield answer
                self._recycle()
        finally:
            self._running = False
            self._returned.clear()
            self._answers.clear()
            for hand in [hand for hand in self._hands if hand.given]:
                self._end(hand)  # left in the middle: its answers would be taken for others
            self._recycle()

    def _fill(self, numbered: Iterator[Given]) -> bool:
        """Give out items; whether there is anything to wait for."""
        while (given := self._take(numbered)) is not None:
            if not frames.fits(given.item, self._limits):
                self._answer(given.ordinal, Quarantine.TOO_LARGE)
                if len(self._answers) >= _AHEAD:
                    break
                continue
            hand = self._fresh() if given.again else self._idlest()
            if hand is None or (given.item.data and hand.given):
                self._returned.appendleft(given)
                break
            hand.give(given.ordinal, given.item)
        for hand in self._hands:
            hand.flush()
        return bool(self._answers) or any(hand.given for hand in self._hands)

    def _idlest(self) -> Hand | None:
        """A worker with room, the one with least to do; a new one before any has two items."""
        able = [hand for hand in self._hands if hand.answered < _LIFE and hand.room(_AHEAD, _AHEAD_S)]
        hand = min(able, key=lambda hand: len(hand.given), default=None)
        if len(self._hands) < self._workers and (hand is None or hand.given):
            hand = self._fork()
        return hand

    def _fresh(self) -> Hand | None:
        """A worker that has seen nothing yet, in place of an idle one where there are enough."""
        if len(self._hands) >= self._workers:
            idle = next((hand for hand in self._hands if not hand.given), None)
            if idle is None:
                return None
            self._end(idle)
        return self._fork()

    def _take(self, numbered: Iterator[Given]) -> Given | None:
        if self._returned:
            return self._returned.popleft()
        with self._clock.stopped():  # the source may fetch it from afar
            return next(numbered, None)

    def _fork(self) -> Hand:
        assert self._template is not None  # noqa: S101  `run` has looked
        staging = None
        if self._order.output_bytes:
            staging = self._spare.pop() if self._spare else Staging(self._order.output_bytes)
        try:
            hand = Hand(self._template, staging, self._clock.now)
        except BaseException:
            if staging is not None:
                staging.close()
            raise
        self._hands.append(hand)
        return hand

    def _collect(self) -> None:
        """Wait for a word, a death or a deadline, and settle what came of it."""
        if not self._answers:
            self._wait()
        for hand in list(self._hands):
            for frame in hand.receive():
                self._settle(hand, frame)
                if frame.spent or (frame.chosen and frame.verdict):
                    # Whatever it said of later items it said without memory: another worker does them again.
                    hand.ended = True
                    self._give_back(hand)
                    break
            self._bury(hand)

    def _wait(self) -> None:
        now = self._clock.now()
        with selectors.DefaultSelector() as selector:
            for hand in self._hands:
                events = selectors.EVENT_READ | (selectors.EVENT_WRITE if hand.sending else 0)
                selector.register(hand.sock, events)
            left = [self._deadline(hand) - now for hand in self._hands if hand.given or not hand.began]
            selector.select(max(0.0, min(left, default=1.0)))
        for hand in self._hands:
            hand.flush()

    def _deadline(self, hand: Hand) -> float:
        limits = self._limits
        return hand.since + ((limits.chosen_s if hand.chosen else limits.item_s) if hand.began else _START_S)

    def _settle(self, hand: Hand, frame: frames.Frame) -> None:
        given = hand.given.popleft()
        output = memoryview(b"")
        if hand.staging is not None:
            taken = hand.staging.take()
            output = output if frame.verdict else taken
        self._stillborn = 0
        if frame.chosen and frame.verdict:
            self._chosen_failed(hand, given, first=hand.answered == 1)
            return
        self._answers.append(Answer(given.ordinal, frame.verdict, frame.reply, output))

    def _bury(self, hand: Hand) -> None:
        """Replace a worker that has ended or is late; the item it was at is lost, unless it never began."""
        late = bool(hand.given or not hand.began) and self._clock.now() >= self._deadline(hand)
        if not (hand.ended or late or (hand.answered >= _LIFE and not hand.given)):
            return
        if not hand.began:
            self._stillborn += 1
            if self._stillborn >= _MOST_STILLBORN:
                raise Refused("node.internal", "the workers end before they begin")
        elif hand.given:
            self._blame(hand)
        self._give_back(hand)
        self._end(hand)

    def _blame(self, hand: Hand) -> None:
        """The item that it was at is lost, or has another try where an earlier one may be at fault."""
        if not hand.ended:
            self._hung += 1
            if self._hung > _MOST_HUNG:
                raise Refused("node.dataset_invalid", f"records hung their decoder {self._hung} times")
        given = hand.given.popleft()
        if hand.chosen:
            self._chosen_failed(hand, given, first=not hand.answered)
        elif hand.answered and not given.again:
            hand.given.appendleft(dataclasses.replace(given, again=True))
        else:
            self._answer(given.ordinal, Quarantine.DECODER_CRASHED if hand.ended else Quarantine.TOO_SLOW)

    def _chosen_failed(self, hand: Hand, given: Given, *, first: bool) -> None:
        """No record falls out by what the job chose. An earlier item may have broken the worker, though."""
        if first or given.again:
            raise Refused("privacy.cohort_refused")
        hand.given.appendleft(dataclasses.replace(given, again=True))

    def _answer(self, ordinal: int, verdict: Quarantine) -> None:
        self._answers.append(Answer(ordinal, verdict, b"", memoryview(b"")))

    def _give_back(self, hand: Hand) -> None:
        self._returned.extendleft(reversed(hand.given))
        hand.given.clear()

    def _end(self, hand: Hand) -> None:
        self._hands.remove(hand)
        staging = hand.end()
        if staging is not None:
            self._left.append(staging)

    def _recycle(self) -> None:
        """What ended workers wrote to is wiped. Precondition: every answer that shows it was looked at."""
        while self._left:
            staging = self._left.pop()
            if staging.shared or len(self._spare) + len(self._hands) >= self._workers:
                staging.close()
            else:
                staging.wipe()
                self._spare.append(staging)


@contextlib.contextmanager
def _opened(folder: Path | None) -> Iterator[int | None]:
    if folder is None:
        yield None
        return
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise Refused("node.dataset_missing", f"{folder.name}: {error.strerror}") from None
    try:
        yield fd
    finally:
        os.close(fd)
