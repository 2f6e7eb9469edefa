"""What is counted of accounts and domains is what is there, whatever happens at once."""

import asyncio
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from sqlalchemy import text, update
from sqlmodel import col

from graph.types import global_ids
from mail.recipients import address_resolution
from mail.storage import received_messages
from models.errors import NotFound, RequestError
from models.runtime.environment import Environment
from models.users.roles import Role, Scope
from models.users.tables import User
from resolvers.admin import tasks
from resolvers.context import Context, Viewer
from resolvers.users import delete as user_delete
from resolvers.users import loaders as users
from resolvers.users import restore as user_restore
from resolvers.users.creation import create as creation_create
from resolvers.users.creation.create import NewUser
from resolvers.users.quota import quota_recalculation
from resolvers.users.restore import DeletedUserRef
from resolvers.users.selection import UserSelector
from tests.conftest import Client, make_user, raw_message, receive
from tests.support.stores.counter_check import examine, rows

RECALCULATE = """
mutation ($input: QuotaRecalculateInput!) { quotaRecalculate(input: $input) {
  results { user { username messageCount } storageUsed previousStorageUsed }
  task { id } errors { code path } } }
"""


async def recalculate(client: Client, **users: Any) -> Any:
    return (await client(RECALCULATE, input={"users": users}))["quotaRecalculate"]


async def spoil(world: Environment, *keys: int) -> None:
    async with world.write_session() as session:
        wrong = update(User).where(col(User.id).in_(keys)).values(used=7, message_count=70)
        await (await session.connection()).execute(wrong)


async def test_a_wrong_count_is_put_right(root: Client, ada: Client, bob: Client) -> None:
    await receive(ada, "Hello")
    ((used,),) = await rows(ada.world, "SELECT used FROM users WHERE id = :k", k=ada.user.id)
    await spoil(ada.world, ada.user.id, bob.user.id)
    answer = await recalculate(root, usernames=["ada", "bob"])
    assert answer["results"] == [
        {"user": {"username": "ada", "messageCount": 1},
         "storageUsed": used, "previousStorageUsed": 7},
        {"user": {"username": "bob", "messageCount": 0},
         "storageUsed": 0, "previousStorageUsed": 7},
    ]  # fmt: skip
    await examine(ada.world)
    refused = await recalculate(bob, usernames=["ada"])
    assert refused["errors"][0]["code"] == "FORBIDDEN"


async def test_all_are_counted_by_a_task(
    root: Client, ada: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resolvers.users.quota.quota_recalculation.MAX_USERS", 2)
    people = [(await make_user(ada.world, f"n{n}")).id for n in range(4)]
    await receive(ada, "Hello")
    await spoil(ada.world, ada.user.id, *people[:2])
    task = (await recalculate(root, all=True))["task"]["id"]
    assert await tasks.run_next_task(ada.world)
    seen = "query ($id: ID!) { task(id: $id) { state done total result } }"
    assert (await root(seen, id=task))["task"] == {
        "state": "SUCCEEDED",
        "done": 5,
        "total": 5,
        "result": {"changed": 5, "corrected": 3},
    }
    await examine(ada.world)
    await spoil(ada.world, *people)
    named = {"ids": [global_ids.encode("User", key) for key in people]}
    assert (await recalculate(root, **named))["task"]
    assert await tasks.run_next_task(ada.world)
    await examine(ada.world)


async def test_a_count_is_exact_while_mail_comes(root: Client, ada: Client) -> None:
    async def deliver(part: int) -> None:
        for n in range(6):
            await receive(ada, f"Letter {part} {n}")

    async def count() -> None:
        for _ in range(6):
            assert (await recalculate(root, usernames=["ada"]))["errors"] == []

    await asyncio.gather(deliver(1), count(), deliver(2), count())
    await examine(ada.world)
    assert await rows(ada.world, "SELECT message_count FROM users") == [(12,)]


steps = some.tuples(
    some.sampled_from(
        ["create", "create", "deliver", "deliver", "delete", "restore", "purge", "move", "recount"]
    ),
    some.integers(0, 3),
    some.integers(0, 2),
)
TOTALS = """
SELECT coalesce(sum(t.used), 0), coalesce(sum(t.messages), 0),
       (SELECT coalesce(sum(u.used), 0) FROM users u WHERE u.domain_id = d.id),
       (SELECT coalesce(sum(u.message_count), 0) FROM users u WHERE u.domain_id = d.id)
FROM domains d LEFT JOIN domain_totals t ON t.domain_id = d.id GROUP BY d.id
"""


class Play:
    """Accounts of some domains that come and go."""

    def __init__(self, world: Environment) -> None:
        self.world = world
        self.ctx = Context(world, Viewer(role=Role.ROOT, scopes=frozenset({Scope.MASTER})))
        self.done = 0

    async def step(self, what: str, who: int, where: int) -> None:
        with suppress(RequestError):
            await getattr(self, what)(f"u{who}", f"d{where}.example")
            self.done += 1
        for used, messages, *summed in await rows(self.world, TOTALS):
            assert [used, messages] == summed

    async def _id(self, name: str) -> int:
        row = await users.find_user_by_name(self.ctx.fresh_copy(), name)
        return row.id if row else 0

    async def create(self, name: str, domain: str) -> None:
        new = NewUser(username=name, address=f"{name}@{domain}", password_disabled=True)
        await creation_create.create_user(self.ctx, new)

    async def deliver(self, name: str, domain: str) -> None:
        for place in (domain, "d0.example"):
            with suppress(NotFound):
                to = await address_resolution.load_recipient(self.world, f"{name}@{place}")
                letter = await received_messages.read_message(raw_message(f"{self.done}"))
                await received_messages.store_for_recipient(
                    self.world, letter, to, "carol@example.com"
                )

    async def delete(self, name: str, _domain: str) -> None:
        later = self.world.now() + timedelta(days=1)
        await user_delete.delete_users(self.ctx, UserSelector(usernames=(name,)), later)

    async def restore(self, name: str, _domain: str) -> None:
        await user_restore.restore_user(self.ctx, DeletedUserRef(name=name))

    async def purge(self, name: str, _domain: str) -> None:
        await user_delete.delete_users(self.ctx, UserSelector(usernames=(name,)))
        assert await tasks.run_next_task(self.world)

    async def move(self, name: str, domain: str) -> None:
        """Into another domain, with the counters that whoever moves people brings along."""
        sql = "SELECT id FROM domains WHERE name = :name"
        found, key = await rows(self.world, sql, name=domain), await self._id(name)
        async with self.world.write_session() as session:
            connection = await session.connection()
            for sign in (-1, 1):
                count = text(
                    "UPDATE domains SET user_count = user_count + :sign, quota_allocated ="
                    " quota_allocated + :sign * :quota WHERE id = (SELECT domain_id FROM users"
                    " WHERE id = :key)"
                )
                given = {"sign": sign, "quota": 1 << 30, "key": key}
                await connection.execute(count, given)
                if found and sign < 0:
                    moved = update(User).where(col(User.id) == key)
                    await connection.execute(moved.values(domain_id=found[0][0]))

    async def recount(self, name: str, _domain: str) -> None:
        await quota_recalculation.recalculate_quotas(self.ctx, UserSelector(usernames=(name,)))


async def test_domains_add_up_whatever_happens(world: Environment) -> None:
    play, loop = Play(world), asyncio.get_running_loop()

    async def run(listed: list[tuple[str, int, int]]) -> None:
        for step in listed:
            await play.step(*step)
        await examine(world)

    @given(some.lists(steps, min_size=6, max_size=20))
    @settings(
        max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    def hold(listed: list[tuple[str, int, int]]) -> None:
        asyncio.run_coroutine_threadsafe(run(listed), loop).result()

    await asyncio.to_thread(hold)
    assert play.done
