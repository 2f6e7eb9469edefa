"""A server with listeners for WebSockets, event streams, SMTP, submission and LMTP."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from models.runtime.environment import Environment
from tests.support.servers.live_server import LiveServer
from tests.support.servers.session_server import SessionServer, run_session_listeners


@pytest.fixture
async def session_server(
    environment: Environment, live_server: LiveServer, tmp_path: Path
) -> AsyncIterator[SessionServer]:
    async with run_session_listeners(environment, live_server, tmp_path) as server:
        yield server
