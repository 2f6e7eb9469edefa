"""Check of names and passwords at sign-in. The caller does not learn why it failed.

A refusal costs the same for all names: one hash, for users with an Argon2 password and for unknown
names alike, and a second one if the text has the form of a temporary or application password, even
if the user has none. An imported hash is compared in addition to an Argon2 hash: until the first
sign-in it takes longer, but never shorter. Failures are logged in the background.
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
OURS = "$argon2"  # hashes with another prefix are imported
WORDS = 128  # characters

_USER = Prepared(select(*picked(User)).where(col(User.id) == LOGIN))


class Source(StrEnum):
    """The kind of password that proved a user."""

    MASTER = "master"
    TEMPORARY = "temporary"
    APP = "application password"


@dataclass(frozen=True, slots=True)
class Attempt:
    """What a sign-in asks for: scope, protocol, token and second factor."""

    scope: Scope = Scope.MASTER
    protocol: str = "API"
    token: bool = False
    ttl: timedelta | None = None  # the token ends if it is not used for this time
    proof: Proof = field(default_factory=Proof)


@dataclass(frozen=True, slots=True)
class Entry:
    """The user a name resolves to, with the throttles that count its failures."""

    name: str  # as the client sent it
    user: Picked | None
    counted: str  # key of name and network; a success deletes its failures
    limits: Limits
    failures: frozenset[str]  # keys of `limits` that have any

    @property
    def open(self) -> bool:
        """True if there is a user that can sign in."""
        user = self.user
        return user is not None and not (user.disabled or user.suspended or user.deleted_at)


@dataclass(frozen=True, slots=True)
class Proved:
    """A password that was right: which kind it is, and its row if it is an application password."""

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
    """Resolve a name and check its password; the proof is None if the password is wrong.

    `allow_app_passwords` also checks application passwords. `check` compares passwords with hashes.
    Raises RateLimited, before any hashing, if the name or network must wait. Must not be called
    inside a transaction.
    """
    with password_hashes.admitted(ctx.world):
        who = await _entry(ctx, username)
        return who, await _proved(
            ctx.world, who.user, password, check or password_hashes.check, apps=apps
        )


async def _entry(ctx: Context, username: str) -> Entry:
    """Resolve a name to its user and check its throttles. Raises RateLimited if it must wait."""
    world = ctx.world
    known = len(username) <= LONGEST and "\0" not in username
    given = login_given(world, username if known else "")
    user = next(iter(await world.database.find(_USER, given)), None)
    counted = f"user:{user.id}" if user else f"name:{_counted(username, known=known)}"
    limits = throttles.by_name_and_network(world.options, counted, ctx.client_ip)
    state = await throttles.check(ctx, limits, user.id if user else 0)
    return Entry(username, user, next(iter(limits)), state.limits, state.failed)


def _counted(username: str, *, known: bool) -> str:
    """Return the digest under which failures of a name that belongs to no user are counted."""
    name = "@".join(normal(username)) if "@" in username and known else username_key(username)
    # hashed: the name can be long, or be a password that was typed in the wrong field
    return hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()


async def _proved(
    world: World, user: Picked | None, password: str, check: password_hashes.Check, *, apps: bool
) -> Proved | None:
    """Check the password against the user's own, temporary and application passwords.

    Returns None if it matches none. All branches compute the same number of hashes.
    """
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
    """True if the temporary password has not expired."""
    until: datetime | None = user.temporary_until
    return until is None or now < until


def judge(ctx: Context, user: Picked, found: Proved, attempt: Attempt) -> None:
    """Raise Forbidden if the proven password does not allow what the sign-in asks for."""
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
    """Build the event of a sign-in for the security log; `result` is success unless given."""
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
    """Count and log a failed sign-in, and alert the user if a limit was reached.

    Raises RateLimited if concurrent failures have reached the limit.
    """
    SIGN_INS.add("failed")
    user_id = who.user.id if who.user else None
    facts = {"user": user_id, "protocol": attempt.protocol, "ip": ctx.client_ip}
    log.info("sign-in failed", extra=facts)
    closed = await throttles.count(ctx.world, who.limits)
    failed(ctx, who, attempt, found)
    if who.open and any(each.startswith(who.counted.rpartition("@")[0]) for each in closed):
        memory_of(ctx.world.database).behind(guess_alerts.report(ctx, user_id or 0))


def failed(ctx: Context, who: Entry, attempt: Attempt, found: Proved | None, why: str = "") -> None:
    """Write a failed sign-in to the security log in the background. `reason` is the refusal."""
    user, result = who.user, "fail"
    if user is not None and not who.open:
        result = "suspended" if user.suspended and not user.disabled else "disabled"
    more = {"reason": why} if why else {}
    security_log.behind(ctx, event(who, attempt, found, result=result, **more))
