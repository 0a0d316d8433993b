"""Write an image's `/app` to disk, for the sandbox to mount."""

from __future__ import annotations

import os
from pathlib import Path

from rapha.runtime.image.model import APP, Image
from rapha.spec.refusals import Refused


def unpack(image: Image, dest: Path) -> None:
    """Write the files under `/app` to `dest`, which becomes `/app`: `app/train.py` is `dest/train.py`.

    Files get mode 0444. Folders stay 0755, so that their owner can delete them; the sandbox mounts
    `dest` read-only. Files of the image outside `/app` are not written: the root is the node's runtime.

    Precondition: `dest` is absent or an empty folder that nobody else writes.

    Raises:
        Refused: `image.layout_invalid` if `dest` is not empty.
    """
    dest.mkdir(parents=True, exist_ok=True)
    if any(dest.iterdir()):
        raise Refused("image.layout_invalid", f"{dest} is not empty")
    dest.chmod(0o755)
    for path, data in image.files.items():
        if path.startswith(APP):
            _write(dest, path.removeprefix(APP), data)


def _write(dest: Path, relative: str, data: bytes) -> None:
    folder = dest
    # `read` has refused links, `..` and case twins; exclusive creation holds if one were missed.
    for part in relative.split("/")[:-1]:
        folder = folder / part
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(dest / relative, flags, 0o444), "wb") as file:  # noqa: PTH123
        file.write(data)
        os.fchmod(file.fileno(), 0o444)
