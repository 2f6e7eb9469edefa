"""Import archives into accounts, by tasks that continue after an interruption."""

import asyncio
import tempfile
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import ColumnElement, delete, insert, select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.archives.mail_sources import (
    HEAD_BYTES,
    MailSource,
    detect_format,
    inspect_mail_source,
    read_messages,
)
from mail.archives.source_message import UnusableMessageError
from mail.mailboxes import paths
from mail.storage.blobs import blob_reader
from mail.storage.blobs.blob_writer import StoredMessageBlobs, insert_blob_rows
from mail.storage.blobs.compression import content_digest
from mail.storage.blobs.object_stores import object_name
from models.admin.tasks import Task, TaskKind
from models.errors import Forbidden, InvalidInput, NotFound, OverQuota, check_limit, require_found
from models.events.event_types import EventType
from models.files.blobs import Blob, Upload
from models.runtime.environment import DatabaseTransaction, Environment
from models.store.columns import ColumnRow, core_table
from models.transfer import ImportArchive
from models.users.roles import Role, Scope, expand_scopes
from models.validation_constraints import ValidationConstraint
from resolvers.access import require_user_id
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.admin.task_steps import TaskStepPlan, TaskStepPlanner, TaskStepResult, insert_tasks
from resolvers.connectors import transfer
from resolvers.context import Context, GuardRule
from resolvers.files import uploads
from resolvers.files.stored_files import blob_rows_of_uncompressed_object, read_tenant_id
from resolvers.files.uploads import ReceivedFile
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.loaders import MailboxSelector
from resolvers.messages.content_access import require_readable_account
from resolvers.transfer import import_mailboxes, import_writer, passphrases
from resolvers.transfer.exports import require_few_running_tasks
from resolvers.transfer.import_settings import import_identities_and_filters, import_settings
from resolvers.transfer.import_writer import ImportableMessage, SourceReader
from resolvers.transfer.running_import import ImportOutcome, RunningImport
from resolvers.users.selection import load_managed_user

TASK_KIND = TaskKind.USER_IMPORT
MAX_RUNNING_IMPORTS = 2  # unfinished imports of a user
SERVER_FILE_RULE = GuardRule(role=Role.ROOT, scope=Scope.FULL)


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

    Raises Invalid if the file is no archive, LimitReached if two imports of the user are
    unfinished. A file on the server requires ROOT and must be below the import folder of the
    settings.
    """
    if (
        sum(
            each is not None for each in (new_import.upload_id, new_import.content, new_import.path)
        )
        != 1
    ):
        text = "Exactly one of archive and path is required"
        raise InvalidInput(text, constraint=ValidationConstraint.EXCLUSIVE, path=["archive"])
    user_id = require_user_id(ctx) if new_import.user_id is None else new_import.user_id
    require_readable_account(ctx, user_id)
    user = await load_managed_user(ctx, user_id)
    target_path = await _target_path(ctx, user.id, new_import.mailbox)
    order = {
        "archive": None,
        "path": new_import.path,
        "mailbox": target_path,
        "dedupe": new_import.skips_known,
        "settings": new_import.with_settings and Scope.SETTINGS in expand_scopes(ctx.viewer.scopes),
        "unset": new_import.with_settings
        and Scope.SETTINGS not in expand_scopes(ctx.viewer.scopes),
        **passphrases.encrypted_passphrase_field(
            ctx, user.id, new_import.passphrase, with_settings=new_import.with_settings
        ),
    }
    if new_import.path is not None:
        await require_importable_server_file(ctx, new_import.path)
        return await _insert_import_task(ctx, user, order, None)
    received, name = await _receive_archive(ctx, new_import)
    if new_import.content is not None:
        await uploads.put_object(ctx.environment, name, received.source)
    stored_blobs = await blob_rows_of_uncompressed_object(
        ctx.environment, await read_tenant_id(ctx, user.id), received, name
    )
    archive = StoredImportArchive(stored_blobs, received, new_import.upload_id)
    return await _insert_import_task(ctx, user, order, archive)


async def _target_path(ctx: Context, user_id: int, mailbox: MailboxSelector | None) -> str | None:
    """Return the path of the mailbox for all messages; None if there is none.

    A mailbox that is named by its path need not exist. Raises NotFound or InvalidInput.
    """
    if mailbox is None:
        return None
    if mailbox.path is not None:
        return paths.validate_path(mailbox.path, input_path=["mailbox"])
    (row,) = await mailbox_loaders.load_by_selectors(ctx, [(user_id, mailbox)])
    if row is None or row.user_id != user_id:
        raise NotFound(str(mailbox), path=["mailbox"])
    return str(row.path)


async def _receive_archive(ctx: Context, new_import: NewImport) -> tuple[ReceivedFile, str]:
    """Return the archive and the name of its object in the store."""
    if new_import.content is not None:
        max_bytes = ctx.environment.options.upload_max_size
        check_limit(
            len(new_import.content), max_bytes, f"at most {max_bytes} bytes", path=["archive"]
        )
        _require_known_format(new_import.content[:HEAD_BYTES], ["archive"])
        digest = content_digest(new_import.content)
        name = object_name(digest, ctx.environment.new_id())
        return ReceivedFile(
            new_import.content, len(new_import.content), digest, filename="archive"
        ), name
    return await read_uploaded_archive(ctx, new_import.upload_id or 0)


async def read_uploaded_archive(
    ctx: Context, upload_id: int, path_in_input: Sequence[str] = ("archive",)
) -> tuple[ReceivedFile, str]:
    """Return an uploaded archive of the viewer, and the name of its object in the store.

    Raises NotFound if there is no such upload, Invalid if it is no archive.
    """
    row: ColumnRow = require_found(
        await ctx.load(uploads.load_own_uploads_by_id, upload_id),
        str(upload_id),
        path=path_in_input,
    )
    head = await uploads.read_upload_head(ctx, row, HEAD_BYTES)
    _require_known_format(head, path_in_input)
    return ReceivedFile(
        b"", row.size, row.digest, filename=row.filename or "archive"
    ), row.blob_name


def _require_known_format(first_bytes: bytes, path_in_input: Sequence[str]) -> None:
    """Raise Invalid if a file does not begin like a supported archive."""
    try:
        detect_format(first_bytes)
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
    """Raise Invalid if the file is no supported archive."""
    with file.open("rb") as archive_file:
        _require_known_format(archive_file.read(HEAD_BYTES), path_in_input)


def _resolve_path_in_import_folder(
    environment: Environment, relative_path: str, path_in_input: Sequence[str] = ("path",)
) -> Path:
    """Return the file of this path below the import folder, after following links.

    Raises Forbidden if no import folder is set, NotFound if the path is no file inside it.
    """
    folder = environment.options.import_folder
    if folder is None:
        raise Forbidden("No import folder is set: MERGANSER_IMPORT_FOLDER", path=path_in_input)
    try:
        import_folder = folder.resolve(strict=True)
        path = (import_folder / relative_path).resolve(strict=True)
        if path.is_relative_to(import_folder) and path.is_file():
            return path
    except (OSError, ValueError, RuntimeError):
        pass
    raise NotFound(relative_path, path=path_in_input)


@dataclass(frozen=True, slots=True)
class StoredImportArchive:
    """An archive whose bytes are stored, and the upload that it came by."""

    stored_blobs: StoredMessageBlobs
    received_file: ReceivedFile
    upload_id: int | None


async def _insert_import_task(
    ctx: Context,
    user: ColumnRow,
    task_order: dict[str, Any],
    archive: StoredImportArchive | None,
) -> Task:
    """Insert the task of an import, with its archive, and record it."""
    async with ctx.write_session(user.id) as session:
        await require_few_running_tasks(ctx, user.id, TASK_KIND, MAX_RUNNING_IMPORTS)
        archive_id = ctx.environment.new_id() if archive else None
        order_with_archive = {**task_order, "archive": archive_id}
        (task,) = await insert_tasks(ctx, session, TASK_KIND, [order_with_archive], user_id=user.id)
        if archive and archive_id:

            def insert_archive(transaction: DatabaseTransaction) -> None:
                if archive.upload_id is not None:
                    delete_upload_row(transaction, ctx.viewer.user_id, archive.upload_id)
                blob_ids = insert_blob_rows(transaction, archive.stored_blobs)
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
        await ctx.record_change(session, user.id, EventType.TASK_CHANGED, [task.id])
        if user.id != ctx.viewer.user_id:
            after = {"path": task_order["path"], "mailbox": task_order["mailbox"]}
            entry = NewAuditLogEntry("userImport", "User", user.id, user.domain_id, None, after)
            await audit_log.log_changes(ctx, session, entry)
    return task


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
async def open_import_planner(
    ctx: Context, task_order: dict[str, Any], checkpoint: Mapping[str, Any]
) -> AsyncGenerator[TaskStepPlanner]:
    """Open the archive for one run of the task, and yield the planner of its steps.

    Raises Invalid if the archive can't be read or has changed since the last run.
    """
    async with open_archive_file(
        ctx, task_order["path"], col(ImportArchive.id) == task_order["archive"]
    ) as path:
        try:
            max_bytes = ctx.environment.options.message_max_size
            origin = await asyncio.to_thread(inspect_mail_source, path, max_bytes)
        except UnusableMessageError as problem:
            raise InvalidInput(
                str(problem), constraint=ValidationConstraint.ARCHIVE, path=["archive"]
            ) from problem
        if (
            checkpoint
            and checkpoint.get("stamp", "") not in ("", origin.stamp)
            and task_order["path"]
        ):
            raise InvalidInput(
                "The file changed after the import began",
                constraint=ValidationConstraint.ARCHIVE,
                path=["path"],
            )
        start = checkpoint.get("begun") or ctx.environment.new_id()
        running = await import_writer.begin_import(
            ctx, ctx.viewer.user_id, task_order["mailbox"], start
        )
        running.outcome = ImportOutcome(**checkpoint.get("outcome", {}))
        running.skips_known = task_order["dedupe"]
        remaining_messages = read_messages(origin, checkpoint.get("after"))
        yield _ImportRun(running, origin, SourceReader(remaining_messages)).plan_step


@asynccontextmanager
async def open_archive_file(
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
    blob = require_found(next(iter(await ctx.read(statement)), None), "archive", path=["archive"])
    with tempfile.TemporaryDirectory(prefix="merganser-import-") as folder:
        path = Path(folder) / "archive"
        chunks = blob_reader.stream_content(ctx.environment.object_store, blob)
        with path.open("wb") as file:
            async with aclosing(chunks):
                async for chunk in chunks:
                    await asyncio.to_thread(file.write, chunk)
        yield path


@dataclass(slots=True)
class PlannedImportStep:
    """What a step stores, and its checkpoint."""

    running: RunningImport
    checkpoint: dict[str, Any]
    messages: list[ImportableMessage]
    stored_blobs: list[StoredMessageBlobs]
    handled_count: int = 0
    total: int | None = None
    is_last: bool = False


@dataclass(slots=True)
class _ImportRun:
    """One run of an import task, with its open archive."""

    running: RunningImport
    source: MailSource
    reader: SourceReader

    async def plan_step(
        self, _ctx: Context, task_order: dict[str, Any], checkpoint: dict[str, Any]
    ) -> TaskStepPlan:
        """Read the next messages and store their blobs.

        The first step creates mailboxes and settings, the last one connectors. Raises Invalid
        if the archive can't be read any further.
        """
        if trouble := checkpoint.get("trouble"):
            raise InvalidInput(trouble, constraint=ValidationConstraint.ARCHIVE, path=["archive"])
        running = self.running
        note = {**checkpoint, "begun": running.first_new_id, "stamp": self.source.stamp}
        if not checkpoint:
            await self._import_account_record(task_order)
            account = self.source.account
            return TaskStepPlan(
                prepared=PlannedImportStep(
                    running, note, [], [], total=account.messages if account else None
                )
            )
        group = await asyncio.to_thread(self.reader.read_batch)
        if self.reader.problem and not group:
            raise InvalidInput(
                self.reader.problem, constraint=ValidationConstraint.ARCHIVE, path=["archive"]
            )
        if not group:
            await self._import_connectors(task_order)
            return TaskStepPlan(prepared=PlannedImportStep(running, note, [], [], is_last=True))
        prepared_messages = [
            one
            for one in [
                await import_writer.importable_message_unless_known(running, each) for each in group
            ]
            if one
        ]
        note["after"] = group[-1].checkpoint
        stored_blobs = await import_writer.store_blobs(running, prepared_messages)
        return TaskStepPlan(
            prepared=PlannedImportStep(running, note, prepared_messages, stored_blobs, len(group))
        )

    async def _import_account_record(self, task_order: dict[str, Any]) -> None:
        """Create the mailboxes and settings of the account record, if the archive has one."""
        account = self.source.account
        if account is None:
            return
        if task_order["settings"]:  # before the mailboxes: encrypted ones need the public key
            await import_settings(self.running, account)
        elif task_order["unset"] and any(
            getattr(account, name)
            for name in (
                *("settings", "key_values", "labels", "identities"),
                *("filters", "scripts", "sender_rules", "connectors"),
            )
        ):
            self.running.outcome.add_skipped("settings", "this needs the scope SETTINGS")
        await import_mailboxes.create_mailboxes(
            self.running, account, with_annotations=task_order["settings"]
        )
        if task_order["settings"]:
            await import_identities_and_filters(self.running, account)

    async def _import_connectors(self, task_order: dict[str, Any]) -> None:
        """Import connectors after all messages, since they would fetch the messages again."""
        if self.source.account is not None and task_order["settings"]:
            ctx = self.running.ctx
            passphrase = passphrases.decrypt_passphrase(
                ctx.environment, ctx.viewer.user_id, task_order
            )
            await transfer.import_connectors(self.running, self.source.account, passphrase)


async def insert_messages_of_step(
    ctx: Context,
    session: AsyncSession,
    task_order: dict[str, Any],
    _: dict[str, Any],
    task_plan: TaskStepPlan,
) -> TaskStepResult:
    """Insert the messages of a step. If the account is full, insert as many as fit and end."""
    planned: PlannedImportStep = task_plan.prepared
    outcome, running = planned.running.outcome, planned.running
    if planned.is_last:
        await delete_archive(session, task_order)
        return TaskStepResult(_checkpoint_with_outcome(planned.checkpoint, outcome))
    try:
        async with ctx.write_session(running.user.id) as inner:
            await import_writer.insert_messages(
                running, inner, planned.messages, planned.stored_blobs
            )
        outcome.stored += len(planned.messages)
    except OverQuota:
        await _store_until_full(ctx, planned)
    ctx.environment.reach_fault_point("imported")
    return TaskStepResult(
        _checkpoint_with_outcome(planned.checkpoint, outcome),
        done_count=planned.handled_count,
        has_more=True,
        total=planned.total,
    )


async def _store_until_full(ctx: Context, planned: PlannedImportStep) -> None:
    """Insert messages one after the other until the quota is used up."""
    for prepared_message, stored_blobs in zip(planned.messages, planned.stored_blobs, strict=True):
        try:
            async with ctx.write_session(planned.running.user.id) as inner:
                await import_writer.insert_messages(
                    planned.running, inner, [prepared_message], [stored_blobs]
                )
        except OverQuota as full:
            planned.checkpoint["trouble"] = f"the account is full: {full.message}"
            return
        planned.running.outcome.stored += 1
        planned.checkpoint["after"] = prepared_message.source.checkpoint


def _checkpoint_with_outcome(checkpoint: dict[str, Any], outcome: ImportOutcome) -> dict[str, Any]:
    """Return the checkpoint with the outcome, which the result of the task shows."""
    plain: dict[str, Any] = orjson.loads(orjson.dumps(asdict(outcome)))
    facts = {"stored": outcome.stored, "known": outcome.known, "untold": outcome.untold}
    return {**checkpoint, **facts, "refused": plain["skipped"], "outcome": plain}


async def delete_archive(session: AsyncSession, task_order: dict[str, Any]) -> None:
    """Delete the archive of a task."""
    if task_order["archive"] is not None:
        statement = delete(ImportArchive).where(col(ImportArchive.id) == task_order["archive"])
        await (await session.connection()).execute(statement)


async def plan_nothing(
    _ctx: Context, _order: dict[str, Any], _checkpoint: dict[str, Any]
) -> TaskStepPlan:
    """Plan nothing: `open_import_planner` yields the planner."""
    return TaskStepPlan()
