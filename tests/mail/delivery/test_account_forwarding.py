"""Accounts that forward what comes for them: to real servers on loopback."""

import asyncio
from dataclasses import replace

import pytest
from sqlalchemy import select
from sqlmodel import col

from mail.addresses import srs
from mail.smtp.lmtp import LmtpListener
from models.addresses.tables import Address, AddressKind
from models.queue.tables import QueueEntry
from models.runtime.environment import CommittedOptions, Environment
from models.submission.tables import Submission
from tests.conftest import Client, Clock, raw_message
from tests.support.accounts.openpgp_keys import key_of
from tests.support.accounts.quota_accounts import told
from tests.support.accounts.user_operations import change, create, row_of
from tests.support.mail.forwarding_addresses import (
    FORWARD_TARGET,
    add_forwarding_address,
    set_account_forwarding,
)
from tests.support.mail_servers.lmtp_client import Neighbour, connect
from tests.support.mail_servers.lmtp_transactions import ACCEPTED_REPLIES, send_transaction
from tests.support.mail_servers.queue_worker import inbox, relay, until, wait_for_messages, working
from tests.support.mail_servers.smtp_and_dns_servers import Server, listening
from tests.support.operations.domain_operations import RENAME, done
from tests.support.operations.rewrite_and_bcc_operations import REWRITE_CREATE
from tests.support.stores.counter_check import rows
from tests.support.stores.row_counts import row_count

pytestmark = pytest.mark.usefixtures("examined")


async def queued(world: Environment) -> list[str]:
    asked = QueueEntry.__table__.select().order_by(col(QueueEntry.id))  # type: ignore[attr-defined]
    return [row.recipient for row in await world.database.read(asked)]


async def test_it_is_stored_and_sent_on(ada: Client, neighbour: Neighbour) -> None:
    await set_account_forwarding(ada, FORWARD_TARGET)
    raw = raw_message("Onward")
    async with listening(Server()) as there, working(ada.world, relay(there)):
        assert await send_transaction(neighbour, raw, ada.address) == ACCEPTED_REPLIES
        await wait_for_messages(there)
        assert await send_transaction(neighbour, raw, ada.address) == ACCEPTED_REPLIES  # a repeat
    (mail,) = there.mails
    assert (mail.to, mail.raw) == ([FORWARD_TARGET], b"Delivered-To: ada@example.org\r\n" + raw)
    local, _, domain = mail.sender.rpartition("@")
    assert (srs.original_sender(ada.world, local), domain) == ("carol@far.example", "example.org")
    assert [one.subject for one in await inbox(ada)] == ["Onward"]
    found = await ada("{ user { limits { forwards { used allowed source } } } }")
    assert found["user"]["limits"]["forwards"] == {
        "used": 1, "allowed": 2000, "source": "PLATFORM",
    }  # fmt: skip


async def test_an_account_here_gets_it_by_the_queue_and_pairs_stop(
    ada: Client, bob: Client, neighbour: Neighbour
) -> None:
    await set_account_forwarding(ada, bob.address)
    await set_account_forwarding(bob, ada.address)
    async with listening(Server()) as there, working(ada.world, relay(there)):
        assert (
            await send_transaction(neighbour, raw_message("Pair"), ada.address) == ACCEPTED_REPLIES
        )

        async def came() -> bool:
            return bool(await inbox(bob))

        await until(came)

        async def idle() -> bool:
            left = await rows(ada.world, "SELECT id FROM deliveries WHERE state = 'PENDING'")
            return not left

        await until(idle)
    assert [len(await inbox(each)) for each in (ada, bob)] == [1, 1]
    assert await queued(ada.world) == [bob.address]


async def test_over_the_limit_it_is_stored_and_the_owner_hears_once(
    ada: Client, root: Client, neighbour: Neighbour, clock: Clock
) -> None:
    await set_account_forwarding(ada, FORWARD_TARGET, "eve@far.example")
    assert (await change(root, ada, forwards=3))[1] == []
    for nth in range(5):
        assert (
            await send_transaction(neighbour, raw_message(f"n{nth}"), ada.address)
            == ACCEPTED_REPLIES
        )
    assert len(await inbox(ada)) == 5
    assert len(await queued(ada.world)) == 4
    assert await told(ada) == [
        ("FORWARDS", "FULL", 4, 3, False),
        ("FORWARDS", "FULL", 4, 3, True),
    ]
    clock.tick(days=1, seconds=1)
    assert (
        await send_transaction(neighbour, raw_message("next day"), ada.address) == ACCEPTED_REPLIES
    )
    assert len(await queued(ada.world)) == 6
    ((used,),) = await rows(ada.world, "SELECT used FROM usages WHERE kind = 'FORWARDS'")
    assert used == 2


async def test_two_at_once_are_both_counted(
    ada: Client, listener: LmtpListener, neighbour: Neighbour
) -> None:
    await set_account_forwarding(ada, FORWARD_TARGET)
    other = await connect(listener.port)

    await asyncio.gather(
        send_transaction(neighbour, raw_message("a"), ada.address),
        send_transaction(other, raw_message("b"), ada.address),
    )
    await other.close()
    ((used,),) = await rows(ada.world, "SELECT used FROM usages WHERE kind = 'FORWARDS'")
    assert used == 2


@pytest.mark.parametrize("flag", ["X-Spam-Flag: YES", "X-Spam-Score: 9.9"])
async def test_spam_is_not_sent_on(ada: Client, neighbour: Neighbour, flag: str) -> None:
    world = ada.world
    await set_account_forwarding(ada, FORWARD_TARGET)
    await add_forwarding_address(world, "list", "eve@far.example")
    await add_forwarding_address(world, "both", "eve@far.example", ada.address)
    raw = flag.encode() + b"\r\n" + raw_message("Spam")
    rcpt, said = await send_transaction(
        neighbour, raw, ada.address, "list@example.org", "both@example.org"
    )
    assert (rcpt, said) == (["250 2.1.5"] * 3, ["250 2.0.0", "554 5.7.1", "250 2.0.0"])
    assert await queued(world) == []
    world.apply_options(CommittedOptions(replace(world.options, spam_forward_max=101), 1))
    assert (await change(ada, spamLevel=100))[1] == []
    assert (await send_transaction(neighbour, raw, ada.address, "list@example.org"))[1] == [
        "250 2.0.0"
    ] * 2
    assert sorted(await queued(world)) == [FORWARD_TARGET, "eve@far.example"]


async def test_a_rule_of_the_account_holds_it_too(ada: Client, neighbour: Neighbour) -> None:
    await set_account_forwarding(ada, FORWARD_TARGET)
    document = """mutation ($input: SenderRuleCreateInput!) {
        senderRuleCreate(input: $input) { errors { code } } }"""
    scope = {"user": {"username": "ada"}}
    given = {"scope": scope, "patterns": ["carol@far.example"], "action": "BLOCK"}
    assert (await ada(document, input=given))["senderRuleCreate"]["errors"] == []
    assert (
        await send_transaction(neighbour, raw_message("Blocked"), ada.address) == ACCEPTED_REPLIES
    )
    assert await queued(ada.world) == []


async def test_relays_keep_their_passwords_to_themselves(ada: Client, neighbour: Neighbour) -> None:
    whole = "smtp://me:s3cret@relay.example.com"
    shown = "smtp://me:***@relay.example.com"
    await set_account_forwarding(ada, whole, FORWARD_TARGET)
    found = await ada("{ user { targets } }")
    assert found["user"]["targets"] == [shown, FORWARD_TARGET]
    await set_account_forwarding(ada, FORWARD_TARGET, shown)  # as it was
    assert await send_transaction(neighbour, raw_message("Via"), ada.address) == ACCEPTED_REPLIES
    ((relays,),) = await rows(ada.world, "SELECT relays FROM users WHERE relays IS NOT NULL")
    assert "s3cret" not in relays
    ((secret,),) = await rows(ada.world, "SELECT secret FROM deliveries WHERE via IS NOT NULL")
    assert secret
    assert "s3cret" not in secret
    log = await rows(ada.world, "SELECT action, count, detail FROM auth_events")
    ((action, many, _),) = log
    assert (action, many) == ("forwarding change", 2)
    for name in ("auth_events", "changes", "admin_log"):
        assert "s3cret" not in str(await rows(ada.world, f"SELECT * FROM {name}")), name  # noqa: S608
    _, (error,) = await change(ada, targets=["smtp://you:***@relay.example.com"])
    assert (error["path"], error["constraint"], error["index"]) == (["set", "targets"], "secret", 0)


@pytest.mark.parametrize(
    ("target", "rule"),
    [
        ("ada@example.org", "self"),
        ("A.D.A+x@example.org", "self"),
        ("second@example.org", "self"),
        ("nobody", "address"),
        ("http://127.0.0.1/", "private"),
        ("ftp://x.example", "url"),
        ("x" * 2049, "length"),
    ],
)
async def test_what_is_no_target_is_refused(
    ada: Client, root: Client, target: str, rule: str
) -> None:
    document = """mutation ($input: AddressCreateInput!) {
        addressCreate(input: $input) { errors { code } } }"""
    given = {"address": "second@example.org", "user": {"username": "ada"}}
    assert (await root(document, input=given))["addressCreate"]["errors"] == []
    users, (error,) = await change(ada, targets=[FORWARD_TARGET, target], name="X")
    assert (users, error["path"], error["index"]) == ([], ["set", "targets"], 1)
    assert error["constraint"] == rule
    found = await ada("{ user { targets name } }")
    assert found["user"] == {"targets": [], "name": None}


async def test_an_account_is_made_with_targets(root: Client) -> None:
    given = {
        "username": "eve",
        "targets": [FORWARD_TARGET],
        "forwards": 7,
        "address": "eve@example.org",
    }
    user, errors = await create(root, **given)
    assert errors == []
    found = await root(
        '{ user(by: {username: "eve"}) { targets limits { forwards { allowed } } } }'
    )
    assert found["user"] == {"targets": [FORWARD_TARGET], "limits": {"forwards": {"allowed": 7}}}
    own = {**given, "username": "eva", "address": "eva@example.org", "targets": ["Eva@example.org"]}
    user, (error,) = await create(root, **own)
    assert (user, error["constraint"], error["path"]) == (None, "self", ["targets"])


async def test_what_is_forwarded_is_encrypted_where_that_is_asked_for(
    ada: Client, neighbour: Neighbour
) -> None:
    _, (error,) = await change(ada, encryptForwarded=True)
    assert (error["path"], error["constraint"]) == (["set", "encryptForwarded"], "required")
    key = key_of("Ada <ada@example.org>")
    await set_account_forwarding(ada, FORWARD_TARGET, pubKey=key, encryptForwarded=True)
    _, (error,) = await change(ada, pubKey=None)
    assert (error["code"], error["path"]) == ("CONFLICT", ["set", "pubKey"])
    async with listening(Server()) as there, working(ada.world, relay(there)):
        assert (
            await send_transaction(neighbour, raw_message("Sealed", body="hidden"), ada.address)
            == ACCEPTED_REPLIES
        )
        await wait_for_messages(there)
    (mail,) = there.mails
    assert b"hidden" not in mail.raw
    assert b"multipart/encrypted" in mail.raw
    (kept,) = await inbox(ada)
    assert kept.preview == "hidden"


async def test_only_those_in_charge_set_targets_and_find_them(
    ada: Client, bob: Client, root: Client
) -> None:
    users, (error,) = await change(bob, ada, targets=[FORWARD_TARGET])
    assert (users, error["code"]) == ([], "NOT_FOUND")
    await set_account_forwarding(ada, FORWARD_TARGET, "x%_y@far.example")
    asked = "query ($f: String!) { users(filter: {forward: $f}) { totalCount nodes { username } } }"
    for part, names in (
        ("FAR.ex", ["ada"]),
        ("%_", ["ada"]),
        ("z", []),
        ("dave@far.example", ["ada"]),
    ):
        found = (await root(asked, f=part))["users"]
        assert [one["username"] for one in found["nodes"]] == names, part
        assert found["totalCount"] == len(names)
    assert await row_count(ada.world, Submission) == 0


async def test_a_rewrite_to_an_address_elsewhere_is_sent_on(
    ada: Client, root: Client, neighbour: Neighbour
) -> None:
    for of, to in (("info@example.org", "in@far.example"), ("@theirs.example", "@far.example")):
        answer, errors = await done(root, REWRITE_CREATE, **{"from": of, "to": to})
        assert errors == []
        assert answer["recipientRewrite"]["to"] == to
    async with listening(Server()) as there, working(ada.world, relay(there)):
        sent = raw_message("Away")
        assert (await send_transaction(neighbour, sent, "info@example.org", "Eve@theirs.example"))[
            1
        ] == [
            "250 2.0.0",
            "250 2.0.0",
        ]
        await wait_for_messages(there, 2)
        mails = {mail.to[0]: mail for mail in there.mails}
        assert sorted(mails) == ["Eve@far.example", "in@far.example"]
        for mail in mails.values():
            assert mail.sender.startswith("SRS0=")
        back = mails["Eve@far.example"].sender
        assert back.endswith("@theirs.example")
        assert (
            await send_transaction(neighbour, raw_message("Bounce"), back, sender="")
            == ACCEPTED_REPLIES
        )
        await wait_for_messages(there, 3)
    assert there.mails[-1].to == ["carol@far.example"]
    steps = await root("""{ addressTrace(address: "info@example.org") { stage output } }""")
    assert steps["addressTrace"] == [{"stage": "RECIPIENT_REWRITE", "output": ["in@far.example"]}]


async def test_what_leads_to_a_domain_follows_its_new_name(ada: Client, root: Client) -> None:
    world = ada.world
    await add_forwarding_address(
        world, "list", "x@old.example", "x@old.example.net", "smtp://old.example"
    )
    _, errors = await create(root, username="eve", address="eve@old.example")
    assert errors == []
    senders = ["old.example", "*@old.example", "me@old.example", "news*", "very-old.example"]
    targets = ["y@old.example", "y@new.example", "https://old.example/"]
    assert (await change(root, ada, targets=targets, fromWhitelist=senders))[1] == []
    _, errors = await done(root, RENAME, oldDomain="old.example", newDomain="new.example")
    assert errors == []
    asked = select(col(Address.targets)).where(col(Address.kind) == AddressKind.FORWARD)
    ((found,),) = await world.database.read(asked)
    assert found == [
        "x@new.example",
        "x@old.example.net",
        "smtp://old.example",
    ]
    row = await row_of(world, ada)
    assert row.targets == ["y@new.example", "https://old.example/"]
    assert row.from_whitelist == [
        "new.example",
        "*@new.example",
        "me@new.example",
        "news*",
        "very-old.example",
    ]
