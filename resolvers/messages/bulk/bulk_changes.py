"""Bulk changes of messages: at once if they are few, by a task if they are many."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from sqlmodel.ext.asyncio.session import AsyncSession

from models.errors import Forbidden, InvalidInput
from models.events.journal import PLATFORM
from models.mailboxes.shares import ShareRight
from models.runtime.environment import DatabaseTransaction
from models.store.columns import ColumnRow
from models.validation_constraints import ValidationConstraint
from resolvers.context import Context
from resolvers.mailboxes import delete as mailbox_delete
from resolvers.mailboxes import rights as mailbox_rights
from resolvers.messages.bulk import flags, owners, snooze
from resolvers.messages.bulk import rights as bulk_rights
from resolvers.messages.bulk import undo as bulk_undo
from resolvers.messages.bulk.apply import apply_bulk_request_to_rows
from resolvers.messages.bulk.bulk_requests import BulkOutcome, BulkRequest
from resolvers.messages.bulk.bulk_tasks import insert_bulk_change_task, task_owner_id
from resolvers.messages.bulk.flag_changes import FlagChanges
from resolvers.messages.bulk.metadata_quota import (
    metadata_bytes_by_user,
    require_quota_for_metadata,
)
from resolvers.messages.bulk.owners import BulkAccounts
from resolvers.messages.bulk.selected_messages import (
    load_selected_messages,
    require_all_selected,
    require_mailbox_ids_of_selector,
    require_selected_ids,
    require_target_mailboxes,
    require_unchanged,
)
from resolvers.messages.bulk.undo import StoredUndo

NO_CHANGES = FlagChanges({})
MAX_UNDO_METADATA_BYTES = 1 << 20  # an undo stores the metadata before the change


async def apply_or_queue_bulk_request(ctx: Context, request: BulkRequest) -> BulkOutcome:
    """Apply the request: in one transaction, or as a task if it is large or asks for one.

    Raises InvalidInput, NotFound, Forbidden, OverQuota, or StaleObject if a message changed since
    `unchanged_since_modseq`.
    """
    if request.changes is not None and request.changes.is_empty and request.target_mailbox is None:
        raise InvalidInput(
            "At least one field is required.",
            constraint=ValidationConstraint.REQUIRED,
            path=["set"],
        )
    snooze.validate_snooze(ctx, request.changes, is_move=request.target_mailbox is not None)
    accounts = await _require_accounts_of_bulk_request(ctx, request)
    if request.unchanged_since_modseq is not None and len(accounts.user_ids) != 1:
        text = "`ifUnchangedSince` requires the selection of only one account."
        raise InvalidInput(
            text, constraint=ValidationConstraint.EXCLUSIVE, path=["ifUnchangedSince"]
        )
    request = replace(
        request, selector=await request.selector.validated_with_filter_sql(ctx, accounts.user_ids)
    )
    is_small = len(request.selector.ids or ()) <= ctx.environment.options.bulk_max_items
    are_own_messages = accounts.user_ids and not (accounts.other_users or accounts.grantee_id)
    if request.is_flag_change_by_id and is_small and are_own_messages:
        return await ctx.run_transaction(
            lambda transaction: _change_flags_and_store_undo(ctx, transaction, request, accounts),
            *accounts.user_ids,
        )
    if accounts.grantee_id and accounts.user_ids != [accounts.grantee_id]:
        snooze.require_no_snooze(request.changes)
    given_to = (
        accounts.receiving_user.id
        if accounts.receiving_user and accounts.grantee_id
        else ctx.viewer.user_id
    )
    with mailbox_rights.hide_quota_figures_from_others(ctx, given_to):
        return await _apply_or_queue_in_session(ctx, request, accounts)


async def _apply_or_queue_in_session(
    ctx: Context, request: BulkRequest, bulk_accounts: BulkAccounts
) -> BulkOutcome:
    task_stream_ids = [task_owner_id(ctx, bulk_accounts) or PLATFORM]
    async with ctx.write_session(*bulk_accounts.stream_ids, *task_stream_ids) as session:
        source_ids = await require_mailbox_ids_of_selector(ctx, request, bulk_accounts)
        if request.selector.mailbox is not None:
            request = replace(request, source_mailbox_ids=source_ids)
        limit = ctx.environment.options.bulk_max_items
        rows = await load_selected_messages(
            ctx, request, bulk_accounts, max(limit, len(request.selector.ids or ())) + 1
        )
        await require_selected_ids(ctx, request, bulk_accounts, rows)
        await _require_rights(ctx, request, bulk_accounts, rows)
        await require_unchanged(ctx, request, bulk_accounts)
        if request.always_as_task or len(rows) > limit:
            return BulkOutcome(
                task=await insert_bulk_change_task(ctx, session, request, bulk_accounts, source_ids)
            )
        require_target_mailboxes(request, bulk_accounts, {row.user_id for row in rows})
        count_by_user = Counter(row.user_id for row in rows)
        await owners.write_audit_log_of_bulk_change(
            ctx, session, bulk_accounts, request.mutation_name, count_by_user
        )
        undo = await _create_undo_unless_final(ctx, session, request, rows, bulk_accounts)
        outcome = await apply_bulk_request_to_rows(
            ctx, session, request, rows, bulk_accounts.target_by_user
        )
        if undo:
            outcome.undo_token, outcome.undoable_until = undo.token, undo.expires_at
        if request.deletes_empty_mailboxes:
            emptied = {*source_ids, *(row.mailbox_id for row in rows)}
            outcome.deleted_mailbox_ids = await mailbox_delete.delete_empty_mailboxes(
                ctx, session, emptied
            )
        return outcome


async def _require_accounts_of_bulk_request(ctx: Context, request: BulkRequest) -> BulkAccounts:
    users, source = request.selector.users, request.source_user
    if users.is_given or source:
        return await owners.require_bulk_accounts(
            ctx, users, source_user=source, target_mailbox=request.target_mailbox
        )
    return await owners.require_accounts_of_selector_without_users(
        ctx, request.selector, request.target_mailbox
    )


def _change_flags_and_store_undo(
    ctx: Context,
    transaction: DatabaseTransaction,
    request: BulkRequest,
    bulk_accounts: BulkAccounts,
) -> BulkOutcome:
    """Change flags of one user's messages selected by id, and store the undo state.

    It is one synchronous transaction, since this is the most frequent request. `bulk_accounts` has
    exactly one user. A selection without ids changes nothing. Raises NotFound if a message is
    missing.
    """
    (user,) = bulk_accounts.user_ids
    statement = flags.flag_rows_query(ctx.environment.database.dialect)
    rows = transaction.fetch_rows(statement, user=user, ids=list(request.selector.ids or ()))
    require_all_selected(request, rows)
    if not rows or request.changes is None:
        return BulkOutcome()
    undo = bulk_undo.prepare_undo(
        ctx, bulk_undo.StateBeforeChange(request.task_kind, request.changes, rows)
    )
    require_quota_for_metadata(transaction, rows, request.changes)
    flags.change_flags_in_transaction(
        ctx, transaction, rows, request.changes, extra_statements=[undo.insert_statement]
    )
    return BulkOutcome(rows, undo_token=undo.token, undoable_until=undo.expires_at)


async def _require_rights(
    ctx: Context, request: BulkRequest, bulk_accounts: BulkAccounts, rows: Sequence[ColumnRow]
) -> None:
    """Raise Forbidden if the viewer lacks a right in a mailbox of another user."""
    if not bulk_accounts.grantee_id:
        return
    if bulk_accounts.user_ids != [bulk_accounts.grantee_id]:
        source_rights = bulk_rights.rights_needed_in_source(
            request, to_other_account=bulk_accounts.receiving_user is not None
        )
        mailboxes = sorted({row.mailbox_id for row in rows})
        await bulk_rights.require_rights_in_shared_mailboxes(
            ctx, mailboxes, source_rights, ["select"]
        )
        if request.deletes_empty_mailboxes:
            raise Forbidden(
                "Only the owner of a mailbox can delete it.", path=["deleteEmptyMailbox"]
            )
    for mailbox in bulk_accounts.target_by_user.values():
        if mailbox.user_id != bulk_accounts.grantee_id:
            source_rights = bulk_rights.rights_for_changes(request.changes) | {ShareRight.INSERT}
            await bulk_rights.require_rights_in_shared_mailboxes(
                ctx, [mailbox.id], source_rights, ["to"]
            )


async def _create_undo_unless_final(
    ctx: Context,
    session: AsyncSession,
    request: BulkRequest,
    rows: Sequence[ColumnRow],
    bulk_accounts: BulkAccounts,
) -> StoredUndo | None:
    """Store an undo. Returns None if the request can't be undone, or for platform keys."""
    final = (
        request.is_permanent
        or request.is_copy
        or bulk_accounts.receiving_user is not None
        or bulk_accounts.grantee_id
    )
    if final or not rows or not ctx.viewer.user_id:
        return None
    if request.changes and "public_metadata" in (request.changes.values or {}):
        load_sizes = partial(metadata_bytes_by_user, message_ids=[row.id for row in rows])
        metadata_bytes = await ctx.environment.run_in_session(session, load_sizes)
        if metadata_bytes.total() > MAX_UNDO_METADATA_BYTES:
            return None
    target_by_user = (
        {user: mailbox.id for user, mailbox in bulk_accounts.target_by_user.items()}
        if request.target_mailbox is not None
        else None
    )
    state = bulk_undo.StateBeforeChange(
        request.task_kind, request.changes or NO_CHANGES, rows, request.muted_before, target_by_user
    )
    return await bulk_undo.store_undo(ctx, session, state)
