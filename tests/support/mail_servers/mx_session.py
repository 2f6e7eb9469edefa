"""A session with an MX listener."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from mail.smtp.mx_server import MxListener
from mail.smtp.smtp_server import SmtpListenerConfig
from models.runtime.environment import Environment
from tests.support.mail_servers.lmtp_client import SmtpTestClient
from tests.support.mail_servers.smtp_client import connect_smtp


@asynccontextmanager
async def open_mx_session(
    environment: Environment, tmp_path: Path
) -> AsyncGenerator[SmtpTestClient]:
    """Start an MX listener and open a session with it."""
    listener = MxListener(environment, tmp_path / "spool-mx", SmtpListenerConfig())
    await listener.start(host="127.0.0.1", port=0)
    client = await connect_smtp(listener.port)
    try:
        yield client
    finally:
        await client.close()
        await listener.close(1)
