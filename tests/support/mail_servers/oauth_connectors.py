"""IMAP, POP3 and token servers for OAuth 2.0, and connectors that use them."""

import asyncio
import json
from base64 import b64decode
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest

from mail.network.outbound_http import NetworkPolicy
from models.connectors import ConnectorSecurity
from models.runtime.environment import Environment
from resolvers.connectors import credentials
from resolvers.connectors import mutations as connector_mutations
from resolvers.connectors import worker as connector_worker
from resolvers.connectors.worker import ConnectorWorker
from tests.conftest import GraphQLClient, raw_message
from tests.support.accounts.key_value_operations import change_options
from tests.support.mail_servers.imap_and_pop3_servers import (
    FakeImapServer,
    FakePop3Server,
    FakeRemoteMessage,
    run_remote_server,
)
from tests.support.mail_servers.scanner_servers import http_response
from tests.support.operations.connector_operations import (
    context_with_connector_permission,
    load_connector_row,
    load_newest_run,
    update_connector_row,
)
from tests.support.servers.webhook_receiver import (
    ReceivedRequest,
    WebhookReceiver,
    run_webhook_receiver,
)

REFRESH_TOKEN = "refresh-wörd/1"  # noqa: S105
CLIENT_SECRET = "client-wörd/1"  # noqa: S105
OTHER_REFRESH_TOKEN = "refresh-other"  # noqa: S105
DENIED_RESPONSE = "[AUTHENTICATIONFAILED] no such token"


@dataclass
class TokenVerifier:
    """The accepted access tokens, and the response to others followed by the token."""

    accepted_tokens: set[str] = field(default_factory=lambda: {"access-1"})
    refusal: str = DENIED_RESPONSE
    seen_tokens: list[str] = field(default_factory=list)

    def verify_sasl_line(self, encoded: bytes) -> bytes | None:
        """Return the refusal of a SASL response, or None if its token is accepted."""
        decoded = b64decode(encoded).decode()
        user_part, auth_part, end, rest = decoded.split("\x01")
        assert (user_part in {"user=ada", "n,a=ada,"}, end, rest) == (True, "", "")
        assert auth_part.startswith("auth=Bearer ")
        access_token = auth_part.removeprefix("auth=Bearer ")
        self.seen_tokens.append(access_token)
        return (
            None
            if access_token in self.accepted_tokens
            else f"{self.refusal} {access_token}".encode()
        )


@dataclass
class TokenImapServer(FakeImapServer):
    """An IMAP server that checks access tokens."""

    verifier: TokenVerifier = field(default_factory=TokenVerifier)

    async def send_reply(self, command: str, tag: bytes, response: bytes, *line: Any) -> bool:
        if command == "AUTHENTICATE" and (
            refusal := self.verifier.verify_sasl_line(self.received_lines[-1])
        ):
            response = tag + b" NO " + refusal + b"\r\n"
        return await super().send_reply(command, tag, response, *line)


@dataclass
class TokenPop3Server(FakePop3Server):
    """A POP3 server that checks access tokens."""

    verifier: TokenVerifier = field(default_factory=TokenVerifier)

    async def send_reply(self, command: str, tag: bytes, response: bytes, *line: Any) -> bool:
        if command == "SASL" and (
            refusal := self.verifier.verify_sasl_line(self.received_lines[-1])
        ):
            response = b"-ERR " + refusal + b"\r\n"
        return await super().send_reply(command, tag, response, *line)


@pytest.fixture(params=[TokenImapServer, TokenPop3Server], ids=["IMAP", "POP3"])
async def remote_server(
    request: pytest.FixtureRequest, environment: Environment
) -> AsyncIterator[Any]:
    change_options(environment, connectors_allow_private_networks=True)
    async with run_remote_server(
        request.param({1: FakeRemoteMessage(raw_message("One"))})
    ) as server:
        yield server


@pytest.fixture
async def imap_server(environment: Environment) -> AsyncIterator[TokenImapServer]:
    change_options(environment, connectors_allow_private_networks=True)
    server = TokenImapServer({1: FakeRemoteMessage(raw_message("One"))})
    async with run_remote_server(server):
        yield server


@pytest.fixture
async def token_server() -> AsyncIterator[WebhookReceiver]:
    """A token server. Each access token is new and is valid for an hour."""
    async with run_webhook_receiver() as receiver:

        async def answer(_got: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
            writer.write(token_response(f"access-{len(receiver.requests)}"))

        receiver.response = answer
        yield receiver


def token_response(access_token: Any, **extra: Any) -> bytes:
    """Return an HTTP response with an access token."""
    fields = {"access_token": access_token, "token_type": "Bearer", "expires_in": 3600, **extra}
    return http_response(json.dumps(fields).encode())


def connector_fields(
    remote_server: TokenImapServer | TokenPop3Server,
    token_server: WebhookReceiver,
    mechanism: str = "XOAUTH2",
) -> dict[str, Any]:
    """Return the fields of a new connector."""
    return {
        "protocol": remote_server.protocol,
        "host": "127.0.0.1",
        "port": remote_server.port,
        "security": ConnectorSecurity.NONE,
        "username": "ada",
        "auth_mechanism": mechanism,
        "remote_timeout": timedelta(seconds=8),
        "oauth": {
            "token_url": f"http://127.0.0.1:{token_server.port}/token?x=1",
            "client_id": "merganser",
            "client_secret": CLIENT_SECRET,
            "scope": "mail read",
        },
    }


async def create_connector(
    ada: GraphQLClient,
    remote_server: TokenImapServer | TokenPop3Server,
    token_server: WebhookReceiver,
    *mechanism: str,
) -> int:
    arguments = {**connector_fields(remote_server, token_server, *mechanism), "interval": None}
    return await connector_mutations.create_connector(
        context_with_connector_permission(ada), None, arguments, REFRESH_TOKEN
    )


async def run_connector(environment: Environment, connector_id: int, **policy_options: Any) -> Any:
    """Run the connector now and return the run."""
    await update_connector_row(environment, connector_id, next_run_at=environment.now())
    worker = ConnectorWorker(
        environment, NetworkPolicy(**{"allows_private": True, **policy_options})
    )
    await connector_worker.start_due_runs(worker)
    await asyncio.gather(*worker.running)
    return await load_newest_run(environment, connector_id)


async def load_secret(environment: Environment, connector_id: int) -> dict[str, Any]:
    """Return the decrypted secret of a connector."""
    return credentials.decrypt_secret(
        environment, connector_id, (await load_connector_row(environment, connector_id)).secret
    )


async def assert_secrets_hidden(
    environment: Environment, connector_id: int, caplog: pytest.LogCaptureFixture, *others: object
) -> None:
    """Check that the run, the connector and the logs contain no secrets."""
    run = await load_newest_run(environment, connector_id)
    connector = await load_connector_row(environment, connector_id)
    text = f"{run} {connector} {others}"
    text += " ".join(str(vars(record)) for record in caplog.records)
    for secret in ("refresh-w", "client-w", "access-", "wörd", "w%C3%B6rd"):
        assert secret not in text
