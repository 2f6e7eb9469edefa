"""The authorization endpoint: the pages for sign-in, second factor and consent."""

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from math import ceil
from typing import Any

from authlib.oauth2 import OAuth2Error
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from graph.http.graphql_request import RequestRejected
from graph.http.http_errors import request_id_from_scope, run_handler_and_convert_errors
from graph.oauth import page_html, provider_pages
from graph.oauth.page_requests import (
    AccessNotAllowed,
    ForeignOrigin,
    NoCookie,
    PageRequest,
    PasswordChangeRequired,
    see_other,
)
from graph.oauth.request_parameters import (
    InvalidParameters,
    query_parameters,
    read_form,
    request_url,
    require_plain_values,
)
from graph.oauth.service import PAGE_POINTS, OauthService
from graph.oauth.texts.languages import texts_for_browser
from graph.oauth.texts.page_texts import OauthPageTexts
from models.auth.security_log import AuthProtocol
from models.errors import (
    AuthenticationFailed,
    Forbidden,
    InvalidInput,
    RateLimited,
    ServiceUnavailable,
)
from models.store.columns import ColumnRow
from resolvers.auth import authentication
from resolvers.auth.credential_status import secret_digest
from resolvers.auth.second_factors import second_factor_check, webauthn
from resolvers.auth.second_factors.second_factor_check import SecondFactorProof, TwoFactorMethod
from resolvers.auth.sign_in import REQUIRED_PROVIDER, SignInRequest
from resolvers.identity_providers.errors import ProviderFailure, SignInRefused
from resolvers.identity_providers.provider_records import CALLBACK_PATH, find_provider_of_login_name
from resolvers.oauth import authorization, page_states
from resolvers.oauth.authorization import (
    AuthorizationRequest,
    InvalidPage,
    SignedInUser,
    TooManyGrants,
    UnknownClient,
)
from resolvers.oauth.issuer import Issuer
from resolvers.oauth.page_states import PageState, PageStep

COOKIE_NAME = "merganser_oauth"
COOKIE_SECONDS = 3600
BROWSER_SECRET_PATTERN = re.compile(r"[0-9a-f]{64}")
MAX_KEY_RESPONSE_LENGTH = 8 << 10  # characters
SIGN_IN = SignInRequest(protocol=AuthProtocol.HTTP, token=True, stays_pending=True)


# The name of the text, and the status, of each expected refusal.
REFUSALS: Mapping[type[Exception], tuple[str, int]] = {
    UnknownClient: ("unknown_client", 400),
    InvalidPage: ("page_expired", 400),
    TooManyGrants: ("too_many_grants", 403),
    NoCookie: ("no_cookie", 400),
    ForeignOrigin: ("foreign_origin", 403),
    AccessNotAllowed: ("access_not_allowed", 403),
    Forbidden: ("access_not_allowed", 403),
    PasswordChangeRequired: ("password_change_required", 403),
}


def page_routes(service: OauthService) -> list[Route]:
    """Return the routes of the pages."""

    async def serve_authorize(request: Request) -> Response:
        return await _charge_and_serve_page_or_error_page(service, request, _serve_authorize)

    async def serve_callback(request: Request) -> Response:
        return await _charge_and_serve_page_or_error_page(
            service, request, _finish_provider_sign_in_and_show_page
        )

    return [
        Route(page_html.FORM_PATH, serve_authorize, methods=["GET", "POST"]),
        Route(f"{CALLBACK_PATH}/{{domain}}", serve_callback, methods=["GET"]),
    ]


async def _charge_and_serve_page_or_error_page(
    service: OauthService, request: Request, serve: Callable[[PageRequest], Awaitable[Response]]
) -> Response:
    """Serve a page or a form, and show refusals and errors on a page."""
    texts = texts_for_browser(request.headers.get("accept-language", ""))

    async def charge_and_serve(request: Request) -> Response:
        service.charge(request, PAGE_POINTS)
        page_request = _page_request(service, request, texts)
        try:
            return await serve(page_request)
        except (ProviderFailure, SignInRefused) as problem:
            return provider_pages.provider_refusal_page(page_request, problem)

    def failure_page(rejection: RequestRejected) -> Response:
        request_id = request_id_from_scope(request.scope, service.environment)
        message = texts.internal_error.format(id=request_id)
        status, headers = rejection.status, rejection.headers
        return page_html.error_page(texts, message, status=status, headers=headers)

    return await run_handler_and_convert_errors(
        request,
        service.environment,
        charge_and_serve,
        endpoint="oauth",
        error_response=partial(_refusal_page, texts),
        rejection_response=failure_page,
    )


def _page_request(service: OauthService, request: Request, texts: OauthPageTexts) -> PageRequest:
    """Return the request with the secret in the cookie of its browser."""
    issuer = service.issuer()
    cookie = request.cookies.get(_cookie_name(issuer), "")
    browser_secret = cookie if BROWSER_SECRET_PATTERN.fullmatch(cookie) else ""
    return PageRequest(request, service.context(request), issuer, browser_secret, texts)


async def _serve_authorize(page_request: PageRequest) -> Response:
    if page_request.request.method == "POST":
        return await _respond_to_submitted_form(page_request)
    return await _begin_authorization(page_request)


async def _finish_provider_sign_in_and_show_page(page_request: PageRequest) -> Response:
    """Continue with the user who comes back from an identity provider."""
    signed_in = await provider_pages.finish_provider_step(page_request)
    auth_request = await _request_of_state(page_request, signed_in.state)
    factors = second_factor_check.enabled_methods(signed_in.user)
    return await _show_factor_or_consent_page(
        page_request, auth_request, signed_in.state, signed_in.user, needs_factor=bool(factors)
    )


def _refusal_page(texts: OauthPageTexts, problem: Exception) -> Response | None:
    """Return the page for an expected refusal; None for any other exception."""
    for kind, (text_name, status) in REFUSALS.items():
        if isinstance(problem, kind):
            return page_html.error_page(texts, getattr(texts, text_name), status=status)
    if isinstance(problem, InvalidParameters):
        return page_html.error_page(texts, texts.too_large, status=problem.status)
    if isinstance(problem, RateLimited):
        seconds = ceil(problem.retry_after.total_seconds())
        message = texts.too_many_attempts.format(minutes=max(1, ceil(seconds / 60)))
        headers = {"Retry-After": str(seconds)}
        return page_html.error_page(texts, message, status=429, headers=headers)
    if isinstance(problem, ServiceUnavailable):
        return page_html.error_page(texts, problem.message, status=503)
    return None


async def _begin_authorization(page_request: PageRequest) -> Response:
    """Check an authorization request and show the sign-in page, or redirect with an error."""
    parameters = query_parameters(page_request.request)
    ctx, issuer = page_request.ctx, page_request.issuer
    try:
        auth_request = await authorization.validated_authorization_request(ctx, issuer, parameters)
    except OAuth2Error as error:
        return see_other(authorization.error_redirect_url(issuer, error))
    if not page_request.browser_secret:
        page_request.browser_secret = ctx.environment.random_bytes(32).hex()
    state = page_states.new_page_state(ctx.environment, parameters)
    response = await provider_pages.show_sign_in_page(
        page_request, auth_request, state, username=auth_request.initial_username
    )
    response.set_cookie(
        _cookie_name(issuer),
        page_request.browser_secret,
        max_age=COOKIE_SECONDS,
        path="/",
        secure=issuer.is_https,
        httponly=True,
        samesite="lax",
    )
    return response


def _cookie_name(issuer: Issuer) -> str:
    """Return the name of the cookie. Browsers accept the prefix `__Host-` only over https."""
    return f"__Host-{COOKIE_NAME}" if issuer.is_https else COOKIE_NAME


async def _respond_to_submitted_form(page_request: PageRequest) -> Response:
    """Handle the form of a page by the step in its state, or an authorization request by POST."""
    form = await read_form(page_request.request)
    if "client_id" in form:  # no page has this field
        # as GET: browsers send no SameSite cookie with a POST of another site
        return see_other(request_url(page_html.FORM_PATH, require_plain_values(form)))
    _require_own_origin(page_request)
    state = page_request.decrypt(form.get("state", ""))
    auth_request = await _request_of_state(page_request, state)
    match state.step:
        case PageStep.SIGN_IN:
            return await _check_password_and_show_next_page(page_request, auth_request, state, form)
        case PageStep.SECOND_FACTOR:
            return await _verify_factor_and_show_consent_page(
                page_request, auth_request, state, form
            )
        case PageStep.CONSENT:
            return await _redirect_after_consent_choice(page_request, auth_request, state, form)
        case PageStep.PROVIDER:  # no page has it in its form
            raise InvalidPage


async def _request_of_state(page_request: PageRequest, state: PageState) -> AuthorizationRequest:
    """Return the authorization request of a state. Raises InvalidPage."""
    try:
        return await authorization.validated_authorization_request(
            page_request.ctx, page_request.issuer, state.parameters
        )
    except OAuth2Error as problem:  # the client was changed since the page was shown
        raise InvalidPage from problem


def _require_own_origin(page_request: PageRequest) -> None:
    """Raise ForeignOrigin if a page of another origin sent the form."""
    headers = page_request.request.headers
    origin = headers.get("origin")
    if origin is not None and origin.lower() != page_request.issuer.origin:
        raise ForeignOrigin
    if headers.get("sec-fetch-site", "same-origin") != "same-origin":
        raise ForeignOrigin


async def _check_password_and_show_next_page(
    page_request: PageRequest,
    auth_request: AuthorizationRequest,
    state: PageState,
    form: Mapping[str, str],
) -> Response:
    """Check username and password, and show the next page."""
    ctx, username = page_request.ctx, form.get("username", "")
    if form.get("choice") == provider_pages.ORGANIZATION_CHOICE:
        return await provider_pages.show_redirect_page_by_address_domain(
            page_request, auth_request, state, username
        )
    try:
        signed_in = await authentication.authenticate_user_by_password(
            ctx, username, form.get("password", ""), SIGN_IN
        )
    except (AuthenticationFailed, InvalidInput):
        return await provider_pages.show_sign_in_page(
            page_request,
            auth_request,
            state,
            problem=page_request.texts.wrong_password,
            username=username,
            status=403,
        )
    except Forbidden as problem:
        if problem.requires != REQUIRED_PROVIDER:
            raise
        return await _send_to_required_provider(page_request, auth_request, state, username)
    if signed_in.password_change_required:
        raise PasswordChangeRequired
    user, digest = signed_in.user, secret_digest(signed_in.token or "")
    state = state.after_sign_in(
        SignedInUser(user.id, user.auth_version, ctx.environment.now(), digest)
    )
    return await _show_factor_or_consent_page(
        page_request,
        auth_request,
        state,
        user,
        needs_factor=bool(signed_in.required_two_factor_methods),
    )


async def _send_to_required_provider(
    page_request: PageRequest,
    auth_request: AuthorizationRequest,
    state: PageState,
    username: str,
) -> Response:
    """Send a user whose password is right to the provider that the domain requires."""
    provider = await find_provider_of_login_name(page_request.ctx.environment, username)
    if provider is None:  # it was deleted in between
        raise InvalidPage
    return await provider_pages.show_redirect_page_to_provider(
        page_request, auth_request, state, provider, username
    )


async def _show_factor_or_consent_page(
    page_request: PageRequest,
    auth_request: AuthorizationRequest,
    state: PageState,
    user: ColumnRow,
    *,
    needs_factor: bool,
) -> Response:
    """Show the page for the second factor, or else for the consent.

    A user who is not that of the `id_token_hint` is sent back to the client. Raises
    AccessNotAllowed.
    """
    issuer, subject = page_request.issuer, auth_request.conditions.subject
    if subject is not None and subject != issuer.subject_of_user(user.id):
        return see_other(authorization.login_required_error_redirect_url(issuer, auth_request))
    page_request.use_language_of(user)
    has_scopes = bool(auth_request.for_role(user.role).scopes)
    if not has_scopes or (auth_request.needs_http and not user.webmail_access):
        raise AccessNotAllowed
    if needs_factor:
        state = replace(state, step=PageStep.SECOND_FACTOR)
        return await _create_challenge_and_show_factor_page(page_request, auth_request, state, user)
    return _consent_page(page_request, auth_request, state, user)


async def _create_challenge_and_show_factor_page(
    page_request: PageRequest,
    auth_request: AuthorizationRequest,
    state: PageState,
    user: ColumnRow,
    *,
    problem: str = "",
    status: int = 200,
) -> Response:
    """Show the page for the second factor."""
    key_options = None
    if TwoFactorMethod.WEBAUTHN in second_factor_check.enabled_methods(user):
        key_options = await webauthn.create_challenge_options(
            page_request.ctx, user, webauthn.Ceremony.AUTHENTICATION
        )
    return page_html.second_factor_page(
        page_request.texts,
        auth_request,
        page_request.encrypt(state),
        key_options=key_options,
        problem=problem,
        status=status,
    )


async def _verify_factor_and_show_consent_page(
    page_request: PageRequest,
    auth_request: AuthorizationRequest,
    state: PageState,
    form: Mapping[str, str],
) -> Response:
    """Check the second factor, and show the consent page."""
    ctx = page_request.ctx
    user = await authorization.require_unchanged_signed_in_user(ctx, state.signed_in_user)
    page_request.use_language_of(user)
    try:
        proof = SecondFactorProof(
            form.get("code"), _parse_security_key_response(form.get("webauthn", ""))
        )
        if proof.webauthn is not None:
            proof = replace(proof, totp=None)
        if not proof.is_given:
            raise AuthenticationFailed
        await second_factor_check.verify_and_use_up_second_factor(ctx, user, proof)
    except (AuthenticationFailed, InvalidInput):
        problem = page_request.texts.wrong_code
        return await _create_challenge_and_show_factor_page(
            page_request, auth_request, state, user, problem=problem, status=403
        )
    return _consent_page(page_request, auth_request, state, user)


def _parse_security_key_response(text: str) -> dict[str, Any] | None:
    """Return the response of a security key; None without one.

    Raises AuthenticationFailed if it is no JSON object.
    """
    if not text:
        return None
    try:
        response = json.loads(text[:MAX_KEY_RESPONSE_LENGTH])
    except (ValueError, RecursionError) as problem:
        raise AuthenticationFailed from problem
    if not isinstance(response, dict):
        raise AuthenticationFailed
    return response


def _consent_page(
    page_request: PageRequest, auth_request: AuthorizationRequest, state: PageState, user: ColumnRow
) -> Response:
    """Show the page that asks for consent."""
    request = auth_request.for_role(user.role)
    state = replace(state, step=PageStep.CONSENT, shown_scopes=request.scopes)
    state_text = page_request.encrypt(state)
    return page_html.consent_page(page_request.texts, request, state_text, user.username)


async def _redirect_after_consent_choice(
    page_request: PageRequest,
    auth_request: AuthorizationRequest,
    state: PageState,
    form: Mapping[str, str],
) -> Response:
    """Redirect to the client with a code or a refusal, or begin again with another account."""
    ctx, issuer = page_request.ctx, page_request.issuer
    match form.get("choice"):
        case "allow":
            shown_request = auth_request.limited_to(state.shown_scopes)
            url = await authorization.grant_access_and_return_redirect_url(
                ctx, issuer, shown_request, state.signed_in_user, state.page_id
            )
            return see_other(url)
        case "deny":
            return see_other(authorization.denial_redirect_url(issuer, auth_request))
        case "other":
            new_state = page_states.new_page_state(ctx.environment, state.parameters)
            return await provider_pages.show_sign_in_page(page_request, auth_request, new_state)
        case _:
            raise InvalidPage
