"""Flush pending writes, remove cached values, and rescan the blob cache, in all processes."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from mail.storage import message_trace
from mail.storage.blob_cache.cached_store import blob_cache_of_store
from mail.storage.blobs.object_names import MAX_NAME_LENGTH
from models.errors import InvalidInput
from models.runtime.environment import Environment
from models.validation_constraints import ValidationConstraint
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.auth.credential_cache import cache_of_database
from resolvers.blobs.validation import require_prefix
from resolvers.cache.entries import (
    PENDING_KINDS,
    EntryConditions,
    find_blob_files,
)
from resolvers.cache.memory_values import find_memory_rows, remove_unused_memory_rows
from resolvers.cluster.process_requests import (
    AnswersOfProcesses,
    ProcessRequestKind,
    ask_all_processes,
)
from resolvers.context import Context
from resolvers.sessions.session_scope import require_managed_scope
from resolvers.users.selection import UserSelector

FLUSH_TIMEOUT = 15.0  # seconds
REMOVE_TIMEOUT = 15.0  # seconds
RESCAN_SECONDS = 20.0  # after which a rescan stops
RESCAN_TIMEOUT = RESCAN_SECONDS + 3  # seconds
MAX_DAYS = 36_500
TARGET_KIND = "CacheEntry"  # of entries in the audit log


@dataclass(frozen=True, slots=True)
class CacheChange:
    """The number of entries, or of pending writes, that a mutation was about, and their bytes."""

    count: int
    size: int
    unresponsive_nodes: Sequence[str]
    lost_count: int = 0  # pending writes that could not be written
    incomplete_nodes: Sequence[str] = ()  # nodes whose rescan stopped too early

    def audit_values(self) -> dict[str, Any]:
        """Return what the audit log says about the change."""
        return {"count": self.count, "size": self.size}


async def _flush_pending_writes_for_answer(
    environment: Environment, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Write the pending writes of this process, and wait until they are durable."""
    conditions = EntryConditions.from_arguments(arguments)
    rows = await find_memory_rows(environment, conditions)
    lost_count = 0
    if not arguments["isTrial"]:
        lost_count = await _write_pending_and_count_lost(environment)
    return {
        "count": sum(row.pending_count for row in rows),
        "size": sum(row.size for row in rows),
        "lostCount": lost_count,
    }


async def _write_pending_and_count_lost(environment: Environment) -> int:
    """Write all pending rows of this process, and return the number of lost writes."""
    cache, logs = cache_of_database(environment.database), environment.logs

    def count_lost() -> int:
        steps = message_trace.count_pending_trace_steps(environment).lost
        return steps + cache.failed_write_count + logs.lost_count

    lost_before = count_lost()
    _, _, is_flushed = await asyncio.gather(
        message_trace.write_pending_trace_steps(environment),
        cache.wait_for_started_writes(),
        logs.flush_within_timeout(syncs_disk=True),
    )
    return count_lost() - lost_before + (0 if is_flushed else logs.waiting_count)


async def _remove_unused_values_for_answer(
    environment: Environment, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Remove the values in memory and the blobs that were not used for a time."""
    conditions = EntryConditions.from_arguments(arguments)
    unused, is_trial = timedelta(seconds=arguments["unusedSeconds"]), arguments["isTrial"]
    rows = await remove_unused_memory_rows(environment, conditions, unused, is_dry_run=is_trial)
    answer: dict[str, Any] = {
        "count": len(rows),
        "size": sum(row.size for row in rows),
        "blobCount": 0,
        "blobSize": 0,
        "blobFolder": None,
    }
    blob_files = await find_blob_files(environment, conditions)
    if blob_files is not None:
        limit = time.time() - unused.total_seconds()
        files = [file for file in blob_files.files if file.used_at <= limit]
        answer["blobFolder"] = blob_files.folder_id
        if is_trial:
            answer |= {"blobCount": len(files), "blobSize": sum(file.size for file in files)}
        else:
            cache = blob_files.cache
            try:
                removed = await cache.run_in_thread(cache.folder.remove_files, files)
                answer |= {"blobCount": removed.count, "blobSize": removed.size}
            except OSError as problem:  # the files that are left are not counted as removed
                cache.note_error(problem)
    return answer


async def _rescan_blob_cache_for_answer(
    environment: Environment, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Rescan the blob cache of this machine, unless another process does."""
    cache = blob_cache_of_store(environment.object_store)
    if cache is None or arguments["isTrial"]:
        return {"count": 0, "size": 0, "isComplete": True}
    stop_at, max_age = time.monotonic() + RESCAN_SECONDS, arguments["maxAgeSeconds"]
    try:
        result = await cache.run_in_thread(
            cache.folder.rescan_and_remove_bad_files,
            arguments["prefix"],
            None if max_age is None else time.time() - max_age,
            lambda: time.monotonic() > stop_at,
        )
    except OSError as problem:
        cache.note_error(problem)
        return {"count": 0, "size": 0, "isComplete": False}
    return {
        "count": result.removed.count,
        "size": result.removed.size,
        "isComplete": result.is_complete,
    }


FLUSH_CACHES = ProcessRequestKind(
    "CACHE_FLUSH", _flush_pending_writes_for_answer, timeout=FLUSH_TIMEOUT
)
REMOVE_CACHED_VALUES = ProcessRequestKind(
    "CACHE_REMOVE", _remove_unused_values_for_answer, timeout=REMOVE_TIMEOUT
)
RESCAN_BLOB_CACHES = ProcessRequestKind(
    "CACHE_RESCAN", _rescan_blob_cache_for_answer, timeout=RESCAN_TIMEOUT
)


async def flush_pending_writes_and_write_audit_log(
    ctx: Context, users: UserSelector | None
) -> CacheChange:
    """Write the pending writes of all processes, and wait until they are durable.

    All are written; those of the selected users are counted. Must not be called in a transaction.
    Raises the errors of `require_managed_scope`.
    """
    scope = await require_managed_scope(ctx, users)
    arguments = {
        **EntryConditions(scope, PENDING_KINDS).to_arguments(),
        "isTrial": ctx.is_dry_run,
    }
    answers = await ask_all_processes(ctx.environment, FLUSH_CACHES, arguments)
    change = CacheChange(
        _sum(answers, "count"),
        _sum(answers, "size"),
        answers.unresponsive_nodes,
        lost_count=_sum(answers, "lostCount"),
    )
    await _write_audit_log_entry(ctx, "cacheFlush", change.audit_values())
    return change


async def remove_unused_values_and_write_audit_log(
    ctx: Context, mutation: str, users: UserSelector | None, days: int
) -> CacheChange:
    """Remove cached values of all processes that were not used for a number of days.

    Pending writes stay. A dry run counts the values. Must not be called in a transaction. Raises
    InvalidInput for a wrong number of days, and the errors of `require_managed_scope`.
    """
    if not 0 <= days <= MAX_DAYS:
        raise InvalidInput(
            f"The number of days must be from 0 to {MAX_DAYS:,}.",
            constraint=ValidationConstraint.RANGE,
            path=["days"],
        )
    scope = await require_managed_scope(ctx, users)
    arguments = {
        **EntryConditions(scope).to_arguments(),
        "unusedSeconds": days * 86_400,
        "isTrial": ctx.is_dry_run,
    }
    answers = await ask_all_processes(ctx.environment, REMOVE_CACHED_VALUES, arguments)
    blob_count, blob_size = _sum(answers, "blobCount"), _sum(answers, "blobSize")
    if ctx.is_dry_run:  # each process of a machine has counted the same files
        counts = {answer.answer["blobFolder"]: answer.answer for answer in answers.answers}
        blob_count = sum(count["blobCount"] for count in counts.values())
        blob_size = sum(count["blobSize"] for count in counts.values())
    change = CacheChange(
        _sum(answers, "count") + blob_count,
        _sum(answers, "size") + blob_size,
        answers.unresponsive_nodes,
    )
    await _write_audit_log_entry(ctx, mutation, {"days": days, **change.audit_values()})
    return change


async def rescan_blob_caches_and_write_audit_log(
    ctx: Context, prefix: str, max_age: timedelta | None
) -> CacheChange:
    """Rescan the blob caches of all machines: remove damaged, foreign and old files.

    Must not be called in a transaction. Raises InvalidInput for a wrong prefix or age.
    """
    require_prefix(prefix, ("path",))
    if max_age is not None and max_age < timedelta(0):
        raise InvalidInput(
            "The age must be at least PT0S.",
            constraint=ValidationConstraint.RANGE,
            path=["maxAge"],
        )
    arguments = {
        "prefix": prefix[:MAX_NAME_LENGTH],
        "maxAgeSeconds": None if max_age is None else max_age.total_seconds(),
        "isTrial": ctx.is_dry_run,
    }
    answers = await ask_all_processes(ctx.environment, RESCAN_BLOB_CACHES, arguments)
    incomplete = {answer.node for answer in answers.answers if not answer.answer["isComplete"]}
    change = CacheChange(
        _sum(answers, "count"),
        _sum(answers, "size"),
        answers.unresponsive_nodes,
        incomplete_nodes=sorted(incomplete),
    )
    await _write_audit_log_entry(ctx, "cacheRescan", {"path": prefix, **change.audit_values()})
    return change


def _sum(answers: AnswersOfProcesses, name: str) -> int:
    return sum(answer.answer[name] for answer in answers.answers)


async def _write_audit_log_entry(ctx: Context, mutation: str, values: Mapping[str, Any]) -> None:
    entry = NewAuditLogEntry(mutation, TARGET_KIND, after=values)
    await audit_log.record_platform_entries(ctx, entry)
