"""The interface of the log stores (sqlite_store.py, postgres_store.py)."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from models.logs.entries import LogConditions, LogRow, StorableLogEntry

MAX_COUNT = 10_000  # entries; a list with more counts as long
# Of the clocks of several nodes, and of an entry that waits: an entry is stored with an id that is
# at most this much later than its time.
MAX_ID_DELAY = timedelta(minutes=15)


@dataclass(frozen=True, slots=True)
class LogLimits:
    """How much the log store keeps."""

    retention: timedelta
    max_size: int  # bytes
    now: datetime

    @property
    def oldest_kept(self) -> datetime:
        """The time of the oldest entries that are kept."""
        return self.now - self.retention


@dataclass(frozen=True, slots=True)
class LogPageKey:
    """Which entries of a list to read: after or before an id, in either direction."""

    limit: int
    is_descending: bool = True
    above_id: int | None = None  # exclusive
    below_id: int | None = None  # exclusive


class LogStoreFull(Exception):
    """The log store has its largest size, and no older entries that can be deleted."""


class LogStore(Protocol):
    """Entries of all processes of a platform.

    The synchronous methods are called by the thread of models/logs/recorder.py only.
    """

    def write_entries_unless_full(
        self, entries: Sequence[StorableLogEntry], limits: LogLimits
    ) -> None:
        """Store entries with ascending ids, and delete the oldest ones beyond the limits.

        Raises LogStoreFull or an error of the driver if nothing was stored.
        """

    def load_domain_ids_of_users(self, user_ids: Collection[int]) -> Mapping[int, int]:
        """Return the domains of users, without administrators and users without a domain."""

    def sync_to_disk(self) -> None:
        """Wait until what `write_entries_unless_full` has stored survives a power cut."""

    def close_writer(self) -> None:
        """Close the connection that writes."""

    async def read_rows(self, conditions: LogConditions, page_key: LogPageKey) -> list[LogRow]:
        """Read entries in the order of their ids."""

    async def count_rows(self, conditions: LogConditions) -> int:
        """Count entries, up to MAX_COUNT."""

    async def load_last_id(self) -> int:
        """Return the id of the entry that was stored last; 0 if there is none."""

    async def close(self) -> None:
        """Close the connections that read."""
