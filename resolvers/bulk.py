"""What is done to many messages: at once where they are few, by a task where they are many."""

from base64 import urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, func, insert, select
from sqlmodel import col
from sqlmodel import select as instances
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.delivery import flags
from models.columns import Picked, picked
from models.errors import Invalid, NotFound, Stale
from models.journal import ChangeKind
from models.mailboxes import Mailbox
from models.messages import Message
from models.tasks import Task, Undo
from resolvers import mailboxes, moves
from resolvers.access import own, visible
from resolvers.auth import digest_of
from resolvers.context import Context
from resolvers.moves import STATE, Changes
from resolvers.selections import Selection
from resolvers.work import queue


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
    order = replace(order, select=await order.select.looked(ctx, user_id))
    async with ctx.write(user_id) as session:
        if order.select.mailbox is not None:
            await mailboxes.find(ctx, order.select.mailbox, path=["select", "mailbox"])
        limit = ctx.world.options.bulk
        rows = await _rows(ctx, order, max(limit, len(order.select.ids or ())) + 1)
        _check(order, rows)
        await _check_age(ctx, order)
        if order.later or len(rows) > limit:
            return Done(task=await _task(ctx, session, order))
        return await _do(ctx, session, order, rows, undo=True)


async def _rows(ctx: Context, order: Order, limit: int) -> Sequence[Picked]:
    asked = select(*picked(Message, STATE)).where(*_chosen(ctx, order))
    return await ctx.read(asked.order_by(col(Message.id)).limit(limit))


def _chosen(ctx: Context, order: Order) -> list[ColumnElement[bool]]:
    user_id = own(ctx)
    theirs = [col(Message.user_id) == user_id, col(Message.archived_at).is_(None)]
    return order.select.condition(ctx, [visible(ctx, Message), *theirs])


def _check(order: Order, rows: Sequence[Picked]) -> None:
    if order.select.ids is not None:
        there = {row.id for row in rows}
        for index, key in enumerate(order.select.ids):
            if key not in there:
                raise NotFound(str(key), path=["select", "ids"], index=index)


async def _check_age(ctx: Context, order: Order) -> None:
    if order.unless_since is not None:
        asked = select(func.max(col(Message.modseq)).label("newest"))
        (row,) = await ctx.read(asked.where(*_chosen(ctx, order)))
        if (row.newest or 0) > order.unless_since:
            raise Stale(current_modseq=row.newest, path=["ifUnchangedSince"])


async def _do(
    ctx: Context, session: AsyncSession, order: Order, rows: Sequence[Picked], *, undo: bool
) -> Done:
    done = Done(rows=rows)
    if not rows:
        return done
    if undo and not order.permanent:
        done.undo, done.undo_until = await _undo(ctx, session, order, rows)
    if order.to is not None:
        done.uids = await moves.move(ctx, session, rows, await _target(ctx, order.to))
        rows = await moves.chosen(session, [row.id for row in rows])
    if order.changes is not None and not order.changes.nothing:
        await moves.change(ctx, session, rows, order.changes)
    if order.permanent:
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
        "digest": digest_of(token),
        "before": await _before(session, order, rows),
        "expires_at": until,
    }
    await (await session.connection()).execute(insert(Undo), row)
    return token, until


async def _before(session: AsyncSession, order: Order, rows: Sequence[Picked]) -> dict[str, Any]:
    """What was, and what of it is changed; `flags` is None where all of them are."""
    changes = order.changes or Changes({})
    values = changes.values or {}
    before: dict[str, Any] = {
        "kind": order.kind,
        "messages": moves.was(rows),
        "flags": None if changes.replace is not None else changes.touched,
        "expires": order.kind != "MESSAGE_UPDATE" or "expires" in values,
    }
    if "meta_data" in values:
        also = frozenset({"meta_data"})
        kept = await moves.chosen(session, [row.id for row in rows], also=also)
        before["meta"] = {str(row.id): row.meta_data for row in kept}
    return before


async def undo(ctx: Context, token: str) -> int:
    """Take back what this token was given for; returns how many messages are as they were.

    Messages that are gone for good stay so; a folder that is gone is replaced by INBOX.
    """
    user_id = own(ctx)
    async with ctx.write(user_id) as session:
        asked = instances(Undo).where(
            col(Undo.digest) == digest_of(token),
            visible(ctx, Undo),
            col(Undo.expires_at) > ctx.world.now(),
        )
        kept = (await session.exec(asked)).first()
        if kept is None:
            raise NotFound("undo token", path=["token"])
        await session.delete(kept)
        await session.flush()
        return await _take_back(ctx, session, kept.before)


async def _take_back(ctx: Context, session: AsyncSession, before: dict[str, Any]) -> int:
    """Put back what was changed, and nothing else: the rest may have been changed since."""
    was = {one[0]: one[1:] for one in before["messages"]}
    if before["kind"] != "MESSAGE_UPDATE":
        await _bring_back(ctx, session, before["kind"], {key: one[0] for key, one in was.items()})
    meta = before.get("meta")
    also = frozenset() if meta is None else frozenset({"meta_data"})
    rows = [
        row
        for row in await moves.chosen(session, list(was), also=also)
        if row.mailbox_id is not None
    ]
    states = {}
    for row in rows:
        _, named, expires = was[row.id]
        states[row.id] = moves.flagged(_as_before(flags(row), named, before["flags"]))
        if before["expires"]:
            states[row.id]["expires"] = moves.when(expires)
        if meta is not None:
            states[row.id]["meta_data"] = meta[str(row.id)]
    await moves.restate(ctx, session, rows, states)
    return len(rows)


def _as_before(now: list[str], was: list[str], touched: list[str] | None) -> list[str]:
    if touched is None:
        return was
    return [n for n in now if n not in touched] + [n for n in was if n in touched]


async def _bring_back(
    ctx: Context, session: AsyncSession, kind: str, homes: dict[int, int]
) -> None:
    """What was deleted comes out of the archive, what was moved goes home; else to INBOX."""
    boxes = {box.id: box for box in await _boxes(ctx)}
    inbox = next(box for box in boxes.values() if box.path == "INBOX")
    deleted = kind == "MESSAGE_DELETE"
    back: dict[int, list[Picked]] = {}
    for row in await moves.chosen(session, list(homes)):
        home = boxes.get(homes[row.id], inbox)
        if (row.mailbox_id is None) is deleted and row.mailbox_id != home.id:
            back.setdefault(home.id, []).append(row)
    for mailbox_id, theirs in back.items():
        if deleted:
            await moves.restore(ctx, session, theirs, boxes[mailbox_id])
        else:
            await moves.move(ctx, session, theirs, boxes[mailbox_id])


async def _boxes(ctx: Context) -> Sequence[Picked]:
    return await mailboxes.all_of(ctx, own(ctx), set(Mailbox.model_fields), show_hidden=True)


async def _task(ctx: Context, session: AsyncSession, order: Order) -> Task:
    """Hand the work to a task, which does it to what the selection holds now."""
    user_id = own(ctx)
    everything = select(col(Message.id)).where(*_chosen(ctx, order))
    ids = [row.id for row in await ctx.read(everything.order_by(col(Message.id)))]
    what = [{"ids": ids, **_written(order)}]
    (task,) = await queue(ctx, session, order.kind, what, user_id=user_id, total=len(ids))
    await ctx.record(session, user_id, ChangeKind.TASK_CHANGED, [task.id])  # wakes its worker
    return task


def _written(order: Order) -> dict[str, Any]:
    changes: dict[str, Any] | None = asdict(order.changes) if order.changes else None
    values = changes["values"] if changes else None
    if values and values.get("expires"):
        values["expires"] = values["expires"].isoformat()
    return {
        "changes": changes,
        "to": order.to,
        "delete": order.delete,
        "permanent": order.permanent,
        "unless_since": order.unless_since,
    }


async def work_on(
    ctx: Context, session: AsyncSession, what: dict[str, Any], ids: Sequence[int]
) -> int:
    """One chunk of a task, inside the unit that notes how far it has come; returns how many.

    What has gone meanwhile, or was not to be changed if it changed meanwhile, is left out.
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
    since = what.get("unless_since")
    rows = await _rows(ctx, order, len(ids))
    rows = [row for row in rows if since is None or row.modseq <= since]
    await _do(ctx, session, order, rows, undo=False)
    return len(rows)
