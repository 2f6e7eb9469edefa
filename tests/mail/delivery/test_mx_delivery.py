"""Messages delivered by SMTP into a database."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, update
from sqlmodel import col

from mail.envelope.smtp_replies import USER_UNKNOWN_REPLY
from mail.maintenance.housekeeping import run_housekeeping_round
from mail.routing.mx_hosts import OutboundSettings
from mail.smtp.mx_server import MxListener, MxRules
from mail.smtp.smtp_server import SmtpListenerConfig
from mail.spam.greylist import Greylist
from mail.tls.server_tls import CertificateFiles
from models.messages.tables import Message
from models.queue.tables import DeliveryState
from models.runtime.environment import Environment
from models.spam.greylist import GreylistEntry
from models.submission.tables import Submission
from models.users.tables import User
from tests.conftest import GraphQLClient, ManualClock, raw_message
from tests.support.mail.forwarding_addresses import set_account_forwarding
from tests.support.mail.queued_deliveries import queued_envelopes
from tests.support.mail.stored_messages import subjects_by_mailbox
from tests.support.mail_servers.lmtp_client import SmtpTestClient
from tests.support.mail_servers.queue_worker import (
    load_inbox_rows,
    run_queue_worker,
    wait_until_tried,
    wake_queue_worker,
)
from tests.support.mail_servers.smtp_client import (
    CertificateAuthority,
    connect_smtp,
    send_rcpt,
    start_tls,
)
from tests.support.operations.rewrite_and_bcc_operations import ARCHIVE, create_bcc_rule
from tests.support.operations.sieve_operations import put_sieve_script

pytestmark = pytest.mark.usefixtures("verify_consistency")

LARGE_MESSAGE = raw_message("Large", body="x" * 5000)


@pytest.fixture
def authority(tmp_path: Path) -> CertificateAuthority:
    return CertificateAuthority(tmp_path)


@pytest.fixture
async def mx(
    environment: Environment, tmp_path: Path, authority: CertificateAuthority
) -> AsyncIterator[MxListener]:
    config = SmtpListenerConfig(certificates=CertificateFiles(authority.issue_certificate()))
    listener = MxListener(environment, tmp_path / "spool", config)
    await listener.start(host="127.0.0.1", port=0)
    yield listener
    await listener.close(1)


@pytest.fixture
async def mx_client(mx: MxListener) -> AsyncIterator[SmtpTestClient]:
    neighbour = await connect_smtp(mx.port)
    yield neighbour
    await neighbour.close()


async def deliver_to(mx_client: SmtpTestClient, raw: bytes, *to: str) -> str:
    await mx_client.start_data(*to)
    mx_client.send_bytes(raw + b".\r\n")
    return await mx_client.read_reply()


async def update_user(user_client: GraphQLClient, **columns: Any) -> None:
    async with user_client.environment.write_session() as session:
        await session.exec(
            update(User).where(col(User.id) == user_client.user.id).values(**columns)
        )


async def count_rows(environment: Environment, table: Any) -> int:
    (row,) = await environment.database.read(select(func.count().label("many")).select_from(table))
    return int(row.many)


async def test_message_is_delivered_once_although_repeated(
    mx_client: SmtpTestClient, clock: ManualClock, ada: GraphQLClient, bob: GraphQLClient
) -> None:
    raw = raw_message("Hello")
    for _ in range(2):  # the second one gets another Received field
        assert (await deliver_to(mx_client, raw, "ada@example.org", "bob@example.org")).startswith(
            "250"
        )
        clock.tick(minutes=1)
    for recipient in (ada, bob):
        (message,) = await load_inbox_rows(recipient)
        assert (message.subject, message.envelope_from) == ("Hello", "carol@example.net")


EVERYTHING_QUEUED = """require ["copy", "enotify", "fcc", "mailbox", "vacation"];
redirect :copy "redirect@far.example";
notify :fcc "Notices" :create "mailto:notify@far.example";
vacation "I am away.";
"""
QUEUED_MAIL = [  # recipients of the mail that one message causes
    ARCHIVE,
    "carol@example.net",  # vacation reply
    "forward@far.example",
    "notify@far.example",
    "redirect@far.example",
]


async def test_repeated_delivery_queues_other_mail_once(
    mx_client: SmtpTestClient, clock: ManualClock, root: GraphQLClient, ada: GraphQLClient
) -> None:
    await put_sieve_script(ada, EVERYTHING_QUEUED)
    await set_account_forwarding(ada, "forward@far.example")
    await create_bcc_rule(root, ada.address, ARCHIVE)
    for _ in range(2):  # the second one gets another Received field
        reply = await deliver_to(mx_client, raw_message("Hello"), ada.address)
        assert reply.startswith("250"), reply
        recipients = [recipient for _, recipient in await queued_envelopes(ada.environment)]
        assert sorted(recipients) == QUEUED_MAIL
        clock.tick(minutes=1)
    subjects = await subjects_by_mailbox(ada.environment, ada)
    assert subjects == {"INBOX": ["Hello"], "Notices": ["Hello"]}
    await deliver_to(mx_client, raw_message("Another"), ada.address)
    queued = await queued_envelopes(ada.environment)
    assert len(queued) == 2 * len(QUEUED_MAIL) - 1  # carol has her vacation reply


async def test_mx_listener_does_not_relay(mx_client: SmtpTestClient, ada: GraphQLClient) -> None:
    for address in (
        "carol@example.net",
        "nobody@example.org",
        "ada%example.net@example.org",
        "ada@example.org@example.net",
        "@example.org:carol@example.net",
        '"carol@example.net"',
        "example.net!carol@example.org",
        "*",
        "*@example.org",
    ):
        assert (await send_rcpt(mx_client, address))[:3] in {"550", "553"}, address
    assert (await send_rcpt(mx_client, "ADA+news@Example.ORG")).startswith("250")
    assert await count_rows(ada.environment, Submission) == 0


async def test_foreign_authentication_results_and_spam_flag_are_ignored(
    environment: Environment, mx_client: SmtpTestClient, ada: GraphQLClient
) -> None:
    forged = "localhost; spf=pass smtp.mailfrom=bank.example; dmarc=pass"
    raw = raw_message("Hello", Authentication_Results=forged, X_Spam_Flag="YES")
    assert (await deliver_to(mx_client, raw, "ada@example.org")).startswith("250")
    (row,) = await environment.database.read(select(col(Message.authentication)))
    assert not (row.authentication or {}).get("spf")
    assert len(await load_inbox_rows(ada)) == 1  # not in Junk


async def test_delivery_to_full_mailbox_is_queued_and_the_other_stored(
    environment: Environment, mx_client: SmtpTestClient, ada: GraphQLClient, bob: GraphQLClient
) -> None:
    await update_user(ada, quota=100)
    for _ in range(2):  # a repeat is queued once
        reply = await deliver_to(mx_client, LARGE_MESSAGE, "ada@example.org", "bob@example.org")
        assert reply.startswith("250 2.0.0")
    assert (len(await load_inbox_rows(ada)), len(await load_inbox_rows(bob))) == (0, 1)
    statement = select(col(Submission.id), col(Submission.envelope_from))
    (row,) = await environment.database.read(statement)
    assert row.envelope_from == "carol@example.net"
    await update_user(ada, quota=1 << 20)
    async with run_queue_worker(environment, OutboundSettings()):
        wake_queue_worker(environment)
        assert (await wait_until_tried(environment, row.id))["ada"].state is DeliveryState.DELIVERED
    assert len(await load_inbox_rows(ada)) == 1
    assert len(await load_inbox_rows(bob)) == 1
    await update_user(ada, quota=None)


async def test_only_recipient_with_full_mailbox_is_refused_temporarily(
    mx_client: SmtpTestClient, ada: GraphQLClient
) -> None:
    await update_user(ada, quota=100)
    assert (await deliver_to(mx_client, LARGE_MESSAGE, "ada@example.org")).startswith("452 4.2.2")
    assert await count_rows(ada.environment, Submission) == 0
    await update_user(ada, quota=None)


async def test_recipient_that_requires_tls_is_refused_without_tls(
    mx_client: SmtpTestClient, authority: CertificateAuthority, ada: GraphQLClient
) -> None:
    await update_user(ada, require_inbound_tls=True)
    assert (await send_rcpt(mx_client, "ada@example.org")).startswith("530 5.7.0")
    await start_tls(mx_client, authority.client_context())
    assert (await deliver_to(mx_client, raw_message(), "ada@example.org")).startswith("250")
    assert len(await load_inbox_rows(ada)) == 1


async def test_greylist_delays_unknown_senders_once(clock: ManualClock, ada: GraphQLClient) -> None:
    environment = ada.environment
    greylist = Greylist(environment, timedelta(minutes=5), timedelta(days=30), ("192.0.2.0/24",))

    async def record_attempt(
        ip: str, sender: str = "c@example.net", to: str = "ada@example.org"
    ) -> int:
        return await greylist.record_attempt_and_get_wait_seconds(ip, sender, to)

    assert await record_attempt("192.0.2.1") == 0  # exempt network
    assert await record_attempt("198.51.100.1") == 300
    clock.tick(minutes=1)
    # another address of the same network, the same entry
    assert await record_attempt("198.51.100.77", "C@example.net") == 240
    assert (
        await record_attempt("203.0.113.1")
        == await record_attempt("198.51.100.1", "d@example.net")
        == 300
    )
    clock.tick(minutes=4)
    assert await record_attempt("198.51.100.1") == 0
    assert await record_attempt("198.51.100.1", to="bob@example.org") == 300
    clock.tick(days=29)
    await run_housekeeping_round(environment)
    # Entries without a second attempt are deleted.
    assert await count_rows(environment, GreylistEntry) == 1
    assert await record_attempt("198.51.100.1") == 0
    clock.tick(days=29)
    assert await record_attempt("198.51.100.1") == 0
    clock.tick(days=31)
    await run_housekeeping_round(environment)
    assert await count_rows(environment, GreylistEntry) == 0
    assert await record_attempt("198.51.100.1") == 300


async def test_greylist_entries_of_one_network_are_limited(ada: GraphQLClient) -> None:
    greylist = Greylist(ada.environment, timedelta(minutes=5), timedelta(days=30))
    for n in range(1010):
        await greylist.record_attempt_and_get_wait_seconds(
            "198.51.100.1", f"{n}@example.net", "ada@example.org"
        )
    assert await count_rows(ada.environment, GreylistEntry) == 1000


async def test_mx_listener_applies_greylisting(
    environment: Environment, tmp_path: Path, clock: ManualClock, ada: GraphQLClient
) -> None:
    rules = MxRules(greylist=Greylist(environment, timedelta(minutes=5), timedelta(days=30)))
    listener = MxListener(environment, tmp_path / "spool", SmtpListenerConfig(), rules)
    await listener.start(host="127.0.0.1", port=0)
    mx_client = await connect_smtp(listener.port)
    assert await send_rcpt(mx_client, "nobody@example.org") == USER_UNKNOWN_REPLY
    reply = await send_rcpt(mx_client, "ada@example.org")
    assert reply == "451 4.7.1 Greylisted, please try again in 300 seconds"
    clock.tick(minutes=5)
    assert (await deliver_to(mx_client, raw_message(), "ada@example.org")).startswith("250")
    await mx_client.close()
    await listener.close(1)
    assert len(await load_inbox_rows(ada)) == 1


async def test_trace_of_the_message_shows_the_greylisted_recipient(
    tmp_path: Path, clock: ManualClock, ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient
) -> None:
    rules = MxRules(greylist=Greylist(ada.environment, timedelta(minutes=5), timedelta(days=30)))
    listener = MxListener(ada.environment, tmp_path / "spool", SmtpListenerConfig(), rules)
    await listener.start(host="127.0.0.1", port=0)
    mx_client = await connect_smtp(listener.port)
    assert (await send_rcpt(mx_client, ada.address)).startswith("451 4.7.1")
    clock.tick(minutes=5)
    for line in (
        "MAIL FROM:<carol@example.net>",
        *(f"RCPT TO:<{recipient.address}>" for recipient in (bob, ada)),
    ):
        reply = await mx_client.run_command(line)
    assert reply.startswith("250")
    await mx_client.run_command("DATA")
    queue_id = (await mx_client.run_command(raw_message() + b".")).removeprefix(
        "250 2.0.0 OK: queued as "
    )
    await mx_client.close()
    await listener.close(1)
    document = """query ($id: String) { deliveryTrace(filter: {queueId: $id}, orderBy: AT_ASC) {
      nodes { event address detail } } }"""
    steps = (await root(document, id=queue_id))["deliveryTrace"]["nodes"]
    assert [step for step in steps if step["event"] == "REJECTED"] == [
        {
            "event": "REJECTED",
            "address": bob.address,
            "detail": "451 4.7.1 Greylisted, please try again in 300 seconds",
        }
    ]
