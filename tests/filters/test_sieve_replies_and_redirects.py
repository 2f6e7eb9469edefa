"""Mail that Sieve scripts send: rejections, redirects, vacation replies and notifications."""

import pytest

from mail.maintenance.housekeeping import run_housekeeping_round
from mail.mime.header_encoding import NamedAddress
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient, ManualClock, raw_message
from tests.support.case_loop import each_case
from tests.support.mail.queued_deliveries import queued_envelopes
from tests.support.mail.stored_messages import subjects_by_mailbox
from tests.support.mail_servers.lmtp_client import SmtpTestClient
from tests.support.mail_servers.lmtp_transactions import DELIVERED_REPLY, deliver_without_queue_id
from tests.support.mail_servers.queue_worker import (
    poll_until,
    queue_message,
    relay_queued_mail,
    relay_settings,
    run_queue_worker,
    wait_until_tried,
)
from tests.support.mail_servers.smtp_and_dns_servers import FakeSmtpServer, run_smtp_server
from tests.support.operations.sieve_operations import active_script_error, put_sieve_script
from tests.support.stores.counter_check import select_rows

pytestmark = pytest.mark.usefixtures("verify_consistency")


async def test_ereject_is_smtp_reply_to_sender(
    ada: GraphQLClient, bob: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient
) -> None:
    await put_sieve_script(ada, 'require "ereject"; ereject "Nein,\r\n danke\u00a0- é";')
    replies = await deliver_without_queue_id(
        lmtp_client, raw_message("Hello"), ada.address, bob.address
    )
    assert replies == ["550 5.7.1 Nein, danke - ?", DELIVERED_REPLY]
    assert (
        await subjects_by_mailbox(environment, ada),
        await subjects_by_mailbox(environment, bob),
    ) == (
        {},
        {"INBOX": ["Hello"]},
    )


async def test_reject_of_local_message_sends_dsn(
    ada: GraphQLClient, bob: GraphQLClient, environment: Environment
) -> None:
    await put_sieve_script(ada, 'require "reject"; reject "No, thanks";')
    submission_id = await queue_message(bob, NamedAddress(ada.address))
    async with (
        run_smtp_server(FakeSmtpServer()) as server,
        run_queue_worker(environment, relay_settings(server)),
    ):
        queue_entries = await wait_until_tried(environment, submission_id)

        async def has_dsn() -> bool:
            return "INBOX" in await subjects_by_mailbox(environment, bob)

        await poll_until(has_dsn)
    assert (queue_entries["ada"].last_code, queue_entries["ada"].state) == (550, "BOUNCED")
    assert "No, thanks" in queue_entries["ada"].last_response
    assert await subjects_by_mailbox(environment, ada) == {}


async def test_redirect_rewrites_sender_with_srs(
    ada: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient
) -> None:
    await put_sieve_script(ada, 'redirect "dave@example.com";')
    assert await deliver_without_queue_id(lmtp_client, raw_message("Hello")) == [DELIVERED_REPLY]
    assert await subjects_by_mailbox(environment, ada) == {}
    ((envelope, message),) = await relay_queued_mail(environment)
    assert envelope.sender.startswith("SRS0=")
    assert envelope.sender.endswith("@example.org")
    assert (envelope.to, message["Subject"]) == (["dave@example.com"], "Hello")
    assert message["Delivered-To"] == "ada@example.org"


async def test_redirect_of_mail_loop_keeps_message(
    ada: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient
) -> None:
    await put_sieve_script(ada, 'redirect "dave@example.com";')
    raw = b"Delivered-To: ada@example.org\r\n" + raw_message("Hello")
    assert await deliver_without_queue_id(lmtp_client, raw) == [DELIVERED_REPLY]
    assert await subjects_by_mailbox(environment, ada) == {"INBOX": ["Hello"]}
    assert (
        await active_script_error(environment)
        == "Not redirected to dave@example.com: Mail loop detected."
    )
    assert await queued_envelopes(environment) == []


async def test_vacation_replies_once_per_sender(
    ada: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient, clock: ManualClock
) -> None:
    await put_sieve_script(
        ada,
        'require ["vacation", "fcc", "mailbox"];\n'
        'vacation :days 3 :subject "Away" :from "Ada L <ada@example.org>" '
        ':fcc "Answers" :create "I am away.";',
    )
    for number, sender in enumerate(["carol@example.com", "Carol+x@example.com", "d@example.net"]):
        assert await deliver_without_queue_id(
            lmtp_client, raw_message(f"Letter {number}"), sender=sender
        ) == [DELIVERED_REPLY]
    assert await queued_envelopes(environment) == [("", "carol@example.com"), ("", "d@example.net")]
    subjects = await subjects_by_mailbox(environment, ada)
    assert subjects["Answers"] == ["Away", "Away"]
    assert subjects["INBOX"] == ["Letter 0", "Letter 1", "Letter 2"]
    clock.tick(days=3)
    assert await deliver_without_queue_id(lmtp_client, raw_message("Letter 4")) == [DELIVERED_REPLY]
    assert len(await queued_envelopes(environment)) == 3
    clock.tick(days=4)
    await run_housekeeping_round(environment)
    assert await select_rows(environment, "SELECT key FROM sieve_memories") == []


async def test_vacation_reply_follows_rfc_5230(
    ada: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient
) -> None:
    await put_sieve_script(
        ada,
        'require "vacation"; vacation :mime :from "eve@example.net" text:\r\n'
        "Content-Type: text/html; charset=utf-8\r\nX-Mine: no\r\n\r\n<p>Grüße</p>\r\n.\r\n;",
    )
    assert await deliver_without_queue_id(
        lmtp_client, raw_message("Hello", Message_ID="<a@example.com>")
    ) == [DELIVERED_REPLY]
    ((envelope, message),) = await relay_queued_mail(environment)
    assert (envelope.sender, envelope.to) == ("<>", ["carol@example.com"])
    assert message["From"] == "ada@example.org"  # she is not allowed to send as eve
    assert message["Subject"] == "Auto: Hello"
    assert (message["Auto-Submitted"], message["In-Reply-To"]) == (
        "auto-replied",
        "<a@example.com>",
    )
    assert (message.get_content_type(), message["X-Mine"]) == ("text/html", None)
    assert message.get_content().strip() == "<p>Grüße</p>"


UNANSWERED_HEADERS = [
    {"X_Autoreply": "yes"}, {"X_Spam_Flag": "YES"}, {"List_Id": "<x.example.com>"},
    {"Auto_Submitted": "auto-generated"}, {"To": "others@example.net"},
]  # fmt: skip


async def test_vacation_does_not_reply_to_machines_lists_and_spam(
    ada: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient
) -> None:
    await put_sieve_script(ada, 'require "vacation"; vacation "I am away.";')
    for case in each_case(UNANSWERED_HEADERS):
        with case as header:
            assert await deliver_without_queue_id(lmtp_client, raw_message("Hello", **header)) == [
                DELIVERED_REPLY
            ]
            assert await queued_envelopes(environment) == []
    assert await deliver_without_queue_id(lmtp_client, raw_message("Hello")) == [DELIVERED_REPLY]
    assert len(await queued_envelopes(environment)) == 1


async def test_notify_sends_mail(
    ada: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient
) -> None:
    await put_sieve_script(
        ada,
        'require "enotify";\n'
        'notify :importance "1" :message "News of Carol" '
        '"mailto:dave@example.com?body=Look&X-Tag=1&Received=no";',
    )
    for _ in range(2):
        assert await deliver_without_queue_id(lmtp_client, raw_message("Hello")) == [
            DELIVERED_REPLY
        ]
    assert await deliver_without_queue_id(
        lmtp_client, raw_message("Robot", Auto_Submitted="auto-replied")
    ) == [DELIVERED_REPLY]
    ((envelope, message),) = await relay_queued_mail(environment)
    assert (envelope.sender, envelope.to) == ("<>", ["dave@example.com"])
    assert (message["Subject"], message["X-Tag"], message["Importance"]) == (
        "News of Carol",
        "1",
        "high",
    )
    assert message["Auto-Submitted"] == 'auto-notified; owner-email="ada@example.org"'
    assert message["Received"] is None
    assert message.get_content().strip() == "Look"
    assert await subjects_by_mailbox(environment, ada) == {"INBOX": ["Hello", "Robot"]}
