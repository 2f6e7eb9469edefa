"""Test the priority of a message, which is read from its header."""

from typing import Any

import pytest

from graph.types import global_ids
from tests.conftest import GraphQLClient, deliver_to, raw_message
from tests.support.case_loop import each_case
from tests.support.operations.message_sources import save_draft

QUERY = "query ($id: ID!) { message(by: {id: $id}) { priority } }"
pytestmark = pytest.mark.usefixtures("verify_consistency")


async def read_priority(client: GraphQLClient, message_id: str) -> Any:
    return (await client(QUERY, id=message_id))["message"]["priority"]


async def test_priority_is_read_from_header(ada: GraphQLClient) -> None:
    cases: list[tuple[dict[str, str], str]] = [
        ({}, "NORMAL"),
        ({"X_Priority": "1 (Highest)"}, "HIGH"),
        ({"X_Priority": "2"}, "HIGH"),
        ({"X_Priority": "3", "Importance": "high"}, "NORMAL"),
        ({"X_Priority": "5"}, "LOW"),
        ({"X_Priority": "x", "Importance": "Low"}, "LOW"),
        ({"Importance": "High"}, "HIGH"),
        ({"Importance": "urgent"}, "NORMAL"),
    ]
    for case in each_case(cases):
        with case as (headers, priority):
            inserted = await deliver_to(ada, raw_message(**headers))
            message_id = global_ids.encode("Message", inserted.message_id)
            assert await read_priority(ada, message_id) == priority


async def test_priority_of_draft_is_the_saved_one(ada: GraphQLClient) -> None:
    cases: list[str] = ["HIGH", "NORMAL", "LOW"]
    for case in each_case(cases):
        with case as priority:
            saved = await save_draft(ada, subject="x", priority=priority)
            assert saved["errors"] == []
            assert await read_priority(ada, saved["message"]["id"]) == priority
            again = await save_draft(ada, draft={"id": saved["message"]["id"]}, subject="y")
            assert again["errors"] == []
            assert await read_priority(ada, saved["message"]["id"]) == priority


async def test_priority_of_foreign_message_is_not_readable(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    inserted = await deliver_to(ada, raw_message(X_Priority="1"))
    message_id = global_ids.encode("Message", inserted.message_id)
    assert (await bob(QUERY, id=message_id))["message"] is None
