"""How the stores find accounts: by which index, and without looking at all there are."""

from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from sqlalchemy import event, text

from bench.crowds import fill
from models.database import READING
from models.pages import Ask, Cursor
from models.roles import Role
from models.world import World
from resolvers import userlist
from resolvers.access import visible_users
from resolvers.context import Context, Viewer
from resolvers.userlist import UserOrder, UserWhere

MANY = 6000


@dataclass
class Plans:
    """The plans of what was sent last, as the store tells them."""

    world: World
    domains: dict[str, int]
    sent: list[tuple[str, Any]] = field(default_factory=list)

    async def of(self, work: Awaitable[Any]) -> str:
        """The plan of the one select of accounts that `work` sends."""
        del self.sent[:]
        await work
        (statement,) = [
            one for one in self.sent if "users.deleted_at" in one[0] or "count" in one[0]
        ]
        sqlite = self.world.database.dialect == "sqlite"
        explain = "EXPLAIN QUERY PLAN " if sqlite else "EXPLAIN "
        async with self.world.database.engine.connect() as connection:
            for setting in () if sqlite else READING:
                await connection.exec_driver_sql(f"SET LOCAL {setting}")
            found = await connection.exec_driver_sql(explain + statement[0], statement[1])
            return "\n".join(str(row[-1]) for row in found)

    def ctx(self, role: Role = Role.ADMIN, *domains: str) -> Context:
        administers = frozenset(self.domains[name] for name in domains)
        return Context(self.world, Viewer(role=role, user_id=0, administers=administers))


@pytest.fixture
async def plans(world: World) -> AsyncIterator[Plans]:
    await fill(world, MANY)
    async with world.database.engine.connect() as connection:
        found = await connection.execute(text("SELECT name, id FROM domains"))
        plans = Plans(world, {name: int(key) for name, key in found})

    def note(_connection: Any, _cursor: Any, statement: str, given: Any, *_: Any) -> None:
        plans.sent.append((statement, given))

    for engine in world.database.engines:
        event.listen(engine, "before_cursor_execute", note)
    yield plans
    for engine in world.database.engines:
        event.remove(engine, "before_cursor_execute", note)


def whole(plan: str) -> bool:
    """Whether all accounts are looked at, one by one."""
    lines = [line.strip() for line in plan.splitlines()]
    return any(line in {"SCAN users", "SCAN u"} or "Seq Scan on users" in line for line in lines)


def sorts(plan: str) -> bool:
    full = [line for line in plan.splitlines() if "Incremental Sort" not in line]
    return any("USE TEMP B-TREE FOR ORDER BY" in line or "Sort  (" in line for line in full)


ORDERS = {
    UserOrder.USERNAME: "uq_users_username_key",
    UserOrder.CREATED: "ix_users_created_at",
    UserOrder.QUOTA_USED: "ix_users_used",
    UserOrder.LAST_LOGIN: "search_users_logins",
}


async def test_each_order_is_read_by_its_index_both_ways(plans: Plans) -> None:
    ctx = plans.ctx()
    for order, index in ORDERS.items():
        page = await userlist.pages(ctx, UserWhere(), Ask("x"), {"username"}, order)
        row = page.rows[-1]
        at = Cursor("x", userlist.place_of(order, row), row.id)
        for ask in (Ask("x"), Ask("x", back=True), Ask("x", place=at), Ask("x", 5, at, back=True)):
            plan = await plans.of(userlist.pages(ctx, UserWhere(), ask, {"username"}, order))
            assert index in plan or "sqlite_autoindex_users" in plan, plan
            assert not whole(plan), plan
            assert not sorts(plan), plan


FILTERS = {
    "three letters": (UserWhere(query="lovelace.0000"), "search_users"),
    "in the middle": (UserWhere(query="ELLER.00009"), "search_users"),
    "one letter": (UserWhere(query="z"), "MAINS"),
    "tags": (UserWhere(tags=("vip",)), "user_tags"),
    "all of the tags": (UserWhere(required_tags=("VIP",)), "user_tags"),
    "how it begins": (UserWhere(masks=("ada.LOVE*0@d?.*",)), "NAMES"),
    "how it goes on": (UserWhere(masks=("*eyer000111*",)), "search_users"),
    "roles": (UserWhere(roles=(Role.ADMIN,)), "ix_users_staff"),
    "disabled": (UserWhere(disabled=True), "ix_users_disabled"),
    "suspended": (UserWhere(suspended=True), "ix_users_suspended"),
    "domain": (UserWhere(domain="d3.crowd.example"), "ix_users_of_domain"),
}
NAMED = {
    "sqlite": {"NAMES": "sqlite_autoindex_users", "MAINS": "uq_addresses_local_domain_id"},
    "postgresql": {"NAMES": "search_users_names", "MAINS": "search_users_mains"},
}


@pytest.mark.parametrize("name", FILTERS)
async def test_each_filter_has_an_index(plans: Plans, name: str) -> None:
    where, index = FILTERS[name]
    index = NAMED[plans.world.database.dialect].get(index, index)
    page = await userlist.pages(plans.ctx(), where, Ask("x"), {"username"})
    assert page.rows
    for work in (
        userlist.pages(plans.ctx(), where, Ask("x"), {"username"}),
        userlist.count(plans.ctx(), where),
    ):
        plan = await plans.of(work)
        assert not whole(plan), plan
        if name != "domain" or "username_key" in plans.sent[-1][0]:  # its count is a column
            assert index in plan, plan


async def test_who_administers_domains_reads_them_in_order_each(plans: Plans) -> None:
    ctx = plans.ctx(Role.DOMAIN_ADMIN, "d0.crowd.example", "d1.crowd.example", "d2.crowd.example")
    plan = await plans.of(userlist.pages(ctx, UserWhere(), Ask("x"), {"username"}))
    assert plan.count("ix_users_of_domain") == 3, plan
    assert not whole(plan), plan
    asked = UserWhere(query="a")
    mine = [row.id for row in (await userlist.pages(ctx, asked, Ask("x", 250), {"id"})).rows]
    wide = replace(ctx.viewer, administers=ctx.viewer.administers | set(range(1, 100)))
    many = Context(plans.world, wide)  # too many to be read apart
    assert mine == [r.id for r in (await userlist.pages(many, asked, Ask("x", 250), {"id"})).rows]
    assert len(mine) > 100


async def test_all_are_counted_by_an_index(plans: Plans) -> None:
    assert await userlist.count(plans.ctx(), UserWhere()) == MANY
    plan = await plans.of(userlist.count(plans.ctx(), UserWhere()))
    if plans.world.database.dialect == "sqlite":
        assert "USING COVERING INDEX" in plan, plan
    half = await userlist.count(plans.ctx(), UserWhere(domain="d0.crowd.example"))
    assert half == await userlist.count(
        plans.ctx(Role.DOMAIN_ADMIN, "d0.crowd.example"), UserWhere()
    )
    assert visible_users(plans.ctx()) is not None
