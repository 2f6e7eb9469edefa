"""The pool of open SMTP connections to other servers.

Connections are used again only for the same host with the same TLS requirement and login. If an
idle connection turns out to be closed, the caller opens a new one and no attempt is counted.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from mail.envelope.delivery_jobs import QueueLimits
from mail.outbound import smtp_connect
from mail.outbound.smtp_client import SmtpConnection
from mail.outbound.tls_client import TlsContexts
from mail.routing.mx_hosts import NextHop
from models.observability import metrics
from models.runtime.environment import Environment

CONNECTIONS_COUNTER = metrics.counter(
    "merganser_queue_connections", "Outgoing connections: new, or used again.", "kind"
)


@dataclass
class SmtpConnectionPool:
    """Idle SMTP connections by host, with the timers that close them."""

    environment: Environment
    limits: QueueLimits
    tls_contexts: TlsContexts
    count_wanted: Callable[[], int]  # number of connections that can be used again at once
    idle: defaultdict[NextHop, list[SmtpConnection]] = field(
        default_factory=lambda: defaultdict(list)
    )
    expiry_timers: dict[SmtpConnection, asyncio.TimerHandle] = field(default_factory=dict)
    closing_tasks: "set[asyncio.Task[None]]" = field(default_factory=set)

    @asynccontextmanager
    async def lease_connection(self, host: NextHop) -> AsyncGenerator[SmtpConnection]:
        """Take an idle connection or open a new one. Raises ServerFailed.

        At the end of the block the connection becomes idle, unless it failed or enough are idle.
        """
        channel = await self._take_idle(host) or await self._open_connection(host)
        try:
            yield channel
        except BaseException:
            channel.abort()
            raise
        self._keep_idle_or_close(host, channel)

    async def discard_idle(self, host: NextHop) -> None:
        """Abort all idle connections to a host, since one of them was closed by the server."""
        for channel in self.idle.pop(host, []):
            self._cancel_timer(channel)
            channel.abort()

    async def close(self) -> None:
        """Close all idle connections."""
        idle_channels = [channel for channels in self.idle.values() for channel in channels]
        self.idle.clear()
        for channel in idle_channels:
            self._cancel_timer(channel)
        await asyncio.gather(*(channel.quit() for channel in idle_channels), *self.closing_tasks)

    async def _take_idle(self, host: NextHop) -> SmtpConnection | None:
        """Take an idle connection that can be used again. None if there is none."""
        while self.idle[host]:
            channel = self.idle[host].pop()
            self._cancel_timer(channel)
            if await channel.try_reset_for_next_message():
                CONNECTIONS_COUNTER.add("reused")
                return channel
            channel.abort()
        del self.idle[host]
        return None

    async def _open_connection(self, host: NextHop) -> SmtpConnection:
        """Open a connection. Raises ServerFailed."""
        CONNECTIONS_COUNTER.add("new")
        hostname = self.environment.options.hostname
        return await smtp_connect.connect_to_next_hop(
            host, self.limits, local_hostname=hostname, tls_contexts=self.tls_contexts
        )

    def _keep_idle_or_close(self, host: NextHop, channel: SmtpConnection) -> None:
        """Keep a connection as idle, or close it if it was used enough or enough are idle."""
        if not channel.is_reusable:
            channel.abort()
            return
        options = self.environment.options
        is_below_limit = channel.message_count < options.outbound_messages_per_connection
        max_idle = options.outbound_idle_connections and max(
            options.outbound_idle_connections, self.count_wanted()
        )
        if not is_below_limit or len(self.idle[host]) >= max_idle:
            self._close_in_background(channel)
            return
        self.idle[host].append(channel)
        loop = asyncio.get_running_loop()
        idle_seconds = options.outbound_idle_timeout.total_seconds()
        self.expiry_timers[channel] = loop.call_later(
            idle_seconds, self._close_expired, host, channel
        )

    def _close_expired(self, host: NextHop, channel: SmtpConnection) -> None:
        """Close a connection at the end of its idle time."""
        self.expiry_timers.pop(channel, None)
        if channel in self.idle.get(host, ()):
            self.idle[host].remove(channel)
            self._close_in_background(channel)

    def _cancel_timer(self, channel: SmtpConnection) -> None:
        if timer := self.expiry_timers.pop(channel, None):
            timer.cancel()

    def _close_in_background(self, channel: SmtpConnection) -> None:
        task = asyncio.create_task(channel.quit())
        self.closing_tasks.add(task)
        task.add_done_callback(self.closing_tasks.discard)
