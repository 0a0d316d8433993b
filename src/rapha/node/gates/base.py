"""The model that a job brings: found in the image by its signed digest, and shown to the job's code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from rapha.runtime.base_model import find_in
from rapha.runtime.image import Image
from rapha.spec.job import Job

SHOWN: Final = "base.safetensors"
"""Below /rapha/in, read-only, in every run of a job that names a base."""
WEIGHTS: Final = "model.safetensors"
"""Below /rapha/in/released, for `predict`: what is measured has one place, whoever made it."""


def base_of(job: Job, image: Image) -> Path | None:
    """The file below /app that the job names as its base model; None where it names none.

    Raises:
        Refused: `image.base_missing`, `image.base_invalid`.
    """
    if job.model.base is None:
        return None
    return find_in(image.files, job.model.base)


def as_released(base: Path, work: Path) -> Path:
    """A new folder below `work` that shows `base` as `predict` finds released weights.

    By a link to the very file that was hashed: `work` holds the unpacked image too, and only the node
    writes there.
    """
    folder = work / "base"
    folder.mkdir()
    folder.chmod(0o755)  # whatever the node's umask: the job reads it as somebody else
    os.link(base, folder / WEIGHTS, follow_symlinks=False)
    return folder
