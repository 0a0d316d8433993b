"""Records in encrypted files: AES-256-GCM under a key that this process alone holds, so its end shreds them.

The file has no name from the moment it is made. What the key and the additional data bind: a ciphertext
decrypts only in this process, as this field of this record, and only the version written last (the nonces
are kept in memory, so an older copy of the same record does not verify either).
"""

from __future__ import annotations

import errno
import os
import secrets
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any, Final

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray

from rapha.runtime.broker.memory import anonymous, wipe
from rapha.spec.refusals import Refused

KEY_BYTES: Final = 32
TAG_BYTES: Final = 16
_NEVER: Final = 2**64 - 1
"""The nonce of what was never written."""
_SLOT_BYTES: Final = 256
"""About what it costs to know where in the cache a record is; more than a small record itself."""


class Sealer:
    """One random key, and a counter for its nonces: 96 bits, of which 2^64 - 1 values are ever used."""

    def __init__(self) -> None:
        self._cipher = AESGCM(os.urandom(KEY_BYTES))
        self._id = os.urandom(16)
        self._used = 0

    def seal(self, field: int, ordinal: int, value: memoryview, into: memoryview) -> int:
        """Encrypt `value` into `into`, `TAG_BYTES` longer; returns the number of the nonce."""
        number, self._used = self._used, self._used + 1
        if number >= _NEVER:
            raise Refused("node.internal", "the key of the shards is used up")
        self._cipher.encrypt_into(self._nonce(number), value, self._about(field, ordinal), into)
        return number

    def open(self, number: int, field: int, ordinal: int, sealed: memoryview, into: memoryview) -> None:
        """Decrypt into `into`, `TAG_BYTES` shorter.

        Raises:
            Refused: `node.internal` where it isn't what was sealed for this place under this number.
        """
        try:
            self._cipher.decrypt_into(self._nonce(number), sealed, self._about(field, ordinal), into)
        except InvalidTag:
            raise Refused("node.internal", "an encrypted record does not verify") from None

    def _nonce(self, number: int) -> bytes:
        return number.to_bytes(12, "big")

    def _about(self, field: int, ordinal: int) -> bytes:
        return struct.pack("<16sIQ", self._id, field, ordinal)


class ShardColumn:
    """One field of every record, encrypted record by record in a file, the recent ones in memory too.

    Args:
        number: of the field, under which its records are bound.
        record_bytes: of one record, at least 1.
        folder: where the file is made, readable by its owner alone.
        cache_bytes: of decrypted records, at least one of which is held whatever this says.

    Raises:
        Refused: `node.disk_full`; `node.internal` for a folder that can't hold the file, or where there is
            no room in memory.
    """

    def __init__(
        self, sealer: Sealer, number: int, *, record_bytes: int, records: int, folder: Path, cache_bytes: int
    ) -> None:
        self._sealer, self._number = sealer, number
        self._bytes = record_bytes
        self._step = self._bytes + TAG_BYTES
        self._nonces = np.full(records, _NEVER, dtype=np.uint64)
        self._sealed = bytearray(self._step)
        slots = max(1, min(records, cache_bytes // (self._bytes + _SLOT_BYTES)))
        try:
            self._memory = anonymous(slots * self._bytes)
        except MemoryError:
            raise Refused("node.internal", "no memory for the cache of the encrypted shards") from None
        self._cache = np.frombuffer(self._memory, np.uint8)[: slots * self._bytes].reshape(slots, self._bytes)
        self._held: OrderedDict[int, int] = OrderedDict()
        self._free = list(range(slots))
        self._fd = _unnamed(folder, records * self._step)

    def put(self, ordinal: int, value: memoryview) -> None:
        """Encrypt and write one record. Raises `Refused` (`node.disk_full`)."""
        sealed = memoryview(self._sealed)
        self._nonces[ordinal] = self._sealer.seal(self._number, ordinal, value, sealed)
        if ordinal in self._held:
            self._free.append(self._held.pop(ordinal))
        _write(self._fd, sealed, ordinal * self._step)

    @property
    def missing(self) -> NDArray[np.bool_]:
        """bool[records]: never put."""
        return np.equal(self._nonces, np.uint64(_NEVER), dtype=np.bool_)

    def gather(self, ordinals: NDArray[np.int64], out: NDArray[Any]) -> None:
        """Copy records into `out`. Raises `Refused` (`node.internal`) where a shard does not verify."""
        rows = out.view(np.uint8).reshape(len(ordinals), self._bytes)
        for row, ordinal in zip(rows, ordinals.tolist(), strict=True):
            row[:] = self._cache[self._slot(ordinal)]

    def close(self) -> None:
        """Wipe what is decrypted; the file goes with its descriptor. Idempotent."""
        wipe(self._memory)
        self._held.clear()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _slot(self, ordinal: int) -> int:
        """Where in the cache the record is, decrypted now if it wasn't there."""
        slot = self._held.get(ordinal)
        if slot is not None:
            self._held.move_to_end(ordinal)
            return slot
        if not self._free:
            self._free.append(self._held.popitem(last=False)[1])
        self._decrypt(ordinal, memoryview(self._cache[self._free[-1]]))
        self._held[ordinal] = slot = self._free.pop()
        return slot

    def _decrypt(self, ordinal: int, into: memoryview) -> None:
        sealed = memoryview(self._sealed)
        if os.preadv(self._fd, [sealed], ordinal * self._step) != self._step:
            raise Refused("node.internal", "an encrypted record is cut short")
        self._sealer.open(int(self._nonces[ordinal]), self._number, ordinal, sealed, into)


def _unnamed(folder: Path, size: int) -> int:
    """A file of `size` bytes that only this descriptor leads to; its room is taken now."""
    flags = os.O_RDWR | os.O_CLOEXEC
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        try:
            fd = os.open(folder, flags | os.O_TMPFILE, 0o600)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR):
                raise
            path = folder / f"shard-{secrets.token_hex(8)}"
            fd = os.open(path, flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            path.unlink()
        try:
            os.posix_fallocate(fd, 0, max(size, 1))
        except BaseException:
            os.close(fd)
            raise
    except OSError as error:
        raise _refusal(error) from None
    return fd


def _write(fd: int, data: memoryview, offset: int) -> None:
    try:
        while data:
            written = os.pwrite(fd, data, offset)
            data, offset = data[written:], offset + written
    except OSError as error:
        raise _refusal(error) from None


def _refusal(error: OSError) -> Refused:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return Refused("node.disk_full", "there is no room for the encrypted shards")
    return Refused("node.internal", f"the folder for encrypted shards: {error.strerror}")
