"""Credentials that were good a moment ago: asked of the store once, not by each request.

What ends is forgotten at once, here and in all processes that hear us. Where one does not, a
credential stays good for `FRESH`.
"""

import asyncio
import hashlib
import hmac
import logging
import secrets
from collections.abc import Collection, Coroutine
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any
from weakref import WeakValueDictionary

from models.database import Database
from models.runtime.clock_steps import is_ahead
from models.world import World
from resolvers.context import Reach, Viewer

log = logging.getLogger(__name__)

FRESH = timedelta(seconds=1)
MOST = 10_000  # credentials remembered


@dataclass(slots=True)
class Known:
    """A credential, as the store had it at `at`."""

    viewer: Viewer  # who learns only of the end that no use puts off
    at: datetime
    used_at: datetime | None
    ends_at: datetime | None
    idle: timedelta | None = None  # of a token: each use puts the end off by this
    owners: tuple[int, ...] = (0,)  # accounts it ends with; 0: the platform's
    networks: tuple[str, ...] = ()  # it is good from these alone; none: from everywhere


@dataclass
class Memory:
    """Credentials that were good a moment ago, and whose may not be remembered now."""

    known: dict[str, Known] = field(default_factory=dict)  # by digest, the oldest first
    quiet: dict[int, datetime] = field(default_factory=dict)  # by account; 0: the platform's
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    reaches: WeakValueDictionary[int, Reach] = field(default_factory=WeakValueDictionary)
    turn: int = 0  # how often anything was dropped
    salt: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    events: list[Any] = field(default_factory=list)  # that resolvers/authlog.py has yet to write
    written: float = 0.0  # when it last did, by the clock of the loop

    def recall(self, digest: str, now: datetime) -> Known | None:
        """What was remembered, while it is fresh and has not ended."""
        known = self.known.get(digest)
        if known and known.at <= now < known.at + FRESH:
            return known if known.ends_at is None or now < known.ends_at else None
        return None

    def keep(self, digest: str, known: Known) -> None:
        """Remember it, unless one of its owners' has just ended: we may have read before."""
        self.known.pop(digest, None)
        if any(self.quiet.get(owner, known.at) > known.at for owner in known.owners):
            return
        if len(self.known) >= MOST:
            del self.known[next(iter(self.known))]
        self.known[digest] = known

    def drop(self, owners: Collection[int], now: datetime) -> int:
        """Forget what is theirs, and remember none until the unit around us has ended.

        Returns how many there were.
        """
        self.turn += 1
        self.quiet = {
            owner: until for owner, until in self.quiet.items() if is_ahead(until, now, FRESH)
        }
        self.quiet |= dict.fromkeys(owners, now + FRESH)
        theirs = [d for d, known in self.known.items() if not set(owners).isdisjoint(known.owners)]
        for digest in theirs:
            del self.known[digest]
        return len(theirs)

    def clear(self) -> int:
        """Forget all; returns how many there were."""
        many = len(self.known)
        self.known.clear()
        return many

    def reach(self, user_id: int, *, shared: bool) -> Reach:
        """The reach of an account, which the store has just told."""
        known = self.reaches.get(user_id)
        if known is None:
            known = self.reaches[user_id] = Reach()
        known.shared = shared
        return known

    def keyed(self, text: str) -> str:
        """What a password is remembered by: worth nothing without the salt of this process."""
        return hmac.digest(self.salt, text.encode(errors="surrogatepass"), hashlib.sha256).hex()

    def behind(self, work: Coroutine[Any, Any, object]) -> None:
        """Do this behind the back of the request, which does not wait for it."""
        task = asyncio.create_task(_done(work))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


async def _done(work: Coroutine[Any, Any, object]) -> None:
    try:
        await work
    except Exception:  # the edge of a task: nobody waits for it, and the next one tries again
        log.exception("what was to be noted behind an answer was not")


@lru_cache(maxsize=4)
def memory_of(_database: Database) -> Memory:
    """The memory of what this store said."""
    return Memory()


def forget(world: World, *user_ids: int) -> None:
    """Ask the store again about these users' credentials; 0: about those of no user.

    Whoever ends or narrows credentials calls this, right behind the unit that did it.
    """
    memory_of(world.database).drop(user_ids, world.now())
    world.wakeups.recall(user_ids)


def guard(world: World) -> None:
    """From now on forget what others recall."""

    def recalled(account: int | None) -> None:
        memory = memory_of(world.database)
        if account is None:
            memory.clear()
        else:
            memory.drop([account], world.now())

    world.wakeups.guard(recalled)


def turn(world: World) -> int:
    """Another number than before where credentials were ended or narrowed in this process."""
    return memory_of(world.database).turn


def widen(world: World, user_id: int) -> None:
    """Whoever is this account sees from now on what is shared with it."""
    if known := memory_of(world.database).reaches.get(user_id):
        known.shared = True
    world.wakeups.recall([user_id])


async def settle(world: World) -> None:
    """Wait until all uses are noted: before the store is closed."""
    while tasks := memory_of(world.database).tasks:
        await asyncio.gather(*tasks)
