"""What is done to many messages: at once where they are few, by a task where they are many."""

import hashlib
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any

from sqlalchemy import insert, select
from sqlmodel import col
from sqlmodel import select as instances
from sqlmodel.ext.asyncio.session import AsyncSession

from models.columns import Picked, picked
from models.errors import Invalid, NotFound, Stale
from models.mailboxes import Mailbox
from models.messages import Message
from models.tasks import Task, Undo
from resolvers import mailboxes, moves
from resolvers.access import own, visible
from resolvers.context import Context
from resolvers.moves import STATE, Changes
from resolvers.selections import Selection


@dataclass(slots=True)
class Done:
    """What became of a bulk operation: the messages it changed, or the task that does."""

    rows: Sequence[Picked] = ()
    uids: dict[int, tuple[int, int]] = field(default_factory=dict)  # old and new, after a move
    task: Task | None = None
    undo: str | None = field(default=None, repr=False)
    undo_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Order:
    """What to do to the messages of a selection."""

    select: Selection
    changes: Changes | None = None
    to: int | None = None  # folder
    delete: bool = False
    permanent: bool = False
    unless_since: int | None = None  # refuse what changed after this modseq
    later: bool = False  # by a task in any case

    @property
    def kind(self) -> str:
        """The name of the task that does it."""
        if self.delete:
            return "MESSAGE_DELETE"
        return "MESSAGE_MOVE" if self.to is not None else "MESSAGE_UPDATE"


async def carry_out(ctx: Context, order: Order) -> Done:
    """Do it: all or none in one unit, or as a task where it is much or was asked for."""
    user_id = own(ctx)
    if order.changes is not None and order.changes.nothing and order.to is None:
        raise Invalid("say what to change", constraint="required", path=["set"])
    async with ctx.write(user_id) as session:
        limit = ctx.world.options.bulk
        rows = await _rows(ctx, order, limit + 1)
        _check(order, rows)
        if order.later or len(rows) > limit:
            return Done(task=await _task(ctx, session, order))
        return await _do(ctx, session, order, rows, undo=True)


async def _rows(ctx: Context, order: Order, limit: int, after: int = 0) -> Sequence[Picked]:
    user_id = own(ctx)
    asked = (
        select(*picked(Message, STATE))
        .where(
            visible(ctx, Message),
            col(Message.user_id) == user_id,
            col(Message.archived_at).is_(None),
            col(Message.id) > after,
            *order.select.condition(ctx, user_id),
        )
        .order_by(col(Message.id))
        .limit(limit)
    )
    return await ctx.read(asked)


def _check(order: Order, rows: Sequence[Picked]) -> None:
    if order.select.ids is not None:
        there = {row.id for row in rows}
        for index, key in enumerate(order.select.ids):
            if key not in there:
                raise NotFound(str(key), path=["select", "ids"], index=index)
    if order.unless_since is not None:
        newest = max((row.modseq for row in rows), default=0)
        if newest > order.unless_since:
            raise Stale(current_modseq=newest, path=["ifUnchangedSince"])


async def _do(
    ctx: Context, session: AsyncSession, order: Order, rows: Sequence[Picked], *, undo: bool
) -> Done:
    done = Done(rows=rows)
    if not rows:
        return done
    if undo and not order.permanent:
        done.undo, done.undo_until = await _undo(ctx, session, order, rows)
    if order.changes is not None and not order.changes.nothing:
        await moves.change(ctx, session, rows, order.changes)
    if order.to is not None:
        target = await _target(ctx, order.to)
        fresh = await moves.chosen(session, [row.id for row in rows])
        done.uids = await moves.move(ctx, session, fresh, target)
    elif order.permanent:
        await moves.remove(ctx, session, rows)
    elif order.delete:
        boxes = await ctx.load_all(mailboxes.by_ids, {row.mailbox_id for row in rows})
        await moves.archive(ctx, session, rows, {box.id: box.path for box in boxes if box})
    return done


async def _target(ctx: Context, key: int) -> Picked:
    row = await ctx.load(mailboxes.by_ids, key)
    if row is None:
        raise NotFound(str(key), path=["to"])
    return row


async def _undo(
    ctx: Context, session: AsyncSession, order: Order, rows: Sequence[Picked]
) -> tuple[str, datetime]:
    """Write down what was, for ten minutes; the token is told once."""
    token = urlsafe_b64encode(ctx.world.random(24)).decode()
    until = ctx.world.now() + ctx.world.options.undo_window
    row = {
        "id": ctx.world.key(),
        "user_id": own(ctx),
        "digest": hashlib.sha256(token.encode()).hexdigest(),
        "before": {"kind": order.kind, "messages": moves.was(rows)},
        "expires_at": until,
    }
    await (await session.connection()).execute(insert(Undo), row)
    return token, until


async def undo(ctx: Context, token: str) -> int:
    """Take back what this token was given for; returns how many messages are as they were.

    Messages that are gone for good stay so; a folder that is gone is replaced by INBOX.
    """
    user_id = own(ctx)
    digest = hashlib.sha256(token.encode()).hexdigest()
    async with ctx.write(user_id) as session:
        asked = instances(Undo).where(
            col(Undo.digest) == digest, visible(ctx, Undo), col(Undo.expires_at) > ctx.world.now()
        )
        kept = (await session.exec(asked)).first()
        if kept is None:
            raise NotFound("undo token", path=["token"])
        await session.delete(kept)
        await session.flush()
        return await _take_back(ctx, session, kept.before["messages"])


async def _take_back(ctx: Context, session: AsyncSession, was: list[list[Any]]) -> int:
    rows = {row.id: row for row in await moves.chosen(session, [one[0] for one in was])}
    boxes = {box.id: box for box in await _boxes(ctx)}
    inbox = next(box for box in boxes.values() if box.path == "INBOX")
    back: dict[int, list[Picked]] = {}
    for key, mailbox_id, _, _ in was:
        row = rows.get(key)
        home = boxes.get(mailbox_id, inbox)
        if row is not None and row.mailbox_id != home.id:
            back.setdefault(home.id, []).append(row)
    for mailbox_id, theirs in back.items():
        gone = [row for row in theirs if row.mailbox_id is None]
        if gone:
            await moves.restore(ctx, session, gone, boxes[mailbox_id])
        moved = [row for row in theirs if row.mailbox_id is not None]
        if moved:
            await moves.move(ctx, session, moved, boxes[mailbox_id])
    now = {row.id: row for row in await moves.chosen(session, list(rows))}
    alike: dict[tuple[Any, ...], list[Picked]] = {}
    for key, _, flags, expires in was:
        if key in now:
            alike.setdefault((tuple(flags), expires), []).append(now[key])
    for (flags, expires), theirs in alike.items():
        changes = Changes.of({}, replaced=flags, values={"expires": moves.when(expires)})
        changed = [row for row in theirs if not _as_it_was(row, flags, expires)]
        if changed:
            await moves.change(ctx, session, changed, changes)
    return len(now)


def _as_it_was(row: Picked, flags: Sequence[str], expires: str | None) -> bool:
    return moves.was([row])[0][2:] == [list(flags), expires]


async def _boxes(ctx: Context) -> Sequence[Picked]:
    return await mailboxes.all_of(ctx, own(ctx), set(Mailbox.model_fields), show_hidden=True)


async def _task(ctx: Context, session: AsyncSession, order: Order) -> Task:
    """Hand the work to a task, which does it to what the selection holds now."""
    user_id = own(ctx)
    everything = select(col(Message.id)).where(
        visible(ctx, Message),
        col(Message.user_id) == user_id,
        col(Message.archived_at).is_(None),
        *order.select.condition(ctx, user_id),
    )
    ids = [row.id for row in await ctx.read(everything.order_by(col(Message.id)))]
    what = {"ids": ids, "origin": ctx.origin, "reason": ctx.reason, **_written(order)}
    task = Task(
        id=ctx.world.key(),
        kind=order.kind,
        user_id=user_id,
        total=len(ids),
        order=what,
        created_at=ctx.world.now(),
    )
    session.add(task)
    await session.flush()
    return task


def _written(order: Order) -> dict[str, Any]:
    changes = order.changes and asdict(order.changes)
    if changes and changes["values"] and changes["values"].get("expires"):
        changes["values"]["expires"] = changes["values"]["expires"].isoformat()
    return {
        "changes": changes,
        "to": order.to,
        "delete": order.delete,
        "permanent": order.permanent,
    }


async def work_on(
    ctx: Context, session: AsyncSession, what: dict[str, Any], ids: Sequence[int]
) -> int:
    """One chunk of a task, inside the unit that notes how far it has come; returns how many.

    What has gone meanwhile is left out.
    """
    changes = what["changes"] and Changes(**what["changes"])
    if changes and changes.values and changes.values.get("expires"):
        expires = moves.when(changes.values["expires"])
        changes = replace(changes, values={**changes.values, "expires": expires})
    order = Order(
        Selection(ids=ids),
        changes or None,
        to=what["to"],
        delete=what["delete"],
        permanent=what["permanent"],
    )
    rows = await _rows(ctx, order, len(ids))
    await _do(ctx, session, order, rows, undo=False)
    return len(rows)
