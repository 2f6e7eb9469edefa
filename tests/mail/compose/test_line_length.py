"""Messages with long lines are encoded again: the content stays, the lines become short."""

import base64
import email
from email import policy
from typing import Any

import pytest
from sqlalchemy import select
from sqlmodel import col

from mail.compose.line_length import MAX_LINE_BYTES, has_long_line, reencode_parts_with_long_lines
from mail.envelope.dsn_parameters import DEFAULT_REPORTS
from mail.smtp.submission_backend import SmtpSubmitter
from models.queue.tables import DeliveryState
from models.runtime.environment import Environment
from models.submission.tables import Submission
from models.users.tables import User
from resolvers.submission.smtp_submission import SmtpSubmissionService
from tests.conftest import GraphQLClient
from tests.support.mail_servers.queue_worker import (
    relay_settings,
    run_queue_worker,
    wait_until_tried,
)
from tests.support.mail_servers.smtp_and_dns_servers import FakeSmtpServer, run_smtp_server

HEADER = b"From: a@example.org\r\nSubject: x\r\nMIME-Version: 1.0\r\n"
LONG_LINE = "word " * 400 + "ü"
BINARY_CONTENT = bytes(range(256)) * 8


def longest_line(raw: bytes) -> int:
    return max(len(line) for line in raw.split(b"\r\n"))


def decoded_parts(raw: bytes) -> list[Any]:
    parsed = email.message_from_bytes(raw, policy=policy.default)
    return [part.get_payload(decode=True) for part in parsed.walk() if not part.is_multipart()]


def html_part(transfer_encoding: str = "8bit", body: bytes = LONG_LINE.encode()) -> bytes:
    part_header = (
        "Content-Type: text/html; charset=utf-8\r\n"
        f"Content-Transfer-Encoding: {transfer_encoding}\r\n\r\n"
    )
    return part_header.encode() + b"short\r\n" + body + b"\r\n.\r\nend\r\n"


def multipart(*parts: bytes, subtype: str = "mixed") -> bytes:
    part_header = f'Content-Type: multipart/{subtype}; boundary="=_b"\r\n\r\nhello\r\n'.encode()
    return part_header + b"".join(b"--=_b\r\n" + part for part in parts) + b"--=_b--\r\nbye\r\n"


@pytest.mark.parametrize(
    "raw",
    [
        HEADER + html_part(),
        HEADER + b"Content-Type: text/plain\r\n\r\n" + LONG_LINE.encode() + b"\r\n",
        HEADER + multipart(html_part(), html_part(body=b"short")),
        HEADER
        + multipart(
            b"\r\n" + LONG_LINE.encode() + b"\r\n", multipart(html_part()).replace(b"=_b", b"=_c")
        ),
        HEADER + multipart(b"Content-Type: message/rfc822\r\n\r\n" + HEADER + html_part()),
        HEADER + html_part("quoted-printable", b"a=C3=BC" * 300),
        HEADER
        + b"Content-Transfer-Encoding: base64\r\n\r\n"
        + base64.b64encode(BINARY_CONTENT)
        + b"\r\n",
        HEADER + b"Content-Type: application/x\r\n\r\n" + b"x" * 3000 + b"\r\n",
    ],
)
def test_long_lines_are_encoded_and_the_content_stays(raw: bytes) -> None:
    assert has_long_line(raw)
    reencoded = reencode_parts_with_long_lines(raw)
    assert longest_line(reencoded) <= MAX_LINE_BYTES
    assert decoded_parts(reencoded) == decoded_parts(raw)
    assert reencoded.startswith(HEADER)
    assert reencode_parts_with_long_lines(reencoded) == reencoded


@pytest.mark.parametrize(
    "raw",
    [
        HEADER + html_part(body=b"x" * MAX_LINE_BYTES),
        HEADER + multipart(html_part(), html_part("7bit"), subtype="signed; protocol=x"),
        HEADER + b"Content-Type: multipart/mixed\r\n\r\n" + LONG_LINE.encode(),
    ],
)
def test_short_or_signed_message_is_unchanged(raw: bytes) -> None:
    assert reencode_parts_with_long_lines(raw) == raw


def test_long_header_fields_are_folded_at_spaces() -> None:
    names = ", ".join(f"person{n}@example.org" for n in range(200))
    raw = HEADER + f"To: {names}\r\n\r\nHi\r\n".encode()
    reencoded = reencode_parts_with_long_lines(raw)
    assert longest_line(reencoded) <= MAX_LINE_BYTES
    assert email.message_from_bytes(reencoded, policy=policy.default)["To"] == names
    message_without_spaces = HEADER + b"X-Long: " + b"x" * 2000 + b"\r\n\r\nHi\r\n"
    assert (
        email.message_from_bytes(reencode_parts_with_long_lines(message_without_spaces))[
            "X-Long"
        ].strip()
        == "x" * 2000
    )


@pytest.mark.parametrize("extra_size", [0, 2 << 20])
async def test_sent_message_has_no_long_lines(
    ada: GraphQLClient, environment: Environment, extra_size: int
) -> None:
    body = LONG_LINE.encode() + b"\r\n" + (b"line " * 100 + b"\r\n") * (extra_size // 500)
    raw = HEADER.replace(b"a@", b"ada@") + b"To: carol@example.net\r\n" + html_part(body=body)
    async with (
        run_smtp_server(FakeSmtpServer()) as smtp_server,
        run_queue_worker(environment, relay_settings(smtp_server)),
    ):
        user_rows = await environment.database.read(
            select(col(User.auth_version)).where(col(User.id) == ada.user.id)
        )
        submitter = SmtpSubmitter(ada.user.id, "ada", user_rows[0].auth_version, None)
        queue_id = await SmtpSubmissionService(environment).submit(
            submitter, raw, "ada@example.org", [("carol@example.net", DEFAULT_REPORTS)]
        )
        statement = select(col(Submission.id)).where(col(Submission.queue_id) == queue_id)
        entries = await wait_until_tried(
            environment, (await environment.database.read(statement))[0].id
        )
    assert {user_rows.state for user_rows in entries.values()} == {DeliveryState.RELAYED}
    (message,) = smtp_server.messages
    assert longest_line(message.raw) <= MAX_LINE_BYTES
    assert decoded_parts(message.raw) == decoded_parts(raw)
