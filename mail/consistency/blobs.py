"""Checks of stored bytes: each blob exists, is readable and has its digest; and garbage figures."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from sqlalchemy import case, exists, func, select
from sqlmodel import SQLModel, col

from mail.consistency.blob_content import (
    BLOB_COLUMNS,
    ROWS_PER_READ,
    compute_digest,
    read_unverified_content,
)
from mail.consistency.blob_restore import (
    clear_damage_marks_except,
    mark_damaged_blobs,
    restore_or_mark_damaged_blobs,
)
from mail.consistency.checks import CheckRun, id_column, iterate_key_ranges_with_progress
from mail.consistency.report import Finding, FindingValue
from mail.storage.blob_cache.cached_store import store_without_cache
from mail.storage.blobs.errors import CorruptBlob
from mail.storage.blobs.garbage_collector import (
    GRACE_PERIOD,
    REFERENCE_COLUMNS,
    load_object_names_in_use,
)
from models.events.incarnation import MARK_OBJECT_NAME
from models.files.blobs import Blob, Upload, UploadPart
from models.runtime.environment import Environment
from models.store.columns import ColumnRow
from models.store.object_store import StoredObject

SUBJECT = "blobs"
NAMES_PER_READ = 1000  # object names of one look-up


@dataclass(frozen=True, slots=True)
class BlobProblem:
    """What is wrong with a blob or object."""

    rule: str
    expected: FindingValue
    found: FindingValue


async def check_uploads_and_check_or_restore_blobs(
    check_run: CheckRun, *, reads_content: bool, repair: bool = False
) -> list[Finding]:
    """Check every blob; with `reads_content` all of its bytes, otherwise its last byte.

    Damaged blobs are marked, so that the next message with the same bytes stores them again. With
    `repair`, they are restored from other copies of their bytes.
    """
    environment, findings, damaged = check_run.environment, list[Finding](), list[int]()
    async for low, high in iterate_key_ranges_with_progress(check_run, SUBJECT, Blob):
        key = col(Blob.id)
        statement = select(*BLOB_COLUMNS, func.length(col(Blob.data)).label("inline"))
        rows = await environment.database.read(
            statement.where(key > low, key <= high).order_by(key)
        )
        problems: dict[int, BlobProblem] = {}
        for start in range(0, len(rows), ROWS_PER_READ):
            problems |= await _find_problems(
                environment, rows[start : start + ROWS_PER_READ], reads_content=reads_content
            )
        findings += await _findings_of_rows_still_existing(environment, Blob, problems)
        damaged += problems
    if repair:
        restored = await restore_or_mark_damaged_blobs(environment, damaged)
        names = {f"{Blob.__tablename__}/{key}" for key in restored}
        findings = [
            replace(finding, repairable=finding.object in names, repaired=finding.object in names)
            for finding in findings
        ]
        if reads_content:
            await clear_damage_marks_except(environment, set(damaged))
    else:
        await mark_damaged_blobs(environment, damaged)
    findings += await _check_last_bytes_of_named_objects(
        check_run, Upload, col(Upload.blob_name), col(Upload.size)
    )
    return findings + await _check_last_bytes_of_named_objects(
        check_run, UploadPart, col(UploadPart.name), col(UploadPart.size)
    )


async def _find_problems(
    environment: Environment, blob_rows: Sequence[ColumnRow], *, reads_content: bool
) -> dict[int, BlobProblem]:
    if reads_content:
        keys = [row.id for row in blob_rows]
        statement = select(*BLOB_COLUMNS, col(Blob.data)).where(col(Blob.id).in_(keys))
        problems = [
            (row.id, await _find_blob_content_problem(environment, row))
            for row in await environment.database.read(statement)
        ]
    else:
        problems = [
            (row.id, await _find_missing_bytes_problem(environment, row)) for row in blob_rows
        ]
    return {key: problem for key, problem in problems if problem}


async def _find_blob_content_problem(
    environment: Environment, blob_row: ColumnRow
) -> BlobProblem | None:
    try:
        digest = await compute_digest(await read_unverified_content(environment, blob_row))
    except KeyError:
        return BlobProblem("object", blob_row.name or "in the row", None)
    except CorruptBlob as problem:
        return BlobProblem("readable", f"{blob_row.size} bytes", str(problem))
    return None if digest == blob_row.digest else BlobProblem("digest", blob_row.digest, digest)


async def _find_missing_bytes_problem(
    environment: Environment, blob_row: ColumnRow
) -> BlobProblem | None:
    if blob_row.name:
        return await _check_last_byte(environment, blob_row.name, blob_row.stored_size)
    return (
        None
        if blob_row.inline == blob_row.stored_size
        else BlobProblem("readable", blob_row.stored_size, blob_row.inline)
    )


async def _check_last_byte(
    environment: Environment, object_name: str, size: int
) -> BlobProblem | None:
    """Check that the object has a byte at the position of its last one; the problem, or None."""
    try:
        store = store_without_cache(environment.object_store)
        await store.get_range(object_name, max(size - 1, 0), size)
    except KeyError:
        return BlobProblem("object", object_name, None)
    except CorruptBlob as problem:
        return BlobProblem("readable", f"{size} bytes", str(problem))
    return None


async def _findings_of_rows_still_existing(
    environment: Environment, table: type[SQLModel], problems_by_id: dict[int, BlobProblem]
) -> list[Finding]:
    """The findings for rows that still exist: the garbage collector can have removed others."""
    if not problems_by_id:
        return []
    key, keys, left = id_column(table), list(problems_by_id), set[int]()
    for start in range(0, len(keys), NAMES_PER_READ):
        statement = select(key).where(key.in_(keys[start : start + NAMES_PER_READ]))
        left |= {row[0] for row in await environment.database.read(statement)}
    return [
        Finding(
            SUBJECT, problem.rule, f"{table.__tablename__}/{key}", problem.expected, problem.found
        )
        for key, problem in problems_by_id.items()
        if key in left
    ]


async def _check_last_bytes_of_named_objects(
    check_run: CheckRun, table: type[SQLModel], name_column: Any, size_column: Any
) -> list[Finding]:
    """Check the object that each row of a table names; rows without a name have none yet."""
    environment, findings, key = check_run.environment, list[Finding](), id_column(table)
    statement = select(key.label("id"), name_column.label("name"), size_column.label("size"))
    async for low, high in iterate_key_ranges_with_progress(check_run, SUBJECT, table):
        these = statement.where(key > low, key <= high, name_column.is_not(None))
        rows = await environment.database.read(these)
        checked_objects = [
            (row.id, await _check_last_byte(environment, row.name, row.size)) for row in rows
        ]
        problems = {row_id: problem for row_id, problem in checked_objects if problem}
        findings += await _findings_of_rows_still_existing(environment, table, problems)
    return findings


async def count_garbage_blobs_and_objects(
    check_run: CheckRun, grace_period: timedelta = GRACE_PERIOD
) -> dict[str, int]:
    """Count the blobs without references and the objects without a row.

    The garbage collector will remove them.
    """
    environment = check_run.environment
    before = environment.now() - grace_period
    unused = [~exists().where(reference == col(Blob.id)) for reference in REFERENCE_COLUMNS]
    old = case((col(Blob.created_at) < before, 1))
    statement = select(func.count(), func.count(old)).select_from(Blob).where(*unused)
    (row,) = await environment.database.read(statement)
    garbage, size, object_count = 0, 0, 0
    async for batch in _list_object_batches(environment):
        used_names = await load_object_names_in_use(environment, [stored.name for stored in batch])
        useless = [s for s in batch if s.modified_at < before and s.name not in used_names]
        garbage, size = garbage + len(useless), size + sum(stored.size for stored in useless)
        object_count += len(batch)
        check_run.report_progress("objects", object_count)
    check_run.checked_counts["objects"] = object_count
    return {
        "unused_blobs": int(row[0]),
        "unused_blobs_past_grace": int(row[1]),
        "garbage_objects": garbage,
        "garbage_bytes": size,
    }


async def _list_object_batches(environment: Environment) -> AsyncIterator[list[StoredObject]]:
    batch: list[StoredObject] = []
    async for stored in environment.object_store.list():
        if stored.name == MARK_OBJECT_NAME:
            continue
        batch.append(stored)
        if len(batch) == NAMES_PER_READ:
            yield batch
            batch = []
    yield batch
