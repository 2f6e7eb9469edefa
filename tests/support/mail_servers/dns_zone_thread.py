"""A DNS server in a thread, for tests whose commands run an event loop of their own."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager

from tests.support.mail_servers.dns_zone_server import DnsZoneServer, run_dns_zone
from tests.support.time_limits import HANG_SECONDS


@contextmanager
def run_dns_zone_in_thread(zone: DnsZoneServer) -> Iterator[str]:
    """Run the server, and yield its address for the setting `dns_resolver`."""
    loop, stack = asyncio.new_event_loop(), AsyncExitStack()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        started = asyncio.run_coroutine_threadsafe(
            stack.enter_async_context(run_dns_zone(zone)), loop
        )
        yield started.result(HANG_SECONDS)
        asyncio.run_coroutine_threadsafe(stack.aclose(), loop).result(HANG_SECONDS)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(HANG_SECONDS)
        loop.close()
