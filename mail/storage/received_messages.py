"""Storage of received messages: one transaction for each recipient."""

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import String, bindparam, select
from sqlmodel import col

from mail.envelope.local_recipient import Recipient
from mail.limits import user_limits
from mail.limits.user_limits import Reached, TooMany
from mail.mailboxes import creation
from mail.storage.blobs.blob_writer import Gone, Kept, keep, keep_small
from mail.storage.message_insert import ARRIVING, Letter, Place, Placed, Way, place
from mail.storage.parsed_message import parted
from models.errors import OverQuota, found
from models.messages.tables import Message, Receipt
from models.runtime.environment import Turn, World
from models.store.columns import Instant
from models.store.prepared_statements import Prepared
from models.users.tables import LimitKind

Result = TypeVar("Result")

SMALL = 64 * 1024  # bytes; a larger message is processed in a thread
_RECEIPT = Prepared(
    select(col(Message.id), col(Message.uid), col(Message.modseq), col(Message.blob_id))
    .join(Receipt, col(Receipt.message_id) == col(Message.id))
    .where(
        col(Receipt.digest) == bindparam("known", type_=String),
        col(Receipt.at) > bindparam("since", type_=Instant),
    )
)


async def read(source: bytes | Path) -> Letter:
    """Parse a message for storage."""
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
    """Store the blobs of a message, once for all its recipients in a tenant."""
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
    work: Callable[[Turn, Kept], Result],
    *streams: int,
) -> Result:
    """Run `function` in a transaction that locks the streams, after the blobs are stored.

    If the garbage collector has removed a blob in between, the blobs are stored and the
    function is run once more.
    """
    return await with_all(
        world, tenant_id, [letter], lambda transaction, stored: work(transaction, *stored), *streams
    )


async def with_all(
    world: World,
    tenant_id: int,
    letters: Sequence[Letter],
    work: Callable[[Turn, Sequence[Kept]], Result],
    *streams: int,
) -> Result:
    """Run `function` in a transaction after the blobs of several messages are stored.

    See `apply_with_blobs`.
    """
    kept = [await stored(world, tenant_id, letter) for letter in letters]
    try:
        return await world.apply(lambda transaction: work(transaction, kept), *streams)
    except Gone:
        kept = [await stored(world, tenant_id, letter, again=True) for letter in letters]
        return await world.apply(lambda transaction: work(transaction, kept), *streams)


async def receive(
    world: World, letter: Letter, to: Recipient, sender: str, *, into: Place | None = None
) -> Placed:
    """Store a message for one recipient, in INBOX or as `placement` says, durably.

    A repeated delivery with the same sender, recipient and content is recognized for a day, and
    returns the message that was stored first. Raises OverQuota if the message doesn't fit and
    TooMany if the user has received the limit of the hour, and notifies the user of both;
    NotFound if the user is gone.
    """
    there = into or usual(world, to, sender)
    placed = await receive_all(world, to, Copies(receipt_of(letter, to, sender), [(letter, there)]))
    return found(placed, to.address)


def usual(world: World, to: Recipient, sender: str) -> Place:
    """The placement in the default mailbox of the recipient."""
    envelope: Any = {"envelope_from": sender, "envelope_to": [to.address]}
    return Place(to.user_id, to.mailbox_id, world.now(), **envelope)


def receipt_of(letter: Letter, to: Recipient, sender: str) -> str:
    """The digest that identifies a repeated delivery."""
    came = letter.came or letter.digest
    return hashlib.sha256(f"{sender}\0{to.user_id}\0{came}".encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Copies:
    """The copies of a received message for several mailboxes of one recipient."""

    receipt: str  # identifies a repeated delivery
    all: Sequence[tuple[Letter, Place]]
    way: Way = Way.RECEIVED


async def receive_all(
    world: World,
    to: Recipient,
    copies: Copies,
    beside: Callable[[Turn, Placed | None], None] | None = None,
) -> Placed | None:
    """Store a message in several mailboxes of one recipient, in one transaction.

    Returns the first copy, or None without any. `after_insert` runs in the same transaction,
    but not for a repeated delivery. A mailbox gets the message once. Raises as
    `store_for_recipient`.
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
    except TooMany as refusal:
        await user_limits.refused(world, to.user_id, refusal.reached)
        raise
    except OverQuota as full:
        reached = Reached(LimitKind.STORAGE, full.used, full.allowed, refused=True)
        await user_limits.refused(world, to.user_id, reached)
        raise


def place_all(turn: Turn, copies: Copies, kept: Sequence[Kept]) -> Placed | None:
    """Insert the copies of a message in the transaction of the caller; return the first, or None.

    Raises as `insert_message`.
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
    """The placement with the mailbox id of its path; the mailbox is created if it is missing."""
    if to.path is None:
        return to
    return replace(to, mailbox_id=creation.made(turn, to.user_id, to.path) or to.mailbox_id)
