"""Connectors with OAuth 2.0: access tokens are requested, stored, refreshed and checked."""

import json
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl

import pytest

from mail.connectors.remote_server import ConnectorStage
from models.admin.tasks import TaskState
from resolvers.connectors import check
from resolvers.connectors import mutations as connector_mutations
from tests.conftest import GraphQLClient, ManualClock
from tests.support.case_loop import each_case
from tests.support.mail_servers.oauth_connectors import (
    CLIENT_SECRET,
    OTHER_REFRESH_TOKEN,
    REFRESH_TOKEN,
    TokenImapServer,
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
    load_subjects_by_mailbox,
)
from tests.support.servers.webhook_receiver import ReceivedRequest, WebhookReceiver

__all__ = ["imap_server", "remote_server", "token_server"]
pytestmark = pytest.mark.usefixtures("verify_consistency")
MECHANISMS = ("XOAUTH2", "OAUTHBEARER")


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
    environment = ada.environment
    connector_id = await create_connector(ada, remote_server, token_server, mechanism)
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


INVALID_LIFETIMES: list[Any] = [None, "3600", 0, -1, 1e99, True]


async def test_invalid_token_lifetime_gets_a_default(
    ada: GraphQLClient, imap_server: TokenImapServer, token_server: WebhookReceiver
) -> None:
    for case in each_case(INVALID_LIFETIMES):
        with case as lifetime:
            token_server.response = token_response("access-1", expires_in=lifetime)
            connector_id = await create_connector(ada, imap_server, token_server)
            run = await run_connector(ada.environment, connector_id)
            assert run.state is TaskState.SUCCEEDED, run.log
            expires_at = datetime.fromisoformat(
                (await load_secret(ada.environment, connector_id))["ends"]
            )
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


async def test_new_password_deletes_the_stored_access_token(
    ada: GraphQLClient, imap_server: TokenImapServer, token_server: WebhookReceiver
) -> None:
    environment = ada.environment
    connector_id = await create_connector(ada, imap_server, token_server)
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


async def test_new_oauth_client_never_gets_the_stored_client_secret(
    ada: GraphQLClient, imap_server: TokenImapServer, token_server: WebhookReceiver
) -> None:
    environment = ada.environment
    ctx = context_with_connector_permission(ada)
    same_client = {
        name: value
        for name, value in connector_fields(imap_server, token_server)["oauth"].items()
        if name != "client_secret"
    }
    for changes, expected_secret in (
        ({**same_client, "scope": "mail"}, CLIENT_SECRET),
        ({**same_client, "client_secret": "another"}, "another"),
        ({**same_client, "token_url": "https://other.example.net/token"}, None),
        ({**same_client, "client_id": "other"}, None),
    ):
        connector_id = await create_connector(ada, imap_server, token_server)
        await connector_mutations.update_connectors(
            ctx, [connector_id], {"oauth": changes}, OTHER_REFRESH_TOKEN
        )
        secret = await load_secret(environment, connector_id)
        assert secret["password"] == OTHER_REFRESH_TOKEN
        assert secret.get("client") == expected_secret, changes
        await connector_mutations.delete_connectors(ctx, [connector_id])


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
        "The OAuth token endpoint refused the request: no …",
    )
    assert len(remote_server.verifier.seen_tokens) == 2


async def test_check_of_new_connector_warns_of_a_replaced_refresh_token(
    ada: GraphQLClient, remote_server: Any, token_server: WebhookReceiver
) -> None:
    async def check_with_refresh_token(refresh_token: Any) -> list[str]:
        token_server.response = token_response("access-1", refresh_token=refresh_token)
        report = await check.check_new_connector(
            context_with_connector_permission(ada),
            connector_fields(remote_server, token_server),
            REFRESH_TOKEN,
        )
        assert OTHER_REFRESH_TOKEN not in str(report)
        return [f"{stage.stage}: {stage.message}" for stage in report.stages if stage.message]

    for unchanged in (REFRESH_TOKEN, None, 7):
        assert await check_with_refresh_token(unchanged) == []
    (message,) = await check_with_refresh_token(OTHER_REFRESH_TOKEN)
    assert message == f"LOGIN: {check.NEW_CREDENTIAL_WARNING}"
    remote_server.verifier.accepted_tokens = set()
    (message,) = await check_with_refresh_token(OTHER_REFRESH_TOKEN)
    assert message.startswith("LOGIN: ")
    assert message.endswith(f"\n{check.NEW_CREDENTIAL_WARNING}")


async def test_check_of_stored_connector_stores_a_replaced_refresh_token(
    ada: GraphQLClient, imap_server: TokenImapServer, token_server: WebhookReceiver
) -> None:
    token_server.response = token_response("access-1", refresh_token=OTHER_REFRESH_TOKEN)
    connector_id = await create_connector(ada, imap_server, token_server)
    report = await check.check_stored_connector(
        context_with_connector_permission(ada), connector_id
    )
    assert [stage.message for stage in report.stages if stage.message] == []
    assert (await load_secret(ada.environment, connector_id))["password"] == OTHER_REFRESH_TOKEN


async def test_check_of_stored_connector_uses_the_stored_token(
    ada: GraphQLClient, remote_server: Any, token_server: WebhookReceiver
) -> None:
    environment = ada.environment
    connector_id = await create_connector(ada, remote_server, token_server)
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
