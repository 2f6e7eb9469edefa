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

from sqlalchemy import ColumnElement, Delete, Select, delete, select, update
from sqlalchemy.exc import IntegrityError
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.auth.second_factors import WebauthnChallenge, WebauthnKey
from models.base64url import encode_base64url
from models.errors import (
    AuthenticationFailed,
    Conflict,
    InvalidInput,
    LimitReached,
    ServiceUnavailable,
)
from models.runtime.environment import DatabaseTransaction, Environment
from models.runtime.options import Options
from models.store.columns import ColumnRow, select_columns
from models.users.tables import User
from models.validation_constraints import ValidationConstraint
from resolvers.access import is_overseen_user
from resolvers.auth.second_factors.totp import PRODUCT
from resolvers.context import Context
from resolvers.pagination import read_by_keys

log = logging.getLogger(__name__)

Verified = TypeVar("Verified")

CHALLENGE_SIZE = 64  # bytes
CHALLENGE_LIFETIME = timedelta(hours=1)
MAX_CHALLENGES = 10  # of a user; the oldest are deleted
MAX_KEYS = 20  # of a user
MAX_NAME_LENGTH = 128  # characters of a name
MAX_MEMBER_LENGTH = 32_768  # characters of one member of a response
INVALID_RESPONSE_TEXT = "The response does not match a valid challenge of this server."
TRANSPORTS = frozenset({"ble", "cable", "hybrid", "internal", "nfc", "smart-card", "usb"})


class Ceremony(StrEnum):
    """The purpose of a challenge."""

    REGISTRATION = "REGISTRATION"
    AUTHENTICATION = "AUTHENTICATION"


@dataclass(frozen=True, slots=True)
class RelyingParty:
    """The relying party: its id and the origins of the pages that can use its keys."""

    id: str
    origins: list[str]


@dataclass(frozen=True, slots=True)
class VerifiedRegistration:
    """A security key that was just created, verified but not stored."""

    challenge: str  # base64url, as the next two
    credential_id: str
    public_key: str  # COSE
    sign_count: int
    transports: list[str]


@dataclass(frozen=True, slots=True)
class VerifiedAssertion:
    """A valid signature of a stored key, with its signature counters."""

    challenge: str
    key_id: int
    name: str
    stored_sign_count: int
    new_sign_count: int


def require_relying_party(options: Options) -> RelyingParty:
    """Return the relying party from the settings, by default from the public URL.

    The headers of a request are never used. Raises ServiceUnavailable if no public URL is set.
    """
    public_url = urlsplit(options.public_url)
    origins = list(options.webauthn_origins)
    if not origins and public_url.hostname:
        origins = [f"{public_url.scheme}://{public_url.netloc}".lower()]
    host = options.webauthn_rp_id or public_url.hostname
    if not host or not origins:
        text = "WebAuthn requires a public URL: set MERGANSER_PUBLIC_URL."
        raise ServiceUnavailable(text, component="webauthn")
    return RelyingParty(host, origins)


async def create_challenge_options(
    ctx: Context, user: ColumnRow, ceremony: Ceremony
) -> dict[str, Any]:
    """Create a challenge: the JSON options for `create` or `get` of `navigator.credentials`.

    Raises Conflict to authenticate a user without a key, LimitReached to register too many keys.
    """
    rp = require_relying_party(ctx.environment.options)
    environment = ctx.environment
    now = ctx.environment.now()
    keys = await ctx.read(_select_keys_of_users([user.id]))
    if ceremony is Ceremony.AUTHENTICATION and not keys:
        raise Conflict("The account has no security key.", path=["ceremony"])
    if ceremony is Ceremony.REGISTRATION:
        _require_below_limit(len(keys))
    challenge_text = encode_base64url(environment.random_bytes(CHALLENGE_SIZE))
    is_registration = ceremony is Ceremony.REGISTRATION
    is_of_user = col(WebauthnChallenge.user_id) == user.id
    newest = select(col(WebauthnChallenge.id)).where(is_of_user)
    newest = newest.where(col(WebauthnChallenge.created_at) > now - CHALLENGE_LIFETIME)
    newest = newest.order_by(col(WebauthnChallenge.id).desc()).limit(MAX_CHALLENGES - 1)
    async with ctx.write_session(user.id) as session:
        connection = await session.connection()
        newest_ids = list((await connection.execute(newest)).scalars())
        statement = delete(WebauthnChallenge).where(
            is_of_user, col(WebauthnChallenge.id).not_in(newest_ids)
        )
        await connection.execute(statement)
        session.add(
            WebauthnChallenge(
                id=environment.new_id(),
                user_id=user.id,
                challenge=challenge_text,
                registers=is_registration,
                created_at=now,
            )
        )
    if is_registration:
        build_options = partial(_registration_options, rp, user, challenge_text, keys)
    else:
        build_options = partial(_authentication_options, rp, challenge_text, keys)
    return await asyncio.to_thread(build_options)  # the library is slow to load


def _registration_options(
    rp: RelyingParty, user: ColumnRow, challenge_text: str, webauthn_keys: Sequence[ColumnRow]
) -> dict[str, Any]:
    from webauthn import generate_registration_options, options_to_json  # noqa: PLC0415
    from webauthn.helpers import structs  # noqa: PLC0415

    options = generate_registration_options(
        rp_id=rp.id,
        rp_name=PRODUCT,
        user_name=user.username,
        user_id=_user_handle(user.id),
        user_display_name=user.name or user.username,
        challenge=_decode_base64url(challenge_text),
        exclude_credentials=_credential_descriptors(webauthn_keys),
        authenticator_selection=structs.AuthenticatorSelectionCriteria(
            user_verification=structs.UserVerificationRequirement.PREFERRED
        ),
    )
    result: dict[str, Any] = json.loads(options_to_json(options))
    return result


def _authentication_options(
    rp: RelyingParty, challenge_text: str, webauthn_keys: Sequence[ColumnRow]
) -> dict[str, Any]:
    from webauthn import generate_authentication_options, options_to_json  # noqa: PLC0415

    options = generate_authentication_options(
        rp_id=rp.id,
        challenge=_decode_base64url(challenge_text),
        allow_credentials=_credential_descriptors(webauthn_keys),
    )
    result: dict[str, Any] = json.loads(options_to_json(options))
    return result


def _credential_descriptors(webauthn_keys: Sequence[ColumnRow]) -> list[Any]:
    from webauthn.helpers import structs  # noqa: PLC0415

    return [
        structs.PublicKeyCredentialDescriptor(
            id=_decode_base64url(key.credential_id),
            transports=[structs.AuthenticatorTransport(transport) for transport in key.transports],
        )
        for key in webauthn_keys
    ]


def _user_handle(user_id: int) -> bytes:
    """Return the user handle of a key. It says nothing about the person."""
    return str(user_id).encode()


async def verify_registration_or_delete_challenge(
    ctx: Context, user_id: int, response: Mapping[str, Any]
) -> VerifiedRegistration:
    """Verify the response to a registration challenge and return the new key.

    Raises AuthenticationFailed if the response is wrong; its challenge is deleted. Must not be
    called inside a transaction that has written.
    """
    rp = require_relying_party(ctx.environment.options)
    challenge_text = await _load_answered_challenge_or_none(
        ctx, user_id, response, is_registration=True
    )

    def verify_registration_of_challenge() -> VerifiedRegistration:
        from webauthn import verify_registration_response  # noqa: PLC0415

        result = verify_registration_response(
            credential=dict(response),
            expected_challenge=_decode_base64url(challenge_text),
            expected_rp_id=rp.id,
            expected_origin=rp.origins,
        )
        offered_transports = response["response"].get("transports") or []
        return VerifiedRegistration(
            str(challenge_text),
            encode_base64url(result.credential_id),
            encode_base64url(result.credential_public_key),
            result.sign_count,
            sorted(
                TRANSPORTS.intersection(
                    transport for transport in offered_transports if isinstance(transport, str)
                )
            ),
        )

    verified = (
        await _verify_or_delete_challenge(
            ctx.environment, challenge_text, verify_registration_of_challenge
        )
        if challenge_text
        else None
    )
    if verified is None:
        raise AuthenticationFailed(INVALID_RESPONSE_TEXT, path=["response"])
    return verified


async def store_key_and_delete_challenge(
    ctx: Context, session: AsyncSession, user_id: int, name: str, registration: VerifiedRegistration
) -> WebauthnKey:
    """Store a new key and delete its challenge.

    Raises Conflict if the key is registered already, LimitReached if the user has too many keys,
    and AuthenticationFailed if the challenge was used.
    """
    if not await _delete_challenge(session, registration.challenge):
        # a concurrent request used it
        raise AuthenticationFailed(INVALID_RESPONSE_TEXT, path=["response"])
    statement = select(col(WebauthnKey.id)).where(col(WebauthnKey.user_id) == user_id)
    _require_below_limit(len((await (await session.connection()).execute(statement)).all()))
    row = WebauthnKey(
        id=ctx.environment.new_id(),
        user_id=user_id,
        name=name,
        credential_id=registration.credential_id,
        public_key=registration.public_key,
        sign_count=registration.sign_count,
        transports=registration.transports,
        created_at=ctx.environment.now(),
    )
    try:
        async with session.begin_nested():
            session.add(row)
    except IntegrityError as clash:
        raise Conflict("The key is already registered.", path=["response"]) from clash
    return row


def validate_key_name(name: str) -> str:
    """Return the name of a key, trimmed.

    Raises InvalidInput if it is empty, too long or not printable.
    """
    name = name.strip()
    if not 0 < len(name) <= MAX_NAME_LENGTH or not name.isprintable():
        text = f"The name has from 1 to {MAX_NAME_LENGTH} printable characters."
        raise InvalidInput(text, constraint=ValidationConstraint.PATTERN, path=["name"])
    return name


def _require_below_limit(key_count: int) -> None:
    """Raise LimitReached if the user has the highest number of keys."""
    if key_count >= MAX_KEYS:
        raise LimitReached(
            f"An account has at most {MAX_KEYS} security keys.", limit=MAX_KEYS, used=key_count
        )


async def verify_assertion_or_delete_challenge(
    ctx: Context, user_id: int, response: Mapping[str, Any]
) -> VerifiedAssertion | None:
    """Verify the response to an authentication challenge; None if it is wrong.

    The challenge of a wrong response is deleted. Must not be called inside a transaction that has
    written.
    """
    rp = require_relying_party(ctx.environment.options)
    challenge_text = await _load_answered_challenge_or_none(
        ctx, user_id, response, is_registration=False
    )
    statement = select(*select_columns(WebauthnKey)).where(
        col(WebauthnKey.user_id) == user_id,
        col(WebauthnKey.credential_id) == _normalized_base64url_or_empty(response.get("id")),
    )
    key = next(iter(await ctx.read(statement)), None)
    if challenge_text is None:
        return None

    def verify_assertion_response() -> VerifiedAssertion:
        from webauthn import verify_authentication_response  # noqa: PLC0415

        if key is None:
            raise ValueError("the account has no such key")
        result = verify_authentication_response(
            credential=dict(response),
            expected_challenge=_decode_base64url(challenge_text),
            expected_rp_id=rp.id,
            expected_origin=rp.origins,
            credential_public_key=_decode_base64url(key.public_key),
            credential_current_sign_count=key.sign_count,
        )
        handle = response["response"].get("userHandle")
        if handle and _decode_base64url(handle) != _user_handle(user_id):
            raise ValueError("the key belongs to another account")
        return VerifiedAssertion(
            challenge_text, key.id, key.name, key.sign_count, result.new_sign_count
        )

    return await _verify_or_delete_challenge(
        ctx.environment, challenge_text, verify_assertion_response
    )


async def try_use_up_assertion(
    environment: Environment, session: AsyncSession, assertion: VerifiedAssertion
) -> bool:
    """Delete the challenge and store the signature counter.

    Returns False if a concurrent request used the challenge or the counter.
    """
    if not await _delete_challenge(session, assertion.challenge):
        return False
    result = await (await session.connection()).execute(
        update(WebauthnKey)
        .where(
            col(WebauthnKey.id) == assertion.key_id,
            col(WebauthnKey.sign_count) == assertion.stored_sign_count,
        )
        .values(sign_count=assertion.new_sign_count, last_used_at=environment.now())
    )
    return result.rowcount == 1


async def _load_answered_challenge_or_none(
    ctx: Context, user_id: int, response: Mapping[str, Any], *, is_registration: bool
) -> str | None:
    """Load the challenge that a response answers.

    Returns None if it is unknown, expired or of another purpose.
    """
    _require_short_members(response)
    statement = select(col(WebauthnChallenge.challenge)).where(
        col(WebauthnChallenge.challenge) == (_challenge_of_response_or_none(response) or ""),
        col(WebauthnChallenge.user_id) == user_id,
        col(WebauthnChallenge.registers).is_(is_registration),
        col(WebauthnChallenge.created_at) > ctx.environment.now() - CHALLENGE_LIFETIME,
    )
    return next((str(row.challenge) for row in await ctx.read(statement)), None)


async def _delete_challenge(session: AsyncSession, challenge_text: str) -> bool:
    """Delete a challenge. Returns False if it was deleted already."""
    result = await (await session.connection()).execute(_delete_challenge_sql(challenge_text))
    return result.rowcount == 1


def _delete_challenge_sql(challenge_text: str) -> Delete:
    return delete(WebauthnChallenge).where(col(WebauthnChallenge.challenge) == challenge_text)


def _require_short_members(response: Mapping[str, Any]) -> None:
    """Raise InvalidInput if a member of the response is longer than any authenticator sends."""
    inner = response.get("response")
    members = [*response.values(), *(inner.values() if isinstance(inner, Mapping) else ())]
    if any(isinstance(part, str) and len(part) > MAX_MEMBER_LENGTH for part in members):
        raise InvalidInput(
            "The response is too long.", constraint=ValidationConstraint.MAX, path=["response"]
        )


def _challenge_of_response_or_none(response: Mapping[str, Any]) -> str | None:
    """Return the challenge that the client data of a response names; None if malformed."""
    authenticator_response = response.get("response")
    try:
        client_data = (
            json.loads(_decode_base64url(authenticator_response["clientDataJSON"]))
            if isinstance(authenticator_response, Mapping)
            else None
        )
        return (
            _normalized_base64url_or_empty(client_data["challenge"])
            if isinstance(client_data, dict)
            else None
        )
    except (ValueError, KeyError, RecursionError):
        return None


def _normalized_base64url_or_empty(value: object) -> str:
    """Return base64url without padding; empty if the value is not base64url."""
    try:
        return encode_base64url(_decode_base64url(value))
    except ValueError:
        return ""


async def _verify_or_delete_challenge(
    environment: Environment, challenge_text: str, verify: Callable[[], Verified]
) -> Verified | None:
    """Return what `verify` returns; None if it raises, and the challenge is deleted."""
    try:
        return await asyncio.to_thread(verify)
    except Exception as problem:  # noqa: BLE001 - untrusted bytes can raise any error
        log.info("Security key rejected", extra={"why": type(problem).__name__})

    def delete_in_transaction(transaction: DatabaseTransaction) -> None:
        transaction.connection.execute(_delete_challenge_sql(challenge_text))

    await environment.run_transaction(delete_in_transaction)
    return None


def _decode_base64url(value: object) -> bytes:
    """Decode base64url with or without padding. Raises ValueError."""
    if not isinstance(value, str) or not value.isascii():
        raise ValueError("not base64url")
    try:
        return base64.urlsafe_b64decode(value + "===")
    except binascii.Error as problem:
        raise ValueError("not base64url") from problem


def _select_keys_of_users(user_ids: Sequence[int]) -> Select[*tuple[Any, ...]]:
    statement = select(*select_columns(WebauthnKey)).where(col(WebauthnKey.user_id).in_(user_ids))
    return statement.order_by(col(WebauthnKey.id))


def _is_visible_sql(ctx: Context) -> ColumnElement[bool]:
    return col(WebauthnKey.user_id).in_(select(col(User.id)).where(is_overseen_user(ctx)))


async def load_visible_keys_of_users(ctx: Context, user_ids: list[int]) -> list[list[ColumnRow]]:
    """Load the keys of these users, oldest first; none for users that the viewer can't oversee."""
    keys_by_user: dict[int, list[ColumnRow]] = {key: [] for key in user_ids}
    for row in await ctx.read(_select_keys_of_users(user_ids).where(_is_visible_sql(ctx))):
        keys_by_user[row.user_id].append(row)
    return [keys_by_user[key] for key in user_ids]


async def load_visible_keys_by_id(ctx: Context, ids: list[int]) -> list[ColumnRow | None]:
    """Load keys by id, in this order; None for a key that the viewer does not see."""
    statement = select(*select_columns(WebauthnKey)).where(_is_visible_sql(ctx))
    return await read_by_keys(ctx, statement, col(WebauthnKey.id), ids)


async def delete_keys_with_challenges_and_count_remaining(
    session: AsyncSession, user_id: int, ids_or_all: Sequence[int] | None = None
) -> int:
    """Delete these keys of the user, or all; return the number left.

    The last one takes the user's challenges with it.
    """
    connection = await session.connection()
    is_of_user = col(WebauthnKey.user_id) == user_id
    condition = (
        is_of_user if ids_or_all is None else is_of_user & col(WebauthnKey.id).in_(ids_or_all)
    )
    await connection.execute(delete(WebauthnKey).where(condition))
    rows = (await connection.execute(select(col(WebauthnKey.id)).where(is_of_user))).all()
    if not rows:
        delete_challenges = delete(WebauthnChallenge).where(
            col(WebauthnChallenge.user_id) == user_id
        )
        await connection.execute(delete_challenges)
    return len(rows)
