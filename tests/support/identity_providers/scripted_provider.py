"""A scripted OpenID provider on loopback, for tests of bad input."""

import asyncio
import hashlib
import hmac
import json
import secrets
import time
import warnings
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from joserfc import jws
from joserfc.jwk import ECKey, KeyParameters, KeySet, OctKey, RSAKey
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.support.servers.http_server import run_http_server

LOGOUT_EVENT = "http://schemas.openid.net/event/backchannel-logout"
ALL_ALGORITHMS = ["RS256", "PS256", "ES256", "none"]
ADA_CLAIMS = {
    "sub": "ada-1",
    "email": "ada@example.org",
    "email_verified": True,
    "preferred_username": "ada",
    "name": "Ada",
}
SigningKey = RSAKey | ECKey


class ProviderEndpoint(StrEnum):
    """An endpoint, with its path."""

    DISCOVERY = "/.well-known/openid-configuration"
    JWKS = "/jwks"
    TOKEN = "/token"  # noqa: S105 - a path
    USERINFO = "/userinfo"


def new_key(algorithm: str) -> SigningKey:
    """A key for RS256, PS256 or ES256."""
    parameters: KeyParameters = {"kid": secrets.token_urlsafe(8), "use": "sig"}
    if algorithm == "ES256":
        return ECKey.generate_key("P-256", parameters)
    return RSAKey.generate_key(2048, parameters)


@cache  # the creation of a key takes a second on a busy machine
def _first_key() -> SigningKey:
    return new_key("RS256")


def _merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in {**values, **changes}.items() if value is not None}


def _base64url(value: bytes) -> str:
    return urlsafe_b64encode(value).rstrip(b"=").decode()


@dataclass(frozen=True)
class ProviderRequest:
    """A request that the provider received."""

    endpoint: ProviderEndpoint
    method: str
    headers: dict[str, str]
    form: dict[str, str]


@dataclass
class ScriptedProvider:
    """A provider that signs in one account, and does what a test sets.

    In all `..._changes`, a value replaces that of the same name, and None removes it.
    """

    issuer: str = ""
    client_id: str = "merganser"
    claims: dict[str, Any] = field(default_factory=lambda: dict(ADA_CLAIMS))
    discovery_changes: dict[str, Any] = field(default_factory=dict)
    token_changes: dict[str, Any] = field(default_factory=dict)  # of the token response
    id_token_changes: dict[str, Any] = field(default_factory=dict)  # of the claims
    id_token_header: dict[str, Any] = field(default_factory=dict)  # such as {"alg": "none"}
    userinfo_changes: dict[str, Any] = field(default_factory=dict)
    responses: dict[ProviderEndpoint, ASGIApp] = field(default_factory=dict)
    requests: list[ProviderRequest] = field(default_factory=list)
    signing_key: SigningKey = field(default_factory=_first_key)
    published_keys: list[SigningKey] = field(default_factory=lambda: [_first_key()])
    now: Callable[[], float] = time.time
    nonces: dict[str, str | None] = field(default_factory=dict)  # by code

    def reset(self) -> None:
        """Undo what a test has set: answer correctly, with the first key."""
        self.claims = dict(ADA_CLAIMS)
        for changes in (
            self.discovery_changes,
            self.token_changes,
            self.id_token_changes,
            self.id_token_header,
            self.userinfo_changes,
            self.responses,
        ):
            changes.clear()
        self.signing_key, self.published_keys = _first_key(), [_first_key()]

    def requests_to(self, endpoint: ProviderEndpoint) -> list[ProviderRequest]:
        return [request for request in self.requests if request.endpoint is endpoint]

    def rotate_keys(
        self, algorithm: str = "RS256", *, publish_new: bool = True, publish_old: bool = True
    ) -> None:
        """Sign with a new key."""
        self.signing_key = new_key(algorithm)
        if not publish_old:
            self.published_keys.clear()
        if publish_new:
            self.published_keys.insert(0, self.signing_key)

    async def sign_in(
        self, authorization_url: str, account: str = "", **changes: str | None
    ) -> str:
        """Return the URL of the redirect to the client, with changed query parameters.

        `account` is ignored. It is there because other providers have it.
        """
        request = dict(parse_qsl(urlsplit(authorization_url).query))
        code = secrets.token_urlsafe(16)
        self.nonces[code] = request.get("nonce")
        parameters = {"code": code, "state": request.get("state"), "iss": self.issuer}
        return f"{request['redirect_uri']}?{urlencode(_merged(parameters, changes))}"

    def id_token(self, nonce: str | None, access_token: str) -> str:
        digest = hashlib.sha256(access_token.encode()).digest()
        claims = {
            **self._registered_claims(lifetime=600),
            **self.claims,
            "nonce": nonce,
            "at_hash": _base64url(digest[:16]),
        }
        return self.sign(_merged(claims, self.id_token_changes), **self.id_token_header)

    def logout_token(self, header: Mapping[str, Any] | None = None, **changes: Any) -> str:
        """A logout token with `sub`, without `sid`, with changed claims."""
        claims = {
            **self._registered_claims(lifetime=120),
            "sub": self.claims["sub"],
            "jti": secrets.token_urlsafe(16),
            "events": {LOGOUT_EVENT: {}},
        }
        return self.sign(_merged(claims, changes), **{"typ": "logout+jwt", **(header or {})})

    def sign(self, claims: Any, **header: Any) -> str:
        """Sign a JWT by the signing key. `header` has changes of the header.

        `alg="none"` leaves the signature empty. `alg="HS256"` uses the public key in PEM as the
        secret. Other algorithms must fit the key.
        """
        key, payload = self.signing_key, json.dumps(claims).encode()
        algorithm = "RS256" if isinstance(key, RSAKey) else "ES256"
        header = _merged({"typ": "JWT", "alg": algorithm, "kid": key.kid}, header)
        if header["alg"] == "HS256":
            signing_input = f"{_base64url(json.dumps(header).encode())}.{_base64url(payload)}"
            secret = key.as_pem(private=False)
            signature = hmac.digest(secret, signing_input.encode(), "sha256")
            return f"{signing_input}.{_base64url(signature)}"
        registry = jws.JWSRegistry(algorithms=ALL_ALGORITHMS, strict_check_header=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of joserfc for "none"
            used_key = OctKey.generate_key() if header["alg"] == "none" else key
            return jws.serialize_compact(header, payload, used_key, registry=registry)

    def _registered_claims(self, *, lifetime: int) -> dict[str, Any]:
        now = int(self.now())
        return {"iss": self.issuer, "aud": self.client_id, "iat": now, "exp": now + lifetime}

    def default_content(self, request: ProviderRequest) -> dict[str, Any]:
        """The JSON of an endpoint for which the test has set no response."""
        match request.endpoint:
            case ProviderEndpoint.DISCOVERY:
                return _merged(discovery_document(self.issuer), self.discovery_changes)
            case ProviderEndpoint.JWKS:
                return dict(KeySet(list(self.published_keys)).as_dict(private=False))
            case ProviderEndpoint.TOKEN:
                return self._token_response(self.nonces.pop(request.form.get("code", ""), None))
            case ProviderEndpoint.USERINFO:
                return _merged(self.claims, self.userinfo_changes)

    def _token_response(self, nonce: str | None) -> dict[str, Any]:
        access_token = secrets.token_urlsafe(16)
        response = {
            "access_token": access_token,
            "token_type": "Bearer",
            "expires_in": 600,
            "refresh_token": secrets.token_urlsafe(16),
            "id_token": self.id_token(nonce, access_token),
        }
        return _merged(response, self.token_changes)


def discovery_document(issuer: str) -> dict[str, Any]:
    """The provider metadata of OpenID Connect Discovery 1.0."""
    return {
        "issuer": issuer,
        "authorization_endpoint": f"{issuer}/authorize",
        "token_endpoint": issuer + ProviderEndpoint.TOKEN,
        "userinfo_endpoint": issuer + ProviderEndpoint.USERINFO,
        "jwks_uri": issuer + ProviderEndpoint.JWKS,
        "response_types_supported": ["code"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["RS256", "ES256"],
        "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
        "code_challenge_methods_supported": ["S256"],
        "authorization_response_iss_parameter_supported": True,
        "backchannel_logout_supported": True,
        "backchannel_logout_session_supported": True,
    }


@dataclass(frozen=True)
class _EndpointApp:
    """Records requests, and sends the response that the test has set. An ASGI application."""

    provider: ScriptedProvider
    endpoint: ProviderEndpoint
    unfinished: set[asyncio.Task[None]]  # responses of all endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        form = dict(parse_qsl((await request.body()).decode()))
        received = ProviderRequest(self.endpoint, request.method, dict(request.headers), form)
        self.provider.requests.append(received)
        response = self.provider.responses.get(self.endpoint)
        if response is None:
            response = JSONResponse(self.provider.default_content(received))
        task = asyncio.ensure_future(response(scope, receive, send))
        self.unfinished.add(task)
        await asyncio.wait({task})
        self.unfinished.discard(task)
        if not task.cancelled():
            task.result()


@asynccontextmanager
async def run_scripted_provider(**fields: Any) -> AsyncIterator[ScriptedProvider]:
    """Run a provider on a free port, with fields of ScriptedProvider."""
    provider, unfinished = ScriptedProvider(**fields), set[asyncio.Task[None]]()
    app = Starlette(
        routes=[
            Route(endpoint, _EndpointApp(provider, endpoint, unfinished))
            for endpoint in ProviderEndpoint
        ]
    )
    async with run_http_server(app) as port:
        provider.issuer = f"http://127.0.0.1:{port}"
        try:
            yield provider
        finally:
            for task in unfinished:  # the server would wait for them
                task.cancel()
