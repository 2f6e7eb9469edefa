"""The replies of the LMTP, MX and submission listeners: code, enhanced status code and text."""

import base64
import re
from datetime import timedelta
from pathlib import Path

import pytest

from mail.delivery.account_forwards import SpamForwardRefused
from mail.delivery.script_rejection import RejectedByScript
from mail.envelope import smtp_replies
from mail.inbound.scan_rejection import SpamRefused, VirusRefused
from mail.inbound.sender_verification import RejectedByDmarc
from mail.recipients.recipient_routes import MailLoop
from mail.smtp.spool_file import OutOfSpoolSpace
from mail.smtp.submission_server import submission_reply_from_error
from models.errors import (
    AuthenticationFailed,
    Forbidden,
    InvalidInput,
    NotFound,
    OverQuota,
    RateLimited,
    RequestError,
    ServiceUnavailable,
)
from models.validation_constraints import ValidationConstraint
from tests.support.mail_servers.lmtp_client import SmtpTestClient
from tests.support.mail_servers.memory_listeners import (
    AUTH_PLAIN_RESPONSE,
    LISTENER_KINDS,
    run_memory_listener,
)
from tests.support.mail_servers.smtp_client import connect_smtp, start_tls

Exchange = list[tuple[str, str]]  # commands and their replies
REPLY_LINE = re.compile(rb"([245])[0-9]{2}[ -]\1\.[0-9]{1,3}\.[0-9]{1,3} [ -~]+|354 [ -~]+")
MAX_REPLY_LINE = 510  # bytes without CRLF (RFC 5321, section 4.5.3.1.5)
MANY = 1000
WRONG_PLAIN_RESPONSE = base64.b64encode(b"\0ada\0wrong").decode()

GREETINGS = {
    "lmtp": "220 mx.example.org LMTP",
    "mx": "220 mx.example.org ESMTP",
    "submission": "220 mx.example.org ESMTP",
}
BEFORE_GREETING: dict[str, Exchange] = {
    "lmtp": [
        ("MAIL FROM:<carol@example.net>", "503 5.5.1 Send LHLO first"),
        ("LHLO", "501 5.5.4 Syntax: LHLO hostname"),
        ("HELO x", "500 5.5.1 This is LMTP, use LHLO"),
        ("EHLO x", "500 5.5.1 This is LMTP, use LHLO"),
        ("STARTTLS", "500 5.5.1 Unknown command"),
        (
            "HELP",
            "214 2.0.0 Commands supported: LHLO MAIL RCPT DATA RSET NOOP VRFY HELP QUIT",
        ),
    ],
    "mx": [
        ("MAIL FROM:<carol@example.net>", "503 5.5.1 Send HELO/EHLO first"),
        ("EHLO", "501 5.5.4 Syntax: EHLO hostname"),
        ("HELO", "501 5.5.4 Syntax: HELO hostname"),
        ("LHLO x", "500 5.5.1 Unknown command"),
        ("AUTH PLAIN", "500 5.5.1 Unknown command"),
        ("STARTTLS now", "501 5.5.4 Syntax: STARTTLS"),
        (
            "HELP",
            "214 2.0.0 Commands supported: "
            "MAIL RCPT DATA RSET NOOP VRFY HELP QUIT HELO EHLO STARTTLS",
        ),
        ("HELO x", "250 mx.example.org"),
    ],
    "submission": [
        ("AUTH PLAIN", "503 5.5.1 Send HELO/EHLO first"),
        ("HELO x", "250 mx.example.org"),
        ("MAIL FROM:<carol@example.net>", "530 5.7.0 Must issue a STARTTLS command first"),
        (
            "AUTH PLAIN",
            "538 5.7.11 Encryption required for requested authentication mechanism",
        ),
        (
            "HELP",
            "214 2.0.0 Commands supported: "
            "MAIL RCPT DATA RSET NOOP VRFY HELP QUIT HELO EHLO STARTTLS AUTH",
        ),
    ],
}
TRANSACTION: Exchange = [
    ("NOOP", "250 2.0.0 OK"),
    ("VRFY ada@example.org", "252 2.0.0 Cannot VRFY user"),
    ("VRFY", "501 5.5.4 Syntax: VRFY address"),
    ("EXPN staff", "500 5.5.1 Unknown command"),
    ("", "500 5.5.2 Bad command syntax"),
    ("NOOP " + "x" * 3000, "500 5.5.2 Line too long"),
    ("RCPT TO:<ada@example.org>", "503 5.5.1 Need MAIL command"),
    ("DATA", "503 5.5.1 Need MAIL command"),
    ("MAIL carol@example.net", "501 5.5.4 Syntax: MAIL FROM:<address>"),
    ("MAIL FROM:carol@example.net", "553 5.1.7 Bad sender address syntax"),
    ("MAIL FROM:<é@example.net>", "553 5.6.7 Must declare SMTPUTF8 to send a non-ASCII address"),
    (
        "MAIL FROM:<carol@example.net> SIZE=99999999999",
        "552 5.3.4 Message size exceeds fixed maximum message size",
    ),
    ("MAIL FROM:<carol@example.net> SIZE=x", "501 5.5.4 Bad message size syntax"),
    (
        "MAIL FROM:<carol@example.net> BODY=BINARYMIME",
        "501 5.5.4 Bad BODY parameter syntax: must be 7BIT or 8BITMIME",
    ),
    (
        "MAIL FROM:<carol@example.net> SMTPUTF8=1",
        "501 5.5.4 Bad SMTPUTF8 parameter syntax: takes no value",
    ),
    (
        "MAIL FROM:<carol@example.net> RET=ALL",
        "501 5.5.4 Bad RET parameter syntax: must be FULL or HDRS",
    ),
    ("MAIL FROM:<carol@example.net> SIZE=1 SIZE=1", "501 5.5.4 Duplicate parameter: SIZE"),
    ("MAIL FROM:<carol@example.net> BY=60;R", "555 5.5.4 Unsupported option: BY"),
    ("MAIL FROM:<carol@example.net> -", "501 5.5.4 Bad parameter syntax"),
    ("MAIL FROM:<carol@example.net>", "250 2.1.0 Sender OK"),
    ("MAIL FROM:<carol@example.net>", "503 5.5.1 Nested MAIL command"),
    ("DATA", "503 5.5.1 Need RCPT command"),
    ("RCPT ada@example.org", "501 5.5.4 Syntax: RCPT TO:<address>"),
    ("RCPT TO:<>", "553 5.1.3 Bad recipient address syntax"),
    (
        "RCPT TO:<ada@example.org> NOTIFY=LATER",
        "501 5.5.4 Bad NOTIFY parameter syntax: must be NEVER, or SUCCESS, FAILURE, DELAY",
    ),
    ("RCPT TO:<ada@example.org>", "250 2.1.5 Recipient OK"),
    ("DATA now", "501 5.5.4 Syntax: DATA"),
    ("RSET now", "501 5.5.4 Syntax: RSET"),
    ("RSET", "250 2.0.0 Reset"),
    ("MAIL FROM:<carol@example.net>", "250 2.1.0 Sender OK"),
    ("RCPT TO:<ada@example.org>", "250 2.1.5 Recipient OK"),
    ("DATA", "354 End data with <CR><LF>.<CR><LF>"),
]
REFUSED_RECIPIENTS: list[tuple[Exception, str]] = [
    (NotFound("ada"), "550 5.1.1 Recipient address rejected: User unknown"),
    (OverQuota("full"), "452 4.2.2 Mailbox full"),
    (
        RateLimited("slower", retry_after=timedelta(hours=1)),
        "450 4.2.1 Recipient receives mail too quickly, please try again later",
    ),
    (
        InvalidInput("no address", constraint=ValidationConstraint.ADDRESS),
        "553 5.1.3 Bad recipient address syntax",
    ),
    (Forbidden("closed"), "550 5.7.1 Rejected for policy reasons"),
]
REFUSED_MESSAGES: list[tuple[Exception, str]] = [
    (ServiceUnavailable("down"), "451 4.3.0 Temporary local problem, please try again later"),
    (RuntimeError("bug"), "451 4.3.0 Temporary local problem, please try again later"),
    (OutOfSpoolSpace(), "452 4.3.1 Insufficient system storage"),
    (MailLoop("loop"), "554 5.4.6 Too many hops, this message is looping"),
    (SpamRefused("spam"), "550 5.7.1 Spam message rejected"),
    (SpamForwardRefused("spam"), "554 5.7.1 Spam message rejected: spam is not forwarded"),
    (VirusRefused("virus"), "550 5.7.1 Message rejected: virus found"),
    (
        RejectedByDmarc("example.com"),
        "550 5.7.1 Email rejected per DMARC policy for example.com",
    ),
    (RejectedByScript("Not today"), "550 5.7.1 Not today"),
    (RejectedByScript(" "), "550 5.7.1 Message rejected by recipient"),
]


async def assert_replies(client: SmtpTestClient, exchange: Exchange) -> None:
    for command, reply in exchange:
        assert await client.run_command(command) == reply, command


@pytest.mark.parametrize("kind", LISTENER_KINDS)
async def test_commands_get_customary_replies(kind: str, tmp_path: Path) -> None:
    async with run_memory_listener(kind, tmp_path, max_mistakes=MANY) as server:
        greeted_client = await server.connect()
        await assert_replies(greeted_client, BEFORE_GREETING[kind])
        await greeted_client.close()
        client = await server.open_sending_session()
        await assert_replies(client, TRANSACTION)
        client.send_bytes(b"Hello\r\n.\r\n")
        assert re.fullmatch(r"250 2\.0\.0 OK: queued as [0-9a-f]+", await client.read_reply())
        await assert_replies(
            client, [("QUIT now", "501 5.5.4 Syntax: QUIT"), ("QUIT", "221 2.0.0 Bye")]
        )
        await client.close()


@pytest.mark.parametrize("kind", LISTENER_KINDS)
async def test_greeting_names_host_and_protocol(kind: str, tmp_path: Path) -> None:
    async with run_memory_listener(kind, tmp_path) as server:
        client = await connect_smtp(server.listener.port, greet=False)
        assert await client.read_reply() == GREETINGS[kind]
        await client.close()


@pytest.mark.parametrize("kind", ["mx", "submission"])
async def test_starttls_gets_customary_replies(kind: str, tmp_path: Path) -> None:
    async with run_memory_listener(kind, tmp_path) as server:
        client = await server.connect()
        assert await client.run_command("STARTTLS") == "220 2.0.0 Ready to start TLS"
        await client.writer.start_tls(
            server.authority.client_context(), server_hostname="mx.example.org"
        )
        assert await client.run_command("STARTTLS") == "503 5.5.1 TLS already active"
        await client.close()


async def test_auth_gets_customary_replies(tmp_path: Path) -> None:
    async with run_memory_listener("submission", tmp_path) as server:
        client = await server.connect()
        await client.run_command("EHLO x")
        await start_tls(client, server.authority.client_context())
        exchange = [
            ("MAIL FROM:<carol@example.net>", "530 5.7.0 Authentication required"),
            (
                "AUTH CRAM-MD5",
                "504 5.5.4 Unrecognized authentication type, use PLAIN or LOGIN",
            ),
            ("AUTH PLAIN ?", "501 5.5.2 Cannot Base64-decode client response"),
            ("AUTH PLAIN eA==", "501 5.5.2 Bad response syntax for AUTH PLAIN"),
            ("AUTH PLAIN", "334"),
            ("*", "501 5.7.0 Authentication aborted"),
            (
                f"AUTH PLAIN {WRONG_PLAIN_RESPONSE}",
                "535 5.7.8 Authentication credentials invalid",
            ),
            (f"AUTH PLAIN {AUTH_PLAIN_RESPONSE}", "235 2.7.0 Authentication successful"),
            (f"AUTH PLAIN {AUTH_PLAIN_RESPONSE}", "503 5.5.1 Already authenticated"),
            (
                "MAIL FROM:<ada@example.org>",
                "553 5.7.1 Sender address rejected: you may not send as that",
            ),
        ]
        await assert_replies(client, exchange)
        await client.close()


@pytest.mark.parametrize("kind", ["lmtp", "mx"])
async def test_refused_recipients_get_customary_replies(kind: str, tmp_path: Path) -> None:
    async with run_memory_listener(kind, tmp_path) as server:
        client = await server.open_sending_session()
        await client.run_command("MAIL FROM:<carol@example.net>")
        for error, reply in REFUSED_RECIPIENTS:
            server.backend.errors_by_name["RCPT ada"] = error
            assert await client.run_command("RCPT TO:<ada@example.org>") == reply
        await client.close()


@pytest.mark.parametrize("kind", ["lmtp", "mx"])
async def test_refused_messages_get_customary_replies(kind: str, tmp_path: Path) -> None:
    async with run_memory_listener(kind, tmp_path) as server:
        client = await server.open_sending_session()
        for error, reply in REFUSED_MESSAGES:
            server.backend.errors_by_name["ada"] = error
            await client.start_data("ada@example.org")
            assert await client.run_command("Hello\r\n.") == reply
        await client.close()


async def test_session_ends_with_customary_replies(tmp_path: Path) -> None:
    limits = {"max_mistakes": 1, "max_connections_per_network": 1}
    async with run_memory_listener("mx", tmp_path, **limits) as server:
        client = await server.open_sending_session()
        refused_client = await connect_smtp(server.listener.port, greet=False)
        assert (
            await refused_client.read_reply()
            == "421 4.7.0 mx.example.org Too many connections from your IP address"
        )
        client.send_bytes(b"EXPN\r\nEXPN\r\n")
        assert (await client.read_until_closed()).splitlines()[2:] == [
            b"421 4.7.0 mx.example.org Error: too many errors"
        ]
        await refused_client.close()
        await client.close()


async def test_three_failed_sign_ins_end_the_session(tmp_path: Path) -> None:
    async with run_memory_listener("submission", tmp_path) as server:
        client = await server.connect()
        await client.run_command("EHLO x")
        await start_tls(client, server.authority.client_context())
        client.send_bytes(f"AUTH PLAIN {WRONG_PLAIN_RESPONSE}\r\n".encode() * 3)
        assert (await client.read_until_closed()).splitlines()[3:] == [
            b"421 4.7.0 mx.example.org Error: too many authentication failures"
        ]
        await client.close()


@pytest.mark.parametrize("kind", ["lmtp", "mx"])
async def test_too_many_recipients_get_customary_reply(kind: str, tmp_path: Path) -> None:
    async with run_memory_listener(kind, tmp_path, max_recipients=1) as server:
        client = await server.open_sending_session()
        await client.run_command("MAIL FROM:<carol@example.net>")
        await client.run_command("RCPT TO:<ada@example.org>")
        reply = await client.run_command("RCPT TO:<bob@example.org>")
        assert reply == "452 4.5.3 Too many recipients"
        await client.close()


HOSTILE_COMMANDS = [
    b"\0",
    b"\xff",
    b"GET / HTTP/1.1",
    b"NOOP \xc3\xa9",
    b"VRFY \xc3\xa9",
    b"MAIL FROM:<carol@example.net> " + b"X" * MANY,
    b"MAIL FROM:<carol@example.net> \xc3\xa9=1",
    b"MAIL FROM:<carol@example.net> " + b"X" * MANY + b"=1 " + b"X" * MANY + b"=1",
    b"MAIL FROM:<carol@example.net> ENVID=" + b"x" * MANY,
    b"MAIL FROM:<" + b"x" * MANY + b"@example.net> SIZE=\xc3\xa9",
    b"MAIL FROM:<\xc3\xa9@b\xc3\xbccher.example> SMTPUTF8 RET=FULL",
    b"RSET",
    b"MAIL FROM:<carol@example.net> SMTPUTF8",
    b"RCPT TO:<\xc3\xa9" + b"x" * MANY + b"@example.org>",
    b"RCPT TO:<ada@example.org> ORCPT=\xc3\xa9",
    b"RCPT TO:<ada@example.org> " + b"X" * MANY,
    b"RCPT TO:<ada@example.org>",
]


@pytest.mark.parametrize("kind", LISTENER_KINDS)
async def test_each_reply_line_has_the_required_form(kind: str, tmp_path: Path) -> None:
    async with run_memory_listener(kind, tmp_path, max_mistakes=MANY) as server:
        client = await server.open_sending_session()
        server.backend.errors_by_name["ada"] = RejectedByScript("é\r\n250 " * MANY)
        commands = [command.encode() for command, _ in TRANSACTION[:-1]] + HOSTILE_COMMANDS
        commands = [*commands, b"DATA", b"Hello", b".", b"HELP", b"QUIT"]
        client.send_bytes(b"".join(command + b"\r\n" for command in commands))
        lines = (await client.read_until_closed()).removesuffix(b"\r\n").split(b"\r\n")
        assert len(lines) == len(commands) - 1  # "Hello" and the dot have one reply
        for line in lines:
            assert REPLY_LINE.fullmatch(line), line
            assert len(line) <= MAX_REPLY_LINE, line
        await client.close()


def test_constant_replies_have_the_required_form() -> None:
    replies = {
        name: value.replace("{hostname}", "h" * 253)
        for name, value in vars(smtp_replies).items()
        if name.endswith("_REPLY")
    }
    assert len(replies) > 50
    for name, reply in replies.items():
        raw = reply.encode()
        is_start_tls = name == "START_TLS_REPLY"
        assert REPLY_LINE.fullmatch(raw), name
        assert len(raw) <= MAX_REPLY_LINE, name
        assert is_start_tls == reply.startswith("220")


@pytest.mark.parametrize("is_about_sender", [False, True])
def test_refused_submission_gets_reply_with_required_form(is_about_sender: bool) -> None:
    hostile_text = "é\r\n250 " * MANY
    errors: list[RequestError] = [
        Forbidden(hostile_text),
        InvalidInput(hostile_text, constraint=ValidationConstraint.ADDRESS),
        RateLimited(hostile_text, retry_after=timedelta(hours=1)),
        AuthenticationFailed(),
        ServiceUnavailable(hostile_text),
    ]
    for error in errors:
        raw = submission_reply_from_error(
            error, "h" * 253, is_about_sender=is_about_sender
        ).encode()
        assert REPLY_LINE.fullmatch(raw), raw
        assert len(raw) <= MAX_REPLY_LINE, raw
