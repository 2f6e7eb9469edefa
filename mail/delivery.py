"""Where received mail is stored: one unit of work per recipient."""

import asyncio
import hashlib
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import compress, product
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import orjson
from sqlalchemy import Delete, Select, String, bindparam, case, delete, insert, select, update
from sqlmodel import col

from mail import audit, messages, threads, userlimits
from mail.addresses import Recipient
from mail.blobs.codec import digest_of
from mail.blobs.pack import Cut, Piece, pack
from mail.keeping import Gone, Kept, Pieces, blob_ids, keep, referred
from mail.messages import Facts, MailAddress
from mail.userlimits import ALLOWED, Reached
from models.audit import AuditRoad
from models.columns import Instant, Picked, insert_or
from models.errors import NotFound, OverQuota, Refused
from models.journal import ChangeKind, Entry
from models.mailboxes import Mailbox
from models.messages import Message, Receipt, Thread, ThreadRef
from models.prepared import Prepared, Sent, among, number, prepared
from models.users import LimitKind, User
from models.wakeups import UNINDEXED
from models.world import Turn, World

Outcome = TypeVar("Outcome")

SMALL = 64 * 1024  # bytes; larger messages are taken apart in a thread
CUT = 1024  # encoded bytes; smaller attachments stay where they are
_ODD = re.compile("[\0\ud800-\udfff]")
SYSTEM_FLAGS = ("seen", "answered", "flagged", "deleted", "draft")
_OF_ROW = attrgetter(*SYSTEM_FLAGS, "keywords")
_BY_NAME = itemgetter(*SYSTEM_FLAGS, "keywords")
FLAGS_OF = {  # their names in IMAP, by which of them are set
    marks: [f"\\{name.capitalize()}" for name in compress(SYSTEM_FLAGS, marks)]
    for marks in product((False, True), repeat=len(SYSTEM_FLAGS))
}


class Way(StrEnum):
    """How a message comes to an account, and so what it counts against."""

    PUT_IN = "PUT_IN"  # by the account: the quota
    RECEIVED = "RECEIVED"  # from outside: the quota, and what may come in an hour
    NOTICE = "NOTICE"  # by us, about the quota: it goes in beyond it, and leads to no other


HOUR = timedelta(hours=1)  # in which messages that come are counted
_RUNNING = col(User.received_until) > bindparam("now", type_=Instant)
_NOTICE = (
    update(User)
    .where(col(User.id) == number("user"), col(User.deleted_at).is_(None))
    .values(used=User.used + number("bytes"), message_count=User.message_count + number("many"))
    .returning(col(User.used), ALLOWED.label("allowed"))
)
_PUT_IN = _NOTICE.where((ALLOWED == 0) | (col(User.used) + number("bytes") <= ALLOWED))
# What came from outside is counted by the same statement: a row of its own costs another.
_RECEIVED = _PUT_IN.values(
    received=case((_RUNNING, User.received + 1), else_=1),
    received_until=case(
        (_RUNNING, col(User.received_until)), else_=bindparam("until", type_=Instant)
    ),
).returning(col(User.received), col(User.received_max), col(User.received_until))
_TAKE = {
    Way.PUT_IN: Prepared(_PUT_IN),
    Way.RECEIVED: Prepared(_RECEIVED),
    Way.NOTICE: Prepared(_NOTICE),
}
QUOTA = select(col(User.used), ALLOWED.label("allowed")).where(
    col(User.id) == bindparam("user"), col(User.deleted_at).is_(None)
)
TAKE_UID = Prepared(
    update(Mailbox)
    .where(col(Mailbox.id) == number("box"), col(Mailbox.user_id) == number("user"))
    .values(
        uid_next=Mailbox.uid_next + 1,
        total=Mailbox.total + 1,
        unseen=Mailbox.unseen + number("new"),
        size=Mailbox.size + number("bytes"),
        modseq=number("last"),
        modify_index=number("last"),
    )
    .returning(col(Mailbox.uid_next), col(Mailbox.retention), audit.AUDITED.label("audited"))
)
_RECEIPT = Prepared(
    select(col(Message.id), col(Message.uid), col(Message.modseq), col(Message.blob_id))
    .join(Receipt, col(Receipt.message_id) == col(Message.id))
    .where(
        col(Receipt.digest) == bindparam("known", type_=String),
        col(Receipt.at) > bindparam("since", type_=Instant),
    )
)
_PUT = Prepared(insert(Message).inline())
_BEGUN = Prepared(insert(Thread).inline())


@dataclass(frozen=True, slots=True)
class Letter:
    """A message as it came, read once for all its recipients."""

    facts: Facts
    size: int  # bytes
    digest: str  # SHA-256 of the whole, hex
    root: Piece  # what is left when large attachments are cut out
    pieces: Sequence[Piece]
    structure: bytes  # the MIME tree as it is stored
    verification: dict[str, Any] | None = None  # what the server that took it in found out
    keeping: dict[int, asyncio.Future[Kept]] = field(default_factory=dict)  # by tenant
    # likewise, and one for all letters that differ by what stands before them only
    cut: dict[int, asyncio.Future[Pieces]] = field(default_factory=dict)
    came: str | None = None  # the digest of what it was encrypted from


@dataclass(frozen=True, slots=True)
class Place:
    """Where a message goes, and how it lies there."""

    user_id: int
    mailbox_id: int
    at: datetime  # of its arrival
    seen: bool = False
    flagged: bool = False
    draft: bool = False
    envelope_from: str | None = None
    envelope_to: Sequence[str] = ()
    meta_data: dict[str, Any] | None = None
    reference: tuple[int, str] | None = None  # the message it answers or forwards, and which
    origin: str | None = None
    receipt: str | None = None  # the digest by which a repeat of the delivery is known


@dataclass(frozen=True, slots=True)
class Placed:
    """A message that is stored."""

    message_id: int
    uid: int
    modseq: int
    root_blob_id: int
    blob_ids: Sequence[int]  # the root among them


async def read(source: bytes | Path) -> Letter:
    """Read a message, whatever it is, and take it apart for storing."""
    facts = await messages.read(source)
    if isinstance(source, bytes) and len(source) < SMALL:
        return _letter(source, facts)
    return await asyncio.to_thread(_letter, source, facts)


def _letter(source: bytes | Path, facts: Facts) -> Letter:
    raw = source if isinstance(source, bytes) else source.read_bytes()
    packed = pack(raw, list(_cuts(facts)))
    root = Piece(digest_of(packed.skeleton), packed.skeleton)
    structure = orjson.dumps(messages.part_json(facts.structure))
    return Letter(facts, len(raw), digest_of(raw), root, packed.pieces, structure)


def _cuts(facts: Facts) -> list[Cut]:
    attached = {attachment.part for attachment in facts.attachments}
    return [
        Cut(part.body_start, part.body_end, part.encoding)
        for part, _ in messages.within(facts.structure)
        if part.section in attached and part.size > CUT
    ]


async def stored(world: World, tenant_id: int, letter: Letter, *, again: bool = False) -> Kept:
    """Make the bytes of a message safe, once for all its recipients in a tenant."""
    if again or tenant_id not in letter.keeping:
        work = keep(world, tenant_id, letter.root, letter.pieces, again=again, once=letter.cut)
        letter.keeping[tenant_id] = asyncio.ensure_future(work)
    kept = await asyncio.shield(letter.keeping[tenant_id])
    world.fault("commit")
    return kept


async def with_bytes(
    world: World,
    tenant_id: int,
    letter: Letter,
    work: Callable[[Turn, Kept], Outcome],
    *streams: int,
) -> Outcome:
    """Do `work` in a unit on these streams, with the bytes of a message safe before.

    Where they have been collected meanwhile they are made safe anew, and it is done once more.
    """
    kept = await stored(world, tenant_id, letter)
    try:
        return await world.apply(lambda turn: work(turn, kept), *streams)
    except Gone:
        kept = await stored(world, tenant_id, letter, again=True)
        return await world.apply(lambda turn: work(turn, kept), *streams)


async def receive(
    world: World, letter: Letter, to: Recipient, sender: str, *, into: Place | None = None
) -> Placed:
    """Store a message for one recipient, in INBOX or `into` a place; on return it is durable.

    A repeat after a lost reply is known by sender, recipient and content for a day, and
    answered with the message that was stored then. OverQuota where it does not fit, which the
    account is told of; NotFound where the account has gone.
    """
    try:
        return await _received(world, letter, to, sender, into=into)
    except OverQuota as full:
        reached = Reached(LimitKind.STORAGE, full.used, full.allowed, refused=True)
        await userlimits.refused(world, to.user_id, reached)
        raise


async def _received(
    world: World, letter: Letter, to: Recipient, sender: str, *, into: Place | None
) -> Placed:
    now = world.now()
    there = into or Place(
        to.user_id, to.mailbox_id, now, envelope_from=sender, envelope_to=[to.address]
    )
    came = letter.came or letter.digest
    known = hashlib.sha256(f"{sender}\0{to.user_id}\0{came}".encode()).hexdigest()
    there = replace(there, receipt=known)
    since = now - world.options.receipts_for

    def unit(turn: Turn, kept: Kept) -> Placed:
        earlier = turn.fetched(_RECEIPT, known=known, since=since)
        if earlier:
            row = earlier[0]
            return Placed(row.id, row.uid, row.modseq, row.blob_id, [row.blob_id])
        return place(turn, letter, kept, there, way=Way.RECEIVED)

    return await with_bytes(world, to.tenant_id, letter, unit, to.user_id)


@prepared
def noted(dialect: str) -> Any:
    """To send: a receipt, by its `digest`, of a `message_id` and `at` a time."""
    new = insert_or(dialect, Receipt)
    values = {"message_id": new.excluded.message_id, "at": new.excluded.at}
    return new.on_conflict_do_update(index_elements=["digest"], set_=values).inline()


@prepared
def _joined(dialect: str) -> Any:
    return insert_or(dialect, ThreadRef).on_conflict_do_nothing().inline()


@prepared
def _threads(dialect: str) -> Select[*tuple[Any, ...]]:
    return (
        select(col(Thread.id), col(Thread.muted))
        .join(ThreadRef, col(ThreadRef.thread_id) == col(Thread.id))
        .where(
            col(ThreadRef.user_id) == number("user"),
            among(dialect, col(ThreadRef.key), "keys", String),
        )
        .distinct()
        .order_by(col(Thread.id))
    )


def place(turn: Turn, letter: Letter, kept: Kept, to: Place, *, way: Way = Way.PUT_IN) -> Placed:
    """Store a message inside the caller's unit: quota, folder, rows and journal at once.

    One UPDATE both checks and takes the quota, so two deliveries at once cannot both squeeze
    into the last free bytes; it says too whether a limit is reached. OverQuota, NotFound, Gone.
    """
    key, last, now = turn.world.key(), turn.stands(to.user_id) + 1, turn.world.now()
    use = take_quota(turn, to.user_id, letter.size, way=way)
    thread = _thread(turn, letter.facts, to)
    seen = to.seen or (thread.muted and way is Way.RECEIVED)
    taken = take_uid(turn, letter, to, last, seen=seen)
    blobs = blob_ids(turn, kept)
    row = {
        **columns(letter),
        "id": key,
        "user_id": to.user_id,
        "mailbox_id": to.mailbox_id,
        "uid": taken.uid_next - 1,
        "modseq": last,
        "thread_id": thread.id,
        "blob_id": blobs[kept.root],
        "received_at": to.at,
        "listed_at": to.at,
        "saved_at": now,  # old mail may be put in today
        "expires": now + timedelta(seconds=taken.retention) if taken.retention else None,
        "seen": seen,
        "flagged": to.flagged,
        "draft": to.draft,
        "envelope_from": to.envelope_from,
        "envelope_to": list(to.envelope_to),
        "meta_data": to.meta_data,
        "verification": storable(letter.verification),
        **referring(to),
    }
    facts = {"mailbox": to.mailbox_id, "uid": [row["uid"]], "flags": [flags(row)]}
    if way is Way.RECEIVED:
        facts["did"] = "received"
    entry = Entry(ChangeKind.MESSAGE_ADDED, [key], facts, to.origin)
    _, told = turn.told(to.user_id, [entry], at=now)
    sent = [*thread.sent, (_PUT, row), *referred(key, list(blobs.values())), *told]
    if to.receipt:
        known = {"digest": to.receipt, "message_id": key, "at": now}
        sent.append((noted(turn.connection.dialect.name), known))
    turn.send(sent)
    turn.bells.add(UNINDEXED)
    if thread.others:
        threads.merge(turn, to.user_id, thread.id, thread.others, to.origin)
    userlimits.stored(turn, to.user_id, use, letter.size, letter=way is not Way.NOTICE)
    if way is Way.RECEIVED:
        userlimits.received(turn, to.user_id, use)
    if taken.audited:
        audit.stored(turn, to.user_id, [key], _road(to, way))
    return Placed(key, row["uid"], last, row["blob_id"], list(blobs.values()))


def take_uid(turn: Turn, letter: Letter, to: Place, last: int, *, seen: bool) -> Picked:
    """Count a message in its folder: `uid_next` is the one behind its own. NotFound."""
    taken = turn.fetched(
        TAKE_UID,
        box=to.mailbox_id,
        user=to.user_id,
        new=int(not seen),
        bytes=letter.size,
        last=last,
        now=turn.world.now(),
    )
    if not taken:
        raise NotFound(str(to.mailbox_id), path=["mailbox"])
    row: Picked = taken[0]
    return row


def referring(to: Place) -> dict[str, Any]:
    """What a message refers to, by column."""
    key, action = to.reference or (None, None)
    return {"reference_id": key, "reference_action": action}


def _road(to: Place, way: Way) -> AuditRoad:
    if way is Way.RECEIVED:
        return AuditRoad.RECEIVED
    return AuditRoad.SAVED if to.envelope_from is None else AuditRoad.SENT


def take_quota(
    turn: Turn, user_id: int, size: int, *, many: int = 1, way: Way = Way.PUT_IN
) -> Picked:
    """Count the bytes of so many messages as used; what is `used` then, and `allowed`.

    OverQuota, NotFound.
    """
    platform = turn.world.options.default_quota
    given: dict[str, Any] = {"user": user_id, "platform": platform, "bytes": size, "many": many}
    if way is Way.RECEIVED:
        now = turn.world.now()
        given |= {"now": now, "until": now + HOUR}
    taken = turn.fetched(_TAKE[way], **given)
    if not taken:
        raise over_quota(turn, user_id)
    row: Picked = taken[0]
    return row


def over_quota(turn: Turn, user_id: int) -> Refused:
    """Why bytes were not taken: the account has no room for them, or is gone."""
    given = {"user": user_id, "platform": turn.world.options.default_quota}
    row = turn.connection.execute(QUOTA, given).first()
    if row is None:
        return NotFound(str(user_id), path=["user"])
    return OverQuota(used=row.used, allowed=row.allowed)


class _Led(NamedTuple):
    """The conversation a message belongs to: the oldest it refers to, or a new one."""

    id: int
    others: list[int]  # that it refers to, too
    muted: bool  # one of all these
    sent: list[Sent]


def _thread(turn: Turn, facts: Facts, to: Place) -> _Led:
    user_id, keys = to.user_id, facts.thread_keys
    known: Sequence[Any] = []
    if keys:
        known = turn.fetched(_threads(turn.connection.dialect.name), user=user_id, keys=keys)
    if known:
        first, *others = [row.id for row in known]
        sent = list[Sent]()
    else:
        first, new = begun(turn, user_id, facts.subject)
        others, sent = [], [new]
    sent += led(turn, user_id, keys, first)
    return _Led(first, others, any(row.muted for row in known), sent)


def begun(turn: Turn, user_id: int, subject: str) -> tuple[int, Sent]:
    """The key of a new conversation, and what makes it."""
    key = turn.world.key()
    row = {
        "id": key,
        "user_id": user_id,
        "subject": storable(subject),
        "created_at": turn.world.now(),
        "muted": False,
    }
    return key, (_BEGUN, row)


def ended(ids: Collection[int]) -> Delete:
    """Remove those conversations that have no message left; what leads into them goes along."""
    left = select(col(Message.id)).where(col(Message.thread_id) == col(Thread.id))
    return delete(Thread).where(col(Thread.id).in_(ids), ~left.exists())


def led(turn: Turn, user_id: int, keys: Sequence[str], thread_id: int) -> list[Sent]:
    """What lets messages that refer to these keys come to this conversation.

    Keys that lead to one already go on to do so.
    """
    new = _joined(turn.connection.dialect.name)
    return [(new, {"user_id": user_id, "key": key, "thread_id": thread_id}) for key in keys]


def flags(row: Any) -> list[str]:
    """The flags and keywords of a row or of its columns by name, as IMAP names them."""
    return named_flags(*(_BY_NAME if isinstance(row, dict) else _OF_ROW)(row))


def named_flags(*marks: Any) -> list[str]:
    """The flags that are set of SYSTEM_FLAGS, in their order, and the keywords behind them."""
    return [*FLAGS_OF[marks[:-1]], *marks[-1]]


def columns(letter: Letter) -> dict[str, Any]:
    """What a list shows of a message, by column; what depends on its place is not among it."""
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


def storable(value: Any) -> Any:
    """The value without NUL and lone surrogates, which no text column takes."""
    if isinstance(value, str):
        return (
            value.replace("\0", "").encode(errors="replace").decode()
            if _ODD.search(value)
            else value
        )
    if isinstance(value, list):
        return [storable(item) for item in value]
    if isinstance(value, dict):
        return {storable(name): storable(item) for name, item in value.items()}
    return value


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
