"""Cache of access tokens and API keys that were valid a moment ago.

Credentials that end are dropped at once, in this process and in all processes that follow its
wake-ups. An entry lives for `MAX_AGE` at most. An entry that was read longer ago than
`RECHECK_AFTER` is used only if this process has read the credential changes of the database
(models/auth/credential_changes.py) within `RECHECK_AFTER`. So an ended credential is refused within
`RECHECK_AFTER`, even if a wake-up is lost.

Ages are compared by the clock of the environment, which can be set, and by the time since boot.
"""

import asyncio
import hashlib
import hmac
import logging
import secrets
from collections.abc import Awaitable, Callable, Collection, Coroutine
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from models.auth.credential_changes import ChangeReader
from models.runtime.clock_steps import is_ahead
from models.runtime.environment import World
from models.runtime.registration import boot_time
from models.store.database import Database, current_transaction
from resolvers.context import Reach, Viewer

log = logging.getLogger(__name__)

Result = TypeVar("Result")

FRESH = timedelta(seconds=1)
LONGEST = timedelta(seconds=60)
MOST = 10_000  # of the cache
MILLISECOND = timedelta(milliseconds=1)


@dataclass(slots=True)
class Known:
    """A valid credential as the database had it at `read_at_time`."""

    viewer: Viewer  # its `expires_at` is the end that no use moves
    at: datetime
    used_at: datetime | None
    ends_at: datetime | None
    idle: timedelta | None = None  # of a token: each use moves the end to this time from now
    owners: tuple[int, ...] = (0,)  # users it ends with; 0: a key of the platform
    networks: tuple[str, ...] = ()  # it is valid from these only; empty: from everywhere
    watched: bool = False  # the credential changes list each change that ends or narrows it
    read_at: int = field(default_factory=boot_time)  # milliseconds since the boot


@dataclass(frozen=True, slots=True)
class KeptChecks:
    """Results of the password checks of one sign-in, by a digest of stored hash and password."""

    results: dict[str, bool]
    at: datetime
    read_at: int = field(default_factory=boot_time)  # milliseconds since the boot


@dataclass(frozen=True, slots=True)
class Lookup:
    """A database lookup of a credential that is running."""

    task: "asyncio.Task[Known | None]"
    turn: int
    begun_at: int  # milliseconds since the boot


@dataclass
class Memory:
    """Cache of the valid credentials of one database."""

    known: dict[str, Known] = field(default_factory=dict)  # by digest, oldest first
    # by user id (0: keys of the platform): what was read before this time is not cached
    quiet: dict[int, datetime] = field(default_factory=dict)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    reaches: WeakValueDictionary[int, Reach] = field(default_factory=WeakValueDictionary)
    owned: dict[int, set[str]] = field(default_factory=dict)  # digests by user id
    turn: int = 0  # rises with each drop
    dropped: dict[int, int] = field(
        default_factory=dict
    )  # `drop_count` of the last drop, by user id
    cleared: int = 0  # `drop_count` when all were dropped
    lookups: dict[str, Lookup] = field(default_factory=dict)  # by digest
    password_checks: dict[str, KeptChecks] = field(default_factory=dict)  # by digest
    changes: ChangeReader = field(default_factory=ChangeReader)
    reading: "asyncio.Task[None] | None" = None
    # when the changes were last read: milliseconds since boot, and clock time
    certain_at: tuple[int, datetime] | None = None
    life: timedelta | None = None  # the setting that the entries were read under
    salt: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    events: list[Any] = field(
        default_factory=list
    )  # not yet written by resolvers/auth/security_log.py
    written: float = 0.0  # seconds on the clock of the event loop

    def recall(self, digest: str, now: datetime) -> Known | None:
        """Return the credential if its age is below the limit and it has not expired; else None."""
        known = self.known.get(digest)
        if known is None or not is_recent(known, now, LONGEST if known.watched else FRESH):
            return None
        return known if known.ends_at is None or now < known.ends_at else None

    def keep(self, digest: str, known: Known, turn: int) -> None:
        """Cache a credential, unless credentials of its owners were dropped since it was read.

        `drop_count` is that of the cache before the credential was read.
        """
        self._remove(digest)
        if self.cleared > turn or any(
            self.quiet.get(owner, known.at) > known.at or self.dropped.get(owner, 0) > turn
            for owner in known.owners
        ):
            return
        if len(self.known) >= MOST:
            self._remove(next(iter(self.known)))
        self.known[digest] = known
        for owner in known.owners:
            self.owned.setdefault(owner, set()).add(digest)

    def _remove(self, digest: str) -> None:
        known = self.known.pop(digest, None)
        for owner in known.owners if known else ():
            theirs = self.owned.get(owner, set())
            theirs.discard(digest)
            if not theirs:
                self.owned.pop(owner, None)

    def drop(self, owners: Collection[int], now: datetime) -> int:
        """Drop the credentials of these users, and cache none until the transaction has ended.

        Returns the number of entries dropped. The pause lasts `RECHECK_AFTER`, since a read that
        began before the commit still finds the old credential.
        """
        self.quiet = {
            owner: until for owner, until in self.quiet.items() if is_ahead(until, now, FRESH)
        }
        self.quiet |= dict.fromkeys(owners, now + FRESH)
        return self.forget(owners)

    def forget(self, owners: Collection[int]) -> int:
        """Drop the credentials of these users, also those that are being read.

        Return their number.
        """
        self.turn += 1
        if len(self.dropped) + len(owners) > MOST:
            self.dropped.clear()
            self.cleared = self.turn  # a running lookup may be of one of them
        self.dropped |= dict.fromkeys(owners, self.turn)
        theirs = set[str]().union(*(self.owned.get(owner, ()) for owner in owners))
        for digest in theirs:
            self._remove(digest)
        return len(theirs)

    def clear(self) -> int:
        """Drop all entries and return their number."""
        many = len(self.known)
        self.turn += 1
        self.cleared = self.turn
        self.known.clear()
        self.owned.clear()
        self.password_checks.clear()
        return many

    def reach(self, user_id: int, *, shared: bool) -> Reach:
        """Update and return the share visibility of a user."""
        known = self.reaches.get(user_id)
        if known is None:
            known = self.reaches[user_id] = Reach()
        known.shared = shared
        return known

    def keyed(self, text: str) -> str:
        """Return the HMAC of a password under a salt that only this process knows."""
        return hmac.digest(self.salt, text.encode(errors="surrogatepass"), hashlib.sha256).hex()

    def behind(self, work: Coroutine[Any, Any, object]) -> None:
        """Run a coroutine as a background task, so that the request does not wait for it.

        Errors are logged.
        """
        task = asyncio.create_task(_done(work))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


def is_recent(known: Known | KeptChecks, now: datetime, most: timedelta) -> bool:
    """True if the entry was read less than `max_age` ago, by both clocks."""
    age = (boot_time() - known.read_at) * MILLISECOND
    return age < most and known.at <= now < known.at + most


async def recall(world: World, digest: str) -> Known | None:
    """Return a cached credential if no change is known that may end it; else None.

    Reads the credential changes first if the entry is older than `RECHECK_AFTER`. Raises
    StoreUnavailable if the database can't be read for that.
    """
    memory, now = memory_of(world.database), world.now()
    if memory.life != world.options.token_life:
        memory.clear()
        memory.life = world.options.token_life
    known = memory.recall(digest, now)
    if known is None or is_recent(known, now, FRESH):
        return known
    if await read_changes(world, memory, now):
        return memory.recall(digest, world.now())
    return known


async def read_changes(world: World, memory: Memory, now: datetime) -> bool:
    """Read the credential changes of the database and drop the credentials that they end.

    Returns False if the changes were read less than `RECHECK_AFTER` ago. Concurrent calls share one
    read.
    """
    arrived = boot_time()
    if memory.certain_at and memory.certain_at[1] > now - FRESH and _is_certain(memory, arrived):
        return False
    while True:
        if memory.reading is None:
            memory.reading = _apart(_changes_read(world, memory))
        await asyncio.shield(memory.reading)
        if _is_certain(memory, arrived):  # else the shared read had begun too early
            return True


def _is_certain(memory: Memory, at: int) -> bool:
    """True if the changes were read less than `RECHECK_AFTER` before this time since boot."""
    return memory.certain_at is not None and (at - memory.certain_at[0]) * MILLISECOND < FRESH


async def _changes_read(world: World, memory: Memory) -> None:
    """Read the credential changes and drop the credentials of the users they name."""
    try:
        began = boot_time(), world.now()
        statement, given = memory.changes.statement(world.database.dialect)
        rows = await world.database.find(statement, given)
        changed = memory.changes.accounts(rows)
        if changed is None:
            memory.clear()
        elif changed:
            memory.forget(changed)
        memory.certain_at = began
    finally:
        memory.reading = None


async def look_up(
    world: World, digest: str, read: Callable[[], Awaitable[Known | None]]
) -> Known | None:
    """Read a credential with `read` and cache it. Concurrent calls for one digest share one read.

    Returns None if `read` finds no valid credential.
    """
    memory = memory_of(world.database)
    running = memory.lookups.get(digest)
    if running is None or not _counts(running, memory):
        task = _apart(_looked_up(memory, digest, read))
        running = memory.lookups[digest] = Lookup(task, memory.turn, boot_time())
    return await asyncio.shield(running.task)


def _counts(lookup: Lookup, memory: Memory) -> bool:
    """True if no credential is known to have ended since the lookup began."""
    return lookup.turn == memory.turn and (boot_time() - lookup.begun_at) * MILLISECOND < FRESH


async def _looked_up(
    memory: Memory, digest: str, read: Callable[[], Awaitable[Known | None]]
) -> Known | None:
    """Run the read of a shared lookup and cache its result."""
    turn, began = memory.turn, boot_time()
    try:
        found = await read()
        if found:
            found.watched, found.read_at = True, began
            memory.keep(digest, found, turn)
        return found
    finally:
        running = memory.lookups.get(digest)
        if running and running.task is asyncio.current_task():
            del memory.lookups[digest]


def _apart(work: Coroutine[Any, Any, Result]) -> "asyncio.Task[Result]":
    """Run a coroutine in its own task, which reads outside any transaction of a request."""

    async def run() -> Result:
        current_transaction.set(None)
        return await work

    task = asyncio.create_task(run())
    task.add_done_callback(_failure_read)
    return task


def _failure_read(task: "asyncio.Task[Any]") -> None:
    """Retrieve the exception of a task, which may have no waiter left."""
    if not task.cancelled():
        task.exception()


async def _done(work: Coroutine[Any, Any, object]) -> None:
    """Await a background coroutine and log its exception."""
    try:
        await work
    except Exception:  # a background task has no waiter; the next request tries again
        log.exception("what was to be noted behind an answer was not")


@lru_cache(maxsize=4)
def memory_of(_database: Database) -> Memory:
    """Return the credential cache of this database."""
    return Memory()


def forget(world: World, *user_ids: int) -> None:
    """Drop these users' credentials from the caches of all processes; 0: the keys of the platform.

    Call it directly after each transaction that ends or narrows credentials.
    """
    memory_of(world.database).drop(user_ids, world.now())
    world.wakeups.recall(user_ids)


def guard(world: World) -> None:
    """Register with the wake-ups, so that drops in other processes also clear this cache."""

    def recalled(account: int | None) -> None:
        memory = memory_of(world.database)
        if account is None:
            memory.clear()
        else:
            memory.drop([account], world.now())

    world.wakeups.guard(recalled)


def turn(world: World) -> int:
    """Return a number that changes when credentials were ended or narrowed in this process."""
    return memory_of(world.database).turn


def widen(world: World, user_id: int) -> None:
    """Make mail that is shared with this user visible to the user's viewers in all processes."""
    if known := memory_of(world.database).reaches.get(user_id):
        known.shared = True
    world.wakeups.recall([user_id])


async def settle(world: World) -> None:
    """Wait for the background tasks that record uses. Call it before the database is closed."""
    while tasks := memory_of(world.database).tasks:
        await asyncio.gather(*tasks)
