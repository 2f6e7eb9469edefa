"""Messages to users about storage above a warning level, sent after the delivery."""

import logging
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.compose import message_builder
from mail.compose.message_draft import CustomHeader, MessageDraft
from mail.limits.user_limits import STORAGE_QUOTA, usage_level
from mail.mime.header_encoding import NamedAddress
from mail.storage.blobs.blob_writer import StoredMessageBlobs
from mail.storage.message_insert import MessagePlacement, insert_message_and_take_quota
from mail.storage.quota import InsertKind
from mail.storage.received_messages import parse_storable_message, store_blobs_once_per_tenant
from mail.storage.storable_message import StorableMessage
from mail.text.languages import text_in_language
from models.addresses.tables import Address
from models.admin.tasks import TaskKind
from models.errors import NotFound
from models.mailboxes.tables import Mailbox, SpecialUse
from models.quantities import format_size
from models.runtime.environment import Environment
from models.store.columns import ColumnRow
from models.users.tables import UsageLevel, User
from resolvers.access import require_user_id
from resolvers.admin.task_steps import TaskStepPlan, TaskStepResult
from resolvers.context import Context
from resolvers.users.quota.quota_warning_texts import ENGLISH_TEXTS, TEXTS_BY_LANGUAGE

log = logging.getLogger(__name__)

KIND = TaskKind.LIMIT_WARNING
LEVELS = list(UsageLevel)  # from the lowest


@dataclass(frozen=True, slots=True)
class StoredNotice:
    """A message with stored bytes, and its place in a mailbox."""

    message: StorableMessage
    stored_message: StoredMessageBlobs
    placement: MessagePlacement


async def build_warning_if_due_and_store_blobs(
    ctx: Context, order: dict[str, Any], checkpoint: dict[str, Any]
) -> TaskStepPlan:
    """Build the message, unless it was built, or storage is below the level again.

    If storage has passed the next level, only the message about that one is sent.
    """
    row = None if checkpoint else await load_user_of_task_with_inbox(ctx)
    if row is None:
        return TaskStepPlan()
    current_level = usage_level(ctx.environment.options, row.used, row.allowed)
    reported_level = UsageLevel(order["level"])
    if current_level is not reported_level and not (
        order["refused"] and LEVELS.index(current_level) > LEVELS.index(reported_level)
    ):
        return TaskStepPlan()
    draft = _build_draft(
        ctx.environment,
        row,
        was_message_refused=order["refused"],
        is_full=current_level is UsageLevel.FULL,
    )
    message = await parse_storable_message(message_builder.validate_and_build_message(draft))
    stored_message = await store_blobs_once_per_tenant(ctx.environment, row.tenant_id, message)
    recipients = [person.address for person in draft.to]
    placement = MessagePlacement(
        row.id, row.box, ctx.environment.now(), envelope_from="", envelope_to=recipients
    )
    return TaskStepPlan(prepared=StoredNotice(message, stored_message, placement))


async def insert_notice_into_inbox(
    ctx: Context,
    session: AsyncSession,
    _order: dict[str, Any],
    _: dict[str, Any],
    task_plan: TaskStepPlan,
) -> TaskStepResult:
    """Insert the message into the INBOX, even if the mailbox is full."""
    if task_plan.prepared is None:
        return TaskStepResult({})
    notice: StoredNotice = task_plan.prepared
    insert = partial(
        insert_message_and_take_quota,
        message=notice.message,
        stored_blobs=notice.stored_message,
        placement=notice.placement,
        kind=InsertKind.QUOTA_NOTICE,
    )
    try:
        async with session.begin_nested():
            await ctx.environment.run_in_session(session, insert)
    except NotFound:  # the user or its INBOX was deleted
        log.warning(
            "The account has no INBOX; quota warning not stored",
            extra={"user": notice.placement.user_id},
        )
        return TaskStepResult({})
    return TaskStepResult({"written": True}, done_count=1)


async def load_user_of_task_with_inbox(ctx: Context) -> ColumnRow | None:
    """Load the user of the task with INBOX. None if one of them was deleted."""
    statement = (
        select(
            *(getattr(User, name) for name in ("id", "tenant_id", "username", "name", "language")),
            col(User.used),
            STORAGE_QUOTA.label("allowed"),
            col(Mailbox.id).label("box"),
            col(Address.display_address),
        )
        .join(Mailbox, col(Mailbox.user_id) == col(User.id))
        .outerjoin(Address, (col(Address.user_id) == col(User.id)) & col(Address.main))
        .where(
            col(User.id) == require_user_id(ctx),
            col(User.deleted_at).is_(None),
            col(Mailbox.special_use) == SpecialUse.INBOX,
        )
    )
    rows = await ctx.read(statement, {"platform": ctx.environment.options.users_default_quota})
    return next(iter(rows), None)


def _build_draft(
    environment: Environment, user_row: ColumnRow, *, was_message_refused: bool, is_full: bool
) -> MessageDraft:
    texts = text_in_language(user_row.language, TEXTS_BY_LANGUAGE) or ENGLISH_TEXTS
    name = user_row.display_address or user_row.username
    address = name if "@" in name else f"{name}@{environment.options.hostname}"
    domain = address.rpartition("@")[2]
    variables = {
        "percent": user_row.used * 100 // user_row.allowed,
        "address": address,
        "used": format_size(user_row.used).replace(".", texts.decimal_separator),
        "allowed": format_size(user_row.allowed).replace(".", texts.decimal_separator),
    }
    subject = texts.full_subject if is_full or was_message_refused else texts.nearly_full_subject
    sentences = [
        *([texts.message_refused_text] if was_message_refused else []),
        texts.usage_text,
        texts.full_text if is_full or was_message_refused else texts.nearly_full_text,
        texts.advice,
    ]
    return MessageDraft(
        from_=NamedAddress(f"postmaster@{domain}", "Postmaster"),
        date=environment.now(),
        message_id=message_builder.new_message_id(environment.random_bytes(16), domain),
        to=[NamedAddress(address, user_row.name)],
        subject=subject.format(**variables),
        text="\n\n".join(sentence.format(**variables) for sentence in sentences) + "\n",
        headers=[CustomHeader("Auto-Submitted", "auto-generated")],  # RFC 3834, section 5
    )
