"""Which native and compiled files an import, a program or another library loads."""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final

from rapha.runtime.scan.blob import Blob, Source
from rapha.runtime.scan.natives import native, needed

_CACHE: Final = "/__pycache__"


class Compiled:
    """The files of an image that are no source, by the place from which an import loads them."""

    def __init__(self, paths: Sequence[str], files: Mapping[str, Source]) -> None:
        """`paths` are those that the submitter added."""
        self._paths = [path for path in paths if native(Blob(path, files[path])) is not None]

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def reached(
        self, blobs: Mapping[str, Blob], imported: Collection[str], programs: Collection[str]
    ) -> set[str]:
        """The paths that run: `imported` are places without a suffix, `programs` what the kernel runs."""
        found = {path for path in self._paths if path in programs or _place(path) in imported}
        by_name: dict[str, list[str]] = {}
        for path in self._paths:
            by_name.setdefault(posixpath.basename(path), []).append(path)
        pending = list(found)
        while pending:
            for name in needed(blobs[pending.pop()]):
                for path in by_name.get(posixpath.basename(name), ()):
                    if path not in found:
                        found.add(path)
                        pending.append(path)
        return found


def _place(path: str) -> str:
    """`a/x.cpython-311-x86_64-linux-gnu.so` and `a/__pycache__/x.cpython-311.pyc` are both `a/x`."""
    folder, _, name = path.rpartition("/")
    folder = folder.removesuffix(_CACHE)
    return f"{folder}/{name.partition('.')[0]}"
