from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rapha.node import doctor
from rapha.node.config import NodeConfig
from rapha.node.datasets.keys import CURRENT, KEPT, KeyRing
from rapha.node.datasets.pseudonyms import HospitalKey
from rapha.node.node import Keys
from rapha.node.setup import init
from rapha.runtime.broker.handover import Descriptor
from rapha.runtime.broker.meter import Meter
from rapha.runtime.broker.splits import make_splits
from rapha.spec.refusals import Refused

CONFIG = NodeConfig.parse(
    {
        "version": 1,
        "profile": "demo",
        "node": "st-marys-1",
        "coordinator": {"url": "http://127.0.0.1:1", "audience": "here"},
        "datasets": [],
        "policy_bundles": ["policy"],
        "runtime": ["numpy"],
        "runtime_name": "python-torch",
        "wan_waiver": "demo",
    }
)


@pytest.fixture
def ring(tmp_path: Path) -> KeyRing:
    folder = tmp_path / "keys"
    folder.mkdir(mode=0o700)
    HospitalKey.create(folder / CURRENT)
    return KeyRing(folder)


def test_a_rotation_makes_a_new_key_current_and_keeps_the_old_one(ring: KeyRing) -> None:
    old, (old_id, old_path) = ring.current(), ring.enlist()
    new = ring.rotate()
    assert ring.current() == new != old
    assert HospitalKey.load(old_path) == old == HospitalKey.load(ring.path_of(old_id))
    assert ring.enlist() == (new.id, ring.path_of(new.id))
    assert {kept.id: kept.current for kept in ring} == {old_id: False, new.id: True}


def test_enlisting_twice_changes_nothing(ring: KeyRing) -> None:
    first = ring.enlist()
    before = first[1].stat()
    assert ring.enlist() == first and first[1].stat().st_mtime_ns == before.st_mtime_ns


def test_a_key_that_was_kept_outlives_the_file_it_was_copied_from(ring: KeyRing) -> None:
    key_id, path = ring.enlist()
    (ring.folder / CURRENT).write_bytes(os.urandom(32))  # as a careless restore does, in place
    assert HospitalKey.load(path).id == key_id == HospitalKey.load(ring.path_of(key_id)).id


def test_every_key_file_is_for_its_owner_only(ring: KeyRing) -> None:
    ring.rotate()
    assert (ring.folder / KEPT).stat().st_mode & 0o077 == 0
    files = [path for path in ring.folder.rglob("*") if path.is_file()]
    assert len(files) == 3 and all(path.stat().st_mode & 0o777 == 0o600 for path in files)
    assert not list(ring.folder.rglob("*.new"))


def _others_may_write(ring: KeyRing) -> None:
    ring.folder.chmod(0o777)


def _group_may_write(ring: KeyRing) -> None:
    ring.folder.chmod(0o770)


def _kept_folder_open(ring: KeyRing) -> None:
    ring.enlist()
    (ring.folder / KEPT).chmod(0o777)


def _kept_is_a_file(ring: KeyRing) -> None:
    (ring.folder / KEPT).write_text("")


def _kept_leads_nowhere(ring: KeyRing) -> None:
    (ring.folder / KEPT).symlink_to("nowhere")


def _empty_kept_folder_open(ring: KeyRing) -> None:
    (ring.folder / KEPT).mkdir()
    (ring.folder / KEPT).chmod(0o777)


def _open(ring: KeyRing) -> None:
    (ring.folder / CURRENT).chmod(0o644)


def _linked(ring: KeyRing) -> None:
    (ring.folder / CURRENT).rename(ring.folder / "real")
    (ring.folder / CURRENT).symlink_to(ring.folder / "real")


def _zeros(ring: KeyRing) -> None:
    (ring.folder / CURRENT).write_bytes(bytes(32))


def _gone(ring: KeyRing) -> None:
    (ring.folder / CURRENT).unlink()


def _folder_gone(ring: KeyRing) -> None:
    _gone(ring)
    ring.folder.rmdir()


KEPT_BROKEN = [_kept_folder_open, _kept_is_a_file, _kept_leads_nowhere, _empty_kept_folder_open]
BROKEN = [_others_may_write, _group_may_write, _open, _linked, _zeros, _gone, _folder_gone]


@pytest.mark.parametrize("spoil", [*BROKEN, *KEPT_BROKEN])
def test_an_unsafe_ring_gives_no_key_and_rotates_to_none(
    ring: KeyRing, spoil: Callable[[KeyRing], None]
) -> None:
    before = ring.current()
    spoil(ring)
    for use in (ring.enlist, ring.rotate, lambda: list(ring)):
        with pytest.raises(Refused) as refused:
            use()
        assert refused.value.code == "node.key_unsafe"
        assert before.secret.hex() not in str(refused.value)
    kept = ring.folder / KEPT
    assert spoil is not _empty_kept_folder_open or not list(kept.iterdir()), "no key where others may write"


@pytest.mark.parametrize("spoil", BROKEN)
def test_a_node_with_an_unsafe_key_does_not_start(tmp_path: Path, spoil: Callable[[KeyRing], None]) -> None:
    init(tmp_path / "node", CONFIG)
    keys = tmp_path / "node" / "keys"
    assert Keys.load(keys).phi.current()
    spoil(KeyRing(keys)) if spoil is not _folder_gone else _gone(KeyRing(keys))
    with pytest.raises(Refused, match=r"node\.key_unsafe"):
        Keys.load(keys)


def test_doctor_names_the_current_key_and_counts_the_older_ones(tmp_path: Path) -> None:
    init(tmp_path / "node", CONFIG)
    ring = KeyRing(tmp_path / "node" / "keys")
    first = ring.current()
    assert doctor._phi_keys(ring).startswith(first.id[:16]) and "0 older" in doctor._phi_keys(ring)
    ring.rotate()
    assert first.id[:16] not in doctor._phi_keys(ring) and "1 older" in doctor._phi_keys(ring)


@pytest.mark.parametrize("key_id", ["", "0" * 32, "../phi", "0" * 31, "0" * 33, "A" * 32, "\x00" * 32])
def test_an_id_that_names_no_key_refuses(ring: KeyRing, key_id: str) -> None:
    for _ in range(2):
        with pytest.raises(Refused, match=r"node\.key_unsafe"):
            ring.path_of(key_id)
        ring.enlist()


def test_a_kept_file_with_another_key_refuses(ring: KeyRing) -> None:
    key_id, path = ring.enlist()
    path.write_bytes(HospitalKey.generate().secret)
    with pytest.raises(Refused, match=r"node\.key_unsafe"):
        ring.path_of(key_id)
    with pytest.raises(Refused, match=r"node\.key_unsafe"):
        ring.rotate()


def test_a_full_disk_leaves_the_old_key_current(ring: KeyRing, monkeypatch: pytest.MonkeyPatch) -> None:
    before = ring.current()

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    for use in (ring.enlist, ring.rotate):
        with pytest.raises(Refused, match=r"node\.disk_full"):
            use()
    monkeypatch.undo()
    assert ring.current() == before != ring.rotate()


STEPS = [
    (step, n)
    for step, calls in (("unlink", 2), ("write_private", 2), ("replace", 2), ("fsync", 4))
    for n in range(calls)
]
KILLED = """
import os, signal, sys
from pathlib import Path
from rapha.node.datasets import keys
step, count = sys.argv[2], int(sys.argv[3])
calls = 0
def killing(real):
    def call(*args, **options):
        global calls
        calls += 1
        if calls > count:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **options)
    return call
if step == "write_private":
    keys.write_private = killing(keys.write_private)
elif step == "fsync":
    os.fsync = killing(os.fsync)
else:
    setattr(Path, step, killing(getattr(Path, step)))
keys.KeyRing(Path(sys.argv[1])).rotate()
"""


@pytest.mark.parametrize(("step", "count"), STEPS)
def test_a_rotation_killed_anywhere_leaves_a_whole_current_key(ring: KeyRing, step: str, count: int) -> None:
    before, (before_id, _) = ring.current(), ring.enlist()
    argv = [sys.executable, "-c", KILLED, str(ring.folder), step, str(count)]
    status = subprocess.run(argv, check=False, timeout=60).returncode
    assert status == -signal.SIGKILL
    current = ring.current()
    assert HospitalKey.load(ring.path_of(before_id)) == before, "old jobs stay verifiable"
    assert current == before or ring.path_of(current.id), "a key that is current is also kept"
    after = ring.rotate()
    assert ring.current() == after != current
    assert not list(ring.folder.rglob("*.new")), "what the killed one left is cleared away"


def _meter(path: Path, key: HospitalKey, job: str) -> str:
    """A job whose process dies after it used some records: the used root at that moment."""
    patients = np.arange(50, dtype=np.int64)
    split = make_splits({"train": np.arange(40), "test": np.arange(40, 50)}, patients)["train"]
    meter = Meter.create(path, patients=patients, cap=50, key=key.derive("meter", job))
    meter.register(split)
    meter.take(np.array([3, 1, 4]), Descriptor(split.code, shuffle=False, batch_size=3))
    root = meter.usage().used_root
    meter.close()
    return root


def test_a_job_of_an_older_key_recovers_and_new_jobs_get_the_new_key(ring: KeyRing, tmp_path: Path) -> None:
    journal, names = tmp_path / "job.journal", ["p1", "p2"]
    key_id, path = ring.enlist()
    root = _meter(journal, HospitalKey.load(path), "job-a")
    old = HospitalKey.load(path).pseudonyms("job-a", "PatientID", names)
    ring.rotate()
    patients: Any = np.arange(50, dtype=np.int64)
    mine = HospitalKey.load(ring.path_of(key_id))
    recovered = Meter.recover(journal, patients=patients, key=mine.derive("meter", "job-a"))
    assert recovered.usage().used_root == root and recovered.usage().unique_records == 3
    recovered.close()
    assert Meter.root_of(journal, mine.derive("meter", "job-a")) == (root, 3)
    assert np.array_equal(mine.pseudonyms("job-a", "PatientID", names), old)

    fresh = HospitalKey.load(ring.enlist()[1])
    assert fresh == ring.current() != mine
    assert not np.any(np.all(fresh.pseudonyms("job-a", "PatientID", names) == old, axis=1))
    with pytest.raises(Refused, match=r"node\.journal_invalid"):
        Meter.recover(journal, patients=patients, key=fresh.derive("meter", "job-a"))
