"""Queue imports of archives into accounts."""

from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import insert

from mail.archives.mail_sources import (
    HEAD_BYTES,
)
from mail.mailboxes import paths
from mail.storage.blobs.blob_writer import StoredMessageBlobs, upsert_blob_rows
from mail.storage.blobs.compression import content_digest
from mail.storage.blobs.object_stores import new_object_name
from models.admin.tasks import Task, TaskKind
from models.errors import InvalidInput, NotFound, require_within_limit
from models.events.event_types import EventType
from models.runtime.environment import DatabaseTransaction
from models.store.columns import ColumnRow, core_table
from models.transfer import ImportArchive
from models.users.roles import Scope, expand_scopes
from models.validation_constraints import ValidationConstraint
from resolvers.access import require_user_id
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.admin.task_steps import insert_tasks_and_wake_workers
from resolvers.context import Context
from resolvers.files import uploads
from resolvers.files.stored_files import blob_rows_of_uncompressed_object, read_tenant_id
from resolvers.files.uploads import ReceivedFile
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.loaders import MailboxSelector
from resolvers.messages.content_access import require_readable_account
from resolvers.transfer import passphrases
from resolvers.transfer.exports import require_below_running_task_limit
from resolvers.transfer.import_archives import (
    UploadedArchive,
    delete_upload_row,
    require_importable_server_file,
    require_known_format,
    require_own_uploaded_archive,
)
from resolvers.users.selection import require_managed_user

TASK_KIND = TaskKind.USER_IMPORT
MAX_RUNNING_IMPORTS = 2  # unfinished imports of a user


@dataclass(frozen=True, slots=True)
class NewImport:
    """An archive to import: an upload, bytes of the request, or a file on the server."""

    user_id: int | None = None  # None: the viewer
    upload_id: int | None = None
    content: bytes | None = None
    path: str | None = None
    # one for all messages; None: the mailboxes of the archive
    mailbox: MailboxSelector | None = None
    skips_known: bool = True
    with_settings: bool = True
    passphrase: str | None = field(default=None, repr=False)  # decrypts passwords in the archive


async def queue_import(ctx: Context, new_import: NewImport) -> Task:
    """Queue a task that imports an archive.

    Raises InvalidInput if the file is no archive, LimitReached if two imports of the user are
    unfinished. A file on the server requires ROOT and must be below the import folder of the
    settings.
    """
    if (
        sum(
            source is not None
            for source in (new_import.upload_id, new_import.content, new_import.path)
        )
        != 1
    ):
        text = "Exactly one of `archive` and `path` is required."
        raise InvalidInput(text, constraint=ValidationConstraint.EXCLUSIVE, path=["archive"])
    user_id = require_user_id(ctx) if new_import.user_id is None else new_import.user_id
    require_readable_account(ctx, user_id)
    user = await require_managed_user(ctx, user_id)
    target_path = await _require_target_path_if_given(ctx, user.id, new_import.mailbox)
    # settings can give others access, such as filters that forward: graph/types/access_grants.py
    settings_scope = Scope.SETTINGS if user.id == ctx.viewer.user_id else Scope.FULL
    can_import_settings = (
        settings_scope in expand_scopes(ctx.viewer.scopes) and not ctx.viewer.is_acting
    )
    order = {
        "archive": None,
        "path": new_import.path,
        "mailbox": target_path,
        "dedupe": new_import.skips_known,
        "settings": new_import.with_settings and can_import_settings,
        "unset": new_import.with_settings and not can_import_settings,
        **passphrases.encrypted_passphrase_field(
            ctx, user.id, new_import.passphrase, with_settings=new_import.with_settings
        ),
    }
    if new_import.path is not None:
        await require_importable_server_file(ctx, new_import.path)
        return await _insert_import_task_and_audit_log_entry(ctx, user, order, None)
    received, name = await _require_archive_and_object_name(ctx, new_import)
    if new_import.content is not None:
        await uploads.put_object(ctx.environment, name, received.source)
    stored_blobs = await blob_rows_of_uncompressed_object(
        ctx.environment, await read_tenant_id(ctx, user.id), received, name
    )
    archive = StoredImportArchive(stored_blobs, received, new_import.upload_id)
    return await _insert_import_task_and_audit_log_entry(ctx, user, order, archive)


async def _require_target_path_if_given(
    ctx: Context, user_id: int, mailbox: MailboxSelector | None
) -> str | None:
    """Return the path of the mailbox for all messages; None if there is none.

    A mailbox that is named by its path need not exist. Raises NotFound or InvalidInput.
    """
    if mailbox is None:
        return None
    if mailbox.path is not None:
        return paths.validate_path(mailbox.path, input_path=["mailbox"])
    (row,) = await mailbox_loaders.load_visible_by_selectors(ctx, [(user_id, mailbox)])
    if row is None or row.user_id != user_id:
        raise NotFound(str(mailbox), path=["mailbox"])
    return str(row.path)


async def _require_archive_and_object_name(ctx: Context, new_import: NewImport) -> UploadedArchive:
    """Return the archive of the input or of an upload, with the name for its object in the store.

    An archive in the input is not stored yet. Raises LimitReached, InvalidInput for an unknown
    format, and NotFound for an upload that the viewer doesn't own.
    """
    if new_import.content is not None:
        max_bytes = ctx.environment.options.upload_max_size
        require_within_limit(
            len(new_import.content),
            max_bytes,
            f"An archive has at most {max_bytes} bytes.",
            path=["archive"],
        )
        require_known_format(new_import.content[:HEAD_BYTES], ["archive"])
        digest = content_digest(new_import.content)
        name = new_object_name(digest, ctx.environment.new_id())
        return UploadedArchive(
            ReceivedFile(new_import.content, len(new_import.content), digest, filename="archive"),
            name,
        )
    return await require_own_uploaded_archive(ctx, new_import.upload_id or 0)


@dataclass(frozen=True, slots=True)
class StoredImportArchive:
    """An archive whose bytes are stored, and the upload that it came by."""

    stored_blobs: StoredMessageBlobs
    received_file: ReceivedFile
    upload_id: int | None


async def _insert_import_task_and_audit_log_entry(
    ctx: Context,
    user: ColumnRow,
    task_order: dict[str, Any],
    archive: StoredImportArchive | None,
) -> Task:
    """Insert the task of an import, with its archive, and record it."""
    async with ctx.write_session(user.id) as session:
        await require_below_running_task_limit(ctx, user.id, TASK_KIND, MAX_RUNNING_IMPORTS)
        archive_id = ctx.environment.new_id() if archive else None
        order_with_archive = {**task_order, "archive": archive_id}
        (task,) = await insert_tasks_and_wake_workers(
            ctx, session, TASK_KIND, [order_with_archive], user_id=user.id
        )
        if archive and archive_id:

            def insert_archive(transaction: DatabaseTransaction) -> None:
                if archive.upload_id is not None:
                    delete_upload_row(transaction, ctx.viewer.user_id, archive.upload_id)
                blob_ids = upsert_blob_rows(transaction, archive.stored_blobs)
                row = {
                    "id": archive_id,
                    "user_id": user.id,
                    "task_id": task.id,
                    "filename": archive.received_file.filename or "archive",
                    "size": archive.received_file.size,
                    "blob_id": blob_ids[archive.stored_blobs.layout_digest],
                    "created_at": transaction.environment.now(),
                }
                transaction.connection.execute(insert(core_table(ImportArchive)), row)

            await ctx.environment.run_in_session(session, insert_archive)
        await ctx.record_change(session, user.id, EventType.TASK_CREATED, [task.id])
        if user.id != ctx.viewer.user_id:
            after = {"path": task_order["path"], "mailbox": task_order["mailbox"]}
            entry = NewAuditLogEntry("userImport", "User", user.id, user.domain_id, None, after)
            await audit_log.insert_audit_log_entries(ctx, session, entry)
    return task
