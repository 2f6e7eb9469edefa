"""Recipient rewrites of the platform, which an ADMIN reads and changes."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Select,
    delete,
    false,
    func,
    select,
    true,
    tuple_,
    union_all,
    update,
)
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.addresses.address_syntax import NormalizedAddress, normalized_address
from mail.delivery.recipient_rewrites import (
    checked_rewrite_target,
    checked_rule_address,
    has_rewrite_loop,
)
from models.addresses.rewrites import RecipientRewrite
from models.domains.tables import Domain, DomainAlias
from models.errors import (
    Conflict,
    InvalidInput,
    LimitReached,
    prefix_error_messages,
    require_all_found,
)
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.store.columns import ColumnRow, select_columns
from models.store.keyset_pages import Page, PageRequest
from models.users.roles import Role
from models.validation_constraints import ValidationConstraint
from resolvers.access import maker_columns, require_role_to_administer_owner
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.context import Context
from resolvers.list_orders import list_orders, read_ordered_page
from resolvers.pagination import read_by_keys
from resolvers.sql_text import contains_text_sql


class RecipientRewriteOrder(StrEnum):
    """The order of a list of recipient rewrites; ties by id."""

    CREATED_AT_ASC = "CREATED_AT_ASC"
    CREATED_AT_DESC = "CREATED_AT_DESC"


LIST_ORDERS = list_orders(RecipientRewriteOrder)
MAX_REWRITES = 5000  # rewrites of the platform
REWRITE_EXISTS_TEXT = "A recipient rewrite for this address already exists."


@dataclass(frozen=True, slots=True)
class NewRecipientRewrite:
    """The columns of a recipient rewrite to create."""

    match: str
    to: str
    active: bool = True


@dataclass(frozen=True, slots=True)
class RecipientRewriteChanges:
    """The columns of recipient rewrites to change. None leaves a column unchanged."""

    match: str | None = None
    to: str | None = None
    active: bool | None = None


def _is_visible_rewrite(ctx: Context) -> ColumnElement[bool]:
    return true() if ctx.viewer.role.includes(Role.ADMIN) else false()


def _select_visible_rewrites(
    ctx: Context, column_names: Collection[str] | None = None
) -> Select[*tuple[Any, ...]]:
    columns = None if column_names is None else {"id", *column_names}
    return select(*select_columns(RecipientRewrite, columns)).where(_is_visible_rewrite(ctx))


async def load_visible_rewrites_by_id(ctx: Context, ids: list[int]) -> list[ColumnRow | None]:
    """Load recipient rewrites by id, in the given order. None for ids that the viewer can't see."""
    return await read_by_keys(ctx, _select_visible_rewrites(ctx), col(RecipientRewrite.id), ids)


async def load_visible_rewrite_ids_by_recipient(
    ctx: Context, recipients: Sequence[str]
) -> dict[str, int]:
    """Load the ids of recipient rewrites by the replaced recipient, with one statement.

    A recipient that is invalid or has no rewrite is missing in the result.
    """
    addresses: dict[str, NormalizedAddress] = {}
    for recipient in recipients:
        with suppress(InvalidInput):
            addresses[recipient] = checked_rule_address(recipient, path="from")
    columns = (col(RecipientRewrite.local), col(RecipientRewrite.domain))
    statement = select(col(RecipientRewrite.id), *columns).where(
        tuple_(*columns).in_(
            [(address.local_part, address.domain) for address in addresses.values()]
        ),
        _is_visible_rewrite(ctx),
    )
    ids = {(row.local, row.domain): int(row.id) for row in await ctx.read(statement)}
    return {
        text: ids[address.local_part, address.domain]
        for text, address in addresses.items()
        if (address.local_part, address.domain) in ids
    }


async def read_visible_rewrite_page(
    ctx: Context,
    query: str | None,
    page_request: PageRequest,
    columns: Collection[str],
    order: RecipientRewriteOrder = RecipientRewriteOrder.CREATED_AT_ASC,
) -> Page[ColumnRow]:
    """Read a page of the recipient rewrites that the query finds; without a query, of all.

    Raises InvalidInput for a cursor of another order.
    """
    list_order = LIST_ORDERS[order]
    statement = _select_visible_rewrites(ctx, {list_order.column, *columns}).where(
        *_filter_clauses(query)
    )
    return await read_ordered_page(ctx, statement, RecipientRewrite, page_request, list_order)


async def count_visible_rewrites(ctx: Context, query: str | None) -> int:
    """Count the recipient rewrites that the query finds."""
    statement = select(func.count().label("many")).select_from(RecipientRewrite)
    (row,) = await ctx.read(statement.where(_is_visible_rewrite(ctx), *_filter_clauses(query)))
    return int(row.many)


def _filter_clauses(query: str | None) -> list[ColumnElement[bool]]:
    """Return the WHERE clauses for rewrites with this text in either address."""
    if not query:
        return []
    replaced = col(RecipientRewrite.local).concat("@").concat(col(RecipientRewrite.domain))
    return [
        contains_text_sql(replaced, query) | contains_text_sql(col(RecipientRewrite.target), query)
    ]


async def create_rewrite(ctx: Context, new_rewrite: NewRecipientRewrite) -> int:
    """Create a recipient rewrite and return its id.

    Raises Conflict if a rewrite for the same recipient exists, InvalidInput if rewrites would
    form a loop, LimitReached if there are MAX_REWRITES, and Forbidden if the recipient belongs
    to an account with a higher role than the viewer.
    """
    matched_address = checked_rule_address(new_rewrite.match, path="from")
    target = checked_rewrite_target(new_rewrite.to, matched_address)
    own_domain_ids = await _load_hosted_domain_ids_by_name(
        ctx, [matched_address.domain, normalized_address(target).domain]
    )
    now, rewrite_id = ctx.environment.now(), ctx.environment.new_id()
    rewrite = RecipientRewrite(
        id=rewrite_id,
        local=matched_address.local_part,
        domain=matched_address.domain,
        target=target,
        outside=normalized_address(target).domain not in own_domain_ids,
        active=new_rewrite.active,
        created_at=now,
        updated_at=now,
        **maker_columns(ctx),
    )
    async with ctx.write_session(
        PLATFORM, *own_domain_ids.values()
    ) as session:  # one after another
        existing_rewrites = await _load_all_matches_by_id(ctx)
        if len(existing_rewrites) >= MAX_REWRITES:
            text = f"At most {MAX_REWRITES:,} recipient rewrites are allowed."
            raise LimitReached(text, limit=MAX_REWRITES, used=len(existing_rewrites), path=["from"])
        if matched_address in existing_rewrites.values():
            raise Conflict(REWRITE_EXISTS_TEXT, path=["from"])
        await _require_no_loop(ctx, {rewrite_id: (matched_address, target)})
        await require_role_to_administer_owner(ctx, matched_address, ["from"])
        session.add(rewrite)
        await session.flush()
        await _journal_domain_changes(ctx, session, own_domain_ids)
        (stored_rewrite,) = await _require_visible_rewrites(ctx, [rewrite_id])
        entry = NewAuditLogEntry(
            "recipientRewriteCreate",
            "RecipientRewrite",
            rewrite_id,
            after=_audit_log_values(stored_rewrite),
        )
        await audit_log.insert_audit_log_entries(ctx, session, entry)
    return rewrite_id


async def update_rewrites(
    ctx: Context, ids: Sequence[int], changes: RecipientRewriteChanges
) -> None:
    """Change recipient rewrites, all or none. Raises the errors of `create_rewrite`."""
    matched_address = (
        None if changes.match is None else checked_rule_address(changes.match, path="from")
    )
    if matched_address is None and changes.to is None and changes.active is None:
        raise InvalidInput(
            "At least one field is required.",
            constraint=ValidationConstraint.REQUIRED,
            path=["set"],
        )
    domain_names = _domain_names(
        await _require_visible_rewrites(ctx, ids), matched_address, changes.to
    )
    own_domain_ids = await _load_hosted_domain_ids_by_name(ctx, domain_names)
    async with ctx.write_session(PLATFORM, *own_domain_ids.values()) as session:
        before = await _require_visible_rewrites(ctx, ids)
        if matched_address is not None:
            other_matches = {
                match
                for key, match in (await _load_all_matches_by_id(ctx)).items()
                if key not in ids
            }
            if len(before) > 1 or matched_address in other_matches:
                raise Conflict(REWRITE_EXISTS_TEXT, path=["from"])
        columns: dict[str, Any] = (
            {}
            if matched_address is None
            else {"local": matched_address.local_part, "domain": matched_address.domain}
        )
        columns |= {} if changes.active is None else {"active": changes.active}
        if matched_address is not None or changes.to is not None:
            await _require_no_loop(
                ctx, _validated_matches_and_targets(before, matched_address, changes.to)
            )
        if changes.to is not None:
            target = checked_rewrite_target(
                changes.to, matched_address or _matched_address(before[0])
            )
            columns |= {
                "target": target,
                "outside": normalized_address(target).domain not in own_domain_ids,
            }
        for row in before:
            await require_role_to_administer_owner(
                ctx, matched_address or _matched_address(row), ["from"]
            )
        columns |= maker_columns(ctx)
        connection = await session.connection()
        statement = update(RecipientRewrite).where(col(RecipientRewrite.id).in_(ids))
        await connection.execute(statement.values(**columns, updated_at=ctx.environment.now()))
        rows_after = {row.id: row for row in await _require_visible_rewrites(ctx, ids)}
        await _journal_domain_changes(ctx, session, own_domain_ids)
        entries = (_log_entry_of_update(row, rows_after[row.id]) for row in before)
        await audit_log.insert_audit_log_entries(ctx, session, *entries)


async def delete_rewrites(ctx: Context, ids: Sequence[int]) -> None:
    """Delete recipient rewrites, all or none. Raises NotFound if one does not exist."""
    own_domain_ids = await _load_hosted_domain_ids_by_name(
        ctx, _domain_names(await _require_visible_rewrites(ctx, ids))
    )
    async with ctx.write_session(PLATFORM, *own_domain_ids.values()) as session:
        rows = await _require_visible_rewrites(ctx, ids)
        connection = await session.connection()
        await connection.execute(delete(RecipientRewrite).where(col(RecipientRewrite.id).in_(ids)))
        await _journal_domain_changes(ctx, session, own_domain_ids)
        entries = (
            NewAuditLogEntry(
                "recipientRewriteDelete", "RecipientRewrite", row.id, before=_audit_log_values(row)
            )
            for row in rows
        )
        await audit_log.insert_audit_log_entries(ctx, session, *entries)


def _matched_address(rewrite: ColumnRow) -> NormalizedAddress:
    return NormalizedAddress(rewrite.local, rewrite.domain)


def _domain_names(
    rewrites: Sequence[ColumnRow],
    new_match: NormalizedAddress | None = None,
    new_target: str | None = None,
) -> set[str]:
    """Return the domains of the matches and targets of rewrites, before and after the change."""
    stored_names = {row.domain for row in rewrites} | {
        normalized_address(row.target).domain for row in rewrites
    }
    return (
        stored_names
        | ({new_match.domain} if new_match else set())
        | ({normalized_address(new_target).domain} if new_target else set())
    )


def _validated_matches_and_targets(
    rewrites: Sequence[ColumnRow], new_match: NormalizedAddress | None, new_target: str | None
) -> dict[int, tuple[NormalizedAddress, str]]:
    """Return the match and target of each rewrite after the change, by id.

    Raises InvalidInput if a target is not allowed.
    """
    pairs_by_id = {}
    for row in rewrites:
        match_of_row = new_match or _matched_address(row)
        target = row.target if new_target is None else new_target
        with prefix_error_messages("@".join(match_of_row)):
            pairs_by_id[row.id] = (match_of_row, checked_rewrite_target(target, match_of_row))
    return pairs_by_id


async def _load_all_matches_by_id(ctx: Context) -> dict[int, NormalizedAddress]:
    """Load the matched addresses of all rewrites by rewrite id."""
    rows = await ctx.read(select(*select_columns(RecipientRewrite, ("id", "local", "domain"))))
    return {row.id: _matched_address(row) for row in rows}


async def _require_no_loop(
    ctx: Context, changed_rewrites: Mapping[int, tuple[NormalizedAddress, str]]
) -> None:
    """Raise InvalidInput if a rewrite leads back to its own recipient.

    Inactive rewrites count, since they can be activated without this check. Of the delimiters of
    subaddresses only `+` counts, since the others can be changed later.
    """
    for index, (name, target) in enumerate(changed_rewrites.values()):
        target_address = normalized_address(target)
        error_index = index if len(changed_rewrites) > 1 else None
        if target_address == name:
            text = "The new recipient must differ from the original recipient."
            raise InvalidInput(
                text, constraint=ValidationConstraint.SELF, path=["to"], index=error_index
            )
    columns = ("id", "local", "domain", "target")
    rows = await ctx.read(select(*select_columns(RecipientRewrite, columns)))
    targets_by_match = {
        _matched_address(row): row.target for row in rows if row.id not in changed_rewrites
    }
    if has_rewrite_loop(targets_by_match | dict(changed_rewrites.values())):
        raise InvalidInput(
            "The recipient rewrites must not form a loop.",
            constraint=ValidationConstraint.CYCLE,
            path=["to"],
        )


async def _load_hosted_domain_ids_by_name(
    ctx: Context, domain_names: Collection[str]
) -> dict[str, int]:
    """Return the domain ids of these names that are domains or alias domains of the platform."""
    domain_statement: Select[*tuple[Any, ...]] = select(
        col(Domain.name).label("name"), col(Domain.id).label("key")
    ).where(col(Domain.name).in_(domain_names))
    alias_statement = select(col(DomainAlias.alias), col(DomainAlias.domain_id)).where(
        col(DomainAlias.alias).in_(domain_names)
    )
    union_statement = union_all(domain_statement, alias_statement).subquery()
    return {row.name: row.key for row in await ctx.read(select(union_statement))}


async def _require_visible_rewrites(ctx: Context, ids: Sequence[int]) -> list[ColumnRow]:
    """Load recipient rewrites, each once.

    Raises NotFound if one is not visible.
    """
    rows = {row.id: row for row in await load_visible_rewrites_by_id(ctx, list(ids)) if row}
    require_all_found(ids, rows)
    return list(rows.values())


def _audit_log_values(rewrite: ColumnRow) -> dict[str, Any]:
    """Return the values of a rewrite for the audit log."""
    return {
        "from": f"{rewrite.local}@{rewrite.domain}",
        "to": rewrite.target,
        "active": rewrite.active,
    }


def _log_entry_of_update(rewrite_before: ColumnRow, rewrite_after: ColumnRow) -> NewAuditLogEntry:
    before, after = _audit_log_values(rewrite_before), _audit_log_values(rewrite_after)
    changed_names = [name for name in after if before[name] != after[name]]
    old_values, new_values = (
        {name: facts[name] for name in changed_names} for facts in (before, after)
    )
    return NewAuditLogEntry(
        "recipientRewriteUpdate",
        "RecipientRewrite",
        rewrite_before.id,
        None,
        old_values,
        new_values,
    )


async def _journal_domain_changes(
    ctx: Context, session: AsyncSession, own_domain_ids: Mapping[str, int]
) -> None:
    """Record DOMAIN_UPDATED in the streams of the domains at either end and of the platform."""
    domain_ids = sorted(set(own_domain_ids.values()))
    changes_by_stream = {
        key: [(EventType.DOMAIN_UPDATED, [key])] for key in [*domain_ids, PLATFORM] if domain_ids
    }
    if domain_ids:
        await ctx.record_changes(
            session, changes_by_stream | {PLATFORM: [(EventType.DOMAIN_UPDATED, domain_ids)]}
        )
