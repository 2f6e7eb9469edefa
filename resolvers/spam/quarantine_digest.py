"""Send users a digest of quarantined messages that no earlier digest has listed."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.compose import message_builder
from mail.compose.message_draft import CustomHeader, MessageDraft
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
from models.events.event_types import EventType
from models.mailboxes.tables import Mailbox, SpecialUse
from models.runtime.environment import Environment
from models.spam.quarantine import QuarantineItem
from models.store.columns import ColumnRow, select_columns
from models.users.tables import Frequency, User
from resolvers.access import require_user_id
from resolvers.admin.task_steps import TaskStepPlan, TaskStepResult
from resolvers.context import Context
from resolvers.spam.quarantine_digest_texts import ENGLISH_TEXTS, TEXTS_BY_LANGUAGE, DigestTexts

log = logging.getLogger(__name__)

TASK_KIND = TaskKind.QUARANTINE_NOTIFICATION
MAX_LISTED_MESSAGES = 50  # messages that a digest lists
MAX_COUNTED_MESSAGES = 10_000  # messages that it counts
MAX_VALUE_LENGTH = 100  # characters of a subject or an author
_SPACE = re.compile(r"\s+")

DIGEST_COLUMNS = ("id", "sender", "from_name", "from_address", "subject", "virus", "created_at",
         "expires_at")  # fmt: skip


@dataclass(frozen=True, slots=True)
class PreparedDigest:
    """A digest with stored blobs, its placement, and the IDs of the items it reports."""

    message: StorableMessage
    stored_blobs: StoredMessageBlobs
    placement: MessagePlacement
    item_ids: Sequence[int]


async def compose_digest_and_store_blobs(
    ctx: Context, _order: dict[str, Any], checkpoint: dict[str, Any]
) -> TaskStepPlan:
    """Compose the digest and store its blobs.

    Plans nothing if the digest was written already or no unreported message is left.
    """
    account = None if checkpoint else await _load_user_unless_digest_is_off(ctx)
    rows = await _load_unreported_items(ctx) if account else []
    if account is None or not rows:
        return TaskStepPlan()
    draft = _digest_draft(ctx.environment, account, rows)
    parsed_message = await parse_storable_message(message_builder.validate_and_build_message(draft))
    stored_blobs = await store_blobs_once_per_tenant(
        ctx.environment, account.tenant_id, parsed_message
    )
    addresses = [person.address for person in draft.to]
    placement = MessagePlacement(
        account.id, account.box, ctx.environment.now(), envelope_from="", envelope_to=addresses
    )
    return TaskStepPlan(
        prepared=PreparedDigest(parsed_message, stored_blobs, placement, [row.id for row in rows])
    )


async def insert_digest_and_mark_items_reported(
    ctx: Context,
    session: AsyncSession,
    _order: dict[str, Any],
    _: dict[str, Any],
    task_plan: TaskStepPlan,
) -> TaskStepResult:
    """Insert the digest into INBOX regardless of the quota, and mark its items as reported."""
    if task_plan.prepared is None:
        return TaskStepResult({})
    digest: PreparedDigest = task_plan.prepared
    statement = (
        update(QuarantineItem)
        .where(col(QuarantineItem.id).in_(digest.item_ids), ~col(QuarantineItem.notified))
        .values(notified=True)
        .returning(col(QuarantineItem.id))
    )
    ids = sorted((await (await session.connection()).execute(statement)).scalars())
    if not ids:  # all items were released or deleted in the meantime
        return TaskStepResult({})
    await ctx.record_change(session, require_user_id(ctx), EventType.QUARANTINE_NOTIFIED, ids)
    insert_digest_message = partial(
        insert_message_and_take_quota,
        message=digest.message,
        stored_blobs=digest.stored_blobs,
        placement=digest.placement,
        kind=InsertKind.QUOTA_NOTICE,
    )
    try:
        async with session.begin_nested():
            await ctx.environment.run_in_session(session, insert_digest_message)
    except NotFound:  # the user or its INBOX was deleted in the meantime
        log.warning(
            "The account has no INBOX; quarantine digest not stored",
            extra={"user": digest.placement.user_id},
        )
        return TaskStepResult({})
    return TaskStepResult({"written": True}, done_count=1)


async def _load_user_unless_digest_is_off(ctx: Context) -> ColumnRow | None:
    """Load the user with INBOX and address; None if deleted or if the digest is turned off."""
    names = {"id", "tenant_id", "username", "name", "language"}
    statement = (
        select(
            *select_columns(User, names), col(Mailbox.id).label("box"), col(Address.display_address)
        )
        .join(Mailbox, col(Mailbox.user_id) == col(User.id))
        .outerjoin(Address, (col(Address.user_id) == col(User.id)) & col(Address.main))
        .where(
            col(User.id) == require_user_id(ctx),
            col(User.deleted_at).is_(None),
            col(User.quarantine_notification) != Frequency.NEVER,
            col(Mailbox.special_use) == SpecialUse.INBOX,
        )
    )
    return next(iter(await ctx.read(statement)), None)


async def _load_unreported_items(ctx: Context) -> Sequence[ColumnRow]:
    """Load the quarantined messages that no digest has reported, newest first."""
    statement = select(*select_columns(QuarantineItem, DIGEST_COLUMNS)).where(
        col(QuarantineItem.user_id) == require_user_id(ctx), ~col(QuarantineItem.notified)
    )
    order = col(QuarantineItem.created_at).desc(), col(QuarantineItem.id).desc()
    return await ctx.read(statement.order_by(*order).limit(MAX_COUNTED_MESSAGES))


def _digest_draft(
    environment: Environment, user: ColumnRow, items: Sequence[ColumnRow]
) -> MessageDraft:
    """Compose the digest in the user's language."""
    texts = text_in_language(user.language, TEXTS_BY_LANGUAGE) or ENGLISH_TEXTS
    name = user.display_address or user.username
    address = name if "@" in name else f"{name}@{environment.options.hostname}"
    domain = address.rpartition("@")[2]
    rest, page = len(items) - MAX_LISTED_MESSAGES, environment.options.quarantine_url
    paragraphs = [
        texts.intro.format(address=address),
        *(_item_description(texts, row) for row in items[:MAX_LISTED_MESSAGES]),
        *([texts.more.format(rest=rest)] if rest > 0 else []),
        texts.advice,
        *([texts.page.format(page=page)] if page else []),
    ]
    return MessageDraft(
        from_=NamedAddress(f"postmaster@{domain}", "Postmaster"),
        date=environment.now(),
        message_id=message_builder.new_message_id(environment.random_bytes(16), domain),
        to=[NamedAddress(address, user.name)],
        subject=texts.subject.format(many=len(items)),
        text="\n\n".join(paragraphs) + "\n",
        headers=[CustomHeader("Auto-Submitted", "auto-generated")],  # RFC 3834, section 5
    )


def _item_description(texts: DigestTexts, item: ColumnRow) -> str:
    """Return three lines about a message. Their values come from an untrusted sender."""
    author = " ".join(filter(None, (item.from_name, f"<{item.from_address or item.sender}>")))
    until = texts.until.format(date=f"{item.expires_at:%Y-%m-%d}")
    notes = [until, *([texts.virus] if item.virus else [])]
    details = f"{item.created_at:%Y-%m-%d %H:%M} UTC, {', '.join(notes)}"
    return "\n".join(
        [_printable_line(item.subject) or "-", f"  {_printable_line(author)}", f"  {details}"]
    )


def _printable_line(text: str) -> str:
    """Return a text as one short line, without control and bidirectional characters."""
    plain = "".join(sign for sign in _SPACE.sub(" ", text) if sign.isprintable()).strip()
    return plain if len(plain) <= MAX_VALUE_LENGTH else f"{plain[: MAX_VALUE_LENGTH - 1]}…"
