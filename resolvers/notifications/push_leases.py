"""Leases of push channels: one process at a time serves a channel."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, select, update
from sqlmodel import col

from models.events.event_types import EventType
from models.events.journal import JournalEntry, Stream, append_journal_entry
from models.notifications.push_channels import PushChannel
from models.runtime import leases
from models.runtime.environment import Environment
from models.store.columns import ColumnRow, select_columns
from models.users.tables import User

CHANGED_FIELDS = ["pushChannels"]


class PushLeaseLost(Exception):
    """The channel was changed, or another process serves it."""


def is_active_user() -> ColumnElement[bool]:
    """Return the SQL condition for accounts that may sign in; others are not notified."""
    return col(User.deleted_at).is_(None) & col(User.active) & ~col(User.suspended)


async def lease_and_read_channel(
    environment: Environment, channel_id: int, lease: int
) -> ColumnRow | None:
    """Claim the lease of a channel and read it; None if another process holds the lease."""
    process_id = await leases.ensure_process_registered(environment)
    statement = update(PushChannel).where(
        col(PushChannel.id) == channel_id,
        leases.is_unleased(PushChannel),
        leases.is_registered(process_id),
    )
    async with environment.write_session() as session:
        connection = await session.connection()
        await connection.execute(statement.values(**leases.lease_values(process_id, lease)))
    return await read_channel_if_leased(environment, channel_id, lease)


async def read_channel_if_leased(
    environment: Environment, channel_id: int, lease: int
) -> ColumnRow | None:
    """Read a channel under its lease, with the last entry of its stream; None if it is lost."""
    statement = (
        select(*select_columns(PushChannel), col(Stream.last))
        .join(Stream, col(Stream.id) == col(PushChannel.user_id))
        .join(User, col(User.id) == col(PushChannel.user_id))
        .where(col(PushChannel.id) == channel_id, col(PushChannel.lease) == lease, is_active_user())
    )
    return next(iter(await environment.database.read(statement)), None)


async def require_lease_and_update_channel(
    environment: Environment,
    channel: ColumnRow,
    values: Mapping[str, Any],
    *,
    release: bool = False,
) -> None:
    """Update a claimed channel, and keep or release its lease. Raises PushLeaseLost."""
    lease_values = {"lease": None, "holder": None} if release else {"lease": channel.lease}
    statement = update(PushChannel).where(
        col(PushChannel.id) == channel.id, col(PushChannel.lease) == channel.lease
    )
    is_switched_off = values.get("active") is False
    async with environment.write_session(
        *([channel.user_id] if is_switched_off else [])
    ) as session:
        connection = await session.connection()
        if not (await connection.execute(statement.values({**values, **lease_values}))).rowcount:
            raise PushLeaseLost
        if is_switched_off:
            facts = {"changed": [CHANGED_FIELDS]}
            entry = JournalEntry(EventType.USER_UPDATED, [channel.user_id], facts)
            await append_journal_entry(session, channel.user_id, entry, at=environment.now())


async def release_leases(environment: Environment, lease_ids: Sequence[int]) -> None:
    """Release leases, so that another process can serve the channels at once."""
    if lease_ids:
        statement = update(PushChannel).where(col(PushChannel.lease).in_(lease_ids))
        async with environment.write_session() as session:
            released = {"lease": None, "holder": None}
            await (await session.connection()).execute(statement.values(released))
