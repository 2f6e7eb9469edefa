"""GET /.well-known/acme-challenge/…: the HTTP-01 challenge of ACME (RFC 8555, section 8.3)."""

import re

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from mail.tls.acme_client import CHALLENGE_PATH, MAX_TOKEN_CHARACTERS
from models.runtime.environment import Environment
from resolvers.certificates import acme_challenges

TOKEN_PATTERN = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_TOKEN_CHARACTERS}}}")  # RFC 8555, section 8.3
NO_STORE = {"Cache-Control": "no-store"}


def challenge_routes(environment: Environment) -> list[Route]:
    """Return the route that serves challenge responses to a certificate authority."""

    async def serve_challenge(request: Request) -> Response:
        token = request.path_params["token"]
        match = (
            await acme_challenges.find_challenge_answer(environment, token)
            if TOKEN_PATTERN.fullmatch(token)
            else None
        )
        if match is None:
            return PlainTextResponse("Challenge not found.\n", 404, NO_STORE)
        return PlainTextResponse(match, 200, NO_STORE, "application/octet-stream")

    return [Route(f"{CHALLENGE_PATH}{{token}}", serve_challenge)]
