"""The listener for challenges alone: what it answers, and who is not waited for."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from merganser.server import acme_http
from merganser.server.acme_http import AcmeHttpListener
from models.certificates import AcmeChallenge
from models.runtime.concurrency_limits import ConcurrencyLimiter
from models.runtime.environment import Environment
from tests.conftest import Client
from tests.support.operations.certificate_operations import put
from tests.support.stores.counter_check import rows

TOKEN = "a-_1"  # noqa: S105 - which anybody may know
PATH = b"/.well-known/acme-challenge/a-_1"


@pytest.fixture
async def there(root: Client, world: Environment) -> AsyncIterator[AcmeHttpListener]:
    await put(root, serverName="mx.example.org", acme=True)
    ((key,),) = await rows(world, "SELECT id FROM certificates")
    ends = world.now() + timedelta(hours=1)
    async with world.write_session() as session:
        session.add(
            AcmeChallenge(token=TOKEN, certificate_id=key, answer="a-_1.x", expires_at=ends)
        )
    one = AcmeHttpListener(world)
    await one.start(host="127.0.0.1", port=0)
    yield one
    one.close()


async def said(there: AcmeHttpListener, raw: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", there.port)
    writer.write(raw)
    async with asyncio.timeout(10):
        try:
            return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()


async def test_a_challenge_is_answered(there: AcmeHttpListener) -> None:
    head = b" HTTP/1.1\r\nHost: mx.example.org\r\n\r\n"
    answer = await said(there, b"GET " + PATH + head)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\na-_1.x")
    answer = await said(there, b"HEAD " + PATH + head)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nContent-Length: 6\r\n" in answer
    assert answer.endswith(b"Connection: close\r\n\r\n")


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"POST " + PATH + b" HTTP/1.1\r\n\r\n",
        b"GET " + PATH + b"x HTTP/1.1\r\n\r\n",
        b"GET " + PATH + b"/../x HTTP/1.1\r\n\r\n",
        b"GET " + PATH + b"%00 HTTP/1.1\r\n\r\n",
        b"GET /graphql HTTP/1.1\r\n\r\n",
        b"\xff\x00 \r\n\r\n",
    ],
)
async def test_nothing_else_is(there: AcmeHttpListener, raw: bytes) -> None:
    assert (await said(there, raw)).startswith(b"HTTP/1.1 404 Not Found\r\n")


async def test_who_says_too_much_or_nothing_is_hung_up_on(
    there: AcmeHttpListener, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await said(there, b"GET " + b"x" * 20_000) == b""
    monkeypatch.setattr(acme_http, "REQUEST_TIMEOUT", 0.2)
    assert await said(there, b"GET / HTTP/1.1\r\n") == b""
    monkeypatch.setattr(there, "_limiter", ConcurrencyLimiter(0, 0))
    assert await said(there, b"GET / HTTP/1.1\r\n\r\n") == b""
