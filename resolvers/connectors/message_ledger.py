"""The ledger of fetched messages: which ones are new, known or duplicates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select
from sqlmodel import col

from mail.archives.source_message import SourceMessage, parse_date_field
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
    new_messages: list[DownloadedMessage] = field(default_factory=list)
    used_marks: list[str] = field(default_factory=list)  # earlier marks of renumbered messages


async def sort_by_ledger(
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
    for one in messages:
        digest = one.parsed.digest
        if one.head.message_id in delivered_ids:
            await _is_duplicate_else_remember(
                state, remote_mailbox, mailbox_id, digest
            )  # so that equal messages are duplicates
            ledger_rows.append(
                ledger_row(state, remote_mailbox, one, delivered_ids[one.head.message_id])
            )
        elif earlier := remote_mailbox.renumbered.get(digest):
            mark, message_id = earlier.pop()
            by_ledger.used_marks.append(mark)
            ledger_rows.append(ledger_row(state, remote_mailbox, one, message_id))
        elif state.message_filter is not None and not await _matches_import_filter(
            state, remote_mailbox, one
        ):
            ledger_rows.append(
                ledger_row(state, remote_mailbox, one, None, may_delete_source=False)
            )
        elif await _is_duplicate_else_remember(state, remote_mailbox, mailbox_id, digest):
            ledger_rows.append(ledger_row(state, remote_mailbox, one, None))
        else:
            by_ledger.new_messages.append(one)
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
        received_at=received_at(state, message),
        flags=message.flags,
    )
    message_filter = state.message_filter or MessageConditions()
    return await filter_match.matches_unstored_message(
        message_filter, source_message, message.parsed, state.run.ctx.environment.now()
    )


async def _is_duplicate_else_remember(
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
            statement = select(col(Message.digest)).where(
                col(Message.mailbox_id) == mailbox_id, col(Message.deleted_at).is_(None)
            )
            stored_digests = {
                shorten_digest(row.digest) for row in await state.run.ctx.read(statement)
            }
            state.digests_by_mailbox[mailbox_id] = stored_digests | await _load_ledger_digests(
                state, remote_mailbox.id
            )
        if short_digest in state.digests_by_mailbox[mailbox_id]:
            return True
        state.digests_by_mailbox[mailbox_id].add(short_digest)
    return False


async def _load_ledger_digests(state: FetchState, remote_mailbox_id: int | None) -> set[bytes]:
    """Return the short digests in the ledger of a remote mailbox, or of all if None."""
    own_mailboxes = select(col(RemoteMailbox.id)).where(
        col(RemoteMailbox.connector_id) == state.connector.id
    )
    mailbox_column = col(FetchedMessage.folder_id)
    condition = (
        mailbox_column.in_(own_mailboxes)
        if remote_mailbox_id is None
        else mailbox_column == remote_mailbox_id
    )
    rows = await state.run.ctx.read(select(col(FetchedMessage.digest)).where(condition))
    return {shorten_digest(row.digest) for row in rows}


def ledger_row(
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
        "mark": message.head.message_id,
        "digest": message.parsed.digest,
        "message_id": message_id,
        "flags": flags_text(message.head.flags),
        "fetched_at": state.run.ctx.environment.now(),
        "removed": False,
        "safe": may_delete_source,
    }


def received_at(state: FetchState, message: DownloadedMessage) -> Any:
    """Return when a message arrived there; if unknown, its Date, and never a future time."""
    now = state.run.ctx.environment.now()
    received_at = message.head.received_at or parse_date_field(
        message.raw[: message.raw.find(b"\r\n\r\n") + 2]
    )
    return min(received_at or now, now)
