"""Check ID tokens (OpenID Connect Core, section 3.1.3.7) and logout tokens of providers."""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from joserfc import jws, jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from models.runtime.environment import Environment
from resolvers.identity_providers.errors import ProviderFailure
from resolvers.identity_providers.provider_metadata import ALGORITHMS, get_cached_or_fetch_provider
from resolvers.identity_providers.provider_records import ProviderConfig

CLOCK_SKEW = timedelta(seconds=60)
MAX_TOKEN_LENGTH = 64 << 10  # characters
MAX_SUBJECT_LENGTH = 255  # characters (OpenID Connect Core, section 2)
MAX_LOGOUT_TOKEN_AGE = timedelta(minutes=5)
LOGOUT_EVENT = "http://schemas.openid.net/event/backchannel-logout"
LOGOUT_TOKEN_TYPES = ("logout+jwt", "jwt")


class InvalidToken(Exception):
    """A signed token is not valid. The text names the rule, without the token."""


@dataclass(frozen=True, slots=True)
class LogoutRequest:
    """A session that the provider ends, or without `session_id` all of a subject."""

    subject: str | None
    session_id: str | None
    token_id: str  # `jti`


async def verify_id_token(
    environment: Environment, provider: ProviderConfig, token: object, nonce: str
) -> dict[str, Any]:
    """Return the claims of an ID token for this provider and nonce.

    Raises ProviderFailure if the token is not valid, or its key can't be read.
    """
    try:
        claims = await _verified_claims(environment, provider, token)
        sent_nonce = claims.get("nonce")
        if not isinstance(sent_nonce, str) or not hmac.compare_digest(
            sent_nonce.encode(errors="replace"), nonce.encode()
        ):
            raise InvalidToken("the nonce is not that of the request")
        require_subject(claims)
    except InvalidToken as problem:
        raise ProviderFailure(f"ID token: {problem}.") from problem
    return claims


async def verify_refreshed_id_token(
    environment: Environment, provider: ProviderConfig, token: object, subject: str
) -> dict[str, Any]:
    """Return the claims of an ID token from a refresh request, which has no nonce.

    Raises ProviderFailure if the token is not valid or is about another subject.
    """
    try:
        claims = await _verified_claims(environment, provider, token)
        if require_subject(claims) != subject:
            raise InvalidToken("the subject is another one")
    except InvalidToken as problem:
        raise ProviderFailure(f"ID token: {problem}.") from problem
    return claims


async def verify_logout_token(
    environment: Environment, provider: ProviderConfig, token: str
) -> LogoutRequest:
    """Return the request of a logout token (OpenID Connect Back-Channel Logout, section 2.6).

    Raises InvalidToken; ProviderFailure if the keys of the provider can't be read.
    """
    now = environment.now()
    claims = await _verified_claims(environment, provider, token, LOGOUT_TOKEN_TYPES)
    events = claims.get("events")
    if not isinstance(events, dict) or not isinstance(events.get(LOGOUT_EVENT), dict):
        raise InvalidToken("the claim events does not name back-channel logout")
    if "nonce" in claims:
        raise InvalidToken("a logout token has no nonce")
    if claims["iat"] < (now - MAX_LOGOUT_TOKEN_AGE - CLOCK_SKEW).timestamp():
        raise InvalidToken("the token is too old")
    if not isinstance(claims.get("jti"), str):
        raise InvalidToken("the claim jti is missing")
    subject, session_id = claims.get("sub"), claims.get("sid")
    if subject is not None:
        require_subject(claims)
    if session_id is not None and (not isinstance(session_id, str) or not session_id):
        raise InvalidToken("the claim sid is no text")
    if subject is None and session_id is None:
        raise InvalidToken("the token names neither sub nor sid")
    return LogoutRequest(subject, session_id, claims["jti"])


def require_subject(claims: Mapping[str, Any]) -> str:
    """Return the claim `sub`. Raises InvalidToken if it is no storable text."""
    subject = claims.get("sub")
    if not isinstance(subject, str) or not 0 < len(subject) <= MAX_SUBJECT_LENGTH:
        raise InvalidToken("the claim sub is missing or too long")
    if not subject.isprintable():
        raise InvalidToken("the claim sub has unprintable characters")
    return subject


async def _verified_claims(
    environment: Environment,
    provider: ProviderConfig,
    token: object,
    types: tuple[str, ...] | None = None,
) -> dict[str, Any]:
    """Return the claims of a token that the provider has signed for this client.

    If its key is unknown, the keys of the provider are read again. Raises InvalidToken and
    ProviderFailure.
    """
    if not isinstance(token, str) or not token.isascii() or len(token) > MAX_TOKEN_LENGTH:
        raise InvalidToken("it is missing or too long")
    header = _header(token)
    if header.get("alg") not in ALGORITHMS:
        raise InvalidToken("the signature algorithm is not allowed")
    if types is not None and str(header.get("typ", "jwt")).lower() not in types:
        raise InvalidToken("the type is not allowed")
    cached = await get_cached_or_fetch_provider(environment, provider.issuer)
    claims = _claims_by_keys(token, header, cached.keys)
    if claims is None:
        cached = await get_cached_or_fetch_provider(environment, provider.issuer, unknown_key=True)
        claims = _claims_by_keys(token, header, cached.keys)
    if claims is None:
        raise InvalidToken("no key of the provider has made the signature")
    _require_valid_claims(environment, provider, claims)
    return claims


def _header(token: str) -> Mapping[str, Any]:
    try:
        return jws.extract_compact(token.encode()).headers()
    except (JoseError, ValueError, TypeError) as problem:
        raise InvalidToken("not a signed JWT") from problem


def _claims_by_keys(token: str, header: Mapping[str, Any], keys: KeySet) -> dict[str, Any] | None:
    """Return the claims if one of the keys has made the signature; None otherwise."""
    kid = header.get("kid")
    for key in keys.keys:
        if kid is not None and key.kid is not None and key.kid != kid:
            continue
        try:
            return dict(jwt.decode(token, key, algorithms=list(ALGORITHMS)).claims)
        except (JoseError, ValueError, TypeError):
            continue  # another key, or a key of another type
    return None


def _require_valid_claims(
    environment: Environment, provider: ProviderConfig, claims: Mapping[str, Any]
) -> None:
    """Check issuer, audience and times. Raises InvalidToken."""
    registry = jwt.JWTClaimsRegistry(
        now=int(environment.now().timestamp()),
        leeway=int(CLOCK_SKEW.total_seconds()),
        iss={"essential": True, "value": provider.issuer},
        aud={"essential": True, "value": provider.row.client_id},
        exp={"essential": True},
        iat={"essential": True},
    )
    try:
        registry.validate(dict(claims))
    except JoseError as problem:
        raise InvalidToken(f"the claim is not valid ({problem.error})") from problem
    audience, party = claims["aud"], claims.get("azp")
    is_shared = isinstance(audience, list) and len(audience) > 1
    if (is_shared or party is not None) and party != provider.row.client_id:
        raise InvalidToken("the claim azp names another client")
