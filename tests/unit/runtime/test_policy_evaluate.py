"""The decision over real child processes: what sets say, and every way in which one says nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapha.evidence import canonical
from rapha.runtime.policy import child, regopy_engine
from rapha.runtime.policy.bundle import DEFAULT, EXAMPLE, Bundle
from rapha.runtime.policy.evaluate import evaluate
from rapha.runtime.policy.explain import explain
from rapha.runtime.policy.interface import Answer, Engine, Failure, Verdict
from rapha.spec.policy import AdmissionInput, Decision, Reason
from rapha.spec.refusals import REGISTRY, Refused

HEAD = "package rapha.admission\n\nimport rego.v1\n\n"
OPEN = "default allow := false\nallow if count(deny) == 0\n"
DENY = 'deny contains {"code": "policy.denied", "message": "not on Sundays", "fix": "Wait."} if true\n'
NONE = "deny := set()\n"


def admissible() -> dict[str, Any]:
    value: dict[str, Any] = json.loads((DEFAULT / EXAMPLE).read_text())
    return value


@pytest.fixture(scope="module")
def document() -> AdmissionInput:
    return AdmissionInput.parse(admissible())


@pytest.fixture(scope="module")
def shipped() -> Bundle:
    return Bundle.load(DEFAULT)


def a_set(rules: str, data: str = "{}") -> Bundle:
    return Bundle.of({"rule.rego": HEAD + rules}, data)


def codes(decision: Decision) -> list[str]:
    return [reason.code for reason in decision.reasons]


def test_the_shipped_set_admits_the_example(shipped: Bundle, document: AdmissionInput) -> None:
    decision = evaluate([shipped], document)
    decision.require()
    assert decision.bundles == (shipped.digest,)
    assert decision.input == canonical.digest(admissible())
    assert decision.engine.startswith("regopy ")


CHANGES: dict[str, tuple[tuple[str, ...], Any, str]] = {
    "dataset": (("agreement", "datasets"), [], "policy.dataset"),
    "purpose": (("agreement", "purposes"), ["research"], "policy.purpose"),
    "consent": (("dataset", "consent_basis"), "", "consent.basis"),
    "organisation": (("dataset", "organisations"), [], "consent.organisation"),
    "outputs": (("agreement", "max_output_bytes"), 0, "policy.outputs"),
    "network": (("job", "network"), True, "policy.network"),
    "assurance": (("node", "assurance"), "none", "policy.assurance"),
    "compute": (("job", "compute", "gpus"), 1, "policy.compute"),
    "budget": (("job", "budget_max"), "1", "budget.max"),
    "no budget": (("job", "budget_max"), None, "budget.required"),
    "no vault": (("settlement_configured",), False, "budget.no_settlement"),
    "scan": (("scan", "findings"), [{"rule": "image.pickle", "severity": "refuse"}], "policy.scan"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_one_wrong_fact_refuses_with_its_code(shipped: Bundle, name: str) -> None:
    path, value, code = CHANGES[name]
    changed = admissible()
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    decision = evaluate([shipped], AdmissionInput.parse(changed))
    assert codes(decision) == [code]
    with pytest.raises(Refused) as refused:
        decision.require()
    assert refused.value.code == code


def test_the_rules_refuse_a_missing_fact_without_help_from_the_model(shipped: Bundle) -> None:
    """Every branch is removed in one child: the model would never let such a document through."""

    def without(path: tuple[str, ...]) -> bytes:
        changed = admissible()
        inner = changed
        for key in path[:-1]:
            inner = inner[key]
        del inner[path[-1]]
        return canonical.dumps(changed)

    def branches(value: dict[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
        below = [p for k, v in value.items() if isinstance(v, dict) for p in branches(v, (*path, k))]
        return [(*path, key) for key in value] + below

    paths = branches(admissible())
    tasks = [child.Task(shipped, without(path), regopy_engine.QUERY) for path in paths]
    outcome = child.run(tasks, 60)
    answers = [regopy_engine.read(*answer) for answer in outcome.answers]
    assert len(answers) == len(paths)
    for path, answer in zip(paths, answers, strict=True):
        assert isinstance(answer, Verdict), path
        assert not answer.allow, path
        assert "schema.field_missing" in [reason.code for reason in answer.deny], path


@pytest.mark.parametrize("text", ["{}", "[]", "null", "0", '""', "true", '{"job": null}', '{"job": []}'])
def test_the_rules_refuse_an_input_of_another_shape(shipped: Bundle, text: str) -> None:
    outcome = child.run([child.Task(shipped, text.encode(), regopy_engine.QUERY)], 30)
    answer = regopy_engine.read(*outcome.answers[0])
    assert isinstance(answer, Failure) or (not answer.allow and answer.deny)


def test_no_set_refuses(document: AdmissionInput) -> None:
    assert codes(evaluate([], document)) == ["policy.undefined"]


def test_an_institution_narrows(shipped: Bundle, document: AdmissionInput) -> None:
    decision = evaluate([shipped, a_set(OPEN + DENY)], document)
    assert codes(decision) == ["policy.denied"]
    assert decision.reasons[0].message == "not on Sundays"


WIDENING = {
    "allow without condition": "allow := true\n" + NONE,
    "a second allow beside ours": "default allow := false\nallow if true\n" + NONE,
    "a deny that is emptied": "allow := true\ndeny contains 1 if false\n",
}


@pytest.mark.parametrize("name", WIDENING)
def test_an_institution_cannot_widen(shipped: Bundle, name: str) -> None:
    changed = admissible()
    changed["job"]["purpose"] = "marketing"
    changed["dataset"]["purposes"] = ["marketing"]
    decision = evaluate([shipped, a_set(WIDENING[name])], AdmissionInput.parse(changed))
    assert codes(decision) == ["policy.purpose"]


def test_sets_do_not_share_data(shipped: Bundle, document: AdmissionInput) -> None:
    data = '{"scan": {"accepted_severities": [], "refused_rules": [], "waived_rules": []}}'
    assert evaluate([a_set("allow := true\n" + NONE, data), shipped], document).allow


def test_without_strict_errors_a_failing_builtin_would_allow() -> None:
    from regopy import Interpreter

    lax = Interpreter()
    lax.add_module("rule.rego", HEAD + "default allow := false\nallow if not 1 / 0 > 1\n")
    assert str(lax.query("data.rapha.admission.allow")) == '{"expressions":[true]}'


FAILING: dict[str, tuple[str, str]] = {
    "nothing defined": ("x := 1\n", "policy.undefined"),
    "no deny": ("allow := true\n", "policy.undefined"),
    "no allow": (NONE, "policy.undefined"),
    "allow undefined": ("allow if input.none == 1\n" + NONE, "policy.undefined"),
    "allow false, no reason": ("default allow := false\n" + NONE, "policy.denied"),
    "allow a number": ("allow := 1\n" + NONE, "policy.error"),
    "allow a text": ('allow := "true"\n' + NONE, "policy.error"),
    "allow null": ("allow := null\n" + NONE, "policy.error"),
    "allow an array": ("allow := [true]\n" + NONE, "policy.error"),
    "allow an object": ("allow := {}\n" + NONE, "policy.error"),
    "deny an array": ("allow := true\ndeny := []\n", "policy.error"),
    "deny an object": ("allow := true\ndeny := {}\n", "policy.error"),
    "deny false": ("allow := true\ndeny := false\n", "policy.error"),
    "deny null": ("allow := true\ndeny := null\n", "policy.error"),
    "deny a set of texts": ('allow := true\ndeny := {"no"}\n', "policy.error"),
    "deny without a fix": (
        'allow := true\ndeny := {{"code": "policy.scan", "message": "m"}}\n',
        "policy.error",
    ),
    "deny with an unknown code": (
        'allow := true\ndeny := {{"code": "policy.mood", "message": "m", "fix": "f"}}\n',
        "policy.error",
    ),
    "deny with an extra field": (
        'allow := true\ndeny := {{"code": "policy.scan", "message": "m", "fix": "f", "allow": true}}\n',
        "policy.error",
    ),
    "deny with a code that depends on records": (
        'allow := true\ndeny := {{"code": "privacy.cohort_refused", "message": "m", "fix": "f"}}\n',
        "policy.error",
    ),
    "a reason for every number": (
        'allow := true\ndeny contains {"code": "policy.scan", "message": sprintf("%v", [n]), "fix": "f"}'
        " if {\n\tsome n in numbers.range(1, 100)\n}\n",
        "policy.error",
    ),
    "division by zero under not": ("default allow := false\nallow if not 1 / 0 > 1\n" + NONE, "policy.error"),
    "a failing conversion under not": (
        'default allow := false\nallow if not to_number(concat("", [input.job.purpose, "x"])) > 1\n' + NONE,
        "policy.error",
    ),
    "two rules that disagree": (
        'allow := true\nallow := false if input.job.kind == "train"\n' + NONE,
        "policy.error",
    ),
    "recursion": ("allow if other\nother if allow\n" + NONE, "policy.error"),
    "a syntax error": ("allow if {\n", "policy.error"),
    "an unknown function": ("allow if nonsense(1)\n" + NONE, "policy.error"),
    "a reason that is not text": (
        'allow := true\ndeny := {{"code": "policy.scan", "message": 1, "fix": "f"}}\n',
        "policy.error",
    ),
    "input replaced, which crashes the engine": (
        "default allow := false\nallow if inner with input as {}\n"
        "inner if outer == 0\nouter := count(input)\n" + NONE,
        "policy.error",
    ),
}


@pytest.mark.parametrize("name", FAILING)
def test_a_set_without_a_usable_answer_refuses(document: AdmissionInput, name: str) -> None:
    rules, code = FAILING[name]
    assert codes(evaluate([a_set(rules)], document)) == [code]


def test_allow_beside_a_reason_refuses(document: AdmissionInput) -> None:
    assert codes(evaluate([a_set("allow := true\n" + DENY)], document)) == ["policy.denied"]


def test_a_crash_does_not_hide_behind_another_sets_permission(
    shipped: Bundle, document: AdmissionInput
) -> None:
    crash = a_set(FAILING["input replaced, which crashes the engine"][0])
    assert codes(evaluate([shipped, crash, shipped], document)) == ["policy.error"]


def test_a_set_that_does_not_end_is_killed_at_the_deadline(document: AdmissionInput) -> None:
    loop = "allow if {\n" + "".join(f"\tsome v{i} in numbers.range(1, 300)\n" for i in range(4))
    decision = evaluate([a_set(loop + "\tv0 + v1 + v2 + v3 < 0\n}\n" + NONE)], document, timeout_s=0.4)
    assert codes(decision) == ["policy.timeout"]


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("nan"), float("inf")])
def test_a_deadline_is_a_positive_time(document: AdmissionInput, timeout: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        evaluate([], document, timeout_s=timeout)


class _Silent:
    """An engine that breaks its contract: fewer answers than sets."""

    name = "silent"

    def decide(self, bundles: Sequence[Bundle], document: bytes, timeout_s: float) -> tuple[Answer, ...]:
        return ()


def test_an_engine_that_forgets_a_set_is_an_error(shipped: Bundle, document: AdmissionInput) -> None:
    engine: Engine = _Silent()
    with pytest.raises(ValueError, match="zip"):
        evaluate([shipped], document, engine=engine)


HOSTILE = [
    '"]}}',
    '",true,0,[]]}}',
    '\\"',
    "\\",
    '"}],"x":[true,true,0,[]]}}',
    "%v%s%d",
    "{{.}}",
    "`",
    "\u2028",
    "ünïcödé 🩺",
    "data.rapha.admission.allow",
    "a" * 500,
]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_of_the_input_cannot_change_the_verdict(text: str) -> None:
    rule = (
        OPEN + 'deny contains {"code": "policy.denied", "message": sprintf("%v %s", '
        '[input.dataset.consent_basis, input.job.dataset.cohort_fields[0]]), "fix": "f"} if true\n'
    )
    changed = admissible()
    changed["dataset"]["consent_basis"] = text
    changed["job"]["dataset"]["cohort_fields"] = [text]
    assert not evaluate([a_set(rule)], AdmissionInput.parse(changed)).allow


@given(st.text(), st.sampled_from(["value", "undefined", "error"]))
def test_no_stray_text_of_the_engine_is_a_permission(text: str, kind: child.Kind) -> None:
    answer = regopy_engine.read(kind, text)
    assert isinstance(answer, Failure)


@given(st.lists(st.text(), max_size=3))
def test_only_the_exact_answer_is_a_permission(parts: list[str]) -> None:
    body = ",".join(json.dumps(part) for part in parts)
    for allow in ('"', "1", "[true", "{}", "null", "True"):
        text = f'{{"expressions":[true], "bindings":{{"x":[{allow},true,0,[{body}]]}}}}'
        assert isinstance(regopy_engine.read("value", text), Failure)


ANSWERS = {
    "the count is of another set": "[true,true,1,[]]",
    "a part too many": "[true,true,0,[],[]]",
    "deny is no set": "[true,false,0,[]]",
    "deny is an object": "[true,true,0,{}]",
    "cut off": "[true,true,0,[]",
    "a key twice": '[false,true,1,[{"code":"policy.scan","code":"policy.scan","message":"m","fix":"f"}]]',
}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_of_another_shape_is_an_error(name: str) -> None:
    text = f'{{"expressions":[true], "bindings":{{"x":{ANSWERS[name]}}}}}'
    answer = regopy_engine.read("value", text)
    assert isinstance(answer, Failure)
    assert answer.code == "policy.error"


def test_explain_names_each_rule_and_the_smallest_change(document: AdmissionInput) -> None:
    reasons = (
        Reason(code="budget.max", message="it costs 10", fix="Raise it."),
        Reason(code="policy.scan", message="a pickle", fix="Remove it."),
    )
    bundles = ("0" * 64, "1" * 64)
    text = explain(Decision(allow=False, reasons=reasons, bundles=bundles, input="2" * 64, engine="e"))
    for reason in reasons:
        assert all(
            part in text for part in (reason.code, reason.message, reason.fix, REGISTRY[reason.code].meaning)
        )
    assert "2 reasons" in text
    assert "2 policy sets" in text
    assert explain(evaluate([Bundle.load(DEFAULT)], document)) == "Admitted: 1 policy set allows this job."
