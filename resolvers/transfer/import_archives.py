"""Archives to import: uploads, bytes of a request and files on the server."""

import asyncio
import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, delete, select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.archives.mail_sources import (
    HEAD_BYTES,
    detect_mail_format_or_raise,
)
from mail.archives.source_message import UnusableMessageError
from mail.storage.blobs import blob_reader
from models.errors import Forbidden, InvalidInput, NotFound, require_found
from models.files.blobs import Blob, Upload
from models.runtime.environment import DatabaseTransaction, Environment
from models.store.columns import ColumnRow
from models.transfer import ImportArchive
from models.users.roles import Role, Scope
from models.validation_constraints import ValidationConstraint
from resolvers.context import Context
from resolvers.files import uploads
from resolvers.files.uploads import ReceivedFile
from resolvers.viewer import GuardRule

SERVER_FILE_RULE = GuardRule(role=Role.ROOT, scope=Scope.FULL)


class UploadedArchive(NamedTuple):
    """An uploaded archive, and the name of its object in the store."""

    received_file: ReceivedFile
    object_name: str


async def require_own_uploaded_archive(
    ctx: Context, upload_id: int, path_in_input: Sequence[str] = ("archive",)
) -> UploadedArchive:
    """Return an uploaded archive of the viewer, and the name of its object in the store.

    Raises NotFound if there is no such upload, InvalidInput if it is no archive.
    """
    row: ColumnRow = require_found(
        await ctx.load(uploads.load_own_complete_uploads_by_id, upload_id),
        str(upload_id),
        path=path_in_input,
    )
    head = await uploads.read_upload_head(ctx, row, HEAD_BYTES)
    require_known_format(head, path_in_input)
    return UploadedArchive(
        ReceivedFile(b"", row.size, row.digest, filename=row.filename or "archive"), row.blob_name
    )


def require_known_format(first_bytes: bytes, path_in_input: Sequence[str]) -> None:
    """Raise InvalidInput if a file does not begin like a supported archive."""
    try:
        detect_mail_format_or_raise(first_bytes)
    except UnusableMessageError as problem:
        raise InvalidInput(
            str(problem), constraint=ValidationConstraint.ARCHIVE, path=path_in_input
        ) from problem


async def require_importable_server_file(
    ctx: Context, relative_path: str, path_in_input: Sequence[str] = ("path",)
) -> None:
    """Raise an error if a file on the server can't be imported.

    Forbidden if the viewer is not ROOT, NotFound if there is no such file, Invalid if it is no
    archive.
    """
    ctx.viewer.require(SERVER_FILE_RULE)
    await asyncio.to_thread(
        _require_known_file_format,
        _resolve_path_in_import_folder(ctx.environment, relative_path, path_in_input),
        path_in_input,
    )


def _require_known_file_format(file: Path, path_in_input: Sequence[str]) -> None:
    """Raise InvalidInput if the file is no supported archive."""
    with file.open("rb") as archive_file:
        require_known_format(archive_file.read(HEAD_BYTES), path_in_input)


def _resolve_path_in_import_folder(
    environment: Environment, relative_path: str, path_in_input: Sequence[str] = ("path",)
) -> Path:
    """Return the file of this path below the import folder, after following links.

    Raises Forbidden if no import folder is set, NotFound if the path is no file inside it.
    """
    folder = environment.options.import_folder
    if folder is None:
        raise Forbidden(
            "No import folder is configured: set MERGANSER_IMPORT_FOLDER.", path=path_in_input
        )
    try:
        import_folder = folder.resolve(strict=True)
        path = (import_folder / relative_path).resolve(strict=True)
        if path.is_relative_to(import_folder) and path.is_file():
            return path
    except (OSError, ValueError, RuntimeError):
        pass
    raise NotFound(relative_path, path=path_in_input)


def delete_upload_row(
    transaction: DatabaseTransaction,
    user_id: int,
    upload_id: int,
    path_in_input: Sequence[str] = ("archive",),
) -> None:
    """Delete the upload row of a user, because an archive now owns its bytes.

    Raises NotFound if there is no such upload.
    """
    is_own = col(Upload.user_id) == user_id
    statement = delete(Upload).where(col(Upload.id) == upload_id, is_own)
    if not transaction.connection.execute(statement).rowcount:
        raise NotFound(str(upload_id), path=path_in_input)


@asynccontextmanager
async def open_server_file_or_archive_copy(
    ctx: Context, relative_path: str | None, archive_clause: ColumnElement[bool]
) -> AsyncGenerator[Path]:
    """Provide an archive as a local file: a file on the server, or a copy of the stored one.

    Raises NotFound if it does not exist. The copy is deleted at the end.
    """
    if relative_path is not None:
        yield await asyncio.to_thread(
            _resolve_path_in_import_folder, ctx.environment, relative_path
        )
        return
    statement = (
        select(*blob_reader.COLUMNS, col(ImportArchive.filename))
        .join(ImportArchive, col(ImportArchive.blob_id) == col(Blob.id))
        .where(archive_clause)
    )
    blob = require_found(
        next(iter(await ctx.read(statement)), None), path=["archive"], noun="Archive"
    )
    with tempfile.TemporaryDirectory(prefix="merganser-import-") as folder:
        path = Path(folder) / "archive"
        chunks = blob_reader.stream_content(ctx.environment.object_store, blob)
        with path.open("wb") as file:
            async with aclosing(chunks):
                async for chunk in chunks:
                    await asyncio.to_thread(file.write, chunk)
        yield path


async def delete_archive(session: AsyncSession, task_order: dict[str, Any]) -> None:
    """Delete the archive of a task."""
    if task_order["archive"] is not None:
        statement = delete(ImportArchive).where(col(ImportArchive.id) == task_order["archive"])
        await (await session.connection()).execute(statement)
