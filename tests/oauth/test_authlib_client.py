"""authlib's own client, over the network, against a running server; and the end of open sockets."""

import asyncio
import re
import warnings
from contextlib import aclosing
from html import unescape
from typing import Any
from urllib.parse import urlsplit

import pytest
from joserfc import jwt
from joserfc.jwk import KeySet

from tests.conftest import GraphQLClient
from tests.support.accounts.two_factor_operations import make_token_client
from tests.support.clients.plain_http import plain_client
from tests.support.oauth.oauth_flow import (
    PASSWORD,
    OauthBrowser,
    TestClient,
    add_client,
    set_password,
    set_public_url,
)
from tests.support.servers.live_server import CHANGES_SUBSCRIPTION, LiveServer, wait_until
from tests.support.time_limits import HANG_SECONDS

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # authlib prefers a fork of httpx
    from authlib.integrations.httpx_client import AsyncOAuth2Client, OAuthError

STATE_FIELD = re.compile(r'name="state" value="([^"]*)"')
REDIRECT_URI = "http://127.0.0.1:8123/callback"


async def allow_in_browser(url: str, origin: str) -> str:
    """Sign in and allow access as a browser does; return the URL of the redirect."""
    async with plain_client(base_url=origin, headers={"Origin": origin}) as http:
        page = await http.get(url)
        for fields in ({"username": "ada", "password": PASSWORD}, {"choice": "allow"}):
            match = STATE_FIELD.search(page.text)
            assert match is not None, page.text
            form = {"state": unescape(match[1]), **fields}
            page = await http.post("/oauth/authorize", data=form)
    assert page.status_code == 303
    location: str = page.headers["location"]
    return location


async def authorized_client(
    ada: GraphQLClient, server: LiveServer
) -> tuple[AsyncOAuth2Client, dict[str, Any]]:
    """authlib's client with tokens, and the discovery document."""
    origin = f"http://127.0.0.1:{server.port}"
    set_public_url(ada.environment, origin)
    await set_password(ada.environment, ada.user.id)
    registered = await add_client(ada.environment, redirect_uris=["http://127.0.0.1/callback"])
    async with plain_client() as http:
        document = (await http.get(f"{origin}/.well-known/openid-configuration")).json()
    client = AsyncOAuth2Client(
        registered.client_id,
        registered.secret,
        scope="openid email mail_read settings",
        redirect_uri=REDIRECT_URI,
        code_challenge_method="S256",
        token_endpoint=document["token_endpoint"],
    )
    verifier = "a" * 64
    url, state = client.create_authorization_url(
        document["authorization_endpoint"], code_verifier=verifier, nonce="n"
    )
    location = await allow_in_browser(url, origin)
    assert urlsplit(location).netloc == urlsplit(REDIRECT_URI).netloc
    await client.fetch_token(
        document["token_endpoint"],
        authorization_response=location,
        code_verifier=verifier,
        state=state,
    )
    return client, document


async def test_authlib_client_signs_in_refreshes_and_revokes(
    ada: GraphQLClient, live_server: LiveServer
) -> None:
    client, document = await authorized_client(ada, live_server)
    async with aclosing(client):
        keys = KeySet.import_key_set((await client.get(document["jwks_uri"])).json())
        claims = jwt.decode(client.token["id_token"], keys, ["ES256"]).claims
        assert (claims["email"], claims["nonce"]) == ("ada@example.org", "n")
        userinfo = (await client.get(document["userinfo_endpoint"])).json()
        assert userinfo["sub"] == claims["sub"]
        origin = document["issuer"]
        response = await client.post(
            f"{origin}/graphql", json={"query": "{ viewer { user { username } } }"}
        )
        assert response.json()["data"]["viewer"]["user"]["username"] == "ada"
        old_refresh_token = client.token["refresh_token"]
        await client.refresh_token(document["token_endpoint"])
        assert client.token["refresh_token"] != old_refresh_token
        introspection = await client.introspect_token(
            document["introspection_endpoint"], client.token["access_token"]
        )
        assert introspection.json()["active"] is True
        await client.revoke_token(
            document["revocation_endpoint"], client.token["refresh_token"], "refresh_token"
        )
        with pytest.raises(OAuthError, match="invalid_grant"):
            await client.refresh_token(document["token_endpoint"])


async def test_revoked_grant_closes_open_sockets_at_once(
    ada: GraphQLClient, live_server: LiveServer
) -> None:
    live_server.endpoint.connection_watch.check_interval = 10 * HANG_SECONDS
    client, _ = await authorized_client(ada, live_server)
    async with aclosing(client):
        token = client.token["access_token"]
    follower = await live_server.follow(ada, CHANGES_SUBSCRIPTION, secret=token)
    await wait_until(lambda: live_server.subscriber_count == 1)
    data = await ada("{ user { oauthGrants { nodes { id } } } }")
    await ada(
        "mutation ($id: ID!) { oauthGrantRevoke(input: {oauthGrants: [{id: $id}]}) "
        "{ deletedIds } }",
        id=data["user"]["oauthGrants"]["nodes"][0]["id"],
    )
    assert follower.ws is not None
    async with asyncio.timeout(HANG_SECONDS):
        await follower.ws.wait_closed()
    await follower.unsubscribe()


async def test_bearer_request_costs_as_many_statements_as_with_another_token(
    browser: OauthBrowser, webmail: TestClient, ada: GraphQLClient, statements: Any
) -> None:
    tokens = await browser.get_tokens(webmail)
    other = await make_token_client(ada)
    counts = []
    for secret in (tokens["access_token"], other.secret):
        assert await browser.is_accepted(secret)
        statements.clear()
        assert await browser.is_accepted(secret)
        counts.append(len(statements))
    assert counts[0] == counts[1]
