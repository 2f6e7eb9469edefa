"""DSN requests (RFC 3461) in SMTP parameters, in the queue and in the DSNs they cause."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from mail.envelope.dsn_parameters import (
    ALL_REPORTS,
    DEFAULT_REPORTS,
    DsnRequest,
    InvalidDsnParameter,
    NotifyCondition,
    encode_xtext,
    pop_mail_parameters,
    pop_rcpt_parameters,
)
from mail.mime.header_encoding import NamedAddress
from mail.smtp.smtp_server import SmtpListenerConfig
from mail.smtp.submission_server import SubmissionListener as Listener
from mail.tls.server_tls import CertificateFiles
from models.queue.tables import DeliveryState, QueueEntry
from models.runtime.environment import Environment
from models.submission.tables import Submission
from models.users.tables import User
from resolvers.submission.smtp_submission import SmtpSubmissionService
from tests.conftest import GraphQLClient, make_user, raw_message
from tests.support.case_loop import each_case
from tests.support.mail.dsn_messages import DSN_SENDER, NOTIFY_ALL
from tests.support.mail.forwarding_addresses import add_forwarding_address
from tests.support.mail.inbound_authentication import use_dns_zone
from tests.support.mail.queued_deliveries import only_queued_dsn, queued_dsn_requests
from tests.support.mail.stored_messages import newest_inbox_message
from tests.support.mail_servers.dns_zone_server import make_dns_zone, run_dns_zone
from tests.support.mail_servers.dsn_servers import DsnSmtpServer
from tests.support.mail_servers.lmtp_client import SmtpTestClient
from tests.support.mail_servers.memory_listeners import LISTENER_KINDS, run_memory_listener
from tests.support.mail_servers.mx_session import open_mx_session
from tests.support.mail_servers.queue_worker import (
    load_inbox_rows,
    load_queued_messages,
    poll_until,
    queue_message,
    relay_settings,
    run_queue_worker,
)
from tests.support.mail_servers.smtp_and_dns_servers import FakeSmtpServer, run_smtp_server
from tests.support.mail_servers.smtp_client import CertificateAuthority, connect_smtp, start_tls
from tests.support.mail_servers.submission_client import PASSWORD, sign_in_by_auth_plain

MAIL_PARAMETERS = [
    ("ENVID=abc RET=FULL", "250 2.1.0"),
    ("envid=a+2Bb+20c ret=hdrs", "250 2.1.0"),
    (f"ENVID={'x' * 100}", "250 2.1.0"),
    (f"ENVID={'x' * 101}", "501 5.5.4"),
    ("ENVID=", "501 5.5.4"),
    ("ENVID", "501 5.5.4"),
    ("ENVID=a=b", "501 5.5.4"),
    ("ENVID=a+2bb", "501 5.5.4"),
    ("ENVID=a+ZZ", "501 5.5.4"),
    ("ENVID=a+0D+0AX:", "501 5.5.4"),
    ("ENVID=a+00", "501 5.5.4"),
    ("ENVID=a+E4", "501 5.5.4"),
    ("ENVID=ä", "501 5.5.4"),
    ("ENVID=a ENVID=b", "501 5.5.4"),
    ("RET=ALL", "501 5.5.4"),
    ("RET", "501 5.5.4"),
    ("RET=FULL RET=HDRS", "501 5.5.4"),
    ("NOTIFY=NEVER", "555 5.5.4"),
]
RCPT_PARAMETERS = [
    ("NOTIFY=NEVER", "250 2.1.5"),
    ("notify=success,delay ORCPT=rfc822;ada+2Bx@example.org", "250 2.1.5"),
    (f"ORCPT=rfc822;{'x' * 493}", "250 2.1.5"),
    (f"ORCPT=rfc822;{'x' * 494}", "501 5.5.4"),
    ("ORCPT=x400;/S=ada/", "501 5.5.4"),
    ("ORCPT=x400;/S+3Dada/", "250 2.1.5"),
    ("ORCPT=utf-8;a\\x{F6}@example.org", "250 2.1.5"),
    ("ORCPT=utf-8;ö@example.org", "501 5.5.4"),
    ("ORCPT=ada@example.org", "501 5.5.4"),
    ("ORCPT=;ada@example.org", "501 5.5.4"),
    ("ORCPT=rfc822;", "501 5.5.4"),
    ("ORCPT=rfc822;a+0Ab", "501 5.5.4"),
    ("ORCPT=rf_c;a", "501 5.5.4"),
    ("NOTIFY=", "501 5.5.4"),
    ("NOTIFY=NEVER,SUCCESS", "501 5.5.4"),
    ("NOTIFY=SUCCESS,SUCCESS", "501 5.5.4"),
    ("NOTIFY=SUCCESS,", "501 5.5.4"),
    ("NOTIFY=SOMETIMES", "501 5.5.4"),
    ("NOTIFY=NEVER NOTIFY=NEVER", "501 5.5.4"),
    ("RET=FULL", "555 5.5.4"),
]


@pytest.mark.parametrize("kind", LISTENER_KINDS)
async def test_dsn_parameters_of_mail_and_rcpt_are_validated(tmp_path: Path, kind: str) -> None:
    async with run_memory_listener(kind, tmp_path) as listener:
        for parameters, expected in MAIL_PARAMETERS:
            client = await listener.open_sending_session()
            reply = await client.run_command(f"MAIL FROM:<{DSN_SENDER}> {parameters}")
            assert (parameters, reply[:9]) == (parameters, expected)
            assert await client.run_command("NOOP") == "250 2.0.0 OK"
            await client.close()
        for parameters, expected in RCPT_PARAMETERS:
            client = await listener.open_sending_session()
            assert (await client.run_command(f"MAIL FROM:<{DSN_SENDER}>")).startswith("250")
            reply = await client.run_command(f"RCPT TO:<ada@example.org> {parameters}")
            assert (parameters, reply[:9]) == (parameters, expected)
            assert await client.run_command("NOOP") == "250 2.0.0 OK"
            await client.close()


async def test_utf8_orcpt_is_accepted_with_smtputf8(tmp_path: Path) -> None:
    async with run_memory_listener("mx", tmp_path) as listener:
        client = await listener.open_sending_session()
        await client.run_command(f"MAIL FROM:<{DSN_SENDER}> SMTPUTF8")
        command = "RCPT TO:<ada@example.org> ORCPT=utf-8;jörg@example.org"
        assert (await client.run_command(command)).startswith("250 2.1.5")
        await client.close()


@pytest.mark.parametrize("text", ["a", "a+b=c", "A B", "\\x{F6}", "~!", '"a b"@c', "\x7f"])
def test_xtext_decodes_to_encoded_text(text: str) -> None:
    encoded = encode_xtext(text)
    assert encoded.isascii()
    assert not set(encoded) & set(" =\r\n\x7f")
    if text.isprintable():
        assert pop_mail_parameters({"ENVID": encoded}).envid == text
        dsn_request = pop_rcpt_parameters(
            {"ORCPT": f"rfc822;{encoded}"}, DEFAULT_REPORTS, allows_utf8=False
        )
        assert dsn_request.orcpt == f"rfc822;{text}"
    else:
        with pytest.raises(InvalidDsnParameter):
            pop_mail_parameters({"ENVID": encoded})


def test_default_notify_conditions() -> None:
    assert [DEFAULT_REPORTS.is_report_wanted(condition) for condition in NotifyCondition] == [
        False,
        True,
        True,
    ]
    assert [
        DsnRequest(frozenset()).is_report_wanted(condition) for condition in NotifyCondition
    ] == [False] * 3
    assert [ALL_REPORTS.is_report_wanted(condition) for condition in NotifyCondition] == [True] * 3
    assert (
        DsnRequest(frozenset({NotifyCondition.SUCCESS}))
        .without_condition(NotifyCondition.SUCCESS)
        .notify_value
        == "NEVER"
    )


@pytest.fixture
def authority(tmp_path: Path) -> CertificateAuthority:
    return CertificateAuthority(tmp_path)


@pytest.fixture
async def submission_client(
    environment: Environment, tmp_path: Path, authority: CertificateAuthority
) -> AsyncIterator[SmtpTestClient]:
    """A signed-in client of the submission listener."""
    await make_user(environment, "ada", password=PASSWORD)
    config = SmtpListenerConfig(certificates=CertificateFiles(authority.issue_certificate()))
    listener = Listener(environment, tmp_path / "spool", config, SmtpSubmissionService(environment))
    await listener.start(host="127.0.0.1", port=0)
    client = await connect_smtp(listener.port)
    await start_tls(client, authority.client_context())
    await sign_in_by_auth_plain(client)
    yield client
    await client.close()
    await listener.close(1)


async def submit_message(
    client: SmtpTestClient, mail_parameters: str, *recipients: str, sender: str = "ada@example.org"
) -> str:
    """Send a message with these parameters and return the reply after the dot."""
    assert (
        await client.run_command(f"MAIL FROM:<{sender}> {mail_parameters}".rstrip())
    ).startswith("250")
    for recipient in recipients:
        assert (await client.run_command(f"RCPT TO:{recipient}")).startswith("250")
    assert (await client.run_command("DATA")).startswith("354")
    client.send_bytes(raw_message("Hello", From="ada@example.org") + b".\r\n")
    return await client.read_reply()


async def queued_columns(environment: Environment) -> tuple[Any, list[Any]]:
    """Read the DSN columns of the only submission and of its queue entries."""
    (row,) = await environment.database.read(
        select(
            col(Submission.envid),
            col(Submission.ret),
            col(Submission.header_id),
            col(Submission.user_id),
        )
    )
    query = select(col(QueueEntry.recipient), col(QueueEntry.notify), col(QueueEntry.orcpt))
    return row, [
        tuple(entry)
        for entry in await environment.database.read(query.order_by(col(QueueEntry.id)))
    ]


async def test_dsn_request_of_submission_is_queued_and_passed_on(
    submission_client: SmtpTestClient, environment: Environment
) -> None:
    reply = await submit_message(
        submission_client,
        "RET=FULL ENVID=My+20Id",
        "<dave@example.net> NOTIFY=SUCCESS ORCPT=rfc822;list+2Bx@example.com",
        "<eve@example.net> NOTIFY=NEVER",
        "<DAVE@example.net> NOTIFY=NEVER",
        "<frank@example.net>",
    )
    assert reply.startswith("250")
    row, deliveries = await queued_columns(environment)
    assert (row.envid, row.ret) == ("My Id", "FULL")
    assert row.header_id.endswith("@example.com>")
    assert deliveries == [
        ("dave@example.net", "SUCCESS", "rfc822;list+x@example.com"),
        ("eve@example.net", "NEVER", None),
        ("frank@example.net", None, None),
    ]
    remote_server = DsnSmtpServer()
    async with (
        run_smtp_server(remote_server),
        run_queue_worker(environment, relay_settings(remote_server)),
    ):
        await poll_until(lambda: has_received(remote_server))
    assert remote_server.dsn_parameters == [
        ("MAIL", ["RET=FULL", "ENVID=My+20Id"]),
        ("RCPT", ["NOTIFY=SUCCESS", "ORCPT=rfc822;list+2Bx@example.com"]),
        ("RCPT", ["NOTIFY=NEVER", "ORCPT=rfc822;eve@example.net"]),
        ("RCPT", ["ORCPT=rfc822;frank@example.net"]),
    ]


async def has_received(server: FakeSmtpServer, count: int = 1) -> bool:
    return len(server.messages) >= count


async def test_submission_with_null_sender_requests_no_dsn(
    submission_client: SmtpTestClient, environment: Environment
) -> None:
    assert (
        await submit_message(
            submission_client, "ENVID=1", f"<dave@example.net> {NOTIFY_ALL}", sender=""
        )
    ).startswith("250")
    _, deliveries = await queued_columns(environment)
    assert deliveries == [("dave@example.net", "NEVER", None)]


@pytest.fixture
async def client(environment: Environment, tmp_path: Path) -> AsyncIterator[SmtpTestClient]:
    """A connection to the MX listener that passes SPF for example.net."""
    dns_zone = make_dns_zone({"example.net": "v=spf1 ip4:127.0.0.1 -all"})
    async with run_dns_zone(dns_zone):
        use_dns_zone(environment, dns_zone)
        async with open_mx_session(environment, tmp_path) as mx_client:
            yield mx_client


@pytest.mark.usefixtures("bob", "verify_consistency")
async def test_remote_sender_gets_success_dsn_once(
    client: SmtpTestClient, ada: GraphQLClient, environment: Environment
) -> None:
    for _ in range(2):  # the second message is a duplicate
        reply = await submit_message(
            client,
            "ENVID=No+2B1 RET=FULL",
            f"<ada@example.org> {NOTIFY_ALL} ORCPT=rfc822;first@example.com",
            "<bob@example.org>",
            sender=DSN_SENDER,
        )
        assert reply.startswith("250")
    assert await queued_dsn_requests(environment) == [("", DSN_SENDER, "NEVER")]
    message_fields, (row,), subject = await only_queued_dsn(environment)
    assert subject == "Your message was delivered"
    assert (message_fields["Original-Envelope-Id"], message_fields["Reporting-MTA"]) == (
        "No+1",
        "dns; mx.example.org",
    )
    assert row["Original-Recipient"] == "rfc822;first@example.com"
    assert (row["Final-Recipient"], row["Action"]) == ("rfc822; ada@example.org", "delivered")
    assert row["Status"] == "2.0.0"
    assert len(await load_inbox_rows(ada)) == 1


UNREPORTED_DELIVERIES: list[tuple[str, str]] = [
    ("", NOTIFY_ALL),
    (DSN_SENDER, ""),
    (DSN_SENDER, "NOTIFY=FAILURE"),
    (DSN_SENDER, "NOTIFY=NEVER"),
]


@pytest.mark.usefixtures("ada", "verify_consistency")
async def test_success_dsn_needs_sender_and_request(
    client: SmtpTestClient, environment: Environment
) -> None:
    for case in each_case(UNREPORTED_DELIVERIES):
        with case as (sender, parameters):
            reply = await submit_message(
                client, "", f"<ada@example.org> {parameters}".rstrip(), sender=sender
            )
            assert reply.startswith("250")
            assert await queued_dsn_requests(environment) == []


@pytest.mark.usefixtures("ada", "verify_consistency")
async def test_success_dsn_is_sent_for_lmtp_delivery(
    lmtp_client: SmtpTestClient, environment: Environment
) -> None:
    assert (
        await submit_message(lmtp_client, "", f"<ada@example.org> {NOTIFY_ALL}", sender=DSN_SENDER)
    ).startswith("250")
    assert await queued_dsn_requests(environment) == [("", DSN_SENDER, "NEVER")]


@pytest.mark.usefixtures("verify_consistency")
async def test_forward_to_one_target_passes_dsn_request_on(
    client: SmtpTestClient, ada: GraphQLClient, environment: Environment
) -> None:
    await add_forwarding_address(environment, "list", "dave@far.example")
    await submit_message(
        client, "ENVID=1 RET=FULL", f"<list@example.org> {NOTIFY_ALL}", sender=DSN_SENDER
    )
    row, deliveries = await queued_columns(environment)
    assert (row.envid, row.ret, row.user_id) == ("1", "FULL", None)
    assert deliveries == [("dave@far.example", "DELAY,FAILURE,SUCCESS", "rfc822;list@example.org")]
    assert await load_inbox_rows(ada) == []
    remote_server = FakeSmtpServer()  # without DSN, so that our queue writes the DSN
    async with (
        run_smtp_server(remote_server),
        run_queue_worker(environment, relay_settings(remote_server)),
    ):
        await poll_until(lambda: has_received(remote_server, 2))
    (report,) = [mail for mail in remote_server.messages if mail.to == [DSN_SENDER]]
    assert b"Action: relayed" in report.raw
    assert b"Original-Recipient: rfc822;list@example.org" in report.raw
    assert b"Original-Envelope-Id: 1" in report.raw


@pytest.mark.usefixtures("verify_consistency")
async def test_forward_to_several_targets_sends_expanded_dsn(
    client: SmtpTestClient, ada: GraphQLClient, environment: Environment
) -> None:
    await add_forwarding_address(environment, "list", "dave@far.example", ada.address)
    await submit_message(client, "ENVID=1", f"<list@example.org> {NOTIFY_ALL}", sender=DSN_SENDER)
    queued = await queued_dsn_requests(environment)
    assert [(recipient, notify) for _, recipient, notify in queued] == [
        ("dave@far.example", "DELAY,FAILURE"),
        (DSN_SENDER, "NEVER"),
    ]
    raw = (await load_queued_messages(environment))[1]
    assert b"Action: expanded" in raw


@pytest.mark.usefixtures("verify_consistency")
async def test_forward_of_user_sends_success_dsn_and_keeps_never(
    client: SmtpTestClient, ada: GraphQLClient, environment: Environment
) -> None:
    async with environment.write_session(ada.user.id) as session:
        statement = update(User).where(col(User.id) == ada.user.id)
        await session.exec(statement.values(forward_to=["dave@far.example"]))
    await submit_message(client, "", "<ada@example.org> NOTIFY=NEVER", sender=DSN_SENDER)
    await submit_message(client, "", f"<ada@example.org> {NOTIFY_ALL}", sender=f"x{DSN_SENDER}")
    queued = [
        (recipient, notify) for _, recipient, notify in await queued_dsn_requests(environment)
    ]
    assert queued == [
        ("dave@far.example", "NEVER"),
        ("dave@far.example", "DELAY,FAILURE"),
        (f"x{DSN_SENDER}", "NEVER"),
    ]


@pytest.mark.usefixtures("verify_consistency")
async def test_sender_without_spf_pass_gets_no_dsn(
    client: SmtpTestClient, ada: GraphQLClient, environment: Environment
) -> None:
    reply = await submit_message(
        client, "", f"<{ada.address}> {NOTIFY_ALL}", sender="carol@unsure.example"
    )
    assert reply.startswith("250")
    assert await queued_dsn_requests(environment) == []
    assert len(await load_inbox_rows(ada)) == 1


async def test_local_sender_gets_dsn_of_failed_forward(
    ada: GraphQLClient, environment: Environment
) -> None:
    """The DSN of the forwarded message is matched to the submission of the user."""
    await add_forwarding_address(environment, "list", "gone@far.example")
    refusing_server = FakeSmtpServer({"gone": "550 5.1.1 Gone"})
    async with (
        run_smtp_server(refusing_server),
        run_queue_worker(environment, relay_settings(refusing_server)),
    ):
        key = await queue_message(ada, NamedAddress("list@example.org"))

        async def is_bounced() -> bool:
            query = select(col(QueueEntry.state), col(QueueEntry.dsn_verified)).where(
                col(QueueEntry.submission_id) == key
            )
            (row,) = await environment.database.read(query)
            return tuple(row) == (DeliveryState.BOUNCED, True)

        await poll_until(is_bounced)
    (dsn,) = await load_inbox_rows(ada)
    assert dsn.subject == "Your message could not be delivered"
    assert b"Original-Recipient: rfc822;list@example.org" in await newest_inbox_message(ada)
