"""Application passwords: sign-in, create, list, update and delete."""

import hashlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import pairwise
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, delete, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.addresses.address_syntax import checked as checked_address
from models.auth.application_passwords import AppPassword
from models.errors import Conflict, Forbidden, Invalid, LimitReached, Problems
from models.runtime.environment import World
from models.runtime.options import Options
from models.store.columns import Picked, picked
from models.users.roles import AdminPermission, Role, Scope, opened
from models.users.tables import User
from resolvers.access import own
from resolvers.admin import admin_log
from resolvers.admin.admin_log import Done
from resolvers.auth import credential_makers, security_log
from resolvers.auth.credential_cache import forget
from resolvers.auth.passwords import password_hashes
from resolvers.auth.security_log import Event
from resolvers.context import Context, Needs
from resolvers.pagination import all_by_keys, by_keys
from resolvers.users import apple_profiles, managed_objects
from resolvers.users.selection import managed_one

LENGTH = 16
FORM = re.compile(rf"[a-z]{{{LENGTH}}}")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
DIFFERENT = 6
SELECTOR = 5  # hex digits
LONGEST = 255  # characters of a description
TYPED = 256  # characters, with spaces
LIFE = (timedelta(minutes=1), timedelta(days=3650))


class AppPasswordScope(StrEnum):
    """A scope that an application password can have."""

    IMAP = "IMAP"
    POP3 = "POP3"
    SMTP = "SMTP"
    SIEVE = "SIEVE"
    MAIL_READ = "MAIL_READ"
    MAIL = "MAIL"
    SUBMIT = "SUBMIT"
    ALL = "ALL"


SINGLE = frozenset(Scope(each) for each in AppPasswordScope if each is not AppPasswordScope.ALL)
SHOWN = frozenset(column.name for column in picked(AppPassword)) - {"password", "selector"}


@dataclass(frozen=True, slots=True)
class NewAppPassword:
    """An application password to create. A given password has exactly 16 letters a to z."""

    description: str
    scopes: Collection[AppPasswordScope] = (AppPasswordScope.ALL,)
    password: str | None = field(default=None, repr=False)
    ttl: timedelta | None = None  # from the last use
    active: bool = True
    profile: bool = False  # also create a configuration profile for Apple devices
    address: str | None = None  # of the profile; default: the main address


@dataclass(frozen=True, slots=True)
class AppPasswordPatch:
    """Changes to application passwords; None leaves a field unchanged."""

    description: str | None = None
    active: bool | None = None
    scopes: Collection[AppPasswordScope] | None = None


def good_for(scopes: Collection[str]) -> frozenset[Scope]:
    """Return the scopes that a password with these stored scopes opens: never MASTER."""
    if AppPasswordScope.ALL in scopes:
        return SINGLE
    return opened(frozenset(map(Scope, scopes)))


def written(password: str) -> str | None:
    """Return a typed password without spaces and in lower case; None if it has another form."""
    if len(password) > TYPED:
        return None
    normal = "".join(password.split()).casefold()
    return normal if FORM.fullmatch(normal) else None


def selector_of(normal: str) -> str:
    """Return the first hex digits of the SHA-256, by which a password is looked up.

    It reveals 20 of the password's 75 bits; a guess still costs one hash.
    """
    return hashlib.sha256(normal.encode()).hexdigest()[:SELECTOR]


async def matching(
    world: World, user_id: int, password: str, check: password_hashes.Check | None = None
) -> Picked | None:
    """Find the user's active application password that this is, by one hash check; None if none.

    The scopes are not checked: the caller looks at the row's `scopes`. A hash is also computed if
    there is no row, so that the time reveals nothing. Must not be called inside a transaction.
    """
    normal = written(password)
    row = None
    if normal:
        asked = (
            select(*picked(AppPassword), col(User.role).label("owners"), col(User.domain_id))
            .join(User, col(User.id) == col(AppPassword.user_id))
            .where(
                col(AppPassword.user_id) == user_id,
                col(AppPassword.selector) == selector_of(normal),
                _good(world),
            )
        )
        maker = col(AppPassword.made_by), col(AppPassword.made_by_key)
        rows = await world.database.read(credential_makers.with_maker(asked, *maker, world.now()))
        row = next((row for row in rows if not has_ended_with_maker(row)), None)
    check = check or password_hashes.check
    right = await check(world, row.password if row else None, normal or password[:TYPED])
    return row if right else None


def has_ended_with_maker(row: Picked) -> bool:
    """True if another user made this password and has lost the role or the permission.

    `row` has the columns of `credential_makers.add_maker_columns`, and `owners`, the role of its
    user.
    """
    made = credential_makers.has_maker(row)
    return made and not credential_makers.may_act(row, row.owners, AdminPermission.APP_PASSWDS)


def _good(world: World) -> ColumnElement[bool]:
    """SQL: the password is active and has not expired."""
    return and_(col(AppPassword.active), _lasting(world.now()))


def _lasting(now: datetime) -> ColumnElement[bool]:
    """SQL: the password has no end, or a later one."""
    return or_(col(AppPassword.expires_at).is_(None), col(AppPassword.expires_at) > now)


async def used(
    ctx: Context, session: AsyncSession, row: Picked, event_id: int | None = None
) -> bool:
    """Record a sign-in by this password in the transaction of the sign-in, and move its end.

    `event_id` is that of the security log. Returns False if the password has changed since it was
    found: then the sign-in is refused.
    """
    world, now = ctx.world, ctx.world.now()
    values: dict[str, Any] = {
        "last_used_at": now,
        "last_used_ip": ctx.client_ip,
        "last_event_id": event_id,
    }
    if row.ttl:
        values["expires_at"] = now + timedelta(seconds=row.ttl)
    same = (col(AppPassword.id) == row.id, col(AppPassword.password) == row.password)
    noted = await (await session.connection()).execute(
        update(AppPassword).where(*same, _good(world)).values(values)
    )
    return noted.rowcount == 1


async def create(
    ctx: Context, key: int | None, new: NewAppPassword
) -> tuple[AppPassword, str, str | None]:
    """Create an application password.

    Returns its row, its text, which is not stored, and the profile if one was asked for. Raises
    Forbidden, Invalid, LimitReached or Conflict.
    """
    world = ctx.world
    user = await managed_one(ctx, own(ctx) if key is None else key)
    _permitted(ctx, user.id)
    _check(new, world.options)
    by_another = user.id != ctx.viewer.user_id and not credential_makers.is_operator(ctx.viewer)
    scopes = _collapsed(new.scopes)
    if by_another:
        scopes, new = _within_acting(ctx, new)
    address = await apple_profiles.address_of(ctx, user, new.address) if new.profile else ""
    text = _made(world) if new.password is None else new.password
    stored = await password_hashes.make(world, text)
    now = world.now()
    row = AppPassword(
        id=world.key(),
        user_id=user.id,
        description=_described(new.description),
        selector=selector_of(text),
        password=stored,
        scopes=scopes,
        active=new.active,
        ttl=None if by_another else _ttl(new.ttl),
        expires_at=now + new.ttl if new.ttl else None,
        created_at=now,
    )
    profile = await apple_profiles.make(world, user, row, address, text) if new.profile else None
    async with ctx.write(user.id) as session:
        if by_another:
            row.made_by, row.made_by_key = (
                ctx.viewer.user_id or None,
                credential_makers.key_of(ctx.viewer),
            )
            row.maker = (await security_log.actor(session, ctx.viewer))[1]
        await _room(ctx, session, user.id)
        try:
            async with session.begin_nested():
                session.add(row)
        except IntegrityError as clash:  # once in twenty thousand, with 50 of them
            raise Conflict("too like another: try once more", path=["password"]) from clash
        after = {"description": row.description, "scopes": row.scopes}
        deed = Done("appPasswordCreate", "AppPassword", row.id, user.domain_id, None, after)
        await _log(ctx, session, user.id, "app password create", [deed])
    return row, text, profile


def _within_acting(ctx: Context, new: NewAppPassword) -> tuple[list[str], NewAppPassword]:
    """Limit a password for another user to the scopes and the lifetime of a token of actAs.

    ALL becomes all scopes that remain. The end is fixed: uses do not move it. Raises Forbidden or
    Invalid if more is asked for.
    """
    if not ctx.viewer.user_id and credential_makers.key_of(ctx.viewer) is None:
        raise Forbidden("a key for domains acts for no account", requires=Role.ADMIN, path=["user"])
    scopes = _bounded(_collapsed(new.scopes))
    ttl = new.ttl or credential_makers.LONGEST
    if ttl > credential_makers.LONGEST:
        text = "an application password for another account lasts four hours at most"
        raise Invalid(text, constraint="max", path=["ttl"])
    if new.profile:
        text = "a profile for devices needs a password that the account itself makes"
        raise Forbidden(text, requires="the account itself", path=["profile"])
    return scopes, replace(new, ttl=ttl)


def _bounded(scopes: Sequence[str]) -> list[str]:
    """Return these scopes, ALL as those of actAs.

    Raises Forbidden for a scope actAs does not have.
    """
    if AppPasswordScope.ALL in scopes:
        return sorted(SINGLE & opened(credential_makers.ACTING))
    if not set(map(Scope, scopes)) <= opened(credential_makers.ACTING):
        text = "a password for another account has at most the scopes of a token of actAs"
        raise Forbidden(text, requires="the account itself", path=["scopes"])
    return list(scopes)


def _check(new: NewAppPassword, options: Options) -> None:
    """Raise Invalid, with all errors, if the password can't be created as described."""
    problems = Problems()
    with problems.caught():
        _described(new.description)
    with problems.caught():
        scopes = _collapsed(new.scopes)
        if new.profile:
            apple_profiles.incoming_protocol(options, scopes, path="scopes")
    with problems.caught():
        _ttl(new.ttl)
    with problems.caught():
        if new.profile and new.address is not None:
            checked_address(new.address)
    with problems.caught():
        if new.password is not None:
            _check_given(new.password)
    problems.settle()


def _permitted(ctx: Context, user_id: int) -> None:
    """Raise Forbidden if the viewer can't manage this user's application passwords.

    For other users a DOMAIN_ADMIN needs the permission APP_PASSWDS.
    """
    if user_id != ctx.viewer.user_id:
        permission = AdminPermission.APP_PASSWDS
        ctx.viewer.require(Needs(role=Role.DOMAIN_ADMIN, admin_permission=permission))


async def _room(ctx: Context, session: AsyncSession, user_id: int) -> None:
    """Delete the user's expired passwords. Raises LimitReached if there are too many others."""
    connection, mine = await session.connection(), col(AppPassword.user_id) == user_id
    await connection.execute(delete(AppPassword).where(mine, ~_lasting(ctx.world.now())))
    many = len((await connection.execute(select(col(AppPassword.id)).where(mine))).all())
    if many >= (most := ctx.world.options.max_app_passwords):
        text = f"at most {most} application passwords"
        raise LimitReached(text, limit=most, used=many, path=["user"])


def _described(text: str) -> str:
    """Return a description, trimmed. Raises Invalid if it is empty, too long or not printable."""
    text = text.strip()
    if not 0 < len(text) <= LONGEST or not text.isprintable():
        raise Invalid(
            f"a description has 1 to {LONGEST} printable characters",
            constraint="pattern",
            path=["description"],
        )
    return text


def _collapsed(scopes: Collection[AppPasswordScope]) -> list[str]:
    """Return the scopes in stored form: ALL alone, if it is given or all others are."""
    if not scopes:
        raise Invalid("say what it is good for", constraint="required", path=["scopes"])
    given = set(scopes)
    if AppPasswordScope.ALL in given or len(given) == len(SINGLE):
        return [AppPasswordScope.ALL.value]
    return [each.value for each in AppPasswordScope if each in given]


def _ttl(ttl: timedelta | None) -> int | None:
    """Return a lifetime in seconds. Raises Invalid if it is out of range."""
    if ttl is None:
        return None
    least, most = LIFE
    if ttl < least:
        raise Invalid("it lasts a minute at least", constraint="min", path=["ttl"])
    if ttl > most:
        raise Invalid(f"it lasts {most.days} days at most", constraint="max", path=["ttl"])
    return int(ttl.total_seconds())


def _check_given(text: str) -> None:
    """Raise Invalid if a given password has another form or is easy to guess."""
    if not FORM.fullmatch(text):
        raise Invalid(
            f"exactly {LENGTH} lower-case letters of a to z",
            constraint="pattern",
            path=["password"],
        )
    if _weak(text):
        raise Invalid("too easy to guess", constraint="weak", path=["password"])


def _weak(text: str) -> bool:
    """True if a password has few letters, a repeated part, or is the alphabet in one direction."""
    codes = [ord(letter) for letter in text]
    steps = {(later - earlier) % 26 for earlier, later in pairwise(codes)}
    again = any(text[size:] == text[:-size] for size in range(1, LENGTH // 2 + 1))
    return len(set(text)) < DIFFERENT or len(steps) == 1 or again


def _made(world: World) -> str:
    """Return a random password, in which each letter is equally likely."""
    while True:
        even = [byte for byte in world.random(4 * LENGTH) if byte < 256 - 256 % len(LETTERS)]
        text = "".join(LETTERS[byte % len(LETTERS)] for byte in even[:LENGTH])
        if FORM.fullmatch(text) and not _weak(text):
            return text


async def change(ctx: Context, ids: Sequence[int], patch: AppPasswordPatch) -> list[int]:
    """Change these passwords, all or none; return their ids, each once.

    Raises NotFound for a password that the viewer does not see.
    """
    values: dict[str, Any] = {}
    if patch.description is not None:
        values["description"] = _described(patch.description)
    if patch.scopes is not None:
        values["scopes"] = _collapsed(patch.scopes)
    if patch.active is not None:
        values["active"] = patch.active
    if not values:
        raise Invalid("nothing is to be changed", constraint="required")
    owners = await _owners(ctx, ids)
    async with ctx.write(*owners) as session:
        rows = await _held(ctx, session, ids)
        if patch.scopes is not None and any(row.maker for row in rows):
            values["scopes"] = _bounded(values["scopes"])
        connection = await session.connection()
        which = col(AppPassword.id).in_(ids)
        now = ctx.world.now()
        changed = update(AppPassword).where(which).values(**values, updated_at=now)
        await connection.execute(changed)
        for owner in owners:
            done = [
                Done(
                    "appPasswordUpdate",
                    "AppPassword",
                    row.id,
                    row.domain_id,
                    {name: getattr(row, name) for name in values},
                    values,
                )
                for row in rows
                if row.user_id == owner
            ]
            await _log(ctx, session, owner, "app password update", done)
    forget(ctx.world, *owners)
    return list(dict.fromkeys(ids))


async def remove(ctx: Context, ids: Sequence[int]) -> None:
    """Delete these passwords, all or none. The security log keeps their descriptions."""
    owners = await _owners(ctx, ids)
    async with ctx.write(*owners) as session:
        rows = await _held(ctx, session, ids)
        connection = await session.connection()
        await connection.execute(delete(AppPassword).where(col(AppPassword.id).in_(ids)))
        for owner in owners:
            done = [
                Done(
                    "appPasswordDelete",
                    "AppPassword",
                    row.id,
                    row.domain_id,
                    {"description": row.description, "scopes": row.scopes},
                )
                for row in rows
                if row.user_id == owner
            ]
            await _log(ctx, session, owner, "app password delete", done)
    forget(ctx.world, *owners)


async def _log(
    ctx: Context, session: AsyncSession, user_id: int, action: str, done: Sequence[Done]
) -> None:
    """Write a change to the user's security log; also to the admin log if the viewer is another."""
    for one in done:
        told = {**(one.before or {}), **(one.after or {})}
        target = told.get("description") or str(one.target_id)
        detail = {"id": one.target_id, **told}
        await security_log.note(ctx, session, Event(action, user_id, target=target, detail=detail))
    if ctx.viewer.user_id != user_id:
        await admin_log.note(ctx, session, *done)


async def _owners(ctx: Context, ids: Sequence[int]) -> list[int]:
    """Load the user ids of these passwords. Raises NotFound if the viewer does not see one."""
    return managed_objects.owners(ids, await by_ids(ctx, list(ids)))


async def _held(ctx: Context, session: AsyncSession, ids: Sequence[int]) -> list[Picked]:
    """Load the rows of these passwords inside the transaction that locks their users."""
    return await managed_objects.held(ctx, session, AppPassword, SHOWN, (ids, _visible(ctx)))


def _visible(ctx: Context) -> ColumnElement[bool]:
    """The WHERE clause for passwords that the viewer may manage and that have not expired."""
    lasts = _lasting(ctx.world.now())
    return managed_objects.visible(ctx, AppPassword, AdminPermission.APP_PASSWDS) & lasts


def _seen(ctx: Context) -> Select[*tuple[Any, ...]]:
    """SQL: the visible passwords."""
    return select(*picked(AppPassword, SHOWN)).where(_visible(ctx))


async def of_users(ctx: Context, keys: list[tuple[int, bool]]) -> list[list[Picked]]:
    """Load the passwords of users by (user id, with idle lifetime), newest first.

    Passwords that end when they are not used are left out unless the flag is True.
    """
    rows = _seen(ctx).order_by(col(AppPassword.id).desc())
    users = [user_id for user_id, _ in keys]
    found = await all_by_keys(ctx, rows, col(AppPassword.user_id), users)
    return [
        [row for row in own if show_all or row.ttl is None]
        for own, (_, show_all) in zip(found, keys, strict=True)
    ]


async def by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """Load passwords by id, in this order; None for a password the viewer does not see."""
    return await by_keys(ctx, _seen(ctx), col(AppPassword.id), ids)
