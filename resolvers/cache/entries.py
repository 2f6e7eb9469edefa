"""Entries of caches, and those of the files of this machine's blob cache."""

import hashlib
import os
import socket
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, NamedTuple

from sqlalchemy import select, union
from sqlmodel import col

from mail.storage.blob_cache.blob_cache import BlobCache
from mail.storage.blob_cache.cache_folder import CachedFile
from mail.storage.blob_cache.cached_store import blob_cache_of_store
from models.files.blobs import Blob
from models.runtime.environment import Environment
from models.store.keyset_pages import MAX_INT64
from resolvers.blobs.content import selects_of_blob_owners
from resolvers.sessions.session_scope import SessionScope

BLOBS_PER_READ = 500  # blobs in one statement


class CacheKind(StrEnum):
    """What a cache entry is: a cached value, or writes that are pending."""

    BLOB = "BLOB"
    CREDENTIAL = "CREDENTIAL"
    DNS_ANSWER = "DNS_ANSWER"
    LIST_ROW = "LIST_ROW"
    LOG_ENTRY = "LOG_ENTRY"
    MESSAGE_STEP = "MESSAGE_STEP"
    PARSED_MESSAGE = "PARSED_MESSAGE"
    PASSWORD_CHECK = "PASSWORD_CHECK"  # noqa: S105 - no password
    SECURITY_EVENT = "SECURITY_EVENT"
    TOKEN_USE = "TOKEN_USE"  # noqa: S105 - no password


PENDING_KINDS = frozenset(
    {CacheKind.LOG_ENTRY, CacheKind.MESSAGE_STEP, CacheKind.SECURITY_EVENT, CacheKind.TOKEN_USE}
)


class CacheEntryRow(NamedTuple):
    """A cached value of a process or machine, or pending writes of a process."""

    id: int  # the same at each read
    kind: CacheKind
    name: str
    user_id: int | None
    size: int  # bytes, estimated except for blobs
    last_used_at: datetime
    dirty: bool
    pending_count: int  # 0 if nothing is pending
    node: str  # empty until the process that has asked for the entry adds it
    pid: int | None  # None: the processes of the machine share the entry


@dataclass(frozen=True, slots=True)
class EntryConditions:
    """Conditions on entries of a process. None as `kinds` or `is_dirty`: no condition."""

    scope: SessionScope
    kinds: Collection[CacheKind] | None = None
    is_dirty: bool | None = None

    def allows_kind(self, kind: CacheKind) -> bool:
        """True if entries of this kind can meet the conditions."""
        return (self.kinds is None or kind in self.kinds) and (
            self.is_dirty is None or self.is_dirty is (kind in PENDING_KINDS)
        )

    def to_arguments(self) -> dict[str, Any]:
        """Return the conditions as JSON values."""
        kinds = None if self.kinds is None else [kind.value for kind in self.kinds]
        return {"scope": self.scope.to_arguments(), "kinds": kinds, "dirty": self.is_dirty}

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> "EntryConditions":
        """Return the conditions of the JSON values of `to_arguments`."""
        kinds = arguments["kinds"]
        return cls(
            SessionScope.from_arguments(arguments["scope"]),
            None if kinds is None else [CacheKind(kind) for kind in kinds],
            arguments["dirty"],
        )


def _entry_id(*parts: object) -> int:
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") & MAX_INT64


def entry_of_process(
    kind: CacheKind, key: object, name: str, size: int, last_used_at: datetime, **columns: Any
) -> CacheEntryRow:
    """Return an entry of this process. `key` is unique among its entries of this kind."""
    pid = os.getpid()
    values = {"user_id": None, "pending_count": 0, **columns}
    return CacheEntryRow(
        _entry_id(socket.gethostname(), pid, kind, key),
        kind,
        name,
        values["user_id"],
        size,
        last_used_at,
        kind in PENDING_KINDS,
        values["pending_count"],
        "",
        pid,
    )


@dataclass(frozen=True, slots=True)
class BlobFiles:
    """Files of the blob cache, and the folder that processes of a machine share."""

    cache: BlobCache
    folder_id: str
    files: Sequence[CachedFile]

    def rows(self) -> list[CacheEntryRow]:
        """Return the files as entries."""
        return [
            CacheEntryRow(
                _entry_id(self.folder_id, file.store_id, file.name),
                CacheKind.BLOB,
                file.name,
                None,
                file.size,
                datetime.fromtimestamp(file.used_at, UTC),
                dirty=False,
                pending_count=0,
                node="",
                pid=None,
            )
            for file in self.files
        ]


async def find_blob_files(
    environment: Environment, conditions: EntryConditions
) -> BlobFiles | None:
    """Return the files of the blob cache that meet the conditions; None without a blob cache.

    A condition on users selects objects that messages, files or exports of these users have.
    None also if the folder can't be read, which is counted and logged.
    """
    cache = blob_cache_of_store(environment.object_store)
    if cache is None or not conditions.allows_kind(CacheKind.BLOB):
        return None
    try:
        folder_id = await cache.run_in_thread(cache.folder.folder_id)
        files = await cache.run_in_thread(cache.folder.list_files)
    except OSError as problem:
        cache.note_error(problem)
        return None
    if not conditions.scope.includes_sessions_without_user:
        names = await _names_of_owned_objects(
            environment, conditions.scope, sorted({file.name for file in files})
        )
        files = [file for file in files if file.name in names]
    return BlobFiles(cache, folder_id, files)


async def _names_of_owned_objects(
    environment: Environment, scope: SessionScope, names: Sequence[str]
) -> set[str]:
    """Return those of these objects that users in the scope have."""
    owned_names = set[str]()
    for start in range(0, len(names), BLOBS_PER_READ):
        blobs = select(col(Blob.id), col(Blob.name)).where(
            col(Blob.name).in_(names[start : start + BLOBS_PER_READ])
        )
        name_by_id = {row.id: row.name for row in await environment.database.read(blobs)}
        owned_ids = await find_owned_blob_ids(environment, scope, list(name_by_id))
        owned_names |= {name_by_id[blob_id] for blob_id in owned_ids}
    return owned_names


async def find_owned_blob_ids(
    environment: Environment, scope: SessionScope, blob_ids: Sequence[int]
) -> set[int]:
    """Return those of these blobs that messages, files or exports of users in the scope have."""
    owned_ids = set[int]()
    for start in range(0, len(blob_ids), BLOBS_PER_READ):
        owners = select(
            union(*selects_of_blob_owners(blob_ids[start : start + BLOBS_PER_READ])).subquery()
        )
        rows = await environment.database.read(owners)
        user_ids = {row.user_id for row in rows if row.user_id is not None}
        allowed_ids = await scope.user_ids_in_scope(environment, user_ids)
        owned_ids |= {row.blob_id for row in rows if row.user_id in allowed_ids}
    return owned_ids
