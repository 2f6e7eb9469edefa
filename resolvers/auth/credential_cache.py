"""Credentials that were good a moment ago: asked of the store once, not by each request.

What ends is forgotten at once, here and in all processes that hear us. Tokens and keys are
remembered for `LONGEST` at most. One that was read longer ago than `FRESH` counts only if the
process has read, less than `FRESH` ago, what changed in the store
(models/auth/credential_changes.py).
So no process needs to hear another one, and what ends is refused within `FRESH`.

Times are compared by the clock of the world, which may be set, and by the time since the boot.
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
MOST = 10_000  # credentials remembered
MILLISECOND = timedelta(milliseconds=1)


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
    watched: bool = False  # the store notes whatever ends or narrows it
    read_at: int = field(default_factory=boot_time)  # milliseconds since the boot


@dataclass(frozen=True, slots=True)
class KeptChecks:
    """Results of the password checks of one sign-in, by a digest of stored hash and password."""

    results: dict[str, bool]
    at: datetime
    read_at: int = field(default_factory=boot_time)  # milliseconds since the boot


@dataclass(frozen=True, slots=True)
class Lookup:
    """A lookup of a credential that is under way."""

    task: "asyncio.Task[Known | None]"
    turn: int
    begun_at: int  # milliseconds since the boot


@dataclass
class Memory:
    """Credentials that were good a moment ago, and whose may not be remembered now."""

    known: dict[str, Known] = field(default_factory=dict)  # by digest, the oldest first
    quiet: dict[int, datetime] = field(default_factory=dict)  # by account; 0: the platform's
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    reaches: WeakValueDictionary[int, Reach] = field(default_factory=WeakValueDictionary)
    owned: dict[int, set[str]] = field(default_factory=dict)  # digests, by account
    turn: int = 0  # how often anything was dropped
    dropped: dict[int, int] = field(default_factory=dict)  # the turn, by account
    cleared: int = 0  # the turn when all were
    lookups: dict[str, Lookup] = field(default_factory=dict)  # by digest
    password_checks: dict[str, KeptChecks] = field(default_factory=dict)  # by digest
    changes: ChangeReader = field(default_factory=ChangeReader)
    reading: "asyncio.Task[None] | None" = None  # the changes
    certain_at: tuple[int, datetime] | None = None  # when they were last read, by both clocks
    life: timedelta | None = None  # of a token, when these were read
    salt: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    events: list[Any] = field(
        default_factory=list
    )  # that resolvers/auth/security_log.py has yet to write
    written: float = 0.0  # when it last did, by the clock of the loop

    def recall(self, digest: str, now: datetime) -> Known | None:
        """What was remembered, while it may be trusted and has not ended."""
        known = self.known.get(digest)
        if known is None or not is_recent(known, now, LONGEST if known.watched else FRESH):
            return None
        return known if known.ends_at is None or now < known.ends_at else None

    def keep(self, digest: str, known: Known, turn: int) -> None:
        """Remember it, unless one of its owners' has just ended: we may have read before.

        `turn` is the turn of the memory before it was read.
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
        """Forget what is theirs, and remember none until the unit around us has ended.

        Returns how many there were.
        """
        self.quiet = {
            owner: until for owner, until in self.quiet.items() if is_ahead(until, now, FRESH)
        }
        self.quiet |= dict.fromkeys(owners, now + FRESH)
        return self.forget(owners)

    def forget(self, owners: Collection[int]) -> int:
        """Forget what is theirs, also what is being read now. Returns how many there were."""
        self.turn += 1
        if len(self.dropped) + len(owners) > MOST:
            self.dropped.clear()
            self.cleared = self.turn  # what is being read may be theirs
        self.dropped |= dict.fromkeys(owners, self.turn)
        theirs = set[str]().union(*(self.owned.get(owner, ()) for owner in owners))
        for digest in theirs:
            self._remove(digest)
        return len(theirs)

    def clear(self) -> int:
        """Forget all; returns how many there were."""
        many = len(self.known)
        self.turn += 1
        self.cleared = self.turn
        self.known.clear()
        self.owned.clear()
        self.password_checks.clear()
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


def is_recent(known: Known | KeptChecks, now: datetime, most: timedelta) -> bool:
    """True if it was read less than `most` ago, by both clocks."""
    age = (boot_time() - known.read_at) * MILLISECOND
    return age < most and known.at <= now < known.at + most


async def recall(world: World, digest: str) -> Known | None:
    """Return what is remembered of a credential, if nothing has changed that may end it.

    Raises StoreUnavailable if that is not known and the store can't be read.
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
    """Forget what has changed in the store. False if that was done less than `FRESH` ago.

    Who comes while it is done waits for it, if it began less than `FRESH` ago.
    """
    arrived = boot_time()
    if memory.certain_at and memory.certain_at[1] > now - FRESH and _is_certain(memory, arrived):
        return False
    while True:
        if memory.reading is None:
            memory.reading = _apart(_changes_read(world, memory))
        await asyncio.shield(memory.reading)
        if _is_certain(memory, arrived):  # else it had begun long before
            return True


def _is_certain(memory: Memory, at: int) -> bool:
    """True if all changes are known that the store had `FRESH` before `at`."""
    return memory.certain_at is not None and (at - memory.certain_at[0]) * MILLISECOND < FRESH


async def _changes_read(world: World, memory: Memory) -> None:
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
    """Read a credential and remember it; once for all who ask for it at the same time."""
    memory = memory_of(world.database)
    running = memory.lookups.get(digest)
    if running is None or not _counts(running, memory):
        task = _apart(_looked_up(memory, digest, read))
        running = memory.lookups[digest] = Lookup(task, memory.turn, boot_time())
    return await asyncio.shield(running.task)


def _counts(lookup: Lookup, memory: Memory) -> bool:
    """True if nothing has ended since the lookup began, as far as is known."""
    return lookup.turn == memory.turn and (boot_time() - lookup.begun_at) * MILLISECOND < FRESH


async def _looked_up(
    memory: Memory, digest: str, read: Callable[[], Awaitable[Known | None]]
) -> Known | None:
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
    """Run it in a task of its own, which reads outside any transaction of a request."""

    async def run() -> Result:
        current_transaction.set(None)
        return await work

    task = asyncio.create_task(run())
    task.add_done_callback(_failure_read)
    return task


def _failure_read(task: "asyncio.Task[Any]") -> None:
    """Take note of a failure that nobody may be waiting for any more."""
    if not task.cancelled():
        task.exception()


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
