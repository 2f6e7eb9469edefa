"""Lists of users: filters, orders, pages and counts."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Select, false, func, or_, select, text, union_all
from sqlmodel import col

from mail.addresses import address_syntax
from models.addresses.tables import Address
from models.domains.tables import Domain
from models.errors import InvalidInput
from models.store.columns import ColumnRow, select_columns
from models.store.keyset_pages import Page, PageRequest
from models.users.roles import Role
from models.users.search_index import (
    TRIGRAM_LENGTH,
    has_prefix,
    last_login_column,
    user_search_text_contains,
)
from models.users.tables import DeletedUser, User
from models.validation_constraints import ValidationConstraint
from resolvers import pagination
from resolvers.access import is_visible_user
from resolvers.context import Context
from resolvers.domains import loaders as domain_loaders
from resolvers.domains.loaders import DomainIdOrName
from resolvers.list_orders import SortColumn, list_orders
from resolvers.pagination import PageForm
from resolvers.sql_text import MAX_SEARCH_LENGTH, contains_text_sql
from resolvers.sql_text import any_item_fits_sql as any_holding
from resolvers.users.listing_conditions import (
    has_not_signed_in_since_sql,
    has_second_factor_sql,
    is_quota_full_sql,
    not_signed_in_condition_of_page,
)
from resolvers.users.selection import has_all_tags_sql, has_any_tag_sql, matches_patterns_sql

MAX_TAGS_OR_PATTERNS = 100  # of one filter
MAX_DOMAIN_SCANS = 50  # domains of an administrator: each is one index scan


class UserOrder(StrEnum):
    """The order of a list of users; ties by id."""

    USERNAME_ASC = "USERNAME_ASC"
    USERNAME_DESC = "USERNAME_DESC"
    CREATED_AT_ASC = "CREATED_AT_ASC"
    CREATED_AT_DESC = "CREATED_AT_DESC"
    STORAGE_USED_ASC = "STORAGE_USED_ASC"
    STORAGE_USED_DESC = "STORAGE_USED_DESC"
    LAST_LOGIN_AT_ASC = "LAST_LOGIN_AT_ASC"  # users that never signed in are first
    LAST_LOGIN_AT_DESC = "LAST_LOGIN_AT_DESC"


@dataclass(frozen=True, slots=True)
class UserConditions:
    """Conditions on users; all must hold."""

    query: str | None = None
    tags: tuple[str, ...] | None = None  # any of
    required_tags: tuple[str, ...] | None = None  # all of
    patterns: tuple[str, ...] | None = None  # usernames with * and ?
    roles: tuple[Role, ...] | None = None
    domain: DomainIdOrName | None = None
    active: bool | None = None
    suspended: bool | None = None
    created_since: datetime | None = None
    created_before: datetime | None = None
    not_signed_in_since: datetime | None = None  # also users who never signed in
    is_quota_full: bool | None = None
    has_second_factor: bool | None = None
    target_part: str | None = None  # part of a target


LAST_LOGIN_COLUMN = "last_seen"  # computed: models/users/search_index.py
_SORT_COLUMNS = {
    "USERNAME": SortColumn("username_key", str),
    "CREATED_AT": SortColumn("created_at", datetime),
    "STORAGE_USED": SortColumn("used", int),
    "LAST_LOGIN_AT": SortColumn(LAST_LOGIN_COLUMN, datetime),
}
LIST_ORDERS = list_orders(UserOrder, _SORT_COLUMNS)


async def load_visible_user_page(
    ctx: Context,
    filter: UserConditions,
    page_request: PageRequest,
    columns: Collection[str],
    order: UserOrder = UserOrder.USERNAME_ASC,
) -> Page[ColumnRow]:
    """Load a page of users that the viewer sees. Each order has an index.

    Raises InvalidInput for a cursor of another order.
    """
    list_order = LIST_ORDERS[order]
    list_order.require_fitting_cursor(page_request)
    domain_id = await _load_filter_domain_id(ctx, filter)
    if filter.domain is not None and domain_id is None:
        return page_request.page_from_rows([])
    names, last_login = {"id", *columns}, last_login_column(ctx.environment.database.dialect)
    extra_columns: list[ColumnElement[Any]] = [last_login]
    sort_column: Any = last_login
    if list_order.column != LAST_LOGIN_COLUMN:
        names.add(list_order.column)
        extra_columns, sort_column = [], col(getattr(User, list_order.column))
    page_form = PageForm.of_page(page_request, frozenset(), is_descending=list_order.is_descending)
    sort_columns = (sort_column, col(User.id))
    conditions = _validated_conditions_without_domain(
        ctx, replace(filter, not_signed_in_since=None)
    )
    if filter.not_signed_in_since is not None:
        conditions.append(
            has_not_signed_in_since_sql(
                ctx.environment.database.dialect, filter.not_signed_in_since
            )
            if list_order.column == LAST_LOGIN_COLUMN
            else await not_signed_in_condition_of_page(ctx, filter.not_signed_in_since)
        )
    rows = select(*select_columns(User, names), *extra_columns)
    scans = [
        pagination.page_select(rows.where(*part, *conditions), page_form, sort_columns)
        for part in _index_scan_conditions(ctx, domain_id)
    ]
    statement = (
        scans[0] if len(scans) == 1 else _merge_scans(scans, page_form, [list_order.column, "id"])
    )
    return pagination.page_from_rows(
        await ctx.read(statement, pagination.page_parameters(page_request, sort_columns)),
        page_request,
    )


def _merge_scans(
    scans: Sequence[Select[*tuple[Any, ...]]], page_form: PageForm, sort_column_names: Sequence[str]
) -> Select[*tuple[Any, ...]]:
    """SQL for one page of the sorted rows of several selects.

    Each select must be sorted, and limited to the page.
    """
    # one select with OR would sort all rows
    union = union_all(*(select(scan.subquery()) for scan in scans)).subquery()
    order = page_form.scan_order(union.c[name] for name in sort_column_names)
    return select(union).order_by(*order).limit(pagination.ROW_COUNT_PARAMETER)


def _index_scan_conditions(ctx: Context, domain_id: int | None) -> list[list[ColumnElement[bool]]]:
    """The WHERE clauses of the visible users, in parts that have one index each."""
    viewer, is_not_deleted = ctx.viewer, col(User.deleted_at).is_(None)
    domain_column = col(User.domain_id)
    if domain_id is not None:
        is_administered = (
            viewer.role.includes(Role.ADMIN) or domain_id in viewer.administered_domains
        )
        return [
            [
                is_not_deleted if is_administered else is_visible_user(ctx),
                domain_column == domain_id,
            ]
        ]
    if (
        viewer.role is not Role.DOMAIN_ADMIN
        or not 0 < len(viewer.administered_domains) <= MAX_DOMAIN_SCANS
    ):
        return [[is_visible_user(ctx)]]
    is_in_other_domain = or_(
        domain_column.is_(None), domain_column.not_in(viewer.administered_domains)
    )
    is_viewer_elsewhere = [is_not_deleted, col(User.id) == viewer.user_id, is_in_other_domain]
    return [
        *([is_not_deleted, domain_column == key] for key in sorted(viewer.administered_domains)),
        is_viewer_elsewhere,
    ]


async def count_visible_users(ctx: Context, filter: UserConditions) -> int:
    """Count the users of a list.

    The count of all users reads an index only; that of a domain reads its counter.
    """
    domain_id = await _load_filter_domain_id(ctx, filter)
    if filter.domain is not None and domain_id is None:
        return 0
    conditions = _validated_conditions_without_domain(ctx, filter)
    statement = select(func.count()).select_from(User).where(is_visible_user(ctx), *conditions)
    if domain_id is not None:
        statement = statement.where(col(User.domain_id) == domain_id)
    if not conditions and ctx.viewer.role.includes(Role.ADMIN):
        statement = _count_of_domain_sql(domain_id) if domain_id else _count_all_sql()
    (row,) = await ctx.read(statement)
    return int(row[0])


async def load_visible_ids_not_matching(
    ctx: Context, filter: UserConditions, user_ids: Collection[int]
) -> set[int]:
    """Return those of these users that the viewer sees and that do not match the filter."""
    statement = select(col(User.id)).where(col(User.id).in_(user_ids), is_visible_user(ctx))
    matching_ids = {
        row.id
        for row in await ctx.read(
            statement.where(*_validated_conditions_without_domain(ctx, filter))
        )
    }
    return {row.id for row in await ctx.read(statement)} - matching_ids


def _count_all_sql() -> Select[int]:
    all_users = select(func.count()).select_from(User).scalar_subquery()
    deleted_users = select(func.count()).select_from(DeletedUser).scalar_subquery()
    return select(all_users - deleted_users)


def _count_of_domain_sql(domain_id: int) -> Select[int]:
    return select(col(Domain.user_count)).where(col(Domain.id) == domain_id)


async def _load_filter_domain_id(ctx: Context, filter: UserConditions) -> int | None:
    """Load the id of the domain in the filter; None if there is no condition or no such domain."""
    if filter.domain is None:
        return None
    statement = select(col(Domain.id)).where(domain_loaders.is_referenced_domain(filter.domain))
    if not ctx.viewer.role.includes(Role.ADMIN):
        domains_of_visible_users = select(col(User.domain_id)).where(is_visible_user(ctx))
        statement = statement.where(
            domain_loaders.is_administered_domain(ctx)
            | col(Domain.id).in_(domains_of_visible_users)
        )
    row = next(iter(await ctx.read(statement)), None)
    return None if row is None else int(row.id)


def validated_conditions(ctx: Context, filter: UserConditions) -> list[ColumnElement[bool]]:
    """The conditions of a filter. Raises InvalidInput for a filter that is too long."""
    conditions = _validated_conditions_without_domain(ctx, filter)
    if filter.domain is not None:
        domain_ids = select(col(Domain.id)).where(
            domain_loaders.is_referenced_domain(filter.domain)
        )
        conditions.append(col(User.domain_id).in_(domain_ids))
    return conditions


def _validated_conditions_without_domain(
    ctx: Context, filter: UserConditions
) -> list[ColumnElement[bool]]:
    """The conditions of a filter, apart from the domain.

    Raises InvalidInput for a filter that is too long.
    """
    _validate_filter(filter)
    if () in (filter.tags, filter.required_tags, filter.patterns, filter.roles):
        return [false()]
    dialect, conditions = ctx.environment.database.dialect, list[Any]()
    if filter.query:
        conditions.append(_matches_query_sql(dialect, filter.query))
    if filter.target_part:
        # as in the partial index of users with targets
        has_targets = text("users.forward_to <> '[]'")
        conditions += [
            has_targets,
            any_holding(dialect, col(User.forward_to), contains_text_sql, [filter.target_part]),
        ]
    conditions += [has_any_tag_sql(filter.tags)] if filter.tags else []
    conditions += [has_all_tags_sql(filter.required_tags)] if filter.required_tags else []
    conditions += [matches_patterns_sql(dialect, filter.patterns)] if filter.patterns else []
    if filter.roles:
        conditions.append(col(User.role).in_(filter.roles))
        if Role.USER not in filter.roles:  # as in the partial index of the other roles
            conditions.append(text("users.role <> 'USER'"))
    for name, value in (("active", filter.active), ("suspended", filter.suspended)):
        if value is not None:  # as in the partial indexes
            conditions.append(text(f"users.{name}" if value else f"NOT users.{name}"))
    return conditions + _time_and_state_conditions(ctx, filter)


def _time_and_state_conditions(ctx: Context, filter: UserConditions) -> list[ColumnElement[bool]]:
    """The conditions on creation, last sign-in, second factors and quota."""
    conditions = []
    if filter.created_since is not None:
        conditions.append(col(User.created_at) >= filter.created_since)
    if filter.created_before is not None:
        conditions.append(col(User.created_at) < filter.created_before)
    if filter.not_signed_in_since is not None:
        dialect = ctx.environment.database.dialect
        conditions.append(has_not_signed_in_since_sql(dialect, filter.not_signed_in_since))
    if filter.has_second_factor is not None:
        conditions.append(has_second_factor_sql(is_wanted=filter.has_second_factor))
    if filter.is_quota_full is not None:
        is_full = is_quota_full_sql(ctx.environment)
        conditions.append(is_full if filter.is_quota_full else ~is_full)
    return conditions


def _validate_filter(filter: UserConditions) -> None:
    """Raise InvalidInput if the filter has too many or too long terms."""
    for name, terms in (
        ("tags", filter.tags),
        ("requiredTags", filter.required_tags),
        ("patterns", filter.patterns),
    ):
        if len(terms or ()) > MAX_TAGS_OR_PATTERNS:
            raise InvalidInput(
                f"At most {MAX_TAGS_OR_PATTERNS} items are allowed.",
                constraint=ValidationConstraint.MAX,
                path=["filter", name],
            )
    for name, search_text in (("query", filter.query), ("forward", filter.target_part)):
        if len(search_text or "") > MAX_SEARCH_LENGTH:
            error_text = f"The search text has at most {MAX_SEARCH_LENGTH} characters."
            raise InvalidInput(
                error_text, constraint=ValidationConstraint.MAX, path=["filter", name]
            )


def _matches_query_sql(dialect: str, query: str) -> ColumnElement[bool]:
    """SQL: users with this text in username, name or main address; a short text as their beginning.

    The text is searched as written, and in the normalized form of usernames: without dots and
    label, the domain in Unicode.
    """
    search_forms = dict.fromkeys([query.casefold(), address_syntax.username_key(query)])
    return or_(*(_matches_text_sql(dialect, form) for form in search_forms if form))


def _matches_text_sql(dialect: str, search_text: str) -> ColumnElement[bool]:
    if len(search_text) >= TRIGRAM_LENGTH:
        return user_search_text_contains(dialect, search_text)
    by_main_address = select(col(Address.user_id)).where(
        col(Address.main), has_prefix(dialect, col(Address.local), search_text)
    )
    by_username = select(col(User.id)).where(
        has_prefix(dialect, col(User.username_key), search_text)
    )
    return col(User.id).in_(by_username.union(by_main_address))
