"""How the stores find accounts: by which index, and without looking at all there are."""

from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from sqlalchemy import text

from bench.load.user_rows import insert_users
from models.runtime.environment import Environment
from models.store.keyset_pages import Cursor, PageRequest
from models.users.roles import Role
from resolvers.access import is_visible_user
from resolvers.context import Context, Viewer
from resolvers.users import listing as user_listing
from resolvers.users.listing import UserConditions, UserOrder
from tests.support.stores.query_plans import Plans, explained

MANY = 6000


@dataclass
class Crowd:
    """Many accounts, and how the store finds them."""

    world: Environment
    domains: dict[str, int]
    plans: Plans

    async def of(self, work: Awaitable[Any]) -> str:
        """The plan of the one select of accounts that `work` sends."""
        (plan,) = await self.plans.those(
            work, lambda sent: "users.deleted_at" in sent or "count" in sent
        )
        return plan

    def ctx(self, role: Role = Role.ADMIN, *domains: str) -> Context:
        administers = frozenset(self.domains[name] for name in domains)
        return Context(self.world, Viewer(role=role, user_id=0, administered_domains=administers))


@pytest.fixture
async def crowd(world: Environment) -> AsyncIterator[Crowd]:
    await insert_users(world, MANY)
    async with world.database.engine.connect() as connection:
        found = await connection.execute(text("SELECT name, id FROM domains"))
        domains = {name: int(key) for name, key in found}
    with explained(world) as plans:
        yield Crowd(world, domains, plans)


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


async def test_each_order_is_read_by_its_index_both_ways(crowd: Crowd) -> None:
    ctx = crowd.ctx()
    for order, index in ORDERS.items():
        page = await user_listing.load_user_page(
            ctx, UserConditions(), PageRequest("x"), {"username"}, order
        )
        row = page.rows[-1]
        at = Cursor("x", user_listing.sort_key(order, row), row.id)
        for ask in (
            PageRequest("x"),
            PageRequest("x", is_backward=True),
            PageRequest("x", cursor=at),
            PageRequest("x", 5, at, is_backward=True),
        ):
            plan = await crowd.of(
                user_listing.load_user_page(ctx, UserConditions(), ask, {"username"}, order)
            )
            assert index in plan or "sqlite_autoindex_users" in plan, plan
            assert not whole(plan), plan
            assert not sorts(plan), plan


FILTERS = {
    "three letters": (UserConditions(query="lovelace.0000"), "search_users"),
    "in the middle": (UserConditions(query="ELLER.00009"), "search_users"),
    "one letter": (UserConditions(query="z"), "MAINS"),
    "tags": (UserConditions(tags=("vip",)), "user_tags"),
    "all of the tags": (UserConditions(required_tags=("VIP",)), "user_tags"),
    "how it begins": (UserConditions(masks=("ada.LOVE*0@d?.*",)), "NAMES"),
    "how it goes on": (UserConditions(masks=("*eyer000111*",)), "search_users"),
    "roles": (UserConditions(roles=(Role.ADMIN,)), "ix_users_staff"),
    "disabled": (UserConditions(disabled=True), "ix_users_disabled"),
    "suspended": (UserConditions(suspended=True), "ix_users_suspended"),
    "domain": (UserConditions(domain="d3.crowd.example"), "ix_users_of_domain"),
}
NAMED = {
    "sqlite": {"NAMES": "sqlite_autoindex_users", "MAINS": "uq_addresses_local_domain_id"},
    "postgresql": {"NAMES": "search_users_names", "MAINS": "search_users_mains"},
}


async def test_each_filter_has_an_index(crowd: Crowd) -> None:
    for name in FILTERS:
        await check_index(crowd, name)


async def check_index(crowd: Crowd, name: str) -> None:
    where, index = FILTERS[name]
    index = NAMED[crowd.world.database.dialect].get(index, index)
    page = await user_listing.load_user_page(crowd.ctx(), where, PageRequest("x"), {"username"})
    assert page.rows
    for work in (
        user_listing.load_user_page(crowd.ctx(), where, PageRequest("x"), {"username"}),
        user_listing.count_users(crowd.ctx(), where),
    ):
        plan = await crowd.of(work)
        assert not whole(plan), plan
        if name != "domain" or "username_key" in crowd.plans.sent[-1][0]:  # its count is a column
            assert index in plan, plan


async def test_who_administers_domains_reads_them_in_order_each(crowd: Crowd) -> None:
    ctx = crowd.ctx(Role.DOMAIN_ADMIN, "d0.crowd.example", "d1.crowd.example", "d2.crowd.example")
    plan = await crowd.of(
        user_listing.load_user_page(ctx, UserConditions(), PageRequest("x"), {"username"})
    )
    assert plan.count("ix_users_of_domain") == 3, plan
    assert not whole(plan), plan
    asked = UserConditions(query="a")
    mine = [
        row.id
        for row in (
            await user_listing.load_user_page(ctx, asked, PageRequest("x", 250), {"id"})
        ).rows
    ]
    wide = replace(
        ctx.viewer, administered_domains=ctx.viewer.administered_domains | set(range(1, 100))
    )
    many = Context(crowd.world, wide)  # too many to be read apart
    assert mine == [
        r.id
        for r in (
            await user_listing.load_user_page(many, asked, PageRequest("x", 250), {"id"})
        ).rows
    ]
    assert len(mine) > 100


async def test_all_are_counted_by_an_index(crowd: Crowd) -> None:
    assert await user_listing.count_users(crowd.ctx(), UserConditions()) == MANY
    plan = await crowd.of(user_listing.count_users(crowd.ctx(), UserConditions()))
    if crowd.world.database.dialect == "sqlite":
        assert "USING COVERING INDEX" in plan, plan
    half = await user_listing.count_users(crowd.ctx(), UserConditions(domain="d0.crowd.example"))
    assert half == await user_listing.count_users(
        crowd.ctx(Role.DOMAIN_ADMIN, "d0.crowd.example"), UserConditions()
    )
    assert is_visible_user(crowd.ctx()) is not None
