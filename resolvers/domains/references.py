"""Targets and allowed senders that contain a domain name, updated if it is renamed."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import bindparam, or_, select, text, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.addresses.tables import Address, AddressKind
from models.store.columns import JSON_TYPE, core_table, select_columns
from models.users.tables import User
from resolvers.context import Context
from resolvers.sql_text import any_item_fits_sql, contains_text_sql


def with_renamed_domain(addresses: Sequence[str], old_name: str, new_name: str) -> list[str]:
    """Return addresses with the new domain name, each once. URLs stay unchanged."""
    renamed = []
    for address in addresses:
        has_old_domain = "://" not in address and (
            address == old_name or address.endswith(f"@{old_name}")
        )
        renamed.append(
            address[: len(address) - len(old_name)] + new_name if has_old_domain else address
        )
    return list(dict.fromkeys(renamed))


async def rename_domain_in_address_targets(
    ctx: Context, session: AsyncSession, old_name: str, new_name: str
) -> list[int]:
    """Replace a domain name in the targets of addresses; return the ids of changed ones."""
    is_forward = col(Address.kind) == AddressKind.FORWARD
    return await _rename_domain_in_columns(
        ctx, session, _DomainNameColumns(Address, ("forward_to",), is_forward), (old_name, new_name)
    )


async def rename_domain_in_user_targets_and_senders(
    ctx: Context, session: AsyncSession, old_name: str, new_name: str
) -> list[int]:
    """Replace a domain name in the targets and allowed senders of users.

    Returns the ids of changed users.
    """
    has_values = text("(users.forward_to <> '[]' OR users.allowed_senders <> '[]')")
    table_columns = _DomainNameColumns(User, ("forward_to", "allowed_senders"), has_values)
    return await _rename_domain_in_columns(ctx, session, table_columns, (old_name, new_name))


class _DomainNameColumns(NamedTuple):
    """The columns of a table that can contain a domain name."""

    table: Any
    columns: tuple[str, ...]
    condition: Any


async def _rename_domain_in_columns(
    ctx: Context,
    session: AsyncSession,
    table_columns: _DomainNameColumns,
    old_and_new_name: tuple[str, str],
) -> list[int]:
    """Replace a domain name in these columns with two statements; return the changed ids."""
    table, columns, condition = table_columns
    dialect = ctx.environment.database.dialect
    contains_name = or_(
        *(
            any_item_fits_sql(
                dialect, getattr(table, name), contains_text_sql, [old_and_new_name[0]]
            )
            for name in columns
        )
    )
    statement = select(*select_columns(table, ("id", *columns))).where(condition, contains_name)
    at, parameter_rows = ctx.environment.now(), []
    for row in await ctx.read(statement.order_by(col(table.id)).with_for_update()):
        values = {
            name: with_renamed_domain(getattr(row, name), *old_and_new_name) for name in columns
        }
        if any(values[name] != getattr(row, name) for name in columns):
            parameter_rows.append(
                {"its": row.id, "at": at, **{f"new_{n}": v for n, v in values.items()}}
            )
    if parameter_rows:
        new_columns: Any = {name: bindparam(f"new_{name}", type_=JSON_TYPE) for name in columns}
        update_statement = update(core_table(table)).where(
            core_table(table).c.id == bindparam("its")
        )
        connection = await session.connection()
        await connection.execute(
            update_statement.values(**new_columns, updated_at=bindparam("at")), parameter_rows
        )
    return [parameters["its"] for parameters in parameter_rows]
