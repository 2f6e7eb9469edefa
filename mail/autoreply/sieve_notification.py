"""Send the mail notifications of scripts (RFC 5436)."""

import asyncio
from dataclasses import replace

from mail.autoreply.decision import AutoreplyTrigger, NoReplyReason, single_line
from mail.autoreply.reply_sender import trigger_from_incoming
from mail.autoreply.sieve_vacation import (
    allowed_from_address,
    fcc_copy_with_placement,
    find_replying_account,
)
from mail.compose import message_builder
from mail.compose.message_builder import MAX_SUBJECT_BYTES, CustomHeader, MessageDraft, Priority
from mail.filters.script_environment import ScriptMailboxes
from mail.inbound.incoming_message import IncomingMessage
from mail.inbound.spam_check import RecipientVerdict
from mail.mime.header_encoding import NamedAddress, with_ascii_domain
from mail.queue.redirect import enqueue_redirect
from mail.recipients.recipient_routes import OutgoingForward
from mail.sieve import MailNotification
from mail.storage import received_messages
from mail.storage.message_insert import InsertKind
from mail.storage.received_messages import DeliveryCopies
from models.runtime.environment import Environment

_PRIORITY_BY_IMPORTANCE = {1: Priority.HIGH, 3: Priority.LOW}
_AUTOMATIC_FIELDS = frozenset({"auto-submitted"})


async def send_notification(
    environment: Environment,
    incoming: IncomingMessage,
    recipient_verdict: RecipientVerdict,
    notification: MailNotification,
    mailboxes: ScriptMailboxes,
) -> NoReplyReason | None:
    """Enqueue a notification. Returns None, or the reason for none.

    Spam and automatic mail cause no notification, to avoid mail loops.
    """
    to = recipient_verdict.recipient
    came = await trigger_from_incoming(
        incoming, to.address, is_spam=recipient_verdict.verdict.is_spam
    )
    if came.is_spam or _is_automatic(came):
        return NoReplyReason.SPAM if came.is_spam else NoReplyReason.AUTOMATIC_MAIL
    row = await find_replying_account(environment, to)
    if row is None or row.suspended:
        return NoReplyReason.SUSPENDED
    from_ = await allowed_from_address(environment, to, row, notification.from_)
    if from_ is None:
        return NoReplyReason.OTHER_ADDRESS
    raw = await asyncio.to_thread(_build_notification, environment, came, notification, from_)
    onward = OutgoingForward(
        to.address, None, to.tenant_id, notification.recipients, user_id=to.user_id
    )
    # a key of its own: redirects of the message itself use its digest
    made_of = f"{incoming.message.digest}\0{notification.method}"
    letter = replace(await received_messages.parse_storable_message(raw), is_generated=True)
    await enqueue_redirect(environment, raw, (made_of, ""), onward, message=letter)
    if notification.fcc is not None:
        copy = await fcc_copy_with_placement(
            environment, to, (raw, letter), notification.fcc, mailboxes
        )
        if copy is not None:
            receipt = received_messages.receipt_digest(
                incoming.message, to, f"notify\0{notification.method}"
            )
            await received_messages.store_copies_once(
                environment, to, DeliveryCopies(receipt, [copy], InsertKind.ADDED_BY_USER)
            )
    return None


def _is_automatic(trigger: AutoreplyTrigger) -> bool:
    """Return True if Auto-Submitted says that a program sent the message."""
    said = [one.value for one in trigger.header_fields if one.key.lower() in _AUTOMATIC_FIELDS]
    return any(value.strip().lower().partition(";")[0].strip() != "no" for value in said)


def _build_notification(
    environment: Environment,
    trigger: AutoreplyTrigger,
    notification: MailNotification,
    from_address: NamedAddress,
) -> bytes:
    """Build the notification message."""
    fields = dict(notification.header_fields)
    subject = notification.message or fields.pop("subject", "") or trigger.subject
    fields.pop("subject", None)
    owner = with_ascii_domain(from_address.address)
    headers = [CustomHeader("Auto-Submitted", f'auto-notified; owner-email="{owner}"')]
    headers += [
        CustomHeader(name.title(), value) for name, value in fields.items() if _can_set_field(name)
    ]
    draft = MessageDraft(
        from_=from_address,
        date=environment.now(),
        message_id=message_builder.new_message_id(
            environment.random_bytes(16), from_address.address.rpartition("@")[2]
        ),
        to=[NamedAddress(address) for address in notification.recipients],
        subject=single_line(subject, MAX_SUBJECT_BYTES),
        text=notification.body or f"{single_line(trigger.subject, MAX_SUBJECT_BYTES)}\n",
        headers=headers,
        priority=_PRIORITY_BY_IMPORTANCE.get(notification.importance, Priority.NORMAL),
    )
    return message_builder.build_message(draft)


def _can_set_field(name: str) -> bool:
    """Return True if a script may set this header field."""
    own = name in message_builder.RESERVED_FIELDS or name.startswith(
        message_builder.RESERVED_PREFIXES
    )
    return not own and name != "auto-submitted"
