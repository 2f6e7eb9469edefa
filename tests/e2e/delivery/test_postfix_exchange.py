"""Tests of the exchange of mail with Postfix in both directions."""

import asyncio
import smtplib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any

import dkim
import pytest

from bench.servers.ports import free_port
from mail.envelope.dsn_parameters import DEFAULT_REPORTS
from mail.mime.header_encoding import NamedAddress
from mail.smtp.lmtp import LmtpListener
from mail.smtp.mx_server import MxListener
from mail.smtp.smtp_server import SmtpListenerConfig
from mail.smtp.submission_backend import SmtpSubmitter
from mail.tls.server_tls import CertificateFiles
from models.queue.tables import DeliveryState
from models.runtime.environment import Environment
from resolvers.submission.smtp_submission import SmtpSubmissionService
from tests.conftest import GraphQLClient, ManualClock, raw_message
from tests.support.accounts.user_operations import execute_mutation
from tests.support.mail.signed_messages import make_rsa_key, sign_message
from tests.support.mail.stored_messages import stored_messages_by_path
from tests.support.mail_servers.queue_worker import (
    is_entry_in_state,
    load_inbox_rows,
    load_queue_entries,
    load_queued_messages,
    poll_until,
    queue_message,
    relay_settings,
    run_queue_worker,
    wait_until_tried,
    wake_queue_worker,
)
from tests.support.mail_servers.smtp_and_dns_servers import FakeSmtpServer as Neighbour
from tests.support.mail_servers.smtp_client import CertificateAuthority
from tests.support.servers.postfix_server import (
    PostfixDelivery,
    PostfixPolicyServer,
    PostfixServer,
    run_postfix_server,
)

TIME_LIMIT = 60.0  # seconds for each wait, on a busy machine


async def wait_until_true(predicate: Callable[[], bool]) -> None:
    """Wait until the predicate is true."""
    async with asyncio.timeout(TIME_LIMIT):
        while not predicate():  # noqa: ASYNC110 - files have no event
            await asyncio.sleep(0.05)


@asynccontextmanager
async def run_postfix(**extra: Any) -> AsyncGenerator[PostfixServer]:
    """Run a Postfix server in the context. Its start and stop are slow."""
    context = run_postfix_server(free_port(), **extra)
    server = await asyncio.to_thread(context.__enter__)
    try:
        yield server
    finally:
        await asyncio.to_thread(context.__exit__, None, None, None)


@dataclass(frozen=True)
class ListenerPorts:
    """The ports of our listeners, to which the servers of this module relay mail."""

    mx: int
    lmtp: int


@pytest.fixture(scope="module")
def listener_ports() -> ListenerPorts:
    return ListenerPorts(free_port(), free_port())


@pytest.fixture(scope="module")
def postfix_before_mx(listener_ports: ListenerPorts) -> Iterator[PostfixServer]:
    """A server that relays mail for example.org, and for a domain that we do not accept."""
    route = f"smtp:[127.0.0.1]:{listener_ports.mx}"
    with run_postfix_server(
        free_port(),
        refusals={"nobody@example.net": "550 5.1.1 Nobody is here by that name"},
        routes={"example.org": route, "nowhere.example": route},
        extra_settings={"relay_domains": "example.org nowhere.example"},
    ) as server:
        yield server


@pytest.fixture(scope="module")
def postfix_before_lmtp(listener_ports: ListenerPorts) -> Iterator[PostfixServer]:
    routes = {"example.org": f"lmtp:inet:127.0.0.1:{listener_ports.lmtp}"}
    with run_postfix_server(free_port(), routes=routes) as server:
        yield server


@pytest.fixture
def postfix(postfix_before_mx: PostfixServer) -> PostfixServer:
    """A server that has no mail and an empty log."""
    postfix_before_mx.forget_earlier_mail()
    return postfix_before_mx


def relay_to(server: PostfixServer, query: str = "") -> Any:
    """Return the route of the queue to this Postfix server."""
    return relay_settings(Neighbour(port=server.port), query)


async def wait_for_mails(server: PostfixServer, count: int = 1) -> list[PostfixDelivery]:
    """Wait until Postfix has delivered this number of messages, and return them."""
    await wait_until_true(lambda: len(server.load_delivered_messages()) >= count)
    assert len(server.load_delivered_messages()) == count, server.log
    return server.load_delivered_messages()


def submit_to_postfix(
    server: PostfixServer, raw: bytes, *recipients: str, sender: str = "carol@example.net"
) -> None:
    """Submit a message to Postfix for delivery."""
    with smtplib.SMTP("127.0.0.1", server.port, timeout=TIME_LIMIT) as smtp:
        smtp.ehlo("client.example.net")
        options = ["BODY=8BITMIME"] if not raw.isascii() else []
        assert smtp.sendmail(sender, recipients, raw, options) == {}


def message_parts(message: Any) -> list[Any]:
    """Return the MIME parts of a message."""
    return list(message.get_payload())


def has_valid_signature(raw: bytes) -> bool:
    """True if the DKIM signature of the message is valid."""
    text = make_rsa_key()[1].encode()
    return bool(dkim.verify(raw, dnsfunc=lambda *_a, **_k: text))


async def test_postfix_receives_stored_message_over_tls(
    ada: GraphQLClient, environment: Environment, postfix: PostfixServer
) -> None:
    async with run_queue_worker(environment, relay_to(postfix, "?tls=required")):
        submission_id = await queue_message(ada, NamedAddress("dave@example.net"))
        (mail,) = await wait_for_mails(postfix)
        rows = await wait_until_tried(environment, submission_id)
        (raw,) = await load_queued_messages(environment)
    assert (mail.sender, mail.to, mail.raw) == ("ada@example.org", "dave@example.net", raw)
    assert "with ESMTPS" in mail.received
    assert rows["dave"].tls.startswith("TLSv1.3")
    assert (rows["dave"].state, rows["dave"].last_code) == (DeliveryState.RELAYED, 250)


async def test_eight_bit_content_and_utf8_addresses_are_delivered(
    ada: GraphQLClient, environment: Environment, postfix: PostfixServer
) -> None:
    async with run_queue_worker(environment, relay_to(postfix)):
        await queue_message(
            ada,
            NamedAddress("dave@example.net", "Dävid"),
            NamedAddress("jürgen@example.net", "Jürgen"),
        )
        mails = await wait_for_mails(postfix, 2)
        (raw,) = await load_queued_messages(environment)
    assert {mail.to for mail in mails} == {"dave@example.net", "jürgen@example.net"}
    assert {mail.raw for mail in mails} == {raw}
    assert "jürgen@example.net".encode() in raw
    assert "SMTPUTF8" in postfix.log or "UTF8SMTP" in mails[0].received


async def test_large_message_is_delivered_unchanged(
    ada: GraphQLClient, environment: Environment, postfix: PostfixServer
) -> None:
    raw = raw_message("Large", body="Grüße, in Zeilen.\r\n.\r\n..\r\n" * 250_000, From=ada.address)
    submitter = SmtpSubmitter(ada.user.id, "ada", ada.user.auth_version, None)
    async with run_queue_worker(environment, relay_to(postfix)):
        await SmtpSubmissionService(environment).submit(
            submitter, raw, ada.address, [("dave@example.net", DEFAULT_REPORTS)]
        )
        (mail,) = await wait_for_mails(postfix)
        (queued_raw,) = await load_queued_messages(environment)
    assert len(raw) > 5 << 20
    assert mail.raw == queued_raw == raw


async def test_each_of_many_recipients_gets_one_message(
    ada: GraphQLClient, environment: Environment, postfix: PostfixServer
) -> None:
    recipients = [f"n{number:03}@example.net" for number in range(150)]
    async with run_queue_worker(environment, relay_to(postfix)):
        submission_id = await queue_message(ada, *map(NamedAddress, recipients))
        mails = await wait_for_mails(postfix, 150)
        rows = await wait_until_tried(environment, submission_id)
    assert sorted(mail.to for mail in mails) == recipients
    assert {row.state for row in rows.values()} == {DeliveryState.RELAYED}
    assert len({mail.received for mail in mails}) < 10  # few messages for all recipients


async def test_refused_recipient_is_bounced_and_others_get_message(
    ada: GraphQLClient, environment: Environment, postfix: PostfixServer
) -> None:
    async with run_queue_worker(environment, relay_to(postfix)):
        submission_id = await queue_message(
            ada, NamedAddress("dave@example.net"), NamedAddress("nobody@example.net")
        )
        (mail,) = await wait_for_mails(postfix)
        rows = await wait_until_tried(environment, submission_id)

        async def has_report() -> bool:
            return bool(await load_inbox_rows(ada))

        await poll_until(has_report)
    assert mail.to == "dave@example.net"
    assert (rows["dave"].state, rows["nobody"].state) == (
        DeliveryState.RELAYED, DeliveryState.BOUNCED
    )  # fmt: skip
    assert (rows["nobody"].last_code, "5.1.1" in rows["nobody"].last_response) == (550, True)
    ((_, source),) = [
        (row, raw) for row, raw in (await stored_messages_by_path(ada)).values() if not row.seen
    ]
    report = message_from_bytes(source, policy=policy.SMTP)
    assert report.get_content_type() == "multipart/report"
    status = next(part for part in report.walk() if part.get_content_subtype() == "delivery-status")
    fields = message_parts(status)[1]
    assert fields["Final-Recipient"] == "rfc822; nobody@example.net"
    assert (fields["Action"], fields["Status"]) == ("failed", "5.1.1")
    assert "Nobody is here by that name" in fields["Diagnostic-Code"]


async def test_deferred_recipient_is_retried(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    policy_server = PostfixPolicyServer({"dave": ["defer_if_permit Greylisted: come again"]})
    async with (
        policy_server.run_server(),
        run_postfix(policy_port=policy_server.port) as server,
        run_queue_worker(environment, relay_to(server)),
    ):
        submission_id = await queue_message(
            ada, NamedAddress("dave@example.net"), NamedAddress("erin@example.net")
        )
        rows = await wait_until_tried(environment, submission_id)
        assert (rows["dave"].state, rows["dave"].last_code) == (DeliveryState.DEFERRED, 450)
        assert "Greylisted: come again" in rows["dave"].last_response
        assert rows["erin"].state is DeliveryState.RELAYED
        (mail,) = await wait_for_mails(server)
        assert mail.to == "erin@example.net"
        clock.time = rows["dave"].next_at
        wake_queue_worker(environment)
        await poll_until(
            lambda: is_entry_in_state(environment, submission_id, "dave", DeliveryState.RELAYED)
        )
        mails = await wait_for_mails(server, 2)
    assert [mail.to for mail in mails] == ["erin@example.net", "dave@example.net"]
    assert mails[0].raw == mails[1].raw
    assert (await load_queue_entries(environment, submission_id))["dave"].attempts == 2
    assert policy_server.queried_names.count("dave") == 2


async def test_message_above_size_limit_of_postfix_is_bounced(
    ada: GraphQLClient, environment: Environment
) -> None:
    async with (
        run_postfix(extra_settings={"message_size_limit": "2000"}) as server,
        run_queue_worker(environment, relay_to(server)),
    ):
        submission_id = await queue_message(
            ada, NamedAddress("dave@example.net"), html="<p>" + "x" * 4000
        )
        rows = await wait_until_tried(environment, submission_id)
    assert (rows["dave"].state, rows["dave"].last_code) == (DeliveryState.BOUNCED, 552)
    assert server.load_delivered_messages() == []


@asynccontextmanager
async def run_mx_listener(
    environment: Environment, folder: Path, port: int
) -> AsyncGenerator[MxListener]:
    """Run an MX listener with TLS."""
    config = SmtpListenerConfig(
        certificates=CertificateFiles(CertificateAuthority(folder).issue_certificate())
    )
    mx_listener = MxListener(environment, folder / "spool-mx", config)
    await mx_listener.start(host="127.0.0.1", port=port)
    try:
        yield mx_listener
    finally:
        await mx_listener.close(1)


@pytest.fixture
async def mx(
    environment: Environment, tmp_path: Path, listener_ports: ListenerPorts
) -> AsyncIterator[MxListener]:
    async with run_mx_listener(environment, tmp_path, listener_ports.mx) as mx_listener:
        yield mx_listener


@pytest.fixture
async def lmtp(
    environment: Environment, tmp_path: Path, listener_ports: ListenerPorts
) -> AsyncIterator[LmtpListener]:
    listener = LmtpListener(environment, tmp_path / "spool-lmtp")
    await listener.start(host="127.0.0.1", port=listener_ports.lmtp)
    yield listener
    await listener.close(1)


@pytest.fixture(params=["mx", "lmtp"])
def relaying_postfix(request: pytest.FixtureRequest) -> PostfixServer:
    """A server that relays mail for example.org to our MX or LMTP listener."""
    server: PostfixServer = request.getfixturevalue(f"postfix_before_{request.param}")
    server.forget_earlier_mail()
    request.getfixturevalue(request.param)
    return server


RAW_MESSAGES = {
    "plain": raw_message("Plain", body="Hello.\r\n.\r\n..dots  \r\n\t\r\n"),
    "eight bits": raw_message("Eight bits", body="Grüße", Content_Type="text/plain; charset=utf-8")
    .replace(b"Content-Type", b"Content-Transfer-Encoding: 8bit\r\nContent-Type"),
    "long lines": raw_message("Long", body="\r\n".join(["x" * 990] * 50)),
    "large": raw_message("Large", body="\r\n".join(["y" * 70] * 30_000)),
}  # fmt: skip


async def wait_for_inbox(client: GraphQLClient, count: int = 1) -> list[Any]:
    """Wait until the INBOX has this number of messages, and return them."""

    async def has_messages() -> bool:
        return len(await load_inbox_rows(client)) >= count

    async with asyncio.timeout(TIME_LIMIT):
        while not await has_messages():  # noqa: ASYNC110 - rows have no event
            await asyncio.sleep(0.05)
    return await load_inbox_rows(client)


async def inbox_message_source(client: GraphQLClient) -> bytes:
    """Return the bytes of the message in the INBOX."""
    return (await stored_messages_by_path(client))["INBOX"][1]


@pytest.mark.parametrize("name", RAW_MESSAGES)
async def test_message_from_postfix_keeps_valid_signature(
    ada: GraphQLClient, relaying_postfix: PostfixServer, name: str
) -> None:
    raw = sign_message(RAW_MESSAGES[name], "example.com")
    assert has_valid_signature(raw)
    await asyncio.to_thread(submit_to_postfix, relaying_postfix, raw, ada.address)
    (row,) = await wait_for_inbox(ada)
    is_encrypted = "TLS connection established to 127.0.0.1" in relaying_postfix.log
    assert row.envelope_from == "carol@example.net"
    source = await inbox_message_source(ada)
    assert source.endswith(raw)
    assert has_valid_signature(source)
    assert b"by postfix.example.net (Postfix) with ESMTP" in source
    assert is_encrypted is relaying_postfix.routes["example.org"].startswith("smtp")


async def test_postfix_delivers_to_several_recipients_at_once(
    ada: GraphQLClient, bob: GraphQLClient, relaying_postfix: PostfixServer
) -> None:
    await asyncio.to_thread(
        submit_to_postfix, relaying_postfix, RAW_MESSAGES["plain"], ada.address, bob.address
    )
    assert [len(await wait_for_inbox(client)) for client in (ada, bob)] == [1, 1]


async def test_postfix_dsn_for_refused_recipient_reaches_sender(
    ada: GraphQLClient, bob: GraphQLClient, relaying_postfix: PostfixServer
) -> None:
    recipients = (ada.address, "nobody@example.org")
    await asyncio.to_thread(
        submit_to_postfix, relaying_postfix, RAW_MESSAGES["plain"], *recipients, sender=bob.address
    )
    await wait_for_inbox(ada)
    (row,) = await wait_for_inbox(bob)
    assert row.envelope_from == ""
    assert row.subject == "Undelivered Mail Returned to Sender"
    report = message_from_bytes(await inbox_message_source(bob), policy=policy.SMTP)
    assert report.get_content_type() == "multipart/report"
    status = next(part for part in report.walk() if part.get_content_subtype() == "delivery-status")
    fields = message_parts(status)[1]
    assert fields["Final-Recipient"] == "rfc822; nobody@example.org"
    assert (fields["Action"], fields["Status"]) == ("failed", "5.1.1")


async def test_postfix_retries_deferred_recipient(
    ada: GraphQLClient,
    environment: Environment,
    clock: ManualClock,
    relaying_postfix: PostfixServer,
) -> None:
    async with environment.write_session() as session:
        user = await session.get_one(type(ada.user), ada.user.id)
        user.received_per_hour, user.received = 1, 1
        user.received_until = clock().replace(hour=1)
    await asyncio.to_thread(submit_to_postfix, relaying_postfix, RAW_MESSAGES["plain"], ada.address)
    await wait_until_true(lambda: "status=deferred" in relaying_postfix.log)
    assert await load_inbox_rows(ada) == []
    clock.tick(hours=1)
    await wait_for_inbox(ada)
    await wait_until_true(lambda: "status=sent" in relaying_postfix.log)
    assert relaying_postfix.log.count("status=sent") == 1


async def test_dsn_of_next_hop_of_postfix_is_received(
    ada: GraphQLClient,
    environment: Environment,
    postfix: PostfixServer,
    tmp_path: Path,
    listener_ports: ListenerPorts,
) -> None:
    """Postfix accepts the message, its next hop refuses it, and the DSN arrives by SMTP."""
    async with run_queue_worker(environment, relay_to(postfix)):
        submission_id = await queue_message(ada, NamedAddress("zoe@nowhere.example"))
        rows = await wait_until_tried(environment, submission_id)
        assert rows["zoe"].state is DeliveryState.RELAYED, rows["zoe"].last_response
        # The DSN changes the state, so the next hop starts only after the state was read.
        async with run_mx_listener(environment, tmp_path, listener_ports.mx):
            (row,) = await wait_for_inbox(ada)
    assert row.subject == "Undelivered Mail Returned to Sender"
    (sent,) = await load_queued_messages(environment)
    message_id = message_from_bytes(sent)["Message-ID"]
    assert message_id.encode() in await inbox_message_source(ada)


@pytest.mark.usefixtures("mx")
async def test_forwarded_message_keeps_valid_signature(
    ada: GraphQLClient, environment: Environment, postfix: PostfixServer
) -> None:
    """The message comes from Postfix and is forwarded to Postfix by the targets of the account."""
    target_input = {"forwardTo": ["dave@example.net"]}
    assert (await execute_mutation(ada, "userUpdate", set=target_input))["errors"] == []
    raw = sign_message(RAW_MESSAGES["eight bits"], "example.com")
    async with run_queue_worker(environment, relay_to(postfix)):
        await asyncio.to_thread(submit_to_postfix, postfix, raw, ada.address)
        (mail,) = await wait_for_mails(postfix)
    assert mail.to == "dave@example.net"
    assert mail.raw.endswith(raw)
    assert has_valid_signature(mail.raw)
