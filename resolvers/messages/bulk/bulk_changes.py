"""Bulk changes of messages: at once if they are few, by a task if they are many."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, func, select, true
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.storage.message_insert import QUOTA
from models.admin.tasks import Task
from models.errors import Forbidden, Invalid, NotFound, OverQuota, Stale
from models.events.journal import PLATFORM, ChangeKind
from models.mailboxes.shares import Rights, ShareRight
from models.mailboxes.tables import Mailbox
from models.messages.tables import Message
from models.runtime.environment import Turn
from models.store.columns import Picked, picked
from models.store.prepared_statements import values_of
from resolvers.access import visible
from resolvers.admin.task_steps import Plan, Step, part, past, queue
from resolvers.context import Context
from resolvers.mailboxes import delete as mailbox_delete
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes import rights as mailbox_rights
from resolvers.mailboxes.loaders import Named
from resolvers.messages.bulk import copy, flags, owners, row_changes, snooze
from resolvers.messages.bulk import rights as bulk_rights
from resolvers.messages.bulk import undo as bulk_undo
from resolvers.messages.bulk.owners import Whose
from resolvers.messages.bulk.row_changes import STATE, Changes
from resolvers.messages.filters.filter_conditions import Selection
from resolvers.users.selection import Users

CHUNK = 1000  # per task step
NOTHING = Changes({})


@dataclass(slots=True)
class Done:
    """The result of a bulk operation: the changed messages, or the task that changes them."""

    rows: Sequence[Picked] = ()
    uids: dict[int, tuple[int, int]] = field(default_factory=dict)  # old and new UID
    task: Task | None = None
    undo: str | None = field(default=None, repr=False)
    undo_until: datetime | None = None
    mailboxes: Sequence[int] = ()  # mailboxes that were deleted


@dataclass(frozen=True, slots=True)
class Order:
    """A bulk operation on the messages of a selection."""

    select: Selection
    changes: Changes | None = None
    to: Named | None = None  # the mailbox with this name in each account
    source: Users | None = None  # its messages go to the account of the selection
    copy: bool = False  # keeps the messages where they are
    delete: bool = False
    permanent: bool = False
    duplicates: str | None = None  # only messages with the same value as an older one
    drop_empty: bool = False  # that this request empties
    unless_since: int | None = None  # refuses messages that changed after this MODSEQ
    later: bool = False  # also for few messages
    muted: Mapping[int, bool] = field(default_factory=dict)  # `muted` of threads before the change
    boxes: Sequence[int] | None = None  # mailboxes to select from, so that their index is used

    @property
    def mutation(self) -> str:
        """The name of the mutation in the schema."""
        if self.duplicates:
            return "messageDeduplicate"
        if self.delete:
            return "messageDelete"
        if self.copy:
            return "messageCopy"
        return "messageMove" if self.to is not None else "messageUpdate"

    @property
    def plain(self) -> bool:
        """True if the request only sets flags of messages given by ID."""
        changes = self.changes
        if changes is None or changes.values or changes.snooze is not None or self.muted:
            return False
        other = self.later or self.to is not None or self.unless_since is not None
        return self.select.ids is not None and not self.delete and not other

    @property
    def kind(self) -> str:
        """The kind of the task that runs the request."""
        return f"MESSAGE_{self.mutation.removeprefix('message').upper()}"


async def carry_out(ctx: Context, order: Order) -> Done:
    """Apply the request: in one transaction, or as a task if it is large or asks for one.

    Raises InvalidInput, NotFound, Forbidden, OverQuota, or Stale if a message changed since
    `unchanged_since_modseq`.
    """
    if order.changes is not None and order.changes.nothing and order.to is None:
        raise Invalid("say what to change", constraint="required", path=["set"])
    snooze.check(ctx, order.changes, moving=order.to is not None)
    whose = await _whose(ctx, order)
    if order.unless_since is not None and len(whose.ids) != 1:
        text = "accounts count their changes apart: say it of one"
        raise Invalid(text, constraint="exclusive", path=["ifUnchangedSince"])
    order = replace(order, select=await order.select.looked(ctx, whose.ids))
    few = len(order.select.ids or ()) <= ctx.world.options.bulk
    if order.plain and few and not (whose.others or whose.grantee):
        return await ctx.apply(lambda turn: _flag(ctx, turn, order, whose), *whose.ids)
    if whose.grantee and whose.ids != [whose.grantee]:
        snooze.check_owner(order.changes)
    given_to = whose.given_to.id if whose.given_to and whose.grantee else ctx.viewer.user_id
    with mailbox_rights.discreet(ctx, given_to):
        return await _carry_out(ctx, order, whose)


async def _carry_out(ctx: Context, order: Order, whose: Whose) -> Done:
    async with ctx.write(*whose.streams) as session:
        named = await _named(ctx, order, whose)
        if order.select.mailbox is not None:
            order = replace(order, boxes=named)
        limit = ctx.world.options.bulk
        rows = await _rows(ctx, order, whose, max(limit, len(order.select.ids or ())) + 1)
        await _check(ctx, order, whose, rows)
        await _check_rights(ctx, order, whose, rows)
        await _check_age(ctx, order, whose)
        if order.later or len(rows) > limit:
            return Done(task=await _task(ctx, session, order, whose, named))
        _check_targets(order, whose, {row.user_id for row in rows})
        many = Counter(row.user_id for row in rows)
        await owners.log(ctx, session, whose, order.mutation, many)
        undo, until = await _remember(ctx, session, order, rows, whose)
        done = await _do(ctx, session, order, rows, whose.folders)
        done.undo, done.undo_until = undo, until
        if order.drop_empty:
            emptied = {*named, *(row.mailbox_id for row in rows)}
            done.mailboxes = await mailbox_delete.drop_empty(ctx, session, emptied)
        return done


async def _whose(ctx: Context, order: Order) -> Whose:
    users, source = order.select.users, order.source
    if users.given or source:
        return await owners.whose(ctx, users, source=source, to=order.to)
    return await owners.of_selection(ctx, order.select, order.to)


def _flag(ctx: Context, turn: Turn, order: Order, whose: Whose) -> Done:
    """Change flags in one synchronous transaction, since this is the most frequent request."""
    (user,) = whose.ids
    statement = flags.asked(ctx.world.database.dialect)
    rows = turn.fetched(statement, user=user, ids=list(order.select.ids or ()))
    _check_named(order, rows)
    if not rows or order.changes is None:
        return Done()
    token, until, noted = bulk_undo.noted(ctx, bulk_undo.Was(order.kind, order.changes, rows))
    flags.changed(ctx, turn, rows, order.changes, also=[noted])
    return Done(rows, undo=token, undo_until=until)


async def _named(ctx: Context, order: Order, whose: Whose) -> list[int]:
    """Return the mailboxes to select from.

    Raises NotFound if the only account lacks the mailbox.
    """
    name = order.select.mailbox
    if name is None:
        return []
    rows = await ctx.load_all(mailbox_loaders.named, [(user_id, name) for user_id in whose.ids])
    if len(rows) == 1 and rows[0] is None:
        raise NotFound(str(name), path=["select", "mailbox"])
    return [row.id for row in rows if row]


async def _rows(ctx: Context, order: Order, whose: Whose, limit: int) -> Sequence[Picked]:
    statement = select(*picked(Message, STATE)).where(*_chosen(ctx, order, whose))
    return await ctx.read(statement.order_by(col(Message.id)).limit(limit))


def _chosen(ctx: Context, order: Order, whose: Whose) -> list[ColumnElement[bool]]:
    seen = visible(ctx, Message) if whose.grantee else true()
    theirs = [seen, col(Message.user_id).in_(whose.ids), col(Message.archived_at).is_(None)]
    if order.boxes is not None:
        theirs.append(col(Message.mailbox_id).in_(order.boxes))
    found = order.select.condition(ctx, theirs)
    if order.duplicates is None:
        return found
    alike = col(getattr(Message, order.duplicates))
    oldest_first = (col(Message.received_at), col(Message.id))
    nth = func.row_number().over(
        partition_by=(col(Message.mailbox_id), alike), order_by=oldest_first
    )
    numbered = select(col(Message.id), nth.label("nth")).where(*found, alike.is_not(None))
    rows = numbered.subquery()
    return [col(Message.id).in_(select(rows.c.id).where(rows.c.nth > 1))]


async def _check(ctx: Context, order: Order, whose: Whose, rows: Sequence[Picked]) -> None:
    """Raise NotFound if a message given by ID does not exist."""
    if order.select.ids is None:
        return
    if order.duplicates:
        plain = replace(order, duplicates=None)
        rows = await _rows(ctx, plain, whose, len(order.select.ids))
    _check_named(order, rows)


def _check_named(order: Order, rows: Sequence[Picked]) -> None:
    there = set(values_of(rows, "id"))
    for index, key in enumerate(order.select.ids or ()):
        if key not in there:
            raise NotFound(str(key), path=["select", "ids"], index=index)


def _needed(order: Order, *, given: bool) -> Rights:
    """Return the rights that the request needs in shared mailboxes that contain the messages.

    A message that goes to another account is lost for its owner, so this needs EXPUNGE.
    """
    needed = {ShareRight.READ}
    if order.to is None:
        needed |= bulk_rights.for_changes(order.changes)
    elif not order.copy:
        needed |= {ShareRight.DELETE, *({ShareRight.EXPUNGE} if given else ())}
    if order.delete:
        needed.add(ShareRight.EXPUNGE if order.permanent else ShareRight.DELETE)
    return frozenset(needed)


async def _check_rights(ctx: Context, order: Order, whose: Whose, rows: Sequence[Picked]) -> None:
    """Raise Forbidden if the viewer lacks a right in a mailbox of another user."""
    if not whose.grantee:
        return
    if whose.ids != [whose.grantee]:
        needed = _needed(order, given=whose.given_to is not None)
        mailboxes = sorted({row.mailbox_id for row in rows})
        await bulk_rights.require(ctx, mailboxes, needed, ["select"])
        if order.drop_empty:
            raise Forbidden("folders are for their owner to delete", path=["dropEmpty"])
    for mailbox in whose.folders.values():
        if mailbox.user_id != whose.grantee:
            needed = bulk_rights.for_changes(order.changes) | {ShareRight.INSERT}
            await bulk_rights.require(ctx, [mailbox.id], needed, ["to"])


async def _check_age(ctx: Context, order: Order, whose: Whose) -> None:
    if order.unless_since is not None:
        statement = select(func.max(col(Message.modseq)).label("newest"))
        (row,) = await ctx.read(statement.where(*_chosen(ctx, order, whose)))
        if (row.newest or 0) > order.unless_since:
            raise Stale(current_modseq=row.newest, path=["ifUnchangedSince"])


def _check_targets(order: Order, whose: Whose, users: Iterable[int]) -> None:
    """Raise NotFound if an account with selected messages lacks the target mailbox."""
    for user_id in sorted(users) if order.to else ():
        if user_id not in whose.folders:
            raise NotFound(f"{whose.name(user_id)}{order.to}", path=["to"])


async def _remember(
    ctx: Context, session: AsyncSession, order: Order, rows: Sequence[Picked], whose: Whose
) -> tuple[str | None, datetime | None]:
    """Return an undo token and its expiry.

    None if the request can't be undone, or for platform keys.
    """
    final = order.permanent or order.copy or whose.given_to is not None or whose.grantee
    if final or not rows or not ctx.viewer.user_id:
        return None, None
    to = (
        {user: mailbox.id for user, mailbox in whose.folders.items()}
        if order.to is not None
        else None
    )
    was = bulk_undo.Was(order.kind, order.changes or NOTHING, rows, order.muted, to)
    return await bulk_undo.remember(ctx, session, was)


async def _do(
    ctx: Context,
    session: AsyncSession,
    order: Order,
    rows: Sequence[Picked],
    folders: Mapping[int, Picked],
) -> Done:
    done = Done(rows=rows)
    if not rows:
        return done
    if order.to is not None:
        for user_id, theirs in row_changes.by_user(rows).items():
            done.uids |= await _put(ctx, session, order, theirs, folders[user_id])
    if order.changes is not None and not order.changes.nothing:
        if order.to is not None:  # the rows after the move
            rows = await row_changes.chosen(session, list(done.uids))
        await flags.change(ctx, session, rows, order.changes)
        await snooze.apply(ctx, session, rows, order.changes)
    if order.permanent:
        await row_changes.remove(ctx, session, rows)
    elif order.delete:
        mailboxes = await _folders(session, {row.mailbox_id for row in rows})
        await row_changes.archive(
            ctx, session, rows, {key: mailbox.path for key, mailbox in mailboxes.items()}
        )
    return done


async def _put(
    ctx: Context, session: AsyncSession, order: Order, rows: Sequence[Picked], to: Picked
) -> dict[int, tuple[int, int]]:
    """Move or copy messages of one account into a mailbox.

    Returns old and new UID by message ID.
    """
    if to.user_id == rows[0].user_id and not order.copy:
        return await row_changes.move(ctx, session, rows, to)
    uids = await copy.copy(ctx, session, rows, to)
    if not order.copy:  # the copy belongs to another account
        await row_changes.remove(ctx, session, rows)
    return uids


async def _folders(session: AsyncSession, keys: Iterable[int]) -> dict[int, Picked]:
    statement = select(*picked(Mailbox)).where(col(Mailbox.id).in_(sorted(keys)))
    return {row.id: row for row in (await (await session.connection()).execute(statement)).all()}


async def _task(
    ctx: Context, session: AsyncSession, order: Order, whose: Whose, named: Sequence[int]
) -> Task:
    """Queue a task for the messages that the selection contains now."""
    place = (col(Message.user_id), col(Message.id))
    everything = select(*place, col(Message.size)).where(*_chosen(ctx, order, whose))
    rows = await ctx.read(everything.order_by(*place))
    many, sizes = Counter(row.user_id for row in rows), Counter[int]()
    for row in rows:
        sizes[row.user_id] += row.size
    _check_targets(order, whose, many)
    if order.copy or whose.given_to:
        for user_id, size in sizes.items():
            await _check_room(ctx, whose.folders[user_id].user_id, size)
    await owners.log(ctx, session, whose, order.mutation, many)
    what = [{"ids": [row.id for row in rows], **_written(order, whose, named)}]
    owner = None if whose.others else whose.grantee or whose.ids[0]
    (task,) = await queue(ctx, session, order.kind, what, user_id=owner, total=len(rows))
    stream = PLATFORM if owner is None else owner
    await ctx.record(session, stream, ChangeKind.TASK_CHANGED, [task.id])
    return task


async def _check_room(ctx: Context, user_id: int, size: int) -> None:
    """Raise OverQuota if the account has no room for this many bytes."""
    given = {"user": user_id, "platform": ctx.world.options.default_quota}
    for row in await ctx.read(QUOTA, given):
        if row.allowed and row.used + size > row.allowed:
            raise OverQuota(used=row.used, allowed=row.allowed)


def _written(order: Order, whose: Whose, named: Sequence[int]) -> dict[str, Any]:
    changes: dict[str, Any] | None = asdict(order.changes) if order.changes else None
    values = changes["values"] if changes else None
    if values and values.get("expires"):
        values["expires"] = values["expires"].isoformat()
    return {
        "changes": changes,
        "folders": {str(key): mailbox.id for key, mailbox in whose.folders.items()}
        if order.to
        else None,
        "given_to": whose.given_to and whose.given_to.id,
        "others": bool(whose.others or whose.grantee),
        "grantee": whose.grantee,
        "copy": order.copy,
        "delete": order.delete,
        "permanent": order.permanent,
        "duplicates": order.duplicates,
        "emptied": list(named) if order.drop_empty else None,
        "unless_since": order.unless_since,
    }


async def plan(ctx: Context, order: dict[str, Any], checkpoint: dict[str, Any]) -> Plan:
    """Return the streams that the next step locks, if they are not those of the task's user."""
    if not order.get("others"):
        return Plan()
    ids = part(order, checkpoint, CHUNK)
    theirs = select(col(Message.user_id)).where(col(Message.id).in_(ids))
    streams = [row.user_id for row in await ctx.read(theirs.distinct())]
    return Plan([*streams, *([order["given_to"]] if order["given_to"] else [])])


async def step(
    ctx: Context,
    session: AsyncSession,
    order: dict[str, Any],
    checkpoint: dict[str, Any],
    _: Plan,
) -> Step:
    """Run the next step of a task."""
    ids = part(order, checkpoint, CHUNK)
    return past(ids, order, checkpoint, await work_on(ctx, session, order, ids))


async def work_on(
    ctx: Context, session: AsyncSession, what: dict[str, Any], ids: Sequence[int]
) -> int:
    """Apply a task to one chunk of messages, inside the transaction of its step.

    Returns the number of messages. Deleted messages are left out, and those that changed although
    `unless_since` excludes it.
    """
    changes = what["changes"] and Changes(**what["changes"])
    if changes and changes.values and changes.values.get("expires"):
        expires = row_changes.when(changes.values["expires"])
        changes = replace(changes, values={**changes.values, "expires": expires})
    order = Order(
        Selection(ids=ids),
        changes or None,
        to=Named() if what["folders"] else None,
        copy=what["copy"],
        delete=what["delete"],
        permanent=what["permanent"],
        duplicates=what["duplicates"],
    )
    since = what.get("unless_since")
    rows = [
        row
        for row in await row_changes.chosen(session, ids)
        if row.archived_at is None and (since is None or row.modseq <= since)
    ]
    if order.duplicates:
        rows = await _still(session, rows, order.duplicates)
    folders = await _again(session, what, {row.user_id for row in rows})
    if what.get("grantee"):
        rows = await _granted(ctx, order, rows, folders)
    await _do(ctx, session, order, rows, folders)
    if what["emptied"] is not None:
        emptied = {*what["emptied"], *(row.mailbox_id for row in rows)}
        await mailbox_delete.drop_empty(ctx, session, emptied)
    return len(rows)


async def _granted(
    ctx: Context, order: Order, rows: Sequence[Picked], folders: Mapping[int, Picked]
) -> list[Picked]:
    """Return the messages for which the grantee still has the rights.

    Raises Forbidden for a target.
    """
    mine = ctx.viewer.user_id
    mailboxes = sorted({row.mailbox_id for row in rows if row.user_id != mine})
    given = any(mailbox.user_id != user for user, mailbox in folders.items())
    closed = await bulk_rights.lacking(ctx, mailboxes, _needed(order, given=given))
    for mailbox in folders.values():
        if mailbox.user_id != mine:
            needed = bulk_rights.for_changes(order.changes) | {ShareRight.INSERT}
            await bulk_rights.require(ctx, [mailbox.id], needed, ["to"])
    return [row for row in rows if row.mailbox_id not in closed]


async def _still(session: AsyncSession, rows: Sequence[Picked], column: str) -> list[Picked]:
    """Return the messages that are still duplicates: an older one that is not among them exists."""
    alike = col(getattr(Message, column))
    names = ("id", "mailbox_id", "received_at", column)
    connection = await session.connection()
    mine = select(*picked(Message, names)).where(col(Message.id).in_([row.id for row in rows]))
    known = {row.id: row for row in (await connection.execute(mine)).all()}
    values = {getattr(row, column) for row in known.values()}
    mailboxes = {row.mailbox_id for row in rows}
    statement = select(*picked(Message, names)).where(
        col(Message.mailbox_id).in_(mailboxes), alike.in_(values)
    )
    oldest: dict[tuple[int, Any], tuple[datetime, int]] = {}
    for row in (await connection.execute(statement)).all():
        key, age = (row.mailbox_id, getattr(row, column)), (row.received_at, row.id)
        oldest[key] = min(age, oldest.get(key, age))
    kept = {age[1] for age in oldest.values()}
    return [row for row in rows if row.id not in kept]


async def _again(
    session: AsyncSession, what: Mapping[str, Any], users: Iterable[int]
) -> dict[int, Picked]:
    """Return the target mailbox of each account. Raises NotFound if it was deleted."""
    keys = {user: what["folders"][str(user)] for user in users} if what["folders"] else {}
    there = await _folders(session, keys.values()) if keys else {}
    for key in keys.values():
        if key not in there:
            raise NotFound(str(key), path=["to"])
    return {user: there[key] for user, key in keys.items()}
