"""Consent: who may use a dataset for what, and who asked to be left out."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from rapha.node.sources.folder import read_small
from rapha.spec.dataset import DatasetManifest
from rapha.spec.refusals import Refused

MAX_LIST_BYTES: Final = 64 * 2**20
MAX_IDENTIFIER: Final = 128
_LEADING: Final = re.compile(r"(?<![0-9])0+")
"""Zeros that lead a number, also after letters: MRN007 is MRN7."""
_NOT_LETTERS: Final = {code: None for code in range(128) if not chr(code).isalnum()}


def check_permission(manifest: DatasetManifest, organisation: str, purpose: str) -> None:
    """The manifest's own terms. They depend on no record, so the refusals say what was wrong.

    Raises:
        Refused: `consent.basis` (none on record), `consent.organisation` or `consent.purpose` (not listed;
            an empty list allows nobody and nothing).
    """
    if not manifest.consent_basis.strip():
        raise Refused("consent.basis", f"{manifest.dataset} has no legal basis on record")
    if organisation not in manifest.organisations:
        raise Refused("consent.organisation", f"{manifest.dataset} is not offered to this organisation")
    if purpose not in manifest.purposes:
        raise Refused("consent.purpose", f"{manifest.dataset} is not offered for the purpose {purpose!r}")


def read_opt_outs(manifest: DatasetManifest, manifest_folder: Path) -> frozenset[str]:
    """The patients to leave out: UTF-8 text, one identifier a line; blank lines and `#` comments skipped.

    Raises:
        Refused: `node.dataset_missing` if the list is absent (a list that can't be read is not an empty
            list), `node.dataset_invalid` if it is not such a text.
    """
    data = read_small(manifest.opt_outs, manifest_folder, MAX_LIST_BYTES)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Refused("node.dataset_invalid", "the list of opt-outs is not UTF-8") from None
    lines = (line.strip() for line in text.replace("\r\n", "\n").split("\n"))
    listed = frozenset(line for line in lines if line and not line.startswith("#"))
    if any(len(name) > MAX_IDENTIFIER or not name.isprintable() for name in listed):
        raise Refused("node.dataset_invalid", "the list of opt-outs has a line that is no identifier")
    return listed


def match_opt_outs(listed: frozenset[str], patients: Iterable[str]) -> frozenset[str]:
    """The patients of this dataset who opted out.

    A list may name people who are not here. But a line that is a patient's identifier up to case,
    punctuation or leading zeros is more likely a withdrawal that would silently not take effect, or, where
    the list has the one spelling and the dataset both, take effect for half of somebody's records.

    Raises:
        Refused: `node.dataset_invalid` for such a line; listing every spelling helps.
    """
    present = set(patients)
    if listed:
        folded = {_fold(patient) for patient in present - listed}
        if any(_fold(name) in folded for name in listed):
            raise Refused("node.dataset_invalid", "an opt-out is spelled unlike a patient it seems to name")
    return listed & present


def _fold(identifier: str) -> str:
    if identifier.isascii():  # as below, and several times as fast
        return _LEADING.sub("", identifier.lower().translate(_NOT_LETTERS))
    letters = unicodedata.normalize("NFKC", identifier).casefold()
    # A digit of any script is the same digit.
    plain = (str(unicodedata.decimal(char, char)) for char in letters if char.isalnum())
    return _LEADING.sub("", "".join(plain))
