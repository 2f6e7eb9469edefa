"""Make a message that is still held a draft again."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.storage import draft_replacement, message_open
from mail.storage.blobs.blob_writer import StoredMessageBlobs
from mail.storage.draft_replacement import EarlierDraft
from mail.storage.message_content import read_all
from mail.storage.message_insert import InsertItem, MessagePlacement
from mail.storage.received_messages import parse_storable_message, store_blobs_once_per_tenant
from mail.storage.storable_message import StorableMessage
from models.errors import (
    NotFound,
    require_found,
)
from models.mailboxes.tables import SpecialUse
from models.store.columns import select_columns
from models.submission.tables import Submission
from resolvers.access import require_user_id
from resolvers.context import Context
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.submission.drafts.send import earlier_draft_from_row, require_own_message


@dataclass(frozen=True, slots=True)
class RestoredDraft:
    """A sent message that becomes a draft again."""

    message: StorableMessage
    stored_blobs: StoredMessageBlobs
    place: MessagePlacement
    replaced: EarlierDraft


async def store_blobs_for_draft_restoration(
    ctx: Context, undo_facts: Mapping[str, Any]
) -> RestoredDraft | None:
    """Prepare what an undo token restores, or None if the message was deleted."""
    draft = undo_facts.get("draft")
    if not draft:
        return None
    try:
        row = await require_own_message(ctx, draft["message"])
    except NotFound:
        return None
    statement = select(*select_columns(Submission, {"id", "blob_id", "tenant_id"})).where(
        col(Submission.id) == undo_facts["submissions"][0],
        col(Submission.user_id) == require_user_id(ctx),
    )
    submission = require_found(next(iter(await ctx.read(statement)), None), path=["token"])
    layout_blob_id = draft.get("blob", submission.blob_id)  # if the sent content is another one
    content = await message_open.open_submission(ctx.environment, submission.id, layout_blob_id)
    message = await parse_storable_message(await read_all(content.stream_raw()))
    stored_blobs = await store_blobs_once_per_tenant(ctx.environment, submission.tenant_id, message)
    placement = MessagePlacement(
        require_user_id(ctx),
        await _previous_mailbox_or_drafts_or_inbox_id(ctx, draft["mailbox"]),
        ctx.environment.now(),
        seen=draft["seen"],
        draft=True,
        origin=ctx.origin,
    )
    return RestoredDraft(
        message,
        stored_blobs,
        placement,
        await earlier_draft_from_row(ctx, row, must_be_draft=False),
    )


async def _previous_mailbox_or_drafts_or_inbox_id(ctx: Context, previous_mailbox_id: int) -> int:
    """Return the mailbox the draft was in if it still exists, else Drafts, else INBOX."""
    mailbox_refs = [
        mailbox_loaders.MailboxSelector(id=previous_mailbox_id),
        mailbox_loaders.MailboxSelector(special_use=SpecialUse.DRAFTS),
        mailbox_loaders.MailboxSelector(path="INBOX"),
    ]
    mailboxes = await mailbox_loaders.load_visible_by_selectors(
        ctx, [(require_user_id(ctx), name) for name in mailbox_refs]
    )
    mailbox = require_found(
        next((mailbox for mailbox in mailboxes if mailbox is not None), None), path=["token"]
    )
    return int(mailbox.id)


async def restore_draft(ctx: Context, session: AsyncSession, restored: RestoredDraft) -> None:
    """Make the message a draft again, in the transaction that cancels the submission."""
    await ctx.environment.run_in_session(
        session,
        lambda transaction: draft_replacement.replace_draft_message(
            transaction,
            InsertItem(restored.message, restored.stored_blobs, restored.place),
            restored.replaced,
            ignores_quota=True,
        ),
    )
