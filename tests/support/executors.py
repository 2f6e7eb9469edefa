"""Fixtures for the execution of operations: a long deadline, and each of the executors."""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from graph.schema import schema
from tests.support.time_limits import HANG_SECONDS

if TYPE_CHECKING:
    from tests.conftest import GraphQLClient


@pytest.fixture(scope="session", autouse=True)
def long_operation_deadline() -> None:
    """Let operations of this process take long, since a busy machine is slow."""
    schema.limits = replace(schema.limits, deadline=HANG_SECONDS)


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
