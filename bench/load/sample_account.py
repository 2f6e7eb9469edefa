"""Create the account that is measured, with the real code, before the server starts."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

from sqlalchemy import select
from sqlmodel import col

from bench.load.message_generator import START, Writer
from graph.types.global_ids import encode
from mail.envelope.local_recipient import Recipient
from mail.recipients import address_resolution
from mail.search import index_worker
from mail.storage import message_insert, received_messages
from merganser.server.environment_factory import on_behalf, opened, owner
from merganser.settings.settings import Settings
from models.messages.tables import Message
from models.runtime.environment import World
from models.users.tables import User
from resolvers.auth import api_keys
from resolvers.auth.api_keys import NewKey
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.loaders import NewMailboxes
from resolvers.users.creation import create as creation_create
from resolvers.users.creation.create import NewUser

READER, TAKER = "ada@bench.example", "post@bench.example"
TOGETHER = 32  # concurrent deliveries
SIZES = (1200, 2000, 2000, 3000, 6000)  # bytes, in rotation
FILE = 30_000  # bytes of an attachment
EVERY_FILE, EVERY_UNSEEN, EVERY_FLAGGED = 7, 5, 20
FULL_SIZE = 12_000  # bytes of the message that is read in full, without its attachment

Progress = Callable[[int, int], None]  # delivered and total messages


@dataclass(frozen=True, slots=True)
class House:
    """What the load needs to know of the sample account. IDs are global IDs."""

    secret: str
    taker_secret: str
    box: str
    full: str  # the message that is read in full
    messages: list[str]  # newest first
    full_raw: bytes
    floor: str = ""  # the mailbox ID of the baseline if it has its own database
    floor_keys: tuple[int, ...] = ()  # and its message keys


async def furnish(
    data: Path, store: str | None, *, messages: int, boxes: int, progress: Progress
) -> House:
    """Create two users in a new database; the first gets the messages, indexed, and mailboxes."""
    settings = Settings(data=data, store=store) if store else Settings(data=data)
    async with opened(settings, migrate=True) as world:
        ada = await make_user(world, READER)
        post = await make_user(world, TAKER)
        ctx = on_behalf(world, ada.id)
        there = len(await mailbox_loaders.all_of(ctx, ada.id, ()))
        paths = [f"Projects/No {n:02}" for n in range(1, boxes - there)]
        await mailbox_loaders.create(ctx, NewMailboxes(paths))
        secrets = [
            (await api_keys.create_key(owner(world), NewKey("bench", user_id=user.id)))[1]
            for user in (ada, post)
        ]
        full_raw = await _fill(world, messages, progress)
        while await index_worker.index(world):
            pass
        return await _found(world, secrets, full_raw)


async def make_user(world: World, address: str, *targets: str, **more: Any) -> User:
    """Create a user with this address and its domain, without limits, forwarding to `targets`."""
    new = NewUser(
        username=address,
        address=address,
        password_disabled=True,
        quota=0,
        received_max=0,
        targets=targets,
        **more,
    )
    options = replace(world.options, auto_create_domains=True)
    return await creation_create.create(owner(replace(world, options=options)), new)


async def _fill(world: World, count: int, progress: Progress) -> bytes:
    """Deliver the messages, oldest first, and return the bytes of the newest."""
    writer, to = Writer(), await address_resolution.recipient(world, READER)
    raw = b""
    for first in range(0, count, TOGETHER):
        numbers = range(first, min(first + TOGETHER, count))
        some = [_letter(writer, number, last=number == count - 1) for number in numbers]
        await asyncio.gather(
            *(_deliver(world, to, number, raw) for number, raw in zip(numbers, some, strict=True))
        )
        raw = some[-1]
        progress(numbers.stop, count)
    return raw


def _letter(writer: Writer, number: int, *, last: bool) -> bytes:
    """Return a message of the size and with the attachment that its number asks for."""
    attached = b""
    if last or number % EVERY_FILE == 0:
        attached = Random(number).randbytes(FILE)  # noqa: S311 - only not to be compressed
    size = FULL_SIZE if last else SIZES[number % len(SIZES)]
    return writer.letter(number, size=size, attached=attached)


async def _deliver(world: World, to: Recipient, number: int, raw: bytes) -> None:
    """Store a message in INBOX, with flags and date by its number."""
    place = message_insert.Place(
        to.user_id,
        to.mailbox_id,
        START + timedelta(minutes=number),
        seen=number % EVERY_UNSEEN > 0,
        flagged=number % EVERY_FLAGGED == 0,
        envelope_from="bob@example.com",
        envelope_to=[READER],
    )
    await received_messages.receive(
        world, await received_messages.read(raw), to, "bob@example.com", into=place
    )


async def _found(world: World, secrets: list[str], full_raw: bytes) -> House:
    """Return the sample account with the IDs of its messages, newest first."""
    to = await address_resolution.recipient(world, READER)
    asked = select(col(Message.id)).where(col(Message.mailbox_id) == to.mailbox_id)
    newest = asked.order_by(col(Message.listed_at).desc(), col(Message.id).desc())
    ids = [str(encode("Message", row.id)) for row in await world.database.read(newest)]
    reader, taker = secrets
    return House(reader, taker, str(encode("Mailbox", to.mailbox_id)), ids[0], ids, full_raw)
