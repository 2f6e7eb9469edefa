"""Connectors with OAuth 2.0: access tokens are requested, stored, refreshed and refused."""

import asyncio
import json
import logging
from base64 import b64decode
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl

import pytest

from mail.connectors.remote_server import ConnectorStage
from mail.network.outbound_http import NetworkPolicy
from models.admin.tasks import TaskState
from models.connectors import ConnectorProtocol, ConnectorSecurity
from models.errors import InvalidInput
from models.runtime.environment import Environment
from resolvers.connectors import check, credentials
from resolvers.connectors import mutations as connector_mutations
from resolvers.connectors import worker as connector_worker
from resolvers.connectors.worker import ConnectorWorker
from tests.conftest import GraphQLClient, ManualClock, raw_message
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
    load_subjects_by_mailbox,
    update_connector_row,
)
from tests.support.servers.webhook_receiver import (
    ReceivedRequest,
    WebhookReceiver,
    run_webhook_receiver,
)

pytestmark = pytest.mark.usefixtures("verify_consistency")
REFRESH_TOKEN, CLIENT_SECRET, OTHER_REFRESH_TOKEN = (
    "refresh-wörd/1",
    "client-wörd/1",
    "refresh-other",
)
MECHANISMS = ("XOAUTH2", "OAUTHBEARER")
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
    run, connector = (
        await load_newest_run(environment, connector_id),
        await load_connector_row(environment, connector_id),
    )
    text = f"{run} {connector} {others}"
    text += " ".join(str(vars(record)) for record in caplog.records)
    for secret in ("refresh-w", "client-w", "access-", "wörd", "w%C3%B6rd"):
        assert secret not in text


def form_fields(request: ReceivedRequest) -> dict[str, str]:
    assert request.headers["content-type"] == "application/x-www-form-urlencoded"
    return dict(parse_qsl(request.raw.decode(), strict_parsing=True))


@pytest.mark.parametrize("mechanism", MECHANISMS)
async def test_access_token_is_stored_until_shortly_before_expiry(
    ada: GraphQLClient,
    remote_server: Any,
    token_server: WebhookReceiver,
    clock: ManualClock,
    mechanism: str,
) -> None:
    environment, connector_id = (
        ada.environment,
        await create_connector(ada, remote_server, token_server, mechanism),
    )
    run = await run_connector(environment, connector_id)
    assert (run.state, run.imported_count) == (TaskState.SUCCEEDED, 1), run.log
    assert await load_subjects_by_mailbox(environment) == {"INBOX": ["One"]}
    assert form_fields(token_server.requests[0]) == {
        "grant_type": "refresh_token", "refresh_token": REFRESH_TOKEN, "client_id": "merganser",
        "client_secret": CLIENT_SECRET, "scope": "mail read",
    }  # fmt: skip
    assert token_server.requests[0].path == "/token?x=1"
    clock.tick(minutes=57, seconds=59)
    assert (await run_connector(environment, connector_id)).state is TaskState.SUCCEEDED
    assert len(token_server.requests) == 1
    clock.tick(seconds=1)
    remote_server.verifier.accepted_tokens = {"access-2"}
    assert (await run_connector(environment, connector_id)).state is TaskState.SUCCEEDED
    assert remote_server.verifier.seen_tokens == ["access-1", "access-1", "access-2"]
    secret = await load_secret(environment, connector_id)
    assert (secret["password"], secret["client"], secret["access"]) == (
        REFRESH_TOKEN,
        CLIENT_SECRET,
        "access-2",
    )
    assert datetime.fromisoformat(secret["ends"]) == environment.now() + timedelta(hours=1)
    encrypted = (await load_connector_row(environment, connector_id)).secret
    assert not any(part in encrypted for part in ("access", "refresh", "client"))


@pytest.mark.parametrize("lifetime", [None, "3600", 0, -1, 1e99, True])
async def test_invalid_token_lifetime_gets_a_default(
    ada: GraphQLClient, imap_server: TokenImapServer, token_server: WebhookReceiver, lifetime: Any
) -> None:
    token_server.response = token_response("access-1", expires_in=lifetime)
    connector_id = await create_connector(ada, imap_server, token_server)
    run = await run_connector(ada.environment, connector_id)
    assert run.state is TaskState.SUCCEEDED, run.log
    expires_at = datetime.fromisoformat((await load_secret(ada.environment, connector_id))["ends"])
    assert expires_at <= ada.environment.now() + timedelta(hours=1)


async def test_replaced_refresh_token_is_stored(
    ada: GraphQLClient,
    imap_server: TokenImapServer,
    token_server: WebhookReceiver,
    clock: ManualClock,
) -> None:
    imap_server.verifier.accepted_tokens = {"access-1", "access-2", "access-3"}
    connector_id = await create_connector(ada, imap_server, token_server)
    answers: list[dict[str, Any]] = [
        {"refresh_token": OTHER_REFRESH_TOKEN},
        {},
        {"refresh_token": 7},
    ]
    for number, fields in enumerate(answers, 1):
        token_server.response = token_response(f"access-{number}", **fields)
        assert (await run_connector(ada.environment, connector_id)).state is TaskState.SUCCEEDED
        assert (await load_secret(ada.environment, connector_id))["password"] == OTHER_REFRESH_TOKEN
        clock.tick(hours=1)
    assert [form_fields(request)["refresh_token"] for request in token_server.requests] == [
        REFRESH_TOKEN,
        OTHER_REFRESH_TOKEN,
        OTHER_REFRESH_TOKEN,
    ]


async def test_refused_stored_token_is_replaced_once(
    ada: GraphQLClient,
    remote_server: Any,
    token_server: WebhookReceiver,
    caplog: pytest.LogCaptureFixture,
) -> None:
    environment, connector_id = (
        ada.environment,
        await create_connector(ada, remote_server, token_server),
    )
    assert (await run_connector(environment, connector_id)).state is TaskState.SUCCEEDED
    remote_server.verifier.accepted_tokens = {"access-2"}
    run = await run_connector(environment, connector_id)
    assert run.state is TaskState.SUCCEEDED, run.log
    assert remote_server.verifier.seen_tokens == ["access-1", "access-1", "access-2"]
    remote_server.verifier.accepted_tokens = set()
    with caplog.at_level(logging.DEBUG):
        run = await run_connector(environment, connector_id)
    assert (run.state, run.stage) == (TaskState.FAILED, "LOGIN")
    assert "no such token" in run.error
    assert remote_server.verifier.seen_tokens[3:] == ["access-2", "access-3"]
    assert len(token_server.requests) == 3
    await assert_secrets_hidden(environment, connector_id, caplog)


async def test_new_or_temporarily_refused_token_is_not_replaced(
    ada: GraphQLClient, remote_server: Any, token_server: WebhookReceiver
) -> None:
    remote_server.verifier.accepted_tokens = set()
    connector_id = await create_connector(ada, remote_server, token_server)
    temporary_code = (
        "[UNAVAILABLE]" if remote_server.protocol is ConnectorProtocol.IMAP else "[SYS/TEMP]"
    )
    for refusal_text in (DENIED_RESPONSE, f"{temporary_code} try again"):
        remote_server.verifier.refusal = refusal_text
        run = await run_connector(ada.environment, connector_id)
        assert (run.state, run.stage) == (TaskState.FAILED, "LOGIN")
    assert remote_server.verifier.seen_tokens == ["access-1"] * 2


@pytest.mark.parametrize(
    "case",
    [
        ("400 Bad", {"error": "invalid_grant", "error_description": "It is over."}, "It is over."),
        ("400 Bad", {"error": "invalid_grant"}, "invalid_grant"),
        (
            "401 Bad",
            {"error": "x", "error_description": f"{CLIENT_SECRET}, not {REFRESH_TOKEN}"},
            "…, not …",
        ),
        ("400 Bad", {"error": f"client-w%C3%B6rd%2F1 {REFRESH_TOKEN}"}, "… …"),
        ("400 Bad", {"error": "x" * 290 + f" {REFRESH_TOKEN}"}, "x …"),
        ("400 Bad", {"error": "x" * 280 + f" {CLIENT_SECRET} {REFRESH_TOKEN}"}, "x … …"),
        ("400 Bad", {"error": {"a": [REFRESH_TOKEN]}}, "…"),
        ("400 Bad", {"error": "two\r\nlines\0"}, "two lines"),
        ("500 Bad", {}, "status 500"),
    ],
)
async def test_refusal_of_token_server_is_reported_without_secrets(
    ada: GraphQLClient,
    imap_server: TokenImapServer,
    token_server: WebhookReceiver,
    caplog: pytest.LogCaptureFixture,
    case: tuple[str, dict[str, Any], str],
) -> None:
    status, body, expected_text = case
    token_server.response = http_response(json.dumps(body).encode(), status)
    connector_id = await create_connector(ada, imap_server, token_server)
    with caplog.at_level(logging.DEBUG):
        run = await run_connector(ada.environment, connector_id)
    assert (run.state, run.stage) == (TaskState.FAILED, "LOGIN")
    assert run.error.startswith("the server of tokens: ")
    assert expected_text in run.error
    assert run.error.isprintable()
    row = await load_connector_row(ada.environment, connector_id)
    assert (row.last_error, row.failures) == (run.error, 1)
    assert (
        imap_server.sessions,
        (await load_secret(ada.environment, connector_id))["password"],
    ) == (
        set(),
        REFRESH_TOKEN,
    )
    await assert_secrets_hidden(ada.environment, connector_id, caplog)


async def answer_slowly(_got: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
    """Write one byte at a time, without an end."""
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.02)


async def answer_nothing(_got: ReceivedRequest, _writer: asyncio.StreamWriter) -> None:
    """Write no response."""
    await asyncio.sleep(5)


REDIRECT = b"HTTP/1.1 302 Go\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "expected_text"),
    [
        (answer_nothing, "no answer within 0.5 seconds"),
        (answer_slowly, "no answer within 0.5 seconds"),
        (http_response(b"<html>"), "status 200, and no JSON"),
        (http_response(b"[1]"), "status 200, and no JSON"),
        (http_response(b"\xff\xfe"), "status 200, and no JSON"),
        (http_response(b"[" * 60_000), "status 200, and no JSON"),
        (http_response(b""), "status 200, and no JSON"),
        (REDIRECT, "status 302, and no JSON"),
        (http_response(b" " * (1 << 20)), "bytes"),
        (b"220 mail.example.org ESMTP\r\n\r\n", "the answer is no HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{}", "ends early"),
        (token_response("access-\r\nA1 LOGOUT"), "status 200"),
        (token_response("access-\0"), "status 200"),
        (token_response(""), "status 200"),
        (token_response("access-" + "x" * 20_000), "status 200"),
        (token_response(["access-1"]), "status 200"),
    ],
)
async def test_invalid_token_response_is_reported(
    ada: GraphQLClient,
    imap_server: TokenImapServer,
    token_server: WebhookReceiver,
    answer: Any,
    expected_text: str,
) -> None:
    token_server.response = answer
    connector_id = await create_connector(ada, imap_server, token_server)
    async with asyncio.timeout(5):
        run = await run_connector(ada.environment, connector_id, timeout_seconds=0.5)
    assert (run.state, run.stage) == (TaskState.FAILED, "LOGIN"), run.log
    assert run.error.startswith("the server of tokens: ")
    assert expected_text in run.error
    assert "access" not in run.error
    assert (imap_server.sessions, "access" in await load_secret(ada.environment, connector_id)) == (
        set(),
        False,
    )


async def test_private_token_server_is_refused(
    ada: GraphQLClient, imap_server: TokenImapServer, token_server: WebhookReceiver
) -> None:
    async def resolve(_host: str, _port: int) -> Sequence[str]:
        return ["127.0.0.1"]

    environment, connector_id = (
        ada.environment,
        await create_connector(ada, imap_server, token_server),
    )
    await update_connector_row(environment, connector_id, security=ConnectorSecurity.TLS)
    refusal = "the server of tokens: The host is in a private network: use a public address"
    run = await run_connector(environment, connector_id, allows_private=False)
    assert run.error == refusal
    oauth = {**(await load_connector_row(environment, connector_id)).oauth}
    oauth["token_url"] = f"http://login.example.com:{token_server.port}/token"
    await update_connector_row(environment, connector_id, oauth=oauth)
    run = await run_connector(environment, connector_id, allows_private=False, resolve=resolve)
    assert (run.stage, run.error) == ("LOGIN", "the server of tokens: the host is inside")
    assert (token_server.requests, imap_server.sessions) == ([], set())
    change_options(environment, connectors_allow_private_networks=False)
    fields = {
        **connector_fields(imap_server, token_server),
        "host": "mail.example.com",
        "security": ConnectorSecurity.TLS,
    }
    for url in (oauth["token_url"], "https://127.0.0.1/", "https://[::1]/", "https://x.internal/"):
        fields["oauth"]["token_url"] = url
        with pytest.raises(InvalidInput) as raised:
            await connector_mutations.create_connector(
                context_with_connector_permission(ada), None, fields, REFRESH_TOKEN
            )
        assert raised.value.path == ["oauth", "tokenUrl"]


async def test_new_password_deletes_the_stored_access_token(
    ada: GraphQLClient, imap_server: TokenImapServer, token_server: WebhookReceiver
) -> None:
    environment, connector_id = (
        ada.environment,
        await create_connector(ada, imap_server, token_server),
    )
    await run_connector(environment, connector_id)
    assert (await load_secret(environment, connector_id))["access"] == "access-1"
    await connector_mutations.update_connectors(
        context_with_connector_permission(ada), [connector_id], {"name": "Other"}, None
    )
    assert (await load_secret(environment, connector_id))["access"] == "access-1"
    await connector_mutations.update_connectors(
        context_with_connector_permission(ada), [connector_id], {}, OTHER_REFRESH_TOKEN
    )
    assert await load_secret(environment, connector_id) == {
        "password": OTHER_REFRESH_TOKEN,
        "client": CLIENT_SECRET,
    }
    imap_server.verifier.accepted_tokens = {"access-2"}
    assert (await run_connector(environment, connector_id)).state is TaskState.SUCCEEDED
    assert form_fields(token_server.requests[1])["refresh_token"] == OTHER_REFRESH_TOKEN


async def test_check_of_new_connector_stores_no_token(
    ada: GraphQLClient, remote_server: Any, token_server: WebhookReceiver
) -> None:
    report = await check.check_new_connector(
        context_with_connector_permission(ada),
        connector_fields(remote_server, token_server),
        REFRESH_TOKEN,
    )
    assert (report.failure, all(stage.ok for stage in report.stages)) == (None, True)
    assert form_fields(token_server.requests[0])["client_secret"] == CLIENT_SECRET
    assert remote_server.verifier.seen_tokens == ["access-1"]
    remote_server.verifier.accepted_tokens = set()
    report = await check.check_new_connector(
        context_with_connector_permission(ada),
        connector_fields(remote_server, token_server),
        REFRESH_TOKEN,
    )
    assert report.failure is not None
    assert [stage.stage for stage in report.stages if not stage.ok] == [ConnectorStage.LOGIN]
    assert "access-" not in f"{report} {report.failure}"
    assert len(token_server.requests) == 2
    body = {"error": "invalid_grant", "error_description": f"no {REFRESH_TOKEN}"}
    token_server.response = http_response(json.dumps(body).encode(), "400 Bad")
    report = await check.check_new_connector(
        context_with_connector_permission(ada),
        connector_fields(remote_server, token_server),
        REFRESH_TOKEN,
    )
    assert [(stage.stage, stage.ok) for stage in report.stages] == [(ConnectorStage.LOGIN, False)]
    assert report.failure is not None
    assert (report.failure.is_permanent, str(report.failure)) == (
        True,
        "the server of tokens: no …",
    )
    assert len(remote_server.verifier.seen_tokens) == 2


async def test_check_of_stored_connector_uses_the_stored_token(
    ada: GraphQLClient, remote_server: Any, token_server: WebhookReceiver
) -> None:
    environment, connector_id = (
        ada.environment,
        await create_connector(ada, remote_server, token_server),
    )
    for _ in range(2):
        report = await check.check_stored_connector(
            context_with_connector_permission(ada), connector_id
        )
        assert (report.failure, all(stage.ok for stage in report.stages)) == (None, True)
    assert len(token_server.requests) == 1
    remote_server.verifier.accepted_tokens = {"access-2"}
    assert (
        await check.check_stored_connector(context_with_connector_permission(ada), connector_id)
    ).failure is None
    assert (await load_secret(environment, connector_id))["access"] == "access-2"
    remote_server.verifier.accepted_tokens = set()
    report = await check.check_stored_connector(
        context_with_connector_permission(ada), connector_id
    )
    assert [stage.stage for stage in report.stages if not stage.ok] == [ConnectorStage.LOGIN]
    assert report.stages[0].stage is ConnectorStage.RESOLVE
    await connector_mutations.update_connectors(
        context_with_connector_permission(ada), [connector_id], {}, OTHER_REFRESH_TOKEN
    )
    token_server.response = http_response(b'{"error": "invalid_grant"}', "400 Bad")
    report = await check.check_stored_connector(
        context_with_connector_permission(ada), connector_id
    )
    assert [(stage.stage, stage.ok) for stage in report.stages] == [(ConnectorStage.LOGIN, False)]
