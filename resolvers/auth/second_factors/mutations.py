"""Second factors of users: turn on, turn off, prove and list."""

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
    """A second factor that is on, with the times it was turned on and last proved, if known."""

    method: TwoFactorMethod
    created_at: datetime | None = None
    last_used_at: datetime | None = None


async def _account(ctx: Context, key: int | None) -> Picked:
    """Load a user that the viewer manages; None: the viewer's own."""
    return await managed_one(ctx, own(ctx) if key is None else key)


async def _asked(ctx: Context, key: int | None) -> Picked:
    """Load the user of the pending sign-in, or else a managed user.

    Raises Unauthenticated for an anonymous viewer, NotFound for another user than the pending one.
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
    """Check a proof of a second factor that is on, since the viewer's credential may be stolen.

    A viewer who is another user can give a reason instead of a proof. Raises AuthenticationFailed
    without a right proof, Invalid without a reason, and Forbidden if only the factor CUSTOM is on.
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
    """Require a proof before a further factor is added: its owner could prove it from then on."""
    if enabled(user) and (proof.given or ctx.viewer.user_id == user.id):
        await _proven(ctx, user, proof)


@dataclass(frozen=True, slots=True)
class Deed:
    """A mutation with its action name in the security log."""

    mutation: str
    action: str
    target: str | None = None


async def _log(
    ctx: Context, session: AsyncSession, user: Picked, deed: Deed, after: Sequence[str]
) -> None:
    """Write a change to the security log and the journal.

    Also to the admin log if by another user.
    """
    await security_log.note(ctx, session, Event(deed.action, user.id, target=deed.target))
    if enabled(user) != [*after]:
        await ctx.record(session, user.id, ChangeKind.USER_CHANGED, [user.id])
    if ctx.viewer.user_id == user.id:
        return
    before = {"enabled2fa": [*enabled(user)]}
    done = Done(deed.mutation, "User", user.id, user.domain_id, before, {"enabled2fa": [*after]})
    await admin_log.note(ctx, session, done)


async def _now(session: AsyncSession, user: Picked) -> Picked:
    """Read the user inside the transaction that locks it. Raises NotFound if it was deleted."""
    asked = select(*picked(User)).where(col(User.id) == user.id, col(User.deleted_at).is_(None))
    row = (await (await session.connection()).execute(asked)).first()
    if row is None:
        raise NotFound(str(user.id), path=["user"])
    return row


async def _turn_on(
    ctx: Context, session: AsyncSession, user: Picked, method: TwoFactorMethod, deed: Deed
) -> bool:
    """Add a factor to those that are on; other sign-ins of the user end.

    Returns True if it is the first factor that this server checks.
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
    """Remove factors from those that are on, with their secrets, keys and recovery codes."""
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
    """Raise Conflict if the factor is off."""
    if method not in enabled(user):
        raise Conflict(f"{method} is not on")


def _off(user: Picked, method: TwoFactorMethod) -> None:
    """Raise Conflict if the factor is on."""
    if method in enabled(user):
        raise Conflict(f"{method} is on already")


async def _without(
    ctx: Context, key: int | None, proof: Proof, method: TwoFactorMethod, deed: Deed
) -> int:
    """Turn one factor off after a proof; return the user id. Raises Conflict if it is off."""
    user = await _account(ctx, key)
    _on(user, method)
    await _proven(ctx, user, proof)
    async with ctx.write(user.id) as session:
        user = await _now(session, user)
        _on(user, method)
        await _turn_off(ctx, session, user, [method], deed)
    return int(user.id)


async def totp_setup(ctx: Context, key: int | None, label: str | None, issuer: str | None) -> Shown:
    """Create a TOTP secret for the user, which is used only once it is proved.

    Raises Conflict if TOTP is on.
    """
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
    """Turn TOTP on by a code of the new secret. Returns the user id and new recovery codes.

    Raises AuthenticationFailed for a wrong code, Conflict if TOTP is on or no secret is pending.
    """
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
    """Turn TOTP on by a secret that the user's authenticator has from another system.

    Returns the user id. Raises Invalid for a malformed secret, Conflict if TOTP is on.
    """
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
    """Turn TOTP off, and no other factor. Returns the user id."""
    return await _without(ctx, key, proof, TOTP, Deed("totpDisable", "totp disable"))


async def prove(ctx: Context, key: int | None, proof: Proof) -> int:
    """Prove a second factor of the user; a pending sign-in is completed. Returns the user id.

    Raises Conflict if no factor is on, AuthenticationFailed for a wrong proof.
    """
    user = await _asked(ctx, key)
    if not enabled(user):
        raise Conflict("no second factor is on")
    await check(ctx, user, proof)
    if ctx.viewer.pending_for:
        async with ctx.write(user.id) as session:
            await authentication.complete(ctx, session)
    return int(user.id)


async def custom_enable(ctx: Context, key: int | None) -> int:
    """Turn on the factor CUSTOM, which an application checks. Returns the user id."""
    user = await _account(ctx, key)
    async with ctx.write(user.id) as session:
        user = await _now(session, user)
        _off(user, CUSTOM)
        deed = Deed("customTwoFactorEnable", "custom enable")
        await _turn_on(ctx, session, user, CUSTOM, deed)
    authentication.forget(ctx.world, user.id)
    return int(user.id)


async def custom_disable(ctx: Context, key: int | None, proof: Proof) -> int:
    """Turn off the factor CUSTOM. Returns the user id."""
    deed = Deed("customTwoFactorDisable", "custom disable")
    return await _without(ctx, key, proof, CUSTOM, deed)


async def webauthn_challenge(
    ctx: Context, key: int | None, ceremony: Ceremony | None
) -> dict[str, Any]:
    """Create a challenge to register a security key, or to prove one for a pending sign-in.

    Raises Forbidden if a pending sign-in asks to register a key.
    """
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
    """Register a security key. Returns it, and recovery codes if it is the first factor."""
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
    """Delete security keys of one user, all or none. The last one turns the factor off.

    Raises NotFound for a key that the viewer does not see, Invalid for keys of several users.
    """
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


async def disable_all(ctx: Context, key: int | None, proof: Proof) -> int:
    """Turn all factors off and delete secrets, keys and recovery codes. Returns the user id.

    Raises Conflict if no factor is on.
    """
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
    """Require that another user turns all factors of a user off, and gives a reason.

    Does nothing if no factor is on. Raises AuthenticationFailed for the viewer's own account, which
    must use `disable_all_factors`; errors get this `path`.
    """
    if not enabled(row):
        return
    try:
        await _proven(ctx, row, NOTHING)
    except (AuthenticationFailed, Forbidden) as refusal:
        refusal.path = [*path]
        raise


async def forget_all(ctx: Context, session: AsyncSession, row: Picked) -> None:
    """Delete secrets, keys and recovery codes of a user that is locked, and log it.

    The caller changes `User.second_factors`.
    """
    await totp.forget(session, row.id)
    await webauthn.removed(session, row.id)
    await recovery_codes.forget(session, row.id)
    await security_log.note(ctx, session, Event("2fa disable", row.id))


async def renew_codes(ctx: Context, proof: Proof) -> list[str]:
    """Replace the viewer's recovery codes and return the new ones.

    Raises Conflict if neither TOTP nor WebAuthn is on.
    """
    user = await _account(ctx, own(ctx))
    if not {TOTP, WEBAUTHN}.intersection(enabled(user)):
        raise Conflict("no second factor of ours is on")
    await _proven(ctx, user, proof)
    async with ctx.write(user.id) as session:
        codes = await recovery_codes.renew(ctx.world, session, user.id)
        await security_log.note(ctx, session, Event("recovery codes create", user.id))
    return codes


async def standing(ctx: Context, user_ids: list[int]) -> list[list[Standing]]:
    """Load the factors that are on for these users.

    None for users that the viewer can't oversee.
    """
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
        used = used and min(used, ctx.world.now())  # a fast clock uses steps of the future
        known = {
            TOTP: Standing(TOTP, row.enabled_at, used),
            CUSTOM: Standing(CUSTOM),
            WEBAUTHN: Standing(WEBAUTHN, *(made[1:] if made else ())),
        }
        found[row.id] = [known[method] for method in enabled(row)]
    return [found.get(key, []) for key in user_ids]
