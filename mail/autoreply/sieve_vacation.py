"""Send the vacation replies of scripts (RFC 5230), under the rules of all automatic replies."""

import asyncio
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any

from sqlalchemy import and_, select
from sqlalchemy.orm import aliased
from sqlmodel import col

from mail import mime
from mail.autoreply.decision import (
    AutoreplyTrigger,
    NoReplyReason,
    reason_never_to_reply,
    sender_without_label_and_batv_tag,
    single_line,
)
from mail.autoreply.reply_sender import (
    AUTOREPLIES,
    DAY,
    find_receiving_address_record,
    from_address_of_reply,
    is_user_reply_limit_reached_sql,
    trigger_from_incoming,
    upsert_reply_count,
)
from mail.compose import message_builder
from mail.compose.message_draft import MAX_NAME_BYTES, MAX_SUBJECT_BYTES, CustomHeader, MessageDraft
from mail.envelope.local_recipient import LocalRecipient
from mail.filters.script_environment import ScriptMailboxes
from mail.filters.script_state import is_remembered, upsert_remembered_sieve_key
from mail.inbound.incoming_message import IncomingMessage
from mail.inbound.spam_check import RecipientVerdict
from mail.mime.header_encoding import NamedAddress
from mail.queue.enqueue import (
    SubmissionOwner,
    build_submission_and_insert_blobs,
    copy_to_running_legal_holds,
    enqueue,
)
from mail.recipients.sender_accounts import find_user_id_that_sends_as
from mail.sieve import FccCopy, VacationReply
from mail.storage import message_insert, openpgp_encryption, received_messages
from mail.storage.message_flags import columns_from_script_flags
from mail.storage.message_insert import MessagePlacement
from mail.storage.quota import InsertKind
from mail.storage.storable_message import StorableMessage
from models.addresses.tables import Address
from models.errors import RequestError
from models.filters.sieve_scripts import SieveMemoryKind
from models.runtime.environment import DatabaseTransaction, Environment
from models.store.columns import ColumnRow
from models.store.prepared_statements import PreparedStatement, integer_parameter
from models.users.tables import UsageKind, User

_main_address = aliased(Address)
_SELECT_ACCOUNT = PreparedStatement(
    select(
        col(User.suspended),
        col(User.name).label("shown_name"),
        col(_main_address.display_address).label("main"),
        col(Address.send_as),
        is_user_reply_limit_reached_sql().label("spent"),
    )
    .select_from(User)
    .outerjoin(Address, col(Address.id) == integer_parameter("address"))
    .outerjoin(
        _main_address, and_(col(_main_address.user_id) == col(User.id), col(_main_address.main))
    )
    .where(col(User.id) == integer_parameter("user"))
)


async def send_vacation_reply_if_allowed(
    environment: Environment,
    incoming: IncomingMessage,
    recipient_verdict: RecipientVerdict,
    vacation: VacationReply,
    mailboxes: ScriptMailboxes,
) -> None:
    """Send the reply of a script, once per sender in the interval of the action."""
    no_reply_reason = await _reply_if_wanted(
        environment, incoming, recipient_verdict, vacation, mailboxes
    )
    AUTOREPLIES.add(no_reply_reason.metric_label if no_reply_reason else "answered")


async def find_replying_account(
    environment: Environment, recipient: LocalRecipient
) -> ColumnRow | None:
    """Return the row of the replying account; None if it does not exist."""
    parameters = {
        "user": recipient.user_id,
        "address": recipient.address_id,
        "now": environment.now(),
    }
    return next(iter(await environment.database.read_prepared(_SELECT_ACCOUNT, parameters)), None)


async def allowed_from_address_or_none(
    environment: Environment,
    recipient: LocalRecipient,
    account_row: ColumnRow,
    requested_from: str | None,
) -> NamedAddress | None:
    """Return the From address: as the script requests if allowed, else the recipient address.

    Returns None if the account must not send as either.
    """
    addresses = mime.parse_address_list(requested_from) if requested_from else []
    if (
        addresses
        and await find_user_id_that_sends_as(environment, addresses[0].address) == recipient.user_id
    ):
        return NamedAddress(
            addresses[0].address, single_line(addresses[0].name or "", MAX_NAME_BYTES) or None
        )
    own_address = from_address_of_reply(account_row.send_as, recipient.address, account_row.main)
    return (
        NamedAddress(own_address, single_line(account_row.shown_name or "", MAX_NAME_BYTES) or None)
        if own_address
        else None
    )


async def _reply_if_wanted(
    environment: Environment,
    incoming: IncomingMessage,
    recipient_verdict: RecipientVerdict,
    vacation: VacationReply,
    mailboxes: ScriptMailboxes,
) -> NoReplyReason | None:
    """Send the reply. Returns None, or the reason for no reply."""
    recipient = recipient_verdict.recipient
    trigger = await trigger_from_incoming(
        incoming, recipient.address, is_spam=recipient_verdict.verdict.is_spam
    )
    sender = sender_without_label_and_batv_tag(trigger.envelope_sender)
    if no_reply_reason := reason_never_to_reply(trigger):
        return no_reply_reason
    row = await find_replying_account(environment, recipient)
    if row is None or row.suspended:
        return NoReplyReason.SUSPENDED
    sender_record = await find_receiving_address_record(environment, trigger.envelope_sender)
    if sender_record is not None and sender_record.user_id == recipient.user_id:
        return NoReplyReason.OWN
    from_ = await allowed_from_address_or_none(environment, recipient, row, vacation.from_)
    if from_ is None or row.spent:
        return NoReplyReason.OTHER_ADDRESS if from_ is None else NoReplyReason.LIMIT
    raw = await asyncio.to_thread(_build_reply, environment, trigger, vacation, from_)
    reply_message = await received_messages.parse_storable_message(raw)
    copy = await build_fcc_copy_with_placement_or_none(
        environment, recipient, (raw, reply_message), vacation.fcc, mailboxes
    )
    key = sha256(f"{vacation.handle}\0{sender}".encode(errors="replace")).hexdigest()
    sending = _PendingReply(
        recipient, trigger.envelope_sender, key, timedelta(seconds=vacation.interval_seconds)
    )
    return await _recheck_enqueue_and_record(environment, sending, reply_message, copy)


@dataclass(frozen=True, slots=True)
class _PendingReply:
    """A reply with the key and the time that its sender is remembered for."""

    recipient: LocalRecipient
    sender: str
    memory_key: str
    remember_for: timedelta


async def _recheck_enqueue_and_record(
    environment: Environment,
    pending: _PendingReply,
    message: StorableMessage,
    fcc_copy: tuple[StorableMessage, MessagePlacement] | None,
) -> NoReplyReason | None:
    """Enqueue the reply, store the FCC copy and record the sender.

    Returns None, or the reason for no reply. If the copy can't be stored, the reply is sent without
    it.
    """
    owner = pending.recipient.user_id

    def recheck_limits_and_enqueue(
        transaction: DatabaseTransaction, stored_blobs: Any
    ) -> NoReplyReason | None:
        """Recheck the limits under the lock of the account: no other process can reply."""
        if is_remembered(transaction, owner, SieveMemoryKind.VACATION, pending.memory_key):
            return NoReplyReason.ANSWERED
        row = transaction.fetch_rows(
            _SELECT_ACCOUNT, user=owner, address=pending.recipient.address_id, now=environment.now()
        )[0]
        if row.spent:
            return NoReplyReason.LIMIT
        _remember_sender_and_count_reply(transaction, pending, environment.now())
        # null sender: no DSN is sent for a reply
        answer = build_submission_and_insert_blobs(
            transaction, message, stored_blobs[0], "", [pending.sender], originates_here=True
        )
        submission_id = enqueue(transaction, SubmissionOwner(owner), answer)
        copy_to_running_legal_holds(transaction, (owner, submission_id), message, answer)
        if fcc_copy is not None:
            message_insert.insert_message_and_take_quota(
                transaction,
                fcc_copy[0],
                stored_blobs[1],
                received_messages.resolve_or_create_mailbox(transaction, fcc_copy[1]),
                kind=InsertKind.ADDED_BY_USER,
            )
        return None

    messages = [message, fcc_copy[0]] if fcc_copy else [message]
    tenant = pending.recipient.tenant_id
    try:
        return await received_messages.store_all_blobs_and_run_transaction(
            environment, tenant, messages, recheck_limits_and_enqueue, owner
        )
    except RequestError:  # the mailbox is full or deleted; the reply is more important
        if fcc_copy is None:
            raise
        return await _recheck_enqueue_and_record(environment, pending, message, None)


def _remember_sender_and_count_reply(
    transaction: DatabaseTransaction, pending: _PendingReply, now: datetime
) -> None:
    """Remember the sender of a message, and count the reply to it for a day."""
    owner = pending.recipient.user_id
    memory = (SieveMemoryKind.VACATION, pending.memory_key)
    upsert_remembered_sieve_key(transaction, owner, memory, now + pending.remember_for)
    used = {"user_id": owner, "kind": UsageKind.AUTOREPLIES, "used": 1}
    dialect = transaction.connection.dialect.name
    transaction.execute_statements(
        [(upsert_reply_count(dialect), {**used, "until": now + DAY, "now": now})]
    )


async def build_fcc_copy_with_placement_or_none(
    environment: Environment,
    recipient: LocalRecipient,
    raw_and_message: tuple[bytes, StorableMessage],
    fcc: FccCopy | None,
    mailboxes: ScriptMailboxes,
) -> tuple[StorableMessage, MessagePlacement] | None:
    """Return the FCC copy of a sent message (RFC 8580) and its placement.

    Returns None if no copy is requested, the mailbox does not exist, or the copy can't be
    encrypted.
    """
    if fcc is None:
        return None
    raw, message = raw_and_message
    mailbox = mailboxes.find_by_special_use_or_path(fcc.mailbox, fcc.special_use)
    path = fcc.mailbox if mailbox is None and fcc.create_mailbox else None
    key = mailboxes.new_mailbox_key if path else mailbox.encryption_key if mailbox else None
    if mailbox is None and path is None:
        return None
    if key is not None:
        try:
            message = await openpgp_encryption.encrypt_unless_encrypted(
                environment, raw, message, (recipient.user_id, key)
            )
        except RequestError:
            return None
    fcc_placement = MessagePlacement(
        recipient.user_id,
        mailbox.id if mailbox else recipient.mailbox_id,
        environment.now(),
        mailbox_path=path,
    )
    return message, replace(fcc_placement, **{"seen": True, **columns_from_script_flags(fcc.flags)})


def _build_reply(
    environment: Environment,
    trigger: AutoreplyTrigger,
    vacation: VacationReply,
    from_named: NamedAddress,
) -> bytes:
    """Build the reply message."""
    draft = MessageDraft(
        from_=from_named,
        date=environment.now(),
        message_id=message_builder.new_message_id(
            environment.random_bytes(16), from_named.address.rpartition("@")[2]
        ),
        to=[NamedAddress(trigger.envelope_sender)],
        subject=single_line(vacation.subject, MAX_SUBJECT_BYTES),
        text=None if vacation.is_mime else vacation.reason,
        headers=[
            CustomHeader("Auto-Submitted", "auto-replied"),  # RFC 3834, section 5
            CustomHeader("X-Auto-Response-Suppress", "All"),
        ],
        in_reply_to=trigger.message_id,
        references=[*trigger.references, *([trigger.message_id] if trigger.message_id else [])],
    )
    return message_builder.validate_and_build_message(
        draft, mime_entity_with_content_fields_only(vacation.reason) if vacation.is_mime else None
    )


def mime_entity_with_content_fields_only(text: str) -> bytes:
    """Return the MIME entity of a script with only its Content-* header fields."""
    raw = "\r\n".join(text.splitlines()).encode(errors="replace")
    head, _, body = (
        raw.partition(b"\r\n\r\n") if not raw.startswith(b"\r\n") else (b"", b"", raw[2:])
    )
    head_fields, of_body = list[bytes](), False
    for line in head.split(b"\r\n"):
        of_body = line.lower().startswith(b"content-") or (of_body and line[:1] in (b" ", b"\t"))
        if of_body and len(line) <= MAX_LINE:
            head_fields.append(line)
    if not body.isascii() and not any(
        line.lower().startswith(_ENCODING_FIELD) for line in head_fields
    ):
        head_fields.append(b"Content-Transfer-Encoding: 8bit")
    return b"\r\n".join([b"MIME-Version: 1.0", *head_fields, b"", body, b""])


MAX_LINE = 998  # bytes (RFC 5322, section 2.1.1)
_ENCODING_FIELD = b"content-transfer-encoding"
