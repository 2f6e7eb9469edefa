"""Test the identity provider of a domain, step by step. Nothing is stored."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from models.errors import NotFound, RateLimited
from models.runtime.concurrency_limits import ConcurrencyLimiter
from resolvers.context import Context
from resolvers.domains.loaders import (
    DomainIdOrName,
    reference_text,
    require_administered_domain_by_ref,
)
from resolvers.identity_providers.errors import ProviderFailure
from resolvers.identity_providers.provider_metadata import CachedProvider, read_provider
from resolvers.identity_providers.provider_records import (
    ProviderConfig,
    callback_url,
    find_provider_of_domain,
)
from resolvers.identity_providers.token_exchange import ReceivedCode, TokenRefused, exchange_code

RUNNING_TESTS = ConcurrencyLimiter(limit=8, limit_per_key=8)  # of this process
REFUSED_CODES = ("invalid_grant", "invalid_request")
UNUSABLE_CODE = "merganser-test"
UNUSABLE_VERIFIER = "merganser-test-" * 4


class IdentityProviderTestStepKind(StrEnum):
    """What a step of the test of an identity provider tests."""

    DISCOVERY = "DISCOVERY"
    PKCE = "PKCE"
    CLIENT = "CLIENT"
    LOGOUT = "LOGOUT"


@dataclass(frozen=True, slots=True)
class ProviderTestResult:
    """The result of a step. Without a problem the step succeeded."""

    kind: IdentityProviderTestStepKind
    problem: str | None = None


async def check_provider(ctx: Context, domain: DomainIdOrName) -> Sequence[ProviderTestResult]:
    """Test the provider of a domain, and return the steps that were reached.

    Raises NotFound if the domain has no provider, RateLimited if too many tests are running.
    """
    row = await require_administered_domain_by_ref(ctx, domain)
    slot = RUNNING_TESTS.acquire(0)
    if slot is None:
        text = "Too many identity providers are tested at the same time."
        raise RateLimited(text, retry_after=timedelta(seconds=10))
    try:
        provider = await find_provider_of_domain(ctx.environment, row.id)
        if provider is None:
            raise NotFound(reference_text(domain), path=["domain"])
        cached = await read_provider(ctx.environment, provider.issuer)
    except ProviderFailure as failure:
        return [ProviderTestResult(IdentityProviderTestStepKind.DISCOVERY, str(failure))]
    else:
        return [
            ProviderTestResult(IdentityProviderTestStepKind.DISCOVERY),
            ProviderTestResult(IdentityProviderTestStepKind.PKCE, _challenge_problem(cached)),
            await _test_client(ctx, provider, cached),
            ProviderTestResult(IdentityProviderTestStepKind.LOGOUT, _logout_problem(cached)),
        ]
    finally:
        slot.release()


def _challenge_problem(cached: CachedProvider) -> str | None:
    methods = cached.metadata.challenge_methods
    if methods is None or "S256" in methods:
        return None
    return "The provider does not support PKCE with S256."


def _logout_problem(cached: CachedProvider) -> str | None:
    if cached.metadata.supports_logout:
        return None
    return "The provider does not say that it supports back-channel logout."


async def _test_client(
    ctx: Context, provider: ProviderConfig, cached: CachedProvider
) -> ProviderTestResult:
    """Send a code that can't be valid: the provider must refuse the code, not the client."""
    kind = IdentityProviderTestStepKind.CLIENT
    redirect_uri = callback_url(ctx.environment.options.public_url, provider.domain_name)
    try:
        received = ReceivedCode(UNUSABLE_CODE, UNUSABLE_VERIFIER, redirect_uri)
        await exchange_code(ctx.environment, provider, cached.metadata, received)
    except TokenRefused as refusal:
        return ProviderTestResult(kind, None if refusal.error in REFUSED_CODES else str(refusal))
    except ProviderFailure as failure:
        return ProviderTestResult(kind, str(failure))
    return ProviderTestResult(kind, "The provider accepted a code that it never issued.")
