"""Rules that have mail copied: what is copied to whom, who is told, and who may say so."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlmodel import col

from graph.types import global_ids
from mail.delivery import recipient_rewrites
from mail.delivery.listener_backend import LocalBackend
from mail.mime.header_encoding import NamedAddress
from models.addresses.rewrites import BccDirection
from models.errors import NotFound
from models.events.journal import PLATFORM, Change, ChangeKind
from models.queue.tables import DeliveryState
from models.runtime.environment import Environment
from models.users.roles import AdminPermission, Role
from models.users.rule_makers import RuleSubject
from resolvers.submission import mutations as submission_mutations
from tests.conftest import Client, context, make_client, raw_message
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.mail_servers.queue_worker import inbox, relay, send, settled, until, working
from tests.support.mail_servers.smtp_and_dns_servers import Server, listening
from tests.support.operations.domain_operations import ALIAS, DELETE, done, made, told
from tests.support.operations.rewrite_and_bcc_operations import (
    RULE_CREATE,
    RULE_DELETE,
    RULE_UPDATE,
    RULES,
    come,
    copied,
    rewrite,
    rule,
)
from tests.support.stores.counter_check import examine, journal, reached, rows

ARCHIVE = "archive@far.example"
NODE = "query ($id: ID!) { node(id: $id) { ... on BccRule { match } } }"
SUBMISSIONS = """{ viewer { user { submissions { totalCount nodes {
  id state recipients { recipient } } } } } }"""


async def test_a_rule_is_made_changed_listed_and_deleted(root: Client, ada: Client) -> None:
    await done(root, ALIAS, alias="also.example", domain="example.org")
    answer, errors = await done(
        root, RULE_CREATE, match=" Ad.A@also.example", bccTo="Archive@far.example",
        direction="SENDER",
    )  # fmt: skip
    assert errors == []
    one = answer["bccRule"]
    assert answer["bccRules"] == [{"id": one["id"]}]
    wanted = ("ada@example.org", "Archive@far.example", "SENDER", {"name": "example.org"}, True)
    named = ("match", "bccTo", "direction", "domain", "active")
    assert tuple(one[name] for name in named) == wanted
    assert (await root(NODE, id=one["id"])) == {"node": {"match": "ada@example.org"}}
    given = {"match": "@example.org", "direction": "RECIPIENT", "active": False}
    answer, errors = await done(root, RULE_UPDATE, ids=[one["id"]], **given)
    assert errors == []
    assert {name: answer["bccRule"][name] for name in given} == given
    assert (await root(RULES))["bccRules"]["nodes"] == answer["bccRules"]
    answer, errors = await done(root, RULE_DELETE, ids=[one["id"]])
    assert (answer["deletedIds"], errors) == ([one["id"]], [])
    assert (await root(RULES))["bccRules"]["totalCount"] == 0
    assert (await root(NODE, id=one["id"])) == {"node": None}
    assert await copied(ada.world) == []


@pytest.mark.usefixtures("ada")
async def test_lists_are_paged_and_cost_the_same_however_long(
    root: Client, statements: list[str]
) -> None:
    costs: set[int] = set()
    keys: list[str] = []
    for _ in range(2):
        for n in range(1 if not keys else 19):
            keys.append(await rule(root, f"a{n}x{len(keys)}@example.org", ARCHIVE))
        del statements[:]
        page = (await root(RULES, first=50))["bccRules"]
        costs.add(len(statements))
        assert [node["id"] for node in page["nodes"]] == keys
    assert len(costs) == 1
    seen: list[str] = []
    after = None
    while len(seen) < len(keys):
        page = (await root(RULES, first=7, after=after))["bccRules"]
        seen += [node["id"] for node in page["nodes"]]
        after = page["pageInfo"]["endCursor"]
    assert seen == keys
    page = (await root(RULES, last=3))["bccRules"]
    assert [node["id"] for node in page["nodes"]] == keys[-3:]


REFUSED: list[tuple[str, str, tuple[Any, ...]]] = [
    ("example.org", ARCHIVE, ("VALIDATION", ["match"], None, "address")),
    ("a+b@example.org", ARCHIVE, ("VALIDATION", ["match"], None, "pattern")),
    ("*@example.org", ARCHIVE, ("VALIDATION", ["match"], None, "pattern")),
    ("@far.example", ARCHIVE, ("NOT_FOUND", ["match"], None, "far.example")),
    ("@example.org", "@far.example", ("VALIDATION", ["bccTo"], None, "address")),
    ("@example.org", "x" * 400, ("VALIDATION", ["bccTo"], None, "address")),
    ("ada@example.org", "A.da@example.org", ("VALIDATION", ["bccTo"], None, "self")),
    ("ada@also.example", "ada@example.org", ("VALIDATION", ["bccTo"], None, "self")),
    ("T.aken@also.example", ARCHIVE, ("CONFLICT", ["match"], None, None)),
]


@pytest.mark.usefixtures("ada")
async def test_what_cannot_be_is_refused_by_field_and_rule(
    root: Client, world: Environment
) -> None:
    await done(root, ALIAS, alias="also.example", domain="example.org")
    first = await rule(root, "taken@example.org", ARCHIVE)
    second = await rule(root, "taken@example.org", ARCHIVE, "SENDER")
    third = await rule(root, "@example.org", ARCHIVE)
    before = await rows(world, "SELECT * FROM bcc_rules")
    for match, to, wanted in REFUSED:
        given = {"match": match, "bccTo": to, "direction": "RECIPIENT"}
        _, errors = await done(root, RULE_CREATE, **given)
        assert told(errors) == wanted, (match, to)
    missing = global_ids.encode("BccRule", world.new_id())
    changes: list[tuple[dict[str, Any], tuple[Any, ...]]] = [
        ({"ids": [second], "direction": "RECIPIENT"}, ("CONFLICT", ["match"], 0, None)),
        ({"ids": [first, second], "direction": "SENDER"}, ("CONFLICT", ["match"], 1, None)),
        ({"ids": [first, third], "match": "x@example.org"}, ("CONFLICT", ["match"], 1, None)),
        ({"ids": [third, first], "bccTo": "taken@example.org"},
         ("VALIDATION", ["bccTo"], 1, "self")),
        ({"ids": [first, missing], "active": False}, ("NOT_FOUND", ["ids"], 1, str)),
        ({"ids": [first]}, ("VALIDATION", [], None, "required")),
        ({"ids": [], "active": True}, ("VALIDATION", ["ids"], None, "required")),
    ]  # fmt: skip
    for fields, answer in changes:
        _, errors = await done(root, RULE_UPDATE, **fields)
        assert told(errors)[:3] == answer[:3], fields
        assert answer[3] in (str, told(errors)[3])
    _, errors = await done(root, RULE_DELETE, ids=[first, missing])
    assert told(errors)[:3] == ("NOT_FOUND", ["ids"], 1)
    assert await rows(world, "SELECT * FROM bcc_rules") == before


async def test_rules_that_change_together_do_not_meet_each_other(root: Client, ada: Client) -> None:
    keys = [await rule(root, f"{name}@example.org", ada.address) for name in "xyz"]
    answer, errors = await done(root, RULE_UPDATE, ids=keys, direction="SENDER", bccTo=ARCHIVE)
    assert errors == []
    assert [one["id"] for one in answer["bccRules"]] == keys
    assert answer["bccRule"] is None
    assert {one["direction"] for one in answer["bccRules"]} == {"SENDER"}


# mail that comes


async def test_what_comes_is_copied_by_rules_for_its_recipients(
    root: Client, ada: Client, bob: Client, world: Environment
) -> None:
    await done(root, ALIAS, alias="also.example", domain="example.org")
    await rule(root, "ada@example.org", ARCHIVE)
    await rule(root, "@example.org", "all@far.example")
    off = await rule(root, "bob@example.org", "off@far.example")
    await done(root, RULE_UPDATE, ids=[off], active=False)
    await rule(root, "@example.org", "sent@far.example", "SENDER")
    async with listening(Server()) as far, working(world, relay(far)):
        await come(world, bob.address)
        await until(lambda: taken(far, 1))
        await come(world, "A.da+x@also.example", bob.address, raw=raw_message("Both"), sender="")
        await until(lambda: taken(far, 3))
    assert sorted((mail.sender, mail.to) for mail in far.mails) == [
        ("<>", ["all@far.example"]),
        ("<>", [ARCHIVE]),
        ("carol@example.com", ["all@far.example"]),
    ]
    first = far.mails[0].raw
    assert first.startswith(b"X-Merganser-Copy: ")
    assert first.partition(b"\r\n")[2].rstrip() == raw_message("Hello").rstrip()
    assert [len(await inbox(client)) for client in (ada, bob)] == [1, 2]
    await examine(world)


async def told_platform(world: Environment) -> list[tuple[int, str]]:
    """What the platform is told of submissions: which, and each state once."""
    asked = select(col(Change.ids), col(Change.facts)).where(
        col(Change.stream_id) == PLATFORM, col(Change.kind) == ChangeKind.SUBMISSION_CHANGED
    )
    found = await world.database.read(asked.order_by(col(Change.last)))
    return list(dict.fromkeys((row.ids[0], row.facts["state"]) for row in found))


async def taken(far: Server, many: int) -> bool:
    return sum(len(mail.to) for mail in far.mails) == many


async def test_a_copy_to_an_account_here_is_put_into_its_inbox(
    root: Client, ada: Client, bob: Client, world: Environment
) -> None:
    await rule(root, "ada@example.org", "bob@example.org")
    await rule(root, "bob@example.org", ARCHIVE)  # of a copy no copy is made
    async with listening(Server()) as far, working(world, relay(far)):
        await come(world, ada.address)

        async def there() -> bool:
            return len(await inbox(bob)) == 1

        await until(there)
    assert await copied(world) == [("bob@example.org", "carol@example.com")]
    assert (await inbox(bob))[0].envelope_from == "carol@example.com"
    assert far.mails == []


async def test_a_copy_that_comes_back_is_not_copied_again(
    root: Client, ada: Client, world: Environment
) -> None:
    await rule(root, "@example.org", ARCHIVE)
    async with listening(Server()) as far, working(world, relay(far)):
        await come(world, ada.address)
        await until(lambda: taken(far, 1))
    back = far.mails[0].raw
    await come(world, ada.address, raw=back)
    assert len(await copied(world)) == 1
    forged = b"X-Merganser-Copy: " + b"0" * 64 + b"\r\n" + raw_message("Hello")
    stolen = back.partition(b"\r\n")[0] + b"\r\n" + raw_message("Other")
    for nth, raw in enumerate((forged, stolen), 2):
        await come(world, ada.address, raw=raw)
        assert len(await copied(world)) == nth


async def test_nobody_who_has_it_gets_a_copy_and_each_address_one(
    root: Client, ada: Client, bob: Client, world: Environment
) -> None:
    await rule(root, "@example.org", "bob@example.org")
    await come(world, ada.address, bob.address)
    assert await copied(world) == []
    await rule(root, "ada@example.org", ARCHIVE)
    await rule(root, "bob@example.org", "ARCHIVE@Far.example")
    await come(world, ada.address, bob.address, raw=raw_message("Second"))
    assert await copied(world) == [(ARCHIVE, "carol@example.com")]


async def test_a_recipient_is_copied_as_it_is_after_a_rewrite(
    root: Client, ada: Client, world: Environment
) -> None:
    await rewrite(root, "@old.example", "@example.org")
    await rule(root, ada.address, ARCHIVE)
    await come(world, "ada@old.example")
    assert await copied(world) == [(ARCHIVE, "carol@example.com")]


async def test_what_is_refused_is_not_copied_and_copying_costs_nothing_without_rules(
    root: Client, ada: Client, world: Environment, statements: list[str]
) -> None:
    async def cost(subject: str) -> int:
        there = await LocalBackend(world).accept_recipient(ada.address, "")
        del statements[:]
        await LocalBackend(world).deliver(raw_message(subject), [there], "carol@example.com")
        return len(statements)

    bare = await cost("Bare")
    await rule(root, "@example.org", ARCHIVE, "SENDER")
    assert await cost("Another") == bare
    await rule(root, "other@example.org", ARCHIVE)
    assert await cost("Third") == bare + 1
    await rule(root, "@example.org", "all@far.example")
    with pytest.raises(NotFound):
        await LocalBackend(world).accept_recipient("nobody@example.org", "")
    assert await copied(world) == []


async def test_rules_are_asked_in_one_statement_for_all_recipients(
    root: Client, ada: Client, world: Environment, statements: list[str]
) -> None:
    for n in range(20):
        await rule(root, f"a{n}@example.org", f"copy{n}@far.example")
    for many in (1, 20):
        del statements[:]
        of = {f"a{n}@example.org": [RuleSubject(0, Role.USER)] for n in range(many)}
        found = await recipient_rewrites.find_bcc_targets(
            world, BccDirection.RECIPIENT, of, [ada.address]
        )
        assert len(statements) == 1
        assert [(copy.address, copy.original_address) for copy in found] == [
            (f"copy{n}@far.example", f"a{n}@example.org") for n in range(many)
        ]


async def test_a_large_message_is_copied_whole(
    root: Client, ada: Client, world: Environment, tmp_path: Path
) -> None:
    await rule(root, "@example.org", ARCHIVE)
    raw = raw_message("Large", body="line\r\n" * 100_000)
    file = tmp_path / "large"
    file.write_bytes(raw)
    async with listening(Server()) as far, working(world, relay(far)):
        there = await LocalBackend(world).accept_recipient(ada.address, "")
        await LocalBackend(world).deliver(file, [there], "carol@example.com")
        await until(lambda: taken(far, 1))
    assert far.mails[0].raw.partition(b"\r\n")[2].rstrip() == raw.rstrip()


async def test_where_a_copy_cannot_be_queued_the_sender_tries_again(
    root: Client, ada: Client, world: Environment
) -> None:
    await rule(root, "@example.org", ARCHIVE)
    commits = []

    def fault(place: str) -> None:
        if place == "commit":
            commits.append(place)
        if len(commits) > 1:
            raise OSError(place)

    with pytest.raises(OSError, match="commit"):
        await come(replace(world, reach_fault_point=fault), ada.address)
    assert (len(await inbox(ada)), await copied(world)) == (1, [])
    await come(world, ada.address)
    assert (len(await inbox(ada)), len(await copied(world))) == (1, 1)


# mail that is sent


async def test_what_is_sent_is_copied_and_nobody_is_told(
    root: Client, ada: Client, world: Environment
) -> None:
    await rule(root, "ada@example.org", ARCHIVE, "SENDER")
    await rule(root, "@example.org", "carol@example.net", "SENDER")  # she receives it anyway
    since = await reached(world, ada.user.id)
    async with listening(Server()) as far, working(world, relay(far)):
        key = await send(
            ada, NamedAddress("carol@example.net"), bcc=[NamedAddress("eve@example.net")]
        )
        await settled(world, key)
        await until(lambda: taken(far, 3))

        async def over() -> bool:
            return await rows(world, "SELECT 1 FROM submissions WHERE state <> 'SENT'") == []

        await until(over)
    mails = {tuple(mail.to): mail for mail in far.mails}
    copy = mails[(ARCHIVE,)]
    assert copy.sender == ada.address
    assert b"Bcc" not in copy.raw
    assert copy.raw == mails["carol@example.net", "eve@example.net"].raw
    page = (await ada(SUBMISSIONS))["viewer"]["user"]["submissions"]
    (one,) = page["nodes"]
    assert (page["totalCount"], one["state"]) == (1, "SENT")
    assert [to["recipient"] for to in one["recipients"]] == ["carol@example.net", "eve@example.net"]
    told_ = [keys for kind, keys in await journal(world, ada.user.id, since)
             if kind == ChangeKind.SUBMISSION_CHANGED]  # fmt: skip
    assert {key_ for keys in told_ for key_ in keys} == {key}
    ((hidden,),) = await rows(world, "SELECT id FROM submissions WHERE copy_of = :key", key=key)
    assert await told_platform(world) == [(hidden, "QUEUED"), (hidden, "SENT")]
    node = "query ($id: ID!) { node(id: $id) { id } }"
    assert await ada(node, id=global_ids.encode("Submission", hidden)) == {"node": None}
    with pytest.raises(NotFound):
        await submission_mutations.cancel_submissions(context(ada), [hidden])
    await examine(world)


async def test_a_copy_counts_against_no_limit_and_its_failure_is_not_told(
    root: Client, ada: Client, world: Environment
) -> None:
    await rule(root, "@example.org", ARCHIVE, "SENDER")
    async with (
        listening(Server({"archive": "550 5.1.1 No"})) as far,
        working(world, relay(far)),
    ):
        key = await send(ada, NamedAddress("carol@example.net"))
        await settled(world, key)

        async def over() -> bool:
            found = await rows(world, "SELECT state FROM submissions WHERE copy_of = :k", k=key)
            return found == [("FAILED",)]

        await until(over)
    assert await inbox(ada) == []
    page = (await ada(SUBMISSIONS))["viewer"]["user"]["submissions"]
    assert [one["state"] for one in page["nodes"]] == ["SENT"]
    assert await rows(world, "SELECT used FROM usages") == [(1,)]


async def test_who_takes_a_message_back_takes_its_copies_back(
    root: Client, ada: Client, world: Environment
) -> None:
    await rule(root, "@example.org", ARCHIVE, "SENDER")
    key = await send(ada, undo_window=timedelta(minutes=5))
    asked = "SELECT state, copy_of IS NULL FROM submissions"
    assert {row[0] for row in await rows(world, asked)} == {"HELD_FOR_UNDO"}
    await submission_mutations.cancel_submissions(context(ada), [key])
    assert {row[0] for row in await rows(world, asked)} == {"CANCELLED"}
    copy = await rows(world, "SELECT id FROM submissions WHERE copy_of = :key", key=key)
    told_ = [(copy[0][0], "HELD_FOR_UNDO"), (copy[0][0], "CANCELLED")]
    assert await told_platform(world) == told_
    states = await rows(world, "SELECT DISTINCT state, next_at FROM deliveries")
    assert states == [(DeliveryState.CANCELLED, None)]
    await examine(world)


async def test_mail_between_accounts_here_is_copied_once(
    root: Client, ada: Client, bob: Client, world: Environment
) -> None:
    await made(root, "second.example")
    eve = await make_client(world, root.http, "eve")
    await rule(root, "@example.org", ARCHIVE)
    await rule(root, "@example.org", ARCHIVE, "SENDER")
    await rule(root, "bob@example.org", eve.address)
    async with listening(Server()) as far, working(world, relay(far)):
        key = await send(ada, NamedAddress(bob.address), NamedAddress("carol@example.net"))
        await settled(world, key)

        async def there() -> bool:
            return len(await inbox(eve)) == 1 and await taken(far, 2)

        await until(there)
    assert await copied(world) == [(ARCHIVE, ada.address), (eve.address, ada.address)]
    assert len(await inbox(bob)) == 1
    assert sorted(to for mail in far.mails for to in mail.to) == [ARCHIVE, "carol@example.net"]


# who may


async def test_a_domain_admin_has_the_rules_of_the_domains_and_no_others(
    root: Client, ada: Client, world: Environment
) -> None:
    await made(root, "far.example")
    await done(root, ALIAS, alias="also.example", domain="example.org")
    theirs = await rule(root, "@far.example", "x@else.example")
    ours = await rule(root, "@example.org", ARCHIVE)
    admin = await make_domain_admin(world, root.http, "dora", [AdminPermission.BCC_MAPS])
    page = (await admin(RULES))["bccRules"]
    assert (page["totalCount"], [node["id"] for node in page["nodes"]]) == (1, [ours])
    assert await admin(NODE, id=theirs) == {"node": None}
    mine = await rule(admin, "ada@also.example", ARCHIVE, "SENDER")
    before = await rows(world, "SELECT * FROM bcc_rules")
    given = {"bccTo": ARCHIVE, "direction": "SENDER"}
    _, errors = await done(admin, RULE_CREATE, match="x@far.example", **given)
    assert told(errors) == ("NOT_FOUND", ["match"], None, "far.example")
    _, errors = await done(admin, RULE_UPDATE, ids=[mine], match="x@far.example")
    assert told(errors) == ("NOT_FOUND", ["match"], None, "far.example")
    for document, more in ((RULE_UPDATE, {"active": False}), (RULE_DELETE, {})):
        _, errors = await done(admin, document, ids=[mine, theirs], **more)
        assert told(errors)[:3] == ("NOT_FOUND", ["ids"], 1)
    assert await rows(world, "SELECT * FROM bcc_rules") == before
    for document, more in ((RULE_UPDATE, {"active": False}), (RULE_DELETE, {})):
        _, errors = await done(admin, document, ids=[mine, ours], **more)
        assert errors == []

    without = await make_domain_admin(world, root.http, "dan", [AdminPermission.ALIAS_DOMAINS])
    for client in (ada, without):
        assert (await client.raw(RULES))["errors"][0]["extensions"]["code"] == "FORBIDDEN"
        assert await client(NODE, id=theirs) == {"node": None}
        attempts: list[tuple[str, dict[str, Any]]] = [
            (RULE_CREATE, {"match": "@example.org", **given}),
            (RULE_UPDATE, {"ids": [theirs], "active": False}),
            (RULE_DELETE, {"ids": [theirs]}),
        ]
        for document, fields in attempts:
            _, errors = await done(client, document, **fields)
            assert [error["code"] for error in errors] == ["FORBIDDEN"]


async def test_a_domain_without_the_permission_shows_no_rule_by_its_id(
    root: Client, world: Environment
) -> None:
    admin = await make_domain_admin(world, root.http, "dan", [])
    key = await rule(root, "@example.org", ARCHIVE)
    assert await admin(NODE, id=key) == {"node": None}


async def test_changes_are_told_to_the_domain_and_a_domain_ends_with_its_rules(
    root: Client, ada: Client, world: Environment
) -> None:
    home = ada.user.domain_id
    assert home is not None
    since = {key: await reached(world, key) for key in (home, PLATFORM)}
    key = await rule(root, "@example.org", ARCHIVE)
    await done(root, RULE_UPDATE, ids=[key], active=False)
    await done(root, RULE_DELETE, ids=[key])
    for stream in (home, PLATFORM):
        told_ = [(ChangeKind.DOMAIN_CHANGED, [home])] * 3
        assert await journal(world, stream, since[stream]) == told_
    await made(root, "brief.example")
    await rule(root, "@brief.example", ARCHIVE)
    _, errors = await done(root, DELETE, domains=[{"name": "brief.example"}])
    assert errors == []
    assert await rows(world, "SELECT id FROM bcc_rules") == []


async def test_there_is_a_most(root: Client, ada: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resolvers.addresses.bcc_rules.MAX_RULES_PER_DOMAIN", 1)
    await rule(root, "@example.org", ARCHIVE)
    given = {"match": ada.address, "bccTo": ARCHIVE, "direction": "SENDER"}
    _, errors = await done(root, RULE_CREATE, **given)
    assert (errors[0]["code"], errors[0]["limit"], errors[0]["used"]) == ("LIMIT_REACHED", 1, 1)
