"""Requests to the token, revocation and introspection endpoints, each one transaction."""

from collections.abc import Callable, Mapping
from datetime import timedelta

from models.auth.security_log import AuthProtocol, SecurityEventAction, SecurityEventResult
from models.observability import metrics
from models.runtime.environment import DatabaseTransaction, Environment
from models.throttling.policy import BanCause
from resolvers.auth import security_log
from resolvers.auth.credential_cache import cache_of_database, drop_cached_credentials
from resolvers.auth.security_event_rows import NewSecurityEvent
from resolvers.context import Context
from resolvers.oauth import token_rows
from resolvers.oauth.client_records import RegisteredClient
from resolvers.oauth.issuer import Issuer
from resolvers.oauth.signing_keys import load_or_create_signing_key
from resolvers.oauth.token_server import FormRequest, OauthResponse, TokenChanges, TokenServer
from resolvers.throttling import client_failures

CLIENT_USE_INTERVAL = timedelta(hours=1)  # between two records of a client's use
TOKEN_RESPONSES = metrics.counter(
    "merganser_oauth_token_responses", "Responses of the OAuth token endpoint.", "result"
)

Respond = Callable[[TokenServer], OauthResponse]


async def respond_to_token_request(
    ctx: Context, issuer: Issuer, form: Mapping[str, str], headers: Mapping[str, str]
) -> OauthResponse:
    """Respond to a request for tokens (RFC 6749, section 3.2)."""
    response = await _respond_in_transaction(
        ctx, issuer, lambda server: server.create_token_response(FormRequest(form, headers))
    )
    TOKEN_RESPONSES.add(response.error or "success")
    return response


async def respond_to_revocation(
    ctx: Context, issuer: Issuer, form: Mapping[str, str], headers: Mapping[str, str]
) -> OauthResponse:
    """Respond to a request to revoke a token (RFC 7009)."""
    request = FormRequest(form, headers)
    return await _respond_in_transaction(
        ctx, issuer, lambda server: server.create_endpoint_response("revocation", request)
    )


async def respond_to_introspection(
    ctx: Context, issuer: Issuer, form: Mapping[str, str], headers: Mapping[str, str]
) -> OauthResponse:
    """Respond to a request for the state of a token of the client (RFC 7662)."""
    request = FormRequest(form, headers)
    return await _respond_in_transaction(
        ctx, issuer, lambda server: server.create_endpoint_response("introspection", request)
    )


async def _respond_in_transaction(ctx: Context, issuer: Issuer, respond: Respond) -> OauthResponse:
    """Run protocol code in one transaction. An error response commits what it has ended."""
    environment = ctx.environment
    signing_key = await load_or_create_signing_key(environment)

    def run(transaction: DatabaseTransaction) -> tuple[OauthResponse, TokenChanges]:
        server = TokenServer(transaction, issuer, signing_key, ctx.client_ip)
        return respond(server), server.changes

    response, changes = await environment.run_transaction(run)
    if changes.ended_user_ids:
        drop_cached_credentials(environment, *changes.ended_user_ids)
    if changes.replayed:
        _write_reuse_to_security_log(ctx, changes.replayed.user_id)
    if changes.client:
        _record_use_of_client_in_background_if_due(environment, changes.client)
    if response.error == "invalid_client":
        await client_failures.count_failure_and_log_ban(ctx, BanCause.SIGN_IN)
    return response


def _write_reuse_to_security_log(ctx: Context, user_id: int) -> None:
    """Log that a code or refresh token was used twice: it may be stolen."""
    event = NewSecurityEvent(
        SecurityEventAction.OAUTH_TOKEN_REPLAYED,
        user_id,
        SecurityEventResult.FAILURE,
        AuthProtocol.HTTP,
    )
    security_log.log_event_in_background(ctx, event)


def _record_use_of_client_in_background_if_due(
    environment: Environment, client: RegisteredClient
) -> None:
    used_at = client.row.last_used_at
    if used_at is not None and environment.now() < used_at + CLIENT_USE_INTERVAL:
        return

    def record(transaction: DatabaseTransaction) -> None:
        token_rows.record_use_of_client(transaction, client.row.id)

    cache_of_database(environment.database).write_in_background(environment.run_transaction(record))
