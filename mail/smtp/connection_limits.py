"""Limits of LMTP and SMTP connections."""

import math
from dataclasses import dataclass

from models.runtime.options import MIB, Options

BYTE_BUDGET = 256 * MIB
MAX_CONNECTIONS = 200
MIN_CONNECTIONS = 20  # per process


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """The limits of a listener and its sessions. Sizes are bytes, times seconds."""

    max_message_size: int = 64 * MIB
    byte_budget: int = BYTE_BUDGET  # for all messages that are being received
    disk_reserve: int = 64 * MIB  # bytes that stay free on the disk of the spool files
    max_connections: int = MAX_CONNECTIONS
    max_recipients: int = 100  # per message
    max_mistakes: int = 20  # per session
    max_unknown_recipients: float = math.inf  # per session
    max_commands: float = math.inf  # per session
    command_timeout: float = 300  # for a command and for each piece of a message
    message_timeout: float = math.inf  # for a whole message
    session_timeout: float = math.inf  # for a whole session
    delivery_timeout: float = 600  # for the delivery at the end of DATA


def limits_from_options(options: Options, process_count: int) -> SessionLimits:
    """Return the default limits. A message of the largest size always fits the budget.

    Each process gets its share of the connections, but at least MIN_CONNECTIONS.
    """
    largest = options.message_max_size
    return SessionLimits(
        max_message_size=largest,
        disk_reserve=options.disk_reserve,
        byte_budget=max(BYTE_BUDGET // process_count, largest),
        max_connections=max(MAX_CONNECTIONS // process_count, MIN_CONNECTIONS),
    )
