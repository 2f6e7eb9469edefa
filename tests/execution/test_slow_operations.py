"""The log line of an operation: its statements, and the mark of slow operations."""

import logging
from datetime import timedelta
from typing import Any

import pytest

from graph.execution.operation_execution import OperationContext
from graph.schema import schema
from resolvers.admin.trusted_documents import hash_of
from tests.conftest import GraphQLClient, client_context
from tests.support.operations.quarantine_operations import set_options

OPERATION_LOGGER = "graph.execution.telemetry"
QUERY = "query Boxes { mailboxes(first: 5) { nodes { path unseenCount } } }"
MUTATION = """mutation Add { mailboxCreate(input: {paths: ["Added"]}) {
  mailboxes { path } errors { code } } }"""
IMMEDIATELY, NEVER = timedelta(microseconds=1), timedelta(0)


async def run_and_return_log_record(
    client: GraphQLClient, document: str, caplog: pytest.LogCaptureFixture
) -> Any:
    """Run a document without a request, and return the only log record of its operation."""
    caplog.clear()
    with caplog.at_level(logging.INFO, OPERATION_LOGGER):
        context = OperationContext(client.environment, client_context(client).viewer)
        result = await schema.execute(document, context_value=context)
    assert not result.errors
    (record,) = [record for record in caplog.records if record.name == OPERATION_LOGGER]
    return record


@pytest.mark.parametrize("document", [QUERY, MUTATION])
async def test_log_line_counts_the_statements_of_its_operation(
    ada: GraphQLClient, statements: list[str], caplog: pytest.LogCaptureFixture, document: str
) -> None:
    del statements[:]
    record = await run_and_return_log_record(ada, document, caplog)
    assert record.facts["statements"] == len(statements) > 0
    assert record.levelno == logging.INFO
    assert "slow" not in record.facts


async def test_operation_without_database_has_no_statements(
    ada: GraphQLClient, caplog: pytest.LogCaptureFixture
) -> None:
    record = await run_and_return_log_record(ada, "query Kind { __typename }", caplog)
    assert record.facts["statements"] == 0


async def test_slow_operation_is_a_warning_with_its_document(
    ada: GraphQLClient, caplog: pytest.LogCaptureFixture
) -> None:
    set_options(ada.environment, log_slow_operation_threshold=IMMEDIATELY)
    record = await run_and_return_log_record(ada, QUERY, caplog)
    facts = record.facts
    assert record.levelno == logging.WARNING
    assert (facts["slow"], facts["operation"], facts["kind"]) == (True, "Boxes", "query")
    assert facts["document"] == f"sha256:{hash_of(QUERY).hex()}"
    assert facts["cost"] > 0
    assert facts["statements"] > 0
    assert facts["ms"] > 0


async def test_threshold_of_zero_marks_no_operation(
    ada: GraphQLClient, caplog: pytest.LogCaptureFixture
) -> None:
    set_options(ada.environment, log_slow_operation_threshold=NEVER)
    record = await run_and_return_log_record(ada, QUERY, caplog)
    assert record.levelno == logging.INFO
    assert "slow" not in record.facts


async def test_slow_operation_is_logged_if_others_are_not(
    ada: GraphQLClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, OPERATION_LOGGER):
        await ada(QUERY)
        assert [record for record in caplog.records if record.name == OPERATION_LOGGER] == []
        set_options(ada.environment, log_slow_operation_threshold=IMMEDIATELY)
        await ada(QUERY)
    (record,) = [record for record in caplog.records if record.name == OPERATION_LOGGER]
    assert record.levelno == logging.WARNING
