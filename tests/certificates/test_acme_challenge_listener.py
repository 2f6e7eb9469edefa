"""The HTTP listener for ACME challenges: its responses, and the requests it disconnects."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from merganser.server import acme_http
from merganser.server.acme_http import AcmeHttpListener
from models.certificates import AcmeChallenge
from models.runtime.concurrency_limits import ConcurrencyLimiter
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient
from tests.support.case_loop import each_case
from tests.support.operations.platform.certificate_operations import set_certificate
from tests.support.stores.counter_check import select_rows
from tests.support.time_limits import HANG_SECONDS

TOKEN = "a-_1"  # noqa: S105 - a challenge token is public
PATH = b"/.well-known/acme-challenge/a-_1"


@pytest.fixture
async def listener(
    root: GraphQLClient, environment: Environment
) -> AsyncIterator[AcmeHttpListener]:
    await set_certificate(root, serverName="mx.example.org", acme=True)
    ((certificate_id,),) = await select_rows(environment, "SELECT id FROM certificates")
    expires_at = environment.now() + timedelta(hours=1)
    async with environment.write_session() as session:
        session.add(
            AcmeChallenge(
                token=TOKEN, certificate_id=certificate_id, answer="a-_1.x", expires_at=expires_at
            )
        )
    http_listener = AcmeHttpListener(environment)
    await http_listener.start(host="127.0.0.1", port=0)
    yield http_listener
    await http_listener.close()


async def send_request(listener: AcmeHttpListener, raw_request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
    writer.write(raw_request)
    async with asyncio.timeout(HANG_SECONDS):
        try:
            return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()


async def test_challenge_is_answered(listener: AcmeHttpListener) -> None:
    head = b" HTTP/1.1\r\nHost: mx.example.org\r\n\r\n"
    answer = await send_request(listener, b"GET " + PATH + head)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\na-_1.x")
    answer = await send_request(listener, b"HEAD " + PATH + head)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nContent-Length: 6\r\n" in answer
    assert answer.endswith(b"Connection: close\r\n\r\n")


async def test_other_request_is_answered_with_404(listener: AcmeHttpListener) -> None:
    cases: list[bytes] = [
        b"GET / HTTP/1.1\r\n\r\n",
        b"POST " + PATH + b" HTTP/1.1\r\n\r\n",
        b"GET " + PATH + b"x HTTP/1.1\r\n\r\n",
        b"GET " + PATH + b"/../x HTTP/1.1\r\n\r\n",
        b"GET " + PATH + b"%00 HTTP/1.1\r\n\r\n",
        b"GET /graphql HTTP/1.1\r\n\r\n",
        b"\xff\x00 \r\n\r\n",
    ]
    for case in each_case(cases):
        with case as raw_request:
            assert (await send_request(listener, raw_request)).startswith(
                b"HTTP/1.1 404 Not Found\r\n"
            )


async def test_long_slow_or_excess_request_is_disconnected(
    listener: AcmeHttpListener, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await send_request(listener, b"GET " + b"x" * 20_000) == b""
    monkeypatch.setattr(acme_http, "REQUEST_TIMEOUT", 0.2)
    assert await send_request(listener, b"GET / HTTP/1.1\r\n") == b""
    monkeypatch.setattr(listener, "_limiter", ConcurrencyLimiter(0, 0))
    assert await send_request(listener, b"GET / HTTP/1.1\r\n\r\n") == b""
