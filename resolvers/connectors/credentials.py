"""Encrypt credentials of connectors, refresh access tokens, and open sessions."""

import ssl
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote_plus, urlencode

import orjson
from sqlalchemy import select, update
from sqlmodel import col

from mail.connectors.remote_server import BY_TOKEN, Failure, Server, Stage, said
from mail.connectors.session_thread import Session, session
from mail.network.outbound_http import Gate, Unsent, ask, target
from models.connectors import Connector, Protocol, Security
from models.errors import Invalid
from models.runtime.environment import World
from models.runtime.secret_box import Sealed
from models.store.columns import Picked

EARLY = timedelta(minutes=2)  # a token is refreshed so long before it expires
USUAL = 3600  # if `expires_in` is missing (RFC 6749, section 5.1)
ANSWER = 64 << 10  # bytes
LONGEST = 16 << 10  # characters
FORM = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}


class Unready(Failure):
    """The connector has no usable credential, so no connection is opened."""


def place_of(connector_id: int) -> str:
    """Return the purpose that the secret box binds the secret of a connector to."""
    return f"connector:{connector_id}"


def sealed(world: World, connector_id: int, secret: Mapping[str, Any]) -> str:
    """Encrypt the password, client secret and tokens of a connector for storage."""
    return world.vault.seal(orjson.dumps(dict(secret)).decode(), place_of(connector_id))


def opened(world: World, connector_id: int, secret: str) -> dict[str, Any]:
    """Decrypt the stored secret.

    Raises CredentialFailure if its key is no longer in the key file.
    """
    try:
        found: dict[str, Any] = orjson.loads(world.vault.open(secret, place_of(connector_id)))
    except Sealed:
        raise Unready(Stage.LOGIN, "its password cannot be opened: set it anew") from None
    return found


@asynccontextmanager
async def signed_in(
    world: World, connector: Picked, ways: tuple[Gate, ssl.SSLContext | None], patience: float = 0
) -> AsyncGenerator[Session]:
    """Open a session that is signed in.

    Raises ConnectorFailure if the server or the credential fails.

    `gate_and_ssl` is the gate and the SSL context. `max_timeout` limits the timeout, in seconds,
    if it is not 0. If the server refuses a cached access token, it is refreshed once.
    """
    gate, trust = ways
    largest = world.options.message_max
    async with AsyncExitStack() as stack:
        for anew in (False, True):
            server, kept = await _server(world, connector, gate, anew=anew)
            if patience:
                server = replace(server, timeout=min(server.timeout, patience))
            try:
                there = await stack.enter_async_context(session(server, gate, largest, trust))
                break
            except Failure as problem:
                if not (kept and problem.refused and problem.stage is Stage.LOGIN):
                    raise
        yield there


async def _server(
    world: World, connector: Picked, gate: Gate, *, anew: bool
) -> tuple[Server, bool]:
    """Return the server and whether its credential is a cached access token.

    Raises CredentialFailure.
    """
    known = opened(world, connector.id, connector.secret)
    if not known.get("password"):
        raise Unready(Stage.LOGIN, "it has no password: set one", refused=True)
    if connector.security == Security.PLAIN and not gate.private:
        raise Unready(Stage.CONNECT, "without encryption it may not be reached any more")
    word, kept = known["password"], False
    if connector.mechanism in BY_TOKEN and connector.oauth:
        word, kept = await _token(world, connector, gate, anew=anew)
    server = Server(
        Protocol(connector.protocol),
        connector.host,
        connector.port,
        Security(connector.security),
        connector.mechanism,
        connector.username,
        word,
        float(connector.remote_timeout),
        connector.max_bytes_per_second,
    )
    return server, kept


async def _token(world: World, connector: Picked, gate: Gate, *, anew: bool) -> tuple[str, bool]:
    """Return the access token and whether it is the cached one (RFC 6749, section 6).

    The token is refreshed if it expires soon or with `refresh`. Reads the stored secret again,
    since another process can have replaced the refresh token.
    """
    now = world.now()
    mine = select(col(Connector.secret)).where(col(Connector.id) == connector.id)
    row = next(iter(await world.database.read(mine)), connector)
    known = opened(world, connector.id, row.secret)
    lasts = known.get("access") and datetime.fromisoformat(known["ends"]) > now + EARLY
    if lasts and not anew:
        return str(known["access"]), True
    told = await asked(connector.oauth, known, gate)
    lives = told.get("expires_in", USUAL)
    seconds = lives if isinstance(lives, int) and 0 < lives < 1 << 31 else USUAL
    fresh = {
        **known,
        "access": told["access_token"],
        "ends": (now + timedelta(seconds=seconds)).isoformat(),
    }
    if isinstance(again := told.get("refresh_token"), str) and 0 < len(again) <= LONGEST:
        fresh["password"] = again
    async with world.write() as session:
        same = col(Connector.id) == connector.id, col(Connector.secret) == row.secret
        this = update(Connector).where(*same)
        values = {"secret": sealed(world, connector.id, fresh)}
        await (await session.connection()).execute(this.values(values))
    return str(fresh["access"]), False


async def asked(oauth: Mapping[str, Any], known: Mapping[str, Any], gate: Gate) -> dict[str, Any]:
    """Request an access token with the refresh token, and return the response.

    Raises CredentialFailure if the token server does not answer or refuses.
    """
    form = {
        "grant_type": "refresh_token",
        "refresh_token": known["password"],
        "client_id": oauth["client_id"],
        **({"client_secret": known["client"]} if known.get("client") else {}),
        **({"scope": oauth["scope"]} if oauth.get("scope") else {}),
    }
    try:
        to = target(oauth["token_url"], private=gate.private)
        status, body = await ask(to, FORM, urlencode(form).encode(), gate, ANSWER)
    except (Unsent, Invalid) as problem:
        raise Unready(Stage.LOGIN, f"the server of tokens: {problem}") from None
    try:
        told = orjson.loads(body)
    except orjson.JSONDecodeError:
        told = None
    if not isinstance(told, dict):
        raise Unready(Stage.LOGIN, f"the server of tokens: status {status}, and no JSON")
    token = told.get("access_token")
    if not isinstance(token, str) or not 0 < len(token) <= LONGEST or not token.isprintable():
        why = str(told.get("error_description") or told.get("error") or f"status {status}")
        why = said(_hidden(why, known))  # before the text is cut, which could leave half a secret
        refused = told.get("error") in ("invalid_grant", "invalid_client", "unauthorized_client")
        raise Unready(Stage.LOGIN, f"the server of tokens: {why}", refused=refused)
    return told


def _hidden(text: str, known: Mapping[str, Any]) -> str:
    """Return the text without the secrets, plain or percent-encoded."""
    secret = [str(known[name]) for name in ("password", "client", "access") if known.get(name)]
    for word in sorted({*secret, *map(quote_plus, secret)}, key=len, reverse=True):
        text = text.replace(word, "…")
    return text
