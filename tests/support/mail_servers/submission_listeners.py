"""A listener for SMTP submission, and a connection with TLS to it."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from sqlmodel import col

from mail.smtp.smtp_server import SmtpListenerConfig
from mail.smtp.submission_server import SubmissionListener as Listener
from mail.tls.server_tls import CertificateFiles
from models.runtime.environment import Environment
from models.users.tables import User
from resolvers.submission.smtp_submission import SmtpSubmissionService
from tests.conftest import make_user
from tests.support.mail_servers.lmtp_client import SmtpTestClient
from tests.support.mail_servers.smtp_client import CertificateAuthority, connect_smtp, start_tls
from tests.support.mail_servers.submission_client import PASSWORD


@pytest.fixture
def authority(tmp_path: Path) -> CertificateAuthority:
    return CertificateAuthority(tmp_path)


@pytest.fixture
async def user(environment: Environment) -> User:
    return await make_user(environment, "ada", password=PASSWORD)


@pytest.fixture
async def listener(
    environment: Environment, tmp_path: Path, authority: CertificateAuthority
) -> AsyncIterator[Listener]:
    config = SmtpListenerConfig(certificates=CertificateFiles(authority.issue_certificate()))
    smtp_listener = Listener(
        environment, tmp_path / "spool", config, SmtpSubmissionService(environment)
    )
    await smtp_listener.start(host="127.0.0.1", port=0)
    yield smtp_listener
    await smtp_listener.close(1)


@pytest.fixture
async def client(
    listener: Listener, authority: CertificateAuthority
) -> AsyncIterator[SmtpTestClient]:
    """A connection with TLS."""
    smtp_client = await connect_smtp(listener.port)
    await start_tls(smtp_client, authority.client_context())
    yield smtp_client
    await smtp_client.close()


async def update_ada(environment: Environment, **columns: Any) -> None:
    async with environment.write_session() as session:
        is_ada = col(User.username) == "ada"
        await session.exec(update(User).where(is_ada).values(**columns))
