"""Sign-in to message submission with an access token of an OAuth client (RFC 7628)."""

import logging

from models.auth.security_log import AuthProtocol
from models.errors import AuthenticationFailed, Forbidden
from models.oauth.tables import OauthScope
from models.store.columns import ColumnRow
from models.throttling.policy import BanCause
from models.users.roles import Scope
from resolvers.auth import security_log, sign_in, throttles
from resolvers.auth.sign_in import SignInEntry, SignInRequest
from resolvers.context import Context
from resolvers.oauth import bearer_tokens
from resolvers.throttling import client_failures

log = logging.getLogger(__name__)

SMTP_SIGN_IN = SignInRequest(scope=Scope.SMTP, protocol=AuthProtocol.SMTP)


async def authenticate_user_by_token(ctx: Context, login_name: str | None, token: str) -> ColumnRow:
    """Authenticate an SMTP client by an access token; return its user with the column `token_id`.

    Logs the sign-in. `login_name` must be a name of the token's user; None is not checked. Failures
    are counted and logged like wrong passwords. Raises AuthenticationFailed, also if the token
    lacks the scope `smtp`; RateLimited after too many failures; Forbidden if the user may not use
    SMTP.
    """
    row = await bearer_tokens.find_valid_token(ctx.environment, token)
    if login_name is None:
        if row is None:
            await client_failures.count_failure_and_log_ban(ctx, BanCause.SIGN_IN)
            raise AuthenticationFailed
        login_name = row.username
    entry = await sign_in.resolve_name_unless_throttled(ctx, login_name)
    is_right = row is not None and entry.user is not None and entry.user.id == row.id
    if row is None or not is_right or OauthScope.SMTP not in row.token_scopes:
        await sign_in.count_and_log_failed_sign_in(ctx, entry, SMTP_SIGN_IN, None)
        raise AuthenticationFailed
    try:
        sign_in.require_protocol_allowed(ctx, row, Scope.SMTP)
    except Forbidden as refusal:
        sign_in.log_failure_in_background(ctx, entry, SMTP_SIGN_IN, None, refusal.message)
        raise
    await _store_sign_in(ctx, entry, row)
    sign_in.SIGN_INS.add("signed in")
    log.info("Signed in", extra={"user": row.id, "protocol": "SMTP", "ip": ctx.client_ip})
    return row


async def _store_sign_in(ctx: Context, entry: SignInEntry, row: ColumnRow) -> None:
    """Write the sign-in to the security log.

    The counted failures stay: a token does not prove the password.
    """
    event = sign_in.sign_in_event(entry, SMTP_SIGN_IN, None, source="access token")
    async with ctx.write_session(row.id) as session:
        await throttles.require_not_throttled(ctx, entry.limits, row.id)
        await security_log.log_event_and_queue_notice(ctx, session, event)


async def require_valid_smtp_token(ctx: Context, token_id: int) -> ColumnRow:
    """Return the user of a token that was used to sign in. Raises AuthenticationFailed if it ended.

    Raises AuthenticationFailed as well if SMTP was turned off for the user.
    """
    row = await bearer_tokens.find_valid_token_by_id(ctx.environment, token_id)
    if row is None:
        raise AuthenticationFailed
    try:
        sign_in.require_protocol_allowed(ctx, row, Scope.SMTP)
    except Forbidden as refusal:
        raise AuthenticationFailed from refusal
    return row
