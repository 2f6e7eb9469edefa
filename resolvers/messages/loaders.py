"""Loading of stored messages and threads: single ones, pages and counts."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Select, func, select
from sqlmodel import col

from models.errors import Forbidden
from models.mailboxes.tables import Mailbox
from models.messages.tables import Message, Thread
from models.store.columns import Picked, picked
from models.store.keyset_pages import Ask, Page
from models.store.prepared_statements import number, prepared
from models.store.query_hints import without_index
from models.users.roles import Role, Scope
from resolvers import pagination
from resolvers.access import beyond, owned, readable, records, shared
from resolvers.context import Context
from resolvers.messages.content_access import CONTENT, shown
from resolvers.messages.filters.filter_conditions import (
    Narrowed,
    conditions,
    divided,
    has_no_values,
    looked_at,
    narrowed,
)
from resolvers.messages.filters.filter_lookups import Place, parts
from resolvers.messages.filters.message_filter import MessageWhere
from resolvers.pagination import Form, Scan, together
from resolvers.search import index_pages
from resolvers.search.index_query import narrows

NEWEST, OLDEST = "received-", "received+"
PLACE = (col(Message.listed_at), col(Message.id))
IN_THREAD = (col(Message.received_at), col(Message.id))
ALL = MessageWhere()


@dataclass(frozen=True, slots=True)
class Listing:
    """A page of a user's messages, with the columns that are read.

    It is of one mailbox or one thread, or of all messages that are not deleted.
    """

    user_id: int
    ask: Ask
    columns: frozenset[str]
    mailbox_id: int | None = None
    thread_id: int | None = None
    where: MessageWhere = ALL

    @property
    def falling(self) -> bool:
        """True if the newest message comes first."""
        return self.ask.ordering.startswith(NEWEST)

    @property
    def place(self) -> tuple[Any, Any]:
        """The sort key: arrival for a thread, even of messages that were snoozed."""
        return PLACE if self.thread_id is None else IN_THREAD

    def place_of(self, row: Picked) -> tuple[datetime, int]:
        """Return the values of the sort key in a row."""
        at, key = self.place
        return getattr(row, at.key), getattr(row, key.key)

    @property
    def whole(self) -> bool:
        """True if the listing is a whole mailbox."""
        return self.where.everything and self.mailbox_id is not None and self.thread_id is None


def place(row: Picked) -> tuple[datetime, int]:
    """Return the values of SORT_KEY in a row."""
    return row.listed_at, row.id


def here() -> Any:
    """Build the condition that a message is in a mailbox, not deleted."""
    return col(Message.archived_at).is_(None)


async def pages(ctx: Context, keys: list[Listing]) -> list[Page[Picked]]:
    """Load the pages of these listings, each in reading order."""
    ordered = {column.key for key in keys for column in key.place}
    columns = frozenset(ordered).union(*(key.columns for key in keys))
    own = all(key.user_id == ctx.viewer.user_id for key in keys)
    plain = all(key.where.everything for key in keys) and (own or not beyond(ctx))
    if plain and len(keys) <= pagination.FEW:
        return [await _plain_page(ctx, key) for key in keys]
    if len(keys) == 1 and own and (words := await _words(ctx, keys[0])):
        (key,) = keys
        form = Form.of(key.ask, columns, falling=key.falling)
        return [await index_pages.page(ctx, words, key.ask, form, key.place)]
    if not own:
        columns |= {"user_id", "mailbox_id"}
    scans = []
    for key, by in zip(keys, await _narrowed(ctx, keys), strict=True):
        rows = select(*picked(Message, columns)).where(*_where(ctx, key, by))
        scans.append(Scan(rows, key.ask, key.place, falling=key.falling))
    found = await pagination.pages(ctx, scans)
    if own or not (ctx.viewer.role is Role.ROOT or ctx.viewer.reach.shared or columns & CONTENT):
        return found
    return [replace(page, rows=await shown(ctx, page.rows)) for page in found]


async def _plain_page(ctx: Context, key: Listing) -> Page[Picked]:
    """Load a page without conditions, such as an inbox. It is empty for other users' messages."""
    if key.user_id != ctx.viewer.user_id:
        return key.ask.page([])
    columns = key.columns.union(column.key for column in key.place)
    form = Form.of(key.ask, columns, falling=key.falling)
    of_mailbox, of_thread = key.mailbox_id is not None, key.thread_id is not None
    rows = await ctx.find(
        _page_select(form, of_mailbox=of_mailbox, of_thread=of_thread),
        mailbox=key.mailbox_id,
        thread=key.thread_id,
        **pagination.parameters(key.ask, key.place),
    )
    return pagination.page_of(rows, key.ask)


@prepared
def _page_select(form: Form, *, of_mailbox: bool, of_thread: bool) -> Select[*tuple[Any, ...]]:
    rows = select(*picked(Message, form.columns))
    if of_thread:
        rows = rows.where(col(Message.thread_id) == number("thread"))
        rows = rows.where(without_index(owned(Message)))
    else:
        rows = rows.where(owned(Message))
    rows = rows.where(col(Message.mailbox_id) == number("mailbox") if of_mailbox else here())
    return pagination.form_of_page(rows, form, IN_THREAD if of_thread else PLACE)


async def _words(ctx: Context, key: Listing) -> index_pages.Where | None:
    """Build the query of the search index for the viewer's list, if the index is the best way."""
    if key.where.everything:
        return None
    list(parts(key.where))  # checks the limits
    words, statement = divided(key.where)
    kept = has_no_values(statement)
    if words is None or not narrows(words):
        return None
    if not kept and ctx.world.database.dialect == "postgresql":
        return None  # its planner weighs all conditions
    seen = await looked_at(ctx, Place(key.where, key.user_id, key.mailbox_id, key.thread_id))
    rest = index_pages.Rest(statement, kept, lambda: conditions(ctx, statement, seen))
    of = (key.user_id, key.mailbox_id, key.thread_id)
    return index_pages.Where(*of, words, seen.waiting, rest)


async def _narrowed(ctx: Context, keys: Sequence[Listing]) -> list[Narrowed]:
    places = [Place(key.where, key.user_id, key.mailbox_id, key.thread_id) for key in keys]
    return await ctx.load_all(narrowed, places)


def _where(ctx: Context, key: Listing, by: Narrowed) -> list[Any]:
    terms = [records(ctx, Message), col(Message.user_id) == key.user_id]
    if key.thread_id is not None:
        terms = [col(Message.thread_id) == key.thread_id, without_index(*terms)]
    if key.mailbox_id is not None:
        terms.append(col(Message.mailbox_id) == key.mailbox_id)
    else:
        terms.append(here())
    return by.with_terms(ctx, terms)


async def counts(ctx: Context, keys: list[Listing]) -> list[int]:
    """Count the messages of these listings.

    Without conditions it reads the counter of the mailbox.
    """
    whole = {key.mailbox_id for key in keys if key.whole}
    found: dict[Listing, int] = {}
    if whole:
        mailboxes = select(col(Mailbox.id), col(Mailbox.total)).where(
            col(Mailbox.id).in_(whole), readable(ctx)
        )
        totals = {row.id: row.total for row in await ctx.read(mailboxes)}
        found = {key: totals.get(key.mailbox_id, 0) for key in keys if key.whole}
    narrow = [key for key in keys if not key.whole]
    if narrow:
        many = func.count().label("many")
        scans = [
            select(many).select_from(Message).where(*_where(ctx, key, by))
            for key, by in zip(narrow, await _narrowed(ctx, narrow), strict=True)
        ]
        rows = await together(ctx, scans)
        found |= {key: row.many for key, (row,) in zip(narrow, rows, strict=True)}
    return [found[key] for key in keys]


def changeable(ctx: Context) -> None:
    """Raise Forbidden if the credential can't change messages."""
    ctx.viewer.require_scope(Scope.MAIL)
    if ctx.viewer.read_only:
        raise Forbidden("this credential is for reading only", requires="a credential that writes")


async def by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """Load the messages with these IDs, in this order. None if the viewer can't see one.

    Messages of other users have only the record: `resolvers/messages/content_access.py`.
    """
    if len(ids) == 1 and not beyond(ctx):
        return [next(iter(await ctx.find(_by_id(), id=ids[0])), None)]
    theirs = select(*picked(Message)).where(records(ctx, Message), here(), col(Message.id).in_(ids))
    found = {row.id: row for row in await shown(ctx, await ctx.read(theirs))}
    return [found.get(key) for key in ids]


@prepared
def _by_id() -> Select[*tuple[Any, ...]]:
    return select(*picked(Message)).where(owned(Message), here(), col(Message.id) == number("id"))


async def by_uid(ctx: Context, mailbox_id: int, uid: int) -> int | None:
    """Return the ID of a message by mailbox and UID. None if the viewer can't see it."""
    statement = select(col(Message.id)).where(
        col(Message.mailbox_id) == mailbox_id, col(Message.uid) == uid, records(ctx, Message)
    )
    row = next(iter(await ctx.read(statement)), None)
    return None if row is None else int(row.id)


async def threads_by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """Load these threads with their counts, in this order. None if the viewer can't see one."""
    unseen = func.count().filter(~col(Message.seen))
    theirs = (
        select(
            *picked(Thread, {"id", "user_id", "subject", "muted"}),
            func.count().label("message_count"),
            unseen.label("unseen_count"),
            func.max(col(Message.received_at)).label("last_received_at"),
        )
        .join(Message, col(Message.thread_id) == col(Thread.id))
        .where(without_index(records(ctx, Message)), here())
        .group_by(*picked(Thread, {"id", "user_id", "subject", "muted"}))
    )
    rows = await ctx.read(theirs.where(col(Thread.id).in_(ids)))
    found = {row.id: row for row in await shown(ctx, rows)} | await _shared_threads(ctx, rows)
    return [found.get(key) for key in ids]


async def _shared_threads(ctx: Context, rows: Sequence[Picked]) -> dict[int, Any]:
    """Return those of these threads that others share, with the first shared subject."""
    theirs = {row.id: row for row in rows if row.user_id != ctx.viewer.user_id}
    if not theirs or not ctx.viewer.reach.shared:
        return {}
    statement = select(col(Message.thread_id), col(Message.subject)).where(
        col(Message.thread_id).in_(theirs), without_index(shared(ctx, Message))
    )
    found = {}
    for row in await ctx.read(statement.order_by(*(column.desc() for column in IN_THREAD))):
        found[row.thread_id] = Retitled(theirs[row.thread_id], row.subject)
    return found


class Retitled:
    """A thread row with another subject than that of its first message."""

    __slots__ = ("_row", "subject")

    def __init__(self, row: Any, subject: str) -> None:
        self._row = row
        self.subject = subject

    def __getattr__(self, name: str) -> Any:
        return getattr(self._row, name)


async def people_of(ctx: Context, ids: list[int]) -> list[list[tuple[str | None, str]]]:
    """Load name and address of the senders in these threads, in this order.

    Each address is listed once, the first sender first.
    """
    statement = (
        select(
            col(Message.thread_id),
            func.max(col(Message.from_name)).label("name"),
            col(Message.from_address),
        )
        .where(
            col(Message.thread_id).in_(ids),
            without_index(records(ctx, Message)),
            here(),
            col(Message.from_address).is_not(None),
        )
        .group_by(col(Message.thread_id), col(Message.from_address))
        .order_by(func.min(col(Message.id)))
    )
    found: defaultdict[int, list[tuple[str | None, str]]] = defaultdict(list)
    for row in await ctx.read(statement):
        found[row.thread_id].append((row.name, row.from_address))
    return [found[key] for key in ids]


async def places_of(ctx: Context, ids: list[int]) -> list[list[int]]:
    """Load the IDs of the mailboxes in which these threads have messages."""
    statement = (
        select(col(Message.thread_id), col(Message.mailbox_id))
        .where(col(Message.thread_id).in_(ids), without_index(records(ctx, Message)), here())
        .distinct()
    )
    found: defaultdict[int, list[int]] = defaultdict(list)
    for row in await ctx.read(statement):
        found[row.thread_id].append(row.mailbox_id)
    return [sorted(found[key]) for key in ids]
