"""Statements about an image that travel with it (image-spec 1.1, `subject` and `artifactType`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rapha.evidence import canonical
from rapha.runtime.image import store
from rapha.runtime.image.build import descriptor_of
from rapha.runtime.image.documents import array_in
from rapha.runtime.image.layout import MAX_ENVELOPE, MAX_REFERRERS, Layout, find_manifest
from rapha.runtime.image.model import EMPTY_TYPE, ENVELOPE_TYPE, FULL, MANIFEST_TYPE, STATEMENT_TYPE
from rapha.spec.refusals import Refused

_NOTHING = b"{}"
"""The empty config that artifacts have (image-spec 1.1, manifest.md)."""


def attach(layout: Path, envelope: bytes) -> None:
    """Put a DSSE envelope about the image into the layout folder; the image's digest stays as it is.

    Attaching the same envelope again changes nothing. Blobs are written before the index that names them.

    Raises:
        Refused: what `inspect` raises for the layout's JSON; `image.too_large` for over 16 envelopes, or
            one over 64 KiB.
    """
    with store.Store(layout, FULL) as opened:
        read = Layout(opened, FULL)
        image = find_manifest(read)
        index = dict(read.top(store.INDEX_FILE))
    if envelope in image.referrers:
        return
    if len(image.referrers) >= MAX_REFERRERS or len(envelope) > MAX_ENVELOPE:
        raise Refused("image.too_large", f"over {MAX_REFERRERS} statements, or over {MAX_ENVELOPE} bytes")
    subject = {
        "mediaType": image.descriptor.media_type,
        "digest": image.descriptor.digest,
        "size": image.descriptor.size,
    }
    manifest = _manifest(subject, envelope)
    descriptor = descriptor_of(MANIFEST_TYPE, manifest) | {"artifactType": STATEMENT_TYPE}
    index["manifests"] = [*array_in(index, "manifests"), descriptor]
    for blob in (_NOTHING, envelope, manifest):
        name = str(descriptor_of("", blob)["digest"]).removeprefix("sha256:")
        (layout / store.BLOBS / name).write_bytes(blob)
    temporary = layout / (store.INDEX_FILE + ".tmp")
    temporary.write_bytes(canonical.dumps(index))
    temporary.replace(layout / store.INDEX_FILE)


def _manifest(subject: dict[str, Any], envelope: bytes) -> bytes:
    return canonical.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": STATEMENT_TYPE,
            "config": descriptor_of(EMPTY_TYPE, _NOTHING),
            "layers": [descriptor_of(ENVELOPE_TYPE, envelope)],
            "subject": subject,
        }
    )
