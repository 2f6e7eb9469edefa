"""Redirect received messages: one queued message for each address or user that forwards."""

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

from sqlalchemy import case, select, update
from sqlmodel import col

from mail import mime
from mail.addresses import srs
from mail.authentication import sealed
from mail.envelope.dsn_parameters import Wish
from mail.limits import user_limits
from mail.mime.header_encoding import on_wire
from mail.queue.enqueue import Sender, hand_in, handed
from mail.recipients.recipient_routes import Loop, Onward, Taken, check_limit
from mail.storage import received_messages
from mail.storage.blobs.blob_writer import Kept
from mail.storage.header_prepend import before, first
from mail.storage.message_insert import Letter, noted
from mail.storage.received_messages import with_bytes
from models.addresses.tables import Address
from models.errors import NotFound
from models.events.journal import PLATFORM
from models.messages.tables import Message, Receipt
from models.runtime.environment import Turn, World

HEAD = 1 << 20  # of a large message, for the loop check
HOPS = 30  # Received fields; with this number a message is in a loop
DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message that is ready to be redirected, with the digest and sender of the original."""

    letter: Letter
    came: str  # of the received message
    sender: str  # envelope sender of the received message
    onward: Onward


async def check_loop(source: bytes | Path, letter: Letter, address: str | None) -> None:
    """Raise Loop if the message has passed this address, or `MAX_HOPS` servers."""
    end = letter.facts.structure.body_start
    head = await first(source, end if isinstance(source, bytes) else min(end, HEAD))
    fields = mime.headers(head, letter.facts.structure)
    names = [field.key.casefold() for field in fields]
    was_here = address is not None and any(
        name == "delivered-to" and field.value.strip().casefold() == on_wire(address).casefold()
        for name, field in zip(names, fields, strict=True)
    )
    if was_here or names.count("received") >= HOPS:
        raise Loop("the mail goes in circles")


async def send_on(  # noqa: PLR0913, PLR0917 - envelope and message
    world: World,
    source: bytes | Path,
    came: tuple[str, str],
    onward: Onward,
    results: str | None = None,
    letter: Letter | None = None,
) -> None:
    """Prepare and queue a redirect as `prepare_redirect` and `enqueue_prepared` do.

    The message is durable when the function returns. Raises Loop, RateLimited or NotFound.
    """
    with ExitStack() as files:
        made = await outgoing(world, source, came, onward, files, results, letter)

        def write(turn: Turn, kept: Kept) -> None:
            enter(turn, made, kept)

        whose = [] if onward.user_id is None else [onward.user_id]
        await with_bytes(world, onward.tenant_id, made.letter, write, PLATFORM, *whose)


async def outgoing(  # noqa: PLR0913, PLR0917 - envelope and message
    world: World,
    source: bytes | Path,
    came: tuple[str, str],
    onward: Onward,
    files: ExitStack,
    results: str | None = None,
    letter: Letter | None = None,
) -> Outgoing:
    """Add Delivered-To and the ARC seal to a received message. Raises Loop.

    `digest_and_sender` are the digest that identifies a repeat within a day, and the envelope
    sender. `authentication_results` go into the ARC seal. `message` is the parsed source, if the
    caller has it. `file_stack` closes the temporary files.
    """
    letter = letter or await received_messages.read(source)
    seal = b""
    if onward.relayed:  # the message is not changed; its Received field is the trace
        await check_loop(source, letter, None)
        return Outgoing(letter, *came, onward)
    if not onward.returns:
        await check_loop(source, letter, onward.address)
        seal = await sealed(world, source, onward.address.rpartition("@")[2], results)
    prefix = f"Delivered-To: {on_wire(onward.address)}\r\n".encode() + seal
    return Outgoing(await before(source, letter, prefix, files), *came, onward)


async def put_off(
    world: World, source: bytes | Path, came: tuple[str, str], taken: Sequence[Taken]
) -> None:
    """Queue a message for recipients that could not take it now, for delivery on this server.

    The message is durable when the function returns. If the delivery fails later, the sender gets a
    DSN. `digest_and_sender` are as in `prepare_redirect`.
    """
    letter = await received_messages.read(source)
    of: dict[int, dict[str, Wish]] = {}
    for each in taken:
        tenants = [person.to.tenant_id for person in each.people]
        tenants += [onward.tenant_id for onward in each.onward]
        of.setdefault(next(iter(tenants), PLATFORM), {})[each.address] = each.wish
    for tenant_id, addresses in of.items():
        await _put_off(world, letter, came, (tenant_id, addresses))


async def _put_off(
    world: World, letter: Letter, came: tuple[str, str], of: tuple[int, dict[str, Wish]]
) -> None:
    """Queue a message for deferred recipients of one tenant, once within the receipt period."""
    (digest, sender), (tenant_id, to) = came, of
    told = f"{sender}\0later\0{','.join(to)}\0{digest}"

    def write(turn: Turn, kept: Kept) -> None:
        if new(turn, told):
            mail = handed(turn, letter, kept, sender, list(to), wishes=to)
            hand_in(turn, Sender(None, tenant_id), mail)

    await with_bytes(world, tenant_id, letter, write, PLATFORM)


def new(turn: Turn, told: str) -> bool:
    """Store a receipt of this text. Returns False if there is one within the receipt period.

    The stream of the platform must be locked.
    """
    known, now = hashlib.sha256(told.encode()).hexdigest(), turn.world.now()
    since = now - turn.world.options.receipts_for
    seen = select(col(Receipt.digest)).where(col(Receipt.digest) == known, col(Receipt.at) > since)
    if turn.connection.execute(seen).first():
        return False
    receipt = {"digest": known, "message_id": 0, "at": now}
    turn.send([(noted(turn.connection.dialect.name), receipt)])
    return True


def enter(turn: Turn, outgoing: Outgoing, kept: Kept) -> None:
    """Queue a prepared redirect, once within the receipt period.

    The streams of the platform and of the user must be locked. Raises RateLimited if a forwarding
    limit is reached and NotFound if the address is deleted.
    """
    onward = outgoing.onward
    to = [*onward.targets, *(via.shown for via in onward.via)]
    whose = onward.address_id if onward.user_id is None else f"user {onward.user_id}"
    told = f"{outgoing.sender}\0onward\0{whose}\0{','.join(to)}"
    if not new(turn, f"{told}\0{outgoing.came}"):
        return
    _count(turn, onward, len(to))
    sender = _sender(turn.world, outgoing)
    wishes = dict.fromkeys([*onward.targets, *(via.recipient for via in onward.via)], onward.wish)
    mail = handed(turn, outgoing.letter, kept, sender, onward.targets, wishes=wishes)
    platform = Sender(None, onward.tenant_id)
    if onward.targets:
        hand_in(turn, platform, mail)
    if onward.via:  # a configured relay accepts the original sender
        bare = replace(mail, sender=outgoing.sender, recipients=())
        hand_in(turn, platform, replace(bare, via=onward.via))
    if onward.message_id is not None:
        _remember(turn, onward, to)


def _remember(turn: Turn, onward: Onward, to: Sequence[str]) -> None:
    """Add the targets to `forwarded_to` of the stored message, without duplicates."""
    mine = col(Message.id) == onward.message_id, col(Message.user_id) == onward.user_id
    row = turn.connection.execute(select(col(Message.forwarded_to)).where(*mine)).first()
    if row is None:  # the message was deleted
        return
    known = {text.casefold(): text for text in reversed([*(row.forwarded_to or ()), *to])}
    noted = update(Message).where(*mine).values(forwarded_to=list(reversed(known.values())))
    turn.connection.execute(noted)


def _sender(world: World, outgoing: Outgoing) -> str:
    """The envelope sender of a redirect: rewritten with SRS unless it must be kept."""
    onward = outgoing.onward
    if onward.returns or onward.relayed:
        return outgoing.sender
    return srs.rewritten(world, outgoing.sender, onward.address.rpartition("@")[2])


def _count(turn: Turn, onward: Onward, many: int) -> None:
    """Count the targets against the limits of the user and the address.

    Raises RateLimited if a limit is reached and NotFound if the address is deleted.
    """
    if onward.user_id is not None:
        user_limits.count_forwards(turn, onward.user_id, many)
    if onward.address_id is None:
        return
    now = turn.world.now()
    running = col(Address.forwarded_until) > now
    counted = update(Address).where(col(Address.id) == onward.address_id)
    rows = turn.connection.execute(
        select(
            col(Address.forwards_max), col(Address.forwarded), col(Address.forwarded_until)
        ).where(col(Address.id) == onward.address_id)
    ).all()
    if not rows:
        raise NotFound(onward.address, path=["address"])
    check_limit(turn.world, rows[0])
    turn.connection.execute(
        counted.values(
            forwarded=case((running, Address.forwarded + many), else_=many),
            forwarded_until=case((running, col(Address.forwarded_until)), else_=now + DAY),
        )
    )
