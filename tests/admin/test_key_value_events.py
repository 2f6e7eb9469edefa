"""Key-value stores: what their owners hear, what they cost to read, and the end of accounts."""

import asyncio
import json
from contextlib import aclosing
from typing import Any

import pytest
from sqlalchemy import insert, select

from graph.types import global_ids
from models.admin.key_values import KeyValue
from models.events.journal import Change
from models.runtime.environment import Environment
from models.store.columns import select_columns
from models.users.roles import Role, Scope, UserPermission
from resolvers.admin import tasks
from tests.conftest import Client, make_client, make_key, make_user
from tests.support.accounts.demo_account import subscribed
from tests.support.accounts.key_value_operations import LIST, done, kept, keys, put
from tests.support.stores.counter_check import reached, rows

FOLLOW = """subscription {
  changes(after: "AFTER", kinds: [KEY_VALUE_CHANGED], batchWindow: "PT0S") {
    events { kind user { username }
      ... on AccountChange { nodeId node { ... on KeyValue { key value } } } } } }"""
pytestmark = pytest.mark.usefixtures("examined")


async def fill(world: Environment, owner: int, names: list[str]) -> None:
    """Put entries there, past the journal and all limits."""
    given = [
        {"id": world.new_id(), "stream_id": owner, "store": "default", "key": name,
         "level": name[: name.rfind("/") + 1], "value": "x", "version": 1, "size": len(name) + 1}
        for name in names
    ]  # fmt: skip
    async with world.write_session(owner) as session:
        await (await session.connection()).execute(insert(KeyValue), given)


async def heard(client: Client, after: str, many: int) -> list[Any]:
    """The next events of a follower."""
    events: list[Any] = []
    stream = subscribed(client, FOLLOW.replace("AFTER", after))
    async with asyncio.timeout(5), aclosing(stream) as results:
        async for result in results:
            assert not result.errors
            events += result.data["changes"]["events"]
            if len(events) >= many:
                return events
    return events


async def test_the_owner_hears_of_the_key_and_the_journal_keeps_no_value(
    ada: Client, bob: Client
) -> None:
    start = (await ada("{ viewer { user { cursor } } }"))["viewer"]["user"]["cursor"]
    of_bob = await reached(bob.world, bob.user.id)
    gone = [(await put(ada, key, "my word"))["id"] for key in ("ui/theme", "ui/size")]
    left = await put(ada, "name", "my word")
    assert (await done(ada, "keyValueDelete", key="ui", recursive=True))["deleted"] == 2
    events = await heard(ada, start, 5)
    assert [event["nodeId"] for event in events] == [*gone, left["id"], *gone]
    nodes = [None, None, {"key": "name", "value": "my word"}, None, None]  # as they are by now
    assert [event["node"] for event in events] == nodes
    assert {event["user"]["username"] for event in events} == {"ada"}
    told = [row.facts for row in await ada.world.database.read(select(*select_columns(Change)))]
    assert "my word" not in json.dumps(told)
    assert await reached(bob.world, bob.user.id) == of_bob


async def test_who_may_follow_mail_alone_hears_that_something_changed(ada: Client) -> None:
    secret = await make_key(
        ada.world, "mail", user_id=ada.user.id, role=Role.USER, scopes=[Scope.MAIL_READ]
    )
    mail = Client(ada.http, ada.world, ada.user, secret)
    entry = await put(ada, "a", "my word")
    (event,) = await heard(mail, f"1.{ada.user.id}.{entry['version'] - 1}", 1)
    assert (event["nodeId"], event["node"]) == (entry["id"], None)


OF_USERS = '{ users(first: 50) { nodes { keyValue(key: "a") { key value version } } } }'


async def test_entries_of_many_accounts_cost_what_those_of_one_do(
    root: Client, statements: list[str]
) -> None:
    async def cost() -> int:
        del statements[:]
        found = (await root(OF_USERS))["users"]["nodes"]
        assert all(node["keyValue"] == {"key": "a", "value": "x", "version": 1} for node in found)
        return len([sent for sent in statements if "api_keys" not in sent])

    await fill(root.world, (await make_user(root.world, "first")).id, ["a"])
    costs = [await cost()]
    for n in range(20):
        await fill(root.world, (await make_user(root.world, f"n{n}")).id, ["a"])
    costs += [await cost(), await cost()]
    assert len(set(costs)) == 1


async def test_many_entries_cost_what_one_does(ada: Client, statements: list[str]) -> None:
    async def cost() -> tuple[int, int]:
        del statements[:]
        page = (await ada(LIST, prefix="ui/", recurse=True, first=50))["keyValues"]
        read = len([sent for sent in statements if "api_keys" not in sent])
        del statements[:]
        gone = (await done(ada, "keyValueDelete", key="ui", recursive=True))["deleted"]
        assert len(page["nodes"]) == gone
        return read, len([sent for sent in statements if "api_keys" not in sent])

    await fill(ada.world, ada.user.id, ["ui/0"])
    few = await cost()
    await fill(ada.world, ada.user.id, [f"ui/{n}" for n in range(20)])
    assert await cost() == few


async def test_entries_stay_through_the_time_of_grace_and_go_with_the_account(
    ada: Client, bob: Client, root: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = ada.world
    await fill(world, ada.user.id, [f"a/{n}" for n in range(5)])
    await put(bob, "b")
    await put(root, "c", shared=True)
    users = {"ids": [global_ids.encode("User", ada.user.id)]}
    delete = "mutation ($i: UserDeleteInput!) { userDelete(input: $i) { errors { code } } }"
    later = {"users": users, "deleteAfter": "2030-02-01T00:00:00Z"}
    assert (await root(delete, i=later))["userDelete"]["errors"] == []
    node = "query ($id: ID!) { node(id: $id) { id } }"
    ((key, *_), *_) = await rows(world, "SELECT id FROM key_values WHERE key = 'a/0'")
    assert (await root(node, id=global_ids.encode("KeyValue", key)))["node"] is None
    restore = "mutation ($i: UserRestoreInput!) { userRestore(input: $i) { errors { code } } }"
    back = await root(restore, i={"by": {"username": "ada"}})
    assert back["userRestore"]["errors"] == []
    assert await keys(ada, "a/") == [f"a/{n}" for n in range(5)]
    monkeypatch.setattr("resolvers.users.purge.CHUNK_ROWS", 2)
    assert (await root(delete, i={"users": users}))["userDelete"]["errors"] == []
    assert await tasks.run_next_task(world)
    assert sorted(row[2] for row in await kept(world)) == ["b", "c"]


# what browser clients keep


async def test_preferences_of_browser_clients_are_forgotten(ada: Client, bob: Client) -> None:
    for client in (ada, bob):
        for key in ("ui/a", "ui/b/c", "ui", "uix", "u"):
            await put(client, key)
    before = await reached(ada.world, ada.user.id)
    payload = await done(ada, "profileReset")
    assert payload == {"users": [{"username": "ada"}], "errors": []}
    assert await keys(ada, recurse=True) == ["u", "ui", "uix"]
    assert len(await keys(bob, recurse=True)) == 5
    assert await reached(ada.world, ada.user.id) == before + 2
    assert (await done(ada, "profileReset"))["errors"] == []  # there was nothing left
    assert await reached(ada.world, ada.user.id) == before + 2
    refused = await done(ada, "profileReset", users={"usernames": ["bob"]})
    assert [error["code"] for error in refused["errors"]] == ["NOT_FOUND"]
    assert len(await keys(bob, recurse=True)) == 5


async def test_a_user_needs_the_permission_to_forget_them(ada: Client) -> None:
    eve = await make_client(ada.world, ada.http, "eve", permissions=[UserPermission.CLIENT_RESET])
    await put(eve, "ui/a")
    (error,) = (await done(eve, "profileReset"))["errors"]
    assert (error["code"], error["requires"]) == ("FORBIDDEN", "PROFILE_RESET")
    assert await keys(eve, "ui/") == ["ui/a"]


async def test_those_of_many_accounts_take_as_many_statements_as_of_one(
    root: Client, statements: list[str]
) -> None:
    people = [(await make_user(root.world, f"n{n}")).id for n in range(21)]
    for nth, key in enumerate(people):
        await fill(root.world, key, [f"ui/{n}" for n in range(1 + nth % 3)])

    async def cost(keys: list[int]) -> int:
        del statements[:]
        selection = {"ids": [global_ids.encode("User", key) for key in keys]}
        assert len((await done(root, "profileReset", users=selection))["users"]) == len(keys)
        return len([sent for sent in statements if "api_keys" not in sent])

    assert await cost(people[:1]) == await cost(people[1:])
    assert await kept(root.world) == []
    log = "SELECT count(*) FROM admin_log WHERE mutation = 'profileReset'"
    assert await rows(root.world, log) == [(21,)]
