"""Deleting, purging and restoring users."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text

from graph.types import global_ids
from mail.recipients import address_resolution
from mail.storage import message_insert, received_messages
from mail.storage.blobs.garbage_collector import collect_garbage
from models.addresses.tables import Address
from models.domains.tables import Domain
from models.errors import AuthenticationFailed, NotFound
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.runtime.environment import Environment
from models.users.roles import Role, Scope
from models.users.tables import DomainAdmin
from resolvers.admin import tasks
from resolvers.auth import authentication
from resolvers.context import Context, Viewer
from resolvers.users import delete as user_delete
from resolvers.users import loaders as user_loaders
from resolvers.users.creation import create as creation_create
from resolvers.users.creation.create import NewUser
from resolvers.users.selection import UserSelector
from tests.conftest import (
    GraphQLClient,
    ManualClock,
    deliver_to,
    make_api_key,
    make_client,
    make_user,
    raw_message,
)
from tests.support.accounts.user_operations import make_admin_of_domain, try_create_user
from tests.support.stores.counter_check import (
    assert_store_consistent,
    load_journal_entries,
    select_rows,
)
from tests.support.stores.other_processes import deregister_as_dead

USER_DELETE = """
mutation ($input: UserDeleteInput!) { userDelete(input: $input) {
  deletedIds tasks { id state total done }
  errors { code path message ... on ForbiddenError { requires } } } }
"""
USER_PURGE = """
mutation ($input: UserPurgeInput!) { userPurge(input: $input) {
  purgedIds tasks { id } errors { code path } } }
"""
USER_RESTORE = """
mutation ($input: UserRestoreInput!) { userRestore(input: $input) {
  user { id username active address { address } domain { name userCount } }
  recoveredAddresses lostAddresses
  errors { code path message ... on LimitReachedError { limit used } } } }
"""
DELETED_USER_QUERY = """
query ($by: UserRef!) { deletedUser(by: $by) {
  userId username storageUsed tags deletedAt purgeAt recoverableAddresses } }
"""
LATER = "2030-02-01T00:00:00Z"
PASSWORD = "correct horse"  # noqa: S105 - a password of tests
pytestmark = pytest.mark.usefixtures("verify_consistency")


async def delete_users(client: GraphQLClient, user: Any, **extra: Any) -> tuple[Any, list[Any]]:
    selection = user if isinstance(user, dict) else {"ids": [global_ids.encode("User", user)]}
    payload = (await client(USER_DELETE, input={"users": selection, **extra}))["userDelete"]
    return payload, payload["errors"]


async def restore_user(client: GraphQLClient, **by: Any) -> tuple[Any, list[Any]]:
    payload = (await client(USER_RESTORE, input={"user": by}))["userRestore"]
    return payload, payload["errors"]


async def load_deleted_user(client: GraphQLClient, **by: Any) -> Any:
    return (await client(DELETED_USER_QUERY, by=by))["deletedUser"]


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


async def add_addresses(client: GraphQLClient, *local_parts: str) -> None:
    query = "SELECT domain_id FROM addresses WHERE user_id = :key"
    ((domain_id,),) = await select_rows(client.environment, query, key=client.user.id)
    now = client.environment.now()
    async with client.environment.write_session(domain_id) as session:
        (await session.get_one(Domain, domain_id)).address_count += len(local_parts)
        for name in local_parts:
            session.add(
                Address(
                    id=client.environment.new_id(),
                    local=name,
                    domain_id=domain_id,
                    shown=f"{name}@example.org",
                    user_id=client.user.id,
                    created_at=now,
                    updated_at=now,
                )
            )


async def assert_user_is_unknown(
    environment: Environment, root: GraphQLClient, user_id: int, name: str
) -> None:
    """Check that no query, list, delivery or sign-in finds this user."""
    document = "query ($by: UserRef!) { user(by: $by) { id } }"
    global_id = global_ids.encode("User", user_id)
    for user_ref in ({"id": global_id}, {"username": name}, {"address": f"{name}@example.org"}):
        assert await root(document, by=user_ref) == {"user": None}
    assert await root("query ($id: ID!) { node(id: $id) { id } }", id=global_id) == {"node": None}
    user_list = await root("{ users(first: 250) { nodes { id } totalCount } }")
    assert global_id not in [node["id"] for node in user_list["users"]["nodes"]]
    assert user_list["users"]["totalCount"] == len(user_list["users"]["nodes"])
    with pytest.raises(NotFound):
        await address_resolution.load_recipient_below_limits(environment, f"{name}@example.org")
    with pytest.raises(AuthenticationFailed):
        await authentication.authenticate(Context(environment, Viewer()), name, PASSWORD)


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
    await ada(
        document, i={"select": {"ids": [global_ids.encode("Message", message_id)]}}
    )  # to the archive of deleted messages
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
    task = await root("query ($id: ID!) { task(by: {id: $id}) { state done total } }",
                      id=payload["tasks"][0]["id"])  # fmt: skip
    assert task == {"task": {"state": "SUCCEEDED", "done": 3, "total": 3}}
    for table in ("mailboxes", "messages", "threads", "api_keys", "thread_refs"):
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


@pytest.mark.usefixtures("bob")
async def test_restored_user_has_its_old_data(
    root: GraphQLClient, environment: Environment
) -> None:
    await make_client(environment, root.http, "ada", active=False, tags=["x"])
    ada = (
        await user_loaders.find_user_by_name(Context(environment, Viewer(role=Role.ROOT)), "ada")
    ) or 0
    client = GraphQLClient(root.http, environment, ada, "")  # type: ignore[arg-type]
    await add_addresses(client, "lady", "countess")
    totals_before = await select_rows(
        environment, "SELECT user_count, address_count, quota_allocated FROM domains"
    )
    delete_payload, _ = await delete_users(root, client.user.id, purgeAt=LATER)
    await assert_user_is_unknown(environment, root, client.user.id, "ada")
    admin_ctx = Context(environment, Viewer(role=Role.ROOT))
    await creation_create.create_user(
        admin_ctx, NewUser(username="carl", address="l.ady@example.org", password_disabled=True)
    )
    for deleted_ref in (
        {"username": "A.DA"},
        {"address": "a.da+x@Example.org"},
        {"address": "countess@example.org"},
        {"id": delete_payload["deletedIds"][0]},
    ):
        deleted_user = await load_deleted_user(root, **deleted_ref)
        assert (deleted_user["username"], deleted_user["tags"]) == ("ada", ["x"])
        assert deleted_user["recoverableAddresses"] == ["ada@example.org", "countess@example.org"]
    payload, errors = await restore_user(root, address="countess@example.org")
    assert errors == []
    assert (payload["user"]["username"], payload["user"]["active"]) == ("ada", False)
    assert payload["user"]["address"] == {"address": "ada@example.org"}
    assert payload["recoveredAddresses"] == ["ada@example.org", "countess@example.org"]
    assert payload["lostAddresses"] == ["lady@example.org"]
    assert await load_deleted_user(root, username="ada") is None
    totals_after = await select_rows(
        environment, "SELECT user_count, address_count, quota_allocated FROM domains"
    )
    assert [n - (1, 0, 1 << 30)[i] for i, n in enumerate(totals_after[0])] == list(totals_before[0])
    assert not await tasks.run_next_task(environment)
    state = await root("{ tasks { nodes { state } } }")
    assert state["tasks"]["nodes"] == [{"state": "CANCELLED"}]
    _, (error,) = await restore_user(root, username="ada")
    assert (error["code"], error["message"]) == ("CONFLICT", "this account is not deleted")
    _, (error,) = await restore_user(root, username="nobody")
    assert error["code"] == "NOT_FOUND"


async def test_restore_with_taken_name_or_full_domain_is_refused(
    root: GraphQLClient, ada: GraphQLClient, environment: Environment
) -> None:
    await delete_users(root, ada.user.id, purgeAt=LATER)
    other_user = await make_user(environment, "ada")
    _, (error,) = await restore_user(root, id=global_ids.encode("User", ada.user.id))
    assert (error["code"], error["message"]) == ("CONFLICT", "the user name is taken")
    await delete_users(root, other_user.id, purgeAt=LATER)
    assert (await load_deleted_user(root, username="ada"))["userId"] == global_ids.encode(
        "User", other_user.id
    )
    await make_user(environment, "bert")
    async with environment.write_session() as session:
        await (await session.connection()).execute(text("UPDATE domains SET max_users = 1"))
    _, (error,) = await restore_user(root, id=global_ids.encode("User", ada.user.id))
    assert (error["code"], error["limit"], error["used"]) == ("LIMIT_REACHED", 1, 1)
    assert await load_deleted_user(
        root, id=global_ids.encode("User", ada.user.id)
    )  # the user is still deleted


async def test_user_is_restored_without_main_address_or_domain(
    root: GraphQLClient, ada: GraphQLClient, environment: Environment
) -> None:
    await add_addresses(ada, "lady")
    await delete_users(root, ada.user.id, purgeAt=LATER)
    admin_ctx = Context(environment, Viewer(role=Role.ROOT))
    await creation_create.create_user(
        admin_ctx, NewUser(username="x", address="ada@example.org", password_disabled=True)
    )
    payload, errors = await restore_user(root, username="ada")
    assert errors == []
    assert payload["user"]["address"] == {"address": "lady@example.org"}
    assert payload["lostAddresses"] == ["ada@example.org"]
    eve = await creation_create.create_user(
        admin_ctx, NewUser(username="eve", address="eve@gone.example", password_disabled=True)
    )
    await delete_users(root, eve.id, purgeAt=LATER)
    async with environment.write_session() as session:
        connection = await session.connection()
        await connection.execute(text("DELETE FROM domains WHERE name = 'gone.example'"))
    payload, errors = await restore_user(root, username="eve")
    assert (errors, payload["user"]["domain"], payload["lostAddresses"]) == (
        [],
        None,
        ["eve@gone.example"],
    )


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
    assert (error["code"], error["path"]) == ("FORBIDDEN_OPERATION", ["users"])
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
    original_store, calls = tasks._require_lease_and_store_values, list[int]()  # noqa: SLF001 - where a worker may die

    async def fail_at_fifth_call(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 5:
            raise RuntimeError("the worker has died")
        await original_store(*arguments)

    monkeypatch.setattr(tasks, "_require_lease_and_store_values", fail_at_fifth_call)
    with pytest.raises(RuntimeError):
        await tasks.run_next_task(environment)
    await assert_store_consistent(environment)
    assert 0 < (await select_rows(environment, "SELECT count(*) FROM messages"))[0][0] < 5
    _, (error,) = await restore_user(root, username="ada")
    assert (error["code"], error["message"]) == ("CONFLICT", "its data is being removed already")
    _, (error,) = await delete_users(root, ada.user.id, purgeAt=LATER)
    assert (error["code"], error["path"]) == ("CONFLICT", ["purgeAt"])
    repeated, errors = await delete_users(root, ada.user.id)
    assert (errors, repeated["tasks"][0]["id"]) == ([], payload["tasks"][0]["id"])
    await deregister_as_dead(environment)
    assert await tasks.run_next_task(environment)
    task = await root("query ($id: ID!) { task(by: {id: $id}) { state done total } }",
                      id=payload["tasks"][0]["id"])  # fmt: skip
    assert task["task"] == {"state": "SUCCEEDED", "done": 5, "total": 5}
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
        await user_delete.delete_users(
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
