"""A password change ends the streams of access tokens and of no other credential."""

import base64
from dataclasses import replace
from typing import Any

import pytest

from resolvers.auth import authentication
from tests.conftest import GraphQLClient
from tests.support.accounts.access_tokens import make_access_token
from tests.support.servers.live_server import CHANGES_SUBSCRIPTION, LiveServer, wait_until

UPDATE = """mutation ($input: UserUpdateInput!) { userUpdate(input: $input) {
  errors { code path } } }"""
CREATE = """mutation ($input: AppPasswordCreateInput!) { appPasswordCreate(input: $input) {
  password errors { code } } }"""


async def set_password(client: GraphQLClient) -> None:
    arguments = {"users": {"usernames": ["ada"]}, "set": {"password": "correct horse battery"}}
    assert (await client(UPDATE, input=arguments))["userUpdate"]["errors"] == []


async def make_credential_clients(client: GraphQLClient) -> dict[str, GraphQLClient]:
    """Make an API key, an application password and an access token of the same user."""
    arguments = {"description": "Phone", "scopes": ["MAIL_READ"]}
    password = (await client(CREATE, input=arguments))["appPasswordCreate"]["password"]
    basic = base64.b64encode(f"ada:{password}".encode()).decode()
    return {
        "key": client,
        "app password": replace(client, secret=f"Basic {basic}"),
        "token": replace(client, secret=await make_access_token(client.environment, client.user)),
    }


async def test_password_change_ends_only_token_streams(
    live_server: LiveServer, ada: GraphQLClient, admin_client: GraphQLClient
) -> None:
    clients = await make_credential_clients(ada)
    basic = {"authorization": clients.pop("app password").secret}
    app_password_viewer = await authentication.authenticate_request(ada.environment, basic)
    sockets = {
        name: await live_server.follow(client, CHANGES_SUBSCRIPTION)
        for name, client in clients.items()
    }
    await wait_until(lambda: len(live_server.endpoint.connection_watch.connections) == len(clients))
    await set_password(admin_client)
    await live_server.endpoint.connection_watch.disconnect_ended_and_kicked()
    token = sockets["token"]
    await wait_until(lambda: token.ws and token.ws.close_code)
    assert token.ws
    assert token.ws.close_code == 4403
    assert not sockets["key"].end_frame
    assert not await authentication.record_use_and_return_has_ended_or_changed(
        ada.environment, app_password_viewer
    )
    await sockets["key"].unsubscribe()


@pytest.mark.parametrize("change", [{"active": False}, {"suspended": True}])
async def test_stream_of_api_key_ends_if_user_is_disabled(
    live_server: LiveServer, ada: GraphQLClient, admin_client: GraphQLClient, change: dict[str, Any]
) -> None:
    socket = await live_server.follow(ada, CHANGES_SUBSCRIPTION)
    await wait_until(lambda: live_server.endpoint.connection_watch.connections)
    arguments = {"users": {"usernames": ["ada"]}, "set": change}
    assert (await admin_client(UPDATE, input=arguments))["userUpdate"]["errors"] == []
    await live_server.endpoint.connection_watch.disconnect_ended_and_kicked()
    await wait_until(lambda: socket.ws and socket.ws.close_code)
    assert socket.ws
    assert socket.ws.close_code == 4403


async def test_token_that_sets_password_keeps_its_streams(ada: GraphQLClient) -> None:
    secrets = [await make_access_token(ada.environment, ada.user) for _ in range(2)]
    token_client = replace(ada, secret=secrets[0])
    viewer, other_viewer = [
        await authentication.authenticate_request(
            ada.environment, {"authorization": f"Bearer {secret}"}
        )
        for secret in secrets
    ]
    arguments = {"set": {"password": "correct horse battery"}}
    assert (await token_client(UPDATE, input=arguments))["userUpdate"]["errors"] == []
    assert not await authentication.record_use_and_return_has_ended_or_changed(
        ada.environment, viewer
    )
    assert await authentication.record_use_and_return_has_ended_or_changed(
        ada.environment, other_viewer
    )
