"""Users: load by id or name."""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Select, select
from sqlmodel import col

from mail.recipients import address_resolution
from models.errors import NotFound
from models.store.columns import ColumnRow, select_columns
from models.store.prepared_statements import integer_parameter, prepare_cached
from models.users.tables import User
from resolvers.access import is_visible_user, require_user_id
from resolvers.context import Context
from resolvers.pagination import read_by_keys


async def load_visible_users_by_id(ctx: Context, ids: list[int]) -> list[ColumnRow | None]:
    """Load users by id, in this order; None for a user that the viewer does not see."""
    if ids == [ctx.viewer.user_id]:
        return [next(iter(await ctx.read_prepared(_select_viewer())), None)]
    statement = select(*select_columns(User)).where(is_visible_user(ctx))
    return await read_by_keys(ctx, statement, col(User.id), ids)


@prepare_cached
def _select_viewer() -> Select[*tuple[Any, ...]]:
    return select(*select_columns(User)).where(col(User.id) == integer_parameter("viewer"))


async def find_user_by_name(ctx: Context, name: str) -> ColumnRow | None:
    """Load the user of this username or address; None if the viewer does not see it."""
    user_id = await address_resolution.find_sign_in_user_id(ctx.environment, name)
    return await ctx.load(load_visible_users_by_id, user_id) if user_id else None


async def find_users_by_name(ctx: Context, names: Iterable[str]) -> dict[str, ColumnRow]:
    """Load the users of these usernames or addresses that the viewer sees, by the given name."""
    ids = {
        name: user_id
        for name in set(names)
        if (user_id := await address_resolution.find_sign_in_user_id(ctx.environment, name))
    }
    rows = await ctx.load_many(load_visible_users_by_id, list(ids.values()))
    return {name: row for name, row in zip(ids, rows, strict=True) if row}


async def require_visible_or_viewer_user_id(ctx: Context, user_id: int | None) -> int:
    """Return the id of the user an operation is for: a visible one, or the viewer for None.

    Raises NotFound if the viewer does not see the user.
    """
    if user_id is None:
        return require_user_id(ctx)
    if await ctx.load(load_visible_users_by_id, user_id) is None:
        raise NotFound(str(user_id), path=["user"])
    return user_id
