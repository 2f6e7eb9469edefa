"""HTTP Basic authentication (RFC 7617) by application passwords, or the user's own for paths."""

import base64
import binascii
from datetime import timedelta

from sqlalchemy import update
from sqlmodel import col

from models.errors import Forbidden, Unauthenticated
from models.runtime.environment import World
from models.store.columns import Picked
from models.users.roles import Role, Scope, UserPermission
from models.users.tables import User
from resolvers.auth import app_passwords, credential_status, security_log, sign_in, throttles
from resolvers.auth.credential_cache import Known, memory_of
from resolvers.auth.passwords import password_hashes
from resolvers.auth.passwords.password_check_cache import PasswordChecks
from resolvers.auth.sign_in import Attempt, Entry, Proved, Source
from resolvers.context import Context, Reach, Viewer

BASIC = "basic"
HTTP = Attempt(protocol="HTTP")
PAUSE = timedelta(hours=1)  # between two records of a password's use
APPLICATION = "an application password"


async def signed(world: World, shown: str, ip: str | None) -> Viewer:
    """Authenticate a name and a password in UTF-8, as sent in base64.

    An application password gets those of MAIL_READ, MAIL and SUBMIT that it has. The own password
    of a user without second factors gets all scopes. The viewer is cached for a second, the result
    of the hash for 60 s while the stored hash is unchanged. Raises Unauthenticated if the password
    is wrong, Forbidden if it can't be used here, and RateLimited as `authenticate` does.
    """
    name, password = _read(shown)
    memory, now = memory_of(world.database), world.now()
    digest = memory.keyed(f"{name}\0{password}")
    known = memory.recall(digest, now)
    if known is None:
        turn, checks = memory.turn, PasswordChecks(memory, digest, now)
        known = await _proved(Context(world, Viewer(), client_ip=ip), name, password, checks)
        checks.keep()
        memory.keep(digest, known, turn)
    return known.viewer


def _read(shown: str) -> tuple[str, str]:
    """Decode name and password. Raises Unauthenticated if they are malformed."""
    try:
        text = base64.b64decode(shown, validate=True).decode()
    except (binascii.Error, ValueError):
        raise Unauthenticated from None
    name, colon, password = text.partition(":")
    if not colon or not name or not password_hashes.acceptable(password):
        raise Unauthenticated
    return name, password


async def _proved(ctx: Context, name: str, password: str, checks: PasswordChecks) -> Known:
    """Check the password and return its credential, with the failures counted."""
    world = ctx.world
    who, found = await sign_in.tried(ctx, name, password, apps=True, check=checks.check)
    user = who.user
    if user is None or found is None or not who.open:
        await sign_in.refuse(ctx, who, HTTP, found)
        raise Unauthenticated
    await throttles.check(ctx, who.limits, user.id)  # again: concurrent guesses may have reached it
    try:
        known = _known(world, user, found)
    except Forbidden as refusal:
        sign_in.failed(ctx, who, HTTP, found, refusal.message)
        raise
    if who.counted in who.failures:
        await throttles.clear(ctx, who.counted)
    last = found.app.last_used_at if found.app else user.last_login_at
    if last is None or world.now() - last >= PAUSE:
        memory_of(world.database).behind(_note(ctx, who, found))
    return known


def _known(world: World, user: Picked, found: Proved) -> Known:
    """Return the credential of a right password. Raises Forbidden if it can't be used over HTTP."""
    if found.app is not None:
        if known := credential_status.by_app_password(world, found.app, user):
            return known
        raise Forbidden("this application password is not for HTTP", requires=Scope.MAIL_READ)
    if found.source is Source.TEMPORARY or user.second_factors or not user.webmail_access:
        raise Forbidden(f"this account asks for {APPLICATION} here", requires=APPLICATION)
    viewer = Viewer(
        user.id,
        Role.USER,
        frozenset({Scope.MASTER}),
        frozenset(map(UserPermission, user.permissions)),
        auth_version=user.auth_version,
        reach=Reach(shared=True),
    )
    return Known(viewer, world.now(), None, None, owners=(user.id,))


async def _note(ctx: Context, who: Entry, found: Proved) -> None:
    """Write the sign-in to the user's security log, and the time of use to its row."""
    assert who.user is not None  # noqa: S101 - it has signed in
    user_id, app = who.user.id, found.app
    async with ctx.write(user_id) as session:
        key = await security_log.note(ctx, session, sign_in.event(who, HTTP, found))
        if app:
            await app_passwords.used(ctx, session, app, key)
        else:
            seen = update(User).where(col(User.id) == user_id)
            await (await session.connection()).execute(seen.values(last_login_at=ctx.world.now()))
