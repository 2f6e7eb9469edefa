"""Loading of filters: visibility, lists and descriptions."""

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

ORDER = "filters"  # of one user, in the order they run
MADE = "filters-made"  # of all users, in the order of creation
PLACE = (col(Filter.order), col(Filter.id))
MADE_PLACE = (col(Filter.created_at), col(Filter.id))
SHOWN = frozenset(column.name for column in picked(Filter)) - {"relays"}


@dataclass(frozen=True, slots=True)
class OfUser:
    """A page of the filters of a user, in the order they run."""

    user_id: int
    ask: Ask
    columns: frozenset[str]


@dataclass(frozen=True, slots=True)
class FilterWhere:
    """Conditions of a list of filters; all must hold. A user ID of 0 matches no filter."""

    forward: str | None = None  # matches targets that contain it
    user_id: int | None = None


def visible(ctx: Context) -> ColumnElement[bool]:
    """Build the condition that the viewer can see a filter: their own, or all for an ADMIN.

    A DOMAIN_ADMIN with the permission FILTERS sees those of the users in their domains.
    """
    viewer, own = ctx.viewer, col(Filter.user_id) == ctx.viewer.user_id
    chief = viewer.role is Role.DOMAIN_ADMIN and AdminPermission.FILTERS in viewer.permissions
    if not (chief or viewer.role.includes(Role.ADMIN)):
        return own
    return own | col(Filter.user_id).in_(select(col(User.id)).where(overseen_users(ctx)))


async def by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """Load the filters with these IDs, in this order. None if the viewer can't see one."""
    seen = select(*picked(Filter, SHOWN)).where(visible(ctx))
    return await by_keys(ctx, seen, col(Filter.id), ids)


async def all_of(ctx: Context, user_id: int) -> Sequence[Picked]:
    """Load the filters of a user in the order they run, with inactive ones."""
    statement = select(*picked(Filter, SHOWN)).where(visible(ctx), col(Filter.user_id) == user_id)
    return await ctx.read(statement.order_by(*PLACE))


async def pages(ctx: Context, keys: list[OfUser]) -> list[Page[Picked]]:
    """Load the pages of these listings, in the order the filters run."""
    names = SHOWN.intersection({"id", "order"}.union(*(key.columns for key in keys)))
    statement = select(*picked(Filter, names)).where(visible(ctx))
    scans = [
        Scan(statement.where(col(Filter.user_id) == key.user_id), key.ask, PLACE, falling=False)
        for key in keys
    ]
    return await pagination.pages(ctx, scans)


async def counts(ctx: Context, keys: list[OfUser]) -> list[int]:
    """Count the filters of these listings."""
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
    """Load a page of the filters of all users, in the order of creation."""
    names = SHOWN.intersection(columns) | {"created_at", "id"}
    rows = select(*picked(Filter, names)).where(*_terms(ctx, where))
    return await pagination.one(ctx, Scan(rows, ask, MADE_PLACE, falling=False))


async def count(ctx: Context, where: FilterWhere) -> int:
    """Count the filters of the list that `load_page_of_all` reads."""
    many = select(func.count().label("many")).select_from(Filter)
    (row,) = await ctx.read(many.where(*_terms(ctx, where)))
    return int(row.many)


@dataclass(frozen=True, slots=True)
class Deed:
    """The values of a filter's action. None or empty means that the filter doesn't set it."""

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
        """Build the values from the stored action and its targets."""
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
    """Return the action with its targets, in the form of `mail/filters/filter_compiler.py`."""
    return {**action, "targets": list(targets)} if targets else dict(action)


def rule_of(row: Picked) -> Rule:
    """Build the rule that runs, with targets in their visible form (without passwords)."""
    targets = [Target(row.id, shown, shown) for shown in row.targets]
    return Rule(row.id, row.query, whole(row.action, row.targets), targets)


def used(action: Mapping[str, Any]) -> list[int]:
    """Return the IDs of the mailboxes that an action names."""
    return [*([action["mailbox"]] if "mailbox" in action else ()), *action.get("copyTo", ())]


async def paths(ctx: Context, ids: list[int]) -> list[str | None]:
    """Load the paths of these mailboxes, in this order.

    Without a check of the viewer's rights, since a visible filter names them.
    """
    statement = select(col(Mailbox.id), col(Mailbox.path)).where(col(Mailbox.id).in_(ids))
    found = {row.id: row.path for row in await ctx.read(statement)}
    return [found.get(key) for key in ids]


async def names_of(ctx: Context, action: Mapping[str, Any]) -> Names:
    """Load the names that a script and a description use for an action."""
    mailboxes = used(action)
    known = zip(mailboxes, await ctx.load_all(paths, mailboxes), strict=True)
    seconds = int(ctx.world.options.autoreply_interval.total_seconds())
    return Names({key: path for key, path in known if path}, seconds)


async def script(ctx: Context, row: Picked) -> str:
    """Return a filter as a Sieve script. Actions without a Sieve form are comments at its start."""
    action = whole(row.action, row.targets)
    others = filter_compiler.beyond(action)
    lines = [f"# Sieve does not say: it is sent on to {one}\n" for one in others["targets"]]
    lines += ["# Sieve does not say: a webhook is called\n" for _ in others["webhook"]]
    tree = filter_compiler.tree(row.id, row.query, action, await names_of(ctx, action))
    return "".join(lines) + sieve.printed(tree)


async def languages(ctx: Context, ids: list[int]) -> list[str | None]:
    """Load the languages of these users, in this order."""
    statement = select(col(User.id), col(User.language)).where(col(User.id).in_(ids))
    found = {row.id: row.language for row in await ctx.read(statement)}
    return [found.get(key) for key in ids]


async def words_of(ctx: Context, user_id: int) -> descriptions.Words:
    """Load the terms in the user's language, else in English."""
    return closest(await ctx.load(languages, user_id), WORDS) or ENGLISH


async def query_text(ctx: Context, row: Picked) -> list[list[str]]:
    """Describe the tests of a filter for people, as pairs of label and value."""
    return descriptions.of_query(await words_of(ctx, row.user_id), row.query)


async def action_text(ctx: Context, row: Picked) -> list[list[str]]:
    """Describe the actions of a filter for people, as pairs of label and value."""
    action = whole(row.action, row.targets)
    names = await names_of(ctx, action)
    return descriptions.of_action(await words_of(ctx, row.user_id), action, names.mailboxes)


async def check_room(ctx: Context, user_id: int, more: int = 1, path: str = "user") -> None:
    """Raise LimitReached if the user can't have this many more filters."""
    most = ctx.world.options.filters_max
    statement = select(func.count().label("many")).where(col(Filter.user_id) == user_id)
    (row,) = await ctx.read(statement)
    if row.many + more > most:
        raise LimitReached(f"at most {most} filters", limit=most, used=row.many, path=[path])
