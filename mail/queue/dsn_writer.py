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

from mail.addresses import srs
from mail.compose.message_builder import new_message_id, without_bcc
from mail.envelope.delivery_jobs import DeliveryJob, DeliveryResult, DsnAction, JobRecipient
from mail.envelope.dsn_parameters import (
    FULL,
    DsnRequest,
    NotifyCondition,
    escape_non_ascii,
    first_message_request,
    typed_address,
)
from mail.mime import header_encoding
from mail.mime.header_encoding import NamedAddress, ascii_address_or_same, needs_smtputf8
from models.queue.tables import DeliveryState
from models.runtime.environment import Environment

MAX_HEADER_BYTES = 64 * 1024  # of the header in a DSN
MAX_RETURNED_BYTES = 1 << 20  # of a message that is returned completely

_STATUS = re.compile(r"\b([245]\.\d{1,3}\.\d{1,3})\b")
_HEADER_END = re.compile(rb"\r?\n\r?\n")
_MESSAGE_ID = re.compile(
    rb"^message-id[ \t]*:\s*(<[!-;=?-~]{1,900}>)", re.IGNORECASE | re.MULTILINE
)
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


@dataclass(frozen=True, slots=True)
class ReportedMessage:
    """The message that a DSN is about."""

    sender: str  # envelope sender; the recipient of the DSN
    arrived_at: datetime
    queue_id: str
    dsn_request: DsnRequest  # ENVID and RET of the message


@dataclass(frozen=True, slots=True)
class ReportedRecipient:
    """A recipient in a DSN, with its action and result."""

    address: str
    action: DsnAction
    result: DeliveryResult
    orcpt: str | None = None
    retry_until: datetime | None = None


def report_from_results(
    environment: Environment,
    job: DeliveryJob,
    results_by_delivery_id: Mapping[int, DeliveryResult],
    raw_message: bytes,
    condition: NotifyCondition = NotifyCondition.FAILURE,
) -> bytes:
    """The DSN for the recipients of a job that have a result."""
    recipients = [
        _reported_recipient(recipient, results_by_delivery_id[recipient.delivery_id], condition)
        for recipient in job.recipients
        if recipient.delivery_id in results_by_delivery_id
    ]
    dsn_request = first_message_request(recipient.dsn_request for recipient in job.recipients)
    sender = srs.original_sender_or_same(environment, job.sender)
    return build_report(
        environment,
        ReportedMessage(sender, job.created_at, job.queue_id, dsn_request),
        recipients,
        raw_message,
    )


def _reported_recipient(
    recipient: JobRecipient, result: DeliveryResult, condition: NotifyCondition
) -> ReportedRecipient:
    """A recipient as a DSN for this condition describes it."""
    if condition is NotifyCondition.SUCCESS:
        action = result.local_action or DsnAction.RELAYED
    else:
        action = DsnAction.FAILED if condition is NotifyCondition.FAILURE else DsnAction.DELAYED
    retry_until = recipient.expires_at if condition is NotifyCondition.DELAY else None
    return ReportedRecipient(
        recipient.address, action, result, recipient.dsn_request.orcpt, retry_until
    )


def build_report(
    environment: Environment,
    message: ReportedMessage,
    recipients: Sequence[ReportedRecipient],
    raw_message: bytes,
) -> bytes:
    """Build a DSN for recipients that all have the same action.

    Its envelope sender must be empty, so that it is never answered by another DSN.
    """
    now, boundary = environment.now(), f"report-{environment.random_bytes(12).hex()}"
    is_utf8 = needs_smtputf8(message.sender)  # a sender with a non-ASCII address can read UTF-8
    raw_message = without_bcc(raw_message)
    returns_whole = (
        message.dsn_request.ret == FULL
        and recipients[0].action is DsnAction.FAILED
        and _can_return_whole(raw_message)
    )
    parts = [
        _7bit_mime_part(
            "text/plain; charset=utf-8",
            _dsn_explanation_for_people(
                recipients, is_attached=bool(raw_message), is_whole_attached=returns_whole
            ),
        ),
        _status_mime_part(
            _delivery_status_field_lines(environment, message, recipients, now), is_utf8=is_utf8
        ),
    ]
    if raw_message:
        parts.append(
            _message_mime_part(raw_message, is_utf8=is_utf8)
            if returns_whole
            else _header_mime_part(_truncated_header(raw_message), is_utf8=is_utf8)
        )
    eight_bit = any(not part.isascii() for part in parts)
    delimiter, closing_delimiter = f"--{boundary}\r\n".encode(), f"--{boundary}--\r\n".encode()
    header_lines = [
        *_header_lines(environment, message, recipients, raw_message, now),
        *_mime_header_lines_with_end(boundary, eight_bit=eight_bit),
    ]
    return b"".join([*header_lines, *(delimiter + part for part in parts), closing_delimiter])


def _address_with_ascii_domain(address: str) -> str:
    """Return the address with its domain in ASCII, unless its local part needs SMTPUTF8 anyway."""
    return address if needs_smtputf8(address) else ascii_address_or_same(address)


def _header_lines(
    environment: Environment,
    message: ReportedMessage,
    recipients: Sequence[ReportedRecipient],
    raw_message: bytes,
    now: datetime,
) -> list[bytes]:
    """Header fields of the DSN, without those of MIME."""
    host = environment.options.hostname
    message_id_match = _MESSAGE_ID.search(_truncated_header(raw_message))
    original_ids = [message_id_match.group(1).decode()] if message_id_match else []
    lines = [
        header_encoding.address_field(
            "From", [NamedAddress(f"MAILER-DAEMON@{host}", "Mail delivery")]
        ),
        header_encoding.address_field(
            "To", [NamedAddress(_address_with_ascii_domain(message.sender))], utf8=True
        ),
        header_encoding.unstructured_field("Subject", _dsn_subject_text(recipients)),
        header_encoding.words_field("Date", format_datetime(now).split(" ")),
        header_encoding.words_field(
            "Message-ID", [new_message_id(environment.random_bytes(16), host)]
        ),
        header_encoding.unstructured_field("Auto-Submitted", "auto-replied"),
    ]
    if original_ids:
        lines.append(header_encoding.words_field("In-Reply-To", original_ids))
        lines.append(header_encoding.words_field("References", original_ids))
    return lines


def _dsn_subject_text(recipients: Sequence[ReportedRecipient]) -> str:
    actions = {recipient.action for recipient in recipients}
    if actions == {DsnAction.FAILED}:
        return "Your message could not be delivered"
    if actions == {DsnAction.DELAYED}:
        return "Your message is delayed"
    return (
        "Your message was delivered"
        if actions == {DsnAction.DELIVERED}
        else "Your message was relayed"
    )


def _mime_header_lines_with_end(boundary: str, *, eight_bit: bool) -> list[bytes]:
    """MIME header fields of the DSN, with the empty line after the header."""
    content_type = f'multipart/report; report-type=delivery-status;\r\n boundary="{boundary}"'
    transfer_encoding = b"Content-Transfer-Encoding: 8bit\r\n" if eight_bit else b""
    return [
        b"MIME-Version: 1.0\r\n",
        transfer_encoding,
        f"Content-Type: {content_type}\r\n\r\n".encode(),
    ]


def _mime_part(content_type: str, transfer_encoding: str, body: bytes) -> bytes:
    """A MIME part with its header."""
    header = (
        f"Content-Type: {content_type}\r\nContent-Transfer-Encoding: {transfer_encoding}\r\n\r\n"
    ).encode()
    return header + body + b"\r\n"  # this CRLF belongs to the following boundary


def _7bit_mime_part(content_type: str, body: bytes) -> bytes:
    """A MIME part in ASCII, quoted-printable if needed."""
    if body.isascii():
        return _mime_part(content_type, "7bit", body)
    return _mime_part(content_type, "quoted-printable", binascii.b2a_qp(body))


def _header_mime_part(message_header: bytes, *, is_utf8: bool) -> bytes:
    """The MIME part with the header of the message."""
    if is_utf8 and not message_header.isascii():
        return _mime_part("message/global-headers", "8bit", message_header)
    return _7bit_mime_part("text/rfc822-headers", message_header)


def _message_mime_part(raw_message: bytes, *, is_utf8: bool) -> bytes:
    """The MIME part with the complete message."""
    content_type = (
        "message/global"
        if is_utf8 and not _truncated_header(raw_message).isascii()
        else "message/rfc822"
    )
    return _mime_part(content_type, "7bit" if raw_message.isascii() else "8bit", raw_message)


def _status_mime_part(lines: Iterable[str], *, is_utf8: bool) -> bytes:
    """The MIME part with the fields for programs."""
    text = "\r\n".join([*lines, ""])
    if is_utf8 and not text.isascii():
        return _mime_part("message/global-delivery-status", "8bit", text.encode("utf-8", "replace"))
    return _mime_part(
        "message/delivery-status", "7bit", escape_non_ascii(text).encode("ascii", "replace")
    )


def _dsn_explanation_for_people(
    recipients: Sequence[ReportedRecipient], *, is_attached: bool, is_whole_attached: bool
) -> bytes:
    """The text of the DSN for people, with a line for each recipient."""
    lines = [_FIRST_LINES[recipients[0].action], ""]
    for recipient in recipients:
        lines += [f"  {recipient.address}: {_outcome_phrase(recipient)}"]
        reply = _CONTROL.sub(" ", f"{recipient.result.reply_code} {recipient.result.reply_text}")
        lines += [""] if recipient.result.local_action else [f"    {reply}", ""]
    if recipients[0].action is DsnAction.FAILED:
        lines.append("No further delivery attempts will be made.")
    elif recipients[0].action is DsnAction.DELAYED:
        lines.append("You need not do anything. Don't send the message again.")
    if is_attached:
        attached_part = "Your message" if is_whole_attached else "The header of your message"
        lines[-1:] = [f"{lines[-1]} {attached_part} is attached.".lstrip()]
    return "\r\n".join(lines).encode("utf-8", "replace")


_FIRST_LINES = {
    DsnAction.FAILED: "Your message could not be delivered to:",
    DsnAction.DELAYED: "Your message could not be delivered yet. Delivery continues for:",
    DsnAction.DELIVERED: "Your message was delivered to:",
    DsnAction.RELAYED: "Your message was relayed to a server that sends no reports, for:",
    DsnAction.EXPANDED: "Your message was delivered to an address that forwards it to others:",
}


def _outcome_phrase(recipient: ReportedRecipient) -> str:
    """The result of the delivery to a recipient, and the server that gave it."""
    by_server = f" by {recipient.result.mx}" if recipient.result.mx else ""
    if recipient.action is DsnAction.FAILED:
        is_expired = recipient.result.state is DeliveryState.EXPIRED
        return f"not accepted in time{by_server}" if is_expired else f"rejected{by_server}"
    if recipient.action is DsnAction.DELAYED:
        until_text = (
            f" until {format_datetime(recipient.retry_until)}" if recipient.retry_until else ""
        )
        return f"deferred{by_server}; retries continue{until_text}"
    return f"accepted{by_server}"


def _delivery_status_field_lines(
    environment: Environment,
    message: ReportedMessage,
    recipients: Sequence[ReportedRecipient],
    now: datetime,
) -> Iterable[str]:
    """Fields of message/delivery-status (RFC 3464, section 2)."""
    if message.dsn_request.envid:
        yield f"Original-Envelope-Id: {message.dsn_request.envid}"
    yield f"Reporting-MTA: dns; {environment.options.hostname}"
    yield f"X-Queue-ID: {message.queue_id}"
    yield f"Arrival-Date: {format_datetime(message.arrived_at)}"
    for recipient in recipients:
        yield ""
        yield from _recipient_status_fields(environment, message, recipient, now)


def _recipient_status_fields(
    environment: Environment, message: ReportedMessage, recipient: ReportedRecipient, now: datetime
) -> Iterable[str]:
    """Fields of one recipient (RFC 3464, section 2.3)."""
    result = recipient.result
    if recipient.orcpt:
        yield f"Original-Recipient: {recipient.orcpt}"
    yield f"Final-Recipient: {typed_address(recipient.address).replace(';', '; ', 1)}"
    yield f"Action: {recipient.action}"
    yield f"Status: {enhanced_status_code(recipient.action, result)}"
    if result.mx and result.mx != environment.options.hostname:
        yield f"Remote-MTA: {'x-url' if '://' in result.mx else 'dns'}; {result.mx}"
    if not result.local_action:
        diagnostic_type = "smtp" if result.mx else "x-merganser"
        yield (
            f"Diagnostic-Code: {diagnostic_type}; {result.reply_code} "
            f"{_UNPRINTABLE.sub(' ', result.reply_text)}"
        )
    yield f"Last-Attempt-Date: {format_datetime(now)}"
    yield f"Final-Log-ID: {message.queue_id}"
    if recipient.retry_until is not None:
        yield f"Will-Retry-Until: {format_datetime(recipient.retry_until)}"


def enhanced_status_code(action: DsnAction, result: DeliveryResult) -> str:
    """The enhanced status code (RFC 3463) of a recipient."""
    if result.state is DeliveryState.EXPIRED:
        return "4.4.7"
    match = _STATUS.match(result.reply_text)
    if match:
        return match[1]
    is_problem = action in {DsnAction.FAILED, DsnAction.DELAYED}
    return f"{str(result.reply_code)[0] if is_problem else 2}.0.0"


def _can_return_whole(raw_message: bytes) -> bool:
    """True if the message has a body and is small enough to be returned."""
    return len(raw_message) <= MAX_RETURNED_BYTES and _HEADER_END.search(raw_message) is not None


def _truncated_header(raw_message: bytes) -> bytes:
    """The header of a message, cut after a line if it exceeds `MAX_HEADER_BYTES`."""
    end = _HEADER_END.search(raw_message)
    header = raw_message[: end.start()] if end else raw_message
    if len(header) > MAX_HEADER_BYTES:
        header = header[: header.rfind(b"\n", 0, MAX_HEADER_BYTES)]
    return header.rstrip(b"\r\n") + b"\r\n"
