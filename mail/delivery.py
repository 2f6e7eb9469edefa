"""Where received mail is stored: one unit of work per recipient."""

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import compress, product
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import String, bindparam, case, insert, select, update
from sqlmodel import col

from mail import audit, folders, threads, userlimits
from mail.addresses import Recipient
from mail.blobs.pack import Piece
from mail.keeping import Gone, Kept, Pieces, blob_ids, keep, keep_small, referred
from mail.messages import Facts, MailAddress
from mail.parting import parted
from mail.scan import Scan
from mail.storable import storable
from mail.userlimits import ALLOWED, Reached
from models.audit import AuditRoad
from models.columns import Instant, Picked, insert_or
from models.errors import NotFound, OverQuota, Refused, found
from models.journal import ChangeKind, Entry
from models.mailboxes import Mailbox
from models.messages import Message, Receipt
from models.prepared import Prepared, number, prepared
from models.users import LimitKind, User
from models.wakeups import UNINDEXED
from models.world import Turn, World

Outcome = TypeVar("Outcome")

SMALL = 64 * 1024  # bytes; larger messages are taken apart in a thread
CUT = 1024  # encoded bytes; smaller attachments stay where they are
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
    AGAIN = "AGAIN"  # the same, in another folder as well: the quota
    RELEASED = "RELEASED"  # from outside, and was held: what may come in an hour was counted then
    NOTICE = "NOTICE"  # by us, about the quota: it goes in beyond it, and leads to no other


ARRIVING = frozenset({Way.RECEIVED, Way.AGAIN, Way.RELEASED})
HOUR = timedelta(hours=1)  # in which messages that come are counted
_RUNNING = col(User.received_until) > bindparam("now", type_=Instant)
_NOTICE = (
    update(User)
    .where(col(User.id) == number("user"), col(User.deleted_at).is_(None))
    .values(used=User.used + number("bytes"), message_count=User.message_count + number("many"))
    .returning(col(User.used), ALLOWED.label("allowed"))
)
_PUT_IN = _NOTICE.where((ALLOWED == 0) | (col(User.used) + number("bytes") <= ALLOWED))
COMING: dict[str, Any] = {  # a message more that came; `until` is when an hour ends that began now
    "received": case((_RUNNING, User.received + 1), else_=1),
    "received_until": case(
        (_RUNNING, col(User.received_until)), else_=bindparam("until", type_=Instant)
    ),
}
CAME = col(User.received), col(User.received_max), col(User.received_until)
# What came from outside is counted by the same statement: a row of its own costs another.
_RECEIVED = _PUT_IN.values(**COMING).returning(*CAME)
_TAKE = {
    Way.PUT_IN: Prepared(_PUT_IN),
    Way.RECEIVED: Prepared(_RECEIVED),
    Way.AGAIN: Prepared(_PUT_IN),
    Way.RELEASED: Prepared(_PUT_IN),
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
    scan: Scan | None = None  # what scanners of ours found
    keeping: dict[int, asyncio.Future[Kept]] = field(default_factory=dict)  # by tenant
    # likewise, and one for all letters that differ by what stands before them only
    cut: dict[int, asyncio.Future[Pieces]] = field(default_factory=dict)
    came: str | None = None  # the digest of what came, where we have changed that
    ours: bool = False  # written here: where it is sent on, keys of its author's domain sign it


@dataclass(frozen=True, slots=True)
class Place:
    """Where a message goes, and how it lies there."""

    user_id: int
    mailbox_id: int
    at: datetime  # of its arrival
    seen: bool = False
    flagged: bool = False
    answered: bool = False
    draft: bool = False
    keywords: Sequence[str] = ()
    envelope_from: str | None = None
    envelope_to: Sequence[str] = ()
    meta_data: dict[str, Any] | None = None
    reference: tuple[int, str] | None = None  # the message it answers or forwards, and which
    origin: str | None = None
    receipt: str | None = None  # the digest by which a repeat of the delivery is known
    filters: Sequence[int] = ()  # that acted on it
    path: str | None = None  # goes before `mailbox_id`: a folder that is made if it is not there


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
    found = await parted(source)
    return Letter(
        found.facts,
        found.size,
        found.digest,
        found.root,
        found.pieces,
        found.structure,
    )


async def stored(world: World, tenant_id: int, letter: Letter, *, again: bool = False) -> Kept:
    """Make the bytes of a message safe, once for all its recipients in a tenant."""
    if again or tenant_id not in letter.keeping:
        small = keep_small(world, tenant_id, letter.root, letter.pieces)
        letter.keeping[tenant_id] = small or asyncio.ensure_future(
            keep(world, tenant_id, letter.root, letter.pieces, again=again, once=letter.cut)
        )
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
    return await with_all(
        world, tenant_id, [letter], lambda turn, kept: work(turn, *kept), *streams
    )


async def with_all(
    world: World,
    tenant_id: int,
    letters: Sequence[Letter],
    work: Callable[[Turn, Sequence[Kept]], Outcome],
    *streams: int,
) -> Outcome:
    """The same with the bytes of several messages."""
    kept = [await stored(world, tenant_id, letter) for letter in letters]
    try:
        return await world.apply(lambda turn: work(turn, kept), *streams)
    except Gone:
        kept = [await stored(world, tenant_id, letter, again=True) for letter in letters]
        return await world.apply(lambda turn: work(turn, kept), *streams)


async def receive(
    world: World, letter: Letter, to: Recipient, sender: str, *, into: Place | None = None
) -> Placed:
    """Store a message for one recipient, in INBOX or `into` a place; on return it is durable.

    A repeat after a lost reply is known by sender, recipient and content for a day, and
    answered with the message that was stored then. OverQuota where it does not fit, which the
    account is told of; NotFound where the account has gone.
    """
    there = into or usual(world, to, sender)
    placed = await receive_all(world, to, Copies(receipt_of(letter, to, sender), [(letter, there)]))
    return found(placed, to.address)


def usual(world: World, to: Recipient, sender: str) -> Place:
    """Where a message goes of which nobody says otherwise."""
    envelope: Any = {"envelope_from": sender, "envelope_to": [to.address]}
    return Place(to.user_id, to.mailbox_id, world.now(), **envelope)


def receipt_of(letter: Letter, to: Recipient, sender: str) -> str:
    """By what a repeat of the delivery is known."""
    came = letter.came or letter.digest
    return hashlib.sha256(f"{sender}\0{to.user_id}\0{came}".encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Copies:
    """A message as it is to lie in each of several places."""

    receipt: str  # by which a repeat is known
    all: Sequence[tuple[Letter, Place]]
    way: Way = Way.RECEIVED


async def receive_all(
    world: World,
    to: Recipient,
    copies: Copies,
    beside: Callable[[Turn, Placed | None], None] | None = None,
) -> Placed | None:
    """Store a message for one recipient in all these places, or in none, in one unit.

    As `receive`; the first of the places counts, and is returned: None where there is none. In
    the same unit is done what is to be done `beside`, but not by a repeat. A folder that is made
    goes before another of the same: a message comes once into each.
    """

    def unit(turn: Turn, kept: Sequence[Kept]) -> Placed | None:
        since = world.now() - world.options.receipts_for
        if earlier := turn.fetched(_RECEIPT, known=copies.receipt, since=since):
            row = earlier[0]
            return Placed(row.id, row.uid, row.modseq, row.blob_id, [row.blob_id])
        placed = place_all(turn, copies, kept)
        if beside is not None:
            beside(turn, placed)
        return placed

    letters = [letter for letter, _ in copies.all]
    try:
        return await with_all(world, to.tenant_id, letters, unit, to.user_id)
    except OverQuota as full:
        reached = Reached(LimitKind.STORAGE, full.used, full.allowed, refused=True)
        await userlimits.refused(world, to.user_id, reached)
        raise


def place_all(turn: Turn, copies: Copies, kept: Sequence[Kept]) -> Placed | None:
    """Store a message in its places inside the caller's unit; the first, None without any.

    Raises as `place`.
    """
    first, taken = None, set[int]()
    for (letter, wanted), safe in zip(copies.all, kept, strict=True):
        there = settled(turn, wanted)
        if there.mailbox_id not in taken:
            taken.add(there.mailbox_id)
            there = replace(there, receipt=None if first else copies.receipt)
            arrives = copies.way in ARRIVING
            way = Way.AGAIN if first and arrives else copies.way
            placed = place(turn, letter, safe, there, way=way)
            first = first or placed
    return first


def settled(turn: Turn, to: Place) -> Place:
    """A place with its folder, which is made where that is wanted."""
    if to.path is None:
        return to
    return replace(to, mailbox_id=folders.made(turn, to.user_id, to.path) or to.mailbox_id)


@prepared
def noted(dialect: str) -> Any:
    """To send: a receipt, by its `digest`, of a `message_id` and `at` a time."""
    new = insert_or(dialect, Receipt)
    values = {"message_id": new.excluded.message_id, "at": new.excluded.at}
    return new.on_conflict_do_update(index_elements=["digest"], set_=values).inline()


def place(turn: Turn, letter: Letter, kept: Kept, to: Place, *, way: Way = Way.PUT_IN) -> Placed:
    """Store a message inside the caller's unit: quota, folder, rows and journal at once.

    One UPDATE both checks and takes the quota, so two deliveries at once cannot both squeeze
    into the last free bytes; it says too whether a limit is reached. OverQuota, NotFound, Gone.
    """
    key, last, now = turn.world.key(), turn.stands(to.user_id) + 1, turn.world.now()
    use = take_quota(turn, to.user_id, letter.size, way=way)
    subject = storable(letter.facts.subject)
    thread = threads.found(turn, to.user_id, letter.facts.thread_keys, subject)
    seen = to.seen or (thread.muted and way in ARRIVING)
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
    facts = {"mailbox": to.mailbox_id, "uid": [row["uid"]], "flags": [flags(row)]}
    if way in ARRIVING:
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
    if way in ARRIVING:
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
