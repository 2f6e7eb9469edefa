"""Create, list, read and delete stored files."""

import mimetypes
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Select, delete, func, insert, select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.storage.blobs.blob_writer import (
    BlobRowDeleted,
    StoredMessageBlobs,
    find_intact_and_damaged_blobs,
    store_objects_and_prepare_blob_rows,
    upsert_blob_rows,
)
from mail.storage.blobs.compression import content_digest
from mail.storage.blobs.message_layout import NewBlob
from mail.storage.blobs.object_stores import new_object_name
from models.errors import (
    Forbidden,
    InvalidInput,
    LimitReached,
    NotFound,
    require_all_found,
    require_found,
    require_within_limit,
)
from models.events.event_types import EventType
from models.events.journal import JournalEntry
from models.files.blobs import Blob, Upload
from models.files.tables import File, FileShare
from models.runtime.environment import DatabaseTransaction, Environment
from models.store.columns import ColumnRow, select_columns
from models.store.keyset_pages import Page
from models.users.roles import Scope
from models.users.tables import User
from models.validation_constraints import ValidationConstraint
from resolvers import pagination
from resolvers.access import (
    is_own_or_shared,
    is_own_prepared,
    is_visible_or_managed,
    require_user_id,
)
from resolvers.context import Context
from resolvers.files import uploads
from resolvers.files.uploads import DEFAULT_MEDIA_TYPE, ReceivedFile
from resolvers.list_orders import (
    OwnerPageKey,
    list_orders,
    read_list_pages,
    read_whole_own_list,
)
from resolvers.messages.content_access import withhold_content_or_log_read
from resolvers.pagination import read_own_rows_by_id
from resolvers.sql_text import contains_text_sql


class FileOrder(StrEnum):
    """The order of a list of files; ties by id."""

    CREATED_AT_ASC = "CREATED_AT_ASC"
    CREATED_AT_DESC = "CREATED_AT_DESC"


LIST_ORDERS = list_orders(FileOrder)
MAX_FILES = 10_000  # of one user
WITHHELD_COLUMNS = frozenset({"filename", "digest"})  # hidden for files of other users
USED_AT_INTERVAL = timedelta(days=1)  # between two updates of `used_at`
_MEDIA_TYPES = mimetypes.MimeTypes()  # only Python's own table, the same on every machine

# writes the rows of a file in a transaction; returns its id
RowWriter = Callable[[DatabaseTransaction], int]


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file to store: its bytes, or the upload with its bytes."""

    content: bytes | None = None
    upload_id: int | None = None
    filename: str | None = None
    content_type: str | None = None
    default_type: str = DEFAULT_MEDIA_TYPE  # if neither `content_type` nor the name gives one


@dataclass(frozen=True, slots=True)
class FilePageKey(OwnerPageKey):
    """A page of a user's files, with the requested columns."""

    query: str | None = None  # part of the file name, case-insensitive


async def load_own_files_by_id(ctx: Context, ids: list[int]) -> list[ColumnRow | None]:
    """Load the viewer's files, in the order of the ids; None for an unknown id."""
    return await read_own_rows_by_id(ctx, File, ids)


async def load_visible_files_or_withhold_content(
    ctx: Context, ids: list[int]
) -> list[ColumnRow | None]:
    """Load the files that the viewer sees, in the order of the ids; None for any other id.

    Name and digest of other users' files are withheld unless the viewer may read their content.
    """
    rows = await ctx.read(
        select(*select_columns(File)).where(is_visible_or_managed(ctx, File), col(File.id).in_(ids))
    )
    rows_by_id = {
        row.id: row for row in await withhold_content_or_log_read(ctx, rows, WITHHELD_COLUMNS)
    }
    return [rows_by_id.get(key) for key in ids]


async def load_visible_file_pages_or_withhold_content(
    ctx: Context, page_keys: list[FilePageKey]
) -> list[Page[ColumnRow]]:
    """Load pages of files. Raises InvalidInput for a cursor of another order."""
    if own_pages := await read_whole_own_list(ctx, File, page_keys, _select_own_files):
        return own_pages
    loaded_pages = await read_list_pages(ctx, File, page_keys, _select_visible_files)
    return [
        replace(page, rows=await withhold_content_or_log_read(ctx, page.rows, WITHHELD_COLUMNS))
        for page in loaded_pages
    ]


def _select_own_files(columns: Collection[str]) -> Select[*tuple[Any, ...]]:
    return select(*select_columns(File, columns)).where(is_own_prepared(File))


def _select_visible_files(
    ctx: Context, page_key: FilePageKey, columns: Collection[str]
) -> Select[*tuple[Any, ...]]:
    return select(*select_columns(File, {"user_id", *columns})).where(
        *_list_conditions(ctx, page_key)
    )


async def count_files_of_lists(ctx: Context, page_keys: list[FilePageKey]) -> list[int]:
    """Count the files of each list, in the order of the keys."""
    count_column = func.count().label("many")
    scans = [
        select(count_column).select_from(File).where(*_list_conditions(ctx, key))
        for key in page_keys
    ]
    return [row.many for (row,) in await pagination.read_union(ctx, scans)]


def _list_conditions(ctx: Context, page_key: FilePageKey) -> list[ColumnElement[bool]]:
    terms = [col(File.user_id) == page_key.owner_id, is_visible_or_managed(ctx, File)]
    return (
        [*terms, contains_text_sql(col(File.filename), page_key.query)] if page_key.query else terms
    )


def require_writing_owner_id(ctx: Context) -> int:
    """Return the id of the user who owns the viewer's files.

    Raises Forbidden without the scope MAIL or if read-only.
    """
    owner_id = require_user_id(ctx)
    ctx.viewer.require_scope(Scope.MAIL)
    if ctx.viewer.read_only:
        raise Forbidden("The credential is read-only.", requires="a credential that writes")
    return owner_id


async def store_received_file(ctx: Context, received: ReceivedFile) -> int:
    """Store a file received over HTTP and return its id. Raises Forbidden or LimitReached."""
    owner_id = require_writing_owner_id(ctx)
    return await store_blob_with_rows(
        ctx, received, lambda stored_blobs: _file_row_writer(ctx, owner_id, stored_blobs, received)
    )


async def store_new_file(ctx: Context, new_file: NewFile) -> int:
    """Store a file and return its id.

    The object of an upload becomes the object of the file. Raises NotFound if the upload does not
    exist, InvalidInput, Forbidden, and LimitReached at 10,000 files or the quota.
    """
    if new_file.upload_id is None:
        max_size = ctx.environment.options.upload_max_size
        content = new_file.content or b""
        require_within_limit(
            len(content), max_size, f"A file has at most {max_size} bytes.", path=["content"]
        )
        name, media_type = _validated_name_and_type(
            ctx.environment, new_file.filename, new_file.content_type, new_file.default_type
        )
        digest = content_digest(content)
        return await store_received_file(
            ctx, ReceivedFile(content, len(content), digest, media_type, name)
        )
    owner_id = require_writing_owner_id(ctx)
    upload_row = await ctx.load(uploads.load_own_complete_uploads_by_id, new_file.upload_id)
    row: ColumnRow = require_found(upload_row, str(new_file.upload_id), path=["content"])
    name, media_type = _validated_name_and_type(
        ctx.environment, new_file.filename or row.filename, new_file.content_type, row.content_type
    )
    received = ReceivedFile(b"", row.size, row.digest, media_type, name)
    tenant_id = await read_tenant_id(ctx, owner_id)
    stored_blob = await blob_rows_of_uncompressed_object(
        ctx.environment, tenant_id, received, row.blob_name
    )

    def take_over_upload(transaction: DatabaseTransaction) -> int:
        statement = delete(Upload).where(col(Upload.id) == row.id, col(Upload.user_id) == owner_id)
        if not transaction.connection.execute(statement).rowcount:
            raise NotFound(str(row.id), path=["content"])
        return _file_row_writer(ctx, owner_id, stored_blob, received)(transaction)

    async with ctx.write_session(owner_id) as session:
        return await ctx.environment.run_in_session(session, take_over_upload)


async def store_blob_with_rows(
    ctx: Context, received: ReceivedFile, row_writer_for: Callable[[StoredMessageBlobs], RowWriter]
) -> int:
    """Store a blob, then write its rows in one transaction.

    `row_writer_for` returns the row writer for the stored blob. Returns the id that it returns.
    """
    environment, owner_id = ctx.environment, require_user_id(ctx)
    tenant_id = await read_tenant_id(ctx, owner_id)
    try:
        return await _write_rows(
            ctx, owner_id, row_writer_for(await _store_blob(environment, tenant_id, received))
        )
    except BlobRowDeleted:
        return await _write_rows(
            ctx, owner_id, row_writer_for(await _store_blob(environment, tenant_id, received))
        )


async def _write_rows(ctx: Context, owner_id: int, write_rows: RowWriter) -> int:
    async with ctx.write_session(owner_id) as session:
        return await ctx.environment.run_in_session(session, write_rows)


async def _store_blob(
    environment: Environment, tenant_id: int, received: ReceivedFile
) -> StoredMessageBlobs:
    """Store the bytes: compressed if they are in memory, else uncompressed from the file."""
    if isinstance(received.source, bytes):
        return await store_objects_and_prepare_blob_rows(
            environment, tenant_id, NewBlob(received.digest, received.source), ()
        )
    object_key = new_object_name(received.digest, environment.new_id())
    await uploads.put_object(environment, object_key, received.source)
    return await blob_rows_of_uncompressed_object(environment, tenant_id, received, object_key)


async def blob_rows_of_uncompressed_object(
    environment: Environment, tenant_id: int, received: ReceivedFile, object_key: str
) -> StoredMessageBlobs:
    """Return the blob rows of an uncompressed object, which replaces a damaged blob."""
    stored_before = await find_intact_and_damaged_blobs(environment, tenant_id, [received.digest])
    row = {
        "id": environment.new_id(),
        "tenant_id": tenant_id,
        "digest": received.digest,
        "size": received.size,
        "stored_size": received.size,
        "codec": "raw",
        "name": object_key,
        "data": None,
        "created_at": environment.now(),
    }
    return StoredMessageBlobs(received.digest, [row], [], tenant_id, stored_before.damaged_objects)


async def read_tenant_id(ctx: Context, user_id: int) -> int:
    """Read the tenant that owns the blobs of an account."""
    statement = select(col(User.tenant_id)).where(col(User.id) == user_id)
    return int((await ctx.read(statement))[0].tenant_id)


def _file_row_writer(
    ctx: Context, owner_id: int, stored_blob: StoredMessageBlobs, received: ReceivedFile
) -> RowWriter:
    def insert_file_and_journal_entry(transaction: DatabaseTransaction) -> int:
        require_file_quota(transaction, owner_id, received.size, file_count=1)
        key, now = transaction.environment.new_id(), transaction.environment.now()
        row = {
            "id": key,
            "user_id": owner_id,
            "filename": received.filename
            or _generated_filename(transaction.environment, received.content_type),
            "content_type": received.content_type,
            "size": received.size,
            "digest": received.digest,
            "blob_id": upsert_blob_rows(transaction, stored_blob)[stored_blob.layout_digest],
            "created_at": now,
            "updated_at": now,
            "used_at": now,
        }
        transaction.connection.execute(insert(File), row)
        transaction.record_entry(
            owner_id, JournalEntry(EventType.FILE_CREATED, [key], origin=ctx.origin), at=now
        )
        return key

    return insert_file_and_journal_entry


def require_file_quota(
    transaction: DatabaseTransaction, owner_id: int, size: int, *, file_count: int = 0
) -> None:
    """Raise LimitReached if these bytes and files exceed the limits of an account.

    A read-only copy for a link counts like a file, since the file can change after it.
    """
    is_own_file, is_own_share = col(File.user_id) == owner_id, col(FileShare.user_id) == owner_id
    statement = select(
        func.count(),
        func.coalesce(func.sum(col(File.size)), 0),
        select(func.coalesce(func.sum(col(FileShare.size)), 0))
        .where(is_own_share)
        .scalar_subquery(),
    ).where(is_own_file)
    stored_count, used, copied = transaction.connection.execute(statement).one()
    if stored_count + file_count > MAX_FILES:
        raise LimitReached(
            f"A user has at most {MAX_FILES} files.", limit=MAX_FILES, used=stored_count
        )
    limit, used = transaction.environment.options.files_quota, int(used) + int(copied)
    if limit and used + size > limit:
        raise LimitReached(
            f"The files of a user have at most {limit} bytes in total.", limit=limit, used=used
        )


def name_and_type_from_headers(
    environment: Environment, filename: str, content_type: str
) -> tuple[str, str]:
    """Return name and media type of a file from its HTTP headers. Raises InvalidInput."""
    return _validated_name_and_type(
        environment,
        filename,
        None if content_type == DEFAULT_MEDIA_TYPE else content_type,
        DEFAULT_MEDIA_TYPE,
    )


def _validated_name_and_type(
    environment: Environment, filename: str | None, content_type: str | None, default_type: str
) -> tuple[str, str]:
    name = uploads.filename_from_path_or_none(filename or "")
    if name is not None and not name.isprintable():
        raise InvalidInput(
            "The name must be printable.",
            constraint=ValidationConstraint.PATTERN,
            path=["filename"],
        )
    guessed_type = _MEDIA_TYPES.guess_type(name)[0] if name else None
    declared_type = (content_type or "").partition(";")[0].strip().lower()
    valid_type = uploads.media_type_or_default(declared_type) if declared_type else None
    if valid_type == DEFAULT_MEDIA_TYPE != declared_type:
        raise InvalidInput(
            "Must be a media type, such as text/plain.",
            constraint=ValidationConstraint.PATTERN,
            path=["contentType"],
        )
    media_type = valid_type or guessed_type or default_type
    return name or _generated_filename(environment, media_type), media_type


def _generated_filename(environment: Environment, media_type: str) -> str:
    """Return a file name with the date, for a file without a name."""
    return f"upload-{environment.now():%Y-%m-%d}{_MEDIA_TYPES.guess_extension(media_type) or ''}"


async def delete_files(ctx: Context, ids: Sequence[int]) -> None:
    """Delete files with their links, all or none. Raises NotFound or Forbidden."""
    owner_id = require_writing_owner_id(ctx)
    async with ctx.write_session(owner_id) as session:
        require_all_found(ids, await delete_files_in_transaction(ctx, session, ids), path=["files"])


async def delete_files_in_transaction(
    ctx: Context, session: AsyncSession, ids: Sequence[int]
) -> set[int]:
    """Delete files of the viewer in the caller's transaction, and return their ids."""
    statement = delete(File).where(is_own_or_shared(ctx, File), col(File.id).in_(ids))
    result = await (await session.connection()).execute(statement.returning(col(File.id)))
    deleted_ids = set(result.scalars())
    if deleted_ids:
        await ctx.record_change(
            session, require_user_id(ctx), EventType.FILE_DELETED, sorted(deleted_ids)
        )
    return deleted_ids


async def touch_file_and_read_blob(ctx: Context, file: ColumnRow) -> ColumnRow:
    """Return the blob of a file, and update the time of its last use once a day.

    Raises NotFound.
    """
    now = ctx.environment.now()
    if file.used_at <= now - USED_AT_INTERVAL:
        async with ctx.separate_or_nested_write_session() as (_, session):
            statement = update(File).where(col(File.id) == file.id).values(used_at=now)
            await (await session.connection()).execute(statement)
    return await read_blob_row(ctx, file.blob_id)


async def read_blob_row(ctx: Context, blob_id: int) -> ColumnRow:
    """Read the row of a blob. Raises NotFound if it no longer exists."""
    statement = select(*select_columns(Blob)).where(col(Blob.id) == blob_id)
    return require_found(next(iter(await ctx.read(statement)), None), str(blob_id))
