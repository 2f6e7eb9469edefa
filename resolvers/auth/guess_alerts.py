"""Alerts to users about attempts to guess their password."""

from datetime import timedelta

from sqlalchemy import select
from sqlmodel import col

from models.auth.security_log import SecurityEvent, SecurityEventAction, SecurityEventResult
from resolvers.auth import security_log
from resolvers.auth.security_event_rows import NewSecurityEvent
from resolvers.context import Context

GUESSING_ACTION = SecurityEventAction.PASSWORD_GUESSING_DETECTED  # its name in the security log
MESSAGE_INTERVAL = timedelta(days=1)  # between two messages to an account


async def log_guessing_and_alert_user(ctx: Context, user_id: int) -> None:
    """Write to the security log that a limit of wrong passwords was reached.

    Queues a message to the user, at most one a day.
    """
    async with ctx.fresh_copy().write_session(user_id) as session:
        connection = await session.connection()
        recent_reports = select(col(SecurityEvent.id)).where(
            col(SecurityEvent.user_id) == user_id,
            col(SecurityEvent.action) == GUESSING_ACTION,
            col(SecurityEvent.last_at) > ctx.environment.now() - MESSAGE_INTERVAL,
        )
        recent_report = (await connection.execute(recent_reports.limit(1))).first()
        event = NewSecurityEvent(GUESSING_ACTION, user_id, SecurityEventResult.FAILURE)
        await security_log.log_event_and_queue_notice(ctx, session, event)
        if recent_report is None:
            await security_log.queue_message_to_user(ctx, session, event)
