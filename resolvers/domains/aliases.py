"""Read, create and delete alias domains."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import ColumnElement, delete, func, select
from sqlalchemy.exc import IntegrityError
from sqlmodel import col

from mail.addresses.address_syntax import normalize_and_validate_domain, normalized_domain
from mail.text import confusables
from models.domains.tables import Domain, DomainAlias
from models.errors import (
    Conflict,
    InvalidInput,
    LimitReached,
    NotFound,
    check_count_from_one_to_limit,
)
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.store.columns import ColumnRow, select_columns
from models.store.keyset_pages import Page, PageRequest
from models.validation_constraints import ValidationConstraint
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.context import Context
from resolvers.domains import dkim_key_mutations
from resolvers.domains import loaders as domain_loaders
from resolvers.domains.loaders import DomainIdOrName
from resolvers.list_orders import SortColumn, list_orders, read_ordered_page
from resolvers.pagination import read_by_keys
from resolvers.sql_text import contains_text_sql


class AliasDomainOrder(StrEnum):
    """The order of a list of alias domains; ties by id."""

    ALIAS_ASC = "ALIAS_ASC"
    ALIAS_DESC = "ALIAS_DESC"


LIST_ORDERS = list_orders(AliasDomainOrder, {"ALIAS": SortColumn("alias", str)})
MAX_ALIASES = 1000  # per domain


@dataclass(frozen=True, slots=True)
class AliasDomainConditions:
    """Conditions of a list of alias domains."""

    query: str | None = None  # a text in the alias or in the name of its domain


@dataclass(frozen=True, slots=True)
class NewAliasDomain:
    """An alias domain to create."""

    alias: str
    domain: DomainIdOrName
    active: bool = True


def _is_visible_alias(ctx: Context) -> ColumnElement[bool]:
    return domain_loaders.is_in_administered_domain(ctx, col(DomainAlias.domain_id))


async def load_visible_aliases_by_id(ctx: Context, ids: list[int]) -> list[ColumnRow | None]:
    """Load alias domains by id, in the given order. None for ids that the viewer can't see."""
    statement = select(*select_columns(DomainAlias)).where(_is_visible_alias(ctx))
    return await read_by_keys(ctx, statement, col(DomainAlias.id), ids)


async def find_visible_alias(ctx: Context, alias: str) -> ColumnRow | None:
    """Return the alias domain of this name, or None if the viewer sees none."""
    statement = select(*select_columns(DomainAlias)).where(
        col(DomainAlias.alias) == normalized_domain(alias), _is_visible_alias(ctx)
    )
    return next(iter(await ctx.read(statement)), None)


async def read_alias_page(
    ctx: Context,
    query: str | None,
    page_request: PageRequest,
    columns: Collection[str],
    order: AliasDomainOrder = AliasDomainOrder.ALIAS_ASC,
) -> Page[ColumnRow]:
    """Read a page of the visible aliases. Raises InvalidInput for a cursor of another order."""
    list_order = LIST_ORDERS[order]
    statement = select(*select_columns(DomainAlias, {"id", list_order.column, *columns})).where(
        *_where_clauses(ctx, query)
    )
    return await read_ordered_page(ctx, statement, DomainAlias, page_request, list_order)


async def count_aliases(ctx: Context, query: str | None) -> int:
    """Count the visible alias domains that the query finds."""
    statement = select(func.count()).select_from(DomainAlias).where(*_where_clauses(ctx, query))
    (row,) = await ctx.read(statement)
    return int(row[0])


def _where_clauses(ctx: Context, query: str | None) -> list[ColumnElement[bool]]:
    return [_is_visible_alias(ctx), *condition_clauses(AliasDomainConditions(query))]


def condition_clauses(conditions: AliasDomainConditions) -> list[ColumnElement[bool]]:
    """Return the WHERE clauses of the conditions. Raises InvalidInput if the text is too long."""
    query = conditions.query
    if not query:
        return []
    domain_ids = select(col(Domain.id)).where(contains_text_sql(col(Domain.name), query))
    matches = contains_text_sql(col(DomainAlias.alias), query) | col(DomainAlias.domain_id).in_(
        domain_ids
    )
    return [matches]


async def create_alias(ctx: Context, new_alias: NewAliasDomain) -> DomainAlias:
    """Create an alias domain.

    Raises InvalidInput for a bad name, NotFound if the viewer does not administer the domain,
    Conflict if the name is in use or the domain is itself an alias, and LimitReached if the
    domain has too many aliases.
    """
    alias = normalize_and_validate_domain(new_alias.alias, path="alias")
    confusables.refuse_confusable_domain(alias, path="alias")
    domain_name = normalized_domain(new_alias.domain.name or "")
    domain = await domain_loaders.find_administered_domain_by_ref(ctx, new_alias.domain)
    if alias == (domain_name if domain is None else domain.name):
        raise InvalidInput(
            "A domain can't be an alias of itself.",
            constraint=ValidationConstraint.SELF,
            path=["alias"],
        )
    if domain is None:
        if domain_name and await find_visible_alias(ctx, domain_name) is not None:
            raise Conflict(f"{domain_name} is an alias and can't have aliases.", path=["domain"])
        raise _unknown_domain(new_alias.domain)
    alias_domain = DomainAlias(
        id=ctx.environment.new_id(),
        alias=alias,
        domain_id=domain.id,
        active=new_alias.active,
        created_at=ctx.environment.now(),
    )
    try:
        async with ctx.write_session(PLATFORM, domain.id) as session:
            (locked_domain,) = await domain_loaders.load_visible_domains_by_id(ctx, [domain.id])
            if locked_domain is None or locked_domain.name != domain.name:
                raise _unknown_domain(new_alias.domain)
            if await domain_loaders.find_domain_name_conflicts(session, alias, path="alias"):
                raise Conflict(f"{alias} already exists.", path=["alias"])
            (existing,) = await ctx.read(
                select(func.count().label("many")).where(col(DomainAlias.domain_id) == domain.id)
            )
            if existing.many >= MAX_ALIASES:
                message = f"A domain has at most {MAX_ALIASES:,} aliases."
                raise LimitReached(message, limit=MAX_ALIASES, used=existing.many, path=["domain"])
            session.add(alias_domain)
            await session.flush()
            changes = [(EventType.DOMAIN_UPDATED, [domain.id])]
            await ctx.record_changes(session, {PLATFORM: changes, domain.id: changes})
            values_after = {"alias": alias, "domain": domain.name, "active": new_alias.active}
            entry = NewAuditLogEntry(
                "aliasDomainCreate", "AliasDomain", alias_domain.id, domain.id, after=values_after
            )
            await audit_log.insert_audit_log_entries(ctx, session, entry)
    except IntegrityError as clash:
        raise Conflict(f"{alias} already exists.", path=["alias"]) from clash
    return alias_domain


def _unknown_domain(ref: DomainIdOrName) -> NotFound:
    return NotFound(domain_loaders.reference_text(ref), path=["domain"])


async def load_visible_alias_ids_by_name(ctx: Context, names: Sequence[str]) -> dict[str, int]:
    """Load the ids of visible alias domains by the given names. Unknown names are left out."""
    normal_names = {name: normalized_domain(name) for name in names}
    statement = select(col(DomainAlias.alias), col(DomainAlias.id)).where(
        col(DomainAlias.alias).in_(set(normal_names.values())), _is_visible_alias(ctx)
    )
    ids_by_name: dict[str, int] = {row.alias: row.id for row in await ctx.read(statement)}
    return {
        name: ids_by_name[normal_name]
        for name, normal_name in normal_names.items()
        if normal_name in ids_by_name
    }


async def delete_aliases_with_dkim_keys(ctx: Context, alias_ids: list[int]) -> None:
    """Delete alias domains, all or none. Raises NotFound if the viewer can't see one."""
    limit = ctx.environment.options.bulk_max_items
    check_count_from_one_to_limit(
        len(alias_ids), limit, f"From 1 to {limit:,} aliases are required.", path=["aliasDomains"]
    )
    domain_ids = [row.domain_id for row in await load_visible_aliases_by_id(ctx, alias_ids) if row]
    async with ctx.write_session(PLATFORM, *domain_ids) as session:
        rows = {}
        for index, row in enumerate(await load_visible_aliases_by_id(ctx, alias_ids)):
            if row is None:
                raise NotFound(str(alias_ids[index]), path=["aliasDomains", str(index), "id"])
            rows[row.id] = row
        connection = await session.connection()
        await connection.execute(delete(DomainAlias).where(col(DomainAlias.id).in_(rows)))
        await dkim_key_mutations.delete_keys_of_aliases(
            ctx, session, [row.alias for row in rows.values()]
        )
        changed_domain_ids = sorted({row.domain_id for row in rows.values()})
        changes_by_stream = {key: [(EventType.DOMAIN_UPDATED, [key])] for key in changed_domain_ids}
        await ctx.record_changes(
            session,
            {**changes_by_stream, PLATFORM: [(EventType.DOMAIN_UPDATED, changed_domain_ids)]},
        )
        entries = (
            NewAuditLogEntry(
                "aliasDomainDelete",
                "AliasDomain",
                row.id,
                row.domain_id,
                before={"alias": row.alias, "active": row.active},
            )
            for row in rows.values()
        )
        await audit_log.insert_audit_log_entries(ctx, session, *entries)
