"""Status of access tokens, API keys and application passwords, with their role and scopes."""

import base64
import hashlib
from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, Update, and_, bindparam, or_, select, update
from sqlmodel import col

from models.auth.application_passwords import AppPassword
from models.auth.credentials import PENDING, AccessToken, ApiKey
from models.mailboxes.shares import MailboxShare
from models.runtime.environment import Turn, World
from models.store.columns import Instant, Picked, picked, table_of
from models.store.prepared_statements import prepared
from models.users.roles import AdminPermission, Role, Scope, UserPermission
from models.users.tables import User
from resolvers.auth import app_passwords, credential_makers
from resolvers.auth.credential_cache import Known, memory_of
from resolvers.auth.credential_makers import ACTING
from resolvers.context import Reach, Viewer

# prefixes of secrets: scanners of leaked text recognize them
TOKEN, KEY = "mgt_", "mgk_"
HTTP = frozenset({Scope.MAIL_READ, Scope.MAIL, Scope.SUBMIT})  # of application passwords
# A viewer who signed in with a temporary password can only set a new password.
NEW_PASSWORD = {
    "scopes": frozenset({Scope.SETTINGS}),
    "operations": frozenset({"tokenRevoke", "userUpdate", "viewer"}),
    "new_password_only": True,
}


def digest_of(secret: str) -> str:
    """Return the SHA-256 that is stored of a secret.

    It has 256 random bits, so no salt is needed.
    """
    return hashlib.sha256(secret.encode()).hexdigest()


def new_secret(world: World, prefix: str) -> str:
    """Return a new random secret of 256 bits in base64url, with this prefix."""
    return prefix + base64.urlsafe_b64encode(world.random(32)).decode().rstrip("=")


def open_users() -> ColumnElement[bool]:
    """The WHERE clause for users that can sign in: not disabled, suspended or deleted."""
    return and_(~col(User.disabled), ~col(User.suspended), col(User.deleted_at).is_(None))


@prepared
def token_lookup(by: str) -> Select[*tuple[Any, ...]]:
    """SQL: the valid access token with the value of the parameter `of` in this column."""
    now = bindparam("now", type_=Instant)
    statement = (
        select(*picked(AccessToken), *_standing())
        .join(User, col(User.id) == col(AccessToken.user_id))
        .where(
            table_of(AccessToken).c[by] == bindparam("of"),
            col(AccessToken.expires_at) > now,
            col(AccessToken.created_at) > bindparam("oldest", type_=Instant),
            col(AccessToken.auth_version) == col(User.auth_version),
            open_users(),
            or_(
                ~col(AccessToken.pending),
                col(AccessToken.created_at) > bindparam("pending_since", type_=Instant),
            ),
        )
    )
    actor = col(AccessToken.actor_id), col(AccessToken.actor_key_id)
    return credential_makers.with_maker(statement, *actor, now)


async def token(world: World, *, digest: str = "", id: int | None = None) -> Known | None:
    """Load an access token with the rights of its user, by digest or id; None if it is not valid.

    A token that waits for a second factor has a viewer of the role PUBLIC.
    """
    now, life = world.now(), world.options.token_life
    statement, of = (token_lookup("digest"), digest) if id is None else (token_lookup("id"), id)
    given = {"of": of, "now": now, "oldest": now - life, "pending_since": now - PENDING}
    for row in await world.database.find(statement, given):
        used, owner = row.last_used_at, row.user_id
        ends = min(row.expires_at, row.created_at + life)
        if credential_makers.has_maker(row):
            if not credential_makers.may_act(row, row.owners, AdminPermission.LOGIN_AS):
                return None
            viewer = Viewer(
                owner,
                Role.USER,
                ACTING,
                **_delegated(row, Role.USER),
                token_id=row.id,
                actor_id=row.actor_id or 0,
                actor_key_id=row.actor_key_id,
                ends_at=ends,
                auth_version=row.auth_version,
                reach=_reach(world, owner, row),
            )
            owners = owner, row.actor_id or 0
            return Known(viewer, now, used, _first_end(row), owners=owners)
        if row.pending:
            until = min(ends, row.created_at + PENDING)
            viewer = Viewer(token_id=row.id, pending_for=owner, ends_at=until)
            return Known(viewer, now, now, until, owners=(owner,))
        facts: dict[str, Any] = dict(NEW_PASSWORD)
        if not row.temporary:
            facts = {"scopes": frozenset({row.scope}), **_delegated(row, row.owners)}
        viewer = Viewer(
            owner,
            Role.USER if row.temporary else row.owners,
            **facts,
            token_id=row.id,
            ends_at=row.created_at + life,
            auth_version=row.auth_version,
            reach=_reach(world, owner, row),
        )
        idle = row.expires_at - used
        return Known(viewer, now, used, ends, idle=idle, owners=(owner,))
    return None


@prepared
def key_lookup(by: str) -> Select[*tuple[Any, ...]]:
    """SQL: the valid API key with the value of the parameter `of` in this column."""
    now = bindparam("now", type_=Instant)
    statement = (
        select(*picked(ApiKey), *_standing())
        .outerjoin(User, col(User.id) == col(ApiKey.user_id))
        .where(
            table_of(ApiKey).c[by] == bindparam("of"),
            col(ApiKey.active),
            or_(col(ApiKey.expires_at).is_(None), col(ApiKey.expires_at) > now),
            or_(col(ApiKey.user_id).is_(None), open_users()),
        )
    )
    return credential_makers.with_maker(
        statement, col(ApiKey.made_by), col(ApiKey.made_by_key), now
    )


async def key(world: World, *, digest: str = "", id: int | None = None) -> Known | None:
    """Load an API key with its rights, by digest or id; None if it is not valid.

    Its rights never exceed those of its owner. A key that is restricted to domains acts for these,
    not for a user. If its owner is an ADMIN, or it has no owner, it has all permissions of a
    DOMAIN_ADMIN in them.
    """
    now = world.now()
    statement, of = (key_lookup("digest"), digest) if id is None else (key_lookup("id"), id)
    for row in await world.database.find(statement, {"of": of, "now": now}):
        role = row.role if row.owners is None or row.owners.includes(row.role) else row.owners
        scopes = frozenset(map(Scope, row.scopes)) or frozenset({Scope.MASTER})
        if made := credential_makers.has_maker(row):
            if not credential_makers.may_act(row, row.owners, AdminPermission.LOGIN_AS):
                return None
            role, scopes = Role.USER, credential_makers.narrowed([*map(Scope, row.scopes)])
        user_id = row.user_id or 0
        delegated: dict[str, Any] = _delegated(row, role)
        if row.domains and role is not Role.USER:
            user_id, charges = 0, frozenset(row.domains)
            if row.owners is None or row.owners.includes(Role.ADMIN):
                role = Role.DOMAIN_ADMIN
                delegated |= {"permissions": frozenset(AdminPermission), "administers": charges}
            else:
                delegated["administers"] &= charges
        viewer = Viewer(
            user_id,
            role,
            scopes,
            **delegated,
            read_only=row.read_only,
            api_key_id=row.id,
            actor_id=(row.made_by or 0) if made else 0,
            actor_key_id=row.made_by_key,
            operations=frozenset(row.operations),
            ends_at=row.expires_at,
            auth_version=row.users_version or 0,
            reach=_reach(world, user_id, row),
        )
        return Known(
            viewer,
            now,
            row.last_used_at,
            _first_end(row),
            owners=(row.user_id or 0, row.made_by or 0),
            networks=tuple(row.allowed_ips),
        )
    return None


def _first_end(row: Picked) -> datetime | None:
    """Return the end of a credential, or of the key that made it, whichever is earlier."""
    ends = [end for end in (row.expires_at, row.maker_key_expires_at) if end]
    return min(ends, default=None)


APP_OWNER = [
    col(User.auth_version),
    col(User.permissions),
    col(User.role).label("owners"),
    col(User.domain_id),
]


async def app_password(world: World, key: int) -> Known | None:
    """Load an application password by id, with its rights over HTTP; None if it is not valid."""
    row = await app_password_row(world, key)
    return by_app_password(world, row, row) if row else None


async def app_password_row(world: World, key: int) -> Picked | None:
    """Load the row of an application password with columns of its user; None if it has ended."""
    asked = (
        select(*picked(AppPassword), *APP_OWNER)
        .join(User, col(User.id) == col(AppPassword.user_id))
        .where(
            col(AppPassword.id) == key,
            col(AppPassword.active),
            or_(col(AppPassword.expires_at).is_(None), col(AppPassword.expires_at) > world.now()),
            open_users(),
        )
    )
    maker = col(AppPassword.made_by), col(AppPassword.made_by_key)
    for row in await world.database.read(credential_makers.with_maker(asked, *maker, world.now())):
        return None if app_passwords.has_ended_with_maker(row) else row
    return None


def by_app_password(world: World, row: Picked, user: Picked) -> Known | None:
    """Return the viewer of an application password over HTTP; None if it has no scope for HTTP."""
    scopes = HTTP & app_passwords.good_for(row.scopes)
    if not scopes:
        return None
    viewer = Viewer(
        row.user_id,
        Role.USER,
        scopes,
        frozenset(map(UserPermission, user.permissions or ())),
        app_password_id=row.id,
        actor_id=row.made_by or 0,
        actor_key_id=row.made_by_key,
        auth_version=user.auth_version,
        reach=Reach(shared=True),
    )
    now = world.now()
    owners = row.user_id, row.made_by or 0
    return Known(viewer, now, row.last_used_at, row.expires_at, owners=owners)


async def account(world: World, user_id: int, version: int) -> bool:
    """True if the user can sign in, has no second factor, and `auth_version` is unchanged."""
    asked = select(col(User.second_factors)).where(
        col(User.id) == user_id, col(User.auth_version) == version, open_users()
    )
    return any(not row.second_factors for row in await world.database.read(asked))


async def kicked(world: World, user_ids: Collection[int]) -> Mapping[int, datetime]:
    """Load when the sessions of these users were last ended by `sessionKick`, by user id.

    Users that were never kicked are missing.
    """
    asked = select(col(User.id), col(User.kicked_at)).where(
        col(User.id).in_(sorted(user_ids)), col(User.kicked_at).is_not(None)
    )
    return {row.id: row.kicked_at for row in await world.database.read(asked)}


def shared_with(user_id: Any) -> ColumnElement[bool]:
    """SQL: True if a mailbox is shared with this user."""
    found = select(col(MailboxShare.mailbox_id)).where(col(MailboxShare.user_id) == user_id)
    return found.exists().label("shared")


def _reach(world: World, user_id: int, row: Picked) -> Reach:
    """Return the share visibility of the viewer of this row."""
    return memory_of(world.database).reach(user_id, shared=bool(row.shared))


def _standing() -> list[ColumnElement[Any]]:
    """Columns of a credential's user that decide its rights."""
    return [
        col(User.role).label("owners"),
        col(User.permissions).label("permissions"),
        col(User.admin_permissions).label("admin_permissions"),
        col(User.domain_id).label("domain_id"),
        col(User.auth_version).label("users_version"),
        credential_makers.domains_of(col(User.id)).label("charges"),
        shared_with(col(User.id)),
    ]


def _delegated(row: Picked, role: Role) -> dict[str, Any]:
    """Return the permissions and domains that the user has in this role, as arguments of Viewer."""
    if role is Role.USER:
        return {"permissions": frozenset(map(UserPermission, row.permissions or ()))}
    if role is Role.DOMAIN_ADMIN:
        return {
            "permissions": frozenset(map(AdminPermission, row.admin_permissions or ())),
            "administers": credential_makers.domain_ids(row.charges),
        }
    return {}


async def note_use(world: World, known: Known, now: datetime, ip: str | None) -> None:
    """Store the use of a token or key. A use moves the end of a token."""
    viewer = known.viewer
    statement: Update
    if viewer.api_key_id:
        which = col(ApiKey.id) == viewer.api_key_id
        statement = update(ApiKey).where(which).values(last_used_at=now, last_used_ip=ip)
    else:
        unchanged = col(AccessToken.last_used_at) == known.used_at  # else another process did it
        ends = [end for end in (known.idle and now + known.idle, viewer.ends_at) if end]
        statement = (
            update(AccessToken)
            .where(col(AccessToken.id) == viewer.token_id, unchanged)
            .values(last_used_at=now, expires_at=min(ends))
        )

    def unit(turn: Turn) -> None:
        turn.connection.execute(statement)

    await world.apply(unit)


def same(known: Known | None, viewer: Viewer) -> bool:
    """True if a credential still has all the rights that `viewer` has.

    A new password of the user ends tokens, which `load_token` no longer finds, except the token
    that has set it. It ends neither API keys nor application passwords.
    """
    if known is None:
        return False
    return replace(known.viewer, ends_at=viewer.ends_at) == viewer
