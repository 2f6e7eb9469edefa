"""Send push notifications of new mail to channels, each at its own rate."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from time import monotonic
from typing import Any

from sqlalchemy import ColumnElement, Select, bindparam, func, select, union, update
from sqlmodel import col

from mail.network.outbound_http import (
    HttpRequestFailed,
    NetworkPolicy,
    parse_target,
    post,
    status_problem,
)
from models.errors import InvalidInput
from models.events.event_types import EventType
from models.events.journal import JournalEntry, Stream, record_entry
from models.events.wakeups import PUSHES, wait_for_any
from models.notifications.push_channels import PushChannel, PushKind
from models.observability import metrics
from models.runtime import leases
from models.runtime.environment import Environment
from models.runtime.secret_box import DecryptionError
from models.store.columns import ColumnRow, core_table, select_columns
from models.users.tables import User
from resolvers.notifications import push_events
from resolvers.notifications.push_events import ChannelNews, PushMessage
from resolvers.notifications.push_requests import (
    NodeIdEncoder,
    PushNotification,
    build_push_request,
    notification_of_many,
    notification_of_message,
    sample_notification,
)
from resolvers.notifications.webhook_worker import retry_delay as pause_after

log = logging.getLogger(__name__)

PUSH_RESULTS = metrics.counter(
    "merganser_pushes", "Pushes to users, and what came.", "kind", "result"
)
PUSH_SECONDS = metrics.histogram("merganser_push_seconds", "Time of a push.")
PAUSE_AFTER_ERROR = 30.0  # seconds until a channel is retried after an exception
POLL_SECONDS = 15.0  # between two reads without a wake-up
MAX_CHANNELS = 50  # of one process
MAX_GROWN_STREAMS = 5000  # if more streams have grown, all channels are read
MAX_SINGLE_NOTIFICATIONS = 3  # more messages share one notification
MAX_PUSHES_PER_WINDOW = 5  # of one channel in RATE_WINDOW
RATE_WINDOW = timedelta(minutes=1)
GONE_STATUSES: Mapping[PushKind, frozenset[int]] = {  # response statuses that switch a channel off
    PushKind.PUSHOVER: frozenset({400}),  # key or token is wrong
    PushKind.WEB_PUSH: frozenset({404, 410}),  # RFC 8030, section 7.3
    PushKind.HTTP: frozenset({410}),
}
CHANGED_FIELDS = ["pushChannels"]


@dataclass(frozen=True, slots=True)
class PushResult:
    """The result of a push. `error` is None on success; `is_gone` switches the channel off."""

    error: str | None
    is_gone: bool = False


class PushLeaseLost(Exception):
    """The channel was changed, or another process serves it."""


@dataclass(frozen=True, slots=True)
class ServedChannel:
    """A channel that this process serves, with its user and lease."""

    user_id: int
    lease: int
    task: "asyncio.Task[None]"


@dataclass
class PushWorker:
    """The state of the push worker of this process."""

    environment: Environment
    encode_node_id: NodeIdEncoder
    gate: NetworkPolicy
    served: dict[int, ServedChannel] = field(default_factory=dict)  # by channel id
    grown_stream_ids: set[int] = field(default_factory=set)  # not yet read
    channel_freed: asyncio.Event = field(default_factory=asyncio.Event)
    has_channels: bool = True  # without channels, wake-ups cause no statements
    has_more: bool = False  # more channels are due than were started


async def run_worker(
    environment: Environment, encode_node_id: NodeIdEncoder, gate: NetworkPolicy | None = None
) -> None:
    """Send push notifications until cancelled."""
    worker = PushWorker(
        environment, encode_node_id, gate or NetworkPolicy.from_options(environment.options)
    )
    async with leases.registered_process(environment):
        await _run_loop(worker)


async def _run_loop(worker: PushWorker) -> None:
    last_full_read, environment = -POLL_SECONDS, worker.environment
    with environment.wakeups.follow_all_streams() as wakeup:
        try:
            while True:
                grown_stream_ids, pause = wakeup.take_streams(), POLL_SECONDS
                read_all = (
                    monotonic() - last_full_read >= POLL_SECONDS
                    or PUSHES in grown_stream_ids
                    or worker.has_more
                )
                if read_all:  # wake-ups can be lost
                    last_full_read = monotonic()
                if read_all or worker.has_channels or worker.served:
                    worker.grown_stream_ids |= grown_stream_ids
                    pause = await _start_pushes_or_log(worker, read_all=read_all)
                await wait_for_any(
                    (wakeup, worker.channel_freed),
                    min(pause, last_full_read + POLL_SECONDS - monotonic()),
                )
        finally:
            await _stop_channels(worker)


async def _start_pushes_or_log(worker: PushWorker, *, read_all: bool) -> float:
    try:
        return await start_pushes(worker, read_all=read_all)
    except Exception:  # the worker must survive an outage of the database
        log.exception("push channels could not be looked after")
        return POLL_SECONDS


async def start_pushes(worker: PushWorker, *, read_all: bool = True) -> float:
    """Start to serve channels with something new; returns the seconds until the next call.

    Reads all accounts, or those with grown streams.
    """
    # before the read, so that a channel that is freed after it wakes the worker
    worker.channel_freed.clear()
    environment, free_slots = worker.environment, MAX_CHANNELS - len(worker.served)
    if read_all:
        channel_rows = await environment.database.read(select(col(PushChannel.id)).limit(1))
        worker.has_channels = bool(channel_rows)
    if not worker.has_channels:
        worker.grown_stream_ids.clear()
    if free_slots <= 0 or not worker.has_channels:
        return POLL_SECONDS
    read_all = read_all or len(worker.grown_stream_ids) > MAX_GROWN_STREAMS
    rows = await environment.database.read(
        _due_channels(worker, read_all=read_all).limit(free_slots)
    )
    worker.has_more = len(rows) == free_slots
    active_channels = [row for row in rows if row.active]
    news_by_channel = (
        await push_events.read_channel_news(environment, active_channels) if active_channels else {}
    )
    to_start = [
        row
        for row in rows
        if row.test_at or (row.id in news_by_channel and news_by_channel[row.id].messages)
    ]
    started_ids = {row.id for row in to_start}
    without_messages = [
        row for row in rows if row.id in news_by_channel and row.id not in started_ids
    ]
    # most wake-ups are not about mail: a write for each would be too many
    to_advance = [
        row for row in without_messages if read_all or news_by_channel[row.id].position < row.last
    ]
    await _advance_positions(environment, to_advance, news_by_channel)
    for row in to_start:
        lease = environment.new_id()
        task = asyncio.create_task(_serve_channel(worker, row.id, lease))
        worker.served[row.id] = ServedChannel(row.user_id, lease, task)
    worker.has_more |= len(news_by_channel) < len(active_channels)
    worker.has_more |= any(news_by_channel[row.id].position < row.last for row in without_messages)
    worker.grown_stream_ids = {
        each.user_id for each in worker.served.values()
    }  # their streams can grow while this runs
    if worker.has_more:
        worker.channel_freed.set()
    return await _seconds_until_retry(environment)


def _due_channels(worker: PushWorker, *, read_all: bool) -> Select[*tuple[Any, ...]]:
    """Return the SQL query for channels with new events that no process serves."""
    now, retry_at = worker.environment.now(), col(PushChannel.retry_at)
    has_news = col(PushChannel.active) & (col(Stream.last) > col(PushChannel.number))
    is_due = retry_at.is_(None) | (retry_at <= now)
    statement = (
        select(*select_columns(PushChannel), col(Stream.last))
        .join(Stream, col(Stream.id) == col(PushChannel.user_id))
        .join(User, col(User.id) == col(PushChannel.user_id))
        .where(
            has_news | col(PushChannel.test_at).is_not(None),
            is_due,
            _is_active_user(),
            leases.is_unleased(PushChannel),
        )
        .where(col(PushChannel.id).not_in(list(worker.served)))
        .order_by(col(PushChannel.failures), col(PushChannel.id))  # failing channels come last
    )
    if read_all:
        return statement
    key = col(PushChannel.id)
    candidate_ids = union(  # each by its index
        select(key).where(col(PushChannel.user_id).in_(sorted(worker.grown_stream_ids))),
        select(key).where(retry_at <= now),
        select(key).where(col(PushChannel.test_at).is_not(None)),
    )
    return statement.where(key.in_(candidate_ids))


def _is_active_user() -> ColumnElement[bool]:
    """Return the SQL condition for accounts that may sign in; others are not notified."""
    return col(User.deleted_at).is_(None) & col(User.active) & ~col(User.suspended)


async def _seconds_until_retry(environment: Environment) -> float:
    """Return the seconds until the next retry of a channel."""
    soonest = select(func.min(col(PushChannel.retry_at)).label("at")).where(
        col(PushChannel.retry_at) > environment.now(), leases.is_unleased(PushChannel)
    )
    (row,) = await environment.database.read(soonest)
    return (
        POLL_SECONDS
        if row.at is None
        else min((row.at - environment.now()).total_seconds(), POLL_SECONDS)
    )


async def _advance_positions(
    environment: Environment,
    channels: Sequence[ColumnRow],
    news_by_channel: Mapping[int, ChannelNews],
) -> None:
    """Advance the positions of channels without new messages, in one transaction."""
    if not channels:
        return
    table = core_table(PushChannel)
    statement = (
        update(table)
        .where(table.c.id == bindparam("key"), table.c.number == bindparam("since"))
        .where(leases.is_unleased(PushChannel))
        .values(number=bindparam("reached"), retry_at=None)
    )
    positions = [
        {"key": r.id, "since": r.number, "reached": news_by_channel[r.id].position}
        for r in channels
    ]
    async with environment.write_session() as session:
        await (await session.connection()).execute(statement, positions)


async def _serve_channel(worker: PushWorker, channel_id: int, lease: int) -> None:
    """Send all notifications of a channel. Exceptions are logged."""
    try:
        with leases.protect_leases_in_use(worker.environment, lease):
            channel = await _claim_channel(worker.environment, channel_id, lease)
            while channel is not None:
                channel = await _push_next(worker, channel)
    except PushLeaseLost:
        log.info("a push channel was changed meanwhile", extra={"channel": channel_id})
    except Exception:
        log.exception("a push channel could not be served", extra={"channel": channel_id})
        is_leased = col(PushChannel.id) == channel_id, col(PushChannel.lease) == lease
        leases.end_lease_at_later_heartbeat(
            worker.environment, PushChannel, *is_leased, delay_seconds=PAUSE_AFTER_ERROR
        )
    finally:
        worker.served.pop(channel_id, None)
        worker.channel_freed.set()


async def _claim_channel(environment: Environment, channel_id: int, lease: int) -> ColumnRow | None:
    """Claim the lease of a channel and read it; None if another process holds the lease."""
    process_id = await leases.ensure_registered(environment)
    statement = update(PushChannel).where(
        col(PushChannel.id) == channel_id,
        leases.is_unleased(PushChannel),
        leases.is_registered(process_id),
    )
    async with environment.write_session() as session:
        connection = await session.connection()
        await connection.execute(statement.values(**leases.lease_values(process_id, lease)))
    return await _read_claimed_channel(environment, channel_id, lease)


async def _read_claimed_channel(
    environment: Environment, channel_id: int, lease: int
) -> ColumnRow | None:
    statement = (
        select(*select_columns(PushChannel), col(Stream.last))
        .join(Stream, col(Stream.id) == col(PushChannel.user_id))
        .join(User, col(User.id) == col(PushChannel.user_id))
        .where(
            col(PushChannel.id) == channel_id, col(PushChannel.lease) == lease, _is_active_user()
        )
    )
    return next(iter(await environment.database.read(statement)), None)


async def _push_next(worker: PushWorker, channel: ColumnRow) -> ColumnRow | None:
    """Send one notification. Returns the channel after it, or None if nothing is left to do now."""
    environment = worker.environment
    window_start = channel.window_at
    is_in_window = window_start is not None and environment.now() < window_start + RATE_WINDOW
    if is_in_window and channel.pushed >= MAX_PUSHES_PER_WINDOW:
        await _update_claimed_channel(
            environment, channel, {"retry_at": window_start + RATE_WINDOW}, release=True
        )
        return None
    rate_values = {
        "window_at": window_start if is_in_window else environment.now(),
        "pushed": (channel.pushed if is_in_window else 0) + 1,
    }
    if channel.test_at:
        result = await _post_notification(
            worker, channel, sample_notification(channel, environment)
        )
        environment.reach_fault_point("pushed")
        values = {"test_at": None, "last_error": result.error, **rate_values}
        if result.error is None:
            values["last_push_at"] = environment.now()
        await _update_claimed_channel(environment, channel, values)
        return await _read_claimed_channel(environment, channel.id, channel.lease)
    news = await _read_news_if_due(environment, channel)
    if news is None or not news.messages:
        values = {} if news is None else {"number": news.position, "retry_at": None}
        await _update_claimed_channel(environment, channel, values, release=True)
        return None
    notice, position = await _next_notification(environment, channel, news)
    result = await _post_notification(worker, channel, notice)
    environment.reach_fault_point("pushed")
    await _record_push_result(environment, channel, result, {**rate_values, "number": position})
    return (
        None
        if result.error
        else await _read_claimed_channel(environment, channel.id, channel.lease)
    )


async def _read_news_if_due(environment: Environment, channel: ColumnRow) -> ChannelNews | None:
    """Read new messages for a channel; None if nothing can be pushed now."""
    is_waiting = channel.retry_at is not None and channel.retry_at > environment.now()
    if not channel.active or is_waiting or channel.last <= channel.number:
        return None
    news = (await push_events.read_channel_news(environment, [channel]))[channel.id]
    if not channel.high_priority_only or not news.messages:
        return news
    urgent_ids = await push_events.read_urgent_message_ids(
        environment, [one.message.id for one in news.messages]
    )
    return replace(news, messages=[one for one in news.messages if one.message.id in urgent_ids])


async def _next_notification(
    environment: Environment, channel: ColumnRow, news: ChannelNews
) -> tuple[PushNotification, int]:
    """Return the next notification and the journal position after it."""
    first: PushMessage = news.messages[0]
    messages = news.messages if len(news.messages) > MAX_SINGLE_NOTIFICATIONS else [first]
    message_ids = [one.message.id for one in messages]
    is_urgent = channel.pass_priority and bool(
        await push_events.read_urgent_message_ids(environment, message_ids)
    )
    if len(messages) > 1:
        return notification_of_many(channel, len(messages), is_urgent=is_urgent), news.position
    position = first.position if len(news.messages) > 1 else news.position
    return notification_of_message(channel, first.message, is_urgent=is_urgent), position


async def _post_notification(
    worker: PushWorker, channel: ColumnRow, notice: PushNotification
) -> PushResult:
    """Post one notification. Failures are part of the result."""
    started, environment = monotonic(), worker.environment
    status, error = None, None
    # the address of Pushover is a setting, the others come from users
    allow_private = worker.gate.allows_private or environment.options.push_allow_private_networks
    allow_private = allow_private or channel.kind is PushKind.PUSHOVER
    try:
        request = await build_push_request(environment, channel, notice, worker.encode_node_id)
        endpoint = parse_target(request.url, allow_private=allow_private)
        status = await post(
            endpoint,
            request.headers,
            request.body,
            replace(worker.gate, allows_private=allow_private),
        )
        error = status_problem(status)
    except InvalidInput as problem:  # accepted under earlier settings
        error = problem.message
    except HttpRequestFailed as problem:
        error = str(problem)
    except DecryptionError:
        error = "its secrets cannot be read"
    PUSH_RESULTS.add(channel.kind, "failed" if error else "taken")
    PUSH_SECONDS.observe(monotonic() - started)
    facts = {"channel": channel.id, "kind": channel.kind, "status": status, "error": error}
    log.info("pushed" if error is None else "push failed", extra=facts)
    return PushResult(error, is_gone=status in GONE_STATUSES[channel.kind])


async def _record_push_result(
    environment: Environment, channel: ColumnRow, result: PushResult, columns: Mapping[str, Any]
) -> None:
    """Write the result of a push. A channel that is gone is switched off."""
    if result.error is None:
        success_values = {
            "failures": 0,
            "retry_at": None,
            "last_error": None,
            "last_push_at": environment.now(),
        }
        await _update_claimed_channel(environment, channel, {**success_values, **columns})
        return
    failures = channel.failures + 1
    random_fraction = int.from_bytes(environment.random_bytes(2)) / 0x10000
    values = {
        "failures": failures,
        "last_error": result.error,
        "retry_at": environment.now() + pause_after(failures, random_fraction),
    }
    if result.is_gone:
        values |= {"active": False, "retry_at": None}
    await _update_claimed_channel(environment, channel, values, release=True)


async def _update_claimed_channel(
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
            await record_entry(session, channel.user_id, entry, at=environment.now())


async def _stop_channels(worker: PushWorker) -> None:
    """Cancel the served channels and release their leases, so that other processes continue."""
    served = dict(worker.served)
    for each in served.values():
        each.task.cancel()
    await asyncio.gather(*(each.task for each in served.values()), return_exceptions=True)
    with suppress(Exception):  # the leases end with the process registration
        await _release_leases(worker.environment, [each.lease for each in served.values()])


async def _release_leases(environment: Environment, lease_ids: Sequence[int]) -> None:
    """Release leases, so that another process can serve the channels at once."""
    if lease_ids:
        statement = update(PushChannel).where(col(PushChannel.lease).in_(lease_ids))
        async with environment.write_session() as session:
            released = {"lease": None, "holder": None}
            await (await session.connection()).execute(statement.values(released))
