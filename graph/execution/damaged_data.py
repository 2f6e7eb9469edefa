"""The error response and the log line for damaged stored bytes."""

import logging
from collections.abc import Iterable
from typing import Any, NamedTuple

from models.errors import Damaged

log = logging.getLogger(__name__)

MOST_LOGGED = 10  # per log line


class DamageFacts(NamedTuple):
    """The message and the extensions of a GraphQL error for damaged bytes."""

    message: str
    extensions: dict[str, Any]


def damage_facts(request_id: str) -> DamageFacts:
    """Return the error for the client. It has the request ID, but doesn't name the object."""
    refusal = Damaged()
    return DamageFacts(refusal.message, {"code": str(refusal.code), "requestId": request_id})


def log_damage(damages: Iterable[object], request_id: str, path: str) -> None:
    """Log the damaged objects of a request in one line, with the path of the first field."""
    named = list(dict.fromkeys(map(str, damages)))
    extra = {"request_id": request_id, "path": path, "damage": "; ".join(named[:MOST_LOGGED])}
    log.warning("stored bytes are damaged", extra=extra)
