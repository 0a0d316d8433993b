"""The guard's own findings. They stay in the hospital: what leaves is only `job.outputs`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class CheckText:
    """One numbered check: its id, and what a pass does not show."""

    id: str
    does_not_show: str


CHECKS: Final[dict[int, CheckText]] = {
    1: CheckText("files", "what the files hold"),
    2: CheckText("format", "what the values encode"),
    3: CheckText("values", "that values in range carry no data; a network can be taught to recite"),
    4: CheckText("transform", "that sign-encoded or learned payloads are gone; only low bits are destroyed"),
    5: CheckText("rebuild", "anything about the values; it only leaves no byte outside them"),
    6: CheckText("metrics", "that self-reported values are true; trusted ones are computed by the node"),
    7: CheckText("tripwires", "that nothing is hidden; a pass is not evidence"),
}

CODES: Final[dict[str, tuple[int, str]]] = {
    "guard.directory": (1, "the output folder can't be read"),
    "guard.memory": (1, "the planned sizes don't fit in the memory that the guard has"),
    "guard.time": (1, "the guard's process was not done in time"),
    "guard.died": (1, "the guard's process ended without a report that can be believed"),
    "guard.sandbox": (1, "the guard's sandbox can't be built"),
    "guard.extra_file": (1, "an entry is not in the plan"),
    "guard.missing_file": (1, "a planned file is missing"),
    "guard.not_regular": (1, "an entry is not a plain file"),
    "guard.unreadable": (1, "a file can't be read"),
    "guard.links": (1, "a file has more than one link"),
    "guard.xattr": (1, "a file has extended attributes"),
    "guard.sparse": (1, "a file has holes"),
    "guard.file_size": (1, "a file's size is not what the plan implies"),
    "guard.changed": (1, "a file changed while it was read"),
    "guard.header": (2, "the safetensors header is malformed"),
    "guard.metadata": (2, "the safetensors header has metadata"),
    "guard.names": (2, "the tensors are not those planned"),
    "guard.dtype": (2, "a tensor's dtype is not the planned one"),
    "guard.shape": (2, "a tensor's shape is not the planned one"),
    "guard.order": (2, "the tensors are in no planned order"),
    "guard.offsets": (2, "tensor data overlaps, leaves a gap or has a wrong length"),
    "guard.coverage": (2, "the data is cut short or goes on after the last tensor"),
    "guard.not_finite": (3, "a tensor has a NaN or an infinity"),
    "guard.boolean": (3, "a BOOL tensor has a byte other than 0 and 1"),
    "guard.rebuild": (5, "the rebuilt file does not read back as planned"),
    "guard.out": (5, "the rebuilt files can't be written"),
    "guard.report_json": (6, "the self-reported file is not one strict JSON object"),
    "guard.report_fields": (6, "the self-reported fields are not those planned"),
    "guard.report_type": (6, "a self-reported value has a wrong type"),
    "guard.polyglot": (7, "a file also reads as another format"),
    "guard.entropy": (7, "a tensor's exponents look random"),
}
UNDECIDED: Final = frozenset(
    {"guard.directory", "guard.memory", "guard.out", "guard.time", "guard.died", "guard.sandbox"}
)
"""The guard's surroundings failed, not the files: it could not find out, which is a no."""


class Finding(Exception):  # noqa: N818  a verdict, not a defect
    """A check's no. `Finding(code, reason)`; the code says which check it belongs to."""

    def __init__(self, code: str, reason: str = "") -> None:
        self.n, meaning = CODES[code]
        self.code = code
        self.reason = f"{code}: {reason or meaning}"
        super().__init__(self.reason)
