"""Load, list and lock domains, and create the domain of a new address."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Select, false, func, or_, select, true, union_all
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.addresses.address_syntax import normalize_and_validate_domain, normalized_domain
from mail.text import confusables
from models.addresses.tables import Address
from models.domains.tables import Domain, DomainAlias
from models.errors import Conflict, LimitReached, NotFound, check_count_from_one_to_limit
from models.events import journal
from models.events.event_types import EventType
from models.events.journal import PLATFORM, Stream
from models.store.columns import ColumnRow, select_columns
from models.store.keyset_pages import Page, PageRequest
from models.store.prepared_statements import integer_parameter, prepare_cached
from models.users.roles import Role
from models.users.tables import DomainAdmin, User
from models.warning_codes import WarningCode
from resolvers.context import Context
from resolvers.list_orders import SortColumn, list_orders, read_ordered_page
from resolvers.pagination import read_by_keys
from resolvers.sql_text import any_item_fits_sql, contains_text_sql, equals_ignoring_case_sql


class DomainOrder(StrEnum):
    """The order of a list of domains; ties by id."""

    NAME_ASC = "NAME_ASC"
    NAME_DESC = "NAME_DESC"
    CREATED_AT_ASC = "CREATED_AT_ASC"
    CREATED_AT_DESC = "CREATED_AT_DESC"
    USER_COUNT_ASC = "USER_COUNT_ASC"
    USER_COUNT_DESC = "USER_COUNT_DESC"


_SORT_COLUMNS = {
    "NAME": SortColumn("name", str),
    "CREATED_AT": SortColumn("created_at", datetime),
    "USER_COUNT": SortColumn("user_count", int),
}
LIST_ORDERS = list_orders(DomainOrder, _SORT_COLUMNS)


@dataclass(frozen=True, slots=True)
class DomainConditions:
    """Conditions of a domain list; all must hold. The user id 0 matches no user."""

    query: str | None = None
    active: bool | None = None
    backup_mx: bool | None = None
    administered_by: int | None = None
    not_administered_by: int | None = None
    tags: tuple[str, ...] | None = None  # any of them


@dataclass(frozen=True, slots=True)
class DomainIdOrName:
    """A reference to a domain by id or by its own name. Names of alias domains don't count."""

    id: int | None = None
    name: str | None = None


def is_administered_domain(ctx: Context) -> ColumnElement[bool]:
    """Return the WHERE clause for the domains that the viewer administers."""
    if ctx.viewer.role.includes(Role.ADMIN):
        return true()
    if ctx.viewer.role is Role.DOMAIN_ADMIN and ctx.viewer.administered_domains:
        return col(Domain.id).in_(ctx.viewer.administered_domains)
    return false()


def is_in_administered_domain(ctx: Context, domain_column: Any) -> ColumnElement[bool]:
    """Return the WHERE clause that the domain id in this column is an administered one."""
    if ctx.viewer.role.includes(Role.ADMIN):
        return true()
    clause: ColumnElement[bool] = domain_column.in_(
        select(col(Domain.id)).where(is_administered_domain(ctx))
    )
    return clause


async def load_visible_domains_by_id(ctx: Context, ids: list[int]) -> list[ColumnRow | None]:
    """Load domains by id, in the given order. None for an id that the viewer can't see.

    Visible are administered domains and those of the viewer's account and addresses.
    """
    if len(ids) == 1 and not ctx.viewer.role.includes(Role.DOMAIN_ADMIN):
        return [next(iter(await ctx.read_prepared(_select_domain_of_viewer(), id=ids[0])), None)]
    is_visible = is_administered_domain(ctx) | _is_domain_of_user(ctx.viewer.user_id)
    statement = select(*select_columns(Domain)).where(is_visible)
    return await read_by_keys(ctx, statement, col(Domain.id), ids)


@prepare_cached
def _select_domain_of_viewer() -> Select[*tuple[Any, ...]]:
    return select(*select_columns(Domain)).where(
        col(Domain.id) == integer_parameter("id"), _is_domain_of_user(integer_parameter("viewer"))
    )


def _is_domain_of_user(user_id: Any) -> ColumnElement[bool]:
    """Return the WHERE clause for the domains of a user's account and addresses."""
    own_domain = select(col(User.domain_id)).where(col(User.id) == user_id)
    address_domains = select(col(Address.domain_id)).where(col(Address.user_id) == user_id)
    return col(Domain.id).in_(own_domain) | col(Domain.id).in_(address_domains)


async def load_administered_domains_by_id(ctx: Context, ids: list[int]) -> list[ColumnRow | None]:
    """Load domains by id, in the given order. None for an id that the viewer doesn't administer."""
    statement = select(*select_columns(Domain)).where(is_administered_domain(ctx))
    return await read_by_keys(ctx, statement, col(Domain.id), ids)


def is_referenced_domain(ref: DomainIdOrName) -> ColumnElement[bool]:
    """Return the WHERE clause for the domain with the id or the own name of a reference."""
    if ref.id is not None:
        return col(Domain.id) == ref.id
    return col(Domain.name) == normalized_domain(ref.name or "")


def reference_text(ref: DomainIdOrName | None) -> str:
    """Return the name or id in a reference, for NotFound; empty without a reference."""
    return "" if ref is None else ref.name or str(ref.id)


async def find_administered_domain_by_ref(ctx: Context, ref: DomainIdOrName) -> ColumnRow | None:
    """Return the referenced domain, or None if the viewer doesn't administer it."""
    statement = select(*select_columns(Domain)).where(
        is_referenced_domain(ref), is_administered_domain(ctx)
    )
    return next(iter(await ctx.read(statement)), None)


async def find_administered_domain(ctx: Context, name: str) -> ColumnRow | None:
    """Return the domain of this name, or None if the viewer doesn't administer it."""
    statement = select(*select_columns(Domain)).where(
        col(Domain.name) == normalized_domain(name), is_administered_domain(ctx)
    )
    rows: Sequence[ColumnRow] = await ctx.read(statement)
    return next(iter(rows), None)


async def require_administered_domain_by_ref(ctx: Context, ref: DomainIdOrName) -> ColumnRow:
    """Load the referenced domain. Raises NotFound if the viewer doesn't administer it."""
    row = await find_administered_domain_by_ref(ctx, ref)
    if row is None:
        raise NotFound(reference_text(ref), path=["domain"])
    return row


async def require_administered_domains_by_ref(
    ctx: Context, refs: Sequence[DomainIdOrName], *, path: str = "domains"
) -> list[ColumnRow]:
    """Load the referenced domains in the order of the references, each once.

    Raises InvalidInput without references, LimitReached for too many, and NotFound with the index
    of a domain that the viewer doesn't administer.
    """
    limit = ctx.environment.options.bulk_max_items
    check_count_from_one_to_limit(
        len(refs), limit, f"From 1 to {limit:,} domains are required.", path=[path]
    )
    return await load_administered_domains_by_ref_or_raise(ctx, refs, path=path)


async def load_administered_domains_by_ref_or_raise(
    ctx: Context, refs: Sequence[DomainIdOrName], *, path: str
) -> list[ColumnRow]:
    """Load the referenced domains in the order of the references, each once.

    Raises NotFound with the index of a domain that the viewer doesn't administer.
    """
    names = [None if ref.name is None else normalized_domain(ref.name) for ref in refs]
    is_referenced = or_(
        col(Domain.id).in_([ref.id for ref in refs if ref.id is not None]),
        col(Domain.name).in_([name for name in names if name is not None]),
    )
    rows: Sequence[ColumnRow] = await ctx.read(
        select(*select_columns(Domain)).where(is_referenced, is_administered_domain(ctx))
    )
    by_id = {row.id: row for row in rows}
    by_name = {row.name: row for row in rows}
    rows_by_id: dict[int, ColumnRow] = {}
    for index, (ref, name) in enumerate(zip(refs, names, strict=True)):
        row = by_id.get(ref.id) if name is None else by_name.get(name)
        if row is None:
            raise NotFound(ref.name or str(ref.id), path=[path], index=index)
        rows_by_id.setdefault(row.id, row)
    return list(rows_by_id.values())


async def reload_locked_domains_or_raise(
    ctx: Context, domain_ids: Sequence[int]
) -> list[ColumnRow]:
    """Load the current rows of locked domains in this order. Raises NotFound if one is deleted."""
    rows_by_id = {
        row.id: row
        for row in await ctx.read(
            select(*select_columns(Domain)).where(col(Domain.id).in_(domain_ids))
        )
    }
    for index, key in enumerate(domain_ids):
        if key not in rows_by_id:
            raise NotFound(str(key), path=["domains"], index=index)
    return [rows_by_id[key] for key in domain_ids]


async def read_domain_page(
    ctx: Context,
    conditions: DomainConditions,
    page_request: PageRequest,
    columns: Collection[str],
    order: DomainOrder = DomainOrder.NAME_ASC,
) -> Page[ColumnRow]:
    """Read a page of administered domains. Raises InvalidInput for a cursor of another order."""
    list_order = LIST_ORDERS[order]
    statement = select(*select_columns(Domain, {"id", list_order.column, *columns})).where(
        *administered_and_filtered_domain_clauses(ctx, conditions)
    )
    return await read_ordered_page(ctx, statement, Domain, page_request, list_order)


async def count_domains(ctx: Context, conditions: DomainConditions) -> int:
    """Count the administered domains that meet the conditions."""
    statement = (
        select(func.count())
        .select_from(Domain)
        .where(*administered_and_filtered_domain_clauses(ctx, conditions))
    )
    (row,) = await ctx.read(statement)
    return int(row[0])


def administered_and_filtered_domain_clauses(
    ctx: Context, domain_conditions: DomainConditions
) -> list[ColumnElement[bool]]:
    """Return the WHERE clauses for the administered domains that meet the conditions."""
    clauses = [is_administered_domain(ctx)]
    if domain_conditions.query:
        matches_name = contains_text_sql(col(Domain.name), domain_conditions.query)
        clauses.append(
            matches_name | contains_text_sql(col(Domain.description), domain_conditions.query)
        )
    if domain_conditions.active is not None:
        clauses.append(col(Domain.active).is_(domain_conditions.active))
    if domain_conditions.backup_mx is not None:
        clauses.append(col(Domain.backup_mx).is_(domain_conditions.backup_mx))
    if domain_conditions.administered_by is not None:
        clauses.append(
            col(Domain.id).in_(_select_administered_ids(domain_conditions.administered_by))
        )
    if domain_conditions.not_administered_by is not None:
        clauses.append(
            col(Domain.id).not_in(_select_administered_ids(domain_conditions.not_administered_by))
        )
    if domain_conditions.tags is not None:
        clauses.append(
            any_item_fits_sql(
                ctx.environment.database.dialect,
                col(Domain.tags),
                equals_ignoring_case_sql,
                domain_conditions.tags,
            )
        )
    return clauses


def _select_administered_ids(user_id: int) -> Select[int]:
    return select(col(DomainAdmin.domain_id)).where(col(DomainAdmin.user_id) == user_id)


async def lock_or_create_domain_for_address(
    ctx: Context, session: AsyncSession, name: str, *, path: str, input_path: Sequence[str] = ()
) -> Domain:
    """Return the locked domain of a new address; create it if the setting allows that.

    Adds a warning for a created domain, with the input path. Raises NotFound if the viewer
    doesn't administer the domain or it may not be created, Conflict if the name is an alias
    domain, and LimitReached if the domain can't have another address.
    """
    name = normalize_and_validate_domain(name, path=path)
    viewer, connection = ctx.viewer, await session.connection()
    is_admin = viewer.role.includes(Role.ADMIN)
    alias_row = (await connection.execute(_select_alias_target(name))).first()
    if alias_row and (is_admin or alias_row.domain_id in viewer.administered_domains):
        raise Conflict(f"{name} is an alias of another domain.", path=[path])
    statement = select(col(Domain.id)).where(col(Domain.name) == name)
    row = (await connection.execute(statement)).first()
    if row is None and can_create_domain_for_address(ctx):
        await journal.lock_streams(session, [PLATFORM])  # this lock protects the names of domains
        row = (await connection.execute(statement)).first()
        if row is None:
            confusables.refuse_confusable_domain(name, path=path)
            await require_domain_name_free(session, name, path=path)
            warn_domain_created(ctx, name, path=[*input_path, path])
            return await insert_domain_with_stream(
                ctx, session, new_domain_with_defaults(ctx, name)
            )
    if row is None:
        raise unknown_domain_error(ctx, name, path=[path])
    if not (is_admin or row.id in viewer.administered_domains):
        raise NotFound(name, path=[path])
    return await lock_domain_with_address_room(session, row.id, name, path=path)


async def lock_domain_with_address_room(
    session: AsyncSession, domain_id: int, name: str, *, path: str
) -> Domain:
    """Return the locked domain if it can have another address.

    Raises NotFound or LimitReached as `lock_or_create_domain_for_address`.
    """
    statement = select(col(Stream.id)).where(col(Stream.id) == domain_id).with_for_update()
    await (await session.connection()).execute(statement)
    domain = await session.get(Domain, domain_id, populate_existing=True)
    if (
        domain is None or domain.name != name
    ):  # deleted or renamed while this transaction waited for the lock
        raise NotFound(name, path=[path])
    require_address_room(domain, path=path)
    return domain


def require_address_room(domain: Domain, *, path: str, count: int = 1) -> None:
    """Raise LimitReached if the domain can't have this number of further addresses."""
    if domain.max_addresses and domain.address_count + count > domain.max_addresses:
        raise LimitReached(
            "The domain has reached its limit of addresses.",
            limit=domain.max_addresses,
            used=domain.address_count,
            path=[path],
        )


async def load_names_of_others_domains(ctx: Context, names: Collection[str]) -> set[str]:
    """Load those names that a domain of this server has which the viewer doesn't administer.

    A name can be an alias of the domain. Empty for an ADMIN.
    """
    if not names or ctx.viewer.role.includes(Role.ADMIN):
        return set()
    domain_names = union_all(
        select(col(Domain.name).label("name"), col(Domain.id).label("id")),
        select(col(DomainAlias.alias), col(DomainAlias.domain_id)),
    ).subquery()
    statement = select(domain_names.c.name, domain_names.c.id).where(domain_names.c.name.in_(names))
    return {
        row.name
        for row in await ctx.read(statement)
        if row.id not in ctx.viewer.administered_domains
    }


def _select_alias_target(name: str) -> Select[int]:
    return select(col(DomainAlias.domain_id)).where(col(DomainAlias.alias) == name)


def can_create_domain_for_address(ctx: Context) -> bool:
    """True if the viewer is an ADMIN and the first address in a domain creates the domain."""
    return ctx.viewer.role.includes(Role.ADMIN) and ctx.environment.options.auto_create_domains


def new_domain_with_defaults(ctx: Context, name: str, **columns: Any) -> Domain:
    """Return an unsaved domain. Columns that are not given have the platform's defaults."""
    now, options = ctx.environment.now(), ctx.environment.options
    defaults: dict[str, Any] = {
        "max_users": options.new_domain_max_users,
        "max_addresses": options.new_domain_max_addresses,
        "default_user_quota": options.new_domain_default_user_quota,
        "max_user_quota": options.new_domain_max_user_quota,
        "quota": options.new_domain_quota,
    }
    required_values: dict[str, Any] = {
        "id": ctx.environment.new_id(),
        "created_at": now,
        "updated_at": now,
    }
    return Domain(name=name, **required_values, **{**defaults, **columns})


def unknown_domain_error(ctx: Context, name: str, *, path: Sequence[str]) -> NotFound:
    """Return the NotFound error for an address in a domain that is missing or not visible."""
    error = NotFound(name, path=path)
    if ctx.viewer.role.includes(Role.ADMIN):
        error.message = (
            f"Domain not found: {name}. Create it first, by domainCreate or `merganser domain add`."
        )
    return error


def warn_domain_created(ctx: Context, name: str, *, path: Sequence[str]) -> None:
    """Warn the caller that an address has created a domain, whose name can be a typing error."""
    ctx.add_warning(
        WarningCode.DOMAIN_CREATED, f"The domain {name} did not exist. It was created.", path=path
    )


async def find_domain_name_conflicts(
    session: AsyncSession, name: str, *, path: str
) -> list[Conflict]:
    """Return a Conflict for the domain and for the alias domain that have this name.

    The caller holds the lock on the stream PLATFORM, so the result stays true.
    """
    connection = await session.connection()
    conflicts = []
    if (await connection.execute(select(col(Domain.id)).where(col(Domain.name) == name))).first():
        conflicts.append(Conflict(f"The domain {name} already exists.", path=[path]))
    if (await connection.execute(_select_alias_target(name))).first():
        conflicts.append(Conflict(f"{name} is an alias of a domain.", path=[path]))
    return conflicts


async def require_domain_name_free(session: AsyncSession, name: str, *, path: str) -> None:
    """Raise Conflict if a domain or alias domain has this name. PLATFORM must be locked."""
    for conflict in await find_domain_name_conflicts(session, name, path=path):
        raise conflict


async def insert_domain_with_stream(ctx: Context, session: AsyncSession, domain: Domain) -> Domain:
    """Insert a new domain with its stream, in a transaction that has locked PLATFORM."""
    session.add_all([domain, Stream(id=domain.id)])
    await session.flush()
    changes = [(EventType.DOMAIN_CREATED, [domain.id])]
    await ctx.record_changes(session, {PLATFORM: changes, domain.id: changes})
    return domain
