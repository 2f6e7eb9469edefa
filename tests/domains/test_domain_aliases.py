"""Alias domains."""

from typing import Any

import pytest

from mail.recipients import address_resolution
from models.errors import NotFound
from models.events.event_types import EventType
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient
from tests.support.case_loop import each_case
from tests.support.operations.domain_operations import (
    ALIAS_DOMAIN_CREATE,
    ALIAS_DOMAIN_DELETE,
    ALIAS_DOMAINS_QUERY,
    DOMAIN_CREATE,
    create_domain,
    error_summary,
    load_domain_id,
    run_mutation,
)
from tests.support.stores.counter_check import load_journal_entries

pytestmark = pytest.mark.usefixtures("verify_counters")


async def test_active_alias_domain_receives_mail_of_its_target(
    root: GraphQLClient, ada: GraphQLClient, environment: Environment
) -> None:
    arguments = {"alias": "XN--Bcher-KVA.example", "domain": {"name": "Example.ORG"}}
    payload, errors = await run_mutation(root, ALIAS_DOMAIN_CREATE, **arguments)
    alias = payload["aliasDomain"]
    assert errors == []
    assert (alias["alias"], alias["active"], alias["domain"]) == (
        "bücher.example",
        True,
        {"name": "example.org"},
    )
    assert (
        await address_resolution.load_recipient_below_limits(environment, "ada@BÜCHER.example")
    ).user_id == ada.user.id
    document = "query ($by: AliasDomainRef!) { aliasDomain(by: $by) { id domain { name } } }"
    for alias_ref in ({"id": alias["id"]}, {"alias": "bücher.EXAMPLE"}):
        alias_fields = (await root(document, by=alias_ref))["aliasDomain"]
        assert alias_fields == {"id": alias["id"], "domain": {"name": "example.org"}}
    node = "query ($id: ID!) { node(id: $id) { ... on AliasDomain { alias } } }"
    assert await root(node, id=alias["id"]) == {"node": {"alias": "bücher.example"}}
    domain_id = await load_domain_id(environment, "example.org")
    assert (await load_journal_entries(environment, domain_id))[-1] == (
        EventType.DOMAIN_UPDATED,
        [domain_id],
    )
    await run_mutation(
        root, ALIAS_DOMAIN_CREATE, alias="off.example", domain={"name": "example.org"}, active=False
    )
    with pytest.raises(NotFound):
        await address_resolution.load_recipient_below_limits(environment, "ada@off.example")
    payload, errors = await run_mutation(
        root, ALIAS_DOMAIN_DELETE, aliasDomains=[{"id": alias["id"]}]
    )
    assert (payload["deletedIds"], errors) == ([alias["id"]], [])
    with pytest.raises(NotFound):
        await address_resolution.load_recipient_below_limits(environment, "ada@bücher.example")
    _, errors = await run_mutation(root, ALIAS_DOMAIN_DELETE, aliasDomains=[{"id": alias["id"]}])
    assert error_summary(errors)[:3] == ("NOT_FOUND", ["aliasDomains", "id"], 0)


# for each case: the input, and code, path, index and detail of the error
REFUSED_ALIASES: list[tuple[dict[str, Any], tuple[Any, ...]]] = [
    ({"alias": "example.org"}, ("VALIDATION", ["alias"], None, "SELF")),
    ({"alias": "new.example"}, ("CONFLICT", ["alias"], None, None)),
    ({"alias": "ALSO.example"}, ("CONFLICT", ["alias"], None, None)),
    ({"domain": {"name": "also.example"}}, ("CONFLICT", ["domain"], None, None)),
    (
        {"domain": {"name": "nowhere.example"}},
        ("NOT_FOUND", ["domain"], None, "nowhere.example"),
    ),
    ({"alias": "a b.example"}, ("VALIDATION", ["alias"], None, "DOMAIN")),
    ({"alias": "a" * 300}, ("VALIDATION", ["alias"], None, "DOMAIN")),
]


@pytest.mark.usefixtures("ada")
async def test_alias_of_alias_or_of_existing_name_is_refused(root: GraphQLClient) -> None:
    await create_domain(root, "new.example")
    await run_mutation(
        root, ALIAS_DOMAIN_CREATE, alias="also.example", domain={"name": "new.example"}
    )
    for case in each_case(REFUSED_ALIASES):
        with case as (alias_input, refusal):
            _, errors = await run_mutation(
                root,
                ALIAS_DOMAIN_CREATE,
                **{"alias": "x.example", "domain": {"name": "example.org"}, **alias_input},
            )
            assert error_summary(errors) == refusal
            _, errors = await run_mutation(root, DOMAIN_CREATE, name="also.example")
            assert error_summary(errors) == ("CONFLICT", ["name"], None, None)


@pytest.mark.usefixtures("ada")
async def test_alias_given_twice_is_deleted_once_in_given_order(root: GraphQLClient) -> None:
    ids = []
    for alias in ("a.org", "b.org"):
        payload, _ = await run_mutation(
            root, ALIAS_DOMAIN_CREATE, alias=alias, domain={"name": "example.org"}
        )
        ids.append(payload["aliasDomain"]["id"])
    payload, errors = await run_mutation(
        root,
        ALIAS_DOMAIN_DELETE,
        aliasDomains=[{"id": ids[1]}, {"id": ids[0]}, {"alias": "b.org"}],
    )
    assert (payload["deletedIds"], errors) == ([ids[1], ids[0]], [])


async def test_aliases_are_found_by_part_of_alias_or_target(root: GraphQLClient) -> None:
    for name in ("pond.example", "lake.example"):
        await create_domain(root, name)
    for alias, domain in (("b.org", "pond"), ("a.org", "pond"), ("c.org", "lake")):
        await run_mutation(
            root, ALIAS_DOMAIN_CREATE, alias=alias, domain={"name": f"{domain}.example"}
        )

    async def find_aliases(**conditions: Any) -> tuple[str, int]:
        page = (await root(ALIAS_DOMAINS_QUERY, **conditions))["aliasDomains"]
        return "".join(node["alias"][0] for node in page["nodes"]), page["totalCount"]

    assert await find_aliases() == ("abc", 3)
    assert await find_aliases(filter={"query": "POND"}) == ("ab", 2)
    assert await find_aliases(filter={"query": "c.o"}) == ("c", 1)
    assert await find_aliases(filter={"query": "%"}) == ("", 0)
    assert await find_aliases(last=2) == ("bc", 3)
    page = (await root(ALIAS_DOMAINS_QUERY, first=2))["aliasDomains"]["pageInfo"]
    assert await find_aliases(first=2, after=page["endCursor"]) == ("c", 3)
