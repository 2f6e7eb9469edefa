"""The worker that adds delivered messages to the text index."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import ColumnElement, Connection, select, text, tuple_, update
from sqlmodel import col

from mail import mime
from mail.mime import ByteSource, ParsedPart
from mail.recipients import contacts
from mail.recipients.contacts import MessageContacts
from mail.search.tokenizer import MessageWords, index_values
from mail.search.tokenizer import message_words as read_words
from mail.storage import message_content, message_open
from models.events.wakeups import UNINDEXED
from models.messages.tables import Message
from models.runtime.environment import Environment
from models.runtime.worker_stop import is_worker_stopping
from models.search import text_index
from models.store.columns import select_columns

BATCH_SIZE = 200  # messages per transaction
NO_CONTACTS = MessageContacts()
POLL_SECONDS = 15.0  # seconds between two reads without a wake-up
GATHER_SECONDS = (
    0.2  # seconds in which messages are collected, since each transaction has a fixed cost
)

Built = TypeVar("Built")
log = logging.getLogger(__name__)

MESSAGE_COLUMNS = {
    "id", "user_id", "blob_id", "mime_structure", "subject", "from_name", "from_address",
    "to", "cc", "bcc", "attachments", *contacts.MESSAGE_COLUMNS,
}  # fmt: skip


async def index_new_messages_until_worker_stops(environment: Environment) -> None:
    """Index new messages until canceled or stopped."""
    with environment.wakeups.follow([UNINDEXED]) as bell:
        while not is_worker_stopping():
            bell.clear()
            try:
                while not is_worker_stopping() and (
                    count := await index_next_batch_and_record_contacts(environment)
                ):
                    if count < BATCH_SIZE:
                        await asyncio.sleep(GATHER_SECONDS)
            except Exception:  # the worker continues, since the rows still show what to index
                log.exception("Could not update the text index")
            try:
                async with asyncio.timeout(
                    POLL_SECONDS
                ):  # unlike wait_for, it can be canceled when a wake-up arrives
                    await bell.wait()
            except TimeoutError:
                continue


async def index_next_batch_and_record_contacts(environment: Environment) -> int:
    """Index the next messages, and return their number."""
    # NOT is written as in the partial index: SQLite compares the text.
    query = select(*select_columns(Message, MESSAGE_COLUMNS)).where(text("NOT messages.indexed"))
    rows = await environment.database.read(query.order_by(col(Message.id)).limit(BATCH_SIZE))
    if not rows:
        return 0
    index_entries = await load_index_entries(environment, rows)
    await environment.run_transaction(
        lambda turn: insert_unindexed_and_record_contacts(turn.connection, index_entries)
    )
    return len(rows)


class IndexEntry(NamedTuple):
    """The index values of a message, as of the blob that was read."""

    id: int
    blob_id: int
    words: dict[str, Any]  # a row of text_index.insert_messages
    contact_updates: MessageContacts = NO_CONTACTS  # stored when the message is indexed


async def load_index_entries(
    environment: Environment,
    rows: Sequence[Any],
    read_rows: message_content.ReadRows | None = None,
    *,
    is_reindex: bool = False,
) -> list[IndexEntry]:
    """Return the index entries of messages; the rows have MESSAGE_COLUMNS.

    With `is_reindex` contacts are not updated, since they were when it was first indexed.
    """
    dialect = environment.database.dialect
    sources = await message_open.open_messages_and_log_damage(environment, rows, read_rows)
    contact_updates = [NO_CONTACTS for _ in rows]
    if not is_reindex:
        contact_updates = await contacts.load_contacts_of_messages(
            environment, rows, sources, read_rows or environment.database.read
        )

    def build_entry(row: Any, words: MessageWords) -> IndexEntry:
        entry_values = {"id": row.id, **index_values(dialect, row.user_id, words)}
        return IndexEntry(row.id, row.blob_id, entry_values)

    index_entries = await _build_entries_from_message_words(environment, rows, sources, build_entry)
    return [
        IndexEntry(entry.id, entry.blob_id, entry.words, heard)
        for entry, heard in zip(index_entries, contact_updates, strict=True)
    ]


def unchanged_messages_condition(entries: Sequence[IndexEntry]) -> ColumnElement[bool]:
    """Return the SQL condition for messages that still have the blob that was read."""
    ids_and_blobs = [(entry.id, entry.blob_id) for entry in entries]
    return tuple_(col(Message.id), col(Message.blob_id)).in_(ids_and_blobs)


def insert_unindexed_and_record_contacts(
    connection: Connection, entries: Sequence[IndexEntry]
) -> int:
    """Insert the messages that are not indexed yet, and return their number."""
    mark_statement = update(Message).where(
        unchanged_messages_condition(entries), ~col(Message.indexed)
    )
    marked = connection.execute(mark_statement.values(indexed=True).returning(col(Message.id)))
    new_ids = set(marked.scalars())  # without those that another process indexed
    rows = [entry.words for entry in entries if entry.id in new_ids]
    if rows:
        text_index.insert_messages(connection, rows)
        contacts.record_contacts_and_last_received(
            connection, (entry.contact_updates for entry in entries if entry.id in new_ids)
        )
    return len(rows)


async def load_words(
    environment: Environment, rows: Sequence[Any], read_rows: message_content.ReadRows | None = None
) -> list[MessageWords]:
    """Return the words of messages from their bytes; the rows have MESSAGE_COLUMNS.

    `read_rows` is the same parameter as of `message_content.sources`.
    """
    sources = await message_open.open_messages_and_log_damage(environment, rows, read_rows)
    return await _build_entries_from_message_words(
        environment, rows, sources, lambda _, words: words
    )


async def _build_entries_from_message_words(
    environment: Environment,
    rows: Sequence[Any],
    sources: Sequence[message_content.StoredMessage],
    build: Callable[[Any, MessageWords], Built],
) -> list[Built]:
    """Call `build` in a thread with each row and the words of its message."""
    longest = environment.options.search_max_characters

    def build_of_message(index: int, source: ByteSource | None) -> Built:
        body = body_text(source, sources[index].structure) if source is not None else ""
        return build(rows[index], read_words(searchable_text(rows[index], body, longest)))

    return await message_content.run_on_message_sources_in_thread(sources, build_of_message)


async def load_index_values(
    environment: Environment, message_row: Any, stored: message_content.StoredMessage
) -> dict[str, Any]:
    """Return the index values of a row, which are also needed to remove it from FTS5."""

    def build_row(_: Any, words: MessageWords) -> dict[str, Any]:
        return {
            "id": message_row.id,
            **index_values(environment.database.dialect, message_row.user_id, words),
        }

    (entry,) = await _build_entries_from_message_words(
        environment, [message_row], [stored], build_row
    )
    return entry


def body_text(source: ByteSource, structure: ParsedPart) -> str:
    """Return the text of a message, "" without a text body."""
    return mime.body_text(source, structure) or ""


def searchable_text(message_row: Any, body: str, max_length: int) -> str:
    """Return subject, addresses, file names and body of a message, cut to `max_length`."""
    people = [
        *message_row.to,
        *message_row.cc,
        *message_row.bcc,
        [message_row.from_name, message_row.from_address],
    ]
    parts = [
        message_row.subject,
        *(word for pair in people for word in pair if word),
        *(file["filename"] or "" for file in message_row.attachments),
        body,
    ]
    return "\n".join(parts)[:max_length]
