from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from rapha.node import recover
from rapha.node.journal import Entry

EVENTS = [recover.OPEN, "gate", recover.COMMITTED, recover.ENDED, recover.CLOSED]


def entries(job: str, *events: str) -> list[Entry]:
    return [Entry(i, "2026-01-01T00:00:00Z", job, event, {}) for i, event in enumerate(events)]


@pytest.mark.parametrize("count", range(len(EVENTS) + 1))
def test_every_set_of_events_is_cut_off_decided_or_done(count: int) -> None:
    for events in itertools.combinations(EVENTS, count):
        failed, decided = recover.unfinished(entries("job", *events))
        is_open = recover.OPEN in events and recover.CLOSED not in events
        is_decided = recover.COMMITTED in events or recover.ENDED in events
        assert failed == (["job"] if is_open and not is_decided else [])
        assert decided == (["job"] if is_open and is_decided else [])


def test_jobs_are_judged_one_by_one_in_their_order() -> None:
    log = [
        *entries("", "started"),
        *entries("a", recover.OPEN),
        *entries("b", recover.OPEN, recover.COMMITTED),
        *entries("c", recover.OPEN, recover.ENDED, recover.CLOSED),
        *entries("d", recover.OPEN, "gate"),
    ]
    assert recover.unfinished(log) == (["a", "d"], ["b"])
    assert recover.unfinished([]) == ([], [])


def test_destroying_takes_the_folder_and_nothing_that_it_links_to(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o755)
    (outside / "records").write_text("kept")
    work = tmp_path / "work"
    (work / "locked" / "deep").mkdir(parents=True)
    (work / "locked" / "deep" / "weights").write_bytes(b"x")
    (work / "folder").symlink_to(outside)
    (work / "file").symlink_to(outside / "records")
    (work / "dangling").symlink_to("nowhere")
    (work / "locked" / "deep").chmod(0)
    (work / "locked").chmod(0)
    recover.destroy(work)
    assert not work.exists()
    assert (outside / "records").read_text() == "kept"
    assert outside.stat().st_mode & 0o777 == 0o755
    recover.destroy(work)
