"""The default quota of users, which the allocated quota of domains includes.

The database has the default quota that was counted last. A server that starts with another one
counts again.
"""

import socket

from sqlalchemy import cast, func, literal, select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.domains.tables import Domain
from models.events.event_types import EventType
from models.events.journal import PLATFORM, Stream
from models.runtime.environment import Environment
from models.store.columns import BIG_INTEGER, insert_with_conflict
from models.store.facts import StoreFact
from models.store.outages import skip_if_disk_full
from models.users.roles import Role
from models.users.tables import User
from resolvers.context import Context
from resolvers.viewer import Viewer

FACT_NAME = "counted default quota"


async def recount_allocated_quotas_if_default_changed(environment: Environment) -> None:
    """Count the allocated quota of domains again if it was counted with another default quota.

    For the start of a server: the default can be another one than in its last run. A full disk
    leaves it to the next start.
    """
    default_quota = environment.options.users_default_quota
    statement = select(col(StoreFact.digest)).where(col(StoreFact.name) == FACT_NAME)
    counted = [row.digest for row in await environment.database.read(statement)]
    if counted == [str(default_quota)]:
        return
    ctx = Context(environment, Viewer(role=Role.ROOT))
    with skip_if_disk_full():
        async with ctx.write_session(PLATFORM) as session:
            await recount_allocated_quotas(ctx, session, default_quota)


async def recount_allocated_quotas(ctx: Context, session: AsyncSession, default_quota: int) -> None:
    """Count the allocated quota of domains with this default quota of users, in bytes.

    Domains with a default quota of their own do not change. Locks the streams of the others, and
    records in PLATFORM those with another allocated quota than before.
    """
    connection = await session.connection()
    has_no_default = col(Domain.default_user_quota).is_(None)
    domain_ids = select(col(Domain.id)).where(has_no_default)
    stream_statement = (
        select(col(Stream.id)).where(col(Stream.id).in_(domain_ids)).order_by(col(Stream.id))
    )
    await connection.execute(stream_statement.with_for_update())
    quota = func.coalesce(col(User.quota), literal(default_quota, BIG_INTEGER))
    allocated = (
        select(cast(func.coalesce(func.sum(quota), 0), BIG_INTEGER))
        .where(col(User.domain_id) == col(Domain.id))
        .scalar_subquery()
    )
    statement = (
        update(Domain)
        .where(has_no_default, col(Domain.quota_allocated) != allocated)
        .values(quota_allocated=allocated)
        .returning(col(Domain.id))
        .execution_options(synchronize_session=False)
    )
    ids = sorted((await connection.execute(statement)).scalars())
    values = {
        "digest": str(default_quota),
        "host": socket.gethostname(),
        "location": "",
        "at": ctx.environment.now(),
    }
    new = insert_with_conflict(connection.dialect.name, StoreFact).values(name=FACT_NAME, **values)
    await connection.execute(
        new.on_conflict_do_update(
            index_elements=["name"], set_={key: new.excluded[key] for key in values}
        )
    )
    if ids:
        await ctx.record_change(session, PLATFORM, EventType.DOMAIN_UPDATED, ids)
