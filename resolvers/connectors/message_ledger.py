"""The ledger of fetched messages: which ones are new, known or duplicates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlmodel import col

from mail.archives.source_message import SourceMessage, parse_date_field_or_none
from mail.connectors.remote_server import RemoteMessage
from mail.storage.storable_message import StorableMessage
from models.connectors import FetchedMessage, RemoteMailbox
from models.messages.tables import Message
from resolvers.connectors.run_state import FetchState, OpenRemoteMailbox, flags_text
from resolvers.messages.filters import filter_match
from resolvers.messages.filters.message_filter import MessageConditions
from resolvers.transfer.import_writer import shorten_digest

LedgerRow = dict[str, Any]


@dataclass(frozen=True, slots=True)
class DownloadedMessage:
    """A message that was fetched and parsed."""

    head: RemoteMessage
    raw: bytes
    parsed: StorableMessage
    flags: Sequence[str]  # as stored here


@dataclass(frozen=True, slots=True)
class DownloadsByLedger:
    """Downloaded messages, sorted by whether the ledger of the connector has them."""

    ledger_rows: list[LedgerRow] = field(default_factory=list)  # of messages that need no storing
    # of duplicates of new messages, which are in the ledger only together with these
    duplicate_rows: list[LedgerRow] = field(default_factory=list)
    new_messages: list[DownloadedMessage] = field(default_factory=list)
    used_marks: list[str] = field(default_factory=list)  # earlier marks of renumbered messages


async def separate_new_from_known_messages(
    state: FetchState,
    remote_mailbox: OpenRemoteMailbox,
    mailbox_id: int,
    messages: Sequence[DownloadedMessage],
    delivered_ids: Mapping[str, int | None],
) -> DownloadsByLedger:
    """Sort messages into those that the ledger has and those to store.

    `delivered_ids` maps marks to the messages that an interrupted run has delivered.
    """
    by_ledger = DownloadsByLedger()
    ledger_rows = by_ledger.ledger_rows
    for message in messages:
        digest = message.parsed.digest
        if message.head.message_id in delivered_ids:
            # so that equal messages are duplicates
            await _is_duplicate_or_remember_digest(state, remote_mailbox, mailbox_id, digest)
            ledger_rows.append(
                ledger_row_of_fetched_message(
                    state, remote_mailbox, message, delivered_ids[message.head.message_id]
                )
            )
        elif earlier := remote_mailbox.renumbered.get(digest):
            earlier_row = earlier.pop()
            by_ledger.used_marks.append(earlier_row.remote_id)
            ledger_rows.append(
                ledger_row_of_fetched_message(
                    state,
                    remote_mailbox,
                    message,
                    earlier_row.message_id,
                    may_delete_source=earlier_row.may_delete_source,
                )
            )
        elif state.message_filter is not None and not await _matches_import_filter(
            state, remote_mailbox, message
        ):
            ledger_rows.append(
                ledger_row_of_fetched_message(
                    state, remote_mailbox, message, None, may_delete_source=False
                )
            )
        elif await _is_duplicate_or_remember_digest(state, remote_mailbox, mailbox_id, digest):
            is_of_new = any(digest == new.parsed.digest for new in by_ledger.new_messages)
            (by_ledger.duplicate_rows if is_of_new else ledger_rows).append(
                ledger_row_of_fetched_message(state, remote_mailbox, message, None)
            )
        else:
            by_ledger.new_messages.append(message)
    return by_ledger


async def _matches_import_filter(
    state: FetchState, remote_mailbox: OpenRemoteMailbox, message: DownloadedMessage
) -> bool:
    """True if a message matches the filter of a one-time import.

    Mailbox names are those of the source.
    """
    source_message = SourceMessage(
        remote_mailbox.name,
        remote_mailbox.name,
        "",
        0,
        message.raw,
        received_at=received_or_header_date_not_in_future(state, message),
        flags=message.flags,
    )
    message_filter = state.message_filter or MessageConditions()
    return await filter_match.matches_unstored_message(
        message_filter, source_message, message.parsed, state.run.ctx.environment.now()
    )


async def _is_duplicate_or_remember_digest(
    state: FetchState, remote_mailbox: OpenRemoteMailbox, mailbox_id: int, digest: str
) -> bool:
    """True if the message is a duplicate to skip. Otherwise its digest is remembered."""
    short_digest = shorten_digest(digest)
    if state.connector.skip_cross_duplicates:
        if state.all_digests is None:
            state.all_digests = await _load_ledger_digests(state, None)
        if short_digest in state.all_digests:
            return True
        state.all_digests.add(short_digest)
    if state.connector.remove_duplicates:
        if mailbox_id not in state.digests_by_mailbox:
            statement = select(col(Message.sha256)).where(
                col(Message.mailbox_id) == mailbox_id, col(Message.deleted_at).is_(None)
            )
            stored_digests = {
                shorten_digest(row.sha256) for row in await state.run.ctx.read(statement)
            }
            state.digests_by_mailbox[mailbox_id] = stored_digests | await _load_ledger_digests(
                state, remote_mailbox.id
            )
        if short_digest in state.digests_by_mailbox[mailbox_id]:
            return True
        state.digests_by_mailbox[mailbox_id].add(short_digest)
    return False


async def _load_ledger_digests(state: FetchState, remote_mailbox_id: int | None) -> set[bytes]:
    """Return the short digests in the ledger of a remote mailbox, or of all if None.

    Messages that were refused here, or whose source was deleted, are no originals of duplicates.
    """
    own_mailboxes = select(col(RemoteMailbox.id)).where(
        col(RemoteMailbox.connector_id) == state.connector.id
    )
    mailbox_column = col(FetchedMessage.folder_id)
    condition = (
        mailbox_column.in_(own_mailboxes)
        if remote_mailbox_id is None
        else mailbox_column == remote_mailbox_id
    )
    is_original = col(FetchedMessage.may_delete_source), ~col(FetchedMessage.removed)
    statement = select(col(FetchedMessage.digest)).where(condition, *is_original)
    rows = await state.run.ctx.read(statement)
    return {shorten_digest(row.digest) for row in rows}


def ledger_row_of_fetched_message(
    state: FetchState,
    remote_mailbox: OpenRemoteMailbox,
    message: DownloadedMessage,
    message_id: int | None,
    *,
    may_delete_source: bool = True,
) -> LedgerRow:
    """Return the ledger row of a message, whose source is deleted later if that is allowed."""
    return {
        "folder_id": remote_mailbox.id,
        "remote_id": message.head.message_id,
        "digest": message.parsed.digest,
        "message_id": message_id,
        "flags": flags_text(message.head.flags),
        "fetched_at": state.run.ctx.environment.now(),
        "removed": False,
        "may_delete_source": may_delete_source,
    }


def received_or_header_date_not_in_future(
    state: FetchState, message: DownloadedMessage
) -> datetime:
    """Return when a message arrived there; if unknown, its Date, and never a future time."""
    now = state.run.ctx.environment.now()
    received_at = message.head.received_at or parse_date_field_or_none(
        message.raw[: message.raw.find(b"\r\n\r\n") + 2]
    )
    return min(received_at or now, now)
