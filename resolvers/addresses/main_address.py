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
from models.errors import Forbidden, found
from models.events.journal import PLATFORM
from models.store.columns import Picked, picked
from models.users.roles import Role
from models.users.search_index import words_of
from models.users.tables import User
from resolvers.context import Context
from resolvers.users.delete import count_places
from resolvers.users.quota.quota_allocation import effective, give, seat


@dataclass
class Changed:
    """Former main addresses, and by user id the other streams that record the new main address."""

    rows: list[Any] = field(default_factory=list)
    users: dict[int, set[int]] = field(default_factory=dict)


async def of(ctx: Context, user_id: int) -> Picked | None:
    """Return the main address of a user, or None."""
    mine = (col(Address.user_id) == user_id, col(Address.main))
    return next(iter(await ctx.read(select(*picked(Address)).where(*mine))), None)


async def change(
    ctx: Context, session: AsyncSession, user: Picked, address: Any, path: Sequence[str]
) -> Changed:
    """Make an address the main address of its user.

    The transaction must hold locks on the streams of the user and the domains. A user whose new
    main address is in another domain moves there. Raises Forbidden unless the viewer
    administers both domains, and LimitReached if the new domain has no room for the user.
    """
    changed, connection = Changed(), await session.connection()
    now, old = ctx.world.now(), await of(ctx, user.id)
    if old is not None and old.id != address.id:
        this = update(Address).where(col(Address.id) == old.id)
        await connection.execute(this.values(main=False, updated_at=now))
        changed.rows.append(old)
    this = update(Address).where(col(Address.id) == address.id)
    await connection.execute(this.values(main=True, updated_at=now))
    await known_by(ctx, session, user, address, path)
    changed.users[user.id] = {user.domain_id or PLATFORM, address.domain_id or PLATFORM}
    return changed


async def known_by(
    ctx: Context, session: AsyncSession, user: Picked, address: Any, path: Sequence[str]
) -> None:
    """Update the user's search words and domain to match the main address.

    Raises Forbidden or LimitReached as `set_main_address`.
    """
    words = words_of(user.username, user.name, address.shown)
    values = {"words": words, "updated_at": ctx.world.now()}
    if address.domain_id != user.domain_id:
        await _move(ctx, session, user, address.domain_id, path)
        values["domain_id"] = address.domain_id
    this = update(User).where(col(User.id) == user.id)
    await (await session.connection()).execute(this.values(**values))


async def _move(
    ctx: Context, session: AsyncSession, user: Picked, domain_id: int, path: Sequence[str]
) -> None:
    """Count the user in the new domain and no longer in the former one.

    Raises Forbidden unless the viewer administers both domains, and LimitReached if the domain
    has no room.
    """
    viewer = ctx.viewer
    both = {user.domain_id, domain_id} <= viewer.administers
    if not (both or viewer.role.includes(Role.ADMIN)):
        needed = Role.ADMIN if viewer.role is Role.DOMAIN_ADMIN else Role.DOMAIN_ADMIN
        words = f"to move an account to another domain needs the role {needed}"
        raise Forbidden(words, requires=needed, path=path)
    await session.flush()
    domain = found(await session.get(Domain, domain_id, populate_existing=True), str(domain_id))
    seat(domain, path=path)
    give(ctx.world, domain, [], [effective(ctx.world, domain, user.quota)], path=path)
    domain.user_count += 1
    session.add(domain)
    await session.flush()
    left = SimpleNamespace(domain_id=user.domain_id, quota=user.quota)
    await count_places(ctx, session, [left], [], sign=-1)
