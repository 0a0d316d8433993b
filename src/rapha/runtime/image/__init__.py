"""OCI images of jobs: built the same everywhere, read as hostile input."""

from rapha.runtime.image.build import build, pack
from rapha.runtime.image.model import DEFAULT_LIMITS, Image, Limits
from rapha.runtime.image.reader import read
from rapha.runtime.image.unpack import unpack

__all__ = ["DEFAULT_LIMITS", "Image", "Limits", "build", "pack", "read", "unpack"]
