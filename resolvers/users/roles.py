"""Roles of users, the domains they administer, and their permissions."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import delete, insert, select
from sqlmodel import col

from models.errors import Forbidden, Invalid, NotFound, Problems
from models.users.roles import AdminPermission, Role, UserPermission
from models.users.tables import DomainAdmin
from resolvers.context import Context
from resolvers.domains import loaders as domain_loaders
from resolvers.users.selection import Users
from resolvers.users.user_locks import Held, changing

LIST = 1000  # domains of one DOMAIN_ADMIN


@dataclass(frozen=True, slots=True)
class Standing:
    """Changes to role, administered domains and permissions; None leaves them unchanged."""

    role: Role | None = None
    administers: Sequence[int] | None = None  # domain ids
    admin_permissions: Sequence[AdminPermission] | None = None


def values_of(permissions: Iterable[StrEnum]) -> list[str]:
    """Return permissions in stored form: each once, sorted."""
    return sorted({permission.value for permission in permissions})


def check_charge(
    role: Role, administers: Collection[int] | None, permissions: Collection[str] | None
) -> None:
    """Raise Invalid if domains, or permissions over them, are set for another role."""
    problems = Problems()
    for name, given in (("administers", administers), ("adminPermissions", permissions)):
        with problems.caught():
            if given and role is not Role.DOMAIN_ADMIN:
                text = f"that is for a {Role.DOMAIN_ADMIN}"
                raise Invalid(text, constraint="role", path=[name])
    problems.settle()


async def domains_there(ctx: Context, keys: Sequence[int]) -> None:
    """Raise NotFound if the viewer does not administer one of these domains."""
    if len(keys) > LIST:
        raise Invalid(f"at most {LIST} domains", constraint="max", path=["administers"])
    rows = await ctx.load_all(domain_loaders.by_ids, keys)
    for index, (key, row) in enumerate(zip(keys, rows, strict=True)):
        mine = ctx.viewer.role.includes(Role.ADMIN) or key in ctx.viewer.administers
        if row is None or not mine:
            raise NotFound(str(key), path=["administers"], index=index)


async def set_role(ctx: Context, users: Users, standing: Standing) -> list[int]:
    """Set the role of users, and a DOMAIN_ADMIN's domains and permissions; return the user ids.

    A user who is no longer a DOMAIN_ADMIN loses both. Raises Forbidden for a role above the
    viewer's, Invalid for an empty change.
    """
    role = standing.role
    if standing == Standing():
        raise Invalid("change at least one thing", constraint="required", path=["role"])
    if role is Role.PUBLIC:
        raise Invalid("PUBLIC is who has no account", constraint="enum", path=["role"])
    if role and not ctx.viewer.role.includes(role):
        raise Forbidden(f"to make a {role} needs that role", requires=role, path=["role"])
    await domains_there(ctx, standing.administers or ())
    async with changing(ctx, users, "userRoleSet") as held:
        charges = await _charges(held)
        for row in held.rows:
            now = role or row.role
            check_charge(now, standing.administers, standing.admin_permissions)
            permissions = values_of(standing.admin_permissions or ())
            if standing.admin_permissions is None:
                permissions = list(row.admin_permissions)
            charge = charges[row.id]
            if standing.administers is not None:
                charge = sorted(set(standing.administers))
            if now is not Role.DOMAIN_ADMIN:
                permissions, charge = [], []
            held.set(row, role=now, admin_permissions=permissions)
            if charge != charges[row.id]:
                held.tell(row, "administers", charges[row.id], charge)
        await _charge(held)
    return [row.id for row in held.rows]


async def _charges(held: Held) -> dict[int, list[int]]:
    """Load the ids of the domains that locked users administer, sorted, by user id."""
    keys = [row.id for row in held.rows]
    asked = select(col(DomainAdmin.user_id), col(DomainAdmin.domain_id)).where(
        col(DomainAdmin.user_id).in_(keys)
    )
    found: dict[int, list[int]] = {key: [] for key in keys}
    for row in await (await held.session.connection()).execute(asked):
        found[row.user_id].append(row.domain_id)
    return {key: sorted(charge) for key, charge in found.items()}


async def _charge(held: Held) -> None:
    """Store the administered domains that have changed."""
    new = {key: one["administers"] for key, one in held.after.items() if "administers" in one}
    connection = await held.session.connection()
    await connection.execute(delete(DomainAdmin).where(col(DomainAdmin.user_id).in_(new)))
    rows = [{"user_id": key, "domain_id": one} for key, charge in new.items() for one in charge]
    if rows:
        await connection.execute(insert(DomainAdmin), rows)


async def set_permissions(
    ctx: Context, users: Users, permissions: Collection[UserPermission]
) -> list[int]:
    """Replace the permissions of users to change their own settings; return the user ids."""
    async with changing(ctx, users, "userPermissionsSet") as held:
        for row in held.rows:
            held.set(row, permissions=values_of(permissions))
    return [row.id for row in held.rows]
