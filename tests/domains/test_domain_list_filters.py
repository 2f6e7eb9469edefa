"""Filters of the lists that belong to one domain, administrator or relay host."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from models.addresses.tables import Address
from models.domains.tables import Domain
from models.routing.tables import RelayHost
from models.runtime.environment import Environment
from models.store.keyset_pages import PageRequest
from models.users.roles import Role, Scope
from models.users.tables import User
from resolvers.addresses.loaders import AddressConditions
from resolvers.context import Context
from resolvers.domains import listing as domain_listing
from resolvers.domains.listing import DomainPageKey
from resolvers.users.listing import UserConditions
from resolvers.viewer import Viewer
from tests.conftest import GraphQLClient, make_user
from tests.support.case_loop import each_case
from tests.support.lists.list_rows import add_rows
from tests.support.operations.domain_operations import (
    ALIAS_DOMAIN_CREATE,
    create_domain,
    make_admin_of_domains,
    make_domain_user,
    run_mutation,
)
from tests.support.stores.query_plans import record_query_plans

USERS_QUERY = """query ($filter: UserFilter, $name: String!, $first: Int, $after: String) {
  domain(by: {name: $name}) {
    users(filter: $filter, first: $first, after: $after) {
      totalCount nodes { username } pageInfo { hasNextPage endCursor } }
    admins(filter: $filter) { totalCount nodes { username } } } }"""
ADDRESSES_QUERY = """query ($filter: AddressFilter, $name: String!, $first: Int, $after: String) {
  domain(by: {name: $name}) {
    addresses(filter: $filter, first: $first, after: $after) {
      totalCount nodes { address } pageInfo { hasNextPage endCursor } } } }"""
ALIASES_QUERY = """query ($filter: AliasDomainFilter) { domain(by: {name: "example.org"}) {
  aliases(filter: $filter) { totalCount nodes { alias } } } }"""
ADMINISTERED_QUERY = """query ($filter: DomainFilter, $user: UserRef!) {
  user(by: $user) { administers(filter: $filter) { totalCount nodes { name } } } }"""


async def set_user_columns(environment: Environment, name: str, **values: Any) -> None:
    async with environment.write_session() as session:
        statement = update(User).where(col(User.username) == name).values(**values)
        await (await session.connection()).execute(statement)


async def test_users_and_admins_of_a_domain_have_filters(
    root: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient
) -> None:
    environment = ada.environment
    now = environment.now()
    await make_user(environment, "carl", tags=["x"], active=False)
    await make_domain_user(environment, "eve@other.example", tags=["x"])
    admin = await make_admin_of_domains(environment, root.http, "adm", "example.org")
    await set_user_columns(environment, "bob", second_factors=["TOTP"], last_login_at=now)
    await set_user_columns(environment, "ada", quota=5, used=5)
    cases: list[tuple[dict[str, Any] | None, list[str]]] = [
        (None, ["ada", "adm", "bob", "carl"]),
        ({"tags": ["X"]}, ["carl"]),
        ({"active": False}, ["carl"]),
        ({"query": "bob"}, ["bob"]),
        ({"quotaReached": True}, ["ada"]),
        ({"hasSecondFactor": True}, ["bob"]),
        (
            {"notSignedInSince": (now - timedelta(days=1)).isoformat()},
            ["ada", "adm", "carl"],
        ),
        ({"domain": {"name": "example.org"}, "tags": ["x"]}, ["carl"]),
        ({"domain": {"name": "other.example"}}, []),
        ({"roles": ["DOMAIN_ADMIN"]}, ["adm"]),
    ]
    for case in each_case(cases):
        with case as (condition, expected):
            for client in (root, admin):
                domain = (await client(USERS_QUERY, filter=condition, name="example.org"))["domain"]
                users = [node["username"].partition("@")[0] for node in domain["users"]["nodes"]]
                assert (users, domain["users"]["totalCount"]) == (expected, len(expected))
                admins = [node["username"].partition("@")[0] for node in domain["admins"]["nodes"]]
                assert admins == [name for name in expected if name == "adm"]
            hidden = await admin(USERS_QUERY, filter=condition, name="other.example")
            assert hidden == {"domain": None}
            refused = await bob.execute(USERS_QUERY, filter=condition, name="example.org")
            assert refused["errors"]


async def test_addresses_of_a_domain_have_filters(
    root: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient
) -> None:
    await make_admin_of_domains(ada.environment, root.http, "adm", "example.org")
    for address, fields in (
        ("team@example.org", {"kind": "FORWARD", "forwardTo": ["x@far.example"], "tags": ["t"]}),
        ("sales@example.org", {"user": {"username": "ada"}}),
    ):
        document = """mutation ($input: AddressCreateInput!) {
          addressCreate(input: $input) { errors { message } } }"""
        payload = await root(document, input={"address": address, **fields})
        assert payload["addressCreate"]["errors"] == []
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({"query": "sal"}, ["sales@example.org"]),
        ({"kinds": ["FORWARD"]}, ["team@example.org"]),
        ({"forward": "far."}, ["team@example.org"]),
        ({"tags": ["T"]}, ["team@example.org"]),
        ({"user": {"username": "ada"}}, ["ada@example.org", "sales@example.org"]),
        ({"user": {"username": "nobody"}}, []),
        ({"domain": {"name": "other.example"}}, []),
    ]
    for case in each_case(cases):
        with case as (condition, expected):
            page = (await root(ADDRESSES_QUERY, filter=condition, name="example.org"))["domain"]
            addresses = [node["address"] for node in page["addresses"]["nodes"]]
            assert (addresses, page["addresses"]["totalCount"]) == (expected, len(expected))
            refused = await bob.execute(ADDRESSES_QUERY, filter=condition, name="example.org")
            assert refused["errors"]


async def test_alias_domains_of_a_domain_have_a_filter(
    root: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient
) -> None:
    admin = await make_admin_of_domains(ada.environment, root.http, "adm", "example.org")
    for alias in ("red.example", "blue.example"):
        _, errors = await run_mutation(
            root, ALIAS_DOMAIN_CREATE, alias=alias, domain={"name": "example.org"}
        )
        assert errors == []
    cases: list[tuple[dict[str, Any] | None, list[str]]] = [
        (None, ["blue.example", "red.example"]),
        ({"query": "RED"}, ["red.example"]),
        ({"query": "example.org"}, ["blue.example", "red.example"]),
        ({"query": "green"}, []),
    ]
    for case in each_case(cases):
        with case as (condition, expected):
            for client in (root, admin):
                domain = (await client(ALIASES_QUERY, filter=condition))["domain"]
                aliases = [node["alias"] for node in domain["aliases"]["nodes"]]
                assert (aliases, domain["aliases"]["totalCount"]) == (expected, len(expected))
            refused = await bob.execute(ALIASES_QUERY, filter=condition)
            assert refused["errors"]


async def test_filtered_pages_of_a_domain_are_complete(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    for number in range(5):
        await make_user(ada.environment, f"u{number}", tags=["x"])
    cases: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("users", USERS_QUERY, {"tags": ["x"]}),
        ("addresses", ADDRESSES_QUERY, {"query": "u", "kinds": ["MAILBOX"]}),
    )
    for field, document, condition in cases:
        nodes, after, has_next = list[Any](), None, True
        while has_next:
            variables = {"filter": condition, "name": "example.org", "first": 2, "after": after}
            page = (await root(document, **variables))["domain"][field]
            nodes += page["nodes"]
            after, has_next = page["pageInfo"]["endCursor"], page["pageInfo"]["hasNextPage"]
        assert [next(iter(node.values())).partition("@")[0] for node in nodes] == [
            f"u{number}" for number in range(5)
        ]
        wrong = await root.execute(document, name="example.org", first=2, after=after)
        assert wrong["errors"][0]["extensions"] == {"code": "BAD_CURSOR"}


async def test_domains_of_administrator_and_relay_host_have_filters(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    for name in ("a.example", "b.example", "c.example"):
        await create_domain(root, name, active=name != "b.example", tags=["x"])
    names = ("a.example", "b.example")
    admin = await make_admin_of_domains(ada.environment, root.http, "adm", "example.org", *names)
    (relay_host_id,) = await add_rows(ada.environment, RelayHost, 1)
    async with ada.environment.write_session() as session:
        statement = update(Domain).where(col(Domain.name).in_(names))
        await (await session.connection()).execute(statement.values(relay_host_id=relay_host_id))
    cases: list[tuple[dict[str, Any] | None, list[str]]] = [
        (None, ["a.example", "b.example", "example.org"]),
        ({"active": False}, ["b.example"]),
        ({"tags": ["X"]}, ["a.example", "b.example"]),
        ({"query": "org"}, ["example.org"]),
        ({"notAdministeredBy": {"username": "adm@example.org"}}, []),
    ]
    viewer_query = """query ($filter: DomainFilter) {
      viewer { administers(filter: $filter) { totalCount nodes { name } } } }"""
    relay_query = """query ($filter: DomainFilter) {
      relayHosts { nodes { usedByDomains(filter: $filter) { totalCount nodes { name } } } } }"""
    for case in each_case(cases):
        with case as (condition, expected):
            user = {"username": "adm@example.org"}
            pages = [
                (await root(ADMINISTERED_QUERY, filter=condition, user=user))["user"],
                (await admin(ADMINISTERED_QUERY, filter=condition, user=user))["user"],
                (await admin(viewer_query, filter=condition))["viewer"],
            ]
            for page in pages:
                found = [node["name"] for node in page["administers"]["nodes"]]
                assert (found, page["administers"]["totalCount"]) == (expected, len(expected))
            hidden = await ada(ADMINISTERED_QUERY, filter=condition, user=user)
            assert hidden == {"user": None}
            relay_hosts = (await root(relay_query, filter=condition))["relayHosts"]["nodes"]
            (used_by,) = (node["usedByDomains"]["nodes"] for node in relay_hosts)
            assert [node["name"] for node in used_by] == [n for n in expected if n in names]


@pytest.mark.usefixtures("ada", "bob")
async def test_filtered_lists_of_a_domain_read_its_index(environment: Environment) -> None:
    (domain,) = await environment.database.read(select(col(Domain.id)))
    ctx = Context(environment, Viewer(role=Role.ROOT, user_id=0, scopes=frozenset({Scope.FULL})))
    conditions = (
        UserConditions(active=True),
        UserConditions(has_second_factor=False),
        UserConditions(not_signed_in_since=environment.now()),
    )
    by_name = next(iter(domain_listing.USER_LIST_ORDERS.values()))
    by_address = next(iter(domain_listing.ADDRESS_LIST_ORDERS.values()))
    with record_query_plans(environment) as plans:
        for condition in conditions:
            key = DomainPageKey(
                domain.id, PageRequest("x"), by_name, frozenset({"username"}), condition
            )
            plan = await plans.explain_select(
                domain_listing.load_user_pages_by_domain(ctx, [key]), "users"
            )
            if environment.database.dialect == "sqlite":  # small tables have other plans
                assert "ix_users_of_domain" in plan, plan
                assert "TEMP B-TREE" not in plan, plan
        address_key = DomainPageKey(
            domain.id, PageRequest("x"), by_address, frozenset(), AddressConditions(query="a")
        )
        plan = await plans.explain_select(
            domain_listing.load_address_pages_by_domain(ctx, [address_key]), Address.__tablename__
        )
        if environment.database.dialect == "sqlite":
            assert "ix_addresses_domain_id_local" in plan, plan
            assert "TEMP B-TREE" not in plan, plan
