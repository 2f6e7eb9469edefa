"""Connections to servers elsewhere, which are used again as long as they are good.

They are told apart by all that was asked of them: what was opened with less is never taken for
more. A connection that died meanwhile costs a new one, not an attempt: whoever is lent one that
was used before, and is not answered to MAIL, asks for a fresh one.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from mail.envelope.delivery_jobs import Pace
from mail.outbound import smtp_client
from mail.outbound.smtp_client import Channel
from mail.outbound.tls_client import Contexts
from mail.routing.mx_hosts import Host
from models.observability import metrics
from models.runtime.environment import World

OPENED = metrics.counter(
    "merganser_queue_connections", "Connections to servers elsewhere, by whether new.", "kind"
)


@dataclass
class Pool:
    """Those that wait for their next message."""

    world: World
    pace: Pace
    contexts: Contexts
    wanted: Callable[[], int]  # how many may be taken again at once
    idle: defaultdict[Host, list[Channel]] = field(default_factory=lambda: defaultdict(list))
    ends: dict[Channel, asyncio.TimerHandle] = field(default_factory=dict)
    closing: "set[asyncio.Task[None]]" = field(default_factory=set)

    @asynccontextmanager
    async def lent(self, host: Host) -> AsyncGenerator[Channel]:
        """A connection; NotReached. It is kept if it is good, and few enough are."""
        channel = await self._kept(host) or await self._new(host)
        try:
            yield channel
        except BaseException:
            channel.drop()
            raise
        self._back(host, channel)

    async def fresh(self, host: Host) -> None:
        """Let go of all that are kept for a host: one of them was dead."""
        for channel in self.idle.pop(host, []):
            self._forget(channel)
            channel.drop()

    async def close(self) -> None:
        """Let go of all."""
        kept = [channel for each in self.idle.values() for channel in each]
        self.idle.clear()
        for channel in kept:
            self._forget(channel)
        await asyncio.gather(*(channel.close() for channel in kept), *self.closing)

    async def _kept(self, host: Host) -> Channel | None:
        while self.idle[host]:
            channel = self.idle[host].pop()
            self._forget(channel)
            if await channel.ready():
                OPENED.add("reused")
                return channel
            channel.drop()
        del self.idle[host]
        return None

    async def _new(self, host: Host) -> Channel:
        OPENED.add("new")
        hostname = self.world.options.hostname
        return await smtp_client.connect(host, self.pace, hostname=hostname, contexts=self.contexts)

    def _back(self, host: Host, channel: Channel) -> None:
        if not channel.sound:
            channel.drop()
            return
        options = self.world.options
        good = channel.messages < options.send_connection_messages
        most = options.send_connections_kept and max(options.send_connections_kept, self.wanted())
        if not good or len(self.idle[host]) >= most:
            self._goodbye(channel)
            return
        self.idle[host].append(channel)
        loop = asyncio.get_running_loop()
        wait = options.send_connection_idle.total_seconds()
        self.ends[channel] = loop.call_later(wait, self._expire, host, channel)

    def _expire(self, host: Host, channel: Channel) -> None:
        self.ends.pop(channel, None)
        if channel in self.idle.get(host, ()):
            self.idle[host].remove(channel)
            self._goodbye(channel)

    def _forget(self, channel: Channel) -> None:
        if timer := self.ends.pop(channel, None):
            timer.cancel()

    def _goodbye(self, channel: Channel) -> None:
        task = asyncio.create_task(channel.close())
        self.closing.add(task)
        task.add_done_callback(self.closing.discard)
