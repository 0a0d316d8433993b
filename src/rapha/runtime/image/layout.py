"""Which image a layout holds: its index, its manifest, and what may travel beside it (image-spec 1.1)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from rapha.runtime.image import store
from rapha.runtime.image.documents import (
    array_in,
    as_object,
    check_schema,
    host_platform,
    invalid,
    object_in,
    parse,
)
from rapha.runtime.image.model import (
    CONFIG_TYPE,
    EMPTY_TYPE,
    ENVELOPE_TYPE,
    INDEX_TYPE,
    LAYER_TYPE,
    MANIFEST_TYPE,
    STATEMENT_TYPE,
    Limits,
)
from rapha.runtime.image.stream import Compression, hashed
from rapha.spec.refusals import Refused

_DOCKER: Final = "application/vnd.docker."
MANIFEST_TYPES: Final = frozenset({MANIFEST_TYPE, _DOCKER + "distribution.manifest.v2+json"})
INDEX_TYPES: Final = frozenset({INDEX_TYPE, _DOCKER + "distribution.manifest.list.v2+json"})
CONFIG_TYPES: Final = frozenset({CONFIG_TYPE, _DOCKER + "container.image.v1+json"})
_DOCKER_LAYER: Final = _DOCKER + "image.rootfs.diff.tar"
LAYER_TYPES: Final[Mapping[str, Compression]] = {
    LAYER_TYPE: "none",
    LAYER_TYPE + "+gzip": "gzip",
    LAYER_TYPE + "+zstd": "zstd",
    _DOCKER_LAYER: "none",
    _DOCKER_LAYER + ".gzip": "gzip",
    _DOCKER_LAYER + ".zstd": "zstd",
}
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}\Z")
_UNKNOWN: Final = ("unknown", "unknown")
_MAX_MANIFESTS: Final = 64
MAX_REFERRERS: Final = 16
MAX_ENVELOPE: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A blob by digest and size (image-spec 1.1, descriptor.md); checked where it is made."""

    media_type: str
    digest: str
    size: int
    platform: tuple[str, str] | None = None

    @classmethod
    def of(cls, value: object) -> Descriptor:
        """Check a descriptor. Raises `Refused` (`image.layout_invalid`, `image.digest_mismatch`)."""
        fields = as_object(value, "descriptor")
        digest, size, media_type = fields.get("digest"), fields.get("size"), fields.get("mediaType")
        if not isinstance(digest, str) or not _DIGEST.match(digest):
            raise invalid(f"descriptor digest {str(digest)[:100]!r} is not a sha256")
        if type(size) is not int or size < 0:
            raise Refused("image.digest_mismatch", f"blob {digest}: size {size!r} is not a size")
        if not isinstance(media_type, str):
            raise invalid(f"blob {digest}: its media type is not a text")
        if fields.get("urls"):
            raise invalid(f"blob {digest} is to be fetched from elsewhere")
        return cls(media_type, digest, size, _platform(fields.get("platform")))

    @property
    def name(self) -> str:
        """Its path in the layout."""
        return f"{store.BLOBS}/{self.digest.removeprefix('sha256:')}"


@dataclass(frozen=True, slots=True)
class Manifest:
    """An image's manifest, read and verified; its layers are not read yet."""

    descriptor: Descriptor
    config: Mapping[str, Any]
    layers: tuple[Descriptor, ...]
    referrers: tuple[bytes, ...] = ()


@dataclass(slots=True)
class Layout:
    """A store whose blobs are taken by descriptor; `check_nothing_else` then accounts for all of them."""

    store: store.Store
    limits: Limits
    _taken: set[str] = field(default_factory=lambda: {store.LAYOUT_FILE, store.INDEX_FILE})

    def top(self, name: str) -> Mapping[str, Any]:
        """`oci-layout` or `index.json`, which no digest names."""
        if name not in self.store.sizes:
            raise invalid(f"{name} is absent: not an OCI layout")
        if self.store.sizes[name] > self.limits.json:
            raise Refused("image.too_large", f"{name} is over {self.limits.json} bytes")
        return parse(b"".join(self.store.chunks(name)), name, self.limits)

    def chunks(self, blob: Descriptor) -> Iterator[bytes]:
        """The blob's bytes; they are verified once the last one was taken.

        Raises:
            Refused: `image.not_found`, `image.digest_mismatch`.
        """
        self.take(blob)
        return hashed(self.store.chunks(blob.name), blob.digest, f"blob {blob.digest}")

    def bytes_of(self, blob: Descriptor, limit: int) -> bytes:
        """All of a small blob, verified. Raises `Refused` as `chunks` does, or `image.too_large`."""
        chunks = self.chunks(blob)
        if blob.size > limit:
            raise Refused("image.too_large", f"blob {blob.digest} is over {limit} bytes")
        return b"".join(chunks)

    def document(self, blob: Descriptor) -> Mapping[str, Any]:
        """The JSON object that a descriptor names."""
        return parse(self.bytes_of(blob, self.limits.json), blob.media_type, self.limits)

    def take(self, blob: Descriptor) -> None:
        """Say that `blob` belongs to the layout. Raises `Refused` if it is absent or of another size."""
        size = self.store.sizes.get(blob.name)
        if size is None:
            raise Refused("image.not_found", f"blob {blob.digest} is absent")
        if size != blob.size:
            raise Refused("image.digest_mismatch", f"blob {blob.digest}: {size} bytes, not {blob.size}")
        self._taken.add(blob.name)

    def check_nothing_else(self) -> None:
        """No blob but those taken: an unnamed one would travel unsigned."""
        extra = sorted(self.store.sizes.keys() - self._taken)
        if extra:
            raise invalid(f"{extra[0][:200]!r} is named by no manifest")


def find_manifest(layout: Layout) -> Manifest:
    """The one image of a layout, and the statements about it.

    Steps: 1 the layout's version; 2 every manifest of the index, and of an index in it; 3 sort them into
    images, referrers and build attestations; 4 the one image, or the one for this machine; 5 its config
    and layers are there; 6 the referrers name it; 7 nothing else is in the layout.

    Raises:
        Refused: `image.layout_invalid`, `image.not_found`, `image.digest_mismatch`, `image.too_large`,
            `image.encrypted`.
    """
    version = layout.top(store.LAYOUT_FILE).get("imageLayoutVersion")
    if version != "1.0.0":  # 1
        raise invalid(f"imageLayoutVersion {str(version)[:100]!r}, expected '1.0.0'")
    images: list[Descriptor] = []
    referrers: list[Mapping[str, Any]] = []
    for descriptor in _manifests(layout, layout.top(store.INDEX_FILE)):  # 2
        if descriptor.platform == _UNKNOWN:  # 3
            _check_attestation(layout, descriptor)
        elif descriptor.platform is not None and descriptor.name not in layout.store.sizes:
            images.append(descriptor)  # another platform's, that was not exported
        elif "subject" in (document := _document(layout, descriptor)):
            referrers.append(document)
        else:
            images.append(descriptor)
    chosen = _choose(images)  # 4
    _take_others(layout, [image for image in images if image is not chosen])
    document = _document(layout, chosen)
    config = layout.document(_typed(object_in(document, "config"), CONFIG_TYPES))  # 5
    layers = _layers(layout, document)
    if len(referrers) > MAX_REFERRERS:
        raise Refused("image.too_large", f"over {MAX_REFERRERS} statements about the image")
    envelopes = tuple(sorted({_envelope(layout, document, chosen) for document in referrers}))  # 6
    layout.check_nothing_else()  # 7
    return Manifest(chosen, config, layers, envelopes)


def _platform(value: object) -> tuple[str, str] | None:
    if value is None:
        return None
    fields = as_object(value, "platform")
    system, machine = fields.get("os"), fields.get("architecture")
    if not isinstance(system, str) or not isinstance(machine, str):
        raise invalid("a platform lacks its os or architecture")
    return system, machine


def _manifests(layout: Layout, index: Mapping[str, Any]) -> list[Descriptor]:
    check_schema(index, "index")
    found: dict[str, Descriptor] = {}
    for value in _listed(index):
        descriptor = Descriptor.of(value)
        inner = [descriptor]
        if descriptor.media_type in INDEX_TYPES:
            document = layout.document(descriptor)
            check_schema(document, "index")
            if document.get("mediaType", descriptor.media_type) != descriptor.media_type:
                raise invalid("the index claims to be something else too")
            inner = [Descriptor.of(entry) for entry in _listed(document)]
        for entry in inner:
            if entry.media_type not in MANIFEST_TYPES:
                raise invalid(f"media type {entry.media_type[:100]!r}, expected {MANIFEST_TYPE}")
            found.setdefault(entry.digest, entry)  # one image under several tags is one image
    if len(found) > _MAX_MANIFESTS:
        raise Refused("image.too_large", f"over {_MAX_MANIFESTS} manifests")
    return list(found.values())


def _listed(index: Mapping[str, Any]) -> list[Any]:
    manifests = array_in(index, "manifests")
    if len(manifests) > _MAX_MANIFESTS:
        raise Refused("image.too_large", f"over {_MAX_MANIFESTS} manifests")
    return manifests


def _document(layout: Layout, descriptor: Descriptor) -> Mapping[str, Any]:
    manifest = layout.document(descriptor)
    check_schema(manifest, "manifest")
    claims = manifest.get("mediaType", descriptor.media_type)
    if claims != descriptor.media_type or "manifests" in manifest:
        raise invalid("the manifest claims to be something else too")
    return manifest


def _choose(images: list[Descriptor]) -> Descriptor:
    if len(images) == 1:
        return images[0]
    host = host_platform()
    fitting = [image for image in images if image.platform == host]
    if len(fitting) != 1:
        raise invalid(f"{len(images)} images, {len(fitting)} of them for {'/'.join(host)}: expected one")
    return fitting[0]


def _take_others(layout: Layout, others: list[Descriptor]) -> None:
    """Images for other platforms may be here, too: their blobs are known, and never unpacked."""
    for image in others:
        if image.name in layout.store.sizes:
            document = _document(layout, image)
            for value in (document.get("config"), *array_in(document, "layers")):
                layout.take(Descriptor.of(value))


def _layers(layout: Layout, manifest: Mapping[str, Any]) -> tuple[Descriptor, ...]:
    values = array_in(manifest, "layers")
    if len(values) > layout.limits.layers:
        raise Refused("image.too_large", f"{len(values)} layers, the limit is {layout.limits.layers}")
    layers = tuple(Descriptor.of(value) for value in values)
    for number, layer in enumerate(layers):
        if layer.media_type.endswith("+encrypted"):
            raise Refused("image.encrypted", f"layer {number} is encrypted")
        if layer.media_type not in LAYER_TYPES:
            raise invalid(f"layer {number}: media type {layer.media_type[:100]!r} is not a tar layer")
        layout.take(layer)
    return layers


def _typed(value: object, media_types: frozenset[str]) -> Descriptor:
    descriptor = Descriptor.of(value)
    if descriptor.media_type not in media_types:
        raise invalid(f"media type {descriptor.media_type[:100]!r}, expected {min(media_types)}")
    return descriptor


def _check_attestation(layout: Layout, descriptor: Descriptor) -> None:
    """What a builder says about its build (BuildKit marks it as of no platform): verified, and not used."""
    manifest = _document(layout, descriptor)
    config = _typed(object_in(manifest, "config"), CONFIG_TYPES | {EMPTY_TYPE})
    layout.document(config)
    for value in array_in(manifest, "layers"):
        for _ in layout.chunks(_typed(value, frozenset({STATEMENT_TYPE}))):
            pass


def _envelope(layout: Layout, manifest: Mapping[str, Any], image: Descriptor) -> bytes:
    """The envelope in a referrer (distribution-spec 1.1, subject), which must be about `image`."""
    subject = Descriptor.of(manifest["subject"])
    if (subject.digest, subject.size) != (image.digest, image.size):
        raise invalid("a statement in the layout is about another image")
    config = _typed(object_in(manifest, "config"), frozenset({EMPTY_TYPE, STATEMENT_TYPE}))
    kind = manifest.get("artifactType", config.media_type)
    layers = array_in(manifest, "layers")
    if kind != STATEMENT_TYPE or len(layers) != 1:
        raise invalid(f"an artifact of type {str(kind)[:100]!r} is attached, expected {STATEMENT_TYPE}")
    layout.document(config)
    return layout.bytes_of(_typed(layers[0], frozenset({ENVELOPE_TYPE})), MAX_ENVELOPE)
