"""Filters of the filters, shared mailboxes and temporary addresses of a user."""

from typing import Any

import pytest

from models.mailboxes.shares import MailboxShare
from models.store.keyset_pages import PageRequest
from models.users.roles import Role, Scope
from resolvers.context import Context
from resolvers.filters import loaders as filter_loaders
from resolvers.filters.loaders import FilterListConditions, FilterListing, FilterOrder
from resolvers.mailboxes import shares
from resolvers.mailboxes.shares import SharedMailboxConditions, SharedMailboxListing
from resolvers.viewer import Viewer
from tests.conftest import GraphQLClient, make_client
from tests.support.accounts.shared_mailboxes import share_mailbox
from tests.support.accounts.user_operations import user_global_id
from tests.support.case_loop import each_case
from tests.support.operations.address_operations import (
    try_create_temporary_address,
    try_update_addresses,
)
from tests.support.operations.filter_operations import add_filter
from tests.support.operations.mailbox_operations import create_mailboxes
from tests.support.stores.query_plans import record_query_plans

FILTERS_QUERY = """query ($filter: FilterFilter, $first: Int, $after: String, $user: UserRef!) {
  user(by: $user) { filters(filter: $filter, first: $first, after: $after) {
    totalCount nodes { name } pageInfo { hasNextPage endCursor } } } }"""
SHARED_QUERY = """query ($filter: SharedMailboxFilter, $first: Int, $after: String) {
  viewer { user { sharedMailboxes(filter: $filter, first: $first, after: $after) {
    totalCount nodes { path owner { username } } pageInfo { hasNextPage endCursor } } } } }"""
TEMPORARY_QUERY = """query ($filter: AddressFilter) { viewer { user {
  temporaryAddresses(filter: $filter) { totalCount nodes { address } } } } }"""


async def test_filters_of_a_user_are_filtered(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient
) -> None:
    for name, active in (("Bills", True), ("Old bills", False), ("News", True)):
        await add_filter(ada, {"subject": name}, {"flag": True}, name=name, active=active)
    user = {"username": "ada"}
    cases: list[tuple[dict[str, Any] | None, list[str]]] = [
        (None, ["Bills", "Old bills", "News"]),
        ({"name": "BILLS"}, ["Bills", "Old bills"]),
        ({"active": False}, ["Old bills"]),
        ({"name": "bills", "active": True}, ["Bills"]),
        ({"forward": "example"}, []),
    ]
    for case in each_case(cases):
        with case as (condition, expected):
            for client in (ada, root):
                page = (await client(FILTERS_QUERY, filter=condition, user=user))["user"]["filters"]
                names = [node["name"] for node in page["nodes"]]
                assert (names, page["totalCount"]) == (expected, len(expected))
            assert await bob(FILTERS_QUERY, filter=condition, user=user) == {"user": None}
    refused = await ada.execute(FILTERS_QUERY, filter={"user": user}, user=user)
    assert refused["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"
    of_all = "query ($filter: FilterFilter) { filters(filter: $filter) { nodes { name } } }"
    found = await root(of_all, filter={"name": "bills", "active": False})
    assert found["filters"]["nodes"] == [{"name": "Old bills"}]


async def test_cursor_of_a_filtered_list_fits_only_the_same_filter(ada: GraphQLClient) -> None:
    for number in range(3):
        await add_filter(ada, {"subject": "x"}, {"flag": True}, name=f"Bill {number}")
    arguments = {"user": {"username": "ada"}, "first": 2}
    page = (await ada(FILTERS_QUERY, filter={"name": "bill"}, **arguments))["user"]["filters"]
    assert page["pageInfo"]["hasNextPage"]
    after = page["pageInfo"]["endCursor"]
    rest = (await ada(FILTERS_QUERY, filter={"name": "bill"}, after=after, **arguments))["user"]
    assert [node["name"] for node in rest["filters"]["nodes"]] == ["Bill 2"]
    wrong = await ada.execute(FILTERS_QUERY, after=after, **arguments)
    assert wrong["errors"][0]["extensions"] == {"code": "BAD_CURSOR"}


async def test_shared_mailboxes_are_filtered_by_owner_and_path(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    eve = await make_client(ada.environment, ada.http, "eve")
    stranger = await make_client(ada.environment, ada.http, "stranger")
    for owner in (ada, eve):
        await create_mailboxes(owner, "Plans", "Team")
        for path in ("Plans", "Team"):
            await share_mailbox(owner, bob, "LOOKUP", path=path)
    of_ada = [("ada", "Plans"), ("ada", "Team")]
    cases: list[tuple[dict[str, Any], list[tuple[str, str]]]] = [
        ({"owner": {"username": "ada"}}, of_ada),
        ({"owner": {"address": "ada@example.org"}}, of_ada),
        ({"owner": {"id": user_global_id(ada)}}, of_ada),
        ({"owner": {"username": "ada"}, "query": "TEAM"}, [("ada", "Team")]),
        ({"query": "plan"}, [("ada", "Plans"), ("eve", "Plans")]),
        ({"owner": {"username": "bob"}}, []),
        ({"owner": {"username": "nobody"}}, []),
    ]
    for case in each_case(cases):
        with case as (condition, expected):
            page = (await bob(SHARED_QUERY, filter=condition))["viewer"]["user"]["sharedMailboxes"]
            found = [(node["owner"]["username"], node["path"]) for node in page["nodes"]]
            assert (sorted(found), page["totalCount"]) == (expected, len(expected))
            hidden = (await stranger(SHARED_QUERY, filter=condition))["viewer"]["user"]
            assert hidden["sharedMailboxes"]["totalCount"] == 0
    first = (await bob(SHARED_QUERY, filter={"owner": {"username": "ada"}}, first=1))["viewer"]
    after = first["user"]["sharedMailboxes"]["pageInfo"]["endCursor"]
    wrong = await bob.execute(SHARED_QUERY, first=1, after=after)
    assert wrong["errors"][0]["extensions"] == {"code": "BAD_CURSOR"}


async def test_temporary_addresses_are_filtered(ada: GraphQLClient, bob: GraphQLClient) -> None:
    created, _ = await try_create_temporary_address(ada, validity="P2D")
    inactive, _ = await try_create_temporary_address(ada, validity=None)
    _, errors = await try_update_addresses(ada, inactive["address"], active=False)
    assert errors == []
    local_part = created["address"].partition("@")[0]
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({"query": local_part}, [created["address"]]),
        ({"active": False}, [inactive["address"]]),
        ({"query": "nothing-like-it"}, []),
    ]
    for case in each_case(cases):
        with case as (condition, expected):
            page = (await ada(TEMPORARY_QUERY, filter=condition))["viewer"]["user"]
            found = [node["address"] for node in page["temporaryAddresses"]["nodes"]]
            assert found == expected
            assert page["temporaryAddresses"]["totalCount"] == len(expected)
            hidden = (await bob(TEMPORARY_QUERY, filter=condition))["viewer"]["user"]
            assert hidden["temporaryAddresses"] == {"totalCount": 0, "nodes": []}
    refused = await ada.execute(TEMPORARY_QUERY, filter={"user": {"username": "ada"}})
    assert refused["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"


@pytest.mark.usefixtures("bob")
async def test_filtered_lists_of_a_user_read_its_index(ada: GraphQLClient) -> None:
    environment = ada.environment
    viewer = Viewer(role=Role.USER, user_id=ada.user.id, scopes=frozenset({Scope.FULL}))
    ctx = Context(environment, viewer)
    filter_listing = FilterListing(
        ada.user.id,
        PageRequest("x"),
        filter_loaders.LIST_ORDERS[FilterOrder.POSITION_ASC],
        frozenset({"name"}),
        FilterListConditions(name_part="a", active=True),
    )
    shared_listing = SharedMailboxListing(
        ada.user.id, PageRequest("x"), frozenset({"path"}), SharedMailboxConditions(owner_id=1)
    )
    with record_query_plans(environment) as plans:
        filter_plan = await plans.explain_select(
            filter_loaders.load_visible_filter_pages(ctx, [filter_listing]), "filters"
        )
        (shared_plan,) = await plans.explain_statements(
            shares.load_visible_shared_mailbox_pages(ctx, [shared_listing]),
            lambda sent: f"JOIN {MailboxShare.__tablename__}" in sent,
        )
    if environment.database.dialect == "sqlite":  # small tables have other plans
        for plan, index in (
            (filter_plan, "ix_filters_position"),
            (shared_plan, "mailbox_shares_of_user"),
        ):
            assert index in plan, plan
            assert "TEMP B-TREE" not in plan, plan
