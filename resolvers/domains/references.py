"""What elsewhere names a domain, and follows it where it gets another name."""

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
    """Targets or senders, each once, with the new name for the old; pages and relays stay."""
    found = []
    for one in texts:
        is_it = "://" not in one and (one == old or one.endswith(f"@{old}"))
        found.append(one[: len(one) - len(old)] + new if is_it else one)
    return list(dict.fromkeys(found))


async def addresses(ctx: Context, session: AsyncSession, old: str, new: str) -> list[int]:
    """Let addresses forward to the new name; the ids of those that do."""
    forwards = col(Address.kind) == AddressKind.FORWARD
    return await _changed(ctx, session, _Named(Address, ("targets",), forwards), (old, new))


async def users(ctx: Context, session: AsyncSession, old: str, new: str) -> list[int]:
    """Let accounts forward to the new name, and send as what is there; the ids of those."""
    some = text("(users.targets <> '[]' OR users.from_whitelist <> '[]')")
    where = _Named(User, ("targets", "from_whitelist"), some)
    return await _changed(ctx, session, where, (old, new))


class _Named(NamedTuple):
    """Columns of rows that may name a domain."""

    table: Any
    columns: tuple[str, ...]
    where: Any


async def _changed(
    ctx: Context, session: AsyncSession, where: _Named, names: tuple[str, str]
) -> list[int]:
    """Change what names the domain, in two statements; the ids of what is another now."""
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
