"""Read and change BCC rules. A DOMAIN_ADMIN has access to those of the administered domains."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Select, delete, false, func, select, tuple_, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.addresses.address_syntax import (
    NormalizedAddress,
    normalize_and_validate_address,
    normalized_address,
)
from mail.delivery.recipient_rewrites import checked_rule_address
from models.addresses.rewrites import BccDirection, BccRule
from models.addresses.tables import Address
from models.domains.tables import Domain, DomainAlias
from models.errors import (
    Conflict,
    ErrorCollector,
    InvalidInput,
    LimitReached,
    NotFound,
    require_all_found,
)
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.store.columns import ColumnRow, select_columns
from models.store.keyset_pages import Page, PageRequest
from models.users.roles import AdminPermission, Role
from models.validation_constraints import ValidationConstraint
from resolvers.access import maker_columns, require_role_to_administer_owner
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.auth import security_log
from resolvers.auth.security_event_rows import NewSecurityEvent
from resolvers.context import Context
from resolvers.domains import loaders as domain_loaders
from resolvers.domains.loaders import DomainIdOrName, is_referenced_domain
from resolvers.list_orders import list_orders, read_ordered_page
from resolvers.pagination import read_by_keys
from resolvers.sql_text import contains_text_sql


class BccRuleOrder(StrEnum):
    """The order of a list of BCC rules; ties by id."""

    CREATED_AT_ASC = "CREATED_AT_ASC"
    CREATED_AT_DESC = "CREATED_AT_DESC"


LIST_ORDERS = list_orders(BccRuleOrder)
MAX_RULES_PER_DOMAIN = 1000  # rules of one domain
RULE_EXISTS_TEXT = "A BCC rule for this address and direction already exists."
SECURITY_LOG_FIELDS = ("bccTo", "direction", "active")  # what the security log tells of a rule


@dataclass(frozen=True, slots=True)
class NewBccRule:
    """The columns of a BCC rule to create."""

    match: str
    bcc_to: str
    direction: BccDirection
    active: bool = True


@dataclass(frozen=True, slots=True)
class BccRuleConditions:
    """Conditions of a list of BCC rules; all must hold."""

    query: str | None = None  # part of the matched address or of the address of the copies
    domain: DomainIdOrName | None = None


@dataclass(frozen=True, slots=True)
class BccRuleChanges:
    """The columns of BCC rules to change. None leaves a column unchanged."""

    match: str | None = None
    bcc_to: str | None = None
    direction: BccDirection | None = None
    active: bool | None = None


def _is_visible_rule(ctx: Context) -> ColumnElement[bool]:
    """Return the WHERE clause for the rules that the viewer can see.

    An ADMIN sees all rules; with the permission BCC_RULES an administrator sees those of the
    administered domains.
    """
    viewer = ctx.viewer
    if viewer.role.includes(Role.ADMIN) or AdminPermission.BCC_RULES in viewer.permissions:
        return domain_loaders.is_in_administered_domain(ctx, col(BccRule.domain_id))
    return false()


def _select_visible_rules(
    ctx: Context, column_names: Collection[str] | None = None
) -> Select[*tuple[Any, ...]]:
    """Select the visible rules with `name`, the name of their domain."""
    columns = None if column_names is None else {"id", *column_names} - {"name"}
    return (
        select(*select_columns(BccRule, columns), col(Domain.name).label("name"))
        .join(Domain, col(Domain.id) == col(BccRule.domain_id))
        .where(_is_visible_rule(ctx))
    )


async def load_visible_rules_by_id(ctx: Context, ids: list[int]) -> list[ColumnRow | None]:
    """Load BCC rules by id, in the given order. None for an id that the viewer can't see."""
    return await read_by_keys(ctx, _select_visible_rules(ctx), col(BccRule.id), ids)


async def read_visible_bcc_rule_page(
    ctx: Context,
    conditions: BccRuleConditions,
    page_request: PageRequest,
    columns: Collection[str],
    order: BccRuleOrder = BccRuleOrder.CREATED_AT_ASC,
) -> Page[ColumnRow]:
    """Read a page of the visible rules. Raises InvalidInput for a cursor of another order."""
    list_order = LIST_ORDERS[order]
    statement = _select_visible_rules(ctx, {list_order.column, *columns}).where(
        *_filter_clauses(conditions)
    )
    return await read_ordered_page(ctx, statement, BccRule, page_request, list_order)


async def count_visible_bcc_rules(ctx: Context, conditions: BccRuleConditions) -> int:
    """Count the visible rules that meet the conditions."""
    statement = _select_visible_rules(ctx, {"id"}).where(*_filter_clauses(conditions))
    (row,) = await ctx.read(select(func.count().label("many")).select_from(statement.subquery()))
    return int(row.many)


def _filter_clauses(conditions: BccRuleConditions) -> list[ColumnElement[bool]]:
    """Return the WHERE clauses of a filter, for a select that joins the domains of the rules."""
    clauses: list[ColumnElement[bool]] = []
    if conditions.query:
        matched_address = col(BccRule.local).concat("@").concat(col(Domain.name))
        clauses.append(
            contains_text_sql(matched_address, conditions.query)
            | contains_text_sql(col(BccRule.bcc_to), conditions.query)
        )
    if conditions.domain is not None:
        clauses.append(is_referenced_domain(conditions.domain))
    return clauses


async def create_bcc_rule(ctx: Context, new_rule: NewBccRule) -> int:
    """Create a BCC rule and return its id.

    Raises InvalidInput if an address is not allowed, NotFound if the viewer does not administer
    the domain, Conflict if a rule for the same mail exists, LimitReached if the domain has too
    many rules, and Forbidden if the address belongs to an account with a higher role than the
    viewer.
    """
    problems = ErrorCollector()
    with problems.collecting():
        matched_address = checked_rule_address(new_rule.match, path="match")
    with problems.collecting():
        bcc_to = normalize_and_validate_address(new_rule.bcc_to, path="bccTo")
    problems.raise_collected()
    domain = await _require_visible_domain_of_match(ctx, matched_address)
    _refuse_self_copy(matched_address, domain.name, bcc_to)
    now, rule_id = ctx.environment.now(), ctx.environment.new_id()
    rule = BccRule(
        id=rule_id,
        direction=new_rule.direction,
        local=matched_address.local_part,
        domain_id=domain.id,
        bcc_to=bcc_to,
        active=new_rule.active,
        created_at=now,
        updated_at=now,
        **maker_columns(ctx),
    )
    async with ctx.write_session(
        PLATFORM, domain.id
    ) as session:  # rules are made one after another
        await _require_domain_not_reassigned(ctx, matched_address, domain)
        await require_role_to_administer_owner(ctx, matched_address, ["match"])
        await _require_below_rule_limit(ctx, domain, 1)
        await _require_rule_keys_free(ctx, [], {(rule.direction, rule.domain_id, rule.local): 0})
        session.add(rule)
        await session.flush()
        values_after = _audit_log_values_by_rule(await _require_visible_rules(ctx, [rule_id]))[
            rule_id
        ]
        await _journal_domain_changes(ctx, session, {domain.id})
        entry = NewAuditLogEntry("bccRuleCreate", "BccRule", rule_id, domain.id, None, values_after)
        await _write_audit_and_security_logs(ctx, session, [entry], [values_after["match"]])
    return rule_id


async def update_bcc_rules(ctx: Context, ids: Sequence[int], changes: BccRuleChanges) -> None:
    """Change BCC rules, all or none, and make the viewer their maker.

    Raises Conflict if two rules would match the same mail, and the errors of `create_bcc_rule`.
    """
    problems = ErrorCollector()
    matched_address = None
    columns: dict[str, Any] = {}
    with problems.collecting():
        if changes.match is not None:
            matched_address = checked_rule_address(changes.match, path="match")
    with problems.collecting():
        if changes.bcc_to is not None:
            columns["bcc_to"] = normalize_and_validate_address(changes.bcc_to, path="bccTo")
    problems.raise_collected()
    domain = (
        await _require_visible_domain_of_match(ctx, matched_address) if matched_address else None
    )
    columns |= (
        {"local": matched_address.local_part, "domain_id": domain.id}
        if matched_address and domain
        else {}
    )
    optional_columns = {"direction": changes.direction, "active": changes.active}
    columns |= {column: value for column, value in optional_columns.items() if value is not None}
    if not columns:
        raise InvalidInput(
            "At least one field is required.",
            constraint=ValidationConstraint.REQUIRED,
            path=["set"],
        )
    domain_ids = {row.domain_id for row in await _require_visible_rules(ctx, ids)} | (
        {domain.id} if domain else set()
    )
    async with ctx.write_session(PLATFORM, *domain_ids) as session:
        if matched_address and domain:
            await _require_domain_not_reassigned(ctx, matched_address, domain)
        before = await _require_visible_rules(ctx, ids)
        await _validate_changed_rules(ctx, before, columns, domain)
        connection = await session.connection()
        statement = update(BccRule).where(col(BccRule.id).in_(ids))
        columns |= {**maker_columns(ctx), "updated_at": ctx.environment.now()}
        await connection.execute(statement.values(**columns))
        values_after = _audit_log_values_by_rule(await _require_visible_rules(ctx, ids))
        await _journal_domain_changes(ctx, session, domain_ids)
        logged_changes = _values_before_and_after(before, values_after)
        entries = [_log_entry_of_update(row, *pair) for row, pair in logged_changes]
        await _write_audit_and_security_logs(
            ctx,
            session,
            entries,
            *([old["match"], new["match"]] for _, (old, new) in logged_changes),
        )


async def delete_bcc_rules(ctx: Context, ids: Sequence[int]) -> None:
    """Delete BCC rules, all or none. Raises the errors of `create_bcc_rule` for an address."""
    domain_ids = {row.domain_id for row in await _require_visible_rules(ctx, ids)}
    async with ctx.write_session(PLATFORM, *domain_ids) as session:
        rows = await _require_visible_rules(ctx, ids)
        for row in rows:
            if row.local:
                await require_role_to_administer_owner(
                    ctx, NormalizedAddress(row.local, row.name), ["ids"]
                )
        await delete_and_log_rules(ctx, session, rows)


async def delete_and_log_rules(
    ctx: Context, session: AsyncSession, rows: Sequence[ColumnRow]
) -> None:
    """Delete rules, with entries in the audit log and the security logs of the accounts."""
    connection = await session.connection()
    await connection.execute(delete(BccRule).where(col(BccRule.id).in_([row.id for row in rows])))
    await _journal_domain_changes(ctx, session, {row.domain_id for row in rows})
    values_before = _audit_log_values_by_rule(rows)
    entries = [
        NewAuditLogEntry("bccRuleDelete", "BccRule", row.id, row.domain_id, values_before[row.id])
        for row in rows
    ]
    await _write_audit_and_security_logs(
        ctx, session, entries, *([values_before[row.id]["match"]] for row in rows)
    )


async def _write_audit_and_security_logs(
    ctx: Context,
    session: AsyncSession,
    entries: Sequence[NewAuditLogEntry],
    *rule_matches: Collection[str],
) -> None:
    """Write the entries to the audit log and to the security logs of the accounts concerned.

    `rule_matches` holds, for each entry, the address patterns of its rule before and after the
    change.
    """
    await audit_log.insert_audit_log_entries(ctx, session, *entries)
    entries_and_matches = zip(entries, rule_matches, strict=True)
    entries_by_address = {
        normalized_address(text): entry
        for entry, match in entries_and_matches
        for text in match
        if not text.startswith("@")
    }
    if not entries_by_address:
        return
    statement = (
        select(col(Address.user_id), col(Address.local), col(Domain.name))
        .join(Domain, col(Domain.id) == col(Address.domain_id))
        .where(
            tuple_(col(Address.local), col(Domain.name)).in_(
                [tuple(name) for name in entries_by_address]
            ),
            col(Address.user_id).is_not(None),
        )
    )
    for row in await ctx.read(statement):
        entry = entries_by_address[NormalizedAddress(row.local, row.name)]
        action = security_log.ACTION_BY_MUTATION[entry.mutation]
        values = {**(entry.before or {}), **(entry.after or {})}
        detail: dict[str, Any] = {
            name: values[name] for name in SECURITY_LOG_FIELDS if name in values
        }
        async with ctx.write_session(row.user_id) as inner:
            event = NewSecurityEvent(
                action, row.user_id, target=str(entry.target_id), detail=detail
            )
            await security_log.log_event_and_queue_notice(ctx, inner, event)


async def _require_visible_domain_of_match(
    ctx: Context, matched_address: NormalizedAddress
) -> ColumnRow:
    """Return the domain that a rule applies to, found by its name or an alias domain.

    Raises NotFound if the viewer can't see the domain.
    """
    alias_statement = select(col(DomainAlias.domain_id)).where(
        col(DomainAlias.alias) == matched_address.domain
    )
    has_name = (col(Domain.name) == matched_address.domain) | col(Domain.id).in_(alias_statement)
    statement = select(col(Domain.id), col(Domain.name)).where(
        has_name, domain_loaders.is_administered_domain(ctx)
    )
    for row in await ctx.read(statement):
        return row
    raise NotFound(matched_address.domain, path=["match"])


async def _require_domain_not_reassigned(
    ctx: Context, matched_address: NormalizedAddress, domain_before: ColumnRow
) -> None:
    """Raise NotFound if the domain name belongs to another domain than before the transaction."""
    if (
        await _require_visible_domain_of_match(ctx, matched_address)
    ).id != domain_before.id:  # another domain has the name now
        raise NotFound(matched_address.domain, path=["match"])


async def _require_visible_rules(ctx: Context, ids: Sequence[int]) -> list[ColumnRow]:
    """Load BCC rules, each once.

    Raises NotFound if one is not visible.
    """
    rows = {row.id: row for row in await load_visible_rules_by_id(ctx, list(ids)) if row}
    require_all_found(ids, rows)
    return list(rows.values())


async def _require_below_rule_limit(ctx: Context, domain: ColumnRow, additional_count: int) -> None:
    """Raise LimitReached if the domain can't have this number of additional rules."""
    statement = select(func.count().label("many")).where(col(BccRule.domain_id) == domain.id)
    (counted,) = await ctx.read(statement)
    if counted.many + additional_count > MAX_RULES_PER_DOMAIN:
        text = f"A domain has at most {MAX_RULES_PER_DOMAIN:,} BCC rules."
        raise LimitReached(text, limit=MAX_RULES_PER_DOMAIN, used=counted.many, path=["match"])


async def _require_rule_keys_free(
    ctx: Context,
    except_rule_ids: Sequence[int],
    index_by_key: Mapping[tuple[BccDirection, int, str], int],
) -> None:
    """Raise Conflict if a rule other than `except_rule_ids` has one of these keys.

    A key is direction, domain id and local part. The error has the first index.
    """
    key_columns = (col(BccRule.direction), col(BccRule.domain_id), col(BccRule.local))
    statement: Select[*tuple[Any, ...]] = select(*key_columns).where(
        tuple_(*key_columns).in_(list(index_by_key)), col(BccRule.id).not_in(except_rule_ids)
    )
    taken_indexes = [
        index_by_key[row.direction, row.domain_id, row.local] for row in await ctx.read(statement)
    ]
    if taken_indexes:
        raise Conflict(
            RULE_EXISTS_TEXT, path=["match"], index=min(taken_indexes) if except_rule_ids else None
        )


async def _validate_changed_rules(
    ctx: Context,
    rules: Sequence[ColumnRow],
    columns: Mapping[str, Any],
    new_domain: ColumnRow | None,
) -> None:
    """Raise an error if the changed columns lead to rules that are not allowed.

    Raises InvalidInput, Conflict, Forbidden or LimitReached.
    """
    index_by_key: dict[tuple[BccDirection, int, str], int] = {}
    for index, row in enumerate(rules):
        new_values = {column.name: getattr(row, column.name) for column in select_columns(BccRule)}
        new_values.update(columns)
        domain_name = new_domain.name if new_domain else row.name
        _refuse_self_copy(
            NormalizedAddress(new_values["local"], domain_name),
            domain_name,
            new_values["bcc_to"],
            index=index,
        )
        rule_key = new_values["direction"], new_values["domain_id"], new_values["local"]
        if rule_key in index_by_key:
            raise Conflict(RULE_EXISTS_TEXT, path=["match"], index=index)
        index_by_key[rule_key] = index
        if new_values["local"]:
            await require_role_to_administer_owner(
                ctx, NormalizedAddress(new_values["local"], domain_name), ["match"]
            )
    if {"direction", "local"} & set(columns):
        await _require_rule_keys_free(ctx, [row.id for row in rules], index_by_key)
    if new_domain:
        await _require_below_rule_limit(
            ctx, new_domain, sum(row.domain_id != new_domain.id for row in rules)
        )


def _refuse_self_copy(
    matched_address: NormalizedAddress, domain_name: str, bcc_to: str, *, index: int | None = None
) -> None:
    """Raise InvalidInput if the copy would go to the same address as the original.

    Of the delimiters of subaddresses only `+` counts, since the others can be changed later.
    """
    bcc_address = normalized_address(bcc_to)
    if (
        matched_address.local_part
        and bcc_address.local_part == matched_address.local_part
        and bcc_address.domain in (matched_address.domain, domain_name)
    ):
        text = "The address `bccTo` must differ from the address of the rule."
        raise InvalidInput(text, constraint=ValidationConstraint.SELF, path=["bccTo"], index=index)


def _audit_log_values_by_rule(rules: Sequence[ColumnRow]) -> dict[int, dict[str, Any]]:
    """Return the values of rules for the audit log, by rule id."""
    return {
        row.id: {
            "match": f"{row.local}@{row.name}",
            "bccTo": row.bcc_to,
            "direction": row.direction,
            "active": row.active,
        }
        for row in rules
    }


def _values_before_and_after(
    rules: Sequence[ColumnRow], values_after: Mapping[int, dict[str, Any]]
) -> list[tuple[ColumnRow, tuple[dict[str, Any], dict[str, Any]]]]:
    """Pair each rule with its audit log values before and after the change."""
    values_before = _audit_log_values_by_rule(rules)
    return [(row, (values_before[row.id], values_after[row.id])) for row in rules]


def _log_entry_of_update(
    rule: ColumnRow, before: dict[str, Any], after: dict[str, Any]
) -> NewAuditLogEntry:
    """Return the audit log entry of a changed rule, with the changed values only."""
    changed_names = [name for name in after if before[name] != after[name]]
    old_values, new_values = (
        {name: facts[name] for name in changed_names} for facts in (before, after)
    )
    return NewAuditLogEntry(
        "bccRuleUpdate", "BccRule", rule.id, rule.domain_id, old_values, new_values
    )


async def _journal_domain_changes(
    ctx: Context, session: AsyncSession, domain_ids: Collection[int]
) -> None:
    """Record DOMAIN_UPDATED in the streams of these domains and of the platform."""
    sorted_ids = sorted(domain_ids)
    changes_by_stream = {key: [(EventType.DOMAIN_UPDATED, [key])] for key in sorted_ids}
    await ctx.record_changes(
        session, {**changes_by_stream, PLATFORM: [(EventType.DOMAIN_UPDATED, sorted_ids)]}
    )
