"""Store uploads: bytes that a client sends before the mutation that uses them, kept for a day."""

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Select, func, insert, select
from sqlmodel import col

from mail.mime.header_parameters import first_filename, parse_value_and_parameters
from mail.storage.blobs.compression import verify_digest
from mail.storage.blobs.errors import CorruptBlob
from mail.storage.blobs.object_stores import new_object_name
from models.errors import Forbidden, LimitReached, RateLimited, RequestError, require_found
from models.files.blobs import Upload
from models.runtime.environment import DatabaseTransaction, Environment
from models.runtime.options import MIB
from models.store.columns import ColumnRow, select_columns
from models.users.roles import Scope, expand_scopes
from resolvers.access import is_own_or_shared, require_user_id
from resolvers.context import Context
from resolvers.pagination import read_by_keys

LIFETIME = timedelta(hours=24)
MAX_UPLOADS = 100  # of one user
MAX_TOTAL_BYTES = 1024 * MIB  # of one user
MAX_NAME_LENGTH = 255  # characters of a file name
DEFAULT_MEDIA_TYPE = "application/octet-stream"

_MEDIA_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,127}/[A-Za-z0-9!#$&^_.+-]{1,127}", re.ASCII)


@dataclass(frozen=True, slots=True)
class ReceivedFile:
    """Received bytes, in memory or in a file that exists until they are stored."""

    source: bytes | Path
    size: int
    digest: str  # SHA-256, hex
    content_type: str = DEFAULT_MEDIA_TYPE
    filename: str | None = None


def type_and_name_from_headers(headers: Mapping[str, str]) -> tuple[str, str | None]:
    """Return media type and file name from HTTP headers with names in lower case."""
    media_type = headers.get("content-type", "").partition(";")[0]
    _, disposition = parse_value_and_parameters(headers.get("content-disposition", ""))
    return media_type_or_default(media_type), filename_from_path_or_none(
        first_filename(disposition.get("filename")) or ""
    )


def media_type_or_default(text: str) -> str:
    """Return the media type in lower case, or application/octet-stream if it is invalid."""
    media_type = text.strip().lower()
    return media_type if _MEDIA_TYPE.fullmatch(media_type) else DEFAULT_MEDIA_TYPE


def filename_from_path_or_none(text: str) -> str | None:
    """Return the last part of a path, at most 255 characters, or None if it is empty."""
    return text.replace("\\", "/").rsplit("/", 1)[-1][:MAX_NAME_LENGTH] or None


async def require_upload_allowed(ctx: Context, size: int = 0) -> None:
    """Raise an error unless the viewer may upload `size` bytes; 0 stands for an unknown number.

    Raises Forbidden without the scope MAIL or SUBMIT; RateLimited and LimitReached at the limits
    of waiting uploads.
    """
    owner_id = require_upload_scope_and_owner_id(ctx)
    require_below_upload_limits(
        ctx.environment,
        (await ctx.read(unexpired_upload_totals_query(ctx.environment, owner_id)))[0],
        size,
    )


def require_upload_scope_and_owner_id(ctx: Context) -> int:
    """Return the id of the user who owns the viewer's uploads.

    Raises Forbidden without the scope MAIL or SUBMIT.
    """
    viewer = ctx.viewer
    owner_id = require_user_id(ctx)
    if viewer.read_only or not {Scope.MAIL, Scope.SUBMIT} & expand_scopes(viewer.scopes):
        raise Forbidden("Requires the scope MAIL or SUBMIT.", requires=Scope.MAIL)
    return owner_id


def unexpired_upload_totals_query(
    environment: Environment, owner_id: int
) -> Select[*tuple[Any, ...]]:
    """Return the query for unexpired uploads: `many`, `bytes`, and when the `first` expires."""
    return select(
        func.count().label("many"),
        func.coalesce(func.sum(col(Upload.size)), 0).label("bytes"),
        func.min(col(Upload.expires_at)).label("first"),
    ).where(col(Upload.user_id) == owner_id, col(Upload.expires_at) > environment.now())


def require_below_upload_limits(environment: Environment, waiting: ColumnRow, size: int) -> None:
    """Raise RateLimited at 100 waiting uploads, LimitReached if the new size exceeds 1 GiB."""
    if waiting.many >= MAX_UPLOADS:
        retry_after = max(waiting.first - environment.now(), timedelta(seconds=1))
        raise RateLimited(
            f"A user has at most {MAX_UPLOADS} unused uploads.", retry_after=retry_after
        )
    if waiting.bytes + size > MAX_TOTAL_BYTES:
        text = f"The unused uploads of a user have at most {MAX_TOTAL_BYTES} bytes in total."
        raise LimitReached(text, limit=MAX_TOTAL_BYTES, used=int(waiting.bytes))


async def store_upload(ctx: Context, received: ReceivedFile) -> ColumnRow:
    """Store received bytes durably and return the row.

    Raises RateLimited at 100 waiting uploads of the viewer, and LimitReached if they exceed 1 GiB.
    """
    environment, owner_id = ctx.environment, require_user_id(ctx)
    upload_id = environment.new_id()
    object_key = new_object_name(received.digest, upload_id)
    row = {
        "id": upload_id,
        "user_id": owner_id,
        "size": received.size,
        "received": received.size,
        "digest": received.digest,
        "content_type": received.content_type,
        "filename": received.filename,
        "blob_name": object_key,
        "created_at": environment.now(),
        "expires_at": environment.now() + LIFETIME,
    }

    def insert_upload_within_limits(transaction: DatabaseTransaction) -> ColumnRow:
        require_below_upload_limits(
            environment,
            transaction.connection.execute(
                unexpired_upload_totals_query(environment, owner_id)
            ).one(),
            received.size,
        )
        statement = insert(Upload).returning(*select_columns(Upload))
        return transaction.connection.execute(statement, row).one()

    await put_object(environment, object_key, received.source)
    try:
        return await environment.run_transaction(insert_upload_within_limits, owner_id)
    except RequestError:  # no row names the object; after other failures one can
        await environment.object_store.delete([object_key])
        raise


async def put_object(environment: Environment, name: str, source: bytes | Path) -> None:
    """Store the bytes, or those of the file, under this name in the object store."""
    if isinstance(source, Path):
        await environment.object_store.put_file(name, source)
    else:
        await environment.object_store.put(name, source)


async def load_own_complete_uploads_by_id(ctx: Context, ids: list[int]) -> list[ColumnRow | None]:
    """Load the viewer's uploads, in the order of the ids; None if one is expired or unfinished."""
    own_uploads = select(*select_columns(Upload)).where(
        is_own_or_shared(ctx, Upload),
        col(Upload.expires_at) > ctx.environment.now(),
        col(Upload.blob_name).is_not(None),
    )
    return await read_by_keys(ctx, own_uploads, col(Upload.id), ids)


async def read_upload_head(ctx: Context, upload: ColumnRow, max_bytes: int) -> bytes:
    """Read the first bytes of an upload without verifying them.

    Raises CorruptBlob if its object is lost.
    """
    try:
        return await ctx.environment.object_store.get_range(
            upload.blob_name, 0, min(upload.size, max_bytes)
        )
    except KeyError as problem:
        raise _lost_object_error(upload) from problem


async def read_and_verify_upload(ctx: Context, upload_id: int, *, path: str = "id") -> bytes:
    """Read and verify an upload.

    Raises NotFound if the viewer has none, CorruptBlob if it is damaged.
    """
    row = await ctx.load(load_own_complete_uploads_by_id, upload_id)
    row = require_found(row, str(upload_id), path=[path])
    try:
        content = await ctx.environment.object_store.get(row.blob_name)
        return await asyncio.to_thread(verify_digest, row.digest, content)
    except KeyError as problem:
        raise _lost_object_error(row) from problem


def _lost_object_error(upload: ColumnRow) -> CorruptBlob:
    return CorruptBlob(f"The object {upload.blob_name} of an upload is lost")
