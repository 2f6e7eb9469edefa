"""Loading of filters: visibility, lists and descriptions."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Select, func, select
from sqlmodel import col

from mail import sieve
from mail.filters import filter_compiler
from mail.filters.filter_compiler import ScriptNames
from mail.filters.filter_evaluation import CompiledFilter
from mail.filters.filter_result import FilterTarget
from mail.text.languages import text_in_language
from models.errors import InvalidInput, LimitReached
from models.filters.tables import Filter
from models.mailboxes.tables import Mailbox
from models.store.columns import ColumnRow, select_columns
from models.store.keyset_pages import Page, PageRequest
from models.users.roles import AdminPermission, Role
from models.users.tables import User
from models.validation_constraints import ValidationConstraint
from resolvers.access import is_overseen_user, is_own_prepared
from resolvers.context import Context
from resolvers.filters import descriptions
from resolvers.filters.descriptions import ENGLISH_TERMS, TERMS_BY_LANGUAGE, LabelAndValue
from resolvers.list_orders import (
    OwnerPageKey,
    SortColumn,
    list_orders,
    read_list_pages,
    read_ordered_page,
    read_whole_own_list,
)
from resolvers.pagination import count_rows, read_by_keys
from resolvers.sql_text import any_item_fits_sql, contains_text_sql

RUN_SORT_KEY = (col(Filter.position), col(Filter.id))
VISIBLE_COLUMNS = frozenset(column.name for column in select_columns(Filter)) - {"relays"}


class FilterOrder(StrEnum):
    """The order of a list of filters; ties by id."""

    POSITION_ASC = "POSITION_ASC"  # the order they run
    POSITION_DESC = "POSITION_DESC"
    CREATED_AT_ASC = "CREATED_AT_ASC"
    CREATED_AT_DESC = "CREATED_AT_DESC"


_SORT_COLUMNS = {
    "POSITION": SortColumn("position", int),
    "CREATED_AT": SortColumn("created_at", datetime),
}
LIST_ORDERS = list_orders(FilterOrder, _SORT_COLUMNS)


@dataclass(frozen=True, slots=True)
class FilterListConditions:
    """Conditions of a list of filters; all must hold. A user ID of 0 matches no filter."""

    target_part: str | None = None  # matches targets that contain it
    user_id: int | None = None
    name_part: str | None = None  # matches names that contain it
    active: bool | None = None


@dataclass(frozen=True, slots=True)
class FilterListing(OwnerPageKey):
    """A page of the filters of a user that meet the conditions."""

    conditions: FilterListConditions = FilterListConditions()


def is_visible_filter_sql(ctx: Context) -> ColumnElement[bool]:
    """Build the condition that the viewer can see a filter: their own, or all for an ADMIN.

    A DOMAIN_ADMIN with the permission FILTERS sees those of the users in their domains.
    """
    viewer, is_own_filter = ctx.viewer, col(Filter.user_id) == ctx.viewer.user_id
    chief = viewer.role is Role.DOMAIN_ADMIN and AdminPermission.FILTERS in viewer.permissions
    if not (chief or viewer.role.includes(Role.ADMIN)):
        return is_own_filter
    return is_own_filter | col(Filter.user_id).in_(
        select(col(User.id)).where(is_overseen_user(ctx))
    )


async def load_visible_by_ids(ctx: Context, filter_ids: list[int]) -> list[ColumnRow | None]:
    """Load the filters with these IDs, in this order. None if the viewer can't see one."""
    statement = select(*select_columns(Filter, VISIBLE_COLUMNS)).where(is_visible_filter_sql(ctx))
    return await read_by_keys(ctx, statement, col(Filter.id), filter_ids)


async def load_visible_filters_of_user(ctx: Context, user_id: int) -> Sequence[ColumnRow]:
    """Load the filters of a user in the order they run, with inactive ones."""
    statement = select(*select_columns(Filter, VISIBLE_COLUMNS)).where(
        is_visible_filter_sql(ctx), col(Filter.user_id) == user_id
    )
    return await ctx.read(statement.order_by(*RUN_SORT_KEY))


async def load_visible_filter_pages(
    ctx: Context, listings: list[FilterListing]
) -> list[Page[ColumnRow]]:
    """Load the pages of these listings. Raises InvalidInput for a cursor of another order."""
    own_pages = await read_whole_own_list(ctx, Filter, listings, _select_own_filters)
    return own_pages or await read_list_pages(ctx, Filter, listings, _select_of_listing)


def _select_own_filters(columns: Collection[str]) -> Select[*tuple[Any, ...]]:
    return _select_visible_columns(columns).where(is_own_prepared(Filter))


def _select_of_listing(
    ctx: Context, listing: FilterListing, columns: Collection[str]
) -> Select[*tuple[Any, ...]]:
    return _select_visible_columns(columns).where(
        col(Filter.user_id) == listing.owner_id, *_list_conditions(ctx, listing.conditions)
    )


def _select_visible_columns(columns: Collection[str]) -> Select[*tuple[Any, ...]]:
    return select(*select_columns(Filter, VISIBLE_COLUMNS.intersection(columns)))


async def count_visible_filters_of_listings(
    ctx: Context, listings: list[FilterListing]
) -> list[int]:
    """Count the filters of these listings."""
    return await count_rows(ctx, [_select_of_listing(ctx, key, {"id"}) for key in listings])


def _list_conditions(ctx: Context, conditions: FilterListConditions) -> list[ColumnElement[bool]]:
    return [is_visible_filter_sql(ctx), *_condition_clauses(ctx, conditions)]


def _condition_clauses(ctx: Context, conditions: FilterListConditions) -> list[ColumnElement[bool]]:
    terms: list[ColumnElement[bool]] = []
    if conditions.user_id is not None:
        terms.append(col(Filter.user_id) == conditions.user_id)
    if conditions.name_part:
        terms.append(contains_text_sql(col(Filter.name), conditions.name_part))
    if conditions.active is not None:
        terms.append(col(Filter.active).is_(conditions.active))
    if conditions.target_part:
        terms.append(
            any_item_fits_sql(
                ctx.environment.database.dialect,
                col(Filter.forward_to),
                contains_text_sql,
                [conditions.target_part],
            )
        )
    return terms


async def load_visible_filter_page(
    ctx: Context,
    conditions: FilterListConditions,
    page_request: PageRequest,
    columns: Collection[str],
    order: FilterOrder = FilterOrder.CREATED_AT_ASC,
) -> Page[ColumnRow]:
    """Load a page of the filters of all users, or of the user of the conditions.

    Raises InvalidInput for a cursor of another order, and for an order by position without a user:
    only one user's filters run one after another.
    """
    list_order = LIST_ORDERS[order]
    if list_order.column == "position" and conditions.user_id is None:
        text = "This order requires the condition `filter.user`."
        raise InvalidInput(text, constraint=ValidationConstraint.REQUIRED, path=["orderBy"])
    names = VISIBLE_COLUMNS.intersection(columns) | {list_order.column, "id"}
    rows = select(*select_columns(Filter, names)).where(*_list_conditions(ctx, conditions))
    return await read_ordered_page(ctx, rows, Filter, page_request, list_order)


async def count_visible_filters(ctx: Context, conditions: FilterListConditions) -> int:
    """Count the filters of the list that `load_visible_filter_page` reads."""
    statement = select(func.count().label("many")).select_from(Filter)
    (row,) = await ctx.read(statement.where(*_list_conditions(ctx, conditions)))
    return int(row.many)


@dataclass(frozen=True, slots=True)
class FilterActionValues:
    """The values of a filter's action. None or empty means that the filter doesn't set it."""

    seen: bool | None
    flag: bool | None
    delete: bool | None
    spam: bool | None
    mailbox_id: int | None
    copies: Sequence[int]
    forward_to: Sequence[str]
    keywords: Sequence[str]
    remove_keywords: Sequence[str]
    reply: Mapping[str, str] | None
    webhook_id: int | None
    stop: bool

    @classmethod
    def from_stored_action(
        cls, action: Mapping[str, Any], forward_to: Sequence[str]
    ) -> "FilterActionValues":
        """Build the values from the stored action and its targets."""
        return cls(
            seen=action.get("seen"),
            flag=action.get("flag"),
            delete=action.get("delete"),
            spam=action.get("spam"),
            mailbox_id=action.get("mailbox"),
            copies=action.get("copyTo", ()),
            forward_to=forward_to,
            keywords=action.get("keywords", ()),
            remove_keywords=action.get("removeKeywords", ()),
            reply=action.get("reply"),
            webhook_id=action.get("webhook"),
            stop=bool(action.get("stop")),
        )


def action_with_targets(action: Mapping[str, Any], forward_to: Sequence[str]) -> dict[str, Any]:
    """Return the action with its targets, in the form of `mail/filters/filter_compiler.py`."""
    return {**action, "forwardTo": list(forward_to)} if forward_to else dict(action)


def rule_from_row(row: ColumnRow) -> CompiledFilter:
    """Build the rule that runs, with targets in their visible form (without passwords)."""
    targets = [FilterTarget(row.id, target, target) for target in row.forward_to]
    return CompiledFilter(
        row.id, row.query, action_with_targets(row.action, row.forward_to), targets
    )


def mailbox_ids_in_action(action: Mapping[str, Any]) -> list[int]:
    """Return the IDs of the mailboxes that an action names."""
    return [*([action["mailbox"]] if "mailbox" in action else ()), *action.get("copyTo", ())]


async def load_mailbox_paths(ctx: Context, mailbox_ids: list[int]) -> list[str | None]:
    """Load the paths of these mailboxes, in this order.

    Without a check of the viewer's rights, since a visible filter names them.
    """
    statement = select(col(Mailbox.id), col(Mailbox.path)).where(col(Mailbox.id).in_(mailbox_ids))
    paths = {row.id: row.path for row in await ctx.read(statement)}
    return [paths.get(key) for key in mailbox_ids]


async def load_sieve_names(ctx: Context, action: Mapping[str, Any]) -> ScriptNames:
    """Load the names that a script and a description use for an action."""
    mailboxes = mailbox_ids_in_action(action)
    ids_and_paths = zip(mailboxes, await ctx.load_many(load_mailbox_paths, mailboxes), strict=True)
    seconds = int(ctx.environment.options.autoreply_interval.total_seconds())
    return ScriptNames({key: path for key, path in ids_and_paths if path}, seconds)


async def load_filter_as_sieve_script(ctx: Context, filter_row: ColumnRow) -> str:
    """Return a filter as a Sieve script. Actions without a Sieve form are comments at its start."""
    action = action_with_targets(filter_row.action, filter_row.forward_to)
    tree = filter_compiler.script_from_filter(
        filter_row.id, filter_row.query, action, await load_sieve_names(ctx, action)
    )
    return "".join(filter_compiler.comments_on_actions_without_sieve(action)) + sieve.print_script(
        tree
    )


async def load_languages(ctx: Context, user_ids: list[int]) -> list[str | None]:
    """Load the languages of these users, in this order."""
    statement = select(col(User.id), col(User.language)).where(col(User.id).in_(user_ids))
    languages = {row.id: row.language for row in await ctx.read(statement)}
    return [languages.get(key) for key in user_ids]


async def load_filter_wording_of_user(ctx: Context, user_id: int) -> descriptions.FilterTerms:
    """Load the terms in the user's language, else in English."""
    return (
        text_in_language(await ctx.load(load_languages, user_id), TERMS_BY_LANGUAGE)
        or ENGLISH_TERMS
    )


async def describe_query(ctx: Context, filter_row: ColumnRow) -> list[LabelAndValue]:
    """Describe the tests of a filter for people."""
    return descriptions.describe_query(
        await load_filter_wording_of_user(ctx, filter_row.user_id), filter_row.query
    )


async def load_action_descriptions_of_filter(
    ctx: Context, filter_row: ColumnRow
) -> list[LabelAndValue]:
    """Describe the actions of a filter for people."""
    action = action_with_targets(filter_row.action, filter_row.forward_to)
    names = await load_sieve_names(ctx, action)
    return descriptions.describe_filter_action(
        await load_filter_wording_of_user(ctx, filter_row.user_id), action, names.mailbox_paths
    )


async def require_filter_capacity(
    ctx: Context, user_id: int, new_count: int = 1, input_field: str = "user"
) -> None:
    """Raise LimitReached if the user can't have this many more filters."""
    require_room_for_filters(ctx, await count_filters(ctx, user_id), new_count, input_field)


async def count_filters(ctx: Context, user_id: int) -> int:
    """Return the number of filters of a user."""
    statement = select(func.count().label("many")).where(col(Filter.user_id) == user_id)
    (row,) = await ctx.read(statement)
    return int(row.many)


def require_room_for_filters(
    ctx: Context, used: int, new_count: int = 1, input_field: str = "user"
) -> None:
    """Raise LimitReached if a user with this many filters can't have this many more."""
    max_filters = ctx.environment.options.filters_max_per_user
    if used + new_count > max_filters:
        raise LimitReached(
            f"A user has at most {max_filters} filters.",
            limit=max_filters,
            used=used,
            path=[input_field],
        )
