"""Send the vacation replies of scripts (RFC 5230), under the rules of all automatic replies."""

import asyncio
from dataclasses import dataclass, replace
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

from sqlalchemy import and_, select
from sqlalchemy.orm import aliased
from sqlmodel import col

from mail import mime
from mail.autoreply.decision import Came, Silence, plain, quiet, sender_key
from mail.autoreply.reply_sender import ANSWERS, DAY, counted, header_of, spent, taker, writer
from mail.compose import message_builder
from mail.compose.message_builder import NAME, SUBJECT, Draft, HeaderLine
from mail.envelope.local_recipient import Recipient
from mail.filters.script_environment import Boxes
from mail.filters.script_state import known, noted
from mail.mime.header_encoding import Named
from mail.queue.enqueue import Sender, hand_in, handed, unkept
from mail.recipients import address_resolution
from mail.sieve import Copy, Vacation
from mail.storage import message_insert, openpgp_encryption, received_messages
from mail.storage.message_flags import flags_of
from mail.storage.message_insert import Letter, Place
from models.addresses.tables import Address
from models.errors import Refused
from models.filters.sieve_scripts import MemoryKind
from models.runtime.environment import Turn, World
from models.store.columns import Picked
from models.store.prepared_statements import Prepared, number
from models.users.tables import UsageKind, User


@dataclass(frozen=True, slots=True)
class Incoming:
    """A received message and its recipient, as automatic replies of scripts need them."""

    source: bytes | Path
    letter: Letter
    to: Recipient
    sender: str
    spam: bool = False


_main = aliased(Address)
_ACCOUNT = Prepared(
    select(
        col(User.suspended),
        col(User.name).label("shown_name"),
        col(_main.shown).label("main"),
        col(Address.send_as),
        spent().label("spent"),
    )
    .select_from(User)
    .outerjoin(Address, col(Address.id) == number("address"))
    .outerjoin(_main, and_(col(_main.user_id) == col(User.id), col(_main.main)))
    .where(col(User.id) == number("user"))
)


async def after(world: World, incoming: Incoming, action: Vacation, boxes: Boxes) -> None:
    """Send the reply of a script, once per sender in the interval of the action."""
    silence = await _answered(world, incoming, action, boxes)
    ANSWERS.add(silence.outcome if silence else "answered")


async def came_of(incoming: Incoming) -> Came:
    """Return what the rules of automatic replies check of a message."""
    letter = incoming.letter
    header = await header_of(incoming.source, letter)
    came = Came.of(letter.facts, incoming.sender, incoming.to.address, header)
    forged = (letter.verification or {}).get("dmarc") == "fail"
    return replace(came, spam=incoming.spam or forged)


async def account_of(world: World, to: Recipient) -> Picked | None:
    """Return the row of the replying account; None if it does not exist."""
    given = {"user": to.user_id, "address": to.address_id, "now": world.now()}
    return next(iter(await world.database.find(_ACCOUNT, given)), None)


async def author(world: World, to: Recipient, row: Picked, wanted: str | None) -> Named | None:
    """Return the From address: as the script requests if allowed, else the recipient address.

    Returns None if the account must not send as either.
    """
    found = mime.addresses(wanted) if wanted else []
    if found and await address_resolution.owner_of(world, found[0].address) == to.user_id:
        return Named(found[0].address, plain(found[0].name or "", NAME) or None)
    own = writer(row.send_as, to.address, row.main)
    return Named(own, plain(row.shown_name or "", NAME) or None) if own else None


async def _answered(
    world: World, incoming: Incoming, action: Vacation, boxes: Boxes
) -> Silence | None:
    """Send the reply. Returns None, or the reason for no reply."""
    to, came = incoming.to, await came_of(incoming)
    sender = sender_key(came.sender)
    if silence := quiet(came):
        return silence
    row = await account_of(world, to)
    if row is None or row.suspended:
        return Silence.SUSPENDED
    by = await taker(world, came.sender)
    if by is not None and by.user_id == to.user_id:
        return Silence.OWN
    from_ = await author(world, to, row, action.from_)
    if from_ is None or row.spent:
        return Silence.OTHER_ADDRESS if from_ is None else Silence.LIMIT
    raw = await asyncio.to_thread(_built, world, came, action, from_)
    letter = await received_messages.read(raw)
    copy = await copied(world, to, (raw, letter), action.fcc, boxes)
    key = sha256(f"{action.handle}\0{sender}".encode(errors="replace")).hexdigest()
    sending = _Sending(to, came.sender, key, timedelta(seconds=action.seconds))
    return await _sent(world, sending, letter, copy)


@dataclass(frozen=True, slots=True)
class _Sending:
    """A reply with the key and the time that its sender is remembered for."""

    to: Recipient
    sender: str
    key: str
    lasting: timedelta


async def _sent(
    world: World, sending: _Sending, letter: Letter, copy: tuple[Letter, Place] | None
) -> Silence | None:
    """Enqueue the reply, store the FCC copy and record the sender.

    Returns None, or the reason for no reply. If the copy can't be stored, the reply is sent without
    it.
    """
    owner = sending.to.user_id

    def unit(turn: Turn, kept: Any) -> Silence | None:
        """Recheck the limits under the lock of the account: no other process can reply."""
        if known(turn, owner, MemoryKind.VACATION, sending.key):
            return Silence.ANSWERED
        row = turn.fetched(_ACCOUNT, user=owner, address=sending.to.address_id, now=world.now())[0]
        if row.spent:
            return Silence.LIMIT
        now = world.now()
        noted(turn, owner, (MemoryKind.VACATION, sending.key), now + sending.lasting)
        used = {"user_id": owner, "kind": UsageKind.AUTOREPLIES, "used": 1}
        dialect = turn.connection.dialect.name
        turn.send([(counted(dialect), {**used, "until": now + DAY, "now": now})])
        # null sender: no DSN is sent for a reply
        answer = handed(turn, letter, kept[0], "", [sending.sender], ours=True)
        unkept(turn, (owner, hand_in(turn, Sender(owner), answer)), letter, answer)
        if copy is not None:
            message_insert.place(turn, copy[0], kept[1], received_messages.settled(turn, copy[1]))
        return None

    letters = [letter, copy[0]] if copy else [letter]
    tenant = sending.to.tenant_id
    try:
        return await received_messages.with_all(world, tenant, letters, unit, owner)
    except Refused:  # the mailbox is full or deleted; the reply is more important
        if copy is None:
            raise
        return await _sent(world, sending, letter, None)


async def copied(
    world: World, to: Recipient, sent: tuple[bytes, Letter], fcc: Copy | None, boxes: Boxes
) -> tuple[Letter, Place] | None:
    """Return the FCC copy of a sent message (RFC 8580) and its placement.

    Returns None if no copy is requested, the mailbox does not exist, or the copy can't be
    encrypted.
    """
    if fcc is None:
        return None
    raw, letter = sent
    box = boxes.find(fcc.mailbox, fcc.special_use)
    path = fcc.mailbox if box is None and fcc.create else None
    key = boxes.key if path else box.key if box else None
    if box is None and path is None:
        return None
    if key is not None:
        try:
            letter = await openpgp_encryption.encrypted(world, raw, letter, (to.user_id, key))
        except Refused:
            return None
    there = Place(to.user_id, box.id if box else to.mailbox_id, world.now(), path=path)
    return letter, replace(there, **{"seen": True, **flags_of(fcc.flags)})


def _built(world: World, came: Came, action: Vacation, from_: Named) -> bytes:
    """Build the reply message."""
    draft = Draft(
        from_=from_,
        date=world.now(),
        message_id=message_builder.message_id(world.random(16), from_.address.rpartition("@")[2]),
        to=[Named(came.sender)],
        subject=plain(action.subject, SUBJECT),
        text=None if action.mime else action.reason,
        headers=[
            HeaderLine("Auto-Submitted", "auto-replied"),  # RFC 3834, section 5
            HeaderLine("X-Auto-Response-Suppress", "All"),
        ],
        in_reply_to=came.message_id,
        references=[*came.references, *([came.message_id] if came.message_id else [])],
    )
    return message_builder.build(draft, entity(action.reason) if action.mime else None)


def entity(text: str) -> bytes:
    """Return the MIME entity of a script with only its Content-* header fields."""
    raw = "\r\n".join(text.splitlines()).encode(errors="replace")
    head, _, body = (
        raw.partition(b"\r\n\r\n") if not raw.startswith(b"\r\n") else (b"", b"", raw[2:])
    )
    kept, of_body = list[bytes](), False
    for line in head.split(b"\r\n"):
        of_body = line.lower().startswith(b"content-") or (of_body and line[:1] in (b" ", b"\t"))
        if of_body and len(line) <= LINE:
            kept.append(line)
    if not body.isascii() and not any(line.lower().startswith(_ENCODING) for line in kept):
        kept.append(b"Content-Transfer-Encoding: 8bit")
    return b"\r\n".join([b"MIME-Version: 1.0", *kept, b"", body, b""])


LINE = 998  # bytes (RFC 5322, section 2.1.1)
_ENCODING = b"content-transfer-encoding"
