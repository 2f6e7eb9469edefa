"""The makers of rules for other users, and the users that their rules therefore apply to."""

from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, and_, case
from sqlalchemy.orm import aliased
from sqlmodel import SQLModel, col

from models.store.columns import MaybeNumber, choice
from models.users.roles import Role
from models.users.tables import User

Maker = aliased(User)


class MadeByAccount(SQLModel):
    """Columns of a rule with its maker: the account that changed the rule last."""

    made_by: MaybeNumber = None  # users.id; None: an API key of the platform, or unknown
    made_as: Role = choice(Role, default=Role.DOMAIN_ADMIN)  # the role it was made with


class Account(NamedTuple):
    """A user that a rule might apply to."""

    id: int
    role: Role


def join_of_maker(table: type[MadeByAccount]) -> ColumnElement[bool]:
    """Return the ON clause of the outer join of `Maker`: makers that can still sign in."""
    able = ~col(Maker.disabled), ~col(Maker.suspended), col(Maker.deleted_at).is_(None)
    return and_(col(Maker.id) == col(table.made_by), *able)


def maker_columns(table: type[MadeByAccount]) -> list[Any]:
    """Return the columns that `applies_to_user` reads: `made_by`, `made_as` and `maker_role`."""
    role = case((col(table.made_by).is_(None), col(table.made_as)), else_=col(Maker.role))
    return [col(table.made_by), col(table.made_as), role.label("maker_role")]


def covers(rule: Any, account: Account) -> bool:
    """True if the maker of a rule can administer the user, with the maker's present role.

    A rule applies to its maker. It applies to the users of a domain even if the maker has lost the
    role or the account: any administrator of the domain sees the rule and can delete it.
    """
    if rule.made_by == account.id:
        return True
    role = rule.made_as
    if rule.maker_role is None or role.includes(rule.maker_role):
        role = rule.maker_role or Role.DOMAIN_ADMIN
    return bool(role.administers(account.role)) or account.role is Role.USER
