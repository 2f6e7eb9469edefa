"""Who may do what: roles, domains to be in charge of, and what is delegated."""

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

LIST = 1000  # domains that somebody is in charge of


@dataclass(frozen=True, slots=True)
class Standing:
    """What accounts shall be; None leaves it as it is."""

    role: Role | None = None
    administers: Sequence[int] | None = None  # domains
    admin_permissions: Sequence[AdminPermission] | None = None


def values_of(permissions: Iterable[StrEnum]) -> list[str]:
    """Permissions as they are stored: each once, in order."""
    return sorted({permission.value for permission in permissions})


def check_charge(
    role: Role, administers: Collection[int] | None, permissions: Collection[str] | None
) -> None:
    """Invalid where one who is no DOMAIN_ADMIN is given domains, or permissions over them."""
    problems = Problems()
    for name, given in (("administers", administers), ("adminPermissions", permissions)):
        with problems.caught():
            if given and role is not Role.DOMAIN_ADMIN:
                text = f"that is for a {Role.DOMAIN_ADMIN}"
                raise Invalid(text, constraint="role", path=[name])
    problems.settle()


async def domains_there(ctx: Context, keys: Sequence[int]) -> None:
    """NotFound where one of these domains is none of the viewer's to administer."""
    if len(keys) > LIST:
        raise Invalid(f"at most {LIST} domains", constraint="max", path=["administers"])
    rows = await ctx.load_all(domain_loaders.by_ids, keys)
    for index, (key, row) in enumerate(zip(keys, rows, strict=True)):
        mine = ctx.viewer.role.includes(Role.ADMIN) or key in ctx.viewer.administers
        if row is None or not mine:
            raise NotFound(str(key), path=["administers"], index=index)


async def set_role(ctx: Context, users: Users, standing: Standing) -> list[int]:
    """Give accounts a role, and a DOMAIN_ADMIN domains and permissions; returns their ids.

    Who ceases to be a DOMAIN_ADMIN has neither any more.
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
    """The domains that accounts are in charge of, in order."""
    keys = [row.id for row in held.rows]
    asked = select(col(DomainAdmin.user_id), col(DomainAdmin.domain_id)).where(
        col(DomainAdmin.user_id).in_(keys)
    )
    found: dict[int, list[int]] = {key: [] for key in keys}
    for row in await (await held.session.connection()).execute(asked):
        found[row.user_id].append(row.domain_id)
    return {key: sorted(charge) for key, charge in found.items()}


async def _charge(held: Held) -> None:
    """Put accounts in charge of what they were said to be."""
    new = {key: one["administers"] for key, one in held.after.items() if "administers" in one}
    connection = await held.session.connection()
    await connection.execute(delete(DomainAdmin).where(col(DomainAdmin.user_id).in_(new)))
    rows = [{"user_id": key, "domain_id": one} for key, charge in new.items() for one in charge]
    if rows:
        await connection.execute(insert(DomainAdmin), rows)


async def set_permissions(
    ctx: Context, users: Users, permissions: Collection[UserPermission]
) -> list[int]:
    """Say what accounts may change themselves, in place of what they might; returns their ids."""
    async with changing(ctx, users, "userPermissionsSet") as held:
        for row in held.rows:
            held.set(row, permissions=values_of(permissions))
    return [row.id for row in held.rows]
