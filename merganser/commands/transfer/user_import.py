"""`merganser import`: store the mail of a source. A killed import resumes at its checkpoint."""

import asyncio
import fcntl
import hashlib
import os
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from sqlalchemy import select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.archives.json_lines import AccountRecord
from mail.archives.mail_sources import (
    MailSource,
    inspect_mail_source,
    read_source_messages_and_skips,
)
from mail.archives.source_message import (
    SourceMessage,
    UnusableMessageError,
    text_from_file_name,
)
from mail.mailboxes import paths
from mail.recipients import address_resolution
from mail.storage.blobs.blob_writer import BlobRowDeleted, StoredMessageBlobs
from merganser.errors import EXIT_USAGE, CommandError, user_not_found_error
from merganser.server.environment_factory import user_context
from models.admin.tasks import Task, TaskKind, TaskState
from models.errors import OverQuota, RequestError
from models.events.event_types import EventType
from models.runtime.environment import Environment
from models.store.columns import ColumnRow, select_columns
from models.users.tables import User
from resolvers.connectors import transfer
from resolvers.transfer import import_mailboxes, import_settings, import_writer, passphrases
from resolvers.transfer.import_writer import ImportableMessage, SourceReader
from resolvers.transfer.running_import import ImportOutcome, RunningImport

TASK_KIND = TaskKind.USER_IMPORT_COMMAND

ShowImportProgress = Callable[[int], None]  # takes the position in the source


@dataclass(frozen=True, slots=True)
class ImportOrder:
    """The source to import, and the account and options of the import."""

    path: Path
    username_or_address: str  # username or address
    mailbox: str | None = None  # for all messages; None: the mailboxes of the source
    data_folder: Path = Path("var")  # with the locks of running imports
    includes_settings: bool = True  # if the source is an archive that Merganser wrote
    passphrase: str | None = field(default=None, repr=False)  # of the export


@dataclass(slots=True)
class CommandLineImport:
    """A running import with its source and its task."""

    import_state: RunningImport
    source: MailSource
    task_id: int
    done_before: int  # of the source, by earlier runs


async def find_user_or_fail_command(
    environment: Environment, username_or_address: str
) -> ColumnRow:
    """Load the ID and username of a user by username or address.

    Raises CommandError if there is no such user.
    """
    key = await address_resolution.find_sign_in_user_id(environment, username_or_address)
    statement = select(*select_columns(User, {"id", "username"})).where(col(User.id) == (key or 0))
    for row in await environment.database.read(statement):
        return row
    raise user_not_found_error(username_or_address)


async def import_account(
    environment: Environment,
    order: ImportOrder,
    start_progress: Callable[[MailSource, int], ShowImportProgress],
) -> ImportOutcome:
    """Import all messages of a source, and resume an interrupted import.

    `start_progress` takes the source and the position in it, and returns a function that takes
    each later position. Raises CommandError if the source can't be read or has no message, the
    account is full, the import is cancelled, or the same import runs in another process.
    """
    passphrase = passphrases.validate_passphrase(order.passphrase)
    if passphrase is not None and not order.includes_settings:
        raise CommandError(
            "Passwords are part of the settings, which are not imported.", exit_code=EXIT_USAGE
        )
    user = await find_user_or_fail_command(environment, order.username_or_address)
    origin = await _inspect_mail_source_or_fail_command(environment, order.path)
    try:
        target_mailbox = paths.validate_path(order.mailbox) if order.mailbox else None
        async with _import_lock(
            order.data_folder, f"{user.id}\0{_path_text(origin)}\0{target_mailbox}"
        ):
            running_import, after = await _start_or_resume_import(
                environment, origin, user.id, target_mailbox
            )
            if after is None and origin.account:
                await _import_mailboxes_and_optional_settings(
                    running_import.import_state,
                    origin.account,
                    includes_settings=order.includes_settings,
                )
            await _import_remaining_messages(
                running_import, after, start_progress(origin, running_import.done_before)
            )
            if (
                origin.account and order.includes_settings
            ):  # after the messages, so that connectors don't fetch them again
                await transfer.import_connectors(
                    running_import.import_state, origin.account, passphrase
                )
            reason = running_import.import_state.outcome.no_message_reason_or_none()
            if reason and origin.account is None:
                await _finish_task_with_import_outcome(running_import, TaskState.FAILED)
                raise CommandError(f"{_path_text(origin)}: {reason}")
            await _finish_task_with_import_outcome(running_import)
    except OverQuota as full:
        text = f"{full.message} Increase its quota, then run the import again."
        raise CommandError(text) from full
    except RequestError as refusal:
        raise CommandError(f"The import cannot continue: {refusal.message}") from refusal
    return running_import.import_state.outcome


async def _import_mailboxes_and_optional_settings(
    import_state: RunningImport, account: AccountRecord, *, includes_settings: bool
) -> None:
    if includes_settings:  # first, since mailboxes that encrypt need the key
        await import_settings.import_settings_key_values_labels_rules_and_searches(
            import_state, account
        )
    await import_mailboxes.create_mailboxes_or_record_skipped(
        import_state, account, with_annotations=includes_settings
    )
    if includes_settings:
        await import_settings.import_identities_filters_reply_and_scripts(import_state, account)


async def _inspect_mail_source_or_fail_command(environment: Environment, path: Path) -> MailSource:
    try:
        return await asyncio.to_thread(
            inspect_mail_source, path, environment.options.message_max_size
        )
    except FileNotFoundError as problem:
        raise CommandError(f"{path} does not exist.") from problem
    except OSError as problem:
        raise CommandError(f"Cannot read {path}: {(problem.strerror or '').lower()}.") from problem
    except UnusableMessageError as problem:
        raise CommandError(f"{path}: {problem}") from problem


def _path_text(source: MailSource) -> str:
    """The absolute path of a source, by which an interrupted import is found again."""
    return text_from_file_name(str(source.path.resolve()))


@asynccontextmanager
async def _import_lock(data_folder: Path, import_key: str) -> AsyncGenerator[None]:
    """Lock this import, since two at once would store each message twice.

    The end of the process releases the lock. Raises CommandError if another process holds it.
    """
    path = data_folder / f"import-{hashlib.sha256(import_key.encode()).hexdigest()[:16]}.lock"
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CommandError("This import is running in another process.") from None
        yield
        path.unlink(missing_ok=True)
    finally:
        os.close(handle)


class _StartedImport(NamedTuple):
    """An import, and the checkpoint to continue at; None for a new import."""

    command_line_import: CommandLineImport
    checkpoint: str | None


async def _start_or_resume_import(
    environment: Environment, origin: MailSource, user_id: int, target_mailbox: str | None
) -> _StartedImport:
    """Start or resume an import. Returns it with its checkpoint; None for a new import."""
    ctx = user_context(environment, user_id)
    order = {"path": _path_text(origin), "mailbox": target_mailbox}
    statement = select(*select_columns(Task)).where(
        col(Task.kind) == TASK_KIND, col(Task.user_id) == user_id, col(Task.finished_at).is_(None)
    )
    earlier_task = next((row for row in await ctx.read(statement) if row.order == order), None)
    checkpoint = dict((earlier_task and earlier_task.checkpoint) or {})
    is_same_source = checkpoint.get("stamp") == origin.stamp  # otherwise the source has changed
    now, key = environment.now(), earlier_task.id if earlier_task else environment.new_id()
    async with ctx.write_session(user_id) as session:
        stored_task = await session.get(Task, key)
        task = stored_task or Task(
            id=key, kind=TASK_KIND, user_id=user_id, order=order, created_at=now
        )
        task.state, task.total_count = TaskState.RUNNING, origin.total
        task.started_at, task.attempts = now, task.attempts + 1
        session.add(task)
        await session.flush()
        event_type = EventType.TASK_UPDATED if stored_task else EventType.TASK_CREATED
        await ctx.record_change(session, user_id, event_type, [key])
    # a changed source is read from the start
    import_id = key if is_same_source or not checkpoint else environment.new_id()
    running = await import_writer.load_initial_import_state(ctx, user_id, target_mailbox, import_id)
    running.outcome = ImportOutcome(**checkpoint.get("outcome", {}))
    done_before = int(checkpoint.get("at", 0)) if is_same_source else 0
    return _StartedImport(
        CommandLineImport(running, origin, key, done_before),
        checkpoint.get("after") if is_same_source else None,
    )


async def _import_remaining_messages(
    run: CommandLineImport, checkpoint: str | None, report_progress: ShowImportProgress
) -> None:
    reading = SourceReader(read_source_messages_and_skips(run.source, checkpoint))
    while group := await asyncio.to_thread(reading.read_batch):
        prepared_messages = [
            message
            for message in [
                await import_writer.create_mailbox_and_prepare_message(
                    run.import_state, source_message
                )
                for source_message in group
            ]
            if message
        ]
        try:
            await _store_messages_with_blob_retry(run, prepared_messages, group[-1])
        except OverQuota:
            if len(prepared_messages) < 2:  # noqa: PLR2004
                raise
            for message in prepared_messages:  # one by one, until the account is full
                await _store_messages_with_blob_retry(run, [message], message.source)
            await _store_messages_with_blob_retry(run, [], group[-1])
        report_progress(_progress_in_source(run, group[-1]))
    if reading.problem:
        stored = run.import_state.outcome.stored
        raise CommandError(
            f"{run.source.path}: {reading.problem} {stored} messages were imported before."
        )


async def _store_messages_with_blob_retry(
    run: CommandLineImport,
    prepared_messages: Sequence[ImportableMessage],
    last_message: SourceMessage,
) -> None:
    """Store messages and the checkpoint after the last one, in one transaction."""
    for is_retry in (False, True):
        stored_blobs = await import_writer.store_blobs(
            run.import_state, prepared_messages, rewrite_blobs=is_retry
        )
        try:
            await _insert_messages_or_stop_if_cancelled(
                run, prepared_messages, stored_blobs, last_message
            )
        except BlobRowDeleted:  # housekeeping deleted a blob in between
            if is_retry:
                raise
        else:
            break
    run.import_state.ctx.environment.reach_fault_point("imported")


async def _insert_messages_or_stop_if_cancelled(
    run: CommandLineImport,
    prepared_messages: Sequence[ImportableMessage],
    stored_blobs: Sequence[StoredMessageBlobs],
    last_message: SourceMessage,
) -> None:
    import_state = run.import_state
    async with import_state.ctx.write_session(import_state.user.id) as session:
        await import_writer.insert_messages_with_flags(
            import_state, session, prepared_messages, stored_blobs
        )
        outcome = {
            **_outcome_as_json(import_state.outcome),
            "stored": import_state.outcome.stored + len(prepared_messages),
        }
        note = {
            "after": last_message.checkpoint,
            "at": _progress_in_source(run, last_message),
            "stamp": run.source.stamp,
            "outcome": outcome,
        }
        stop = await _update_task_and_return_cancelled(
            run, session, {"checkpoint": note, "done_count": _progress_in_source(run, last_message)}
        )
    import_state.outcome.stored += len(prepared_messages)
    if stop:
        await _finish_task_with_import_outcome(run, TaskState.CANCELLED)
        raise CommandError("The import was cancelled. Imported messages remain.")


async def _update_task_and_return_cancelled(
    run: CommandLineImport, session: AsyncSession, values: dict[str, Any]
) -> bool:
    """Update the task of the import. Returns True if the task was cancelled."""
    statement = update(Task).where(col(Task.id) == run.task_id).values(**values)
    changed = await (await session.connection()).execute(statement.returning(col(Task.cancelled)))
    stop = bool(changed.scalar_one())
    ctx, user_id = run.import_state.ctx, run.import_state.user.id
    await ctx.record_change(session, user_id, EventType.TASK_UPDATED, [run.task_id])
    return stop


def _outcome_as_json(outcome: ImportOutcome) -> dict[str, Any]:
    plain: dict[str, Any] = orjson.loads(orjson.dumps(outcome))
    return plain


def _progress_in_source(run: CommandLineImport, last_message: SourceMessage) -> int:
    return (
        last_message.progress
        if run.source.is_single_file
        else run.done_before + last_message.progress
    )


async def _finish_task_with_import_outcome(
    run: CommandLineImport, state: TaskState = TaskState.SUCCEEDED
) -> None:
    import_state = run.import_state
    values = {
        "state": state,
        "finished_at": import_state.ctx.environment.now(),
        "result": _outcome_as_json(import_state.outcome),
    }
    if state is TaskState.SUCCEEDED:
        values["done_count"] = run.source.total
    async with import_state.ctx.write_session(import_state.user.id) as session:
        await _update_task_and_return_cancelled(run, session, values)
    await import_state.ctx.environment.database.refresh_planner_statistics()
