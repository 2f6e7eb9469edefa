"""Requests that name a document by its hash."""

import hashlib
from typing import Any

from models.users.roles import Role
from resolvers.viewer import Viewer

HELLO_QUERY, ECHO_QUERY = "query Hello { hello }", "query Other { echo }"
NOT_FOUND = "PERSISTED_QUERY_NOT_FOUND"
NOT_TRUSTED = "DOCUMENT_NOT_TRUSTED"
BAD_INPUT = "BAD_USER_INPUT"
USER, ANONYMOUS = Viewer(7, Role.USER), Viewer()


def sha256_hex(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def request_by_id(text: str, **extra: Any) -> dict[str, Any]:
    return {"documentId": f"sha256:{sha256_hex(text)}", **extra}


def request_by_apollo_hash(text: str, **extra: Any) -> dict[str, Any]:
    persisted_query = {"version": 1, "sha256Hash": sha256_hex(text)}
    return {"extensions": {"persistedQuery": persisted_query}, **extra}
