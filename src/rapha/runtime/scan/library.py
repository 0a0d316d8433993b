"""The image's Python files, parsed when something asks about them, and each content only once."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from rapha.runtime.scan.blob import Blob
from rapha.runtime.scan.collector import MAX_SOURCE, collect
from rapha.runtime.scan.facts import Facts, Note
from rapha.runtime.scan.rules import RuleSet

_WORD: Final = re.compile(rb"\.?[A-Za-z_]\w*")
_MAX_NOTEBOOK: Final = 8 * 1024 * 1024
_MAX_REACHED: Final = 64 * 1024 * 1024
_MAX_PRESENT: Final = 1024 * 1024


class Library(Mapping[str, Facts]):
    """Facts by path. Parsing is most of a scan's work, and what no entrypoint reaches can only warn."""

    def __init__(self, blobs: Mapping[str, Blob], rules: RuleSet) -> None:
        """`blobs` are the files to be read as Python, by path."""
        self._blobs = dict(blobs)
        self._rules = rules
        self._facts: dict[str, Facts] = {}
        self._same: dict[bytes, Facts] = {}
        self._room = _MAX_REACHED
        self._present = _MAX_PRESENT

    def __getitem__(self, path: str) -> Facts:
        if path not in self._facts:
            self._facts[path] = self._collect(self._blobs[path])
        return self._facts[path]

    def __contains__(self, path: object) -> bool:
        return path in self._blobs

    def __iter__(self) -> Iterator[str]:
        return iter(self._blobs)

    def __len__(self) -> int:
        return len(self._blobs)

    def telling(self, path: str) -> bool:
        """Whether the file, which nothing reaches, is worth parsing: by its words, once there are many.

        A word alone never makes a finding; without one there can't be any that a name is needed for.
        """
        size = self._blobs[path].size
        if size <= self._present:
            self._present -= size
            return True
        return size > MAX_SOURCE or _mentions(self._blobs[path].part(MAX_SOURCE), self._rules)

    def _collect(self, blob: Blob) -> Facts:
        if blob.name.endswith(".ipynb"):
            return _notebook(blob, self._rules)
        if blob.size > MAX_SOURCE:
            return collect(blob.part(MAX_SOURCE + 1), self._rules)
        source = blob.part(MAX_SOURCE + 1)
        key = hashlib.blake2b(source, digest_size=20).digest()
        if key not in self._same:
            self._room -= len(source)
            if self._room < 0:
                note = Note("image.unparsable", 1, "There is more Python than is judged in one image.")
                return Facts(notes=[note])
            self._same[key] = collect(source, self._rules)
        return self._same[key]


def _mentions(source: bytes, rules: RuleSet) -> bool:
    words = set(_WORD.findall(source))
    watched = _watched(rules)
    bare, all_words = words & watched.bare, {word.lstrip(b".") for word in words}
    if bare or all_words & watched.anywhere:
        return True
    return any(all_words & watched.leaves[top] for top in all_words & watched.leaves.keys())


class _Watched:
    def __init__(self, rules: RuleSet) -> None:
        listed = [name for name, code in rules.names.items() if code is not None]
        self.bare = {name.removeprefix("builtins.").encode() for name in listed if "." not in name}
        self.bare |= {name.encode() for name in rules.builtins}
        self.anywhere = {name.encode() for name in (*rules.attributes, *rules.keywords)}
        self.leaves: dict[bytes, set[bytes]] = {b"rapha_trainer": {b"setattr", b"__dict__", b"vars"}}
        for name in listed:
            top, _, leaf = name.partition(".")
            if leaf and top != "builtins":
                self.leaves.setdefault(top.encode(), set()).add(leaf.rpartition(".")[2].encode())


@functools.lru_cache(maxsize=4)
def _watched(rules: RuleSet) -> _Watched:
    return _Watched(rules)


def _notebook(blob: Blob, rules: RuleSet) -> Facts:
    """The code cells of a notebook as one file (nbformat 4), with its magics left out."""
    if blob.size > _MAX_NOTEBOOK:
        return Facts(notes=[Note("image.unparsable", 1, "The notebook is too large to be judged.")])
    try:
        document = json.loads(blob.part(_MAX_NOTEBOOK))
    except (ValueError, RecursionError):
        return Facts(notes=[Note("image.unparsable", 1, "The notebook is no JSON.")])
    lines = [line for text in _cells(document) for line in text.split("\n")]
    kept = ["" if line.lstrip()[:1] in ("%", "!") else line for line in lines]
    facts = collect("\n".join(kept).encode("utf-8", errors="replace"), rules)
    if any(line.lstrip()[:1] == "!" for line in lines):
        facts.notes.append(Note("image.subprocess", 0, "The notebook runs shell commands."))
    return facts


def _cells(document: Any) -> Iterator[str]:
    cells = document.get("cells") if isinstance(document, dict) else None
    for cell in cells if isinstance(cells, list) else []:
        if isinstance(cell, dict) and cell.get("cell_type") == "code":
            source = cell.get("source")
            if isinstance(source, list):
                source = "".join(part for part in source if isinstance(part, str))
            if isinstance(source, str):
                yield source
