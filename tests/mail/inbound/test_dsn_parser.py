"""Parsing of DSNs of other servers: valid, damaged and hostile ones."""

import email
import time
from email import policy
from pathlib import Path
from typing import Any

import pytest
from flufl.bounce import all_failures

from mail.envelope.delivery_jobs import DeliveryResult, DsnAction
from mail.envelope.dsn_parameters import DsnRequest
from mail.inbound import dsn_parser
from mail.inbound.dsn_parser import ReceivedDsn
from mail.queue.dsn_writer import ReportedMessage, ReportedRecipient, build_report
from mail.storage import received_messages
from models.queue.tables import DeliveryState
from models.runtime.environment import Environment
from tests.support.mail_servers.dsn_servers import (
    delivery_status_part,
    make_dsn_message,
    recipient_status_fields,
)

VECTORS = Path(__file__).with_name("vectors") / "reports"


async def parse_dsn(raw: bytes | Path, sender: str = "") -> ReceivedDsn | None:
    return await dsn_parser.dsn_of_message_or_none(
        raw, await received_messages.parse_storable_message(raw), sender
    )


async def parse_valid_dsn(raw: bytes | Path) -> ReceivedDsn:
    dsn = await parse_dsn(raw)
    assert dsn is not None
    return dsn


EXCHANGE_DSN = make_dsn_message(
    """\
Original-Envelope-ID: queue.proof
Reporting-MTA: dns;DB7PR04MB4282.eurprd04.prod.outlook.example
Received-From-MTA: dns;AM0PR.outlook.example
Arrival-Date: Wed, 1 Jan 2025 10:00:00 +0000

Final-Recipient: rfc822;gone@example.net
Action: failed
Status: 5.1.10
Diagnostic-Code: smtp;550 5.1.10 RESOLVER.ADR.RecipientNotFound; not found
X-Display-Name: Gone
""",
    "From: Ada <ada@example.org>\nMessage-Id:\n <1@example.org>\nSubject: Hi\n\nThe text",
    returned_content_type="message/rfc822",
)  # fmt: skip
GMAIL_DSN = make_dsn_message(
    """\
Reporting-MTA: dns; googlemail.example
Received-From-MTA: dns; ada@example.org
Arrival-Date: Wed, 01 Jan 2025 02:00:00 -0800 (PST)
X-Original-Message-ID: <1@example.org>

Final-Recipient: rfc822; gone@example.net
Action: failed
Status: 5.1.1
Remote-MTA: dns; aspmx.l.google.example. (192.0.2.27, the server for the domain example.net.)
Diagnostic-Code: smtp; 550-5.1.1 The email account that you tried to reach does not exist.
 550-5.1.1 double-checking the recipient's email address for typos or
 550 5.1.1 unnecessary spaces. - gsmtp
Last-Attempt-Date: Wed, 01 Jan 2025 02:00:01 -0800 (PST)
""",
    "From: Ada <ada@example.org>\nMessage-ID: <1@example.org>\n\nThe text",
    returned_content_type="message/rfc822",
)  # fmt: skip
QMAIL_BOUNCE = b"""\
From: MAILER-DAEMON@mx.example.net
To: ada@example.org
Subject: failure notice

Hi. This is the qmail-send program at mx.example.net.
I'm afraid I wasn't able to deliver your message to the following addresses.

<gone@example.net>:
Sorry, no mailbox here by that name. (#5.1.1)

--- Below this line is a copy of the message.

Message-ID: <1@example.org>

Hi
"""


@pytest.mark.parametrize(
    ("name", "action", "code", "text", "final_address"),
    [
        ("failed", "failed", 550, "5.1.1 <gone@elsewhere.example>: Recipient address rejected: "
         "User unknown", "gone@elsewhere.example"),
        ("delayed", "delayed", 450, "4.2.1 The mailbox is busy", "slow@elsewhere.example"),
        ("relayed", "relayed", 250, "2.0.0 Taken", "good@elsewhere.example"),
    ],
)  # fmt: skip
async def test_postfix_dsn_is_parsed(
    name: str, action: str, code: int, text: str, final_address: str
) -> None:
    dsn = await parse_valid_dsn(VECTORS / f"postfix-{name}.eml")
    assert (dsn.reporting_mta, dsn.original_message_id) == (
        "mx.neighbour.example",
        "<one@example.org>",
    )
    assert dsn.envid == "0123456789abcdef0123.aaaabbbbccccdddd"
    (recipient,) = dsn.recipient_results
    assert (recipient.action, recipient.reply_code, recipient.reply_text) == (
        DsnAction(action),
        code,
        text,
    )
    assert recipient.addresses == ("First+@example.com", final_address)
    assert recipient.orcpt == "rfc822;first+@example.com"


@pytest.mark.parametrize(
    ("raw", "reporting_mta"), [(EXCHANGE_DSN, "DB7PR"), (GMAIL_DSN, "googlemail.example")]
)
async def test_exchange_and_gmail_dsns_are_parsed(raw: bytes, reporting_mta: str) -> None:
    dsn = await parse_valid_dsn(raw)
    assert dsn.reporting_mta.startswith(reporting_mta)
    assert dsn.original_message_id == "<1@example.org>"
    (recipient,) = dsn.recipient_results
    assert (recipient.action, recipient.addresses, recipient.reply_code) == (
        DsnAction.FAILED,
        ("gone@example.net",),
        550,
    )
    assert recipient.reply_text.startswith("5.1.1")


async def test_other_messages_are_no_dsn() -> None:
    assert await parse_dsn(QMAIL_BOUNCE) is None
    assert await parse_dsn(GMAIL_DSN, "gone@example.net") is None  # a forwarded DSN
    disposition_notification = GMAIL_DSN.replace(
        b"report-type=delivery-status", b"report-type=disposition-notification"
    )
    assert await parse_dsn(disposition_notification) is None
    assert await parse_dsn(GMAIL_DSN.replace(b"message/delivery-status", b"text/plain")) is None
    mixed = GMAIL_DSN.replace(
        b"multipart/report; report-type=delivery-status;", b"multipart/mixed;"
    )
    assert await parse_dsn(mixed) is None
    wrapped = (
        b'Content-Type: multipart/mixed; boundary="x"\r\n\r\n--x\r\n' + GMAIL_DSN + b"--x--\r\n"
    )
    assert await parse_dsn(wrapped) is None


async def test_utf8_addresses_of_a_dsn_are_parsed() -> None:
    status_text = delivery_status_part(
        "Final-Recipient: utf-8; jörg@bücher.example\nAction: failed\nStatus: 5.1.1",
        "Final-Recipient: utf-8; a\\x{F6}\\x{110000}b@example.net\nAction: failed\nStatus: 5.1.1",
        "Final-Recipient: X400; /S=gone/\nAction: failed\nStatus: 5.1.1",
    )
    dsn = await parse_valid_dsn(
        make_dsn_message(status_text, status_content_type="message/global-delivery-status")
    )
    assert [recipient.addresses for recipient in dsn.recipient_results] == [
        ("jörg@bücher.example",),
        ("aöb@example.net",),
    ]


@pytest.mark.parametrize(
    ("recipient_fields", "code", "text"),
    [
        (recipient_status_fields("a@b.example", diagnostic=""), 550, "5.1.1"),
        (recipient_status_fields("a@b.example", code="", diagnostic=""), 550, "failed"),
        (
            recipient_status_fields("a@b.example", code="4.4.7", diagnostic="X-Other; waited"),
            450,
            "4.4.7 waited",
        ),
        (recipient_status_fields("a@b.example", diagnostic="552 Full"), 552, "5.1.1 Full"),
        (recipient_status_fields("a@b.example", "delayed (host down)", "4.4.1", ""), 450, "4.4.1"),
        (
            recipient_status_fields("a@b.example", "DELIVERED", "2.0.0", "smtp; 250-OK"),
            250,
            "2.0.0 OK",
        ),
        (
            recipient_status_fields("a@b.example", diagnostic="smtp; 550 \x1b[31m\x07 red"),
            550,
            "5.1.1 [31m red",
        ),
    ],
)
async def test_reply_code_and_text_are_parsed(recipient_fields: str, code: int, text: str) -> None:
    (recipient,) = (
        await parse_valid_dsn(make_dsn_message(delivery_status_part(recipient_fields)))
    ).recipient_results
    assert (recipient.reply_code, recipient.reply_text) == (code, text)


@pytest.mark.parametrize(
    "status_text",
    [
        "",
        "\n\n\n",
        "\0\0\0",
        ": : :\n\n;;;",
        delivery_status_part(),
        delivery_status_part("Final-Recipient: rfc822; a@b.example"),
        delivery_status_part("Action: failed"),
        delivery_status_part("Final-Recipient: a@b.example\nAction: failed"),
        delivery_status_part("Final-Recipient: rfc822;\nAction: failed"),
        delivery_status_part("Final-Recipient: rfc822; nobody\nAction: failed"),
        delivery_status_part("Final-Recipient: rfc822; a@b c\nAction: failed"),
        delivery_status_part("Final-Recipient: rfc822; a@b\x1b\nAction: failed"),
        delivery_status_part(
            "Final-Recipient: rfc822; " + "a" * 400 + "@b.example\nAction: failed"
        ),
        delivery_status_part("Final-Recipient: rfc822; a@b.example\nAction: resurrected"),
        " a fold before all\n\n fold",
    ],
)
async def test_damaged_status_is_no_dsn(status_text: str) -> None:
    assert await parse_dsn(make_dsn_message(status_text)) is None


async def test_unusual_field_groups_are_parsed() -> None:
    status_text = "Reporting-MTA: dns; mx.example.net\n" + recipient_status_fields("a@b.example")
    dsn = await parse_valid_dsn(make_dsn_message(status_text))
    assert dsn.reporting_mta == "mx.example.net"
    assert dsn.recipient_results[0].addresses == ("a@b.example",)
    many_groups = delivery_status_part(
        "\n\n\n",
        recipient_status_fields("a@b.example"),
        "X: y",
        recipient_status_fields("c@b.example"),
    )
    assert len((await parse_valid_dsn(make_dsn_message(many_groups))).recipient_results) == 2


async def test_too_many_recipients_are_no_dsn() -> None:
    dsn = await parse_valid_dsn(
        make_dsn_message(
            delivery_status_part(*(recipient_status_fields(f"a{n}@b.example") for n in range(4000)))
        )
    )
    assert len(dsn.recipient_results) == dsn_parser.MAX_RECIPIENTS
    assert (
        await parse_dsn(
            make_dsn_message(
                delivery_status_part(
                    *(recipient_status_fields(f"a{n}@b.example") for n in range(10_000))
                )
            )
        )
        is None
    )


async def test_hostile_dsn_is_parsed_quickly() -> None:
    started_at = time.process_time()
    for status_text in (
        "a:" + "b" * 1_000_000,
        "a:\n" + " b\n" * 300_000,
        "\n" * 1_000_000,
        "a:b\n\n" * 200_000,
        ":" * 1_000_000,
        delivery_status_part(
            "Final-Recipient: rfc822; a@b.example\nAction: failed\nDiagnostic-Code: "
            + "<" * 900_000
        ),
        delivery_status_part("Final-Recipient: rfc822; " + "\\x{" * 300_000 + "\nAction: failed"),
    ):
        await parse_dsn(make_dsn_message(status_text))
    nested = b"Content-Type: message/rfc822\r\n\r\n" * 10_000
    await parse_dsn(GMAIL_DSN.replace(b"The text", nested))
    deep_multipart = b"".join(
        b'Content-Type: multipart/report; boundary="%d"\r\n\r\n--%d\r\n' % (n, n)
        for n in range(2000)
    )
    await parse_dsn(deep_multipart)
    assert time.process_time() - started_at < 20


async def test_returned_header_may_be_encoded_or_missing() -> None:
    status_text = delivery_status_part(recipient_status_fields("a@b.example"))
    assert (
        await parse_valid_dsn(make_dsn_message(status_text, "Subject: none"))
    ).original_message_id is None
    assert (await parse_valid_dsn(make_dsn_message(status_text, ""))).original_message_id is None
    quoted = make_dsn_message(status_text, "Content-X: 1").replace(
        b"text/rfc822-headers\r\n\r\nContent-X: 1",
        b"text/rfc822-headers\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n"
        b"Message-ID: <a=3D1@example.org>",
    )
    assert (await parse_valid_dsn(quoted)).original_message_id == "<a=1@example.org>"


async def test_large_dsn_is_parsed_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "report.eml"
    text = "Message-ID: <1@example.org>\n\n" + "x" * 70 + "\n" * 3_000_000
    file.write_bytes(
        make_dsn_message(
            delivery_status_part(recipient_status_fields("a@b.example")),
            text,
            returned_content_type="message/rfc822",
        )
    )
    assert (await parse_valid_dsn(file)).original_message_id == "<1@example.org>"


def build_own_dsn(
    environment: Environment, *local_parts: str, action: DsnAction = DsnAction.FAILED
) -> bytes:
    message = ReportedMessage(
        "ada@example.org", environment.now(), "q", DsnRequest(envid="q.proof")
    )
    is_failure = action is DsnAction.FAILED
    state = DeliveryState.BOUNCED if is_failure else DeliveryState.DEFERRED
    delivery_result = DeliveryResult(state, 550 if is_failure else 450, "No", "mx.example.net")
    recipients = [
        ReportedRecipient(
            f"{local_part}@example.net", action, delivery_result, f"rfc822;{local_part}@b.example"
        )
        for local_part in local_parts
    ]
    return build_report(
        environment, message, recipients, b"Message-ID: <1@example.org>\r\nSubject: Hi\r\n\r\nText"
    )


async def test_own_dsn_is_parsed(environment: Environment) -> None:
    dsn = await parse_valid_dsn(build_own_dsn(environment, "gone", "away"))
    assert (dsn.reporting_mta, dsn.envid, dsn.original_message_id) == (
        "mx.example.org",
        "q.proof",
        "<1@example.org>",
    )
    assert [recipient.addresses for recipient in dsn.recipient_results] == [
        ("gone@b.example", "gone@example.net"),
        ("away@b.example", "away@example.net"),
    ]


def test_own_dsn_is_parsed_by_flufl_bounce(environment: Environment) -> None:
    def failures(raw: bytes) -> set[bytes]:
        message: Any = email.message_from_bytes(raw, policy=policy.compat32)
        permanent, failed = all_failures(message)
        assert permanent <= failed or not failed
        return {address.lower() for address in failed}

    assert failures(build_own_dsn(environment, "gone", "away")) == {
        b"gone@b.example",
        b"away@b.example",
    }
    assert failures((VECTORS / "postfix-failed.eml").read_bytes()) == {b"first+@example.com"}
