"""The token, revocation and introspection endpoints: authlib's protocol code in one transaction.

authlib's classes are synchronous. Each request creates a server object over the connection of its
transaction.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from authlib.oauth2.rfc6749 import (
    AuthorizationServer,
    InvalidGrantError,
    InvalidRequestError,
    OAuth2Request,
)
from authlib.oauth2.rfc6749.grants import AuthorizationCodeGrant, RefreshTokenGrant
from authlib.oauth2.rfc6749.requests import BasicOAuth2Payload
from authlib.oauth2.rfc7009 import RevocationEndpoint
from authlib.oauth2.rfc7636 import CodeChallenge
from authlib.oauth2.rfc7662 import IntrospectionEndpoint
from authlib.oidc.core.grants import OpenIDCode

from models.runtime.environment import DatabaseTransaction
from models.store.columns import ColumnRow
from resolvers.oauth import client_records, token_rows, user_claims
from resolvers.oauth.client_records import (
    ALL_AUTHENTICATION_METHODS,
    SECRET_AUTHENTICATION_METHODS,
    RegisteredClient,
)
from resolvers.oauth.issuer import Issuer
from resolvers.oauth.scopes import opens_http, scope_text, scopes_for_role
from resolvers.oauth.signing_keys import ALGORITHM, ID_TOKEN_LIFETIME, SigningKey
from resolvers.oauth.token_rows import StoredCode, StoredToken, TokenFamily

logging.getLogger("authlib").setLevel(logging.INFO)  # at DEBUG it logs tokens

# authlib refuses plain http, but TLS may end at a proxy: the real address is not used
REQUEST_URI = "https://server.invalid/"


@dataclass(frozen=True, slots=True)
class OauthResponse:
    """The status, the JSON body and the headers of a response."""

    status: int
    body: Mapping[str, Any] = field(repr=False)
    headers: Mapping[str, str]

    @property
    def error(self) -> str | None:
        """The error code; None for a success."""
        return self.body.get("error")


@dataclass(slots=True)
class TokenChanges:
    """The changes of a request that are announced after the commit."""

    client: RegisteredClient | None = None  # which has got tokens
    ended_user_ids: set[int] = field(default_factory=set)  # whose tokens were ended
    replayed: TokenFamily | None = None  # ended, since a code or refresh token was used twice


class FormRequest(OAuth2Request):  # type: ignore[misc]
    """A POST request with a form."""

    def __init__(self, form: Mapping[str, str], headers: Mapping[str, str]) -> None:
        super().__init__("POST", REQUEST_URI, headers=headers)
        self._form = dict(form)
        self.payload = BasicOAuth2Payload(self._form)

    @property
    def form(self) -> dict[str, str]:
        """The members of the form by name."""
        return self._form


class FrameworklessServer(AuthorizationServer):  # type: ignore[misc]
    """authlib's server without a web framework."""

    def create_oauth2_request(self, request: OAuth2Request) -> OAuth2Request:
        """Return the request, which already has authlib's type."""
        return request

    def send_signal(self, name: str, *args: Any, **kwargs: Any) -> None:
        """Do nothing: signals of authlib have no receivers."""


class TokenServer(FrameworklessServer):
    """authlib's server over one transaction."""

    def __init__(
        self,
        transaction: DatabaseTransaction,
        issuer: Issuer,
        signing_key: SigningKey,
        client_ip: str | None,
    ) -> None:
        super().__init__(scopes_supported=None)
        self.transaction = transaction
        self.issuer = issuer
        self.signing_key = signing_key
        self.client_ip = client_ip
        self.changes = TokenChanges()
        self.register_token_generator("default", self._generate_token)
        self.register_grant(_CodeGrant, [RequiredCodeChallenge(required=True), _IdToken(self)])
        self.register_grant(_RefreshGrant)
        self.register_endpoint(_Revocation)
        self.register_endpoint(_Introspection)

    def query_client(self, client_id: str) -> RegisteredClient | None:
        """Return the client with this identifier; None if there is none."""
        return client_records.find_client_in_transaction(self.transaction.connection, client_id)

    def handle_response(self, status: int, body: Any, headers: Any) -> OauthResponse:
        """Return the response."""
        return OauthResponse(status, body or {}, dict(headers))

    def _generate_token(
        self, *, user: ColumnRow, scope: str, include_refresh_token: bool, **_unused: Any
    ) -> dict[str, Any]:
        """Return the texts of a new access token and refresh token as a token response.

        Raises InvalidGrantError if the user can give none of the scopes.
        """
        environment = self.transaction.environment
        scopes = scopes_for_role(scope.split(), user.role)
        if not scopes:
            raise InvalidGrantError
        token = {
            "token_type": "Bearer",
            "access_token": token_rows.new_access_token(environment),
            "expires_in": int(environment.options.oauth_access_token_ttl.total_seconds()),
            "scope": scope_text(scopes),
        }
        if include_refresh_token:
            token["refresh_token"] = token_rows.new_refresh_token(environment)
        return token

    def save_token(self, token: Mapping[str, Any], request: Any) -> None:
        """Store the tokens of a response."""
        source: StoredCode | StoredToken = request.authorization_code or request.refresh_token
        family = source.family
        environment = self.transaction.environment
        inserts = [
            token_rows.access_token_insert(
                environment, family, token["access_token"], token["scope"].split(), self.client_ip
            )
        ]
        if "refresh_token" in token:
            scopes = scopes_for_role(source.row.scopes, request.user.role)
            inserts.append(
                token_rows.refresh_token_insert(environment, family, token["refresh_token"], scopes)
            )
        self.transaction.execute_statements(inserts)
        if isinstance(source, StoredToken):  # a code begins its family
            token_rows.delete_oldest_tokens(self.transaction.connection, family)
        self.changes.client = request.client

    def end_family(self, family: TokenFamily) -> None:
        """End all tokens of a family."""
        token_rows.delete_family(self.transaction.connection, family)
        self.changes.ended_user_ids.add(family.user_id)

    def end_replayed_family(self, family: TokenFamily) -> None:
        """End all tokens of a family of which a code or refresh token was used twice."""
        if token_rows.delete_family(self.transaction.connection, family):
            self.changes.ended_user_ids.add(family.user_id)
            self.changes.replayed = family

    def load_user(self, source: StoredCode | StoredToken) -> ColumnRow | None:
        """Return the user of a valid grant, and record the use of the grant.

        Returns None if the grant has ended, or if the user may no longer get tokens for HTTP.
        """
        user = token_rows.record_use_of_grant_and_load_user(self.transaction, source.family)
        if user is not None and not user.webmail_access and opens_http(source.row.scopes):
            return None
        return user


class _CodeGrant(AuthorizationCodeGrant):  # type: ignore[misc]
    TOKEN_ENDPOINT_AUTH_METHODS = ALL_AUTHENTICATION_METHODS
    server: TokenServer

    def query_authorization_code(self, code: str, client: RegisteredClient) -> StoredCode | None:
        found = token_rows.use_up_code_or_return_family_of_reuse(
            self.server.transaction, code, client.row.id
        )
        if isinstance(found, TokenFamily):
            self.server.end_replayed_family(found)
            return None
        return found

    def delete_authorization_code(self, authorization_code: StoredCode) -> None:
        """Do nothing: the code is kept as used, so that a second use is recognized."""

    def authenticate_user(self, authorization_code: StoredCode) -> ColumnRow | None:
        return self.server.load_user(authorization_code)


class _RefreshGrant(RefreshTokenGrant):  # type: ignore[misc]
    TOKEN_ENDPOINT_AUTH_METHODS = ALL_AUTHENTICATION_METHODS
    INCLUDE_NEW_REFRESH_TOKEN = True
    server: TokenServer
    request: Any

    def authenticate_refresh_token(self, refresh_token: str) -> StoredToken | None:
        transaction = self.server.transaction
        found = token_rows.find_refresh_token_and_lock_user(transaction, refresh_token)
        if found is None or not found.check_client(self.request.client):
            return None
        if found.row.replaced_at is not None:
            self.server.end_replayed_family(found.family)
            return None
        return found if found.is_valid else None

    def authenticate_user(self, refresh_token: StoredToken) -> ColumnRow:
        user = self.server.load_user(refresh_token)
        if user is None:
            raise InvalidGrantError
        return user

    def issue_token(self, user: ColumnRow, refresh_token: StoredToken) -> dict[str, Any]:
        """Return new tokens, with the scopes that the client still has."""
        requested = self.request.payload.scope or refresh_token.get_scope()
        scope = self.request.client.get_allowed_scope(requested)
        if scope is None:
            raise InvalidGrantError
        token: dict[str, Any] = self.generate_token(
            user=user, scope=scope, include_refresh_token=True
        )
        return token

    def revoke_old_credential(self, refresh_token: StoredToken) -> None:
        token_rows.mark_refresh_token_replaced(self.server.transaction, refresh_token)


class RequiredCodeChallenge(CodeChallenge):  # type: ignore[misc]
    """PKCE with S256, which every request must use (RFC 9700, section 2.1.1)."""

    SUPPORTED_CODE_CHALLENGE_METHOD = ("S256",)

    def validate_code_challenge(self, grant: Any, redirect_uri: str) -> None:
        """Raise InvalidRequestError if the challenge is missing or not by S256."""
        data = grant.request.payload.data
        if not data.get("code_challenge"):
            raise InvalidRequestError("Missing 'code_challenge'")
        if data.get("code_challenge_method") != "S256":
            raise InvalidRequestError("The 'code_challenge_method' must be S256")
        super().validate_code_challenge(grant, redirect_uri)


class _IdToken(OpenIDCode):  # type: ignore[misc]
    """The ID token of a code (OpenID Connect Core, section 2)."""

    def __init__(self, server: TokenServer) -> None:
        super().__init__(require_nonce=False)
        self.server = server

    def exists_nonce(self, nonce: str, request: OAuth2Request) -> bool:
        del nonce, request
        return False  # the client checks it

    def resolve_client_private_key(self, client: RegisteredClient) -> Any:
        del client
        return self.server.signing_key.private_key

    def get_client_algorithm(self, client: RegisteredClient) -> str:
        del client
        return ALGORITHM

    def get_encode_header(self, client: RegisteredClient) -> dict[str, str]:
        del client
        return {"alg": ALGORITHM, "kid": self.server.signing_key.kid}

    def get_compatible_claims(self, request: Any) -> dict[str, Any]:
        now = int(self.server.transaction.environment.now().timestamp())
        return {
            "iss": self.server.issuer.url,
            "aud": request.client.client_id,
            "iat": now,
            "exp": now + int(ID_TOKEN_LIFETIME.total_seconds()),
        }

    def generate_user_info(self, user: ColumnRow, scope: str) -> dict[str, Any]:
        subject = self.server.issuer.subject_of_user(user.id)
        return user_claims.user_claims(user, subject, scope.split())


class _Revocation(RevocationEndpoint):  # type: ignore[misc]
    """Revocation (RFC 7009). A refresh token ends with all tokens of its family."""

    CLIENT_AUTH_METHODS = ALL_AUTHENTICATION_METHODS
    server: TokenServer

    def check_params(self, request: Any, client: RegisteredClient) -> None:
        del client
        _require_token(request)

    def query_token(self, token_string: str, token_type_hint: str | None) -> StoredToken | None:
        del token_type_hint
        return _find_token(self.server, token_string)

    def revoke_token(self, token: StoredToken, request: OAuth2Request) -> None:
        del request
        if token.is_refresh_token:
            self.server.end_family(token.family)
        else:
            token_rows.delete_access_token(self.server.transaction.connection, token)
            self.server.changes.ended_user_ids.add(token.family.user_id)


class _Introspection(IntrospectionEndpoint):  # type: ignore[misc]
    """Introspection (RFC 7662) of the client's own tokens."""

    CLIENT_AUTH_METHODS = SECRET_AUTHENTICATION_METHODS
    server: TokenServer

    def check_permission(
        self, token: StoredToken, client: RegisteredClient, request: OAuth2Request
    ) -> bool:
        del request
        return token.check_client(client)

    def check_params(self, request: Any, client: RegisteredClient) -> None:
        del client
        _require_token(request)

    def query_token(self, token_string: str, token_type_hint: str | None) -> StoredToken | None:
        del token_type_hint
        return _find_token(self.server, token_string)

    def introspect_token(self, token: StoredToken) -> dict[str, Any]:
        row = token.row
        return {
            "active": True,
            "client_id": row.public_client_id,
            "scope": scope_text(token.effective_scopes()),
            "sub": self.server.issuer.subject_of_user(row.user_id),
            "iss": self.server.issuer.url,
            "iat": int(row.created_at.timestamp()),
            "exp": int(row.expires_at.timestamp()),
            **({} if token.is_refresh_token else {"token_type": "Bearer"}),
        }


def _require_token(request: Any) -> None:
    """Raise InvalidRequestError without a token. Hints are ignored (RFC 7009, section 2.1)."""
    if "token" not in request.form:
        raise InvalidRequestError("Missing 'token' in request.")


def _find_token(server: TokenServer, text: str) -> StoredToken | None:
    """Find a refresh token or access token by its prefix and digest; None if it is unknown."""
    if text.startswith(token_rows.REFRESH_TOKEN_PREFIX):
        return token_rows.find_refresh_token_and_lock_user(server.transaction, text)
    return token_rows.find_access_token(server.transaction, text)
