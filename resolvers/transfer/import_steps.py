"""Run an import task in steps that continue after an interruption."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

import orjson
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.archives.mail_sources import (
    MailSource,
    inspect_mail_source,
    read_source_messages_and_skips,
)
from mail.archives.source_message import UnusableMessageError
from mail.storage.blobs.blob_writer import StoredMessageBlobs
from models.errors import InvalidInput, OverQuota
from models.transfer import ImportArchive
from models.validation_constraints import ValidationConstraint
from resolvers.admin.task_steps import TaskStepPlan, TaskStepPlanner, TaskStepResult
from resolvers.connectors import transfer
from resolvers.context import Context
from resolvers.transfer import import_mailboxes, import_writer, passphrases
from resolvers.transfer.import_archives import delete_archive, open_server_file_or_archive_copy
from resolvers.transfer.import_settings import (
    import_identities_filters_reply_and_scripts,
    import_settings_key_values_labels_rules_and_searches,
)
from resolvers.transfer.import_writer import ImportableMessage, SourceReader
from resolvers.transfer.running_import import ImportOutcome, RunningImport


@asynccontextmanager
async def open_import_planner(
    ctx: Context, task_order: dict[str, Any], checkpoint: Mapping[str, Any]
) -> AsyncGenerator[TaskStepPlanner]:
    """Open the archive for one run of the task, and yield the planner of its steps.

    Raises InvalidInput if the archive can't be read or has changed since the last run.
    """
    async with open_server_file_or_archive_copy(
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
                "The file changed after the import began.",
                constraint=ValidationConstraint.ARCHIVE,
                path=["path"],
            )
        start = checkpoint.get("begun") or ctx.environment.new_id()
        running = await import_writer.load_initial_import_state(
            ctx, ctx.viewer.user_id, task_order["mailbox"], start
        )
        running.outcome = ImportOutcome(**checkpoint.get("outcome", {}))
        running.skips_known = task_order["dedupe"]
        remaining_messages = read_source_messages_and_skips(origin, checkpoint.get("after"))
        yield _ImportRun(
            running, origin, SourceReader(remaining_messages)
        ).import_records_or_store_next_blobs


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

    async def import_records_or_store_next_blobs(
        self, _ctx: Context, task_order: dict[str, Any], checkpoint: dict[str, Any]
    ) -> TaskStepPlan:
        """Read the next messages and store their blobs.

        The first step creates mailboxes and settings, the last one connectors. Raises InvalidInput
        if the archive can't be read any further, or has no message and no account record.
        """
        if problem := checkpoint.get("trouble"):
            raise InvalidInput(problem, constraint=ValidationConstraint.ARCHIVE, path=["archive"])
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
            self._require_message_or_account_record()
            await self._import_connectors(task_order)
            return TaskStepPlan(prepared=PlannedImportStep(running, note, [], [], is_last=True))
        prepared_messages = [
            message
            for message in [
                await import_writer.create_mailbox_and_prepare_message(running, source_message)
                for source_message in group
            ]
            if message
        ]
        note["after"] = group[-1].checkpoint
        stored_blobs = await import_writer.store_blobs(running, prepared_messages)
        return TaskStepPlan(
            prepared=PlannedImportStep(running, note, prepared_messages, stored_blobs, len(group))
        )

    def _require_message_or_account_record(self) -> None:
        """Raise InvalidInput if the archive had neither messages nor an account record."""
        reason = self.running.outcome.no_message_reason_or_none()
        if reason and self.source.account is None:
            raise InvalidInput(reason, constraint=ValidationConstraint.ARCHIVE, path=["archive"])

    async def _import_account_record(self, task_order: dict[str, Any]) -> None:
        """Create the mailboxes and settings of the account record, if the archive has one."""
        account = self.source.account
        if account is None:
            return
        for name in account.entries_with_nul:
            self.running.outcome.add_skipped(name, "The entry contains NUL.")
        if task_order["settings"]:  # before the mailboxes: encrypted ones need the public key
            await import_settings_key_values_labels_rules_and_searches(self.running, account)
        elif task_order["unset"] and any(
            getattr(account, name)
            for name in (
                *("settings", "key_values", "labels", "identities", "saved_searches"),
                *("filters", "scripts", "sender_rules", "connectors", "subscriptions"),
            )
        ):
            text = "Requires the scope SETTINGS, and FULL for another user."
            self.running.outcome.add_skipped("settings", text)
        await import_mailboxes.create_mailboxes_or_record_skipped(
            self.running, account, with_annotations=task_order["settings"]
        )
        if task_order["settings"]:
            await import_identities_filters_reply_and_scripts(self.running, account)

    async def _import_connectors(self, task_order: dict[str, Any]) -> None:
        """Import connectors after all messages, since they would fetch the messages again."""
        if self.source.account is not None and task_order["settings"]:
            ctx = self.running.ctx
            passphrase = passphrases.decrypt_passphrase_or_none(
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
            await import_writer.insert_messages_with_flags(
                running, inner, planned.messages, planned.stored_blobs
            )
        outcome.stored += len(planned.messages)
    except OverQuota:
        await _insert_messages_until_full(ctx, planned)
    ctx.environment.reach_fault_point("imported")
    return TaskStepResult(
        _checkpoint_with_outcome(planned.checkpoint, outcome),
        done_count=planned.handled_count,
        has_more=True,
        total=planned.total,
    )


async def _insert_messages_until_full(ctx: Context, planned: PlannedImportStep) -> None:
    """Insert messages one after the other until the quota is used up."""
    for prepared_message, stored_blobs in zip(planned.messages, planned.stored_blobs, strict=True):
        try:
            async with ctx.write_session(planned.running.user.id) as inner:
                await import_writer.insert_messages_with_flags(
                    planned.running, inner, [prepared_message], [stored_blobs]
                )
        except OverQuota as full:
            planned.checkpoint["trouble"] = full.message
            return
        planned.running.outcome.stored += 1
        planned.checkpoint["after"] = prepared_message.source.checkpoint


def _checkpoint_with_outcome(checkpoint: dict[str, Any], outcome: ImportOutcome) -> dict[str, Any]:
    """Return the checkpoint with the outcome, which the result of the task shows."""
    plain: dict[str, Any] = orjson.loads(orjson.dumps(asdict(outcome)))
    facts = {
        "storedCount": outcome.stored,
        "knownCount": outcome.known,
        "unlistedCount": outcome.unlisted,
    }
    return {**checkpoint, **facts, "refused": plain["skipped"], "outcome": plain}


async def plan_nothing(
    _ctx: Context, _order: dict[str, Any], _checkpoint: dict[str, Any]
) -> TaskStepPlan:
    """Plan nothing: `open_import_planner` yields the planner."""
    return TaskStepPlan()
