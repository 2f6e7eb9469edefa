"""Watchers that follow an account, reconnect, and must know all of it at the end."""

import asyncio
import dataclasses
from contextlib import aclosing
from dataclasses import dataclass, field
from random import Random

from bench.change_stream.account_replica import AccountReplica, ResyncRequired
from bench.change_stream.follow_transports import (
    COUNTERS_SUBSCRIPTION,
    RETRYABLE_ERRORS,
    TRANSPORTS,
    AccountEndpoint,
    ConnectionEnded,
    UnexpectedResponse,
    open_http_client,
    read_snapshot,
    subscribe,
)

LEAVE_CHANCE = 0.05  # to disconnect after a batch
RESTART_CHANCE = 0.3  # to continue from the saved replica after disconnecting
SAVE_CHANCE = 0.1  # to save the replica after a batch
MAX_BATCH_SECONDS = {
    "socket": 0.8,
    "events": 0.8,
    "updates": 0.03,
    "asking": 0.8,
}  # seconds, by transport
MAX_PAUSE = 0.4  # seconds


@dataclass
class StreamWatcher:
    """A follower with one transport and a replica of the account."""

    name: str
    endpoint: AccountEndpoint
    transport: str
    random: Random
    is_slow: bool = False
    other_api_key: str = ""  # if it is not the account's own
    replica: AccountReplica | None = None
    event_count: int = 0
    connection_count: int = 0
    restart_count: int = 0  # times that it continued from the saved replica
    resync_reasons: list[str] = field(default_factory=list)  # why the account was read again
    problems: list[str] = field(default_factory=list)
    stays_connected: bool = False  # no more disconnects and pauses, to catch up
    _saved: AccountReplica | None = field(default=None, repr=False)

    @property
    def event_number(self) -> int:
        """The number of the newest event it knows; -1 if it knows none."""
        return self.replica.event_number if self.replica else -1

    async def follow(self) -> None:
        """Follow until cancelled, or until the server returns an unexpected response."""
        while True:
            try:
                if self.replica is None:
                    async with open_http_client(self.endpoint) as http:
                        self.replica = await read_snapshot(http)
                    self._saved = self.replica.copy_replica()
                await self._follow_until_disconnect(self.replica)
            except ResyncRequired as reason:
                self.resync_reasons.append(str(reason))
                self._keep_problems()
                self.replica = None
            except (*RETRYABLE_ERRORS, ConnectionEnded):
                await asyncio.sleep(self.random.uniform(0.02, 0.2))
            except UnexpectedResponse as problem:
                self.problems.append(f"{self.name} at event {self.event_number} received {problem}")
                return

    async def _follow_until_disconnect(self, replica: AccountReplica) -> None:
        self.connection_count += 1
        endpoint = dataclasses.replace(
            self.endpoint, api_key=self.other_api_key or self.endpoint.api_key
        )
        batches = TRANSPORTS[self.transport](
            endpoint, replica.cursor, self.random, is_slow=self.is_slow
        )
        async with aclosing(batches) as coming:
            async for events, cursor in coming:
                replica.apply_batch(events, cursor)
                self.event_count += len(events)
                if self.stays_connected:
                    continue
                if self.is_slow:
                    await asyncio.sleep(self.random.uniform(0, MAX_BATCH_SECONDS[self.transport]))
                if self.random.random() < SAVE_CHANCE:
                    self._saved = replica.copy_replica()
                if self.random.random() < LEAVE_CHANCE:
                    break
        # closing the stream took time, in which the end of the proof can have begun
        if self._saved and not self.stays_connected and self.random.random() < RESTART_CHANCE:
            self._keep_problems()
            self.restart_count += 1
            self.replica = self._saved.copy_replica()
        await asyncio.sleep(self.random.uniform(0, MAX_PAUSE))

    def _keep_problems(self) -> None:
        """Keep the problems of a replica that is replaced."""
        if self.replica and self.replica is not self._saved:
            saved_problems = self._saved.problems if self._saved else []
            self.problems += [
                f"{self.name}: {problem}"
                for problem in self.replica.problems
                if problem not in saved_problems
            ]

    @property
    def all_problems(self) -> list[str]:
        """All problems found until now."""
        replica_problems = [
            f"{self.name}: {problem}" for problem in (self.replica.problems if self.replica else [])
        ]
        return list(dict.fromkeys([*self.problems, *replica_problems]))


@dataclass
class CounterWatcher:
    """A follower of mailbox counters only."""

    name: str
    endpoint: AccountEndpoint
    random: Random
    counters: dict[str, tuple[int, int]] = field(default_factory=dict)  # messages, unseen
    problems: list[str] = field(default_factory=list)
    stays_connected: bool = False

    async def follow(self) -> None:
        """Follow until cancelled, or until the server returns an unexpected response."""
        while True:
            try:
                async with aclosing(subscribe(self.endpoint, COUNTERS_SUBSCRIPTION)) as coming:
                    async for data in coming:
                        for one in data["mailboxCounters"]:
                            self.counters[one["id"]] = (one["messageCount"], one["unseenCount"])
                        if not self.stays_connected and self.random.random() < LEAVE_CHANCE:
                            break
            except (*RETRYABLE_ERRORS, ConnectionEnded):
                pass
            except UnexpectedResponse as problem:
                self.problems.append(f"{self.name} received {problem}")
                return
            await asyncio.sleep(self.random.uniform(0.02, MAX_PAUSE))


def create_watchers(
    endpoints: list[AccountEndpoint], root_api_key: str, count_per_transport: int, seed: int
) -> list[StreamWatcher]:
    """Create watchers for each transport. Some read slowly, some use the key of ROOT."""
    watchers = []
    for number in range(count_per_transport):
        for transport in TRANSPORTS:
            endpoint = endpoints[number % len(endpoints)]
            by = root_api_key if transport == "updates" and number % 2 else ""
            slow = number % 3 == 2  # noqa: PLR2004
            suffix = f"{' by root' if by else ''}{' (slow)' * slow}"
            name = f"{transport} {number} of {endpoint.user_id}{suffix}"
            random = Random(f"{seed}.{name}")  # noqa: S311 - no secret
            watchers.append(StreamWatcher(name, endpoint, transport, random, slow, by))
    return watchers
