"""Hold suspicious messages in the quarantine of their recipient, who releases or deletes them.

Quarantined messages don't count against the quota. Each account has a limit of messages and bytes;
the oldest are deleted beyond it, and all expire after a time.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

from sqlalchemy import and_, bindparam, delete, exists, insert, or_, select, update
from sqlmodel import col

from mail.delivery import success_dsn
from mail.envelope.dsn_parameters import On, stored
from mail.envelope.local_recipient import Recipient
from mail.inbound.incoming_message import Mail
from mail.limits import user_limits
from mail.limits.user_limits import TooMany
from mail.spam.scan_result import Symbol
from mail.spam.verdict import Spam
from mail.storage import audit_copies, message_insert, openpgp_encryption, received_messages
from mail.storage.blobs.blob_writer import Kept, blob_ids
from mail.storage.message_insert import CAME, COMING, HOUR, MAY_COME, Letter
from mail.storage.message_trace import new_id
from mail.text.storable_text import storable
from models.admin.tasks import Task
from models.errors import LimitReached, NotFound
from models.events.journal import LONGEST, ChangeKind, Entry
from models.events.wakeups import TASKS
from models.messages.tables import Receipt
from models.observability import metrics
from models.runtime.environment import Turn, World
from models.spam.quarantine import QuarantineBlob, QuarantineItem
from models.store.prepared_statements import Prepared, number
from models.users.tables import Frequency, User

LETTER = "QUARANTINE_LETTER"  # kind of the task that mails the notification
KIND = ChangeKind.QUARANTINE_CHANGED
SYMBOLS = 200  # stored per message
NAME, WORDS = 128, 512  # characters
MOST = 1e9
ROUND = 500  # accounts per page
WAITS = {  # between two notifications
    Frequency.HOURLY: timedelta(hours=1),
    Frequency.DAILY: timedelta(days=1),
    Frequency.WEEKLY: timedelta(days=7),
}
HELD = metrics.counter(
    "merganser_quarantine_held", "Messages held for a recipient, and why.", "why"
)


@dataclass(frozen=True, slots=True)
class Why:
    """The reason to quarantine a message. `virus` is the name of the virus found."""

    score: float
    symbols: Sequence[Symbol] = ()
    virus: str | None = None


_KNOWN = select(col(Receipt.message_id)).where(
    col(Receipt.digest) == bindparam("known"), col(Receipt.at) > bindparam("since")
)
_COUNTED = Prepared(
    update(User)
    .where(col(User.id) == number("user"), col(User.deleted_at).is_(None), MAY_COME)
    .values(**COMING)
    .returning(*CAME)
)


def fits(world: World, letter: Letter) -> bool:
    """Return True if a message is small enough for the quarantine."""
    return letter.size <= world.options.quarantine_max


def reason(world: World, letter: Letter, verdict: Spam) -> Why | None:
    """Return why a message with this verdict is quarantined, None if it is not.

    Spam that is too large goes to Junk; a virus that is too large is refused.
    """
    options, scan = world.options, letter.scan
    least = options.spam_quarantine
    wanted = bool(least) and verdict.is_spam and verdict.score >= least
    if scan is not None and scan.virus and options.virus != "tag":
        wanted = options.virus == "quarantine"
    if not wanted or not fits(world, letter):
        return None
    if scan is None or scan.score is None:
        return Why(float(verdict.score), virus=scan.virus if scan else None)
    return Why(scan.score, scan.symbols, scan.virus)


async def hold(world: World, mail: "Mail", to: Recipient, why: Why) -> None:
    """Quarantine a message for one recipient. On return it is durable.

    A repeated delivery is recognized by its receipt. The message is encrypted if the mailbox
    requires it. Raises LimitReached if it is too large, NotFound if the account does not exist,
    Unavailable if it can't be encrypted, UserLimitExceeded at the hourly limit.
    """
    letter, most = mail.letter, world.options.quarantine_max
    if not fits(world, letter):
        raise LimitReached("too large to be held", limit=most, used=letter.size)
    if to.key is None:
        await _hold(world, letter, (mail, to), why)
    else:
        async with mail.apart:
            own = await openpgp_encryption.encrypted(
                world, mail.source, letter, (to.user_id, to.key)
            )
            await _hold(world, own, (mail, to), why)


async def _hold(world: World, letter: Letter, route: tuple["Mail", Recipient], why: Why) -> None:
    """Store the message and insert its quarantine item, unless its receipt is known."""
    mail, to = route
    known = received_messages.receipt_of(letter, to, mail.sender)
    since = world.now() - world.options.receipts_for

    def unit(turn: Turn, kept: Kept) -> bool:
        if turn.connection.execute(_KNOWN, {"known": known, "since": since}).first():
            return False
        _count(turn, to.user_id)
        key, shown = turn.world.key(), {**_shown(letter), **_said(why), "receipt": known}
        row = {"id": key, **_envelope(turn, mail, to), **shown}
        blobs = blob_ids(turn, kept)
        row |= {"blob_id": blobs[kept.root]}
        _put(turn, row, list(blobs.values()))
        _audit(turn, letter, row, list(blobs.values()))
        _make_room(turn, to.user_id, key)
        return True

    try:
        held = await received_messages.with_bytes(world, to.tenant_id, letter, unit, to.user_id)
    except TooMany as refusal:
        await user_limits.refused(world, to.user_id, refusal.reached)
        raise
    if held:
        HELD.add("virus" if why.virus else "spam")


def _count(turn: Turn, user_id: int) -> None:
    """Count the message against the hourly limit of received messages.

    Without it a flood of quarantined messages would have no limit. Raises UserLimitExceeded if the
    account has reached its limit, NotFound if it does not exist.
    """
    now, hourly = turn.world.now(), turn.world.options.received_hourly
    given = {"many": 1, "now": now, "until": now + HOUR, "hourly": hourly}
    counted = turn.fetched(_COUNTED, user=user_id, **given)
    if not counted:
        full = user_limits.too_many_received(turn, user_id)
        raise full or NotFound(str(user_id), path=["user"])
    user_limits.received(turn, user_id, counted[0])


def _envelope(turn: Turn, mail: "Mail", to: Recipient) -> dict[str, Any]:
    """Return the columns of the envelope and the time of expiry."""
    now = turn.world.now()
    return {
        "user_id": to.user_id,
        "domain_id": to.domain_id,
        "queue_id": mail.way.queue_id or new_id(turn.world),
        "sender": storable(mail.sender),
        "recipient": storable(to.address),
        "wish": storable(_wish(turn.world, mail, to)),
        "notified": False,
        "created_at": now,
        "expires_at": now + turn.world.options.quarantine_for,
    }


def _wish(world: World, mail: "Mail", to: Recipient) -> dict[str, str | None] | None:
    """Return the stored DSN request. SUCCESS is removed if the sender is not verified."""
    wish = mail.wish_of(to)
    if success_dsn.unsure(world, mail):
        wish = wish.without(On.SUCCESS)
    return stored(wish, to.original or to.address)


def _shown(letter: Letter) -> dict[str, Any]:
    """Return the columns that show the message in lists."""
    columns = message_insert.columns(letter)
    names = ("subject", "from_name", "from_address", "size", "digest", "structure", "attachments")
    shown = {name: columns[name] for name in names}
    return {**shown, "verification": storable(letter.verification)}


def _said(why: Why) -> dict[str, Any]:
    """Return the columns of the score, the symbols and the virus."""
    symbols = [
        {
            "name": symbol.name[:NAME],
            "score": _finite(symbol.score),
            "description": symbol.description and symbol.description[:WORDS],
        }
        for symbol in why.symbols[:SYMBOLS]
    ]
    found = {
        "score": _finite(why.score),
        "symbols": symbols,
        "tests": " ".join(str(symbol["name"]) for symbol in symbols),
        "virus": why.virus and why.virus[:NAME],
    }
    return {name: storable(value) for name, value in found.items()}


def _finite(points: float) -> float:
    """Return the score within the range that all readers support; NaN becomes 0."""
    return 0.0 if math.isnan(points) else min(max(points, -MOST), MOST)


def _put(turn: Turn, row: Mapping[str, Any], blobs: Sequence[int]) -> None:
    """Insert the quarantine item with its blob references, its receipt and its journal entry."""
    key, user_id = row["id"], row["user_id"]
    turn.connection.execute(insert(QuarantineItem).values(row))
    needs = [{"item_id": key, "blob_id": blob} for blob in sorted(set(blobs))]
    turn.connection.execute(insert(QuarantineBlob), needs)
    at = row["created_at"]
    turn.send(
        [(message_insert.noted(turn.connection.dialect.name),
          {"digest": row["receipt"], "message_id": key, "at": at})]
    )  # fmt: skip
    turn.record(user_id, Entry(KIND, [key], {"did": "held"}), at=at)


def _audit(turn: Turn, letter: Letter, row: Mapping[str, Any], blobs: Sequence[int]) -> None:
    """Give audits of the account a copy: the message may never reach a mailbox."""
    facts = {
        **message_insert.columns(letter),
        "blob_id": row["blob_id"],
        "received_at": row["created_at"],
        "envelope_from": row["sender"],
        "envelope_to": [row["recipient"]],
    }
    audit_copies.held(turn, row["user_id"], row["id"], facts, blobs)


def _make_room(turn: Turn, user_id: int, newest: int) -> None:
    """Delete the oldest items beyond the limits of messages and bytes, never the new one."""
    options, many, size = turn.world.options, 0, 0
    asked = select(col(QuarantineItem.id), col(QuarantineItem.size)).where(
        col(QuarantineItem.user_id) == user_id
    )
    order = col(QuarantineItem.created_at).desc(), col(QuarantineItem.id).desc()
    gone = []
    for row in turn.connection.execute(asked.order_by(*order)):
        many, size = many + 1, size + row.size
        over = many > options.quarantine_items or size > options.quarantine_bytes
        if over and row.id != newest:
            gone.append(row.id)
    for start in range(0, len(gone), LONGEST):
        drop(turn, user_id, gone[start : start + LONGEST], did="expired")


def drop(turn: Turn, user_id: int, ids: Sequence[int], *, did: str) -> int:
    """Delete quarantine items of an account with a journal entry. Returns the number deleted."""
    these = col(QuarantineItem.id).in_(ids), col(QuarantineItem.user_id) == user_id
    removal = delete(QuarantineItem).where(*these).returning(col(QuarantineItem.id))
    gone = sorted(turn.connection.execute(removal).scalars())
    if gone:
        turn.record(user_id, Entry(KIND, gone, {"did": did}), at=turn.world.now())
    return len(gone)


async def announce(world: World) -> int:
    """Create notification tasks for accounts with due quarantine items; return their number.

    The interval begins with the first item that no notification has listed. It is at most half of
    the retention of the quarantine.
    """
    now, longest, reached, many = world.now(), world.options.quarantine_for / 2, 0, 0
    chosen = col(User.quarantine_notification)
    due = or_(
        *(
            and_(chosen == often, col(QuarantineItem.created_at) <= now - min(wait, longest))
            for often, wait in WAITS.items()
        )
    )
    waits = exists().where(
        col(Task.user_id) == col(User.id), col(Task.kind) == LETTER, col(Task.finished_at).is_(None)
    )
    asked = (
        select(col(User.id))
        .join(QuarantineItem, col(QuarantineItem.user_id) == col(User.id))
        .where(~col(QuarantineItem.notified), due, ~col(User.disabled), ~waits)
        .distinct()
        .order_by(col(User.id))
        .limit(ROUND)
    )
    while rows := await world.database.read(asked.where(col(User.id) > reached)):
        for row in rows:
            reached = row.id
            await world.apply(partial(_write_to, user_id=reached), reached)
            many += 1
    return many


def _write_to(turn: Turn, user_id: int) -> None:
    """Insert the task that notifies one account."""
    now = turn.world.now()
    task = Task(id=turn.world.key(), kind=LETTER, user_id=user_id, created_at=now)
    turn.connection.execute(insert(Task).values(task.model_dump()))
    turn.record(user_id, Entry(ChangeKind.TASK_CHANGED, [task.id]), at=now)
    turn.bells.add(TASKS)
