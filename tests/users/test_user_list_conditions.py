"""Lists of users by quota, last sign-in and second factor."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update
from sqlmodel import col

from models.domains.tables import Domain
from models.runtime.environment import Environment
from models.users.tables import User
from resolvers.users.listing import UserOrder
from tests.conftest import GraphQLClient, make_user
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.case_loop import each_case
from tests.support.operations.domain_operations import create_domain

GIB = 1 << 30
USERS_QUERY = """
query ($filter: UserFilter, $first: Int, $after: String, $last: Int, $before: String,
       $orderBy: UserOrder! = USERNAME_ASC) {
  users(filter: $filter, first: $first, after: $after, last: $last, before: $before,
        orderBy: $orderBy) {
    nodes { username } totalCount
    pageInfo { hasNextPage hasPreviousPage startCursor endCursor } } }
"""
# Some values are equal: pages must be complete under ties.
USER_COLUMNS: dict[str, dict[str, Any]] = {
    "below": {"quota": 100, "used": 99},
    "domain": {"used": 2 * GIB},
    "domain2": {"used": 2 * GIB},
    "factor": {"second_factors": ["TOTP"]},
    "factor2": {"second_factors": ["TOTP", "WEBAUTHN"]},
    "full": {"quota": 100, "used": 100},
    "full2": {"quota": 99, "used": 100},
    "platform": {"used": 8 * GIB, "domain_id": None},
    "unlimited": {"quota": 0, "used": 9 * GIB},
}
SIGN_IN_AGES = {"below": 10, "domain": 10, "domain2": 9, "factor": 1, "full": 10}
ALL_USERNAMES = sorted(USER_COLUMNS)


@pytest.fixture
async def client_with_users(root: GraphQLClient) -> GraphQLClient:
    environment = root.environment
    for name in reversed(ALL_USERNAMES):
        await make_user(environment, name)
    async with environment.write_session() as session:
        connection = await session.connection()
        for name, columns in USER_COLUMNS.items():
            age = SIGN_IN_AGES.get(name)
            signed_in_at = None if age is None else environment.now() - timedelta(days=age)
            statement = update(User).where(col(User.username) == name)
            await connection.execute(statement.values(last_login_at=signed_in_at, **columns))
        of_domain = update(Domain).where(col(Domain.name) == "example.org")
        await connection.execute(of_domain.values(default_user_quota=2 * GIB))
    return root


def cases(environment: Environment) -> dict[str, tuple[dict[str, Any], list[str]]]:
    """Return filters with the usernames of the accounts that they select."""
    full = ["domain", "domain2", "full", "full2", "platform"]
    factors = ["factor", "factor2"]
    never = [name for name in ALL_USERNAMES if name not in SIGN_IN_AGES]

    def since(days: float) -> dict[str, Any]:
        return {"notSignedInSince": (environment.now() - timedelta(days=days)).isoformat()}

    return {
        "full": ({"quotaReached": True}, full),
        "not full": ({"quotaReached": False}, [n for n in ALL_USERNAMES if n not in full]),
        "factor": ({"hasSecondFactor": True}, factors),
        "no factor": ({"hasSecondFactor": False}, [n for n in ALL_USERNAMES if n not in factors]),
        "never": (since(99), never),
        "epoch": ({"notSignedInSince": "1970-01-01T00:00:00+00:00"}, never),
        "ten days": (since(9.5), sorted([*never, "below", "domain", "full"])),
        "exact": (since(10), never),
        "now": (since(0), ALL_USERNAMES),
        "together": ({"quotaReached": True, "hasSecondFactor": False, **since(8)}, full),
    }


async def test_accounts_are_listed_by_quota_sign_in_and_second_factor(
    client_with_users: GraphQLClient,
) -> None:
    for case in each_case(cases(client_with_users.environment).values()):
        with case as (condition, expected):
            page = (await client_with_users(USERS_QUERY, filter=condition, first=250))["users"]
            usernames = [node["username"] for node in page["nodes"]]
            assert (usernames, page["totalCount"]) == (expected, len(expected))


async def test_pages_of_each_filter_and_order_are_complete_under_ties(
    client_with_users: GraphQLClient,
) -> None:
    filters = cases(client_with_users.environment)
    for name in ("full", "no factor", "ten days"):
        condition, expected = filters[name]
        for order in UserOrder:
            arguments = {"filter": condition, "orderBy": order.value}
            forward = await all_pages(client_with_users, "first", "after", **arguments)
            assert sorted(forward) == expected, (name, order)
            assert await all_pages(client_with_users, "last", "before", **arguments) == forward


async def all_pages(
    client: GraphQLClient, count: str, position: str, **arguments: Any
) -> list[str]:
    """Return the usernames of all pages of two accounts, in the order of the list."""
    is_backward, cursor, pages = count == "last", None, list[list[str]]()
    while True:
        page = (await client(USERS_QUERY, **{count: 2, position: cursor}, **arguments))["users"]
        pages.append([node["username"] for node in page["nodes"]])
        info = page["pageInfo"]
        if not info["hasPreviousPage" if is_backward else "hasNextPage"]:
            return [name for names in (pages[::-1] if is_backward else pages) for name in names]
        cursor = info["startCursor" if is_backward else "endCursor"]


async def test_accounts_of_other_domains_are_not_listed(
    client_with_users: GraphQLClient, bob: GraphQLClient
) -> None:
    environment, http = client_with_users.environment, client_with_users.http
    await create_domain(client_with_users, "other.example")
    other = await make_domain_admin(environment, http, "zed", domains=["other.example"])
    own = await make_domain_admin(environment, http, "zoe")
    for condition, expected in cases(environment).values():
        page = (await other(USERS_QUERY, filter=condition))["users"]
        assert {node["username"] for node in page["nodes"]} <= {"zed"}
        page = (await own(USERS_QUERY, filter=condition, first=250))["users"]
        usernames = {node["username"] for node in page["nodes"]}
        assert usernames & set(ALL_USERNAMES) == set(expected) - {"platform"}
        answer = await bob.execute(USERS_QUERY, filter=condition)
        assert answer["errors"][0]["extensions"]["code"] == "FORBIDDEN"


async def test_number_of_statements_is_constant(
    client_with_users: GraphQLClient, statements: list[str]
) -> None:
    counts = set()
    await client_with_users(USERS_QUERY)  # reads the API key into the cache
    for name in ("never", "now", "exact"):
        condition, _ = cases(client_with_users.environment)[name]
        del statements[:]
        await client_with_users(USERS_QUERY, filter=condition)
        counts.add(len(statements))
    assert len(counts) == 1
