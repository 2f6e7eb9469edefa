"""Attacks that take their time, and those by numbers. They run beside each other."""

import asyncio
import json
import time
from collections import Counter
from contextlib import AsyncExitStack, suppress
from typing import Any

from tests.support.attacks.attack_runner import (
    JSON,
    PATIENCE,
    Answer,
    Attack,
    Attacks,
    Siege,
    request,
)
from tests.support.attacks.websocket_attacks import frame, handshake

ATTACKS = Attacks()
attack = ATTACKS.__call__
PONG = 0x8A
LATE = "408 DEADLINE_EXCEEDED"
SOON = 8000.0  # ms: deadlines of a second or two, a sweep every second, and others beside
HEAD = b"POST /graphql HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
BIG = request("GET", "/graphiql/x/graphiql.js", {})  # 5 MB
FOLLOW = "subscription { changes { cursor } }"
PAGE = "{ viewer { user { messages(first: 50) { nodes { id subject text } } } } }"
NAMED = "query ($i: ID!) { message(by: {id: $i}) { subject } }"


async def drip(siege: Siege, sent: bytes, drop: bytes) -> Answer:
    """What is answered to somebody who goes on with a little at a time, and for ever."""
    async with asyncio.timeout(PATIENCE), siege.opened(sent) as (reader, writer):
        got = bytearray()

        async def dripping() -> None:
            while not writer.is_closing():
                writer.write(drop)
                await asyncio.sleep(0.05)

        task = asyncio.create_task(dripping())
        try:
            while piece := await reader.read(1 << 16):
                got += piece
        except ConnectionError:
            pass
        finally:
            task.cancel()
        return Answer(bytes(got))


DRIPS = {
    "a head, byte by byte": (b"GET /health HTTP/1.1\r\nHost", b"a", LATE),
    "headers without end": (b"GET /health HTTP/1.1\r\nHost: a\r\n", b"a: b\r\n", LATE),
    "a method that never ends": (b"", b"G", "400 BAD_USER_INPUT"),
    "empty lines": (b"", b"\r\n", LATE),
    "empty lines behind an answer": (
        b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\r\n",
        "200",
    ),
    "a body, byte by byte": (HEAD + b"Content-Length: 900\r\n\r\n", b"a", LATE),
    "chunks without end": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n", LATE),
    "a body that nobody reads": (
        b"POST /health HTTP/1.1\r\nHost: a\r\nContent-Length: 90000\r\n\r\n",
        b"a",
        "405",
    ),
}


def _dripping(sent: bytes, drop: bytes) -> Any:
    async def run(siege: Siege) -> Answer:
        return await drip(siege, sent, drop)

    return run


def _silent(sent: bytes) -> Any:
    async def run(siege: Siege) -> Answer:
        return await siege.raw(sent)

    return run


@attack("slow: a socket that never greets", "closed 4408", ms=SOON)
async def _(siege: Siege) -> str:
    async with siege.server.socket() as socket:
        return f"closed {await socket.closed()}"


@attack("slow: 20 that do not read 5 MB each", "dropped", ms=12_000, kib=40 * 1024)
async def _(siege: Siege) -> str:
    """The kernel takes some; what lies with us is dropped after a while."""
    async with AsyncExitStack() as stack, asyncio.timeout(PATIENCE):
        deaf = []
        for _ in range(20):
            opened = siege.opened(BIG, receive=4096)
            deaf.append((await stack.enter_async_context(opened))[1])
        for writer in deaf:
            writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.gather(*map(_dropped, deaf))
    return "dropped"


async def _dropped(writer: asyncio.StreamWriter, drop: bytes = b"\r\n") -> None:
    """Wait until the server has hung up: whoever sends then hears of it."""
    with suppress(ConnectionError):
        while not writer.transport.is_closing():
            writer.write(drop)
            await writer.drain()
            await asyncio.sleep(0.2)


@attack("slow: a socket that asks and does not read", "dropped", ms=12_000, kib=40 * 1024)
async def _(siege: Siege) -> str:
    secret = siege.server.secrets["fay"]
    greeting = json.dumps({"type": "connection_init", "payload": {"token": secret}})
    query = "{ __schema { types { name description fields { name description } } } }"
    async with (
        asyncio.timeout(PATIENCE),
        siege.opened(handshake(), receive=4096) as (reader, writer),
    ):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(frame(greeting.encode()))
        for n in range(60):
            payload = {"type": "subscribe", "id": str(n), "payload": {"query": query}}
            writer.write(frame(json.dumps(payload).encode()))
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await _dropped(writer, frame(b"", PONG))
        return "dropped"


@attack("flood: a stranger asks for all it can", "200, then 429", ms=SOON)
async def _(siege: Siege) -> str:
    """250 points a second, 25,000 at once: what would take our core for seconds is refused."""
    codes: Counter[str] = Counter()
    last = Answer(b"")
    dear = "{ __schema { types { name } } }"
    for _ in range(40):
        last = await siege.post(
            json.dumps({"query": dear}).encode(), source="127.0.0.5", Accept="application/json"
        )
        codes[last.said] += 1
    assert set(codes) == {"200", "429 RATE_LIMITED"}, codes
    assert int(last.headers["retry-after"]) >= 1
    assert json.loads(last.body)["errors"][0]["extensions"]["retryAfterSeconds"] >= 1
    cost = json.loads(last.body)["extensions"]["cost"]
    assert (cost["requested"], cost["restoreRate"]) == (3000, 250)
    assert cost["available"] < 3000
    other = await siege.post(json.dumps({"query": dear}).encode(), source="127.0.0.6")
    assert other.said == "200"  # another address has a bucket of its own
    return "200, then 429"


@attack("flood: a stranger's texts that nobody knows", "400, then 429", ms=SOON)
async def _(siege: Siege) -> str:
    """What is warm stays warm: those who flood are refused before their text is read."""
    codes: Counter[str] = Counter()
    for n in range(60):
        body = json.dumps({"query": f"{{ viewer {{ {'a' * 9000}{n} }} }}"}).encode()
        codes[(await siege.post(body, source="127.0.0.7")).said] += 1
    assert set(codes) == {"400 GRAPHQL_VALIDATION_FAILED", "429 RATE_LIMITED"}, codes
    return "400, then 429"


@attack("flood: who pretends to be many", "429 RATE_LIMITED", ms=SOON)
async def _(siege: Siege) -> Answer:
    """X-Forwarded-For counts where a proxy says it; this is none."""
    answer = Answer(b"")
    for n in range(40):
        body = json.dumps({"query": "{ __schema { types { name } } }"}).encode()
        lie = {"X-Forwarded-For": f"203.0.113.{n}"}
        answer = await siege.post(body, source="127.0.0.8", **lie)
    return answer


@attack("flood: a user's operations at once", "some 200, some 429, some 503", ms=SOON)
async def _(siege: Siege) -> str:
    """Eight of each user may run at once, twelve of all."""
    wanted = {"200", "429 RATE_LIMITED", "503 UNAVAILABLE"}
    said: set[str] = set()
    for _ in range(5):  # a client that is held up may send them too far from each other
        keys = [siege.key_of(name) for name in ("bob", "eve") for _ in range(30)]
        answers = await asyncio.gather(*(siege.ask(PAGE, key) for key in keys))
        for answer in answers:
            if answer.status in (429, 503):
                assert answer.headers["retry-after"] == "1"
        said |= {answer.said for answer in answers}
        if said >= wanted:
            break
    assert said == wanted, said
    return "some 200, some 429, some 503"


@attack("flood: connections of one address", "80 are let in, others 503", ms=SOON)
async def _(siege: Siege) -> str:
    said: list[str] = []

    async def one() -> None:
        async with siege.opened(source="127.0.0.10") as (reader, _):
            said.append(Answer(await reader.read(1 << 16)).said)

    tasks = [asyncio.create_task(one()) for _ in range(120)]
    async with asyncio.timeout(PATIENCE):
        while len(said) < 40:  # noqa: ASYNC110 - another process's
            await asyncio.sleep(0.01)
    let_in = [task for task in tasks if not task.done()]
    for task in let_in:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    found = Counter(said) | Counter({"let in": len(let_in)})
    good = found == {"let in": 80, "503 UNAVAILABLE": 40}
    return "80 are let in, others 503" if good else str(found)


@attack("flood: event streams of one user", "20 are let in, others 429", ms=SOON)
async def _(siege: Siege) -> str:
    body = json.dumps({"query": FOLLOW}).encode()
    headers = JSON | siege.key_of("fay") | {"Accept": "text/event-stream"}

    async def one() -> str:
        sent = request("POST", "/graphql", headers, body)
        async with siege.opened(sent, source="127.0.0.11") as (reader, _):
            got = await reader.readuntil(b"\r\n\r\n")
            first = Answer(got).said
            await wait.wait()
            return first

    wait = asyncio.Event()
    tasks = [asyncio.create_task(one()) for _ in range(50)]
    await asyncio.sleep(1)
    wait.set()
    found = Counter(await asyncio.gather(*tasks))
    good = found["429"] >= 30 and found["200"] <= 20
    return "20 are let in, others 429" if good else str(found)


@attack("guess: 60 passwords of one account", "refused, then RATE_LIMITED", ms=SOON)
async def _(siege: Siege) -> str:
    guess = """mutation ($p: String!) { authenticate(input: {username: "eve", password: $p})
      { token errors { code } } }"""
    codes: Counter[str] = Counter()
    for n in range(0, 60, 4):
        tries = (siege.ask(guess, {}, p=f"{n + k}") for k in range(4))
        for answer in await asyncio.gather(*tries):
            done = json.loads(answer.body)["data"]["authenticate"]
            assert done["token"] is None
            codes[done["errors"][0]["code"]] += 1
    assert codes["AUTHENTICATION_FAILED"] <= 12, codes
    return "refused, then RATE_LIMITED" if codes["RATE_LIMITED"] >= 48 else str(codes)


@attack("guess: another's message, by its id", "as if it were not there", ms=SOON)
async def _(siege: Siege) -> str:
    """Content and time tell nothing apart."""
    owner = json.loads((await siege.ask(PAGE, siege.key_of("dora"))).body)
    theirs = owner["data"]["viewer"]["user"]["messages"]["nodes"][0]["id"]
    times: dict[str, list[float]] = {theirs: [], "msg_AAAAAAAAAAE": []}
    for _ in range(25):
        for each, taken in times.items():
            began = time.perf_counter()
            answer = await siege.ask(NAMED, i=each)
            taken.append(time.perf_counter() - began)
            assert json.loads(answer.body)["data"] == {"message": None}
    there, gone = (sorted(taken)[len(taken) // 2] for taken in times.values())
    assert abs(there - gone) < 0.02
    return "as if it were not there"


@attack("gone: a client leaves in the middle of a query", "no trace", ms=SOON)
async def _(siege: Siege) -> str:
    for _ in range(20):
        body = json.dumps({"query": f"{PAGE} #{siege.next()}"}).encode()
        async with siege.opened(request("POST", "/graphql", JSON | siege.key, body)):
            await asyncio.sleep(0.005)
    return "no trace"


ATTACKS += [
    *(
        Attack(f"slow: {name}", (said,), _dripping(sent, drop), ms=SOON)
        for name, (sent, drop, said) in DRIPS.items()
    ),
    *(
        Attack(f"slow: {name}", ("hung up", LATE, "400 BAD_USER_INPUT"), _silent(sent), ms=SOON)
        for name, sent in {
            "a connection, and nothing": b"",
            "half of a TLS greeting": b"\x16",
            "half of a handshake": handshake()[:-2],
        }.items()
    ),
]
