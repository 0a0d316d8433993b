"""The rule itself: the gap is closed by one request, and opens again only when nobody holds the lock.

What closes the gap is in the journal before it is done.
"""

from __future__ import annotations

import time
from typing import Final

from rapha.node.posture.airgap import engine, nftables
from rapha.node.posture.airgap.hold import Watch
from rapha.node.posture.airgap.journal import LAST, RECORD, Journal
from rapha.node.posture.airgap.model import Outcome, Phase, Record, Sever, State
from rapha.node.posture.airgap.monitor import Monitor
from rapha.spec.refusals import Refused

NEXT: Final[dict[Phase | None, frozenset[Phase | None]]] = {
    None: frozenset({"severing"}),
    "severing": frozenset({"severed", "restoring"}),
    "severed": frozenset({"restoring"}),
    "restoring": frozenset({None}),
}
"""None is the open gap. Nothing leads back from restoring but the end: what is lifted is not sealed again."""

_LOOK_S: Final = 1.0
_PATIENT_TRIES: Final = 30
"""A few seconds of ticks, in which a carrier comes back."""


class Keeper:
    """Holds one gap, or none. Not thread-safe: one loop calls it."""

    def __init__(self, journal: Journal) -> None:
        """Read the journal and take up what a helper before this one left."""
        self._journal = journal
        self._record: Record | None = None
        self._watch: Watch | None = None
        self._monitor: Monitor | None = None
        self._last: Outcome | None = None
        self._unknown = ""
        self._note = ""
        self._free_since: float | None = None
        self._looked = 0.0
        self._tries = 0
        try:
            self._last = self._outcome()
            self._record = journal.record()
            self._take_up()
        except Refused as refused:
            self._unknown = refused.detail
        except OSError as error:
            self._unknown = f"the kernel does not answer: {error.strerror or error}"

    @property
    def idle(self) -> bool:
        """True if there is nothing to keep."""
        return self._record is None and not self._unknown

    @property
    def monitors(self) -> tuple[int, ...]:
        """Descriptors that become readable when somebody changes the network."""
        return self._monitor.filenos if self._monitor else ()

    def state(self) -> State:
        """What is known now."""
        record = self._record
        return State(
            phase="unknown" if self._unknown else record.phase if record else "open",
            id=record.id if record else None,
            interface=record.interface if record else None,
            mode=record.mode if record else None,
            held=self._held(),
            broken=record.broken if record else "",
            note=self._unknown or self._note,
            last=self._last,
        )

    def sever(self, request: Sever, given: int) -> State:
        """Close the gap: journal, do, look, count, say.

        Raises:
            Refused: `posture.seal_failed`. What was begun is undone once the lock is free.
        """
        if not self.idle:
            raise Refused("posture.seal_failed", self._unknown or "an earlier gap is not lifted yet")
        watch = None
        try:
            lock, watch = Watch.adopt(request.hold, given)
            self._to(engine.prepare(request, lock))
        except (Refused, OSError) as error:
            if watch:
                watch.close()
            raise _refused(error) from None
        self._watch = watch
        try:
            self._close_gap()
        except (Refused, OSError) as error:
            raise _refused(error) from None
        return self.state()

    def tick(self) -> None:
        """Look at the network and at the lock, and go on with what is under way."""
        record = self._record
        if record is None or self._unknown:
            return
        if record.phase != "restoring":
            self._look(record)
            if not self._free():
                return
        self._lift()  # once begun it is open already, whoever takes the lock meanwhile

    def restore(self, force: bool, interface: str | None) -> State:
        """The operator's word. Without `force` it only asks the lock at once; with it a second time, what
        could not be put back by then is given up.

        Raises:
            Refused: `posture.seal_failed` if somebody holds the lock, or the journal can't be read, and
                `force` is not given; or if the kernel refuses.
        """
        if not force:
            self._refuse_if_held()
            self.tick()
            return self.state()
        try:
            if self._record and not self._unknown:
                begun = self._record.phase == "restoring"
                self._lift("an operator restored it by force" if self._held() else "")
                if begun and self._record:
                    self._forget(self._note)
            else:
                nftables.remove()
                self._forget()
            if interface:
                engine.force_up(interface)
        except OSError as error:
            raise _refused(error) from None
        return self.state()

    def _outcome(self) -> Outcome | None:
        try:
            return self._journal.last()
        except Refused as refused:
            # Without it nobody is told that the last gap held, which is the safe answer.
            self._journal.set_aside(LAST)
            self._note = refused.detail
            return None

    def _take_up(self) -> None:
        record = self._record
        if record is None:
            if nftables.handles():
                raise Refused("posture.seal_failed", "our nftables tables are there and no journal says why")
            return
        if record.boot != engine.boot():
            return  # whoever held the lock is gone, and so is what it held closed
        if record.netns != engine.netns():
            raise Refused("posture.seal_failed", "the journal is of another network namespace")
        self._monitor = Monitor(record.mode)
        try:
            self._watch = Watch.reopen(record.lock)
        except Refused as refused:
            self._note = f"held: {refused.detail}"

    def _close_gap(self) -> None:
        record = self._current()
        self._monitor = Monitor(record.mode)
        engine.seal(record)
        tables = nftables.handles() if record.mode == "nftables" else ()
        before = engine.settled(record)
        self._monitor.drain()
        record = record.now(tables=tables, before=before)
        why = engine.breach(record)
        if why:
            raise Refused("posture.seal_failed", why)
        self._to(record.now(phase="severed"))

    def _look(self, record: Record) -> None:
        now = time.monotonic()
        told = self._monitor.told(record) if self._monitor else None
        if told is None and now - self._looked < _LOOK_S:
            return
        self._looked = now
        try:
            why = told or engine.breach(record)
            if why:
                self._close_again(record.now(broken=record.broken or why))
        except (Refused, OSError) as error:
            self._note = _refused(error).detail

    def _close_again(self, record: Record) -> None:
        # Nothing that was broken is mended by this; but what still lives shall reach nobody from here on. The
        # wall comes first: that it is to stand is in the journal, and a full disk must not leave it open.
        engine.seal(record)
        if record.mode == "nftables":
            record = record.now(tables=nftables.handles())
        if self._monitor:
            self._monitor.drain()
        if record != self._record:
            self._write(record)

    def _free(self) -> bool:
        record = self._current()
        if record.boot != engine.boot():
            return True
        if self._watch is None or not self._watch.free():
            self._free_since = None
            return False
        now = time.monotonic()
        self._free_since = self._free_since or now
        return now - self._free_since >= engine.SETTLE_S

    def _lift(self, forced: str = "") -> None:
        try:
            record = self._restoring(self._current(), forced)
            missing = engine.restore(record, onlink=self._tries > _PATIENT_TRIES)
            self._tries += 1
            if not missing:
                self._end(record)
                return
            self._note = f"restoring: still missing {missing}"
        except (OSError, Refused) as error:
            self._note = f"restoring: {_refused(error).detail}"

    def _restoring(self, record: Record, forced: str) -> Record:
        if record.phase != "restoring":
            record = self._judged(record.now(broken=record.broken or forced))
            try:
                self._write(record)
            except Refused as refused:
                # A full disk shall not keep a hospital dark; a helper after this one calls the gap broken.
                self._note = refused.detail
        return record

    def _judged(self, record: Record) -> Record:
        """The record with its last reading, and what that says about the time before."""
        if record.boot != engine.boot():
            return record.now(phase="restoring", broken=record.broken or "the machine was restarted")
        after = engine.read(record)
        told = (self._monitor.told(record) if self._monitor else None) or ""
        why = record.broken or told or engine.breach(record)
        if self._monitor:  # from here on the changes are ours
            self._monitor.close()
            self._monitor = None
        if record.before is not None:
            why = why or engine.sent(record.before, after, record.mode)
        return record.now(phase="restoring", after=after, broken=why)

    def _end(self, record: Record) -> None:
        outcome = Outcome(
            version=1, id=record.id, before=record.before, after=record.after, broken=record.broken
        )
        self._journal.end(outcome)
        self._last = outcome
        self._forget()

    def _forget(self, note: str = "") -> None:
        self._journal.set_aside(RECORD)
        for one in (self._watch, self._monitor):
            if one:
                one.close()
        self._record = self._watch = self._monitor = self._free_since = None
        self._unknown, self._note = "", note
        self._tries = 0

    def _to(self, record: Record) -> None:
        phase = self._record.phase if self._record else None
        if record.phase not in NEXT[phase]:
            raise Refused("posture.seal_failed", f"{record.phase} does not follow {phase}")
        self._journal.write(record)
        self._record = record

    def _write(self, record: Record) -> None:
        # What is known of a gap that is closed is known even where it can't be written.
        self._record = record
        self._journal.write(record)

    def _current(self) -> Record:
        if self._record is None:
            raise Refused("posture.seal_failed", "there is no gap")
        return self._record

    def _held(self) -> bool:
        if self._record is None:
            return False
        return not (self._record.boot != engine.boot() or (self._watch is not None and self._watch.free()))

    def _refuse_if_held(self) -> None:
        if self._unknown:
            raise Refused("posture.seal_failed", f"{self._unknown}; only --force goes on")
        if self._held():
            raise Refused(
                "posture.seal_failed", "somebody holds the lock: a job may live; only --force goes on"
            )


def _refused(error: Refused | OSError) -> Refused:
    if isinstance(error, Refused):
        return error
    return Refused("posture.seal_failed", f"the kernel refused: {error.strerror or error}")
