"""The endpoint for back-channel logout (OpenID Connect Back-Channel Logout 1.0)."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from graph.oauth.request_parameters import read_form
from graph.oauth.service import NO_STORE, OauthService, oauth_error
from resolvers.identity_providers.account_end import end_access_by_logout_request
from resolvers.identity_providers.errors import ProviderFailure
from resolvers.identity_providers.provider_records import (
    LOGOUT_PATH,
    find_provider_by_domain_name,
)
from resolvers.identity_providers.signed_tokens import InvalidToken, verify_logout_token
from resolvers.identity_providers.single_use import UsedBefore, mark_token_used_or_raise_used_before

# A provider sends many tokens at once, and does not repeat a refused one.
TOKEN_POINTS, INVALID_TOKEN_POINTS = 2, 100


def logout_routes(service: OauthService) -> list[Route]:
    """Return the route that providers send logout tokens to."""

    async def serve(request: Request) -> Response:
        return await _verify_logout_token_and_end_sessions(service, request)

    endpoint = service.charging_json_endpoint(serve, points=TOKEN_POINTS)
    return [Route(f"{LOGOUT_PATH}/{{domain}}", endpoint, methods=["POST"])]


async def _verify_logout_token_and_end_sessions(
    service: OauthService, request: Request
) -> Response:
    """End what the logout token of a domain's provider names.

    The answer is 200 also if the user or session is unknown (section 2.7).
    """
    token = (await read_form(request)).get("logout_token", "")
    environment = service.environment
    try:
        provider = await find_provider_by_domain_name(environment, request.path_params["domain"])
        if provider is None:
            service.charge(request, INVALID_TOKEN_POINTS)
            return oauth_error("invalid_request", "The domain has no identity provider.")
        logout_request = await verify_logout_token(environment, provider, token)
        await mark_token_used_or_raise_used_before(
            environment, f"{provider.id} {logout_request.token_id}"
        )
    except UsedBefore:
        return Response(status_code=200, headers=NO_STORE)
    except InvalidToken as problem:
        service.charge(request, INVALID_TOKEN_POINTS)
        return oauth_error("invalid_request", f"The logout token is not valid: {problem}.")
    except ProviderFailure as failure:
        return oauth_error("invalid_request", str(failure))
    await end_access_by_logout_request(service.context(request), provider, logout_request)
    return Response(status_code=200, headers=NO_STORE)
