from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import rapha
from rapha.spec import refusals
from rapha.spec.refusals import REGISTRY, Refused

FAMILIES = {"schema", "image", "policy", "consent", "privacy", "budget", "posture", "node", "job"}
SOURCE = Path(rapha.__path__[0])


def test_every_code_has_a_known_family_and_is_one_word_of_a_url() -> None:
    for code in REGISTRY:
        assert re.fullmatch(r"[a-z]+\.[a-z][a-z_]*", code)
        assert code.split(".")[0] in FAMILIES


def test_every_code_says_what_it_means_and_what_to_do() -> None:
    for code, entry in REGISTRY.items():
        assert entry.meaning.endswith("."), code
        assert entry.fix, code
        assert refusals.entry(code) is entry


def test_what_depends_on_records_is_one_code_only() -> None:
    assert [c for c, e in REGISTRY.items() if e.depends_on_records] == ["privacy.cohort_refused"]


def test_a_refusal_carries_code_detail_and_fix() -> None:
    refused = Refused("schema.json", "line 3")
    assert (refused.code, refused.detail, str(refused)) == ("schema.json", "line 3", "schema.json: line 3")
    assert Refused("schema.json").detail == REGISTRY["schema.json"].meaning
    assert refused.fix == REGISTRY["schema.json"].fix


def test_a_code_that_is_not_registered_is_a_defect() -> None:
    with pytest.raises(KeyError):
        Refused("schema.jsn")


def used_codes() -> set[tuple[str, str]]:
    """Every literal code in a `Refused(…)` call of the source."""
    found = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Refused":
                first = node.args[0] if node.args else None
                if isinstance(first, ast.Constant) and isinstance(first.value, str):
                    found.add((path.name, first.value))
    return found


def test_every_code_that_the_source_raises_is_registered() -> None:
    assert {(name, code) for name, code in used_codes() if code not in REGISTRY} == set()
