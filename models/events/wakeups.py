"""Wake-ups: hints for followers that streams have grown. They have no content, and can be lost."""

import asyncio
import contextlib
import logging
import random
import secrets
from collections import defaultdict
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

from models.events.bus import EventBus

log = logging.getLogger(__name__)

SEND_INTERVAL = (
    0.005  # seconds between two messages of a process; wake-ups of that time share one message
)
MAX_MESSAGE_BYTES = 4000  # PostgreSQL allows 8,000
SEND_TIMEOUT = 2.0  # seconds after which a bus counts as disconnected
MIN_RECONNECT_DELAY = 0.25  # seconds until the next try; it doubles each time
MAX_RECONNECT_DELAY = 5.0  # seconds

CredentialsListener = Callable[[int | None], None]

# Ids of workers, which are woken when there is work for them.
WEBHOOKS, TASKS, UNINDEXED, PUSHES = -1, -2, -3, -4
LESSONS = -5
CONNECTORS = -6
CERTIFICATES = -7
QUEUE = -8
PROCESS_REQUESTS, PROCESS_ANSWERS = -9, -10
WORKERS_OF_ALL_STREAMS = frozenset({WEBHOOKS, PUSHES})  # these workers follow all streams


class FollowerWakeup(asyncio.Event):
    """Wakes one follower or worker. `started` is set as soon as it has read its position."""

    def __init__(self) -> None:
        super().__init__()
        self.started = asyncio.Event()
        self._waiter_count = 0

    @property
    def is_idle(self) -> bool:
        """True if the follower has read everything that it was woken for, and waits."""
        return self._waiter_count > 0 and not self.is_set()

    async def wait(self) -> Literal[True]:
        """Wait until the event is set. The follower has read all earlier changes."""
        self.started.set()
        self._waiter_count += 1
        try:
            return await super().wait()
        finally:
            self._waiter_count -= 1


class GrowthEvent(FollowerWakeup):
    """An event that remembers which streams have grown since they were last taken."""

    def __init__(self) -> None:
        super().__init__()
        self._positions: dict[int, int] = {}

    def note_growth(self, stream_id: int, position: int) -> None:
        """Set the event, and remember the last position of a stream."""
        self._positions[stream_id] = max(position, self._positions.get(stream_id, 0))
        self.set()

    def take_streams(self) -> set[int]:
        """Clear the event, and return the streams that have grown."""
        return set(self.take_positions())

    def take_positions(self) -> dict[int, int]:
        """Clear the event, and return the last position of each stream that has grown."""
        self.clear()
        grown, self._positions = self._positions, {}
        return grown


class Wakeups:
    """Wakes the followers of streams in this process. Negative ids are those of workers."""

    is_disconnected = False  # wake-ups of other processes do not arrive now
    is_shared = False  # other processes may use the same database

    def __init__(self) -> None:
        self._events: defaultdict[int, set[FollowerWakeup]] = defaultdict(set)
        self._last_positions: dict[int, int] = {}
        self._growth_events: set[GrowthEvent] = set()
        self._credentials_listeners: list[CredentialsListener] = []

    @property
    def followed_streams(self) -> list[int]:
        """The streams that have followers."""
        return list(self._events)

    @property
    def follower_wakeups(self) -> set[FollowerWakeup]:
        """The wake-ups of the followers of single streams, and of workers."""
        return set().union(*self._events.values())

    @property
    def growth_events(self) -> set[GrowthEvent]:
        """The wake-ups of the followers of all streams."""
        return set(self._growth_events)

    @contextmanager
    def follow(
        self, stream_ids: Iterable[int], event: FollowerWakeup | None = None
    ) -> Generator[FollowerWakeup]:
        """Set an event, by default a new one, whenever one of these streams grows."""
        stream_ids, event = list(stream_ids), event or FollowerWakeup()
        for stream in stream_ids:
            self._events[stream].add(event)
        try:
            yield event
        finally:
            for stream in stream_ids:
                self._events[stream].discard(event)
                if not self._events[stream]:
                    del self._events[stream]
                    self._last_positions.pop(stream, None)

    @contextmanager
    def follow_all_streams(self) -> Generator[GrowthEvent]:
        """Provide an event that is set when any stream grows, or webhooks or push channels change.

        The event is no longer set after the block.
        """
        bell = GrowthEvent()
        self._growth_events.add(bell)
        try:
            yield bell
        finally:
            self._growth_events.discard(bell)

    def wake_followers(self, stream_id: int, position: int) -> None:
        """Wake the followers in this process, unless they were woken for this position before."""
        if stream_id >= 0 or stream_id in WORKERS_OF_ALL_STREAMS:
            for gathering in self._growth_events:
                gathering.note_growth(stream_id, position)
        if stream_id in self._events and (
            stream_id < 0 or position > self._last_positions.get(stream_id, 0)
        ):
            self._last_positions[stream_id] = position
            for bell in self._events[stream_id]:
                bell.set()

    def known_position(self, stream_id: int) -> int:
        """Return the highest position that was announced of a followed stream; 0 for none."""
        return self._last_positions.get(stream_id, 0)

    def announce(self, positions: Mapping[int, int]) -> None:
        """Wake the followers of these streams, in all processes."""
        for stream, last in positions.items():
            self.wake_followers(stream, last)

    def add_credentials_listener(self, listener: CredentialsListener) -> None:
        """Call `listener` with the user id when credentials of a user must be checked again.

        The id is 0 for credentials without a user, and None for all credentials.
        """
        self._credentials_listeners.append(listener)

    def remove_credentials_listener(self, listener: CredentialsListener) -> None:
        """Stop calling a listener, if it was added."""
        with contextlib.suppress(ValueError):
            self._credentials_listeners.remove(listener)

    def announce_credentials_changed(self, user_ids: Collection[int | None]) -> None:
        """Call the credentials listeners for these users, in all processes."""
        for account in user_ids:
            self.call_credentials_listeners(account)

    def call_credentials_listeners(self, user_id: int | None) -> None:
        """Call the credentials listeners in this process."""
        for warden in self._credentials_listeners:
            warden(user_id)

    def wake_workers(self) -> None:
        """Wake all workers."""
        for bell in set().union(*(self._events[key] for key in self._events if key < 0)):
            bell.set()

    @property
    def bus_name(self) -> str | None:
        """The name of the event bus; None without one."""
        return None

    async def check_bus(self) -> None:
        """Send an empty message over the event bus. Raises the error of the bus."""

    async def receive_forever(self, on_connected: Callable[[], None]) -> None:
        """Receive wake-ups of other processes until cancelled.

        `on_connected` is called whenever that begins, also after a reconnect.
        """
        on_connected()
        await asyncio.get_running_loop().create_future()

    async def close(self) -> None:
        """Send the remaining wake-ups."""


class BusWakeups(Wakeups):
    """Wakes followers in all processes on an event bus.

    Wake-ups that arise while a message is being sent share the next message, so there are few
    messages for any number of transactions. A message that the bus refuses is lost; followers also
    read from time to time.
    """

    is_shared = True

    def __init__(self, bus: EventBus) -> None:
        super().__init__()
        self._bus = bus
        self._sender_name = secrets.token_hex(8)  # to ignore the messages of this process
        self._pending_positions: dict[int, int] = {}
        self._pending_user_ids: dict[int | None, None] = {}
        self._sending: asyncio.Task[None] | None = None
        self._retry_at = 0.0  # time of the loop, before which nothing is sent
        self._reconnect_delay = MIN_RECONNECT_DELAY
        self._is_failure_logged = False

    @property
    def bus_name(self) -> str | None:
        """The name of the event bus."""
        return self._bus.name

    async def check_bus(self) -> None:
        """Send an empty message over the event bus. Raises the error of the bus."""
        if self.is_disconnected:
            raise ConnectionError("The event bus is disconnected.")
        await self._bus.send(self._sender_name)

    def announce(self, positions: Mapping[int, int]) -> None:
        """Wake the followers in this process, and send the positions to other processes."""
        super().announce(positions)
        if positions:
            self._pending_positions.update(positions)
            self._start_sending()

    def announce_credentials_changed(self, user_ids: Collection[int | None]) -> None:
        """Call the credentials listeners of this process and of other processes."""
        super().announce_credentials_changed(user_ids)
        if user_ids:
            self._pending_user_ids.update(dict.fromkeys(user_ids))
            self._start_sending()

    def _start_sending(self) -> None:
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send_pending())

    async def _send_pending(self) -> None:
        while self._pending_positions or self._pending_user_ids:
            positions, self._pending_positions = self._pending_positions, {}
            recalls, self._pending_user_ids = self._pending_user_ids, {}
            lines = [f"!{'' if account is None else account}" for account in recalls]
            lines += [f"{stream} {last}" for stream, last in positions.items()]
            if asyncio.get_running_loop().time() < self._retry_at:
                return  # disconnected; followers find the changes when they read
            try:
                for message in _messages_from_lines(self._sender_name, lines):
                    await self._send_message_retrying_once(message)
            except Exception as problem:  # noqa: BLE001 - no event depends on the bus
                self._log_first_failure(problem)
                self._retry_at = (
                    asyncio.get_running_loop().time() + self._take_reconnect_delay_and_double()
                )
                return
            self._log_recovery_and_reset_delay()
            await asyncio.sleep(SEND_INTERVAL)

    async def _send_message_retrying_once(self, message: str) -> None:
        try:
            async with asyncio.timeout(SEND_TIMEOUT):
                await self._bus.send(message)
        except Exception:  # the connection may be older than an outage of the bus
            if self.is_disconnected:
                raise
            async with asyncio.timeout(SEND_TIMEOUT):
                await self._bus.send(message)

    def _log_first_failure(self, problem: BaseException | None) -> None:
        """Log a failure once until the bus works again."""
        if not self._is_failure_logged:
            reason = type(problem).__name__ if problem else "closed"
            facts = {"bus": self._bus.name, "problem": reason}
            log.warning("Event bus unavailable; polling the journal", extra=facts)
        self._is_failure_logged = True

    def _log_recovery_and_reset_delay(self) -> None:
        if self._is_failure_logged and not self.is_disconnected:
            log.info("Event bus available again", extra={"bus": self._bus.name})
            self._is_failure_logged = False
        self._retry_at, self._reconnect_delay = 0.0, MIN_RECONNECT_DELAY

    def _take_reconnect_delay_and_double(self) -> float:
        pause, self._reconnect_delay = (
            self._reconnect_delay,
            min(self._reconnect_delay * 2, MAX_RECONNECT_DELAY),
        )
        return pause * random.uniform(0.75, 1)  # noqa: S311 - so that not all come at once

    async def receive_forever(self, on_connected: Callable[[], None]) -> None:
        """Receive wake-ups of other processes until cancelled; reconnect after each failure."""

        def note_connected() -> None:
            self.is_disconnected = False
            self._log_recovery_and_reset_delay()
            on_connected()

        while True:
            problem: Exception | None = None
            try:
                await self._bus.receive_until_disconnected(
                    self._wake_or_recheck_from_message, note_connected
                )
            except Exception as broken:  # noqa: BLE001 - no event depends on the bus
                problem = broken
            self.is_disconnected = True
            self._log_first_failure(problem)
            await asyncio.sleep(self._take_reconnect_delay_and_double())

    def _wake_or_recheck_from_message(self, message: str) -> None:
        name, *lines = message.split("\n")
        if name == self._sender_name:
            return
        with contextlib.suppress(ValueError):  # of another version or program
            for line in lines:
                if line.startswith("!"):
                    self.call_credentials_listeners(int(line[1:]) if line[1:] else None)
                else:
                    stream, _, last = line.partition(" ")
                    self.wake_followers(int(stream), int(last))

    async def close(self) -> None:
        """Send the remaining wake-ups, and close the bus."""
        if self._sending:
            await self._sending
        try:
            async with asyncio.timeout(SEND_TIMEOUT):
                await self._bus.close()
        except Exception as problem:  # noqa: BLE001 - it is gone either way
            log.info("Could not close the event bus", extra={"problem": type(problem).__name__})


def _messages_from_lines(sender_name: str, lines: list[str]) -> Iterator[str]:
    """Yield the lines as messages of limited length, each with the sender's name first."""
    message = sender_name
    for line in lines:
        if len(message) + len(line) >= MAX_MESSAGE_BYTES:
            yield message
            message = sender_name
        message += f"\n{line}"
    yield message


async def wait_for_any_event_or_timeout(
    events: Iterable[asyncio.Event], timeout_seconds: float
) -> None:
    """Wait for one of these events, or for the timeout."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(
            waits, timeout=max(timeout_seconds, 0), return_when=asyncio.FIRST_COMPLETED
        )
    finally:
        for wait in waits:
            wait.cancel()
