"""The admin log: changes that administrators made to others, and who can read them."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, false, func, insert, select, true
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.admin.admin_log import AdminLogEntry
from models.errors import Invalid
from models.store.columns import Picked, picked
from models.store.keyset_pages import Ask, Page
from models.users.roles import Role
from resolvers import pagination
from resolvers.admin.redaction import without_secrets
from resolvers.auth.security_log import actor
from resolvers.context import Context
from resolvers.pagination import Scan, by_keys

LONGEST = 128  # characters
NEWEST = "adminlog-newest"
AUDIT = "Audit"
NONE = 0
MOST = 1000
SHOWN = frozenset(column.name for column in picked(AdminLogEntry))


@dataclass(frozen=True, slots=True)
class Done:
    """What an administrative mutation did to one object. `mutation` is its GraphQL name."""

    mutation: str
    kind: str | None = None  # GraphQL type of the target
    target_id: int | None = None
    domain_id: int | None = None  # its administrators can read the entry
    before: Mapping[str, Any] | None = None  # only changed values; secrets are removed later
    after: Mapping[str, Any] | None = None


async def note(ctx: Context, session: AsyncSession, *done: Done) -> None:
    """Insert entries into the admin log in the transaction that makes the changes."""
    if not done:
        return
    connection = await session.connection()
    at, (actor_id, name) = ctx.world.now(), await actor(session, ctx.viewer)
    rows = [
        {
            "id": ctx.world.key(),
            "at": at,
            "actor": name,
            "actor_id": actor_id or None,
            "role": ctx.viewer.role,
            "ip": ctx.client_ip,
            "mutation": one.mutation,
            "target_kind": one.kind,
            "target_id": one.target_id,
            "domain_id": one.domain_id,
            "before": without_secrets(one.before),
            "after": without_secrets(one.after),
            "reason": ctx.reason,
        }
        for one in done
    ]
    for start in range(0, len(rows), MOST):
        await connection.execute(insert(AdminLogEntry), rows[start : start + MOST])


@dataclass(frozen=True, slots=True)
class EntryWhere:
    """Conditions of an admin log list; all must hold."""

    actor_id: int | None = None
    target: tuple[str, int] | None = None  # GraphQL type and id
    mutation: str | None = None
    since: datetime | None = None  # inclusive
    until: datetime | None = None  # exclusive

    def terms(self) -> list[ColumnElement[bool]]:
        """Return the WHERE clauses. Raises InvalidInput if the mutation name is not allowed."""
        found: list[ColumnElement[bool]] = []
        if self.actor_id is not None:
            found.append(col(AdminLogEntry.actor_id) == self.actor_id)
        if self.target is not None:
            kind, key = self.target
            found += [col(AdminLogEntry.target_id) == key, col(AdminLogEntry.target_kind) == kind]
        if self.mutation is not None:
            if not self.mutation.isprintable() or len(self.mutation) > LONGEST:
                text = f"at most {LONGEST} printable characters"
                raise Invalid(text, constraint="length", path=["mutation"])
            found.append(col(AdminLogEntry.mutation) == self.mutation)
        if self.since is not None:
            found.append(col(AdminLogEntry.at) >= self.since)
        if self.until is not None:
            found.append(col(AdminLogEntry.at) < self.until)
        return found


def _visible(ctx: Context) -> ColumnElement[bool]:
    """Return the WHERE clause for the entries that the viewer can see.

    A DOMAIN_ADMIN sees those of the administered domains, an ADMIN all except audits by others,
    ROOT all. Another ADMIN can be the audited user.
    """
    viewer = ctx.viewer
    if viewer.role is Role.ROOT:
        return true()
    if viewer.role is Role.ADMIN:
        kind, mine = col(AdminLogEntry.target_kind), col(AdminLogEntry.actor_id) == viewer.user_id
        return kind.is_(None) | (kind != AUDIT) | mine
    if viewer.role is Role.DOMAIN_ADMIN and viewer.administers:
        return col(AdminLogEntry.domain_id).in_(viewer.administers)
    return false()


async def page(ctx: Context, where: EntryWhere, ask: Ask, columns: Collection[str]) -> Page[Picked]:
    """Read a page of visible entries, the newest first."""
    names = SHOWN.intersection(columns) | {"at", "id"}
    rows = select(*picked(AdminLogEntry, names)).where(_visible(ctx), *where.terms())
    place = (col(AdminLogEntry.at), col(AdminLogEntry.id))
    return await pagination.one(ctx, Scan(rows, ask, place, falling=True))


async def count(ctx: Context, where: EntryWhere) -> int:
    """Count the visible entries that meet the conditions."""
    many = select(func.count().label("many")).select_from(AdminLogEntry)
    (row,) = await ctx.read(many.where(_visible(ctx), *where.terms()))
    return int(row.many)


async def by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """Load admin log entries by id, in the given order. None for ids that the viewer can't see."""
    seen = select(*picked(AdminLogEntry)).where(_visible(ctx))
    return await by_keys(ctx, seen, col(AdminLogEntry.id), ids)
