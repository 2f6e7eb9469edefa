"""Reading addresses: by address and ID, lists with filters, and address traces."""

from typing import Any

import pytest
from sqlalchemy import update
from sqlmodel import col

from models.domains.tables import Domain
from models.users.tables import User
from tests.conftest import GraphQLClient
from tests.support.operations import domain_operations
from tests.support.operations.address_operations import (
    create_address,
    list_addresses,
    load_address,
    try_create_temporary_address,
    try_update_addresses,
)
from tests.support.operations.domain_operations import (
    ALIAS_DOMAIN_CREATE,
    make_admin_of_domains,
    make_domain_user,
    run_mutation,
)

TRACE = """query ($address: String!) { addressTrace(address: $address) {
  stage input output matched record { __typename ... on Address { address }
  ... on User { username } ... on AliasDomain { alias } } } }"""


async def load_trace(client: GraphQLClient, address: str) -> list[tuple[Any, ...]]:
    steps = (await client(TRACE, address=address))["addressTrace"]
    return [
        (step["stage"], step["input"], step["output"], step["matched"],
         step["record"] and step["record"]["__typename"])
        for step in steps
    ]  # fmt: skip


async def create_alias_domain(root: GraphQLClient, name: str, domain: str) -> None:
    _, errors = await run_mutation(root, ALIAS_DOMAIN_CREATE, alias=name, domain={"name": domain})
    assert errors == []


async def test_trace_shows_the_sender_rule(
    root: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient
) -> None:
    document = """mutation ($input: SenderRuleCreateInput!) {
        senderRuleCreate(input: $input) { errors { code } } }"""
    for client, action, scope in (
        (root, "BLOCK", {"global": True}),
        (ada, "ALLOW", {"user": {"username": "ada"}}),
    ):
        arguments = {"action": action, "patterns": ["shop.example"], "scope": scope}
        assert (await client(document, input=arguments))["senderRuleCreate"]["errors"] == []
    query = """query ($to: String!, $from: String) { addressTrace(address: $to, sender: $from) {
        stage input output matched record { __typename } } }"""

    async def load_last_step(client: GraphQLClient, to: str, sender: str | None) -> tuple[Any, ...]:
        step = (await client(query, **{"to": to, "from": sender}))["addressTrace"][-1]
        return tuple(step.values())

    sender_address = "news@shop.example"
    rule = {"__typename": "SenderRule"}
    assert await load_last_step(root, ada.address, sender_address) == (
        "SENDER_RULE", sender_address, ["INBOX"], "shop.example", rule,
    )  # fmt: skip
    assert await load_last_step(root, bob.address, sender_address) == (
        "SENDER_RULE", sender_address, ["Junk"], "shop.example", rule,
    )  # fmt: skip
    for sender in (None, "x@else.example", "", "no address"):
        assert (await load_last_step(root, ada.address, sender))[0] == "USER"
    domain_admin = await make_admin_of_domains(root.environment, root.http, "boss", "example.org")
    assert await load_last_step(domain_admin, bob.address, sender_address) == (
        "SENDER_RULE",
        sender_address,
        ["Junk"],
        None,
        None,
    )


async def test_address_is_found_in_every_spelling(root: GraphQLClient, ada: GraphQLClient) -> None:
    await create_alias_domain(root, "other.example", "example.org")
    for text, primary in (
        ("ada@example.org", None),
        (" A.d.a+x@EXAMPLE.org", None),
        ("ada@other.example", "ada@example.org"),
    ):
        address = await load_address(ada, text)
        assert (address["address"], address["canonicalAddress"]) == ("ada@example.org", primary)
    for text in ("eve@example.org", "ada", "@", "", "*@*", "ada@*", "a@\ud7ff"):
        assert await load_address(root, text) is None, text
        assert await load_address(root, text, allow_wildcard=True) is None, text
    by_id = """query ($id: ID!) { address(by: {id: $id}) { address } }"""
    address = await load_address(ada, "ada@example.org")
    assert (await ada(by_id, id=address["id"]))["address"] == {"address": "ada@example.org"}


async def test_list_applies_each_filter(root: GraphQLClient, ada: GraphQLClient) -> None:
    environment = root.environment
    await create_address(
        root, "list@own.example", forwardTo=["Carol@far.example"], tags=["Red", "blue"]
    )
    await create_address(root, "@own.example", kind="DISCARD", allowWildcard=True, tags=["red"])
    await create_address(root, "every@*", forwardTo=["dave@far.example"], allowWildcard=True)
    await create_address(
        root, "off@own.example", forwardTo=["smtp://u:secret@relay.example"], active=False
    )
    expiring, _ = await try_create_temporary_address(ada)
    unlimited, _ = await try_create_temporary_address(ada, validity=None)
    temporary_addresses = sorted([expiring["address"], unlimited["address"]])
    regular_addresses = {
        "list@own.example",
        "*@own.example",
        "every@*",
        "off@own.example",
        "ada@example.org",
    }
    assert set(await list_addresses(root)) == regular_addresses | set(temporary_addresses)
    for condition, expected in (
        ({"query": "OWN.ex"}, {"list@own.example", "*@own.example", "off@own.example"}),
        ({"query": "%"}, set()),
        ({"forward": "carol@"}, {"list@own.example"}),
        ({"forward": "relay"}, {"off@own.example"}),
        ({"forward": "secret"}, set()),
        ({"tags": ["RED", "green"]}, {"list@own.example", "*@own.example"}),
        ({"requiredTags": ["red", "blue"]}, {"list@own.example"}),
        ({"kinds": ["DISCARD", "MAILBOX"], "wildcard": True}, {"*@own.example"}),
        ({"wildcard": True}, {"*@own.example", "every@*"}),
        (
            {"wildcard": False, "domain": {"name": "OWN.example"}},
            {"list@own.example", "off@own.example"},
        ),
        ({"user": {"username": "ada"}, "temporary": False}, {"ada@example.org"}),
        ({"user": {"username": "nobody"}}, set()),
        ({"temporary": True}, set(temporary_addresses)),
        ({"active": False}, {"off@own.example"}),
        ({"domain": {"name": "nowhere.example"}}, set()),
    ):
        assert set(await list_addresses(root, **condition)) == expected, condition
    domain_admin = await make_admin_of_domains(environment, root.http, "chief", "own.example")
    assert set(await list_addresses(domain_admin)) == {
        "list@own.example", "*@own.example", "off@own.example", "chief@own.example",
    }  # fmt: skip
    text = str(["x"] * 101).replace("'", '"')
    answer = await root.execute(f"{{ addresses(filter: {{tags: {text}}}) {{ totalCount }} }}")
    assert answer["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"


async def test_pagination_works_in_both_directions(root: GraphQLClient) -> None:
    for n in range(5):
        await create_address(root, f"n{n}@own.example", forwardTo=["x@y.example"])
    document = """query ($first: Int, $after: String, $last: Int, $before: String) {
      addresses(first: $first, after: $after, last: $last, before: $before) {
        nodes { address } pageInfo { startCursor endCursor hasNextPage hasPreviousPage } } }"""
    seen, after = [], None
    while True:
        page = (await root(document, first=2, after=after))["addresses"]
        seen += [node["address"] for node in page["nodes"]]
        after = page["pageInfo"]["endCursor"]
        if not page["pageInfo"]["hasNextPage"]:
            break
    assert seen == [f"n{n}@own.example" for n in range(5)]
    previous_page = (await root(document, last=2, before=after))["addresses"]
    assert [node["address"] for node in previous_page["nodes"]] == seen[2:4]


async def test_list_needs_a_constant_number_of_statements(
    root: GraphQLClient, statements: list[str]
) -> None:
    document = """{ addresses(first: 50) { totalCount nodes { address forwardTo user { username }
      domain { name } limits { forwardsPerDay { used limit } } privateComment } } }"""

    async def cost() -> int:
        del statements[:]
        await root(document)
        return len([statement for statement in statements if "api_keys" not in statement])

    await make_domain_user(root.environment, "a@own.example")
    costs = [await cost(), await cost()]
    for n in range(20):
        await make_domain_user(root.environment, f"n{n}@own.example")
    assert costs[1] == await cost() == await cost()


async def test_owner_cannot_read_administrator_fields(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    admin_fields = {"privateComment": "Mine", "privateMetadata": {"n": 1}}
    await create_address(root, "second@example.org", user={"username": "ada"}, **admin_fields)
    for name in admin_fields:
        answer = await ada.execute(
            f'{{ address(by: {{address: "second@example.org"}}) {{ {name} }} }}'
        )
        assert answer["errors"][0]["extensions"]["code"] == "FORBIDDEN"


@pytest.mark.usefixtures("ada")
async def test_trace_begins_with_the_recipient_rewrite(root: GraphQLClient) -> None:
    document = """mutation { recipientRewriteCreate(input: {from: "old@example.org",
      to: "ada@example.org"}) { errors { message } } }"""
    assert (await root(document))["recipientRewriteCreate"]["errors"] == []
    assert await load_trace(root, "old@example.org") == [
        ("RECIPIENT_REWRITE", "old@example.org", ["ada@example.org"], None, "RecipientRewrite"),
        ("ADDRESS", "ada@example.org", ["ada@example.org"], "ada@example.org", "Address"),
        ("USER", "ada@example.org", ["ada"], None, "User"),
    ]


async def test_trace_shows_each_resolution_step(root: GraphQLClient, ada: GraphQLClient) -> None:
    await create_alias_domain(root, "other.example", "example.org")
    assert await load_trace(root, "a.da+x@other.example") == [
        ("ALIAS_DOMAIN", "a.da+x@other.example", ["a.da+x@example.org"], None, "AliasDomain"),
        ("ADDRESS", "a.da+x@example.org", ["ada@example.org"], "ada@example.org", "Address"),
        ("USER", "ada@example.org", ["ada"], None, "User"),
    ]
    await create_address(root, "sal*@example.org", allowWildcard=True,
               forwardTo=["c@far.example", "smtp://u:p@relay.example"])  # fmt: skip
    await create_address(root, "@example.org", allowWildcard=True, kind="DISCARD")
    assert await load_trace(root, "sales@example.org") == [
        ("ADDRESS", "sales@example.org", ["c@far.example", "smtp://u:***@relay.example"],
         "sal*@example.org", "Address"),
    ]  # fmt: skip
    assert await load_trace(root, "any@example.org") == [
        ("ADDRESS", "any@example.org", [], "*@example.org", "Address"),
    ]
    await try_update_addresses(root, "sal*@example.org", active=False)
    assert await load_trace(root, "sales@example.org") == [
        ("ADDRESS", "sales@example.org", [], "sal*@example.org", "Address"),
    ]
    async with root.environment.write_session() as session:
        await session.exec(update(User).where(col(User.id) == ada.user.id).values(active=False))
    assert (await load_trace(root, "ada@example.org"))[-1] == (
        "USER", "ada@example.org", [], None, "User",
    )  # fmt: skip
    async with root.environment.write_session() as session:
        await session.exec(update(Domain).values(active=False))
    assert await load_trace(root, "ada@other.example") == [
        ("ADDRESS", "ada@other.example", [], None, None),
    ]
    assert await load_trace(root, "nothing") == [("ADDRESS", "nothing", [], None, None)]


@pytest.mark.usefixtures("ada")
async def test_domain_admin_can_trace_own_domains_only(root: GraphQLClient) -> None:
    await domain_operations.create_domain(root, "own.example")
    await create_alias_domain(root, "other.example", "example.org")
    domain_admin = await make_admin_of_domains(root.environment, root.http, "chief", "own.example")
    assert [step[0] for step in await load_trace(domain_admin, "chief@own.example")] == [
        "ADDRESS",
        "USER",
    ]
    for address in ("ada@example.org", "ada@other.example", "ada@nowhere.example"):
        assert await load_trace(domain_admin, address) == [("ADDRESS", address, [], None, None)]


async def test_forward_target_can_send_as_the_address(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient
) -> None:
    send = """mutation ($from: EmailAddress!) { messageSend(input: {from: {address: $from},
      to: [{address: "x@far.example"}], text: "x"}) { errors { code path } } }"""

    async def send_error_codes(client: GraphQLClient) -> list[str]:
        payload = (await client(send, **{"from": "team@example.org"}))["messageSend"]
        return [error["code"] for error in payload["errors"]]

    await create_address(
        root, "team@example.org", forwardTo=["A.da+team@example.org", "smtp://r.example"]
    )
    assert (await send_error_codes(ada), await send_error_codes(bob)) == (
        [],
        ["FORBIDDEN_OPERATION"],
    )
    for values in ({"sendAs": False}, {"sendAs": True, "active": False}):
        assert (await try_update_addresses(root, "team@example.org", **values))[1] == []
        assert await send_error_codes(ada) == ["FORBIDDEN_OPERATION"]
