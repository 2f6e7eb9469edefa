"""Send the mail notifications of scripts (RFC 5436)."""

import asyncio
from dataclasses import replace

from mail.autoreply.decision import AutoreplyTrigger, NoReplyReason, single_line
from mail.autoreply.reply_sender import trigger_from_incoming
from mail.autoreply.sieve_vacation import (
    allowed_from_address_or_none,
    build_fcc_copy_with_placement_or_none,
    find_replying_account,
)
from mail.compose import message_builder, message_draft
from mail.compose.message_draft import MAX_SUBJECT_BYTES, CustomHeader, MessageDraft, Priority
from mail.filters.script_environment import ScriptMailboxes
from mail.inbound.incoming_message import IncomingMessage
from mail.inbound.spam_check import RecipientVerdict
from mail.mime import leading_keyword
from mail.mime.header_encoding import NamedAddress, with_ascii_domain
from mail.queue.redirect import enqueue_redirect
from mail.recipients.recipient_routes import OutgoingForward
from mail.sieve import MailNotification
from mail.storage import received_messages
from mail.storage.quota import InsertKind
from mail.storage.received_messages import DeliveryCopies
from models.runtime.environment import Environment

_PRIORITY_BY_IMPORTANCE = {1: Priority.HIGH, 3: Priority.LOW}


async def enqueue_notification_and_store_copy(
    environment: Environment,
    incoming: IncomingMessage,
    recipient_verdict: RecipientVerdict,
    notification: MailNotification,
    mailboxes: ScriptMailboxes,
) -> NoReplyReason | None:
    """Enqueue a notification. Returns None, or the reason for none.

    Spam and automatic mail cause no notification, to avoid mail loops.
    """
    recipient = recipient_verdict.recipient
    trigger = await trigger_from_incoming(
        incoming, recipient.address, is_spam=recipient_verdict.verdict.is_spam
    )
    if trigger.is_spam or _has_auto_submitted_field(trigger):
        return NoReplyReason.SPAM if trigger.is_spam else NoReplyReason.AUTOMATIC_MAIL
    row = await find_replying_account(environment, recipient)
    if row is None or row.suspended:
        return NoReplyReason.SUSPENDED
    from_ = await allowed_from_address_or_none(environment, recipient, row, notification.from_)
    if from_ is None:
        return NoReplyReason.OTHER_ADDRESS
    raw = await asyncio.to_thread(_build_notification, environment, trigger, notification, from_)
    forward = OutgoingForward(
        recipient.address,
        None,
        recipient.tenant_id,
        notification.recipients,
        user_id=recipient.user_id,
        domain_id=recipient.domain_id,
    )
    # a key of its own: redirects of the message itself use its digest
    made_of = f"{incoming.content_digest}\0{notification.method}"
    message = replace(await received_messages.parse_storable_message(raw), is_generated=True)
    await enqueue_redirect(environment, raw, (made_of, ""), forward, message=message)
    if notification.fcc is not None:
        copy = await build_fcc_copy_with_placement_or_none(
            environment, recipient, (raw, message), notification.fcc, mailboxes
        )
        if copy is not None:
            receipt = received_messages.receipt_digest(
                incoming.message, recipient, f"notify\0{notification.method}"
            )
            await received_messages.store_copies_once(
                environment, recipient, DeliveryCopies(receipt, [copy], InsertKind.ADDED_BY_USER)
            )
    return None


def _has_auto_submitted_field(trigger: AutoreplyTrigger) -> bool:
    """Return True if Auto-Submitted says that a program sent the message."""
    return any(
        leading_keyword(field.value) != "no"
        for field in trigger.header_fields
        if field.name.lower() == "auto-submitted"
    )


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
    return message_builder.validate_and_build_message(draft)


def _can_set_field(name: str) -> bool:
    """Return True if a script may set this header field."""
    is_reserved = name in message_draft.RESERVED_FIELDS or name.startswith(
        message_draft.RESERVED_PREFIXES
    )
    return not is_reserved and name != "auto-submitted"
