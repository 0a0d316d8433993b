"""The runner of Rego tests: the shipped ones pass, would notice a rule's absence, and can't be left out."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from rapha.runtime.policy.bundle import DEFAULT, Bundle
from rapha.runtime.policy.suite import Result, run_suite
from rapha.spec.refusals import Refused

README = Path(__file__).parents[3] / "policies" / "README.md"
RULE = """package rapha.admission

import rego.v1

default allow := false

allow if count(deny) == 0

deny contains {"code": "policy.purpose", "message": "no", "fix": "Ask."} if {
	input.job.purpose == "marketing"
}
"""
TESTS_HEAD = """package rapha.admission_test

import rego.v1

import data.rapha.admission

codes := {reason.code | some reason in admission.deny}

"""
ALLOW = "test_allow_research if {\n\tadmission.allow\n}\n\n"
DENY = 'test_deny_marketing if {\n\t"policy.purpose" in codes with input.job.purpose as "marketing"\n}\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "purpose.rego").write_text(RULE)
    (tmp_path / "purpose_test.rego").write_text(TESTS_HEAD + ALLOW + DENY)
    return tmp_path


def failed(results: tuple[Result, ...]) -> list[str]:
    return [f"{result.file} {result.name}" for result in results if not result.passed]


def test_every_shipped_test_passes() -> None:
    results = run_suite(DEFAULT)
    assert failed(results) == []
    assert len({result.file for result in results}) == len(list(DEFAULT.glob("*_test.rego")))


AREAS = [
    path.stem for path in sorted(DEFAULT.glob("*.rego")) if (DEFAULT / f"{path.stem}_test.rego").exists()
]


@pytest.mark.parametrize("area", AREAS)
def test_every_shipped_rule_would_be_missed(tmp_path: Path, area: str) -> None:
    """With its deny rules gone, an area's own tests fail; so they test that area and nothing by accident."""
    for name in (f"{area}_test.rego", "admission.rego", "data.json", "admissible.json"):
        shutil.copy(DEFAULT / name, tmp_path / name)
    for name, source in Bundle.load(DEFAULT).modules:
        mine = name == f"{area}.rego"
        (tmp_path / name).write_text(source.replace("deny contains", "was_deny contains") if mine else source)
    failures = failed(run_suite(tmp_path))
    assert [failure for failure in failures if " test_deny_" in failure]
    assert not [failure for failure in failures if " test_allow_" in failure]


def test_a_complete_set_passes(folder: Path) -> None:
    assert failed(run_suite(folder)) == []


def test_a_deny_rule_without_tests_fails(folder: Path) -> None:
    (folder / "purpose_test.rego").unlink()
    assert failed(run_suite(folder)) == [
        "purpose_test.rego (an allow test)",
        "purpose_test.rego (a deny test of policy.purpose)",
    ]


INCOMPLETE = {
    "no allow test": (DENY, "purpose_test.rego (an allow test)"),
    "no deny test": (ALLOW, "purpose_test.rego (a deny test of policy.purpose)"),
    "a deny test of another code": (
        ALLOW + DENY.replace("policy.purpose", "policy.scan"),
        "purpose_test.rego (a deny test of policy.purpose)",
    ),
    "no test at all": ("", "purpose_test.rego (file)"),
    "a test that is false": (ALLOW + DENY + "test_allow_all if false\n", "purpose_test.rego test_allow_all"),
    "a test that is undefined": (
        ALLOW + DENY + "test_allow_all if input.none\n",
        "purpose_test.rego test_allow_all",
    ),
    "a test that is not true but something": (
        ALLOW + DENY + "test_allow_all := 1\n",
        "purpose_test.rego test_allow_all",
    ),
    "a test that fails to evaluate": (
        ALLOW + DENY + "test_allow_all if 1 / 0 == 1\n",
        "purpose_test.rego test_allow_all",
    ),
    "a test defined twice": (ALLOW + DENY + ALLOW, "purpose_test.rego test_allow_research"),
    "a test that does not compile": (
        ALLOW + DENY + "test_allow_all if {\n",
        "purpose_test.rego test_allow_all",
    ),
}


@pytest.mark.parametrize("name", INCOMPLETE)
def test_a_gap_in_the_tests_is_a_failure(folder: Path, name: str) -> None:
    body, expected = INCOMPLETE[name]
    (folder / "purpose_test.rego").write_text(TESTS_HEAD + body)
    assert expected in failed(run_suite(folder))


def test_a_crash_fails_its_test_and_no_other(folder: Path) -> None:
    crash = "test_a_crash if {\n\tadmission.allow with input as {}\n}\n\n"
    (folder / "purpose_test.rego").write_text(TESTS_HEAD + ALLOW + crash + DENY)
    results = {result.name: result for result in run_suite(folder)}
    assert results["test_a_crash"].problem == "the engine crashed"


def test_a_code_that_is_not_written_out_fails(folder: Path) -> None:
    (folder / "purpose.rego").write_text(RULE.replace('"code": "policy.purpose"', '"code": input.job.kind'))
    assert "purpose_test.rego (a deny test)" in failed(run_suite(folder))


def test_an_example_that_is_no_input_document_refuses(folder: Path) -> None:
    (folder / "admissible.json").write_text('{"job": {}}')
    with pytest.raises(Refused, match=r"schema\."):
        run_suite(folder)


def test_the_examples_of_the_readme_are_a_tested_set(tmp_path: Path) -> None:
    rule, test = re.findall(r"```rego\n(.*?)```", README.read_text(), re.S)
    (tmp_path / "kind.rego").write_text(rule)
    (tmp_path / "kind_test.rego").write_text(TESTS_HEAD + ALLOW + test)
    assert failed(run_suite(tmp_path)) == []
