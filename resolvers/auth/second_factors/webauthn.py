"""Security keys and passkeys (W3C Web Authentication, level 2)."""

import asyncio
import base64
import binascii
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

from sqlalchemy import Delete, Select, delete, select, update
from sqlalchemy.exc import IntegrityError
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.auth.second_factors import WebauthnChallenge, WebauthnKey
from models.errors import AuthenticationFailed, Conflict, Invalid, LimitReached, Unavailable
from models.runtime.environment import Turn, World
from models.runtime.options import Options
from models.store.columns import Picked, picked
from models.users.tables import User
from resolvers.access import overseen_users
from resolvers.auth.second_factors.totp import PRODUCT
from resolvers.context import Context
from resolvers.pagination import by_keys

log = logging.getLogger(__name__)

Verified = TypeVar("Verified")

CHALLENGE = 64  # bytes
GOOD_FOR = timedelta(hours=1)
WAITING = 10  # of a user; the oldest are deleted
MOST = 20  # of a user
LONGEST = 128  # characters of a name
PART = 32_768  # characters of one member of a response
NO_ANSWER = "this is no answer to a challenge of ours"
TRANSPORTS = frozenset({"ble", "cable", "hybrid", "internal", "nfc", "smart-card", "usb"})


class Ceremony(StrEnum):
    """The purpose of a challenge."""

    REGISTRATION = "REGISTRATION"
    AUTHENTICATION = "AUTHENTICATION"


@dataclass(frozen=True, slots=True)
class Party:
    """The relying party: its id and the origins of the pages that can use its keys."""

    id: str
    origins: list[str]


@dataclass(frozen=True, slots=True)
class Registered:
    """A security key that was just created, verified but not stored."""

    challenge: str  # base64url, as the next two
    credential_id: str
    public_key: str  # COSE
    sign_count: int
    transports: list[str]


@dataclass(frozen=True, slots=True)
class Asserted:
    """A valid signature of a stored key, with its signature counters."""

    challenge: str
    key_id: int
    name: str
    before: int
    count: int


def party(options: Options) -> Party:
    """Return the relying party from the settings, by default from the public URL.

    The headers of a request are never used. Raises Unavailable if no public URL is set.
    """
    public = urlsplit(options.public_url)
    origins = list(options.webauthn_origins)
    if not origins and public.hostname:
        origins = [f"{public.scheme}://{public.netloc}".lower()]
    name = options.webauthn_id or public.hostname
    if not name or not origins:
        text = "security keys need an address: set MERGANSER_PUBLIC_URL"
        raise Unavailable(text, component="webauthn")
    return Party(name, origins)


async def challenge(ctx: Context, user: Picked, ceremony: Ceremony) -> dict[str, Any]:
    """Create a challenge: the JSON options for `create` or `get` of `navigator.credentials`.

    Raises Conflict to authenticate a user without a key, LimitReached to register too many keys.
    """
    party_, world, now = party(ctx.world.options), ctx.world, ctx.world.now()
    keys = await ctx.read(_keys_of([user.id]))
    if ceremony is Ceremony.AUTHENTICATION and not keys:
        raise Conflict("no security key is registered", path=["ceremony"])
    if ceremony is Ceremony.REGISTRATION:
        _room(len(keys))
    text = _base64url(world.random(CHALLENGE))
    registers = ceremony is Ceremony.REGISTRATION
    mine = col(WebauthnChallenge.user_id) == user.id
    newest = select(col(WebauthnChallenge.id)).where(mine)
    newest = newest.where(col(WebauthnChallenge.created_at) > now - GOOD_FOR)
    newest = newest.order_by(col(WebauthnChallenge.id).desc()).limit(WAITING - 1)
    async with ctx.write(user.id) as session:
        connection = await session.connection()
        kept = list((await connection.execute(newest)).scalars())
        old = delete(WebauthnChallenge).where(mine, col(WebauthnChallenge.id).not_in(kept))
        await connection.execute(old)
        session.add(
            WebauthnChallenge(
                id=world.key(),
                user_id=user.id,
                challenge=text,
                registers=registers,
                created_at=now,
            )
        )
    if registers:
        make = partial(_creation, party_, user, text, keys)
    else:
        make = partial(_request, party_, text, keys)
    return await asyncio.to_thread(make)  # the library is slow to load


def _creation(party_: Party, user: Picked, text: str, keys: Sequence[Picked]) -> dict[str, Any]:
    from webauthn import generate_registration_options, options_to_json  # noqa: PLC0415
    from webauthn.helpers import structs  # noqa: PLC0415

    options = generate_registration_options(
        rp_id=party_.id,
        rp_name=PRODUCT,
        user_name=user.username,
        user_id=_handle(user.id),
        user_display_name=user.name or user.username,
        challenge=_bytes(text),
        exclude_credentials=_descriptors(keys),
        authenticator_selection=structs.AuthenticatorSelectionCriteria(
            user_verification=structs.UserVerificationRequirement.PREFERRED
        ),
    )
    made: dict[str, Any] = json.loads(options_to_json(options))
    return made


def _request(party_: Party, text: str, keys: Sequence[Picked]) -> dict[str, Any]:
    from webauthn import generate_authentication_options, options_to_json  # noqa: PLC0415

    options = generate_authentication_options(
        rp_id=party_.id, challenge=_bytes(text), allow_credentials=_descriptors(keys)
    )
    made: dict[str, Any] = json.loads(options_to_json(options))
    return made


def _descriptors(keys: Sequence[Picked]) -> list[Any]:
    from webauthn.helpers import structs  # noqa: PLC0415

    return [
        structs.PublicKeyCredentialDescriptor(
            id=_bytes(key.credential_id),
            transports=[structs.AuthenticatorTransport(each) for each in key.transports],
        )
        for key in keys
    ]


def _handle(user_id: int) -> bytes:
    """Return the user handle of a key. It says nothing about the person."""
    return str(user_id).encode()


async def registered(ctx: Context, user_id: int, response: Mapping[str, Any]) -> Registered:
    """Verify the response to a registration challenge and return the new key.

    Raises AuthenticationFailed if the response is wrong; its challenge is deleted. Must not be
    called inside a transaction that has written.
    """
    party_ = party(ctx.world.options)
    expected = await _expected(ctx, user_id, response, registers=True)

    def verify() -> Registered:
        from webauthn import verify_registration_response  # noqa: PLC0415

        made = verify_registration_response(
            credential=dict(response),
            expected_challenge=_bytes(expected),
            expected_rp_id=party_.id,
            expected_origin=party_.origins,
        )
        offered = response["response"].get("transports") or []
        return Registered(
            str(expected),
            _base64url(made.credential_id),
            _base64url(made.credential_public_key),
            made.sign_count,
            sorted(TRANSPORTS.intersection(each for each in offered if isinstance(each, str))),
        )

    made = await _tried(ctx.world, expected, verify) if expected else None
    if made is None:
        raise AuthenticationFailed(NO_ANSWER)
    return made


async def keep(
    ctx: Context, session: AsyncSession, user_id: int, name: str, made: Registered
) -> WebauthnKey:
    """Store a new key and delete its challenge.

    Raises Conflict if the key is registered already, LimitReached if the user has too many keys,
    and AuthenticationFailed if the challenge was used.
    """
    if not await _consumed(session, made.challenge):
        raise AuthenticationFailed(NO_ANSWER)  # a concurrent request used it
    theirs = select(col(WebauthnKey.id)).where(col(WebauthnKey.user_id) == user_id)
    _room(len((await (await session.connection()).execute(theirs)).all()))
    row = WebauthnKey(
        id=ctx.world.key(),
        user_id=user_id,
        name=name,
        credential_id=made.credential_id,
        public_key=made.public_key,
        sign_count=made.sign_count,
        transports=made.transports,
        created_at=ctx.world.now(),
    )
    try:
        async with session.begin_nested():
            session.add(row)
    except IntegrityError as clash:
        raise Conflict("this key is registered already", path=["response"]) from clash
    return row


def named(name: str) -> str:
    """Return the name of a key, trimmed.

    Raises Invalid if it is empty, too long or not printable.
    """
    name = name.strip()
    if not 0 < len(name) <= LONGEST or not name.isprintable():
        text = f"a name has 1 to {LONGEST} printable characters"
        raise Invalid(text, constraint="pattern", path=["name"])
    return name


def _room(used: int) -> None:
    """Raise LimitReached if the user has the highest number of keys."""
    if used >= MOST:
        raise LimitReached(f"at most {MOST} security keys", limit=MOST, used=used)


async def asserted(ctx: Context, user_id: int, response: Mapping[str, Any]) -> Asserted | None:
    """Verify the response to an authentication challenge; None if it is wrong.

    The challenge of a wrong response is deleted. Must not be called inside a transaction that has
    written.
    """
    party_ = party(ctx.world.options)
    expected = await _expected(ctx, user_id, response, registers=False)
    asked = select(*picked(WebauthnKey)).where(
        col(WebauthnKey.user_id) == user_id,
        col(WebauthnKey.credential_id) == _unpadded(response.get("id")),
    )
    key = next(iter(await ctx.read(asked)), None)
    if expected is None:
        return None

    def verify() -> Asserted:
        from webauthn import verify_authentication_response  # noqa: PLC0415

        if key is None:
            raise ValueError("no key of the account")
        made = verify_authentication_response(
            credential=dict(response),
            expected_challenge=_bytes(expected),
            expected_rp_id=party_.id,
            expected_origin=party_.origins,
            credential_public_key=_bytes(key.public_key),
            credential_current_sign_count=key.sign_count,
        )
        handle = response["response"].get("userHandle")
        if handle and _bytes(handle) != _handle(user_id):
            raise ValueError("the key is another account's")
        return Asserted(expected, key.id, key.name, key.sign_count, made.new_sign_count)

    return await _tried(ctx.world, expected, verify)


async def spend(world: World, session: AsyncSession, made: Asserted) -> bool:
    """Delete the challenge and store the signature counter.

    Returns False if a concurrent request used the challenge or the counter.
    """
    if not await _consumed(session, made.challenge):
        return False
    kept = await (await session.connection()).execute(
        update(WebauthnKey)
        .where(col(WebauthnKey.id) == made.key_id, col(WebauthnKey.sign_count) == made.before)
        .values(sign_count=made.count, last_used_at=world.now())
    )
    return kept.rowcount == 1


async def _expected(
    ctx: Context, user_id: int, response: Mapping[str, Any], *, registers: bool
) -> str | None:
    """Load the challenge that a response answers.

    Returns None if it is unknown, expired or of another purpose.
    """
    asked = select(col(WebauthnChallenge.challenge)).where(
        col(WebauthnChallenge.challenge) == (_answered(response) or ""),
        col(WebauthnChallenge.user_id) == user_id,
        col(WebauthnChallenge.registers).is_(registers),
        col(WebauthnChallenge.created_at) > ctx.world.now() - GOOD_FOR,
    )
    return next((str(row.challenge) for row in await ctx.read(asked)), None)


async def _consumed(session: AsyncSession, text: str) -> bool:
    """Delete a challenge. Returns False if it was deleted already."""
    gone = await (await session.connection()).execute(_removal(text))
    return gone.rowcount == 1


def _removal(text: str) -> Delete:
    return delete(WebauthnChallenge).where(col(WebauthnChallenge.challenge) == text)


def _answered(response: Mapping[str, Any]) -> str | None:
    """Return the challenge that the client data of a response names; None if malformed.

    Raises Invalid if a member is longer than any authenticator sends.
    """
    inner = response.get("response")
    parts = [*response.values(), *(inner.values() if isinstance(inner, Mapping) else ())]
    if any(isinstance(part, str) and len(part) > PART for part in parts):
        raise Invalid("longer than any answer of a key", constraint="max", path=["response"])
    try:
        data = json.loads(_bytes(inner["clientDataJSON"])) if isinstance(inner, Mapping) else None
        return _unpadded(data["challenge"]) if isinstance(data, dict) else None
    except (ValueError, KeyError, RecursionError):
        return None


def _unpadded(text: object) -> str:
    """Return base64url without padding; empty if the value is not base64url."""
    try:
        return _base64url(_bytes(text))
    except ValueError:
        return ""


async def _tried(world: World, text: str, verify: Callable[[], Verified]) -> Verified | None:
    """Return what `verify` returns; None if it raises, and the challenge is deleted."""
    try:
        return await asyncio.to_thread(verify)
    except Exception as problem:  # noqa: BLE001 - untrusted bytes can raise any error
        log.info("a security key was refused", extra={"why": type(problem).__name__})

    def unit(turn: Turn) -> None:
        turn.connection.execute(_removal(text))

    await world.apply(unit)
    return None


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _bytes(text: object) -> bytes:
    """Decode base64url with or without padding. Raises ValueError."""
    if not isinstance(text, str) or not text.isascii():
        raise ValueError("not base64url")
    try:
        return base64.urlsafe_b64decode(text + "===")
    except binascii.Error as problem:
        raise ValueError("not base64url") from problem


def _keys_of(user_ids: Sequence[int]) -> Select[*tuple[Any, ...]]:
    asked = select(*picked(WebauthnKey)).where(col(WebauthnKey.user_id).in_(user_ids))
    return asked.order_by(col(WebauthnKey.id))


def _visible(ctx: Context) -> Any:
    return col(WebauthnKey.user_id).in_(select(col(User.id)).where(overseen_users(ctx)))


async def of_users(ctx: Context, user_ids: list[int]) -> list[list[Picked]]:
    """Load the keys of these users, oldest first; none for users that the viewer can't oversee."""
    found: dict[int, list[Picked]] = {key: [] for key in user_ids}
    for row in await ctx.read(_keys_of(user_ids).where(_visible(ctx))):
        found[row.user_id].append(row)
    return [found[key] for key in user_ids]


async def by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """Load keys by id, in this order; None for a key that the viewer does not see."""
    seen = select(*picked(WebauthnKey)).where(_visible(ctx))
    return await by_keys(ctx, seen, col(WebauthnKey.id), ids)


async def removed(session: AsyncSession, user_id: int, ids: Sequence[int] | None = None) -> int:
    """Delete these keys of the user, or all; return the number left.

    The last one takes the user's challenges with it.
    """
    connection = await session.connection()
    mine = col(WebauthnKey.user_id) == user_id
    which = mine if ids is None else mine & col(WebauthnKey.id).in_(ids)
    await connection.execute(delete(WebauthnKey).where(which))
    rows = (await connection.execute(select(col(WebauthnKey.id)).where(mine))).all()
    if not rows:
        gone = delete(WebauthnChallenge).where(col(WebauthnChallenge.user_id) == user_id)
        await connection.execute(gone)
    return len(rows)
