"""Damaged stored bytes: what an answer says of them, and the log."""

import logging
from collections.abc import Iterable
from typing import Any, NamedTuple

from models.errors import Damaged

log = logging.getLogger(__name__)

MOST_LOGGED = 10  # damaged objects that one line names


class DamageFacts(NamedTuple):
    """The message and the extensions of an error for damaged bytes."""

    message: str
    extensions: dict[str, Any]


def damage_facts(request_id: str) -> DamageFacts:
    """Return what the client gets: the id of the request, and nothing about the object."""
    refusal = Damaged()
    return DamageFacts(refusal.message, {"code": str(refusal.code), "requestId": request_id})


def log_damage(damages: Iterable[object], request_id: str, path: str) -> None:
    """Log the objects that a request found damaged, in one line; `path` is the first field."""
    named = list(dict.fromkeys(map(str, damages)))
    extra = {"request_id": request_id, "path": path, "damage": "; ".join(named[:MOST_LOGGED])}
    log.warning("stored bytes are damaged", extra=extra)
