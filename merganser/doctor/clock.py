"""Check the clock of this machine."""

import ctypes
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import text

from merganser.doctor.findings import CheckName, Finding, action_finding, hint_finding, ok_finding
from merganser.errors import CommandError
from merganser.server import environment_factory
from merganser.settings.settings import Settings

EARLIEST_VALID_TIME = datetime(2025, 1, 1, tzinfo=UTC)
MAX_DIFFERENCE = timedelta(seconds=2)  # between this machine and that of PostgreSQL
TIMEX_SIZE = 512  # bytes; the structure `timex` has 208 on Linux of 64 bits
TIME_ERROR = 5  # the result of adjtimex(2) if the clock is not synchronized
CURE = "synchronize it by NTP, for example with chrony"


async def check_clock(settings: Settings) -> list[Finding]:
    """Check the time, its synchronization by NTP, and the difference from PostgreSQL's clock."""
    now = datetime.now(UTC)
    if now < EARLIEST_VALID_TIME:
        return action_finding(CheckName.CLOCK, now.isoformat(), "set the clock of this machine")
    difference = await _difference_from_postgres_or_none(settings)
    if difference is not None and abs(difference) > MAX_DIFFERENCE:
        seconds = f"{difference.total_seconds():+.1f} s"
        return action_finding(
            CheckName.CLOCK, f"the clock differs from that of PostgreSQL by {seconds}", CURE
        )
    if is_clock_synchronized_or_none() is False:
        return hint_finding(
            CheckName.CLOCK, f"{now.isoformat(timespec='seconds')}, not synchronized", CURE
        )
    return ok_finding(CheckName.CLOCK, now.isoformat(timespec="seconds"))


def is_clock_synchronized_or_none() -> bool | None:
    """True if the kernel reports a synchronized clock (adjtimex(2)). None if it is unknown."""
    adjtimex: Any = getattr(ctypes.CDLL(None), "adjtimex", None)
    if adjtimex is None:  # not Linux
        return None
    state: int = adjtimex(ctypes.create_string_buffer(TIMEX_SIZE))  # zeros: it changes nothing
    return None if state < 0 else state != TIME_ERROR


async def _difference_from_postgres_or_none(settings: Settings) -> timedelta | None:
    """Return this clock minus that of PostgreSQL. None for SQLite, and if it does not answer."""
    url = environment_factory.checked_database_url_without_password(settings)
    if url.get_backend_name() == "sqlite":
        return None
    async with environment_factory.open_database(settings) as store:
        try:
            with environment_factory.database_errors_as_command_errors(settings):
                async with store.engine.connect() as connection:
                    asked_at, began = datetime.now(UTC), time.monotonic()
                    result = await connection.execute(text("SELECT clock_timestamp()"))
                    postgres_time: datetime = result.scalar_one()
                    half_trip = timedelta(seconds=(time.monotonic() - began) / 2)
                    return asked_at + half_trip - postgres_time
        except CommandError:
            return None  # the check of the database reports why
