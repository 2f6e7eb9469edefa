"""Load, find, list and count addresses."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, false, func, or_, select, true, union_all
from sqlalchemy import literal as plain
from sqlmodel import col

from mail.addresses.address_syntax import normalized_address
from mail.recipients.address_resolution import require_receiving_address_row
from models.addresses.tables import Address, AddressKind
from models.domains.tables import Domain, DomainAlias
from models.errors import InvalidInput, NotFound, check_count_from_one_to_limit
from models.store.columns import ColumnRow, select_columns
from models.store.keyset_pages import Page, PageRequest
from models.store.prepared_statements import integer_parameter
from models.users.roles import Role
from models.users.tables import User
from models.validation_constraints import ValidationConstraint
from resolvers import pagination
from resolvers.access import is_visible_user
from resolvers.context import Context
from resolvers.domains.loaders import DomainIdOrName, is_referenced_domain
from resolvers.list_orders import (
    OwnerPageKey,
    SortColumn,
    list_orders,
    read_list_pages,
    read_ordered_page,
    read_whole_own_list,
)
from resolvers.sql_text import any_item_fits_sql, contains_text_sql, equals_ignoring_case_sql

MAX_TAGS = 100  # per filter


class AddressOrder(StrEnum):
    """The order of a list of addresses; ties by id."""

    LOCAL_PART_ASC = "LOCAL_PART_ASC"  # by the normal form of the local part
    LOCAL_PART_DESC = "LOCAL_PART_DESC"
    CREATED_AT_ASC = "CREATED_AT_ASC"
    CREATED_AT_DESC = "CREATED_AT_DESC"


_SORT_COLUMNS = {
    "LOCAL_PART": SortColumn("local", str),
    "CREATED_AT": SortColumn("created_at", datetime),
}
LIST_ORDERS = list_orders(AddressOrder, _SORT_COLUMNS)


@dataclass(frozen=True, slots=True)
class AddressIdOrText:
    """A reference to an address by id or by its text. The text of a catch-all contains `*`."""

    id: int | None = None
    address: str = ""


@dataclass(frozen=True, slots=True)
class AddressConditions:
    """Conditions of an address list; all must hold. The user id 0 matches no address."""

    query: str | None = None
    forward: str | None = None
    tags: tuple[str, ...] | None = None  # any of
    required_tags: tuple[str, ...] | None = None  # all of
    kinds: tuple[AddressKind, ...] | None = None
    domain: DomainIdOrName | None = None
    user_id: int | None = None
    active: bool | None = None
    wildcard: bool | None = None
    temporary: bool | None = None


@dataclass(frozen=True, slots=True)
class AddressPageKey(OwnerPageKey):
    """A page of one user's addresses that meet the conditions."""

    conditions: AddressConditions = AddressConditions()
    is_temporary: bool = False  # only temporary addresses that have not expired


def is_visible_address(ctx: Context) -> ColumnElement[bool]:
    """Return the WHERE clause for addresses of visible users and of administered domains."""
    if ctx.viewer.role.includes(Role.ADMIN):
        return true()  # a deleted account has none
    # checked per address, since a list of all visible users can be long
    owner_statement = select(col(User.id)).where(
        col(User.id) == col(Address.user_id), is_visible_user(ctx)
    )
    has_visible_owner = owner_statement.exists()
    if ctx.viewer.administered_domains:
        return or_(has_visible_owner, col(Address.domain_id).in_(ctx.viewer.administered_domains))
    return has_visible_owner


async def load_visible_addresses_by_id(ctx: Context, ids: list[int]) -> list[ColumnRow | None]:
    """Load addresses by id, in the given order. None for an id that the viewer can't see."""
    statement = select(*select_columns(Address)).where(is_visible_address(ctx))
    return await pagination.read_by_keys(ctx, statement, col(Address.id), ids)


async def load_visible_addresses_by_text(
    ctx: Context, texts: Sequence[str]
) -> list[ColumnRow | None]:
    """Load addresses by their text, in the given order. None if the viewer sees none.

    The domain part can be the name of a domain or of an alias domain.
    """
    return await load_addresses_by_text(ctx, texts, is_visible_address(ctx))


async def load_addresses_by_text(
    ctx: Context, texts: Sequence[str], condition: ColumnElement[bool]
) -> list[ColumnRow | None]:
    """Load the addresses that meet a condition by their text. None if no address fits.

    See `load_visible_addresses_by_text`.
    """
    normal_forms = [
        normalized_address(f"*{text}" if text.startswith("@") else text) for text in texts
    ]
    domain_names: Select[*tuple[Any, ...]] = select(
        col(Domain.name).label("called"), col(Domain.id).label("id"), plain(0).label("far")
    )
    alias_names: Select[*tuple[Any, ...]] = select(
        col(DomainAlias.alias), col(DomainAlias.domain_id), plain(1)
    )
    domain_parts = [normal_form.domain for normal_form in normal_forms]
    domain_ids_by_name = union_all(
        domain_names.where(col(Domain.name).in_(domain_parts)),
        alias_names.where(col(DomainAlias.alias).in_(domain_parts)),
    ).subquery()
    statement = (
        select(*select_columns(Address), domain_ids_by_name.c.called, domain_ids_by_name.c.far)
        .outerjoin(domain_ids_by_name, domain_ids_by_name.c.id == col(Address.domain_id))
        .where(
            col(Address.local).in_([form.local_part for form in normal_forms]),
            or_(domain_ids_by_name.c.id.is_not(None), col(Address.domain_id).is_(None)),
            condition,
        )
        # the row of the domain itself overwrites that of an alias domain
        .order_by(domain_ids_by_name.c.far.desc())
    )
    rows = {(row.local, row.called or "*"): row for row in await ctx.read(statement)}
    return [rows.get((form.local_part, form.domain)) for form in normal_forms]


async def require_visible_referenced_addresses(
    ctx: Context, refs: Sequence[AddressIdOrText], *, path: str = "addresses"
) -> list[ColumnRow]:
    """Load the referenced addresses in the order of the references, each once.

    Raises InvalidInput if there are too many references, and NotFound with the index of an
    address that the viewer can't see.
    """
    limit = ctx.environment.options.bulk_max_items
    check_count_from_one_to_limit(
        len(refs), limit, f"From 1 to {limit:,} addresses are required.", path=[path]
    )
    ids = [ref.id for ref in refs if ref.id is not None]
    texts = [ref.address for ref in refs if ref.id is None]
    by_id = dict(zip(ids, await load_visible_addresses_by_id(ctx, ids), strict=True)) if ids else {}
    by_text = (
        dict(zip(texts, await load_visible_addresses_by_text(ctx, texts), strict=True))
        if texts
        else {}
    )
    rows_by_id: dict[int, ColumnRow] = {}
    for index, ref in enumerate(refs):
        row = by_text[ref.address] if ref.id is None else by_id[ref.id]
        if row is None:
            raise NotFound(ref.address or str(ref.id), path=[path], index=index)
        rows_by_id.setdefault(row.id, row)
    return list(rows_by_id.values())


async def find_visible_receiving_address(ctx: Context, address: str) -> ColumnRow | None:
    """Return the address record that receives mail for this address.

    Returns None if there is none or the viewer can't see it.
    """
    try:
        row = await require_receiving_address_row(ctx.environment, address)
    except NotFound:
        return None
    return await ctx.load(load_visible_addresses_by_id, row.id)


async def read_visible_address_page(
    ctx: Context,
    conditions: AddressConditions,
    page_request: PageRequest,
    columns: Collection[str],
    order: AddressOrder = AddressOrder.LOCAL_PART_ASC,
) -> Page[ColumnRow]:
    """Read a page of the visible addresses. Raises InvalidInput for a cursor of another order."""
    list_order = LIST_ORDERS[order]
    statement = select(*select_columns(Address, {"id", list_order.column, *columns})).where(
        *visible_and_filtered_address_clauses(ctx, conditions)
    )
    return await read_ordered_page(ctx, statement, Address, page_request, list_order)


async def count_visible_addresses(ctx: Context, conditions: AddressConditions) -> int:
    """Count the visible addresses that meet the conditions."""
    statement = (
        select(func.count())
        .select_from(Address)
        .where(*visible_and_filtered_address_clauses(ctx, conditions))
    )
    (row,) = await ctx.read(statement)
    return int(row[0])


def visible_and_filtered_address_clauses(
    ctx: Context, conditions: AddressConditions
) -> list[ColumnElement[bool]]:
    """Return the WHERE clauses of a list. Raises InvalidInput if there are too many tags."""
    clauses = [is_visible_address(ctx), *_tag_clauses(ctx, conditions)]
    if conditions.query:
        clauses.append(contains_text_sql(col(Address.display_address), conditions.query))
    if conditions.forward:
        dialect = ctx.environment.database.dialect
        clauses.append(
            any_item_fits_sql(
                dialect, col(Address.forward_to), contains_text_sql, [conditions.forward]
            )
        )
    if conditions.kinds is not None:
        clauses.append(col(Address.kind).in_(conditions.kinds))
    if conditions.domain is not None:
        domain_statement = select(col(Domain.id)).where(is_referenced_domain(conditions.domain))
        clauses.append(col(Address.domain_id).in_(domain_statement))
    if conditions.user_id is not None:
        clauses.append(col(Address.user_id) == conditions.user_id)
    for is_requested, clause in (
        (conditions.active, col(Address.active).is_(True)),
        (conditions.wildcard, col(Address.local).contains("*") | col(Address.domain_id).is_(None)),
        (conditions.temporary, col(Address.masked) | col(Address.expires_at).is_not(None)),
    ):
        if is_requested is not None:
            clauses.append(clause if is_requested else ~clause)
    return clauses


def _tag_clauses(ctx: Context, conditions: AddressConditions) -> list[ColumnElement[bool]]:
    """Return the WHERE clauses for tags. Raises InvalidInput if there are more than MAX_TAGS."""
    for name, terms in (("tags", conditions.tags), ("requiredTags", conditions.required_tags)):
        if len(terms or ()) > MAX_TAGS:
            raise InvalidInput(
                f"At most {MAX_TAGS} tags are allowed.",
                constraint=ValidationConstraint.MAX,
                path=["filter", name],
            )
    if () in (conditions.tags, conditions.required_tags):
        return [false()]
    required_sets = [[tag] for tag in conditions.required_tags or ()]
    tag_sets = [conditions.tags, *required_sets] if conditions.tags else required_sets
    return [
        any_item_fits_sql(
            ctx.environment.database.dialect, col(Address.tags), equals_ignoring_case_sql, tags
        )
        for tags in tag_sets
    ]


def _is_unexpired_temporary_address(ctx: Context) -> ColumnElement[bool]:
    """Return the WHERE clause for user-made addresses and those that expire in the future."""
    is_unlimited_mask = and_(col(Address.masked), col(Address.expires_at).is_(None))
    return or_(col(Address.expires_at) > ctx.environment.now(), is_unlimited_mask)


async def load_visible_main_addresses_by_user(
    ctx: Context, user_ids: list[int]
) -> list[ColumnRow | None]:
    """Load the main addresses of users, in the given order. None if the viewer sees none."""
    statement = select(*select_columns(Address)).where(col(Address.main), is_visible_address(ctx))
    return await pagination.read_by_keys(ctx, statement, col(Address.user_id), user_ids)


def _select_of_page(
    ctx: Context, page_key: AddressPageKey, columns: Collection[str]
) -> Select[*tuple[Any, ...]]:
    clauses = visible_and_filtered_address_clauses(ctx, page_key.conditions)
    if page_key.is_temporary:
        clauses.append(_is_unexpired_temporary_address(ctx))
    return select(*select_columns(Address, columns)).where(
        col(Address.user_id) == page_key.owner_id, *clauses
    )


async def load_visible_address_pages_by_user(
    ctx: Context, page_keys: list[AddressPageKey]
) -> list[Page[ColumnRow]]:
    """Load pages of users' addresses. Raises InvalidInput for a cursor of another order."""
    own_pages = await read_whole_own_list(
        ctx, Address, page_keys, _select_own_addresses, reads_many_rows=True
    )
    return own_pages or await read_list_pages(ctx, Address, page_keys, _select_of_page)


def _select_own_addresses(columns: Collection[str]) -> Select[*tuple[Any, ...]]:
    return select(*select_columns(Address, columns)).where(
        col(Address.user_id) == integer_parameter("viewer")
    )


async def count_visible_addresses_by_user(
    ctx: Context, page_keys: list[AddressPageKey]
) -> list[int]:
    """Count the addresses of each list, in the given order."""
    statements = [_select_of_page(ctx, key, {"id"}) for key in page_keys]
    return await pagination.count_rows(ctx, statements)


async def count_visible_unexpired_temporary_addresses_by_user(
    ctx: Context, user_ids: list[int]
) -> list[int]:
    """Count the temporary addresses of users that the viewer sees and that have not expired."""
    statement = (
        select(col(Address.user_id), func.count())
        .where(
            col(Address.user_id).in_(user_ids),
            _is_unexpired_temporary_address(ctx),
            is_visible_address(ctx),
        )
        .group_by(col(Address.user_id))
    )
    count_by_user = {key: int(count) for key, count in await ctx.read(statement)}
    return [count_by_user.get(key, 0) for key in user_ids]
