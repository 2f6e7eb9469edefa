"""Schedule connectors: queued runs, and the time of the next run."""

from datetime import datetime, timedelta

from models.connectors import ConnectorRun
from resolvers.context import Context

MAX_BACKOFF_FACTOR = 6  # of the interval, after failures


def new_queued_run(
    ctx: Context, connector_id: int, user_id: int, run_id: int, *, is_dry_run: bool = False
) -> ConnectorRun:
    """Return a new run in the state QUEUED; the caller stores it."""
    return ConnectorRun(
        id=run_id,
        connector_id=connector_id,
        user_id=user_id,
        dry_run=is_dry_run,
        created_at=ctx.environment.now(),
    )


def next_run_time(now: datetime, interval: int | None, failure_count: int) -> datetime | None:
    """Return when a connector is due again: each failure doubles the interval, up to six times.

    Returns None if there is no interval, which is in seconds.
    """
    if interval is None:
        return None
    return now + timedelta(
        seconds=interval * min(2 ** max(failure_count - 1, 0), MAX_BACKOFF_FACTOR)
    )
