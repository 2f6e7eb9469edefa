"""Connections to an ACME server."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from mail.tls.acme_client import AcmeClient, AcmeServer


@asynccontextmanager
async def connect_acme(server: AcmeServer, account_key_pem: str) -> AsyncGenerator[AcmeClient]:
    """Yield a client of an ACME server, and close its connections at the end. Raises AcmeError.

    The exception of a failure would otherwise keep the client and its connections alive.
    """
    client = await asyncio.to_thread(_open_client, server, account_key_pem)
    try:
        yield client
    finally:
        client.close()


def _open_client(server: AcmeServer, account_key_pem: str) -> AcmeClient:
    """Open a client of an ACME server."""
    # The ACME library takes 0.1 s and 6 MB in each process. Most servers never use ACME.
    from mail.tls import acme_library_client  # noqa: PLC0415

    return acme_library_client.open_client(server, account_key_pem)
