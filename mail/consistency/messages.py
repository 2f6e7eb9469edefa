"""Checks of whole messages: rebuilt from their blobs, and compared with their rows."""

from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

from sqlalchemy import func, literal, select
from sqlmodel import SQLModel, col

from mail.consistency.blob_content import BLOB_COLUMNS, ROWS_PER_READ, read_unverified_content
from mail.consistency.blob_references import has_open_queue_entry
from mail.consistency.checks import (
    CheckRun,
    Condition,
    Expression,
    id_column,
    iterate_key_ranges_with_progress,
)
from mail.consistency.report import Finding
from mail.storage.blobs.errors import CorruptBlob
from mail.storage.blobs.message_layout import parse_layout, rebuild_message
from models.events.journal import PLATFORM
from models.files.blobs import Blob, MessageBlob, SubmissionBlob
from models.messages.tables import Message
from models.runtime.environment import DatabaseTransaction, Environment
from models.spam.quarantine import QuarantineBlob, QuarantineItem
from models.store.columns import ColumnRow, core_table, insert_with_conflict, select_columns
from models.submission.tables import Submission

SUBJECT = "blobs"


@dataclass(frozen=True, slots=True)
class RebuiltMessage:
    """A message rebuilt from its layout and blobs, or the error."""

    tenant_id: int
    size: int = 0
    digest: str | None = None  # None: the message was not rebuilt
    part_digests: frozenset[str] = frozenset()
    error_text: str | None = None


@dataclass(frozen=True, slots=True)
class BlobOwnerTable:
    """A table with rows that own blobs, and its table of reference rows."""

    table: type[SQLModel]
    reference_table: type[SQLModel]
    owner_column: str  # column of `reference_table`
    columns: Sequence[Expression]
    conditions: Sequence[Condition] = ()
    selection: Sequence[Condition] = ()  # restricts the run to some rows


def _owner_tables() -> list[BlobOwnerTable]:
    key_columns = (col(Message.id), col(Message.user_id), col(Message.blob_id))
    owner_column = func.coalesce(col(Submission.user_id), PLATFORM).label("user_id")
    sent = (col(Submission.id), owner_column, col(Submission.blob_id))
    unknown = (literal(None).label("size"), literal(None).label("sha256"))
    content_columns = (col(Message.size), col(Message.sha256))
    quarantine_columns = select_columns(
        QuarantineItem, ("id", "user_id", "blob_id", "size", "sha256")
    )
    return [
        BlobOwnerTable(Message, MessageBlob, "message_id", [*key_columns, *content_columns]),
        BlobOwnerTable(
            Submission, SubmissionBlob, "submission_id", [*sent, *unknown], [has_open_queue_entry()]
        ),
        BlobOwnerTable(QuarantineItem, QuarantineBlob, "item_id", quarantine_columns),
    ]


@dataclass(frozen=True, slots=True)
class MessageProblem:
    """A problem of a message, and its repair in a transaction that locks the stream."""

    finding: Finding
    stream_id: int
    repair: Callable[[DatabaseTransaction], bool] | None = None


async def check_messages(
    check_run: CheckRun, *, rebuilds_messages: bool, repair: bool
) -> list[Finding]:
    """Parse the layouts of all messages, also of submissions and quarantine.

    With `rebuilds_messages` the messages are rebuilt and hashed. With `repair` a missing
    reference row is inserted if the blob exists.
    """
    findings: list[Finding] = []
    for holder in _owner_tables():
        async for problem in _iterate_message_problems(
            check_run, holder, rebuilds_messages=rebuilds_messages
        ):
            repair_function = problem.repair if repair else None
            is_repaired = (
                repair_function is not None
                and await check_run.environment.run_transaction(repair_function, problem.stream_id)
            )
            findings.append(replace(problem.finding, repaired=is_repaired))
    return findings


async def find_message_problems(
    check_run: CheckRun, conditions: Sequence[Condition], *, rebuilds_messages: bool
) -> list[MessageProblem]:
    """Find the problems of some messages, without repair."""
    holder = replace(_owner_tables()[0], selection=conditions)
    return [
        problem
        async for problem in _iterate_message_problems(
            check_run, holder, rebuilds_messages=rebuilds_messages
        )
    ]


async def _iterate_message_problems(
    check_run: CheckRun, owner_table: BlobOwnerTable, *, rebuilds_messages: bool
) -> AsyncIterator[MessageProblem]:
    async for low, high in iterate_key_ranges_with_progress(
        check_run, SUBJECT, owner_table.table, conditions=owner_table.selection
    ):
        rows = await _read_owner_rows(check_run.environment, owner_table, low, high)
        wholes = await _parse_or_rebuild_messages(
            check_run.environment,
            sorted({row.blob_id for row in rows}),
            rebuilds_messages=rebuilds_messages,
        )
        digests_by_owner = await _load_referenced_digests_by_owner(
            check_run.environment, owner_table, low, high
        )
        findings = {
            row.id: _findings_of_message(
                owner_table, row, wholes.get(row.blob_id), digests_by_owner[row.id]
            )
            for row in rows
        }
        if not any(findings.values()):
            continue
        for row in await _read_owner_rows(
            check_run.environment, owner_table, low, high
        ):  # messages can be deleted in between
            for finding in findings.get(row.id, []):
                repair_function = None
                if finding.repairable:
                    repair_function = _repair_of_missing_references(
                        owner_table, row, wholes[row.blob_id]
                    )
                yield MessageProblem(finding, row.user_id, repair_function)


async def _read_owner_rows(
    environment: Environment, owner_table: BlobOwnerTable, low_id: int, high_id: int
) -> Sequence[ColumnRow]:
    key = id_column(owner_table.table)
    statement = select(*owner_table.columns).where(
        key > low_id, key <= high_id, *owner_table.conditions, *owner_table.selection
    )
    return await environment.database.read(statement.order_by(key))


async def _load_referenced_digests_by_owner(
    environment: Environment, owner_table: BlobOwnerTable, low_id: int, high_id: int
) -> defaultdict[int, set[str]]:
    """The digests of the blobs that each row refers to."""
    table = core_table(owner_table.reference_table)
    owner = table.c[owner_table.owner_column]
    statement = select(owner.label("owner"), col(Blob.digest))
    statement = statement.join(Blob, col(Blob.id) == table.c.blob_id).where(
        owner > low_id, owner <= high_id
    )
    if owner_table.selection:
        statement = statement.where(
            owner.in_(select(id_column(owner_table.table)).where(*owner_table.selection))
        )
    digests_by_owner: defaultdict[int, set[str]] = defaultdict(set)
    for row in await environment.database.read(statement):
        digests_by_owner[row.owner].add(row.digest)
    return digests_by_owner


async def _parse_or_rebuild_messages(
    environment: Environment, layout_blob_ids: Sequence[int], *, rebuilds_messages: bool
) -> dict[int, RebuiltMessage]:
    """Rebuild messages by the ids of their layout blobs; shared ones once."""
    wholes: dict[int, RebuiltMessage] = {}
    for start in range(0, len(layout_blob_ids), ROWS_PER_READ):
        part = col(Blob.id).in_(layout_blob_ids[start : start + ROWS_PER_READ])
        statement = select(*BLOB_COLUMNS, col(Blob.data)).where(part)
        for row in await environment.database.read(statement):
            wholes[row.id] = await _parse_or_rebuild_message(
                environment, row, rebuilds_message=rebuilds_messages
            )
    return wholes


async def _parse_or_rebuild_message(
    environment: Environment, layout_row: ColumnRow, *, rebuilds_message: bool
) -> RebuiltMessage:
    async def read_blob(digest: str) -> bytes:
        statement = select(*BLOB_COLUMNS, col(Blob.data)).where(
            col(Blob.tenant_id) == layout_row.tenant_id, col(Blob.digest) == digest
        )
        rows = await environment.database.read(statement)
        if not rows:
            raise KeyError(digest)
        return await read_unverified_content(environment, rows[0])

    try:
        skeleton = parse_layout(await read_unverified_content(environment, layout_row))
        holes = frozenset(hole.digest for hole in skeleton.blob_spans)
        if not rebuilds_message:
            return RebuiltMessage(layout_row.tenant_id, len(skeleton), None, holes)
        size, hashed = 0, sha256()
        async for chunk in rebuild_message(skeleton, read_blob):
            size += len(chunk)
            hashed.update(chunk)
    except KeyError as problem:
        return RebuiltMessage(layout_row.tenant_id, error_text=f"{problem.args[0]} is missing")
    except CorruptBlob as problem:
        return RebuiltMessage(layout_row.tenant_id, error_text=str(problem))
    return RebuiltMessage(layout_row.tenant_id, size, hashed.hexdigest(), holes)


def _findings_of_message(
    owner_table: BlobOwnerTable,
    row: ColumnRow,
    rebuilt: RebuiltMessage | None,
    referenced_digests: set[str],
) -> list[Finding]:
    """The findings of one row. A missing layout blob is found by `missing_reference_checks`."""
    name = f"{owner_table.table.__tablename__}/{row.id}"
    if rebuilt is None:
        return []
    if rebuilt.error_text:
        return [Finding(SUBJECT, "whole", name, "a message", rebuilt.error_text)]
    findings: list[Finding] = []
    if lacking := rebuilt.part_digests - referenced_digests:
        have = len(rebuilt.part_digests) - len(lacking)
        findings.append(
            Finding(
                SUBJECT, "piece_references", name, len(rebuilt.part_digests), have, repairable=True
            )
        )
    if row.size is not None and row.size != rebuilt.size:
        findings.append(Finding(SUBJECT, "message_size", name, row.size, rebuilt.size))
    if rebuilt.digest and row.sha256 and row.sha256 != rebuilt.digest:
        findings.append(Finding(SUBJECT, "message_digest", name, row.sha256, rebuilt.digest))
    return findings


def _repair_of_missing_references(
    owner_table: BlobOwnerTable, row: ColumnRow, rebuilt: RebuiltMessage
) -> Callable[[DatabaseTransaction], bool]:
    """The function that inserts missing reference rows; it returns true if all blobs exist."""
    part_blob_ids = select(col(Blob.id)).where(
        col(Blob.tenant_id) == rebuilt.tenant_id, col(Blob.digest).in_(rebuilt.part_digests)
    )
    still = select(id_column(owner_table.table)).where(id_column(owner_table.table) == row.id)

    def insert_references(transaction: DatabaseTransaction) -> bool:
        if transaction.connection.execute(still).first() is None:
            return False
        ids = transaction.connection.execute(
            part_blob_ids.with_for_update(read=True, key_share=True)
        ).scalars()
        rows = [{owner_table.owner_column: row.id, "blob_id": key} for key in ids]
        if rows:
            new = insert_with_conflict(
                transaction.connection.dialect.name, owner_table.reference_table
            )
            transaction.connection.execute(new.on_conflict_do_nothing(), rows)
        return len(rows) == len(rebuilt.part_digests)

    return insert_references
