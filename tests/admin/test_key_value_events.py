"""Key-value stores: events, number of statements, deletion with the account, and profile resets."""

import asyncio
import json
from contextlib import aclosing
from typing import Any

import pytest
from sqlalchemy import insert, select

from graph.types import global_ids
from models.admin.key_values import KeyValueEntry
from models.events.journal import Change
from models.runtime.environment import Environment
from models.store.columns import select_columns
from models.users.roles import Role, Scope, UserPermission
from resolvers.admin import tasks
from tests.conftest import GraphQLClient, make_api_key, make_client, make_user
from tests.support.accounts.demo_account import subscription_results
from tests.support.accounts.key_value_operations import (
    KEY_VALUES_QUERY,
    list_keys,
    load_key_value_rows,
    run_key_value_mutation,
    set_value,
)
from tests.support.stores.counter_check import load_stream_position, select_rows
from tests.support.time_limits import HANG_SECONDS

FOLLOW = """subscription {
  changes(after: "AFTER", types: [KEY_VALUE_CREATED, KEY_VALUE_DELETED], debounce: "PT0S") {
    events { type user { username }
      ... on UserChange { nodeId node { ... on KeyValueEntry { key value } } } } } }"""
pytestmark = pytest.mark.usefixtures("verify_consistency")


async def insert_entries(environment: Environment, owner_id: int, entry_keys: list[str]) -> None:
    """Insert entries without journal entries and limits."""
    entry_rows = [
        {"id": environment.new_id(), "stream_id": owner_id, "store": "default", "key": key,
         "level": key[: key.rfind("/") + 1], "value": "x", "version": 1, "size": len(key) + 1}
        for key in entry_keys
    ]  # fmt: skip
    async with environment.write_session(owner_id) as session:
        await (await session.connection()).execute(insert(KeyValueEntry), entry_rows)


async def next_events(client: GraphQLClient, after: str, count: int) -> list[Any]:
    """Return the next events of a subscription."""
    events: list[Any] = []
    stream = subscription_results(client, FOLLOW.replace("AFTER", after))
    async with asyncio.timeout(HANG_SECONDS), aclosing(stream) as results:
        async for result in results:
            assert not result.errors
            events += result.data["changes"]["events"]
            if len(events) >= count:
                return events
    return events


async def test_owner_gets_events_and_the_journal_has_no_values(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    start = (await ada("{ viewer { user { cursor } } }"))["viewer"]["user"]["cursor"]
    bobs_position = await load_stream_position(bob.environment, bob.user.id)
    deleted_ids = [(await set_value(ada, key, "my word"))["id"] for key in ("ui/theme", "ui/size")]
    remaining = await set_value(ada, "name", "my word")
    assert (await run_key_value_mutation(ada, "keyValueDelete", key="ui", recursive=True))[
        "deletedCount"
    ] == 2
    events = await next_events(ada, start, 5)
    assert [event["nodeId"] for event in events] == [*deleted_ids, remaining["id"], *deleted_ids]
    nodes = [None, None, {"key": "name", "value": "my word"}, None, None]  # the current values
    assert [event["node"] for event in events] == nodes
    assert {event["user"]["username"] for event in events} == {"ada"}
    facts = [
        row.facts for row in await ada.environment.database.read(select(*select_columns(Change)))
    ]
    assert "my word" not in json.dumps(facts)
    assert await load_stream_position(bob.environment, bob.user.id) == bobs_position


async def test_mail_scope_gets_event_without_the_entry(ada: GraphQLClient) -> None:
    secret = await make_api_key(
        ada.environment, "mail", user_id=ada.user.id, role=Role.USER, scopes=[Scope.MAIL_READ]
    )
    mail = GraphQLClient(ada.http, ada.environment, ada.user, secret)
    entry = await set_value(ada, "a", "my word")
    (event,) = await next_events(mail, f"1.{ada.user.id}.{entry['version'] - 1}", 1)
    assert (event["nodeId"], event["node"]) == (entry["id"], None)


USERS_ENTRIES = '{ users(first: 50) { nodes { keyValue(key: "a") { key value version } } } }'


async def test_entries_of_users_need_a_constant_number_of_statements(
    root: GraphQLClient, statements: list[str]
) -> None:
    async def cost() -> int:
        del statements[:]
        users = (await root(USERS_ENTRIES))["users"]["nodes"]
        assert all(node["keyValue"] == {"key": "a", "value": "x", "version": 1} for node in users)
        return len([statement for statement in statements if "api_keys" not in statement])

    await insert_entries(root.environment, (await make_user(root.environment, "first")).id, ["a"])
    statement_counts = [await cost()]
    for n in range(20):
        await insert_entries(
            root.environment, (await make_user(root.environment, f"n{n}")).id, ["a"]
        )
    statement_counts += [await cost(), await cost()]
    assert len(set(statement_counts)) == 1


async def test_list_and_delete_need_a_constant_number_of_statements(
    ada: GraphQLClient, statements: list[str]
) -> None:
    async def cost() -> tuple[int, int]:
        del statements[:]
        page = (await ada(KEY_VALUES_QUERY, prefix="ui/", recursive=True, first=50))["keyValues"]
        read_count = len([statement for statement in statements if "api_keys" not in statement])
        del statements[:]
        deleted_count = (
            await run_key_value_mutation(ada, "keyValueDelete", key="ui", recursive=True)
        )["deletedCount"]
        assert len(page["nodes"]) == deleted_count
        return read_count, len(
            [statement for statement in statements if "api_keys" not in statement]
        )

    await insert_entries(ada.environment, ada.user.id, ["ui/0"])
    expected = await cost()
    await insert_entries(ada.environment, ada.user.id, [f"ui/{n}" for n in range(20)])
    assert await cost() == expected


async def test_entries_are_deleted_when_the_user_is_purged(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = ada.environment
    await insert_entries(environment, ada.user.id, [f"a/{n}" for n in range(5)])
    await set_value(bob, "b")
    await set_value(root, "c", shared=True)
    users = {"ids": [global_ids.encode("User", ada.user.id)]}
    delete = "mutation ($i: UserDeleteInput!) { userDelete(input: $i) { errors { code } } }"
    delayed = {"users": users, "purgeAt": "2030-02-01T00:00:00Z"}
    assert (await root(delete, i=delayed))["userDelete"]["errors"] == []
    node = "query ($id: ID!) { node(id: $id) { id } }"
    ((entry_id, *_), *_) = await select_rows(
        environment, "SELECT id FROM key_value_entries WHERE key = 'a/0'"
    )
    assert (await root(node, id=global_ids.encode("KeyValueEntry", entry_id)))["node"] is None
    restore = "mutation ($i: UserRestoreInput!) { userRestore(input: $i) { errors { code } } }"
    restored = await root(restore, i={"user": {"username": "ada"}})
    assert restored["userRestore"]["errors"] == []
    assert await list_keys(ada, "a/") == [f"a/{n}" for n in range(5)]
    monkeypatch.setattr("resolvers.users.purge.CHUNK_ROWS", 2)
    assert (await root(delete, i={"users": users}))["userDelete"]["errors"] == []
    assert await tasks.run_next_task(environment)
    assert sorted(row[2] for row in await load_key_value_rows(environment)) == ["b", "c"]


async def test_user_preferences_reset_deletes_ui_entries(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    for client in (ada, bob):
        for key in ("ui/a", "ui/b/c", "ui", "uix", "u"):
            await set_value(client, key)
    before = await load_stream_position(ada.environment, ada.user.id)
    payload = await run_key_value_mutation(ada, "userPreferencesReset")
    assert payload == {"users": [{"username": "ada"}], "errors": []}
    assert await list_keys(ada, recursive=True) == ["u", "ui", "uix"]
    assert len(await list_keys(bob, recursive=True)) == 5
    assert await load_stream_position(ada.environment, ada.user.id) == before + 2
    assert (await run_key_value_mutation(ada, "userPreferencesReset"))[
        "errors"
    ] == []  # no entries are left
    assert await load_stream_position(ada.environment, ada.user.id) == before + 2
    refused = await run_key_value_mutation(
        ada, "userPreferencesReset", users={"usernames": ["bob"]}
    )
    assert [error["code"] for error in refused["errors"]] == ["NOT_FOUND"]
    assert len(await list_keys(bob, recursive=True)) == 5


async def test_user_preferences_reset_needs_the_permission(ada: GraphQLClient) -> None:
    eve = await make_client(
        ada.environment, ada.http, "eve", permissions=[UserPermission.SYNC_RESET]
    )
    await set_value(eve, "ui/a")
    (error,) = (await run_key_value_mutation(eve, "userPreferencesReset"))["errors"]
    assert (error["code"], error["requires"]) == ("FORBIDDEN", "PREFERENCES_RESET")
    assert await list_keys(eve, "ui/") == ["ui/a"]


async def test_user_preferences_reset_needs_a_constant_number_of_statements(
    root: GraphQLClient, statements: list[str]
) -> None:
    user_ids = [(await make_user(root.environment, f"n{n}")).id for n in range(21)]
    for index, user_id in enumerate(user_ids):
        await insert_entries(root.environment, user_id, [f"ui/{n}" for n in range(1 + index % 3)])

    async def cost(selected_ids: list[int]) -> int:
        del statements[:]
        selection = {"ids": [global_ids.encode("User", user_id) for user_id in selected_ids]}
        assert len(
            (await run_key_value_mutation(root, "userPreferencesReset", users=selection))["users"]
        ) == len(selected_ids)
        return len([statement for statement in statements if "api_keys" not in statement])

    assert await cost(user_ids[:1]) == await cost(user_ids[1:])
    assert await load_key_value_rows(root.environment) == []
    statement_text = "SELECT count(*) FROM audit_log WHERE mutation = 'userPreferencesReset'"
    assert await select_rows(root.environment, statement_text) == [(21,)]
