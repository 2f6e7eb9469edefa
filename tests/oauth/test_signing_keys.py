"""Signing keys of ID tokens: rotation, publication, and tokens with forged signatures."""

import asyncio
import hmac
import json
from base64 import urlsafe_b64encode
from datetime import datetime
from typing import Any

import pytest
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, KeySet
from sqlalchemy import select

from mail.maintenance import housekeeping
from models.oauth.tables import OauthSigningKey
from models.runtime.environment import Environment
from models.store.columns import core_table
from resolvers.admin import secret_rotation
from resolvers.oauth import signing_keys
from tests.conftest import ManualClock
from tests.support.oauth.oauth_flow import OauthBrowser, TestClient


def encode_part(values: Any) -> str:
    """A part of a JWT."""
    return urlsafe_b64encode(json.dumps(values).encode()).decode().rstrip("=")


def as_public_pem(keys: KeySet) -> bytes:
    """The PEM form of the first key."""
    key = keys.keys[0]
    assert isinstance(key, ECKey)
    return key.as_pem(private=False)


async def published_key_ids(browser: OauthBrowser) -> list[str]:
    keys = (await browser.http.get("/oauth/jwks")).json()["keys"]
    assert all("d" not in key for key in keys)
    return [key["kid"] for key in keys]


async def key_rows(environment: Environment) -> list[Any]:
    return list(await environment.database.read(select(core_table(OauthSigningKey))))


async def test_first_key_signs_at_once(environment: Environment, clock: ManualClock) -> None:
    """A real clock goes on while the key is created."""

    def tick_and_read() -> datetime:
        clock.tick(milliseconds=1)
        return clock()

    object.__setattr__(environment, "now", tick_and_read)
    assert (await signing_keys.load_or_create_signing_key(environment)).kid


async def test_new_key_is_published_a_day_before_it_signs(
    browser: OauthBrowser, clock: ManualClock, environment: Environment
) -> None:
    (first,) = await published_key_ids(browser)
    clock.tick(days=88, hours=23)
    assert await published_key_ids(browser) == [first]
    clock.tick(hours=1)
    second, old = await published_key_ids(browser)
    assert old == first
    assert (await signing_keys.load_or_create_signing_key(environment)).kid == first
    clock.tick(days=1)
    assert (await signing_keys.load_or_create_signing_key(environment)).kid == second
    assert await published_key_ids(browser) == [second, first]
    clock.tick(hours=2)
    assert await published_key_ids(browser) == [second]
    await housekeeping.run_housekeeping_round(environment)
    assert {row.kid for row in await key_rows(environment)} == {first, second}
    clock.tick(days=90)
    await housekeeping.run_housekeeping_round(environment)
    assert first not in {row.kid for row in await key_rows(environment)}


async def test_id_token_is_valid_after_a_rotation_during_the_sign_in(
    browser: OauthBrowser, webmail: TestClient, clock: ManualClock
) -> None:
    await published_key_ids(browser)
    clock.tick(days=90, minutes=-10)
    await published_key_ids(browser)  # creates the next key
    clock.tick(days=1)
    code = await browser.authorize(webmail)
    tokens = (await browser.request_tokens(webmail, code)).json()
    clock.tick(minutes=59)
    keys = KeySet.import_key_set((await browser.http.get("/oauth/jwks")).json())
    assert jwt.decode(tokens["id_token"], keys, ["ES256"]).claims["aud"] == webmail.client_id


async def test_concurrent_requests_create_one_key(
    browser: OauthBrowser, environment: Environment
) -> None:
    await asyncio.gather(*(browser.http.get("/oauth/jwks") for _ in range(5)))
    assert len(await key_rows(environment)) == 1


async def test_keys_verify_no_forged_token(browser: OauthBrowser, webmail: TestClient) -> None:
    tokens = await browser.get_tokens(webmail)
    document = (await browser.http.get("/.well-known/openid-configuration")).json()
    algorithms = document["id_token_signing_alg_values_supported"]
    assert algorithms == ["ES256"]
    keys = KeySet.import_key_set((await browser.http.get("/oauth/jwks")).json())
    claims = jwt.decode(tokens["id_token"], keys, algorithms).claims
    unsigned = f"{encode_part({'alg': 'HS256', 'kid': keys.keys[0].kid})}.{encode_part(claims)}"
    mac = hmac.digest(as_public_pem(keys), unsigned.encode(), "sha256")
    forged = [
        f"{encode_part({'alg': 'none'})}.{encode_part(claims)}.",
        f"{unsigned}.{urlsafe_b64encode(mac).decode().rstrip('=')}",
        tokens["id_token"][:-8] + "AAAAAAAA",
    ]
    for token in forged:
        with pytest.raises(JoseError):
            jwt.decode(token, keys, algorithms)


async def test_secret_rotation_reencrypts_the_key(
    browser: OauthBrowser, webmail: TestClient, environment: Environment
) -> None:
    await browser.get_tokens(webmail)
    (before,) = await key_rows(environment)
    box = environment.secret_box
    object.__setattr__(box, "keys", {**box.keys, **box.with_new_key().keys})
    result = await secret_rotation.reencrypt_all_secrets(environment)
    assert (result.reencrypted_count, result.failed_contexts) == (1, [])
    (after,) = await key_rows(environment)
    assert after.private_key.startswith(f"{box.newest_key_name}.")
    assert (after.kid, after.private_key == before.private_key) == (before.kid, False)
    tokens = await browser.get_tokens(webmail)
    keys = KeySet.import_key_set((await browser.http.get("/oauth/jwks")).json())
    assert jwt.decode(tokens["id_token"], keys, ["ES256"]).header["kid"] == before.kid
