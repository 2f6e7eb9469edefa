"""Retention of mailboxes: validation, and inheritance from the user."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.errors import InvalidInput
from models.events import journal
from models.events.event_types import EventType
from models.mailboxes.tables import Mailbox
from models.quantities import describe_duration
from models.validation_constraints import ValidationConstraint
from resolvers.context import Context
from resolvers.users.limit_values import Unlimited

MAX_RETENTION = timedelta(days=36_500)
MailboxRetention = timedelta | Unlimited | None  # None: inherited from the user


def validated_retention_seconds(
    retention: timedelta, path_in_input: Sequence[str] = ("retention",)
) -> int:
    """Return a retention in its stored form.

    Raises InvalidInput if it is not between a second and a hundred years.
    """
    if not timedelta(seconds=1) <= retention <= MAX_RETENTION:
        raise InvalidInput(
            f"The retention must be from PT1S to {describe_duration(MAX_RETENTION)}. "
            "Null: messages are kept for ever.",
            constraint=ValidationConstraint.RANGE,
            path=path_in_input,
        )
    return int(retention.total_seconds())


def own_retention_columns(
    retention: timedelta | Unlimited, path_in_input: Sequence[str] = ("retention",)
) -> dict[str, Any]:
    """Return the columns of a mailbox that has a retention of its own. Raises InvalidInput."""
    seconds = (
        None
        if isinstance(retention, Unlimited)
        else validated_retention_seconds(retention, path_in_input)
    )
    return {"retention": seconds, "retention_inherited": False}


async def update_inherited_retention(
    ctx: Context, session: AsyncSession, user_ids: Sequence[int], retention: int | None
) -> None:
    """Set the retention of the mailboxes that inherit it from these users, who are locked.

    `retention` is in seconds. The number of statements does not depend on the number of users.
    """
    connection = await session.connection()
    inherits_another = (
        col(Mailbox.user_id).in_(user_ids),
        col(Mailbox.retention_inherited),
        col(Mailbox.retention).is_distinct_from(retention),
    )
    statement = select(col(Mailbox.id), col(Mailbox.user_id)).where(*inherits_another)
    mailbox_ids = defaultdict[int, list[int]](list)
    for row in (await connection.execute(statement.order_by(col(Mailbox.id)))).all():
        mailbox_ids[row.user_id].append(row.id)
    if not mailbox_ids:
        return
    entries_by_user = {
        user_id: ctx.journal_entries(EventType.MAILBOX_UPDATED, ids)
        for user_id, ids in mailbox_ids.items()
    }
    await journal.record_entries_in_streams_or_raise(
        session, entries_by_user, at=ctx.environment.now()
    )
    await connection.execute(update(Mailbox).where(*inherits_another).values(retention=retention))
