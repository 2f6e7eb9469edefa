"""Send push notifications of new mail to channels, each at its own rate."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from time import monotonic
from typing import Any, NamedTuple

from sqlalchemy import Select, bindparam, func, select, union, update
from sqlmodel import col

from mail.network.outbound_http import (
    HttpRequestFailed,
    NetworkPolicy,
    parse_http_target,
    post_and_return_status,
    status_problem,
)
from models.errors import InvalidInput
from models.events.journal import Stream
from models.events.wakeups import PUSHES, wait_for_any_event_or_timeout
from models.notifications.push_channels import PushChannel, PushKind
from models.observability import metrics
from models.runtime import leases
from models.runtime.environment import Environment
from models.runtime.secret_box import DecryptionError
from models.runtime.worker_stop import is_worker_stopping
from models.store.columns import ColumnRow, core_table, select_columns
from models.users.tables import User
from resolvers.notifications import push_events
from resolvers.notifications.push_events import ChannelNewMessages, PushMessage
from resolvers.notifications.push_leases import (
    PushLeaseLost,
    is_active_user,
    lease_and_read_channel,
    read_channel_if_leased,
    release_leases,
    require_lease_and_update_channel,
)
from resolvers.notifications.push_requests import (
    NodeIdEncoder,
    PushNotification,
    build_push_request,
    notification_of_many,
    notification_of_message,
    sample_notification,
)
from resolvers.notifications.webhook_results import retry_delay as pause_after

log = logging.getLogger(__name__)

PUSH_RESULTS = metrics.counter(
    "merganser_push_notifications", "Push messages by result.", "kind", "result"
)
PUSH_SECONDS = metrics.histogram(
    "merganser_push_notification_seconds", "Duration of a push message."
)
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


@dataclass(frozen=True, slots=True)
class PushResult:
    """The result of a push. `error` is None on success; `is_gone` switches the channel off."""

    error: str | None
    is_gone: bool = False


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
    network_policy: NetworkPolicy
    served: dict[int, ServedChannel] = field(default_factory=dict)  # by channel id
    grown_stream_ids: set[int] = field(default_factory=set)  # not yet read
    channel_freed: asyncio.Event = field(default_factory=asyncio.Event)
    has_channels: bool = True  # without channels, wake-ups cause no statements
    has_more: bool = False  # more channels are due than were started


async def run_push_worker_until_stopped(
    environment: Environment,
    encode_node_id: NodeIdEncoder,
    network_policy: NetworkPolicy | None = None,
) -> None:
    """Send push notifications until cancelled or stopped. A stopped worker finishes those begun."""
    worker = PushWorker(
        environment,
        encode_node_id,
        network_policy or NetworkPolicy.from_options(environment.options),
    )
    async with leases.keep_process_registered(environment):
        await _serve_channels_until_worker_stops(worker)


async def _serve_channels_until_worker_stops(worker: PushWorker) -> None:
    last_full_read, environment = -POLL_SECONDS, worker.environment
    with environment.wakeups.follow_all_streams() as wakeup:
        try:
            while not is_worker_stopping():
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
                    pause = await _start_pushes_or_log_error_return_pause(worker, read_all=read_all)
                await wait_for_any_event_or_timeout(
                    (wakeup, worker.channel_freed),
                    min(pause, last_full_read + POLL_SECONDS - monotonic()),
                )
            await asyncio.gather(*(served.task for served in worker.served.values()))
        finally:
            await _cancel_channels_and_release_leases(worker)


async def _start_pushes_or_log_error_return_pause(worker: PushWorker, *, read_all: bool) -> float:
    try:
        return await start_pushes_and_return_pause_seconds(worker, read_all=read_all)
    except Exception:  # the worker must survive an outage of the database
        log.exception("Could not look for push channels to serve")
        return POLL_SECONDS


async def start_pushes_and_return_pause_seconds(
    worker: PushWorker, *, read_all: bool = True
) -> float:
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
        _select_due_channels(worker, read_all=read_all).limit(free_slots)
    )
    worker.has_more = len(rows) == free_slots
    active_channels = [row for row in rows if row.active]
    news_by_channel = (
        await push_events.read_new_messages_by_channel(environment, active_channels)
        if active_channels
        else {}
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
    await _advance_channels_without_new_messages(environment, to_advance, news_by_channel)
    for row in to_start:
        lease = environment.new_id()
        task = asyncio.create_task(_serve_channel(worker, row.id, lease))
        worker.served[row.id] = ServedChannel(row.user_id, lease, task)
    worker.has_more |= len(news_by_channel) < len(active_channels)
    worker.has_more |= any(news_by_channel[row.id].position < row.last for row in without_messages)
    # their streams can grow while this runs
    worker.grown_stream_ids = {served.user_id for served in worker.served.values()}
    if worker.has_more:
        worker.channel_freed.set()
    return await _seconds_until_retry(environment)


def _select_due_channels(worker: PushWorker, *, read_all: bool) -> Select[*tuple[Any, ...]]:
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
            is_active_user(),
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


async def _seconds_until_retry(environment: Environment) -> float:
    """Return the seconds until the next retry of a channel that is not leased.

    Retries that are due already do not count. Returns at most POLL_SECONDS, also without a retry.
    """
    soonest = select(func.min(col(PushChannel.retry_at)).label("at")).where(
        col(PushChannel.retry_at) > environment.now(), leases.is_unleased(PushChannel)
    )
    (row,) = await environment.database.read(soonest)
    return (
        POLL_SECONDS
        if row.at is None
        else min((row.at - environment.now()).total_seconds(), POLL_SECONDS)
    )


async def _advance_channels_without_new_messages(
    environment: Environment,
    channels: Sequence[ColumnRow],
    news_by_channel: Mapping[int, ChannelNewMessages],
) -> None:
    """Advance the positions of these channels, none of which has new messages, in one transaction.

    A channel that is leased, or has moved since, is unchanged.
    """
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
            channel = await lease_and_read_channel(worker.environment, channel_id, lease)
            while channel is not None and not is_worker_stopping():
                channel = await _send_next_notification(worker, channel)
    except PushLeaseLost:
        log.info("Push channel changed at the same time", extra={"channel": channel_id})
    except Exception:
        log.exception("Could not serve the push channel", extra={"channel": channel_id})
        is_leased = col(PushChannel.id) == channel_id, col(PushChannel.lease) == lease
        leases.end_lease_at_later_heartbeat(
            worker.environment, PushChannel, *is_leased, delay_seconds=PAUSE_AFTER_ERROR
        )
    finally:
        worker.served.pop(channel_id, None)
        worker.channel_freed.set()


async def _send_next_notification(worker: PushWorker, channel: ColumnRow) -> ColumnRow | None:
    """Send one notification. Returns the channel after it, or None if nothing is left to do now."""
    environment = worker.environment
    window_start = channel.window_at
    is_in_window = window_start is not None and environment.now() < window_start + RATE_WINDOW
    if is_in_window and channel.pushed >= MAX_PUSHES_PER_WINDOW:
        await require_lease_and_update_channel(
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
        await require_lease_and_update_channel(environment, channel, values)
        return await read_channel_if_leased(environment, channel.id, channel.lease)
    news = await _read_new_messages_if_due(environment, channel)
    if news is None or not news.messages:
        values = {} if news is None else {"number": news.position, "retry_at": None}
        await require_lease_and_update_channel(environment, channel, values, release=True)
        return None
    notice, position = await _next_notification(environment, channel, news)
    result = await _post_notification(worker, channel, notice)
    environment.reach_fault_point("pushed")
    await _store_push_result_and_disable_if_gone(
        environment, channel, result, {**rate_values, "number": position}
    )
    return (
        None
        if result.error
        else await read_channel_if_leased(environment, channel.id, channel.lease)
    )


async def _read_new_messages_if_due(
    environment: Environment, channel: ColumnRow
) -> ChannelNewMessages | None:
    """Read new messages for a channel; None if nothing can be pushed now."""
    is_waiting = channel.retry_at is not None and channel.retry_at > environment.now()
    if not channel.active or is_waiting or channel.last <= channel.number:
        return None
    news = (await push_events.read_new_messages_by_channel(environment, [channel]))[channel.id]
    if not channel.high_priority_only or not news.messages:
        return news
    urgent_ids = await push_events.read_urgent_message_ids(
        environment, [message.message.id for message in news.messages]
    )
    return replace(
        news, messages=[message for message in news.messages if message.message.id in urgent_ids]
    )


class _NextNotification(NamedTuple):
    """A notification, and the journal position after its events."""

    notification: PushNotification
    position_after: int


async def _next_notification(
    environment: Environment, channel: ColumnRow, news: ChannelNewMessages
) -> _NextNotification:
    """Return the next notification and the journal position after it."""
    first: PushMessage = news.messages[0]
    messages = news.messages if len(news.messages) > MAX_SINGLE_NOTIFICATIONS else [first]
    message_ids = [message.message.id for message in messages]
    is_urgent = channel.pass_priority and bool(
        await push_events.read_urgent_message_ids(environment, message_ids)
    )
    if len(messages) > 1:
        return _NextNotification(
            notification_of_many(channel, len(messages), is_urgent=is_urgent), news.position
        )
    position = first.position if len(news.messages) > 1 else news.position
    return _NextNotification(
        notification_of_message(channel, first.message, is_urgent=is_urgent), position
    )


async def _post_notification(
    worker: PushWorker, channel: ColumnRow, notice: PushNotification
) -> PushResult:
    """Post one notification. Failures are part of the result."""
    started, environment = monotonic(), worker.environment
    status, error = None, None
    # the address of Pushover is a setting, the others come from users
    allow_private = (
        worker.network_policy.allows_private or environment.options.push_allow_private_networks
    )
    allow_private = allow_private or channel.kind is PushKind.PUSHOVER
    try:
        request = await build_push_request(environment, channel, notice, worker.encode_node_id)
        endpoint = parse_http_target(request.url, allow_private=allow_private)
        status = await post_and_return_status(
            endpoint,
            request.headers,
            request.body,
            replace(worker.network_policy, allows_private=allow_private),
        )
        error = status_problem(status)
    except InvalidInput as problem:  # accepted under earlier settings
        error = problem.message
    except HttpRequestFailed as problem:
        error = str(problem)
    except DecryptionError:
        error = "The secrets of the channel can't be decrypted."
    PUSH_RESULTS.add(channel.kind, "failed" if error else "taken")
    PUSH_SECONDS.observe(monotonic() - started)
    facts = {"channel": channel.id, "kind": channel.kind, "status": status, "error": error}
    log.info("Push notification sent" if error is None else "Push notification failed", extra=facts)
    return PushResult(error, is_gone=status in GONE_STATUSES[channel.kind])


async def _store_push_result_and_disable_if_gone(
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
        await require_lease_and_update_channel(environment, channel, {**success_values, **columns})
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
    await require_lease_and_update_channel(environment, channel, values, release=True)


async def _cancel_channels_and_release_leases(worker: PushWorker) -> None:
    """Cancel the served channels and release their leases, so that other processes continue."""
    served = dict(worker.served)
    for served_channel in served.values():
        served_channel.task.cancel()
    await asyncio.gather(
        *(served_channel.task for served_channel in served.values()), return_exceptions=True
    )
    try:
        await release_leases(
            worker.environment, [served_channel.lease for served_channel in served.values()]
        )
    except Exception:  # the leases end with the process registration
        log.exception("Could not release the push channels")
