"""A call of every mutation that succeeds, on ground that is made ready for it."""

from tests.calls import (
    auth,
    certificates,
    connectors,
    dkim,
    files,
    filters,
    identities,
    keyvalue,
    mail,
    notifications,
    platform,
    quarantine,
    queue,
    routing,
    sieve,
    users,
)
from tests.calls.call import CALLS, Call, Calls

__all__ = [
    "CALLS",
    "Call",
    "Calls",
    "auth",
    "certificates",
    "connectors",
    "dkim",
    "files",
    "filters",
    "identities",
    "keyvalue",
    "mail",
    "notifications",
    "platform",
    "quarantine",
    "queue",
    "routing",
    "sieve",
    "users",
]
