"""Roles of users, the domains they administer, and their permissions."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import delete, insert, select
from sqlmodel import col

from models.errors import ErrorCollector, Forbidden, InvalidInput, NotFound
from models.users.roles import AdminPermission, Role, UserPermission
from models.users.tables import DomainAdmin
from models.validation_constraints import ValidationConstraint
from resolvers.auth import authentication
from resolvers.context import Context
from resolvers.domains import loaders as domain_loaders
from resolvers.users import grant_end
from resolvers.users.remaining_rights import RemainingRights
from resolvers.users.selection import UserSelector
from resolvers.users.user_locks import LockedUsers, lock_users_and_store_changes

MAX_ADMINISTERED_DOMAINS = 1000  # domains of one DOMAIN_ADMIN


@dataclass(frozen=True, slots=True)
class RoleChange:
    """Changes to role, administered domains and permissions; None leaves them unchanged."""

    role: Role | None = None
    domain_ids: Sequence[int] | None = None  # domain ids
    admin_permissions: Sequence[AdminPermission] | None = None


def stored_permissions(permissions: Iterable[StrEnum]) -> list[str]:
    """Return permissions in stored form: each once, sorted."""
    return sorted({permission.value for permission in permissions})


def require_domain_admin_fields_allowed(
    role: Role, domain_ids: Collection[int] | None, permissions: Collection[str] | None
) -> None:
    """Raise InvalidInput if domains, or permissions over them, are set for another role."""
    problems = ErrorCollector()
    for name, value in (("administers", domain_ids), ("adminPermissions", permissions)):
        with problems.collecting():
            if value and role is not Role.DOMAIN_ADMIN:
                text = f"This field requires the role {Role.DOMAIN_ADMIN} of the user."
                raise InvalidInput(text, constraint=ValidationConstraint.ROLE, path=[name])
    problems.raise_collected()


async def require_administered_domains(ctx: Context, domain_ids: Sequence[int]) -> None:
    """Raise NotFound if the viewer does not administer one of these domains."""
    if len(domain_ids) > MAX_ADMINISTERED_DOMAINS:
        raise InvalidInput(
            f"At most {MAX_ADMINISTERED_DOMAINS:,} domains are allowed.",
            constraint=ValidationConstraint.MAX,
            path=["administers"],
        )
    rows = await ctx.load_many(domain_loaders.load_visible_domains_by_id, domain_ids)
    for index, (domain_id, row) in enumerate(zip(domain_ids, rows, strict=True)):
        is_administered = (
            ctx.viewer.role.includes(Role.ADMIN) or domain_id in ctx.viewer.administered_domains
        )
        if row is None or not is_administered:
            raise NotFound(str(domain_id), path=["administers"], index=index)


async def set_roles(
    ctx: Context, selection: UserSelector, change: RoleChange, *, path: str = "users"
) -> list[int]:
    """Set the role of users, and a DOMAIN_ADMIN's domains and permissions; return the user ids.

    A user who is no longer a DOMAIN_ADMIN loses both. What a user gave for others and may no
    longer give ends. `path` is the field that selects the users. Raises Forbidden for a role above
    the viewer's, InvalidInput for an empty change.
    """
    role = change.role
    _require_permitted_change(ctx, change)
    await require_administered_domains(ctx, change.domain_ids or ())
    async with (
        ctx.combined_transaction(),
        lock_users_and_store_changes(ctx, selection, "userRoleSet", path=path) as locked_users,
    ):
        domains_of_users = await _load_administered_domain_ids(locked_users)
        rights_by_maker: dict[int, RemainingRights] = {}
        for row in locked_users.rows:
            new_role = role or row.role
            require_domain_admin_fields_allowed(
                new_role, change.domain_ids, change.admin_permissions
            )
            permissions = stored_permissions(change.admin_permissions or ())
            if change.admin_permissions is None:
                permissions = list(row.admin_permissions)
            domain_ids = domains_of_users[row.id]
            if change.domain_ids is not None:
                domain_ids = sorted(set(change.domain_ids))
            if new_role is not Role.DOMAIN_ADMIN:
                permissions, domain_ids = [], []
            locked_users.set_columns_to_store(row, role=new_role, admin_permissions=permissions)
            if domain_ids != domains_of_users[row.id]:
                locked_users.report_change(row, "administers", domains_of_users[row.id], domain_ids)
            if row.role is not Role.USER:
                rights_by_maker[row.id] = RemainingRights(
                    new_role, frozenset(permissions), frozenset(domain_ids)
                )
        await grant_end.end_grants_without_right(ctx, rights_by_maker)
        await _store_administered_domains(locked_users)
    user_ids = [row.id for row in locked_users.rows]
    ctx.call_after_commit_or_now(
        lambda: authentication.drop_cached_credentials(ctx.environment, *user_ids)
    )
    return user_ids


def _require_permitted_change(ctx: Context, change: RoleChange) -> None:
    """Raise InvalidInput for an empty change, Forbidden for a role above the viewer's."""
    role = change.role
    if change == RoleChange():
        raise InvalidInput(
            "At least one field is required.",
            constraint=ValidationConstraint.REQUIRED,
            path=["role"],
        )
    if role is Role.PUBLIC:
        raise InvalidInput(
            "The role of a user can't be PUBLIC.",
            constraint=ValidationConstraint.ENUM,
            path=["role"],
            allowed_values=[role for role in Role if role is not Role.PUBLIC],
        )
    if role and not ctx.viewer.role.includes(role):
        raise Forbidden(
            f"Requires the role {role} to give this role.", requires=role, path=["role"]
        )


async def _load_administered_domain_ids(locked_users: LockedUsers) -> dict[int, list[int]]:
    """Load the ids of the domains that locked users administer, sorted, by user id."""
    user_ids = [row.id for row in locked_users.rows]
    statement = select(col(DomainAdmin.user_id), col(DomainAdmin.domain_id)).where(
        col(DomainAdmin.user_id).in_(user_ids)
    )
    domain_ids: dict[int, list[int]] = {key: [] for key in user_ids}
    for row in await (await locked_users.session.connection()).execute(statement):
        domain_ids[row.user_id].append(row.domain_id)
    return {key: sorted(charge) for key, charge in domain_ids.items()}


async def _store_administered_domains(locked_users: LockedUsers) -> None:
    """Store the administered domains that have changed."""
    changed = {
        key: after_row["administers"]
        for key, after_row in locked_users.after.items()
        if "administers" in after_row
    }
    connection = await locked_users.session.connection()
    await connection.execute(delete(DomainAdmin).where(col(DomainAdmin.user_id).in_(changed)))
    rows = [
        {"user_id": key, "domain_id": domain_id}
        for key, charge in changed.items()
        for domain_id in charge
    ]
    if rows:
        await connection.execute(insert(DomainAdmin), rows)


async def set_user_permissions(
    ctx: Context, selection: UserSelector, permissions: Collection[UserPermission]
) -> list[int]:
    """Replace the permissions of users to change their own settings; return the user ids."""
    async with lock_users_and_store_changes(ctx, selection, "userPermissionsSet") as locked_users:
        for row in locked_users.rows:
            locked_users.set_columns_to_store(row, permissions=stored_permissions(permissions))
    return [row.id for row in locked_users.rows]
