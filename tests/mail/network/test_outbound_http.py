"""Bodies of answers: as they are told to end, and of no more bytes than are wanted."""

import asyncio

import pytest

from mail.network.outbound_http import HttpRequestFailed, HttpTarget, NetworkPolicy, post_and_read
from tests.support.mail_servers.scanner_servers import Rude, endless, rude, says, silent

GATE = NetworkPolicy(allows_private=True, timeout_seconds=5.0)
MOST = 10
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


async def asked(way: Rude, most: int = MOST, gate: NetworkPolicy = GATE) -> tuple[int, bytes]:
    """What is heard of a server that answers this way."""
    async with rude(way) as port:
        return await post_and_read(
            HttpTarget(False, "127.0.0.1", port, "/"), {}, b"x=1", gate, most
        )


def and_waits(*answers: bytes) -> Rude:
    """Say this piece by piece, and stay on the line."""

    async def way(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1024)
        for each in answers:
            writer.write(each)
            await writer.drain()
            await asyncio.sleep(0.02)
        await asyncio.Event().wait()

    return way


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ([OK + b"Content-Length: 4\r\n\r\nbody"], (200, b"body")),
        ([OK + b"content-LENGTH: 10\r\n\r\n0123456789"], (200, b"0123456789")),
        ([OK, b"Content-Length: 4\r\n\r\n", b"bo", b"dy"], (200, b"body")),
        ([OK + b"Content-Length: 0\r\n\r\n"], (200, b"")),
        ([CHUNKED, b"2\r\nbo\r\n", b"2;x=y\r\ndy\r\n0\r\n\r\n"], (200, b"body")),
        ([b"HTTP/1.1 204 No\r\n\r\n"], (204, b"")),
        ([b"HTTP/1.1 400 Bad\r\nContent-Length: 2\r\n\r\nno"], (400, b"no")),
        ([b"HTTP/1.1 100 Go on\r\n\r\n", OK + b"Content-Length: 2\r\n\r\nok"], (200, b"ok")),
        ([OK + b"Content-Length: 2\r\n\r\nok" + OK + b"Content-Length: 4\r\n\r\nmore"],
         (200, b"ok")),
        ([OK + b"Connection: close\r\nContent-Length: 2\r\n\r\nok and more"], (200, b"ok")),
    ],
)  # fmt: skip
async def test_a_body_is_read_to_its_end_and_not_beyond(
    answer: list[bytes], found: tuple[int, bytes]
) -> None:
    assert await asked(and_waits(*answer)) == found


@pytest.mark.parametrize("body", [b"", b"body", b"0123456789"])
@pytest.mark.parametrize("version", [b"HTTP/1.0", b"HTTP/1.1"])
async def test_a_body_of_no_length_ends_with_the_connection(version: bytes, body: bytes) -> None:
    head = version + b" 200 OK\r\nContent-Type: text/plain\r\n\r\n"
    assert await asked(says(head, body)) == (200, body)


@pytest.mark.parametrize(
    ("way", "words"),
    [
        (says(OK + b"Content-Length: 11\r\n\r\n0123456789a"), "more than 10 bytes"),
        (says(CHUNKED + b"b\r\n0123456789a\r\n0\r\n\r\n"), "more than 10 bytes"),
        (says(OK + b"\r\n0123456789a"), "more than 10 bytes"),
        (endless(OK + b"Content-Length: 1000000000\r\n\r\n", b"x" * 65536), "more than 10 bytes"),
        (endless(CHUNKED, b"1\r\nx\r\n" * 100), "more than 10 bytes"),
        (endless(OK + b"\r\n", b"x" * 1000), "more than 10 bytes"),
        (endless(CHUNKED + b"1;", b"x" * 1000), "no end|no HTTP"),
        (endless(OK, b"X: y\r\n" * 100), "no end"),
        (says(OK + b"Content-Length: 4\r\n\r\nbod"), "ends early"),
        (says(OK + b"Content-Length: 4\r\n\r\n"), "ends early"),
        (says(CHUNKED + b"2\r\nbo\r\n"), "ends early"),
        (says(OK), "ends early"),
        (says(b""), "ends early"),
        (says(CHUNKED + b"body\r\n"), "no HTTP"),
        (says(OK + b"Content-Length: four\r\n\r\nbody"), "no HTTP"),
        (says(b"220 mail.example.org ESMTP\r\n"), "no HTTP"),
    ],
)
async def test_a_body_that_is_none_is_told_of(way: Rude, words: str) -> None:
    with pytest.raises(HttpRequestFailed, match=words):
        await asked(way)


@pytest.mark.parametrize(
    "way", [silent, and_waits(OK), and_waits(OK + b"Content-Length: 4\r\n\r\nbod")]
)
async def test_a_body_that_does_not_come_is_not_waited_for_long(way: Rude) -> None:
    gate = NetworkPolicy(allows_private=True, timeout_seconds=0.2)
    with pytest.raises(HttpRequestFailed, match=r"no answer within 0\.2 seconds"):
        await asked(way, gate=gate)


async def test_where_no_body_is_wanted_none_is_waited_for() -> None:
    assert await asked(and_waits(OK + b"Content-Length: 9\r\n\r\n"), most=0) == (200, b"")


async def test_a_large_body_is_whole() -> None:
    body = bytes(range(256)) * 1024
    sized = OK + b"Content-Length: %d\r\n\r\n" % len(body)
    pieces = b"".join(b"100\r\n" + bytes(range(256)) + b"\r\n" for _ in range(1024))
    for answer in (sized + body, CHUNKED + pieces + b"0\r\n\r\n"):
        assert await asked(and_waits(answer), most=len(body)) == (200, body)
