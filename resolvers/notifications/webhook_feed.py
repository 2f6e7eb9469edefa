"""Create webhook deliveries from the journal, once for each event and webhook."""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import and_, bindparam, func, literal, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlmodel import col

from models.auth.security_log import SECURITY_EVENT_TYPES, SecurityEvent
from models.domains.tables import Domain
from models.events.event_types import (
    ADDRESS_EVENT_TYPES,
    DOMAIN_EVENT_TYPES,
    TASK_EVENT_TYPES,
    USER_EVENT_TYPES,
    EventType,
)
from models.events.journal import MAX_IDS_PER_ROW, PLATFORM, Change, Stream
from models.notifications.webhooks import (
    DELIVERY_LIFETIME,
    Webhook,
    WebhookDeliveryState,
    WebhookReadPosition,
    insert_deliveries_and_lanes_if_webhook_exists,
    is_platform_stream_or_has_scoped_webhook,
    is_platform_webhook,
)
from models.runtime.environment import Environment
from models.store.columns import (
    BIG_INTEGER,
    ColumnRow,
    core_table,
    insert_with_conflict,
    select_columns,
)
from models.users.roles import Role
from models.users.tables import User
from resolvers.notifications.webhook_events import WebhookEvent, webhook_event_of_change_or_none

log = logging.getLogger(__name__)

MAX_STREAMS = 250  # in one statement
MAX_CHANGES = 500  # in one statement
MAX_GROWN_STREAMS = 5000  # if more streams have grown, all are read
RESTORED_REASON = "STORE_RESTORED"  # as in `ResyncReason`
EVENT_TYPES_OF_ADMINISTRATORS = USER_EVENT_TYPES | ADDRESS_EVENT_TYPES | DOMAIN_EVENT_TYPES
TARGET_COLUMNS = {"id", "user_id", "domain_id", "types", "since", "made_by"}


@dataclass(frozen=True, slots=True)
class GrownStream:
    """A stream with unread events.

    It has the position of the last read, the last, and the last deleted event.
    """

    stream_id: int
    position: int
    last_position: int
    deleted_position: int
    deleted_at: datetime | None

    def crosses_incarnation(self, incarnation_base: int) -> bool:
        """True if the unread events begin in an earlier incarnation of the store."""
        return self.position < incarnation_base <= self.deleted_position

    @property
    def missed_count(self) -> int:
        """The number of events that were deleted before they were read."""
        return max(self.deleted_position - self.position, 0) if self.deleted_at else 0


class NeededJournalPart(NamedTuple):
    """Which part of the journal active webhooks need: all streams or some, and since when."""

    all_streams: bool
    since: datetime


async def create_deliveries_if_webhooks_active(
    environment: Environment, stream_ids: Collection[int] | None = None
) -> bool:
    """Create the deliveries of new events; False if there are no active webhooks.

    `stream_ids` are the ids of the streams to read; None reads all.
    """
    scope = await _read_needed_journal_part(environment)
    if scope is None:
        return False
    if stream_ids is not None and len(stream_ids) > MAX_GROWN_STREAMS:
        stream_ids = None
    after_stream_id = -1
    while grown_streams := await _read_grown_streams(
        environment, scope, stream_ids, after_stream_id
    ):
        after_stream_id = grown_streams[-1].stream_id
        while grown_streams:
            grown_streams = await _store_deliveries_of_next_events(
                environment, scope, grown_streams
            )
    return True


async def _read_needed_journal_part(environment: Environment) -> NeededJournalPart | None:
    """Return what active webhooks need; None if there are none."""
    needs_all = is_platform_webhook()
    statement = select(needs_all.label("wide"), func.min(Webhook.since).label("since"))
    rows = await environment.database.read(statement.where(col(Webhook.active)).group_by(needs_all))
    if not rows:
        return None
    return NeededJournalPart(any(row.wide for row in rows), min(row.since for row in rows))


async def _read_grown_streams(
    environment: Environment,
    scope: NeededJournalPart,
    stream_ids: Collection[int] | None,
    after_stream_id: int,
) -> list[GrownStream]:
    """Read the next streams with unread events, in the order of their ids."""
    position = func.coalesce(col(WebhookReadPosition.number), 0)
    stream_columns = (getattr(Stream, name) for name in ("last", "pruned_position", "pruned_at"))
    statement = (
        select(col(Stream.id), position.label("number"), *stream_columns)
        .outerjoin(WebhookReadPosition, col(WebhookReadPosition.stream_id) == col(Stream.id))
        .where(col(Stream.id) > after_stream_id, col(Stream.last) > position)
        .order_by(col(Stream.id))
        .limit(MAX_STREAMS)
    )
    if not scope.all_streams:
        statement = statement.where(is_platform_stream_or_has_scoped_webhook(col(Stream.id)))
    if stream_ids is not None:
        statement = statement.where(col(Stream.id).in_(sorted(stream_ids)))
    return [GrownStream(*row) for row in await environment.database.read(statement)]


async def _store_deliveries_of_next_events(
    environment: Environment, scope: NeededJournalPart, grown_streams: Sequence[GrownStream]
) -> list[GrownStream]:
    """Read a batch of events of these streams and store the deliveries.

    Returns the unfinished streams.
    """
    ranges = (
        and_(
            col(Change.stream_id) == stream.stream_id,
            col(Change.last).between(stream.position + 1, stream.last_position),
            col(Change.at) >= scope.since,
        )
        for stream in grown_streams
    )
    order = (col(Change.stream_id), col(Change.last))
    statement = (
        select(*select_columns(Change)).where(or_(*ranges)).order_by(*order).limit(MAX_CHANGES)
    )
    changes = await environment.database.read(statement)
    last_change = changes[-1] if len(changes) == MAX_CHANGES else None
    positions = {stream.stream_id: stream.last_position for stream in grown_streams}
    if last_change is not None:
        positions = {key: last for key, last in positions.items() if key < last_change.stream_id}
        positions[last_change.stream_id] = last_change.last
    rows = await _missed_event_rows(
        environment,
        [
            stream
            for stream in grown_streams
            if stream.missed_count and stream.stream_id in positions
        ],
    )
    if changes:
        rows += await webhook_delivery_rows(
            environment, changes, await _read_webhooks_of_changes(environment, changes)
        )
    await _store_deliveries_of_unchanged_streams(
        environment,
        [stream for stream in grown_streams if stream.stream_id in positions],
        positions,
        rows,
    )
    return [
        replace(stream, position=positions.get(stream.stream_id, stream.position))
        for stream in grown_streams
        if positions.get(stream.stream_id, stream.position) < stream.last_position
    ]


@dataclass(frozen=True, slots=True)
class StreamOwner:
    """The user or domain that a stream belongs to."""

    user: ColumnRow | None
    domain_id: int | None

    def is_other_administrator(self, user_id: int | None) -> bool:
        """True for the account of an administrator who is not this user."""
        user = self.user
        return user is not None and user.role is not Role.USER and user.id != user_id


async def _read_stream_owners(
    environment: Environment, stream_ids: Collection[int]
) -> dict[int, StreamOwner]:
    user_statement = select(*select_columns(User, ("id", "username", "domain_id", "role")))
    users = await environment.database.read(user_statement.where(col(User.id).in_(stream_ids)))
    domains = select(col(Domain.id)).where(col(Domain.id).in_(stream_ids))
    owners = {row.id: StreamOwner(None, row.id) for row in await environment.database.read(domains)}
    return owners | {row.id: StreamOwner(row, row.domain_id) for row in users}


@dataclass(frozen=True, slots=True)
class WebhookTarget:
    """The scope of a webhook: a user while it is in the domain, a domain, or everything."""

    id: int
    user_id: int | None
    domain_id: int | None
    types: Sequence[str] | None  # None: all
    since: datetime
    made_by: int | None  # users.id


async def webhook_delivery_rows(
    environment: Environment, changes: Sequence[ColumnRow], targets: Sequence[WebhookTarget]
) -> list[dict[str, Any]]:
    """Return the delivery rows of these changes for these webhooks."""
    owners = await _read_stream_owners(environment, {change.stream_id for change in changes})
    security_changes = (change for change in changes if change.type in SECURITY_EVENT_TYPES)
    security_rows = await _read_security_rows(
        environment, sorted({key for change in security_changes for key in change.ids})
    )
    return [
        _webhook_delivery_row(environment, target.id, event_for_target, owner)
        for change in changes
        if not _is_duplicate_or_task_without_account(change)
        for owner in (owners.get(change.stream_id, StreamOwner(None, None)),)
        for event in (webhook_event_of_change_or_none(change, security_rows),)
        if event
        for target in targets
        if (event_for_target := _event_for_target(target, event, owner))
    ]


async def _missed_event_rows(
    environment: Environment, grown_streams: Sequence[GrownStream]
) -> list[dict[str, Any]]:
    """Return delivery rows with the number of events that were deleted unread."""
    if not grown_streams:
        return []
    base = environment.incarnation.base
    missed_count = sum(
        stream.missed_count for stream in grown_streams if not stream.crosses_incarnation(base)
    )
    log.warning(
        "Journal entries were deleted before webhooks received them", extra={"events": missed_count}
    )
    owners = await _read_stream_owners(environment, {stream.stream_id for stream in grown_streams})
    statement = select(
        *select_columns(Webhook, TARGET_COLUMNS), col(User.domain_id).label("home")
    ).outerjoin(User, col(User.id) == col(Webhook.user_id))
    hooks = await environment.database.read(
        statement.where(col(Webhook.active)).order_by(col(Webhook.id))
    )
    return [
        _missed_event_row(environment, hook.id, stream, owner)
        for stream in grown_streams
        for owner in (owners.get(stream.stream_id, StreamOwner(None, None)),)
        for hook in hooks
        if stream.deleted_at
        and hook.since <= stream.deleted_at
        and _covers_stream(hook, stream.stream_id, owner)
    ]


def _covers_stream(hook: ColumnRow, stream_id: int, owner: StreamOwner) -> bool:
    """True if a webhook can receive events of a stream (`webhooks.narrow` is the same in SQL)."""
    if stream_id == PLATFORM or (hook.user_id is None and hook.domain_id is None):
        return True
    if hook.user_id is None:
        return bool(hook.domain_id == owner.domain_id)
    return stream_id in (hook.user_id, hook.home)


def _missed_event_row(
    environment: Environment, webhook_id: int, stream: GrownStream, owner: StreamOwner
) -> dict[str, Any]:
    """Return the delivery that reports changes that were deleted before they were read."""
    user_facts = owner.user and {"id": owner.user.id, "username": owner.user.username}
    facts: dict[str, Any] = {
        "user": user_facts,
        "domain": owner.domain_id,
        "objects": [],
        "origin": None,
    }
    return {
        "id": environment.new_id(),
        "webhook_id": webhook_id,
        "stream_id": stream.stream_id,
        "number": stream.deleted_position,
        "event": f"evt_{stream.stream_id}_{stream.deleted_position}-missed",
        "type": EventType.CHANGES_MISSED,
        "at": stream.deleted_at,
        "body": {**facts, **_missed_count_facts(stream, environment.incarnation.base)},
        "state": WebhookDeliveryState.PENDING,
        "attempt": 0,
        "expires_at": environment.now() + DELIVERY_LIFETIME,
    }


def _missed_count_facts(stream: GrownStream, incarnation_base: int) -> dict[str, Any]:
    """Return the number of missed events; None with a reason after a restore."""
    if stream.crosses_incarnation(incarnation_base):
        return {"missed": None, "reason": RESTORED_REASON}
    return {"missed": stream.missed_count}


async def _read_webhooks_of_changes(
    environment: Environment, changes: Sequence[ColumnRow]
) -> list[WebhookTarget]:
    """Read the webhooks that can receive one of these changes."""
    user_ids = {change.stream_id for change in changes}
    for change in changes:
        if change.type in USER_EVENT_TYPES:
            user_ids.update(change.ids)
    statement = select(*select_columns(Webhook, TARGET_COLUMNS)).where(
        col(Webhook.active),
        col(Webhook.user_id).is_(None) | col(Webhook.user_id).in_(sorted(user_ids)),
    )
    rows = await environment.database.read(statement.order_by(col(Webhook.id)))
    return [WebhookTarget(r.id, r.user_id, r.domain_id, r.types, r.since, r.made_by) for r in rows]


async def _read_security_rows(
    environment: Environment, event_ids: Sequence[int]
) -> dict[int, ColumnRow]:
    """Read security log rows by id."""
    column_names = ("id", "action", "result", "protocol", "ip", "count")
    rows_by_id: dict[int, ColumnRow] = {}
    for start in range(0, len(event_ids), MAX_IDS_PER_ROW):
        statement = select(*select_columns(SecurityEvent, column_names)).where(
            col(SecurityEvent.id).in_(event_ids[start : start + MAX_IDS_PER_ROW])
        )
        rows_by_id |= {row.id: row for row in await environment.database.read(statement)}
    return rows_by_id


def _is_duplicate_or_task_without_account(change: ColumnRow) -> bool:
    """True if another stream has the same event, or it is a task without an account."""
    if change.stream_id == PLATFORM:
        return change.type in TASK_EVENT_TYPES
    return change.type in DOMAIN_EVENT_TYPES or bool(change.facts.get("twice"))


def _event_for_target(
    target: WebhookTarget, event: WebhookEvent, owner: StreamOwner
) -> WebhookEvent | None:
    """Return the event, limited to what the webhook covers, or None.

    A webhook with a domain can be that of a DOMAIN_ADMIN, who has no rights in the accounts of
    other administrators. Of these it gets only the events that the domain has too.
    """
    change = event.change
    if change.at < target.since or (target.types is not None and change.type not in target.types):
        return None
    if (
        target.domain_id is not None
        and owner.is_other_administrator(target.made_by)
        and change.type not in EVENT_TYPES_OF_ADMINISTRATORS
    ):
        return None
    is_in_domain = target.domain_id in (None, owner.domain_id, change.facts.get("domain"))
    if target.user_id is None:
        return (
            event
            if is_in_domain
            else _narrow_event_to_object_or_none(event, DOMAIN_EVENT_TYPES, target.domain_id)
        )
    if is_in_domain and change.stream_id == target.user_id:
        return event
    return (
        _narrow_event_to_object_or_none(event, USER_EVENT_TYPES, target.user_id)
        if is_in_domain
        else None
    )


def _narrow_event_to_object_or_none(
    event: WebhookEvent, event_types: Collection[EventType], object_id: int | None
) -> WebhookEvent | None:
    """Return the event with only this object. None if it has no such object, or another type."""
    matching_objects = [object_ for object_ in event.objects if object_["id"] == object_id]
    return (
        replace(event, objects=matching_objects)
        if matching_objects and event.change.type in event_types
        else None
    )


def _webhook_delivery_row(
    environment: Environment, webhook_id: int, event: WebhookEvent, owner: StreamOwner
) -> dict[str, Any]:
    return {
        "id": environment.new_id(),
        "webhook_id": webhook_id,
        "stream_id": event.change.stream_id,
        "number": event.change.last,
        "event": event.event_id,
        "type": event.change.type,
        "at": event.change.at,
        "body": event.stored_body(owner.user, owner.domain_id),
        "state": WebhookDeliveryState.PENDING,
        "attempt": 0,
        "expires_at": environment.now() + DELIVERY_LIFETIME,
    }


async def _store_deliveries_of_unchanged_streams(
    environment: Environment,
    streams: Sequence[GrownStream],
    positions: Mapping[int, int],
    rows: Sequence[dict[str, Any]],
) -> None:
    """Store webhook deliveries and positions of the streams that no other process has read.

    If events of a stream were deleted during the read, it is read again, since they can be
    missing.
    """
    async with environment.write_session() as session:
        connection = await session.connection()
        locked_positions = await _insert_and_lock_positions(connection, streams)
        unchanged_ids = {
            stream.stream_id
            for stream in streams
            if locked_positions.get(stream.stream_id) == (stream.position, stream.deleted_position)
        }
        unchanged_rows = [row for row in rows if row["stream_id"] in unchanged_ids]
        await connection.run_sync(
            insert_deliveries_and_lanes_if_webhook_exists, environment.now(), unchanged_rows
        )
        table = core_table(WebhookReadPosition)
        statement = (
            update(table)
            .where(table.c.stream_id == bindparam("stream"))
            .values(number=bindparam("reached"))
        )
        if unchanged_ids:
            new_positions = [
                {"stream": key, "reached": positions[key]} for key in sorted(unchanged_ids)
            ]
            await connection.execute(statement, new_positions)


async def _insert_and_lock_positions(
    connection: AsyncConnection, streams: Sequence[GrownStream]
) -> dict[int, tuple[int, int]]:
    """Lock the positions of streams; returns the read and the deleted position of each."""
    stream_ids = [stream.stream_id for stream in streams]
    new_rows = select(col(Stream.id), literal(0, BIG_INTEGER)).where(col(Stream.id).in_(stream_ids))
    insert_statement = insert_with_conflict(connection.dialect.name, WebhookReadPosition)
    insert_missing = insert_statement.from_select(
        ["stream_id", "number"], new_rows.order_by(col(Stream.id))
    )
    await connection.execute(insert_missing.on_conflict_do_nothing())
    stream_column = col(WebhookReadPosition.stream_id)
    statement = select(*select_columns(WebhookReadPosition), col(Stream.pruned_position)).join(
        Stream, col(Stream.id) == stream_column
    )
    statement = (
        statement.where(stream_column.in_(stream_ids))
        .order_by(stream_column)
        .with_for_update(of=WebhookReadPosition)
    )
    return {
        row.stream_id: (row.number, row.pruned_position)
        for row in await connection.execute(statement)
    }
