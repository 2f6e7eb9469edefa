"""The makers of rules for other users, and the users that their rules therefore apply to."""

from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, and_, case
from sqlalchemy.orm import aliased
from sqlmodel import SQLModel, col

from models.store.columns import OptionalInt64, enum_column
from models.users.roles import Role
from models.users.tables import User

Maker = aliased(User)


class RuleWithMaker(SQLModel):
    """Columns of a rule with its maker: the account that changed the rule last."""

    made_by: OptionalInt64 = None  # users.id; None: an API key of the platform, or unknown
    made_as: Role = enum_column(Role, default=Role.DOMAIN_ADMIN)  # the role it was made with


class RuleSubject(NamedTuple):
    """A user that a rule might apply to."""

    id: int
    role: Role


def is_active_maker(table: type[RuleWithMaker]) -> ColumnElement[bool]:
    """Return the ON clause of the outer join of `Maker`: makers that can still sign in."""
    able = col(Maker.active), ~col(Maker.suspended), col(Maker.deleted_at).is_(None)
    return and_(col(Maker.id) == col(table.made_by), *able)


def maker_columns(table: type[RuleWithMaker]) -> list[Any]:
    """Return the columns that `applies_to_user` reads: `made_by`, `made_as` and `maker_role`."""
    role = case((col(table.made_by).is_(None), col(table.made_as)), else_=col(Maker.role))
    return [col(table.made_by), col(table.made_as), role.label("maker_role")]


def applies_to_user(rule: Any, user: RuleSubject) -> bool:
    """True if the maker of a rule can administer the user, with the maker's present role.

    A rule applies to its maker. It applies to the users of a domain even if the maker has lost the
    role or the account: any administrator of the domain sees the rule and can delete it.
    """
    if rule.made_by == user.id:
        return True
    role = rule.made_as
    if rule.maker_role is None or role.includes(rule.maker_role):
        role = rule.maker_role or Role.DOMAIN_ADMIN
    return bool(role.administers(user.role)) or user.role is Role.USER
