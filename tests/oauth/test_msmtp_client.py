"""The mail program msmtp sends with access tokens, by XOAUTH2 and OAUTHBEARER."""

import asyncio
import shlex
from pathlib import Path

import pytest
from sqlalchemy import select

from mail.smtp.submission_server import SubmissionListener as Listener
from models.queue.tables import QueueEntry
from models.store.columns import core_table
from tests.conftest import GraphQLClient
from tests.support.mail_servers.scanner_servers import require_program
from tests.support.mail_servers.smtp_client import SERVER_NAME, CertificateAuthority
from tests.support.mail_servers.submission_listeners import authority, listener
from tests.support.oauth.oauth_flow import OauthBrowser, add_client

__all__ = ["authority", "listener"]

MESSAGE = b"From: ada@example.org\nTo: bob@example.com\nSubject: By token\n\nHello\n"
PROGRAM_TIMEOUT = 60.0  # seconds on a busy machine
EX_NOPERM = 77  # sysexits.h: the server refuses the credentials


class Msmtp:
    """msmtp with a configuration file; it reads the token from a file for each message."""

    def __init__(self, folder: Path, port: int, authority: CertificateAuthority) -> None:
        self.program = require_program("msmtp")
        self.token_file = folder / "token"
        self.trust_file = authority.write_certificate()
        self.config_file = folder / "msmtprc"
        self.port = port

    async def send(self, mechanism: str, token: str) -> tuple[int | None, str]:
        """Send a message; return the exit code and the error output."""
        self.token_file.write_text(token)
        self.config_file.write_text(
            f"account default\nhost 127.0.0.1\nport {self.port}\nfrom ada@example.org\n"
            f"tls on\ntls_starttls on\ntls_trust_file {self.trust_file}\n"
            f"tls_host_override {SERVER_NAME}\nauth {mechanism}\nuser ada@example.org\n"
            f"passwordeval cat {shlex.quote(str(self.token_file))}\n"
        )
        self.config_file.chmod(0o600)
        process = await asyncio.create_subprocess_exec(
            self.program,
            f"--file={self.config_file}",
            "bob@example.com",
            stdin=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(PROGRAM_TIMEOUT):
            _, errors = await process.communicate(MESSAGE)
        return process.returncode, errors.decode()


@pytest.mark.parametrize("mechanism", ["xoauth2", "oauthbearer"])
async def test_msmtp_sends_with_a_token(
    browser: OauthBrowser,
    ada: GraphQLClient,
    listener: Listener,
    authority: CertificateAuthority,
    mechanism: str,
) -> None:
    webmail = await add_client(ada.environment)
    msmtp = Msmtp(authority.folder, listener.port, authority)
    tokens = await browser.get_tokens(webmail, scope="smtp")
    code, errors = await msmtp.send(mechanism, tokens["access_token"])
    assert (code, errors) == (0, "")
    (entry,) = await ada.environment.database.read(select(core_table(QueueEntry)))
    assert entry.recipient == "bob@example.com"
    await browser.post_as_client("/oauth/revoke", webmail, token=tokens["access_token"])
    code, errors = await msmtp.send(mechanism, tokens["access_token"])
    assert (code, "535 5.7.8" in errors) == (EX_NOPERM, True), errors
