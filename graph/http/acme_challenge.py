"""GET /.well-known/acme-challenge/…: the HTTP-01 challenge of ACME (RFC 8555, section 8.3)."""

import re

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from mail.tls.acme_client import TOKEN, WELL_KNOWN
from models.runtime.environment import World
from resolvers.certificates import acme_worker

SPELT = re.compile(rf"[A-Za-z0-9_-]{{1,{TOKEN}}}")  # RFC 8555, section 8.3
HEADERS = {"Cache-Control": "no-store"}


def routes(world: World) -> list[Route]:
    """Return the route that serves challenge responses to a certificate authority."""

    async def challenge(request: Request) -> Response:
        token = request.path_params["token"]
        found = await acme_worker.answer(world, token) if SPELT.fullmatch(token) else None
        if found is None:
            return PlainTextResponse("There is no such challenge.\n", 404, HEADERS)
        return PlainTextResponse(found, 200, HEADERS, "application/octet-stream")

    return [Route(f"{WELL_KNOWN}{{token}}", challenge)]
