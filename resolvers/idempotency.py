"""Payloads of mutations that ran before, under an idempotency key."""

import hmac
from dataclasses import dataclass
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError
from sqlmodel import col

from models.errors import Conflict
from models.runtime.idempotency import Replay
from resolvers.context import Context


@dataclass(frozen=True, slots=True)
class Asked:
    """A mutation with its input, and its idempotency key."""

    key: str
    what: str

    def digest(self, secret: bytes) -> str:
        """Return an HMAC of the mutation, which tells it from others with the same key.

        The input can have a password, so a plain hash of the stored row could be guessed.
        """
        return hmac.digest(secret, self.what.encode(), "sha256").hex()


async def find(ctx: Context, asked: Asked) -> Any:
    """Return the stored payload of this key; None if it is new.

    Raises Conflict if the key was used for another mutation.
    """
    mine = select(col(Replay.asked), col(Replay.answer)).where(
        col(Replay.principal) == ctx.viewer.principal, col(Replay.key) == asked.key
    )
    earlier = next(iter(await ctx.read(mine)), None)
    if earlier and earlier.asked != asked.digest(ctx.world.secret):
        raise Conflict("this key was used for something else", path=["options", "idempotencyKey"])
    return earlier and earlier.answer


async def keep(ctx: Context, asked: Asked, answer: Any) -> None:
    """Store the payload in the transaction of the mutation: both are committed, or neither.

    Raises Conflict if a concurrent request has used the key.
    """
    row = Replay(
        principal=ctx.viewer.principal,
        key=asked.key,
        asked=asked.digest(ctx.world.secret),
        answer=answer,
        at=ctx.world.now(),
    )
    try:
        async with ctx.write() as session:
            await session.exec(insert(Replay).values(row.model_dump()))
    except IntegrityError as clash:  # a concurrent request has stored it
        raise Conflict("the same call is being answered", path=["options"]) from clash
