"""Insertion of messages into mailboxes, inside the transaction of the caller."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import bindparam, case, func, insert, or_, select, update
from sqlmodel import col

from mail.limits import user_limits
from mail.limits.user_limits import ALLOWED
from mail.mime import Facts, MailAddress
from mail.spam.scan_result import Scan
from mail.storage import audit_copies, thread_assignment
from mail.storage.blobs.blob_writer import Kept, Pieces, blob_ids, referred
from mail.storage.message_flags import flags
from mail.storage.parsed_message import Parted
from mail.storage.thread_assignment import Led
from mail.text.storable_text import storable
from models.admin.audits import AuditRoad
from models.errors import NotFound, OverQuota, Refused
from models.events.journal import ChangeKind, Entry
from models.events.wakeups import UNINDEXED
from models.mailboxes.tables import Mailbox
from models.messages.tables import Message, Receipt
from models.runtime.environment import Turn
from models.store.columns import Instant, Picked, insert_or
from models.store.prepared_statements import Prepared, Sent, number, prepared
from models.users.tables import User


class Way(StrEnum):
    """The way a message comes to a user, which decides the limits it counts against."""

    PUT_IN = "PUT_IN"  # by the user: the quota
    RECEIVED = "RECEIVED"  # from outside: the quota, and the messages of an hour
    FETCHED = (
        "FETCHED"  # by a connector, as new mail: counted as RECEIVED, but never refused for it
    )
    AGAIN = "AGAIN"  # a copy in another mailbox: the quota
    RELEASED = "RELEASED"  # from quarantine: its hour was counted before
    NOTICE = "NOTICE"  # a notice about the quota: never refused, and causes no other notice


ARRIVING = frozenset({Way.RECEIVED, Way.FETCHED, Way.AGAIN, Way.RELEASED})
COUNTED = frozenset({Way.RECEIVED, Way.FETCHED})
HOUR = timedelta(hours=1)  # for the limit of received messages
_RUNNING = col(User.received_until) > bindparam("now", type_=Instant)
_NOTICE = (
    update(User)
    .where(col(User.id) == number("user"), col(User.deleted_at).is_(None))
    .values(used=User.used + number("bytes"), message_count=User.message_count + number("many"))
    .returning(col(User.used), ALLOWED.label("allowed"))
)
_PUT_IN = _NOTICE.where((ALLOWED == 0) | (col(User.used) + number("bytes") <= ALLOWED))
COMING: dict[str, Any] = {  # adds `many` messages; `until` is the end of an hour that begins now
    "received": case((_RUNNING, User.received + number("many")), else_=number("many")),
    "received_until": case(
        (_RUNNING, col(User.received_until)), else_=bindparam("until", type_=Instant)
    ),
}
_RECEIVED_LIMIT = func.coalesce(col(User.received_max), number("hourly"))
# The UPDATE that counts also checks, so that concurrent deliveries can't pass the limit together.
MAY_COME = or_(
    _RECEIVED_LIMIT == 0,
    col(User.received_until).is_(None),
    ~_RUNNING,
    col(User.received) < _RECEIVED_LIMIT,
)
CAME = col(User.received), col(User.received_max), col(User.received_until)
# The same statement counts received messages: a separate row would need another statement.
_FETCHED = _PUT_IN.values(**COMING).returning(*CAME)
_TAKE = {
    Way.PUT_IN: Prepared(_PUT_IN),
    Way.RECEIVED: Prepared(_FETCHED.where(MAY_COME)),
    Way.FETCHED: Prepared(_FETCHED),
    Way.AGAIN: Prepared(_PUT_IN),
    Way.RELEASED: Prepared(_PUT_IN),
    Way.NOTICE: Prepared(_NOTICE),
}
QUOTA = select(col(User.used), ALLOWED.label("allowed")).where(
    col(User.id) == bindparam("user"), col(User.deleted_at).is_(None)
)
_TAKE_UIDS = Prepared(
    update(Mailbox)
    .where(col(Mailbox.id) == number("box"), col(Mailbox.user_id) == number("user"))
    .values(
        uid_next=Mailbox.uid_next + number("many"),
        total=Mailbox.total + number("many"),
        unseen=Mailbox.unseen + number("new"),
        size=Mailbox.size + number("bytes"),
        modseq=number("last"),
        modify_index=number("last"),
    )
    .returning(col(Mailbox.uid_next), col(Mailbox.retention), audit_copies.AUDITED.label("audited"))
)
_PUT = Prepared(insert(Message).inline())


@dataclass(frozen=True, slots=True)
class Letter(Parted):
    """A parsed message, ready to be stored for all its recipients."""

    verification: dict[str, Any] | None = None  # results of SPF, DKIM, DMARC and ARC
    scan: Scan | None = None  # results of the scanners
    keeping: dict[int, asyncio.Future[Kept]] = field(default_factory=dict)  # by tenant
    # by tenant, shared by all messages that differ only in their first header fields
    cut: dict[int, asyncio.Future[Pieces]] = field(default_factory=dict)
    came: str | None = None  # the digest before a change by the delivery
    ours: bool = False  # such a message is signed by the domain of its author


@dataclass(frozen=True, slots=True)
class Place:
    """The mailbox, flags and other values that a message is stored with."""

    user_id: int
    mailbox_id: int
    at: datetime
    seen: bool = False
    flagged: bool = False
    answered: bool = False
    draft: bool = False
    keywords: Sequence[str] = ()
    envelope_from: str | None = None
    envelope_to: Sequence[str] = ()
    meta_data: dict[str, Any] | None = None
    reference: tuple[int, str] | None = (
        None  # the id of the message it answers or forwards, and the action
    )
    origin: str | None = None
    receipt: str | None = None  # identifies a repeated delivery
    filters: Sequence[int] = ()  # the filters that matched
    path: str | None = None  # overrides `mailbox_id`; created if it does not exist


@dataclass(frozen=True, slots=True)
class Placed:
    """The ids of a message that was stored."""

    message_id: int
    uid: int
    modseq: int
    root_blob_id: int
    blob_ids: Sequence[int]  # including the layout


Item = tuple[Letter, Kept, Place]


@dataclass(frozen=True, slots=True)
class _Going:
    """A message that is about to be inserted, with its thread."""

    key: int
    letter: Letter
    kept: Kept
    to: Place
    led: Led
    seen: bool


@prepared
def noted(dialect: str) -> Any:
    """The statement that stores a delivery receipt with `digest`, `message_id` and `at`."""
    new = insert_or(dialect, Receipt)
    values = {"message_id": new.excluded.message_id, "at": new.excluded.at}
    return new.on_conflict_do_update(index_elements=["digest"], set_=values).inline()


def place(turn: Turn, letter: Letter, kept: Kept, to: Place, *, way: Way = Way.PUT_IN) -> Placed:
    """Insert a message: quota, mailbox counters, rows and journal.

    Raises OverQuota, TooMany if the user has received the limit of the hour, NotFound if user
    or mailbox is gone, and BlobRowDeleted.
    """
    (placed,) = place_many(turn, [(letter, kept, to)], way=way)
    return placed


def place_many(turn: Turn, items: Sequence[Item], *, way: Way = Way.PUT_IN) -> list[Placed]:
    """Insert messages of one user, with as few statements for many as for one.

    One UPDATE checks and takes the quota, so that two concurrent deliveries can't both use the
    last free bytes. All messages are inserted or none. Raises as `insert_message`.
    """
    user_id, size = items[0][2].user_id, sum(letter.size for letter, _, _ in items)
    use = take_quota(turn, user_id, size, many=len(items), way=way)
    placed = _placed(turn, user_id, items, way)
    user_limits.stored(turn, user_id, use, size, letter=way is not Way.NOTICE)
    if way in COUNTED:
        user_limits.received(turn, user_id, use, len(items))
    return placed


def _placed(turn: Turn, user_id: int, items: Sequence[Item], way: Way) -> list[Placed]:
    """Insert messages after their size was counted in the quota."""
    last = turn.stands(user_id)
    asked = [(one.facts.thread_keys, storable(one.facts.subject)) for one, _, _ in items]
    led = thread_assignment.found(turn, user_id, asked)
    if led is None:  # each message must find the threads that the one before has merged
        return [one for item in items for one in _placed(turn, user_id, [item], way)]
    going = [_going(turn, item, one, way) for item, one in zip(items, led, strict=True)]
    blobs = blob_ids(turn, *(kept for _, kept, _ in items))
    placed, rows, entries, audited = dict[int, Placed](), list[Sent](), list[Entry](), False
    for theirs in _by_folder(going):
        last += len(theirs)
        taken = _uids(turn, theirs, last)
        for uid, one in enumerate(theirs, taken.uid_next - len(theirs)):
            ids = [blobs[digest] for digest in one.kept.digests]
            placed[one.key] = Placed(one.key, uid, last, blobs[one.kept.root], ids)
        made = [_row(turn, one, placed[one.key], taken) for one in theirs]
        rows += [(_PUT, row) for row in made]
        entries.append(_entry(made, theirs[0].to, way))
        audited = taken.audited
    _, told = turn.told(user_id, entries, at=turn.world.now())
    beside = [*_referring(going, placed), *told, *_receipts(turn, going)]
    turn.send([*thread_assignment.sent(led), *rows, *beside])
    turn.bells.add(UNINDEXED)
    if led[0].others:  # it is the only one
        thread_assignment.merge(turn, user_id, led[0].id, led[0].others, items[0][2].origin)
    if audited:
        _audit(turn, user_id, going, way)
    return [placed[one.key] for one in going]


def _going(turn: Turn, item: Item, led: Led, way: Way) -> _Going:
    """The values of one insert. A received message of a muted thread is seen."""
    letter, kept, to = item
    seen = to.seen or (led.muted and way in ARRIVING)
    return _Going(turn.world.key(), letter, kept, to, led, seen)


def _by_folder(going: Sequence[_Going]) -> Iterable[list[_Going]]:
    """Group the messages of one mailbox and origin, which share one journal entry."""
    found: dict[tuple[int, str | None], list[_Going]] = {}
    for one in going:
        found.setdefault((one.to.mailbox_id, one.to.origin), []).append(one)
    return found.values()


def _row(turn: Turn, one: _Going, placed: Placed, folder: Picked) -> dict[str, Any]:
    """The values of the row of a message, by column."""
    now, to, letter = turn.world.now(), one.to, one.letter
    return {
        **columns(letter),
        "id": one.key,
        "user_id": to.user_id,
        "mailbox_id": to.mailbox_id,
        "uid": placed.uid,
        "modseq": placed.modseq,
        "thread_id": one.led.id,
        "blob_id": placed.root_blob_id,
        "received_at": to.at,
        "listed_at": to.at,
        "saved_at": now,  # an old message can be added today
        "expires": now + timedelta(seconds=folder.retention) if folder.retention else None,
        "seen": one.seen,
        "flagged": to.flagged,
        "answered": to.answered,
        "draft": to.draft,
        "keywords": list(to.keywords),
        "envelope_from": to.envelope_from,
        "envelope_to": list(to.envelope_to),
        "meta_data": to.meta_data,
        "verification": storable(letter.verification),
        "spam": storable(letter.scan.stored()) if letter.scan else None,
        "filters": list(to.filters) or None,
        **referring(to),
    }


def _entry(rows: Sequence[dict[str, Any]], to: Place, way: Way) -> Entry:
    """The journal entry of messages that were added to one mailbox."""
    facts = {
        "mailbox": to.mailbox_id,
        "uid": [row["uid"] for row in rows],
        "flags": [flags(row) for row in rows],
    }
    if way in ARRIVING:
        facts["did"] = "received"
    return Entry(ChangeKind.MESSAGE_ADDED, [row["id"] for row in rows], facts, to.origin)


def _referring(going: Sequence[_Going], placed: Mapping[int, Placed]) -> list[Sent]:
    return [sent for one in going for sent in referred(one.key, placed[one.key].blob_ids)]


def _receipts(turn: Turn, going: Sequence[_Going]) -> list[Sent]:
    """The statements that store the delivery receipts."""
    new, now = noted(turn.connection.dialect.name), turn.world.now()
    return [
        (new, {"digest": one.to.receipt, "message_id": one.key, "at": now})
        for one in going
        if one.to.receipt
    ]


def _audit(turn: Turn, user_id: int, going: Sequence[_Going], way: Way) -> None:
    for road in AuditRoad:
        if theirs := [one.key for one in going if _road(one.to, way) is road]:
            audit_copies.stored(turn, user_id, theirs, road)


def _uids(turn: Turn, going: Sequence[_Going], last: int) -> Picked:
    """Count the messages in their mailbox and take their UIDs; see `take_uids`."""
    to, unseen = going[0].to, sum(not one.seen for one in going)
    size = sum(one.letter.size for one in going)
    return take_uids(turn, to, last, many=len(going), unseen=unseen, size=size)


def take_uids(  # noqa: PLR0913 - the counters of a mailbox
    turn: Turn, to: Place, last: int, *, many: int = 1, unseen: int, size: int
) -> Picked:
    """Count messages in a mailbox and take as many UIDs.

    The returned `uid_next` is one above the last of them. Raises NotFound.
    """
    taken = turn.fetched(
        _TAKE_UIDS,
        box=to.mailbox_id,
        user=to.user_id,
        many=many,
        new=unseen,
        bytes=size,
        last=last,
        now=turn.world.now(),
    )
    if not taken:
        raise NotFound(str(to.mailbox_id), path=["mailbox"])
    row: Picked = taken[0]
    return row


def referring(to: Place) -> dict[str, Any]:
    """The values of the columns for the message that is answered or forwarded."""
    key, action = to.reference or (None, None)
    return {"reference_id": key, "reference_action": action}


def _road(to: Place, way: Way) -> AuditRoad:
    if way in ARRIVING:
        return AuditRoad.RECEIVED
    return AuditRoad.SAVED if to.envelope_from is None else AuditRoad.SENT


def take_quota(
    turn: Turn, user_id: int, size: int, *, many: int = 1, way: Way = Way.PUT_IN
) -> Picked:
    """Count the bytes of messages as used; return the new `used`, and `allowed`.

    Raises OverQuota, TooMany if the user has received the limit of the hour, and NotFound.
    """
    platform = turn.world.options.default_quota
    given: dict[str, Any] = {"user": user_id, "platform": platform, "bytes": size, "many": many}
    if way in COUNTED:
        now = turn.world.now()
        given |= {"now": now, "until": now + HOUR}
    if way is Way.RECEIVED:
        given["hourly"] = turn.world.options.received_hourly
    taken = turn.fetched(_TAKE[way], **given)
    if not taken:
        counted = way is Way.RECEIVED and user_limits.too_many_received(turn, user_id)
        raise counted or over_quota(turn, user_id)
    row: Picked = taken[0]
    return row


def over_quota(turn: Turn, user_id: int) -> Refused:
    """The reason why the quota was not taken: OverQuota, or NotFound if the user is gone."""
    given = {"user": user_id, "platform": turn.world.options.default_quota}
    row = turn.connection.execute(QUOTA, given).first()
    if row is None:
        return NotFound(str(user_id), path=["user"])
    return OverQuota(used=row.used, allowed=row.allowed)


def columns(letter: Letter) -> dict[str, Any]:
    """The values of the columns that depend only on the content of a message."""
    facts = letter.facts
    named = facts.from_[:1]
    sender = named[0] if named else None
    other = facts.sender[0] if facts.sender and facts.sender[:1] != named else None
    shown = {
        "digest": letter.digest,
        "size": letter.size,
        "date": facts.date,
        "subject": facts.subject,
        "from_name": sender and sender.name,
        "from_address": sender and sender.address,
        "sender": [other.name, other.address] if other else None,
        "reply_to": _pairs(facts.reply_to),
        "to": _pairs(facts.to),
        "cc": _pairs(facts.cc),
        "bcc": _pairs(facts.bcc),
        "message_id": facts.message_id,
        "in_reply_to": facts.in_reply_to,
        "references": list(facts.references),
        "mailing_list": _mailing_list(facts),
        "preview": facts.preview,
        "content_type": facts.content_type,
        "content_params": facts.content_params,
        "encrypted": facts.encrypted,
        "attachment_count": facts.attachment_count,
        "attachments": [asdict(attachment) for attachment in facts.attachments],
        "structure": letter.structure,
        "answered": False,
        "deleted": False,
        "keywords": [],
        "archived_at": None,
        "archived_from": None,
        "archived_mailbox_id": None,
        "purge_at": None,
        "indexed": False,
    }
    return {name: storable(value) for name, value in shown.items()}


def _pairs(addresses: Sequence[MailAddress]) -> list[list[str | None]]:
    return [[address.name, address.address] for address in addresses]


def _mailing_list(facts: Facts) -> dict[str, Any] | None:
    if not (facts.list_id or facts.list_unsubscribe):
        return None
    return {
        "id": facts.list_id,
        "unsubscribe": facts.list_unsubscribe,
        "url": facts.list_unsubscribe_url,
        "one_click": facts.one_click,
    }
