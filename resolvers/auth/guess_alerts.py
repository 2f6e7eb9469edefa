"""Alerts to users about attempts to guess their password."""

from datetime import timedelta

from sqlalchemy import select
from sqlmodel import col

from models.auth.security_log import AuthEvent
from resolvers.auth import security_log
from resolvers.auth.security_log import Event
from resolvers.context import Context

ACTION = "password guessing"  # its name in the security log
PAUSE = timedelta(days=1)  # between two messages to an account


async def report(ctx: Context, user_id: int) -> None:
    """Write to the security log that a limit of wrong passwords was reached.

    Queues a message to the user, at most one a day.
    """
    async with ctx.fresh().write(user_id) as session:
        connection = await session.connection()
        lately = select(col(AuthEvent.id)).where(
            col(AuthEvent.user_id) == user_id,
            col(AuthEvent.action) == ACTION,
            col(AuthEvent.last_at) > ctx.world.now() - PAUSE,
        )
        told = (await connection.execute(lately.limit(1))).first()
        event = Event(ACTION, user_id, "fail")
        await security_log.note(ctx, session, event)
        if told is None:
            await security_log.queue_letter(ctx, session, event)
