"""The task that runs filters on stored messages: it moves, copies, flags and labels them."""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from sqlalchemy import select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.filters import filter_evaluation
from mail.filters.filter_evaluation import CompiledFilter, FilterTestMessage
from mail.filters.filter_result import FilterResult
from mail.sieve import ParsedSieveMessage
from mail.storage.blobs.errors import CorruptBlob
from mail.storage.message_content import StoredMessage
from mail.storage.quota import SELECT_QUOTA
from models.admin.tasks import Task, TaskKind
from models.errors import InvalidInput, NotFound, require_all_found
from models.events.event_types import EventType
from models.filters.tables import Filter
from models.mailboxes.tables import Mailbox, SpecialUse
from models.store.columns import ColumnRow, select_columns
from models.validation_constraints import ValidationConstraint
from resolvers.access import require_user_id
from resolvers.admin.task_steps import (
    TaskStepPlan,
    TaskStepResult,
    insert_tasks_and_wake_workers,
    next_ids_of_task,
    step_result_after_ids,
)
from resolvers.context import Context
from resolvers.filters import loaders as filter_loaders
from resolvers.messages import content
from resolvers.messages.bulk import copy, row_changes
from resolvers.messages.bulk import flags as bulk_flags
from resolvers.messages.bulk.flag_changes import FlagChanges
from resolvers.messages.bulk.flags import MAX_KEYWORDS
from resolvers.messages.bulk.metadata_quota import metadata_bytes_by_user
from resolvers.messages.filters.filter_conditions import MessageSelector
from resolvers.transfer import export_writer

log = logging.getLogger(__name__)

TASK_KIND = TaskKind.FILTER_APPLY
MAX_FILTERS = 100  # per task
MESSAGES_PER_STEP = 50  # per task step


async def queue_filter_run(
    ctx: Context, filter_ids: Sequence[int], selector: MessageSelector
) -> Task:
    """Queue a task that runs the viewer's filters, in their order, on the viewer's messages.

    Messages that a filter deletes are archived. Nothing is redirected, answered or sent to a
    webhook. Raises InvalidInput or NotFound.
    """
    owner = require_user_id(ctx)
    if selector.users.is_given:
        error_text = "Filters and messages must belong to the signed-in user."
        raise InvalidInput(
            error_text, constraint=ValidationConstraint.EXCLUSIVE, path=["select", "users"]
        )
    if not 0 < len(filter_ids) <= MAX_FILTERS:
        raise InvalidInput(
            f"From 1 to {MAX_FILTERS} filters are required.",
            constraint=ValidationConstraint.LENGTH,
            path=["ids"],
        )
    require_all_found(
        filter_ids,
        {row.id for row in await filter_loaders.load_visible_filters_of_user(ctx, owner)},
    )
    message_ids = await export_writer.load_visible_message_ids(ctx, owner, selector)
    found_ids = set(message_ids)
    for index, key in enumerate(selector.ids or ()):
        if key not in found_ids:
            raise NotFound(str(key), path=["select", "ids"], index=index)
    order = {"ids": message_ids, "filters": list(dict.fromkeys(filter_ids))}
    async with ctx.write_session(owner) as session:
        (task,) = await insert_tasks_and_wake_workers(
            ctx, session, TASK_KIND, [order], user_id=owner, total_count=len(message_ids)
        )
        await ctx.record_change(session, owner, EventType.TASK_CREATED, [task.id])
    return task


async def evaluate_filters_on_next_messages(
    ctx: Context, task_order: dict[str, Any], checkpoint: dict[str, Any]
) -> TaskStepPlan:
    """Read the next messages, and run the current filters on each."""
    ids = next_ids_of_task(task_order, checkpoint, MESSAGES_PER_STEP)
    filter_ids = set(task_order["filters"])
    ctx.clear_loaded()
    rows = await filter_loaders.load_visible_filters_of_user(ctx, require_user_id(ctx))
    rules = [filter_loaders.rule_from_row(row) for row in rows if row.id in filter_ids]
    results: dict[int, FilterResult] = {}
    for key, stored in zip(
        ids, await ctx.load_many(content.load_stored_messages_and_log_read, ids), strict=True
    ):
        if isinstance(stored, StoredMessage) and rules:
            try:
                results[key] = await _evaluate_filters(stored, rules)
            except CorruptBlob as damage:  # the message stays where it is; the task continues
                extra = {"message_id": key, "damage": str(damage)}
                log.warning("Filters not applied to a damaged message", extra=extra)
    ctx.clear_loaded()  # frees the loaded messages
    return TaskStepPlan(ids=ids, prepared=results)


async def _evaluate_filters(
    message: StoredMessage, rules: Sequence[CompiledFilter]
) -> FilterResult:
    tree = message.structure
    return await message.run_on_source(
        lambda source: filter_evaluation.combined_result_of_matching_filters(
            rules, FilterTestMessage(ParsedSieveMessage(source, tree))
        ),
        in_thread=True,
    )


async def apply_filter_results(
    ctx: Context,
    session: AsyncSession,
    task_order: dict[str, Any],
    checkpoint: dict[str, Any],
    task_plan: TaskStepPlan,
) -> TaskStepResult:
    """Apply the filter results to the messages that still exist, together for equal results."""
    decisions: Mapping[int, FilterResult] = {
        k: decision for k, decision in task_plan.prepared.items() if decision.matched_filter_ids
    }
    statement = select(*select_columns(Mailbox)).where(col(Mailbox.user_id) == require_user_id(ctx))
    rows = (await (await session.connection()).execute(statement)).all()
    doing = _DecidedMessages(ctx, session, {row.id: row for row in rows}, decisions)
    await doing.set_flags()
    remaining_count = (
        checkpoint.get("remainingCount", 0)
        + await doing.copy_while_quota_allows_and_count_skipped()
    )
    await doing.move_or_delete_messages()
    await _increment_match_counts(session, decisions.values())
    result = step_result_after_ids(task_plan.ids, task_order, checkpoint, len(decisions))
    return TaskStepResult(
        {**result.checkpoint, "remainingCount": remaining_count},
        result.done_count,
        has_more=result.has_more,
    )


class _DecidedMessages:
    """Messages of one task step, with the decision for each."""

    def __init__(
        self,
        ctx: Context,
        session: AsyncSession,
        mailbox_by_id: Mapping[int, ColumnRow],
        decision_by_message: Mapping[int, FilterResult],
    ) -> None:
        self.ctx, self.session = ctx, session
        self.mailbox_by_id, self.decision_by_message = mailbox_by_id, decision_by_message
        roles = {
            mailbox.special_use: mailbox
            for mailbox in mailbox_by_id.values()
            if mailbox.special_use
        }
        self.junk, self.inbox = roles.get(SpecialUse.JUNK), roles.get(SpecialUse.INBOX)

    async def load_rows(self) -> list[ColumnRow]:
        """Load the current rows of the messages that still exist."""
        rows = await row_changes.load_rows_in_transaction(
            self.session, list(self.decision_by_message)
        )
        user_id = require_user_id(self.ctx)
        return [row for row in rows if row.deleted_at is None and row.user_id == user_id]

    async def set_flags(self) -> None:
        """Set flags and keywords, up to the limit of keywords per message."""
        rows_by_flags: defaultdict[tuple[Any, ...], list[ColumnRow]] = defaultdict(list)
        for row in await self.load_rows():
            decision = self.decision_by_message[row.id]
            new_keywords = [name for name in decision.added_keywords if name not in row.keywords]
            add = tuple(new_keywords[: max(0, MAX_KEYWORDS - len(row.keywords))])
            rows_by_flags[
                decision.is_seen, decision.is_flagged, add, tuple(decision.removed_keywords)
            ].append(row)
        for (is_seen, flagged, add, removed), flag_rows in rows_by_flags.items():
            flags = {"seen": is_seen, "flagged": flagged}
            on = {name: True for name, is_set in flags.items() if is_set}
            changes = FlagChanges(on, add=add, remove=removed)
            if not changes.is_empty:
                await bulk_flags.change_flags(self.ctx, self.session, flag_rows, changes)

    async def copy_while_quota_allows_and_count_skipped(self) -> int:
        """Copy messages while the quota allows it. Returns the number of skipped copies."""
        rows_by_mailbox: defaultdict[int, list[ColumnRow]] = defaultdict(list)
        for row in await self.load_rows():
            for mailbox in self.decision_by_message[row.id].copy_mailbox_ids:
                if mailbox in self.mailbox_by_id and mailbox != row.mailbox_id:
                    rows_by_mailbox[mailbox].append(row)
        uncopied_count = 0
        for mailbox, mailbox_rows in rows_by_mailbox.items():
            if await self._has_quota_for_copies_of(mailbox_rows):
                await copy.copy_returning_uids_by_copy_id(
                    self.ctx, self.session, mailbox_rows, self.mailbox_by_id[mailbox]
                )
            else:
                uncopied_count += len(mailbox_rows)
        return uncopied_count

    async def _has_quota_for_copies_of(self, rows: Sequence[ColumnRow]) -> bool:
        load_metadata_sizes = partial(metadata_bytes_by_user, message_ids=[row.id for row in rows])
        metadata_bytes = await self.ctx.environment.run_in_session(
            self.session, load_metadata_sizes
        )
        byte_count = sum(row.size for row in rows) + metadata_bytes.total()
        parameters = {
            "user": require_user_id(self.ctx),
            "platform": self.ctx.environment.options.users_default_quota,
        }
        quota_rows = await self.ctx.read(SELECT_QUOTA, parameters)
        return all(not row.allowed or row.used + byte_count <= row.allowed for row in quota_rows)

    async def move_or_delete_messages(self) -> None:
        """Move the messages to their target mailbox, or to the archive."""
        deleted_rows: list[ColumnRow] = []
        rows_by_mailbox: defaultdict[int, list[ColumnRow]] = defaultdict(list)
        for row in await self.load_rows():
            mailbox = self._target_mailbox(row)
            if self.decision_by_message[row.id].is_deleted:
                deleted_rows.append(row)
            elif mailbox is not None:
                rows_by_mailbox[mailbox.id].append(row)
        for key, mailbox_rows in rows_by_mailbox.items():
            await row_changes.move_messages_to_mailbox(
                self.ctx, self.session, mailbox_rows, self.mailbox_by_id[key]
            )
        if deleted_rows:
            paths = {mailbox.id: mailbox.path for mailbox in self.mailbox_by_id.values()}
            await row_changes.move_to_deleted(self.ctx, self.session, deleted_rows, paths)

    def _target_mailbox(self, row: ColumnRow) -> ColumnRow | None:
        """Return the target mailbox, or None if the message stays in its mailbox.

        Messages in Junk stay there unless a filter decides that they are not spam.
        """
        decision = self.decision_by_message[row.id]
        in_junk = self.junk is not None and row.mailbox_id == self.junk.id
        if decision.is_spam:
            return self.junk
        if in_junk and decision.is_spam is None:
            return None
        if decision.mailbox_id is not None:
            return self.mailbox_by_id.get(decision.mailbox_id, self.inbox)
        return self.inbox if in_junk else None


async def _increment_match_counts(session: AsyncSession, decisions: Iterable[FilterResult]) -> None:
    """Add to the match counts of the filters, in one statement per count."""
    match_counts = Counter(key for decision in decisions for key in decision.matched_filter_ids)
    connection = await session.connection()
    for match_count in sorted(set(match_counts.values())):
        keys = [key for key, times in match_counts.items() if times == match_count]
        statement = update(Filter).where(col(Filter.id).in_(keys))
        await connection.execute(statement.values(match_count=Filter.match_count + match_count))
