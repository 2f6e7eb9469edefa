"""Filters that are refused: invalid queries and actions, limits and foreign webhooks."""

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from graph.types import global_ids
from models.errors import LimitReached
from models.filters.tables import Filter
from models.notifications.webhooks import Webhook
from models.runtime.environment import Environment
from resolvers.filters import mutations as filter_mutations
from tests.conftest import GraphQLClient, client_context
from tests.support.accounts.user_operations import execute_mutation
from tests.support.case_loop import each_case
from tests.support.operations.filter_operations import (
    FILTER_QUERY,
    add_filter,
    error_codes_and_paths,
    list_filters,
    summary_pairs,
    try_create_filter,
    user_ref,
)

NESTED_QUERY: dict[str, Any] = {"from": "a"}


for _ in range(6):
    NESTED_QUERY = {"any": [NESTED_QUERY]}


INVALID_QUERIES: list[tuple[dict[str, Any], str]] = [
    ({"from": " "}, "query.from"),
    ({"subject": "x" * 256}, "query.subject"),
    ({"larger": 0}, "query.larger"),
    ({"smaller": 0}, "query.smaller"),
    ({"header": {"name": "a:b"}}, "query.header.name"),
    ({"header": {"name": "a", "value": ""}}, "query.header.value"),
    ({"regex": {"pattern": ""}}, "query.regex.pattern"),
    ({"regex": {"pattern": "a("}}, "query.regex.pattern"),
    ({"regex": {"name": "a:b", "pattern": "a"}}, "query.regex.name"),
    ({"regex": {"pattern": "(((a{99}){99}){99}){99}"}}, "query.regex.pattern"),
    ({"all": [{}, {"regex": {"pattern": "["}}]}, "query.all.1.regex.pattern"),
    ({"any": [{"from": "a"}, {"toOrCc": ""}]}, "query.any.1.toOrCc"),
    ({"any": [{}] * 101}, "query.any"),
    ({"not": [{"any": [{}] * 60}] * 2}, "query"),
    (NESTED_QUERY, "query"),
]


async def test_invalid_filter_query_is_refused(ada: GraphQLClient) -> None:
    for case in each_case(INVALID_QUERIES):
        with case as (query, path):
            filter_, errors = await try_create_filter(ada, query, {"seen": True})
            assert (filter_, error_codes_and_paths(errors)) == (
                None,
                [("VALIDATION", path.split("."))],
            )
            assert (await list_filters(ada))["totalCount"] == 0


INVALID_ACTIONS: list[tuple[dict[str, Any], str, str]] = [
    ({}, "VALIDATION", "action"),
    ({"seen": None, "keywords": []}, "VALIDATION", "action"),
    ({"mailbox": {"path": "None"}}, "NOT_FOUND", "action.mailbox"),
    ({"copyTo": [{"path": "INBOX"}, {"path": "None"}]}, "NOT_FOUND", "action.copyTo"),
    ({"copyTo": [{"path": "INBOX"}] * 11}, "VALIDATION", "action.copyTo"),
    ({"forwardTo": ["nobody"]}, "VALIDATION", "action.forwardTo"),
    ({"forwardTo": ["http://127.0.0.1/"]}, "VALIDATION", "action.forwardTo"),
    ({"forwardTo": ["smtp://[::1]"]}, "VALIDATION", "action.forwardTo"),
    ({"forwardTo": ["A.DA+x@example.org"]}, "VALIDATION", "action.forwardTo"),  # ada's own address
    ({"forwardTo": [f"x{n}@example.net" for n in range(5)]}, "VALIDATION", "action.forwardTo"),
    ({"keywords": ["a b"]}, "VALIDATION", "action.keywords"),
    ({"keywords": ["\\Seen"]}, "VALIDATION", "action.keywords"),
    ({"removeKeywords": [f"x{n}" for n in range(33)]}, "VALIDATION", "action.removeKeywords"),
    ({"reply": {"text": " "}}, "VALIDATION", "action.reply.text"),
    ({"reply": {"subject": "a\nb", "text": "x"}}, "VALIDATION", "action.reply"),
    ({"reply": {"text": "x" * (16 << 10) + "x"}}, "VALIDATION", "action.reply"),
    ({"webhook": {"id": global_ids.encode("Webhook", 7)}}, "NOT_FOUND", "action.webhook"),
]


async def test_invalid_filter_action_is_refused(ada: GraphQLClient) -> None:
    for case in each_case(INVALID_ACTIONS):
        with case as (action, code, path):
            filter_, errors = await try_create_filter(ada, {}, action)
            assert filter_ is None
            assert errors[0]["code"] == code
            assert ".".join(errors[0]["path"]).startswith(path)
            assert (await list_filters(ada))["totalCount"] == 0


async def test_filter_over_limit_is_refused(ada: GraphQLClient, environment: Environment) -> None:
    for _ in range(2):
        await add_filter(ada, {}, {"seen": True})
    limited_context = client_context(ada)
    limited_context.environment = replace(
        environment, options=replace(environment.options, filters_max_per_user=2)
    )
    with pytest.raises(LimitReached) as raised:
        await filter_mutations.create_filter(
            limited_context, None, {"query": {}, "action": {"seen": True}}
        )
    assert (raised.value.limit, raised.value.used) == (2, 2)
    assert (await list_filters(ada))["totalCount"] == 2


async def test_filter_too_long_as_script_is_refused(ada: GraphQLClient) -> None:
    long_query = {"any": [{"subject": "ü" * 255} for _ in range(40)]}
    reply = {"reply": {"text": '"' * (16 << 10), "html": '"' * (16 << 10)}}
    filter_, (error,) = await try_create_filter(ada, long_query, reply)
    assert (filter_, error["path"], error["constraint"]) == (None, ["query"], "MAX")


async def test_filter_webhook_must_belong_to_user(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient, environment: Environment
) -> None:
    webhook_ids = {}
    for client in (ada, bob):
        arguments = {
            "types": ["LIMIT_REACHED"],
            "url": "https://h.example/",
            "user": user_ref(client),
        }
        webhook_ids[client.user.id] = (
            await execute_mutation(root, "webhookCreate", "webhook { id }", **arguments)
        )["webhook"]["id"]
    _, errors = await try_create_filter(ada, {}, {"webhook": {"id": webhook_ids[bob.user.id]}})
    assert error_codes_and_paths(errors) == [("NOT_FOUND", ["action", "webhook"])]
    filter_ = await add_filter(ada, {}, {"webhook": {"id": webhook_ids[ada.user.id]}})
    assert summary_pairs(filter_["actionSummary"]) == [["Call webhook", "yes"]]
    assert (await root(FILTER_QUERY, id=filter_["id"]))["filter"]["action"]["webhook"] == {
        "url": "https://h.example/"
    }
    async with environment.write_session() as session:
        await session.exec(update(Webhook).values(active=False))
    assert len(await environment.database.read(select(col(Filter.id)))) == 1
