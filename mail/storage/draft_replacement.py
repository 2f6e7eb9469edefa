"""Replacement of a stored message by a new one: a draft that is saved again keeps its id."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import BigInteger, Boolean, bindparam, delete, or_, select, update
from sqlmodel import col

from mail.limits import user_limits
from mail.limits.user_limits import ALLOWED
from mail.mime import Facts
from mail.storage import audit_copies
from mail.storage.blobs.blob_writer import Kept, blob_ids, referred
from mail.storage.message_flags import flags
from mail.storage.message_insert import (
    Letter,
    Place,
    Placed,
    columns,
    over_quota,
    referring,
    take_uids,
)
from mail.storage.thread_assignment import begun, ended, led
from mail.text.storable_text import storable
from models.admin.audits import AuditRoad
from models.errors import Conflict, Stale
from models.events.journal import ChangeKind, Entry
from models.events.wakeups import UNINDEXED
from models.files.blobs import MessageBlob
from models.mailboxes.tables import Mailbox
from models.messages.tables import Message, Thread, ThreadRef
from models.runtime.environment import Turn
from models.search import text_index
from models.store.columns import Picked, picked
from models.users.tables import User

PATH = ("replacePrevious",)
_STATE = {
    *("id", "mailbox_id", "uid", "modseq", "thread_id", "digest", "size", "indexed", "expires"),
    *("seen", "flagged", "answered", "draft", "keywords", "meta_data"),
}
_THERE = (
    select(*picked(Message, _STATE))
    .where(
        col(Message.id) == bindparam("key"),
        col(Message.user_id) == bindparam("user"),
        col(Message.mailbox_id).is_not(None),
    )
    .with_for_update()
)
_MORE = bindparam("more", type_=BigInteger)
_USE = (
    update(User)
    .where(
        col(User.id) == bindparam("user"),
        col(User.deleted_at).is_(None),
        or_(
            bindparam("beyond", type_=Boolean),
            _MORE <= 0,
            ALLOWED == 0,
            col(User.used) + _MORE <= ALLOWED,
        ),
    )
    .values(used=col(User.used) + _MORE)
    .returning(col(User.used), ALLOWED.label("allowed"))
)
_LEAVE = (
    update(Mailbox)
    .where(col(Mailbox.id) == bindparam("box"))
    .values(
        total=Mailbox.total - 1,
        unseen=Mailbox.unseen - bindparam("unread", type_=BigInteger),
        size=Mailbox.size - bindparam("bytes", type_=BigInteger),
        modseq=bindparam("last"),
        modify_index=bindparam("last"),
    )
)
_LED = (
    select(col(ThreadRef.thread_id))
    .where(
        col(ThreadRef.user_id) == bindparam("user"),
        col(ThreadRef.key).in_(bindparam("keys", expanding=True)),
    )
    .distinct()
)
_OTHERS = (
    select(col(Message.id))
    .where(col(Message.thread_id) == bindparam("thread"), col(Message.id) != bindparam("key"))
    .limit(1)
)


@dataclass(frozen=True, slots=True)
class Earlier:
    """The message to replace, and its words in the text index (`indexing.words_of`)."""

    id: int
    digest: str
    words: Mapping[str, Any]
    path: Sequence[str] = PATH  # path of the input field, for errors
    draft: bool = True  # the message must still be, or not be, a draft
    beyond: bool = False  # its growth is never refused


def replace(turn: Turn, letter: Letter, kept: Kept, to: Place, earlier: Earlier) -> Placed:
    """Store a message in the place of an earlier one; the transaction holds the lock of the user.

    The message keeps its id, keywords and all values that the new one doesn't set; it gets a
    new UID. Raises Conflict if the earlier message is gone or its draft flag has changed, Stale
    if it has other content, and OverQuota, NotFound and BlobRowDeleted.
    """
    row = turn.connection.execute(_THERE, {"key": earlier.id, "user": to.user_id}).first()
    if row is None or row.draft is not earlier.draft:
        raise Conflict("the draft is gone", path=earlier.path)
    if row.digest != earlier.digest:
        raise Stale(current_modseq=row.modseq, path=earlier.path)
    last, now = turn.count(to.user_id, 1), turn.world.now()
    more = letter.size - row.size
    use = _take_quota(turn, to.user_id, more, beyond=earlier.beyond)
    audit_copies.leaving(turn, to.user_id, [row.id])
    taken = _uid(turn, letter, row, to, last)
    blobs = blob_ids(turn, kept)
    thread_id = _thread(turn, letter.facts, row, to.user_id)
    values = {
        **columns(letter),
        "mailbox_id": to.mailbox_id,
        "uid": taken.uid_next - 1,
        "modseq": last,
        "thread_id": thread_id,
        "blob_id": blobs[kept.root],
        "received_at": to.at,
        "listed_at": to.at,
        "saved_at": now,
        "expires": now + timedelta(seconds=taken.retention) if taken.retention else row.expires,
        "seen": to.seen,
        "flagged": to.flagged or row.flagged,
        "answered": row.answered,
        "draft": to.draft,
        "envelope_from": to.envelope_from,
        "envelope_to": list(to.envelope_to),
        "keywords": row.keywords,
        "meta_data": row.meta_data if to.meta_data is None else to.meta_data,
        **(referring(to) if to.reference else {}),
    }
    turn.connection.execute(update(Message).where(col(Message.id) == row.id).values(**values))
    turn.connection.execute(delete(MessageBlob).where(col(MessageBlob.message_id) == row.id))
    turn.send(referred(row.id, list(blobs.values())))
    if thread_id != row.thread_id:
        turn.connection.execute(ended([row.thread_id]))
    turn.send(led(turn, to.user_id, letter.facts.thread_keys, thread_id))
    text_index.forget(turn.connection, earlier.words, known=row.indexed)
    facts = {
        "mailbox": to.mailbox_id,
        "uid": [taken.uid_next - 1],
        "fromMailbox": row.mailbox_id,
        "fromUid": [row.uid],
        "flags": [flags(values)],
    }
    entry = Entry(ChangeKind.MESSAGE_UPDATED, [row.id], facts, to.origin)
    turn.append(to.user_id, entry, at=now)
    turn.bells.add(UNINDEXED)
    if more > 0:
        user_limits.stored(turn, to.user_id, use, more)
    if taken.audited:
        road = AuditRoad.SAVED if to.envelope_from is None else AuditRoad.SENT
        audit_copies.stored(turn, to.user_id, [row.id], road)
    return Placed(row.id, taken.uid_next - 1, last, blobs[kept.root], list(blobs.values()))


def _take_quota(turn: Turn, user_id: int, more: int, *, beyond: bool) -> Picked:
    """Count the added bytes and return the new usage. Raises OverQuota.

    A message that doesn't grow is never refused.
    """
    platform = turn.world.options.default_quota
    given = {"user": user_id, "platform": platform, "more": more, "beyond": beyond}
    taken = turn.connection.execute(_USE, given).first()
    if taken is None:
        raise over_quota(turn, user_id)
    return taken


def _uid(turn: Turn, letter: Letter, row: Picked, to: Place, last: int) -> Picked:
    """Update the counters of the old and the new mailbox, and take the next UID."""
    gone = {"box": row.mailbox_id, "unread": int(not row.seen), "bytes": row.size, "last": last}
    turn.connection.execute(_LEAVE, gone)
    return take_uids(turn, to, last, unseen=int(not to.seen), size=letter.size)


def _thread(turn: Turn, facts: Facts, row: Picked, user_id: int) -> int:
    """The id of a thread that the message refers to, else its own if no other message is in it.

    Otherwise a new thread is created.
    """
    given = {"thread": row.thread_id, "key": row.id}
    alone = turn.connection.execute(_OTHERS, given).first() is None
    led = {"user": user_id, "keys": facts.thread_keys}
    known = set(turn.connection.execute(_LED, led).scalars()) if facts.thread_keys else set()
    if found := known - {row.thread_id} if alone else known:
        return int(min(found))
    if not alone:
        key, new = begun(turn, user_id, storable(facts.subject))
        turn.send([new])
        return key
    mine = update(Thread).where(col(Thread.id) == row.thread_id)
    turn.connection.execute(mine.values(subject=storable(facts.subject)))
    return int(row.thread_id)
