"""Messages that one recipient takes and another one refuses, by SMTP, LMTP and address forwards.

Each copy is stored, or refused in a reply, a DSN or the delivery trace. Never both, never neither.
"""

from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlmodel import col

from mail.routing.mx_hosts import OutboundSettings
from mail.smtp.spool_file import MAX_IN_MEMORY
from mail.storage import message_trace
from models.mailboxes.tables import Mailbox
from models.messages.tables import Message
from models.runtime.environment import Environment
from models.runtime.secret_box import SecretBox
from resolvers.admin import secret_rotation
from tests.conftest import GraphQLClient, ManualClock, make_client, raw_message
from tests.support.accounts.user_operations import set_user_columns
from tests.support.case_loop import each_case
from tests.support.mail.forwarding_addresses import add_forwarding_address
from tests.support.mail.inbound_authentication import use_dns_zone
from tests.support.mail.inbound_messages import deliver_to_users
from tests.support.mail_servers.dns_zone_server import make_dns_zone, run_dns_zone
from tests.support.mail_servers.lmtp_client import SmtpTestClient
from tests.support.mail_servers.mx_session import open_mx_session
from tests.support.mail_servers.queue_worker import (
    poll_until,
    relay_settings,
    run_queue_worker,
    wake_queue_worker,
)
from tests.support.mail_servers.scanner_servers import rspamd_reply
from tests.support.mail_servers.smtp_and_dns_servers import FakeSmtpServer, run_smtp_server
from tests.support.operations.sieve_operations import put_sieve_script
from tests.support.servers.webhook_receiver import WebhookReceiver, run_webhook_receiver
from tests.support.stores.counter_check import select_rows

pytestmark = pytest.mark.usefixtures("verify_consistency")

VERIFIED_SENDER, UNVERIFIED_SENDER = "carol@far.example", "carol@plain.example"
PATHS = ("mx", "mx list", "lmtp", "lmtp list")
LINE = "x" * 98 + "\r\n"
REJECTING_SCRIPT = 'require "reject"; reject "No thanks.";'


@dataclass(frozen=True)
class Failure:
    """Why bob does not take a message at once."""

    spam_score: float = 0.0
    has_script: bool = False  # a Sieve script rejects it
    is_full: bool = False  # until the quota is raised
    is_at_rate_limit: bool = False  # until an hour has passed; bob is refused at RCPT
    line_count: int = 10  # of the body
    mailbox: str | None = None  # where the queue delivers later; None: refused for good


FAILURES = {
    "spam": Failure(spam_score=20.0),
    "spam and full": Failure(spam_score=20.0, is_full=True),
    "script": Failure(has_script=True),
    "full": Failure(is_full=True, mailbox="INBOX"),
    "full and large": Failure(
        is_full=True, line_count=2 * MAX_IN_MEMORY // len(LINE), mailbox="INBOX"
    ),
    "full junk": Failure(spam_score=10.0, is_full=True, mailbox="Junk"),
    "rate": Failure(is_at_rate_limit=True, mailbox="INBOX"),
    "rate junk": Failure(spam_score=10.0, is_at_rate_limit=True, mailbox="Junk"),
}


@pytest.fixture
async def rspamd_server(environment: Environment) -> AsyncIterator[WebhookReceiver]:
    """A server that responds like rspamd, and a DNS zone in which one sender has an SPF record."""
    zone = make_dns_zone({"far.example": "v=spf1 ip4:127.0.0.1 -all"})
    async with run_webhook_receiver() as receiver, run_dns_zone(zone):
        use_dns_zone(environment, zone, rspamd_url=f"http://127.0.0.1:{receiver.port}")
        yield receiver


@pytest.fixture
async def mx_client(environment: Environment, tmp_path: Path) -> AsyncIterator[SmtpTestClient]:
    async with open_mx_session(environment, tmp_path) as client:
        yield client


@dataclass
class Delivery:
    """A message for ada, who takes everything, and for bob; and what became of it."""

    ada: GraphQLClient
    bob: GraphQLClient
    path: str
    failure: Failure
    subject: str = "Hello"
    reply_of_bob: str = ""  # to RCPT if it was refused, else to the message

    @property
    def is_refused_in_reply(self) -> bool:
        """True if the client learns from a reply that bob does not have the message."""
        return not self.path.endswith("list") and (
            self.path == "lmtp" or self.failure.is_at_rate_limit
        )

    async def send(self, client: SmtpTestClient, sender: str) -> None:
        """Prepare the accounts, and send the message."""
        await set_user_columns(self.ada, spam_level=100)
        if self.failure.has_script:
            await put_sieve_script(self.bob, REJECTING_SCRIPT)
        if self.failure.is_at_rate_limit:
            await set_user_columns(self.bob, received_per_hour=1)
            await deliver_to_users(self.bob.environment, self.bob, raw=raw_message("First"))
        addresses = [self.ada.address, self.bob.address]
        if self.path.endswith("list"):
            list_name = f"list-of-{self.bob.user.username}"
            await add_forwarding_address(self.ada.environment, list_name, *addresses)
            addresses = [f"{list_name}@example.org"]
        assert (await client.run_command(f"MAIL FROM:<{sender}>")).startswith("250")
        replies = [await client.run_command(f"RCPT TO:<{address}>") for address in addresses]
        if self.failure.is_full:
            await set_user_columns(self.bob, quota=100)
        assert (await client.run_command("DATA")).startswith("354")
        body = LINE * self.failure.line_count
        client.send_bytes(raw_message(self.subject, body=body) + b"\r\n.\r\n")
        accepted = [position for position, reply in enumerate(replies) if reply[0] == "2"]
        reply_count = len(accepted) if self.path.startswith("lmtp") else 1
        final_replies = [await client.read_reply() for _ in range(reply_count)]
        for position in accepted:
            replies[position] = final_replies[position] if reply_count > 1 else final_replies[0]
        assert replies[0].startswith("250 2.0.0")  # to ada, or to the list
        self.reply_of_bob = replies[-1]

    async def remove_obstacles(self, clock: ManualClock) -> None:
        """Let bob take the message, as soon as the queue tries again."""
        await set_user_columns(self.bob, quota=None)
        clock.tick(hours=1, seconds=1)

    async def stored_copies(self, user: GraphQLClient) -> list[dict[str, Any]]:
        """Mailbox, envelope sender and results of the checks of each stored copy."""
        columns = map(col, (Message.envelope_from, Message.authentication, Message.spam_report))
        statement = select(col(Mailbox.path), *columns).join(
            Message, col(Message.mailbox_id) == col(Mailbox.id)
        )
        rows = await user.environment.database.read(
            statement.where(
                col(Message.user_id) == user.user.id, col(Message.subject) == self.subject
            )
        )
        names = ("path", "envelope_from", "authentication", "spam_report")
        return [{name: getattr(row, name) for name in names} for row in rows]

    async def refused_addresses(self) -> Counter[str]:
        """Return how often each address has refused a message, by the delivery trace."""
        await message_trace.write_pending_trace_steps(self.ada.environment)
        sql = "SELECT normalized_address FROM delivery_trace_steps WHERE event = 'REFUSED'"
        return Counter(row[0] for row in await select_rows(self.ada.environment, sql))


async def wait_until_queue_is_idle(environment: Environment, *states: str) -> None:
    """Wake the queue worker, and wait until no entry has one of these states or a lease."""
    names = ", ".join(f"'{state}'" for state in states)
    sql = f"SELECT id FROM queue_entries WHERE state IN ({names}) OR lease IS NOT NULL"  # noqa: S608

    async def is_idle() -> bool:
        return not await select_rows(environment, sql)

    wake_queue_worker(environment)
    await poll_until(is_idle)


def failed_recipients(server: FakeSmtpServer) -> list[str]:
    """The failed recipients of all DSNs that a server received."""
    prefix = b"Final-Recipient: rfc822; "
    lines = [line for dsn in server.messages for line in dsn.raw.splitlines()]
    return [line.removeprefix(prefix).decode() for line in lines if line.startswith(prefix)]


async def check_result(
    delivery: Delivery, sender: str, dsn_server: FakeSmtpServer, new_refusals: Counter[str]
) -> None:
    """Check where the copies of the two users are, and who knows about a missing one."""
    bob, failure = delivery.bob, delivery.failure
    (copy_of_ada,) = await delivery.stored_copies(delivery.ada)
    assert copy_of_ada["path"] == "INBOX"
    is_retried = failure.mailbox is not None and not delivery.is_refused_in_reply
    assert await delivery.stored_copies(bob) == (
        [{**copy_of_ada, "path": failure.mailbox}] if is_retried else []
    )
    assert (delivery.reply_of_bob[0] != "2") == delivery.is_refused_in_reply
    is_refused_after_acceptance = failure.mailbox is None and not delivery.is_refused_in_reply
    if is_refused_after_acceptance:
        assert new_refusals == {bob.address: 1}
    is_reported = (
        is_refused_after_acceptance
        and failure.has_script
        # LMTP clients are trusted
        and (sender == VERIFIED_SENDER or delivery.path.startswith("lmtp"))
    )
    assert failed_recipients(dsn_server) == ([bob.address] if is_reported else [])


@pytest.mark.parametrize("path", PATHS)
async def test_each_copy_is_stored_with_its_verdict_or_refused_visibly(  # noqa: PLR0913, PLR0917
    ada: GraphQLClient,
    rspamd_server: WebhookReceiver,
    mx_client: SmtpTestClient,
    lmtp_client: SmtpTestClient,
    clock: ManualClock,
    path: str,
) -> None:
    client, environment = (mx_client if path.startswith("mx") else lmtp_client), ada.environment
    cases = enumerate(product(FAILURES, (VERIFIED_SENDER, UNVERIFIED_SENDER)))
    for case in each_case(cases):
        with case as (number, (failure, sender)):
            rspamd_server.response = rspamd_reply(FAILURES[failure].spam_score)
            bob = await make_client(environment, ada.http, f"bob{number}")
            delivery = Delivery(ada, bob, path, FAILURES[failure], subject=f"Hello {number}")
            earlier_refusals = await delivery.refused_addresses()
            async with (
                run_smtp_server(FakeSmtpServer()) as dsn_server,
                run_queue_worker(environment, relay_settings(dsn_server)),
            ):
                await delivery.send(client, sender)
                scan_count = len(rspamd_server.requests)
                await wait_until_queue_is_idle(environment, "PENDING")
                assert await delivery.stored_copies(bob) == []
                await delivery.remove_obstacles(clock)
                await wait_until_queue_is_idle(environment, "PENDING", "DEFERRED")
            new_refusals = await delivery.refused_addresses() - earlier_refusals
            await check_result(delivery, sender, dsn_server, new_refusals)
            assert len(rspamd_server.requests) == scan_count  # the queue uses the first result


@pytest.mark.parametrize("failure", ["full", "full junk"])
@pytest.mark.parametrize("sender", [VERIFIED_SENDER, UNVERIFIED_SENDER])
async def test_sender_learns_that_a_deferred_delivery_has_expired_unless_it_is_spam(  # noqa: PLR0913, PLR0917
    ada: GraphQLClient,
    bob: GraphQLClient,
    rspamd_server: WebhookReceiver,
    mx_client: SmtpTestClient,
    clock: ManualClock,
    failure: str,
    sender: str,
) -> None:
    rspamd_server.response = rspamd_reply(FAILURES[failure].spam_score)
    delivery = Delivery(ada, bob, "mx", FAILURES[failure])
    async with (
        run_smtp_server(FakeSmtpServer()) as dsn_server,
        run_queue_worker(ada.environment, relay_settings(dsn_server)),
    ):
        await delivery.send(mx_client, sender)
        await wait_until_queue_is_idle(ada.environment, "PENDING")
        clock.tick(days=30)
        await wait_until_queue_is_idle(ada.environment, "PENDING", "DEFERRED")
    assert await delivery.stored_copies(bob) == []
    is_spam = failure == "full junk"
    assert failed_recipients(dsn_server) == ([] if is_spam else [bob.address])
    await set_user_columns(bob, quota=None)  # the consistency check compares the domain's quota


async def test_queue_reads_the_verdict_after_a_key_rotation(
    ada: GraphQLClient,
    bob: GraphQLClient,
    rspamd_server: WebhookReceiver,
    mx_client: SmtpTestClient,
    clock: ManualClock,
) -> None:
    rspamd_server.response = rspamd_reply(10.0)
    environment = ada.environment
    delivery = Delivery(ada, bob, "mx", FAILURES["full junk"])
    await delivery.send(mx_client, VERIFIED_SENDER)
    old_keys, new_keys = environment.secret_box.keys, {"newer": b"n" * 32}

    def environment_with_keys(keys: Mapping[str, bytes]) -> Environment:
        return Environment(
            environment.database,
            environment.object_store,
            signing_secret=b"s" * 32,
            options=environment.options,
            now=clock,
            secret_box=SecretBox(keys),
        )

    rotating = environment_with_keys({**old_keys, **new_keys})
    assert (await secret_rotation.reencrypt_all_secrets(rotating)).reencrypted_count == 1
    await delivery.remove_obstacles(clock)
    rotated = environment_with_keys(new_keys)
    async with run_queue_worker(rotated, OutboundSettings()):
        await wait_until_queue_is_idle(rotated, "PENDING", "DEFERRED")
    assert [copy["path"] for copy in await delivery.stored_copies(bob)] == ["Junk"]
