"""The API against its own OpenAPI document: generated calls, right and wrong, never a surprise."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, cast

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


def test_every_operation_answers_as_it_is_documented(running: Any, alice: Any) -> None:
    schema = schemathesis.openapi.from_url(f"{running.url}/openapi.json")
    headers = {"Authorization": f"Bearer {alice.api_key}"}
    count = 0
    for result in schema.get_all_operations():
        operation: Any = cast("Any", result).ok()
        for mode in GenerationMode:

            @settings(
                max_examples=3,
                deadline=None,
                database=None,
                derandomize=True,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def _one(case: Any) -> None:
                if case.query:
                    case.query.pop("wait", None)
                case.call_and_validate(base_url=running.url, headers=headers, checks=CHECKS)

            with suppress(Unsatisfiable):  # an operation without a parameter can't be called wrongly
                _one()
        count += 1
    assert count == len(schema.raw_schema["paths"]) + 3  # PUT and GET, or POST and GET, on three paths


def test_the_document_names_every_operation_once(running: Any) -> None:
    document = running.http.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    names = [op["operationId"] for path in document["paths"].values() for op in path.values()]
    assert len(set(names)) == len(names)
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation["summary"], path
