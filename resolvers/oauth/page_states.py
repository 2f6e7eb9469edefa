"""The state of an authorization between two pages: encrypted, in a hidden field of the form.

The text can only be decrypted together with the cookie of the browser it was made for. So it is
also the CSRF token of its form. Each tab has its own text.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum

from models.runtime.environment import Environment
from models.runtime.secret_box import DecryptionError
from resolvers.auth.credential_status import secret_digest
from resolvers.oauth.authorization import InvalidPage, SignedInUser

PAGE_LIFETIME = timedelta(minutes=15)
MAX_STATE_LENGTH = 12_000  # characters


class PageStep(StrEnum):
    """The page that a form belongs to."""

    SIGN_IN = "SIGN_IN"
    SECOND_FACTOR = "SECOND_FACTOR"
    CONSENT = "CONSENT"
    PROVIDER = "PROVIDER"  # the browser is at the identity provider of the user's domain


@dataclass(frozen=True, slots=True)
class ProviderStep:
    """A request to an identity provider that waits for its response."""

    provider_id: int
    issuer: str
    client_id: str
    nonce: str
    verifier: str = field(repr=False)  # of PKCE
    begun_at: float  # seconds since 1970
    prompt: str = ""  # values of `prompt` for the provider
    max_age: int | None = None  # seconds between the sign-in at the provider and `begun_at`


@dataclass(frozen=True, slots=True)
class PageState:
    """The state of an authorization on one page."""

    step: PageStep
    parameters: Mapping[str, str]  # of the authorization request
    page_id: str  # the same on all pages of an authorization
    expires_at: datetime
    user_id: int | None = None
    auth_version: int = 0
    signed_in_at: datetime | None = None
    token_digest: str = ""  # of the pending token of the sign-in
    family_id: int | None = None  # of a sign-in at an identity provider
    provider_step: ProviderStep | None = None
    shown_scopes: Sequence[str] = ()  # on the consent page

    @property
    def signed_in_user(self) -> SignedInUser:
        """The user who has signed in. Raises InvalidPage before that."""
        if self.user_id is None or self.signed_in_at is None:
            raise InvalidPage
        return SignedInUser(
            self.user_id, self.auth_version, self.signed_in_at, self.token_digest, self.family_id
        )

    def after_sign_in(self, signed_in: SignedInUser) -> "PageState":
        """Return the state after a sign-in by password or at an identity provider."""
        return replace(self, **asdict(signed_in), provider_step=None)


def new_page_state(environment: Environment, parameters: Mapping[str, str]) -> PageState:
    """Return the state of the first page of an authorization."""
    page_id = environment.random_bytes(16).hex()
    expires_at = environment.now() + PAGE_LIFETIME
    return PageState(PageStep.SIGN_IN, dict(parameters), page_id, expires_at)


def encrypt_page_state(environment: Environment, state: PageState, browser_secret: str) -> str:
    """Return the text of a state for the browser with this cookie."""
    values = asdict(state)
    values["expires_at"] = state.expires_at.timestamp()
    values["signed_in_at"] = state.signed_in_at and state.signed_in_at.timestamp()
    return environment.secret_box.encrypt(json.dumps(values), _context(browser_secret))


def decrypt_page_state(environment: Environment, text: str, browser_secret: str) -> PageState:
    """Return the state of a text.

    Raises InvalidPage if it has expired, was changed, or was made for another browser.
    """
    if not browser_secret or len(text) > MAX_STATE_LENGTH:
        raise InvalidPage
    try:
        values = json.loads(environment.secret_box.decrypt(text, _context(browser_secret)))
    except DecryptionError as problem:
        raise InvalidPage from problem
    now = environment.now()
    zone = now.tzinfo
    values["step"] = PageStep(values["step"])
    values["expires_at"] = datetime.fromtimestamp(values["expires_at"], zone)
    if values["signed_in_at"] is not None:
        values["signed_in_at"] = datetime.fromtimestamp(values["signed_in_at"], zone)
    if values["provider_step"] is not None:
        values["provider_step"] = ProviderStep(**values["provider_step"])
    state = PageState(**values)
    if now >= state.expires_at:
        raise InvalidPage
    return state


def _context(browser_secret: str) -> str:
    return f"oauth page:{secret_digest(browser_secret)}"
