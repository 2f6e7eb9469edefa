"""Connections of the ACME client."""

import asyncio
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from mail.tls import acme_client, acme_connection
from tests.support.operations.platform.certificate_operations import private_key_pem
from tests.support.servers.scripted_server import run_scripted_server
from tests.support.time_limits import HANG_SECONDS

RESPONSE_HEADER = "HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


@pytest.mark.parametrize("failing_path", ["/dir", "/nonce"])
async def test_stored_acme_error_keeps_no_connection_open(failing_path: str) -> None:
    closed, base = asyncio.Event(), ""

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = json.dumps({"newNonce": f"{base}/nonce", "newAccount": f"{base}/account"})
        while request := await reader.read(10_000):  # the connection stays open
            path = request.split()[1].decode()
            status = "500 Broken" if path == failing_path else "200 OK"
            writer.write((RESPONSE_HEADER % (status, len(body)) + body).encode())
        closed.set()

    key = private_key_pem(ec.generate_private_key(ec.SECP256R1()))
    async with run_scripted_server(respond) as port:
        base = f"http://127.0.0.1:{port}"
        with pytest.raises(acme_client.AcmeError) as raised:
            async with acme_connection.connect_acme(
                acme_client.AcmeServer(f"{base}/dir"), key
            ) as client:
                await asyncio.to_thread(client.register_or_use_account, None, "")
        async with asyncio.timeout(HANG_SECONDS):
            await closed.wait()
    assert raised.value
