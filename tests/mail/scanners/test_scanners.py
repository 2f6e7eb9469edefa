"""Scan results of rspamd and clamd decide delivery. Failing scanners lose no message."""

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from pydantic import SecretStr
from sqlalchemy import select
from sqlmodel import col

from mail.delivery.pipeline import deliver_to_accepted_recipients, read_and_verify_incoming
from mail.envelope.client import SmtpClientInfo as Remote
from mail.recipients.recipient_routes import accept_recipient
from mail.scanners.body_stream import PIECE_SIZE
from mail.scanners.circuit_breaker import MAX_FAILURES, OPEN_FOR, SCANS, breaker_of_scanner
from models.mailboxes.tables import SpecialUse
from models.runtime.environment import Environment
from models.submission.tables import Submission
from tests.conftest import GraphQLClient, ManualClock, raw_message
from tests.support.accounts.key_value_operations import change_options
from tests.support.accounts.openpgp_keys import armored_public_key, make_secret_key
from tests.support.accounts.user_operations import set_user_columns
from tests.support.case_loop import each_case
from tests.support.mail.forwarding_addresses import add_forwarding_address
from tests.support.mail.stored_messages import message_special_use
from tests.support.mail_servers.lmtp_client import SmtpTestClient
from tests.support.mail_servers.lmtp_transactions import deliver_for_reply_codes
from tests.support.mail_servers.scanner_servers import (
    http_response,
    read_clamd_request,
    reply_as_clamd,
    rspamd_reply,
    send_and_hang_up,
    send_endlessly,
    stay_silent,
)
from tests.support.operations.spam_operations import SPAM_VERDICT_QUERY
from tests.support.servers.scripted_server import ConnectionHandler, run_scripted_server
from tests.support.servers.webhook_receiver import (
    ReceivedRequest,
    WebhookReceiver,
    run_webhook_receiver,
)
from tests.support.time_limits import HANG_SECONDS

pytestmark = pytest.mark.usefixtures("verify_consistency")
INBOX, JUNK = SpecialUse.INBOX, SpecialUse.JUNK


@pytest.fixture
async def rspamd_server(environment: Environment) -> AsyncIterator[WebhookReceiver]:
    """A server that responds like rspamd."""
    async with run_webhook_receiver() as receiver:
        change_options(environment, rspamd_url=f"http://127.0.0.1:{receiver.port}")
        yield receiver


async def test_spam_score_is_judged_by_thresholds_of_each_recipient(
    ada: GraphQLClient,
    bob: GraphQLClient,
    root: GraphQLClient,
    rspamd_server: WebhookReceiver,
    lmtp_client: SmtpTestClient,
) -> None:
    recipients = (ada.address, bob.address)
    result = await root(
        """mutation ($input: UserUpdateInput!) { userUpdate(input: $input) {
        users { id } errors { message } } }""",
        input={
            "users": {"usernames": ["bob"]},
            "set": {"spam": {"junkScore": 4.0, "rejectScore": 9.0}},
        },
    )
    assert result["userUpdate"]["errors"] == []
    for points, replies, special_uses in (
        (3.9, ["250", "250"], [INBOX, INBOX]),
        (4.0, ["250", "250"], [INBOX, JUNK]),
        (7.9, ["250", "250"], [INBOX, JUNK]),
        (8.0, ["250", "250"], [JUNK, JUNK]),
        (9.0, ["250", "550"], [JUNK, None]),
        (14.9, ["250", "550"], [JUNK, None]),
        (15.0, ["550", "550"], [None, None]),
    ):
        rspamd_server.response = rspamd_reply(points)
        subject = f"Points {points}"
        reply_codes = await deliver_for_reply_codes(lmtp_client, raw_message(subject), *recipients)
        assert [code[:3] for code in reply_codes] == replies, points
        assert [
            await message_special_use(ada, subject),
            await message_special_use(bob, subject),
        ] == special_uses, points
    assert reply_codes == ["550 5.7.1"] * 2
    assert len(rspamd_server.requests) == 7  # one scan for all recipients


async def test_spam_level_100_and_allow_rule_deliver_to_inbox(
    ada: GraphQLClient,
    bob: GraphQLClient,
    rspamd_server: WebhookReceiver,
    lmtp_client: SmtpTestClient,
) -> None:
    rspamd_server.response = rspamd_reply(40.0)
    await set_user_columns(ada, spam_level=100)
    result = await bob(
        """mutation ($input: SenderRuleCreateInput!) { senderRuleCreate(input: $input) {
        errors { message } } }""",
        input={
            "scope": {"user": {"username": "bob"}},
            "action": "ALLOW",
            "patterns": ["example.net"],
        },
    )
    assert result["senderRuleCreate"]["errors"] == []
    reply_codes = await deliver_for_reply_codes(
        lmtp_client, raw_message("Much"), ada.address, bob.address
    )
    assert reply_codes == ["250 2.0.0"] * 2
    assert [await message_special_use(ada, "Much"), await message_special_use(bob, "Much")] == [
        INBOX,
        INBOX,
    ]


async def test_spam_verdict_is_stored_and_shown_only_to_owner(
    ada: GraphQLClient,
    bob: GraphQLClient,
    rspamd_server: WebhookReceiver,
    lmtp_client: SmtpTestClient,
) -> None:
    rspamd_server.response = rspamd_reply(2.5, action="no action")
    await deliver_for_reply_codes(lmtp_client, raw_message("Kept"), ada.address)
    result = await ada("query { messages(first: 5) { nodes { id spamReport { score } } } }")
    ((node),) = result["messages"]["nodes"]
    assert node["spamReport"] == {"score": 2.5}
    assert (await ada(SPAM_VERDICT_QUERY, id=node["id"]))["message"]["spamReport"] == {
        "score": 2.5,
        "requiredScore": 15.0,
        "action": "no action",
        "virus": None,
        "symbols": [{"name": "OFFER", "score": 2.5, "description": "An offer"}],
    }
    assert (await bob(SPAM_VERDICT_QUERY, id=node["id"]))["message"] is None


async def test_rspamd_request_has_envelope_and_client(
    ada: GraphQLClient, bob: GraphQLClient, rspamd_server: WebhookReceiver
) -> None:
    environment, raw = ada.environment, raw_message("Way", body="x" * (PIECE_SIZE + 10))
    change_options(environment, rspamd_password=SecretStr("hush"))
    rspamd_server.response = rspamd_reply(0.0)
    mail = await read_and_verify_incoming(environment, raw, "carol@far.example")
    mail.client = Remote("192.0.2.7", "mx.far.example\r\nPassword: x", username="carol")
    recipients = [
        await accept_recipient(environment, address, mail.envelope_sender)
        for address in (ada.address, bob.address)
    ]
    await deliver_to_accepted_recipients(environment, mail, recipients)
    (request,) = rspamd_server.requests
    assert (request.path, request.raw) == ("/checkv2", raw)
    headers = {name: request.headers[name] for name in ("from", "ip", "helo", "user", "password")}
    assert headers == {
        "from": "carol@far.example",
        "ip": "192.0.2.7",
        "helo": "mx.far.examplePassword: x",
        "user": "carol",
        "password": "hush",
    }
    assert request.headers["rcpt"] == bob.address  # the receiver keeps only the last of both fields


async def test_large_message_is_sent_completely_to_rspamd(
    ada: GraphQLClient, rspamd_server: WebhookReceiver, lmtp_client: SmtpTestClient
) -> None:
    rspamd_server.response = rspamd_reply(0.0)
    raw = raw_message("Large", body="\r\n".join(["y" * 900] * 3000))
    assert await deliver_for_reply_codes(lmtp_client, raw, ada.address) == ["250 2.0.0"]
    assert rspamd_server.requests[0].raw == raw


async def test_message_above_rspamd_limit_is_not_scanned(
    ada: GraphQLClient, rspamd_server: WebhookReceiver, lmtp_client: SmtpTestClient
) -> None:
    change_options(ada.environment, rspamd_max_size=1000, rspamd_on_failure="defer")
    rspamd_server.response = rspamd_reply(40.0)
    count_before = SCANS.value("rspamd", "too_large")
    assert await deliver_for_reply_codes(
        lmtp_client, raw_message("Big", body="x" * 900), ada.address
    ) == ["250 2.0.0"]
    assert not rspamd_server.requests
    assert SCANS.value("rspamd", "too_large") == count_before + 1


BAD_RSPAMD_RESPONSES: dict[str, ConnectionHandler] = {
    "silent": stay_silent,
    "hangs up": send_and_hang_up(),
    "nonsense": send_and_hang_up(b"\x00\xff\x80 nothing of the kind\r\n\r\n"),
    "another protocol": send_and_hang_up(b"220 mx.example.org ESMTP\r\n"),
    "cut head": send_and_hang_up(b"HTTP/1.1 200 OK\r\nContent-Le"),
    "cut body": send_and_hang_up(b'HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"score": 1.0'),
    "error": send_and_hang_up(http_response(b"{}", "500 Internal")),
    "denied": send_and_hang_up(http_response(b'{"error":"Unauthorized"}', "401 Unauthorized")),
    "redirection": send_and_hang_up(
        b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n"
    ),
    "no JSON": send_and_hang_up(http_response(b"<html>")),
    "a list": send_and_hang_up(http_response(b"[1, 2]")),
    "no score": send_and_hang_up(http_response(b'{"action": "reject"}')),
    "no number": send_and_hang_up(http_response(b'{"score": "40", "action": "reject"}')),
    "NaN": send_and_hang_up(http_response(b'{"score": NaN}')),
    "true": send_and_hang_up(http_response(b'{"score": true}')),
    "endless head": send_endlessly(b"HTTP/1.1 200 OK\r\n", b"X-More: " + b"x" * 5000 + b"\r\n"),
    "endless line": send_endlessly(b"HTTP/1.1 200 OK\r\nX: ", b"x" * 5000),
    "endless body": send_endlessly(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 65536),
    "huge body": send_endlessly(
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n", b" " * 65536
    ),
    "endless hints": send_endlessly(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
}


async def test_bad_rspamd_response_loses_no_message(
    ada: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    for case in each_case(BAD_RSPAMD_RESPONSES):
        with case as name:
            async with run_scripted_server(BAD_RSPAMD_RESPONSES[name]) as port:
                change_options(
                    ada.environment,
                    rspamd_url=f"http://127.0.0.1:{port}",
                    rspamd_timeout=timedelta(seconds=1),
                )
                await assert_failures_lose_no_message(ada, lmtp_client, "rspamd", name)


async def assert_failures_lose_no_message(
    client: GraphQLClient, lmtp_client: SmtpTestClient, scanner: str, case: str
) -> None:
    """Deliver a message for each setting of the scanner's failures."""
    count_before = SCANS.value(scanner, "failed")
    accepted_subject, deferred_subject = f"Taken: {case}", f"Later: {case}"
    change_options(client.environment, **{f"{scanner}_on_failure": "accept"})
    message = raw_message(accepted_subject)
    assert await deliver_for_reply_codes(lmtp_client, message, client.address) == ["250 2.0.0"]
    assert await message_special_use(client, accepted_subject) is INBOX
    change_options(client.environment, **{f"{scanner}_on_failure": "defer"})
    message = raw_message(deferred_subject)
    assert await deliver_for_reply_codes(lmtp_client, message, client.address) == ["451 4.3.0"]
    assert await message_special_use(client, deferred_subject) is None
    assert SCANS.value(scanner, "failed") == count_before + 2


BAD_CLAMD_RESPONSES: dict[str, ConnectionHandler] = {
    "silent": stay_silent,
    "hangs up": send_and_hang_up(),
    "nonsense": reply_as_clamd(b"\x00"),
    "no end": reply_as_clamd(b"stream: OK"),
    "an error": reply_as_clamd(b"stream: Can't allocate memory ERROR\0"),
    "another protocol": send_and_hang_up(b"220 mx.example.org ESMTP\r\n"),
    "endless": send_endlessly(b"stream: ", b"x" * 65536),
}


async def test_bad_clamd_response_loses_no_message(
    ada: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    for case in each_case(BAD_CLAMD_RESPONSES):
        with case as name:
            async with run_scripted_server(BAD_CLAMD_RESPONSES[name]) as port:
                change_options(
                    ada.environment,
                    clamd_address=f"127.0.0.1:{port}",
                    clamd_timeout=timedelta(seconds=1),
                )
                await assert_failures_lose_no_message(ada, lmtp_client, "clamd", name)


@pytest.mark.parametrize(
    ("rspamd_url", "clamd_address"),
    [
        ("http://127.0.0.1:9", "unix:/nowhere/clamd.sock"),
        ("http://nowhere.invalid:11333", "127.0.0.1:99999"),
        ("no address", f"{'x' * 70}.example:3310"),
    ],
)
async def test_unreachable_scanners_do_not_stop_delivery(
    rspamd_url: str, clamd_address: str, ada: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    change_options(ada.environment, rspamd_url=rspamd_url, clamd_address=clamd_address)
    assert await deliver_for_reply_codes(lmtp_client, raw_message("Taken"), ada.address) == [
        "250 2.0.0"
    ]


async def test_circuit_breaker_opens_after_failures_and_logs_once(
    ada: GraphQLClient,
    lmtp_client: SmtpTestClient,
    clock: ManualClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    requests: list[int] = []
    is_healthy = False

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(1)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(rspamd_reply(9.0) if is_healthy else b"no\r\n\r\n")
        await writer.drain()

    async def deliver_messages(count: int) -> None:
        for nth in range(count):
            subject = f"Number {len(requests)} {nth} {clock.time}"
            assert await deliver_for_reply_codes(
                lmtp_client, raw_message(subject), ada.address
            ) == ["250 2.0.0"]

    async with run_scripted_server(respond) as port:
        change_options(ada.environment, rspamd_url=f"http://127.0.0.1:{port}")
        caplog.set_level(logging.INFO, "mail.scanners")
        await deliver_messages(MAX_FAILURES + 5)
        assert len(requests) == MAX_FAILURES
        clock.tick(seconds=OPEN_FOR.total_seconds())
        await deliver_messages(3)  # one request is allowed and fails again
        assert len(requests) == MAX_FAILURES + 1
        clock.tick(seconds=OPEN_FOR.total_seconds())
        is_healthy = True
        await deliver_messages(3)
        assert len(requests) == MAX_FAILURES + 4
    log_messages = [record.getMessage() for record in caplog.records]
    assert log_messages == ["Scanner unavailable", "Scanner available again"]


async def test_rspamd_and_clamd_scan_at_same_time(
    ada: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    both_connected = asyncio.Barrier(2)

    async def respond_as_rspamd(_got: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        await both_connected.wait()
        writer.write(rspamd_reply(1.0))

    async def respond_as_clamd(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_clamd_request(reader)
        await both_connected.wait()
        writer.write(b"stream: OK\0")
        await writer.drain()

    async with run_webhook_receiver() as receiver, run_scripted_server(respond_as_clamd) as port:
        receiver.response = respond_as_rspamd
        change_options(
            ada.environment, rspamd_url=f"http://127.0.0.1:{receiver.port}",
            clamd_address=f"127.0.0.1:{port}", rspamd_on_failure="defer", clamd_on_failure="defer",
        )  # fmt: skip
        async with asyncio.timeout(HANG_SECONDS):
            assert await deliver_for_reply_codes(lmtp_client, raw_message("Met"), ada.address) == [
                "250 2.0.0"
            ]


async def test_virus_is_refused_or_stored_in_junk(
    ada: GraphQLClient, bob: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    await set_user_columns(bob, spam_level=100)
    recipients = (ada.address, bob.address)
    async with run_scripted_server(reply_as_clamd(b"stream: Win.Test FOUND\0")) as port:
        change_options(ada.environment, clamd_address=f"127.0.0.1:{port}")
        assert (
            await deliver_for_reply_codes(lmtp_client, raw_message("Ill"), *recipients)
            == ["550 5.7.1"] * 2
        )
        change_options(ada.environment, virus_action="tag")
        assert (
            await deliver_for_reply_codes(lmtp_client, raw_message("Tagged"), *recipients)
            == ["250 2.0.0"] * 2
        )
    assert [await message_special_use(client, "Ill") for client in (ada, bob)] == [None, None]
    assert [await message_special_use(client, "Tagged") for client in (ada, bob)] == [JUNK, JUNK]
    result = await ada("query { messages(first: 5) { nodes { spamReport { virus score } } } }")
    assert result["messages"]["nodes"] == [{"spamReport": {"virus": "Win.Test", "score": 0.0}}]


async def test_clamd_size_limit_does_not_open_circuit_breaker(
    ada: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(100)
        writer.write(b"INSTREAM size limit exceeded. ERROR\0")
        await writer.drain()

    async with run_scripted_server(respond) as port:
        change_options(ada.environment, clamd_address=f"127.0.0.1:{port}", clamd_on_failure="defer")
        raw = raw_message("Much", body="\r\n".join(["y" * 900] * 8000))
        for _ in range(MAX_FAILURES + 1):  # the circuit breaker stays closed
            count_before = SCANS.value("clamd", "too_large")
            assert await deliver_for_reply_codes(lmtp_client, raw, ada.address) == ["250 2.0.0"]
            assert SCANS.value("clamd", "too_large") == count_before + 1
        assert (
            breaker_of_scanner(ada.environment.database, "clamd", f"127.0.0.1:{port}").open_until
            is None
        )


async def test_spam_to_forwarding_address_is_refused(
    ada: GraphQLClient, rspamd_server: WebhookReceiver, lmtp_client: SmtpTestClient
) -> None:
    environment = ada.environment
    await add_forwarding_address(environment, "list", ada.address)
    await add_forwarding_address(environment, "away", "someone@far.example")
    recipients = ("list@example.org", "away@example.org")
    rspamd_server.response = rspamd_reply(15.0)
    assert (
        await deliver_for_reply_codes(lmtp_client, raw_message("Bad"), *recipients)
        == ["550 5.7.1"] * 2
    )
    assert not await environment.database.read(select(col(Submission.id)))
    rspamd_server.response = rspamd_reply(14.0)
    assert (
        await deliver_for_reply_codes(lmtp_client, raw_message("Doubtful"), *recipients)
        == ["250 2.0.0"] * 2
    )
    assert await message_special_use(ada, "Doubtful") is JUNK
    assert len(await environment.database.read(select(col(Submission.id)))) == 1


async def test_message_encrypted_on_arrival_has_spam_score(
    ada: GraphQLClient, rspamd_server: WebhookReceiver, lmtp_client: SmtpTestClient
) -> None:
    rspamd_server.response = rspamd_reply(3.0)
    await set_user_columns(
        ada,
        encrypt_messages=True,
        openpgp_public_key=armored_public_key(
            make_secret_key("Ada <ada@example.org>", seconds=400_000_000)
        ),
    )
    assert await deliver_for_reply_codes(lmtp_client, raw_message("Sealed"), ada.address) == [
        "250 2.0.0"
    ]
    result = await ada("query { messages(first: 5) { nodes { encrypted spamReport { score } } } }")
    assert result["messages"]["nodes"] == [{"encrypted": True, "spamReport": {"score": 3.0}}]


async def test_scan_adds_no_sql_statement_to_delivery(
    ada: GraphQLClient,
    rspamd_server: WebhookReceiver,
    lmtp_client: SmtpTestClient,
    statements: list[str],
) -> None:
    rspamd_server.response = rspamd_reply(1.0)

    async def count_statements(subject: str) -> int:
        del statements[:]
        await deliver_for_reply_codes(lmtp_client, raw_message(subject), ada.address)
        return len(statements)

    count_with_scanner = await count_statements("With")
    change_options(ada.environment, rspamd_url="")
    assert await count_statements("Without") == count_with_scanner
