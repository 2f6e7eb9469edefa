"""Holding mail: it is kept apart for its recipient, who is written to, and lets it in or not.

What is held counts against no quota. For each account so many messages, and so many bytes, are
kept: of more the oldest go, and so does what nobody let in for long.
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

LETTER = "QUARANTINE_LETTER"  # kind of the task that tells the account: resolvers/quarantineletter
KIND = ChangeKind.QUARANTINE_CHANGED
SYMBOLS = 200  # of a message that are kept
NAME, WORDS = 128, 512  # characters of a name, and of a description
MOST = 1e9  # points
ROUND = 500  # rows that one unit changes
WAITS = {  # until a letter tells of what is held
    Frequency.HOURLY: timedelta(hours=1),
    Frequency.DAILY: timedelta(days=1),
    Frequency.WEEKLY: timedelta(days=7),
}
HELD = metrics.counter(
    "merganser_quarantine_held", "Messages held for a recipient, and why.", "why"
)


@dataclass(frozen=True, slots=True)
class Why:
    """Why a message is held. `virus` is what was found; None: none was."""

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
    """Whether a message is small enough to be held."""
    return letter.size <= world.options.quarantine_max


def reason(world: World, letter: Letter, verdict: Spam) -> Why | None:
    """Why a message is held for somebody for whom this is the verdict; None: it is not.

    Spam that is too large to be held goes where all other spam goes, and a virus is refused.
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
    """Hold a message for one recipient; on return it is durable.

    A repeat after a lost reply is known, as by `delivery.receive`. It is encrypted where what
    arrives is. LimitReached where it is too large, NotFound where the account has gone,
    Unavailable where it cannot be encrypted.
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
    """Count it among the messages of the hour: else a flood that is held would have no limit.

    Raises TooMany if the account has received its limit of the hour, NotFound if it has gone.
    """
    now, hourly = turn.world.now(), turn.world.options.received_hourly
    given = {"many": 1, "now": now, "until": now + HOUR, "hourly": hourly}
    counted = turn.fetched(_COUNTED, user=user_id, **given)
    if not counted:
        full = user_limits.too_many_received(turn, user_id)
        raise full or NotFound(str(user_id), path=["user"])
    user_limits.received(turn, user_id, counted[0])


def _envelope(turn: Turn, mail: "Mail", to: Recipient) -> dict[str, Any]:
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
    """What its sender wants to be told of; of success only if nobody else may be the sender."""
    wish = mail.wish_of(to)
    if success_dsn.unsure(world, mail):
        wish = wish.without(On.SUCCESS)
    return stored(wish, to.original or to.address)


def _shown(letter: Letter) -> dict[str, Any]:
    """What is shown of a message, by column."""
    columns = message_insert.columns(letter)
    names = ("subject", "from_name", "from_address", "size", "digest", "structure", "attachments")
    shown = {name: columns[name] for name in names}
    return {**shown, "verification": storable(letter.verification)}


def _said(why: Why) -> dict[str, Any]:
    """What is said of a message, by column."""
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
    """Points that every reader can take."""
    return 0.0 if math.isnan(points) else min(max(points, -MOST), MOST)


def _put(turn: Turn, row: Mapping[str, Any], blobs: Sequence[int]) -> None:
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
    """Let audits of the account have it: it may never come into a folder."""
    facts = {
        **message_insert.columns(letter),
        "blob_id": row["blob_id"],
        "received_at": row["created_at"],
        "envelope_from": row["sender"],
        "envelope_to": [row["recipient"]],
    }
    audit_copies.held(turn, row["user_id"], row["id"], facts, blobs)


def _make_room(turn: Turn, user_id: int, newest: int) -> None:
    """Let the oldest go where there are too many, or too much; never the one that came."""
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
    """Remove what is held of an account, and tell it; how many were there."""
    these = col(QuarantineItem.id).in_(ids), col(QuarantineItem.user_id) == user_id
    removal = delete(QuarantineItem).where(*these).returning(col(QuarantineItem.id))
    gone = sorted(turn.connection.execute(removal).scalars())
    if gone:
        turn.record(user_id, Entry(KIND, gone, {"did": did}), at=turn.world.now())
    return len(gone)


async def announce(world: World) -> int:
    """Have those accounts written to who have waited long enough; how many.

    An account waits from the first message on that no letter has told of, and no longer than
    half the time for which it is kept.
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
    now = turn.world.now()
    task = Task(id=turn.world.key(), kind=LETTER, user_id=user_id, created_at=now)
    turn.connection.execute(insert(Task).values(task.model_dump()))
    turn.record(user_id, Entry(ChangeKind.TASK_CHANGED, [task.id]), at=now)
    turn.bells.add(TASKS)
