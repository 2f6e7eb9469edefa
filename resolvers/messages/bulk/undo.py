"""Undo of message changes and of held sending, by a token that is returned once."""

from base64 import urlsafe_b64encode
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import insert, select
from sqlmodel import col
from sqlmodel import select as instances
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.storage.message_flags import flags
from models.admin.tasks import Undo
from models.errors import Conflict, NotFound, Problems
from models.mailboxes.tables import Mailbox
from models.store.columns import Picked, picked
from models.store.prepared_statements import Prepared, values_of
from models.store.prepared_statements import Sent as Work
from resolvers.access import own, visible
from resolvers.auth.authentication import digest_of
from resolvers.context import Context
from resolvers.mailboxes.owners import holding
from resolvers.messages.bulk import flags as bulk_flags
from resolvers.messages.bulk import mute, row_changes
from resolvers.messages.bulk.row_changes import Changes
from resolvers.submission import create as submission_create
from resolvers.submission import drafts
from resolvers.submission import mutations as submission_mutations
from resolvers.submission.create import Outgoing, Sent, Shown
from resolvers.submission.drafts import Back, Order
from resolvers.users.selection import Users

SEND = "MESSAGE_SEND"

_NOTE = Prepared(insert(Undo).inline())


@dataclass(frozen=True, slots=True)
class Was:
    """The state of messages and threads before a change."""

    kind: str
    changes: Changes
    rows: Sequence[Picked]
    muted: Mapping[int, bool] = field(default_factory=dict)
    to: Mapping[int, int] | None = None  # target mailbox of each account


async def remember(ctx: Context, session: AsyncSession, was: Was) -> tuple[str, datetime]:
    """Store the state before a change. Returns the undo token and its expiry."""
    before = _before(was)
    if "meta_data" in (was.changes.values or {}):
        also = frozenset({"meta_data"})
        kept = await row_changes.chosen(session, [row.id for row in was.rows], also=also)
        before["meta"] = {str(row.id): row.meta_data for row in kept}
    row, token = _token(ctx, before)
    await (await session.connection()).execute(insert(Undo), row)
    return token, row["expires_at"]


def noted(ctx: Context, was: Was) -> tuple[str, datetime, Work]:
    """Return an undo token, its expiry and the statement that stores it.

    For changes of flags in one synchronous transaction, which don't touch `meta_data`.
    """
    row, token = _token(ctx, _before(was))
    return token, row["expires_at"], (_NOTE, row)


async def send(
    ctx: Context, outgoing: Outgoing, problems: Problems, shown: Shown
) -> tuple[list[Sent], tuple[str, datetime] | None]:
    """Send messages. If they are held, also return a token that takes them back, and its expiry."""
    if not outgoing.undo_window:
        return await submission_create.send_all(ctx, outgoing, problems, shown), None
    async with ctx.together():
        sent = await submission_create.send_all(ctx, outgoing, problems)
        held = [one.submission for one in sent if one.submission]
        token = await of_held(ctx, held)
    return sent, token


async def submit(ctx: Context, order: Order) -> tuple[Sent, tuple[str, datetime] | None]:
    """Send a draft.

    If it is held, also return a token that makes it a draft again, and its expiry.
    """
    if not order.undo_window:
        sent, _ = await drafts.submit(ctx, order)
        return sent, None
    async with ctx.together():
        sent, was = await drafts.submit(ctx, order)
        held = [sent.submission] if sent.submission else []
        token = await of_held(ctx, held, draft=was)
    return sent, token


async def of_held(ctx: Context, held: Sequence[Picked], **more: Any) -> tuple[str, datetime] | None:
    """Store an undo token for held submissions, in the transaction that holds them.

    `extra_values` are stored with it. Returns None if the submissions are not held.
    """
    until = held[0].undo_until if held else None
    if until is None:
        return None
    row, token = _token(ctx, {"kind": SEND, "submissions": [one.id for one in held], **more})
    row["expires_at"] = until
    async with ctx.write(row["user_id"]) as session:
        await (await session.connection()).execute(insert(Undo), row)
    return token, until


def _token(ctx: Context, before: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Return the row of a new undo token, and the token."""
    token = urlsafe_b64encode(ctx.world.random(24)).decode()
    row = {
        "id": ctx.world.key(),
        "user_id": own(ctx),
        "digest": digest_of(token),
        "before": before,
        "expires_at": ctx.world.now() + ctx.world.options.undo_window,
    }
    return row, token


def _before(was: Was) -> dict[str, Any]:
    """Return the stored form of the state before a change.

    `flags` is None if all flags change; `left` lists those that are set afterwards.
    """
    changes, rows = was.changes, was.rows
    values = changes.values or {}
    kind = was.kind if changes.snooze is None else "MESSAGE_MOVE"  # snoozing moves messages
    before: dict[str, Any] = {
        "kind": kind,
        "owners": sorted(set(values_of(rows, "user_id"))),
        "messages": bulk_flags.was(rows),
        "flags": None if changes.replace is not None else changes.touched,
        "left": changes.left,
        "expires": kind != "MESSAGE_UPDATE" or "expires" in values,
    }
    if was.to is not None and kind == "MESSAGE_MOVE":
        before["to"] = list(was.to.items())
    if was.muted:
        before["muted"] = list(was.muted.items())
    return before


async def undo(ctx: Context, token: str) -> int:
    """Undo the change of this token. Returns the number of messages that were reverted.

    Later changes stay: of a message that was moved on or restored, and of a flag that was set or
    removed again. Permanently deleted messages stay deleted; INBOX replaces a mailbox that no
    longer exists. Changes of others' messages need the permission again. Raises NotFound,
    Forbidden, or Conflict if a held message is already being sent.
    """
    user_id = own(ctx)
    mine = (
        col(Undo.digest) == digest_of(token),
        visible(ctx, Undo),
        col(Undo.expires_at) > ctx.world.now(),
    )
    known = next(iter(await ctx.read(select(col(Undo.before)).where(*mine))), None)
    if known and known.before["kind"] == SEND:
        return await _unsend(ctx, mine, await drafts.taken_back(ctx, known.before))
    owners = known.before.get("owners", [user_id]) if known else [user_id]
    async with holding(ctx, Users(ids=tuple(owners)), "undo", path="token") as held:
        return await _take_back(ctx, held.session, await _used(held.session, mine))


async def _used(session: AsyncSession, mine: Sequence[Any]) -> dict[str, Any]:
    """Delete the token and return its stored state. Raises NotFound."""
    kept = (await session.exec(instances(Undo).where(*mine))).first()
    if kept is None:
        raise NotFound("undo token", path=["token"])
    await session.delete(kept)
    await session.flush()
    return kept.before


async def _unsend(ctx: Context, mine: Sequence[Any], back: Back | None) -> int:
    """Cancel held messages. Their copies become drafts; a former draft is restored."""
    async with ctx.write(own(ctx)) as session:
        before = await _used(session, mine)
        # tokens from before mail merge have one submission
        held = before.get("submissions") or [before["submission"]]
        try:
            await submission_mutations.cancel(ctx, held, drafts=back is None)
        except Conflict as late:
            raise Conflict(late.message, path=["token"]) from late
        if back:
            await drafts.bring_back(ctx, session, back)
    return len(held)


async def _take_back(ctx: Context, session: AsyncSession, before: dict[str, Any]) -> int:
    """Revert what the change did, and leave later changes. Returns the number of messages."""
    was = {one[0]: one[1:] for one in before["messages"]}
    await mute.mute(ctx, session, dict(before.get("muted", ())))
    moved = before["kind"] != "MESSAGE_UPDATE"
    if moved:
        there = await row_changes.chosen(session, list(was))
        was = {row.id: was[row.id] for row in there if _stayed(row, before)}
        await _bring_back(ctx, session, before["kind"], {key: one[0] for key, one in was.items()})
    meta = before.get("meta")
    also = frozenset() if meta is None else frozenset({"meta_data"})
    rows = [
        row
        for row in await row_changes.chosen(session, list(was), also=also)
        if row.mailbox_id is not None
    ]
    states = {}
    for row in rows:
        # tokens from before snoozing end with the expiry
        home, named, expires, *snoozed = was[row.id]
        until, origin = snoozed or (None, None)
        states[row.id] = row_changes.flagged(_as_before(flags(row), named, before))
        if before["expires"]:
            states[row.id]["expires"] = row_changes.when(expires)
        if moved:  # a returned message is snoozed again
            there = row.mailbox_id == home
            states[row.id]["snoozed_until"] = row_changes.when(until) if there else None
            states[row.id]["snoozed_from"] = origin if there else None
        if meta is not None:
            states[row.id]["meta_data"] = meta[str(row.id)]
    await bulk_flags.restate(ctx, session, rows, states)
    return len(rows)


def _stayed(row: Picked, before: Mapping[str, Any]) -> bool:
    """True if a message is still where the change put it. After a snooze it can be anywhere."""
    if before["kind"] != "MESSAGE_MOVE":
        return row.mailbox_id is None
    if "to" not in before:
        return row.mailbox_id is not None
    return bool(row.mailbox_id == dict(before["to"]).get(row.user_id))


def _as_before(now: list[str], was: list[str], before: Mapping[str, Any]) -> list[str]:
    """Return the flags with those reverted that are still as the change left them."""
    left = before.get("left", now)  # missing in tokens of earlier versions
    touched = [*was, *left] if before["flags"] is None else before["flags"]
    back = {name for name in touched if (name in now) == (name in left)}
    return [n for n in now if n not in back] + [n for n in was if n in back]


async def _bring_back(
    ctx: Context, session: AsyncSession, kind: str, homes: Mapping[int, int]
) -> None:
    """Return deleted or moved messages to their former mailboxes, else to INBOX."""
    rows = await row_changes.chosen(session, list(homes))
    mailboxes, inboxes = await _homes(session, rows, homes)
    deleted = kind != "MESSAGE_MOVE"
    back: defaultdict[int, list[Picked]] = defaultdict(list)
    for row in rows:
        home = mailboxes.get(homes[row.id], inboxes[row.user_id])
        if (row.mailbox_id is None) is deleted and row.mailbox_id != home.id:
            back[home.id].append(row)
    for theirs in back.values():
        home = mailboxes.get(homes[theirs[0].id], inboxes[theirs[0].user_id])
        if deleted:
            await row_changes.restore(ctx, session, theirs, home)
        else:
            await row_changes.move(ctx, session, theirs, home)


async def _homes(
    session: AsyncSession, rows: Sequence[Picked], homes: Mapping[int, int]
) -> tuple[dict[int, Picked], dict[int, Picked]]:
    """Return the former mailboxes that still exist by ID, and INBOX by user ID."""
    keys, users = sorted(set(homes.values())), sorted({row.user_id for row in rows})
    wanted = col(Mailbox.id).in_(keys) | (col(Mailbox.path) == "INBOX")
    statement = select(*picked(Mailbox)).where(col(Mailbox.user_id).in_(users), wanted)
    found = (await (await session.connection()).execute(statement)).all()
    inboxes = {row.user_id: row for row in found if row.path == "INBOX"}
    return {row.id: row for row in found}, inboxes
