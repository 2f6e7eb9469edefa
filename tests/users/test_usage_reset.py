"""Counters that begin anew: by whom, of whom, and what tells of it."""

from typing import Any

import pytest
from sqlalchemy import insert, select, update
from sqlmodel import col

from graph.types import global_ids
from models.events.journal import PLATFORM, Change, ChangeKind
from models.runtime.environment import Environment
from models.store.columns import core_table
from models.users.roles import AdminPermission, Role
from models.users.tables import Usage, UsageKind, User
from resolvers.auth.authentication import wait_for_background_tasks
from tests.conftest import Client, Clock, make_client, make_user, receive
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.quota_accounts import accepted, bounded, send, told
from tests.support.accounts.user_operations import chief, create, id_of, run
from tests.support.stores.counter_check import examine, reached, rows

USED = "users { username limits { recipients { used resetsAt } received { used resetsAt } } }"
NONE = {"used": 0, "resetsAt": None}


async def reset(client: Client, *who: Client | int, **given: Any) -> tuple[Any, list[Any]]:
    users = {"ids": [id_of(one) for one in who]}
    answer = await run(client, "usageReset", USED, **{"users": users, **given})
    return answer["users"], answer["errors"]


async def counters(world: Environment) -> Any:
    """All that is counted, by account."""
    sent = await rows(world, "SELECT user_id, kind, used FROM usages ORDER BY user_id")
    came = await rows(world, "SELECT id, received, received_until FROM users ORDER BY id")
    return sent, came


async def used(client: Client) -> Client:
    """The same client, who has used up both limits, and been told so."""
    await bounded(client, recipients=2, received_max=1)
    await receive(client, "Hello")
    await send(client, "a@example.net", "b@example.net")
    assert await accepted(client) == "RateLimited"
    assert await send(client, "c@example.net") == ["RATE_LIMITED"]
    await wait_for_background_tasks(client.world)
    assert len(await told(client)) == 4
    return client


@pytest.fixture
async def busy(ada: Client) -> Client:
    return await used(ada)


@pytest.mark.parametrize(
    ("kinds", "left"),
    [(None, (0, 0)), (["RECIPIENTS", "RECEIVED"], (0, 0)), (["RECIPIENTS"], (0, 1)),
     (["RECEIVED", "RECEIVED"], (2, 0))],
)  # fmt: skip
async def test_counters_begin_anew(
    busy: Client, root: Client, kinds: list[str] | None, left: tuple[int, int]
) -> None:
    given = {} if kinds is None else {"kinds": kinds}
    ((user,), errors) = await reset(root, busy, **given)
    found = user["limits"]
    assert (errors, (found["recipients"]["used"], found["received"]["used"])) == ([], left)
    assert [found[name] == NONE for name in ("recipients", "received")] == [n == 0 for n in left]
    assert (await accepted(busy) is None) is (left[1] == 0)
    assert (await send(busy, "c@example.net") == []) is (left[0] == 0)
    await wait_for_background_tasks(busy.world)


async def test_what_is_used_up_anew_is_told_anew(busy: Client, root: Client) -> None:
    await reset(root, busy)
    await receive(busy, "Again")
    await send(busy, "a@example.net", "b@example.net")
    await accepted(busy)
    await send(busy, "c@example.net")
    await wait_for_background_tasks(busy.world)
    assert len(await told(busy)) == 8


async def test_another_limit_lets_refusals_be_told_anew_too(busy: Client, root: Client) -> None:
    given: Any = {"users": {"ids": [id_of(busy)]}, "set": {"receivedMax": 2, "recipients": 1}}
    assert (await run(root, "userUpdate", **given))["errors"] == []
    await receive(busy, "Again")
    await receive(busy, "And again")
    await send(busy, "a@example.net")
    assert (await accepted(busy), await send(busy, "b@example.net")) == (
        "RateLimited", ["RATE_LIMITED"]
    )  # fmt: skip
    await wait_for_background_tasks(busy.world)
    assert [(limit, refused) for limit, _, _, _, refused in (await told(busy))[4:]] == [
        ("RECEIVED", False), ("RECIPIENTS", False), ("RECEIVED", True), ("RECIPIENTS", True)
    ]  # fmt: skip


async def test_account_domain_and_log_are_told(busy: Client, root: Client) -> None:
    world, domain = busy.world, busy.user.domain_id or 0
    before = {key: await reached(world, key) for key in (busy.user.id, domain, PLATFORM)}
    options = {"reason": "a campaign"}
    assert (await reset(root, busy, options=options))[1] == []
    table = core_table(Change)
    for stream, last in before.items():
        asked = table.select().where(table.c.stream_id == stream, table.c.last > last)
        found = [
            (row.kind, row.ids, row.facts["changed"], row.facts["reason"])
            for row in await world.database.read(asked)
        ]
        expected = [(ChangeKind.USER_CHANGED, [busy.user.id], [["limits"]], "a campaign")]
        assert found == (expected if stream else [])
    document = """{ adminLog(mutation: "usageReset") { nodes { mutation reason before after
      target { ... on User { username } } } } }"""
    (entry,) = (await root(document))["adminLog"]["nodes"]
    assert entry == {
        "mutation": "usageReset",
        "reason": "a campaign",
        "before": {"limits": {"recipients": 2, "received": 1}},
        "after": {"limits": {"recipients": 0, "received": 0}},
        "target": {"username": "ada"},
    }
    # what counts nothing is not told of
    last = await reached(world, busy.user.id)
    assert (await reset(root, busy))[1] == []
    assert await reached(world, busy.user.id) == last


async def test_times_that_are_over_are_nothing_to_tell(
    busy: Client, root: Client, clock: Clock
) -> None:
    clock.tick(days=1)
    last = await reached(busy.world, busy.user.id)
    ((user,), errors) = await reset(root, busy)
    assert (user["limits"], errors) == ({"recipients": NONE, "received": NONE}, [])
    assert await reached(busy.world, busy.user.id) == last


async def test_many_cost_the_statements_of_one(root: Client, statements: list[str]) -> None:
    world = root.world
    made = [(await make_user(world, f"n{nth}")).id for nth in range(21)]
    until = world.now().replace(hour=1)

    async def count() -> None:
        async with world.write_session() as session:
            connection = await session.connection()
            given = {"kind": UsageKind.RECIPIENTS, "used": 7, "until": until}
            await connection.execute(insert(Usage), [{"user_id": key, **given} for key in made])
            some = update(User).where(col(User.id).in_(made[::2]))
            await connection.execute(some.values(received=3, received_until=until))

    async def cost(some: list[int]) -> int:
        del statements[:]
        found, errors = await reset(root, *some)
        assert (len(found), errors) == (len(some), [])
        return len([one for one in statements if "api_keys" not in one])

    await count()
    one, others = await cost(made[:1]), await cost(made[1:])
    assert others <= one + 1  # those with both counters, and those with one
    assert (await counters(world))[0] == []
    plan = await rows(world, "SELECT count(*) FROM users WHERE received > 0")
    assert plan == [(0,)]


@pytest.mark.parametrize(
    ("given", "code", "path"),
    [
        ({"kinds": []}, "VALIDATION", ["kinds"]),
        ({"users": {"ids": [global_ids.encode("User", 7)]}}, "NOT_FOUND", ["users", "ids"]),
        ({"users": {"usernames": ["ada", "nobody"]}}, "NOT_FOUND", ["users", "usernames"]),
        ({"users": {}}, "VALIDATION", ["users"]),
    ],
)
async def test_what_cannot_be_is_refused_and_changes_nothing(
    busy: Client, root: Client, given: dict[str, Any], code: str, path: list[str]
) -> None:
    before = await counters(busy.world)
    users, errors = await reset(root, busy, **given)
    assert (users, [(each["code"], each["path"]) for each in errors]) == ([], [(code, path)])
    assert await counters(busy.world) == before


async def test_only_administrators_of_the_domain_may_with_the_permission(
    busy: Client, bob: Client, root: Client
) -> None:
    before = await counters(busy.world)

    async def tried(client: Client, *who: Client) -> list[str | None]:
        """What it would take, or the code of the refusal."""
        _, errors = await reset(client, *who)
        return [each.get("requires", each["code"]) for each in errors]

    assert await tried(bob, busy) == ["DOMAIN_ADMIN"]
    assert await tried(busy, busy) == ["DOMAIN_ADMIN"]  # nobody for themselves
    bare = await chief(root, AdminPermission.SPAM_POLICY, name="bare")
    assert await tried(bare, busy) == ["RATELIMIT"]
    await create(root, username="x", address="x@afar.example")
    far = await chief(root, AdminPermission.RATELIMIT, domain="afar.example", name="far")
    assert await tried(far, busy) == ["NOT_FOUND"]
    await used(far)  # who lives in example.org, and is in charge elsewhere
    assert await tried(far, far) == ["ADMIN"]
    boss = await make_client(root.world, root.http, "boss", role=Role.ADMIN)
    near = await make_domain_admin(root.world, root.http, "near", [AdminPermission.RATELIMIT])
    assert await tried(near, busy, boss) == ["ADMIN"]
    after = await counters(busy.world)
    mine = {busy.user.id}
    assert [r for part in after for r in part if r[0] in mine] == [
        r for part in before for r in part if r[0] in mine
    ]
    assert await tried(near, busy) == []
    asked = select(col(User.received), col(User.received_until)).where(col(User.id) == busy.user.id)
    assert [tuple(row) for row in await busy.world.database.read(asked)] == [(0, None)]
    assert await tried(boss, boss, far) == []
    await examine(busy.world)
