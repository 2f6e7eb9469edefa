"""Values from a sender add no header field, line, recipient or reply to our output."""

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
from tests.conftest import GraphQLClient, ManualClock
from tests.support.accounts.user_operations import execute_mutation
from tests.support.case_loop import each_case
from tests.support.mail.forwarding_addresses import add_forwarding_address
from tests.support.mail_servers.lmtp_client import SmtpTestClient
from tests.support.mail_servers.queue_worker import load_queued_messages
from tests.support.mail_servers.smtp_client import connect_smtp
from tests.support.operations.sieve_operations import put_sieve_script

pytestmark = pytest.mark.usefixtures("verify_consistency")

SOURCE_URL_QUERY = "query ($id: ID!) { node(id: $id) { ... on Message { sourceUrl } } }"
HEADER_FIELD = re.compile(rb"([!-9;-~]+):(?: [^\r\n]*)?")
INJECTED_FIELD = b"Bcc: mallory@example.net"
# Encoded words and raw bytes. Most values try to begin a Bcc field.
HOSTILE_VALUES = [
    b"=?utf-8?Q?a=0D=0ABcc:_mallory@example.net?=",
    b"=?utf-8?Q?a=0ABcc:_mallory@example.net?=",
    b"=?utf-8?Q?a=0DBcc:_mallory@example.net?=",
    b"=?utf-8?B?YQ0KQmNjOiBtYWxsb3J5QGV4YW1wbGUubmV0DQoNCkJvZHk=?=",
    b"=?utf-8?Q?a=E2=80=A8Bcc:_mallory@example.net?=",
    b"=?utf-8?Q?a=C2=85Bcc:_mallory@example.net?=",
    b"=?utf-8?Q?a=0B=0C=1C=1D=1E=1F=00Bcc:_mallory@example.net?=",
    b"=?utf-7?Q?a+AA0ACg-Bcc:_mallory@example.net?=",
    b"=?utf-16le?B?DQAKAEIAYwBjADoA?= x",
    b"a\r" + INJECTED_FIELD,
    b"a\n" + INJECTED_FIELD,
    b"a\r\n\x0b" + INJECTED_FIELD,
    b"a\x00\r\n " + INJECTED_FIELD,
    "a\u2028".encode() + INJECTED_FIELD,
    b"a\xc2\x85" + INJECTED_FIELD,
    b"a\x85" + INJECTED_FIELD,
    b'"' + b"a" * 1_200 + b'"\r\n\t' + INJECTED_FIELD,
    b"=?utf-8?Q?" + b"=0D=0A" * 300 + b"?=",
]
HOSTILE_SENDERS = [
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
async def mx_client(environment: Environment, tmp_path: Path) -> AsyncIterator[SmtpTestClient]:
    listener = MxListener(
        environment,
        tmp_path / "spool",
        SmtpListenerConfig(),
        MxRules(network_hourly=0, network_hourly_per_account=0),
    )
    await listener.start(host="127.0.0.1", port=0)
    client = await connect_smtp(listener.port)
    yield client
    await client.close()
    await listener.close(1)


def field_names(raw: bytes) -> list[str]:
    """Return the lower-case header field names of a message. Every line must belong to a field."""
    head = raw.partition(b"\r\n\r\n")[0]
    names = []
    for line in head.split(b"\r\n"):
        assert not re.search(rb"[\r\n\0]", line), line
        if line[:1] not in {b" ", b"\t"}:
            field = HEADER_FIELD.fullmatch(line)
            assert field, line
            names.append(field[1].decode().lower())
    return names


def message_with_value(value: bytes, nth: int) -> bytes:
    """A personal message with this value in each field that a reply can copy."""
    return (
        b"From: " + value + b" <carol%d@example.net>\r\nTo: ada@example.org, bob@example.org\r\n"
        b"Subject: " + value + b"\r\nMessage-ID: <" + value + b"@x>\r\n"
        b"In-Reply-To: <" + value + b">\r\nReferences: <" + value + b">\r\n"
        b"Reply-To: " + value + b" <carol%d@example.net>\r\n\r\nHi.\r\n"
    ) % (nth, nth)


async def deliver(mx_client: SmtpTestClient, raw: bytes, recipient: str, sender: str) -> str:
    await mx_client.start_data(recipient, sender=sender, mail_parameters=" SMTPUTF8")
    mx_client.send_bytes(raw + b".\r\n")
    reply = await mx_client.read_reply()
    assert await mx_client.run_command("NOOP") == "250 2.0.0 OK"
    return reply


async def queued_recipients(environment: Environment) -> set[str]:
    rows = await environment.database.read(select(col(QueueEntry.recipient)))
    return {row.recipient for row in rows}


async def stored_messages(client: GraphQLClient) -> list[bytes]:
    """Read the source of each message of an account."""
    query = select(col(Message.id)).where(col(Message.user_id) == client.user.id)
    messages = []
    for row in await client.environment.database.read(query.order_by(col(Message.id))):
        url = (await client(SOURCE_URL_QUERY, id=global_ids.encode("Message", row.id)))["node"][
            "sourceUrl"
        ]
        messages.append((await client.http.get(url)).content)
    return messages


REPLY_FIELDS = {
    "from", "to", "subject", "date", "message-id", "in-reply-to", "references", "auto-submitted",
    "x-auto-response-suppress", "mime-version", "content-type", "content-transfer-encoding",
    "precedence", "importance", "received",
}  # fmt: skip


async def test_autoreply_has_no_injected_field(
    ada: GraphQLClient, environment: Environment, mx_client: SmtpTestClient
) -> None:
    autoreply = {"enabled": True, "text": "I am away.", "name": "Ada"}
    assert (await execute_mutation(ada, "autoreplySet", "autoreplies { id }", set=autoreply))[
        "errors"
    ] == []
    for nth, value in enumerate(HOSTILE_VALUES):
        reply = await deliver(
            mx_client, message_with_value(value, nth), ada.address, f"carol{nth}@example.net"
        )
        assert reply.startswith("250 2.0.0"), value
    autoreplies = await load_queued_messages(environment)
    assert len(autoreplies) > len(HOSTILE_VALUES) // 2  # some messages get no reply
    for raw in autoreplies:
        names = field_names(raw)
        assert len(names) == len(set(names))
        assert set(names) <= REPLY_FIELDS
    assert {recipient.partition("@")[2] for recipient in await queued_recipients(environment)} == {
        "example.net"
    }
    assert "mallory@example.net" not in await queued_recipients(environment)


SIEVE_SCRIPT = """require ["variables", "vacation", "editheader", "enotify", "copy", "envelope"];
if header :matches "subject" "*" { set "s" "${1}"; }
addheader "X-Subject" "${s}";
addheader :last "X-Last" "${s}";
notify :message "${s}" :from "bob@example.org" "mailto:dave@example.com";
redirect :copy "dave@example.com";
vacation :subject "${s}" :from "${s} <bob@example.org>" "${s}";
"""


async def test_sieve_script_adds_only_its_own_fields(
    bob: GraphQLClient, environment: Environment, mx_client: SmtpTestClient
) -> None:
    await put_sieve_script(bob, SIEVE_SCRIPT)
    for nth, value in enumerate(HOSTILE_VALUES):
        reply = await deliver(
            mx_client, message_with_value(value, nth), bob.address, f"carol{nth}@example.net"
        )
        assert reply.startswith("250 2.0.0"), value
    messages = await load_queued_messages(environment)
    # Redirects, notifications and most vacation replies.
    assert len(messages) > 2 * len(HOSTILE_VALUES)
    for raw in messages:
        if raw.startswith(b"Delivered-To: "):
            continue
        names = field_names(raw)
        assert len(names) == len(set(names))
        assert set(names) <= REPLY_FIELDS
    recipients = await queued_recipients(environment)
    assert "mallory@example.net" not in recipients
    assert {recipient for recipient in recipients if not recipient.startswith("carol")} == {
        "dave@example.com"
    }
    for raw, value in zip(await stored_messages(bob), HOSTILE_VALUES, strict=True):
        head, separator, rest = raw.partition(b"\r\nFrom: " + value)
        assert separator
        subject_line = next(line for line in head.split(b"\r\n") if line.startswith(b"X-Subject:"))
        assert "bcc" not in field_names(head)
        assert len(subject_line) < 1_000
        assert field_names(head + b"\r\n\r\n").count("x-subject") == 1
        assert rest.count(b"\r\nX-Last:") == 1


@pytest.mark.parametrize("header", [b"A: b\r\n", b"A: b", b"A: b\n", b"A: b\r", b"A: b\r\r\n"])
def test_added_field_begins_on_its_own_line(header: bytes) -> None:
    edited = edit_header_block(header, [AddHeader("C", "d", at_end=True)])
    assert edited == (header if header[-1:] < b" " else header + b"\r\n") + b"C: d\r\n\r\n"


async def test_sieve_reject_text_is_one_reply_line(
    bob: GraphQLClient, environment: Environment, mx_client: SmtpTestClient
) -> None:
    await put_sieve_script(
        bob,
        'require ["variables", "reject"]; if header :matches "subject" "*" { reject "${1}"; }',
    )
    for nth, value in enumerate(HOSTILE_VALUES):
        reply = await deliver(
            mx_client, message_with_value(value, nth), bob.address, f"carol{nth}@example.net"
        )
        assert re.fullmatch(r"550 5\.7\.1 [ -~]{1,400}", reply), value
    assert await load_queued_messages(environment) == []


async def test_hostile_sender_adds_no_trace_field(
    ada: GraphQLClient,
    environment: Environment,
    mx_client: SmtpTestClient,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await add_forwarding_address(environment, "list", "dave@example.com")
    autoreply = {"enabled": True, "text": "I am away."}
    assert (await execute_mutation(ada, "autoreplySet", "autoreplies { id }", set=autoreply))[
        "errors"
    ] == []
    accepted = []
    for nth, sender in enumerate(HOSTILE_SENDERS):
        reply = await mx_client.run_command(f"MAIL FROM:<{sender}> SMTPUTF8")
        if not reply.startswith("250"):
            assert re.match(r"5\d\d 5\.\d\.\d ", reply), sender
            continue
        for recipient in (ada.address, "list@example.org"):
            assert (await mx_client.run_command(f"RCPT TO:<{recipient}>")).startswith("250"), sender
        assert (await mx_client.run_command("DATA")).startswith("354")
        mx_client.send_bytes(
            b"From: carol%d@example.net\r\nTo: ada@example.org\r\n\r\nHi\r\n.\r\n" % nth
        )
        assert (await mx_client.read_reply()).startswith("250 2.0.0"), sender
        accepted.append(sender)
    assert len(accepted) > len(HOSTILE_SENDERS) // 2
    for raw, sender in zip(await stored_messages(ada), accepted, strict=True):
        names = field_names(raw)
        assert names[:4] == ["return-path", "delivered-to", "x-original-rcpt",
                             "authentication-results"]  # fmt: skip
        assert names[4:] == ["received", "from", "to"]
        results = raw.partition(b"Authentication-Results: ")[2].partition(b"\r\nReceived:")[0]
        quoted = re.sub(rb'"(?:[^"\\]|\\.)*"', b"", results)
        methods = re.findall(rb";\s*([a-z]+)=", re.sub(rb"\([^()]*\)", b"", quoted))
        assert methods == [b"spf", b"dkim", b"dmarc", b"arc"], sender
        assert b"=pass" not in quoted
    for raw in await load_queued_messages(environment):
        assert set(field_names(raw)) <= {*REPLY_FIELDS, "delivered-to"} | {"authentication-results"}
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    log_lines = [record.getMessage() for record in caplog.records]
    assert not [line for line in log_lines if "\n" in line or "\r" in line]


async def test_hostile_ehlo_name_is_refused(ada: GraphQLClient, mx_client: SmtpTestClient) -> None:
    for name in (
        "a (b) by c", "a)\tby b", "a;b", "a\x0bb", "a\u2028b", "(a", "a,b", '"a b"', "<a>", "a\\b",
        "a\x85b", "b\u00fccher.example", "[127.0.0.1] (x", "a" * 256, "a\r", "=?utf-8?Q?a?=",
    ):  # fmt: skip
        assert (await mx_client.run_command(f"EHLO {name}"))[:3] in {"500", "501"}, name
    assert (await mx_client.run_command("EHLO [127.0.0.1]")).startswith("250")
    assert (await deliver(mx_client, b"\r\nHi\r\n", ada.address, "")).startswith("250")
    (raw,) = await stored_messages(ada)
    assert b"Received: from [127.0.0.1] ([127.0.0.1])\r\n\tby mx.example.org with" in raw


async def test_dsn_has_no_injected_field(environment: Environment, clock: ManualClock) -> None:
    smtp_reply = "5.1.1 no\r\nBcc: mallory@example.net\r\n\r\n--x\r\n\x00\u2028\x85 \ud800"
    recipient = JobRecipient(1, "dave\u2028x@example.com", 1, clock())
    result = DeliveryResult(DeliveryState.BOUNCED, 550, smtp_reply, "mx.example.com")
    for case in each_case(HOSTILE_SENDERS):
        with case as sender:
            job = DeliveryJob(1, 1, "q", 1, 1, 1, sender, "example.com", clock(), [recipient])
            for value in HOSTILE_VALUES:
                raw = report_from_results(
                    environment, job, {1: result}, message_with_value(value, 1)
                )
                names = field_names(raw)
                assert len(names) == len(set(names))
                assert set(names) <= REPLY_FIELDS
                (_, status) = re.split(rb"Content-Type: message/(?:global-)?delivery-status", raw)
                block = status.partition(b"\r\n\r\n")[2].partition(b"\r\n\r\n--report")[0]
                assert [field_names(group) for group in block.split(b"\r\n\r\n")] == [
                    ["reporting-mta", "x-queue-id", "arrival-date"],
                    ["final-recipient", "action", "status", "remote-mta", "diagnostic-code",
                     "last-attempt-date", "final-log-id"],
                ]  # fmt: skip
                assert format_datetime(clock()).encode() in block
