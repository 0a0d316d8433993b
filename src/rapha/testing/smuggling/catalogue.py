"""Every encoder by name, and what the guard must do with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

import numpy as np

from rapha.testing.smuggling import containers, learned, values
from rapha.testing.smuggling.trial import Attempt, Release

Make = Callable[[Release, np.random.Generator], Attempt | None]
"""An attempt, or None where the release has no such place."""
Fate = Literal["refused", "nothing", "bounded"]
"""What the guard must do: refuse it, let nothing of it through, or let through no more than is stated."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """A way to smuggle."""

    name: str
    fate: Fate
    make: Make

    @property
    def about(self) -> str:
        """What it does, in a line."""
        function = self.make.func if isinstance(self.make, partial) else self.make
        return (function.__doc__ or "").splitlines()[0]


ENCODERS: Final = (
    *(
        Encoder(f"low-bit.{depth}", "bounded", partial(values.low_bits, depth=depth))
        for depth in (4, 8, 16, 23)
    ),
    Encoder("sign", "bounded", values.sign),
    Encoder("exponent", "bounded", values.exponent),
    Encoder("all-bits", "bounded", values.all_bits),
    Encoder("amplitude", "bounded", values.amplitude),
    Encoder("scale-channel", "bounded", values.scales),
    Encoder("negative-zero", "nothing", values.negative_zero),
    Encoder("subnormal", "bounded", values.subnormal),
    Encoder("out-of-range", "nothing", values.out_of_range),
    Encoder("integer", "bounded", values.integers),
    Encoder("spread-spectrum", "bounded", values.spread_spectrum),
    Encoder("correlated-value", "bounded", learned.correlated),
    Encoder("capacity-abuse", "bounded", learned.capacity_abuse),
    Encoder("transposed-model", "bounded", learned.transposed_model),
    Encoder("permutation", "bounded", learned.permutation),
    Encoder("self-reported", "bounded", containers.reported_value),
    Encoder("self-reported-form", "nothing", containers.reported_form),
    Encoder("tensor-order", "nothing", containers.tensor_order),
    Encoder("header-style", "nothing", containers.header_style),
    Encoder("file-times", "nothing", containers.file_times),
    Encoder("extra-tensor", "refused", containers.extra_tensor),
    Encoder("metadata", "refused", containers.metadata),
    Encoder("header-field", "refused", containers.header_field),
    Encoder("header-twice", "refused", containers.header_twice),
    Encoder("header-space", "refused", containers.header_space),
    Encoder("header-escape", "refused", containers.header_escape),
    Encoder("name-case", "refused", containers.name_case),
    Encoder("padding", "refused", containers.padding),
    Encoder("gap", "refused", containers.gap),
    Encoder("shape", "refused", containers.shape),
    Encoder("nan-payload", "refused", containers.nan_payload),
    Encoder("boolean", "refused", containers.boolean),
    Encoder("extra-file", "refused", containers.extra_file),
    Encoder("attribute", "refused", containers.attribute),
    Encoder("hole", "refused", containers.hole),
    Encoder("second-link", "refused", containers.second_link),
    Encoder("zip-archive", "refused", containers.zip_archive),
)
