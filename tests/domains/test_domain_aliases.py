"""Other names of domains."""

from typing import Any

import pytest

from mail.recipients import address_resolution
from models.errors import NotFound
from models.events.journal import ChangeKind
from models.runtime.environment import Environment
from tests.conftest import Client
from tests.support.operations.domain_operations import (
    ALIAS,
    ALIASES,
    CREATE,
    UNALIAS,
    done,
    key_of,
    made,
    told,
)
from tests.support.stores.counter_check import journal

pytestmark = pytest.mark.usefixtures("counted")


async def test_an_alias_stands_for_its_domain_while_it_is_active(
    root: Client, ada: Client, world: Environment
) -> None:
    given = {"alias": "XN--Bcher-KVA.example", "domain": "Example.ORG"}
    answer, errors = await done(root, ALIAS, **given)
    alias = answer["domainAlias"]
    assert errors == []
    assert (alias["alias"], alias["active"], alias["domain"]) == (
        "bücher.example",
        True,
        {"name": "example.org"},
    )
    assert (
        await address_resolution.load_recipient(world, "ada@BÜCHER.example")
    ).user_id == ada.user.id
    document = "query ($by: DomainAliasRef!) { domainAlias(by: $by) { id domain { name } } }"
    for by in ({"id": alias["id"]}, {"alias": "bücher.EXAMPLE"}):
        found = (await root(document, by=by))["domainAlias"]
        assert found == {"id": alias["id"], "domain": {"name": "example.org"}}
    node = "query ($id: ID!) { node(id: $id) { ... on DomainAlias { alias } } }"
    assert await root(node, id=alias["id"]) == {"node": {"alias": "bücher.example"}}
    key = await key_of(world, "example.org")
    assert (await journal(world, key))[-1] == (ChangeKind.DOMAIN_CHANGED, [key])
    await done(root, ALIAS, alias="off.example", domain="example.org", active=False)
    with pytest.raises(NotFound):
        await address_resolution.load_recipient(world, "ada@off.example")
    answer, errors = await done(root, UNALIAS, ids=[alias["id"]])
    assert (answer["deletedIds"], errors) == ([alias["id"]], [])
    with pytest.raises(NotFound):
        await address_resolution.load_recipient(world, "ada@bücher.example")
    _, errors = await done(root, UNALIAS, ids=[alias["id"]])
    assert told(errors)[:3] == ("NOT_FOUND", ["ids"], 0)


@pytest.mark.parametrize(
    ("given", "refusal"),
    [
        ({"alias": "example.org"}, ("VALIDATION", ["alias"], None, "self")),
        ({"alias": "new.example"}, ("CONFLICT", ["alias"], None, None)),
        ({"alias": "ALSO.example"}, ("CONFLICT", ["alias"], None, None)),
        ({"domain": "also.example"}, ("CONFLICT", ["domain"], None, None)),
        ({"domain": "nowhere.example"}, ("NOT_FOUND", ["domain"], None, "nowhere.example")),
        ({"alias": "a b.example"}, ("VALIDATION", ["alias"], None, "domain")),
        ({"alias": "a" * 300}, ("VALIDATION", ["alias"], None, "domain")),
    ],
)
@pytest.mark.usefixtures("ada")
async def test_an_alias_has_one_level_and_a_name_of_its_own(
    root: Client, given: dict[str, Any], refusal: tuple[Any, ...]
) -> None:
    await made(root, "new.example")
    await done(root, ALIAS, alias="also.example", domain="new.example")
    _, errors = await done(root, ALIAS, **{"alias": "x.example", "domain": "example.org", **given})
    assert told(errors) == refusal
    _, errors = await done(root, CREATE, name="also.example")
    assert told(errors) == ("CONFLICT", ["name"], None, None)


async def test_aliases_are_found_by_part_of_either_name(root: Client) -> None:
    for name in ("pond.example", "lake.example"):
        await made(root, name)
    for alias, domain in (("b.org", "pond"), ("a.org", "pond"), ("c.org", "lake")):
        await done(root, ALIAS, alias=alias, domain=f"{domain}.example")

    async def found(**ask: Any) -> tuple[str, int]:
        page = (await root(ALIASES, **ask))["domainAliases"]
        return "".join(node["alias"][0] for node in page["nodes"]), page["totalCount"]

    assert await found() == ("abc", 3)
    assert await found(query="POND") == ("ab", 2)
    assert await found(query="c.o") == ("c", 1)
    assert await found(query="%") == ("", 0)
    assert await found(last=2) == ("bc", 3)
    page = (await root(ALIASES, first=2))["domainAliases"]["pageInfo"]
    assert await found(first=2, after=page["endCursor"]) == ("c", 3)
