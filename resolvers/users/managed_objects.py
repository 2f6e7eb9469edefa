"""What accounts have that whoever manages them may change: application passwords, channels."""

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import ColumnElement, select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.errors import Forbidden, NotFound, all_found
from models.store.columns import Owned, Picked, picked
from models.users.roles import AdminPermission, Role
from models.users.tables import User
from resolvers.access import managed_users, overseen_users
from resolvers.context import Context


def visible(ctx: Context, table: type[Owned], permission: AdminPermission) -> ColumnElement[bool]:
    """One's own; those of accounts one sees, for a DOMAIN_ADMIN with the permission."""
    viewer, owner = ctx.viewer, col(table.user_id)
    if viewer.role is Role.DOMAIN_ADMIN and permission not in viewer.permissions:
        return owner == viewer.user_id
    return owner.in_(select(col(User.id)).where(overseen_users(ctx)))


def owners(ids: Sequence[int], rows: Sequence[Picked | None]) -> list[int]:
    """Whose these are: the accounts to hold. `rows` are those of `ids`; NotFound where one is not.

    The order is that of the accounts' ids.
    """
    all_found(ids, {row.id for row in rows if row})
    return sorted({row.user_id for row in rows if row})


async def held(
    ctx: Context,
    session: AsyncSession,
    table: type[Owned],
    shown: Collection[str],
    these: tuple[Sequence[int], ColumnElement[bool]],
) -> list[Picked]:
    """They as they are now that we hold their accounts, with `domain_id`, by id.

    `these` are their ids and what the viewer sees. NotFound where one is gone, Forbidden where
    its account is not managed.
    """
    ids, seen = these
    owner: list[Any] = [
        col(User.domain_id), col(User.role).label("owners"), managed_users(ctx).label("free")
    ]  # fmt: skip
    asked = (
        select(*picked(table, shown), *owner)
        .join(User, col(User.id) == col(table.user_id))
        .where(col(table.id).in_(ids), seen)
        .order_by(col(table.id))
    )
    found = await (await session.connection()).execute(asked)
    rows = {row.id: row for row in found}
    for index, key in enumerate(ids):
        if key not in rows:
            raise NotFound(str(key), path=["ids"], index=index)
        if not rows[key].free:
            role = rows[key].owners
            raise Forbidden(f"this needs the role {role}", requires=role, path=["ids"])
    return list(rows.values())
