"""The audit log: changes that administrators made to others, and who can read them."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, false, func, insert, select, true
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.admin.audit_log import AuditLogEntry
from models.errors import InvalidInput
from models.events.journal import PLATFORM
from models.store.columns import ColumnRow, select_columns
from models.store.keyset_pages import Page, PageRequest
from models.users.roles import Role
from models.validation_constraints import ValidationConstraint
from resolvers.admin.redaction import redact_secrets
from resolvers.auth.log_actors import load_log_actor
from resolvers.context import Context
from resolvers.list_orders import SortColumn, list_orders, read_ordered_page
from resolvers.pagination import read_by_keys

MAX_CONDITION_LENGTH = 128  # characters
LEGAL_HOLD_TARGET_KIND = "LegalHold"
NO_USER_ID = 0
MAX_ENTRIES_PER_STATEMENT = 1000
ENTRY_COLUMNS = frozenset(column.name for column in select_columns(AuditLogEntry))


class AuditLogOrder(StrEnum):
    """The order of the audit log; ties by id."""

    AT_DESC = "AT_DESC"
    AT_ASC = "AT_ASC"


_SORT_COLUMNS = {"AT": SortColumn("at", datetime)}
LIST_ORDERS = list_orders(AuditLogOrder, _SORT_COLUMNS)


@dataclass(frozen=True, slots=True)
class NewAuditLogEntry:
    """What an administrative mutation did to one object. `mutation` is its GraphQL name."""

    mutation: str
    target_kind: str | None = None  # GraphQL type of the target
    target_id: int | None = None
    domain_id: int | None = None  # its administrators can read the entry
    before: Mapping[str, Any] | None = None  # only changed values; secrets are removed later
    after: Mapping[str, Any] | None = None
    # if neither a user nor a key acts; None: the viewer
    actor_name: str | None = field(default=None, kw_only=True)


async def insert_audit_log_entries(
    ctx: Context, session: AsyncSession, *entries: NewAuditLogEntry
) -> None:
    """Insert entries into the audit log in the transaction that makes the changes."""
    if not entries:
        return
    connection = await session.connection()
    now = ctx.environment.now()
    actor = await load_log_actor(session, ctx.viewer)
    rows = [
        {
            "id": ctx.environment.new_id(),
            "at": now,
            "actor": entry.actor_name or actor.name,
            "actor_id": actor.user_id,
            "role": ctx.viewer.role,
            "ip": ctx.client_ip,
            "mutation": entry.mutation,
            "target_kind": entry.target_kind,
            "target_id": entry.target_id,
            "domain_id": entry.domain_id,
            "before": redact_secrets(entry.before),
            "after": redact_secrets(entry.after),
            "reason": ctx.reason,
        }
        for entry in entries
    ]
    for start in range(0, len(rows), MAX_ENTRIES_PER_STATEMENT):
        await connection.execute(
            insert(AuditLogEntry), rows[start : start + MAX_ENTRIES_PER_STATEMENT]
        )


async def record_platform_entries(ctx: Context, *entries: NewAuditLogEntry) -> None:
    """Insert entries about the platform in a transaction of their own, or of the request."""
    async with ctx.write_session(PLATFORM) as session:
        await insert_audit_log_entries(ctx, session, *entries)


@dataclass(frozen=True, slots=True)
class AuditLogConditions:
    """Conditions of an audit log list; all must hold."""

    actor_id: int | None = None
    target: tuple[str, int] | None = None  # GraphQL type and id
    mutation: str | None = None
    since: datetime | None = None  # inclusive
    before: datetime | None = None  # exclusive

    def validated_where_clauses(self) -> list[ColumnElement[bool]]:
        """Return the WHERE clauses. Raises InvalidInput if the mutation name is not allowed."""
        clauses: list[ColumnElement[bool]] = []
        if self.actor_id is not None:
            clauses.append(col(AuditLogEntry.actor_id) == self.actor_id)
        if self.target is not None:
            kind, target_id = self.target
            clauses += [
                col(AuditLogEntry.target_id) == target_id,
                col(AuditLogEntry.target_kind) == kind,
            ]
        if self.mutation is not None:
            if not self.mutation.isprintable() or len(self.mutation) > MAX_CONDITION_LENGTH:
                text = f"A condition has at most {MAX_CONDITION_LENGTH} printable characters."
                raise InvalidInput(
                    text, constraint=ValidationConstraint.LENGTH, path=["filter", "mutation"]
                )
            clauses.append(col(AuditLogEntry.mutation) == self.mutation)
        if self.since is not None:
            clauses.append(col(AuditLogEntry.at) >= self.since)
        if self.before is not None:
            clauses.append(col(AuditLogEntry.at) < self.before)
        return clauses


def _is_visible_entry(ctx: Context) -> ColumnElement[bool]:
    """Return the WHERE clause for the entries that the viewer can see.

    A DOMAIN_ADMIN sees those of the administered domains, an ADMIN all except legal holds by
    others,
    ROOT all. Another ADMIN can be the audited user.
    """
    viewer = ctx.viewer
    if viewer.role is Role.ROOT:
        return true()
    if viewer.role is Role.ADMIN:
        kind, is_own = col(AuditLogEntry.target_kind), col(AuditLogEntry.actor_id) == viewer.user_id
        return kind.is_(None) | (kind != LEGAL_HOLD_TARGET_KIND) | is_own
    if viewer.role is Role.DOMAIN_ADMIN and viewer.administered_domains:
        return col(AuditLogEntry.domain_id).in_(viewer.administered_domains)
    return false()


async def read_visible_audit_log_page(
    ctx: Context,
    conditions: AuditLogConditions,
    page_request: PageRequest,
    columns: Collection[str],
    order: AuditLogOrder = AuditLogOrder.AT_DESC,
) -> Page[ColumnRow]:
    """Read a page of visible entries. Raises InvalidInput for a cursor of another order."""
    column_names = ENTRY_COLUMNS.intersection(columns) | {"at", "id"}
    statement = select(*select_columns(AuditLogEntry, column_names)).where(
        _is_visible_entry(ctx), *conditions.validated_where_clauses()
    )
    return await read_ordered_page(ctx, statement, AuditLogEntry, page_request, LIST_ORDERS[order])


async def count_visible_audit_log_entries(ctx: Context, conditions: AuditLogConditions) -> int:
    """Count the visible entries that meet the conditions."""
    statement = select(func.count().label("many")).select_from(AuditLogEntry)
    (row,) = await ctx.read(
        statement.where(_is_visible_entry(ctx), *conditions.validated_where_clauses())
    )
    return int(row.many)


async def load_visible_entries_by_id(ctx: Context, ids: list[int]) -> list[ColumnRow | None]:
    """Load audit log entries by id, in the given order. None for ids that the viewer can't see."""
    statement = select(*select_columns(AuditLogEntry)).where(_is_visible_entry(ctx))
    return await read_by_keys(ctx, statement, col(AuditLogEntry.id), ids)
