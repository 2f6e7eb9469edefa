"""Tests of the OpenID providers that tests sign in at, with authlib's client."""

import asyncio
import hmac
import json
import warnings
from base64 import urlsafe_b64decode
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, parse_qsl, urlsplit

import httpx
import pytest
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet
from starlette.responses import Response

from tests.support.clients.plain_http import plain_client
from tests.support.identity_providers.glewlwyd_server import run_glewlwyd
from tests.support.identity_providers.oidc_provider_server import OidcProvider, run_oidc_provider
from tests.support.identity_providers.scripted_provider import (
    ADA_CLAIMS,
    ProviderEndpoint,
    ScriptedProvider,
    run_scripted_provider,
)
from tests.support.identity_providers.scripted_responses import (
    large_response,
    missing_response,
    slow_response,
)
from tests.support.servers.webhook_receiver import WebhookReceiver, run_webhook_receiver

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # authlib prefers a fork of httpx
    from authlib.integrations.httpx_client import AsyncOAuth2Client, OAuthError

CLIENT_ID = "merganser"
CLIENT_SECRET = "s" * 40
REDIRECT_URI = "https://mail.example.org/callback"
ADA = {
    "email": "ada@example.org",
    "email_verified": True,
    "preferred_username": "ada",
    "name": "Ada",
    "groups": ["staff", "admins"],
    "active": True,
}
LOGOUT_EVENT = "http://schemas.openid.net/event/backchannel-logout"


def base64url_decoded(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


class SignInProvider(Protocol):
    """What all providers have in common."""

    @property
    def issuer(self) -> str: ...

    async def sign_in(self, authorization_url: str, account: str) -> str: ...


class CodeFlowClient:
    """authlib's client with the discovery document of a provider."""

    def __init__(self, provider: SignInProvider, document: dict[str, Any], scope: str) -> None:
        self.provider = provider
        self.document = document
        self.oauth = AsyncOAuth2Client(
            CLIENT_ID,
            CLIENT_SECRET,
            scope=scope,
            redirect_uri=REDIRECT_URI,
            code_challenge_method="S256",
            token_endpoint=document["token_endpoint"],
            timeout=60,
        )

    def authorization_url(self, **parameters: str) -> str:
        url, _ = self.oauth.create_authorization_url(
            self.document["authorization_endpoint"], code_verifier="v" * 43, **parameters
        )
        return str(url)

    async def sign_in(self, account: str = "ada", **parameters: str) -> dict[str, Any]:
        """Sign in and return the claims of the ID token."""
        url = self.authorization_url(nonce="n-1", **parameters)
        callback_url = await self.provider.sign_in(url, account)
        assert callback_url.startswith(f"{REDIRECT_URI}?")
        assert dict(parse_qsl(urlsplit(callback_url).query))["iss"] == self.provider.issuer
        await self.oauth.fetch_token(authorization_response=callback_url, code_verifier="v" * 43)
        claims = await self.verify(self.oauth.token["id_token"])
        assert claims["nonce"] == "n-1"
        return claims

    async def verify(self, token: str) -> dict[str, Any]:
        """Verify a signature with the keys that the provider publishes now."""
        key_set = KeySet.import_key_set((await self.oauth.get(self.document["jwks_uri"])).json())
        claims = jwt.decode(token, key_set, ["RS256"]).claims
        assert (claims["iss"], claims["aud"]) == (self.provider.issuer, CLIENT_ID)
        return claims

    async def userinfo(self) -> dict[str, Any]:
        response = await self.oauth.get(self.document["userinfo_endpoint"])
        claims: dict[str, Any] = response.raise_for_status().json()
        return claims


@asynccontextmanager
async def open_client(
    provider: SignInProvider, scope: str = "openid email profile"
) -> AsyncIterator[CodeFlowClient]:
    async with httpx.AsyncClient(timeout=60) as http:
        url = f"{provider.issuer}/.well-known/openid-configuration"
        document = (await http.get(url)).raise_for_status().json()
    assert document["issuer"] == provider.issuer
    client = CodeFlowClient(provider, document, scope)
    async with client.oauth:
        yield client


@pytest.fixture
async def scripted() -> AsyncIterator[ScriptedProvider]:
    async with run_scripted_provider(client_id=CLIENT_ID) as scripted_provider:
        yield scripted_provider


@pytest.fixture
async def receiver() -> AsyncIterator[WebhookReceiver]:
    async with run_webhook_receiver() as logout_receiver:
        yield logout_receiver


@pytest.fixture
def provider(tmp_path: Path, receiver: WebhookReceiver) -> Iterator[OidcProvider]:
    with run_oidc_provider(
        tmp_path,
        client_id=CLIENT_ID,
        client_secret=CLIENT_SECRET,
        redirect_uris=[REDIRECT_URI],
        accounts={"ada": ADA},
        backchannel_logout_uri=receiver.url,
    ) as oidc_provider:
        yield oidc_provider


async def test_oidc_provider_signs_in_with_all_claims_and_ends(provider: OidcProvider) -> None:
    scope = "openid email profile groups offline_access"
    async with open_client(provider, scope) as client:
        claims = await client.sign_in(prompt="consent")
        assert {name: claims[name] for name in ADA} == ADA
        assert (claims["sub"], bool(claims["sid"])) == ("ada", True)
        assert await client.userinfo() == {"sub": "ada", **ADA}
        first_refresh_token = client.oauth.token["refresh_token"]
        await provider.set_claims("ada", {**ADA, "email": "countess@example.org"})
        await client.oauth.refresh_token()
        renewed = await client.verify(client.oauth.token["id_token"])
        assert renewed["email"] == "countess@example.org"
        assert client.oauth.token["refresh_token"] != first_refresh_token
        await provider.delete_account("ada")
        with pytest.raises(OAuthError, match="invalid_grant"):
            await client.oauth.refresh_token()


async def test_oidc_provider_requires_pkce_and_can_be_cancelled(provider: OidcProvider) -> None:
    async with open_client(provider) as client:
        cancelled_url = await provider.cancel_sign_in(client.authorization_url())
        assert parse_qs(urlsplit(cancelled_url).query)["error"] == ["access_denied"]
        url = client.authorization_url().split("&code_challenge", maxsplit=1)[0]
        refused_url = await provider.sign_in(url, "ada")
        assert parse_qs(urlsplit(refused_url).query)["error"] == ["invalid_request"]


async def test_oidc_provider_rotates_keys(provider: OidcProvider) -> None:
    async with open_client(provider) as client:
        await client.sign_in()
        old_token = client.oauth.token["id_token"]
        await provider.rotate_keys()
        await client.sign_in()
        await client.verify(old_token)
        await provider.rotate_keys(publish_old=False)
        await client.sign_in()
        with pytest.raises(JoseError):
            await client.verify(old_token)


async def test_oidc_provider_posts_logout_tokens(
    provider: OidcProvider, receiver: WebhookReceiver
) -> None:
    async with open_client(provider) as client:
        sids = [(await client.sign_in())["sid"] for _ in range(2)]
        deliveries = await provider.end_session("ada")
        assert [delivery.status for delivery in deliveries] == [200, 200]
        received = [dict(parse_qsl(request.raw.decode())) for request in receiver.requests]
        assert received == [{"logout_token": delivery.token} for delivery in deliveries]
        logout_claims = [await client.verify(delivery.token) for delivery in deliveries]
        assert [claims["sid"] for claims in logout_claims] == sids
        assert logout_claims[0]["events"] == {LOGOUT_EVENT: {}}
        assert await provider.end_session("ada") == []
        await client.sign_in()
        (delivery,) = await provider.end_session("ada", with_sid=False)
        claims = await client.verify(delivery.token)
        assert (claims["sub"], claims.get("sid")) == ("ada", None)


async def test_glewlwyd_signs_in(tmp_path: Path) -> None:
    accounts = {"ada": {"email": "ada@example.org", "email_verified": True, "name": "Ada"}}
    with run_glewlwyd(
        tmp_path,
        client_id=CLIENT_ID,
        client_secret=CLIENT_SECRET,
        redirect_uris=[REDIRECT_URI],
        accounts=accounts,
    ) as glewlwyd:
        async with open_client(glewlwyd, "openid email profile") as client:
            claims = await client.sign_in()
            assert {name: claims[name] for name in accounts["ada"]} == accounts["ada"]
            assert await client.userinfo() == {"sub": claims["sub"], **accounts["ada"]}
            await client.oauth.refresh_token()
            assert (await client.userinfo())["sub"] == claims["sub"]


async def test_scripted_provider_signs_in_and_records_requests(scripted: ScriptedProvider) -> None:
    async with open_client(scripted) as client:
        claims = await client.sign_in()
        assert {name: claims[name] for name in ADA_CLAIMS} == ADA_CLAIMS
        (token_request,) = scripted.requests_to(ProviderEndpoint.TOKEN)
        assert token_request.form["code_verifier"] == "v" * 43
        assert token_request.headers["authorization"].startswith("Basic ")
        scripted.userinfo_changes = {"sub": "other", "name": None}
        userinfo = {**ADA_CLAIMS, "sub": "other"}
        del userinfo["name"]
        assert await client.userinfo() == userinfo
        await client.oauth.refresh_token()
        logout_claims = await client.verify(scripted.logout_token(sid="s-1"))
        assert (logout_claims["sub"], logout_claims["sid"]) == ("ada-1", "s-1")


async def test_scripted_provider_changes_metadata_and_redirects(
    scripted: ScriptedProvider,
) -> None:
    scripted.discovery_changes = {"issuer": "https://other.example.org", "jwks_uri": None}
    async with plain_client(base_url=scripted.issuer) as http:
        document = (await http.get(ProviderEndpoint.DISCOVERY)).json()
    assert document["issuer"] == "https://other.example.org"
    assert "jwks_uri" not in document
    url = f"{scripted.issuer}/authorize?redirect_uri={REDIRECT_URI}&state=s"
    callback_url = await scripted.sign_in(url, state="t", iss=None)
    parameters = dict(parse_qsl(urlsplit(callback_url).query))
    assert (parameters["state"], sorted(parameters)) == ("t", ["code", "state"])


@pytest.mark.parametrize("algorithm", ["RS256", "PS256", "ES256", "HS256", "none"])
async def test_scripted_provider_signs_with_any_algorithm(
    scripted: ScriptedProvider, algorithm: str
) -> None:
    if algorithm == "ES256":
        scripted.rotate_keys("ES256", publish_old=False)
    scripted.id_token_header = {"alg": algorithm}
    scripted.id_token_changes = {"aud": ["other"], "exp": None}
    async with plain_client(base_url=scripted.issuer) as http:
        token = (await http.post(ProviderEndpoint.TOKEN)).json()["id_token"]
        keys = KeySet.import_key_set((await http.get(ProviderEndpoint.JWKS)).json())
    header, payload, signature = token.split(".")
    assert json.loads(base64url_decoded(header))["alg"] == algorithm
    claims = json.loads(base64url_decoded(payload))
    assert (claims["aud"], claims["iss"], "exp" in claims) == (["other"], scripted.issuer, False)
    if algorithm == "none":
        assert signature == ""
    elif algorithm == "HS256":
        secret = scripted.signing_key.as_pem(private=False)
        expected = hmac.digest(secret, f"{header}.{payload}".encode(), "sha256")
        assert base64url_decoded(signature) == expected
    else:
        assert jwt.decode(token, keys, [algorithm]).claims == claims


async def test_scripted_provider_publishes_or_hides_rotated_keys(
    scripted: ScriptedProvider,
) -> None:
    async with open_client(scripted) as client:
        await client.sign_in()
        scripted.rotate_keys(publish_new=False)
        with pytest.raises(JoseError):
            await client.sign_in()
        scripted.rotate_keys(publish_old=False)
        await client.sign_in()


async def test_scripted_provider_sends_bad_responses(scripted: ScriptedProvider) -> None:
    async with plain_client(base_url=scripted.issuer, timeout=60) as http:
        scripted.responses[ProviderEndpoint.TOKEN] = Response(status_code=500)
        assert (await http.post(ProviderEndpoint.TOKEN)).status_code == 500
        scripted.responses[ProviderEndpoint.JWKS] = large_response(10_000_000)
        assert len((await http.get(ProviderEndpoint.JWKS)).content) == 10_000_000
        for response in (missing_response(), slow_response(b"{}" * 1000)):
            scripted.responses[ProviderEndpoint.DISCOVERY] = response
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await http.get(ProviderEndpoint.DISCOVERY)
        scripted.responses[ProviderEndpoint.USERINFO] = large_response(has_content_length=False)
        async with http.stream("GET", ProviderEndpoint.USERINFO) as stream:
            assert "content-length" not in stream.headers
            assert await anext(stream.aiter_bytes())


async def test_scripted_provider_ends_with_open_requests() -> None:
    async with plain_client() as http, asyncio.timeout(60):
        async with run_scripted_provider() as scripted:
            scripted.responses[ProviderEndpoint.DISCOVERY] = missing_response()
            url = scripted.issuer + ProviderEndpoint.DISCOVERY
            request = asyncio.create_task(http.get(url, timeout=60))
            while not scripted.requests:  # noqa: ASYNC110 - no event for requests
                await asyncio.sleep(0.01)
        assert (await request).status_code == 500
