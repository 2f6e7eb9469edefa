"""Objects of users that their administrators can change: application passwords, push channels."""

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
    """The WHERE clause for the viewer's own rows and those of users the viewer oversees.

    A DOMAIN_ADMIN sees rows of other users only with the permission.
    """
    viewer, owner = ctx.viewer, col(table.user_id)
    if viewer.role is Role.DOMAIN_ADMIN and permission not in viewer.permissions:
        return owner == viewer.user_id
    return owner.in_(select(col(User.id)).where(overseen_users(ctx)))


def owners(ids: Sequence[int], rows: Sequence[Picked | None]) -> list[int]:
    """Return the ids of the users to lock, sorted. `rows` are those of `ids`.

    Raises NotFound if the row of an id is missing.
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
    """Load the rows of these ids inside the transaction that locks their users, ordered by id.

    The rows have the user's `domain_id`. `ids_and_visible` are ids and the WHERE clause for visible
    rows. Raises NotFound if a row is missing, Forbidden if the viewer does not manage its user.
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
