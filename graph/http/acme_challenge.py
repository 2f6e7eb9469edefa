"""GET /.well-known/acme-challenge/…: the HTTP-01 challenge of ACME (RFC 8555, section 8.3)."""

import re

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from mail.tls.acme_client import CHALLENGE_PATH, MAX_TOKEN_CHARACTERS
from models.runtime.environment import Environment
from resolvers.certificates import acme_worker

TOKEN_PATTERN = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_TOKEN_CHARACTERS}}}")  # RFC 8555, section 8.3
NO_STORE = {"Cache-Control": "no-store"}


def challenge_routes(environment: Environment) -> list[Route]:
    """Return the route that serves challenge responses to a certificate authority."""

    async def serve_challenge(request: Request) -> Response:
        token = request.path_params["token"]
        found = (
            await acme_worker.find_challenge_answer(environment, token)
            if TOKEN_PATTERN.fullmatch(token)
            else None
        )
        if found is None:
            return PlainTextResponse("There is no such challenge.\n", 404, NO_STORE)
        return PlainTextResponse(found, 200, NO_STORE, "application/octet-stream")

    return [Route(f"{CHALLENGE_PATH}{{token}}", serve_challenge)]
