"""The MTA-STS policy that sending servers fetch (RFC 8461)."""

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from mail.domains.mta_sts_policy import PATH
from models.runtime.environment import World
from resolvers.domains import mta_sts

HEADERS = {"Cache-Control": "max-age=3600"}


def routes(world: World) -> list[Route]:
    """Return the route of the policy, which is chosen by the host name of the request."""

    async def answer(request: Request) -> Response:
        policy = await mta_sts.of_host(world, request.headers.get("host", ""))
        if policy is None:
            return PlainTextResponse("no policy\n", 404)
        return PlainTextResponse(policy, headers=HEADERS)

    return [Route(PATH, answer)]
