"""Names of files and folders that a manifest may give, and one-line texts."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, StringConstraints
from pydantic import Field as Bounds

from rapha.spec.base import Model, Sha256


def _no_climbing(path: str) -> str:
    if ".." in PurePosixPath(path).parts:
        raise ValueError("`..` is not allowed in a path")
    return path


Text = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]*$", max_length=500)]
"""One printable line."""
AbsolutePath = Annotated[str, StringConstraints(pattern=r"^/[^\x00]*$", max_length=4096)]
"""An absolute path, of the node's own making."""
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
SourcePath = Annotated[
    str,
    StringConstraints(pattern=r"^[^\x00-\x1f\x7f]+$", max_length=1024),
    AfterValidator(_no_climbing),
]
"""A folder or file, absolute or relative to the manifest's own folder; `..` refuses."""


class SourceFile(Model):
    """One file of a source, pinned by content."""

    name: FileName
    sha256: Sha256
    size: Annotated[int, Bounds(ge=0, le=2**53 - 1)]
