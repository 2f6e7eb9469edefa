"""HTTP clients for servers without TLS, which load no certificates."""

import ssl
from typing import Any

import httpx

from tests.support.time_limits import HANG_SECONDS

# httpx otherwise reads the certificates of all authorities for each client: 20 ms of CPU time
_WITHOUT_AUTHORITIES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def plain_client(**options: Any) -> httpx.AsyncClient:
    """Return a client, with the other options of `httpx.AsyncClient`."""
    return httpx.AsyncClient(verify=_WITHOUT_AUTHORITIES, **{"timeout": HANG_SECONDS, **options})


def plain_blocking_client(**options: Any) -> httpx.Client:
    """Return a client for code outside an event loop, with the other options of `httpx.Client`."""
    return httpx.Client(verify=_WITHOUT_AUTHORITIES, **{"timeout": HANG_SECONDS, **options})
