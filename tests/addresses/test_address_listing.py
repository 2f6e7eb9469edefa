"""Addresses that are asked for: one, lists, and where mail would go."""

from typing import Any

import pytest
from sqlalchemy import update
from sqlmodel import col

from models.domains.tables import Domain
from models.users.tables import User
from tests.conftest import Client
from tests.support.operations import domain_operations
from tests.support.operations.address_operations import change, made, names, of, temporary
from tests.support.operations.domain_operations import ALIAS, administrator, done, live

TRACE = """query ($address: String!) { addressTrace(address: $address) {
  stage input output matched record { __typename ... on Address { address }
  ... on User { username } ... on DomainAlias { alias } } } }"""


async def trace(client: Client, address: str) -> list[tuple[Any, ...]]:
    steps = (await client(TRACE, address=address))["addressTrace"]
    return [
        (one["stage"], one["input"], one["output"], one["matched"],
         one["record"] and one["record"]["__typename"])
        for one in steps
    ]  # fmt: skip


async def alias(root: Client, name: str, domain: str) -> None:
    _, errors = await done(root, ALIAS, alias=name, domain=domain)
    assert errors == []


async def test_a_rule_about_the_sender_is_a_step(root: Client, ada: Client, bob: Client) -> None:
    document = """mutation ($input: SenderRuleCreateInput!) {
        senderRuleCreate(input: $input) { errors { code } } }"""
    for client, action, scope in (
        (root, "BLOCK", {"global": True}),
        (ada, "ALLOW", {"user": {"username": "ada"}}),
    ):
        given = {"action": action, "patterns": ["shop.example"], "scope": scope}
        assert (await client(document, input=given))["senderRuleCreate"]["errors"] == []
    asked = """query ($to: String!, $from: String) { addressTrace(address: $to, sender: $from) {
        stage input output matched record { __typename } } }"""

    async def last(client: Client, to: str, sender: str | None) -> tuple[Any, ...]:
        step = (await client(asked, **{"to": to, "from": sender}))["addressTrace"][-1]
        return tuple(step.values())

    news = "news@shop.example"
    rule = {"__typename": "SenderRule"}
    assert await last(root, ada.address, news) == (
        "SENDER_RULE", news, ["INBOX"], "shop.example", rule,
    )  # fmt: skip
    assert await last(root, bob.address, news) == (
        "SENDER_RULE", news, ["Junk"], "shop.example", rule,
    )  # fmt: skip
    for sender in (None, "x@else.example", "", "no address"):
        assert (await last(root, ada.address, sender))[0] == "ACCOUNT"
    boss = await administrator(root.world, root.http, "boss", "example.org")
    assert await last(boss, bob.address, news) == ("SENDER_RULE", news, ["Junk"], None, None)


async def test_an_address_is_found_in_every_spelling(root: Client, ada: Client) -> None:
    await alias(root, "other.example", "example.org")
    for text, primary in (
        ("ada@example.org", None),
        (" A.d.a+x@EXAMPLE.org", None),
        ("ada@other.example", "ada@example.org"),
    ):
        found = await of(ada, text)
        assert (found["address"], found["inPrimaryDomain"]) == ("ada@example.org", primary)
    for text in ("eve@example.org", "ada", "@", "", "*@*", "ada@*", "a@\ud7ff"):
        assert await of(root, text) is None, text
        assert await of(root, text, wild=True) is None, text
    by_id = """query ($id: ID!) { address(by: {id: $id}) { address } }"""
    found = await of(ada, "ada@example.org")
    assert (await ada(by_id, id=found["id"]))["address"] == {"address": "ada@example.org"}


async def test_a_list_is_narrowed_by_every_condition(root: Client, ada: Client) -> None:
    world = root.world
    await made(root, "list@own.example", targets=["Carol@far.example"], tags=["Red", "blue"])
    await made(root, "@own.example", kind="DISCARD", allowWildcard=True, tags=["red"])
    await made(root, "every@*", targets=["dave@far.example"], allowWildcard=True)
    await made(root, "off@own.example", targets=["smtp://u:secret@relay.example"], active=False)
    ends, _ = await temporary(ada)
    masked, _ = await temporary(ada, validity=None)
    both = sorted([ends["address"], masked["address"]])
    every = {"list@own.example", "*@own.example", "every@*", "off@own.example", "ada@example.org"}
    assert set(await names(root)) == every | set(both)
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
        ({"wildcard": False, "domain": "OWN.example"}, {"list@own.example", "off@own.example"}),
        ({"user": {"username": "ada"}, "temporary": False}, {"ada@example.org"}),
        ({"user": {"username": "nobody"}}, set()),
        ({"temporary": True}, set(both)),
        ({"active": False}, {"off@own.example"}),
        ({"domain": "nowhere.example"}, set()),
    ):
        assert set(await names(root, **condition)) == expected, condition
    chief = await administrator(world, root.http, "chief", "own.example")
    assert set(await names(chief)) == {
        "list@own.example", "*@own.example", "off@own.example", "chief@own.example",
    }  # fmt: skip
    text = str(["x"] * 101).replace("'", '"')
    answer = await root.raw(f"{{ addresses(filter: {{tags: {text}}}) {{ totalCount }} }}")
    assert answer["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"


async def test_pages_meet_both_ways(root: Client) -> None:
    for n in range(5):
        await made(root, f"n{n}@own.example", targets=["x@y.example"])
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
    back = (await root(document, last=2, before=after))["addresses"]
    assert [node["address"] for node in back["nodes"]] == seen[2:4]


async def test_many_addresses_cost_no_more_statements_than_one(
    root: Client, statements: list[str]
) -> None:
    document = """{ addresses(first: 50) { totalCount nodes { address targets user { username }
      domain { name } limits { forwards { used allowed } } privateComment } } }"""

    async def cost() -> int:
        del statements[:]
        await root(document)
        return len([sent for sent in statements if "api_keys" not in sent])

    await live(root.world, "a@own.example")
    costs = [await cost(), await cost()]
    for n in range(20):
        await live(root.world, f"n{n}@own.example")
    assert costs[1] == await cost() == await cost()


async def test_what_is_of_administrators_is_not_told_to_owners(root: Client, ada: Client) -> None:
    hidden = {"privateComment": "Mine", "internalData": {"n": 1}}
    await made(root, "second@example.org", user={"username": "ada"}, **hidden)
    for name in hidden:
        answer = await ada.raw(f'{{ address(by: {{address: "second@example.org"}}) {{ {name} }} }}')
        assert answer["errors"][0]["extensions"]["code"] == "FORBIDDEN"


@pytest.mark.usefixtures("ada")
async def test_a_rewrite_is_the_first_step(root: Client) -> None:
    made_up = """mutation { recipientRewriteCreate(input: {from: "old@example.org",
      to: "ada@example.org"}) { errors { message } } }"""
    assert (await root(made_up))["recipientRewriteCreate"]["errors"] == []
    assert await trace(root, "old@example.org") == [
        ("RECIPIENT_REWRITE", "old@example.org", ["ada@example.org"], None, "RecipientRewrite"),
        ("ADDRESS", "ada@example.org", ["ada@example.org"], "ada@example.org", "Address"),
        ("ACCOUNT", "ada@example.org", ["ada"], None, "User"),
    ]


async def test_the_way_of_mail_is_told_step_by_step(root: Client, ada: Client) -> None:
    await alias(root, "other.example", "example.org")
    assert await trace(root, "a.da+x@other.example") == [
        ("DOMAIN_ALIAS", "a.da+x@other.example", ["a.da+x@example.org"], None, "DomainAlias"),
        ("ADDRESS", "a.da+x@example.org", ["ada@example.org"], "ada@example.org", "Address"),
        ("ACCOUNT", "ada@example.org", ["ada"], None, "User"),
    ]
    await made(root, "sal*@example.org", allowWildcard=True,
               targets=["c@far.example", "smtp://u:p@relay.example"])  # fmt: skip
    await made(root, "@example.org", allowWildcard=True, kind="DISCARD")
    assert await trace(root, "sales@example.org") == [
        ("ADDRESS", "sales@example.org", ["c@far.example", "smtp://u:***@relay.example"],
         "sal*@example.org", "Address"),
    ]  # fmt: skip
    assert await trace(root, "any@example.org") == [
        ("ADDRESS", "any@example.org", [], "*@example.org", "Address"),
    ]
    await change(root, "sal*@example.org", active=False)
    assert await trace(root, "sales@example.org") == [
        ("ADDRESS", "sales@example.org", [], "sal*@example.org", "Address"),
    ]
    async with root.world.write_session() as session:
        await session.exec(update(User).where(col(User.id) == ada.user.id).values(disabled=True))
    assert (await trace(root, "ada@example.org"))[-1] == (
        "ACCOUNT", "ada@example.org", [], None, "User",
    )  # fmt: skip
    async with root.world.write_session() as session:
        await session.exec(update(Domain).values(active=False))
    assert await trace(root, "ada@other.example") == [
        ("ADDRESS", "ada@other.example", [], None, None),
    ]
    assert await trace(root, "nothing") == [("ADDRESS", "nothing", [], None, None)]


@pytest.mark.usefixtures("ada")
async def test_a_domain_administrator_traces_in_the_own_domains_only(root: Client) -> None:
    await domain_operations.made(root, "own.example")
    await alias(root, "other.example", "example.org")
    chief = await administrator(root.world, root.http, "chief", "own.example")
    assert [step[0] for step in await trace(chief, "chief@own.example")] == ["ADDRESS", "ACCOUNT"]
    for foreign in ("ada@example.org", "ada@other.example", "ada@nowhere.example"):
        assert await trace(chief, foreign) == [("ADDRESS", foreign, [], None, None)]


async def test_whom_it_forwards_to_may_send_as_it(ada: Client, bob: Client, root: Client) -> None:
    send = """mutation ($from: String!) { messageSend(input: {from: {address: $from},
      to: [{address: "x@far.example"}], text: "x"}) { errors { code path } } }"""

    async def refused(client: Client) -> list[str]:
        done = (await client(send, **{"from": "team@example.org"}))["messageSend"]
        return [error["code"] for error in done["errors"]]

    await made(root, "team@example.org", targets=["A.da+team@example.org", "smtp://r.example"])
    assert (await refused(ada), await refused(bob)) == ([], ["FORBIDDEN_OPERATION"])
    for values in ({"sendAs": False}, {"sendAs": True, "active": False}):
        assert (await change(root, "team@example.org", **values))[1] == []
        assert await refused(ada) == ["FORBIDDEN_OPERATION"]
