"""What a connector signs in with: sealed, and never shown. Tokens are asked for anew in time."""

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

EARLY = timedelta(minutes=2)  # before a token ends another is asked for
USUAL = 3600  # seconds a token lives, where nothing is said (RFC 6749, section 5.1)
ANSWER = 64 << 10  # bytes of what is said about a token
LONGEST = 16 << 10  # characters of a token
FORM = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}


class Unready(Failure):
    """There is nothing to sign in with."""


def place_of(connector_id: int) -> str:
    """What the vault seals the secrets of a connector for."""
    return f"connector:{connector_id}"


def sealed(world: World, connector_id: int, secret: Mapping[str, Any]) -> str:
    """What is stored."""
    return world.vault.seal(orjson.dumps(dict(secret)).decode(), place_of(connector_id))


def opened(world: World, connector_id: int, secret: str) -> dict[str, Any]:
    """What was sealed; Failure where that key is gone."""
    try:
        found: dict[str, Any] = orjson.loads(world.vault.open(secret, place_of(connector_id)))
    except Sealed:
        raise Unready(Stage.LOGIN, "its password cannot be opened: set it anew") from None
    return found


@asynccontextmanager
async def signed_in(
    world: World, connector: Picked, ways: tuple[Gate, ssl.SSLContext | None], patience: float = 0
) -> AsyncGenerator[Session]:
    """A session with the account; Failure. Silence is borne for `patience` seconds at most, if set.

    Where a token that was kept is refused, another is asked for, once.
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
    """How the account is reached, and whether by a token that was kept; Failure."""
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
    """The access token, and whether it was kept; another one, where it ends soon, or `anew`.

    RFC 6749, section 6. What is sealed is read now: whoever refreshed it may have got another
    refresh token, and that of the row that the run began with is worth nothing then.
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
    """What the server of tokens says to our refresh token; Failure."""
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
        why = said(_hidden(why, known))  # before it is cut, where half a secret would be left
        refused = told.get("error") in ("invalid_grant", "invalid_client", "unauthorized_client")
        raise Unready(Stage.LOGIN, f"the server of tokens: {why}", refused=refused)
    return told


def _hidden(text: str, known: Mapping[str, Any]) -> str:
    """The text without what is secret, as we know it or as it was sent."""
    secret = [str(known[name]) for name in ("password", "client", "access") if known.get(name)]
    for word in sorted({*secret, *map(quote_plus, secret)}, key=len, reverse=True):
        text = text.replace(word, "…")
    return text
