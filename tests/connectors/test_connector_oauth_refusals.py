"""Connectors with OAuth 2.0 whose tokens or token requests are refused."""

import asyncio
import json
import logging
from collections.abc import Sequence
from typing import Any

import pytest

from mail.network.outbound_http import PRIVATE_HOST_TEXT
from models.admin.tasks import TaskState
from models.connectors import ConnectorProtocol, ConnectorSecurity
from models.errors import InvalidInput
from resolvers.connectors import mutations as connector_mutations
from tests.conftest import GraphQLClient
from tests.support.accounts.key_value_operations import change_options
from tests.support.case_loop import each_case
from tests.support.mail_servers.oauth_connectors import (
    CLIENT_SECRET,
    DENIED_RESPONSE,
    REFRESH_TOKEN,
    TokenImapServer,
    assert_secrets_hidden,
    connector_fields,
    create_connector,
    imap_server,
    load_secret,
    remote_server,
    run_connector,
    token_response,
    token_server,
)
from tests.support.mail_servers.scanner_servers import http_response
from tests.support.operations.connector_operations import (
    context_with_connector_permission,
    load_connector_row,
    update_connector_row,
)
from tests.support.servers.webhook_receiver import ReceivedRequest, WebhookReceiver
from tests.support.time_limits import HANG_SECONDS

__all__ = ["imap_server", "remote_server", "token_server"]
pytestmark = pytest.mark.usefixtures("verify_consistency")


async def test_refused_stored_token_is_replaced_once(
    ada: GraphQLClient,
    remote_server: Any,
    token_server: WebhookReceiver,
    caplog: pytest.LogCaptureFixture,
) -> None:
    environment = ada.environment
    connector_id = await create_connector(ada, remote_server, token_server)
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


async def test_refusal_of_token_server_is_reported_without_secrets(
    ada: GraphQLClient,
    imap_server: TokenImapServer,
    token_server: WebhookReceiver,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cases: list[tuple[str, dict[str, Any], str]] = [
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
    ]
    for case in each_case(cases):
        with case as (status, body, expected_text):
            caplog.clear()
            token_server.response = http_response(json.dumps(body).encode(), status)
            connector_id = await create_connector(ada, imap_server, token_server)
            with caplog.at_level(logging.DEBUG):
                run = await run_connector(ada.environment, connector_id)
            assert (run.state, run.stage) == (TaskState.FAILED, "LOGIN")
            assert run.error.startswith("The OAuth token endpoint refused the request: ")
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


INVALID_TOKEN_RESPONSES = [
    (http_response(b"<html>"), "status 200 and without JSON."),
    (http_response(b"[1]"), "status 200 and without JSON."),
    (http_response(b"\xff\xfe"), "status 200 and without JSON."),
    (http_response(b"[" * 60_000), "status 200 and without JSON."),
    (http_response(b""), "status 200 and without JSON."),
    (REDIRECT, "status 302 and without JSON."),
    (http_response(b" " * (1 << 20)), "bytes"),
    (b"220 mail.example.org ESMTP\r\n\r\n", "The response is not HTTP."),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{}", "The response is truncated."),
    (token_response("access-\r\nA1 LOGOUT"), "status 200"),
    (token_response("access-\0"), "status 200"),
    (token_response(""), "status 200"),
    (token_response("access-" + "x" * 20_000), "status 200"),
    (token_response(["access-1"]), "status 200"),
]


async def run_and_expect_token_failure(
    ada: GraphQLClient, connector_id: int, expected_text: str, **policy_options: Any
) -> None:
    """Run a connector that gets no token, and check the error of the run."""
    async with asyncio.timeout(HANG_SECONDS):
        run = await run_connector(ada.environment, connector_id, **policy_options)
    assert (run.state, run.stage) == (TaskState.FAILED, "LOGIN"), run.log
    assert "OAuth token endpoint" in run.error
    assert expected_text in run.error
    assert "access" not in run.error
    assert "access" not in await load_secret(ada.environment, connector_id)


async def test_invalid_token_response_is_reported(
    ada: GraphQLClient, imap_server: TokenImapServer, token_server: WebhookReceiver
) -> None:
    connector_id = await create_connector(ada, imap_server, token_server)
    for case in each_case(INVALID_TOKEN_RESPONSES):
        with case as (response, expected_text):
            token_server.response = response
            await run_and_expect_token_failure(ada, connector_id, expected_text)
            assert imap_server.sessions == set()


@pytest.mark.parametrize("answer", [answer_nothing, answer_slowly])
async def test_missing_token_response_is_reported(
    ada: GraphQLClient, imap_server: TokenImapServer, token_server: WebhookReceiver, answer: Any
) -> None:
    token_server.response = answer
    connector_id = await create_connector(ada, imap_server, token_server)
    await run_and_expect_token_failure(
        ada, connector_id, "The server did not respond within 0.5 seconds.", timeout_seconds=0.5
    )
    assert imap_server.sessions == set()


async def test_private_token_server_is_refused(
    ada: GraphQLClient, imap_server: TokenImapServer, token_server: WebhookReceiver
) -> None:
    async def resolve(_host: str, _port: int) -> Sequence[str]:
        return ["127.0.0.1"]

    environment = ada.environment
    connector_id = await create_connector(ada, imap_server, token_server)
    await update_connector_row(environment, connector_id, security=ConnectorSecurity.TLS)
    refusal = f"Request to the OAuth token endpoint failed: {PRIVATE_HOST_TEXT}"
    run = await run_connector(environment, connector_id, allows_private=False)
    assert run.error == refusal
    oauth = {**(await load_connector_row(environment, connector_id)).oauth}
    oauth["token_url"] = f"http://login.example.com:{token_server.port}/token"
    await update_connector_row(environment, connector_id, oauth=oauth)
    run = await run_connector(environment, connector_id, allows_private=False, resolve=resolve)
    assert (run.stage, run.error) == (
        "LOGIN",
        f"Request to the OAuth token endpoint failed: {PRIVATE_HOST_TEXT}",
    )
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
        assert raised.value.path == ["server", "oauth", "tokenUrl"]
