"""Messages to a user about changes that others made to credentials or mail routing."""

from typing import Any

from mail.compose import message_builder
from mail.compose.message_draft import CustomHeader, MessageDraft
from mail.mime.header_encoding import NamedAddress
from mail.storage.message_insert import MessagePlacement
from mail.storage.received_messages import parse_storable_message, store_blobs_once_per_tenant
from mail.text.languages import text_in_language
from models.admin.tasks import TaskKind
from models.runtime.environment import Environment
from models.store.columns import ColumnRow
from resolvers.admin.task_steps import TaskStepPlan
from resolvers.auth.security_message_texts import ENGLISH_TEXTS, TEXTS_BY_LANGUAGE
from resolvers.context import Context
from resolvers.users.quota.quota_warnings import (
    StoredNotice,
    insert_notice_into_inbox,
    load_user_of_task_with_inbox,
)

__all__ = ["KIND", "build_message_and_store_blobs", "insert_notice_into_inbox"]

KIND = TaskKind.SECURITY_NOTIFICATION
MAX_VALUE_LENGTH = 200  # characters of a value


async def build_message_and_store_blobs(
    ctx: Context, order: dict[str, Any], checkpoint: dict[str, Any]
) -> TaskStepPlan:
    """Build and store the message of a task, unless an earlier step has done so.

    Returns an empty plan if the user no longer exists.
    """
    row = None if checkpoint else await load_user_of_task_with_inbox(ctx)
    if row is None:
        return TaskStepPlan()
    message_draft = _build_message_draft(ctx.environment, row, order)
    message = await parse_storable_message(
        message_builder.validate_and_build_message(message_draft)
    )
    stored_message = await store_blobs_once_per_tenant(ctx.environment, row.tenant_id, message)
    recipients = [person.address for person in message_draft.to]
    placement = MessagePlacement(
        row.id, row.box, ctx.environment.now(), envelope_from="", envelope_to=recipients
    )
    return TaskStepPlan(prepared=StoredNotice(message, stored_message, placement))


def _build_message_draft(
    environment: Environment, row: ColumnRow, order: dict[str, Any]
) -> MessageDraft:
    """Return the message in the user's language."""
    texts = text_in_language(row.language, TEXTS_BY_LANGUAGE) or ENGLISH_TEXTS
    name = row.display_address or row.username
    address = name if "@" in name else f"{name}@{environment.options.hostname}"
    domain = address.rpartition("@")[2]
    lines = [
        (texts.event_label, order["action"].replace("_", " ").lower()),
        (texts.by_label, order["by"]),
        (texts.time_label, order["at"]),
        (texts.ip_label, order["ip"]),
        *((key, str(value)) for key, value in sorted(order["detail"].items())),
    ]
    line_text = "\n".join(f"{key}: {value[:MAX_VALUE_LENGTH]}" for key, value in lines if value)
    is_guessing = order["by"] is None
    intro = texts.guessing_intro if is_guessing else texts.intro
    paragraphs = [intro.format(address=address), line_text, texts.advice]
    return MessageDraft(
        from_=NamedAddress(f"postmaster@{domain}", "Postmaster"),
        date=environment.now(),
        message_id=message_builder.new_message_id(environment.random_bytes(16), domain),
        to=[NamedAddress(address, row.name)],
        subject=texts.guessing_subject if is_guessing else texts.subject,
        text="\n\n".join(paragraphs) + "\n",
        headers=[CustomHeader("Auto-Submitted", "auto-generated")],  # RFC 3834, section 5
    )
