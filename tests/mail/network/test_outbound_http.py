"""Response bodies of outbound HTTP: framing and the limit of their size."""

import asyncio

import dns.resolver
import pytest

from mail.network.dns_resolver import cached_resolver, query_dns_records_or_none
from mail.network.outbound_http import (
    HttpRequestFailed,
    HttpTarget,
    NetworkPolicy,
    post_and_read,
    post_and_return_status,
)
from models.runtime.options import NO_NAME_SERVER, Options
from tests.support.mail_servers.scanner_servers import (
    send_and_hang_up,
    send_endlessly,
    stay_silent,
)
from tests.support.servers.scripted_server import ConnectionHandler, run_scripted_server

POLICY = NetworkPolicy(allows_private=True, timeout_seconds=5.0)
OFFLINE_OPTIONS = Options(dns_resolver=NO_NAME_SERVER)
MAX_BODY_BYTES = 10
OK_LINE = b"HTTP/1.1 200 OK\r\n"
CHUNKED_HEADER = OK_LINE + b"Transfer-Encoding: chunked\r\n\r\n"


async def post_to_server(
    behaviour: ConnectionHandler, max_bytes: int = MAX_BODY_BYTES, policy: NetworkPolicy = POLICY
) -> tuple[int, bytes]:
    """Post to a server with this behaviour and return status and body."""
    async with run_scripted_server(behaviour) as port:
        return await post_and_read(
            HttpTarget(False, "127.0.0.1", port, "/"), {}, b"x=1", policy, max_bytes
        )


def stalling_response(*chunks: bytes) -> ConnectionHandler:
    """Return a server behaviour: send these chunks and keep the connection open."""

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1024)
        for chunk in chunks:
            writer.write(chunk)
            await writer.drain()
            await asyncio.sleep(0.02)
        await asyncio.Event().wait()

    return respond


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ([OK_LINE + b"Content-Length: 4\r\n\r\nbody"], (200, b"body")),
        ([OK_LINE + b"content-LENGTH: 10\r\n\r\n0123456789"], (200, b"0123456789")),
        ([OK_LINE, b"Content-Length: 4\r\n\r\n", b"bo", b"dy"], (200, b"body")),
        ([OK_LINE + b"Content-Length: 0\r\n\r\n"], (200, b"")),
        ([CHUNKED_HEADER, b"2\r\nbo\r\n", b"2;x=y\r\ndy\r\n0\r\n\r\n"], (200, b"body")),
        ([b"HTTP/1.1 204 No\r\n\r\n"], (204, b"")),
        ([b"HTTP/1.1 400 Bad\r\nContent-Length: 2\r\n\r\nno"], (400, b"no")),
        ([b"HTTP/1.1 100 Go on\r\n\r\n", OK_LINE + b"Content-Length: 2\r\n\r\nok"], (200, b"ok")),
        ([OK_LINE + b"Content-Length: 2\r\n\r\nok" + OK_LINE + b"Content-Length: 4\r\n\r\nmore"],
         (200, b"ok")),
        ([OK_LINE + b"Connection: close\r\nContent-Length: 2\r\n\r\nok and more"], (200, b"ok")),
    ],
)  # fmt: skip
async def test_body_is_read_to_its_end(chunks: list[bytes], expected: tuple[int, bytes]) -> None:
    assert await post_to_server(stalling_response(*chunks)) == expected


@pytest.mark.parametrize("body", [b"", b"body", b"0123456789"])
@pytest.mark.parametrize("version", [b"HTTP/1.0", b"HTTP/1.1"])
async def test_body_without_length_ends_with_connection(version: bytes, body: bytes) -> None:
    header = version + b" 200 OK\r\nContent-Type: text/plain\r\n\r\n"
    assert await post_to_server(send_and_hang_up(header, body)) == (200, body)


@pytest.mark.parametrize(
    ("behaviour", "expected_error"),
    [
        (
            send_and_hang_up(OK_LINE + b"Content-Length: 11\r\n\r\n0123456789a"),
            "The response has more than 10 bytes.",
        ),
        (
            send_and_hang_up(CHUNKED_HEADER + b"b\r\n0123456789a\r\n0\r\n\r\n"),
            "The response has more than 10 bytes.",
        ),
        (send_and_hang_up(OK_LINE + b"\r\n0123456789a"), "The response has more than 10 bytes."),
        (
            send_endlessly(OK_LINE + b"Content-Length: 1000000000\r\n\r\n", b"x" * 65536),
            "The response has more than 10 bytes.",
        ),
        (
            send_endlessly(CHUNKED_HEADER, b"1\r\nx\r\n" * 100),
            "The response has more than 10 bytes.",
        ),
        (send_endlessly(OK_LINE + b"\r\n", b"x" * 1000), "The response has more than 10 bytes."),
        (
            send_endlessly(CHUNKED_HEADER + b"1;", b"x" * 1000),
            "The end of the response is missing|The response is not HTTP",
        ),
        (send_endlessly(OK_LINE, b"X: y\r\n" * 100), "The end of the response is missing"),
        (send_and_hang_up(OK_LINE + b"Content-Length: 4\r\n\r\nbod"), "The response is truncated"),
        (send_and_hang_up(OK_LINE + b"Content-Length: 4\r\n\r\n"), "The response is truncated"),
        (send_and_hang_up(CHUNKED_HEADER + b"2\r\nbo\r\n"), "The response is truncated"),
        (send_and_hang_up(OK_LINE), "The response is truncated"),
        (send_and_hang_up(b""), "The response is truncated"),
        (send_and_hang_up(CHUNKED_HEADER + b"body\r\n"), "The response is not HTTP"),
        (
            send_and_hang_up(OK_LINE + b"Content-Length: four\r\n\r\nbody"),
            "The response is not HTTP",
        ),
        (send_and_hang_up(b"220 mail.example.org ESMTP\r\n"), "The response is not HTTP"),
    ],
)
async def test_malformed_or_too_long_body_raises(
    behaviour: ConnectionHandler, expected_error: str
) -> None:
    with pytest.raises(HttpRequestFailed, match=expected_error):
        await post_to_server(behaviour)


@pytest.mark.parametrize(
    "behaviour",
    [
        stay_silent,
        stalling_response(OK_LINE),
        stalling_response(OK_LINE + b"Content-Length: 4\r\n\r\nbod"),
    ],
)
async def test_missing_body_raises_after_timeout(behaviour: ConnectionHandler) -> None:
    policy = NetworkPolicy(allows_private=True, timeout_seconds=0.2)
    with pytest.raises(
        HttpRequestFailed, match=r"^The server did not respond within 0\.2 seconds\.$"
    ):
        await post_to_server(behaviour, policy=policy)


async def test_response_without_wanted_body_is_not_awaited() -> None:
    async with run_scripted_server(
        stalling_response(OK_LINE + b"Content-Length: 9\r\n\r\n")
    ) as port:
        target = HttpTarget(False, "127.0.0.1", port, "/")
        assert await post_and_return_status(target, {}, b"x=1", POLICY) == 200


async def test_large_body_is_read_completely() -> None:
    body = bytes(range(256)) * 1024
    header_with_length = OK_LINE + b"Content-Length: %d\r\n\r\n" % len(body)
    encoded_chunks = b"".join(b"100\r\n" + bytes(range(256)) + b"\r\n" for _ in range(1024))
    for response in (header_with_length + body, CHUNKED_HEADER + encoded_chunks + b"0\r\n\r\n"):
        assert await post_to_server(stalling_response(response), max_bytes=len(body)) == (200, body)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1"])
async def test_offline_policy_allows_this_machine(host: str) -> None:
    policy = NetworkPolicy.from_options(OFFLINE_OPTIONS, allows_private=True)
    assert await policy.resolve_allowed(host, 80)


@pytest.mark.parametrize("host", ["mx.example.net", "intranet", "192.0.2.1", "10.0.0.1", "::2"])
async def test_offline_policy_refuses_other_machines(host: str) -> None:
    policy = NetworkPolicy.from_options(OFFLINE_OPTIONS, allows_private=True)
    with pytest.raises(HttpRequestFailed):
        await policy.resolve_allowed(host, 80)


async def test_offline_resolver_fails_at_once() -> None:
    assert await query_dns_records_or_none(NO_NAME_SERVER, "example.net", "MX", 60.0) is None
    with pytest.raises(dns.resolver.NoNameservers):
        await cached_resolver(NO_NAME_SERVER, trusts_dnssec=True).resolve("example.net.", "A")
