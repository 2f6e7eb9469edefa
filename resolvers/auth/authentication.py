"""Authentication of requests by their credentials, and sign-in with a password."""

import hmac
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from sqlalchemy import case, select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.network.ip_networks import within
from models.auth.credentials import PENDING, AccessToken
from models.errors import AuthenticationFailed, Forbidden, Invalid, RateLimited, Unauthenticated
from models.observability import metrics
from models.runtime.environment import World
from models.store.columns import Picked, picked
from models.users.roles import Role, Scope
from models.users.tables import User
from resolvers.auth import (
    access_tokens,
    app_passwords,
    credential_cache,
    credential_status,
    security_log,
    throttles,
)
from resolvers.auth import sign_in as auth_sign_in
from resolvers.auth.access_tokens import NewToken
from resolvers.auth.basic_auth import BASIC, signed
from resolvers.auth.credential_cache import Known, memory_of
from resolvers.auth.credential_status import KEY, TOKEN
from resolvers.auth.passwords import password_hashes
from resolvers.auth.second_factors import second_factor_check
from resolvers.auth.second_factors.second_factor_check import TwoFactorMethod
from resolvers.auth.security_log import Event
from resolvers.auth.sign_in import Attempt, Source
from resolvers.context import Context, Viewer

log = logging.getLogger(__name__)

SECRET = re.compile(r"mg[tk]_[A-Za-z0-9_-]{43}")
PROTOCOL = re.compile(r"[A-Za-z0-9.+_-]{1,32}")
HEADERS = {"authorization": "", "x-access-token": TOKEN, "x-api-key": KEY, "token": ""}

CREDENTIALS_REFUSED = metrics.counter(
    "merganser_credentials_refused", "Tokens and keys that were shown and are not good."
)
PAUSE = timedelta(hours=1)  # between two records of a credential's use
SHORTEST = timedelta(minutes=1)

forget, settle, digest_of = (
    credential_cache.forget,
    credential_cache.settle,
    credential_status.digest_of,
)


async def sign_in(
    world: World,
    headers: Mapping[str, str],
    params: Mapping[str, Any] | None = None,
    *,
    ip: str | None = None,
    bootstrap: str | None = None,
) -> Viewer:
    """Authenticate a request by its headers, or else by the parameters of `connection_init`.

    Header names are in lower case. Returns an anonymous viewer if there is no credential. Raises
    Unauthenticated if the credential is wrong or has ended, and RateLimited after too many wrong
    passwords. `bootstrap` is the key of the operator. Whether the credential can be used for a
    document or a path is checked by `require_document_credential` and `require_path_credential`.
    """
    shown = _shown(headers) or _shown({key.lower(): text for key, text in (params or {}).items()})
    if shown is None:
        return Viewer()
    secret, prefix = shown
    if prefix == BASIC:
        return await signed(world, secret, ip)
    if bootstrap and hmac.compare_digest(_bytes(secret), _bytes(bootstrap)):
        return Viewer(role=Role.ROOT, scopes=frozenset({Scope.MASTER}))
    ours = SECRET.fullmatch(secret) and secret.startswith(prefix)
    found = await _known(world, secret) if ours else None
    if found is None or (found.networks and not within(ip, found.networks)):
        CREDENTIALS_REFUSED.add()
        log.info("credential refused", extra={"ip": ip})
        if found:
            _elsewhere(world, found, ip)
        raise Unauthenticated
    _note(world, found, ip)
    return found.viewer


def for_documents(viewer: Viewer) -> Viewer:
    """Return the viewer. Raises Forbidden for a user's own password, which runs no documents."""
    bare = viewer.token_id is viewer.api_key_id is viewer.app_password_id is None
    if viewer.user_id and bare:
        text = "this asks for a token, a key or an application password"
        raise Forbidden(text, requires="an application password")
    return viewer


def for_paths(viewer: Viewer) -> Viewer:
    """Return the viewer. Raises Forbidden for a key that is limited to some operations."""
    if viewer.operations:
        raise Forbidden("this key is for some operations", requires="a key for all operations")
    return viewer


async def ended(world: World, viewer: Viewer) -> bool:
    """True if the viewer's credential has ended or lost rights.

    Counts as a use of the credential.
    """
    if viewer.token_id:
        found = await credential_status.token(world, id=viewer.token_id)
    elif viewer.api_key_id:
        found = await credential_status.key(world, id=viewer.api_key_id)
    elif viewer.app_password_id:
        found = await credential_status.app_password(world, viewer.app_password_id)
    elif viewer.user_id:
        return not await credential_status.account(world, viewer.user_id, viewer.auth_version)
    else:
        return False
    if found is None:
        return True
    _note(world, found, None)
    return not credential_status.same(found, viewer)


def _shown(sent: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the secret of a request and the prefix it must have, BASIC for a name and a password.

    Returns None without a credential. Raises Unauthenticated for a malformed header.
    """
    for name, prefix in HEADERS.items():
        text = sent.get(name)
        if not text:
            continue
        if not isinstance(text, str):
            raise Unauthenticated
        if name != "authorization":
            return text, prefix
        scheme, _, secret = text.partition(" ")
        if scheme.lower() not in ("bearer", BASIC):
            raise Unauthenticated
        return secret.strip(), BASIC if scheme.lower() == BASIC else prefix
    return None


def _bytes(text: str) -> bytes:
    """Encode text for a comparison in constant time."""
    return text.encode(errors="surrogatepass")


async def _known(world: World, secret: str) -> Known | None:
    """Return the token or key of this secret from the cache or the database; None if not valid."""
    digest = credential_status.digest_of(secret)
    if found := await credential_cache.recall(world, digest):
        return found
    read = credential_status.token if secret.startswith(TOKEN) else credential_status.key
    return await credential_cache.look_up(world, digest, partial(read, world, digest=digest))


def _elsewhere(world: World, found: Known, ip: str | None) -> None:
    """Log that a key was used from a network it is not for: it may be stolen."""
    detail = {"key": str(found.viewer.api_key_id)}
    seen = Event("api key", found.owners[0] or None, "fail", detail=detail | {"reason": "network"})
    ctx = Context(world, Viewer(), client_ip=ip)
    security_log.behind(ctx, seen)


def _note(world: World, found: Known, ip: str | None) -> None:
    """Record the use of a credential in the background.

    At most once an hour; four times in the idle lifetime of a token that would end earlier.
    """
    if not (found.viewer.token_id or found.viewer.api_key_id) or found.viewer.pending_for:
        return
    now = world.now()
    pause = PAUSE if found.idle is None else min(PAUSE, found.idle / 4)
    if found.used_at is None or now - found.used_at >= pause:
        use = credential_status.note_use(world, replace(found), now, ip)
        found.used_at = now  # not again while the credential is cached
        memory_of(world.database).behind(use)


@dataclass(frozen=True, slots=True)
class Authenticated:
    """A signed-in user.

    With a token and entries in `require2fa`, a second factor is still missing.
    """

    user: Picked
    scope: Scope
    require_password_change: bool
    require2fa: list[TwoFactorMethod] = field(default_factory=list)
    token: str | None = field(default=None, repr=False)
    expires_at: datetime | None = None
    app_password_id: int | None = None  # of the application password that was used


async def authenticate(
    ctx: Context, username: str, password: str, attempt: Attempt | None = None
) -> Authenticated:
    """Sign in by username or address. Must not be called inside a transaction that has written.

    Raises AuthenticationFailed, with the same text and after the same time, for unknown names,
    wrong passwords and users that can't sign in. Raises RateLimited before any hashing, after too
    many failures under the name or from the network; a counted failure stays counted. Raises
    Forbidden if the password is right but does not have the scope.
    """
    world, attempt = ctx.world, _checked(ctx.world, attempt or Attempt())
    if not password_hashes.acceptable(password):
        raise AuthenticationFailed
    apps = attempt.scope is not Scope.MASTER
    who, found = await auth_sign_in.tried(ctx, username, password, apps=apps)
    user = who.user
    if user is None or found is None or not who.open:
        await auth_sign_in.refuse(ctx, who, attempt, found)
        raise AuthenticationFailed
    try:
        auth_sign_in.judge(ctx, user, found, attempt)
        outstanding = await _outstanding(ctx, user, attempt)
    except (AuthenticationFailed, Forbidden) as refusal:
        auth_sign_in.failed(ctx, who, attempt, found, refusal.message)
        raise
    master = found.source is Source.MASTER
    fresh = await _rehashed(world, user.password, password) if master else user.password
    async with ctx.write(user.id) as session:
        # Checked again now that the user is locked: of many concurrent guesses, the right one is
        # refused if the others have used up the limit.
        await throttles.check(ctx, who.limits, user.id)
        await throttles.clear(ctx, who.counted)
        waits = bool(outstanding) and attempt.token and not _vouched(ctx, outstanding)
        changes: dict[str, Any] = {} if waits else {"last_login_at": world.now()}
        if found.source is Source.TEMPORARY:
            changes["require_password_change"] = True
        now = await _signed_in(session, user, fresh, changes)
        token: tuple[str | None, datetime | None] = (None, None)
        if attempt.token:
            idle = attempt.ttl or world.options.token_idle
            new = NewToken(
                now,
                idle,
                attempt.protocol,
                pending=waits,
                temporary=found.source is Source.TEMPORARY,
            )
            token = await access_tokens.create(ctx, session, new)
        more: dict[str, Any] = {"require2fa": outstanding} if outstanding else {}
        await _log(ctx, session, auth_sign_in.event(who, attempt, found, **more), found.app)
    auth_sign_in.SIGN_INS.add("signed in")
    facts = {"user": user.id, "protocol": attempt.protocol, "ip": ctx.client_ip}
    log.info("signed in", extra=facts)
    change = now.require_password_change
    app_id = found.app.id if found.app else None
    return Authenticated(now, attempt.scope, change, outstanding, *token, app_password_id=app_id)


def _checked(world: World, attempt: Attempt) -> Attempt:
    """Validate a sign-in request and fill in its default lifetime. Raises Invalid."""
    idle, path = attempt.ttl, ["tokenTtl"]
    if not PROTOCOL.fullmatch(attempt.protocol):
        text = "1 to 32 letters, digits and .+_-"
        raise Invalid(text, constraint="pattern", path=["protocol"])
    if attempt.token and attempt.scope is not Scope.MASTER:
        text = "only the scope MASTER comes with a token"
        raise Invalid(text, constraint="scope", path=["token"])
    if idle is None:
        return replace(attempt, ttl=world.options.token_idle)
    if idle < SHORTEST:
        raise Invalid("a token lasts a minute at least", constraint="min", path=path)
    if idle > (most := world.options.token_life):
        raise Invalid(f"a token lasts {most.days} days at most", constraint="max", path=path)
    return attempt


async def _outstanding(ctx: Context, user: Picked, attempt: Attempt) -> list[TwoFactorMethod]:
    """Return the second factors of which one must still be proved; empty if none.

    Checks the proof of the request, if there is one. Raises AuthenticationFailed if it is wrong.
    """
    factors = second_factor_check.enabled(user) if attempt.scope is Scope.MASTER else []
    if not factors or not attempt.proof.given:
        return factors
    try:
        await second_factor_check.check(ctx, user, attempt.proof)
    except AuthenticationFailed as wrong:
        raise AuthenticationFailed(wrong.message, require2fa=factors) from None
    return []


def _vouched(ctx: Context, factors: list[TwoFactorMethod]) -> bool:
    """True if the only factor is CUSTOM and the caller is a front end that checks it."""
    return factors == [TwoFactorMethod.CUSTOM] and ctx.viewer.speaks_for_others


async def _rehashed(world: World, stored: str, password: str) -> str:
    """Return the hash to store: a new one if the hash settings changed and a worker is free."""
    if password_hashes.outdated(world, stored):
        try:
            return await password_hashes.make(world, password)
        except RateLimited:
            log.info("no time to hash a password again")
    return stored


async def _signed_in(
    session: AsyncSession, user: Picked, fresh: str | None, changes: dict[str, Any]
) -> Picked:
    """Store the sign-in on the user's row and return the row.

    Raises AuthenticationFailed if the user has changed since the password was checked.
    """
    kept = col(User.password)
    changed = await (await session.connection()).execute(
        update(User)
        .where(
            col(User.id) == user.id,
            col(User.auth_version) == user.auth_version,
            credential_status.open_users(),
        )
        .values(password=case((kept == user.password, fresh), else_=kept), **changes)
        .returning(*picked(User))
    )
    now = changed.first()
    if now is None:
        raise AuthenticationFailed
    return now


async def _log(ctx: Context, session: AsyncSession, seen: Event, app: Picked | None) -> None:
    """Write the sign-in to the user's security log, and the use of the application password.

    Raises AuthenticationFailed if the application password has changed since it was checked.
    """
    key = await security_log.note(ctx, session, seen)
    if app and not await app_passwords.used(ctx, session, app, key):
        raise AuthenticationFailed  # it has changed since we looked


async def complete(ctx: Context, session: AsyncSession) -> None:
    """Make the viewer's pending token valid, after the second factor was proved.

    Must be called inside the transaction that proves it and locks the user. Does nothing if no
    factor is missing. Raises AuthenticationFailed if the token or the user has ended.
    """
    viewer, world = ctx.viewer, ctx.world
    if not viewer.pending_for:
        return
    now, connection = world.now(), await session.connection()
    asked = (
        select(*picked(AccessToken))
        .join(User, col(User.id) == col(AccessToken.user_id))
        .where(
            col(AccessToken.id) == viewer.token_id,
            col(AccessToken.pending),
            col(AccessToken.created_at) > now - PENDING,
            col(AccessToken.auth_version) == col(User.auth_version),
            credential_status.open_users(),
        )
    )
    row = (await connection.execute(asked)).first()
    if row is None:
        raise AuthenticationFailed
    ends = min(now + (row.expires_at - row.last_used_at), row.created_at + world.options.token_life)
    full = {"pending": False, "last_used_at": now, "expires_at": ends}
    this = update(AccessToken).where(col(AccessToken.id) == row.id)
    await connection.execute(this.values(**full))
    theirs = update(User).where(col(User.id) == row.user_id)
    await connection.execute(theirs.values(last_login_at=now))
    seen = Event("authenticate", row.user_id, protocol=row.protocol, detail={"completed": True})
    await security_log.note(ctx, session, seen)
    ctx.afterwards(partial(forget, world, row.user_id))
