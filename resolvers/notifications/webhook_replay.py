"""Repeat webhook events from the journal."""

from typing import Any

from sqlalchemy import select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.errors import Invalid, NotFound
from models.events import journal
from models.events.journal import Position, Stream
from models.notifications.webhooks import Webhook, put
from models.store.columns import Picked, picked
from models.users.tables import User
from resolvers.admin.task_steps import Plan, Step
from resolvers.context import Context
from resolvers.notifications.webhook_feed import Target, rows_of

KIND = "WEBHOOK_REPLAY"
CHUNK = 100  # in one transaction


async def starting(ctx: Context, hook: Picked, since: Position) -> dict[str, Any]:
    """Return the order of a replay task.

    Raises Invalid if the position is unknown, expired, or not of a stream of the webhook.
    """
    asked = select(*picked(Stream)).where(col(Stream.id).in_(list(since)))
    streams = {row.id: row for row in await ctx.read(asked)}
    homes = select(col(User.id), col(User.domain_id)).where(col(User.id).in_(list(since)))
    domains = {row.id: row.domain_id for row in await ctx.read(homes)}
    for key, number in since.items():
        row, path = streams.get(key), ["after"]
        if row is None or not _hears(hook, key, domains.get(key)) or number > row.last:
            text = "not a position of what this webhook is for"
            raise Invalid(text, constraint="cursor", path=path)
        if number < row.gone:
            raise Invalid("the journal is not kept so far back", constraint="expired", path=path)
    return {
        "webhook": hook.id,
        "after": {str(key): number for key, number in since.items()},
        "until": {str(key): streams[key].last for key in since},
    }


def _hears(hook: Picked, stream: int, domain_id: int | None) -> bool:
    inside = hook.domain_id in (None, stream, domain_id)
    return inside and hook.user_id in (None, stream)


async def plan(ctx: Context, order: dict[str, Any], checkpoint: dict[str, Any]) -> Plan:
    """Read the next changes of one stream and prepare their delivery rows."""
    at = {**order["after"], **checkpoint}
    stream = next((key for key, last in order["until"].items() if at[key] < last), None)
    if stream is None:
        return Plan()
    asked = journal.after({int(stream): at[stream]}).limit(CHUNK)
    changes = [c for c in await ctx.read(asked) if c.last <= order["until"][stream]]
    hook = await _hook(ctx, order["webhook"])
    everything = Target(
        hook.id, hook.user_id, hook.domain_id, hook.types, changes[0].at if changes else hook.since
    )
    rows = await rows_of(ctx.world, changes, [everything])
    return Plan((), (), (stream, changes[-1].last if changes else order["until"][stream], rows))


async def _hook(ctx: Context, key: int) -> Picked:
    asked = select(*picked(Webhook)).where(col(Webhook.id) == key)
    for row in await ctx.read(asked):
        return row
    raise NotFound(str(key), path=["webhook"])


async def step(
    ctx: Context,
    session: AsyncSession,
    order: dict[str, Any],
    checkpoint: dict[str, Any],
    held: Plan,
) -> Step:
    """Insert the prepared delivery rows and return the new checkpoint."""
    if held.made is None:
        return Step(checkpoint)
    stream, last, rows = held.made
    at = {**order["after"], **checkpoint}
    await (await session.connection()).run_sync(put, ctx.world.now(), rows)
    now = {**checkpoint, stream: last}
    more = any({**at, **now}[key] < last for key, last in order["until"].items())
    return Step(now, done=last - at[stream], more=more)
