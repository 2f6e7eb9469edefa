"""Write the content of an account export: its record and its messages, in chunks."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import func, select, tuple_
from sqlmodel import col

from mail.archives import archive_writer
from mail.archives.archive_writer import Chunk, ExportFormat, State
from mail.archives.json_lines import Outgoing, Told
from mail.storage.blobs.errors import Corrupt
from mail.storage.message_content import Stored, gathered, submitted
from mail.storage.message_flags import SYSTEM_FLAGS, flags
from models.admin.key_values import KeyValue
from models.errors import NotFound
from models.mailboxes.tables import Mailbox, MailboxEntry
from models.messages.tables import Message
from models.spam.sender_rules import SenderRule, of_user
from models.store.columns import Picked, picked
from models.submission.identities import Identity
from models.users.tables import User
from resolvers.access import own, records
from resolvers.autoreply import autoreplies
from resolvers.connectors import transfer
from resolvers.context import Context
from resolvers.filters import sieve_scripts
from resolvers.filters import transfer as filter_transfer
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.messages import content, labels
from resolvers.messages.filters.filter_conditions import Selection
from resolvers.transfer import scheduled_messages

WEIGHT = 8 << 20  # bytes; a larger message has a chunk of its own
TOGETHER = 200
SETTINGS = (
    *("name", "language", "retention", "spam_level", "pub_key", "encrypt_messages", "meta_data"),
)
COLUMNS = frozenset(
    {"id", "mailbox_id", "size", "digest", "received_at", "expires", "keywords", "meta_data",
     "envelope_from", "envelope_to", *SYSTEM_FLAGS}
)  # fmt: skip
AGE = (col(Message.listed_at), col(Message.id))

# A count of the listed IDs, or sort time and ID of the last message. Stored in checkpoints.
After = int | list[Any] | dict[str, Any] | None


@dataclass(slots=True)
class Cut:
    """A chunk of an export, the position after it, and the messages that could not be read."""

    chunk: Chunk
    after: After
    done: int = 0
    damaged: list[str] = field(default_factory=list)


async def begun(
    ctx: Context,
    kind: ExportFormat,
    state: State,
    order: dict[str, Any],
    passphrase: str | None = None,
) -> tuple[Chunk, int]:
    """Write the account's record, and return its chunk with the number of messages to export.

    A passphrase encrypts the passwords of connectors. Without it they are left out.
    """
    user_id = ctx.viewer.user_id
    total = len(order["ids"]) if order["ids"] is not None else await _all(ctx)
    names = {"id", "path", "special_use", "hidden", "subscribed", "retention", "encrypt_messages"}
    rows = await mailbox_loaders.all_of(ctx, user_id, names)
    asked = select(*picked(MailboxEntry)).where(
        col(MailboxEntry.mailbox_id).in_([row.id for row in rows])
    )
    notes: dict[int, dict[str, str]] = {}
    if order["settings"]:
        for row in await ctx.read(asked):
            notes.setdefault(row.mailbox_id, {})[row.key] = row.value
    boxes = [
        {
            "path": row.path,
            "specialUse": row.special_use,
            "hidden": row.hidden,
            "subscribed": row.subscribed,
            "retention": row.retention,
            "encryptMessages": row.encrypt_messages,
            "metadata": notes.get(row.id, {}),
        }
        for row in rows
    ]
    now = ctx.world.now()
    account = {"exportedAt": now, "mailboxes": boxes, "messages": total}
    if order["settings"]:
        account |= await _settings(ctx, passphrase)
    return archive_writer.begun(kind, state, account, now), total


async def _settings(ctx: Context, passphrase: str | None) -> dict[str, Any]:
    """Return the settings of the user for the record. Never contains the user's password."""
    user_id, now = ctx.viewer.user_id, ctx.world.now()
    asked = select(*picked(User, {*SETTINGS, "username"})).where(col(User.id) == user_id)
    (user,) = await ctx.read(asked)
    values = select(*picked(KeyValue)).where(
        col(KeyValue.stream_id) == user_id,
        col(KeyValue.expires_at).is_(None) | (col(KeyValue.expires_at) > now),
    )
    stored = [
        {"store": row.store, "key": row.key, "value": row.value, "expires": row.expires_at}
        for row in await ctx.read(values.order_by(col(KeyValue.store), col(KeyValue.key)))
    ]
    facts = {name: getattr(user, name) for name in SETTINGS}
    named = [
        {"keyword": row.keyword, "name": row.name, "color": row.color}
        for row in await ctx.load(labels.of_users, user_id)
    ]
    answered = await autoreplies.exported(ctx, user_id)
    return {
        "account": user.username,
        "settings": facts,
        "keyValues": stored,
        "labels": named,
        "autoreply": answered,
        "identities": await _identities(ctx, user_id),
        "filters": await filter_transfer.exported(ctx, user_id),
        "sieveScripts": await sieve_scripts.exported(ctx, user_id),
        "senderRules": await _sender_rules(ctx, user_id),
        "scheduled": await scheduled_messages.exported(ctx, user_id),
        **await transfer.exported(ctx, user_id, passphrase),
    }


async def _sender_rules(ctx: Context, user_id: int) -> list[dict[str, Any]]:
    """Return the user's sender rules for the record, by pattern."""
    names = ("pattern", "action", "comment")
    asked = select(*picked(SenderRule, names)).where(col(SenderRule.place) == of_user(user_id))
    return [dict(row._mapping) for row in await ctx.read(asked.order_by(col(SenderRule.pattern)))]  # noqa: SLF001


async def _identities(ctx: Context, user_id: int) -> list[dict[str, Any]]:
    """Return the user's identities for the record, also those that can't be used now."""
    names = ("shown", "name", "preferred", "reply_to", "bcc", "signature_text", "signature_html")
    asked = (
        select(*picked(Identity, names), col(Mailbox.path))
        .outerjoin(
            Mailbox,
            (col(Mailbox.id) == col(Identity.mailbox_id)) & (col(Mailbox.user_id) == user_id),
        )
        .where(col(Identity.user_id) == user_id)
        .order_by(col(Identity.created_at), col(Identity.id))
    )
    return [
        {
            "address": row.shown,
            "name": row.name,
            "default": row.preferred,
            "replyTo": row.reply_to,
            "bcc": row.bcc,
            "signatureText": row.signature_text,
            "signatureHtml": row.signature_html,
            "sentMailbox": row.path,
        }
        for row in await ctx.read(asked)
    ]


async def chosen(ctx: Context, user_id: int, selection: Selection) -> list[int]:
    """Return the IDs of the messages in mailboxes that a selector matches."""
    looked = await selection.looked(ctx, [user_id])
    theirs = [
        records(ctx, Message),
        col(Message.user_id) == user_id,
        col(Message.archived_at).is_(None),
    ]
    asked = select(col(Message.id)).where(*looked.condition(ctx, theirs))
    return [row.id for row in await ctx.read(asked.order_by(col(Message.id)))]


async def count(ctx: Context) -> int:
    """Return the number of messages in the viewer's mailboxes."""
    many = select(func.count()).select_from(Message).where(*_theirs(ctx))
    ((total,),) = await ctx.read(many)
    return int(total)


async def _all(ctx: Context) -> int:
    """Return the number of messages in mailboxes and of scheduled messages without a copy."""
    return await count(ctx) + await scheduled_messages.count_without_copy(ctx, own(ctx))


def _theirs(ctx: Context) -> list[Any]:
    """Return the WHERE clauses of the viewer's messages in mailboxes."""
    return [col(Message.user_id) == own(ctx), col(Message.archived_at).is_(None)]


async def cut(
    ctx: Context, kind: ExportFormat, state: State, ids: Sequence[int] | None, after: After
) -> Cut | None:
    """Write the chunk of the messages after a position; None if there are no more.

    Each message that existed when the export began, and still exists, is in one chunk, in the
    mailbox that then contains it. Messages come in list order, oldest first, or in the order of
    `message_ids`. Scheduled messages that are in no mailbox follow at the end.
    """
    if not isinstance(after, dict):
        found = await _of_folders(ctx, kind, state, ids, after)
        if found is not None or ids is not None:
            return found
        after = {}
    return await _of_queue(ctx, kind, state, after)


async def _of_folders(
    ctx: Context,
    kind: ExportFormat,
    state: State,
    ids: Sequence[int] | None,
    after: int | list[Any] | None,
) -> Cut | None:
    """Write the next chunk of messages in mailboxes; None if there are no more."""
    asked = select(*picked(Message, {"id", "size", "listed_at"})).where(*_theirs(ctx))
    if ids is not None:
        at = after if isinstance(after, int) else 0
        some = ids[at : at + TOGETHER]
        if not some:
            return None
        sizes = {row.id: row for row in await ctx.read(asked.where(col(Message.id).in_(some)))}
        chosen = _fitting([sizes[key] for key in some if key in sizes])
        place: After = at + (some.index(chosen[-1].id) + 1 if chosen else len(some))
    else:
        if isinstance(after, list):
            stood, key = datetime.fromisoformat(after[0]), after[1]
            asked = asked.where(tuple_(*AGE) > (stood, key))
        chosen = _fitting(await ctx.read(asked.order_by(*AGE).limit(TOGETHER)))
        if not chosen:
            return None
        place = [chosen[-1].listed_at.isoformat(), chosen[-1].id]
    return await _cut(ctx, kind, state, [row.id for row in chosen], place)


def _fitting(rows: Sequence[Picked]) -> list[Picked]:
    """Return the first rows, as many as fit into a chunk."""
    chosen, weight = list[Picked](), 0
    for row in rows:
        if chosen and weight + row.size > WEIGHT:
            break
        chosen.append(row)
        weight += row.size
    return chosen


async def _cut(
    ctx: Context, kind: ExportFormat, state: State, chosen: Sequence[int], place: After
) -> Cut:
    """Write these messages as a chunk. Deleted messages are left out."""
    ctx.forget()
    rows = await ctx.read(
        select(*picked(Message, COLUMNS), col(Mailbox.path))
        .join(Mailbox, col(Mailbox.id) == col(Message.mailbox_id))
        .where(*_theirs(ctx), col(Message.id).in_(chosen))
        .order_by(*AGE)
    )
    opened = await ctx.load_all(content.stored, [row.id for row in rows])
    waiting = await scheduled_messages.waiting(ctx, own(ctx), chosen)
    outgoing: list[Outgoing] = []
    damaged: list[str] = []
    for row, stored in zip(rows, opened, strict=True):
        if not isinstance(stored, Stored):
            continue  # deleted since
        try:
            raw = await gathered(stored.whole())
        except Corrupt as problem:
            damaged.append(f"message {row.id}: {problem}")
            continue
        except NotFound:
            continue  # deleted since
        told = Told(
            row.path,
            row.received_at,
            flags(row),
            row.expires,
            row.meta_data,
            row.envelope_from,
            row.envelope_to,
            row.digest,
        )
        box_id = row.mailbox_id
        if row.id in waiting:
            drafts = waiting[row.id]
            told, box_id = (
                scheduled_messages.as_draft(told, drafts),
                drafts.id if drafts else box_id,
            )
        number = state.messages + len(outgoing) + 1
        outgoing.append(Outgoing(raw, told, box_id, number))
    ctx.forget()  # frees the memory of the loaded messages
    chunk = await _put(ctx, kind, state, outgoing)
    return Cut(chunk, place, len(chosen), damaged)


async def _put(
    ctx: Context, kind: ExportFormat, state: State, outgoing: Sequence[Outgoing]
) -> Chunk:
    """Encode messages in the archive format, in a worker thread."""
    if not outgoing:
        return Chunk(b"")
    return await asyncio.to_thread(archive_writer.put, kind, state, outgoing, ctx.world.now())


async def _of_queue(
    ctx: Context, kind: ExportFormat, state: State, after: dict[str, Any]
) -> Cut | None:
    """Write the next chunk of scheduled messages that are in no mailbox."""
    behind = after.get("queued", ())
    rows = _fitting(await scheduled_messages.without_copy(ctx, own(ctx), behind, TOGETHER))
    if not rows:
        return None
    box = await scheduled_messages.drafts(ctx, own(ctx))
    outgoing: list[Outgoing] = []
    damaged: list[str] = []
    for row in rows:
        try:
            raw = await gathered((await submitted(ctx.world, row.id, row.blob_id)).whole())
        except Corrupt as problem:
            damaged.append(f"submission {row.queue_id}: {problem}")
            continue
        except NotFound:
            continue  # removed since
        told, number = scheduled_messages.told_of(row, raw, box), state.messages + len(outgoing) + 1
        outgoing.append(Outgoing(raw, told, box.id if box else 0, number))
    chunk = await _put(ctx, kind, state, outgoing)
    return Cut(chunk, {"queued": scheduled_messages.place_of(rows[-1])}, len(rows), damaged)
