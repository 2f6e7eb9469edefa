"""What a connector signs in with: sealed, and never shown. Tokens are asked for anew in time."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import orjson
from sqlalchemy import update
from sqlmodel import col

from mail.connectors.servers import BY_TOKEN, Failure, Server, Stage, said
from mail.outward import Gate, Unsent, ask, target
from models.columns import Picked
from models.connectors import Connector, Protocol, Security
from models.errors import Invalid
from models.vault import Sealed
from models.world import World

EARLY = timedelta(minutes=2)  # before a token ends another is asked for
USUAL = 3600  # seconds a token lives, where nothing is said (RFC 6749, section 5.1)
ANSWER = 64 << 10  # bytes of what is said about a token
LONGEST = 16 << 10  # characters of a token
FORM = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}


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
        raise Failure(Stage.LOGIN, "its password cannot be opened: set it anew") from None
    return found


async def server_of(world: World, connector: Picked, gate: Gate) -> Server:
    """How the account is reached; Failure where its secret cannot be opened, or no token comes."""
    known = opened(world, connector.id, connector.secret)
    if not known.get("password"):
        raise Failure(Stage.LOGIN, "it has no password: set one", refused=True)
    word = known["password"]
    if connector.mechanism in BY_TOKEN and connector.oauth:
        word = await _token(world, connector, known, gate)
    return Server(
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


async def _token(world: World, connector: Picked, known: dict[str, Any], gate: Gate) -> str:
    """The access token; another one, where it ends soon (RFC 6749, section 6)."""
    now = world.now()
    if known.get("access") and datetime.fromisoformat(known["ends"]) > now + EARLY:
        return str(known["access"])
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
        same = col(Connector.id) == connector.id, col(Connector.secret) == connector.secret
        this = update(Connector).where(*same)
        values = {"secret": sealed(world, connector.id, fresh)}
        await (await session.connection()).execute(this.values(values))
    return str(fresh["access"])


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
        raise Failure(Stage.LOGIN, f"the server of tokens: {problem}") from None
    try:
        told = orjson.loads(body)
    except orjson.JSONDecodeError:
        told = None
    if not isinstance(told, dict):
        raise Failure(Stage.LOGIN, f"the server of tokens: status {status}, and no JSON")
    token = told.get("access_token")
    if not isinstance(token, str) or not 0 < len(token) <= LONGEST or not token.isprintable():
        why = said(told.get("error_description") or told.get("error") or f"status {status}")
        for word in (known["password"], known.get("client")):
            why = why.replace(word, "…") if word else why
        refused = told.get("error") in ("invalid_grant", "invalid_client", "unauthorized_client")
        raise Failure(Stage.LOGIN, f"the server of tokens: {why}", refused=refused)
    return told
