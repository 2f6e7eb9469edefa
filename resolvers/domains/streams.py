"""The streams that a change of a whole domain locks and writes to."""

from collections.abc import Sequence

from sqlalchemy import or_, select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.addresses.tables import Address
from models.events.event_types import EventType
from models.events.journal import PLATFORM, Stream
from models.users.tables import User
from resolvers.context import Context


async def lock_platform_domains_and_users(session: AsyncSession, domain_ids: Sequence[int]) -> None:
    """Lock PLATFORM, these domains, and all users that live or have an address in them.

    Runs the query twice, since users can be added while it waits for the locks.
    """
    users_in_domain = select(col(User.id)).where(col(User.domain_id).in_(domain_ids))
    owners = select(col(Address.user_id)).where(
        col(Address.domain_id).in_(domain_ids), col(Address.user_id).is_not(None)
    )
    domains_of_owners = select(col(User.domain_id)).where(col(User.id).in_(owners))
    is_affected = (col(Stream.id).in_(ids) for ids in (users_in_domain, owners, domains_of_owners))
    statement = (
        select(col(Stream.id))
        .where(or_(col(Stream.id).in_([PLATFORM, *domain_ids]), *is_affected))
        .order_by(col(Stream.id))
        .with_for_update()
    )
    connection = await session.connection()
    for _ in range(2):
        await connection.execute(statement)


async def address_changes_by_stream(
    ctx: Context, domain_ids: Sequence[int], event_type: EventType
) -> dict[int, list[tuple[EventType, list[int]]]]:
    """Return an event of all addresses of domains, by the stream that records them.

    Addresses without user belong to the stream of the platform.
    """
    statement = select(col(Address.id), col(Address.user_id)).where(
        col(Address.domain_id).in_(domain_ids)
    )
    ids_by_stream: dict[int, list[int]] = {}
    for row in await ctx.read(statement.order_by(col(Address.id))):
        ids_by_stream.setdefault(row.user_id or PLATFORM, []).append(row.id)
    return {stream: [(event_type, ids)] for stream, ids in ids_by_stream.items()}
