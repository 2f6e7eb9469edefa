"""Credentials that were good a moment ago: asked of the store once, not by each request.

For `FRESH` a credential stays good here when another process ends it. What ends in this
process is forgotten at once.
"""

import asyncio
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache

from models.database import Database
from resolvers.context import Viewer

FRESH = timedelta(seconds=5)
MOST = 10_000  # credentials remembered


@dataclass(slots=True)
class Known:
    """A credential, as the store had it at `at`."""

    viewer: Viewer  # who learns only of the end that no use puts off
    at: datetime
    used_at: datetime | None
    ends_at: datetime | None
    idle: timedelta | None = None  # of a token: each use puts the end off by this


@dataclass
class Memory:
    """Credentials that were good a moment ago, and whose may not be remembered now."""

    known: dict[str, Known] = field(default_factory=dict)  # by digest, the oldest first
    quiet: dict[int, datetime] = field(default_factory=dict)  # by user; 0: the platform's
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def recall(self, digest: str, now: datetime) -> Known | None:
        """What was remembered, while it is fresh and has not ended."""
        known = self.known.get(digest)
        if known and known.at <= now < known.at + FRESH:
            return known if known.ends_at is None or now < known.ends_at else None
        return None

    def keep(self, digest: str, known: Known) -> None:
        """Remember it, unless one of its owner's has just ended: we may have read before."""
        self.known.pop(digest, None)
        if self.quiet.get(known.viewer.user_id, known.at) > known.at:
            return
        if len(self.known) >= MOST:
            del self.known[next(iter(self.known))]
        self.known[digest] = known

    def drop(self, user_id: int, now: datetime) -> None:
        """Forget what is this user's, and remember none until the unit around us has ended."""
        self.quiet = {user: until for user, until in self.quiet.items() if until > now}
        self.quiet[user_id] = now + FRESH
        for digest in [d for d, known in self.known.items() if known.viewer.user_id == user_id]:
            del self.known[digest]


@lru_cache(maxsize=4)
def memory_of(_database: Database) -> Memory:
    """The memory of what this store said."""
    return Memory()
