"""Query plans of user lists: each query uses an index and scans no whole table."""

from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text, update
from sqlmodel import col

from bench.load.user_rows import insert_users
from models.runtime.environment import Environment
from models.store.keyset_pages import PageRequest
from models.users.roles import Role
from models.users.tables import User
from resolvers.access import is_visible_user
from resolvers.context import Context
from resolvers.domains.loaders import DomainIdOrName
from resolvers.users import listing as user_listing
from resolvers.users.listing import UserConditions, UserOrder
from resolvers.viewer import Viewer
from tests.support.stores.query_plans import QueryPlanRecorder, record_query_plans

USER_COUNT = 6000


@dataclass
class ManyUsers:
    """Many users, and the plans of queries for them."""

    environment: Environment
    domains: dict[str, int]
    plans: QueryPlanRecorder

    async def explain_users(self, query: Awaitable[Any]) -> str:
        """Return the plan of the only select of users that `work` runs."""
        (plan,) = await self.plans.explain_statements(
            query, lambda sql: "users.deleted_at" in sql or "count" in sql
        )
        return plan

    def make_context(self, role: Role = Role.ADMIN, *domains: str) -> Context:
        administers = frozenset(self.domains[name] for name in domains)
        return Context(
            self.environment, Viewer(role=role, user_id=0, administered_domains=administers)
        )


@pytest.fixture
async def many_users(environment: Environment) -> AsyncIterator[ManyUsers]:
    await insert_users(environment, USER_COUNT)
    async with environment.database.engine.connect() as connection:
        domain_rows = await connection.execute(text("SELECT name, id FROM domains"))
        domains = {name: int(domain_id) for name, domain_id in domain_rows}
    with record_query_plans(environment) as plans:
        yield ManyUsers(environment, domains, plans)


def scans_all_users(plan: str) -> bool:
    """True if the plan reads all users one by one."""
    lines = [line.strip() for line in plan.splitlines()]
    return any(line in {"SCAN users", "SCAN u"} or "Seq Scan on users" in line for line in lines)


def has_sort(plan: str) -> bool:
    plan_lines = [line for line in plan.splitlines() if "Incremental Sort" not in line]
    return any("USE TEMP B-TREE FOR ORDER BY" in line or "Sort  (" in line for line in plan_lines)


INDEX_BY_ORDER = {
    UserOrder.USERNAME_ASC: "uq_users_username_key",
    UserOrder.USERNAME_DESC: "uq_users_username_key",
    UserOrder.CREATED_AT_ASC: "ix_users_created_at",
    UserOrder.CREATED_AT_DESC: "ix_users_created_at",
    UserOrder.STORAGE_USED_ASC: "ix_users_used",
    UserOrder.STORAGE_USED_DESC: "ix_users_used",
    UserOrder.LAST_LOGIN_AT_ASC: "search_users_logins",
    UserOrder.LAST_LOGIN_AT_DESC: "search_users_logins",
}


async def test_lists_and_counts_of_users_use_indexes(many_users: ManyUsers) -> None:
    await check_orders(many_users)
    for name in FILTERS_WITH_INDEX:
        await check_filter(many_users, name)
    await check_lists_of_domain_admin(many_users)
    await check_counts(many_users)
    for has_factors in (False, True):
        await fill_some_accounts(many_users.environment, has_factors=has_factors)
        for name in STATE_FILTERS:
            if (name == "no factor") is has_factors:
                await check_state_filter(many_users, name)
    await check_accounts_without_sign_in(many_users)


async def check_orders(many_users: ManyUsers) -> None:
    """Require that each order uses its index in both directions."""
    ctx = many_users.make_context()
    for order, index in INDEX_BY_ORDER.items():
        page = await user_listing.load_visible_user_page(
            ctx, UserConditions(), PageRequest("x"), {"username"}, order
        )
        row = page.rows[-1]
        cursor = user_listing.LIST_ORDERS[order].cursor_of_row(row, "x")
        for page_request in (
            PageRequest("x"),
            PageRequest("x", is_backward=True),
            PageRequest("x", cursor=cursor),
            PageRequest("x", 5, cursor, is_backward=True),
        ):
            plan = await many_users.explain_users(
                user_listing.load_visible_user_page(
                    ctx, UserConditions(), page_request, {"username"}, order
                )
            )
            assert index in plan or "sqlite_autoindex_users" in plan, plan
            assert not scans_all_users(plan), plan
            assert not has_sort(plan), plan


FILTERS_WITH_INDEX = {
    "three letters": (UserConditions(query="lovelace.0000"), "search_users"),
    "in the middle": (UserConditions(query="ELLER.00009"), "search_users"),
    "one letter": (UserConditions(query="z"), "MAINS"),
    "tags": (UserConditions(tags=("vip",)), "user_tags"),
    "all of the tags": (UserConditions(required_tags=("VIP",)), "user_tags"),
    "how it begins": (UserConditions(patterns=("ada.LOVE*0@d?.*",)), "NAMES"),
    "how it goes on": (UserConditions(patterns=("*eyer000111*",)), "search_users"),
    "roles": (UserConditions(roles=(Role.ADMIN,)), "ix_users_staff"),
    "inactive": (UserConditions(active=False), "ix_users_inactive"),
    "suspended": (UserConditions(suspended=True), "ix_users_suspended"),
    "domain": (
        UserConditions(domain=DomainIdOrName(name="d3.crowd.example")),
        "ix_users_of_domain",
    ),
}
INDEX_BY_DIALECT = {
    "sqlite": {"NAMES": "sqlite_autoindex_users", "MAINS": "uq_addresses_local_domain_id"},
    "postgresql": {"NAMES": "search_users_names", "MAINS": "search_users_mains"},
}


async def check_filter(many_users: ManyUsers, filter_name: str) -> None:
    """Require that the list and the count with this filter use its index."""
    conditions, index = FILTERS_WITH_INDEX[filter_name]
    index = INDEX_BY_DIALECT[many_users.environment.database.dialect].get(index, index)
    page = await user_listing.load_visible_user_page(
        many_users.make_context(), conditions, PageRequest("x"), {"username"}
    )
    assert page.rows
    for query in (
        user_listing.load_visible_user_page(
            many_users.make_context(), conditions, PageRequest("x"), {"username"}
        ),
        user_listing.count_visible_users(many_users.make_context(), conditions),
    ):
        plan = await many_users.explain_users(query)
        assert not scans_all_users(plan), plan
        # the count of a domain is a column
        if filter_name != "domain" or "username_key" in many_users.plans.statements[-1][0]:
            assert index in plan, plan


async def check_lists_of_domain_admin(many_users: ManyUsers) -> None:
    """Require that the list of a DOMAIN_ADMIN reads each domain by the index."""
    ctx = many_users.make_context(
        Role.DOMAIN_ADMIN, "d0.crowd.example", "d1.crowd.example", "d2.crowd.example"
    )
    plan = await many_users.explain_users(
        user_listing.load_visible_user_page(ctx, UserConditions(), PageRequest("x"), {"username"})
    )
    assert plan.count("ix_users_of_domain") == 3, plan
    assert not scans_all_users(plan), plan
    conditions = UserConditions(query="a")
    user_ids = [
        row.id
        for row in (
            await user_listing.load_visible_user_page(
                ctx, conditions, PageRequest("x", 250), {"id"}
            )
        ).rows
    ]
    wide_viewer = replace(
        ctx.viewer, administered_domains=ctx.viewer.administered_domains | set(range(1, 100))
    )
    # too many domains to be read separately
    wide_context = Context(many_users.environment, wide_viewer)
    assert user_ids == [
        row.id
        for row in (
            await user_listing.load_visible_user_page(
                wide_context, conditions, PageRequest("x", 250), {"id"}
            )
        ).rows
    ]
    assert len(user_ids) > 100


async def check_counts(many_users: ManyUsers) -> None:
    """Require that the count of all users uses an index, and that counts are right."""
    assert (
        await user_listing.count_visible_users(many_users.make_context(), UserConditions())
        == USER_COUNT
    )
    plan = await many_users.explain_users(
        user_listing.count_visible_users(many_users.make_context(), UserConditions())
    )
    if many_users.environment.database.dialect == "sqlite":
        assert "USING COVERING INDEX" in plan, plan
    domain_count = await user_listing.count_visible_users(
        many_users.make_context(), UserConditions(domain=DomainIdOrName(name="d0.crowd.example"))
    )
    assert domain_count == await user_listing.count_visible_users(
        many_users.make_context(Role.DOMAIN_ADMIN, "d0.crowd.example"), UserConditions()
    )
    assert is_visible_user(many_users.make_context()) is not None


STATE_FILTERS = {
    "own quota": (UserConditions(is_quota_full=True), "ix_users_full"),
    "quota of the domain": (UserConditions(is_quota_full=True), "ix_users_of_domain_by_used"),
    "quota of the platform": (UserConditions(is_quota_full=True), "ix_users_used"),
    "factor": (UserConditions(has_second_factor=True), "ix_users_with_factor"),
    "no factor": (UserConditions(has_second_factor=False), "ix_users_without_factor"),
}


async def fill_some_accounts(environment: Environment, *, has_factors: bool) -> None:
    """Fill the storage of some accounts, and set second factors.

    If not `has_factors`, a few accounts get one. Otherwise these lose it, and all others get one.
    """
    is_zoe = col(User.username).startswith("zoe")
    async with environment.database.engine.begin() as connection:
        statement = update(User).where(is_zoe)
        factors = [] if has_factors else ["TOTP"]
        await connection.execute(statement.values(second_factors=factors))
        if has_factors:
            statement = update(User).where(~is_zoe)
            await connection.execute(statement.values(second_factors=["TOTP"]))
        for sql in (
            "UPDATE users SET quota = 7 WHERE username LIKE 'ada.%00@%'",
            "UPDATE domains SET default_user_quota = 1000000000 WHERE name LIKE 'd3%'",
            "UPDATE users SET used = 2000000000 WHERE username LIKE 'emil.%04@%'",
            "ANALYZE",
        ):
            await connection.execute(text(sql))


async def check_state_filter(many_users: ManyUsers, name: str) -> None:
    """Require that the list and the count with this filter use its index."""
    conditions, index = STATE_FILTERS[name]
    ctx = many_users.make_context()
    page = await user_listing.load_visible_user_page(ctx, conditions, PageRequest("x"), {"id"})
    assert page.rows
    for query in (
        user_listing.load_visible_user_page(ctx, conditions, PageRequest("x"), {"username"}),
        user_listing.count_visible_users(ctx, conditions),
    ):
        plan = await many_users.explain_users(query)
        assert index in plan, plan
        assert not scans_all_users(plan), plan


async def check_accounts_without_sign_in(many_users: ManyUsers) -> None:
    """Require that accounts without a recent sign-in are read by an index."""
    environment, ctx = many_users.environment, many_users.make_context()
    async with environment.database.engine.begin() as connection:
        statement = update(User).where(col(User.last_login_at).is_(None))
        await connection.execute(statement.values(last_login_at=environment.now()))
        await connection.execute(text("ANALYZE"))
    few = environment.now() - timedelta(seconds=10**7 - 9999)
    many = environment.now() - timedelta(days=1)
    usernames = ("uq_users_username_key", "sqlite_autoindex_users")
    sign_ins = ("search_users_logins",)
    for time, order, indexes in (
        (few, UserOrder.USERNAME_ASC, sign_ins),
        (few, UserOrder.LAST_LOGIN_AT_DESC, sign_ins),
        (many, UserOrder.USERNAME_ASC, usernames),
        (many, UserOrder.LAST_LOGIN_AT_ASC, sign_ins),
    ):
        conditions, page_request = UserConditions(not_signed_in_since=time), PageRequest("x")
        plan = await many_users.explain_users(
            user_listing.load_visible_user_page(ctx, conditions, page_request, {"id"}, order)
        )
        assert any(index in plan for index in indexes), plan
        assert not scans_all_users(plan), plan
        if time == many:
            assert not has_sort(plan), plan
