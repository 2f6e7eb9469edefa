"""The counters of users and domains stay exact under concurrent operations."""

import asyncio
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
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
from resolvers.context import Context
from resolvers.users import delete as user_delete
from resolvers.users import loaders as users
from resolvers.users import restore as user_restore
from resolvers.users.creation import create as creation_create
from resolvers.users.creation.create import NewUser
from resolvers.users.quota import quota_recalculation
from resolvers.users.restore import DeletedUserRef
from resolvers.users.selection import UserSelector
from resolvers.viewer import Viewer
from tests.conftest import (
    GraphQLClient,
    client_context,
    deliver_to,
    make_client,
    make_user,
    raw_message,
)
from tests.support.stores.counter_check import assert_store_consistent, select_rows

RECALCULATE = """
mutation ($input: QuotaRecalculateInput!) { quotaRecalculate(input: $input) {
  quotaResults { user { username messageCount } storageUsed previousStorageUsed }
  task { id } errors { code path } } }
"""


async def recalculate(client: GraphQLClient, **users: Any) -> Any:
    return (await client(RECALCULATE, input={"users": users}))["quotaRecalculate"]


async def set_wrong_counters(environment: Environment, *user_ids: int) -> None:
    async with environment.write_session() as session:
        statement = update(User).where(col(User.id).in_(user_ids)).values(used=7, message_count=70)
        await (await session.connection()).execute(statement)


async def test_quota_recalculation_corrects_counters(
    root: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient
) -> None:
    await deliver_to(ada, "Hello")
    ((used,),) = await select_rows(
        ada.environment, "SELECT used FROM users WHERE id = :k", k=ada.user.id
    )
    await set_wrong_counters(ada.environment, ada.user.id, bob.user.id)
    payload = await recalculate(root, usernames=["ada", "bob"])
    assert payload["quotaResults"] == [
        {"user": {"username": "ada", "messageCount": 1},
         "storageUsed": used, "previousStorageUsed": 7},
        {"user": {"username": "bob", "messageCount": 0},
         "storageUsed": 0, "previousStorageUsed": 7},
    ]  # fmt: skip
    await assert_store_consistent(ada.environment)
    refused_payload = await recalculate(bob, usernames=["ada"])
    assert refused_payload["errors"][0]["code"] == "FORBIDDEN"


async def test_recalculation_of_all_users_runs_as_a_task(
    root: GraphQLClient, ada: GraphQLClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resolvers.users.quota.quota_recalculation.MAX_USERS", 2)
    user_ids = [(await make_user(ada.environment, f"n{n}")).id for n in range(4)]
    await deliver_to(ada, "Hello")
    await set_wrong_counters(ada.environment, ada.user.id, *user_ids[:2])
    task = (await recalculate(root, all=True))["task"]["id"]
    assert await tasks.run_next_task(ada.environment)
    task_query = "query ($id: ID!) { task(by: {id: $id}) { state doneCount totalCount result } }"
    assert (await root(task_query, id=task))["task"] == {
        "state": "SUCCEEDED",
        "doneCount": 5,
        "totalCount": 5,
        "result": {"changedCount": 5, "correctedCount": 3},
    }
    await assert_store_consistent(ada.environment)
    await set_wrong_counters(ada.environment, *user_ids)
    selection = {"ids": [global_ids.encode("User", user_id) for user_id in user_ids]}
    assert (await recalculate(root, **selection))["task"]
    assert await tasks.run_next_task(ada.environment)
    await assert_store_consistent(ada.environment)


async def test_step_of_recalculation_has_few_users_with_many_messages(
    root: GraphQLClient, ada: GraphQLClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quota_recalculation, "MAX_MESSAGES_PER_STEP", 1)
    bob = await make_client(ada.environment, ada.http, "bob")
    for client in (ada, bob):
        await deliver_to(client, "Hello")
    context = client_context(root)
    steps, checkpoint = list[list[int]](), dict[str, Any]()
    while (
        plan := await quota_recalculation.plan_next_users(context, {"ids": None}, checkpoint)
    ).ids:
        steps.append(list(plan.ids))
        checkpoint = {"after": plan.ids[-1]}
    assert [len({ada.user.id, bob.user.id} & set(ids)) for ids in steps].count(2) == 0
    assert {ada.user.id, bob.user.id} <= {user_id for ids in steps for user_id in ids}
    assert (await recalculate(root, all=True))["task"]
    assert await tasks.run_next_task(ada.environment)
    query = "SELECT state FROM tasks WHERE kind = 'QUOTA_RECALCULATE'"
    assert await select_rows(ada.environment, query) == [("SUCCEEDED",)]


async def test_recalculation_is_exact_during_deliveries(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    async def deliver(part: int) -> None:
        for n in range(6):
            await deliver_to(ada, f"Letter {part} {n}")

    async def recalculate_repeatedly() -> None:
        for _ in range(6):
            assert (await recalculate(root, usernames=["ada"]))["errors"] == []

    await asyncio.gather(deliver(1), recalculate_repeatedly(), deliver(2), recalculate_repeatedly())
    await assert_store_consistent(ada.environment)
    assert await select_rows(ada.environment, "SELECT message_count FROM users") == [(12,)]


step_strategy = st.tuples(
    st.sampled_from(
        ["create", "create", "deliver", "deliver", "delete", "restore", "purge", "move", "recount"]
    ),
    st.integers(0, 3),
    st.integers(0, 2),
)
DOMAIN_TOTALS_QUERY = """
SELECT coalesce(sum(t.used), 0), coalesce(sum(t.messages), 0),
       (SELECT coalesce(sum(u.used), 0) FROM users u WHERE u.domain_id = d.id),
       (SELECT coalesce(sum(u.message_count), 0) FROM users u WHERE u.domain_id = d.id)
FROM domains d LEFT JOIN domain_totals t ON t.domain_id = d.id GROUP BY d.id
"""


class UserLifecycleModel:
    """Users of some domains that are created, moved, deleted and restored."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.ctx = Context(environment, Viewer(role=Role.ROOT, scopes=frozenset({Scope.FULL})))
        self.done = 0

    async def step(self, operation: str, user_number: int, domain_number: int) -> None:
        with suppress(RequestError):
            await getattr(self, operation)(f"u{user_number}", f"d{domain_number}.example")
            self.done += 1
        for used, messages, *summed in await select_rows(self.environment, DOMAIN_TOTALS_QUERY):
            assert [used, messages] == summed

    async def _id(self, name: str) -> int:
        row = await users.find_user_by_name(self.ctx.fresh_copy(), name)
        return row.id if row else 0

    async def create(self, name: str, domain: str) -> None:
        new = NewUser(username=name, address=f"{name}@{domain}", password_disabled=True)
        await creation_create.create_user(self.ctx, new)

    async def deliver(self, name: str, domain: str) -> None:
        for domain_name in (domain, "d0.example"):
            with suppress(NotFound):
                recipient = await address_resolution.load_recipient_below_limits(
                    self.environment, f"{name}@{domain_name}"
                )
                message = await received_messages.parse_storable_message(
                    raw_message(f"{self.done}")
                )
                await received_messages.store_once_for_recipient(
                    self.environment, message, recipient, "carol@example.com"
                )

    async def delete(self, name: str, _domain: str) -> None:
        purge_at = self.environment.now() + timedelta(days=1)
        await user_delete.delete_users_or_reschedule_purge(
            self.ctx, UserSelector(usernames=(name,)), purge_at
        )

    async def restore(self, name: str, _domain: str) -> None:
        await user_restore.restore_user(self.ctx, DeletedUserRef(name=name))

    async def purge(self, name: str, _domain: str) -> None:
        await user_delete.delete_users_or_reschedule_purge(
            self.ctx, UserSelector(usernames=(name,))
        )
        assert await tasks.run_next_task(self.environment)

    async def move(self, name: str, domain: str) -> None:
        """Move a user to another domain, and update the counters of both domains."""
        sql = "SELECT id FROM domains WHERE name = :name"
        domain_rows = await select_rows(self.environment, sql, name=domain)
        user_id = await self._id(name)
        async with self.environment.write_session() as session:
            connection = await session.connection()
            for sign in (-1, 1):
                counter_statement = text(
                    "UPDATE domains SET user_count = user_count + :sign, quota_allocated ="
                    " quota_allocated + :sign * :quota WHERE id = (SELECT domain_id FROM users"
                    " WHERE id = :key)"
                )
                parameters = {"sign": sign, "quota": 1 << 30, "key": user_id}
                await connection.execute(counter_statement, parameters)
                if domain_rows and sign < 0:
                    user_statement = update(User).where(col(User.id) == user_id)
                    await connection.execute(user_statement.values(domain_id=domain_rows[0][0]))

    async def recount(self, name: str, _domain: str) -> None:
        await quota_recalculation.recalculate_storage_usage_or_queue(
            self.ctx, UserSelector(usernames=(name,))
        )


async def test_domain_totals_match_users_after_any_operations(environment: Environment) -> None:
    model, loop = UserLifecycleModel(environment), asyncio.get_running_loop()

    async def run_steps(operations: list[tuple[str, int, int]]) -> None:
        for step in operations:
            await model.step(*step)
        await assert_store_consistent(environment)

    @given(st.lists(step_strategy, min_size=6, max_size=20))
    @settings(
        max_examples=15,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    def check_operations(operations: list[tuple[str, int, int]]) -> None:
        asyncio.run_coroutine_threadsafe(run_steps(operations), loop).result()

    await asyncio.to_thread(check_operations)
    assert model.done
