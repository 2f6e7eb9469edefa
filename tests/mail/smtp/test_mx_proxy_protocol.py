"""The PROXY protocol at the MX listener."""

import pytest

from mail.smtp.mx_server import MxListener
from tests.support.mail_servers.mx_listeners import (
    OpenMxListener,
    RecordingBackend,
    authority,
    backend,
    mx_listener,
    open_listener,
    send_message,
)
from tests.support.mail_servers.smtp_client import CertificateAuthority, connect_smtp

__all__ = ["authority", "backend", "mx_listener", "open_listener"]
PROXY_V2_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
PROXY_HEADERS = [
    (b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 25\r\n", "192.0.2.7"),
    (b"PROXY TCP6 2001:db8::7 2001:db8::1 4711 25\r\n", "2001:db8::7"),
    (b"PROXY UNKNOWN\r\n", "127.0.0.1"),
    (
        PROXY_V2_SIGNATURE + b"\x21\x11\x00\x0c\xc0\x00\x02\x07\xc0\x00\x02\x01\x12\x67\x00\x19",
        "192.0.2.7",
    ),
    (
        PROXY_V2_SIGNATURE
        + b"\x21\x21\x00\x24"
        + bytes.fromhex("20010db8")
        + bytes(11)
        + b"\x07"
        + bytes(20),
        "2001:db8::7",
    ),
    (PROXY_V2_SIGNATURE + b"\x20\x00\x00\x00", "127.0.0.1"),
]


@pytest.mark.parametrize(("proxy_header", "ip"), PROXY_HEADERS)
async def test_proxy_header_sets_client_address(
    open_listener: OpenMxListener, backend: RecordingBackend, proxy_header: bytes, ip: str
) -> None:
    mx_listener = await open_listener(proxy_networks=("127.0.0.0/8",))
    client = await connect_smtp(mx_listener.port, greet=False)
    client.send_bytes(proxy_header + b"EHLO x\r\n")
    assert (await client.read_reply()).startswith("220")
    assert (await client.read_reply()).startswith("250-")
    await send_message(client, b"\r\nHello\r\n", "ada@example.org")
    assert backend.arrivals[0].client.ip_address == ip
    await client.close()


@pytest.mark.parametrize(
    "proxy_header",
    [
        b"EHLO mx.example.net\r\n",
        b"PROXY TCP4 2001:db8::7 2001:db8::1 4711 25\r\n",
        b"PROXY TCP4 me you 4711 25\r\n",
        b"PROXY TCP4 " + b"1" * 200 + b"\r\n",
        PROXY_V2_SIGNATURE + b"\x31\x11\x00\x0c" + bytes(12),
        PROXY_V2_SIGNATURE + b"\x21\x11\xff\xff",
        PROXY_V2_SIGNATURE + b"\x21\x11\x00\x02\x00\x00",
    ],
)
async def test_invalid_proxy_header_closes_connection(
    open_listener: OpenMxListener, proxy_header: bytes
) -> None:
    mx_listener = await open_listener(proxy_networks=("127.0.0.0/8",))
    client = await connect_smtp(mx_listener.port, greet=False)
    client.send_bytes(proxy_header)
    assert await client.read_until_closed() == b""
    await client.close()


async def test_proxy_header_of_untrusted_client_is_refused(mx_listener: MxListener) -> None:
    client = await connect_smtp(mx_listener.port, greet=False)
    client.send_bytes(b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 25\r\n")
    assert (await client.read_reply()).startswith("220")
    assert (await client.read_reply()).startswith("500 5.5.1")
    await client.close()


async def test_proxy_header_is_read_before_implicit_tls(
    open_listener: OpenMxListener, authority: CertificateAuthority, backend: RecordingBackend
) -> None:
    mx_listener = await open_listener(proxy_networks=("127.0.0.0/8",), implicit_tls=True)
    client = await connect_smtp(mx_listener.port, greet=False)
    client.send_bytes(b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 465\r\n")
    await client.writer.start_tls(authority.client_context(), server_hostname="mx.example.org")
    assert (await client.read_reply()).startswith("220")
    await client.run_command("EHLO x")
    await send_message(client, b"\r\nHello\r\n", "ada@example.org")
    assert backend.arrivals[0].client.ip_address == "192.0.2.7"
    await client.close()
