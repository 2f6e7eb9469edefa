"""Objects of users that their administrators can change: application passwords, push channels."""

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import ColumnElement, select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.errors import Forbidden, NotFound, require_all_found
from models.store.columns import ColumnRow, UserOwnedRow, select_columns
from models.users.roles import AdminPermission, Role
from models.users.tables import User
from resolvers.access import is_managed_user, is_overseen_user
from resolvers.context import Context


def is_visible_sql(
    ctx: Context, table: type[UserOwnedRow], permission: AdminPermission
) -> ColumnElement[bool]:
    """The WHERE clause for the viewer's own rows and those of users the viewer oversees.

    A DOMAIN_ADMIN sees rows of other users only with the permission.
    """
    viewer, owner_id = ctx.viewer, col(table.user_id)
    if viewer.role is Role.DOMAIN_ADMIN and permission not in viewer.permissions:
        return owner_id == viewer.user_id
    return owner_id.in_(select(col(User.id)).where(is_overseen_user(ctx)))


def require_owner_ids_of_rows(ids: Sequence[int], rows: Sequence[ColumnRow | None]) -> list[int]:
    """Return the id of the owner of each of the objects `ids`, which have these rows.

    Raises NotFound if the row of an id is missing.
    """
    require_all_found(ids, {row.id for row in rows if row})
    return [row.user_id for row in rows if row]


async def require_managed_rows_in_transaction(
    ctx: Context,
    session: AsyncSession,
    table: type[UserOwnedRow],
    columns: Collection[str],
    ids_and_visible: tuple[Sequence[int], ColumnElement[bool]],
) -> list[ColumnRow]:
    """Load the rows of these ids inside the transaction that locks their users, ordered by id.

    The rows have the user's `domain_id`. `ids_and_visible` are ids and the WHERE clause for visible
    rows. Raises NotFound if a row is missing, Forbidden if the viewer does not manage its user.
    """
    ids, is_visible = ids_and_visible
    owner_columns: list[Any] = [
        col(User.domain_id), col(User.role).label("owners"), is_managed_user(ctx).label("free")
    ]  # fmt: skip
    statement = (
        select(*select_columns(table, columns), *owner_columns)
        .join(User, col(User.id) == col(table.user_id))
        .where(col(table.id).in_(ids), is_visible)
        .order_by(col(table.id))
    )
    result = await (await session.connection()).execute(statement)
    rows = {row.id: row for row in result}
    for index, key in enumerate(ids):
        if key not in rows:
            raise NotFound(str(key), path=["ids"], index=index)
        if not rows[key].free:
            role = rows[key].owners
            text = f"Requires the role {role}."
            raise Forbidden(text, requires=role, path=["ids"], index=index)
    return list(rows.values())
