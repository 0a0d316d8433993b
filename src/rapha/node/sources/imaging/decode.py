"""The decoding task of a worker: stored bytes in, final tensors out.

First a record is decoded, with nothing of the job in it; what fails there is that record's own. Then come the
job's steps. A record's renders are written into `out` one after the other, C-contiguous; the reply is the
SHA-256 of the stored bytes, of all files in their order. Each file is read once, so the digest is of the very
bytes that were decoded.

A field's own shape says what it takes: [rows, columns] one channel; with an axis of 1 or 3 last, or else
first, that many channels there. A series has [slices, rows, columns] in their place.
"""

from __future__ import annotations

import ctypes
import hashlib
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from rapha.node.sources.imaging import codecs, volume
from rapha.node.sources.imaging.image import Image
from rapha.node.sources.imaging.order import (
    WHATS,
    Args,
    Expect,
    RenderOrder,
    Setup,
    decode_args,
    decode_setup,
)
from rapha.node.sources.imaging.pixels import Channels, values
from rapha.node.sources.interface import Quarantine
from rapha.node.sources.workers.interface import InParts, Unusable, Work
from rapha.runtime.casting import cast
from rapha.runtime.transforms import apply_one

MAX_FILE_BYTES: Final = 2**31
"""Of a file; bytes that are in memory already have passed their own limit."""
MAX_VOLUME_BYTES: Final = 2**29
"""Of one series before its transforms."""

_M_MMAP_THRESHOLD: Final = -3
_M_TRIM_THRESHOLD: Final = -1
"""Of mallopt(3)."""
_KEPT_BYTES: Final = 2**26

Array = NDArray[Any]


def make(setup: bytes) -> Work:
    """The work of one worker. Every decoder is imported here: later there may be no opening of files."""
    codecs.load()
    _keep_freed_memory()
    return Decoder(decode_setup(setup))


def _keep_freed_memory() -> None:
    """Have the allocator use the same pages for every image.

    By default glibc gives arrays of this size back to the kernel and asks for new ones, and clearing those
    takes longer than decoding. Other C libraries have no such switch and need none.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES // 2)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


@dataclass(frozen=True, slots=True)
class _File:
    """A stored file, read and opened. `key` tells it from others without reading it, where that can be."""

    key: tuple[int, ...]
    digest: bytes
    image: Image


class Decoder(InParts):
    """Renders records as `setup` says; called with one item at a time.

    It keeps the last multi-frame file open: its frames are mostly asked for one after the other.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._sizes = [order.after.nbytes for order in setup.renders]
        self._axes = [_Axes.of(order, 3 if setup.record == "series" else 2) for order in setup.renders]
        self._last: _File | None = None
        if any(order.what not in WHATS[setup.record] for order in setup.renders):
            raise ValueError(f"a {setup.record} record has none of that to render")

    def begin(self, args: bytes, stored: Sequence[BinaryIO], out: memoryview) -> Callable[[], bytes]:
        """As `InParts`: decode, all renders of it; what it returns applies the steps.

        Raises:
            Unusable: with the reason why this record can't be rendered.
            ValueError: the item doesn't fit the task.
        """
        item = decode_args(args)
        wanted = {"frame": 1, "pet-ct": 2}.get(self._setup.record, max(1, len(item.expect)))
        if len(item.expect) != wanted or len(stored) != wanted or len(out) < sum(self._sizes):
            raise ValueError("the item doesn't fit the task")
        try:
            digest, decoded = self._record(item, stored)
        except MemoryError:
            raise Unusable(Quarantine.TOO_LARGE) from None

        def finish() -> bytes:
            at = 0
            for axes, size in zip(self._axes, self._sizes, strict=True):
                value = axes.finished(decoded.pop(0))
                np.frombuffer(out, np.uint8)[at : at + size] = value.reshape(-1).view(np.uint8)
                at += size
            return digest

        return finish

    def _record(self, item: Args, stored: Sequence[BinaryIO]) -> tuple[bytes, list[Array]]:
        match self._setup.record:
            case "frame":
                file = self._file(stored[0], item.expect[0])
                return file.digest, self._each(lambda axes: axes.frame(file.image, item.frame))
            case "series":
                return self._series(item, stored)
            case "pet-ct":
                return self._pair(item, stored)

    def _each(self, render: Callable[[_Axes], Array]) -> list[Array]:
        return [axes.checked(render(axes)) for axes in self._axes]

    def _file(self, stored: BinaryIO, expect: Expect) -> _File:
        key, file = _key(stored), self._last
        if file is None or not key or file.key != key:
            self._last = file = None  # there may be no room for two
            data = _read(stored)
            file = _File(key, hashlib.sha256(data).digest(), Image(data))
        self._last = file if file.image.frames > 1 else None
        _is(file.image, expect)
        return file

    def _series(self, item: Args, stored: Sequence[BinaryIO]) -> tuple[bytes, list[Array]]:
        digest, ranks, stacks = self._stacked(item, stored)  # the files are out of memory again
        return digest, [stack.axes.checked(stack.ordered(ranks)) for stack in stacks]

    def _stacked(self, item: Args, stored: Sequence[BinaryIO]) -> tuple[bytes, list[int], list[_Stack]]:
        digest = hashlib.sha256()
        stacks = [_Stack(axes) for axes in self._axes]
        planes: list[volume.Plane | None] = []
        for one, expect in zip(stored, item.expect, strict=True):
            data = _read(one)
            digest.update(data)
            image = Image(data)
            _is(image, expect)
            if len(stored) > 1 and (image.frames != 1 or volume.plane_of(image, 0) is None):
                volume.geometry()
            for frame in range(image.frames):
                planes.append(volume.plane_of(image, frame))
                for stack in stacks:
                    stack.add(image, frame, max(len(stored), image.frames))
        return digest.digest(), volume.order(planes), stacks

    def _pair(self, item: Args, stored: Sequence[BinaryIO]) -> tuple[bytes, list[Array]]:
        data = [_read(one) for one in stored]
        pet, ct = images = [Image(one) for one in data]
        for image, expect in zip(images, item.expect, strict=True):
            _is(image, expect)
        on, off = volume.plane_of(pet, 0), volume.plane_of(ct, 0)
        if on is None or off is None:
            volume.geometry()

        def render(axes: _Axes) -> Array:
            if axes.order.what == "pet":
                return axes.frame(pet, 0)
            hu = volume.onto(on, (pet.layout.rows, pet.layout.columns), off, values(ct, 0, "float32", 1))
            return axes.with_channels(hu)

        return hashlib.sha256(b"".join(data)).digest(), self._each(render)


@dataclass(frozen=True, slots=True)
class _Axes:
    """How one render's axes are laid out: `channel` is its channels' axis, None where it has none."""

    order: RenderOrder
    channels: Channels
    channel: int | None

    @classmethod
    def of(cls, order: RenderOrder, spatial: int) -> _Axes:
        """Raises ValueError where the field's shape is none that an image can have."""
        shape = order.before.shape
        if len(shape) == spatial and not order.before.ragged:
            return cls(order, 1, None)
        channel = -1 if shape and shape[-1] in (1, 3) else 0
        if len(shape) != spatial + 1 or shape[channel] not in (1, 3) or order.before.ragged:
            raise ValueError(f"{order.field}: no image has the shape {shape}")
        return cls(order, 3 if shape[channel] == 3 else 1, channel)

    def frame(self, image: Image, frame: int) -> Array:
        """One frame, laid out."""
        return self.arranged(values(image, frame, self.order.before.dtype, self.channels))

    def arranged(self, value: Array) -> Array:
        """`value` has its channels last, or none where there is one."""
        if self.channel is None:
            return value
        return (
            np.moveaxis(value, -1, self.channel)
            if self.channels == 3
            else np.expand_dims(value, self.channel)
        )

    def with_channels(self, value: Array) -> Array:
        """A single channel, repeated if more are wanted."""
        return self.arranged(value if self.channels == 1 else np.repeat(value[..., np.newaxis], 3, axis=-1))

    def checked(self, value: Array) -> Array:
        """As the field promises it. Raises Unusable: SHAPE where it has another shape."""
        shape = self.order.before.shape
        if any(b not in (0, a) for a, b in zip(value.shape, shape, strict=True)):
            raise Unusable(Quarantine.SHAPE)
        return cast(value, self.order.before.dtype)

    def finished(self, value: Array) -> Array:
        """After the job's steps."""
        return apply_one(value, self.order.before, self.order.steps)


class _Stack:
    """A series' frames for one render, as they come."""

    def __init__(self, axes: _Axes) -> None:
        self.axes = axes
        self._frames: Array | None = None
        self._count = 0

    def add(self, image: Image, frame: int, total: int) -> None:
        """Raises Unusable: SHAPE where it isn't as large as the first, TOO_LARGE."""
        value = values(image, frame, self.axes.order.before.dtype, self.axes.channels)
        if self._frames is None:
            if total * value.nbytes > MAX_VOLUME_BYTES:
                raise Unusable(Quarantine.TOO_LARGE)
            self._frames = np.empty((total, *value.shape), value.dtype)
        if value.shape != self._frames.shape[1:]:
            raise Unusable(Quarantine.SHAPE)
        self._frames[self._count] = value
        self._count += 1

    def ordered(self, ranks: Sequence[int]) -> Array:
        """All frames in that order, laid out, and no longer here. Precondition: as many as announced came."""
        frames, self._frames = self._frames, None
        if frames is None or self._count != len(frames):
            raise ValueError("a stack is not complete")
        sorted_ = list(ranks) == list(range(self._count))
        return self.axes.arranged(frames if sorted_ else frames[list(ranks)])


def _read(stored: BinaryIO) -> bytes:
    """All of it; of a file, what it held when it was opened, and so no more than was reckoned with."""
    status = _status(stored)
    if status is None:
        return stored.read()
    if status.st_size > MAX_FILE_BYTES:
        raise Unusable(Quarantine.TOO_LARGE)
    return stored.read(status.st_size)


def _is(image: Image, expect: Expect) -> None:
    """The file is still of the image and patient that were indexed, consented and counted."""
    if (image.sop_uid, image.patient_id) != (expect.sop_uid, expect.patient_id):
        raise Unusable(Quarantine.CHANGED)


def _key(stored: BinaryIO) -> tuple[int, ...]:
    """Which file this is and which state of it; () where it is no file."""
    status = _status(stored)
    if status is None:
        return ()
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _status(stored: BinaryIO) -> os.stat_result | None:
    try:
        return os.fstat(stored.fileno())
    except io.UnsupportedOperation:
        return None
