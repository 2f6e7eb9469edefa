"""Sign-in at the identity provider of a domain, as a step between the pages of OAuth."""

import logging
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from starlette.responses import Response

from graph.oauth import page_html
from graph.oauth.page_requests import PageRequest
from graph.oauth.request_parameters import InvalidParameters, query_parameters, request_url
from models.store.columns import ColumnRow
from resolvers.identity_providers import sign_in as provider_sign_in
from resolvers.identity_providers.errors import ProviderFailure, SignInRefusal, SignInRefused
from resolvers.identity_providers.provider_records import (
    ProviderConfig,
    callback_url,
    find_provider_by_domain_name,
    find_provider_by_id,
    has_any_provider,
)
from resolvers.identity_providers.sign_in import ProviderRequest
from resolvers.identity_providers.single_use import UsedBefore
from resolvers.oauth.authorization import AuthorizationRequest, InvalidPage, SignedInUser
from resolvers.oauth.page_states import PageState, PageStep

log = logging.getLogger(__name__)

ORGANIZATION_CHOICE = "organization"
MAX_CALLBACK_QUERY_BYTES = 32 << 10
MAX_CALLBACK_PARAMETER_LENGTH = 12 << 10  # characters
TEXT_BY_REFUSAL = {
    SignInRefusal.DENIED: "organization_denied",
    SignInRefusal.ENDED: "account_ended",
    SignInRefusal.EXPIRED: "page_expired",
}


@dataclass(frozen=True, slots=True)
class CallbackSignIn:
    """The user who has come back from the provider, and the state of the next page."""

    user: ColumnRow
    state: PageState


async def show_sign_in_page(
    page_request: PageRequest,
    auth_request: AuthorizationRequest,
    state: PageState,
    *,
    problem: str = "",
    username: str = "",
    status: int = 200,
) -> Response:
    """Show the sign-in page, with the choice of an organization if a domain has a provider."""
    return page_html.sign_in_page(
        page_request.texts,
        auth_request,
        page_request.encrypt(state),
        has_organizations=await has_any_provider(page_request.ctx.environment),
        problem=problem,
        username=username,
        status=status,
    )


async def show_redirect_page_by_address_domain(
    page_request: PageRequest,
    auth_request: AuthorizationRequest,
    state: PageState,
    address: str,
) -> Response:
    """Send the browser to the provider of an address's domain, or show the sign-in page again."""
    texts, environment = page_request.texts, page_request.ctx.environment
    domain = address.strip().rpartition("@")[2] if "@" in address else ""
    provider = await find_provider_by_domain_name(environment, domain) if domain else None
    if provider is None:
        problem = texts.no_organization if domain else texts.enter_address
        return await show_sign_in_page(
            page_request, auth_request, state, problem=problem, username=address, status=400
        )
    return await show_redirect_page_to_provider(
        page_request, auth_request, state, provider, address
    )


async def show_redirect_page_to_provider(
    page_request: PageRequest,
    auth_request: AuthorizationRequest,
    state: PageState,
    provider: ProviderConfig,
    login_hint: str,
) -> Response:
    """Show the page that sends the browser to a provider.

    It is a page and no redirect, since `form-action` of the page before does not name the
    provider. Raises ProviderFailure.
    """
    environment = page_request.ctx.environment
    step = provider_sign_in.new_provider_step(environment, provider, auth_request.conditions)
    request = ProviderRequest(
        step,
        page_request.encrypt(replace(state, step=PageStep.PROVIDER, provider_step=step)),
        callback_url(page_request.issuer.url, provider.domain_name),
        login_hint,
    )
    url = await provider_sign_in.sign_in_url(environment, provider, request)
    return page_html.identity_provider_redirect_page(page_request.texts, url, urlsplit(url).netloc)


async def finish_provider_step(page_request: PageRequest) -> CallbackSignIn:
    """Return the user of the provider's response, and the state after the sign-in.

    Raises InvalidPage if the response is for another page or provider, ProviderFailure and
    SignInRefused.
    """
    parameters = query_parameters(
        page_request.request,
        max_bytes=MAX_CALLBACK_QUERY_BYTES,
        max_length=MAX_CALLBACK_PARAMETER_LENGTH,
    )
    ctx = page_request.ctx
    state = page_request.decrypt(parameters.get("state", ""))
    step, provider = state.provider_step, None
    if state.step is PageStep.PROVIDER and step is not None:
        provider = await find_provider_by_id(ctx.environment, step.provider_id)
    if step is None or provider is None:
        raise InvalidPage
    if not provider.is_same_client(step.issuer, step.client_id):
        raise InvalidPage
    redirect_uri = callback_url(page_request.issuer.url, provider.domain_name)
    if page_request.request.url.path != urlsplit(redirect_uri).path:  # a mix-up of two providers
        raise InvalidPage
    try:
        signed_in = await provider_sign_in.finish_sign_in(
            ctx, provider, step, parameters, redirect_uri
        )
    except UsedBefore as problem:  # the page was reloaded
        raise InvalidPage from problem
    user = signed_in.user
    next_state = state.after_sign_in(
        SignedInUser(
            user.id,
            user.auth_version,
            signed_in.authenticated_at,
            signed_in.token_digest,
            signed_in.family_id,
        )
    )
    return CallbackSignIn(user, next_state)


def provider_refusal_page(
    page_request: PageRequest, problem: ProviderFailure | SignInRefused
) -> Response:
    """Return the page for a failed sign-in at a provider, with a link to the sign-in page."""
    texts = page_request.texts
    if isinstance(problem, ProviderFailure):
        log.warning("Identity provider failed", extra={"error": str(problem)})
        message, status = texts.organization_failed.format(reason=str(problem)), 502
    else:
        fields = {"reason": problem.reason, "error": problem.detail}
        log.info("Sign-in at identity provider refused", extra=fields)
        name = TEXT_BY_REFUSAL.get(problem.reason, "no_account")
        message, status = getattr(texts, name), 403
    url = _url_of_sign_in_page(page_request)
    return page_html.error_page(texts, message, status=status, sign_in_url=url)


def _url_of_sign_in_page(page_request: PageRequest) -> str:
    """Return the URL that begins the authorization again; empty if it is not known or too long."""
    parameters = page_request.authorization_parameters
    if not parameters:
        return ""
    try:
        return request_url(page_html.FORM_PATH, parameters)
    except InvalidParameters:
        return ""
