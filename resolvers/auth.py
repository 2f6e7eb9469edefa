"""Credentials: what one is good for, how it is earned, and how it ends."""

import asyncio
import base64
import hashlib
import hmac
import logging
import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Select,
    String,
    Update,
    and_,
    case,
    cast,
    delete,
    func,
    or_,
    select,
    update,
)
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.addresses import LONGEST, login_of, normal, username_key
from models import meters
from models.auth import AccessToken, ApiKey
from models.columns import Picked, picked
from models.errors import AuthenticationFailed, Invalid, NotFound, RateLimited, Unauthenticated
from models.roles import AdminPermission, Role, Scope, UserPermission
from models.users import DomainAdmin, User
from models.world import Turn, World
from resolvers import passwords, throttles
from resolvers.access import visible
from resolvers.context import Context, Needs, Viewer
from resolvers.known import Known, memory_of
from resolvers.listing import by_keys

log = logging.getLogger(__name__)

TOKEN, KEY = "mgt_", "mgk_"  # what secrets begin with: who scans leaked text knows them by it
SECRET = re.compile(r"mg[tk]_[A-Za-z0-9_-]{43}")
PROTOCOL = re.compile(r"[A-Za-z0-9.+_-]{1,32}")
HEADERS = {"authorization": "", "x-access-token": TOKEN, "x-api-key": KEY, "token": ""}

SIGN_INS = meters.counter(
    "merganser_sign_ins", "Attempts to sign in with a password, by what came of them.", "result"
)
CREDENTIALS_REFUSED = meters.counter(
    "merganser_credentials_refused", "Tokens and keys that were shown and are not good."
)
PAUSE = timedelta(hours=1)  # between two notes of a credential's use
SHORTEST = timedelta(minutes=1)  # of a token


def forget(world: World, user_id: int) -> None:
    """Ask the store again about this user's credentials; 0: about those of no user.

    Whoever ends or narrows credentials calls this, right behind the unit that did it.
    """
    memory_of(world.database).drop(user_id, world.now())


async def settle(world: World) -> None:
    """Wait until all uses are noted: before the store is closed."""
    await asyncio.gather(*memory_of(world.database).tasks)


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
    where it is wrong or has ended. `bootstrap` is the key of whoever owns the machine.
    """
    shown = _shown(headers) or _shown({key.lower(): text for key, text in (params or {}).items()})
    if shown is None:
        return Viewer()
    secret, prefix = shown
    if bootstrap and hmac.compare_digest(_bytes(secret), _bytes(bootstrap)):
        return Viewer(role=Role.ROOT, scopes=frozenset({Scope.MASTER}))
    ours = SECRET.fullmatch(secret) and secret.startswith(prefix)
    known = await _known(world, secret) if ours else None
    if known is None:
        CREDENTIALS_REFUSED.add()
        log.info("credential refused", extra={"ip": ip})
        raise Unauthenticated
    _note(world, known)
    return known.viewer


async def ended(world: World, viewer: Viewer) -> bool:
    """Whether the credential is no longer good for all it was. Asking counts as using it."""
    if viewer.token_id:
        known = await _token(world, col(AccessToken.id) == viewer.token_id)
    elif viewer.api_key_id:
        known = await _key(world, col(ApiKey.id) == viewer.api_key_id)
    else:
        return False
    if known is None:
        return True
    _note(world, known)
    return replace(known.viewer, ends_at=viewer.ends_at) != viewer


def _shown(sent: Mapping[str, Any]) -> tuple[str, str] | None:
    """The secret, and what it has to begin with."""
    for name, prefix in HEADERS.items():
        text = sent.get(name)
        if not text:
            continue
        if not isinstance(text, str):
            raise Unauthenticated
        if name != "authorization":
            return text, prefix
        scheme, _, secret = text.partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthenticated
        return secret.strip(), prefix
    return None


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


def digest_of(secret: str) -> str:
    """What the store keeps of a secret. It has 256 bits of chance, so a plain hash will do."""
    return hashlib.sha256(secret.encode()).hexdigest()


def new_secret(world: World, prefix: str) -> str:
    """A secret nobody can guess."""
    return prefix + base64.urlsafe_b64encode(world.random(32)).decode().rstrip("=")


async def _known(world: World, secret: str) -> Known | None:
    memory, digest = memory_of(world.database), digest_of(secret)
    if known := memory.recall(digest, world.now()):
        return known
    if secret.startswith(TOKEN):
        known = await _token(world, col(AccessToken.digest) == digest)
    else:
        known = await _key(world, col(ApiKey.digest) == digest)
    if known:
        memory.keep(digest, known)
    return known


async def _token(world: World, which: ColumnElement[bool]) -> Known | None:
    """The token, while it is good."""
    now, life = world.now(), world.options.token_life
    good = (
        select(*picked(AccessToken), *_standing())
        .join(User, col(User.id) == col(AccessToken.user_id))
        .where(
            which,
            col(AccessToken.expires_at) > now,
            col(AccessToken.created_at) > now - life,
            col(AccessToken.auth_version) == col(User.auth_version),
            ~col(User.disabled),
            ~col(User.suspended),
        )
    )
    for row in await world.database.read(good):
        viewer = Viewer(
            row.user_id,
            row.owners,
            frozenset({row.scope}),
            **_delegated(row, row.owners),
            token_id=row.id,
            actor_id=row.actor_id or 0,
            ends_at=row.created_at + life,
        )
        used, ends = row.last_used_at, row.expires_at
        return Known(viewer, now, used, ends, idle=ends - used)
    return None


async def _key(world: World, which: ColumnElement[bool]) -> Known | None:
    """The API key, while it is good. It may never do more than the user it belongs to."""
    now = world.now()
    good = (
        select(*picked(ApiKey), *_standing())
        .outerjoin(User, col(User.id) == col(ApiKey.user_id))
        .where(
            which,
            or_(col(ApiKey.expires_at).is_(None), col(ApiKey.expires_at) > now),
            or_(col(ApiKey.user_id).is_(None), and_(~col(User.disabled), ~col(User.suspended))),
        )
    )
    for row in await world.database.read(good):
        role = row.role if row.owners is None or row.owners.includes(row.role) else row.owners
        viewer = Viewer(
            row.user_id or 0,
            role,
            frozenset(map(Scope, row.scopes)) or frozenset({Scope.MASTER}),
            **_delegated(row, role),
            read_only=row.read_only,
            api_key_id=row.id,
            ends_at=row.expires_at,
        )
        return Known(viewer, now, row.last_used_at, row.expires_at)
    return None


def _standing() -> list[ColumnElement[Any]]:
    """What a credential's user is allowed, beside the columns of the credential."""
    charges = select(func.aggregate_strings(cast(col(DomainAdmin.domain_id), String), ",")).where(
        col(DomainAdmin.user_id) == col(User.id)
    )
    return [
        col(User.role).label("owners"),
        col(User.permissions).label("permissions"),
        col(User.admin_permissions).label("admin_permissions"),
        charges.scalar_subquery().label("charges"),
    ]


def _delegated(row: Picked, role: Role) -> dict[str, Any]:
    """What is delegated to whoever has this role, as arguments of a Viewer."""
    if role is Role.USER:
        return {"permissions": frozenset(map(UserPermission, row.permissions or ()))}
    if role is Role.DOMAIN_ADMIN:
        return {
            "permissions": frozenset(map(AdminPermission, row.admin_permissions or ())),
            "administers": frozenset(map(int, row.charges.split(",")))
            if row.charges
            else frozenset(),
        }
    return {}


def _note(world: World, known: Known) -> None:
    """Note the use of a credential, behind the back of the request that uses it.

    At most once an hour; where a token would end before, four times in its idle span.
    """
    now, memory = world.now(), memory_of(world.database)
    pause = PAUSE if known.idle is None else min(PAUSE, known.idle / 4)
    if known.used_at is None or now - known.used_at >= pause:
        task = asyncio.create_task(_noted(world, replace(known), now))
        known.used_at = now  # as long as we remember it, not again
        memory.tasks.add(task)
        task.add_done_callback(memory.tasks.discard)


async def _noted(world: World, known: Known, now: datetime) -> None:
    viewer = known.viewer
    statement: Update
    if viewer.api_key_id:
        key = col(ApiKey.id) == viewer.api_key_id
        statement = update(ApiKey).where(key).values(last_used_at=now)
    else:
        unchanged = col(AccessToken.last_used_at) == known.used_at  # else a neighbour did it
        ends = [end for end in (known.idle and now + known.idle, viewer.ends_at) if end]
        statement = (
            update(AccessToken)
            .where(col(AccessToken.id) == viewer.token_id, unchanged)
            .values(last_used_at=now, expires_at=min(ends))
        )

    def unit(turn: Turn) -> None:
        turn.connection.execute(statement)

    try:
        await world.apply(unit)
    except Exception:  # the edge of a task: nobody waits for it, and the next use tries again
        log.exception("the use of a credential was not noted")


@dataclass(frozen=True, slots=True)
class Attempt:
    """How somebody wants to sign in."""

    scope: Scope = Scope.MASTER
    protocol: str = "API"
    token: bool = False
    ttl: timedelta | None = None  # unused that long, the token ends


@dataclass(frozen=True, slots=True)
class Authenticated:
    """Who has signed in."""

    user: Picked
    scope: Scope
    require_password_change: bool
    token: str | None = field(default=None, repr=False)
    expires_at: datetime | None = None


async def authenticate(
    ctx: Context, username: str, password: str, attempt: Attempt | None = None
) -> Authenticated:
    """Sign in by user name or address. Never inside a unit that has begun to write.

    AuthenticationFailed, in the same words and time, for unknown names, wrong passwords and
    accounts that may not sign in. RateLimited, before anything is hashed, after too many
    failures under the name or from the network; nothing takes a counted failure back.
    """
    world, attempt = ctx.world, _checked(ctx.world, attempt or Attempt())
    if not passwords.acceptable(password):
        raise AuthenticationFailed
    user_id = await _login(world, username)
    name = f"user:{user_id}" if user_id else f"name:{_counted(username)}"
    limits = {name: throttles.BY_NAME}
    if near := throttles.network(ctx.client_ip):
        limits[f"network:{near}"] = throttles.BY_NETWORK
    await throttles.check(ctx, limits)

    asked = select(*picked(User)).where(col(User.id) == (user_id or 0))
    user = next(iter(await world.database.read(asked)), None)
    right = await passwords.check(world, user.password if user else None, password)
    facts = {"user": user_id, "protocol": attempt.protocol, "ip": ctx.client_ip}
    if user is None or not right or user.disabled or user.suspended:
        SIGN_INS.add("failed")
        log.info("sign-in failed", extra=facts)
        await throttles.count(world, limits)
        raise AuthenticationFailed
    fresh = await _rehashed(world, user.password, password)
    async with ctx.write(user.id):
        # Once more, now that we hold the account: of many guesses made at once, one that is
        # right counts for nothing when the others have used up the limit meanwhile.
        await throttles.check(ctx, limits)
        await throttles.clear(ctx, name)
        user = await _signed_in(ctx, user, fresh)
        token = await _new_token(ctx, user, attempt) if attempt.token else (None, None)
    SIGN_INS.add("signed in")
    log.info("signed in", extra=facts)
    return Authenticated(user, attempt.scope, user.require_password_change, *token)


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


def _known_form(username: str) -> bool:
    return len(username) <= LONGEST and "\0" not in username


async def _login(world: World, username: str) -> int | None:
    return await login_of(world, username) if _known_form(username) else None


def _counted(username: str) -> str:
    """The name as failures under it are counted, where it leads to nobody."""
    if "@" in username and _known_form(username):
        name = "@".join(normal(username))
    else:
        name = username_key(username)
    return hashlib.sha256(_bytes(name)).hexdigest()  # it may be long, or a password in its place


async def _rehashed(world: World, stored: str, password: str) -> str:
    """The hash to keep: made anew where today's costs are others, and there is time for it."""
    if passwords.outdated(world, stored):
        try:
            return await passwords.make(world, password)
        except RateLimited:
            log.info("no time to hash a password again")
    return stored


async def _signed_in(ctx: Context, user: Picked, fresh: str) -> Picked:
    """Note the sign-in on the account; AuthenticationFailed where it changed since we looked.

    Not in the journal: it would wake all of the user's clients, and tell them nothing.
    """
    kept = col(User.password)
    async with ctx.write(user.id) as session:
        changed = await (await session.connection()).execute(
            update(User)
            .where(
                col(User.id) == user.id,
                col(User.auth_version) == user.auth_version,
                ~col(User.disabled),
                ~col(User.suspended),
            )
            .values(
                last_login_at=ctx.world.now(),
                password=case((kept == user.password, fresh), else_=kept),
            )
            .returning(*picked(User))
        )
        now = changed.first()
    if now is None:
        raise AuthenticationFailed
    return now


async def _new_token(ctx: Context, user: Picked, attempt: Attempt) -> tuple[str, datetime]:
    now, options = ctx.world.now(), ctx.world.options
    secret = new_secret(ctx.world, TOKEN)
    row = AccessToken(
        id=ctx.world.key(),
        user_id=user.id,
        digest=digest_of(secret),
        auth_version=user.auth_version,
        protocol=attempt.protocol,
        ip=ctx.client_ip,
        created_at=now,
        last_used_at=now,
        expires_at=now + min(attempt.ttl or options.token_idle, options.token_life),
    )
    async with ctx.write(user.id) as session:
        session.add(row)
    return secret, row.expires_at


async def complete(ctx: Context, session: AsyncSession) -> None:
    """Make the token of this call, whose second factor was outstanding, good for all it says."""
    waits = (col(AccessToken.id) == ctx.viewer.token_id) & col(AccessToken.pending)
    done = update(AccessToken).where(waits).values(pending=False)
    if not (await (await session.connection()).execute(done)).rowcount:
        raise AuthenticationFailed


async def revoke(ctx: Context, ids: Collection[int] | None = None, *, all: bool = False) -> int:
    """End tokens of the viewer: these, or all, or else the one of this call; returns how many.

    Without a credential nothing happens. NotFound where one of `ids` is not theirs.
    """
    viewer = ctx.viewer
    which = visible(ctx, AccessToken)
    if ids is not None or all:
        if viewer.role is Role.PUBLIC:
            return 0
        viewer.require(Needs(scope=Scope.MASTER))
    elif viewer.token_id is None:
        return 0
    else:
        which &= col(AccessToken.id) == viewer.token_id
    if ids is not None and not all:
        which &= col(AccessToken.id).in_(ids)
    async with ctx.write(viewer.user_id) as session:
        deleted = await (await session.connection()).execute(
            delete(AccessToken).where(which).returning(col(AccessToken.id))
        )
        gone = set(deleted.scalars())
        for index, key in enumerate(ids or ()):
            if key not in gone:
                raise NotFound(str(key), path=["ids"], index=index)
    forget(ctx.world, viewer.user_id)
    return len(gone)


async def tokens_of(ctx: Context, user_ids: list[int]) -> list[list[Picked]]:
    """Tokens that are good, of these users, newest first; `current` is the one of this call.

    Nobody sees another's.
    """
    theirs = _listed(ctx).where(col(AccessToken.user_id).in_(user_ids))
    newest = theirs.order_by(col(AccessToken.created_at).desc(), col(AccessToken.id).desc())
    found: defaultdict[int, list[Picked]] = defaultdict(list)
    for row in await ctx.read(newest):
        found[row.user_id].append(row)
    return [found[key] for key in user_ids]


async def tokens_by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """The viewer's tokens with these ids, in this order; None where there is none."""
    return await by_keys(ctx, _listed(ctx), col(AccessToken.id), ids)


def _listed(ctx: Context) -> Select[*tuple[Any, ...]]:
    shown = [column for column in picked(AccessToken) if column.name != "digest"]
    current = (col(AccessToken.id) == (ctx.viewer.token_id or 0)).label("current")
    good = (
        col(AccessToken.expires_at) > ctx.world.now(),
        col(AccessToken.auth_version) == col(User.auth_version),
    )
    owned = select(*shown, current).join(User, col(User.id) == col(AccessToken.user_id))
    return owned.where(visible(ctx, AccessToken), *good)
