"""Moves of stored messages between mailboxes, in a transaction that locks the user."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import bindparam, update
from sqlmodel import col

from mail.storage.message_flags import SYSTEM_FLAGS, imap_flags
from models.events.event_types import EventType
from models.events.journal import JournalEntry
from models.mailboxes.tables import Mailbox
from models.messages.tables import Message
from models.runtime.environment import DatabaseTransaction
from models.store.columns import ColumnRow, core_table

COLUMNS = (
    "id",
    "mailbox_id",
    "uid",
    "size",
    "keywords",
    *SYSTEM_FLAGS,
)  # that the rows of messages must have


def move_messages(
    transaction: DatabaseTransaction,
    user_id: int,
    message_rows: Sequence[ColumnRow],
    mailboxes_by_message: Mapping[int, ColumnRow],
    column_changes: Mapping[str, Any],
) -> None:
    """Move messages of one user to the mailboxes that `mailboxes_by_message` names by message id.

    The rows have COLUMNS, a mailbox has `id` and `retention`. `column_changes` are other
    columns of the messages, such as flags, that change at the same time. Updates the journal
    and the counters.
    """
    uids = _take_uids(transaction, Counter(mailbox.id for mailbox in mailboxes_by_message.values()))
    new_uids = {row.id: uids[mailboxes_by_message[row.id].id].pop(0) for row in message_rows}
    facts = {
        "mailbox": [mailboxes_by_message[row.id].id for row in message_rows],
        "uid": [new_uids[row.id] for row in message_rows],
        "fromMailbox": [row.mailbox_id for row in message_rows],
        "fromUid": [row.uid for row in message_rows],
        "flags": [_flags_after(row, column_changes) for row in message_rows],
    }
    now = transaction.environment.now()
    last = transaction.record_entry(
        user_id,
        JournalEntry(EventType.MESSAGE_MOVED, [row.id for row in message_rows], facts),
        at=now,
    )
    table = core_table(Message)
    statement = (
        update(table)
        .where(table.c.id == bindparam("key"))
        .values(
            mailbox_id=bindparam("box"),
            uid=bindparam("number"),
            expires_at=bindparam("ends", type_=table.c.expires_at.type),
            modseq=last,
            saved_at=now,
            **column_changes,
        )
    )
    moved_rows = []
    for row in message_rows:
        mailbox = mailboxes_by_message[row.id]
        expires_at = now + timedelta(seconds=mailbox.retention) if mailbox.retention else None
        moved_rows.append(
            {"key": row.id, "box": mailbox.id, "number": new_uids[row.id], "ends": expires_at}
        )
    transaction.connection.execute(statement, moved_rows)
    _update_counters(transaction, message_rows, mailboxes_by_message, column_changes, last)


def _flags_after(message_row: ColumnRow, column_changes: Mapping[str, Any]) -> list[str]:
    """The flags of a message after the changes, as the journal names them."""
    after = {name: column_changes.get(name, getattr(message_row, name)) for name in SYSTEM_FLAGS}
    system = {f"\\{name.capitalize()}" for name in SYSTEM_FLAGS}
    flag_names = [f"\\{name.capitalize()}" for name in SYSTEM_FLAGS if after[name]]
    return [*flag_names, *(flag for flag in imap_flags(message_row) if flag not in system)]


def _take_uids(
    transaction: DatabaseTransaction, count_by_mailbox: Mapping[int, int]
) -> dict[int, list[int]]:
    """Take the next UIDs of each mailbox."""
    uids_by_mailbox = {}
    for key, message_count in sorted(count_by_mailbox.items()):
        statement = (
            update(Mailbox)
            .where(col(Mailbox.id) == key)
            .values(uid_next=Mailbox.uid_next + message_count)
            .returning(col(Mailbox.uid_next))
        )
        end = int(transaction.connection.execute(statement).scalar_one())
        uids_by_mailbox[key] = list(range(end - message_count, end))
    return uids_by_mailbox


def _update_counters(
    transaction: DatabaseTransaction,
    message_rows: Sequence[ColumnRow],
    mailboxes_by_message: Mapping[int, ColumnRow],
    column_changes: Mapping[str, Any],
    modseq: int,
) -> None:
    """Update the counters of the old and the new mailboxes."""
    counts: defaultdict[int, Counter[str]] = defaultdict(Counter)
    for row in message_rows:
        unseen_count = int(not column_changes.get("seen", row.seen))
        counts[row.mailbox_id].subtract(
            {"message_count": 1, "unseen_count": int(not row.seen), "size": row.size}
        )
        counts[mailboxes_by_message[row.id].id].update(
            {"message_count": 1, "unseen_count": unseen_count, "size": row.size}
        )
    table = core_table(Mailbox)
    counter_changes = {
        name: table.c[name] + bindparam(f"by_{name}")
        for name in ("message_count", "unseen_count", "size")
    }
    statement = update(table).where(table.c.id == bindparam("key"))
    parameter_sets = [
        {"key": key, **{f"by_{name}": count[name] for name in counter_changes}}
        for key, count in sorted(counts.items())
    ]
    transaction.connection.execute(
        statement.values(**counter_changes, modseq=modseq), parameter_sets
    )
