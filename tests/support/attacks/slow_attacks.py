"""Attacks by slow clients and by many requests. The slow ones run concurrently."""

import asyncio
import json
from collections import Counter
from collections.abc import Iterable
from contextlib import AsyncExitStack, suppress
from typing import Any

from tests.support.attacks.attack_runner import (
    JSON_HEADERS,
    AttackedServer,
    AttackList,
    RawHttpResponse,
    ServerAttack,
    request,
)
from tests.support.attacks.websocket_attacks import frame, handshake
from tests.support.time_limits import HANG_SECONDS

ATTACKS = AttackList()
attack = ATTACKS.__call__
PONG = 0x8A
DEADLINE_EXCEEDED = "408 DEADLINE_EXCEEDED"
# The server's time limit for slow clients. A client on a busy machine needs some of it too.
SLOW_CLIENT_SECONDS = 10
# Until all slow clients are disconnected: some are after two time limits, on a busy machine.
MAX_SLOW_MS = 60_000.0
MAX_FLOOD_MS = 8000.0  # CPU time
POST_HEAD = b"POST /graphql HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
LARGE_FILE_REQUEST = request("GET", "/graphiql/x/graphiql.js", {})  # 5 MB
CHANGES_SUBSCRIPTION = "subscription { changes { cursor } }"
MESSAGES_QUERY = "{ viewer { user { messages(first: 50) { nodes { id subject text } } } } }"
MESSAGE_QUERY = "query ($i: ID!) { message(by: {id: $i}) { subject } }"


async def send_slowly(target: AttackedServer, data: bytes, drop: bytes) -> RawHttpResponse:
    """Send some bytes and then a drop every 50 ms; return what the server sends until it closes."""
    async with asyncio.timeout(HANG_SECONDS), target.open_connection(data) as (reader, writer):
        received = bytearray()

        async def send_drops() -> None:
            while not writer.is_closing():
                writer.write(drop)
                await asyncio.sleep(0.05)

        task = asyncio.create_task(send_drops())
        try:
            while chunk := await reader.read(1 << 16):
                received += chunk
        except ConnectionError:
            pass
        finally:
            task.cancel()
        return RawHttpResponse(bytes(received))


SLOW_REQUESTS = {
    "a request header, byte by byte": (b"GET /health HTTP/1.1\r\nHost", b"a", DEADLINE_EXCEEDED),
    "endless header fields": (
        b"GET /health HTTP/1.1\r\nHost: a\r\n",
        b"a: b\r\n",
        DEADLINE_EXCEEDED,
    ),
    "a method that never ends": (b"", b"G", "400 BAD_USER_INPUT"),
    "empty lines before a request": (b"", b"\r\n", DEADLINE_EXCEEDED),
    "empty lines after a response": (
        b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\r\n",
        "200",
    ),
    "a body, byte by byte": (POST_HEAD + b"Content-Length: 900\r\n\r\n", b"a", DEADLINE_EXCEEDED),
    "endless chunks": (
        POST_HEAD + b"Transfer-Encoding: chunked\r\n\r\n",
        b"1\r\na\r\n",
        DEADLINE_EXCEEDED,
    ),
    "a response that the client doesn't read": (
        b"POST /health HTTP/1.1\r\nHost: a\r\nContent-Length: 90000\r\n\r\n",
        b"a",
        "405",
    ),
}


def _slow_attack(data: bytes, drop: bytes) -> Any:
    async def run(target: AttackedServer) -> RawHttpResponse:
        return await send_slowly(target, data, drop)

    return run


def _silent_attack(data: bytes) -> Any:
    async def run(target: AttackedServer) -> RawHttpResponse:
        return await target.send_raw(data)

    return run


@attack("slow: a WebSocket without connection_init", "closed 4408", max_ms=MAX_SLOW_MS)
async def _(target: AttackedServer) -> str:
    async with target.server.open_websocket() as socket:
        return f"closed {await socket.wait_for_close_code()}"


@attack(
    "slow: 20 clients that don't read 5 MB each",
    "dropped",
    max_ms=MAX_SLOW_MS,
    max_growth_kib=40 * 1024,
)
async def _(target: AttackedServer) -> str:
    """The kernel buffers a part; the server closes the connection after the write timeout."""
    async with AsyncExitStack() as stack, asyncio.timeout(HANG_SECONDS):
        writers = []
        for _ in range(20):
            connection = target.open_connection(LARGE_FILE_REQUEST, receive_buffer=4096)
            writers.append((await stack.enter_async_context(connection))[1])
        for writer in writers:
            writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.gather(*map(_wait_until_dropped, writers))
    return "dropped"


async def cancel_all(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait until they have closed their connections."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _wait_until_dropped(writer: asyncio.StreamWriter, drop: bytes = b"\r\n") -> None:
    """Send drops until the server has closed the connection."""
    with suppress(ConnectionError):
        while not writer.transport.is_closing():
            writer.write(drop)
            await writer.drain()
            await asyncio.sleep(0.2)


@attack(
    "slow: a WebSocket that sends and doesn't read",
    "dropped",
    max_ms=MAX_SLOW_MS,
    max_growth_kib=40 * 1024,
)
async def _(target: AttackedServer) -> str:
    secret = target.server.secrets["fay"]
    greeting = json.dumps({"type": "connection_init", "payload": {"token": secret}})
    query = "{ __schema { types { name description fields { name description } } } }"
    async with (
        asyncio.timeout(HANG_SECONDS),
        target.open_connection(handshake(), receive_buffer=4096) as (reader, writer),
    ):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(frame(greeting.encode()))
        for n in range(60):
            payload = {"type": "subscribe", "id": str(n), "payload": {"query": query}}
            writer.write(frame(json.dumps(payload).encode()))
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await _wait_until_dropped(writer, frame(b"", PONG))
        return "dropped"


@attack("flood: all points of an anonymous client", "200, then 429", max_ms=MAX_FLOOD_MS)
async def _(target: AttackedServer) -> str:
    """The rate budget is 250 points a second, 25,000 at once; the server refuses requests above."""
    codes: Counter[str] = Counter()
    last_response = RawHttpResponse(b"")
    expensive_query = "{ __schema { types { name } } }"
    source = target.new_source()
    for _ in range(40):
        last_response = await target.post(
            json.dumps({"query": expensive_query}).encode(),
            source=source,
            Accept="application/json",
        )
        codes[last_response.summary] += 1
    assert set(codes) == {"200", "429 RATE_LIMITED"}, codes
    assert int(last_response.headers["retry-after"]) >= 1
    assert json.loads(last_response.body)["errors"][0]["extensions"]["retryAfterSeconds"] >= 1
    cost = json.loads(last_response.body)["extensions"]["cost"]
    assert (cost["requested"], cost["restoreRate"]) == (3000, 250)
    assert cost["available"] < 3000
    other_response = await target.post(
        json.dumps({"query": expensive_query}).encode(), source=target.new_source()
    )
    assert other_response.summary == "200"  # another address has its own rate budget
    return "200, then 429"


@attack("flood: unknown documents of an anonymous client", "400, then 429", max_ms=MAX_FLOOD_MS)
async def _(target: AttackedServer) -> str:
    """Caches keep their entries: requests above the budget are refused before parsing."""
    codes: Counter[str] = Counter()
    source = target.new_source()
    for n in range(60):
        body = json.dumps({"query": f"{{ viewer {{ {'a' * 9000}{n} }} }}"}).encode()
        codes[(await target.post(body, source=source)).summary] += 1
    assert set(codes) == {"400 GRAPHQL_VALIDATION_FAILED", "429 RATE_LIMITED"}, codes
    return "400, then 429"


@attack("flood: many forged X-Forwarded-For addresses", "429 RATE_LIMITED", max_ms=MAX_FLOOD_MS)
async def _(target: AttackedServer) -> RawHttpResponse:
    """The server only trusts X-Forwarded-For of its proxies; this client is not a proxy."""
    response = RawHttpResponse(b"")
    source = target.new_source()
    for n in range(40):
        body = json.dumps({"query": "{ __schema { types { name } } }"}).encode()
        forwarded_header = {"X-Forwarded-For": f"203.0.113.{n}"}
        response = await target.post(body, source=source, **forwarded_header)
    return response


@attack(
    "flood: concurrent operations of a user", "some 200, some 429, some 503", max_ms=MAX_FLOOD_MS
)
async def _(target: AttackedServer) -> str:
    """Eight operations of a user may run at once, and twelve of all users."""
    expected_summaries = {"200", "429 RATE_LIMITED", "503 UNAVAILABLE"}
    summaries: set[str] = set()
    for _ in range(5):  # a slow test process may not send all requests at the same time
        credentials = [
            target.credential_headers(name) for name in ("bob", "eve") for _ in range(30)
        ]
        responses = await asyncio.gather(
            *(target.post_document(MESSAGES_QUERY, credential) for credential in credentials)
        )
        for response in responses:
            if response.status in (429, 503):
                assert response.headers["retry-after"] == "1"
        summaries |= {response.summary for response in responses}
        if summaries >= expected_summaries:
            break
    assert summaries == expected_summaries, summaries
    return "some 200, some 429, some 503"


@attack("flood: connections of one IP address", "80 are let in, others 503", max_ms=MAX_FLOOD_MS)
async def _(target: AttackedServer) -> str:
    summaries: list[str] = []

    async def connect() -> None:
        async with target.open_connection(source="127.0.0.10") as (reader, _):
            summaries.append(RawHttpResponse(await reader.read(1 << 16)).summary)

    tasks = [asyncio.create_task(connect()) for _ in range(120)]
    try:
        async with asyncio.timeout(HANG_SECONDS):
            while len(summaries) < 40:  # noqa: ASYNC110 - another process's
                await asyncio.sleep(0.01)
        let_in = [task for task in tasks if not task.done()]
    finally:
        await cancel_all(tasks)
    counts = Counter(summaries) | Counter({"let in": len(let_in)})
    is_expected = counts == {"let in": 80, "503 UNAVAILABLE": 40}
    return "80 are let in, others 503" if is_expected else str(counts)


@attack("flood: event streams of one user", "20 are let in, others 429", max_ms=MAX_FLOOD_MS)
async def _(target: AttackedServer) -> str:
    body = json.dumps({"query": CHANGES_SUBSCRIPTION}).encode()
    headers = JSON_HEADERS | target.credential_headers("fay") | {"Accept": "text/event-stream"}

    answered = asyncio.Barrier(50)  # the streams stay open until all clients have an answer

    async def connect() -> str:
        request_bytes = request("POST", "/graphql", headers, body)
        async with target.open_connection(request_bytes, source="127.0.0.11") as (reader, _):
            received = await reader.readuntil(b"\r\n\r\n")
            await answered.wait()
            return RawHttpResponse(received).summary

    async with asyncio.timeout(HANG_SECONDS), asyncio.TaskGroup() as group:
        tasks = [group.create_task(connect()) for _ in range(50)]
    counts = Counter(task.result() for task in tasks)
    is_expected = counts["429"] >= 30 and counts["200"] <= 20
    return "20 are let in, others 429" if is_expected else str(counts)


@attack("guess: 60 passwords of one account", "refused, then RATE_LIMITED", max_ms=MAX_FLOOD_MS)
async def _(target: AttackedServer) -> str:
    sign_in_mutation = """mutation ($p: String!) {
      authenticate(input: {username: "eve", password: $p}) { token errors { code } } }"""
    codes: Counter[str] = Counter()
    for n in range(0, 60, 4):
        requests = (target.post_document(sign_in_mutation, {}, p=f"{n + k}") for k in range(4))
        for response in await asyncio.gather(*requests):
            payload = json.loads(response.body)["data"]["authenticate"]
            assert payload["token"] is None
            codes[payload["errors"][0]["code"]] += 1
    assert codes["AUTHENTICATION_FAILED"] <= 12, codes
    return "refused, then RATE_LIMITED" if codes["RATE_LIMITED"] >= 48 else str(codes)


@attack(
    "guess: a message of another user by its ID", "as if it were not there", max_ms=MAX_FLOOD_MS
)
async def _(target: AttackedServer) -> str:
    """Neither content nor CPU time of the response shows whether the message exists."""
    owner_response = json.loads(
        (await target.post_document(MESSAGES_QUERY, target.credential_headers("dora"))).body
    )
    message_id = owner_response["data"]["viewer"]["user"]["messages"]["nodes"][0]["id"]
    times: dict[str, list[float]] = {message_id: [], "msg_AAAAAAAAAAE": []}
    for _ in range(25):
        for requested_id, durations in times.items():
            cpu_before = target.server.cpu_seconds()
            response = await target.post_document(MESSAGE_QUERY, i=requested_id)
            durations.append(target.server.cpu_seconds() - cpu_before)
            assert json.loads(response.body)["data"] == {"message": None}
    existing_time, missing_time = (
        sorted(durations)[len(durations) // 2] for durations in times.values()
    )
    assert abs(existing_time - missing_time) < 0.02
    return "as if it were not there"


@attack("gone: a client disconnects during a query", "no trace", max_ms=MAX_FLOOD_MS)
async def _(target: AttackedServer) -> str:
    for _ in range(20):
        body = json.dumps({"query": f"{MESSAGES_QUERY} #{target.next_number()}"}).encode()
        async with target.open_connection(
            request("POST", "/graphql", JSON_HEADERS | target.user_headers, body)
        ):
            await asyncio.sleep(0.005)
    return "no trace"


ATTACKS += [
    *(
        ServerAttack(
            f"slow: {name}", (expected,), _slow_attack(request_bytes, drop), max_ms=MAX_SLOW_MS
        )
        for name, (request_bytes, drop, expected) in SLOW_REQUESTS.items()
    ),
    *(
        ServerAttack(
            f"slow: {name}",
            ("hung up", DEADLINE_EXCEEDED, "400 BAD_USER_INPUT"),
            _silent_attack(request_bytes),
            max_ms=MAX_SLOW_MS,
        )
        for name, request_bytes in {
            "a connection without a request": b"",
            "half of a TLS ClientHello": b"\x16",
            "half of a WebSocket handshake": handshake()[:-2],
        }.items()
    ),
]
