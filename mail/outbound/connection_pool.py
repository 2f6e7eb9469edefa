"""The pool of open SMTP connections to other servers.

Connections are used again only for the same host with the same TLS requirement and login. If an
idle connection turns out to be closed, the caller opens a new one and no attempt is counted.
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
    """Idle SMTP connections by host, with the timers that close them."""

    world: World
    pace: Pace
    contexts: Contexts
    wanted: Callable[[], int]  # number of connections that can be used again at once
    idle: defaultdict[Host, list[Channel]] = field(default_factory=lambda: defaultdict(list))
    ends: dict[Channel, asyncio.TimerHandle] = field(default_factory=dict)
    closing: "set[asyncio.Task[None]]" = field(default_factory=set)

    @asynccontextmanager
    async def lent(self, host: Host) -> AsyncGenerator[Channel]:
        """Take an idle connection or open a new one. Raises ServerFailed.

        At the end of the block the connection becomes idle, unless it failed or enough are idle.
        """
        channel = await self._kept(host) or await self._new(host)
        try:
            yield channel
        except BaseException:
            channel.drop()
            raise
        self._back(host, channel)

    async def fresh(self, host: Host) -> None:
        """Abort all idle connections to a host, since one of them was closed by the server."""
        for channel in self.idle.pop(host, []):
            self._forget(channel)
            channel.drop()

    async def close(self) -> None:
        """Close all idle connections."""
        kept = [channel for channels in self.idle.values() for channel in channels]
        self.idle.clear()
        for channel in kept:
            self._forget(channel)
        await asyncio.gather(*(channel.close() for channel in kept), *self.closing)

    async def _kept(self, host: Host) -> Channel | None:
        """Take an idle connection that can be used again. None if there is none."""
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
        """Open a connection. Raises ServerFailed."""
        OPENED.add("new")
        hostname = self.world.options.hostname
        return await smtp_client.connect(host, self.pace, hostname=hostname, contexts=self.contexts)

    def _back(self, host: Host, channel: Channel) -> None:
        """Keep a connection as idle, or close it if it was used enough or enough are idle."""
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
        """Close a connection at the end of its idle time."""
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
