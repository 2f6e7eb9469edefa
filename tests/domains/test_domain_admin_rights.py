"""The rights of domain administrators, and what other users can't see or change."""

from typing import Any

import pytest
from sqlalchemy import delete
from sqlmodel import col

from graph.types import global_ids
from models.runtime.environment import Environment
from models.users.roles import Role, Scope
from models.users.tables import DomainAdmin
from resolvers.context import Context
from resolvers.domains import loaders as domain_loaders
from resolvers.domains.loaders import DomainConditions
from resolvers.viewer import Viewer
from tests.conftest import GraphQLClient
from tests.support.operations.domain_operations import (
    ALIAS_DOMAIN_CREATE,
    ALIAS_DOMAIN_DELETE,
    ALIAS_DOMAINS_QUERY,
    DOMAIN_CREATE,
    DOMAIN_DELETE,
    DOMAIN_QUERY,
    DOMAIN_RENAME,
    DOMAIN_UPDATE,
    create_domain,
    error_summary,
    list_domain_names,
    load_domain,
    load_domain_id,
    make_admin_of_domains,
    make_domain_user,
    run_mutation,
    try_update_domain,
)
from tests.support.stores.counter_check import select_rows

pytestmark = pytest.mark.usefixtures("verify_counters")


@pytest.mark.usefixtures("ada")
async def test_other_domains_are_hidden_from_domain_admin(
    root: GraphQLClient, environment: Environment
) -> None:
    await create_domain(root, "far.example", tags=["x"])
    await run_mutation(
        root, ALIAS_DOMAIN_CREATE, alias="far-too.example", domain={"name": "far.example"}
    )
    await make_domain_user(environment, "zoe@far.example")
    permissions = ("DOMAIN_DESCRIPTION", "ALIAS_DOMAINS", "UNLIMITED_QUOTA")
    admin = await make_admin_of_domains(
        environment, root.http, "adm", "example.org", permissions=permissions
    )
    await make_admin_of_domains(environment, root.http, "far", "far.example")
    far_id = (await load_domain(root, "far.example"))["id"]
    alias = (await root(ALIAS_DOMAINS_QUERY))["aliasDomains"]["nodes"][0]
    assert alias["alias"] == "far-too.example"
    ((alias_row_id,),) = await select_rows(environment, "SELECT id FROM domain_aliases")
    alias_id = global_ids.encode("AliasDomain", alias_row_id)

    assert await list_domain_names(admin) == ["example.org"]
    assert await list_domain_names(admin, query="far") == []
    assert await list_domain_names(admin, tags=["x"]) == []
    assert await list_domain_names(admin, administeredBy={"username": "far@far.example"}) == []
    assert await list_domain_names(admin, notAdministeredBy={"username": "far@far.example"}) == [
        "example.org"
    ]
    assert await admin(DOMAIN_QUERY, by={"id": far_id}) == {"domain": None}
    assert await admin(DOMAIN_QUERY, by={"name": "far.example"}) == {"domain": None}
    nodes = "query ($ids: [ID!]!) { nodes(ids: $ids) { id } }"
    assert await admin(nodes, ids=[far_id, alias_id]) == {"nodes": [None, None]}
    page = (await admin(ALIAS_DOMAINS_QUERY))["aliasDomains"]
    assert (page["nodes"], page["totalCount"]) == ([], 0)
    assert (await admin(ALIAS_DOMAINS_QUERY, filter={"query": "far"}))["aliasDomains"][
        "totalCount"
    ] == 0
    document = "query ($by: AliasDomainRef!) { aliasDomain(by: $by) { id } }"
    for by in ({"id": alias_id}, {"alias": "far-too.example"}):
        assert await admin(document, by=by) == {"aliasDomain": None}

    unknown_domain = {"name": "nothing.example"}
    rows_before = await select_rows(environment, "SELECT * FROM domains ORDER BY id")
    for ref, name in (
        ({"name": "far.example"}, "far.example"),
        (unknown_domain, "nothing.example"),
    ):
        arguments = {"domains": [ref], "set": {"description": "mine"}}
        _, errors = await run_mutation(admin, DOMAIN_UPDATE, **arguments)
        assert error_summary(errors) == ("NOT_FOUND", ["domains"], 0, name)
        _, errors = await run_mutation(
            admin, ALIAS_DOMAIN_CREATE, alias="x.example", domain={"name": name}
        )
        assert error_summary(errors) == ("NOT_FOUND", ["domain"], None, name)
    _, errors = await run_mutation(
        admin, ALIAS_DOMAIN_CREATE, alias="x.example", domain={"name": "far-too.example"}
    )
    assert error_summary(errors) == ("NOT_FOUND", ["domain"], None, "far-too.example")
    conflict_errors = [
        (
            await run_mutation(
                admin, ALIAS_DOMAIN_CREATE, alias=name, domain={"name": "example.org"}
            )
        )[1]
        for name in ("far.example", "far-too.example")
    ]
    assert [error["message"] for (error,) in conflict_errors] == [
        "far.example already exists.",
        "far-too.example already exists.",
    ]
    _, errors = await run_mutation(admin, ALIAS_DOMAIN_DELETE, aliasDomains=[{"id": alias_id}])
    assert error_summary(errors)[:3] == ("NOT_FOUND", ["aliasDomains", "id"], 0)
    forbidden_mutations: tuple[tuple[str, dict[str, Any]], ...] = (
        (DOMAIN_CREATE, {"name": "x.example"}),
        (DOMAIN_DELETE, {"domains": [{"name": "example.org"}]}),
        (DOMAIN_RENAME, {"domain": {"name": "example.org"}, "newName": "x.example"}),
    )
    for document, arguments in forbidden_mutations:
        _, errors = await run_mutation(admin, document, **arguments)
        assert error_summary(errors) == ("FORBIDDEN", [], None, "ADMIN")
    assert await select_rows(environment, "SELECT * FROM domains ORDER BY id") == rows_before
    assert await select_rows(environment, "SELECT id FROM domain_aliases") == [(alias_row_id,)]


async def test_lists_of_a_domain_need_its_admin(
    root: GraphQLClient, ada: GraphQLClient, environment: Environment
) -> None:
    await create_domain(root, "home.example")
    await make_domain_user(environment, "neighbour@home.example")
    admin = await make_admin_of_domains(
        environment, root.http, "adm", "home.example", "example.org"
    )
    async with environment.write_session() as session:
        domain_id = await load_domain_id(environment, "home.example")
        await session.exec(delete(DomainAdmin).where(col(DomainAdmin.domain_id) == domain_id))
    domain_fields = """domain { name users { totalCount nodes { username } }
      addresses { totalCount } aliases { totalCount } admins { totalCount }
      storage { messageCount } }"""
    domain = (await admin(f"{{ viewer {{ user {{ {domain_fields} }} }} }}"))["viewer"]["user"][
        "domain"
    ]
    assert domain == {
        "name": "home.example",
        "users": {"totalCount": 0, "nodes": []},
        "addresses": {"totalCount": 0},
        "aliases": {"totalCount": 0},
        "admins": {"totalCount": 0},
        "storage": {"messageCount": 0},
    }
    response = await ada.execute("{ viewer { user { domain { users { totalCount } } } } }")
    assert response["errors"][0]["extensions"] == {"code": "FORBIDDEN"}


@pytest.mark.usefixtures("ada")
async def test_domain_admin_changes_only_delegated_fields(
    root: GraphQLClient, environment: Environment
) -> None:
    admin_with_permission = await make_admin_of_domains(
        environment, root.http, "a", "example.org", permissions=["DOMAIN_DESCRIPTION"]
    )
    admin_without_permission = await make_admin_of_domains(
        environment, root.http, "b", "example.org", permissions=["RATE_LIMITS"]
    )
    (domain,), errors = await try_update_domain(
        admin_with_permission, "example.org", description="Ours"
    )
    assert (errors, domain["description"]) == ([], "Ours")
    _, errors = await try_update_domain(admin_without_permission, "example.org", description="Mine")
    assert error_summary(errors) == (
        "FORBIDDEN",
        ["set", "description"],
        None,
        "DOMAIN_DESCRIPTION",
    )
    for name, value in (
        ("active", False), ("tags", []), ("maxUsers", None), ("quota", None), ("backupMx", True),
        ("defaultUserQuota", None), ("maxUserQuota", None), ("maxAddresses", None),
        ("globalAddressList", False),
    ):  # fmt: skip
        _, errors = await try_update_domain(
            admin_with_permission, "example.org", **{"description": "x", name: value}
        )
        assert error_summary(errors) == ("FORBIDDEN", ["set", name], None, "ADMIN")
    arguments = {"alias": "also.example", "domain": {"name": "example.org"}}
    _, errors = await run_mutation(admin_with_permission, ALIAS_DOMAIN_CREATE, **arguments)
    assert error_summary(errors) == ("FORBIDDEN", [], None, "ALIAS_DOMAINS")
    assert await select_rows(environment, "SELECT count(*) FROM domain_aliases") == [(0,)]
    alias_admin = await make_admin_of_domains(
        environment, root.http, "c", "example.org", permissions=["ALIAS_DOMAINS"]
    )
    _, errors = await run_mutation(alias_admin, ALIAS_DOMAIN_CREATE, **arguments)
    assert errors == []


@pytest.mark.parametrize("role", [Role.PUBLIC, Role.USER])
async def test_domain_list_needs_a_domain_admin(ada: GraphQLClient, role: Role) -> None:
    viewer = Viewer(ada.user.id, role, frozenset({Scope.FULL}))
    ctx = Context(ada.environment, viewer)
    assert await domain_loaders.count_domains(ctx, DomainConditions()) == 0
    response = await ada.execute("{ domains { nodes { id } } }")
    assert response["errors"][0]["extensions"] == {"code": "FORBIDDEN"}


async def test_admin_cannot_delete_the_domain_of_the_own_account(
    admin_client: GraphQLClient, root: GraphQLClient
) -> None:
    await create_domain(root, "other.example")
    _, errors = await run_mutation(
        admin_client,
        DOMAIN_DELETE,
        domains=[{"name": "other.example"}, {"name": "example.org"}],
        cascade=True,
    )
    assert error_summary(errors) == ("FORBIDDEN_OPERATION", ["domains"], None, None)
    assert await load_domain(root, "other.example")
