"""Credentials that an administrator, or a key of the platform, creates for another user.

Such a credential has the scopes and the lifetime of a token of userImpersonate. It ends when its
maker loses the role or the permission, or when an identity provider ends the maker's access.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, String, and_, cast, func, literal_column, or_, select
from sqlalchemy.orm import aliased
from sqlmodel import col

from models.auth.credentials import ApiKey
from models.store.columns import ColumnRow
from models.users.roles import AdminPermission, Role, Scope, expand_scopes
from models.users.tables import DomainAdmin, User
from resolvers.context import Context
from resolvers.identity_providers.provider_records import is_access_ended_sql
from resolvers.viewer import Viewer

# no scope that creates credentials
IMPERSONATION_SCOPES = frozenset({Scope.READ, Scope.MAIL, Scope.SUBMIT, Scope.SETTINGS})
MAX_LIFETIME = timedelta(hours=4)
OPERATOR_KEY_ID = 0  # maker key id of the bootstrap key and of the command line

Maker = aliased(User)
MakerKey = aliased(ApiKey)


def is_operator(viewer: Viewer) -> bool:
    """True for the bootstrap key and the command line, which belong to the owner of the machine."""
    return viewer.role is Role.ROOT and not (viewer.user_id or viewer.api_key_id)


def platform_admin_key_id_or_none(viewer: Viewer) -> int | None:
    """Return the id of the viewer's key without a user, which may act for users; else None.

    Only keys of the role ADMIN or ROOT, and the bootstrap key (`OPERATOR_KEY_ID`).
    """
    if viewer.user_id or not viewer.role.includes(Role.ADMIN):
        return None
    return viewer.api_key_id or OPERATOR_KEY_ID


async def load_owner_id_of_viewer(ctx: Context) -> int | None:
    """Return the user of the viewer, or of its key for domains; None for a key of the platform."""
    if ctx.viewer.user_id or not ctx.viewer.api_key_id:
        return ctx.viewer.user_id or None
    statement = select(col(ApiKey.user_id)).where(col(ApiKey.id) == ctx.viewer.api_key_id)
    return next((row.user_id for row in await ctx.read(statement)), None)


def limit_scopes_to_impersonation(scopes: Sequence[Scope]) -> frozenset[Scope]:
    """Return those of these scopes that a credential for another user can have.

    Without scopes, returns all that it can have. Other scopes are left out without an error.
    """
    return (
        expand_scopes(frozenset(scopes)) & expand_scopes(IMPERSONATION_SCOPES)
        if scopes
        else IMPERSONATION_SCOPES
    )


def joined_administered_domains_sql(user_id: Any) -> Any:
    """SQL: the ids of the domains that this user administers, joined by commas."""
    comma: Any = literal_column("','")  # part of the text of a prepared statement
    domains = func.aggregate_strings(cast(col(DomainAdmin.domain_id), String), comma)
    joined_ids: Select[Any] = select(domains).where(col(DomainAdmin.user_id) == user_id)
    return joined_ids.scalar_subquery()


def parse_domain_ids(joined_ids: str | None) -> frozenset[int]:
    """Parse the ids that `joined_administered_domains_sql` has joined."""
    return frozenset(map(int, joined_ids.split(","))) if joined_ids else frozenset()


def add_maker_columns(
    statement: Select[*tuple[Any, ...]], maker_id: Any, maker_key_id: Any, now: Any
) -> Select[*tuple[Any, ...]]:
    """Add the columns that `can_maker_act` reads to a select of credentials.

    `maker_id` and `maker_key_id` are the columns of the maker's user id and key id. `now` is the
    time, or its parameter.
    """
    can_sign_in = (
        col(Maker.active),
        ~col(Maker.suspended),
        col(Maker.deleted_at).is_(None),
        ~is_access_ended_sql(Maker),
    )
    is_key_valid = (
        col(MakerKey.active),
        or_(col(MakerKey.expires_at).is_(None), col(MakerKey.expires_at) > now),
        col(MakerKey.user_id).is_(None),
    )
    columns: list[ColumnElement[Any]] = [
        maker_id.label("maker_id"),
        maker_key_id.label("maker_key_id"),
        col(Maker.role).label("maker_role"),
        col(Maker.admin_permissions).label("maker_permissions"),
        joined_administered_domains_sql(col(Maker.id)).label("maker_domains"),
        col(MakerKey.role).label("maker_key_role"),
        col(MakerKey.expires_at).label("maker_key_expires_at"),
        col(MakerKey.domains).label("maker_key_domains"),
    ]
    return (
        statement.add_columns(*columns)
        .outerjoin(
            Maker,
            and_(col(Maker.id) == maker_id, *can_sign_in),
        )
        .outerjoin(
            MakerKey,
            and_(col(MakerKey.id) == maker_key_id, *is_key_valid),
        )
    )


def has_maker(credential_row: ColumnRow) -> bool:
    """True if another user or a key created this credential."""
    return credential_row.maker_id is not None or credential_row.maker_key_id is not None


def can_maker_act(credential_row: ColumnRow, role: Role, permission: AdminPermission) -> bool:
    """True if the maker may still act for the user, who has this role.

    `credential_row` has the columns of `add_maker_columns`, and the user's `domain_id`.
    """
    if credential_row.maker_id is None:
        if credential_row.maker_key_id == OPERATOR_KEY_ID:
            return True
        if credential_row.maker_key_role is None or credential_row.maker_key_domains:
            return False
        return bool(credential_row.maker_key_role.includes(Role.ADMIN)) and bool(
            credential_row.maker_key_role.administers(role)
        )
    if credential_row.maker_role is None or not credential_row.maker_role.administers(role):
        return False
    return credential_row.maker_role is not Role.DOMAIN_ADMIN or (
        permission in credential_row.maker_permissions
        and credential_row.domain_id in parse_domain_ids(credential_row.maker_domains)
    )
