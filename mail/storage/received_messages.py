"""Where received mail is stored: one unit of work per recipient."""

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

Outcome = TypeVar("Outcome")

SMALL = 64 * 1024  # bytes; larger messages are taken apart in a thread
_RECEIPT = Prepared(
    select(col(Message.id), col(Message.uid), col(Message.modseq), col(Message.blob_id))
    .join(Receipt, col(Receipt.message_id) == col(Message.id))
    .where(
        col(Receipt.digest) == bindparam("known", type_=String),
        col(Receipt.at) > bindparam("since", type_=Instant),
    )
)


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
    answered with the message that was stored then. Raises OverQuota if it doesn't fit and TooMany
    if the account has received its limit of the hour, and tells the account of both; NotFound if
    the account has gone.
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
    except TooMany as refusal:
        await user_limits.refused(world, to.user_id, refusal.reached)
        raise
    except OverQuota as full:
        reached = Reached(LimitKind.STORAGE, full.used, full.allowed, refused=True)
        await user_limits.refused(world, to.user_id, reached)
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
    return replace(to, mailbox_id=creation.made(turn, to.user_id, to.path) or to.mailbox_id)
