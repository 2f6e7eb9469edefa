"""Deleted messages that can be restored: listing, single messages, and restoring by time."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, func, select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.mailboxes.special_use_names import restored_in
from models.admin.tasks import Task
from models.errors import Forbidden, Invalid, NotFound, all_found
from models.events.journal import ChangeKind
from models.mailboxes.tables import SpecialUse
from models.messages.tables import Message
from models.store.columns import Picked, picked
from models.store.keyset_pages import Ask, Page
from models.users.roles import AdminPermission, Role
from resolvers import pagination
from resolvers.access import administered, own, records
from resolvers.admin import admin_log
from resolvers.admin.admin_log import Done
from resolvers.admin.task_steps import Plan, Step, queue
from resolvers.context import Context
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.loaders import Named, NewMailboxes
from resolvers.messages.bulk import flags, row_changes
from resolvers.messages.bulk.row_changes import STATE, Changes
from resolvers.messages.content_access import CONTENT, shown
from resolvers.messages.filters.filter_conditions import Narrowed, narrowed
from resolvers.messages.filters.filter_lookups import Place
from resolvers.messages.filters.message_filter import MessageWhere
from resolvers.messages.loaders import ALL
from resolvers.pagination import Scan
from resolvers.users import loaders as user_loaders
from resolvers.users.selection import managed_all, managed_one

KIND = "ARCHIVE_RESTORE"  # of the task that restores a period
CHUNK = 1000  # per task step
NEWEST, OLDEST = "archived-", "archived+"
PLACE = (col(Message.archived_at), col(Message.id))
HOME = frozenset({"archived_from", "archived_mailbox_id"})


@dataclass(frozen=True, slots=True)
class Listing:
    """A page of a user's deleted messages, with the columns that are read."""

    user_id: int
    ask: Ask
    columns: frozenset[str]
    where: MessageWhere = ALL

    @property
    def falling(self) -> bool:
        """True if the last deleted message comes first."""
        return self.ask.ordering.startswith(NEWEST)


@dataclass(frozen=True, slots=True)
class Span:
    """Messages deleted from `start` on and before `end`, and whether they go into one mailbox."""

    start: datetime
    end: datetime
    user_id: int | None = None  # None: the viewer
    together: bool = False  # named "Restored (date)" in the user's language


def kept(ctx: Context) -> list[ColumnElement[bool]]:
    """Build the conditions that a deleted message can be restored. Drafts can't, except by undo."""
    return [
        col(Message.archived_at).is_not(None),
        ~col(Message.draft),
        col(Message.purge_at) > ctx.world.now(),
    ]


async def pages(ctx: Context, keys: list[Listing]) -> list[Page[Picked]]:
    """Load the pages of these listings, each in reading order."""
    names = frozenset({"archived_at", "id", "user_id"}).union(*(key.columns for key in keys))
    scans = []
    for key, by in zip(keys, await _narrowed(ctx, keys), strict=True):
        rows = select(*picked(Message, names)).where(*_where(ctx, key, by))
        scans.append(Scan(rows, key.ask, PLACE, falling=key.falling))
    found = await pagination.pages(ctx, scans)
    if not (ctx.viewer.role is Role.ROOT or ctx.viewer.reach.shared or names & CONTENT):
        return found
    return [replace(page, rows=await shown(ctx, page.rows)) for page in found]


async def counts(ctx: Context, keys: list[Listing]) -> list[int]:
    """Count the messages of these listings."""
    many = func.count().label("many")
    scans = [
        select(many).select_from(Message).where(*_where(ctx, key, by))
        for key, by in zip(keys, await _narrowed(ctx, keys), strict=True)
    ]
    return [row.many for (row,) in await pagination.together(ctx, scans)]


async def _narrowed(ctx: Context, keys: Sequence[Listing]) -> list[Narrowed]:
    places = [Place(key.where, key.user_id, archived=True) for key in keys]
    return await ctx.load_all(narrowed, places)


def _where(ctx: Context, key: Listing, by: Narrowed) -> list[ColumnElement[bool]]:
    terms = [records(ctx, Message), col(Message.user_id) == key.user_id, *kept(ctx)]
    return by.with_terms(ctx, terms)


async def by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """Load the deleted messages with these IDs, in this order. None if the viewer can't see one.

    Messages of other users have only the record: `resolvers/messages/content_access.py`.
    """
    statement = select(*picked(Message)).where(
        records(ctx, Message), *kept(ctx), col(Message.id).in_(ids)
    )
    found = {row.id: row for row in await shown(ctx, await ctx.read(statement))}
    return [found.get(key) for key in ids]


async def restore(ctx: Context, ids: Sequence[int], to: Named | None) -> None:
    """Restore deleted messages, all or none: into `mailbox`, else where each was, else INBOX.

    Administrators restore messages of other accounts that they see as records; the mailbox is that
    of each account. Raises NotFound, with its index, for a message that is not among the deleted
    ones, and OverQuota.
    """
    mine = (records(ctx, Message), *kept(ctx), col(Message.id).in_(ids))
    named = await ctx.read(select(*picked(Message, {"id", "user_id"})).where(*mine))
    owners = {row.id: row.user_id for row in named}
    all_found(ids, owners)
    others = set(owners.values()) - {ctx.viewer.user_id}
    accounts = await managed_all(ctx, others, path="ids") if others else []
    async with ctx.write(*owners.values()) as session:
        statement = select(*picked(Message, STATE | HOME)).where(*mine)
        rows = {row.id: row for row in await ctx.read(statement)}
        all_found(ids, rows)
        by_user = row_changes.by_user(list(rows.values()))
        for user_id, theirs in by_user.items():
            box = await ctx.load(mailbox_loaders.named, (user_id, to)) if to else None
            if to and box is None:
                raise NotFound(str(to), path=["mailbox"])
            await _bring_back(ctx, session, theirs, box.id if box else None)
        done = [
            Done("archivedMessageRestore", "User", row.id, row.domain_id, after={"messages": many})
            for row, many in ((row, len(by_user[row.id])) for row in accounts)
        ]
        await admin_log.note(ctx, session, *done)


async def _bring_back(
    ctx: Context, session: AsyncSession, rows: Sequence[Picked], to: int | None
) -> None:
    r"""Restore deleted messages of one account into its mailboxes.

    The flag \Deleted is removed, since mail programs expunge messages with it.
    """
    columns = {"id", "user_id", "path", "retention", "special_use"}
    mailboxes = await mailbox_loaders.all_of(ctx, rows[0].user_id, columns)
    by_id, by_path = (
        {mailbox.id: mailbox for mailbox in mailboxes},
        {mailbox.path: mailbox for mailbox in mailboxes},
    )
    groups: defaultdict[int, list[Picked]] = defaultdict(list)
    for row in rows:
        home = by_id.get(to or row.archived_mailbox_id) or by_path.get(row.archived_from)
        if to is None and home and home.special_use is SpecialUse.SNOOZED:
            home = None  # no snooze time would bring it back from there
        groups[(home or by_path["INBOX"]).id].append(row)
    for key, theirs in sorted(groups.items()):
        await row_changes.restore(ctx, session, theirs, by_id[key])
    if marked := [row.id for row in rows if row.deleted]:
        there = await row_changes.chosen(session, marked)
        await flags.change(ctx, session, there, Changes({"deleted": False}))


async def restore_span(ctx: Context, span: Span) -> Task:
    """Queue a task that restores the messages deleted in a period.

    Administrators can do that for users if they see their mail as records. Raises InvalidInput or
    Forbidden.
    """
    if span.start >= span.end:
        raise Invalid("the end comes after the start", constraint="range", path=["end"])
    user = await managed_one(ctx, own(ctx) if span.user_id is None else span.user_id)
    foreign = user.id != ctx.viewer.user_id
    if foreign and not administered(ctx):
        requires = AdminPermission.LOGIN_AS
        raise Forbidden(f"this needs the permission {requires}", requires=requires)
    end = min(span.end, ctx.world.now())  # later deletions are not restored
    order = {
        "start": span.start.isoformat(),
        "end": end.isoformat(),
        "together": span.together,
    }
    async with ctx.write(user.id) as session:
        many = select(func.count()).select_from(Message)
        ((total,),) = await ctx.read(many.where(*_within(ctx, user.id, order)))
        (task,) = await queue(ctx, session, KIND, [order], user_id=user.id, total=total)
        await ctx.record(session, user.id, ChangeKind.TASK_CHANGED, [task.id])
        if foreign:
            deed = Done("archiveRestore", "User", user.id, user.domain_id, None, order)
            await admin_log.note(ctx, session, deed)
    return task


def _within(ctx: Context, user_id: int, order: dict[str, Any]) -> list[ColumnElement[bool]]:
    at = col(Message.archived_at)
    start, end = (datetime.fromisoformat(order[name]) for name in ("start", "end"))
    return [col(Message.user_id) == user_id, *kept(ctx), at >= start, at <= end]


async def plan(_ctx: Context, _order: dict[str, Any], _checkpoint: dict[str, Any]) -> Plan:
    """Return an empty plan: the step locks only the account of the task."""
    return Plan()


async def step(
    ctx: Context, session: AsyncSession, order: dict[str, Any], checkpoint: dict[str, Any], _: Plan
) -> Step:
    """Restore the next messages. Restored messages are no longer selected."""
    statement = select(*picked(Message, STATE | HOME | {"archived_at"}))
    statement = statement.where(*_within(ctx, own(ctx), order)).order_by(*PLACE).limit(CHUNK)
    rows = await ctx.read(statement)
    to = checkpoint.get("mailbox")
    if rows and order["together"] and to is None:
        to = await _new_folder(ctx)
    if rows:
        await _bring_back(ctx, session, rows, to)
    return Step({"mailbox": to}, done=len(rows), more=len(rows) == CHUNK)


async def _new_folder(ctx: Context) -> int:
    """Return the mailbox for messages restored today; create it if needed."""
    user = await ctx.load(user_loaders.by_ids, own(ctx))
    path = restored_in(user.language if user else None, ctx.world.now().date())
    there = await mailbox_loaders.all_of(ctx, own(ctx), {"id", "path"})
    if (known := next((mailbox.id for mailbox in there if mailbox.path == path), None)) is not None:
        return int(known)
    return (await mailbox_loaders.create(ctx, NewMailboxes([path])))[-1].id
