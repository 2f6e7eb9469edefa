"""Answers given before, under an idempotency key."""

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
    """A mutation with its input, and the key its caller gave it."""

    key: str
    what: str

    def digest(self, secret: bytes) -> str:
        """What tells this call from another with the same key.

        There may be a password in it: whoever has the store alone cannot try others.
        """
        return hmac.digest(secret, self.what.encode(), "sha256").hex()


async def find(ctx: Context, asked: Asked) -> Any:
    """The answer this key had before, or None."""
    mine = select(col(Replay.asked), col(Replay.answer)).where(
        col(Replay.principal) == ctx.viewer.principal, col(Replay.key) == asked.key
    )
    earlier = next(iter(await ctx.read(mine)), None)
    if earlier and earlier.asked != asked.digest(ctx.world.secret):
        raise Conflict("this key was used for something else", path=["options", "idempotencyKey"])
    return earlier and earlier.answer


async def keep(ctx: Context, asked: Asked, answer: Any) -> None:
    """Store the answer in the unit that did the work: both are there, or neither."""
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
    except IntegrityError as clash:  # two calls at once: the other one did it
        raise Conflict("the same call is being answered", path=["options"]) from clash
