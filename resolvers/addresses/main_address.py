"""The main address of a user, which decides the user's domain and search words."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from sqlalchemy import select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.addresses.tables import Address
from models.domains.tables import Domain
from models.errors import Forbidden, require_found
from models.events.journal import PLATFORM
from models.store.columns import ColumnRow, select_columns
from models.users.roles import Role
from models.users.search_index import search_text
from models.users.tables import User
from resolvers.context import Context
from resolvers.users.delete import update_domain_counters
from resolvers.users.quota.quota_allocation import (
    effective_quota,
    reallocate_quotas_or_raise,
    require_user_slot,
)


@dataclass
class MainAddressChange:
    """Former main addresses, and by user id the other streams that record the new main address."""

    former_rows: list[Any] = field(default_factory=list)
    streams_by_user: dict[int, set[int]] = field(default_factory=dict)


async def find_main_address(ctx: Context, user_id: int) -> ColumnRow | None:
    """Return the main address of a user, or None."""
    is_main_of_user = (col(Address.user_id) == user_id, col(Address.main))
    return next(
        iter(await ctx.read(select(*select_columns(Address)).where(*is_main_of_user))), None
    )


async def set_main_address_and_user_domain(
    ctx: Context, session: AsyncSession, user: ColumnRow, address: Any, path: Sequence[str]
) -> MainAddressChange:
    """Make an address the main address of its user.

    The transaction must hold locks on the streams of the user and the domains. A user whose new
    main address is in another domain moves there. Raises Forbidden unless the viewer
    administers both domains, and LimitReached if the new domain has no room for the user.
    """
    changed, connection = MainAddressChange(), await session.connection()
    now, former = ctx.environment.now(), await find_main_address(ctx, user.id)
    if former is not None and former.id != address.id:
        statement = update(Address).where(col(Address.id) == former.id)
        await connection.execute(statement.values(main=False, updated_at=now))
        changed.former_rows.append(former)
    statement = update(Address).where(col(Address.id) == address.id)
    await connection.execute(statement.values(main=True, updated_at=now))
    await update_user_search_words_and_domain(ctx, session, user, address, path)
    changed.streams_by_user[user.id] = {user.domain_id or PLATFORM, address.domain_id or PLATFORM}
    return changed


async def update_user_search_words_and_domain(
    ctx: Context, session: AsyncSession, user: ColumnRow, address: Any, path: Sequence[str]
) -> None:
    """Update the user's search words and domain to match the main address.

    Raises Forbidden or LimitReached as `set_main_address_and_user_domain`.
    """
    search_words = search_text(user.username, user.name, address.display_address)
    values = {"words": search_words, "updated_at": ctx.environment.now()}
    if address.domain_id != user.domain_id:
        await _check_domain_move_and_update_counters(ctx, session, user, address.domain_id, path)
        values["domain_id"] = address.domain_id
    statement = update(User).where(col(User.id) == user.id)
    await (await session.connection()).execute(statement.values(**values))


async def _check_domain_move_and_update_counters(
    ctx: Context, session: AsyncSession, user: ColumnRow, new_domain_id: int, path: Sequence[str]
) -> None:
    """Count the user in the new domain and no longer in the former one.

    Raises Forbidden unless the viewer administers both domains, and LimitReached if the domain
    has no room.
    """
    viewer = ctx.viewer
    administers_both = {user.domain_id, new_domain_id} <= viewer.administered_domains
    if not (administers_both or viewer.role.includes(Role.ADMIN)):
        required_role = Role.ADMIN if viewer.role is Role.DOMAIN_ADMIN else Role.DOMAIN_ADMIN
        message = f"Requires the role {required_role} to move a user to another domain."
        raise Forbidden(message, requires=required_role, path=path)
    await session.flush()
    domain = require_found(
        await session.get(Domain, new_domain_id, populate_existing=True), str(new_domain_id)
    )
    require_user_slot(domain, path=path)
    reallocate_quotas_or_raise(
        ctx.environment,
        domain,
        [],
        [effective_quota(ctx.environment, domain, user.quota)],
        path=path,
    )
    domain.user_count += 1
    session.add(domain)
    await session.flush()
    counted_user = SimpleNamespace(domain_id=user.domain_id, quota=user.quota)
    await update_domain_counters(ctx, session, [counted_user], [], sign=-1)
