"""The cached values and pending writes in the memory of this process."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import NamedTuple

from mail.network import dns_cache
from mail.storage import message_trace
from mail.storage.message_content import CONTENT_KEY
from models.runtime import row_cache
from models.runtime.environment import Environment
from resolvers.auth.credential_cache import CachedCredential, cache_of_database
from resolvers.cache.entries import (
    CacheEntryRow,
    CacheKind,
    EntryConditions,
    entry_of_process,
    find_owned_blob_ids,
)

CREDENTIAL_SIZE = 1024  # bytes of a cached credential in memory, estimated
PASSWORD_CHECK_SIZE = 512  # bytes of the cached checks of a password, estimated
WRITE_SIZE = 512  # bytes of a pending row, estimated

PENDING_NAMES = {
    CacheKind.LOG_ENTRY: "entries of the log store",
    CacheKind.MESSAGE_STEP: "steps of the delivery trace",
    CacheKind.SECURITY_EVENT: "events of the security log",
    CacheKind.TOKEN_USE: "last use of access tokens and API keys",
}


class MemoryValue(NamedTuple):
    """A cached value with its entry, and the function that removes it.

    The entry must not have the key of the value, which can be the digest of a secret.
    """

    row: CacheEntryRow
    remove: Callable[[], object]
    used_by_wall_clock: bool = False  # the time of its last use is not of the environment's clock
    blob_id: int | None = None  # of a message that several users can have

    def unused_time(self, environment: Environment) -> timedelta:
        """Return the time since the last use."""
        now = datetime.now(UTC) if self.used_by_wall_clock else environment.now()
        return now - self.row.last_used_at

    @property
    def user_id(self) -> int | None:
        """User that the value belongs to; None without one."""
        return self.row.user_id


def _credential_name(credential: CachedCredential) -> str:
    if credential.viewer.api_key_id is not None:
        return "API key"
    return "access token" if credential.viewer.token_id is not None else "credential"


def _credentials(environment: Environment) -> Iterable[MemoryValue]:
    """Yield the cached credentials of this process, each with the function that drops it."""
    cache = cache_of_database(environment.database)
    for digest, credential in list(cache.credentials.items()):
        row = entry_of_process(
            CacheKind.CREDENTIAL,
            digest,
            _credential_name(credential),
            CREDENTIAL_SIZE,
            credential.last_hit_at or credential.read_at_time,
            user_id=credential.viewer.user_id or credential.viewer.pending_user_id or None,
        )
        yield MemoryValue(row, partial(cache.drop_digest, digest))


def _password_checks(environment: Environment) -> Iterable[MemoryValue]:
    """Yield the cached password checks of this process, each with the function that drops it."""
    checks_by_digest = cache_of_database(environment.database).password_checks
    for digest, checks in list(checks_by_digest.items()):
        row = entry_of_process(
            CacheKind.PASSWORD_CHECK,
            digest,
            "password check",
            PASSWORD_CHECK_SIZE,
            checks.last_hit_at or checks.read_at_time,
            user_id=checks.owner_id,
        )
        yield MemoryValue(row, partial(checks_by_digest.pop, digest, None))


def _time_from_seconds(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _dns_answers(_environment: Environment) -> Iterable[MemoryValue]:
    """Yield the cached DNS answers of this process, each with the function that drops it."""
    for number, cache in enumerate(list(dns_cache.ANSWER_CACHES)):
        for key, cached in cache.list_answers():
            row = entry_of_process(
                CacheKind.DNS_ANSWER,
                (number, key),
                dns_cache.question_text(key),
                cached.size,
                _time_from_seconds(cached.used_at),
            )
            yield MemoryValue(row, partial(cache.flush, key), used_by_wall_clock=True)


@dataclass(slots=True)
class _ContentOfMessage:
    """The values of the cache that were computed from the bytes of one message."""

    keys: list[object] = field(default_factory=list)
    size: int = 0
    used_at: float = 0.0  # seconds since 1970


def _parsed_messages(environment: Environment) -> Iterable[MemoryValue]:
    """Return a value for each message: its structure, and what was computed from its bytes."""
    cache, contents = environment.byte_cache, dict[int, _ContentOfMessage]()
    for key, cached in cache.list_entries():
        if isinstance(key, tuple) and key[0] == CONTENT_KEY:
            content = contents.setdefault(key[1], _ContentOfMessage())
            content.keys.append(key)
            content.size += cached.size
            content.used_at = max(content.used_at, cached.used_at)
    for blob_id, content in contents.items():

        def remove(keys: list[object] = content.keys) -> None:
            for key in keys:
                cache.remove(key)

        row = entry_of_process(
            CacheKind.PARSED_MESSAGE,
            blob_id,
            "parsed message",
            content.size,
            _time_from_seconds(content.used_at),
        )
        yield MemoryValue(row, remove, used_by_wall_clock=True, blob_id=blob_id)


def _list_rows(_environment: Environment) -> Iterable[MemoryValue]:
    """Yield one value for all rows of lists: no user is known of a row."""
    cache = row_cache.ROW_CACHE
    if cache.used_bytes:
        row = entry_of_process(
            CacheKind.LIST_ROW,
            0,
            "rows of lists",
            cache.used_bytes,
            _time_from_seconds(cache.used_at),
        )
        yield MemoryValue(row, cache.clear, used_by_wall_clock=True)


VALUES_BY_KIND: dict[CacheKind, Callable[[Environment], Iterable[MemoryValue]]] = {
    CacheKind.CREDENTIAL: _credentials,
    CacheKind.DNS_ANSWER: _dns_answers,
    CacheKind.LIST_ROW: _list_rows,
    CacheKind.PARSED_MESSAGE: _parsed_messages,
    CacheKind.PASSWORD_CHECK: _password_checks,
}


async def _find_values(environment: Environment, conditions: EntryConditions) -> list[MemoryValue]:
    """Return the cached values that meet the conditions, with entries of different ids.

    A condition on users selects parsed messages that these users have.
    """
    values: list[MemoryValue] = []
    for kind, list_values in VALUES_BY_KIND.items():
        if conditions.allows_kind(kind):
            values += list_values(environment)
    scope = conditions.scope
    in_scope = await scope.items_in_scope(environment, values)
    if not scope.includes_sessions_without_user:
        shared = {value.blob_id: value for value in values if value.blob_id is not None}
        owned_ids = await find_owned_blob_ids(environment, scope, [*shared])
        in_scope += [value for blob_id, value in shared.items() if blob_id in owned_ids]
    return in_scope


def _pending_rows(environment: Environment) -> list[CacheEntryRow]:
    """Return the pending writes of this process: those of a kind and user are one entry."""
    cache, now = cache_of_database(environment.database), environment.now()
    writes: dict[tuple[CacheKind, int], tuple[int, datetime]] = {}

    def add(kind: CacheKind, user_id: int, at: datetime, count: int = 1) -> None:
        if count:
            old_count, old_at = writes.get((kind, user_id), (0, at))
            writes[kind, user_id] = old_count + count, max(old_at, at)

    for use in list(cache.unwritten_uses.values()):
        add(CacheKind.TOKEN_USE, use.owner_id, use.used_at)
    for event in list(cache.unwritten_events):
        add(CacheKind.SECURITY_EVENT, event.event.user_id or 0, event.event_time)
    add(
        CacheKind.MESSAGE_STEP,
        0,
        now,
        message_trace.count_pending_trace_steps(environment).waiting,
    )
    add(CacheKind.LOG_ENTRY, 0, now, environment.logs.waiting_count)
    return [
        entry_of_process(
            kind,
            user_id,
            PENDING_NAMES[kind],
            environment.logs.waiting_size if kind is CacheKind.LOG_ENTRY else WRITE_SIZE * count,
            at,
            user_id=user_id or None,
            pending_count=count,
        )
        for (kind, user_id), (count, at) in writes.items()
    ]


async def find_memory_rows(
    environment: Environment, conditions: EntryConditions
) -> list[CacheEntryRow]:
    """Return the entries in the memory of this process that meet the conditions."""
    pending = [row for row in _pending_rows(environment) if conditions.allows_kind(row.kind)]
    return [
        *(value.row for value in await _find_values(environment, conditions)),
        *await conditions.scope.items_in_scope(environment, pending),
    ]


async def remove_unused_memory_rows(
    environment: Environment, conditions: EntryConditions, unused: timedelta, *, is_dry_run: bool
) -> list[CacheEntryRow]:
    """Remove cached values that were not used for a time, and return them.

    Pending writes stay. Rows of lists are removed too if the users are limited, since those of the
    users are not known. With `is_dry_run` nothing is removed.
    """
    values = [
        value
        for value in await _find_values(environment, conditions)
        if value.unused_time(environment) >= unused
    ]
    if not is_dry_run:
        for value in values:
            value.remove()
        if not conditions.scope.includes_sessions_without_user:
            row_cache.ROW_CACHE.clear()
    return [value.row for value in values]
