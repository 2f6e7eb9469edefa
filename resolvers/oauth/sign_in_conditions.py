"""Parameters of an authorization request that say who must sign in, and when.

They are `prompt`, `max_age` and `id_token_hint` (OpenID Connect Core, section 3.1.2.1). Every
authorization asks for a sign-in and for consent, so `login`, `consent` and `select_account` need no
other page here. They matter at an identity provider, which can know its user already.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from authlib.oauth2.rfc6749 import InvalidRequestError
from authlib.oidc.core.errors import LoginRequiredError
from joserfc import jws, jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey

from models.runtime.environment import Environment
from resolvers.oauth.issuer import Issuer
from resolvers.oauth.signing_keys import ALGORITHM, load_public_key

MAX_AGE_DIGITS = 9  # of max_age: at most 31 years
WRONG_HINT = "The id_token_hint is not an ID token of this server, or is too old"


class Prompt(StrEnum):
    """A value of the parameter `prompt`."""

    NONE = "none"
    LOGIN = "login"
    CONSENT = "consent"
    SELECT_ACCOUNT = "select_account"


@dataclass(frozen=True, slots=True)
class SignInConditions:
    """Who must sign in, and when."""

    prompts: frozenset[Prompt] = frozenset()
    max_age: int | None = None  # seconds since the sign-in at the identity provider
    subject: str | None = None  # `sub` of the only user who can sign in
    username: str = ""  # username or address of this user, if the ID token has one


async def read_sign_in_conditions(
    environment: Environment, issuer: Issuer, parameters: Mapping[str, str]
) -> SignInConditions:
    """Return the conditions of an authorization request.

    Raises InvalidRequestError for a wrong parameter. Raises LoginRequiredError for `prompt=none`:
    the server keeps no user signed in between two authorizations.
    """
    prompts = _prompts(parameters.get("prompt", ""))
    max_age = _max_age(parameters.get("max_age"))
    claims = await _claims_of_hint(environment, issuer, parameters.get("id_token_hint"))
    if Prompt.NONE in prompts:
        raise LoginRequiredError
    username = claims.get("preferred_username") or claims.get("email") or ""
    return SignInConditions(prompts, max_age, claims.get("sub"), username)


def _prompts(text: str) -> frozenset[Prompt]:
    """Return the values of `prompt`. Raises InvalidRequestError."""
    values = text.split()
    if not set(values) <= set(Prompt):
        raise InvalidRequestError(f"The prompt must be one of {', '.join(Prompt)}")
    if Prompt.NONE in values and len(values) > 1:
        raise InvalidRequestError("The prompt none must not be combined with another value")
    return frozenset(map(Prompt, values))


def _max_age(text: str | None) -> int | None:
    """Return the seconds of `max_age`; None without it. Raises InvalidRequestError."""
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= MAX_AGE_DIGITS):
        raise InvalidRequestError("The max_age must be a number of seconds, at least 0")
    return int(text)


async def _claims_of_hint(
    environment: Environment, issuer: Issuer, token: str | None
) -> Mapping[str, Any]:
    """Return the claims of an ID token that this server has signed; none without a token.

    The token can be expired, and be made for another client. Raises InvalidRequestError.
    """
    if token is None:
        return {}
    try:
        header = jws.extract_compact(token.encode()).headers()
        key = await load_public_key(environment, str(header.get("kid")))
        if key is None:
            raise InvalidRequestError(WRONG_HINT)
        claims = jwt.decode(token, ECKey.import_key(key), algorithms=[ALGORITHM]).claims
    except (JoseError, ValueError, TypeError) as problem:
        raise InvalidRequestError(WRONG_HINT) from problem
    if claims.get("iss") != issuer.url or not isinstance(claims.get("sub"), str):
        raise InvalidRequestError(WRONG_HINT)
    return claims
