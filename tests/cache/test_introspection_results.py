"""Results of introspection queries: computed once, equal to graphql-core's, bounded."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from graphql import get_introspection_query, graphql_sync
from strawberry.types import ExecutionResult

from graph.app import create_app
from graph.execution.documents.cost_limits import OperationLimits
from graph.execution.documents.document_cache import DocumentCache, PreparedDocument
from graph.execution.introspection_results import MAX_RESULTS, IntrospectionResults
from graph.http.admission_control import AdmissionControl
from graph.http.graphql_endpoint import EndpointSettings
from graph.schema import schema
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient
from tests.support.case_loop import each_case

WHOLE_SCHEMA = get_introspection_query(input_value_deprecation=True)
LIMIT = 32 << 20  # bytes of a response


@cache
def expected_data(query: str, **variables: Any) -> Any:
    """Return the data of graphql-core, which has its own executor."""
    result = graphql_sync(schema._schema, query, variable_values=variables)  # noqa: SLF001
    assert result.errors is None
    return result.data


def prepare(query: str) -> PreparedDocument:
    documents = DocumentCache(schema._schema, OperationLimits())  # noqa: SLF001
    return documents.find_or_prepare_with_faults(query, None)


class CountedExecution:
    """An execution of a query by graphql-core that counts its runs."""

    def __init__(self, query: str) -> None:
        self.query, self.count = query, 0

    async def __call__(self) -> ExecutionResult:
        self.count += 1
        return ExecutionResult(expected_data(self.query), None)


async def test_introspection_equals_that_of_graphql_core(ada: GraphQLClient) -> None:
    queries = (
        WHOLE_SCHEMA,
        '{ __typename kind: __type(name: "User") { name fields { name } } }',
        '{ one: __type(name: "Nothing") { name } ...More }'
        " fragment More on Query { __schema { queryType { name } } }",
    )
    for case in each_case(queries):
        with case as query:
            for _ in range(3):
                assert await ada(query) == expected_data(query)


async def test_variables_of_introspection_are_used(ada: GraphQLClient) -> None:
    query = "query ($name: String!) { __type(name: $name) { name kind } }"
    for name in ("User", "Domain", "User"):
        assert await ada(query, name=name) == expected_data(query, name=name)


async def test_other_fields_beside_introspection_belong_to_the_caller(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    query = "{ __schema { queryType { name } } viewer { user { username } } }"
    for client, name in ((ada, "ada"), (bob, "bob"), (ada, "ada")):
        assert (await client(query))["viewer"] == {"user": {"username": name}}


async def test_stored_result_is_refused_to_callers_without_introspection(
    ada: GraphQLClient, environment: Environment, tmp_path: Path
) -> None:
    settings = EndpointSettings(guards=AdmissionControl(introspection="signed-in"))
    app = create_app(environment, spool_folder=tmp_path, settings=settings)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        body = {"query": "{ __schema { types { name } } }"}
        headers = {"Authorization": f"Bearer {ada.secret}"}
        first = await http.post("/graphql", json=body, headers=headers)
        assert first.json()["data"] == expected_data(body["query"])
        refusal = (await http.post("/graphql", json=body)).json()
        assert [error["extensions"]["code"] for error in refusal["errors"]] == ["UNAUTHENTICATED"]
        assert "types" not in str(refusal.get("data"))


async def test_introspection_has_a_longer_deadline(
    ada: GraphQLClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "limits", replace(schema.limits, deadline=0.0))
    query = "{ slow: __schema { types { name } } }"
    assert await ada(query) == expected_data(query)
    result = await ada.execute("{ viewer { user { username } } }")
    assert [error["extensions"]["code"] for error in result["errors"]] == ["DEADLINE_EXCEEDED"]


async def test_result_above_the_response_limit_is_an_error_each_time(
    ada: GraphQLClient, environment: Environment, tmp_path: Path
) -> None:
    await ada(WHOLE_SCHEMA)  # stores the result
    settings = EndpointSettings(guards=AdmissionControl(max_response_bytes=100_000))
    app = create_app(environment, spool_folder=tmp_path, settings=settings)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        for _ in range(2):
            headers = {"Authorization": f"Bearer {ada.secret}"}
            response = await http.post("/graphql", json={"query": WHOLE_SCHEMA}, headers=headers)
            (error,) = response.json()["errors"]
            assert error["extensions"]["code"] == "RESPONSE_TOO_LARGE"
            assert len(response.content) < 100_000


async def test_result_is_computed_once() -> None:
    results, execution = IntrospectionResults(), CountedExecution(WHOLE_SCHEMA)
    for _ in range(3):
        result = await results.find_or_execute(prepare(WHOLE_SCHEMA), execution, LIMIT)
        assert orjson.loads(orjson.dumps(result.data)) == expected_data(WHOLE_SCHEMA)
    assert execution.count == 1


async def test_number_of_stored_results_is_limited_by_least_recent_use() -> None:
    results = IntrospectionResults()
    executions = [
        CountedExecution(f'{{ __type(name: "User") {{ a{number}: name }} }}')
        for number in range(MAX_RESULTS + 1)
    ]
    for number in (*range(MAX_RESULTS), 0, MAX_RESULTS, 0, 1):
        execution = executions[number]
        await results.find_or_execute(prepare(execution.query), execution, LIMIT)
    assert [execution.count for execution in executions] == [1, 2, *[1] * (MAX_RESULTS - 1)]
