"""Moves of stored messages between mailboxes, in a transaction that locks the user."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import bindparam, update
from sqlmodel import col

from mail.storage.message_flags import SYSTEM_FLAGS, flags
from models.events.journal import ChangeKind, Entry
from models.mailboxes.tables import Mailbox
from models.messages.tables import Message
from models.runtime.environment import Turn
from models.store.columns import Picked, table_of

COLUMNS = (
    "id",
    "mailbox_id",
    "uid",
    "size",
    "keywords",
    *SYSTEM_FLAGS,
)  # that the rows of messages must have


def relocate(
    turn: Turn,
    user_id: int,
    rows: Sequence[Picked],
    homes: Mapping[int, Picked],
    changes: Mapping[str, Any],
) -> None:
    """Move messages of one user to the mailboxes that `mailboxes_by_message` names by message id.

    The rows have COLUMNS, a mailbox has `id` and `retention`. `column_changes` are other
    columns of the messages, such as flags, that change at the same time. Updates the journal
    and the counters.
    """
    uids = _take_uids(turn, Counter(box.id for box in homes.values()))
    new_uids = {row.id: uids[homes[row.id].id].pop(0) for row in rows}
    facts = {
        "mailbox": [homes[row.id].id for row in rows],
        "uid": [new_uids[row.id] for row in rows],
        "fromMailbox": [row.mailbox_id for row in rows],
        "fromUid": [row.uid for row in rows],
        "flags": [_flags_after(row, changes) for row in rows],
    }
    now = turn.world.now()
    last = turn.record(
        user_id, Entry(ChangeKind.MESSAGE_MOVED, [row.id for row in rows], facts), at=now
    )
    table = table_of(Message)
    statement = (
        update(table)
        .where(table.c.id == bindparam("key"))
        .values(
            mailbox_id=bindparam("box"),
            uid=bindparam("number"),
            expires=bindparam("ends", type_=table.c.expires.type),
            modseq=last,
            saved_at=now,
            **changes,
        )
    )
    given = []
    for row in rows:
        box = homes[row.id]
        ends = now + timedelta(seconds=box.retention) if box.retention else None
        given.append({"key": row.id, "box": box.id, "number": new_uids[row.id], "ends": ends})
    turn.connection.execute(statement, given)
    _count(turn, rows, homes, changes, last)


def _flags_after(row: Picked, changes: Mapping[str, Any]) -> list[str]:
    """The flags of a message after the changes, as the journal names them."""
    after = {name: changes.get(name, getattr(row, name)) for name in SYSTEM_FLAGS}
    system = {f"\\{name.capitalize()}" for name in SYSTEM_FLAGS}
    named = [f"\\{name.capitalize()}" for name in SYSTEM_FLAGS if after[name]]
    return [*named, *(flag for flag in flags(row) if flag not in system)]


def _take_uids(turn: Turn, wanted: Mapping[int, int]) -> dict[int, list[int]]:
    """Take the next UIDs of each mailbox."""
    found = {}
    for key, many in sorted(wanted.items()):
        taken = (
            update(Mailbox)
            .where(col(Mailbox.id) == key)
            .values(uid_next=Mailbox.uid_next + many)
            .returning(col(Mailbox.uid_next))
        )
        end = int(turn.connection.execute(taken).scalar_one())
        found[key] = list(range(end - many, end))
    return found


def _count(
    turn: Turn,
    rows: Sequence[Picked],
    homes: Mapping[int, Picked],
    changes: Mapping[str, Any],
    last: int,
) -> None:
    """Update the counters of the old and the new mailboxes."""
    counts: defaultdict[int, Counter[str]] = defaultdict(Counter)
    for row in rows:
        unseen = int(not changes.get("seen", row.seen))
        counts[row.mailbox_id].subtract({"total": 1, "unseen": int(not row.seen), "size": row.size})
        counts[homes[row.id].id].update({"total": 1, "unseen": unseen, "size": row.size})
    table = table_of(Mailbox)
    more = {name: table.c[name] + bindparam(f"by_{name}") for name in ("total", "unseen", "size")}
    statement = update(table).where(table.c.id == bindparam("key"))
    given = [
        {"key": key, **{f"by_{name}": many[name] for name in more}}
        for key, many in sorted(counts.items())
    ]
    turn.connection.execute(statement.values(**more, modseq=last, modify_index=last), given)
