"""Limits of LMTP and SMTP connections."""

import math
from dataclasses import dataclass

from models.runtime.options import MIB, Options

BUDGET = 256 * MIB
CONNECTIONS = 200
FEWEST = 20  # per process


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a listener and its sessions. Sizes are bytes, times seconds."""

    message_max: int = 64 * MIB
    budget: int = BUDGET  # for all messages that are being received
    disk_reserve: int = 64 * MIB  # bytes that stay free on the disk of the spool files
    connections: int = CONNECTIONS
    recipients: int = 100  # per message
    mistakes: int = 20  # per session
    strangers: float = math.inf  # per session
    commands: float = math.inf  # per session
    timeout: float = 300  # for a command and for each piece of a message
    message_timeout: float = math.inf  # for a whole message
    lifetime: float = math.inf  # for a whole session
    delivery_timeout: float = 600  # for the delivery at the end of DATA


def limits_of(options: Options, share: int) -> Limits:
    """Return the default limits. A message of the largest size always fits the budget.

    Each process gets its share of the connections, but at least MIN_CONNECTIONS.
    """
    largest = options.message_max
    return Limits(
        message_max=largest,
        disk_reserve=options.disk_reserve,
        budget=max(BUDGET // share, largest),
        connections=max(CONNECTIONS // share, FEWEST),
    )
