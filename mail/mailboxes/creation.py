"""Creation of mailboxes that incoming mail is delivered to."""

from hashlib import sha256
from typing import Any

from sqlalchemy import case, delete, insert, select, update
from sqlmodel import col

from mail.mailboxes.paths import with_parents
from models.events.journal import ChangeKind, Entry
from models.mailboxes.tables import Mailbox, Subscription
from models.runtime.environment import Turn
from models.store.columns import picked
from models.users.tables import User


def made(turn: Turn, user_id: int, path: str) -> int | None:
    """Return the ID of the mailbox with a path. It is created with its parents if missing.

    The transaction must hold the lock of the user. Returns None if the user has the maximum number
    of mailboxes.
    """
    asked = select(*picked(Mailbox, {"id", "path"})).where(col(Mailbox.user_id) == user_id)
    there = {row.path: row.id for row in turn.connection.execute(asked)}
    if path in there:
        return int(there[path])
    missing = with_parents([path], there)
    if len(there) + len(missing) > turn.world.options.max_mailboxes:
        return None
    rows = _rows(turn, user_id, missing)
    turn.connection.execute(insert(Mailbox), rows)
    waited = [
        sha256(each.encode()).hexdigest() for each in missing
    ]  # subscriptions of missing mailboxes; the new ones are subscribed themselves
    turn.connection.execute(
        delete(Subscription).where(
            col(Subscription.user_id) == user_id, col(Subscription.digest).in_(waited)
        )
    )
    entry = Entry(ChangeKind.MAILBOX_CREATED, [row["id"] for row in rows], {"path": missing})
    turn.record(user_id, entry, at=turn.world.now())
    return int(rows[-1]["id"])


def _rows(turn: Turn, user_id: int, missing: list[str]) -> list[dict[str, Any]]:
    """Return the rows of new mailboxes, each with a UIDVALIDITY that was never used."""
    now, many = turn.world.now(), len(missing)
    least = int(now.timestamp())
    next_ = col(User.uid_validity) + 1
    last, retention = turn.connection.execute(
        update(User)
        .where(col(User.id) == user_id)
        .values(uid_validity=case((next_ > least, next_), else_=least) + (many - 1))
        .returning(col(User.uid_validity), col(User.retention))
    ).one()
    return [
        {
            "id": turn.world.key(),
            "user_id": user_id,
            "path": path,
            "guid": turn.world.random(16).hex(),
            "special_use": None,
            "uid_validity": last - many + 1 + nth,
            "uid_next": 1,
            "modseq": 0,
            "modify_index": 0,
            "total": 0,
            "unseen": 0,
            "size": 0,
            "subscribed": True,
            "hidden": False,
            "encrypt_messages": False,
            "retention": retention,
            "created_at": now,
        }
        for nth, path in enumerate(missing)
    ]
