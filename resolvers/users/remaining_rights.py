"""The rights that an administrator still has after a change of its role or account."""

from dataclasses import dataclass

from sqlalchemy import ColumnElement, false, or_, true
from sqlmodel import col

from models.users.roles import AdminPermission, Role
from models.users.tables import User


@dataclass(frozen=True, slots=True)
class RemainingRights:
    """The rights of an administrator after a change; by default none."""

    role: Role = Role.PUBLIC
    permissions: frozenset[str] = frozenset()  # of a DOMAIN_ADMIN
    domain_ids: frozenset[int] = frozenset()  # that a DOMAIN_ADMIN administers


def is_user_beyond_rights(
    rights: RemainingRights, permission: AdminPermission
) -> ColumnElement[bool]:
    """SQL on `User`: true for a user for whom an administrator with these rights can't act.

    A DOMAIN_ADMIN needs the permission, and acts only for users of its domains.
    """
    if rights.role is Role.ROOT:
        return false()
    if rights.role is Role.ADMIN:
        return col(User.role) == Role.ROOT
    if rights.role is Role.DOMAIN_ADMIN and permission in rights.permissions:
        domain_id = col(User.domain_id)
        is_elsewhere = or_(domain_id.is_(None), domain_id.not_in(sorted(rights.domain_ids)))
        return or_(col(User.role) != Role.USER, is_elsewhere)
    return true()
