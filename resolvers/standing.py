"""What the store says of tokens and keys: whether they are good, and for what."""

import base64
import hashlib
from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, String, Update, and_, cast, func, or_, select, update
from sqlalchemy.orm import aliased
from sqlmodel import col

from models.apppasswords import AppPassword
from models.auth import PENDING, AccessToken, ApiKey
from models.columns import Picked, picked
from models.roles import AdminPermission, Role, Scope, UserPermission
from models.sharing import MailboxShare
from models.users import DomainAdmin, User
from models.world import Turn, World
from resolvers import apppasswords
from resolvers.context import Reach, Viewer
from resolvers.known import Known, memory_of

TOKEN, KEY = "mgt_", "mgk_"  # what secrets begin with: who scans leaked text knows them by it
ACTING = frozenset({Scope.READ, Scope.MAIL, Scope.SUBMIT, Scope.SETTINGS})  # no credentials
HTTP = frozenset({Scope.MAIL_READ, Scope.MAIL, Scope.SUBMIT})  # of an application password

Actor = aliased(User)


def digest_of(secret: str) -> str:
    """What the store keeps of a secret. It has 256 bits of chance, so a plain hash will do."""
    return hashlib.sha256(secret.encode()).hexdigest()


def new_secret(world: World, prefix: str) -> str:
    """A secret nobody can guess."""
    return prefix + base64.urlsafe_b64encode(world.random(32)).decode().rstrip("=")


def open_users() -> ColumnElement[bool]:
    """The WHERE clause for accounts that may sign in."""
    return and_(~col(User.disabled), ~col(User.suspended), col(User.deleted_at).is_(None))


async def token(world: World, which: ColumnElement[bool]) -> Known | None:
    """The token, while it is good: with a factor outstanding for nobody yet."""
    now, life = world.now(), world.options.token_life
    statement = (
        select(*picked(AccessToken), *_standing(), *_of_actor())
        .join(User, col(User.id) == col(AccessToken.user_id))
        .outerjoin(Actor, col(Actor.id) == col(AccessToken.actor_id))
        .where(
            which,
            col(AccessToken.expires_at) > now,
            col(AccessToken.created_at) > now - life,
            col(AccessToken.auth_version) == col(User.auth_version),
            open_users(),
            or_(~col(AccessToken.pending), col(AccessToken.created_at) > now - PENDING),
        )
    )
    for row in await world.database.read(statement):
        used, ends, owner = row.last_used_at, row.expires_at, row.user_id
        if row.actor_id:
            if not _may_act(row):
                return None
            viewer = Viewer(
                owner,
                Role.USER,
                ACTING,
                **_delegated(row, Role.USER),
                token_id=row.id,
                actor_id=row.actor_id,
                ends_at=ends,
                auth_version=row.auth_version,
                reach=_reach(world, owner, row),
            )
            return Known(viewer, now, used, ends, owners=(owner, row.actor_id))
        if row.pending:
            until = min(ends, row.created_at + PENDING)
            viewer = Viewer(token_id=row.id, pending_for=owner, ends_at=until)
            return Known(viewer, now, now, until, owners=(owner,))
        viewer = Viewer(
            owner,
            row.owners,
            frozenset({row.scope}),
            **_delegated(row, row.owners),
            token_id=row.id,
            ends_at=row.created_at + life,
            auth_version=row.auth_version,
            reach=_reach(world, owner, row),
        )
        return Known(viewer, now, used, ends, idle=ends - used, owners=(owner,))
    return None


def _may_act(row: Picked) -> bool:
    """Whether the administrator may still act as the user."""
    if row.actors is None or row.actors_closed:
        return False
    if row.actors.includes(Role.ADMIN):
        return row.actors is Role.ROOT or row.owners is not Role.ROOT
    return (
        row.actors is Role.DOMAIN_ADMIN
        and row.owners is Role.USER
        and AdminPermission.LOGIN_AS in row.actors_permissions
        and row.domain_id in _domains(row.actors_charges)
    )


async def key(world: World, which: ColumnElement[bool]) -> Known | None:
    """The API key, while it is good. It may never do more than the user it belongs to.

    One that is restricted to domains is nobody's: it acts for these, not for an account.
    """
    now = world.now()
    statement = (
        select(*picked(ApiKey), *_standing())
        .outerjoin(User, col(User.id) == col(ApiKey.user_id))
        .where(
            which,
            col(ApiKey.active),
            or_(col(ApiKey.expires_at).is_(None), col(ApiKey.expires_at) > now),
            or_(col(ApiKey.user_id).is_(None), open_users()),
        )
    )
    for row in await world.database.read(statement):
        role = row.role if row.owners is None or row.owners.includes(row.role) else row.owners
        user_id = row.user_id or 0
        delegated: dict[str, Any] = _delegated(row, role)
        if row.domains and role is not Role.USER:
            user_id, charges = 0, frozenset(row.domains)
            if role.includes(Role.ADMIN):
                role = Role.DOMAIN_ADMIN
                delegated |= {"permissions": frozenset(AdminPermission), "administers": charges}
            else:
                delegated["administers"] &= charges
        viewer = Viewer(
            user_id,
            role,
            frozenset(map(Scope, row.scopes)) or frozenset({Scope.MASTER}),
            **delegated,
            read_only=row.read_only,
            api_key_id=row.id,
            operations=frozenset(row.operations),
            ends_at=row.expires_at,
            auth_version=row.users_version or 0,
            reach=_reach(world, user_id, row),
        )
        return Known(
            viewer,
            now,
            row.last_used_at,
            row.expires_at,
            owners=(row.user_id or 0,),
            networks=tuple(row.allowed_ips),
        )
    return None


async def app_password(world: World, key: int) -> Known | None:
    """The application password, while it is good, as what it is over HTTP."""
    asked = (
        select(*picked(AppPassword), col(User.auth_version), col(User.permissions))
        .join(User, col(User.id) == col(AppPassword.user_id))
        .where(
            col(AppPassword.id) == key,
            col(AppPassword.active),
            or_(col(AppPassword.expires_at).is_(None), col(AppPassword.expires_at) > world.now()),
            open_users(),
        )
    )
    rows = await world.database.read(asked)
    return by_app_password(world, rows[0], rows[0]) if rows else None


def by_app_password(world: World, row: Picked, user: Picked) -> Known | None:
    """Who shows this application password over HTTP; None where it is good for none of that."""
    scopes = HTTP & apppasswords.good_for(row.scopes)
    if not scopes:
        return None
    viewer = Viewer(
        row.user_id,
        Role.USER,
        scopes,
        frozenset(map(UserPermission, user.permissions or ())),
        app_password_id=row.id,
        auth_version=user.auth_version,
        reach=Reach(shared=True),
    )
    now = world.now()
    return Known(viewer, now, row.last_used_at, row.expires_at, owners=(row.user_id,))


async def account(world: World, user_id: int, version: int) -> bool:
    """Whether this account may sign in, and its password and factors are still those."""
    asked = select(col(User.second_factors)).where(
        col(User.id) == user_id, col(User.auth_version) == version, open_users()
    )
    return any(not row.second_factors for row in await world.database.read(asked))


async def kicked(world: World, user_ids: Collection[int]) -> Mapping[int, datetime]:
    """When these accounts were last sent away, as far as they were."""
    asked = select(col(User.id), col(User.kicked_at)).where(
        col(User.id).in_(sorted(user_ids)), col(User.kicked_at).is_not(None)
    )
    return {row.id: row.kicked_at for row in await world.database.read(asked)}


def shared_with(user_id: Any) -> ColumnElement[bool]:
    """SQL: whether anything is shared with this account."""
    found = select(col(MailboxShare.mailbox_id)).where(col(MailboxShare.user_id) == user_id)
    return found.exists().label("shared")


def _reach(world: World, user_id: int, row: Picked) -> Reach:
    """How far the viewer of this row sees."""
    return memory_of(world.database).reach(user_id, shared=bool(row.shared))


def _charges(administrator: Any) -> Any:
    domains = func.aggregate_strings(cast(col(DomainAdmin.domain_id), String), ",")
    theirs: Select[Any] = select(domains).where(col(DomainAdmin.user_id) == administrator)
    return theirs.scalar_subquery()


def _standing() -> list[ColumnElement[Any]]:
    """What a credential's user is allowed, beside the columns of the credential."""
    return [
        col(User.role).label("owners"),
        col(User.permissions).label("permissions"),
        col(User.admin_permissions).label("admin_permissions"),
        col(User.domain_id).label("domain_id"),
        col(User.auth_version).label("users_version"),
        _charges(col(User.id)).label("charges"),
        shared_with(col(User.id)),
    ]


def _of_actor() -> list[ColumnElement[Any]]:
    closed = col(Actor.disabled) | col(Actor.suspended) | col(Actor.deleted_at).is_not(None)
    return [
        col(Actor.role).label("actors"),
        closed.label("actors_closed"),
        col(Actor.admin_permissions).label("actors_permissions"),
        _charges(col(Actor.id)).label("actors_charges"),
    ]


def _domains(charges: str | None) -> frozenset[int]:
    return frozenset(map(int, charges.split(","))) if charges else frozenset()


def _delegated(row: Picked, role: Role) -> dict[str, Any]:
    """What is delegated to whoever has this role, as arguments of a Viewer."""
    if role is Role.USER:
        return {"permissions": frozenset(map(UserPermission, row.permissions or ()))}
    if role is Role.DOMAIN_ADMIN:
        return {
            "permissions": frozenset(map(AdminPermission, row.admin_permissions or ())),
            "administers": _domains(row.charges),
        }
    return {}


async def note_use(world: World, known: Known, now: datetime, ip: str | None) -> None:
    """Note that a token or key was used; a token's end moves on."""
    viewer = known.viewer
    statement: Update
    if viewer.api_key_id:
        which = col(ApiKey.id) == viewer.api_key_id
        statement = update(ApiKey).where(which).values(last_used_at=now, last_used_ip=ip)
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

    await world.apply(unit)


def same(known: Known | None, viewer: Viewer) -> bool:
    """Whether a credential is still good for all it was."""
    if known is None or known.viewer.auth_version != viewer.auth_version:
        return False
    return replace(known.viewer, ends_at=viewer.ends_at) == viewer
