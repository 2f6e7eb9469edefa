"""How much may come by LMTP or SMTP at once."""

import math
from dataclasses import dataclass

from models.runtime.options import MIB, Options

BUDGET = 256 * MIB
CONNECTIONS = 200
FEWEST = 20  # of one process


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a client may ask of us. Sizes are bytes, times seconds."""

    message_max: int = 64 * MIB
    budget: int = BUDGET  # of all messages on their way in
    disk_reserve: int = 64 * MIB  # that stay free on the disk of the spool
    connections: int = CONNECTIONS
    recipients: int = 100  # of one message
    mistakes: int = 20  # of one session
    strangers: float = math.inf  # recipients of one session whom nobody knows
    commands: float = math.inf  # of one session
    timeout: float = 300  # for a command, and for the next piece of a message
    message_timeout: float = math.inf  # for all pieces of a message
    lifetime: float = math.inf  # of a session
    delivery_timeout: float = 600  # that clients wait at the end of DATA


def limits_of(options: Options, share: int) -> Limits:
    """The usual ones; a message of the largest size always fits the budget.

    Of so many processes each lets in its share, but FEWEST sessions at least.
    """
    largest = options.message_max
    return Limits(
        message_max=largest,
        disk_reserve=options.disk_reserve,
        budget=max(BUDGET // share, largest),
        connections=max(CONNECTIONS // share, FEWEST),
    )
