"""Second factors of accounts: turned on and off, and listed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import func, select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.auth.credentials import AccessToken
from models.auth.second_factors import TotpSeed, WebauthnKey
from models.errors import AuthenticationFailed, Conflict, Forbidden, Invalid, NotFound
from models.events.journal import ChangeKind
from models.store.columns import Picked, picked
from models.users.roles import Role, Scope
from models.users.tables import User
from resolvers.access import overseen_users, own
from resolvers.admin import admin_log
from resolvers.admin.admin_log import Done
from resolvers.auth import authentication, security_log
from resolvers.auth.second_factors import recovery_codes, totp, webauthn
from resolvers.auth.second_factors.second_factor_check import Proof, TwoFactorMethod, check, enabled
from resolvers.auth.second_factors.totp import Shown
from resolvers.auth.second_factors.webauthn import Ceremony
from resolvers.auth.security_log import Event
from resolvers.context import Context, Needs
from resolvers.users.selection import managed_one

CUSTOM, TOTP, WEBAUTHN = TwoFactorMethod.CUSTOM, TwoFactorMethod.TOTP, TwoFactorMethod.WEBAUTHN
NOTHING = Proof()
MANAGES = Needs(scope=Scope.MASTER)


@dataclass(frozen=True, slots=True)
class Standing:
    """A factor that is on: since when, and when it was last proved, as far as we know."""

    method: TwoFactorMethod
    created_at: datetime | None = None
    last_used_at: datetime | None = None


# ---------------------------------------------------------------- whose, and who may


async def _account(ctx: Context, key: int | None) -> Picked:
    return await managed_one(ctx, own(ctx) if key is None else key)


async def _asked(ctx: Context, key: int | None) -> Picked:
    """The account whose factor is asked about: of a sign-in that waits for it, or a managed one.

    Unauthenticated for strangers, whatever they ask.
    """
    waiting = ctx.viewer.pending_for
    if not waiting:
        ctx.viewer.require(MANAGES)
        return await _account(ctx, key)
    if key not in (None, waiting):
        raise NotFound(str(key), path=["user"])
    there = select(*picked(User)).where(col(User.id) == waiting, col(User.deleted_at).is_(None))
    for row in await ctx.read(there):
        return row
    raise AuthenticationFailed


async def _proven(ctx: Context, user: Picked, proof: Proof) -> None:
    """See that the account's own credential is not all that is shown: it may be stolen.

    A factor that is on is proved, or somebody else answers for it, and says why.
    """
    if proof.given:
        await check(ctx, user, proof)
    elif ctx.viewer.user_id != user.id:
        if not ctx.reason:
            raise Invalid("say why", constraint="required", path=["options", "reason"])
    elif enabled(user) == [CUSTOM]:
        text = "the application that checks this factor has to do it"
        raise Forbidden(text, requires=Role.DOMAIN_ADMIN)
    else:
        raise AuthenticationFailed("prove a second factor that is on")


async def _adds(ctx: Context, user: Picked, proof: Proof) -> None:
    """The same, for a further factor: whoever may add one may prove it ever after."""
    if enabled(user) and (proof.given or ctx.viewer.user_id == user.id):
        await _proven(ctx, user, proof)


# ---------------------------------------------------------------- on and off


@dataclass(frozen=True, slots=True)
class Deed:
    """A mutation, as the schema and as the security log call it."""

    mutation: str
    action: str
    target: str | None = None


async def _log(
    ctx: Context, session: AsyncSession, user: Picked, deed: Deed, after: Sequence[str]
) -> None:
    await security_log.note(ctx, session, Event(deed.action, user.id, target=deed.target))
    if enabled(user) != [*after]:
        await ctx.record(session, user.id, ChangeKind.USER_CHANGED, [user.id])
    if ctx.viewer.user_id == user.id:
        return
    before = {"enabled2fa": [*enabled(user)]}
    done = Done(deed.mutation, "User", user.id, user.domain_id, before, {"enabled2fa": [*after]})
    await admin_log.note(ctx, session, done)


async def _now(session: AsyncSession, user: Picked) -> Picked:
    """The account as it is now that we hold it."""
    asked = select(*picked(User)).where(col(User.id) == user.id, col(User.deleted_at).is_(None))
    row = (await (await session.connection()).execute(asked)).first()
    if row is None:
        raise NotFound(str(user.id), path=["user"])
    return row


async def _turn_on(
    ctx: Context, session: AsyncSession, user: Picked, method: TwoFactorMethod, deed: Deed
) -> bool:
    """Put a factor among those that are on. That ends all other sign-ins of the account.

    Returns whether it is the first that we check ourselves.
    """
    on = enabled(user)
    after = [each for each in TwoFactorMethod if each in {*on, method}]
    connection = await session.connection()
    if method not in on:
        raised = (
            update(User)
            .where(col(User.id) == user.id)
            .values(
                second_factors=[each.value for each in after],
                auth_version=User.auth_version + 1,
                updated_at=ctx.world.now(),
            )
            .returning(col(User.auth_version))
        )
        version = (await connection.execute(raised)).scalar_one()
        mine = (col(AccessToken.id) == (ctx.viewer.token_id or 0)) & (
            col(AccessToken.user_id) == user.id
        )
        await connection.execute(update(AccessToken).where(mine).values(auth_version=version))
    await _log(ctx, session, user, deed, after)
    return method is not CUSTOM and not {TOTP, WEBAUTHN}.intersection(on)


async def _turn_off(
    ctx: Context, session: AsyncSession, user: Picked, off: Sequence[TwoFactorMethod], deed: Deed
) -> None:
    """Take factors from those that are on, with all that belongs to them."""
    after = [each for each in enabled(user) if each not in off]
    connection = await session.connection()
    kept: dict[str, Any] = {
        "second_factors": [each.value for each in after],
        "updated_at": ctx.world.now(),
    }
    await connection.execute(update(User).where(col(User.id) == user.id).values(kept))
    if TOTP in off:
        await totp.forget(session, user.id)
    if WEBAUTHN in off:
        await webauthn.removed(session, user.id)
    if not {TOTP, WEBAUTHN}.intersection(after):
        await recovery_codes.forget(session, user.id)
    await _log(ctx, session, user, deed, after)


def _on(user: Picked, method: TwoFactorMethod) -> None:
    if method not in enabled(user):
        raise Conflict(f"{method} is not on")


def _off(user: Picked, method: TwoFactorMethod) -> None:
    if method in enabled(user):
        raise Conflict(f"{method} is on already")


async def _without(
    ctx: Context, key: int | None, proof: Proof, method: TwoFactorMethod, deed: Deed
) -> int:
    user = await _account(ctx, key)
    _on(user, method)
    await _proven(ctx, user, proof)
    async with ctx.write(user.id) as session:
        user = await _now(session, user)
        _on(user, method)
        await _turn_off(ctx, session, user, [method], deed)
    return int(user.id)


# ---------------------------------------------------------------- codes by time


async def totp_setup(ctx: Context, key: int | None, label: str | None, issuer: str | None) -> Shown:
    """A new seed for the account, which is nothing until it is proved. Conflict where one is on."""
    user = await _account(ctx, key)
    async with ctx.write(user.id) as session:
        user = await _now(session, user)
        _off(user, TOTP)
        shown = await totp.setup(ctx, session, user, label, issuer)
        await security_log.note(ctx, session, Event("totp setup", user.id))
    return shown


async def totp_enable(
    ctx: Context, key: int | None, code: str, proof: Proof = NOTHING
) -> tuple[int, list[str]]:
    """Turn codes on by one of the new seed; returns the account and new recovery codes."""
    user = await _account(ctx, key)
    _off(user, TOTP)
    await _adds(ctx, user, proof)
    async with ctx.write(user.id) as session:
        user = await _now(session, user)
        _off(user, TOTP)
        await totp.enable(ctx, session, user.id, code)
        await _turn_on(ctx, session, user, TOTP, Deed("totpEnable", "totp enable"))
        codes = await recovery_codes.renew(ctx.world, session, user.id)
    authentication.forget(ctx.world, user.id)
    return user.id, codes


async def totp_import(ctx: Context, key: int, seed: str) -> int:
    """Turn codes on by a seed that the user's authenticator has from another system."""
    user, raw = await _account(ctx, key), totp.decoded(seed)
    await _adds(ctx, user, NOTHING)
    async with ctx.write(user.id) as session:
        user = await _now(session, user)
        _off(user, TOTP)
        await totp.bring(ctx, session, user.id, raw)
        await _turn_on(ctx, session, user, TOTP, Deed("totpImport", "totp enable"))
    authentication.forget(ctx.world, user.id)
    return int(user.id)


async def totp_disable(ctx: Context, key: int | None, proof: Proof) -> int:
    """Turn codes off, and no other factor."""
    return await _without(ctx, key, proof, TOTP, Deed("totpDisable", "totp disable"))


async def prove(ctx: Context, key: int | None, proof: Proof) -> int:
    """Prove a factor of the account; a sign-in that waited for it is complete with that."""
    user = await _asked(ctx, key)
    if not enabled(user):
        raise Conflict("no second factor is on")
    await check(ctx, user, proof)
    if ctx.viewer.pending_for:
        async with ctx.write(user.id) as session:
            await authentication.complete(ctx, session)
    return int(user.id)


# ---------------------------------------------------------------- checked by others


async def custom_enable(ctx: Context, key: int | None) -> int:
    """Say that an application checks a factor of its own."""
    user = await _account(ctx, key)
    async with ctx.write(user.id) as session:
        user = await _now(session, user)
        _off(user, CUSTOM)
        deed = Deed("customTwoFactorEnable", "custom enable")
        await _turn_on(ctx, session, user, CUSTOM, deed)
    authentication.forget(ctx.world, user.id)
    return int(user.id)


async def custom_disable(ctx: Context, key: int | None, proof: Proof) -> int:
    """Say that it does so no longer."""
    deed = Deed("customTwoFactorDisable", "custom disable")
    return await _without(ctx, key, proof, CUSTOM, deed)


# ---------------------------------------------------------------- security keys


async def webauthn_challenge(
    ctx: Context, key: int | None, ceremony: Ceremony | None
) -> dict[str, Any]:
    """A challenge for a key: to be made, or, where a sign-in waits for it, to be proved."""
    user = await _asked(ctx, key)
    if ctx.viewer.pending_for:
        if ceremony is Ceremony.REGISTRATION:
            raise Forbidden("sign in first, then add keys", requires=Role.USER)
        ceremony = Ceremony.AUTHENTICATION
    return await webauthn.challenge(ctx, user, ceremony or Ceremony.REGISTRATION)


async def webauthn_register(
    ctx: Context,
    key: int | None,
    name: str,
    response: Mapping[str, Any],
    proof: Proof = NOTHING,
) -> tuple[WebauthnKey, list[str]]:
    """Add a key; returns it, and recovery codes where it is the first factor."""
    name, user = webauthn.named(name), await _account(ctx, key)
    await _adds(ctx, user, proof)
    made = await webauthn.registered(ctx, user.id, response)
    async with ctx.write(user.id) as session:
        user = await _now(session, user)
        row = await webauthn.keep(ctx, session, user.id, name, made)
        deed = Deed("webauthnRegister", "webauthn register", target=name)
        first = await _turn_on(ctx, session, user, WEBAUTHN, deed)
        codes = await recovery_codes.renew(ctx.world, session, user.id) if first else []
    authentication.forget(ctx.world, user.id)
    return row, codes


async def webauthn_delete(ctx: Context, ids: Sequence[int], proof: Proof) -> None:
    """Delete keys of one account, all or none. With the last one the factor is off."""
    rows = await webauthn.by_ids(ctx, list(ids))
    for index, row in enumerate(rows):
        if row is None:
            raise NotFound(str(ids[index]), path=["ids"], index=index)
    keys = [row for row in rows if row]
    if not keys:
        return
    if len({row.user_id for row in keys}) > 1:
        raise Invalid("keys of one account at a time", constraint="unsupported", path=["ids"])
    user = await _account(ctx, keys[0].user_id)
    await _proven(ctx, user, proof)
    async with ctx.write(user.id) as session:
        user = await _now(session, user)
        left = await webauthn.removed(session, user.id, ids)
        names = {row.id: row.name for row in keys}.values()
        deed = Deed("webauthnDelete", "webauthn delete", target=", ".join(names))
        await _turn_off(ctx, session, user, [] if left else [WEBAUTHN], deed)


# ---------------------------------------------------------------- all, and what is left


async def disable_all(ctx: Context, key: int | None, proof: Proof) -> int:
    """Turn all factors off, with seeds, keys and recovery codes."""
    user = await _account(ctx, key)
    if not enabled(user):
        raise Conflict("no second factor is on")
    await _proven(ctx, user, proof)
    async with ctx.write(user.id) as session:
        user = await _now(session, user)
        deed = Deed("twoFactorDisable", "2fa disable")
        await _turn_off(ctx, session, user, list(TwoFactorMethod), deed)
    return int(user.id)


async def require_proof(ctx: Context, row: Picked, path: Sequence[str]) -> None:
    """See that somebody else answers for turning all factors of an account off, and says why.

    For the own account raises AuthenticationFailed: a factor is proved by `disable_all`.
    """
    if not enabled(row):
        return
    try:
        await _proven(ctx, row, NOTHING)
    except (AuthenticationFailed, Forbidden) as refusal:
        refusal.path = [*path]
        raise


async def forget_all(ctx: Context, session: AsyncSession, row: Picked) -> None:
    """Delete seeds, keys and recovery codes of an account that is held, and log it.

    The caller changes `User.second_factors`.
    """
    await totp.forget(session, row.id)
    await webauthn.removed(session, row.id)
    await recovery_codes.forget(session, row.id)
    await security_log.note(ctx, session, Event("2fa disable", row.id))


async def renew_codes(ctx: Context, proof: Proof) -> list[str]:
    """New recovery codes for the viewer, in the place of the old ones."""
    user = await _account(ctx, own(ctx))
    if not {TOTP, WEBAUTHN}.intersection(enabled(user)):
        raise Conflict("no second factor of ours is on")
    await _proven(ctx, user, proof)
    async with ctx.write(user.id) as session:
        codes = await recovery_codes.renew(ctx.world, session, user.id)
        await security_log.note(ctx, session, Event("recovery codes create", user.id))
    return codes


async def standing(ctx: Context, user_ids: list[int]) -> list[list[Standing]]:
    """The factors that are on for these accounts, as far as the viewer sees them."""
    asked = (
        select(
            *picked(User, ("id", "second_factors")), *picked(TotpSeed, ("enabled_at", "last_step"))
        )
        .outerjoin(TotpSeed, col(TotpSeed.user_id) == col(User.id))
        .where(col(User.id).in_(user_ids), overseen_users(ctx))
    )
    owner = col(WebauthnKey.user_id)
    keys = select(
        owner,
        func.min(col(WebauthnKey.created_at)).label("created_at"),
        func.max(col(WebauthnKey.last_used_at)).label("last_used_at"),
    ).where(owner.in_(user_ids))
    of_keys = {row.user_id: row for row in await ctx.read(keys.group_by(owner))}
    found = {}
    for row in await ctx.read(asked):
        made = of_keys.get(row.id)
        used = row.last_step and datetime.fromtimestamp(row.last_step * totp.STEP, UTC)
        used = used and min(used, ctx.world.now())  # a clock that is fast spends steps to come
        known = {
            TOTP: Standing(TOTP, row.enabled_at, used),
            CUSTOM: Standing(CUSTOM),
            WEBAUTHN: Standing(WEBAUTHN, *(made[1:] if made else ())),
        }
        found[row.id] = [known[method] for method in enabled(row)]
    return [found.get(key, []) for key in user_ids]
