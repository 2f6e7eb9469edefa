"""Credentials that an administrator, or a key of the platform, creates for another user.

Such a credential has the scopes and the lifetime of a token of actAs. It ends when its maker loses
the role or the permission.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, String, cast, func, literal_column, or_, select
from sqlalchemy.orm import aliased
from sqlmodel import col

from models.auth.credentials import ApiKey
from models.store.columns import Picked
from models.users.roles import AdminPermission, Role, Scope, opened
from models.users.tables import DomainAdmin, User
from resolvers.context import Viewer

# no scope that creates credentials
ACTING = frozenset({Scope.READ, Scope.MAIL, Scope.SUBMIT, Scope.SETTINGS})
LONGEST = timedelta(hours=4)
OPERATOR = 0  # maker key id of the bootstrap key and of the command line

Maker = aliased(User)
MakerKey = aliased(ApiKey)


def is_operator(viewer: Viewer) -> bool:
    """True for the bootstrap key and the command line, which belong to the owner of the machine."""
    return viewer.role is Role.ROOT and not (viewer.user_id or viewer.api_key_id)


def key_of(viewer: Viewer) -> int | None:
    """Return the id of the viewer's key without a user, which may act for users; else None.

    Only keys of the role ADMIN or ROOT, and the bootstrap key (`OPERATOR_KEY_ID`).
    """
    if viewer.user_id or not viewer.role.includes(Role.ADMIN):
        return None
    return viewer.api_key_id or OPERATOR


def narrowed(scopes: Sequence[Scope]) -> frozenset[Scope]:
    """Return the part of these scopes that a credential for another user keeps.

    Empty: all allowed.
    """
    return opened(frozenset(scopes)) & opened(ACTING) if scopes else ACTING


def domains_of(administrator: Any) -> Any:
    """SQL: the ids of the domains that this user administers, joined by commas."""
    comma: Any = literal_column("','")  # part of the text of a prepared statement
    domains = func.aggregate_strings(cast(col(DomainAdmin.domain_id), String), comma)
    theirs: Select[Any] = select(domains).where(col(DomainAdmin.user_id) == administrator)
    return theirs.scalar_subquery()


def domain_ids(joined: str | None) -> frozenset[int]:
    """Parse the ids that `joined_domain_ids_sql` has joined."""
    return frozenset(map(int, joined.split(","))) if joined else frozenset()


def with_maker(
    asked: Select[*tuple[Any, ...]], by: Any, by_key: Any, now: Any
) -> Select[*tuple[Any, ...]]:
    """Add the columns that `may_act` reads to a select of credentials.

    `by` and `by_key` are the columns of the maker's user id and key id. `now` is the time, or its
    parameter.
    """
    able = ~col(Maker.disabled), ~col(Maker.suspended), col(Maker.deleted_at).is_(None)
    good = (
        col(MakerKey.active),
        or_(col(MakerKey.expires_at).is_(None), col(MakerKey.expires_at) > now),
        col(MakerKey.user_id).is_(None),
    )
    columns: list[ColumnElement[Any]] = [
        by.label("maker_id"),
        by_key.label("maker_key_id"),
        col(Maker.role).label("maker_role"),
        col(Maker.admin_permissions).label("maker_permissions"),
        domains_of(col(Maker.id)).label("maker_domains"),
        col(MakerKey.role).label("maker_key_role"),
        col(MakerKey.expires_at).label("maker_key_expires_at"),
        col(MakerKey.domains).label("maker_key_domains"),
    ]
    return (
        asked.add_columns(*columns)
        .outerjoin(Maker, (col(Maker.id) == by) & able[0] & able[1] & able[2])
        .outerjoin(MakerKey, (col(MakerKey.id) == by_key) & good[0] & good[1] & good[2])
    )


def has_maker(row: Picked) -> bool:
    """True if another user or a key created this credential."""
    return row.maker_id is not None or row.maker_key_id is not None


def may_act(row: Picked, role: Role, permission: AdminPermission) -> bool:
    """True if the maker may still act for the user, who has this role.

    `row` has the columns of `add_maker_columns`, and the user's `domain_id`.
    """
    if row.maker_id is None:
        if row.maker_key_id == OPERATOR:
            return True
        if row.maker_key_role is None or row.maker_key_domains:
            return False
        return bool(row.maker_key_role.includes(Role.ADMIN)) and bool(
            row.maker_key_role.administers(role)
        )
    if row.maker_role is None or not row.maker_role.administers(role):
        return False
    return row.maker_role is not Role.DOMAIN_ADMIN or (
        permission in row.maker_permissions and row.domain_id in domain_ids(row.maker_domains)
    )
