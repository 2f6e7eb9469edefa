"""A new password of an account ends what it really ends, and no other stream."""

import base64
from dataclasses import replace
from typing import Any

import pytest

from resolvers.auth import authentication
from tests.conftest import Client
from tests.support.accounts.access_tokens import make_access_token
from tests.support.servers.live_server import PLAIN, House, until

UPDATE = """mutation ($input: UserUpdateInput!) { userUpdate(input: $input) {
  errors { code path } } }"""
APP = """mutation ($input: AppPasswordCreateInput!) { appPasswordCreate(input: $input) {
  password errors { code } } }"""


async def set_password(client: Client) -> None:
    given = {"users": {"usernames": ["ada"]}, "set": {"password": "correct horse battery"}}
    assert (await client(UPDATE, input=given))["userUpdate"]["errors"] == []


async def credentials_of(client: Client) -> dict[str, Client]:
    """A key, an application password, and a token of the same account."""
    given = {"description": "Phone", "scopes": ["MAIL_READ"]}
    password = (await client(APP, input=given))["appPasswordCreate"]["password"]
    basic = base64.b64encode(f"ada:{password}".encode()).decode()
    return {
        "key": client,
        "app password": replace(client, secret=f"Basic {basic}"),
        "token": replace(client, secret=await make_access_token(client.world, client.user)),
    }


async def test_only_streams_of_tokens_end_with_the_password(
    live: House, ada: Client, over: Client
) -> None:
    clients = await credentials_of(ada)
    basic = {"authorization": clients.pop("app password").secret}
    program = await authentication.authenticate_request(ada.world, basic)
    sockets = {name: await live.follow(client, PLAIN) for name, client in clients.items()}
    await until(lambda: len(live.endpoint.connection_watch.connections) == len(clients))
    await set_password(over)
    await live.endpoint.connection_watch.check_credentials()
    token = sockets["token"]
    await until(lambda: token.ws and token.ws.close_code)
    assert token.ws
    assert token.ws.close_code == 4403
    assert not sockets["key"].over
    assert not await authentication.has_credential_ended(ada.world, program)
    await sockets["key"].leave()


@pytest.mark.parametrize("change", [{"disabled": True}, {"suspended": True}])
async def test_a_key_ends_with_its_account(
    live: House, ada: Client, over: Client, change: dict[str, Any]
) -> None:
    socket = await live.follow(ada, PLAIN)
    await until(lambda: live.endpoint.connection_watch.connections)
    given = {"users": {"usernames": ["ada"]}, "set": change}
    assert (await over(UPDATE, input=given))["userUpdate"]["errors"] == []
    await live.endpoint.connection_watch.check_credentials()
    await until(lambda: socket.ws and socket.ws.close_code)
    assert socket.ws
    assert socket.ws.close_code == 4403


async def test_a_token_that_sets_the_password_keeps_its_streams(ada: Client) -> None:
    secrets = [await make_access_token(ada.world, ada.user) for _ in range(2)]
    mine = replace(ada, secret=secrets[0])
    viewer, other = [
        await authentication.authenticate_request(ada.world, {"authorization": f"Bearer {secret}"})
        for secret in secrets
    ]
    given = {"set": {"password": "correct horse battery"}}
    assert (await mine(UPDATE, input=given))["userUpdate"]["errors"] == []
    assert not await authentication.has_credential_ended(ada.world, viewer)
    assert await authentication.has_credential_ended(ada.world, other)
