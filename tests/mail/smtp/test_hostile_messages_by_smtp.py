"""Hostile messages by SMTP, from other servers and by submission."""

import hashlib
import re
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import select
from sqlmodel import col

from bench.load.lmtp_client import dot_stuff
from graph.types import global_ids
from mail.queue import message_body
from mail.smtp.mx_server import MxListener, MxRules
from mail.smtp.smtp_server import SmtpListenerConfig
from mail.smtp.submission_server import SubmissionListener as Listener
from mail.tls.server_tls import CertificateFiles
from models.messages.tables import Message
from models.queue.tables import QueueEntry
from models.runtime.environment import Environment
from models.submission.tables import Submission
from resolvers.submission.smtp_submission import SmtpSubmissionService
from tests.conftest import GraphQLClient, make_user
from tests.support.mail.forwarding_addresses import add_forwarding_address
from tests.support.mail.hostile_messages import hostile_messages
from tests.support.mail.smuggled_messages import FALSE_END_SEQUENCES, SMUGGLED_TRANSACTION
from tests.support.mail.trace_header_lines import without_blank_line, without_trace_fields
from tests.support.mail_servers.lmtp_client import SmtpTestClient
from tests.support.mail_servers.queue_worker import poll_until, relay_settings, run_queue_worker
from tests.support.mail_servers.smtp_and_dns_servers import FakeSmtpServer, run_smtp_server
from tests.support.mail_servers.smtp_client import CertificateAuthority, connect_smtp, start_tls
from tests.support.mail_servers.submission_client import PASSWORD, sign_in_by_auth_plain
from tests.support.run_scope import RUNS_ALL_TESTS
from tests.support.stores.counter_check import assert_store_consistent

HOSTILE_MESSAGES = hostile_messages()
# The tests of LMTP use all of them, and the same code stores both.
INBOUND_MESSAGES = HOSTILE_MESSAGES if RUNS_ALL_TESTS else dict(list(HOSTILE_MESSAGES.items())[::3])
SOURCE_URL_QUERY = "query ($id: ID!) { node(id: $id) { ... on Message { sourceUrl } } }"
TRACE_FIELDS = re.compile(
    rb"Authentication-Results: mx\.example\.org;(?:\r\n [^\r\n]+)*\r\n"
    rb"Received: from mx\.example\.net \(\[127\.0\.0\.1]\)(?:\r\n\t[^\r\n]+){2}\r\n"
)
FROM_FIELD = re.compile(rb"\A(From: [^\r\n]*?)carol@example\.com")
REFUSALS = (
    "550 5.7.1 Message rejected: You are not allowed to send as ",
    "554 5.6.0 Message rejected: The header field From has no address",
    "554 5.6.0 Message rejected: The message must not contain NUL",
    "554 5.6.0 Message rejected: The message must have one header field From, "
    "and at most one Sender",
    "554 5.6.0 Message rejected: The message has no header, or its header is too long",
    "554 5.6.0 Message rejected: Not a domain name",
    "554 5.6.0 Message rejected: Not an email address",
)
LINE_END = re.compile(rb"\r\n|\r|\n")


@pytest.fixture
async def mx_client(environment: Environment, tmp_path: Path) -> AsyncIterator[SmtpTestClient]:
    """A client of an MX listener without rate limits."""
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
    await listener.close(5)
    assert list(listener.spool_folder.iterdir()) == []
    assert listener.byte_budget.used == 0


@pytest.fixture
async def submission_client(
    environment: Environment, tmp_path: Path
) -> AsyncIterator[SmtpTestClient]:
    """A client of the submission listener, signed in as ada."""
    await make_user(environment, "ada", password=PASSWORD, recipients_per_day=100_000)
    authority = CertificateAuthority(tmp_path)
    config = SmtpListenerConfig(certificates=CertificateFiles(authority.issue_certificate()))
    listener = Listener(environment, tmp_path / "spool", config, SmtpSubmissionService(environment))
    await listener.start(host="127.0.0.1", port=0)
    client = await connect_smtp(listener.port)
    await start_tls(client, authority.client_context())
    await sign_in_by_auth_plain(client)
    yield client
    await client.close()
    await listener.close(5)
    assert list(listener.spool_folder.iterdir()) == []
    assert listener.byte_budget.used == 0


async def send_message(client: SmtpTestClient, raw: bytes, sender: str, recipient: str) -> str:
    """Send a message with its envelope in one packet and return the last reply."""
    envelope = f"MAIL FROM:<{sender}>\r\nRCPT TO:<{recipient}>\r\nDATA\r\n"
    client.send_bytes(envelope.encode() + dot_stuff(raw))
    assert [(await client.read_reply())[:3] for _ in range(3)] == ["250", "250", "354"]
    return await client.read_reply()


def sha256_hex(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


async def test_hostile_messages_are_accepted_and_stored_unchanged(
    ada: GraphQLClient, mx_client: SmtpTestClient, environment: Environment
) -> None:
    sender = "carol@example.com"
    replies = {
        name: await send_message(mx_client, raw, sender, ada.address)
        for name, raw in INBOUND_MESSAGES.items()
    }
    assert {name: reply for name, reply in replies.items() if not reply.startswith("250")} == {}
    assert await mx_client.run_command("NOOP") == "250 2.0.0 OK"
    names_by_digest = {sha256_hex(raw): name for name, raw in INBOUND_MESSAGES.items()}
    rows = await environment.database.read(select(col(Message.id)))
    assert len(rows) == len(names_by_digest)  # a duplicate would be dropped
    for row in rows:
        node = (await ada(SOURCE_URL_QUERY, id=global_ids.encode("Message", row.id)))["node"]
        stored = without_trace_fields((await ada.http.get(node["sourceUrl"])).content)
        trace_fields = TRACE_FIELDS.match(stored)
        assert trace_fields
        assert names_by_digest.pop(
            sha256_hex(without_blank_line(stored[trace_fields.end() :])), None
        ), stored[:500]
    assert names_by_digest == {}
    await assert_store_consistent(environment)


def replace_sender(raw: bytes) -> bytes:
    """Replace the From address of a message by that of ada."""
    return FROM_FIELD.sub(rb"\1ada@example.org", raw, count=1)


async def queued_messages(environment: Environment) -> dict[str, bytes]:
    """Read the messages of the queue by queue ID."""
    columns = col(Submission.id), col(Submission.blob_id), col(Submission.queue_id)
    messages = {}
    for row in await environment.database.read(select(*columns)):
        job: Any = SimpleNamespace(submission_id=row.id, blob_id=row.blob_id)
        messages[str(row.queue_id)] = await message_body.read_message(environment, job)
    return messages


async def test_hostile_submission_is_queued_unchanged_or_refused(
    submission_client: SmtpTestClient, environment: Environment
) -> None:
    """Line ends become CRLF and the header can be corrected. The body is unchanged."""
    replies = {}
    for name, raw in HOSTILE_MESSAGES.items():
        reply = await send_message(
            submission_client, replace_sender(raw), "ada@example.org", "carol@example.net"
        )
        assert reply.startswith(("250 2.0.0 OK: queued as ", *REFUSALS)), name
        replies[name] = reply
    assert await submission_client.run_command("NOOP") == "250 2.0.0 OK"
    messages_by_queue_id = await queued_messages(environment)
    queue_ids = {
        name: reply.rpartition(" ")[2] for name, reply in replies.items() if reply[0] == "2"
    }
    assert sorted(messages_by_queue_id) == sorted(queue_ids.values())
    assert len(queue_ids) > 300
    for name, queue_id in queue_ids.items():
        raw = LINE_END.sub(b"\r\n", replace_sender(HOSTILE_MESSAGES[name]))
        assert (
            messages_by_queue_id[queue_id].partition(b"\r\n\r\n")[2]
            == raw.partition(b"\r\n\r\n")[2]
        ), name
        assert messages_by_queue_id[queue_id].startswith(
            b"Received: by mx.example.org with ESMTPSA"
        )
    await assert_store_consistent(environment)


async def check_delivered_messages(environment: Environment, count: int, recipient: str) -> None:
    """Deliver the queue and check the number of messages received and their line ends."""
    async with (
        run_smtp_server(FakeSmtpServer()) as server,
        run_queue_worker(environment, relay_settings(server)),
    ):

        async def has_received_all() -> bool:
            return len(server.messages) >= count

        await poll_until(has_received_all)
        states = select(col(QueueEntry.state)).distinct()

        async def are_all_relayed() -> bool:
            return [row.state for row in await environment.database.read(states)] == ["RELAYED"]

        await poll_until(are_all_relayed)
    assert len(server.messages) == count
    for mail in server.messages:
        assert mail.to == [recipient]
        assert b"Forged" in mail.raw
        assert not re.search(rb"\0|(?<!\r)\n|\r(?!\n)", mail.raw)


async def test_forwarded_smuggling_attempt_is_one_message(
    ada: GraphQLClient, mx_client: SmtpTestClient, environment: Environment
) -> None:
    await add_forwarding_address(environment, "list", "dave@far.example")
    for end in FALSE_END_SEQUENCES:
        raw = b"Subject: x\r\n\r\nHello" + end + SMUGGLED_TRANSACTION
        mx_client.send_bytes(
            b"MAIL FROM:<carol@example.net>\r\nRCPT TO:<list@example.org>\r\nDATA\r\n"
        )
        assert [(await mx_client.read_reply())[:3] for _ in range(3)] == ["250", "250", "354"]
        mx_client.send_bytes(raw + b".\r\n")
        assert (await mx_client.read_reply()).startswith("250 2.0.0"), end
    await check_delivered_messages(ada.environment, len(FALSE_END_SEQUENCES), "dave@far.example")


async def test_submitted_smuggling_attempt_is_one_message(
    submission_client: SmtpTestClient, environment: Environment
) -> None:
    accepted_count = 0
    for end in FALSE_END_SEQUENCES:
        raw = b"From: ada@example.org\r\n\r\nHello" + end + SMUGGLED_TRANSACTION
        await submission_client.start_data("dave@far.example", sender="ada@example.org")
        submission_client.send_bytes(raw + b".\r\n")
        reply = await submission_client.read_reply()
        assert reply.startswith("554 5.6.0" if b"\0" in end else "250 2.0.0"), end
        accepted_count += reply.startswith("250")
    await check_delivered_messages(environment, accepted_count, "dave@far.example")
