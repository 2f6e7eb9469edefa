"""Those who say nothing, or half of something, or vanish: nobody else waits for them."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import raw_message
from tests.support.mail_servers.lmtp_client import Neighbour
from tests.support.servers.merganser_server import PASSWORD, Server

STORES = ["sqlite"]
MIB = 1 << 20
ME = "{ viewer { user { username } } }"
WATCHED = "subscription { changes { events { kind } } }"
TELL = "mutation { tokenRevoke(input: {}) { revoked errors { code } } }"
SIGN_IN = f"""mutation {{ authenticate(
  input: {{username: "dora", password: "{PASSWORD}", token: true}}) {{ token }} }}"""
RECHECK = 45.0  # seconds: a look every 30, of credentials that are remembered for 5
SHORT = 10.0  # seconds: those who follow with it have long begun by then
HEAD = "POST /graphql HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"


@asynccontextmanager
async def opened(port: int, sent: bytes = b"") -> AsyncGenerator[tuple[Any, Any]]:
    """A connection that has said this much; at the end it is gone without a word."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(sent)
        yield reader, writer
    finally:
        writer.transport.abort()


async def served(server: Server) -> None:
    """Somebody else is answered, quickly and on all roads."""
    began = time.monotonic() - server.hindered()
    async with server.client("ada") as ada, server.socket(server.secrets["ada"]) as socket:
        await socket.subscribe(WATCHED)
        assert await socket.silent(0.1)
        assert (await ada(ME))["viewer"]["user"]["username"] == "ada"
        answer = await server.deliver(raw_message(f"{began}"), "ada@example.org")
        assert answer.startswith("250 2.0.0 Delivered")
        assert (await socket.batch())["events"] == [{"kind": "MESSAGE_ADDED"}]
    assert time.monotonic() - server.hindered() - began < 3


async def _ended(server: Server, secret: str, end: Any) -> tuple[Any, int, float]:
    """What a socket hears last, the code it is closed with, and the seconds until then."""
    async with server.socket(secret) as socket:
        await socket.subscribe(WATCHED)
        with suppress(TimeoutError):  # news of the others whose credential ends: it is followed
            assert (await socket.hear(0.3))["type"] == "next"
        began = time.monotonic()
        await end()
        frame = await socket.hear(RECHECK)
        while frame["type"] == "next":
            frame = await socket.hear(RECHECK)
        return frame, await socket.closed(), time.monotonic() - began


async def _streamed(server: Server, secret: str) -> list[Any]:
    """The last events of a stream whose credential ends."""
    server.secrets["short"] = secret
    async with server.client("short") as client:
        sent = {"query": WATCHED}
        headers = {"Accept": "text/event-stream"}
        async with asyncio.timeout(RECHECK):
            asked = client.http.stream("POST", "/graphql", json=sent, headers=headers, timeout=None)
            async with asked as response:
                return [line async for line in response.aiter_lines() if line]


async def doom(server: Server) -> dict[str, Any]:
    """End credentials in every way there is, while somebody follows with them."""
    async with server.client("dora") as dora, server.client() as stranger:
        token = (await stranger(SIGN_IN))["authenticate"]["token"]
        soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + SHORT))
        short = await dora.do("apiKeyCreate", {"name": "short", "expiresAt": soon}, "secret")
        lost = await dora.do("apiKeyCreate", {"name": "lost"}, "secret apiKey { id }")

        async def sign_out() -> None:
            server.secrets["token"] = token
            async with server.client("token") as leaving:
                assert (await leaving(TELL))["tokenRevoke"] == {"revoked": 1, "errors": []}

        async def delete() -> None:
            document = "mutation ($id: ID!) { apiKeyDelete(input: {ids: [$id]}) { deletedIds } }"
            assert (await dora(document, id=lost["apiKey"]["id"]))["apiKeyDelete"]["deletedIds"]

        async def wait() -> None:
            await asyncio.sleep(SHORT)

        async def another_password() -> None:
            words = ("user", "passwd", "eve", "--password-stdin")
            said = await asyncio.to_thread(server.command, *words, stdin="another horse\n")
            assert said.code == 0, said.err

        signed = SIGN_IN.replace('"dora"', '"eve"')
        eves = (await stranger(signed))["authenticate"]["token"]
        names = ("signed out", "deleted", "expired", "password", "stream")
        found = await asyncio.gather(
            _ended(server, token, sign_out),
            _ended(server, lost["secret"], delete),
            _ended(server, short["secret"], wait),
            _ended(server, eves, another_password),
            _streamed(server, short["secret"]),
        )
        ended = dict(zip(names, found, strict=True))
        ended["secrets"] = {
            "signed out": token,
            "deleted": lost["secret"],
            "expired": short["secret"],
            "password": eves,
        }
        return ended


@pytest.fixture(scope="module")
def doomed(server: Server) -> Iterator["Future[dict[str, Any]]"]:
    """What became of those whose credential ended: it takes as long as the other tests."""
    with ThreadPoolExecutor(1) as thread:
        yield thread.submit(lambda: asyncio.run(doom(server)))


pytestmark = pytest.mark.usefixtures("doomed")


async def test_two_hundred_who_say_nothing_keep_nobody_waiting(server: Server) -> None:
    async with AsyncExitStack() as stack:
        for _ in range(100):
            await stack.enter_async_context(opened(server.http))
            await stack.enter_async_context(opened(server.lmtp))
        for _ in range(200):
            await stack.enter_async_context(opened(server.http, HEAD.encode()))
        await served(server)


async def test_a_trickle_is_ended_and_others_are_served_meanwhile(server: Server) -> None:
    """Header, body and websocket each say a little, for as long as they may."""
    trickling = f"{HEAD}Content-Length: 900\r\n\r\n"

    async def body() -> bytes:
        async with opened(server.http, trickling.encode()) as (reader, writer):
            dripping = asyncio.create_task(_drip(writer))
            async with asyncio.timeout(20):
                answer: bytes = await reader.read()
            dripping.cancel()
            return answer

    async def mute() -> int:
        async with server.socket() as socket:
            return await socket.closed()

    async with opened(server.http, b"POST /graphql HTTP/1.1\r\nHost") as (_, writer):
        dripping = asyncio.create_task(_drip(writer))
        waiting = asyncio.gather(body(), mute())
        await served(server)
        answer, closed = await waiting
        await served(server)
        dripping.cancel()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"DEADLINE_EXCEEDED"' in answer
    assert closed == 4408


async def _drip(writer: asyncio.StreamWriter) -> None:
    while not writer.transport.is_closing():
        writer.write(b"a")
        await asyncio.sleep(0.2)


async def test_lmtp_lines_too_long_are_refused_and_the_session_goes_on(server: Server) -> None:
    neighbour = await server.neighbour()
    assert (await neighbour.say("NOOP " + "x" * 100_000)).startswith("500 5.5.2 Line too long")
    assert (await neighbour.say("RCPT TO:<ada@example.org>")).startswith("503")
    big = await neighbour.say(f"MAIL FROM:<a@b.example> SIZE={16 * MIB + 1}")
    assert big.startswith("552 5.3.4")
    huge = await neighbour.say("MAIL FROM:<a@b.example> SIZE=" + "9" * 20)
    assert huge.startswith("552 5.3.4")
    assert (await neighbour.say("MAIL FROM:<a@b.example> SIZE=-1")).startswith("501")
    for long in (b"Subject: too long\r\n\r\n" + b"x" * (MIB + 9), b"x\r\n" * (6 * MIB)):
        await neighbour.begin("ada@example.org")
        neighbour.send(long + b"\r\n.\r\n")
        assert (await neighbour.hear()).startswith(("500 5.5.2", "552 5.3.4"))
    await neighbour.begin("ada@example.org")
    neighbour.send(raw_message("good at last") + b".\r\n")
    assert (await neighbour.hear()).startswith("250 2.0.0 Delivered")
    await neighbour.close()


async def test_who_vanishes_in_the_middle_leaves_nothing(server: Server) -> None:
    before = await _messages(server)
    for way in (Neighbour.reset, Neighbour.close):
        neighbour = await server.neighbour()
        await neighbour.begin("ada@example.org")
        neighbour.send(raw_message("never") * 900)
        await asyncio.sleep(0.1)
        if gone := way(neighbour):
            await gone
    signed = f"Authorization: Bearer {server.secrets['ada']}\r\n"
    sent = f"POST /rest/uploads HTTP/1.1\r\nHost: a\r\n{signed}"
    upload = f"{sent}Content-Length: {8 * MIB}\r\n\r\n".encode() + b"x" * 5 * MIB
    async with opened(server.http, upload):
        await _until_spooled(server, some=True)
    asking = f"{HEAD}Content-Length: 900\r\n\r\n".encode() + b'{"query": "{ viewer'
    async with opened(server.http, asking):
        await asyncio.sleep(0.1)
    async with opened(server.http, f"{sent}Content-Length: {8 * MIB + 1}\r\n\r\n".encode()) as (
        reader,
        _,
    ):
        async with asyncio.timeout(10):
            assert (await reader.read()).startswith(b"HTTP/1.1 413 ")
    await _until_spooled(server, some=False)
    assert await _messages(server) == before


async def _messages(server: Server) -> int:
    async with server.client("ada") as ada:
        return int(
            (await ada("{ viewer { user { messageCount } } }"))["viewer"]["user"]["messageCount"]
        )


async def _until_spooled(server: Server, *, some: bool) -> None:
    """Wait until the spool has files, or has none; who claims it is none of them."""
    spool = server.folder / "var" / "spool"

    def there() -> list[Path]:
        return [path for path in spool.rglob("*") if path.is_file() and path.stat().st_size]

    async with asyncio.timeout(10):
        while bool(there()) is not some:  # noqa: ASYNC110 - another process's files
            await asyncio.sleep(0.02)


async def test_a_socket_that_does_not_read_and_one_that_vanishes(server: Server) -> None:
    async with AsyncExitStack() as stack:
        deaf = []
        for _ in range(20):
            socket = await stack.enter_async_context(server.socket(server.secrets["eve"]))
            await socket.subscribe(WATCHED)
            deaf.append(socket)
        for socket in deaf[:10]:
            socket.ws.transport.abort()
        await server.deliver(raw_message("to all"), "eve@example.org")
        await served(server)


async def test_whose_credential_ends_is_sent_away_in_time(
    server: Server, doomed: "Future[dict[str, Any]]"
) -> None:
    ended = await asyncio.to_thread(doomed.result, RECHECK + 15)
    for name, secret in ended.pop("secrets").items():
        async with server.client() as client:
            shown = {"Authorization": f"Bearer {secret}"}
            answer = await client.post({"query": "{ __typename }"}, **shown)
        assert (answer.status_code, name) == (401, name)
        assert answer.json()["errors"][0]["extensions"]["code"] == "UNAUTHENTICATED"
    stream = "\n".join(ended.pop("stream")[-4:])
    assert '"UNAUTHENTICATED"' in stream
    assert "event: complete" in stream
    for name, (frame, closed, seconds) in ended.items():
        assert (name, closed, frame["type"]) == (name, 4403, "error")
        assert frame["payload"][0]["extensions"]["code"] == "UNAUTHENTICATED"
        assert seconds < RECHECK


async def test_in_the_end_all_is_whole_and_the_log_is_quiet(server: Server) -> None:
    report = await asyncio.to_thread(server.command, "check")
    assert (report.code, json.loads(report.out)["findings"]) == (0, [])
    assert server.complaints() == []
    words = [PASSWORD, "example.org", "b.example", "never", "mgk_", *server.secrets.values()]
    assert [word for word in words if word in server.log] == []
