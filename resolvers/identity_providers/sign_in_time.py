"""When a user signed in at the provider: the claim `auth_time` of an ID token."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from models.runtime.environment import Environment
from resolvers.identity_providers.errors import ProviderFailure
from resolvers.identity_providers.signed_tokens import CLOCK_SKEW
from resolvers.oauth.page_states import ProviderStep
from resolvers.oauth.sign_in_conditions import Prompt


def sign_in_time_from_claims(
    environment: Environment, step: ProviderStep, claims: Mapping[str, Any]
) -> datetime:
    """Return when the user signed in at the provider: now without the claim `auth_time`.

    Raises ProviderFailure if the user signed in before the time that the client allows. With
    `max_age` the claim is required (OpenID Connect Core, section 2); with `prompt=login` a provider
    that sends no claim is trusted.
    """
    now, auth_time = environment.now(), claims.get("auth_time")
    if auth_time is None:
        if step.max_age is not None:
            raise ProviderFailure("ID token: the claim auth_time is missing.")
        return now
    latest = (now + CLOCK_SKEW).timestamp()
    is_number = isinstance(auth_time, int | float) and not isinstance(auth_time, bool)
    if not is_number or not 0 <= auth_time <= latest:
        raise ProviderFailure("ID token: the claim auth_time is not a time in the past.")
    oldest = _oldest_sign_in_time(step)
    if oldest is not None and auth_time < oldest - CLOCK_SKEW.total_seconds():
        raise ProviderFailure("The provider did not ask the user to sign in again.")
    return min(now, datetime.fromtimestamp(auth_time, UTC))


def _oldest_sign_in_time(step: ProviderStep) -> float | None:
    """Return the earliest sign-in that the client allows, in seconds since 1970; None: any."""
    if Prompt.LOGIN in step.prompt.split():
        return step.begun_at
    return None if step.max_age is None else step.begun_at - step.max_age
