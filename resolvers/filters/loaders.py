"""Filters of accounts: who sees which, lists of them, and how they read."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, func, select
from sqlmodel import col

from mail import sieve
from mail.filters import filter_compiler
from mail.filters.filter_compiler import Names, Rule
from mail.filters.filter_result import Target
from mail.text.languages import closest
from models.errors import LimitReached
from models.filters.tables import Filter
from models.mailboxes.tables import Mailbox
from models.store.columns import Picked, picked
from models.store.keyset_pages import Ask, Page
from models.users.roles import AdminPermission, Role
from models.users.tables import User
from resolvers import pagination
from resolvers.access import overseen_users
from resolvers.context import Context
from resolvers.filters import descriptions
from resolvers.filters.descriptions import ENGLISH, WORDS
from resolvers.pagination import Scan, by_keys, together
from resolvers.sql_text import holding, within

ORDER = "filters"  # of an account: as they are run
MADE = "filters-made"  # of all accounts: as they were made
PLACE = (col(Filter.order), col(Filter.id))
MADE_PLACE = (col(Filter.created_at), col(Filter.id))
SHOWN = frozenset(column.name for column in picked(Filter)) - {"relays"}


@dataclass(frozen=True, slots=True)
class OfUser:
    """A page of the filters of an account."""

    user_id: int
    ask: Ask
    columns: frozenset[str]


@dataclass(frozen=True, slots=True)
class FilterWhere:
    """Which filters to list; all conditions hold. An account of 0 is nobody's."""

    forward: str | None = None  # part of a target
    user_id: int | None = None


def visible(ctx: Context) -> ColumnElement[bool]:
    """The WHERE clause for filters: the own; all for an ADMIN.

    With FILTERS who is in charge of domains sees those of the users there.
    """
    viewer, own = ctx.viewer, col(Filter.user_id) == ctx.viewer.user_id
    chief = viewer.role is Role.DOMAIN_ADMIN and AdminPermission.FILTERS in viewer.permissions
    if not (chief or viewer.role.includes(Role.ADMIN)):
        return own
    return own | col(Filter.user_id).in_(select(col(User.id)).where(overseen_users(ctx)))


# ---------------------------------------------------------------- lists


async def by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """The filters with these ids, in this order; None where the viewer sees none."""
    seen = select(*picked(Filter, SHOWN)).where(visible(ctx))
    return await by_keys(ctx, seen, col(Filter.id), ids)


async def all_of(ctx: Context, user_id: int) -> Sequence[Picked]:
    """The filters of an account as they are run, those that are switched off too."""
    asked = select(*picked(Filter, SHOWN)).where(visible(ctx), col(Filter.user_id) == user_id)
    return await ctx.read(asked.order_by(*PLACE))


async def pages(ctx: Context, keys: list[OfUser]) -> list[Page[Picked]]:
    """These pages of filters of accounts, in the order they are run."""
    names = SHOWN.intersection({"id", "order"}.union(*(key.columns for key in keys)))
    asked = select(*picked(Filter, names)).where(visible(ctx))
    scans = [
        Scan(asked.where(col(Filter.user_id) == key.user_id), key.ask, PLACE, falling=False)
        for key in keys
    ]
    return await pagination.pages(ctx, scans)


async def counts(ctx: Context, keys: list[OfUser]) -> list[int]:
    """How many filters these lists have, in their order."""
    many = select(func.count().label("many")).select_from(Filter).where(visible(ctx))
    scans = [many.where(col(Filter.user_id) == key.user_id) for key in keys]
    return [row.many for (row,) in await together(ctx, scans)]


def _terms(ctx: Context, where: FilterWhere) -> list[ColumnElement[bool]]:
    terms = [visible(ctx)]
    if where.user_id is not None:
        terms.append(col(Filter.user_id) == where.user_id)
    if where.forward:
        terms.append(
            holding(ctx.world.database.dialect, col(Filter.targets), within, [where.forward])
        )
    return terms


async def page(
    ctx: Context, where: FilterWhere, ask: Ask, columns: Collection[str]
) -> Page[Picked]:
    """A page of the filters of all accounts, in the order they were made."""
    names = SHOWN.intersection(columns) | {"created_at", "id"}
    rows = select(*picked(Filter, names)).where(*_terms(ctx, where))
    return await pagination.one(ctx, Scan(rows, ask, MADE_PLACE, falling=False))


async def count(ctx: Context, where: FilterWhere) -> int:
    """How many filters such a list has."""
    many = select(func.count().label("many")).select_from(Filter)
    (row,) = await ctx.read(many.where(*_terms(ctx, where)))
    return int(row.many)


# ---------------------------------------------------------------- what a filter does


@dataclass(frozen=True, slots=True)
class Deed:
    """The action of a filter; None and nothing: it does not say."""

    seen: bool | None
    flag: bool | None
    delete: bool | None
    spam: bool | None
    mailbox_id: int | None
    copies: Sequence[int]
    targets: Sequence[str]
    labels: Sequence[str]
    remove_labels: Sequence[str]
    reply: Mapping[str, str] | None
    webhook_id: int | None
    stop: bool

    @classmethod
    def of(cls, action: Mapping[str, Any], targets: Sequence[str]) -> "Deed":
        """The action as it is stored, with its targets."""
        return cls(
            seen=action.get("seen"),
            flag=action.get("flag"),
            delete=action.get("delete"),
            spam=action.get("spam"),
            mailbox_id=action.get("mailbox"),
            copies=action.get("copyTo", ()),
            targets=targets,
            labels=action.get("labels", ()),
            remove_labels=action.get("removeLabels", ()),
            reply=action.get("reply"),
            webhook_id=action.get("webhook"),
            stop=bool(action.get("stop")),
        )


def whole(action: Mapping[str, Any], targets: Sequence[str]) -> dict[str, Any]:
    """The action with its targets, as mail/filters/filter_compiler.py reads it."""
    return {**action, "targets": list(targets)} if targets else dict(action)


def rule_of(row: Picked) -> Rule:
    """A filter as it is run, with its targets as they are shown."""
    targets = [Target(row.id, shown, shown) for shown in row.targets]
    return Rule(row.id, row.query, whole(row.action, row.targets), targets)


def used(action: Mapping[str, Any]) -> list[int]:
    """The mailboxes that an action names."""
    return [*([action["mailbox"]] if "mailbox" in action else ()), *action.get("copyTo", ())]


async def paths(ctx: Context, ids: list[int]) -> list[str | None]:
    """The paths of mailboxes, in this order: whoever sees a filter may know what it names."""
    asked = select(col(Mailbox.id), col(Mailbox.path)).where(col(Mailbox.id).in_(ids))
    found = {row.id: row.path for row in await ctx.read(asked)}
    return [found.get(key) for key in ids]


async def names_of(ctx: Context, action: Mapping[str, Any]) -> Names:
    """What a script, and people, call the mailboxes of an action."""
    boxes = used(action)
    known = zip(boxes, await ctx.load_all(paths, boxes), strict=True)
    seconds = int(ctx.world.options.autoreply_interval.total_seconds())
    return Names({key: path for key, path in known if path}, seconds)


async def script(ctx: Context, row: Picked) -> str:
    """A filter as Sieve; what that has no words for stands before it, as comments."""
    action = whole(row.action, row.targets)
    others = filter_compiler.beyond(action)
    lines = [f"# Sieve does not say: it is sent on to {one}\n" for one in others["targets"]]
    lines += ["# Sieve does not say: a webhook is called\n" for _ in others["webhook"]]
    tree = filter_compiler.tree(row.id, row.query, action, await names_of(ctx, action))
    return "".join(lines) + sieve.printed(tree)


async def languages(ctx: Context, ids: list[int]) -> list[str | None]:
    """The languages of these accounts, in this order."""
    asked = select(col(User.id), col(User.language)).where(col(User.id).in_(ids))
    found = {row.id: row.language for row in await ctx.read(asked)}
    return [found.get(key) for key in ids]


async def words_of(ctx: Context, user_id: int) -> descriptions.Words:
    """The words of an account's language, or the English ones."""
    return closest(await ctx.load(languages, user_id), WORDS) or ENGLISH


async def query_text(ctx: Context, row: Picked) -> list[list[str]]:
    """The tests of a filter as pairs, for people."""
    return descriptions.of_query(await words_of(ctx, row.user_id), row.query)


async def action_text(ctx: Context, row: Picked) -> list[list[str]]:
    """The actions of a filter as pairs, for people."""
    action = whole(row.action, row.targets)
    names = await names_of(ctx, action)
    return descriptions.of_action(await words_of(ctx, row.user_id), action, names.mailboxes)


# ---------------------------------------------------------------- room


async def check_room(ctx: Context, user_id: int, more: int = 1, path: str = "user") -> None:
    """LimitReached where an account may not have so many filters more."""
    most = ctx.world.options.filters_max
    asked = select(func.count().label("many")).where(col(Filter.user_id) == user_id)
    (row,) = await ctx.read(asked)
    if row.many + more > most:
        raise LimitReached(f"at most {most} filters", limit=most, used=row.many, path=[path])
