"""Taking back what was done to messages, for ten minutes, by a token that is told once."""

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
    """Messages, and conversations by whether they were muted, before work of this kind."""

    kind: str
    changes: Changes
    rows: Sequence[Picked]
    muted: Mapping[int, bool] = field(default_factory=dict)
    to: Mapping[int, int] | None = None  # where they go: the folder of each account


async def remember(ctx: Context, session: AsyncSession, was: Was) -> tuple[str, datetime]:
    """Write down what was, before the work is done; the token is told once."""
    before = _before(was)
    if "meta_data" in (was.changes.values or {}):
        also = frozenset({"meta_data"})
        kept = await row_changes.chosen(session, [row.id for row in was.rows], also=also)
        before["meta"] = {str(row.id): row.meta_data for row in kept}
    row, token = _token(ctx, before)
    await (await session.connection()).execute(insert(Undo), row)
    return token, row["expires_at"]


def noted(ctx: Context, was: Was) -> tuple[str, datetime, Work]:
    """What `remember` does, where no free data is changed, by what is returned to be sent."""
    row, token = _token(ctx, _before(was))
    return token, row["expires_at"], (_NOTE, row)


async def send(
    ctx: Context, outgoing: Outgoing, problems: Problems, shown: Shown
) -> tuple[list[Sent], tuple[str, datetime] | None]:
    """Send messages; where they are held, with a token that takes all back until they go."""
    if not outgoing.undo_window:
        return await submission_create.send_all(ctx, outgoing, problems, shown), None
    async with ctx.together():
        sent = await submission_create.send_all(ctx, outgoing, problems)
        held = [one.submission for one in sent if one.submission]
        token = await of_held(ctx, held)
    return sent, token


async def submit(ctx: Context, order: Order) -> tuple[Sent, tuple[str, datetime] | None]:
    """Send a draft; where it is held, with a token that makes it a draft again."""
    if not order.undo_window:
        sent, _ = await drafts.submit(ctx, order)
        return sent, None
    async with ctx.together():
        sent, was = await drafts.submit(ctx, order)
        held = [sent.submission] if sent.submission else []
        token = await of_held(ctx, held, draft=was)
    return sent, token


async def of_held(ctx: Context, held: Sequence[Picked], **more: Any) -> tuple[str, datetime] | None:
    """A token that takes back these submissions, in the unit that holds them.

    `more` is what else is to be known then.
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
    """A new token, and the row that remembers by it what was."""
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
    """What was, what of it is changed, and how it is left.

    `flags` is None where all of them are changed; `left` are those that are set then.
    """
    changes, rows = was.changes, was.rows
    values = changes.values or {}
    kind = was.kind if changes.snooze is None else "MESSAGE_MOVE"  # to a folder, or out of it
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
    """Take back what this token was given for; returns how many messages are as they were.

    What has changed since stays as it is: a message that was moved on, or brought back, and a
    flag that was set or taken again. Messages that are gone for good stay so; a folder that is
    gone is replaced by INBOX. What was done to others is taken back only by who may still do it.
    Conflict where a message that was held is on its way.
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
    """What the token remembers, which is then good no longer. NotFound where it was not."""
    kept = (await session.exec(instances(Undo).where(*mine))).first()
    if kept is None:
        raise NotFound("undo token", path=["token"])
    await session.delete(kept)
    await session.flush()
    return kept.before


async def _unsend(ctx: Context, mine: Sequence[Any], back: Back | None) -> int:
    """Cancel messages that are held. Their copies become drafts; what was a draft is as before."""
    async with ctx.write(own(ctx)) as session:
        before = await _used(session, mine)
        # what was noted before there was mail merge is of one
        held = before.get("submissions") or [before["submission"]]
        try:
            await submission_mutations.cancel(ctx, held, drafts=back is None)
        except Conflict as late:
            raise Conflict(late.message, path=["token"]) from late
        if back:
            await drafts.bring_back(ctx, session, back)
    return len(held)


async def _take_back(ctx: Context, session: AsyncSession, before: dict[str, Any]) -> int:
    """Put back what was changed, and nothing else: the rest may have been changed since."""
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
        # what was noted before there was snoozing ends with the expiry
        home, named, expires, *snoozed = was[row.id]
        until, origin = snoozed or (None, None)
        states[row.id] = row_changes.flagged(_as_before(flags(row), named, before))
        if before["expires"]:
            states[row.id]["expires"] = row_changes.when(expires)
        if moved:  # it is snoozed again where it was
            there = row.mailbox_id == home
            states[row.id]["snoozed_until"] = row_changes.when(until) if there else None
            states[row.id]["snoozed_from"] = origin if there else None
        if meta is not None:
            states[row.id]["meta_data"] = meta[str(row.id)]
    await bulk_flags.restate(ctx, session, rows, states)
    return len(rows)


def _stayed(row: Picked, before: Mapping[str, Any]) -> bool:
    """Whether a message is where it was brought; back from a snooze, it may be anywhere."""
    if before["kind"] != "MESSAGE_MOVE":
        return row.mailbox_id is None
    if "to" not in before:
        return row.mailbox_id is not None
    return bool(row.mailbox_id == dict(before["to"]).get(row.user_id))


def _as_before(now: list[str], was: list[str], before: Mapping[str, Any]) -> list[str]:
    """The flags as they were, where they are as they were left; the others as they are now."""
    left = before.get("left", now)  # a token of an earlier version does not say
    touched = [*was, *left] if before["flags"] is None else before["flags"]
    back = {name for name in touched if (name in now) == (name in left)}
    return [n for n in now if n not in back] + [n for n in was if n in back]


async def _bring_back(
    ctx: Context, session: AsyncSession, kind: str, homes: Mapping[int, int]
) -> None:
    """What was deleted comes out of the archive, what was moved goes home; else to INBOX."""
    rows = await row_changes.chosen(session, list(homes))
    boxes, inboxes = await _homes(session, rows, homes)
    deleted = kind != "MESSAGE_MOVE"
    back: defaultdict[int, list[Picked]] = defaultdict(list)
    for row in rows:
        home = boxes.get(homes[row.id], inboxes[row.user_id])
        if (row.mailbox_id is None) is deleted and row.mailbox_id != home.id:
            back[home.id].append(row)
    for theirs in back.values():
        home = boxes.get(homes[theirs[0].id], inboxes[theirs[0].user_id])
        if deleted:
            await row_changes.restore(ctx, session, theirs, home)
        else:
            await row_changes.move(ctx, session, theirs, home)


async def _homes(
    session: AsyncSession, rows: Sequence[Picked], homes: Mapping[int, int]
) -> tuple[dict[int, Picked], dict[int, Picked]]:
    """Those folders that are there still, by key, and INBOX of each account."""
    keys, users = sorted(set(homes.values())), sorted({row.user_id for row in rows})
    wanted = col(Mailbox.id).in_(keys) | (col(Mailbox.path) == "INBOX")
    asked = select(*picked(Mailbox)).where(col(Mailbox.user_id).in_(users), wanted)
    found = (await (await session.connection()).execute(asked)).all()
    inboxes = {row.user_id: row for row in found if row.path == "INBOX"}
    return {row.id: row for row in found}, inboxes
