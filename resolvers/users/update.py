"""Update of users: settings, names, passwords and limits."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlmodel import col

from mail.addresses import address_syntax
from models.addresses.tables import Address
from models.auth.credentials import AccessToken
from models.errors import AuthenticationFailed, Conflict, Forbidden, Invalid, Problems
from models.mailboxes.tables import Mailbox
from models.runtime.environment import World
from models.store.columns import Picked
from models.users.roles import Role, Scope
from models.users.search_index import words_of
from models.users.tables import UsageKind, User, UserTag
from resolvers.access import require_charge
from resolvers.auth import security_log, throttles
from resolvers.auth.passwords import new_passwords, password_hashes, password_policy
from resolvers.auth.passwords.new_passwords import NewPassword
from resolvers.auth.second_factors import mutations as second_factors_mutations
from resolvers.auth.second_factors.second_factor_check import enabled
from resolvers.auth.security_log import Event
from resolvers.context import Context, Needs
from resolvers.submission import sender_patterns
from resolvers.users import forward_targets, openpgp_keys
from resolvers.users.quota import usage_reset
from resolvers.users.quota.quota_allocation import regive
from resolvers.users.selection import Users, chosen
from resolvers.users.user_locks import Held, changing
from resolvers.users.validation import OWN, allow, allow_quota, camel, checked

AT = ("set",)  # of the patch in the input
TARGETS = (*AT, "targets")
ENCRYPTING = {"encrypt_messages": "what arrives", "encrypt_forwarded": "what is forwarded"}
NO_TEMPORARY = {"temporary_password": None, "temporary_from": None, "temporary_until": None}


@dataclass(frozen=True, slots=True)
class Patch:
    """Changes to users.

    Fields that are not set stay unchanged. `facts` is by column; None clears.
    """

    facts: Mapping[str, Any] = field(default_factory=dict)
    username: str | None = None
    pub_key: str | None = None  # "" removes the key
    targets: Sequence[str] | None = None
    password: NewPassword | None = None
    password_disabled: bool = False
    disable_2fa: bool = False  # all second factors

    @property
    def secret(self) -> bool:
        """True if the patch changes or disables the password."""
        return self.password is not None or self.password_disabled

    @property
    def names(self) -> set[str]:
        """The columns that the patch changes."""
        more = {
            "username": self.username is not None,
            "pub_key": self.pub_key is not None,
            "targets": self.targets is not None,
            "password": self.secret,
            "disable_2fa": self.disable_2fa,
        }
        return {*self.facts, *(name for name, given in more.items() if given)}


async def change(
    ctx: Context, users: Users, patch: Patch, existing: str | None = None
) -> list[int]:
    """Change these users, all or none; return their ids.

    `existing` is the current password, which is required to change the viewer's own. Raises Invalid
    with all errors of the fields, Forbidden, AuthenticationFailed for a wrong `existing`, or
    Conflict.
    """
    if not patch.names:
        raise Invalid("change at least one thing", constraint="required", path=AT)
    problems = Problems()
    facts = checked(patch.facts, problems, AT)
    facts |= _named(patch.username, problems)
    rows = await chosen(ctx, users)
    _alone(rows, patch, existing, problems)
    _allowed(ctx, rows, patch)
    for row in rows if patch.disable_2fa else ():
        await second_factors_mutations.require_proof(ctx, row, [*AT, "disable2fa"])
    allow(ctx, patch.names, AT)
    facts |= await _key(ctx, patch, problems)
    with problems.caught():
        for row in rows:
            forward_targets.checked(ctx, row, patch.targets or (), TARGETS)
    password = await _password(ctx, rows, patch, problems)
    _check_existing(ctx, rows, patch, existing, problems)
    problems.settle()
    allow_quota(ctx, facts.get("quota"), AT)
    await sender_patterns.reach(ctx, facts.get("from_whitelist", ()), [*AT, "fromWhitelist"])
    await _know(ctx, rows, existing)
    values = {**facts, **await _secret(ctx, patch, password)}
    ids = Users(ids=tuple(row.id for row in rows))
    if not rows:
        return []
    try:
        async with changing(ctx, ids, "userUpdate") as held:
            if existing is not None and held.rows[0].password != rows[0].password:
                raise _wrong()  # a concurrent request changed it
            await _apply(ctx, held, patch, values)
            if patch.targets is not None:
                await forward_targets.set_(ctx, held, patch.targets, TARGETS)
    except IntegrityError as clash:
        raise Conflict("the user name is taken", path=[*AT, "username"]) from clash
    return list(ids.ids)


def _alone(rows: Sequence[Picked], patch: Patch, existing: str | None, problems: Problems) -> None:
    """Add a problem if fields of one user only are set for several users."""
    for path, given in (
        ([*AT, "username"], patch.username is not None),
        ([*AT, "password"], patch.password is not None),
        (["existingPassword"], existing is not None),
    ):
        with problems.caught():
            if given and len(rows) > 1:
                raise Invalid("that is of one account only", constraint="exclusive", path=path)


def _allowed(ctx: Context, rows: Sequence[Picked], patch: Patch) -> None:
    """Raise Forbidden if the viewer's role or credential does not allow the patch."""
    viewer, more = ctx.viewer, sorted(patch.names - OWN)
    if viewer.new_password_only:
        if patch.names != {"password"} or patch.password_disabled or patch.password is None:
            text = "after signing in with a temporary password, set a new password first"
            raise Forbidden(text, requires="a new password", path=AT)
        if any(row.id != viewer.user_id for row in rows):
            raise Forbidden("this token is for its own account", requires=Role.ADMIN, path=AT)
    if patch.password and patch.password.hashed:
        more.append("hashed_password")
    if more or (patch.secret and not viewer.new_password_only):
        viewer.require(Needs(scope=Scope.MASTER))
    if more:
        require_charge(ctx, rows, [*AT, camel(more[0])])


def _check_existing(
    ctx: Context, rows: Sequence[Picked], patch: Patch, existing: str | None, problems: Problems
) -> None:
    """Add a problem if the viewer changes the own password without the existing one."""
    mine = [row for row in rows if row.id == ctx.viewer.user_id]
    with problems.caught():
        if existing is None and patch.secret and any(has_password(ctx.world, row) for row in mine):
            text = "to change your password takes the one you have"
            raise Invalid(text, constraint="required", path=["existingPassword"])


async def _know(ctx: Context, rows: Sequence[Picked], existing: str | None) -> None:
    """Raise AuthenticationFailed if the existing password is wrong.

    Failures are counted; raises RateLimited after too many.
    """
    if existing is None:
        return
    for row in rows:
        known = [row.password, row.temporary_password if _temporary(ctx.world, row) else None]
        if not any(known):
            continue
        limits = {f"existing:{row.id}": throttles.by_name(ctx.world.options)}
        await throttles.check(ctx, limits)
        for stored in filter(None, known):
            if await password_hashes.check(ctx.world, stored, existing):
                break
        else:
            await throttles.count(ctx.world, limits)
            raise _wrong()


def has_password(world: World, row: Picked) -> bool:
    """True if the user can sign in with a password, also a temporary one."""
    return bool(row.password) or _temporary(world, row)


def _temporary(world: World, row: Picked) -> bool:
    begun = row.temporary_from is None or row.temporary_from <= world.now()
    over = row.temporary_until is not None and row.temporary_until <= world.now()
    return bool(row.temporary_password) and begun and not over


def _wrong() -> AuthenticationFailed:
    refusal = AuthenticationFailed("the existing password is wrong")
    refusal.path = ["existingPassword"]
    return refusal


def _named(username: str | None, problems: Problems) -> dict[str, Any]:
    """Return the columns of a new username. Adds a problem if it is unusable."""
    with problems.caught():
        if username is not None:
            name = address_syntax.checked_username(username, path=[*AT, "username"])
            return {"username": name, "username_key": address_syntax.username_key(name)}
    return {}


async def _key(ctx: Context, patch: Patch, problems: Problems) -> dict[str, Any]:
    """Return the columns of a new public key, or of none. Adds a problem if it is unusable."""
    with problems.caught():
        if patch.pub_key:
            key = await openpgp_keys.checked(ctx.world, patch.pub_key, path=[*AT, "pubKey"])
            openpgp_keys.warn(ctx, key, path=[*AT, "pubKey"])
            return {"pub_key": key.armored, "key_info": key.info}
    return {} if patch.pub_key is None else {"pub_key": None, "key_info": None}


async def _password(
    ctx: Context, rows: Sequence[Picked], patch: Patch, problems: Problems
) -> NewPassword | None:
    """Return the validated new password.

    None if there is none. Adds a problem if it is unusable.
    """
    with problems.caught():
        if patch.password and patch.password_disabled:
            text = "passwordDisabled means: no password"
            raise Invalid(text, constraint="exclusive", path=[*AT, "password"])
        if patch.password:
            policy = await ctx.load(password_policy.of_users, rows[0].id if rows else 0)
            return await new_passwords.checked(ctx, patch.password, policy, AT)
    return None


async def _secret(ctx: Context, patch: Patch, password: NewPassword | None) -> dict[str, Any]:
    """Hash a new password and return its columns; empty if the password stays."""
    if not patch.secret:
        return {}
    return {
        "password": await new_passwords.stored(ctx, password) if password else None,
        "password_changed_at": ctx.world.now(),
        "require_password_change": patch.facts.get("require_password_change", False),
        **NO_TEMPORARY,
    }


async def _apply(ctx: Context, held: Held, patch: Patch, values: Mapping[str, Any]) -> None:
    """Change the locked users and everything that depends on the changed columns."""
    if "username" in values:
        await _free(held, values["username_key"])
    if {"pub_key", *ENCRYPTING} & values.keys():
        await _check_encryption(held, values)
    fresh = {row.id: held.set(row, **values) for row in held.rows}

    def with_new(*names: str) -> list[Picked]:
        return [row for row in held.rows if set(names) & set(fresh[row.id])]

    if rows := with_new("quota"):
        regive(ctx.world, held.domains, rows, values["quota"], path=[*AT, "quota"])
        held.session.add_all(held.domains.values())
    if rows := with_new("name", "username"):
        await _respell(held, rows, values)
    if rows := with_new("tags"):
        await _retag(held, rows, values["tags"])
    await _recount(held, with_new)
    for row in held.rows:
        closed = any(name in fresh[row.id] and values[name] for name in ("disabled", "suspended"))
        if patch.secret or closed:
            held.end(row)
        if patch.disable_2fa and enabled(row):
            held.set(row, second_factors=[])
            await second_factors_mutations.forget_all(ctx, held.session, row)
    await _note(ctx, held, with_new("from_whitelist"), patch, values)


async def _note(
    ctx: Context, held: Held, senders_of: Sequence[Picked], patch: Patch, values: Mapping[str, Any]
) -> None:
    """Log new allowed senders and password changes to the security log."""
    if senders_of:
        told = {"patterns": ", ".join(values["from_whitelist"])}
        seen = [Event("sender whitelist change", row.id, detail=told) for row in senders_of]
        await security_log.note_all(ctx, held.session, seen)
    for row in held.rows if patch.secret else ():
        await _note_secret(ctx, held, row, patch)


async def _check_encryption(held: Held, values: Mapping[str, Any]) -> None:
    """Raise Invalid or Conflict if a user with encrypted mail would have no public key."""
    without = []
    for row in held.rows:
        if values.get("pub_key", row.pub_key):
            continue
        for name, what in ENCRYPTING.items():
            if values.get(name):
                text = "this takes an OpenPGP key of the account"
                raise Invalid(text, constraint="required", path=[*AT, camel(name)])
            if values.get(name, getattr(row, name)):
                text = f"{what} is encrypted to this key: end that first, by {camel(name)}"
                raise Conflict(text, path=[*AT, "pubKey"])
        without.append(row.id)
    if without and "pub_key" in values:
        asked = select(col(Mailbox.id)).where(
            col(Mailbox.user_id).in_(without), col(Mailbox.encrypt_messages)
        )
        if (await (await held.session.connection()).execute(asked.limit(1))).first():
            text = "a folder has what arrives encrypted to this key: end that first"
            raise Conflict(text, path=[*AT, "pubKey"])


async def _recount(held: Held, with_new: Callable[..., Sequence[Picked]]) -> None:
    """Reset the counters of limits that have changed."""
    for kind in (UsageKind.RECIPIENTS, UsageKind.FORWARDS):
        if rows := with_new(kind.lower()):
            await usage_reset.forget(held, [row.id for row in rows], [kind])
    if receivers := with_new("received_max"):
        these = update(User).where(col(User.id).in_([row.id for row in receivers]))
        await (await held.session.connection()).execute(these.values(**usage_reset.NONE_CAME))


async def _note_secret(ctx: Context, held: Held, row: Picked, patch: Patch) -> None:
    """Log the new password, and keep the viewer's token valid: the viewer knew the old password."""
    detail = {"disabled": True} if patch.password_disabled else {}
    await security_log.note(ctx, held.session, Event("password change", row.id, detail=detail))
    if row.id == ctx.viewer.user_id and ctx.viewer.token_id:
        this = update(AccessToken).where(
            col(AccessToken.id) == ctx.viewer.token_id,
            col(AccessToken.auth_version) == row.auth_version,
        )
        connection = await held.session.connection()
        full = {"auth_version": row.auth_version + 1, "temporary": False}
        await connection.execute(this.values(**full))


async def _free(held: Held, key: str) -> None:
    """Raise Conflict if another user has the username."""
    others = [row.id for row in held.rows]
    taken = select(col(User.id)).where(col(User.username_key) == key, col(User.id).not_in(others))
    if (await (await held.session.connection()).execute(taken)).first():
        raise Conflict("the user name is taken", path=[*AT, "username"])


async def _respell(held: Held, rows: Sequence[Picked], values: Mapping[str, Any]) -> None:
    """Update the search words of users with changed names."""
    asked = select(col(Address.user_id), col(Address.shown)).where(
        col(Address.main), col(Address.user_id).in_([row.id for row in rows])
    )
    found = await (await held.session.connection()).execute(asked)
    mains = {row.user_id: row.shown for row in found}
    for row in rows:
        username, name = values.get("username", row.username), values.get("name", row.name)
        held.set(row, words=words_of(username, name, mains.get(row.id)))


async def _retag(held: Held, rows: Sequence[Picked], tags: Collection[str]) -> None:
    keys, connection = [row.id for row in rows], await held.session.connection()
    await connection.execute(delete(UserTag).where(col(UserTag.user_id).in_(keys)))
    folded = [{"tag": tag.casefold(), "user_id": key} for key in keys for tag in tags]
    if folded:
        await connection.execute(insert(UserTag), folded)
