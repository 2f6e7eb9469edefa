"""Reports of mail that could not be delivered (RFC 3464, in the frame of RFC 6522)."""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from email.utils import format_datetime

from mail import fields
from mail.compose import message_id, without_bcc
from mail.fields import Named, on_wire
from mail.queue.jobs import Job, Result, To
from models.queue import DeliveryState
from models.world import World

_STATUS = re.compile(r"\b([45]\.\d{1,3}\.\d{1,3})\b")
_HEADER_END = re.compile(rb"\r?\n\r?\n")
_MESSAGE_ID = re.compile(
    rb"^message-id[ \t]*:\s*(<[!-;=?-~]{1,900}>)", re.IGNORECASE | re.MULTILINE
)
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]+")
HEAD = 64 * 1024  # bytes of the message's header that go into a report


def report(world: World, job: Job, failed: Mapping[int, Result], raw: bytes) -> bytes:
    """The report on these recipients, for the sender of the message `raw`.

    It comes from nobody (its envelope sender is empty), so nothing is ever sent back to it.
    """
    now, boundary = world.now(), f"report-{world.random(12).hex()}"
    told = [(to, failed[to.delivery_id]) for to in job.recipients if to.delivery_id in failed]
    head = without_bcc(_head(raw))
    eight_bit = "7bit" if head.isascii() else "8bit"
    parts = [
        _part("text/plain; charset=utf-8", "8bit", _text(told)),
        _part("message/delivery-status", "7bit", _status(world, job, told, now)),
        _part("text/rfc822-headers", eight_bit, head),
    ]
    line = f"--{boundary}\r\n".encode()
    end = f"--{boundary}--\r\n".encode()
    return b"".join(
        [*_fields(world, job, raw, now), *_frame(boundary), *(line + part for part in parts), end]
    )


def _fields(world: World, job: Job, raw: bytes, now: datetime) -> list[bytes]:
    host = world.options.hostname
    found = _MESSAGE_ID.search(_head(raw))
    original = [found.group(1).decode()] if found else []
    lines = [
        fields.addressed("From", [Named(f"MAILER-DAEMON@{host}", "Mail delivery")]),
        fields.addressed("To", [Named(job.sender)], utf8=True),
        fields.unstructured("Subject", "Your message could not be delivered"),
        fields.listed("Date", format_datetime(now).split(" ")),
        fields.listed("Message-ID", [message_id(world.random(16), host)]),
        fields.unstructured("Auto-Submitted", "auto-replied"),
    ]
    if original:
        lines.append(fields.listed("In-Reply-To", original))
        lines.append(fields.listed("References", original))
    return lines


def _frame(boundary: str) -> list[bytes]:
    kind = f'multipart/report; report-type=delivery-status;\r\n boundary="{boundary}"'
    return [b"MIME-Version: 1.0\r\n", f"Content-Type: {kind}\r\n\r\n".encode()]


def _part(kind: str, encoding: str, body: bytes) -> bytes:
    head = f"Content-Type: {kind}\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n".encode()
    return head + body + (b"" if body.endswith(b"\r\n") else b"\r\n")


def _text(told: Sequence[tuple[To, Result]]) -> bytes:
    lines = ["Your message could not be delivered to:", ""]
    for to, result in told:
        why = (
            "nobody took it in time" if result.state is DeliveryState.EXPIRED else "it was refused"
        )
        server = f" by {result.mx}" if result.mx else ""
        lines += [f"  {to.address}: {why}{server}", f"    {result.code} {result.text}", ""]
    lines.append("It will not be tried again. The header of your message is attached.")
    return "\r\n".join(lines).encode("utf-8", "replace")


def _status(world: World, job: Job, told: Sequence[tuple[To, Result]], now: datetime) -> bytes:
    lines = [
        f"Reporting-MTA: dns; {world.options.hostname}",
        f"X-Queue-ID: {job.queue_id}",
        f"Arrival-Date: {format_datetime(job.created_at)}",
    ]
    for to, result in told:
        status = _STATUS.match(result.text)
        lines += [
            "",
            f"Final-Recipient: {_recipient(to.address)}",
            "Action: failed",
            f"Status: {status.group(1) if status else f'{str(result.code)[0]}.0.0'}",
            *([f"Remote-MTA: dns; {result.mx}"] if result.mx else []),
            f"Diagnostic-Code: smtp; {result.code} {_UNPRINTABLE.sub(' ', result.text)}",
            f"Last-Attempt-Date: {format_datetime(now)}",
        ]
    return "\r\n".join([*lines, ""]).encode("ascii", "replace")


def _recipient(address: str) -> str:
    """The address with its type (RFC 3464, section 2.3.2; RFC 6533, section 3)."""
    if not fields.needs_utf8(address):
        return f"rfc822; {on_wire(address)}"
    shown = "".join(c if c.isascii() else f"\\x{{{ord(c):X}}}" for c in address)
    return f"utf-8; {shown}"


def _head(raw: bytes) -> bytes:
    """The header of a message, whole lines of it where it is very long."""
    end = _HEADER_END.search(raw)
    head = raw[: end.start()] if end else raw
    if len(head) > HEAD:
        head = head[: head.rfind(b"\n", 0, HEAD)]
    return head.rstrip(b"\r\n") + b"\r\n"
