"""Authorization requests: check their parameters, and create codes for the user's consent."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from authlib.common.urls import add_params_to_uri
from authlib.oauth2 import OAuth2Error
from authlib.oauth2.rfc6749 import (
    InvalidRequestError,
    OAuth2Request,
)
from authlib.oauth2.rfc6749.grants import AuthorizationCodeGrant
from authlib.oauth2.rfc6749.requests import BasicOAuth2Payload
from authlib.oidc.core.errors import LoginRequiredError
from sqlalchemy import delete, exists, func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.auth.credentials import SECOND_FACTOR_TIMEOUT, AccessToken
from models.auth.security_log import AuthProtocol, SecurityEventAction
from models.oauth.tables import CODE_LIFETIME, OauthAuthorizationCode, OauthGrant, OauthScope
from models.store.columns import ColumnRow, select_columns
from models.users.roles import Role
from models.users.tables import User
from resolvers.auth import security_log
from resolvers.auth.credential_status import generate_secret, is_user_enabled_sql, secret_digest
from resolvers.auth.security_event_rows import NewSecurityEvent
from resolvers.context import Context
from resolvers.oauth import scopes as oauth_scopes
from resolvers.oauth.client_records import RegisteredClient, find_client
from resolvers.oauth.issuer import Issuer
from resolvers.oauth.sign_in_conditions import SignInConditions, read_sign_in_conditions
from resolvers.oauth.token_rows import CODE_PREFIX
from resolvers.oauth.token_server import REQUEST_URI, FrameworklessServer, RequiredCodeChallenge
from resolvers.viewer import Viewer

MAX_GRANTS_PER_USER = 200
MAX_NONCE_LENGTH = 512  # characters
UNSUPPORTED_PARAMETERS = {  # OpenID Connect Core, section 6
    "request": "request_not_supported",
    "request_uri": "request_uri_not_supported",
    "registration": "registration_not_supported",
}


class UnknownClient(Exception):
    """The request names no client, or no redirect URI of its client."""


class InvalidPage(Exception):
    """The page was used before, or the user or client has changed since it was shown."""


class TooManyGrants(Exception):
    """The user has given access to too many clients."""


@dataclass(frozen=True, slots=True)
class AuthorizationRequest:
    """A valid authorization request."""

    client: RegisteredClient
    redirect_uri: str
    scopes: list[OauthScope]
    code_challenge: str
    state: str | None
    nonce: str | None
    login_hint: str | None
    conditions: SignInConditions

    @property
    def initial_username(self) -> str:
        """The name that the sign-in page begins with; empty if the client names none."""
        return self.login_hint or self.conditions.username

    @property
    def needs_http(self) -> bool:
        """True if the tokens can be used for GraphQL and REST."""
        return oauth_scopes.opens_http(self.scopes)

    def for_role(self, role: Role) -> "AuthorizationRequest":
        """Return the request with the scopes that a user of this role can give."""
        return replace(self, scopes=oauth_scopes.scopes_for_role(self.scopes, role))

    def limited_to(self, scopes: Collection[str]) -> "AuthorizationRequest":
        """Return the request with only those of its scopes that are among these."""
        return replace(self, scopes=[scope for scope in self.scopes if scope in scopes])


class _AuthorizationOnlyServer(FrameworklessServer):
    """authlib's checks of authorization requests. The client was loaded before."""

    def __init__(self, client: RegisteredClient) -> None:
        super().__init__()
        self._client = client
        self.register_grant(AuthorizationCodeGrant, [RequiredCodeChallenge(required=True)])

    def query_client(self, client_id: str) -> RegisteredClient | None:
        return self._client if client_id == self._client.client_id else None


async def validated_authorization_request(
    ctx: Context, issuer: Issuer, parameters: Mapping[str, str]
) -> AuthorizationRequest:
    """Return the authorization request of these parameters.

    Raises UnknownClient if the client or its redirect URI is not known. Raises OAuth2Error, with
    the redirect URI and the state, for any other problem.
    """
    client = await find_client(ctx.environment, parameters.get("client_id", ""))
    redirect_uri = parameters.get("redirect_uri", "")
    if client is None or not client.check_redirect_uri(redirect_uri):
        raise UnknownClient
    try:
        _require_supported_parameters(parameters)
        conditions = await read_sign_in_conditions(ctx.environment, issuer, parameters)
        request = OAuth2Request("GET", REQUEST_URI)
        request.payload = BasicOAuth2Payload(dict(parameters))
        _AuthorizationOnlyServer(client).get_consent_grant(request)
    except OAuth2Error as error:
        error.redirect_uri, error.state = redirect_uri, parameters.get("state")
        raise
    return AuthorizationRequest(
        client,
        redirect_uri,
        oauth_scopes.allowed_scopes_in_order(request.scope, client.row.scopes),
        parameters["code_challenge"],
        parameters.get("state"),
        parameters.get("nonce"),
        parameters.get("login_hint"),
        conditions,
    )


def _require_supported_parameters(parameters: Mapping[str, str]) -> None:
    """Raise OAuth2Error for a parameter or a value that is not supported."""
    for name, error in UNSUPPORTED_PARAMETERS.items():
        if name in parameters:
            raise OAuth2Error(f"The parameter {name} is not supported", error=error)
    if parameters.get("response_type") != "code":  # before authlib, whose text quotes it
        error = "unsupported_response_type"
        raise OAuth2Error("The response_type must be code", error=error)
    if parameters.get("response_mode", "query") != "query":
        raise InvalidRequestError("The response_mode must be query")
    if len(parameters.get("nonce", "")) > MAX_NONCE_LENGTH:
        raise InvalidRequestError("The nonce is too long")


def error_redirect_url(issuer: Issuer, error: Any) -> str:
    """Return the URL that tells the client of an OAuth2Error (RFC 6749, section 4.1.2.1)."""
    parameters = [("error", error.error)]
    if description := error.get_error_description():
        parameters.append(("error_description", description))
    return _redirect_url(error.redirect_uri, parameters, error.state, issuer)


def login_required_error_redirect_url(issuer: Issuer, request: AuthorizationRequest) -> str:
    """Return the URL that tells the client that the user of its `id_token_hint` is needed."""
    error = LoginRequiredError(redirect_uri=request.redirect_uri)
    error.state = request.state
    return error_redirect_url(issuer, error)


def denial_redirect_url(issuer: Issuer, request: AuthorizationRequest) -> str:
    """Return the URL that tells the client that the user has denied access."""
    parameters = [("error", "access_denied")]
    return _redirect_url(request.redirect_uri, parameters, request.state, issuer)


def _redirect_url(
    redirect_uri: str, parameters: Sequence[tuple[str, str]], state: str | None, issuer: Issuer
) -> str:
    """Return a redirect URI with these parameters, the state and the issuer."""
    all_parameters = [*parameters, *([("state", state)] if state else []), ("iss", issuer.url)]
    return str(add_params_to_uri(redirect_uri, all_parameters))


@dataclass(frozen=True, slots=True)
class SignedInUser:
    """The user who has signed in on a page.

    The sign-in has a pending access token that nobody knows. The page is valid as long as this
    token, so that everything that ends the tokens of the user also ends the page.
    """

    user_id: int
    auth_version: int
    signed_in_at: datetime
    token_digest: str
    family_id: int | None = None  # of the tokens, if the user signed in at an identity provider


async def require_unchanged_signed_in_user(ctx: Context, signed_in: SignedInUser) -> ColumnRow:
    """Return the row of the user. Raises InvalidPage if the user has changed or has ended."""
    is_user = _unchanged_user_clauses(ctx, signed_in)
    statement = select(*select_columns(User)).where(*is_user)
    for row in await ctx.environment.database.read(statement):
        return row
    raise InvalidPage


def _unchanged_user_clauses(ctx: Context, signed_in: SignedInUser) -> tuple[Any, ...]:
    """Return conditions: the user is enabled and unchanged, and the sign-in is recent enough."""
    is_valid_token = exists().where(
        col(AccessToken.digest) == signed_in.token_digest,
        col(AccessToken.user_id) == signed_in.user_id,
        col(AccessToken.created_at) > ctx.environment.now() - SECOND_FACTOR_TIMEOUT,
    )
    return (
        col(User.id) == signed_in.user_id,
        col(User.auth_version) == signed_in.auth_version,
        is_user_enabled_sql(),
        is_valid_token,
    )


async def grant_access_and_return_redirect_url(
    ctx: Context,
    issuer: Issuer,
    request: AuthorizationRequest,
    signed_in: SignedInUser,
    page_id: str,
) -> str:
    """Store the consent of a user, and return the URL with the code for the client.

    Each page creates one code, and the token of its sign-in is deleted. Raises InvalidPage if it
    has created one before, if the user or the client has ended, or if the user's role allows none
    of the scopes, and TooManyGrants.
    """
    environment = ctx.environment
    code = generate_secret(environment, CODE_PREFIX)
    now = environment.now()
    user_ctx = ctx.copy_for_viewer(Viewer(signed_in.user_id, Role.USER))
    try:
        async with user_ctx.write_session(signed_in.user_id) as session:
            connection = await session.connection()
            is_user = _unchanged_user_clauses(ctx, signed_in)
            user = (await connection.execute(select(col(User.role)).where(*is_user))).first()
            if user is None or not (request := request.for_role(user.role)).scopes:
                raise InvalidPage
            is_of_sign_in = col(AccessToken.digest) == signed_in.token_digest
            await connection.execute(delete(AccessToken).where(is_of_sign_in))
            grant_id = await _upsert_grant(user_ctx, session, request, signed_in.user_id)
            await connection.execute(
                insert(OauthAuthorizationCode).values(
                    id=signed_in.family_id or environment.new_id(),
                    digest=secret_digest(code),
                    page_digest=secret_digest(page_id),
                    grant_id=grant_id,
                    scopes=request.scopes,
                    redirect_uri=request.redirect_uri,
                    code_challenge=request.code_challenge,
                    nonce=request.nonce,
                    auth_version=signed_in.auth_version,
                    signed_in_at=signed_in.signed_in_at,
                    created_at=now,
                    expires_at=now + CODE_LIFETIME,
                )
            )
            await _write_grant_to_security_log(user_ctx, session, request, signed_in.user_id)
    except IntegrityError as problem:  # the page was used, or the client was deleted
        raise InvalidPage from problem
    return _redirect_url(request.redirect_uri, [("code", code)], request.state, issuer)


async def _upsert_grant(
    ctx: Context, session: AsyncSession, request: AuthorizationRequest, user_id: int
) -> int:
    """Create the grant of a user and a client, or add scopes to it; return its id."""
    connection = await session.connection()
    is_grant = (
        col(OauthGrant.user_id) == user_id,
        col(OauthGrant.client_id) == request.client.row.id,
    )
    statement = select(col(OauthGrant.id), col(OauthGrant.scopes)).where(*is_grant)
    grant = (await connection.execute(statement)).first()
    if grant is not None:
        names = {*grant.scopes, *request.scopes}
        all_scopes = [scope for scope in OauthScope if scope in names]
        if all_scopes != grant.scopes:
            update_grant = update(OauthGrant).where(*is_grant).values(scopes=all_scopes)
            await connection.execute(update_grant)
        return int(grant.id)
    count = select(func.count()).where(col(OauthGrant.user_id) == user_id)
    if (await connection.execute(count)).scalar_one() >= MAX_GRANTS_PER_USER:
        raise TooManyGrants
    grant_id = ctx.environment.new_id()
    await connection.execute(
        insert(OauthGrant).values(
            id=grant_id,
            user_id=user_id,
            client_id=request.client.row.id,
            scopes=request.scopes,
            created_at=ctx.environment.now(),
        )
    )
    return grant_id


async def _write_grant_to_security_log(
    ctx: Context, session: AsyncSession, request: AuthorizationRequest, user_id: int
) -> None:
    event = NewSecurityEvent(
        SecurityEventAction.OAUTH_GRANT_CREATED,
        user_id,
        protocol=AuthProtocol.HTTP,
        target=request.client.client_id,
        detail={
            "client": request.client.row.name,
            "clientId": request.client.client_id,
            "scopes": list(request.scopes),
        },
    )
    await security_log.log_event_and_queue_notice(ctx, session, event)
