"""Names and passwords: whose they are, and what may be done with them. Tells nobody why not.

What it takes to say no is the same for all: one hash, for an account with a password of ours
as for a name that nobody has, and a second one wherever what was typed has the form of a
temporary password or of an application's, whether or not the account has such. An imported
hash is compared beside one of ours: until its first sign-in it takes that much longer, and
never less. What is noted of a failure, is noted behind the answer.
"""

import hashlib
import logging
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from sqlalchemy import select
from sqlmodel import col

from mail.addresses.address_syntax import LONGEST, normal, username_key
from mail.network.ip_networks import within
from mail.recipients.address_resolution import LOGIN, login_given
from models.errors import Forbidden
from models.observability import metrics
from models.runtime.environment import World
from models.store.columns import Picked, picked
from models.store.prepared_statements import Prepared
from models.users.roles import Scope
from models.users.tables import User
from resolvers.auth import app_passwords, guess_alerts, security_log, throttles
from resolvers.auth.credential_cache import memory_of
from resolvers.auth.passwords import password_hashes
from resolvers.auth.passwords.new_passwords import GENERATED
from resolvers.auth.second_factors.second_factor_check import Proof
from resolvers.auth.security_log import Event
from resolvers.auth.throttles import Limits
from resolvers.context import Context

log = logging.getLogger(__name__)

SIGN_INS = metrics.counter(
    "merganser_sign_ins", "Attempts to sign in with a password, by what came of them.", "result"
)
OURS = "$argon2"  # what hashes begin with that are no imported ones
WORDS = 128  # characters of a name that the log keeps

_USER = Prepared(select(*picked(User)).where(col(User.id) == LOGIN))


class Source(StrEnum):
    """What was shown."""

    MASTER = "master"
    TEMPORARY = "temporary"
    APP = "application password"


@dataclass(frozen=True, slots=True)
class Attempt:
    """How somebody wants to sign in."""

    scope: Scope = Scope.MASTER
    protocol: str = "API"
    token: bool = False
    ttl: timedelta | None = None  # unused that long, the token ends
    proof: Proof = field(default_factory=Proof)


@dataclass(frozen=True, slots=True)
class Entry:
    """Whom a name leads to, and what counts the failures under it."""

    name: str  # as it was typed
    user: Picked | None
    counted: str  # of its network, which a success clears
    limits: Limits
    failures: frozenset[str]  # those of `limits` that have any

    @property
    def open(self) -> bool:
        """Whether there is an account, which may sign in."""
        user = self.user
        return user is not None and not (user.disabled or user.suspended or user.deleted_at)


@dataclass(frozen=True, slots=True)
class Proved:
    """What of an account has been shown to be known."""

    source: Source
    app: Picked | None = None  # the row of the application password


async def tried(
    ctx: Context,
    username: str,
    password: str,
    *,
    apps: bool,
    check: password_hashes.Check | None = None,
) -> tuple[Entry, Proved | None]:
    """Who signs in as `username`, and what this password proves; with `apps` also a program's.

    `check` compares passwords with hashes. RateLimited, before anything is hashed, who has to
    wait. Never inside a unit.
    """
    with password_hashes.admitted(ctx.world):
        who = await _entry(ctx, username)
        return who, await _proved(
            ctx.world, who.user, password, check or password_hashes.check, apps=apps
        )


async def _entry(ctx: Context, username: str) -> Entry:
    world = ctx.world
    known = len(username) <= LONGEST and "\0" not in username
    given = login_given(world, username if known else "")
    user = next(iter(await world.database.find(_USER, given)), None)
    counted = f"user:{user.id}" if user else f"name:{_counted(username, known=known)}"
    limits = throttles.by_name_and_network(world.options, counted, ctx.client_ip)
    state = await throttles.check(ctx, limits, user.id if user else 0)
    return Entry(username, user, next(iter(limits)), state.limits, state.failed)


def _counted(username: str, *, known: bool) -> str:
    """The name as failures under it are counted, where it leads to nobody."""
    name = "@".join(normal(username)) if "@" in username and known else username_key(username)
    # it may be long, or a password in its place
    return hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()


async def _proved(
    world: World, user: Picked | None, password: str, check: password_hashes.Check, *, apps: bool
) -> Proved | None:
    stored = user.password if user else None
    right = await check(world, stored, password)
    if stored and not stored.startswith(OURS):
        await check(world, None, password)
    if GENERATED.fullmatch(password):
        other = user.temporary_password if user and _runs(user, world.now()) else None
        if await check(world, other, password) and not right:
            return Proved(Source.TEMPORARY)
    elif apps and app_passwords.written(password):
        if user is None:
            await check(world, None, password)
        elif app := await app_passwords.matching(world, user.id, password, check):
            return Proved(Source.APP, app)
    return Proved(Source.MASTER) if right else None


def _runs(user: Picked, now: datetime) -> bool:
    until: datetime | None = user.temporary_until
    return until is None or now < until


def judge(ctx: Context, user: Picked, found: Proved, attempt: Attempt) -> None:
    """Raise Forbidden where what was proved is not good for what is wanted."""
    scope, source, now = attempt.scope, found.source, ctx.world.now()
    if source is Source.TEMPORARY and user.temporary_from and now < user.temporary_from:
        raise Forbidden("the temporary password is not valid yet")
    if scope in user.disabled_scopes:
        raise Forbidden(f"{scope} is switched off for this account", requires=scope)
    near = tuple(user.smtp_allowed_networks)
    if scope is Scope.SMTP and near and not within(ctx.client_ip, near):
        raise Forbidden("SMTP is not open to this network", requires="smtpAllowedNetworks")
    if scope is Scope.MASTER:
        if attempt.token and not user.webmail_access:
            raise Forbidden("this account gets no token", requires="webmailAccess")
    elif found.app is not None:
        if scope not in app_passwords.good_for(found.app.scopes):
            raise Forbidden(f"this application password is not for {scope}", requires=scope)
    elif source is Source.TEMPORARY or user.second_factors:
        needed = "an application password"
        raise Forbidden(f"{scope} asks for {needed} of this account", requires=needed)


def event(who: Entry, attempt: Attempt, found: Proved | None, **more: object) -> Event:
    """What the security log says of this: a success, unless `result` says something else."""
    user, detail = who.user, {"scope": attempt.scope.value}
    if found:
        detail["source"] = found.source.value
    if found and found.app:
        detail["application"] = found.app.description
    if user is None:
        detail["username"] = who.name[:WORDS].replace("\0", "").encode(errors="replace").decode()
    result = str(more.pop("result", "success"))
    facts = {**detail, **more}
    return Event("authenticate", user.id if user else None, result, attempt.protocol, detail=facts)


async def refuse(ctx: Context, who: Entry, attempt: Attempt, found: Proved | None) -> None:
    """Count a failure. RateLimited where others have used up the limit meanwhile."""
    SIGN_INS.add("failed")
    user_id = who.user.id if who.user else None
    facts = {"user": user_id, "protocol": attempt.protocol, "ip": ctx.client_ip}
    log.info("sign-in failed", extra=facts)
    closed = await throttles.count(ctx.world, who.limits)
    failed(ctx, who, attempt, found)
    if who.open and any(each.startswith(who.counted.rpartition("@")[0]) for each in closed):
        memory_of(ctx.world.database).behind(guess_alerts.report(ctx, user_id or 0))


def failed(ctx: Context, who: Entry, attempt: Attempt, found: Proved | None, why: str = "") -> None:
    """Tell the security log, behind the back of whoever waits for the answer."""
    user, result = who.user, "fail"
    if user is not None and not who.open:
        result = "suspended" if user.suspended and not user.disabled else "disabled"
    more = {"reason": why} if why else {}
    security_log.behind(ctx, event(who, attempt, found, result=result, **more))
