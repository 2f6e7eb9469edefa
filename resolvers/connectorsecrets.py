"""What a connector signs in with: sealed, and never shown."""

from datetime import timedelta
from typing import Any

import orjson

from mail.connectors.servers import Failure, Server, Stage
from mail.outward import Gate
from models.columns import Picked
from models.connectors import Protocol, Security
from models.vault import Sealed
from models.world import World

EARLY = timedelta(minutes=2)  # before a token ends another is asked for


def place_of(connector_id: int) -> str:
    """What the vault seals the secrets of a connector for."""
    return f"connector:{connector_id}"


def sealed(world: World, connector_id: int, secret: dict[str, Any]) -> str:
    """What is stored."""
    return world.vault.seal(orjson.dumps(secret).decode(), place_of(connector_id))


async def server_of(world: World, connector: Picked, gate: Gate) -> Server:
    """How the account is reached; Failure where its secret cannot be opened."""
    del gate
    try:
        known = orjson.loads(world.vault.open(connector.secret, place_of(connector.id)))
    except Sealed:
        raise Failure(Stage.LOGIN, "its password cannot be opened: set it anew") from None
    return Server(
        Protocol(connector.protocol),
        connector.host,
        connector.port,
        Security(connector.security),
        connector.mechanism,
        connector.username,
        known["password"],
        float(connector.remote_timeout),
        connector.max_bytes_per_second,
    )
