"""Lines that are too long: the same message once decoded, and no such line."""

import base64
import email
from email import policy
from typing import Any

import pytest
from sqlalchemy import select
from sqlmodel import col

from mail.compose.line_length import MAX_LINE_BYTES, has_long_line, shorten_lines
from mail.envelope.dsn_parameters import DEFAULT_REPORTS
from mail.smtp.submission_server import SmtpSubmitter
from models.queue.tables import DeliveryState
from models.runtime.environment import Environment
from models.submission.tables import Submission
from models.users.tables import User
from resolvers.submission.smtp_submission import SmtpSubmissionService
from tests.conftest import Client
from tests.support.mail_servers.queue_worker import relay, settled, working
from tests.support.mail_servers.smtp_and_dns_servers import Server, listening

HEAD = b"From: a@example.org\r\nSubject: x\r\nMIME-Version: 1.0\r\n"
LONG = "word " * 400 + "ü"
BYTES = bytes(range(256)) * 8


def lengths(raw: bytes) -> int:
    return max(len(line) for line in raw.split(b"\r\n"))


def content(raw: bytes) -> list[Any]:
    parsed = email.message_from_bytes(raw, policy=policy.default)
    return [part.get_payload(decode=True) for part in parsed.walk() if not part.is_multipart()]


def text(encoding: str = "8bit", body: bytes = LONG.encode()) -> bytes:
    head = (
        f"Content-Type: text/html; charset=utf-8\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n"
    )
    return head.encode() + b"short\r\n" + body + b"\r\n.\r\nend\r\n"


def multipart(*parts: bytes, kind: str = "mixed") -> bytes:
    head = f'Content-Type: multipart/{kind}; boundary="=_b"\r\n\r\nhello\r\n'.encode()
    return head + b"".join(b"--=_b\r\n" + part for part in parts) + b"--=_b--\r\nbye\r\n"


@pytest.mark.parametrize(
    "raw",
    [
        HEAD + text(),
        HEAD + b"Content-Type: text/plain\r\n\r\n" + LONG.encode() + b"\r\n",
        HEAD + multipart(text(), text(body=b"short")),
        HEAD
        + multipart(b"\r\n" + LONG.encode() + b"\r\n", multipart(text()).replace(b"=_b", b"=_c")),
        HEAD + multipart(b"Content-Type: message/rfc822\r\n\r\n" + HEAD + text()),
        HEAD + text("quoted-printable", b"a=C3=BC" * 300),
        HEAD + b"Content-Transfer-Encoding: base64\r\n\r\n" + base64.b64encode(BYTES) + b"\r\n",
        HEAD + b"Content-Type: application/x\r\n\r\n" + b"x" * 3000 + b"\r\n",
    ],
)
def test_long_lines_are_encoded_and_mean_the_same(raw: bytes) -> None:
    assert has_long_line(raw)
    found = shorten_lines(raw)
    assert lengths(found) <= MAX_LINE_BYTES
    assert content(found) == content(raw)
    assert found.startswith(HEAD)
    assert shorten_lines(found) == found


@pytest.mark.parametrize(
    "raw",
    [
        HEAD + text(body=b"x" * MAX_LINE_BYTES),
        HEAD + multipart(text(), text("7bit"), kind="signed; protocol=x"),
        HEAD + b"Content-Type: multipart/mixed\r\n\r\n" + LONG.encode(),
    ],
)
def test_what_is_short_or_signed_stays_byte_for_byte(raw: bytes) -> None:
    assert shorten_lines(raw) == raw


def test_long_fields_are_folded_at_spaces() -> None:
    names = ", ".join(f"person{n}@example.org" for n in range(200))
    raw = HEAD + f"To: {names}\r\n\r\nHi\r\n".encode()
    found = shorten_lines(raw)
    assert lengths(found) <= MAX_LINE_BYTES
    assert email.message_from_bytes(found, policy=policy.default)["To"] == names
    hard = HEAD + b"X-Long: " + b"x" * 2000 + b"\r\n\r\nHi\r\n"
    assert email.message_from_bytes(shorten_lines(hard))["X-Long"].strip() == "x" * 2000


@pytest.mark.parametrize("more", [0, 2 << 20])
async def test_what_leaves_has_no_long_lines(ada: Client, world: Environment, more: int) -> None:
    body = LONG.encode() + b"\r\n" + (b"line " * 100 + b"\r\n") * (more // 500)
    raw = HEAD.replace(b"a@", b"ada@") + b"To: carol@example.net\r\n" + text(body=body)
    async with listening(Server()) as there, working(world, relay(there)):
        row = await world.database.read(
            select(col(User.auth_version)).where(col(User.id) == ada.user.id)
        )
        writer = SmtpSubmitter(ada.user.id, "ada", row[0].auth_version, None)
        queue_id = await SmtpSubmissionService(world).submit(
            writer, raw, "ada@example.org", [("carol@example.net", DEFAULT_REPORTS)]
        )
        asked = select(col(Submission.id)).where(col(Submission.queue_id) == queue_id)
        rows = await settled(world, (await world.database.read(asked))[0].id)
    assert {row.state for row in rows.values()} == {DeliveryState.RELAYED}
    (mail,) = there.mails
    assert lengths(mail.raw) <= MAX_LINE_BYTES
    assert content(mail.raw) == content(raw)
