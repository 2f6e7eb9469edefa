"""Requests to the token endpoint of a provider: exchange a code, and use a refresh token."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote_plus, urlencode

import orjson

from models.runtime.environment import Environment
from resolvers.identity_providers.errors import ProviderFailure
from resolvers.identity_providers.provider_metadata import (
    OK,
    ProviderMetadata,
    get_with_token,
    post_form,
)
from resolvers.identity_providers.provider_records import ProviderConfig

MAX_TOKEN_LENGTH = 16 << 10  # characters of an access or refresh token
MAX_ERROR_LENGTH = 40  # characters of an error code that is shown


class TokenRefused(ProviderFailure):
    """The token endpoint refused the request. `error` is the code of RFC 6749, section 5.2."""

    def __init__(self, error: str) -> None:
        super().__init__(f"token: the provider refused the request with {error}.")
        self.error = error


@dataclass(frozen=True, slots=True)
class ProviderTokens:
    """The tokens of a response."""

    id_token: object  # not checked yet; None: absent
    access_token: str | None = field(default=None, repr=False)
    refresh_token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class ReceivedCode:
    """A code of the provider, with the PKCE verifier and the redirect URI of its request."""

    code: str = field(repr=False)
    verifier: str = field(repr=False)
    redirect_uri: str


async def exchange_code(
    environment: Environment,
    provider: ProviderConfig,
    metadata: ProviderMetadata,
    received: ReceivedCode,
) -> ProviderTokens:
    """Exchange a code for tokens. Raises ProviderFailure or TokenRefused."""
    form = {
        "grant_type": "authorization_code",
        "code": received.code,
        "redirect_uri": received.redirect_uri,
        "code_verifier": received.verifier,
    }
    return await _request_tokens(environment, provider, metadata, form)


async def use_refresh_token(
    environment: Environment,
    provider: ProviderConfig,
    metadata: ProviderMetadata,
    refresh_token: str,
) -> ProviderTokens:
    """Request new tokens with a refresh token. Raises ProviderFailure or TokenRefused."""
    form = {"grant_type": "refresh_token", "refresh_token": refresh_token}
    return await _request_tokens(environment, provider, metadata, form)


async def _request_tokens(
    environment: Environment,
    provider: ProviderConfig,
    metadata: ProviderMetadata,
    form: dict[str, str],
) -> ProviderTokens:
    headers = _add_client_credentials_or_return_header(provider, metadata, form)
    body = urlencode(form).encode()
    response = await post_form(environment, metadata.token_endpoint, headers, body)
    try:
        values = orjson.loads(response.body)
    except orjson.JSONDecodeError:
        values = None
    if not isinstance(values, dict):
        text = f"token: the provider answered with status {response.status} and without JSON."
        raise ProviderFailure(text)
    if response.status != OK:
        raise TokenRefused(_printable_error(values.get("error"), response.status))
    return ProviderTokens(
        values.get("id_token"),
        _token(values.get("access_token")),
        _token(values.get("refresh_token")),
    )


def _add_client_credentials_or_return_header(
    provider: ProviderConfig, metadata: ProviderMetadata, form: dict[str, str]
) -> Mapping[str, str]:
    """Return the header of the client, or add its values to the form."""
    client_id, secret = provider.row.client_id, provider.client_secret
    methods = metadata.token_auth_methods
    if secret and ("client_secret_basic" in methods or "client_secret_post" not in methods):
        pair = f"{quote_plus(client_id)}:{quote_plus(secret)}"  # RFC 6749, section 2.3.1
        return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
    form["client_id"] = client_id
    if secret:
        form["client_secret"] = secret
    return {}


def _printable_error(error: object, status: int) -> str:
    if isinstance(error, str) and error.isascii() and error.isprintable():
        return error[:MAX_ERROR_LENGTH]
    return f"status {status}"


def _token(value: object) -> str | None:
    """Return a token that can be sent in a header; None for anything else."""
    if not isinstance(value, str) or not 0 < len(value) <= MAX_TOKEN_LENGTH:
        return None
    return value if value.isascii() and value.isprintable() else None


async def fetch_and_add_missing_userinfo_claims(
    environment: Environment,
    metadata: ProviderMetadata,
    tokens: ProviderTokens,
    claims: Mapping[str, Any],
    wanted: tuple[str, ...],
) -> dict[str, Any]:
    """Return the claims with those of the userinfo endpoint, if the ID token lacks a wanted one.

    Raises ProviderFailure if the endpoint fails or answers about another subject.
    """
    is_complete = all(name in claims for name in wanted)
    if is_complete or tokens.access_token is None or metadata.userinfo_endpoint is None:
        return dict(claims)
    more = await get_with_token(environment, metadata.userinfo_endpoint, tokens.access_token)
    if more.get("sub") != claims["sub"]:  # OpenID Connect Core, section 5.3.2
        raise ProviderFailure("userinfo: the response is about another subject.")
    return {**more, **claims}
