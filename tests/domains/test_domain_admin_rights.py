"""The rights of domain administrators, and what other users can't see or change."""

from typing import Any

import pytest
from sqlalchemy import delete
from sqlmodel import col

from graph.types import global_ids
from models.runtime.environment import Environment
from models.users.roles import Role, Scope
from models.users.tables import DomainAdmin
from resolvers.context import Context, Viewer
from resolvers.domains import loaders as domain_loaders
from resolvers.domains.loaders import DomainConditions
from tests.conftest import GraphQLClient
from tests.support.operations.domain_operations import (
    ALIAS,
    ALIASES,
    CREATE,
    DELETE,
    DOMAIN,
    RENAME,
    UNALIAS,
    UPDATE,
    administrator,
    change,
    done,
    key_of,
    live,
    made,
    names,
    of,
    told,
)
from tests.support.stores.counter_check import rows

pytestmark = pytest.mark.usefixtures("verify_counters")


@pytest.mark.usefixtures("ada")
async def test_other_domains_are_hidden_from_domain_admin(
    root: GraphQLClient, environment: Environment
) -> None:
    await made(root, "far.example", tags=["x"])
    await done(root, ALIAS, alias="far-too.example", domain="far.example")
    await live(environment, "zoe@far.example")
    permissions = ("DOMAIN_DESC", "ALIAS_DOMAINS", "UNLIMITED_QUOTA")
    admin = await administrator(
        environment, root.http, "adm", "example.org", permissions=permissions
    )
    await administrator(environment, root.http, "far", "far.example")
    far_id = (await of(root, "far.example"))["id"]
    alias = (await root(ALIASES))["domainAliases"]["nodes"][0]
    assert alias["alias"] == "far-too.example"
    ((alias_row_id,),) = await rows(environment, "SELECT id FROM domain_aliases")
    alias_id = global_ids.encode("DomainAlias", alias_row_id)

    assert await names(admin) == ["example.org"]
    assert await names(admin, query="far") == []
    assert await names(admin, tags=["x"]) == []
    assert await names(admin, administeredBy={"username": "far@far.example"}) == []
    assert await names(admin, notAdministeredBy={"username": "far@far.example"}) == ["example.org"]
    assert await admin(DOMAIN, by={"id": far_id}) == {"domain": None}
    assert await admin(DOMAIN, by={"name": "far.example"}) == {"domain": None}
    nodes = "query ($ids: [ID!]!) { nodes(ids: $ids) { id } }"
    assert await admin(nodes, ids=[far_id, alias_id]) == {"nodes": [None, None]}
    page = (await admin(ALIASES))["domainAliases"]
    assert (page["nodes"], page["totalCount"]) == ([], 0)
    assert (await admin(ALIASES, query="far"))["domainAliases"]["totalCount"] == 0
    document = "query ($by: DomainAliasRef!) { domainAlias(by: $by) { id } }"
    for by in ({"id": alias_id}, {"alias": "far-too.example"}):
        assert await admin(document, by=by) == {"domainAlias": None}

    unknown_domain = {"name": "nothing.example"}
    rows_before = await rows(environment, "SELECT * FROM domains ORDER BY id")
    for ref, name in (
        ({"name": "far.example"}, "far.example"),
        (unknown_domain, "nothing.example"),
    ):
        arguments = {"domains": [ref], "set": {"description": "mine"}}
        _, errors = await done(admin, UPDATE, **arguments)
        assert told(errors) == ("NOT_FOUND", ["domains"], 0, name)
        _, errors = await done(admin, ALIAS, alias="x.example", domain=name)
        assert told(errors) == ("NOT_FOUND", ["domain"], None, name)
    _, errors = await done(admin, ALIAS, alias="x.example", domain="far-too.example")
    assert told(errors) == ("NOT_FOUND", ["domain"], None, "far-too.example")
    conflict_errors = [(await done(admin, ALIAS, alias=name, domain="example.org"))[1]
             for name in ("far.example", "far-too.example")]  # fmt: skip
    assert [error["message"] for (error,) in conflict_errors] == ["far.example is taken",
                                                        "far-too.example is taken"]  # fmt: skip
    _, errors = await done(admin, UNALIAS, ids=[alias_id])
    assert told(errors)[:3] == ("NOT_FOUND", ["ids"], 0)
    forbidden_mutations: tuple[tuple[str, dict[str, Any]], ...] = (
        (CREATE, {"name": "x.example"}),
        (DELETE, {"domains": [{"name": "example.org"}]}),
        (RENAME, {"oldDomain": "example.org", "newDomain": "x.example"}),
    )
    for document, arguments in forbidden_mutations:
        _, errors = await done(admin, document, **arguments)
        assert told(errors) == ("FORBIDDEN", [], None, "ADMIN")
    assert await rows(environment, "SELECT * FROM domains ORDER BY id") == rows_before
    assert await rows(environment, "SELECT id FROM domain_aliases") == [(alias_row_id,)]


async def test_lists_of_a_domain_need_its_admin(
    root: GraphQLClient, ada: GraphQLClient, environment: Environment
) -> None:
    await made(root, "home.example")
    await live(environment, "neighbour@home.example")
    admin = await administrator(environment, root.http, "adm", "home.example", "example.org")
    async with environment.write_session() as session:
        domain_id = await key_of(environment, "home.example")
        await session.exec(delete(DomainAdmin).where(col(DomainAdmin.domain_id) == domain_id))
    domain_fields = """domain { name users { totalCount nodes { username } }
      addresses { totalCount } aliases { alias } admins { username } storage { messages } }"""
    domain = (await admin(f"{{ viewer {{ user {{ {domain_fields} }} }} }}"))["viewer"]["user"][
        "domain"
    ]
    assert domain == {
        "name": "home.example",
        "users": {"totalCount": 0, "nodes": []},
        "addresses": {"totalCount": 0},
        "aliases": [],
        "admins": [],
        "storage": {"messages": 0},
    }
    response = await ada.execute("{ viewer { user { domain { users { totalCount } } } } }")
    assert response["errors"][0]["extensions"] == {"code": "FORBIDDEN"}


@pytest.mark.usefixtures("ada")
async def test_domain_admin_changes_only_delegated_fields(
    root: GraphQLClient, environment: Environment
) -> None:
    admin_with_permission = await administrator(
        environment, root.http, "a", "example.org", permissions=["DOMAIN_DESC"]
    )
    admin_without_permission = await administrator(
        environment, root.http, "b", "example.org", permissions=["RATELIMIT"]
    )
    (domain,), errors = await change(admin_with_permission, "example.org", description="Ours")
    assert (errors, domain["description"]) == ([], "Ours")
    _, errors = await change(admin_without_permission, "example.org", description="Mine")
    assert told(errors) == ("FORBIDDEN", ["set", "description"], None, "DOMAIN_DESC")
    for name, value in (
        ("active", False), ("tags", []), ("maxUsers", 0), ("quota", 0), ("backupMx", True),
        ("defaultUserQuota", 0), ("maxUserQuota", 0), ("maxAddresses", 0),
        ("globalAddressList", False),
    ):  # fmt: skip
        _, errors = await change(
            admin_with_permission, "example.org", **{"description": "x", name: value}
        )
        assert told(errors) == ("FORBIDDEN", ["set", name], None, "ADMIN")
    arguments = {"alias": "also.example", "domain": "example.org"}
    _, errors = await done(admin_with_permission, ALIAS, **arguments)
    assert told(errors) == ("FORBIDDEN", [], None, "ALIAS_DOMAINS")
    assert await rows(environment, "SELECT count(*) FROM domain_aliases") == [(0,)]
    alias_admin = await administrator(
        environment, root.http, "c", "example.org", permissions=["ALIAS_DOMAINS"]
    )
    _, errors = await done(alias_admin, ALIAS, **arguments)
    assert errors == []


@pytest.mark.parametrize("role", [Role.PUBLIC, Role.USER])
async def test_domain_list_needs_a_domain_admin(ada: GraphQLClient, role: Role) -> None:
    viewer = Viewer(ada.user.id, role, frozenset({Scope.MASTER}))
    ctx = Context(ada.environment, viewer)
    assert await domain_loaders.count_domains(ctx, DomainConditions()) == 0
    response = await ada.execute("{ domains { nodes { id } } }")
    assert response["errors"][0]["extensions"] == {"code": "FORBIDDEN"}
