"""What administrators of domains see and change, and what nobody else does."""

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
from tests.conftest import Client
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

pytestmark = pytest.mark.usefixtures("counted")


@pytest.mark.usefixtures("ada")
async def test_a_domain_admin_knows_nothing_of_other_domains(
    root: Client, world: Environment
) -> None:
    await made(root, "far.example", tags=["x"])
    await done(root, ALIAS, alias="far-too.example", domain="far.example")
    await live(world, "zoe@far.example")
    permissions = ("DOMAIN_DESC", "ALIAS_DOMAINS", "UNLIMITED_QUOTA")
    admin = await administrator(world, root.http, "adm", "example.org", permissions=permissions)
    await administrator(world, root.http, "far", "far.example")
    far = (await of(root, "far.example"))["id"]
    alias = (await root(ALIASES))["domainAliases"]["nodes"][0]
    assert alias["alias"] == "far-too.example"
    ((key,),) = await rows(world, "SELECT id FROM domain_aliases")
    alias_id = global_ids.encode("DomainAlias", key)

    assert await names(admin) == ["example.org"]
    assert await names(admin, query="far") == []
    assert await names(admin, tags=["x"]) == []
    assert await names(admin, administeredBy={"username": "far@far.example"}) == []
    assert await names(admin, notAdministeredBy={"username": "far@far.example"}) == ["example.org"]
    assert await admin(DOMAIN, by={"id": far}) == {"domain": None}
    assert await admin(DOMAIN, by={"name": "far.example"}) == {"domain": None}
    nodes = "query ($ids: [ID!]!) { nodes(ids: $ids) { id } }"
    assert await admin(nodes, ids=[far, alias_id]) == {"nodes": [None, None]}
    page = (await admin(ALIASES))["domainAliases"]
    assert (page["nodes"], page["totalCount"]) == ([], 0)
    assert (await admin(ALIASES, query="far"))["domainAliases"]["totalCount"] == 0
    document = "query ($by: DomainAliasRef!) { domainAlias(by: $by) { id } }"
    for by in ({"id": alias_id}, {"alias": "far-too.example"}):
        assert await admin(document, by=by) == {"domainAlias": None}

    nothing = {"name": "nothing.example"}
    before = await rows(world, "SELECT * FROM domains ORDER BY id")
    for ref, named in (({"name": "far.example"}, "far.example"), (nothing, "nothing.example")):
        given = {"domains": [ref], "set": {"description": "mine"}}
        _, errors = await done(admin, UPDATE, **given)
        assert told(errors) == ("NOT_FOUND", ["domains"], 0, named)
        _, errors = await done(admin, ALIAS, alias="x.example", domain=named)
        assert told(errors) == ("NOT_FOUND", ["domain"], None, named)
    _, errors = await done(admin, ALIAS, alias="x.example", domain="far-too.example")
    assert told(errors) == ("NOT_FOUND", ["domain"], None, "far-too.example")
    taken = [(await done(admin, ALIAS, alias=name, domain="example.org"))[1]
             for name in ("far.example", "far-too.example")]  # fmt: skip
    assert [error["message"] for (error,) in taken] == ["far.example is taken",
                                                        "far-too.example is taken"]  # fmt: skip
    _, errors = await done(admin, UNALIAS, ids=[alias_id])
    assert told(errors)[:3] == ("NOT_FOUND", ["ids"], 0)
    refused: tuple[tuple[str, dict[str, Any]], ...] = (
        (CREATE, {"name": "x.example"}),
        (DELETE, {"domains": [{"name": "example.org"}]}),
        (RENAME, {"oldDomain": "example.org", "newDomain": "x.example"}),
    )
    for document, given in refused:
        _, errors = await done(admin, document, **given)
        assert told(errors) == ("FORBIDDEN", [], None, "ADMIN")
    assert await rows(world, "SELECT * FROM domains ORDER BY id") == before
    assert await rows(world, "SELECT id FROM domain_aliases") == [(key,)]


async def test_lists_inside_a_domain_are_for_those_who_administer_it(
    root: Client, ada: Client, world: Environment
) -> None:
    await made(root, "home.example")
    await live(world, "neighbour@home.example")
    admin = await administrator(world, root.http, "adm", "home.example", "example.org")
    async with world.write_session() as session:
        key = await key_of(world, "home.example")
        await session.exec(delete(DomainAdmin).where(col(DomainAdmin.domain_id) == key))
    inside = """domain { name users { totalCount nodes { username } } addresses { totalCount }
      aliases { alias } admins { username } storage { messages } }"""
    seen = (await admin(f"{{ viewer {{ user {{ {inside} }} }} }}"))["viewer"]["user"]["domain"]
    assert seen == {
        "name": "home.example",
        "users": {"totalCount": 0, "nodes": []},
        "addresses": {"totalCount": 0},
        "aliases": [],
        "admins": [],
        "storage": {"messages": 0},
    }
    answer = await ada.raw("{ viewer { user { domain { users { totalCount } } } } }")
    assert answer["errors"][0]["extensions"] == {"code": "FORBIDDEN"}


@pytest.mark.usefixtures("ada")
async def test_a_domain_admin_changes_what_is_delegated(root: Client, world: Environment) -> None:
    with_it = await administrator(world, root.http, "a", "example.org", permissions=["DOMAIN_DESC"])
    without = await administrator(world, root.http, "b", "example.org", permissions=["RATELIMIT"])
    (domain,), errors = await change(with_it, "example.org", description="Ours")
    assert (errors, domain["description"]) == ([], "Ours")
    _, errors = await change(without, "example.org", description="Mine")
    assert told(errors) == ("FORBIDDEN", ["set", "description"], None, "DOMAIN_DESC")
    for name, value in (
        ("active", False), ("tags", []), ("maxUsers", 0), ("quota", 0), ("backupMx", True),
        ("defaultUserQuota", 0), ("maxUserQuota", 0), ("maxAddresses", 0),
        ("globalAddressList", False),
    ):  # fmt: skip
        _, errors = await change(with_it, "example.org", **{"description": "x", name: value})
        assert told(errors) == ("FORBIDDEN", ["set", name], None, "ADMIN")
    given = {"alias": "also.example", "domain": "example.org"}
    _, errors = await done(with_it, ALIAS, **given)
    assert told(errors) == ("FORBIDDEN", [], None, "ALIAS_DOMAINS")
    assert await rows(world, "SELECT count(*) FROM domain_aliases") == [(0,)]
    owner = await administrator(world, root.http, "c", "example.org", permissions=["ALIAS_DOMAINS"])
    _, errors = await done(owner, ALIAS, **given)
    assert errors == []


@pytest.mark.parametrize("role", [Role.PUBLIC, Role.USER])
async def test_below_a_domain_admin_nobody_lists_domains(ada: Client, role: Role) -> None:
    viewer = Viewer(ada.user.id, role, frozenset({Scope.MASTER}))
    ctx = Context(ada.world, viewer)
    assert await domain_loaders.count_domains(ctx, DomainConditions()) == 0
    answer = await ada.raw("{ domains { nodes { id } } }")
    assert answer["errors"][0]["extensions"] == {"code": "FORBIDDEN"}
