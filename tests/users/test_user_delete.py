"""Deleting and purging users, and who can restore them."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from graph.types import global_ids
from mail.recipients import address_resolution
from mail.storage import message_insert, received_messages
from mail.storage.blobs.garbage_collector import collect_garbage
from models.errors import NotFound
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.runtime.environment import Environment
from models.users.roles import Role, Scope
from models.users.tables import DomainAdmin
from resolvers.admin import tasks
from resolvers.auth import authentication
from resolvers.context import Context
from resolvers.users import delete as user_delete
from resolvers.users import loaders as user_loaders
from resolvers.users.creation import create as creation_create
from resolvers.users.creation.create import NewUser
from resolvers.users.selection import UserSelector
from resolvers.viewer import Viewer
from tests.conftest import (
    GraphQLClient,
    ManualClock,
    deliver_to,
    make_api_key,
    make_client,
    make_user,
    raw_message,
)
from tests.support.accounts.deleted_users import (
    LATER,
    assert_user_is_unknown,
    delete_users,
    load_deleted_user,
    restore_user,
)
from tests.support.accounts.user_operations import make_admin_of_domain, try_create_user
from tests.support.stores.counter_check import (
    assert_store_consistent,
    load_journal_entries,
    select_rows,
)
from tests.support.stores.other_processes import deregister_as_dead

USER_PURGE = """
mutation ($input: UserPurgeInput!) { userPurge(input: $input) {
  purgedIds tasks { id } errors { code path } } }
"""
pytestmark = pytest.mark.usefixtures("verify_consistency")


async def make_domain_admin_outside(
    environment: Environment, http: Any, name: str, domain: str
) -> GraphQLClient:
    """Make a domain administrator of this domain who lives in another one."""
    client = await make_client(environment, http, name, role=Role.DOMAIN_ADMIN)
    ((domain_id,),) = await select_rows(
        environment, "SELECT id FROM domains WHERE name = :name", name=domain
    )
    async with environment.write_session() as session:
        session.add(DomainAdmin(user_id=client.user.id, domain_id=domain_id))
    authentication.drop_cached_credentials(environment, client.user.id)
    return client


async def test_deleted_user_is_hidden_at_once_and_purged_by_a_task(
    root: GraphQLClient,
    ada: GraphQLClient,
    bob: GraphQLClient,
    environment: Environment,
    clock: ManualClock,
) -> None:
    for n in range(3):
        await deliver_to(ada, f"Letter {n}")
        await deliver_to(bob, f"Letter {n}")
    document = "mutation ($i: MessageDeleteInput!) { messageDelete(input: $i) { deletedCount } }"
    ((message_id,), *_) = await select_rows(
        environment, "SELECT id FROM messages WHERE user_id = :k", k=ada.user.id
    )
    # to the archive of deleted messages
    await ada(document, i={"select": {"ids": [global_ids.encode("Message", message_id)]}})
    recipient = await address_resolution.load_recipient_below_limits(environment, ada.address)
    count_before = await select_rows(environment, "SELECT count(*) FROM messages")
    payload, errors = await delete_users(root, ada.user.id)
    assert errors == []
    assert payload["deletedIds"] == [global_ids.encode("User", ada.user.id)]
    await assert_user_is_unknown(environment, root, ada.user.id, "ada")
    assert (await ada.execute("{ viewer { user { id } } }"))["errors"]
    with pytest.raises(NotFound):  # a recipient that was resolved before is refused too
        await received_messages.store_once_for_recipient(
            environment,
            await received_messages.parse_storable_message(raw_message("Late")),
            recipient,
            "x@example.com",
        )
    new_user = await make_user(environment, "ada")  # username and address are free
    await assert_store_consistent(environment)
    assert count_before == await select_rows(environment, "SELECT count(*) FROM messages")

    assert await tasks.run_next_task(environment)
    task = await root("query ($id: ID!) { task(by: {id: $id}) { state doneCount totalCount } }",
                      id=payload["tasks"][0]["id"])  # fmt: skip
    assert task == {"task": {"state": "SUCCEEDED", "doneCount": 3, "totalCount": 3}}
    for table in ("mailboxes", "messages", "threads", "api_keys", "thread_keys"):
        query = f"SELECT count(*) FROM {table} WHERE user_id = :key"  # noqa: S608 - our own names
        assert await select_rows(environment, query, key=ada.user.id) == [(0,)]
    for table in ("users", "streams", "deleted_users"):
        query = f"SELECT count(*) FROM {table} WHERE id = :key"  # noqa: S608 - our own names
        assert await select_rows(environment, query, key=ada.user.id) == [(0,)]
    clock.tick(days=2)
    shared = await collect_garbage(environment, environment.object_store)
    assert shared.row_count == 0  # bob has the same messages
    assert (await delete_users(root, bob.user.id))[1] == []
    assert await tasks.run_next_task(environment)
    assert (await collect_garbage(environment, environment.object_store)).row_count > 0
    assert await select_rows(environment, "SELECT count(*) FROM blobs") == [(0,)]
    assert (
        await user_loaders.load_visible_users_by_id(
            Context(environment, Viewer(role=Role.ROOT)), [new_user.id]
        )
    )[0]
    purged_ids = [ids for kind, ids in await load_journal_entries(environment, PLATFORM)
            if kind is EventType.USER_PURGED]  # fmt: skip
    assert [ada.user.id] in purged_ids


async def test_repeated_delete_changes_the_time_of_the_same_task(
    root: GraphQLClient, ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    await deliver_to(ada, "Hello")
    first, _ = await delete_users(root, ada.user.id, purgeAt=LATER)
    assert not await tasks.run_next_task(environment)
    for selection in (
        {"ids": [global_ids.encode("User", ada.user.id)]},
        {"usernames": ["A.da"]},
        {"usernames": ["ada"], "ids": [global_ids.encode("User", ada.user.id)]},
    ):
        repeated, errors = await delete_users(root, selection, purgeAt="2030-03-01T00:00:00Z")
        assert (errors, repeated["tasks"][0]["id"]) == ([], first["tasks"][0]["id"])
        assert repeated["deletedIds"] == first["deletedIds"]
    assert await select_rows(environment, "SELECT count(*) FROM tasks") == [(1,)]
    clock.tick(days=32)
    assert not await tasks.run_next_task(environment)
    deleted_user = await load_deleted_user(root, username="ada")
    assert deleted_user["purgeAt"] == "2030-03-01T00:00:00Z"
    clock.tick(days=32)
    assert await tasks.run_next_task(environment)
    assert await load_deleted_user(root, username="ada") is None
    _, (error,) = await delete_users(root, ada.user.id)
    assert (error["code"], error["path"]) == ("NOT_FOUND", ["users", "ids", "0"])


async def test_domain_admin_deletes_and_restores_only_own_users(
    root: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient, environment: Environment
) -> None:
    admin_ctx = Context(environment, Viewer(role=Role.ROOT))
    await creation_create.create_user(
        admin_ctx, NewUser(username="far", address="far@new.example", password_disabled=True)
    )
    own_admin = await make_domain_admin_outside(environment, root.http, "here", "example.org")
    other_admin = await make_domain_admin_outside(environment, root.http, "there", "new.example")
    _, (error,) = await delete_users(other_admin, ada.user.id)
    assert (error["code"], error["path"]) == ("NOT_FOUND", ["users", "ids", "0"])
    _, (error,) = await delete_users(other_admin, {"usernames": ["ada"]})
    assert error["code"] == "NOT_FOUND"
    payload, _ = await delete_users(other_admin, {"patterns": ["a*"]})
    assert payload["deletedIds"] == []
    _, (error,) = await delete_users(own_admin, own_admin.user.id)
    assert (error["code"], error["path"]) == (
        "FORBIDDEN_OPERATION",
        ["users", "ids", "0"],
    )
    _, (error,) = await delete_users(own_admin, other_admin.user.id)  # another domain administrator
    assert error["code"] == "FORBIDDEN"
    _, (error,) = await delete_users(own_admin, {"all": True})
    assert (error["code"], error["requires"]) == ("FORBIDDEN", "ADMIN")
    _, (error,) = await delete_users(own_admin, {})
    assert (error["code"], error["path"]) == ("VALIDATION", ["users"])
    _, (error,) = await delete_users(bob, ada.user.id)
    assert (error["code"], error["requires"]) == ("FORBIDDEN", "DOMAIN_ADMIN")
    payload, errors = await delete_users(own_admin, ada.user.id, purgeAt=LATER)
    assert (errors, len(payload["deletedIds"])) == ([], 1)
    task_query = "query ($id: ID!) { task(by: {id: $id}) { kind user { id } } }"
    assert (await own_admin(task_query, id=payload["tasks"][0]["id"]))["task"] == {
        "kind": "USER_DELETE",
        "user": None,
    }
    assert (await other_admin(task_query, id=payload["tasks"][0]["id"]))["task"] is None
    cancel = "mutation ($i: TaskCancelInput!) { taskCancel(input: $i) { errors { code } } }"
    cancel_response = await own_admin(cancel, i={"tasks": [{"id": payload["tasks"][0]["id"]}]})
    assert cancel_response["taskCancel"]["errors"] == [{"code": "FORBIDDEN_OPERATION"}]
    for deleted_ref in ({"username": "ada"}, {"address": "ada@example.org"},
               {"id": payload["deletedIds"][0]}):  # fmt: skip
        assert await load_deleted_user(other_admin, **deleted_ref) is None
        _, (error,) = await restore_user(other_admin, **deleted_ref)
        assert error["code"] == "NOT_FOUND"
        assert await load_deleted_user(own_admin, **deleted_ref)
    _, (error,) = await delete_users(other_admin, ada.user.id)
    assert error["code"] == "NOT_FOUND"
    purge_response = await own_admin(USER_PURGE, input={"users": {"ids": payload["deletedIds"]}})
    assert purge_response["userPurge"]["errors"][0]["code"] == "FORBIDDEN"
    assert (await restore_user(own_admin, username="ada"))[1] == []


async def test_purge_does_not_wait_for_purge_at(
    root: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient, environment: Environment
) -> None:
    await deliver_to(ada, "Hello")
    delete_payload, _ = await delete_users(root, ada.user.id, purgeAt=LATER)
    selection = {"ids": [global_ids.encode("User", client.user.id) for client in (ada, bob)]}
    purge_payload = (await root(USER_PURGE, input={"users": selection}))["userPurge"]
    assert (purge_payload["purgedIds"], purge_payload["errors"]) == (selection["ids"], [])
    assert purge_payload["tasks"][0] == {"id": delete_payload["tasks"][0]["id"]}
    assert await tasks.run_next_task(environment)
    assert await tasks.run_next_task(environment)
    assert await select_rows(environment, "SELECT count(*) FROM users") == [(0,)]
    _, (error,) = await restore_user(root, username="ada")
    assert error["code"] == "NOT_FOUND"


async def test_started_purge_continues_and_cannot_be_restored(
    root: GraphQLClient,
    ada: GraphQLClient,
    environment: Environment,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for n in range(5):
        await deliver_to(ada, f"Letter {n}")
    payload, _ = await delete_users(root, ada.user.id)
    monkeypatch.setattr("resolvers.users.purge.CHUNK_ROWS", 2)
    original_store, calls = tasks._require_lease_and_store_task_progress, list[int]()  # noqa: SLF001 - where a worker may die

    async def fail_at_fifth_call(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 5:
            raise RuntimeError("the worker has died")
        await original_store(*arguments)

    monkeypatch.setattr(tasks, "_require_lease_and_store_task_progress", fail_at_fifth_call)
    with pytest.raises(RuntimeError):
        await tasks.run_next_task(environment)
    await assert_store_consistent(environment)
    assert 0 < (await select_rows(environment, "SELECT count(*) FROM messages"))[0][0] < 5
    _, (error,) = await restore_user(root, username="ada")
    assert (error["code"], error["message"]) == (
        "CONFLICT",
        "The removal of the user's data has already started.",
    )
    _, (error,) = await delete_users(root, ada.user.id, purgeAt=LATER)
    assert (error["code"], error["path"]) == ("CONFLICT", ["purgeAt"])
    repeated, errors = await delete_users(root, ada.user.id)
    assert (errors, repeated["tasks"][0]["id"]) == ([], payload["tasks"][0]["id"])
    await deregister_as_dead(environment)
    assert await tasks.run_next_task(environment)
    task = await root("query ($id: ID!) { task(by: {id: $id}) { state doneCount totalCount } }",
                      id=payload["tasks"][0]["id"])  # fmt: skip
    assert task["task"] == {"state": "SUCCEEDED", "doneCount": 5, "totalCount": 5}
    assert await select_rows(environment, "SELECT count(*) FROM users") == [(0,)]


async def test_concurrent_delete_restore_and_delivery_are_consistent(
    root: GraphQLClient, ada: GraphQLClient, environment: Environment
) -> None:
    message = await received_messages.parse_storable_message(raw_message("Racing"))
    recipient = await address_resolution.load_recipient_below_limits(environment, ada.address)
    selection = {"ids": [global_ids.encode("User", ada.user.id)]}
    outcomes = await asyncio.gather(
        *(delete_users(root, selection, purgeAt=LATER) for _ in range(4)),
        *(
            received_messages.store_once_for_recipient(
                environment, message, recipient, f"s{n}@example.com"
            )
            for n in range(4)
        ),
        return_exceptions=True,
    )
    deleted, delivered = outcomes[:4], outcomes[4:]
    assert len({payload["tasks"][0]["id"] for payload, _ in deleted}) == 1
    assert all(
        isinstance(delivery_result, NotFound | message_insert.InsertedMessage)
        for delivery_result in delivered
    )
    await assert_store_consistent(environment)
    outcomes = await asyncio.gather(
        restore_user(root, username="ada"),
        tasks.run_next_task(environment),
        restore_user(root, username="ada"),
    )
    assert sorted(len(errors) for _, errors in (outcomes[0], outcomes[2])) == [0, 1]
    assert outcomes[1] is False
    await delete_users(root, ada.user.id)
    restore_result, has_purged = await asyncio.gather(
        restore_user(root, username="ada"), tasks.run_next_task(environment)
    )
    user_rows = await select_rows(environment, "SELECT count(*) FROM users")
    assert (user_rows == [(1,)]) is (restore_result[1] == [])
    assert has_purged or restore_result[1] == []


async def test_delete_of_many_users_runs_constant_statements(
    environment: Environment, statements: list[str]
) -> None:
    all_ids = [(await make_user(environment, f"n{n}")).id for n in range(21)]
    ctx = Context(environment, Viewer(role=Role.ROOT, scopes=frozenset({Scope.FULL})))

    async def count_statements(user_ids: list[int]) -> int:
        del statements[:]
        await user_delete.delete_users_or_reschedule_purge(
            ctx, UserSelector(ids=tuple(user_ids)), environment.now() + timedelta(days=3)
        )
        return len(statements)

    assert await count_statements(all_ids[:1]) == await count_statements(all_ids[1:])


DELETED_USERS_QUERY = """
query ($filter: DeletedUserFilter, $first: Int, $after: String) {
  deletedUsers(filter: $filter, first: $first, after: $after) {
    nodes { id userId username storageUsed tags purgeAt recoverableAddresses } totalCount
    pageInfo { endCursor hasNextPage } } }
"""


async def test_deleted_users_are_listed_for_those_who_can_restore_them(
    root: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient, statements: list[str]
) -> None:
    async def list_deleted(client: GraphQLClient, **conditions: Any) -> list[str]:
        page = await client(DELETED_USERS_QUERY, **conditions)
        return [node["username"] for node in page["deletedUsers"]["nodes"]]

    domain_admin = await make_admin_of_domain(root)
    assert await list_deleted(root) == []
    await delete_users(root, ada.user.id, purgeAt=LATER)
    await root(DELETED_USERS_QUERY)
    del statements[:]
    await root(DELETED_USERS_QUERY)
    count_for_one = len(statements)
    await delete_users(root, bob.user.id, purgeAt=LATER)
    await try_create_user(root, username="zoe", address="zoe@elsewhere.example")
    await root.execute(
        """mutation { userDelete(input: {users: {usernames: ["zoe"]},
        purgeAt: "2031-01-01T00:00:00Z"}) { errors { code } } }"""
    )
    del statements[:]
    page = (await root(DELETED_USERS_QUERY))["deletedUsers"]
    assert len(statements) == count_for_one
    assert {node["username"] for node in page["nodes"]} == {"ada", "bob", "zoe"}
    assert page["totalCount"] == 3
    assert ["ada@example.org"] in [node["recoverableAddresses"] for node in page["nodes"]]
    by_domain = {"filter": {"domain": {"name": "elsewhere.example"}}}
    assert await list_deleted(root, **by_domain) == ["zoe"]
    assert await list_deleted(root, filter={"query": "AD"}) == ["ada"]
    assert await list_deleted(root, filter={"deletedSince": "2031-01-01T00:00:00Z"}) == []
    assert set(await list_deleted(domain_admin)) == {"ada", "bob"}
    first_page = (await root(DELETED_USERS_QUERY, first=2))["deletedUsers"]
    after = first_page["pageInfo"]["endCursor"]
    rest = (await root(DELETED_USERS_QUERY, first=2, after=after))["deletedUsers"]
    assert len({node["id"] for node in first_page["nodes"] + rest["nodes"]}) == 3
    eve = await make_client(root.environment, root.http, "eve")
    response = await eve.execute(DELETED_USERS_QUERY)
    assert response["errors"][0]["extensions"]["code"] == "FORBIDDEN"


async def test_deleted_user_is_no_node_without_the_scope_read(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    await delete_users(root, ada.user.id, purgeAt=LATER)
    (deleted_user,) = (await root(DELETED_USERS_QUERY))["deletedUsers"]["nodes"]
    document = "query ($id: ID!) { node(id: $id) { ... on DeletedUser { username } } }"
    assert (await root(document, id=deleted_user["id"]))["node"] == {"username": "ada"}
    secret = await make_api_key(root.environment, "mail", role=Role.ROOT, scopes=[Scope.MAIL_READ])
    mail_client = GraphQLClient(root.http, root.environment, root.user, secret)
    response = await mail_client.execute(document, id=deleted_user["id"])
    assert response["errors"][0]["extensions"]["code"] == "FORBIDDEN"
    assert "ada" not in str(response)


async def test_purge_accepts_id_of_deleted_user(root: GraphQLClient, ada: GraphQLClient) -> None:
    await delete_users(root, ada.user.id, purgeAt=LATER)
    selection = {"ids": [global_ids.encode("DeletedUser", ada.user.id)]}
    payload = (await root(USER_PURGE, input={"users": selection}))["userPurge"]
    assert (payload["errors"], payload["purgedIds"]) == (
        [], [global_ids.encode("User", ada.user.id)],
    )  # fmt: skip
