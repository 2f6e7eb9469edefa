"""Creation of mailboxes that incoming mail is delivered to."""

from hashlib import sha256
from typing import Any

from sqlalchemy import case, delete, insert, select, update
from sqlmodel import col

from mail.mailboxes.paths import missing_paths_with_parents
from models.events.event_types import EventType
from models.events.journal import JournalEntry
from models.mailboxes.tables import Mailbox, MailboxSubscription
from models.runtime.environment import DatabaseTransaction
from models.store.columns import select_columns
from models.users.tables import User


def find_or_create_mailbox_id_or_none_at_limit(
    transaction: DatabaseTransaction, user_id: int, path: str
) -> int | None:
    """Return the ID of the mailbox with a path. It is created with its parents if missing.

    The transaction must hold the lock of the user. Returns None if the user has the maximum number
    of mailboxes.
    """
    query = select(*select_columns(Mailbox, {"id", "path"})).where(col(Mailbox.user_id) == user_id)
    ids_by_path = {row.path: row.id for row in transaction.connection.execute(query)}
    if path in ids_by_path:
        return int(ids_by_path[path])
    missing = missing_paths_with_parents([path], ids_by_path)
    if len(ids_by_path) + len(missing) > transaction.environment.options.mailboxes_max_per_user:
        return None
    rows = _new_rows_with_reserved_uid_validity(transaction, user_id, missing)
    transaction.connection.execute(insert(Mailbox), rows)
    # subscriptions of missing mailboxes; the new ones are subscribed themselves
    digests = [sha256(path.encode()).hexdigest() for path in missing]
    transaction.connection.execute(
        delete(MailboxSubscription).where(
            col(MailboxSubscription.user_id) == user_id,
            col(MailboxSubscription.digest).in_(digests),
        )
    )
    entry = JournalEntry(EventType.MAILBOX_CREATED, [row["id"] for row in rows], {"path": missing})
    transaction.record_entry(user_id, entry, at=transaction.environment.now())
    return int(rows[-1]["id"])


def _new_rows_with_reserved_uid_validity(
    transaction: DatabaseTransaction, user_id: int, paths: list[str]
) -> list[dict[str, Any]]:
    """Return the rows of new mailboxes, each with a UIDVALIDITY that was never used."""
    now, count = transaction.environment.now(), len(paths)
    min_uid_validity = int(now.timestamp())
    next_uid_validity = col(User.uid_validity) + 1
    last, retention = transaction.connection.execute(
        update(User)
        .where(col(User.id) == user_id)
        .values(
            uid_validity=case(
                (next_uid_validity > min_uid_validity, next_uid_validity), else_=min_uid_validity
            )
            + (count - 1)
        )
        .returning(col(User.uid_validity), col(User.retention))
    ).one()
    return [
        {
            "id": transaction.environment.new_id(),
            "user_id": user_id,
            "path": path,
            "object_id": transaction.environment.random_bytes(16).hex(),
            "special_use": None,
            "uid_validity": last - count + 1 + nth,
            "uid_next": 1,
            "modseq": 0,
            "message_count": 0,
            "unseen_count": 0,
            "size": 0,
            "subscribed": True,
            "hidden": False,
            "encrypt_messages": False,
            "retention": retention,
            "retention_inherited": True,
            "created_at": now,
        }
        for nth, path in enumerate(paths)
    ]
