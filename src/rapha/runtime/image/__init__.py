"""OCI images of jobs: built the same everywhere, read as hostile input."""

from rapha.runtime.image.build import build, build_full, pack
from rapha.runtime.image.model import (
    DEFAULT_LIMITS,
    EMPTY,
    FULL,
    SLIM,
    AllowList,
    File,
    Files,
    Image,
    Limits,
    Runtime,
)
from rapha.runtime.image.reader import Summary, inspect, read
from rapha.runtime.image.referrers import attach

__all__ = [
    "DEFAULT_LIMITS",
    "EMPTY",
    "FULL",
    "SLIM",
    "AllowList",
    "File",
    "Files",
    "Image",
    "Limits",
    "Runtime",
    "Summary",
    "attach",
    "build",
    "build_full",
    "inspect",
    "pack",
    "read",
]
