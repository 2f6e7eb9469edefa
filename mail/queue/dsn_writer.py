"""Build delivery status notifications (RFC 3464, RFC 6522, RFC 6533).

The first MIME part is text for people, the second has fields for programs. The third part has the
header of the message. If the message failed and the sender wants it (RET=FULL), a small message is
returned completely.
"""

import binascii
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from email.utils import format_datetime

from mail.compose.message_builder import message_id, without_bcc
from mail.envelope.delivery_jobs import Action, Job, Result, To
from mail.envelope.dsn_parameters import FULL, On, Wish, escaped, some, typed
from mail.mime import header_encoding
from mail.mime.header_encoding import Named, needs_utf8
from models.queue.tables import DeliveryState
from models.runtime.environment import World

HEAD = 64 * 1024  # of the header in a DSN
WHOLE = 1 << 20  # of a message that is returned completely

_STATUS = re.compile(r"\b([245]\.\d{1,3}\.\d{1,3})\b")
_HEADER_END = re.compile(rb"\r?\n\r?\n")
_MESSAGE_ID = re.compile(
    rb"^message-id[ \t]*:\s*(<[!-;=?-~]{1,900}>)", re.IGNORECASE | re.MULTILINE
)
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


@dataclass(frozen=True, slots=True)
class About:
    """The message that a DSN is about."""

    sender: str  # envelope sender; the recipient of the DSN
    arrived_at: datetime
    queue_id: str
    said: Wish  # ENVID and RET of the message


@dataclass(frozen=True, slots=True)
class Told:
    """A recipient in a DSN, with its action and result."""

    address: str
    action: Action
    result: Result
    orcpt: str | None = None
    until: datetime | None = None


def report(
    world: World, job: Job, results: Mapping[int, Result], raw: bytes, on: On = On.FAILURE
) -> bytes:
    """The DSN for the recipients of a job that have a result."""
    told = [
        _told(recipient, results[recipient.delivery_id], on)
        for recipient in job.recipients
        if recipient.delivery_id in results
    ]
    said = some(recipient.wish for recipient in job.recipients)
    return written(world, About(job.sender, job.created_at, job.queue_id, said), told, raw)


def _told(to: To, result: Result, on: On) -> Told:
    """A recipient as a DSN for this condition describes it."""
    if on is On.SUCCESS:
        action = result.here or Action.RELAYED
    else:
        action = Action.FAILED if on is On.FAILURE else Action.DELAYED
    until = to.expires_at if on is On.DELAY else None
    return Told(to.address, action, result, to.wish.orcpt, until)


def written(world: World, about: About, told: Sequence[Told], raw: bytes) -> bytes:
    """Build a DSN for recipients that all have the same action.

    Its envelope sender must be empty, so that it is never answered by another DSN.
    """
    now, boundary = world.now(), f"report-{world.random(12).hex()}"
    utf8 = needs_utf8(about.sender)  # a sender with a non-ASCII address can read UTF-8
    raw = without_bcc(raw)
    whole = about.said.ret == FULL and told[0].action is Action.FAILED and _is_whole(raw)
    parts = [
        _encoded("text/plain; charset=utf-8", _text(told, returned=bool(raw), whole=whole)),
        _status(_report_fields(world, about, told, now), utf8=utf8),
    ]
    if raw:
        parts.append(_whole(raw, utf8=utf8) if whole else _header(_head(raw), utf8=utf8))
    eight_bit = any(not part.isascii() for part in parts)
    line, end = f"--{boundary}\r\n".encode(), f"--{boundary}--\r\n".encode()
    top = [*_fields(world, about, told, raw, now), *_frame(boundary, eight_bit=eight_bit)]
    return b"".join([*top, *(line + part for part in parts), end])


def _fields(
    world: World, about: About, told: Sequence[Told], raw: bytes, now: datetime
) -> list[bytes]:
    """Header fields of the DSN, without those of MIME."""
    host = world.options.hostname
    found = _MESSAGE_ID.search(_head(raw))
    original = [found.group(1).decode()] if found else []
    lines = [
        header_encoding.addressed("From", [Named(f"MAILER-DAEMON@{host}", "Mail delivery")]),
        header_encoding.addressed("To", [Named(about.sender)], utf8=True),
        header_encoding.unstructured("Subject", _subject(told)),
        header_encoding.listed("Date", format_datetime(now).split(" ")),
        header_encoding.listed("Message-ID", [message_id(world.random(16), host)]),
        header_encoding.unstructured("Auto-Submitted", "auto-replied"),
    ]
    if original:
        lines.append(header_encoding.listed("In-Reply-To", original))
        lines.append(header_encoding.listed("References", original))
    return lines


def _subject(told: Sequence[Told]) -> str:
    actions = {recipient.action for recipient in told}
    if actions == {Action.FAILED}:
        return "Your message could not be delivered"
    if actions == {Action.DELAYED}:
        return "Your message is delayed"
    return "Your message was delivered" if actions == {Action.DELIVERED} else "Your message went on"


def _frame(boundary: str, *, eight_bit: bool) -> list[bytes]:
    """MIME header fields of the DSN, with the empty line after the header."""
    kind = f'multipart/report; report-type=delivery-status;\r\n boundary="{boundary}"'
    encoding = b"Content-Transfer-Encoding: 8bit\r\n" if eight_bit else b""
    return [b"MIME-Version: 1.0\r\n", encoding, f"Content-Type: {kind}\r\n\r\n".encode()]


def _part(kind: str, encoding: str, body: bytes) -> bytes:
    """A MIME part with its header."""
    head = f"Content-Type: {kind}\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n".encode()
    return head + body + b"\r\n"  # this CRLF belongs to the following boundary


def _encoded(kind: str, body: bytes) -> bytes:
    """A MIME part in ASCII, quoted-printable if needed."""
    if body.isascii():
        return _part(kind, "7bit", body)
    return _part(kind, "quoted-printable", binascii.b2a_qp(body))


def _header(head: bytes, *, utf8: bool) -> bytes:
    """The MIME part with the header of the message."""
    if utf8 and not head.isascii():
        return _part("message/global-headers", "8bit", head)
    return _encoded("text/rfc822-headers", head)


def _whole(raw: bytes, *, utf8: bool) -> bytes:
    """The MIME part with the complete message."""
    kind = "message/global" if utf8 and not _head(raw).isascii() else "message/rfc822"
    return _part(kind, "7bit" if raw.isascii() else "8bit", raw)


def _status(lines: Iterable[str], *, utf8: bool) -> bytes:
    """The MIME part with the fields for programs."""
    text = "\r\n".join([*lines, ""])
    if utf8 and not text.isascii():
        return _part("message/global-delivery-status", "8bit", text.encode("utf-8", "replace"))
    return _part("message/delivery-status", "7bit", escaped(text).encode("ascii", "replace"))


def _text(told: Sequence[Told], *, returned: bool, whole: bool) -> bytes:
    """The text of the DSN for people, with a line for each recipient."""
    lines = [_BEGINS[told[0].action], ""]
    for each in told:
        lines += [f"  {each.address}: {_fate(each)}"]
        answer = _CONTROL.sub(" ", f"{each.result.code} {each.result.text}")
        lines += ["", *()] if each.result.here else [f"    {answer}", ""]
    if told[0].action is Action.FAILED:
        lines.append("It will not be tried again.")
    elif told[0].action is Action.DELAYED:
        lines.append("You need not do anything, and need not send it again.")
    if returned:
        what = "Your message" if whole else "The header of your message"
        lines[-1:] = [f"{lines[-1]} {what} is attached.".lstrip()]
    return "\r\n".join(lines).encode("utf-8", "replace")


_BEGINS = {
    Action.FAILED: "Your message could not be delivered to:",
    Action.DELAYED: "Your message could not be delivered yet. It is still being tried for:",
    Action.DELIVERED: "Your message was delivered to:",
    Action.RELAYED: "Your message was handed on to a server that sends no reports, for:",
    Action.EXPANDED: "Your message was delivered to an address that passes it on to others:",
}


def _fate(each: Told) -> str:
    """What happened to a recipient, as the end of a sentence."""
    by = f" by {each.result.mx}" if each.result.mx else ""
    if each.action is Action.FAILED:
        expired = each.result.state is DeliveryState.EXPIRED
        return f"nobody took it in time{by}" if expired else f"it was refused{by}"
    if each.action is Action.DELAYED:
        until = f" until {format_datetime(each.until)}" if each.until else ""
        return f"it was not taken{by}, and is tried again{until}"
    return f"it was taken{by}"


def _report_fields(
    world: World, about: About, told: Sequence[Told], now: datetime
) -> Iterable[str]:
    """Fields of message/delivery-status (RFC 3464, section 2)."""
    if about.said.envid:
        yield f"Original-Envelope-Id: {about.said.envid}"
    yield f"Reporting-MTA: dns; {world.options.hostname}"
    yield f"X-Queue-ID: {about.queue_id}"
    yield f"Arrival-Date: {format_datetime(about.arrived_at)}"
    for each in told:
        yield ""
        yield from _recipient_fields(world, about, each, now)


def _recipient_fields(world: World, about: About, told: Told, now: datetime) -> Iterable[str]:
    """Fields of one recipient (RFC 3464, section 2.3)."""
    result = told.result
    if told.orcpt:
        yield f"Original-Recipient: {told.orcpt}"
    yield f"Final-Recipient: {typed(told.address).replace(';', '; ', 1)}"
    yield f"Action: {told.action}"
    yield f"Status: {status(told.action, result)}"
    if result.mx and result.mx != world.options.hostname:
        yield f"Remote-MTA: {'x-url' if '://' in result.mx else 'dns'}; {result.mx}"
    if not result.here:
        kind = "smtp" if result.mx else "x-merganser"
        yield f"Diagnostic-Code: {kind}; {result.code} {_UNPRINTABLE.sub(' ', result.text)}"
    yield f"Last-Attempt-Date: {format_datetime(now)}"
    yield f"Final-Log-ID: {about.queue_id}"
    if told.until is not None:
        yield f"Will-Retry-Until: {format_datetime(told.until)}"


def status(action: Action, result: Result) -> str:
    """The enhanced status code (RFC 3463) of a recipient."""
    if result.state is DeliveryState.EXPIRED:
        return "4.4.7"
    found = _STATUS.match(result.text)
    if found:
        return found[1]
    return f"{2 if action not in {Action.FAILED, Action.DELAYED} else str(result.code)[0]}.0.0"


def _is_whole(raw: bytes) -> bool:
    """True if the message has a body and is small enough to be returned."""
    return len(raw) <= WHOLE and _HEADER_END.search(raw) is not None


def _head(raw: bytes) -> bytes:
    """The header of a message, cut after a line if it exceeds `MAX_HEADER_BYTES`."""
    end = _HEADER_END.search(raw)
    head = raw[: end.start()] if end else raw
    if len(head) > HEAD:
        head = head[: head.rfind(b"\n", 0, HEAD)]
    return head.rstrip(b"\r\n") + b"\r\n"
