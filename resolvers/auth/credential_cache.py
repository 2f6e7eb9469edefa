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

from models.auth.credential_changes import CredentialChangeReader
from models.runtime.clock_steps import is_plausible_wait_running
from models.runtime.environment import Environment
from models.runtime.registration import milliseconds_since_boot
from models.store.database import Database, current_transaction
from resolvers.viewer import ShareVisibility, Viewer

log = logging.getLogger(__name__)

Result = TypeVar("Result")

RECHECK_AFTER = timedelta(seconds=1)
MAX_AGE = timedelta(seconds=60)
MAX_ENTRIES = 10_000  # of the cache
MILLISECOND = timedelta(milliseconds=1)


@dataclass(slots=True)
class CachedCredential:
    """A valid credential as the database had it at `read_at_time`."""

    viewer: Viewer  # its `expires_at` is the end that no use moves
    read_at_time: datetime
    used_at: datetime | None
    expires_at: datetime | None
    idle_lifetime: timedelta | None = (
        None  # of a token: each use moves the end to this time from now
    )
    owner_ids: tuple[int, ...] = (0,)  # users it ends with; 0: a key of the platform
    is_in_change_list: bool = (
        False  # the credential changes list each change that ends or narrows it
    )
    # milliseconds since the boot
    read_at_boot_ms: int = field(default_factory=milliseconds_since_boot)
    last_hit_at: datetime | None = None  # last use of the cached credential


@dataclass(frozen=True, slots=True)
class UnwrittenTokenUse:
    """A use of an access token or API key that is being written to the database."""

    owner_id: int  # 0: a key of the platform
    used_at: datetime


@dataclass(slots=True)
class CachedPasswordChecks:
    """Results of the password checks of one sign-in, by a digest of stored hash and password."""

    results: dict[str, bool]
    owner_id: int  # user who has signed in
    read_at_time: datetime
    # milliseconds since the boot
    read_at_boot_ms: int = field(default_factory=milliseconds_since_boot)
    last_hit_at: datetime | None = None  # last use of one of the results


@dataclass(frozen=True, slots=True)
class CredentialLookup:
    """A database lookup of a credential that is running."""

    task: "asyncio.Task[CachedCredential | None]"
    drop_count: int
    begun_at_boot_ms: int  # milliseconds since the boot


@dataclass
class CredentialCache:
    """Cache of the valid credentials of one database."""

    # by digest, oldest first
    credentials: dict[str, CachedCredential] = field(default_factory=dict)
    # by user id (0: keys of the platform): what was read before this time is not cached
    not_cached_until: dict[int, datetime] = field(default_factory=dict)
    background_tasks: set[asyncio.Task[bool]] = field(default_factory=set)
    background_writes: set[asyncio.Task[bool]] = field(default_factory=set)  # of these tasks
    share_visibilities: WeakValueDictionary[int, ShareVisibility] = field(
        default_factory=WeakValueDictionary
    )
    digests_of_owners: dict[int, set[str]] = field(default_factory=dict)  # digests by user id
    drop_count: int = 0  # rises with each drop
    # `drop_count` of the last drop, by user id
    last_drops: dict[int, int] = field(default_factory=dict)
    last_clear: int = 0  # `drop_count` when all were dropped
    lookups: dict[str, CredentialLookup] = field(default_factory=dict)  # by digest
    password_checks: dict[str, CachedPasswordChecks] = field(default_factory=dict)  # by digest
    change_reader: CredentialChangeReader = field(default_factory=CredentialChangeReader)
    reading_changes: "asyncio.Task[None] | None" = None
    # when the changes were last read: milliseconds since boot, and clock time
    changes_read_at: tuple[int, datetime] | None = None
    tokens_max_age: timedelta | None = None  # the setting that the entries were read under
    salt: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    # not yet written by resolvers/auth/security_log.py
    unwritten_events: list[Any] = field(default_factory=list)
    events_written_at: float = 0.0  # seconds on the clock of the event loop
    # by a number of the write
    unwritten_uses: dict[int, UnwrittenTokenUse] = field(default_factory=dict)
    failed_write_count: int = 0  # background writes that raised an error

    def get(self, digest: str, now: datetime) -> CachedCredential | None:
        """Return the credential if its age is below the limit and it has not expired; else None."""
        credential = self.credentials.get(digest)
        if credential is None or not is_recent(
            credential, now, MAX_AGE if credential.is_in_change_list else RECHECK_AFTER
        ):
            return None
        if credential.expires_at is not None and now >= credential.expires_at:
            return None
        credential.last_hit_at = now
        return credential

    def add_unless_dropped(
        self, digest: str, credential: CachedCredential, drop_count_before_read: int
    ) -> None:
        """Cache a credential, unless credentials of its owners were dropped since it was read.

        `drop_count_before_read` is the cache's `drop_count` before the credential was read.
        """
        self._remove(digest)
        if self.last_clear > drop_count_before_read or any(
            self.not_cached_until.get(owner, credential.read_at_time) > credential.read_at_time
            or self.last_drops.get(owner, 0) > drop_count_before_read
            for owner in credential.owner_ids
        ):
            return
        if len(self.credentials) >= MAX_ENTRIES:
            self._remove(next(iter(self.credentials)))
        self.credentials[digest] = credential
        for owner in credential.owner_ids:
            self.digests_of_owners.setdefault(owner, set()).add(digest)

    def _remove(self, digest: str) -> None:
        credential = self.credentials.pop(digest, None)
        for owner in credential.owner_ids if credential else ():
            owner_digests = self.digests_of_owners.get(owner, set())
            owner_digests.discard(digest)
            if not owner_digests:
                self.digests_of_owners.pop(owner, None)

    def drop_owners_and_pause_caching(self, user_ids: Collection[int], now: datetime) -> int:
        """Drop the credentials of these users, and cache none until the transaction has ended.

        Returns the number of entries dropped. The pause lasts `RECHECK_AFTER`, since a read that
        began before the commit still finds the old credential.
        """
        self.not_cached_until = {
            owner: until
            for owner, until in self.not_cached_until.items()
            if is_plausible_wait_running(until, now, RECHECK_AFTER)
        }
        self.not_cached_until |= dict.fromkeys(user_ids, now + RECHECK_AFTER)
        return self.drop_credentials_of_owners_and_count(user_ids)

    def drop_credentials_of_owners_and_count(self, user_ids: Collection[int]) -> int:
        """Drop the credentials of these users, also those that are being read.

        Return their number.
        """
        self.drop_count += 1
        if len(self.last_drops) + len(user_ids) > MAX_ENTRIES:
            self.last_drops.clear()
            self.last_clear = self.drop_count  # a running lookup may be of one of them
        self.last_drops |= dict.fromkeys(user_ids, self.drop_count)
        dropped_digests = set[str]().union(
            *(self.digests_of_owners.get(owner, ()) for owner in user_ids)
        )
        for digest in dropped_digests:
            self._remove(digest)
        return len(dropped_digests)

    def drop_digest(self, digest: str) -> None:
        """Drop the credential with this digest. It can be cached again at once."""
        self._remove(digest)

    def clear_and_count(self) -> int:
        """Drop all entries and return their number."""
        count = len(self.credentials)
        self.drop_count += 1
        self.last_clear = self.drop_count
        self.credentials.clear()
        self.digests_of_owners.clear()
        self.password_checks.clear()
        return count

    def update_share_visibility(
        self, user_id: int, *, has_shared_mailboxes: bool
    ) -> ShareVisibility:
        """Update and return the share visibility of a user."""
        visibility = self.share_visibilities.get(user_id)
        if visibility is None:
            visibility = self.share_visibilities[user_id] = ShareVisibility()
        visibility.has_shared_mailboxes = has_shared_mailboxes
        return visibility

    def password_digest(self, text: str) -> str:
        """Return the HMAC of a password under a salt that only this process knows."""
        return hmac.digest(self.salt, text.encode(errors="surrogatepass"), hashlib.sha256).hex()

    def run_in_background(self, coroutine: Coroutine[Any, Any, object]) -> None:
        """Run a coroutine as a background task, so that the request does not wait for it.

        Errors are logged.
        """
        self._start_task(coroutine)

    def write_in_background(self, coroutine: Coroutine[Any, Any, object]) -> None:
        """Run a coroutine that writes data, as `run_in_background`. `cacheFlush` waits for it.

        Errors are also counted.
        """
        task = self._start_task(coroutine)
        self.background_writes.add(task)
        task.add_done_callback(self._note_end_of_write)

    def _start_task(self, coroutine: Coroutine[Any, Any, object]) -> asyncio.Task[bool]:
        task = asyncio.create_task(self._try_run_and_log_errors(coroutine))
        self.background_tasks.add(task)
        task.add_done_callback(self.background_tasks.discard)
        return task

    def _note_end_of_write(self, task: "asyncio.Task[bool]") -> None:
        self.background_writes.discard(task)
        if task.cancelled() or not task.result():
            self.failed_write_count += 1

    async def _try_run_and_log_errors(self, coroutine: Coroutine[Any, Any, object]) -> bool:
        """Return False if the coroutine raised an error."""
        try:
            await coroutine
        except Exception:  # a background task has no waiter; the next request tries again
            log.exception("Background task after a response failed")
            return False
        return True

    async def await_token_use_write_and_track(
        self, owner_id: int, used_at: datetime, recording: Coroutine[Any, Any, object]
    ) -> None:
        """Await a coroutine that writes a use, which is listed as unwritten until then."""
        number = id(recording)
        self.unwritten_uses[number] = UnwrittenTokenUse(owner_id, used_at)
        try:
            await recording
        finally:
            del self.unwritten_uses[number]

    async def wait_for_started_writes(self) -> None:
        """Wait for the background writes that have been started before this call."""
        if tasks := list(self.background_writes):
            await asyncio.wait(tasks)
            await asyncio.sleep(0)  # the failed ones are counted


def is_recent(
    entry: CachedCredential | CachedPasswordChecks, now: datetime, max_age: timedelta
) -> bool:
    """True if the entry was read less than `max_age` ago, by both clocks."""
    age = (milliseconds_since_boot() - entry.read_at_boot_ms) * MILLISECOND
    return age < max_age and entry.read_at_time <= now < entry.read_at_time + max_age


async def get_cached_if_still_valid(
    environment: Environment, digest: str
) -> CachedCredential | None:
    """Return a cached credential if no change is known that may end it; else None.

    Reads the credential changes first if the entry is older than `RECHECK_AFTER`. Counts the hit or
    miss. Raises StorageUnavailable if the database can't be read for that.
    """
    credential = await _reread_changes_and_get_cached(environment, digest)
    if credential is None:
        environment.usage.auth_cache_misses += 1
    else:
        environment.usage.auth_cache_hits += 1
    return credential


async def _reread_changes_and_get_cached(
    environment: Environment, digest: str
) -> CachedCredential | None:
    """Return a cached credential. If it is not recent, first apply the changes of the database."""
    cache, now = cache_of_database(environment.database), environment.now()
    if cache.tokens_max_age != environment.options.tokens_max_age:
        cache.clear_and_count()
        cache.tokens_max_age = environment.options.tokens_max_age
    credential = cache.get(digest, now)
    if credential is None or is_recent(credential, now, RECHECK_AFTER):
        return credential
    if await reread_changes_unless_read_recently(environment, cache, now):
        return cache.get(digest, environment.now())
    return credential


async def reread_changes_unless_read_recently(
    environment: Environment, cache: CredentialCache, now: datetime
) -> bool:
    """Read the credential changes of the database and drop the credentials that they end.

    Returns False if the changes were read less than `RECHECK_AFTER` ago. Concurrent calls share one
    read.
    """
    called_at = milliseconds_since_boot()
    if (
        cache.changes_read_at
        and cache.changes_read_at[1] > now - RECHECK_AFTER
        and _were_changes_read_recently(cache, called_at)
    ):
        return False
    while True:
        if cache.reading_changes is None:
            cache.reading_changes = _create_detached_task(
                _read_changes_and_drop(environment, cache)
            )
        await asyncio.shield(cache.reading_changes)
        if _were_changes_read_recently(
            cache, called_at
        ):  # else the shared read had begun too early
            return True


def _were_changes_read_recently(cache: CredentialCache, at_boot_ms: int) -> bool:
    """True if the changes were read less than `RECHECK_AFTER` before this time since boot."""
    return (
        cache.changes_read_at is not None
        and (at_boot_ms - cache.changes_read_at[0]) * MILLISECOND < RECHECK_AFTER
    )


async def _read_changes_and_drop(environment: Environment, cache: CredentialCache) -> None:
    """Read the credential changes and drop the credentials of the users they name."""
    try:
        begun_at = milliseconds_since_boot(), environment.now()
        statement, parameters = cache.change_reader.unread_statement_and_values(
            environment.database.dialect
        )
        rows = await environment.database.read_prepared(statement, parameters)
        changed_user_ids = cache.change_reader.take_unread_user_ids_unless_other_database(rows)
        if changed_user_ids is None:
            cache.clear_and_count()
        elif changed_user_ids:
            cache.drop_credentials_of_owners_and_count(changed_user_ids)
        cache.changes_read_at = begun_at
    finally:
        cache.reading_changes = None


async def join_or_start_read_and_cache(
    environment: Environment,
    digest: str,
    read_credential: Callable[[], Awaitable[CachedCredential | None]],
) -> CachedCredential | None:
    """Read a credential with `read` and cache it. Concurrent calls for one digest share one read.

    Returns None if `read` finds no valid credential.
    """
    cache = cache_of_database(environment.database)
    running = cache.lookups.get(digest)
    if running is None or not _is_lookup_current(running, cache):
        task = _create_detached_task(_read_and_cache(cache, digest, read_credential))
        running = cache.lookups[digest] = CredentialLookup(
            task, cache.drop_count, milliseconds_since_boot()
        )
    return await asyncio.shield(running.task)


def _is_lookup_current(lookup: CredentialLookup, cache: CredentialCache) -> bool:
    """True if no credential is known to have ended since the lookup began."""
    return (
        lookup.drop_count == cache.drop_count
        and (milliseconds_since_boot() - lookup.begun_at_boot_ms) * MILLISECOND < RECHECK_AFTER
    )


async def _read_and_cache(
    cache: CredentialCache,
    digest: str,
    read_credential: Callable[[], Awaitable[CachedCredential | None]],
) -> CachedCredential | None:
    """Run the read of a shared lookup and cache its result."""
    drop_count, begun_at = cache.drop_count, milliseconds_since_boot()
    try:
        credential = await read_credential()
        if credential:
            credential.is_in_change_list, credential.read_at_boot_ms = True, begun_at
            cache.add_unless_dropped(digest, credential, drop_count)
        return credential
    finally:
        running = cache.lookups.get(digest)
        if running and running.task is asyncio.current_task():
            del cache.lookups[digest]


def _create_detached_task(coroutine: Coroutine[Any, Any, Result]) -> "asyncio.Task[Result]":
    """Run a coroutine in its own task, which reads outside any transaction of a request."""

    async def run() -> Result:
        current_transaction.set(None)
        return await coroutine

    task = asyncio.create_task(run())
    task.add_done_callback(_retrieve_exception)
    return task


def _retrieve_exception(task: "asyncio.Task[Any]") -> None:
    """Retrieve the exception of a task, which may have no waiter left."""
    if not task.cancelled():
        task.exception()


@lru_cache(maxsize=4)
def cache_of_database(_database: Database) -> CredentialCache:
    """Return the credential cache of this database."""
    return CredentialCache()


def drop_cached_credentials(environment: Environment, *user_ids: int) -> None:
    """Drop these users' credentials from the caches of all processes; 0: the keys of the platform.

    Call it directly after each transaction that ends or narrows credentials.
    """
    cache_of_database(environment.database).drop_owners_and_pause_caching(
        user_ids, environment.now()
    )
    environment.wakeups.announce_credentials_changed(user_ids)


def follow_drops_of_other_processes(environment: Environment) -> None:
    """Register with the wake-ups, so that drops in other processes also clear this cache."""

    def drop_in_this_process(user_id: int | None) -> None:
        cache = cache_of_database(environment.database)
        if user_id is None:
            cache.clear_and_count()
        else:
            cache.drop_owners_and_pause_caching([user_id], environment.now())

    environment.wakeups.add_credentials_listener(drop_in_this_process)


def drop_count(environment: Environment) -> int:
    """Return a number that changes when credentials were ended or narrowed in this process."""
    return cache_of_database(environment.database).drop_count


def mark_has_shared_mailboxes(environment: Environment, user_id: int) -> None:
    """Make mail that is shared with this user visible to the user's viewers in all processes."""
    if visibility := cache_of_database(environment.database).share_visibilities.get(user_id):
        visibility.has_shared_mailboxes = True
    environment.wakeups.announce_credentials_changed([user_id])


async def wait_for_background_tasks(environment: Environment) -> None:
    """Wait for the background tasks that record uses. Call it before the database is closed."""
    while tasks := cache_of_database(environment.database).background_tasks:
        await asyncio.gather(*tasks)
