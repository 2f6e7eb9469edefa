"""Who is it? Credentials that are shown, and how a token is earned by a password."""

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
PAUSE = timedelta(hours=1)  # between two notes of a credential's use
SHORTEST = timedelta(minutes=1)  # of a token

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
    """Who shows these headers, or else these parameters of `connection_init`.

    Names of headers are in lower case. Nobody where no credential is there, Unauthenticated
    where it is wrong or has ended, RateLimited where too many passwords were. `bootstrap` is
    the key of whoever owns the machine. Whether the credential is good where it was shown,
    `for_documents` and `for_paths` say.
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
    """The viewer, or Forbidden: a document is not run by an account's own password."""
    bare = viewer.token_id is viewer.api_key_id is viewer.app_password_id is None
    if viewer.user_id and bare:
        text = "this asks for a token, a key or an application password"
        raise Forbidden(text, requires="an application password")
    return viewer


def for_paths(viewer: Viewer) -> Viewer:
    """The viewer, or Forbidden: a path is no operation that a key could be for."""
    if viewer.operations:
        raise Forbidden("this key is for some operations", requires="a key for all operations")
    return viewer


async def ended(world: World, viewer: Viewer) -> bool:
    """Whether the credential is no longer good for all it was. Asking counts as using it."""
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
    """The secret, and what it has to begin with; BASIC where it is a name and a password."""
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
    return text.encode(errors="surrogatepass")


async def _known(world: World, secret: str) -> Known | None:
    digest = credential_status.digest_of(secret)
    if found := await credential_cache.recall(world, digest):
        return found
    read = credential_status.token if secret.startswith(TOKEN) else credential_status.key
    return await credential_cache.look_up(world, digest, partial(read, world, digest=digest))


def _elsewhere(world: World, found: Known, ip: str | None) -> None:
    """A key was shown from a network that it is not for: somebody else may have it."""
    detail = {"key": str(found.viewer.api_key_id)}
    seen = Event("api key", found.owners[0] or None, "fail", detail=detail | {"reason": "network"})
    ctx = Context(world, Viewer(), client_ip=ip)
    security_log.behind(ctx, seen)


def _note(world: World, found: Known, ip: str | None) -> None:
    """Note the use of a credential, behind the back of the request that uses it.

    At most once an hour; where a token would end before, four times in its idle span.
    """
    if not (found.viewer.token_id or found.viewer.api_key_id) or found.viewer.pending_for:
        return
    now = world.now()
    pause = PAUSE if found.idle is None else min(PAUSE, found.idle / 4)
    if found.used_at is None or now - found.used_at >= pause:
        use = credential_status.note_use(world, replace(found), now, ip)
        found.used_at = now  # as long as we remember it, not again
        memory_of(world.database).behind(use)


@dataclass(frozen=True, slots=True)
class Authenticated:
    """Who has signed in; not yet, where `require2fa` names factors and there is a token."""

    user: Picked
    scope: Scope
    require_password_change: bool
    require2fa: list[TwoFactorMethod] = field(default_factory=list)
    token: str | None = field(default=None, repr=False)
    expires_at: datetime | None = None
    app_password_id: int | None = None  # of the application password that was shown


async def authenticate(
    ctx: Context, username: str, password: str, attempt: Attempt | None = None
) -> Authenticated:
    """Sign in by user name or address. Never inside a unit that has begun to write.

    AuthenticationFailed, in the same words and time, for unknown names, wrong passwords and
    accounts that may not sign in. RateLimited, before anything is hashed, after too many
    failures under the name or from the network; nothing takes a counted failure back.
    Forbidden, once the password is right, where it is not good for the scope.
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
        # Once more, now that we hold the account: of many guesses made at once, one that is
        # right counts for nothing when the others have used up the limit meanwhile.
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
    """The factors of which one is still to be proved."""
    factors = second_factor_check.enabled(user) if attempt.scope is Scope.MASTER else []
    if not factors or not attempt.proof.given:
        return factors
    try:
        await second_factor_check.check(ctx, user, attempt.proof)
    except AuthenticationFailed as wrong:
        raise AuthenticationFailed(wrong.message, require2fa=factors) from None
    return []


def _vouched(ctx: Context, factors: list[TwoFactorMethod]) -> bool:
    """Whether the one factor is checked by the application that asks, and which we believe."""
    return factors == [TwoFactorMethod.CUSTOM] and ctx.viewer.speaks_for_others


async def _rehashed(world: World, stored: str, password: str) -> str:
    """The hash to keep: made anew where today's costs are others, and there is time for it."""
    if password_hashes.outdated(world, stored):
        try:
            return await password_hashes.make(world, password)
        except RateLimited:
            log.info("no time to hash a password again")
    return stored


async def _signed_in(
    session: AsyncSession, user: Picked, fresh: str | None, changes: dict[str, Any]
) -> Picked:
    """Note the sign-in on the account; AuthenticationFailed where it changed since we looked."""
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
    """Write the sign-in into the user's log."""
    key = await security_log.note(ctx, session, seen)
    if app and not await app_passwords.used(ctx, session, app, key):
        raise AuthenticationFailed  # it has changed since we looked


async def complete(ctx: Context, session: AsyncSession) -> None:
    """Make the viewer's token a full one: the second factor is proved.

    Inside the unit that proves it and holds the account. Nothing happens where no factor was
    outstanding; AuthenticationFailed where the token or the account has ended meanwhile.
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
