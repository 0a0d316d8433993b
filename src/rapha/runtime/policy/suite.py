"""Runs the Rego tests beside a policy set, and demands that each deny rule has them.

The tests of `area.rego` are the rules `test_allow_…` and `test_deny_…` of `area_test.rego`. The input is the
set's `admissible.json` (else the shipped one), and a test changes single facts of it:
`"policy.purpose" in codes with input.job.purpose as "marketing"`. Replacing the whole of `input` crashes
this engine; a crash is a failed test like any other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rapha.evidence import canonical
from rapha.runtime.policy import child
from rapha.runtime.policy.bundle import DEFAULT, EXAMPLE, TEST_SUFFIX, Bundle, read_text
from rapha.spec.policy import AdmissionInput

TIMEOUT_S: Final = 60.0
"""For all tests of one file."""

_TEST: Final = re.compile(r"(?m)^(test_\w+)\b")
_PACKAGE: Final = re.compile(r"(?m)^package[ \t]+([A-Za-z0-9_.]+)")
_DENY: Final = re.compile(r"(?m)^deny\b")
_CODE: Final = re.compile(r'"code"\s*:\s*"([a-z0-9_.]+)"')
_PASSED: Final = '{"expressions":[true]}'


@dataclass(frozen=True, slots=True)
class Result:
    """One test, or one demand on the tests; `problem` is empty when it holds."""

    file: str
    name: str
    problem: str = ""

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problem


def run_suite(folder: Path) -> tuple[Result, ...]:
    """Every test of `folder`, and every demand on them, in file order.

    Raises:
        Refused: `policy.error` if the set itself can't be loaded, `schema.*` if its example is no
            `AdmissionInput`.
    """
    bundle = Bundle.load(folder)
    example = folder / EXAMPLE if (folder / EXAMPLE).exists() else DEFAULT / EXAMPLE
    document = AdmissionInput.parse(canonical.loads(read_text(example).encode()), EXAMPLE)
    tests = {path.name: read_text(path) for path in sorted(folder.glob(f"*{TEST_SUFFIX}"))}
    data = canonical.dumps(document.dump())
    ran = [result for name, source in tests.items() for result in _run_file(bundle, name, source, data)]
    demanded = [result for module in bundle.modules for result in _demands(*module, tests)]
    return tuple(ran + demanded)


def _run_file(bundle: Bundle, name: str, source: str, document: bytes) -> Iterator[Result]:
    declared = _TEST.findall(source)
    names = list(dict.fromkeys(declared))
    package = _PACKAGE.search(source)
    if package is None or not names:
        yield Result(name, "(file)", "has no package or no rule named test_…")
        return
    for twice in sorted({test for test in names if declared.count(test) > 1}):
        # Two bodies of one rule are alternatives: the second would hide that the first fails.
        yield Result(name, twice, "is defined more than once")
    whole = Bundle.of({**dict(bundle.modules), name: source}, bundle.data)
    prefix = package[1].replace(".", "/")
    for test, problem in zip(names, _problems(whole, document, prefix, names), strict=True):
        yield Result(name, test, problem)


def _problems(bundle: Bundle, document: bytes, prefix: str, names: list[str]) -> list[str]:
    problems: list[str] = []
    while len(problems) < len(names):
        rules = tuple(f"{prefix}/{name}" for name in names[len(problems) :])
        outcome = child.run([child.Task(bundle, document, rules=rules)], TIMEOUT_S)
        problems += [_problem(kind, text) for kind, text in outcome.answers]
        if outcome.ending != "ended":
            said = {"crashed": "the engine crashed", "timeout": f"no answer within {TIMEOUT_S:g} s"}
            problems.append(said[outcome.ending])
    return problems


def _problem(kind: child.Kind, text: str) -> str:
    if kind == "value":
        return "" if text == _PASSED else "is not true"
    return "is not true (undefined)" if kind == "undefined" else text


def _demands(name: str, source: str, tests: dict[str, str]) -> Iterator[Result]:
    if not _DENY.search(source):
        return
    file = name.removesuffix(".rego") + TEST_SUFFIX
    bodies = _bodies(tests.get(file, ""))
    allowed = any(test.startswith("test_allow_") for test in bodies)
    yield Result(file, "(an allow test)", "" if allowed else f"{name} has a deny rule and no test_allow_…")
    codes = sorted(set(_CODE.findall(source)))
    if not codes:
        yield Result(file, "(a deny test)", f"{name} has a deny rule whose code is not written out")
    for code in codes:
        denied = any(t.startswith("test_deny_") and f'"{code}"' in body for t, body in bodies.items())
        problem = "" if denied else f"{name} denies with {code} and no test_deny_… names it"
        yield Result(file, f"(a deny test of {code})", problem)


def _bodies(source: str) -> dict[str, str]:
    parts = _TEST.split(source)
    return dict(zip(parts[1::2], parts[2::2], strict=True))
