"""An HTTP client of the endpoint with the small schema, and the error codes of its responses."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from graph.http.graphql_endpoint import EndpointSettings, GraphqlEndpoint
from models.runtime.environment import Environment
from tests.support.servers.small_schema_server import (
    authenticate_by_header,
    make_environment,
    make_schema,
    open_http_client,
    serve_graphiql,
)

PARSE_FAILED = "GRAPHQL_PARSE_FAILED"
VALIDATION_FAILED = "GRAPHQL_VALIDATION_FAILED"
BAD_INPUT = "BAD_USER_INPUT"


@pytest.fixture
async def environment(tmp_path: Path) -> AsyncIterator[Environment]:
    async with make_environment(tmp_path) as environment:
        yield environment


@pytest.fixture
async def http(environment: Environment) -> AsyncIterator[httpx.AsyncClient]:
    endpoint = GraphqlEndpoint(
        make_schema(),
        environment,
        authenticate_by_header,
        EndpointSettings(page=serve_graphiql),
    )
    async with open_http_client(endpoint) as client:
        yield client


def error_code(response: httpx.Response) -> str:
    """Return the code of the only error."""
    (error,) = response.json()["errors"]
    assert error["message"]
    result_code: str = error["extensions"]["code"]
    return result_code
