"""Targets and allowed senders that contain a domain name, updated if it is renamed."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import bindparam, or_, select, text, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.addresses.tables import Address, AddressKind
from models.store.columns import Plain, picked, table_of
from models.users.tables import User
from resolvers.context import Context
from resolvers.sql_text import holding, within


def follows(texts: Sequence[str], old: str, new: str) -> list[str]:
    """Return addresses with the new domain name, each once. URLs stay unchanged."""
    found = []
    for one in texts:
        is_it = "://" not in one and (one == old or one.endswith(f"@{old}"))
        found.append(one[: len(one) - len(old)] + new if is_it else one)
    return list(dict.fromkeys(found))


async def addresses(ctx: Context, session: AsyncSession, old: str, new: str) -> list[int]:
    """Replace a domain name in the targets of addresses; return the ids of changed ones."""
    forwards = col(Address.kind) == AddressKind.FORWARD
    return await _changed(ctx, session, _Named(Address, ("targets",), forwards), (old, new))


async def users(ctx: Context, session: AsyncSession, old: str, new: str) -> list[int]:
    """Replace a domain name in the targets and allowed senders of users.

    Returns the ids of changed users.
    """
    some = text("(users.targets <> '[]' OR users.from_whitelist <> '[]')")
    where = _Named(User, ("targets", "from_whitelist"), some)
    return await _changed(ctx, session, where, (old, new))


class _Named(NamedTuple):
    """The columns of a table that can contain a domain name."""

    table: Any
    columns: tuple[str, ...]
    where: Any


async def _changed(
    ctx: Context, session: AsyncSession, where: _Named, names: tuple[str, str]
) -> list[int]:
    """Replace a domain name in these columns with two statements; return the changed ids."""
    table, columns, some = where
    dialect = ctx.world.database.dialect
    named = or_(*(holding(dialect, getattr(table, name), within, [names[0]]) for name in columns))
    asked = select(*picked(table, ("id", *columns))).where(some, named)
    at, changed = ctx.world.now(), []
    for row in await ctx.read(asked.order_by(col(table.id)).with_for_update()):
        values = {name: follows(getattr(row, name), *names) for name in columns}
        if any(values[name] != getattr(row, name) for name in columns):
            changed.append({"its": row.id, "at": at, **{f"new_{n}": v for n, v in values.items()}})
    if changed:
        put: Any = {name: bindparam(f"new_{name}", type_=Plain) for name in columns}
        this = update(table_of(table)).where(table_of(table).c.id == bindparam("its"))
        connection = await session.connection()
        await connection.execute(this.values(**put, updated_at=bindparam("at")), changed)
    return [one["its"] for one in changed]
