"""What strangers write adds nothing to what we write: no field, no line, no recipient, no reply."""

import logging
import re
from collections.abc import AsyncIterator
from email.utils import format_datetime
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlmodel import col

from graph.types import global_ids
from mail.envelope.delivery_jobs import DeliveryJob, DeliveryResult, JobRecipient
from mail.queue.dsn_writer import report_from_results
from mail.sieve import edit_header_block
from mail.sieve.actions import AddHeader
from mail.smtp.mx_server import MxListener, MxRules
from mail.smtp.smtp_server import SmtpListenerConfig
from models.messages.tables import Message
from models.queue.tables import DeliveryState, QueueEntry
from models.runtime.environment import Environment
from tests.conftest import Client, Clock
from tests.support.accounts.user_operations import run
from tests.support.mail.forwarding_addresses import add_forwarding_address
from tests.support.mail_servers.lmtp_client import Neighbour
from tests.support.mail_servers.queue_worker import bodies
from tests.support.mail_servers.smtp_client import connect
from tests.support.operations.sieve_operations import put

pytestmark = pytest.mark.usefixtures("examined")

SOURCE = "query ($id: ID!) { node(id: $id) { ... on Message { sourceUrl } } }"
FIELD = re.compile(rb"([!-9;-~]+):(?: [^\r\n]*)?")
EVIL = b"Bcc: mallory@example.net"
# Of an encoded word, and raw; each tries to go on with a field of its own
HARMFUL = [
    b"=?utf-8?Q?a=0D=0ABcc:_mallory@example.net?=",
    b"=?utf-8?Q?a=0ABcc:_mallory@example.net?=",
    b"=?utf-8?Q?a=0DBcc:_mallory@example.net?=",
    b"=?utf-8?B?YQ0KQmNjOiBtYWxsb3J5QGV4YW1wbGUubmV0DQoNCkJvZHk=?=",
    b"=?utf-8?Q?a=E2=80=A8Bcc:_mallory@example.net?=",
    b"=?utf-8?Q?a=C2=85Bcc:_mallory@example.net?=",
    b"=?utf-8?Q?a=0B=0C=1C=1D=1E=1F=00Bcc:_mallory@example.net?=",
    b"=?utf-7?Q?a+AA0ACg-Bcc:_mallory@example.net?=",
    b"=?utf-16le?B?DQAKAEIAYwBjADoA?= x",
    b"a\r" + EVIL,
    b"a\n" + EVIL,
    b"a\r\n\x0b" + EVIL,
    b"a\x00\r\n " + EVIL,
    "a\u2028".encode() + EVIL,
    b"a\xc2\x85" + EVIL,
    b"a\x85" + EVIL,
    b'"' + b"a" * 1_200 + b'"\r\n\t' + EVIL,
    b"=?utf-8?Q?" + b"=0D=0A" * 300 + b"?=",
]
SENDERS = [
    '"a\tb"@example.net',
    '"a b"@example.net',
    '"a;dmarc=pass"@example.net',
    '"a>\\"b"@example.net',
    '"a\u2028Bcc: b"@example.net',
    '"a\x85Bcc: b"@example.net',
    "a,mallory@example.net",
    "a(comment)@example.net",
    "a@example.net(dmarc=pass)",
    "a@example.net;dmarc=pass",
    "a@;spf=pass",
    "a%b@example.net",
    "a!b@example.net",
    "a@b@example.net",
    "a@[127.0.0.1]",
    "a@[IPv6:::1]",
    "@",
    "a",
    "a@",
    "@example.net",
    '"@"@"@"',
    "k\u00e4the@b\u00fccher.example",
    "\u202ea@example.net",
    "a@xn--999999999",
    "a@" + "b" * 100 + ".example",
    "a" * 1_500 + "@example.net",
    "a@exa_mple.net",
    "a@example..net",
    "srs0=x=y=z=w@example.org",
    "=?utf-8?Q?=0D=0ABcc:?=@example.net",
]


@pytest.fixture
async def stranger(world: Environment, tmp_path: Path) -> AsyncIterator[Neighbour]:
    listener = MxListener(
        world,
        tmp_path / "spool",
        SmtpListenerConfig(),
        MxRules(network_hourly=0, network_hourly_per_account=0),
    )
    await listener.start(host="127.0.0.1", port=0)
    neighbour = await connect(listener.port)
    yield neighbour
    await neighbour.close()
    await listener.close(1)


def named(raw: bytes) -> list[str]:
    """The names of the fields of a message, each line of which is one, or goes on with one."""
    head = raw.partition(b"\r\n\r\n")[0]
    found = []
    for line in head.split(b"\r\n"):
        assert not re.search(rb"[\r\n\0]", line), line
        if line[:1] not in {b" ", b"\t"}:
            field = FIELD.fullmatch(line)
            assert field, line
            found.append(field[1].decode().lower())
    return found


def letter(value: bytes, nth: int) -> bytes:
    """One with this wherever it may be told from, and that a person could have written."""
    return (
        b"From: " + value + b" <carol%d@example.net>\r\nTo: ada@example.org, bob@example.org\r\n"
        b"Subject: " + value + b"\r\nMessage-ID: <" + value + b"@x>\r\n"
        b"In-Reply-To: <" + value + b">\r\nReferences: <" + value + b">\r\n"
        b"Reply-To: " + value + b" <carol%d@example.net>\r\n\r\nHi.\r\n"
    ) % (nth, nth)


async def hand(stranger: Neighbour, raw: bytes, to: str, sender: str) -> str:
    await stranger.begin(to, sender=sender, more=" SMTPUTF8")
    stranger.send(raw + b".\r\n")
    reply = await stranger.hear()
    assert await stranger.say("NOOP") == "250 2.0.0 Fine"
    return reply


async def recipients(world: Environment) -> set[str]:
    found = await world.database.read(select(col(QueueEntry.recipient)))
    return {row.recipient for row in found}


async def stored(client: Client) -> list[bytes]:
    """The messages of an account."""
    mine = select(col(Message.id)).where(col(Message.user_id) == client.user.id)
    found = []
    for row in await client.world.database.read(mine.order_by(col(Message.id))):
        url = (await client(SOURCE, id=global_ids.encode("Message", row.id)))["node"]["sourceUrl"]
        found.append((await client.http.get(url)).content)
    return found


ANSWER = {
    "from", "to", "subject", "date", "message-id", "in-reply-to", "references", "auto-submitted",
    "x-auto-response-suppress", "mime-version", "content-type", "content-transfer-encoding",
    "precedence", "importance", "received",
}  # fmt: skip


async def test_an_answer_has_no_field_of_a_stranger(
    ada: Client, world: Environment, stranger: Neighbour
) -> None:
    given = {"enabled": True, "text": "I am away.", "name": "Ada"}
    assert (await run(ada, "autoreplySet", "autoreplies { id }", set=given))["errors"] == []
    for nth, value in enumerate(HARMFUL):
        reply = await hand(stranger, letter(value, nth), ada.address, f"carol{nth}@example.net")
        assert reply.startswith("250 2.0.0"), value
    answers = await bodies(world)
    assert len(answers) > len(HARMFUL) // 2  # some are no letters of people
    for raw in answers:
        names = named(raw)
        assert len(names) == len(set(names))
        assert set(names) <= ANSWER
    assert {each.partition("@")[2] for each in await recipients(world)} == {"example.net"}
    assert "mallory@example.net" not in await recipients(world)


SCRIPT = """require ["variables", "vacation", "editheader", "enotify", "copy", "envelope"];
if header :matches "subject" "*" { set "s" "${1}"; }
addheader "X-Subject" "${s}";
addheader :last "X-Last" "${s}";
notify :message "${s}" :from "bob@example.org" "mailto:dave@example.com";
redirect :copy "dave@example.com";
vacation :subject "${s}" :from "${s} <bob@example.org>" "${s}";
"""


async def test_a_script_adds_what_it_says_and_no_more(
    bob: Client, world: Environment, stranger: Neighbour
) -> None:
    await put(bob, SCRIPT)
    for nth, value in enumerate(HARMFUL):
        reply = await hand(stranger, letter(value, nth), bob.address, f"carol{nth}@example.net")
        assert reply.startswith("250 2.0.0"), value
    written = await bodies(world)
    assert len(written) > 2 * len(HARMFUL)  # sent on, told of, and most of them answered
    for raw in written:
        if raw.startswith(b"Delivered-To: "):
            continue
        names = named(raw)
        assert len(names) == len(set(names))
        assert set(names) <= ANSWER
    reached = await recipients(world)
    assert "mallory@example.net" not in reached
    assert {each for each in reached if not each.startswith("carol")} == {"dave@example.com"}
    for raw, value in zip(await stored(bob), HARMFUL, strict=True):
        head, came, below = raw.partition(b"\r\nFrom: " + value)
        assert came
        first = next(line for line in head.split(b"\r\n") if line.startswith(b"X-Subject:"))
        assert "bcc" not in named(head)
        assert len(first) < 1_000
        assert named(head + b"\r\n\r\n").count("x-subject") == 1
        assert below.count(b"\r\nX-Last:") == 1


@pytest.mark.parametrize("header", [b"A: b\r\n", b"A: b", b"A: b\n", b"A: b\r", b"A: b\r\r\n"])
def test_no_field_is_put_within_the_end_of_a_line(header: bytes) -> None:
    made = edit_header_block(header, [AddHeader("C", "d", at_end=True)])
    assert made == (header if header[-1:] < b" " else header + b"\r\n") + b"C: d\r\n\r\n"


async def test_words_of_a_refusal_are_one_reply(
    bob: Client, world: Environment, stranger: Neighbour
) -> None:
    await put(
        bob,
        'require ["variables", "reject"]; if header :matches "subject" "*" { reject "${1}"; }',
    )
    for nth, value in enumerate(HARMFUL):
        reply = await hand(stranger, letter(value, nth), bob.address, f"carol{nth}@example.net")
        assert re.fullmatch(r"550 5\.7\.1 [ -~]{1,400}", reply), value
    assert await bodies(world) == []


async def test_senders_add_nothing_to_the_fields_on_top(
    ada: Client, world: Environment, stranger: Neighbour, caplog: pytest.LogCaptureFixture
) -> None:
    await add_forwarding_address(world, "list", "dave@example.com")
    given = {"enabled": True, "text": "I am away."}
    assert (await run(ada, "autoreplySet", "autoreplies { id }", set=given))["errors"] == []
    taken = []
    for nth, sender in enumerate(SENDERS):
        said = await stranger.say(f"MAIL FROM:<{sender}> SMTPUTF8")
        if not said.startswith("250"):
            assert re.match(r"5\d\d 5\.\d\.\d ", said), sender
            continue
        for to in (ada.address, "list@example.org"):
            assert (await stranger.say(f"RCPT TO:<{to}>")).startswith("250"), sender
        assert (await stranger.say("DATA")).startswith("354")
        stranger.send(b"From: carol%d@example.net\r\nTo: ada@example.org\r\n\r\nHi\r\n.\r\n" % nth)
        assert (await stranger.hear()).startswith("250 2.0.0"), sender
        taken.append(sender)
    assert len(taken) > len(SENDERS) // 2
    for raw, sender in zip(await stored(ada), taken, strict=True):
        names = named(raw)
        assert names[:4] == ["return-path", "delivered-to", "x-original-rcpt",
                             "authentication-results"]  # fmt: skip
        assert names[4:] == ["received", "from", "to"]
        results = raw.partition(b"Authentication-Results: ")[2].partition(b"\r\nReceived:")[0]
        quoted = re.sub(rb'"(?:[^"\\]|\\.)*"', b"", results)
        methods = re.findall(rb";\s*([a-z]+)=", re.sub(rb"\([^()]*\)", b"", quoted))
        assert methods == [b"spf", b"dkim", b"dmarc", b"arc"], sender
        assert b"=pass" not in quoted
    for raw in await bodies(world):
        assert set(named(raw)) <= {*ANSWER, "delivered-to"} | {"authentication-results"}
    assert not [each for each in caplog.records if each.levelno >= logging.ERROR]
    shown = [each.getMessage() for each in caplog.records]
    assert not [line for line in shown if "\n" in line or "\r" in line]


async def test_a_greeting_adds_nothing_to_received(ada: Client, stranger: Neighbour) -> None:
    for name in (
        "a (b) by c", "a)\tby b", "a;b", "a\x0bb", "a\u2028b", "(a", "a,b", '"a b"', "<a>", "a\\b",
        "a\x85b", "b\u00fccher.example", "[127.0.0.1] (x", "a" * 256, "a\r", "=?utf-8?Q?a?=",
    ):  # fmt: skip
        assert (await stranger.say(f"EHLO {name}"))[:3] in {"500", "501"}, name
    assert (await stranger.say("EHLO [127.0.0.1]")).startswith("250")
    assert (await hand(stranger, b"\r\nHi\r\n", ada.address, "")).startswith("250")
    (raw,) = await stored(ada)
    assert b"Received: from [127.0.0.1] ([127.0.0.1])\r\n\tby mx.example.org with" in raw


@pytest.mark.parametrize("sender", SENDERS)
async def test_a_report_has_no_field_of_anybody_else(
    world: Environment, clock: Clock, sender: str
) -> None:
    said = "5.1.1 no\r\nBcc: mallory@example.net\r\n\r\n--x\r\n\x00\u2028\x85 \ud800"
    to = JobRecipient(1, "dave\u2028x@example.com", 1, clock())
    result = DeliveryResult(DeliveryState.BOUNCED, 550, said, "mx.example.com")
    job = DeliveryJob(1, 1, "q", 1, 1, 1, sender, "example.com", clock(), [to])
    for value in HARMFUL:
        raw = report_from_results(world, job, {1: result}, letter(value, 1))
        names = named(raw)
        assert len(names) == len(set(names))
        assert set(names) <= ANSWER
        (_, status) = re.split(rb"Content-Type: message/(?:global-)?delivery-status", raw)
        block = status.partition(b"\r\n\r\n")[2].partition(b"\r\n\r\n--report")[0]
        assert [named(each) for each in block.split(b"\r\n\r\n")] == [
            ["reporting-mta", "x-queue-id", "arrival-date"],
            ["final-recipient", "action", "status", "remote-mta", "diagnostic-code",
             "last-attempt-date", "final-log-id"],
        ]  # fmt: skip
        assert format_datetime(clock()).encode() in block
