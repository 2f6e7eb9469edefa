"""The error response and the log line for damaged stored bytes."""

import logging
from collections.abc import Iterable
from typing import Any, NamedTuple

from models.errors import DamagedContent

log = logging.getLogger(__name__)

MAX_LOGGED_OBJECTS = 10  # per log line


class DamageErrorBody(NamedTuple):
    """The message and the extensions of a GraphQL error for damaged bytes."""

    message: str
    extensions: dict[str, Any]


def damage_error_body(request_id: str) -> DamageErrorBody:
    """Return the error for the client. It has the request ID, but doesn't name the object."""
    error = DamagedContent()
    return DamageErrorBody(error.message, {"code": str(error.code), "requestId": request_id})


def log_damage(damaged_objects: Iterable[object], request_id: str, first_field_path: str) -> None:
    """Log the damaged objects of a request in one line, with the path of the first field."""
    descriptions = list(dict.fromkeys(map(str, damaged_objects)))
    extra = {
        "request_id": request_id,
        "path": first_field_path,
        "damage": "; ".join(descriptions[:MAX_LOGGED_OBJECTS]),
    }
    log.warning("Stored data is damaged", extra=extra)
