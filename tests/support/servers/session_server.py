"""A server with a listener for each service that has sessions, and clients of it."""

import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from mail.smtp.lmtp import LmtpListener, start_lmtp_listener
from mail.smtp.mx_server import MxListener
from mail.smtp.smtp_server import SmtpListenerConfig
from mail.smtp.submission_server import SubmissionListener
from mail.tls.server_tls import CertificateFiles
from models.runtime.environment import Environment
from resolvers.submission.smtp_submission import SmtpSubmissionService
from tests.conftest import GraphQLClient
from tests.support.mail_servers.lmtp_client import SmtpTestClient, connect_lmtp
from tests.support.mail_servers.smtp_client import CertificateAuthority, connect_smtp, start_tls
from tests.support.mail_servers.submission_client import auth_plain_response
from tests.support.servers.live_server import LiveServer
from tests.support.time_limits import HANG_SECONDS

SESSIONS = """
query ($filter: SessionFilter, $orderBy: SessionOrder, $first: Int, $after: String, $last: Int,
    $before: String) {
  sessions(filter: $filter, orderBy: $orderBy, first: $first, after: $after, last: $last,
      before: $before) {
    totalCount unresponsiveNodes pageInfo { endCursor startCursor hasNextPage hasPreviousPage }
    nodes { id user { username } service ip proxied destinationIp destinationPort node pid
      connectedAt lastActiveAt subscriptionCount } } }
"""
SESSION_SUMMARIES = """
query ($filter: SessionFilter, $order: SessionSummaryOrder! = USER_ASC, $first: Int,
  $after: String, $last: Int, $before: String) {
  sessionSummaries(filter: $filter, orderBy: $order, first: $first, after: $after, last: $last,
    before: $before) {
    totalCount unresponsiveNodes pageInfo { endCursor hasNextPage }
    nodes { user { username } service connectionCount ips pids } } }
"""
SESSION_TERMINATE = """
mutation ($input: SessionTerminateInput!) {
  sessionTerminate(input: $input) {
    terminatedCount pendingCount usernames unresponsiveNodes
    errors { __typename code message path } } }
"""
SESSION_DRAIN = """
mutation ($input: SessionDrainInput!) {
  sessionDrain(input: $input) {
    users { username }
    errors { __typename code path ... on SessionsOpenError { sessions tasks } } } }
"""


@dataclass
class SessionServer:
    """Listeners of all services with sessions, on one environment."""

    environment: Environment
    live: LiveServer
    lmtp: LmtpListener
    mx: MxListener
    submission: SubmissionListener
    authority: CertificateAuthority

    @contextlib.asynccontextmanager
    async def client_of(self, client: GraphQLClient) -> AsyncGenerator[GraphQLClient]:
        """Yield a client with the same key that sends its requests over the network."""
        url = f"http://127.0.0.1:{self.live.port}"
        async with httpx.AsyncClient(base_url=url, timeout=HANG_SECONDS) as http:
            yield GraphQLClient(http, client.environment, client.user, client.secret)

    async def terminate(self, client: GraphQLClient, **input_fields: Any) -> Any:
        """Run sessionTerminate over the network and return its payload."""
        async with self.client_of(client) as remote:
            return (await remote(SESSION_TERMINATE, input=input_fields))["sessionTerminate"]

    async def drain(self, client: GraphQLClient, **input_fields: Any) -> Any:
        """Run sessionDrain over the network and return its payload."""
        async with self.client_of(client) as remote:
            return (await remote(SESSION_DRAIN, input=input_fields))["sessionDrain"]

    async def open_submission_session(self) -> SmtpTestClient:
        """Connect to the submission listener and start TLS."""
        client = await connect_smtp(self.submission.port)
        await start_tls(client, self.authority.client_context())
        return client

    async def sign_in_and_return_reply(self, client: SmtpTestClient, username: str = "ada") -> str:
        """Sign in to a submission session and return the reply."""
        return await client.run_command(f"AUTH PLAIN {auth_plain_response(username)}")

    async def open_mx_session(self, proxy_header: str = "") -> SmtpTestClient:
        """Connect to the SMTP listener, which trusts PROXY headers of loopback."""
        client = await connect_smtp(self.mx.port, greet=False)
        client.send_bytes(f"{proxy_header or 'PROXY UNKNOWN'}\r\n".encode())
        await client.read_reply()
        await client.run_command("EHLO mx.example.net")
        return client

    async def open_lmtp_session(self) -> SmtpTestClient:
        """Connect to the LMTP listener."""
        return await connect_lmtp(self.lmtp.port)


@contextlib.asynccontextmanager
async def run_session_listeners(
    environment: Environment, live: LiveServer, folder: Path
) -> AsyncGenerator[SessionServer]:
    """Run the mail listeners beside a server, until the end of the context."""
    authority = CertificateAuthority(folder)
    tls = SmtpListenerConfig(certificates=CertificateFiles(authority.issue_certificate()))
    proxied = SmtpListenerConfig(proxy_networks=("127.0.0.0/8",))
    lmtp = await start_lmtp_listener(
        environment, "127.0.0.1", 0, spool_folder=folder / "spool-lmtp"
    )
    mx = MxListener(environment, folder / "spool-mx", proxied)
    submission = SubmissionListener(
        environment, folder / "spool-submission", tls, SmtpSubmissionService(environment)
    )
    for listener in (mx, submission):
        await listener.start(host="127.0.0.1", port=0)
    try:
        yield SessionServer(environment, live, lmtp, mx, submission, authority)
    finally:
        for each in (lmtp, mx, submission):
            await each.close(1)
