"""The MTA-STS policy that sending servers fetch (RFC 8461)."""

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from mail.domains.mta_sts_policy import POLICY_PATH
from models.runtime.environment import Environment
from resolvers.domains import mta_sts

CACHE_HEADERS = {"Cache-Control": "max-age=3600"}


def policy_routes(environment: Environment) -> list[Route]:
    """Return the route of the policy, which is chosen by the host name of the request."""

    async def serve_policy(request: Request) -> Response:
        policy = await mta_sts.policy_text_of_host_or_none(
            environment, request.headers.get("host", "")
        )
        if policy is None:
            return PlainTextResponse("no policy\n", 404)
        return PlainTextResponse(policy, headers=CACHE_HEADERS)

    return [Route(POLICY_PATH, serve_policy)]
