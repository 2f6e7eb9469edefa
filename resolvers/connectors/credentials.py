"""Encrypt credentials of connectors, refresh access tokens, and open sessions."""

import ssl
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from urllib.parse import quote_plus, urlencode

import orjson
from sqlalchemy import select, update
from sqlmodel import col

from mail.connectors.remote_server import (
    TOKEN_MECHANISMS,
    ConnectorStage,
    RemoteFailure,
    RemoteServer,
    printable_text,
)
from mail.connectors.session_thread import ThreadedSession, connect_and_sign_in_session
from mail.network.outbound_http import (
    HttpRequestFailed,
    NetworkPolicy,
    parse_http_target,
    post_and_read,
)
from models.connectors import AuthMechanism, Connector, ConnectorProtocol, ConnectorSecurity
from models.errors import InvalidInput
from models.runtime.environment import Environment
from models.runtime.secret_box import DecryptionError
from models.store.columns import ColumnRow

REFRESH_BEFORE_EXPIRY = timedelta(minutes=2)  # a token is refreshed so long before it expires
DEFAULT_TOKEN_SECONDS = 3600  # if `expires_in` is missing (RFC 6749, section 5.1)
MAX_TOKEN_RESPONSE = 64 << 10  # bytes
MAX_TOKEN_LENGTH = 16 << 10  # characters
TOKEN_REQUEST_HEADERS = {
    "Content-Type": "application/x-www-form-urlencoded",
    "Accept": "application/json",
}


class ServerLogin(NamedTuple):
    """A server with the credential to sign in with. A cached token can be refreshed if refused."""

    server: RemoteServer
    is_cached_token: bool


class OauthAccessToken(NamedTuple):
    """An OAuth access token, cached or just refreshed."""

    token: str
    is_cached: bool


class CredentialFailure(RemoteFailure):
    """The connector has no usable credential, so no connection is opened."""


def secret_purpose(connector_id: int) -> str:
    """Return the purpose that the secret box binds the secret of a connector to."""
    return f"connector:{connector_id}"


def encrypt_secret(environment: Environment, connector_id: int, secret: Mapping[str, Any]) -> str:
    """Encrypt the password, client secret and tokens of a connector for storage."""
    return environment.secret_box.encrypt(
        orjson.dumps(dict(secret)).decode(), secret_purpose(connector_id)
    )


def decrypt_secret(environment: Environment, connector_id: int, secret: str) -> dict[str, Any]:
    """Decrypt the stored secret.

    Raises CredentialFailure if its key is no longer in the key file.
    """
    try:
        credentials: dict[str, Any] = orjson.loads(
            environment.secret_box.decrypt(secret, secret_purpose(connector_id))
        )
    except DecryptionError:
        raise CredentialFailure(
            ConnectorStage.LOGIN, "The stored password can't be decrypted: set the password again."
        ) from None
    return credentials


@asynccontextmanager
async def open_session_of_connector(
    environment: Environment,
    connector: ColumnRow,
    policy_and_ssl_context: tuple[NetworkPolicy, ssl.SSLContext | None],
    max_timeout: float = 0,
) -> AsyncGenerator[ThreadedSession]:
    """Open a session that is signed in.

    Raises RemoteFailure if the server or the credential fails.

    `max_timeout` limits the timeout, in seconds, if it is not 0. If the server refuses a cached
    access token, it is refreshed once.
    """
    network_policy, ssl_context = policy_and_ssl_context
    max_message_size = environment.options.message_max_size
    async with AsyncExitStack() as stack:
        for refresh in (False, True):
            server, is_cached_token = await _load_server_login_or_raise(
                environment, connector, network_policy, refresh=refresh
            )
            if max_timeout:
                server = replace(server, timeout=min(server.timeout, max_timeout))
            try:
                session_state = await stack.enter_async_context(
                    connect_and_sign_in_session(
                        server, network_policy, max_message_size, ssl_context
                    )
                )
                break
            except RemoteFailure as problem:
                if not (
                    is_cached_token
                    and problem.is_permanent
                    and problem.stage is ConnectorStage.LOGIN
                ):
                    raise
        yield session_state


async def _load_server_login_or_raise(
    environment: Environment, connector: ColumnRow, network_policy: NetworkPolicy, *, refresh: bool
) -> ServerLogin:
    """Return the server and its credential. With `refresh` a cached access token is replaced.

    Raises CredentialFailure.
    """
    secret = decrypt_secret(environment, connector.id, connector.secret)
    if not secret.get("password"):
        raise CredentialFailure(
            ConnectorStage.LOGIN, "The connector has no password: set one.", is_permanent=True
        )
    if connector.security == ConnectorSecurity.NONE and not network_policy.allows_private:
        raise CredentialFailure(
            ConnectorStage.CONNECT,
            "Connections without TLS are no longer allowed: change `security`.",
        )
    credential, is_cached_token = secret["password"], False
    if connector.auth_mechanism in TOKEN_MECHANISMS and connector.oauth:
        credential, is_cached_token = await _cached_or_refreshed_and_stored_token(
            environment, connector, network_policy, refresh=refresh
        )
    server = RemoteServer(
        ConnectorProtocol(connector.protocol),
        connector.host,
        connector.port,
        ConnectorSecurity(connector.security),
        AuthMechanism(connector.auth_mechanism),
        connector.username,
        credential,
        float(connector.remote_timeout),
        connector.max_bytes_per_second,
    )
    return ServerLogin(server, is_cached_token)


async def _cached_or_refreshed_and_stored_token(
    environment: Environment, connector: ColumnRow, network_policy: NetworkPolicy, *, refresh: bool
) -> OauthAccessToken:
    """Return the access token of a connector (RFC 6749, section 6).

    The token is refreshed if it expires soon or with `refresh`. Reads the stored secret again,
    since another process can have replaced the refresh token.
    """
    now = environment.now()
    statement = select(col(Connector.secret)).where(col(Connector.id) == connector.id)
    row = next(iter(await environment.database.read(statement)), connector)
    secret = decrypt_secret(environment, connector.id, row.secret)
    is_valid = (
        secret.get("access")
        and datetime.fromisoformat(secret["ends"]) > now + REFRESH_BEFORE_EXPIRY
    )
    if is_valid and not refresh:
        return OauthAccessToken(str(secret["access"]), is_cached=True)
    response = await request_access_token(connector.oauth, secret, network_policy)
    expires_in = response.get("expires_in", DEFAULT_TOKEN_SECONDS)
    seconds = (
        expires_in
        if isinstance(expires_in, int) and 0 < expires_in < 1 << 31
        else DEFAULT_TOKEN_SECONDS
    )
    new_secret = {
        **secret,
        "access": response["access_token"],
        "ends": (now + timedelta(seconds=seconds)).isoformat(),
    }
    if new_refresh_token := replaced_refresh_token(response, secret):
        new_secret["password"] = new_refresh_token
    async with environment.write_session() as session:
        is_unchanged = col(Connector.id) == connector.id, col(Connector.secret) == row.secret
        statement_update = update(Connector).where(*is_unchanged)
        values = {"secret": encrypt_secret(environment, connector.id, new_secret)}
        await (await session.connection()).execute(statement_update.values(values))
    return OauthAccessToken(str(new_secret["access"]), is_cached=False)


def replaced_refresh_token(response: Mapping[str, Any], secret: Mapping[str, Any]) -> str | None:
    """Return the refresh token of a response if it replaces that of the secret, else None.

    The server can revoke the old one (RFC 6749, section 6).
    """
    token = response.get("refresh_token")
    if not isinstance(token, str) or not 0 < len(token) <= MAX_TOKEN_LENGTH:
        return None
    return None if token == secret["password"] else token


async def request_access_token(
    client: Mapping[str, Any], secret: Mapping[str, Any], network_policy: NetworkPolicy
) -> dict[str, Any]:
    """Request an access token with the refresh token, and return the response.

    Raises CredentialFailure if the token server does not answer or refuses.
    """
    form = {
        "grant_type": "refresh_token",
        "refresh_token": secret["password"],
        "client_id": client["client_id"],
        **({"client_secret": secret["client"]} if secret.get("client") else {}),
        **({"scope": client["scope"]} if client.get("scope") else {}),
    }
    try:
        endpoint = parse_http_target(
            client["token_url"], allow_private=network_policy.allows_private
        )
        form_body = urlencode(form).encode()
        status, body = await post_and_read(
            endpoint, TOKEN_REQUEST_HEADERS, form_body, network_policy, MAX_TOKEN_RESPONSE
        )
    except (HttpRequestFailed, InvalidInput) as problem:
        raise CredentialFailure(
            ConnectorStage.LOGIN, f"Request to the OAuth token endpoint failed: {problem}"
        ) from None
    try:
        response = orjson.loads(body)
    except orjson.JSONDecodeError:
        response = None
    if not isinstance(response, dict):
        raise CredentialFailure(
            ConnectorStage.LOGIN,
            f"The OAuth token endpoint answered with status {status} and without JSON.",
        )
    token = response.get("access_token")
    if (
        not isinstance(token, str)
        or not 0 < len(token) <= MAX_TOKEN_LENGTH
        or not token.isprintable()
    ):
        reason = str(
            response.get("error_description") or response.get("error") or f"status {status}"
        )
        # before the text is cut, which could leave half a secret
        reason = printable_text(_redact_secrets(reason, secret))
        refused = response.get("error") in (
            "invalid_grant",
            "invalid_client",
            "unauthorized_client",
        )
        raise CredentialFailure(
            ConnectorStage.LOGIN,
            f"The OAuth token endpoint refused the request: {reason}",
            is_permanent=refused,
        )
    return response


def _redact_secrets(text: str, known_secret: Mapping[str, Any]) -> str:
    """Return the text without the secrets, plain or percent-encoded."""
    secret = [
        str(known_secret[name])
        for name in ("password", "client", "access")
        if known_secret.get(name)
    ]
    for value in sorted({*secret, *map(quote_plus, secret)}, key=len, reverse=True):
        text = text.replace(value, "…")
    return text
