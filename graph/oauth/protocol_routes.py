"""The OAuth routes for programs: tokens, revocation, introspection, userinfo, keys, discovery."""

import base64
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from graph.oauth.registration_route import REGISTRATION_PATH
from graph.oauth.request_parameters import InvalidParameters, read_form, require_plain_values
from graph.oauth.service import NO_STORE, OauthService, oauth_error
from models.oauth.tables import OauthGrantType, OauthScope
from resolvers.context import Context
from resolvers.oauth import bearer_tokens, token_requests
from resolvers.oauth.client_records import (
    ALL_AUTHENTICATION_METHODS,
    SECRET_AUTHENTICATION_METHODS,
)
from resolvers.oauth.issuer import Issuer
from resolvers.oauth.sign_in_conditions import Prompt
from resolvers.oauth.signing_keys import ALGORITHM, load_published_keys
from resolvers.oauth.token_server import OauthResponse

DISCOVERY_PATHS = (
    "/.well-known/oauth-authorization-server",
    "/.well-known/openid-configuration",
)
# Browsers of any site can read public documents.
PUBLIC_HEADERS = {"Access-Control-Allow-Origin": "*", "Cache-Control": "public, max-age=300"}
Respond = Callable[
    [Context, Issuer, Mapping[str, str], Mapping[str, str]], Awaitable[OauthResponse]
]

NO_CREDENTIALS = "Basic Og=="  # neither a name nor a secret


def protocol_routes(service: OauthService) -> list[Route]:
    """Return the routes for programs."""

    def form_route(path: str, respond: Respond) -> Route:
        async def serve(request: Request) -> Response:
            return await _read_form_and_respond_with_json(service, request, respond)

        return Route(path, service.charging_json_endpoint(serve), methods=["POST"])

    async def serve_userinfo(request: Request) -> Response:
        return await _serve_userinfo(service, request)

    async def serve_keys(_request: Request) -> Response:
        keys = await load_published_keys(service.environment)
        return JSONResponse({"keys": keys}, headers=PUBLIC_HEADERS)

    async def serve_discovery(_request: Request) -> Response:
        has_registration = service.environment.options.oauth_registration
        document = discovery_document(service.issuer(), has_registration=has_registration)
        return JSONResponse(document, headers=PUBLIC_HEADERS)

    return [
        form_route("/oauth/token", token_requests.respond_to_token_request),
        form_route("/oauth/revoke", token_requests.respond_to_revocation),
        form_route("/oauth/introspect", token_requests.respond_to_introspection),
        Route(
            "/oauth/userinfo",
            service.charging_json_endpoint(serve_userinfo),
            methods=["GET", "POST"],
        ),
        Route("/oauth/jwks", service.charging_json_endpoint(serve_keys)),
        *(Route(path, service.charging_json_endpoint(serve_discovery)) for path in DISCOVERY_PATHS),
    ]


def discovery_document(issuer: Issuer, *, has_registration: bool) -> dict[str, Any]:
    """Return the metadata of the server (RFC 8414; OpenID Connect Discovery)."""
    url = issuer.url
    registration = {"registration_endpoint": f"{url}{REGISTRATION_PATH}"}
    return {
        **(registration if has_registration else {}),
        "issuer": url,
        "authorization_endpoint": f"{url}/oauth/authorize",
        "token_endpoint": f"{url}/oauth/token",
        "revocation_endpoint": f"{url}/oauth/revoke",
        "introspection_endpoint": f"{url}/oauth/introspect",
        "userinfo_endpoint": f"{url}/oauth/userinfo",
        "jwks_uri": f"{url}/oauth/jwks",
        "scopes_supported": [scope.value for scope in OauthScope],
        "response_types_supported": ["code"],
        "response_modes_supported": ["query"],
        "grant_types_supported": [grant_type.value for grant_type in OauthGrantType],
        "code_challenge_methods_supported": ["S256"],
        "token_endpoint_auth_methods_supported": ALL_AUTHENTICATION_METHODS,
        "revocation_endpoint_auth_methods_supported": ALL_AUTHENTICATION_METHODS,
        "introspection_endpoint_auth_methods_supported": SECRET_AUTHENTICATION_METHODS,
        "authorization_response_iss_parameter_supported": True,
        "prompt_values_supported": [prompt.value for prompt in Prompt],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": [ALGORITHM],
        "claims_supported": [
            *("iss", "sub", "aud", "exp", "iat", "auth_time", "nonce", "at_hash"),
            *("name", "preferred_username", "email", "email_verified"),
        ],
        "request_parameter_supported": False,
        "request_uri_parameter_supported": False,
        "claims_parameter_supported": False,
    }


async def _read_form_and_respond_with_json(
    service: OauthService, request: Request, respond: Respond
) -> Response:
    """Serve a request with a form and the credentials of a client."""
    form = require_plain_values(await read_form(request))
    credentials = request.headers.get("authorization")
    if credentials and "client_secret" in form:
        raise InvalidParameters("A client must use one method of authentication")
    headers = (
        {"Authorization": _credentials_decodable_by_authlib(credentials)} if credentials else {}
    )
    response = await respond(service.context(request), service.issuer(), form, headers)
    return JSONResponse(response.body, response.status, {**response.headers, **NO_STORE})


def _credentials_decodable_by_authlib(credentials: str) -> str:
    """Return the value of a header, or wrong credentials if authlib raises ValueError for it."""
    try:
        scheme, text = credentials.split(None, 1)
        if scheme.lower() == "basic":
            base64.b64decode(text).decode()
    except ValueError:
        return NO_CREDENTIALS
    return credentials


async def _serve_userinfo(service: OauthService, request: Request) -> Response:
    """Serve the claims of the user of a token (OpenID Connect Core, section 5.3)."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        return _bearer_error(401, "")
    row = await bearer_tokens.find_valid_token(service.environment, token.strip())
    if row is None:
        return _bearer_error(401, "invalid_token")
    if OauthScope.OPENID not in row.token_scopes:
        return _bearer_error(403, "insufficient_scope")
    claims = await bearer_tokens.load_claims_of_token(service.environment, service.issuer(), row)
    return JSONResponse(claims, headers=NO_STORE)


def _bearer_error(status: int, error: str) -> Response:
    """Return an error of RFC 6750, section 3.1; without a code if there was no token."""
    challenge = f'Bearer error="{error}"' if error else "Bearer"
    response = oauth_error(error or "invalid_request", "A bearer token is required", status)
    response.headers["WWW-Authenticate"] = challenge
    return response
