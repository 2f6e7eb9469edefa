"""Submission sessions of several processes end with the access token that they signed in with."""

import asyncio
import base64
from collections.abc import Iterator

import httpx
import pytest

from bench.servers.ports import free_port
from tests.support.mail_servers.lmtp_client import SmtpTestClient
from tests.support.mail_servers.smtp_client import CertificateAuthority, connect_smtp, start_tls
from tests.support.oauth.oauth_flow import OauthBrowser, TestClient, location_parameters
from tests.support.oauth.pages_in_browser import create_client
from tests.support.servers.merganser_server import PASSWORD, MerganserProcess

SESSION_COUNT = 8  # the kernel spreads them over the processes
BUSY_MACHINE_SECONDS = 10.0  # the goal is 1 s
GRANTS = "{ user { oauthGrants { nodes { id } } } }"


@pytest.fixture
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def submission_port() -> int:
    return free_port()


@pytest.fixture
def token_server(
    tmp_path_factory: pytest.TempPathFactory, authority: CertificateAuthority, submission_port: int
) -> Iterator[MerganserProcess]:
    """A server with two listening processes."""
    folder = tmp_path_factory.mktemp("server")
    server = MerganserProcess(folder, serve_arguments=("--workers", "2"))
    certificate = str(authority.issue_certificate())
    server.extra_settings = {
        "PUBLIC_URL": server.url,
        "SUBMISSION_LISTEN": f"127.0.0.1:{submission_port}",
        "TLS_CERT": certificate,
        "TLS_KEY": certificate,
    }
    server.create_users("ada")
    server.start()
    yield server
    server.stop()


async def get_access_token(server: MerganserProcess, client: TestClient) -> str:
    """Sign in as ada, and return an access token for SMTP."""
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
        browser = OauthBrowser(http, {"Origin": server.url})
        consent = await browser.sign_in(await browser.open(client, scope="smtp"), "ada", PASSWORD)
        code = location_parameters(await browser.send(consent, choice="allow"))["code"]
        response = await browser.request_tokens(client, code)
        access_token: str = response.json()["access_token"]
        return access_token


async def open_session(port: int, authority: CertificateAuthority, token: str) -> SmtpTestClient:
    """Sign in to submission with a token."""
    client = await connect_smtp(port)
    await start_tls(client, authority.client_context())
    await client.run_command("EHLO x")
    text = f"user=ada\x01auth=Bearer {token}\x01\x01"
    response = base64.b64encode(text.encode()).decode()
    assert (await client.run_command(f"AUTH XOAUTH2 {response}")).startswith("235")
    return client


async def test_revoked_grant_closes_the_sessions_of_all_processes(
    token_server: MerganserProcess, authority: CertificateAuthority, submission_port: int
) -> None:
    token = await get_access_token(token_server, await create_client(token_server, scopes=["SMTP"]))
    sessions = [await open_session(submission_port, authority, token) for _ in range(SESSION_COUNT)]
    async with token_server.open_client("ada") as ada:
        (grant,) = (await ada(GRANTS))["user"]["oauthGrants"]["nodes"]
        await ada.run_mutation("oauthGrantRevoke", {"oauthGrants": [grant]})
    async with asyncio.timeout(BUSY_MACHINE_SECONDS):
        replies = await asyncio.gather(*(session.read_until_closed() for session in sessions))
    assert all(reply.startswith(b"421 ") for reply in replies)
    for session in sessions:
        await session.close()
