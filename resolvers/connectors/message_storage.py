"""Store fetched messages: directly in mailboxes, or through the delivery of incoming mail.

A transaction stores messages together with their ledger rows. The delivery has transactions of its
own; a delivery receipt identifies a repeated message there until the ledger has it.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial

from sqlalchemy import delete, insert, select
from sqlmodel import col

from mail.archives.source_message import SourceMessage
from mail.authentication.results_removal import (
    own_authserv_ids,
    remove_authentication_results_of_servers,
)
from mail.connectors.remote_server import ConnectorStage, RemoteFailure, RemoteMessage
from mail.delivery import pipeline
from mail.delivery.script_rejection import RejectedByScript
from mail.envelope.local_recipient import LocalRecipient
from mail.inbound.incoming_message import FetchedMessageState, IncomingMessage
from mail.inbound.scan_rejection import SpamRefused
from mail.mailboxes.paths import INBOX
from mail.recipients.address_resolution import load_row_recipient_below_limits
from mail.recipients.recipient_routes import AcceptedAccount, AcceptedRecipient
from mail.scanners import clamd, rspamd
from mail.storage import received_messages
from mail.storage.blobs.blob_writer import StoredMessageBlobs
from mail.storage.message_flags import unique_keywords
from mail.storage.message_insert import InsertedMessage
from mail.storage.quota import InsertKind
from mail.storage.received_messages import receipt_digest
from mail.storage.storable_message import StorableMessage
from models.addresses.tables import Address
from models.connectors import FetchedMessage
from models.errors import OverQuota, RequestError
from models.messages.tables import DeliveryReceipt, Message
from models.runtime.environment import DatabaseTransaction
from models.store.columns import select_columns
from resolvers.connectors.message_ledger import (
    DownloadedMessage,
    DownloadsByLedger,
    LedgerRow,
    ledger_row_of_fetched_message,
    received_or_header_date_not_in_future,
    separate_new_from_known_messages,
)
from resolvers.connectors.run_state import (
    IGNORED_FLAGS,
    FetchState,
    OpenRemoteMailbox,
    require_no_worker_stop,
)
from resolvers.messages.bulk import flag_changes, flags
from resolvers.transfer import import_mailboxes, import_writer
from resolvers.transfer.import_writer import MAX_BATCH_MESSAGES, ImportableMessage

MAX_PARALLEL_DELIVERIES = 8  # of one run
NEW_MAIL_AGE = timedelta(days=1)  # younger messages are reported as new mail
DEFAULT_SPAM_LEVEL = 50  # of accounts without a spam setting


async def store_fetched_messages(
    state: FetchState,
    remote_mailbox: OpenRemoteMailbox,
    heads_and_bytes: Sequence[tuple[RemoteMessage, bytes]],
) -> None:
    """Store fetched messages and their ledger rows.

    Raises OverQuota if they do not all fit, and RemoteFailure if the database is too slow or a
    delivery fails. Raises RunInterrupted between two transactions if the worker stops.
    """
    writer = state.writer
    path = remote_mailbox.mapped.local_path
    mailbox_id = await import_mailboxes.get_or_create_mailbox_id(
        writer.ctx, writer.mailbox_ids, path, subscribe=writer.subscribes
    )
    needs_delivery = False
    if path == INBOX:  # the recipient is read each time, since a run can listen for days
        state.recipient = await _load_delivery_recipient(state)
        needs_delivery = _needs_delivery(state, state.recipient)
    for start in range(0, len(heads_and_bytes), MAX_BATCH_MESSAGES):
        messages = list[DownloadedMessage]()
        for head, raw in heads_and_bytes[start : start + MAX_BATCH_MESSAGES]:
            cleaned = remove_authentication_results_of_servers(
                raw, own_authserv_ids(state.run.ctx.environment.options)
            )
            messages.append(
                DownloadedMessage(
                    head,
                    cleaned,
                    await received_messages.parse_storable_message(cleaned),
                    local_flags(head),
                )
            )
            await asyncio.sleep(0)  # parsing small messages must not block the event loop
        state.counts.size += sum(len(message.raw) for message in messages)
        delivered_ids = (
            await _load_delivered_ids_by_mark(state, remote_mailbox, state.recipient, messages)
            if needs_delivery and state.recipient
            else {}
        )
        by_ledger = await separate_new_from_known_messages(
            state, remote_mailbox, mailbox_id, messages, delivered_ids
        )
        state.counts.imported_count += len(delivered_ids)
        skipped_rows = [*by_ledger.ledger_rows, *by_ledger.duplicate_rows]
        state.counts.skipped_count += len(skipped_rows) - len(delivered_ids)
        if needs_delivery and state.recipient:
            rows = await _deliver_fetched_messages(
                state, remote_mailbox, state.recipient, by_ledger.new_messages
            )
            by_ledger = _with_delivered_rows(by_ledger, rows)
        await _store_messages_and_ledger_rows_until_over_quota(
            state, remote_mailbox, mailbox_id, by_ledger
        )
        require_no_worker_stop()


def local_flags(head: RemoteMessage) -> list[str]:
    """Return the flags that a message has here: known system flags and the first keywords."""
    valid_flags = sorted(
        flag for flag in head.flags - IGNORED_FLAGS if flag_changes.is_flag_or_keyword(flag)
    )
    system = [flag for flag in valid_flags if flag[:1] == "\\"]
    keywords = unique_keywords(flag for flag in valid_flags if flag[:1] != "\\")
    return system + keywords[: flags.MAX_KEYWORDS]


async def _store_messages_and_ledger_rows_until_over_quota(
    state: FetchState,
    remote_mailbox: OpenRemoteMailbox,
    mailbox_id: int,
    downloads: DownloadsByLedger,
) -> None:
    """Store new messages and the ledger rows.

    If the quota is exceeded, stores one message at a time, each with the rows of its duplicates.

    Raises OverQuota for the first message that does not fit.
    """
    new_messages, used_marks = downloads.new_messages, downloads.used_marks
    prepared = [
        _importable_message(state, remote_mailbox, mailbox_id, message) for message in new_messages
    ]
    all_rows = [*downloads.ledger_rows, *downloads.duplicate_rows]
    try:
        await _store_messages_and_ledger_rows(
            state, remote_mailbox, (new_messages, prepared), all_rows, used_marks
        )
    except OverQuota:
        if len(new_messages) <= 1 and not downloads.ledger_rows:
            raise
        await _store_messages_and_ledger_rows(
            state, remote_mailbox, ([], []), downloads.ledger_rows, used_marks
        )
        for message in new_messages:
            rows = [r for r in downloads.duplicate_rows if r["digest"] == message.parsed.digest]
            single_download = DownloadsByLedger(new_messages=[message], duplicate_rows=rows)
            await _store_messages_and_ledger_rows_until_over_quota(
                state, remote_mailbox, mailbox_id, single_download
            )


def _with_delivered_rows(
    downloads: DownloadsByLedger, delivered_rows: Sequence[LedgerRow]
) -> DownloadsByLedger:
    """Return the downloads after the delivery of all new messages.

    The source of a duplicate may be deleted only if its original was not refused.
    """
    refused = {row["digest"] for row in delivered_rows if not row["may_delete_source"]}
    duplicate_rows = [
        {**row, "may_delete_source": row["digest"] not in refused}
        for row in downloads.duplicate_rows
    ]
    rows = [*downloads.ledger_rows, *delivered_rows, *duplicate_rows]
    return DownloadsByLedger(ledger_rows=rows, used_marks=downloads.used_marks)


def _importable_message(
    state: FetchState,
    remote_mailbox: OpenRemoteMailbox,
    mailbox_id: int,
    message: DownloadedMessage,
) -> ImportableMessage:
    raw, head = message.raw, message.head
    name = f"{remote_mailbox.name}, {head.message_id}"
    source_message = SourceMessage(
        name,
        remote_mailbox.mapped.local_path,
        "",
        0,
        raw,
        received_at=received_or_header_date_not_in_future(state, message),
        flags=message.flags,
    )
    origin = (
        InsertKind.FETCHED
        if _is_new_mail(state, remote_mailbox, message)
        else InsertKind.ADDED_BY_USER
    )
    return ImportableMessage(
        source_message, message.parsed, mailbox_id, message.flags, insert_kind=origin
    )


def _is_new_mail(
    state: FetchState, remote_mailbox: OpenRemoteMailbox, message: DownloadedMessage
) -> bool:
    """True if a message is reported as new mail. Messages of a first fetch are not."""
    is_unread = remote_mailbox.mapped.local_path == INBOX and "\\Seen" not in message.flags
    return (
        is_unread
        and not remote_mailbox.is_first_fetch
        and received_or_header_date_not_in_future(state, message)
        >= state.run.ctx.environment.now() - NEW_MAIL_AGE
    )


async def _store_messages_and_ledger_rows(
    state: FetchState,
    remote_mailbox: OpenRemoteMailbox,
    messages_and_prepared: tuple[list[DownloadedMessage], list[ImportableMessage]],
    ledger_rows: list[LedgerRow],
    used_marks: Sequence[str],
) -> None:
    new_messages, prepared = messages_and_prepared
    imported_count = state.counts.imported_count + len(prepared)

    def insert_messages_and_ledger_rows(
        transaction: DatabaseTransaction, stored_blobs: Sequence[StoredMessageBlobs]
    ) -> None:
        inserted = import_writer.insert_without_deleted_flag_and_expiry(
            state.writer, transaction, prepared, stored_blobs
        )
        rows = [
            ledger_row_of_fetched_message(
                state, remote_mailbox, message, inserted_message.message_id
            )
            for message, inserted_message in zip(new_messages, inserted, strict=True)
        ]
        if ledger_rows or rows:
            transaction.connection.execute(insert(FetchedMessage), [*ledger_rows, *rows])
        if used_marks:
            used = col(FetchedMessage.remote_id).in_(used_marks)
            is_in_mailbox = col(FetchedMessage.folder_id) == remote_mailbox.id
            transaction.connection.execute(delete(FetchedMessage).where(is_in_mailbox, used))
        state.run.require_lease_and_record_in_transaction(
            transaction, **{**state.progress_columns, "imported_count": imported_count}
        )

    async def run_transaction(stored_blobs: Sequence[StoredMessageBlobs]) -> None:
        await state.run_transaction_with_timeout(
            partial(insert_messages_and_ledger_rows, stored_blobs=stored_blobs)
        )

    await import_writer.store_blobs_then_call_with_one_retry(
        state.writer, prepared, run_transaction
    )
    state.counts.imported_count = imported_count
    state.run.ctx.environment.reach_fault_point("fetched")


def _needs_delivery(state: FetchState, recipient: LocalRecipient | None) -> bool:
    """True if INBOX messages pass the delivery of incoming mail.

    That is so if a scanner, filter or encryption key applies.
    """
    row, options = state.connector, state.run.ctx.environment.options
    if recipient is None:
        return False
    has_spam_rules = (
        bool(options.rspamd_url)
        or recipient.has_sender_rules
        or recipient.spam_level != DEFAULT_SPAM_LEVEL
    )
    return bool(
        (row.spam_check and has_spam_rules)
        or (row.virus_check and options.clamd_address)
        or (row.apply_filters and (recipient.has_filters or recipient.has_script))
        or recipient.encryption_key is not None
    )


async def _load_delivery_recipient(state: FetchState) -> LocalRecipient | None:
    """Return the account as a recipient of incoming mail, or None if it has no address."""
    row, environment = state.connector, state.run.ctx.environment
    is_main_address = col(Address.user_id) == row.user_id, col(Address.main)
    statement = select(*select_columns(Address)).where(*is_main_address)
    address_row = next(iter(await environment.database.read(statement)), None)
    if address_row is None:
        return None
    own_address = address_row.display_address
    address = own_address
    if row.target_domain:  # it need not be a domain of this server
        address = f"{own_address.rpartition('@')[0]}@{row.target_domain}"
    recipient = await load_row_recipient_below_limits(
        environment, address_row, address, rewritten_to=own_address
    )
    if not row.spam_check:
        recipient = replace(recipient, has_sender_rules=False, spam_level=DEFAULT_SPAM_LEVEL)
    if not row.apply_filters:
        recipient = replace(recipient, has_filters=False, has_script=False)
    return replace(recipient, has_autoreply=False, has_bcc_rules=False, has_forward_targets=False)


async def _load_delivered_ids_by_mark(
    state: FetchState,
    remote_mailbox: OpenRemoteMailbox,
    recipient: LocalRecipient,
    messages: Sequence[DownloadedMessage],
) -> dict[str, int | None]:
    """Return the messages that an interrupted run has delivered, by mark.

    The id is None for a message in quarantine.

    The digest would identify the message, too, but not its id here.
    """
    environment = state.run.ctx.environment
    marks_by_receipt = {
        receipt_digest(
            _with_source_identity(remote_mailbox, message), recipient, ""
        ): message.head.message_id
        for message in messages
    }
    statement = (
        select(col(DeliveryReceipt.digest), col(Message.id))
        .join(Message, col(Message.id) == col(DeliveryReceipt.message_id), isouter=True)
        .where(
            col(DeliveryReceipt.digest).in_(marks_by_receipt),
            col(DeliveryReceipt.at)
            > environment.now() - environment.options.duplicate_delivery_retention,
        )
    )
    return {
        marks_by_receipt[row.digest]: row.id for row in await environment.database.read(statement)
    }


def _with_source_identity(
    remote_mailbox: OpenRemoteMailbox, message: DownloadedMessage
) -> StorableMessage:
    """Return the parsed message with the identity that its delivery receipt is computed from."""
    source = f"{remote_mailbox.id}:{remote_mailbox.opened.uid_validity}"
    source_identity = f"{source}:{message.head.message_id}:{message.parsed.digest}"
    return replace(message.parsed, received_digest=source_identity)


async def _deliver_fetched_messages(
    state: FetchState,
    remote_mailbox: OpenRemoteMailbox,
    recipient: LocalRecipient,
    messages: Sequence[DownloadedMessage],
) -> list[LedgerRow]:
    """Deliver fetched messages as incoming mail, and return their ledger rows to be stored.

    If a delivery fails, the rows of the others are stored here, and the error is raised:
    OverQuota, RemoteFailure for another refusal, else the original one. A message that is spam or
    that a script rejects is skipped, with a ledger row.
    """
    semaphore = asyncio.Semaphore(MAX_PARALLEL_DELIVERIES)

    async def deliver_one(message: DownloadedMessage) -> object:
        """Deliver a message when fewer than MAX_PARALLEL_DELIVERIES run; return its outcome."""
        async with semaphore:
            return await _deliver_fetched_message(state, remote_mailbox, message, recipient)

    outcomes = await asyncio.gather(*map(deliver_one, messages), return_exceptions=True)
    state.run.ctx.environment.reach_fault_point("sifted")
    rows, failed = list[LedgerRow](), list[BaseException]()
    for message, outcome in zip(messages, outcomes, strict=True):
        if isinstance(outcome, SpamRefused | RejectedByScript):
            state.run.add_log_line(
                f"{remote_mailbox.name}, {message.head.message_id}: rejected: {outcome}"
            )
            state.counts.skipped_count += 1
            rows.append(
                ledger_row_of_fetched_message(
                    state, remote_mailbox, message, None, may_delete_source=False
                )
            )
        elif isinstance(outcome, BaseException):
            failed.append(outcome)
        else:
            state.counts.imported_count += 1
            key = outcome.message_id if isinstance(outcome, InsertedMessage) else None
            rows.append(ledger_row_of_fetched_message(state, remote_mailbox, message, key))
    if failed and rows:  # receipts expire; the ledger must know the delivered ones
        async with state.write_session_with_timeout() as unit:
            await (await unit.connection()).execute(insert(FetchedMessage), rows)
            await state.record_progress(unit)
    if failed:
        raise _failure_from_outcome(failed[0])
    return rows


def _failure_from_outcome(outcome: BaseException) -> BaseException:
    if isinstance(outcome, RequestError) and not isinstance(outcome, OverQuota):
        return RemoteFailure(ConnectorStage.STORE, outcome.message)
    return outcome


async def _deliver_fetched_message(
    state: FetchState,
    remote_mailbox: OpenRemoteMailbox,
    message: DownloadedMessage,
    recipient: LocalRecipient,
) -> object:
    environment, row = state.run.ctx.environment, state.connector
    scanners = {rspamd.SCANNER_NAME: row.spam_check, clamd.SCANNER_NAME: row.virus_check}
    fetched_facts = FetchedMessageState(
        received_or_header_date_not_in_future(state, message),
        frozenset(name for name, is_requested in scanners.items() if is_requested),
        is_new_mail=_is_new_mail(state, remote_mailbox, message),
        seen="\\Seen" in message.flags,
        flagged="\\Flagged" in message.flags,
        answered="\\Answered" in message.flags,
        draft="\\Draft" in message.flags,
        keywords=tuple(flag for flag in message.flags if flag[:1] != "\\"),
    )
    mail = IncomingMessage(
        message.raw,
        _with_source_identity(remote_mailbox, message),
        "",
        fetched=fetched_facts,
        applies_bcc_rules=False,
    )
    accepted = AcceptedRecipient(recipient.address, [AcceptedAccount(recipient)])
    (outcome,) = await pipeline.deliver_to_accepted_recipients(environment, mail, [accepted])
    return outcome
