"""Putting a whole message into a folder."""

import base64
import binascii
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlmodel import col

from mail.delivery import Letter, Place, Placed, place, read, stored
from mail.keeping import Gone, Kept
from models.columns import Picked
from models.errors import Invalid
from models.users import User
from resolvers import messages, uploads
from resolvers.access import own
from resolvers.context import Context
from resolvers.mailboxes import Named, find


@dataclass(frozen=True, slots=True)
class NewMessage:
    """A message to be stored as it is: `raw` is text or base64, or it was sent before."""

    mailbox: Named
    raw: str | None = None
    upload_id: int | None = None
    seen: bool = True
    flagged: bool = False
    draft: bool = False
    received_at: datetime | None = None
    meta_data: dict[str, Any] | None = None


async def store(ctx: Context, new: NewMessage) -> Picked | None:
    """Store the message; its row. OverQuota, NotFound."""
    user_id = own(ctx)
    box = await find(ctx, new.mailbox)
    letter = await read(await _bytes(ctx, new))
    asked = select(col(User.tenant_id)).where(col(User.id) == user_id)
    (owner,) = await ctx.read(asked)
    to = Place(
        user_id,
        box.id,
        new.received_at or ctx.world.now(),
        seen=new.seen,
        flagged=new.flagged,
        draft=new.draft,
        meta_data=new.meta_data,
        origin=ctx.origin,
    )
    kept = await stored(ctx.world, owner.tenant_id, letter)
    try:
        placed = await _place(ctx, letter, kept, to)
    except Gone:
        kept = await stored(ctx.world, owner.tenant_id, letter, again=True)
        placed = await _place(ctx, letter, kept, to)
    return await ctx.load(messages.by_ids, placed.message_id)


async def _place(ctx: Context, letter: Letter, kept: Kept, to: Place) -> Placed:
    async with ctx.write(to.user_id) as session:
        return await ctx.world.join(session, lambda turn: place(turn, letter, kept, to))


async def _bytes(ctx: Context, new: NewMessage) -> bytes:
    if (new.raw is None) is (new.upload_id is None):
        raise Invalid("give raw or rawUpload, one of them", constraint="exclusive", path=["raw"])
    if new.upload_id is not None:
        raw = await uploads.read_upload(ctx, new.upload_id)
    else:
        raw = decoded(new.raw or "")
    limit = ctx.world.options.message_max
    if not raw.strip():
        raise Invalid("the message is empty", constraint="required", path=["raw"])
    if len(raw) > limit:
        raise Invalid(f"a message has at most {limit} bytes", constraint="max", path=["raw"])
    return raw


def decoded(text: str) -> bytes:
    """Text of a message as it is, with the line ends of mail; or the base64 of one.

    A message begins with a field, whose name ends with a colon: base64 has none.
    """
    if ":" not in text:
        try:
            return base64.b64decode("".join(text.split()), validate=True)
        except (binascii.Error, ValueError) as problem:
            raise Invalid(
                "neither a message nor base64", constraint="encoding", path=["raw"]
            ) from problem
    return text.replace("\r\n", "\n").replace("\n", "\r\n").encode()
