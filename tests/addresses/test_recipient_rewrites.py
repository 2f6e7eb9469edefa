"""Recipients that are replaced: by whom, by what, and what may not be."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from graph.types import global_ids
from mail.addresses.address_syntax import NormalizedAddress
from mail.delivery import recipient_rewrites
from mail.mime.header_encoding import NamedAddress
from mail.recipients import address_resolution
from mail.smtp import lmtp
from models.errors import NotFound
from models.events.journal import PLATFORM, ChangeKind
from models.runtime.environment import Environment
from models.users.roles import AdminPermission
from tests.conftest import Client, raw_message
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.mail_servers.lmtp_client import connect
from tests.support.mail_servers.queue_worker import deliveries, inbox, relay, send, settled, working
from tests.support.mail_servers.smtp_and_dns_servers import Server, listening
from tests.support.operations.domain_operations import (
    ALIAS,
    DELETE,
    RENAME,
    done,
    key_of,
    made,
    told,
)
from tests.support.operations.rewrite_and_bcc_operations import (
    REWRITE_CREATE,
    REWRITE_DELETE,
    REWRITE_UPDATE,
    REWRITES,
    come,
    rewrite,
    rule,
)
from tests.support.stores.counter_check import journal, reached, rows

NODE = "query ($id: ID!) { node(id: $id) { id } }"


async def reaches(world: Environment, address: str) -> int | None:
    """The account that takes mail for an address."""
    try:
        return (await address_resolution.load_recipient(world, address)).user_id
    except NotFound:
        return None


@pytest.mark.usefixtures("ada")
async def test_a_rewrite_is_made_changed_listed_and_deleted(root: Client) -> None:
    answer, errors = await done(
        root, REWRITE_CREATE, **{"from": " In.Fo@OLD.example ", "to": "Ada@Example.org"}
    )
    assert errors == []
    one = answer["recipientRewrite"]
    assert (one["from"], one["to"], one["active"]) == ("info@old.example", "Ada@example.org", True)
    assert answer["recipientRewrites"] == [{"id": one["id"]}]
    assert (await root(NODE, id=one["id"]))["node"] == {"id": one["id"]}
    answer, errors = await done(
        root, REWRITE_UPDATE, **{"ids": [one["id"]], "from": "@old.example", "active": False}
    )
    assert errors == []
    assert answer["recipientRewrite"]["from"] == "@old.example"
    assert not answer["recipientRewrites"][0]["active"]
    page = (await root(REWRITES))["recipientRewrites"]
    assert (page["totalCount"], [node["to"] for node in page["nodes"]]) == (1, ["Ada@example.org"])
    answer, errors = await done(root, REWRITE_DELETE, ids=[one["id"]])
    assert (answer["deletedIds"], errors) == ([one["id"]], [])
    assert (await root(REWRITES))["recipientRewrites"]["nodes"] == []
    assert (await root(NODE, id=one["id"])) == {"node": None}


async def test_lists_are_paged_from_both_ends(root: Client, ada: Client) -> None:
    made = [await rewrite(root, f"{name}@old.example", ada.address) for name in "abcde"]
    seen, after = [], None
    while True:
        page = (await root(REWRITES, first=2, after=after))["recipientRewrites"]
        seen += [node["id"] for node in page["nodes"]]
        if not page["pageInfo"]["hasNextPage"]:
            break
        after = page["pageInfo"]["endCursor"]
    assert seen == made
    page = (await root(REWRITES, last=2))["recipientRewrites"]
    assert [node["id"] for node in page["nodes"]] == made[-2:]


REFUSED: list[tuple[str, str, tuple[Any, ...]]] = [
    ("nobody", "ada@example.org", ("VALIDATION", ["from"], None, "address")),
    ("a+b@old.example", "ada@example.org", ("VALIDATION", ["from"], None, "pattern")),
    ("a*@old.example", "ada@example.org", ("VALIDATION", ["from"], None, "pattern")),
    ("@", "ada@example.org", ("VALIDATION", ["from"], None, "domain")),
    ("a\u0001@old.example", "ada@example.org", ("VALIDATION", ["from"], None, "address")),
    ("x" * 400 + "@old.example", "ada@example.org", ("VALIDATION", ["from"], None, "address")),
    ("info@old.example", "@example.org", ("VALIDATION", ["to"], None, "address")),
    ("info@old.example", "*@example.org", ("VALIDATION", ["to"], None, "pattern")),
    ("@old.example", "+x@example.org", ("VALIDATION", ["to"], None, "pattern")),
    ("info@old.example", "", ("VALIDATION", ["to"], None, "address")),
    ("in.fo@example.org", "INFO@example.org", ("VALIDATION", ["to"], None, "self")),
    ("@example.org", "@Example.ORG", ("VALIDATION", ["to"], None, "self")),
    ("@Taken.example", "ada@example.org", ("CONFLICT", ["from"], None, None)),
]


@pytest.mark.usefixtures("ada")
async def test_what_cannot_be_is_refused_by_field_and_rule(
    root: Client, world: Environment
) -> None:
    first = await rewrite(root, "@taken.example", "@example.org")
    second = await rewrite(root, "info@taken.example", "ada@example.org")
    before = await rows(world, "SELECT * FROM recipient_rewrites")
    for of, to, wanted in REFUSED:
        _, errors = await done(root, REWRITE_CREATE, **{"from": of, "to": to})
        assert told(errors) == wanted, (of, to)
    for fields, wanted in (
        ({"ids": [first], "from": "info@taken.example"}, ("CONFLICT", ["from"], None, None)),
        ({"ids": [first, second], "from": "@x.example"}, ("CONFLICT", ["from"], None, None)),
        ({"ids": [first, second], "to": "@example.org"}, ("VALIDATION", ["to"], 1, "address")),
        ({"ids": [first]}, ("VALIDATION", [], None, "required")),
        ({"ids": [], "active": True}, ("VALIDATION", ["ids"], None, "required")),
    ):
        _, errors = await done(root, REWRITE_UPDATE, **fields)
        assert told(errors) == wanted, fields
    missing = global_ids.encode("RecipientRewrite", world.new_id())
    for document, more in ((REWRITE_UPDATE, {"active": False}), (REWRITE_DELETE, {})):
        _, errors = await done(root, document, ids=[first, missing], **more)
        assert told(errors)[:3] == ("NOT_FOUND", ["ids"], 1)
    assert await rows(world, "SELECT * FROM recipient_rewrites") == before


@pytest.mark.usefixtures("ada")
async def test_no_circle_is_made_in_whatever_way(root: Client) -> None:
    for name in ("b.example", "c.example"):
        await made(root, name)
    await rewrite(root, "@example.org", "@b.example", active=False)
    key = await rewrite(root, "@b.example", "@c.example")
    circle = ("VALIDATION", ["to"], None, "circle")
    _, errors = await done(root, REWRITE_CREATE, **{"from": "@c.example", "to": "@example.org"})
    assert told(errors) == circle
    last = await rewrite(root, "x@c.example", "y@c.example")
    await rewrite(root, "y@c.example", "z@c.example")
    for document, fields in (
        (REWRITE_CREATE, {"from": "z@c.example", "to": "x@example.org"}),
        (REWRITE_UPDATE, {"ids": [last], "to": "x@b.example"}),
    ):
        _, errors = await done(root, document, **fields)
        assert told(errors) == circle
    _, errors = await done(root, REWRITE_UPDATE, ids=[key], to="all@b.example")
    assert errors == []  # all of a domain for one address of it, which stays what it is


@given(some.dictionaries(some.tuples(some.sampled_from(["", "x", "y"]), some.sampled_from("abc")),
                         some.tuples(some.sampled_from(["", "x", "y"]), some.sampled_from("abc")),
                         max_size=7))  # fmt: skip
def test_a_circle_is_one_that_following_from_any_address_finds(
    drawn: dict[tuple[str, str], tuple[str, str]],
) -> None:
    rules = {
        NormalizedAddress(*of): f"{to[0]}@{to[1]}" for of, to in drawn.items() if to[0] or not of[0]
    }

    def circles(at: NormalizedAddress) -> bool:
        seen = [at]
        while target := rules.get(at, rules.get(NormalizedAddress("", at.domain))):
            local, _, domain = target.partition("@")
            at = NormalizedAddress(local or at.local_part, domain)
            if at in seen:
                return at != seen[-1]
            seen.append(at)
        return False

    starts = [NormalizedAddress(local, domain) for local in ("x", "y", "other") for domain in "abc"]
    assert recipient_rewrites.has_rewrite_loop(rules) == any(map(circles, starts))


async def test_mail_goes_where_the_table_of_decisions_says(
    root: Client, ada: Client, bob: Client, world: Environment
) -> None:
    adas, bobs = ada.user.id, bob.user.id
    await done(root, ALIAS, alias="also.example", domain="example.org")
    await rewrite(root, "@old.example", "@example.org")
    await rewrite(root, "info@old.example", "bob@example.org")
    await rewrite(root, "@all.example", "b.ob@also.example")
    await rewrite(root, "bob@example.org", "ada@example.org")
    await rewrite(root, "off@old.example", "ada@example.org", active=False)
    for address, reached_by in {
        "ada@old.example": adas,  # the local part stays
        "A.da+x@OLD.example": adas,
        "in.fo+x@old.example": bobs,  # the address before its domain; once, so not ada
        "anything@all.example": bobs,
        "bob@old.example": bobs,  # once
        "bob@example.org": adas,  # though there is such an account
        "bob@also.example": bobs,  # as received: it is another name
        "off@old.example": None,  # the rewrite of the domain, where nobody is called so
        "nobody@old.example": None,
        "ada@other.example": None,
        "ada@example.org": adas,
    }.items():
        assert await reaches(world, address) == reached_by, address


async def test_rewriting_costs_a_statement_and_nothing_where_nothing_is_rewritten(
    root: Client, ada: Client, world: Environment, statements: list[str]
) -> None:
    async def cost(address: str) -> int:
        del statements[:]
        assert await reaches(world, address) == ada.user.id
        return len(statements)

    assert await cost(ada.address) == 2
    await rewrite(root, "@old.example", "@example.org")
    assert await cost(ada.address) == 2
    assert await cost("ada@old.example") == 3
    for many in (1, 20):
        asked = [f"ada{n}@old.example" for n in range(many)]
        del statements[:]
        found = await recipient_rewrites.rewrites_by_address(world, [*asked, ada.address])
        assert len(statements) == 1
        assert {key: one.address for key, one in found.items()} == {
            address: address.replace("old.example", "example.org") for address in asked
        }


async def test_mail_of_our_own_users_is_rewritten_too(
    root: Client, ada: Client, bob: Client, world: Environment
) -> None:
    await rewrite(root, "@old.example", "bob@example.org")
    key = await send(ada, NamedAddress("any@old.example"))
    async with listening(Server()) as far, working(world, relay(far)):
        await settled(world, key)
    assert (await deliveries(world, key))["any"].last_response == "2.0.0 Delivered here"
    assert len(await inbox(bob)) == 1
    assert far.mails == []


async def test_the_envelope_keeps_what_was_received(
    root: Client, ada: Client, world: Environment
) -> None:
    await rewrite(root, "info@old.example", ada.address)
    await come(world, "Info@old.example")
    ((told_,),) = await rows(world, "SELECT envelope_to FROM messages")
    assert "Info@old.example" in str(told_)


async def test_changes_are_told_to_the_domains_at_both_ends(
    root: Client, ada: Client, world: Environment
) -> None:
    await made(root, "old.example")
    old, new = await key_of(world, "old.example"), ada.user.domain_id
    assert new is not None
    since = {key: await reached(world, key) for key in (old, new, PLATFORM)}
    await rewrite(root, "@old.example", "@example.org")
    for stream, told_ in ((old, [old]), (new, [new]), (PLATFORM, sorted([old, new]))):
        assert await journal(world, stream, since[stream]) == [(ChangeKind.DOMAIN_CHANGED, told_)]


async def test_nobody_but_an_admin_sees_or_changes_any(
    root: Client, ada: Client, over: Client, world: Environment
) -> None:
    key = await rewrite(root, "@old.example", "@example.org")
    admin = await make_domain_admin(world, root.http, "dora", list(AdminPermission))
    before = await rows(world, "SELECT * FROM recipient_rewrites")
    for client in (ada, admin):
        assert (await client.raw(REWRITES))["errors"][0]["extensions"]["code"] == "FORBIDDEN"
        assert (await client(NODE, id=key)) == {"node": None}
        for document, more in (
            (REWRITE_CREATE, {"from": "x@old.example", "to": "ada@example.org"}),
            (REWRITE_UPDATE, {"ids": [key], "active": False}),
            (REWRITE_DELETE, {"ids": [key]}),
        ):
            _, errors = await done(client, document, **more)
            assert [error["code"] for error in errors] == ["FORBIDDEN"]
    assert await rows(world, "SELECT * FROM recipient_rewrites") == before
    assert (await over(REWRITES))["recipientRewrites"]["totalCount"] == 1


async def test_a_domain_takes_its_rewrites_and_copies_along(
    root: Client, ada: Client, world: Environment
) -> None:
    await rewrite(root, "info@example.org", "ada@example.org")
    await rewrite(root, "@old.example", "@example.org")
    await rule(root, "@example.org", "ada@example.org")
    await rewrite(root, "@new.example", "@example.org")
    _, errors = await done(root, RENAME, oldDomain="example.org", newDomain="new.example")
    assert told(errors)[:2] == ("CONFLICT", ["newDomain"])
    _, errors = await done(root, RENAME, oldDomain="example.org", newDomain="next.example")
    assert errors == []
    found = {(row[0], row[1], row[2]) for row in await rows(
        world, "SELECT local, domain, target FROM recipient_rewrites")}  # fmt: skip
    assert found == {
        ("info", "next.example", "ada@next.example"),
        ("", "old.example", "@next.example"),
        ("", "new.example", "@next.example"),
    }
    assert await rows(world, "SELECT bcc_to FROM bcc_rules") == [("ada@next.example",)]
    assert await reaches(world, "info@next.example") == ada.user.id
    assert await reaches(world, "info@example.org") is None


async def test_a_rewrite_can_be_switched_off_when_its_domain_has_gone(
    root: Client, world: Environment
) -> None:
    await made(root, "brief.example")
    key = await rewrite(root, "@old.example", "@brief.example")
    _, errors = await done(root, DELETE, domains=[{"name": "brief.example"}])
    assert errors == []
    assert await reaches(world, "ada@old.example") is None
    _, errors = await done(root, REWRITE_UPDATE, ids=[key], active=False)
    assert errors == []
    _, errors = await done(root, REWRITE_DELETE, ids=[key])
    assert errors == []


@pytest.mark.usefixtures("ada")
async def test_of_two_at_once_one_is_made_and_no_circle(root: Client) -> None:
    await made(root, "b.example")

    async def attempt(of: str, to: str) -> list[str]:
        _, errors = await done(root, REWRITE_CREATE, **{"from": of, "to": to})
        return [error["code"] for error in errors]

    pairs = [("@old.example", "@example.org")] * 2
    assert sorted(await asyncio.gather(*(attempt(*pair) for pair in pairs))) == [[], ["CONFLICT"]]
    pairs = [("@example.org", "@b.example"), ("@b.example", "@example.org")]
    assert sorted(await asyncio.gather(*(attempt(*pair) for pair in pairs))) == [
        [], ["VALIDATION"],
    ]  # fmt: skip


async def test_a_neighbour_hears_of_none_of_it(
    root: Client, ada: Client, world: Environment, tmp_path: Path
) -> None:
    await rewrite(root, "@old.example", "@example.org")
    listener = await lmtp.start_lmtp_listener(world, "127.0.0.1", 0, spool_folder=tmp_path / "lmtp")
    neighbour = await connect(listener.port)
    assert (await neighbour.say("MAIL FROM:<carol@example.com>")).startswith("250")
    assert await neighbour.say("RCPT TO:<nobody@old.example>") == "550 5.1.1 No such user here"
    assert (await neighbour.say("RCPT TO:<ada@old.example>")).startswith("250 2.1.5")
    await neighbour.say("DATA")
    neighbour.send(raw_message("Hello") + b".\r\n")
    assert (await neighbour.hear()).startswith("250 2.0.0 Delivered")
    assert len(await inbox(ada)) == 1
    await neighbour.close()
    await listener.close(1)
