"""What a PACS says of an image (`/metadata`), as the same `Instance` that a file's header makes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from rapha.node.sources.imaging.attributes import MAX_FRAMES, STRUCTURE, Instance, Values, instance_of
from rapha.node.sources.imaging.dicomjson import DataSet, items_at, values_at
from rapha.node.sources.imaging.headers import Setup
from rapha.node.sources.imaging.planes import NO_STACK, Stack, stacked
from rapha.node.sources.imaging.tags import Tag
from rapha.node.sources.interface import Quarantine

_AVAILABLE: Final = 0x00083002  # Available Transfer Syntax UID
_NAMES: Final = ("PN",)


class Describer:
    """Reads the attributes that a manifest needs, and no other: a person's name is not among them."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._tags: Mapping[str, tuple[int, str]] = {
            **{keyword: _in_dictionary(keyword) for keyword in STRUCTURE},
            **{one.keyword: (one.tag, one.vr) for one in setup.attributes},
        }

    @property
    def needed(self) -> frozenset[str]:
        """The tags of what is read."""
        more = (_AVAILABLE, *((Tag.FRAME_GROUPS, Tag.SHARED_GROUPS) if self._setup.places else ()))
        return frozenset(f"{tag:08X}" for tag in (*(tag for tag, _ in self._tags.values()), *more))

    def instance(self, header: DataSet, locator: str) -> Instance:
        """The image that `header` describes.

        Raises:
            Unusable: FILE_INVALID where an attribute is not of its VR, TOO_LARGE past a limit.
        """

        def get(keyword: str) -> Values:
            tag, vr = self._tags[keyword]
            return values_at(header, tag, vr) if vr not in _NAMES else ()

        syntax = values_at(header, _AVAILABLE, "UI")
        sized = get("Rows") and get("Columns")
        return instance_of(
            get,
            self._setup.wanted,
            syntax=str(syntax[0]) if len(syntax) == 1 else "",
            locator=locator,
            stack=_stack(header) if self._setup.places else NO_STACK,
            flaw=Quarantine.NONE if sized else Quarantine.PIXELS_MISSING,
        )


def _in_dictionary(keyword: str) -> tuple[int, str]:
    from pydicom.datadict import dictionary_VR, tag_for_keyword

    tag: Any = tag_for_keyword(keyword)
    return int(tag), dictionary_VR(tag)


def _stack(header: DataSet) -> Stack:
    """The frames, if they are parallel."""
    groups = items_at(header, Tag.FRAME_GROUPS)[:MAX_FRAMES]
    shared = next(iter(items_at(header, Tag.SHARED_GROUPS)), {})
    return stacked(
        (
            _macro(group, shared, Tag.PLANE_POSITIONS, Tag.POSITION),
            _macro(group, shared, Tag.PLANE_ORIENTATIONS, Tag.ORIENTATION),
        )
        for group in groups
    )


def _macro(group: DataSet, shared: DataSet, sequence: Tag, tag: Tag) -> Values:
    for source in (group, shared):
        for item in items_at(source, sequence)[:1]:
            if values := values_at(item, tag, "DS"):
                return values
    return ()
