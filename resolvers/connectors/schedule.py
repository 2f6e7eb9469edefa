"""When connectors run, and the runs that wait."""

from datetime import datetime, timedelta

from models.connectors import ConnectorRun
from resolvers.context import Context

BACKOFF = 6  # times the interval, at most, after failures


def queued(
    ctx: Context, connector_id: int, user_id: int, key: int, *, trial: bool = False
) -> ConnectorRun:
    """A run that waits."""
    return ConnectorRun(
        id=key,
        connector_id=connector_id,
        user_id=user_id,
        trial=trial,
        created_at=ctx.world.now(),
    )


def next_at(now: datetime, interval: int | None, failures: int) -> datetime | None:
    """When a connector is due again: after failures later and later."""
    if interval is None:
        return None
    return now + timedelta(seconds=interval * min(2 ** max(failures - 1, 0), BACKOFF))
