"""Reading reports of other servers: as they come, damaged, and made to do harm."""

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
from tests.support.mail_servers.dsn_servers import fate, report, status

VECTORS = Path(__file__).with_name("vectors") / "reports"


async def found(raw: bytes | Path, sender: str = "") -> ReceivedDsn | None:
    return await dsn_parser.find_dsn(raw, await received_messages.read_message(raw), sender)


async def sure(raw: bytes | Path) -> ReceivedDsn:
    made = await found(raw)
    assert made is not None
    return made


EXCHANGE = report(
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
    back="message/rfc822",
)  # fmt: skip
GMAIL = report(
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
    back="message/rfc822",
)  # fmt: skip
QMAIL = b"""\
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
    ("name", "action", "code", "text", "now"),
    [
        ("failed", "failed", 550, "5.1.1 <gone@elsewhere.example>: Recipient address rejected: "
         "User unknown", "gone@elsewhere.example"),
        ("delayed", "delayed", 450, "4.2.1 The mailbox is busy", "slow@elsewhere.example"),
        ("relayed", "relayed", 250, "2.0.0 Taken", "good@elsewhere.example"),
    ],
)  # fmt: skip
async def test_reports_of_a_real_postfix_are_read(
    name: str, action: str, code: int, text: str, now: str
) -> None:
    made = await sure(VECTORS / f"postfix-{name}.eml")
    assert (made.reporting_mta, made.original_message_id) == (
        "mx.neighbour.example",
        "<one@example.org>",
    )
    assert made.envid == "0123456789abcdef0123.aaaabbbbccccdddd"
    (one,) = made.recipient_results
    assert (one.action, one.reply_code, one.reply_text) == (DsnAction(action), code, text)
    assert one.addresses == ("First+@example.com", now)
    assert one.orcpt == "rfc822;first+@example.com"


@pytest.mark.parametrize(("raw", "by"), [(EXCHANGE, "DB7PR"), (GMAIL, "googlemail.example")])
async def test_reports_of_others_are_read(raw: bytes, by: str) -> None:
    made = await sure(raw)
    assert made.reporting_mta.startswith(by)
    assert made.original_message_id == "<1@example.org>"
    (one,) = made.recipient_results
    assert (one.action, one.addresses, one.reply_code) == (
        DsnAction.FAILED,
        ("gone@example.net",),
        550,
    )
    assert one.reply_text.startswith("5.1.1")


async def test_what_is_no_report_is_mail() -> None:
    assert await found(QMAIL) is None
    assert await found(GMAIL, "gone@example.net") is None  # somebody sends it on
    receipt = GMAIL.replace(b"report-type=delivery-status", b"report-type=disposition-notification")
    assert await found(receipt) is None
    assert await found(GMAIL.replace(b"message/delivery-status", b"text/plain")) is None
    mixed = GMAIL.replace(b"multipart/report; report-type=delivery-status;", b"multipart/mixed;")
    assert await found(mixed) is None
    wrapped = b'Content-Type: multipart/mixed; boundary="x"\r\n\r\n--x\r\n' + GMAIL + b"--x--\r\n"
    assert await found(wrapped) is None


async def test_what_is_told_beyond_ascii_is_read() -> None:
    told = status(
        "Final-Recipient: utf-8; jörg@bücher.example\nAction: failed\nStatus: 5.1.1",
        "Final-Recipient: utf-8; a\\x{F6}\\x{110000}b@example.net\nAction: failed\nStatus: 5.1.1",
        "Final-Recipient: X400; /S=gone/\nAction: failed\nStatus: 5.1.1",
    )
    made = await sure(report(told, kind="message/global-delivery-status"))
    assert [one.addresses for one in made.recipient_results] == [
        ("jörg@bücher.example",),
        ("aöb@example.net",),
    ]


@pytest.mark.parametrize(
    ("group", "code", "text"),
    [
        (fate("a@b.example", said=""), 550, "5.1.1"),
        (fate("a@b.example", code="", said=""), 550, "failed"),
        (fate("a@b.example", code="4.4.7", said="X-Other; waited"), 450, "4.4.7 waited"),
        (fate("a@b.example", said="552 Full"), 552, "5.1.1 Full"),
        (fate("a@b.example", "delayed (host down)", "4.4.1", ""), 450, "4.4.1"),
        (fate("a@b.example", "DELIVERED", "2.0.0", "smtp; 250-OK"), 250, "2.0.0 OK"),
        (fate("a@b.example", said="smtp; 550 \x1b[31m\x07 red"), 550, "5.1.1 [31m red"),
    ],
)
async def test_what_was_said_is_taken_apart(group: str, code: int, text: str) -> None:
    (one,) = (await sure(report(status(group)))).recipient_results
    assert (one.reply_code, one.reply_text) == (code, text)


@pytest.mark.parametrize(
    "told",
    [
        "",
        "\n\n\n",
        "\0\0\0",
        ": : :\n\n;;;",
        status(),
        status("Final-Recipient: rfc822; a@b.example"),
        status("Action: failed"),
        status("Final-Recipient: a@b.example\nAction: failed"),
        status("Final-Recipient: rfc822;\nAction: failed"),
        status("Final-Recipient: rfc822; nobody\nAction: failed"),
        status("Final-Recipient: rfc822; a@b c\nAction: failed"),
        status("Final-Recipient: rfc822; a@b\x1b\nAction: failed"),
        status("Final-Recipient: rfc822; " + "a" * 400 + "@b.example\nAction: failed"),
        status("Final-Recipient: rfc822; a@b.example\nAction: resurrected"),
        " a fold before all\n\n fold",
    ],
)
async def test_what_is_damaged_is_mail(told: str) -> None:
    assert await found(report(told)) is None


async def test_what_stands_in_one_group_is_read_all_the_same() -> None:
    told = "Reporting-MTA: dns; mx.example.net\n" + fate("a@b.example")
    made = await sure(report(told))
    assert made.reporting_mta == "mx.example.net"
    assert made.recipient_results[0].addresses == ("a@b.example",)
    crowded = status("\n\n\n", fate("a@b.example"), "X: y", fate("c@b.example"))
    assert len((await sure(report(crowded))).recipient_results) == 2


async def test_ten_thousand_recipients_are_too_many() -> None:
    made = await sure(report(status(*(fate(f"a{n}@b.example") for n in range(4000)))))
    assert len(made.recipient_results) == dsn_parser.MAX_RECIPIENTS
    assert await found(report(status(*(fate(f"a{n}@b.example") for n in range(10_000))))) is None


async def test_what_is_made_to_take_long_does_not() -> None:
    begun = time.monotonic()
    for told in (
        "a:" + "b" * 1_000_000,
        "a:\n" + " b\n" * 300_000,
        "\n" * 1_000_000,
        "a:b\n\n" * 200_000,
        ":" * 1_000_000,
        status("Final-Recipient: rfc822; a@b.example\nAction: failed\nDiagnostic-Code: "
               + "<" * 900_000),
        status("Final-Recipient: rfc822; " + "\\x{" * 300_000 + "\nAction: failed"),
    ):  # fmt: skip
        await found(report(told))
    nested = b"Content-Type: message/rfc822\r\n\r\n" * 10_000
    await found(GMAIL.replace(b"The text", nested))
    deep = b"".join(
        b'Content-Type: multipart/report; boundary="%d"\r\n\r\n--%d\r\n' % (n, n)
        for n in range(2000)
    )
    await found(deep)
    assert time.monotonic() - begun < 20


async def test_the_header_that_came_back_may_be_encoded_or_not_there() -> None:
    told = status(fate("a@b.example"))
    assert (await sure(report(told, "Subject: none"))).original_message_id is None
    assert (await sure(report(told, ""))).original_message_id is None
    quoted = report(told, "Content-X: 1").replace(
        b"text/rfc822-headers\r\n\r\nContent-X: 1",
        b"text/rfc822-headers\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n"
        b"Message-ID: <a=3D1@example.org>",
    )
    assert (await sure(quoted)).original_message_id == "<a=1@example.org>"


async def test_a_large_report_is_read_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "report.eml"
    text = "Message-ID: <1@example.org>\n\n" + "x" * 70 + "\n" * 3_000_000
    file.write_bytes(report(status(fate("a@b.example")), text, back="message/rfc822"))
    assert (await sure(file)).original_message_id == "<1@example.org>"


# ---------------------------------------------------------------- ours


def ours(world: Environment, *names: str, action: DsnAction = DsnAction.FAILED) -> bytes:
    about = ReportedMessage("ada@example.org", world.now(), "q", DsnRequest(envid="q.proof"))
    failed = action is DsnAction.FAILED
    state = DeliveryState.BOUNCED if failed else DeliveryState.DEFERRED
    said = DeliveryResult(state, 550 if failed else 450, "No", "mx.example.net")
    told = [
        ReportedRecipient(f"{name}@example.net", action, said, f"rfc822;{name}@b.example")
        for name in names
    ]
    return build_report(
        world, about, told, b"Message-ID: <1@example.org>\r\nSubject: Hi\r\n\r\nText"
    )


async def test_ours_are_read_by_ourselves(world: Environment) -> None:
    made = await sure(ours(world, "gone", "away"))
    assert (made.reporting_mta, made.envid, made.original_message_id) == (
        "mx.example.org",
        "q.proof",
        "<1@example.org>",
    )
    assert [one.addresses for one in made.recipient_results] == [
        ("gone@b.example", "gone@example.net"),
        ("away@b.example", "away@example.net"),
    ]


def test_ours_are_read_by_other_programs(world: Environment) -> None:
    def failures(raw: bytes) -> set[bytes]:
        message: Any = email.message_from_bytes(raw, policy=policy.compat32)
        lasting, failed = all_failures(message)
        assert lasting <= failed or not failed
        return {address.lower() for address in failed}

    assert failures(ours(world, "gone", "away")) == {b"gone@b.example", b"away@b.example"}
    assert failures((VECTORS / "postfix-failed.eml").read_bytes()) == {b"first+@example.com"}
