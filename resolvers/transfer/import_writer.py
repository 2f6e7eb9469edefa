"""Store imported messages in an account, batch by batch."""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from sqlalchemy import select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.archives.json_lines import MessageRecord
from mail.archives.source_message import SourceMessage, UnusableMessageError
from mail.archives.zip_format import DamagedArchiveError
from mail.authentication.results_removal import (
    own_authserv_ids,
    remove_authentication_results_of_servers,
)
from mail.storage import message_insert, received_messages
from mail.storage.blobs.blob_writer import BlobRowDeleted, StoredMessageBlobs
from mail.storage.blobs.compression import content_digest
from mail.storage.message_insert import InsertedMessage, MessagePlacement
from mail.storage.quota import InsertKind
from mail.storage.storable_message import StorableMessage
from models.errors import RequestError
from models.messages.tables import Message
from models.runtime.environment import DatabaseTransaction, Environment
from models.store.columns import select_columns
from models.users.roles import UserPermission
from models.users.tables import User
from resolvers.context import Context
from resolvers.messages.bulk import flag_changes, flags, row_changes
from resolvers.transfer import import_mailboxes
from resolvers.transfer.running_import import ImportOutcome, RunningImport
from resolvers.users import custom_data

MAX_BATCH_MESSAGES = 32
MAX_BATCH_BYTES = 4 << 20  # a larger message has a batch of its own


@dataclass(frozen=True, slots=True)
class ImportableMessage:
    """A parsed message with its target mailbox and flags."""

    source: SourceMessage
    message: StorableMessage
    mailbox_id: int
    flags: Sequence[str]
    public_metadata: dict[str, Any] | None = None
    insert_kind: InsertKind = InsertKind.ADDED_BY_USER


@dataclass(slots=True)
class SourceReader:
    """A source of messages that is read in batches, and the problem that stopped it."""

    remaining: Iterator[SourceMessage]
    problem: str | None = None

    def read_batch(self) -> list[SourceMessage]:
        """Return the next messages; none at the end or after a problem. Runs in a thread."""
        source_messages: list[SourceMessage] = []
        weight = 0
        while (
            self.problem is None
            and len(source_messages) < MAX_BATCH_MESSAGES
            and weight < MAX_BATCH_BYTES
        ):
            try:
                source_message = next(self.remaining, None)
            except DamagedArchiveError as problem:
                self.problem = str(problem)
                break
            if source_message is None:
                break
            source_messages.append(source_message)
            weight += len(source_message.raw or b"")
        return source_messages


async def load_initial_import_state(
    ctx: Context, user_id: int, target_path: str | None, first_new_id: int
) -> RunningImport:
    """Begin an import into the account of this user, who is the viewer."""
    columns = {"id", "tenant_id", "permissions"}
    ((user),) = await ctx.read(
        select(*select_columns(User, columns)).where(col(User.id) == user_id)
    )
    permissions = frozenset(
        user_permission for user_permission in UserPermission if user_permission in user.permissions
    )
    ctx = replace(ctx, viewer=replace(ctx.viewer, permissions=permissions))
    return RunningImport(
        ctx,
        user,
        target_path,
        first_new_id,
        await import_mailboxes.load_import_mailbox_ids_by_path(ctx, user_id),
        ImportOutcome(),
        await import_mailboxes.load_paths_by_special_use(ctx),
    )


async def create_mailbox_and_prepare_message(
    running: RunningImport, source: SourceMessage, message: StorableMessage | None = None
) -> ImportableMessage | None:
    """Return a message ready to be stored; None if it is in the mailbox already or is skipped.

    Pass `message` if the source was parsed before. Skipped messages are added to the outcome.
    """
    try:
        if source.raw is None:
            raise UnusableMessageError(source.reason)
        source_flags = flag_changes.FlagChanges.from_flag_names({}, added=source.flags)
        if len(source_flags.add) > flags.MAX_KEYWORDS:
            raise UnusableMessageError(f"The message has more than {flags.MAX_KEYWORDS} keywords.")
        record = source.record
        max_size = running.ctx.environment.options.metadata_max_size
        meta = (
            custom_data.validate_custom_data(record.public_metadata, ["metadata"], max_size)
            if record
            else None
        )
        own_path = source.special_use and running.paths_by_special_use.get(source.special_use)
        target_path = running.target_path or own_path or source.folder
        mailbox_id = await import_mailboxes.get_or_create_mailbox_id(
            running.ctx, running.mailbox_ids, target_path, subscribe=running.subscribes
        )
    except (UnusableMessageError, RequestError) as problem:
        running.outcome.add_skipped(source.name, str(problem))
        return None
    message = message or await parse_message_without_own_results(
        running.ctx.environment, source.raw
    )
    if running.skips_known:
        known_digests = await _load_cached_digests_before_import(running, mailbox_id)
        for digest in {
            shorten_digest(message.digest),
            shorten_digest(message.received_digest or message.digest),
        }:
            if known_digests[digest]:
                known_digests[digest] -= 1  # a message that exists twice is known twice
                running.outcome.known += 1
                return None
    return ImportableMessage(source, message, mailbox_id, source_flags.touched_flag_names, meta)


async def parse_message_without_own_results(
    environment: Environment, raw_message: bytes
) -> StorableMessage:
    """Parse a message, without the Authentication-Results fields in this server's name.

    `received_digest` is the digest before the removal: a message that this server exported has
    such fields.
    """
    cleaned = remove_authentication_results_of_servers(
        raw_message, own_authserv_ids(environment.options)
    )
    parsed_message = await received_messages.parse_storable_message(cleaned)
    return (
        parsed_message
        if cleaned is raw_message
        else replace(parsed_message, received_digest=content_digest(raw_message))
    )


async def _load_cached_digests_before_import(
    running: RunningImport, mailbox_id: int
) -> Counter[bytes]:
    """Return the shortened digests of the messages that were in the mailbox before the import."""
    if mailbox_id not in running.digests_by_mailbox:
        statement = select(col(Message.sha256)).where(
            col(Message.mailbox_id) == mailbox_id, col(Message.id) < running.first_new_id
        )
        running.digests_by_mailbox[mailbox_id] = Counter(
            shorten_digest(row.sha256) for row in await running.ctx.read(statement)
        )
    return running.digests_by_mailbox[mailbox_id]


def shorten_digest(digest: str) -> bytes:
    """Return the first 16 bytes of a digest, so that a million of them fit into memory."""
    return bytes.fromhex(digest[:32])


async def store_blobs(
    running: RunningImport, messages: Sequence[ImportableMessage], *, rewrite_blobs: bool = False
) -> list[StoredMessageBlobs]:
    """Store the blobs of these messages before the transaction that inserts them."""
    tenant, environment = running.user.tenant_id, running.ctx.environment
    return [
        await received_messages.store_blobs_once_per_tenant(
            environment, tenant, message.message, store_again=rewrite_blobs
        )
        for message in messages
    ]


async def store_blobs_then_call_with_one_retry(
    running: RunningImport,
    messages: Sequence[ImportableMessage],
    store: Callable[[Sequence[StoredMessageBlobs]], Awaitable[None]],
) -> None:
    """Store the blobs of messages, then call `store`; once more if a blob row was deleted."""
    try:
        await store(await store_blobs(running, messages))
    except BlobRowDeleted:
        await store(await store_blobs(running, messages, rewrite_blobs=True))


async def insert_messages_with_flags(
    running: RunningImport,
    session: AsyncSession,
    messages: Sequence[ImportableMessage],
    stored_blobs: Sequence[StoredMessageBlobs],
) -> list[InsertedMessage]:
    """Insert messages with all their flags, and return them. Raises OverQuota, BlobRowDeleted."""
    new = await running.ctx.environment.run_in_session(
        session,
        lambda transaction: insert_without_deleted_flag_and_expiry(
            running, transaction, messages, stored_blobs
        ),
    )
    await _set_deleted_flag_and_expiry(running, session, messages, new)
    return new


def insert_without_deleted_flag_and_expiry(
    running: RunningImport,
    transaction: DatabaseTransaction,
    messages: Sequence[ImportableMessage],
    stored_blobs: Sequence[StoredMessageBlobs],
) -> list[InsertedMessage]:
    """Insert messages in a synchronous transaction, without the deleted flag and the expiry."""
    inserted: list[InsertedMessage] = []
    pairs = zip(messages, stored_blobs, strict=True)
    for insert_kind, group in groupby(pairs, key=lambda pair: pair[0].insert_kind):
        items = [
            message_insert.InsertItem(
                message.message, blobs, _placement_of_message(running, message)
            )
            for message, blobs in group
        ]
        inserted += message_insert.insert_messages_and_take_quota(
            transaction, items, kind=insert_kind
        )
    return inserted


def _placement_of_message(running: RunningImport, message: ImportableMessage) -> MessagePlacement:
    """Return the mailbox, flags and envelope under which a message is inserted."""
    source, record = message.source, message.source.record
    return MessagePlacement(
        running.user.id,
        message.mailbox_id,
        source.received_at or running.ctx.environment.now(),
        seen="\\Seen" in message.flags,
        flagged="\\Flagged" in message.flags,
        answered="\\Answered" in message.flags,
        draft="\\Draft" in message.flags,
        keywords=flag_changes.columns_from_flag_names(message.flags)["keywords"],
        envelope_from=source.sender,
        envelope_to=record.recipients if record else (),
        public_metadata=message.public_metadata,
    )


async def _set_deleted_flag_and_expiry(
    running: RunningImport,
    session: AsyncSession,
    messages: Sequence[ImportableMessage],
    inserted: Sequence[InsertedMessage],
) -> None:
    """Set what messages cannot be inserted with: the deleted flag and the expiry."""
    states: dict[int, dict[str, Any]] = {}
    for message, inserted_message in zip(messages, inserted, strict=True):
        record = message.source.record
        if "\\Deleted" in message.flags or record:
            states[inserted_message.message_id] = flag_changes.columns_from_flag_names(
                message.flags
            ) | _expiry_columns(record)
    rows = await row_changes.load_rows_in_transaction(session, list(states)) if states else []
    for with_expiry in (False, True):  # of one call all have the same columns
        changed_rows = [row for row in rows if ("expires_at" in states[row.id]) is with_expiry]
        if changed_rows:
            await flags.set_columns_of_each(running.ctx, session, changed_rows, states)


def _expiry_columns(record: MessageRecord | None) -> dict[str, Any]:
    return {"expires_at": record.expires} if record else {}
