"""Attachments of stored and quarantined messages, by message and number."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.errors import Forbidden
from models.users.roles import Scope, UserPermission
from resolvers.context import Context
from resolvers.messages import loaders
from resolvers.messages.content_access import RowWithoutContent
from resolvers.spam import quarantine
from resolvers.viewer import GuardRule

INDEX_BITS = 16  # of an attachment key, below the id of the message
MAX_ATTACHMENTS = 1 << INDEX_BITS  # of a message
QUARANTINE_RULE = GuardRule(scope=Scope.READ, user_permission=UserPermission.QUARANTINE_ATTACHMENTS)


@dataclass(frozen=True, slots=True)
class AttachmentRow:
    """An attachment of a message by its number from 0."""

    message: Any  # the row of the message or of the quarantined message
    index: int
    is_quarantined: bool = False

    @property
    def facts(self) -> Mapping[str, Any]:
        """The stored values of the attachment, such as its section and size."""
        facts: Mapping[str, Any] = self.message.attachments[self.index]
        return facts


def attachment_key(message_id: int, index: int) -> int:
    """Return the key of an attachment for `load_visible_attachments`."""
    return message_id << INDEX_BITS | index


def attachment_rows(message_row: Any, *, is_quarantined: bool = False) -> list[AttachmentRow]:
    """Return the attachments of a message in their order."""
    return [
        AttachmentRow(message_row, index, is_quarantined)
        for index in range(len(message_row.attachments))
    ]


async def load_visible_attachments(
    ctx: Context, attachment_keys: list[int]
) -> list[AttachmentRow | None]:
    """Load attachments by their keys, in this order. None if the viewer can't see one."""
    ids_and_indexes = [divmod(key, MAX_ATTACHMENTS) for key in attachment_keys]
    message_ids = list({message_id for message_id, _ in ids_and_indexes})
    messages = zip(
        message_ids, await ctx.load_many(loaders.load_visible_by_ids, message_ids), strict=True
    )
    rows = {
        message_id: attachment_rows(row)
        for message_id, row in messages
        if row is not None and not isinstance(row, RowWithoutContent)
    }
    missing_ids = [message_id for message_id in message_ids if message_id not in rows]
    rows |= await _load_quarantined_attachments(ctx, missing_ids)
    return [_item_or_none(rows.get(message_id, ()), index) for message_id, index in ids_and_indexes]


async def _load_quarantined_attachments(
    ctx: Context, item_ids: list[int]
) -> dict[int, list[AttachmentRow]]:
    """Load the attachments of those ids that are quarantined messages the viewer can read."""
    try:
        ctx.viewer.require(QUARANTINE_RULE)
    except Forbidden:
        return {}
    items = await ctx.load_many(quarantine.load_visible_items_by_id, item_ids)
    return {item.id: attachment_rows(item, is_quarantined=True) for item in items if item}


def _item_or_none(rows: Sequence[AttachmentRow], index: int) -> AttachmentRow | None:
    return rows[index] if index < len(rows) else None
