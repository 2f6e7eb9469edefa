"""The end of accounts: now or later, taken back, and what is left of them."""

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
from models.events.journal import PLATFORM, ChangeKind
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
from tests.conftest import Client, Clock, make_client, make_user, raw_message, receive
from tests.support.stores.counter_check import examine, journal, rows
from tests.support.stores.other_processes import taken_for_dead

DELETE = """
mutation ($input: UserDeleteInput!) { userDelete(input: $input) {
  deletedIds task { id state total done } tasks { id }
  errors { code path message ... on ForbiddenError { requires } } } }
"""
PURGE = """
mutation ($input: UserPurgeInput!) { userPurge(input: $input) {
  purged task { id } errors { code path } } }
"""
RESTORE = """
mutation ($input: UserRestoreInput!) { userRestore(input: $input) {
  user { id username disabled address { address } domain { name userCount } }
  recoveredAddresses lostAddresses
  errors { code path message ... on LimitReachedError { limit used } } } }
"""
LEFT = """
query ($by: UserRef!) { deletedUser(by: $by) {
  user username storageUsed tags deletedAt deleteAfter recoverableAddresses } }
"""
LATER = "2030-02-01T00:00:00Z"
PASSWORD = "correct horse"  # noqa: S105 - a test's
pytestmark = pytest.mark.usefixtures("examined")


async def delete(client: Client, who: Any, **more: Any) -> tuple[Any, list[Any]]:
    selection = who if isinstance(who, dict) else {"ids": [global_ids.encode("User", who)]}
    answer = (await client(DELETE, input={"users": selection, **more}))["userDelete"]
    return answer, answer["errors"]


async def restore(client: Client, **by: Any) -> tuple[Any, list[Any]]:
    answer = (await client(RESTORE, input={"by": by}))["userRestore"]
    return answer, answer["errors"]


async def left(client: Client, **by: Any) -> Any:
    return (await client(LEFT, by=by))["deletedUser"]


async def admin(world: Environment, http: Any, name: str, domain: str) -> Client:
    """A DOMAIN_ADMIN of this domain, who lives elsewhere."""
    client = await make_client(world, http, name, role=Role.DOMAIN_ADMIN)
    ((key,),) = await rows(world, "SELECT id FROM domains WHERE name = :name", name=domain)
    async with world.write_session() as session:
        session.add(DomainAdmin(user_id=client.user.id, domain_id=key))
    authentication.drop_credentials(world, client.user.id)
    return client


async def more_addresses(client: Client, *local: str) -> None:
    sql = "SELECT domain_id FROM addresses WHERE user_id = :key"
    ((domain_id,),) = await rows(client.world, sql, key=client.user.id)
    now = client.world.now()
    async with client.world.write_session(domain_id) as session:
        (await session.get_one(Domain, domain_id)).address_count += len(local)
        for name in local:
            session.add(
                Address(
                    id=client.world.new_id(),
                    local=name,
                    domain_id=domain_id,
                    shown=f"{name}@example.org",
                    user_id=client.user.id,
                    created_at=now,
                    updated_at=now,
                )
            )


async def nobody(world: Environment, root: Client, user_id: int, name: str) -> None:
    """Every road says that there is no such account."""
    document = "query ($by: UserRef!) { user(by: $by) { id } }"
    key = global_ids.encode("User", user_id)
    for by in ({"id": key}, {"username": name}, {"address": f"{name}@example.org"}):
        assert await root(document, by=by) == {"user": None}
    assert await root("query ($id: ID!) { node(id: $id) { id } }", id=key) == {"node": None}
    listed = await root("{ users(first: 250) { nodes { id } totalCount } }")
    assert key not in [node["id"] for node in listed["users"]["nodes"]]
    assert listed["users"]["totalCount"] == len(listed["users"]["nodes"])
    with pytest.raises(NotFound):
        await address_resolution.load_recipient(world, f"{name}@example.org")
    with pytest.raises(AuthenticationFailed):
        await authentication.authenticate(Context(world, Viewer()), name, PASSWORD)


async def test_an_account_ends_at_once_and_its_data_by_a_task(
    root: Client, ada: Client, bob: Client, world: Environment, clock: Clock
) -> None:
    for n in range(3):
        await receive(ada, f"Letter {n}")
        await receive(bob, f"Letter {n}")
    document = "mutation ($i: MessageDeleteInput!) { messageDelete(input: $i) { deletedCount } }"
    ((one,), *_) = await rows(world, "SELECT id FROM messages WHERE user_id = :k", k=ada.user.id)
    await ada(
        document, i={"select": {"ids": [global_ids.encode("Message", one)]}}
    )  # to the archive
    to = await address_resolution.load_recipient(world, ada.address)
    before = await rows(world, "SELECT count(*) FROM messages")
    answer, errors = await delete(root, ada.user.id)
    assert errors == []
    assert answer["deletedIds"] == [global_ids.encode("User", ada.user.id)]
    await nobody(world, root, ada.user.id, "ada")
    assert (await ada.raw("{ viewer { user { id } } }"))["errors"]
    with pytest.raises(NotFound):  # who was told so before is refused as well
        await received_messages.store_for_recipient(
            world, await received_messages.read_message(raw_message("Late")), to, "x@example.com"
        )
    again = await make_user(world, "ada")  # name and address are free
    await examine(world)
    assert before == await rows(world, "SELECT count(*) FROM messages")

    assert await tasks.run_next_task(world)
    task = await root("query ($id: ID!) { task(id: $id) { state done total } }",
                      id=answer["task"]["id"])  # fmt: skip
    assert task == {"task": {"state": "SUCCEEDED", "done": 3, "total": 3}}
    for table in ("mailboxes", "messages", "threads", "api_keys", "thread_refs"):
        sql = f"SELECT count(*) FROM {table} WHERE user_id = :key"  # noqa: S608 - our own names
        assert await rows(world, sql, key=ada.user.id) == [(0,)]
    for table in ("users", "streams", "deleted_users"):
        sql = f"SELECT count(*) FROM {table} WHERE id = :key"  # noqa: S608 - our own names
        assert await rows(world, sql, key=ada.user.id) == [(0,)]
    clock.tick(days=2)
    shared = await collect_garbage(world, world.object_store)
    assert shared.row_count == 0  # bob has the same letters
    assert (await delete(root, bob.user.id))[1] == []
    assert await tasks.run_next_task(world)
    assert (await collect_garbage(world, world.object_store)).row_count > 0
    assert await rows(world, "SELECT count(*) FROM blobs") == [(0,)]
    assert (
        await user_loaders.load_users_by_id(Context(world, Viewer(role=Role.ROOT)), [again.id])
    )[0]
    told = [found for kind, found in await journal(world, PLATFORM)
            if kind is ChangeKind.USER_CHANGED]  # fmt: skip
    assert [ada.user.id] in told


async def test_a_deletion_asked_twice_is_one_task_with_another_time(
    root: Client, ada: Client, world: Environment, clock: Clock
) -> None:
    await receive(ada, "Hello")
    first, _ = await delete(root, ada.user.id, deleteAfter=LATER)
    assert not await tasks.run_next_task(world)
    for who in (
        {"ids": [global_ids.encode("User", ada.user.id)]},
        {"usernames": ["A.da"]},
        {"usernames": ["ada"], "ids": [global_ids.encode("User", ada.user.id)]},
    ):
        again, errors = await delete(root, who, deleteAfter="2030-03-01T00:00:00Z")
        assert (errors, again["task"]["id"]) == ([], first["task"]["id"])
        assert again["deletedIds"] == first["deletedIds"]
    assert await rows(world, "SELECT count(*) FROM tasks") == [(1,)]
    clock.tick(days=32)
    assert not await tasks.run_next_task(world)
    found = await left(root, username="ada")
    assert found["deleteAfter"] == "2030-03-01T00:00:00Z"
    clock.tick(days=32)
    assert await tasks.run_next_task(world)
    assert await left(root, username="ada") is None
    _, (error,) = await delete(root, ada.user.id)
    assert (error["code"], error["path"]) == ("NOT_FOUND", ["users", "ids"])


@pytest.mark.usefixtures("bob")
async def test_an_account_comes_back_as_it_was(root: Client, world: Environment) -> None:
    await make_client(world, root.http, "ada", disabled=True, tags=["x"])
    ada = (await user_loaders.find_user_by_name(Context(world, Viewer(role=Role.ROOT)), "ada")) or 0
    client = Client(root.http, world, ada, "")  # type: ignore[arg-type]
    await more_addresses(client, "lady", "countess")
    domain = await rows(world, "SELECT user_count, address_count, quota_allocated FROM domains")
    answer, _ = await delete(root, client.user.id, deleteAfter=LATER)
    await nobody(world, root, client.user.id, "ada")
    admin_ctx = Context(world, Viewer(role=Role.ROOT))
    await creation_create.create_user(
        admin_ctx, NewUser(username="carl", address="l.ady@example.org", password_disabled=True)
    )
    for by in ({"username": "A.DA"}, {"address": "a.da+x@Example.org"},
               {"address": "countess@example.org"}, {"id": answer["deletedIds"][0]}):  # fmt: skip
        found = await left(root, **by)
        assert (found["username"], found["tags"]) == ("ada", ["x"])
        assert found["recoverableAddresses"] == ["ada@example.org", "countess@example.org"]
    back, errors = await restore(root, address="countess@example.org")
    assert errors == []
    assert (back["user"]["username"], back["user"]["disabled"]) == ("ada", True)
    assert back["user"]["address"] == {"address": "ada@example.org"}
    assert back["recoveredAddresses"] == ["ada@example.org", "countess@example.org"]
    assert back["lostAddresses"] == ["lady@example.org"]
    assert await left(root, username="ada") is None
    now = await rows(world, "SELECT user_count, address_count, quota_allocated FROM domains")
    assert [n - (1, 0, 1 << 30)[i] for i, n in enumerate(now[0])] == list(domain[0])
    assert not await tasks.run_next_task(world)
    state = await root("{ tasks { nodes { state } } }")
    assert state["tasks"]["nodes"] == [{"state": "CANCELLED"}]
    _, (error,) = await restore(root, username="ada")
    assert (error["code"], error["message"]) == ("CONFLICT", "this account is not deleted")
    _, (error,) = await restore(root, username="nobody")
    assert error["code"] == "NOT_FOUND"


async def test_who_is_late_finds_name_and_place_taken(
    root: Client, ada: Client, world: Environment
) -> None:
    await delete(root, ada.user.id, deleteAfter=LATER)
    other = await make_user(world, "ada")
    _, (error,) = await restore(root, id=global_ids.encode("User", ada.user.id))
    assert (error["code"], error["message"]) == ("CONFLICT", "the user name is taken")
    await delete(root, other.id, deleteAfter=LATER)
    assert (await left(root, username="ada"))["user"] == global_ids.encode("User", other.id)
    await make_user(world, "bert")
    async with world.write_session() as session:
        await (await session.connection()).execute(text("UPDATE domains SET max_users = 1"))
    _, (error,) = await restore(root, id=global_ids.encode("User", ada.user.id))
    assert (error["code"], error["limit"], error["used"]) == ("LIMIT_REACHED", 1, 1)
    assert await left(root, id=global_ids.encode("User", ada.user.id))  # nothing was half-done


async def test_main_address_and_domain_may_be_gone(
    root: Client, ada: Client, world: Environment
) -> None:
    await more_addresses(ada, "lady")
    await delete(root, ada.user.id, deleteAfter=LATER)
    admin_ctx = Context(world, Viewer(role=Role.ROOT))
    await creation_create.create_user(
        admin_ctx, NewUser(username="x", address="ada@example.org", password_disabled=True)
    )
    back, errors = await restore(root, username="ada")
    assert errors == []
    assert back["user"]["address"] == {"address": "lady@example.org"}
    assert back["lostAddresses"] == ["ada@example.org"]
    eve = await creation_create.create_user(
        admin_ctx, NewUser(username="eve", address="eve@gone.example", password_disabled=True)
    )
    await delete(root, eve.id, deleteAfter=LATER)
    async with world.write_session() as session:
        connection = await session.connection()
        await connection.execute(text("DELETE FROM domains WHERE name = 'gone.example'"))
    back, errors = await restore(root, username="eve")
    assert (errors, back["user"]["domain"], back["lostAddresses"]) == (
        [],
        None,
        ["eve@gone.example"],
    )


async def test_an_administrator_ends_users_of_his_domains_alone(
    root: Client, ada: Client, bob: Client, world: Environment
) -> None:
    admin_ctx = Context(world, Viewer(role=Role.ROOT))
    await creation_create.create_user(
        admin_ctx, NewUser(username="far", address="far@new.example", password_disabled=True)
    )
    here = await admin(world, root.http, "here", "example.org")
    there = await admin(world, root.http, "there", "new.example")
    _, (error,) = await delete(there, ada.user.id)
    assert (error["code"], error["path"]) == ("NOT_FOUND", ["users", "ids"])
    _, (error,) = await delete(there, {"usernames": ["ada"]})
    assert error["code"] == "NOT_FOUND"
    answer, _ = await delete(there, {"masks": ["a*"]})
    assert answer["deletedIds"] == []
    _, (error,) = await delete(here, here.user.id)
    assert (error["code"], error["path"]) == ("FORBIDDEN_OPERATION", ["users"])
    _, (error,) = await delete(here, there.user.id)  # a colleague
    assert error["code"] == "FORBIDDEN"
    _, (error,) = await delete(here, {"all": True})
    assert (error["code"], error["requires"]) == ("FORBIDDEN", "ADMIN")
    _, (error,) = await delete(here, {})
    assert (error["code"], error["path"]) == ("VALIDATION", ["users"])
    _, (error,) = await delete(bob, ada.user.id)
    assert (error["code"], error["requires"]) == ("FORBIDDEN", "DOMAIN_ADMIN")
    answer, errors = await delete(here, ada.user.id, deleteAfter=LATER)
    assert (errors, len(answer["deletedIds"])) == ([], 1)
    seen = "query ($id: ID!) { task(id: $id) { kind user { id } } }"
    assert (await here(seen, id=answer["task"]["id"]))["task"] == {
        "kind": "USER_DELETE",
        "user": None,
    }
    assert (await there(seen, id=answer["task"]["id"]))["task"] is None
    cancel = "mutation ($i: TaskCancelInput!) { taskCancel(input: $i) { errors { code } } }"
    stopped = await here(cancel, i={"ids": [answer["task"]["id"]]})
    assert stopped["taskCancel"]["errors"] == [{"code": "FORBIDDEN_OPERATION"}]
    for by in ({"username": "ada"}, {"address": "ada@example.org"},
               {"id": answer["deletedIds"][0]}):  # fmt: skip
        assert await left(there, **by) is None
        _, (error,) = await restore(there, **by)
        assert error["code"] == "NOT_FOUND"
        assert await left(here, **by)
    _, (error,) = await delete(there, ada.user.id)
    assert error["code"] == "NOT_FOUND"
    refused = await here(PURGE, input={"users": {"ids": answer["deletedIds"]}})
    assert refused["userPurge"]["errors"][0]["code"] == "FORBIDDEN"
    assert (await restore(here, username="ada"))[1] == []


async def test_purging_does_not_wait(
    root: Client, ada: Client, bob: Client, world: Environment
) -> None:
    await receive(ada, "Hello")
    answer, _ = await delete(root, ada.user.id, deleteAfter=LATER)
    both = {"ids": [global_ids.encode("User", one.user.id) for one in (ada, bob)]}
    purged = (await root(PURGE, input={"users": both}))["userPurge"]
    assert (purged["purged"], purged["errors"]) == (both["ids"], [])
    assert purged["task"] == {"id": answer["task"]["id"]}
    assert await tasks.run_next_task(world)
    assert await tasks.run_next_task(world)
    assert await rows(world, "SELECT count(*) FROM users") == [(0,)]
    _, (error,) = await restore(root, username="ada")
    assert error["code"] == "NOT_FOUND"


async def test_a_purge_that_has_begun_goes_on_and_is_not_taken_back(
    root: Client, ada: Client, world: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(5):
        await receive(ada, f"Letter {n}")
    answer, _ = await delete(root, ada.user.id)
    monkeypatch.setattr("resolvers.users.purge.CHUNK_ROWS", 2)
    real, units = tasks._store_progress, list[int]()  # noqa: SLF001 - where a worker may die

    async def broken(*given: Any) -> None:
        units.append(1)
        if len(units) == 5:
            raise RuntimeError("the worker has died")
        await real(*given)

    monkeypatch.setattr(tasks, "_store_progress", broken)
    with pytest.raises(RuntimeError):
        await tasks.run_next_task(world)
    await examine(world)
    assert 0 < (await rows(world, "SELECT count(*) FROM messages"))[0][0] < 5
    _, (error,) = await restore(root, username="ada")
    assert (error["code"], error["message"]) == ("CONFLICT", "its data is being removed already")
    _, (error,) = await delete(root, ada.user.id, deleteAfter=LATER)
    assert (error["code"], error["path"]) == ("CONFLICT", ["deleteAfter"])
    same, errors = await delete(root, ada.user.id)
    assert (errors, same["task"]["id"]) == ([], answer["task"]["id"])
    await taken_for_dead(world)
    assert await tasks.run_next_task(world)
    task = await root("query ($id: ID!) { task(id: $id) { state done total } }",
                      id=answer["task"]["id"])  # fmt: skip
    assert task["task"] == {"state": "SUCCEEDED", "done": 5, "total": 5}
    assert await rows(world, "SELECT count(*) FROM users") == [(0,)]


async def test_races_have_one_outcome(root: Client, ada: Client, world: Environment) -> None:
    letter = await received_messages.read_message(raw_message("Racing"))
    to = await address_resolution.load_recipient(world, ada.address)
    key = {"ids": [global_ids.encode("User", ada.user.id)]}
    outcomes = await asyncio.gather(
        *(delete(root, key, deleteAfter=LATER) for _ in range(4)),
        *(
            received_messages.store_for_recipient(world, letter, to, f"s{n}@example.com")
            for n in range(4)
        ),
        return_exceptions=True,
    )
    deleted, delivered = outcomes[:4], outcomes[4:]
    assert len({answer["task"]["id"] for answer, _ in deleted}) == 1
    assert all(isinstance(one, NotFound | message_insert.InsertedMessage) for one in delivered)
    await examine(world)
    outcomes = await asyncio.gather(restore(root, username="ada"), tasks.run_next_task(world),
                                    restore(root, username="ada"))  # fmt: skip
    assert sorted(len(errors) for _, errors in (outcomes[0], outcomes[2])) == [0, 1]
    assert outcomes[1] is False
    await delete(root, ada.user.id)
    back, done = await asyncio.gather(restore(root, username="ada"), tasks.run_next_task(world))
    there = await rows(world, "SELECT count(*) FROM users")
    assert (there == [(1,)]) is (back[1] == [])
    assert done or back[1] == []


async def test_many_accounts_cost_as_many_statements_as_one(
    world: Environment, statements: list[str]
) -> None:
    people = [(await make_user(world, f"n{n}")).id for n in range(21)]
    ctx = Context(world, Viewer(role=Role.ROOT, scopes=frozenset({Scope.MASTER})))

    async def cost(keys: list[int]) -> int:
        del statements[:]
        await user_delete.delete_users(
            ctx, UserSelector(ids=tuple(keys)), world.now() + timedelta(days=3)
        )
        return len(statements)

    assert await cost(people[:1]) == await cost(people[1:])
