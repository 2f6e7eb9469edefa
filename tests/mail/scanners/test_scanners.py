"""Scanners that answer well or badly: what they find decides, and no mail is lost by them."""

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from pydantic import SecretStr
from sqlalchemy import select
from sqlmodel import col

from mail.delivery.pipeline import deliver, read_incoming
from mail.envelope.client import SmtpClientInfo as Remote
from mail.recipients.recipient_routes import accept_recipient
from mail.scanners.body_stream import PIECE_SIZE
from mail.scanners.circuit_breaker import MAX_FAILURES, OPEN_FOR, SCANS, breaker_of_scanner
from models.mailboxes.tables import SpecialUse
from models.runtime.environment import Environment
from models.submission.tables import Submission
from tests.conftest import Client, Clock, raw_message
from tests.support.accounts.key_value_operations import limit
from tests.support.accounts.openpgp_keys import pair_of, public_of
from tests.support.accounts.user_operations import set_user_columns
from tests.support.mail.forwarding_addresses import add_forwarding_address
from tests.support.mail.stored_messages import message_special_use
from tests.support.mail_servers.lmtp_client import Neighbour
from tests.support.mail_servers.lmtp_transactions import deliver_for_reply_codes
from tests.support.mail_servers.scanner_servers import (
    Rude,
    clamd_hears,
    clamd_says,
    endless,
    http,
    report,
    rude,
    says,
    silent,
)
from tests.support.operations.spam_operations import SPAM_VERDICT_QUERY
from tests.support.servers.webhook_receiver import Got, Receiver, receiving

pytestmark = pytest.mark.usefixtures("examined")
INBOX, JUNK = SpecialUse.INBOX, SpecialUse.JUNK


@pytest.fixture
async def filter_(world: Environment) -> AsyncIterator[Receiver]:
    """A server that answers as rspamd does."""
    async with receiving() as receiver:
        limit(world, rspamd=f"http://127.0.0.1:{receiver.port}")
        yield receiver


async def test_points_decide_for_each_recipient_by_his_thresholds(
    ada: Client, bob: Client, root: Client, filter_: Receiver, neighbour: Neighbour
) -> None:
    both = (ada.address, bob.address)
    changed = await root(
        """mutation ($input: SpamPolicySetInput!) { spamPolicySet(input: $input) {
        users { id } errors { message } } }""",
        input={"users": {"usernames": ["bob"]}, "junkScore": 4.0, "rejectScore": 9.0},
    )
    assert changed["spamPolicySet"]["errors"] == []
    for points, replies, places in (
        (3.9, ["250", "250"], [INBOX, INBOX]),
        (4.0, ["250", "250"], [INBOX, JUNK]),
        (7.9, ["250", "250"], [INBOX, JUNK]),
        (8.0, ["250", "250"], [JUNK, JUNK]),
        (9.0, ["250", "550"], [JUNK, None]),
        (14.9, ["250", "550"], [JUNK, None]),
        (15.0, ["550", "550"], [None, None]),
    ):
        filter_.answer = report(points)
        subject = f"Points {points}"
        told = await deliver_for_reply_codes(neighbour, raw_message(subject), *both)
        assert [each[:3] for each in told] == replies, points
        assert [
            await message_special_use(ada, subject),
            await message_special_use(bob, subject),
        ] == places, points
    assert told == ["550 5.7.1"] * 2
    assert len(filter_.got) == 7  # once for all recipients


async def test_who_wants_all_gets_all_and_a_rule_that_allows_is_heard(
    ada: Client, bob: Client, filter_: Receiver, neighbour: Neighbour
) -> None:
    filter_.answer = report(40.0)
    await set_user_columns(ada, spam_level=100)
    made = await bob(
        """mutation ($input: SenderRuleCreateInput!) { senderRuleCreate(input: $input) {
        errors { message } } }""",
        input={
            "scope": {"user": {"username": "bob"}},
            "action": "ALLOW",
            "patterns": ["example.net"],
        },
    )
    assert made["senderRuleCreate"]["errors"] == []
    told = await deliver_for_reply_codes(neighbour, raw_message("Much"), ada.address, bob.address)
    assert told == ["250 2.0.0"] * 2
    assert [await message_special_use(ada, "Much"), await message_special_use(bob, "Much")] == [
        INBOX,
        INBOX,
    ]


async def test_what_was_found_is_kept_with_the_message_and_for_its_owner_alone(
    ada: Client, bob: Client, filter_: Receiver, neighbour: Neighbour
) -> None:
    filter_.answer = report(2.5, action="no action")
    await deliver_for_reply_codes(neighbour, raw_message("Kept"), ada.address)
    listed = await ada("query { messages(first: 5) { nodes { id spam { score } } } }")
    ((node),) = listed["messages"]["nodes"]
    assert node["spam"] == {"score": 2.5}
    assert (await ada(SPAM_VERDICT_QUERY, id=node["id"]))["message"]["spam"] == {
        "score": 2.5,
        "requiredScore": 15.0,
        "action": "no action",
        "virus": None,
        "symbols": [{"name": "OFFER", "score": 2.5, "description": "An offer"}],
    }
    assert (await bob(SPAM_VERDICT_QUERY, id=node["id"]))["message"] is None


async def test_the_filter_is_told_what_is_known_of_the_way(
    ada: Client, bob: Client, filter_: Receiver
) -> None:
    world, raw = ada.world, raw_message("Way", body="x" * (PIECE_SIZE + 10))
    limit(world, rspamd_password=SecretStr("hush"))
    filter_.answer = report(0.0)
    mail = await read_incoming(world, raw, "carol@far.example")
    mail.client = Remote("192.0.2.7", "mx.far.example\r\nPassword: x", username="carol")
    taken = [
        await accept_recipient(world, each, mail.envelope_sender)
        for each in (ada.address, bob.address)
    ]
    await deliver(world, mail, taken)
    (got,) = filter_.got
    assert (got.path, got.raw) == ("/checkv2", raw)
    told = {name: got.headers[name] for name in ("from", "ip", "helo", "user", "password")}
    assert told == {
        "from": "carol@far.example",
        "ip": "192.0.2.7",
        "helo": "mx.far.examplePassword: x",
        "user": "carol",
        "password": "hush",
    }
    assert got.headers["rcpt"] == bob.address  # the last of both; the receiver keeps one


async def test_a_large_message_flows_from_its_file(
    ada: Client, filter_: Receiver, neighbour: Neighbour
) -> None:
    filter_.answer = report(0.0)
    raw = raw_message("Large", body="\r\n".join(["y" * 900] * 3000))
    assert await deliver_for_reply_codes(neighbour, raw, ada.address) == ["250 2.0.0"]
    assert filter_.got[0].raw == raw


async def test_what_is_too_large_is_not_judged(
    ada: Client, filter_: Receiver, neighbour: Neighbour
) -> None:
    limit(ada.world, rspamd_max=1000, rspamd_down="defer")
    filter_.answer = report(40.0)
    before = SCANS.value("rspamd", "too_large")
    assert await deliver_for_reply_codes(
        neighbour, raw_message("Big", body="x" * 900), ada.address
    ) == ["250 2.0.0"]
    assert not filter_.got
    assert SCANS.value("rspamd", "too_large") == before + 1


BAD: dict[str, Rude] = {
    "silent": silent,
    "hangs up": says(),
    "nonsense": says(b"\x00\xff\x80 nothing of the kind\r\n\r\n"),
    "another protocol": says(b"220 mx.example.org ESMTP\r\n"),
    "cut head": says(b"HTTP/1.1 200 OK\r\nContent-Le"),
    "cut body": says(b'HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"score": 1.0'),
    "error": says(http(b"{}", "500 Internal")),
    "denied": says(http(b'{"error":"Unauthorized"}', "401 Unauthorized")),
    "redirection": says(b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n"),
    "no JSON": says(http(b"<html>")),
    "a list": says(http(b"[1, 2]")),
    "no score": says(http(b'{"action": "reject"}')),
    "no number": says(http(b'{"score": "40", "action": "reject"}')),
    "NaN": says(http(b'{"score": NaN}')),
    "true": says(http(b'{"score": true}')),
    "endless head": endless(b"HTTP/1.1 200 OK\r\n", b"X-More: " + b"x" * 5000 + b"\r\n"),
    "endless line": endless(b"HTTP/1.1 200 OK\r\nX: ", b"x" * 5000),
    "endless body": endless(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 65536),
    "huge body": endless(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n", b" " * 65536),
    "endless hints": endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
}


@pytest.mark.parametrize("way", BAD.values(), ids=BAD)
async def test_a_filter_that_answers_badly_loses_no_mail(
    way: Rude, ada: Client, neighbour: Neighbour
) -> None:
    async with rude(way) as port:
        limit(ada.world, rspamd=f"http://127.0.0.1:{port}", rspamd_timeout=timedelta(seconds=1))
        before = SCANS.value("rspamd", "failed")
        assert await deliver_for_reply_codes(neighbour, raw_message("Taken"), ada.address) == [
            "250 2.0.0"
        ]
        assert await message_special_use(ada, "Taken") is INBOX
        limit(ada.world, rspamd_down="defer")
        assert await deliver_for_reply_codes(neighbour, raw_message("Later"), ada.address) == [
            "451 4.3.0"
        ]
        assert await message_special_use(ada, "Later") is None
        assert SCANS.value("rspamd", "failed") == before + 2


VIRUS_BAD: dict[str, Rude] = {
    "silent": silent,
    "hangs up": says(),
    "nonsense": clamd_says(b"\x00"),
    "no end": clamd_says(b"stream: OK"),
    "an error": clamd_says(b"stream: Can't allocate memory ERROR\0"),
    "another protocol": says(b"220 mx.example.org ESMTP\r\n"),
    "endless": endless(b"stream: ", b"x" * 65536),
}


@pytest.mark.parametrize("way", VIRUS_BAD.values(), ids=VIRUS_BAD)
async def test_a_virus_scanner_that_answers_badly_loses_no_mail(
    way: Rude, ada: Client, neighbour: Neighbour
) -> None:
    async with rude(way) as port:
        limit(ada.world, clamd=f"127.0.0.1:{port}", clamd_timeout=timedelta(seconds=1))
        before = SCANS.value("clamd", "failed")
        assert await deliver_for_reply_codes(neighbour, raw_message("Taken"), ada.address) == [
            "250 2.0.0"
        ]
        limit(ada.world, clamd_down="defer")
        assert await deliver_for_reply_codes(neighbour, raw_message("Later"), ada.address) == [
            "451 4.3.0"
        ]
        assert [await message_special_use(ada, each) for each in ("Taken", "Later")] == [
            INBOX,
            None,
        ]
        assert SCANS.value("clamd", "failed") == before + 2


@pytest.mark.parametrize(
    ("judge", "searcher"),
    [
        ("http://127.0.0.1:9", "unix:/nowhere/clamd.sock"),
        ("http://nowhere.invalid:11333", "127.0.0.1:99999"),
        ("no address", f"{'x' * 70}.example:3310"),
    ],
)
async def test_nobody_listens_and_mail_comes_all_the_same(
    judge: str, searcher: str, ada: Client, neighbour: Neighbour
) -> None:
    limit(ada.world, rspamd=judge, clamd=searcher)
    assert await deliver_for_reply_codes(neighbour, raw_message("Taken"), ada.address) == [
        "250 2.0.0"
    ]


async def test_one_that_fails_is_left_alone_for_a_while_and_told_of_once(
    ada: Client,
    neighbour: Neighbour,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked: list[int] = []
    good = False

    async def way(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(1)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(report(9.0) if good else b"no\r\n\r\n")
        await writer.drain()

    async def come(many: int) -> None:
        for nth in range(many):
            subject = f"Number {len(asked)} {nth} {clock.time}"
            assert await deliver_for_reply_codes(neighbour, raw_message(subject), ada.address) == [
                "250 2.0.0"
            ]

    async with rude(way) as port:
        limit(ada.world, rspamd=f"http://127.0.0.1:{port}")
        caplog.set_level(logging.INFO, "mail.scanners")
        await come(MAX_FAILURES + 5)
        assert len(asked) == MAX_FAILURES
        clock.tick(seconds=OPEN_FOR.total_seconds())
        await come(3)  # one goes through, and finds it as before
        assert len(asked) == MAX_FAILURES + 1
        clock.tick(seconds=OPEN_FOR.total_seconds())
        good = True
        await come(3)
        assert len(asked) == MAX_FAILURES + 4
    told = [record.getMessage() for record in caplog.records]
    assert told == ["a scanner does not answer", "a scanner answers again"]


async def test_both_are_asked_at_the_same_time(ada: Client, neighbour: Neighbour) -> None:
    met = asyncio.Barrier(2)

    async def judge(_got: Got, writer: asyncio.StreamWriter) -> None:
        await met.wait()
        writer.write(report(1.0))

    async def search(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await clamd_hears(reader)
        await met.wait()
        writer.write(b"stream: OK\0")
        await writer.drain()

    async with receiving() as receiver, rude(search) as port:
        receiver.answer = judge
        limit(
            ada.world, rspamd=f"http://127.0.0.1:{receiver.port}", clamd=f"127.0.0.1:{port}",
            rspamd_down="defer", clamd_down="defer",
        )  # fmt: skip
        async with asyncio.timeout(10):
            assert await deliver_for_reply_codes(neighbour, raw_message("Met"), ada.address) == [
                "250 2.0.0"
            ]


async def test_a_virus_is_refused_or_goes_to_junk(
    ada: Client, bob: Client, neighbour: Neighbour
) -> None:
    await set_user_columns(bob, spam_level=100)
    both = (ada.address, bob.address)
    async with rude(clamd_says(b"stream: Win.Test FOUND\0")) as port:
        limit(ada.world, clamd=f"127.0.0.1:{port}")
        assert (
            await deliver_for_reply_codes(neighbour, raw_message("Ill"), *both) == ["550 5.7.1"] * 2
        )
        limit(ada.world, virus="tag")
        assert (
            await deliver_for_reply_codes(neighbour, raw_message("Tagged"), *both)
            == ["250 2.0.0"] * 2
        )
    assert [await message_special_use(one, "Ill") for one in (ada, bob)] == [None, None]
    assert [await message_special_use(one, "Tagged") for one in (ada, bob)] == [JUNK, JUNK]
    listed = await ada("query { messages(first: 5) { nodes { spam { virus score } } } }")
    assert listed["messages"]["nodes"] == [{"spam": {"virus": "Win.Test", "score": 0.0}}]


async def test_a_scanner_that_takes_no_more_has_not_looked(
    ada: Client, neighbour: Neighbour
) -> None:
    async def way(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(100)
        writer.write(b"INSTREAM size limit exceeded. ERROR\0")
        await writer.drain()

    async with rude(way) as port:
        limit(ada.world, clamd=f"127.0.0.1:{port}", clamd_down="defer")
        raw = raw_message("Much", body="\r\n".join(["y" * 900] * 8000))
        for _ in range(MAX_FAILURES + 1):  # and it stays asked
            before = SCANS.value("clamd", "too_large")
            assert await deliver_for_reply_codes(neighbour, raw, ada.address) == ["250 2.0.0"]
            assert SCANS.value("clamd", "too_large") == before + 1
        assert (
            breaker_of_scanner(ada.world.database, "clamd", f"127.0.0.1:{port}").open_until is None
        )


async def test_what_is_refused_is_not_sent_on_either(
    ada: Client, filter_: Receiver, neighbour: Neighbour
) -> None:
    world = ada.world
    await add_forwarding_address(world, "list", ada.address)
    await add_forwarding_address(world, "away", "someone@far.example")
    to = ("list@example.org", "away@example.org")
    filter_.answer = report(15.0)
    assert await deliver_for_reply_codes(neighbour, raw_message("Bad"), *to) == ["550 5.7.1"] * 2
    assert not await world.database.read(select(col(Submission.id)))
    filter_.answer = report(14.0)
    assert (
        await deliver_for_reply_codes(neighbour, raw_message("Doubtful"), *to) == ["250 2.0.0"] * 2
    )
    assert await message_special_use(ada, "Doubtful") is JUNK
    assert len(await world.database.read(select(col(Submission.id)))) == 1


async def test_what_is_encrypted_on_arrival_has_its_report(
    ada: Client, filter_: Receiver, neighbour: Neighbour
) -> None:
    filter_.answer = report(3.0)
    await set_user_columns(
        ada,
        encrypt_messages=True,
        pub_key=public_of(pair_of("Ada <ada@example.org>", seconds=400_000_000)),
    )
    assert await deliver_for_reply_codes(neighbour, raw_message("Sealed"), ada.address) == [
        "250 2.0.0"
    ]
    listed = await ada("query { messages(first: 5) { nodes { encrypted spam { score } } } }")
    assert listed["messages"]["nodes"] == [{"encrypted": True, "spam": {"score": 3.0}}]


async def test_without_scanners_a_delivery_costs_no_statement_more(
    ada: Client, filter_: Receiver, neighbour: Neighbour, statements: list[str]
) -> None:
    filter_.answer = report(1.0)

    async def cost(subject: str) -> int:
        del statements[:]
        await deliver_for_reply_codes(neighbour, raw_message(subject), ada.address)
        return len(statements)

    with_it = await cost("With")
    limit(ada.world, rspamd="")
    assert await cost("Without") == with_it
