"""An LMTP listener over real sockets, with a backend in memory."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mail.smtp.connection_limits import SessionLimits
from mail.smtp.lmtp import LmtpListener
from tests.support.mail_servers.empty_store_listeners import open_empty_store_listeners
from tests.support.mail_servers.lmtp_client import InMemoryBackend, SmtpTestClient, connect_lmtp

OpenLmtpListener = Callable[..., Awaitable[LmtpListener]]


@pytest.fixture
async def backend() -> InMemoryBackend:
    return InMemoryBackend()


@pytest.fixture
async def open_listener(
    tmp_path: Path, backend: InMemoryBackend
) -> AsyncIterator[OpenLmtpListener]:
    """Return a function that starts a listener with these limits."""
    async with open_empty_store_listeners(tmp_path) as listener_factory:

        async def start_listener(
            reach_fault_point: Callable[[str], None] = lambda _place: None, **limits: Any
        ) -> LmtpListener:
            environment = listener_factory.environment(reach_fault_point=reach_fault_point)
            session_limits = replace(SessionLimits(), **limits)
            return await listener_factory.start_listener(
                LmtpListener(environment, tmp_path / "spool", session_limits, backend)
            )

        yield start_listener


@pytest.fixture
async def lmtp_listener(open_listener: OpenLmtpListener) -> LmtpListener:
    return await open_listener()


@pytest.fixture
async def client(lmtp_listener: LmtpListener) -> AsyncIterator[SmtpTestClient]:
    new_client = await connect_lmtp(lmtp_listener.port)
    yield new_client
    await new_client.close()


def spool_files(lmtp_listener: LmtpListener) -> list[Path]:
    return list(lmtp_listener.spool_folder.iterdir())
