"""Fixtures that run a test with compiled and with plain execution of documents."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from graph.schema import schema

if TYPE_CHECKING:
    from tests.conftest import GraphQLClient


@pytest.fixture(params=[True, False], ids=["compiled", "plain"])
def each_executor(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each of the executors."""
    schema.set_executor_and_clear_documents(is_compiled=request.param)
    yield
    schema.set_executor_and_clear_documents(is_compiled=True)


@pytest.fixture
def ada_by_executor(
    each_executor: None,  # noqa: ARG001 - only its effect counts
    ada: "GraphQLClient",
) -> "GraphQLClient":
    """Ada, by compiled and by plain execution."""
    return ada
