"""What stored values mean: modality values in their unit, or colour from 0 to 255.

- The modality transform is always applied: rescale slope and intercept, of the frame itself where the image
  is multi-frame, or the Modality LUT (PS3.3, C.11.1). So CT comes in HU and PT as rescaled activity (mostly
  Bq/ml; no SUV, which needs weight and dose).
- CT and PT with half a rescale are refused. Without any, though their images require one (PS3.3, C.8.2.1 and
  C.8.9.4), stored values are taken for the values, as other readers do; their unit is then unknown.
- A padding value goes through it like any other.
- MONOCHROME1 is turned over within its stored range (or that of its Modality LUT), so that more is brighter
  everywhere; but not in CT and PT, whose values are quantities, however they are to be shown.
- Colour is what the code stream says it is, where that says it (JPEG 2000's component transform; of lossy
  JPEG, Adobe's marker or JFIF); else what Photometric Interpretation says. Cameras' JPEGs get wrapped as RGB.
- Windows and other VOI transforms are for the job to declare, not for the file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from rapha.node.sources.imaging.codecs import Colour
from rapha.node.sources.imaging.elements import Elements
from rapha.node.sources.imaging.fragments import broken
from rapha.node.sources.imaging.groups import numbers
from rapha.node.sources.imaging.image import Image, Stored
from rapha.node.sources.imaging.tags import Tag
from rapha.node.sources.interface import Quarantine
from rapha.node.sources.workers.interface import Unusable
from rapha.runtime.casting import cast

Array = NDArray[Any]
Channels = Literal[1, 3]
QUANTITIES: Final = frozenset({"CT", "PT"})
"""Modalities whose values are measurements."""
_SPACES: Final[dict[str, Colour]] = {"RGB": "RGB", "YBR_FULL": "YBR", "YBR_FULL_422": "YBR"}
_LUMINANCE: Final = np.array([0.299, 0.587, 0.114])
"""ITU-R BT.601, as YBR_FULL is defined (PS3.3, C.7.6.3.1.2)."""


@dataclass(frozen=True, slots=True)
class _Table:
    """A look-up table: the entry for a stored value `v` is `entries[v - first]`, held at both ends."""

    first: int
    entries: Array
    bits: int

    def of(self, stored: Array) -> Array:
        index = np.clip(stored.astype(np.int64) - self.first, 0, len(self.entries) - 1)
        return self.entries[index]


def values(image: Image, frame: int, dtype: str, channels: Channels) -> Array:
    """One frame as `dtype`: [rows, columns], or [rows, columns, 3] where `channels` is 3.

    Colour becomes luminance where one channel is asked for; grey becomes three equal channels where three
    are. Values that `dtype` can't hold are rounded and saturate.

    Raises:
        Unusable: CHANGED, PIXELS_INVALID, PHOTOMETRIC_UNSUPPORTED, FILE_INVALID, VALUE_MISSING,
            VALUE_NOT_FINITE.
    """
    stored = image.stored(frame)
    if image.photometric in ("MONOCHROME1", "MONOCHROME2"):
        if image.layout.samples != 1:
            broken()
        grey = _grey(image, frame, stored.samples[..., 0], dtype)
        return grey if channels == 1 else np.repeat(grey[..., np.newaxis], 3, axis=2)
    colour = _colour(image, stored)
    if channels == 3:
        return cast(colour, dtype)
    return cast(colour @ _LUMINANCE, dtype)


def _grey(image: Image, frame: int, samples: Array, dtype: str) -> Array:
    if samples.dtype.kind == "f":
        if image.photometric != "MONOCHROME2":
            raise Unusable(Quarantine.PHOTOMETRIC_UNSUPPORTED)
        if not np.isfinite(samples).all():
            raise Unusable(Quarantine.VALUE_NOT_FINITE)
    turned = image.photometric == "MONOCHROME1" and image.elements.text(Tag.MODALITY) not in QUANTITIES
    if image.elements.items(Tag.MODALITY_TABLE):
        if samples.dtype.kind == "f":
            broken()
        item = image.elements.item(Tag.MODALITY_TABLE)
        table = _table(item, Tag.TABLE_DESCRIPTOR, Tag.TABLE_DATA, image.layout.signed)
        found = table.of(samples)
        return cast(found ^ ((1 << table.bits) - 1) if turned else found, dtype)
    if turned:
        samples = ~samples if image.layout.signed else samples ^ ((1 << image.layout.stored) - 1)
    slope, intercept = _rescale(image.elements, frame)
    return _rescaled(samples, slope, intercept, dtype)


def _rescale(elements: Elements, frame: int) -> tuple[float, float]:
    slope = numbers(elements, frame, Tag.VALUE_TRANSFORMATIONS, Tag.SLOPE)
    intercept = numbers(elements, frame, Tag.VALUE_TRANSFORMATIONS, Tag.INTERCEPT)
    if bool(slope) != bool(intercept) and elements.text(Tag.MODALITY) in QUANTITIES:
        # Half a transform is none; without any, stored values are what every reader takes them for (C.11.1).
        raise Unusable(Quarantine.VALUE_MISSING)
    slope, intercept = slope or (1.0,), intercept or (0.0,)
    if len(slope) != 1 or len(intercept) != 1 or slope[0] == 0:
        broken()
    return slope[0], intercept[0]


def _rescaled(samples: Array, slope: float, intercept: float, dtype: str) -> Array:
    """In whole numbers where both allow it, which is exact and three times as fast; else in float64."""
    if slope == 1 and intercept == 0:
        return cast(samples, dtype)
    if slope == 1 and intercept.is_integer() and abs(intercept) < 2**23 and samples.dtype.itemsize <= 2:
        target = np.dtype(dtype)
        exact = target.name in ("float32", "float64", "int32", "int64")
        shifted: Array = np.add(samples, np.int32(intercept), dtype=target if exact else np.dtype(np.int32))
        return cast(shifted, dtype)
    with np.errstate(over="ignore"):
        result = np.multiply(samples, slope, dtype=np.float64)
        result += intercept
    if not math.isfinite(float(result.min())) or not math.isfinite(float(result.max())):
        raise Unusable(Quarantine.VALUE_NOT_FINITE)
    return cast(result, dtype)


def _colour(image: Image, stored: Stored) -> NDArray[np.uint8]:
    """RGB, 0 to 255."""
    samples, photometric = stored.samples, image.photometric
    if photometric == "PALETTE COLOR" and image.layout.samples == 1 and samples.dtype.kind != "f":
        return _palette(image, samples[..., 0])
    if image.layout.samples != 3:
        raise Unusable(Quarantine.PHOTOMETRIC_UNSUPPORTED)
    space = stored.colour or _SPACES.get(photometric)
    if space == "RGB":
        return _eight_bits(samples, image.layout.stored)
    if space != "YBR":
        raise Unusable(Quarantine.PHOTOMETRIC_UNSUPPORTED)
    return _from_ybr(_eight_bits(samples, image.layout.stored))


def _eight_bits(samples: Array, stored: int) -> NDArray[np.uint8]:
    """The most significant 8 of `stored` bits."""
    return (samples >> (stored - 8) if stored > 8 else samples).astype(np.uint8)


def _from_ybr(samples: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """PS3.3, C.7.6.3.1.2, solved for RGB."""
    ybr = samples.astype(np.float32)
    y, blue, red = ybr[..., 0], ybr[..., 1] - 128, ybr[..., 2] - 128
    rgb = np.stack([y + 1.402 * red, y - 0.344136 * blue - 0.714136 * red, y + 1.772 * blue], axis=-1)
    result: NDArray[np.uint8] = cast(rgb, "uint8")
    return result


def _palette(image: Image, samples: Array) -> NDArray[np.uint8]:
    """PS3.3, C.7.6.3.1.5 and 6; segmented palettes are not read."""
    tags = (
        (Tag.RED_DESCRIPTOR, Tag.RED_TABLE),
        (Tag.GREEN_DESCRIPTOR, Tag.GREEN_TABLE),
        (Tag.BLUE_DESCRIPTOR, Tag.BLUE_TABLE),
    )
    if not all(table in image.elements for _, table in tags):
        raise Unusable(Quarantine.PHOTOMETRIC_UNSUPPORTED)
    tables = [_table(image.elements, *pair, image.layout.signed) for pair in tags]
    if len({(table.first, len(table.entries), table.bits) for table in tables}) != 1:
        broken()
    return np.stack([_eight_bits(table.of(samples), table.bits) for table in tables], axis=-1)


def _table(elements: Elements, descriptor: Tag, data: Tag, signed: bool) -> _Table:
    order = elements.coding.order
    numbers_ = np.frombuffer(elements.raw(descriptor).ljust(6, b"\0")[:6], f"{order}u2")
    entries, bits = int(numbers_[0]) or 2**16, int(numbers_[2])
    first = int(numbers_[1].astype(np.int16)) if signed else int(numbers_[1])
    raw = elements.raw(data)
    if len(elements.raw(descriptor)) != 6 or not 8 <= bits <= 16:
        broken()
    if len(raw) == 2 * entries:
        found: Array = np.frombuffer(raw, f"{order}u2").astype(np.uint16, copy=False)
    elif bits == 8 and len(raw) == entries + entries % 2:
        words = np.frombuffer(raw, f"{order}u2").astype("<u2", copy=False)
        found = words.view(np.uint8)[:entries]
    else:
        broken()
    return _Table(first, found, bits)
