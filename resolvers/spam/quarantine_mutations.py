"""Release and delete quarantined messages, and set how often users get a digest."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from sqlalchemy import delete, select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.addresses.rule_addresses import rule_addresses
from mail.delivery import quarantine_release
from mail.delivery.quarantine_release import PreparedRelease
from mail.envelope.local_recipient import LocalRecipient
from mail.recipients.address_resolution import ENCRYPTION_KEY, find_applied_rewrite
from mail.recipients.sender_accounts import find_receiving_address_row
from mail.scanners import training_worker
from mail.storage import held_copies, message_content, message_open
from mail.storage.blobs.blob_writer import BlobRowDeleted
from mail.storage.message_content import read_all
from models.errors import (
    Forbidden,
    InvalidInput,
    NotFound,
    OverQuota,
    RateLimited,
    RequestError,
    require_all_found,
)
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.filters.sieve_scripts import has_active_script
from models.filters.tables import has_active_filter
from models.mailboxes.tables import Mailbox, SpecialUse
from models.runtime.environment import DatabaseTransaction
from models.spam.quarantine import QuarantineItem
from models.spam.sender_rules import SenderAction
from models.store.columns import ColumnRow, select_columns
from models.users.roles import AdminPermission, Role, Scope, UserPermission
from models.users.tables import User
from models.validation_constraints import ValidationConstraint
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.context import Context
from resolvers.spam import sender_rule_mutations
from resolvers.spam.quarantine import is_visible_item_sql, load_visible_items_by_id
from resolvers.spam.sender_rule_mutations import NewSenderRules, RuleOwner
from resolvers.users import managed_objects
from resolvers.viewer import GuardRule

MAX_RELEASED_MESSAGES = 100  # messages per call
ITEM_COLUMNS = ("id", "user_id", "sender", "recipient", "from_address", "virus", "created_at")
OTHER_USERS_RULE = GuardRule(
    role=Role.DOMAIN_ADMIN, scope=Scope.FULL, admin_permission=AdminPermission.QUARANTINE
)
SENDER_RULES_RULE = GuardRule(
    user_permission=UserPermission.SENDER_RULES, admin_permission=AdminPermission.SENDER_RULES
)


@dataclass(frozen=True, slots=True)
class ReleaseOptions:
    """What else happens to released messages.

    With `learn_ham` the spam filter learns them as ham. With `allow_sender` an allow rule for
    each sender is created for the owner.
    """

    learn_ham: bool = True
    allow_sender: bool = False


async def release_quarantined_messages(
    ctx: Context, item_ids: Sequence[int], options: ReleaseOptions
) -> list[int]:
    """Release quarantined messages, all or none, and return the message IDs in order.

    The filters of the user decide on the mailbox. A message that they redirect without a copy
    has no ID. Raises NotFound; OverQuota if a message does not fit and RateLimited if it can't
    be redirected, both with the index; Forbidden.
    """
    if len(item_ids) > MAX_RELEASED_MESSAGES:
        raise InvalidInput(
            f"At most {MAX_RELEASED_MESSAGES} messages can be released at once.",
            constraint=ValidationConstraint.MAX,
            path=["ids"],
        )
    item_ids = list(dict.fromkeys(item_ids))
    rows = await _require_permitted_items(ctx, item_ids)
    _require_release_rights(ctx, rows, options)
    owners = sorted({row.user_id for row in rows})
    accounts = await _load_users_with_inbox(ctx, owners)
    require_all_found([row.user_id for row in rows], accounts)

    async def plan_releases_and_store_blobs(*, rewrite_blobs: bool) -> list[PreparedRelease]:
        return [
            await _plan_item_release_and_store_blobs(
                ctx, row, accounts[row.user_id], rewrite_blobs=rewrite_blobs
            )
            for row in rows
        ]

    try:
        return await _release_in_transaction(
            ctx, item_ids, await plan_releases_and_store_blobs(rewrite_blobs=False), options
        )
    except BlobRowDeleted:
        return await _release_in_transaction(
            ctx, item_ids, await plan_releases_and_store_blobs(rewrite_blobs=True), options
        )
    except NotFound as error:
        if error.path != ["mailbox"]:
            raise
        return await _release_in_transaction(
            ctx, item_ids, await plan_releases_and_store_blobs(rewrite_blobs=False), options
        )  # a mailbox was deleted in the meantime


async def _require_permitted_items(ctx: Context, item_ids: Sequence[int]) -> list[ColumnRow]:
    """Load quarantined messages. Raises NotFound, and Forbidden for those of other users."""
    items = await load_visible_items_by_id(ctx, list(item_ids))
    rows = [row for row in items if row]
    require_all_found(item_ids, {row.id for row in rows})
    for index, row in enumerate(rows):
        if row.user_id != ctx.viewer.user_id:
            ctx.viewer.require(OTHER_USERS_RULE, path=["ids"], index=index)
    return rows


def _require_release_rights(
    ctx: Context, items: Sequence[ColumnRow], options: ReleaseOptions
) -> None:
    """Raise Forbidden if the viewer may not release a virus or create sender rules."""
    if ctx.viewer.role is Role.USER:
        for index, row in enumerate(items):
            if row.virus:
                text = "Only an administrator can release a message with a virus."
                raise Forbidden(text, requires=Role.DOMAIN_ADMIN, path=["ids"], index=index)
    if options.allow_sender:
        ctx.viewer.require(SENDER_RULES_RULE, path=["allowSender"])


@contextmanager
def _errors_at_input_field(field_name: str) -> Generator[None]:
    """Set the path of refusals raised inside to one input field."""
    try:
        yield
    except RequestError as refusal:
        refusal.path = [field_name]
        raise


async def _load_users_with_inbox(ctx: Context, user_ids: Sequence[int]) -> dict[int, ColumnRow]:
    """Load what a delivery needs of these users and their INBOX, by user ID."""
    statement = (
        select(
            *select_columns(User, ("id", "tenant_id", "forward_to", "role")),
            col(Mailbox.id).label("box"),
            ENCRYPTION_KEY.label("key"),
            has_active_script(col(User.id)).label("scripted"),
            has_active_filter(col(User.id)).label("filtered"),
        )
        .join(Mailbox, col(Mailbox.user_id) == col(User.id))
        .where(
            col(User.id).in_(user_ids),
            col(User.deleted_at).is_(None),
            col(Mailbox.special_use) == SpecialUse.INBOX,
        )
    )
    return {row.id: row for row in await ctx.read(statement)}


async def _plan_item_release_and_store_blobs(
    ctx: Context, item: ColumnRow, user: ColumnRow, *, rewrite_blobs: bool
) -> PreparedRelease:
    """Read a quarantined message and store the blobs of its delivery."""
    (opened,) = await message_open.open_messages_unlogged(
        ctx.environment, [item], ctx.read, message_content.QUARANTINE_QUERIES
    )
    raw = await read_all(opened.stream_raw())
    rewritten = await find_applied_rewrite(ctx.environment, item.recipient)
    new_address = rewritten.address if rewritten else item.recipient
    address_row = await find_receiving_address_row(ctx.environment, new_address)
    recipient = LocalRecipient(
        user.id,
        user.tenant_id,
        user.box,
        0,
        item.recipient,
        user.key,
        domain_id=item.domain_id,
        rewritten_address=new_address if new_address != item.recipient else None,
        has_bcc_rules=True,
        has_script=user.scripted,
        has_filters=user.filtered,
        has_forward_targets=bool(user.forward_to),
        role=user.role,
        rule_addresses=rule_addresses(
            new_address,
            ctx.environment.options.addresses_subaddress_delimiters,
            address_row.local if address_row else None,
        ),
    )
    return await quarantine_release.plan_release_and_store_blobs(
        ctx.environment, item, raw, recipient, rewrite_blobs=rewrite_blobs
    )


async def _release_in_transaction(
    ctx: Context,
    item_ids: Sequence[int],
    prepared: Sequence[PreparedRelease],
    options: ReleaseOptions,
) -> list[int]:
    """Deliver prepared messages and delete their items. Returns the message IDs in order."""
    streams = {release.plan.recipient_verdict.recipient.user_id for release in prepared}
    if any(release.needs_queue for release in prepared):
        streams.add(PLATFORM)
    async with ctx.write_session(*streams) as session:
        rows = await _require_visible_items_in_transaction(ctx, session, item_ids)
        owner_flags = {row.id: ctx.viewer.user_id == row.user_id for row in rows}
        deliver = partial(
            _deliver_prepared,
            prepared=prepared,
            released_by_owner=[owner_flags[key] for key in item_ids],
        )
        inserted = await ctx.environment.run_in_session(session, deliver)
        keys = [key for key in inserted if key is not None]
        if options.learn_ham:  # the release of a virus says nothing about spam
            ill = {row.id for row in rows if row.virus}
            clean = [
                key for key, item in zip(inserted, item_ids, strict=True) if key and item not in ill
            ]
            await ctx.environment.run_in_session(
                session,
                lambda transaction: training_worker.enqueue_released_as_ham(transaction, clean),
            )
        if options.allow_sender:
            await _create_allow_rules(ctx, rows)
        await _delete_items_journal_and_audit(
            ctx, session, rows, ("quarantineRelease", EventType.QUARANTINE_RELEASED)
        )
    return keys


def _deliver_prepared(
    transaction: DatabaseTransaction,
    prepared: Sequence[PreparedRelease],
    released_by_owner: Sequence[bool],
) -> list[int | None]:
    """Deliver messages in a transaction. Returns their IDs; None for a redirected one.

    Raises OverQuota or RateLimited with the index of the message.
    """
    keys = list[int | None]()
    for index, (release, is_own) in enumerate(zip(prepared, released_by_owner, strict=True)):
        try:
            releaser = "its owner" if is_own else "an administrator"
            inserted = quarantine_release.deliver_prepared_release(transaction, release, releaser)
        except OverQuota as full:
            full.path, full.index = ["ids"], index
            raise
        except RateLimited as full:
            refusal = RateLimited(full.message, retry_after=full.retry_after)
            refusal.path, refusal.index = ["ids"], index
            raise refusal from full
        keys.append(inserted.message_id if inserted else None)
    return keys


async def _create_allow_rules(ctx: Context, items: Sequence[ColumnRow]) -> None:
    """Create allow rules for the authors, or for the envelope senders where From is empty."""
    for user_id in sorted({row.user_id for row in items}):
        user_items = [row for row in items if row.user_id == user_id]
        senders = dict.fromkeys(row.from_address or row.sender for row in user_items)
        patterns = [sender for sender in senders if sender]
        if patterns:
            with _errors_at_input_field("allowSender"):
                new = NewSenderRules(SenderAction.ALLOW, patterns)
                await sender_rule_mutations.create_or_update_sender_rules(
                    ctx, RuleOwner(user_id=user_id), new
                )


async def delete_quarantined_messages(ctx: Context, item_ids: Sequence[int]) -> None:
    """Delete quarantined messages, all or none. Raises NotFound or Forbidden."""
    rows = await _require_permitted_items(ctx, item_ids)
    async with ctx.write_session(*{row.user_id for row in rows}) as session:
        rows = await _require_visible_items_in_transaction(ctx, session, item_ids)
        await _delete_items_journal_and_audit(
            ctx, session, rows, ("quarantineDelete", EventType.QUARANTINE_DELETED)
        )


async def _require_visible_items_in_transaction(
    ctx: Context, session: AsyncSession, item_ids: Sequence[int]
) -> list[ColumnRow]:
    """Load visible quarantined messages inside the transaction. Raises NotFound."""
    conditions = item_ids, is_visible_item_sql(ctx)
    return await managed_objects.require_managed_rows_in_transaction(
        ctx, session, QuarantineItem, ITEM_COLUMNS, conditions
    )


async def _delete_items_journal_and_audit(
    ctx: Context,
    session: AsyncSession,
    items: Sequence[ColumnRow],
    mutation_and_event_type: tuple[str, EventType],
) -> None:
    """Delete quarantined messages and record the change. Legal holds without them get a copy.

    Changes to messages of other users are also written to the audit log.
    """
    mutation, event_type = mutation_and_event_type
    keys = [row.id for row in items]
    await ctx.environment.run_in_session(
        session,
        lambda transaction: held_copies.copy_removed_quarantine_items_to_legal_holds(
            transaction, keys
        ),
    )
    connection = await session.connection()
    await connection.execute(delete(QuarantineItem).where(col(QuarantineItem.id).in_(keys)))
    entries = {
        user_id: [(event_type, [row.id for row in items if row.user_id == user_id])]
        for user_id in {row.user_id for row in items}
    }
    await ctx.record_changes(session, entries)
    log_entries = (
        NewAuditLogEntry(mutation, "QuarantineItem", row.id, row.domain_id, _audit_log_values(row))
        for row in items
        if row.user_id != ctx.viewer.user_id
    )
    await audit_log.insert_audit_log_entries(ctx, session, *log_entries)


def _audit_log_values(item: ColumnRow) -> dict[str, str]:
    """Return the values of a quarantined message for the audit log."""
    return {"sender": item.sender, "recipient": item.recipient}
