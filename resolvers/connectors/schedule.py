"""Schedule connectors: queued runs, and the time of the next run."""

from datetime import datetime, timedelta

from models.connectors import ConnectorRun
from resolvers.context import Context

BACKOFF = 6  # of the interval, after failures


def queued(
    ctx: Context, connector_id: int, user_id: int, key: int, *, trial: bool = False
) -> ConnectorRun:
    """Return a new run in the state QUEUED; the caller stores it."""
    return ConnectorRun(
        id=key,
        connector_id=connector_id,
        user_id=user_id,
        trial=trial,
        created_at=ctx.world.now(),
    )


def next_at(now: datetime, interval: int | None, failures: int) -> datetime | None:
    """Return when a connector is due again: each failure doubles the interval, up to six times.

    Returns None if there is no interval, which is in seconds.
    """
    if interval is None:
        return None
    return now + timedelta(seconds=interval * min(2 ** max(failures - 1, 0), BACKOFF))
