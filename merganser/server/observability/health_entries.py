"""Log entries about the health of the server: each change, and a summary each minute."""

import asyncio
from collections.abc import Mapping
from time import monotonic

from graph.http.health import DATABASE, HealthCheck, run_health_checks
from models.logs.entries import LogComponent, LogLevel, NewLogEntry
from models.runtime.environment import Environment

CHECK_INTERVAL = 10.0  # seconds
SUMMARY_INTERVAL = 60.0  # seconds
SUMMARY_SERVICE = "all"


async def record_health_until_cancelled(
    environment: Environment, checks: Mapping[str, HealthCheck]
) -> None:
    """Run the checks, and that of the database, and record their changes and summaries."""
    all_checks = {**checks, DATABASE: _database_check(environment)}
    previous: dict[str, bool] = dict.fromkeys(all_checks, True)
    previous_count = len(all_checks)
    summary_at = monotonic()
    while True:
        results = await run_health_checks(all_checks)
        for name, is_healthy in results.items():
            if is_healthy is not previous[name]:
                record_health_log_entry(
                    environment, name, int(is_healthy), 1, 1 if is_healthy else -1
                )
        if monotonic() >= summary_at:
            count = sum(results.values())
            difference, previous_count = count - previous_count, count
            record_health_log_entry(environment, SUMMARY_SERVICE, count, len(results), difference)
            summary_at += SUMMARY_INTERVAL
        previous = results
        await asyncio.sleep(CHECK_INTERVAL)


def record_health_log_entry(
    environment: Environment,
    service: str,
    healthy_count: int,
    check_count: int,
    healthy_count_change: int,
) -> None:
    """Record that this number of checks of a service are healthy."""
    fields = {
        "type": "health",
        "service": service,
        "levelPercent": 100 * healthy_count // check_count,
        "healthy": healthy_count,
        "total": check_count,
        "difference": healthy_count_change,
    }
    level = LogLevel.INFO if healthy_count == check_count else LogLevel.ERROR
    text = f"{service}: {healthy_count} of {check_count} checks are healthy"
    environment.logs.enqueue_or_drop_entry(
        NewLogEntry(environment.now(), LogComponent.HEALTH, level, __name__, text, fields)
    )


def _database_check(environment: Environment) -> HealthCheck:
    async def is_database_readable() -> bool:
        await environment.database.ping()
        return True

    return is_database_readable
