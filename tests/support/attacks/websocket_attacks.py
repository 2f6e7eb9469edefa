"""Attacks by WebSocket: its handshake, its frames, and what is asked through them."""

import asyncio
import json
import struct
from typing import Any

from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.support.attacks.attack_runner import PATIENCE, Attack, Attacks, Siege

ATTACKS = Attacks()
attack = ATTACKS.__call__
UPGRADE = {
    "Host": "a",
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "MDAwMDAwMDAwMDAwMDAwMA==",
    "Sec-WebSocket-Protocol": "graphql-transport-ws",
}
MASK = bytes(4)
LONGER, CLOSING = 126, 0x88  # RFC 6455, section 5.2
FOLLOW = "subscription { changes { cursor } }"


def handshake(**headers: str) -> bytes:
    given = UPGRADE | {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{name}: {value}" for name, value in given.items() if value]
    return "\r\n".join(["GET /graphql HTTP/1.1", *lines, "", ""]).encode()


def frame(payload: bytes, first: int = 0x81) -> bytes:
    """A masked frame; the mask changes nothing."""
    size = len(payload)
    if size < 126:
        return bytes([first, 0x80 | size]) + MASK + payload
    return bytes([first, 0xFE]) + struct.pack("!H", size) + MASK + payload


FRAMES = {
    "not masked": (b"\x81\x02{}", 1002),
    "reserved bits": (frame(b"{}", 0xF1), 1002),
    "an unknown opcode": (frame(b"{}", 0x83), 1002),
    "a ping in pieces": (frame(b"x", 0x09), 1002),
    "a ping of 200 bytes": (frame(b"x" * 200, 0x89), 1002),
    "a continuation of nothing": (frame(b"x", 0x80), 1002),
    "2^63 bytes announced": (b"\x81\xff" + struct.pack("!Q", 1 << 63) + MASK, 1009),
    "2 MiB announced": (b"\x81\xff" + struct.pack("!Q", 1 << 21) + MASK, 1009),
    "text that is not UTF-8": (frame(b'"\xff\xfe"'), 1007),
    "bytes, not text": (frame(b"{}", 0x82), 4400),
    "no JSON": (frame(b"{"), 4400),
    "an unknown type": (frame(b'{"type": "hack"}'), 4400),
    "a list": (frame(b"[]"), 4400),
    "brackets 9,000 deep": (frame(b"[" * 9000 + b"]" * 9000), 4400),
    "an operation before the greeting": (
        frame(b'{"type": "subscribe", "id": "1", "payload": {"query": "{ viewer { role } }"}}'),
        4401,
    ),
    "an id of 9,000 letters": (
        frame(json.dumps({"type": "complete", "id": "x" * 9000}).encode()),
        4400,
    ),
    "two greetings": (frame(b'{"type": "connection_init"}') * 2, 4429),
    "a wrong credential": (
        frame(b'{"type": "connection_init", "payload": {"token": "mgk_x"}}'),
        4403,
    ),
}
HANDSHAKES = {
    "another version": (handshake(Sec_WebSocket_Version="7"), "400"),
    "no key": (handshake(Sec_WebSocket_Key=""), "400"),
    "a key that is none": (handshake(Sec_WebSocket_Key="x"), "400"),
    "a foreign page": (handshake(Origin="https://evil.example"), "403"),
    "a header of 12 kB": (handshake(X_Long="x" * 12_000), "400 BAD_USER_INPUT"),
    "another path": (handshake().replace(b"/graphql", b"/rest/uploads"), "403"),
    "h2c": (handshake(Upgrade="h2c", Connection="Upgrade, close"), "400 BAD_USER_INPUT"),
}


def _framed(sent: bytes) -> Any:
    async def run(siege: Siege) -> str:
        async with asyncio.timeout(PATIENCE), siege.opened(handshake()) as (reader, writer):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
            writer.write(sent)
            while True:  # frames of ours: short ones, not masked
                opcode, size = await reader.readexactly(2)
                if size == LONGER:
                    (size,) = struct.unpack("!H", await reader.readexactly(2))
                payload = await reader.readexactly(size)
                if opcode == CLOSING:
                    return f"closed {struct.unpack('!H', payload[:2])[0]}"

    return run


def _shaken(sent: bytes) -> Any:
    async def run(siege: Siege) -> str:
        return (await siege.raw(sent)).said

    return run


@attack("socket: 1,000 subscriptions at once", "100 run, 900 are refused")
async def _(siege: Siege) -> str:
    async with siege.server.socket(siege.server.secrets["bob"]) as socket:
        for n in range(1000):
            await socket.subscribe(FOLLOW, str(n))
        refused = 0
        while refused < 900:
            heard = await socket.hear()
            assert heard["type"] == "error", heard
            assert heard["payload"][0]["extensions"]["code"] == "RATE_LIMITED"
            refused += 1
        return "100 run, 900 are refused" if await socket.silent(0.1) else "more"


@attack("socket: 3,000 pings", "3,000 pongs")
async def _(siege: Siege) -> str:
    async with siege.server.socket(siege.server.secrets["bob"]) as socket:
        for _ in range(3000):
            await socket.say({"type": "ping"})
        heard = [(await socket.hear())["type"] for _ in range(3000)]
        return "3,000 pongs" if set(heard) == {"pong"} else "other"


@attack("socket: 300 documents that are none", "300 errors")
async def _(siege: Siege) -> str:
    async with siege.server.socket(siege.server.secrets["bob"]) as socket:
        for n in range(300):
            await socket.subscribe(f"{{ viewer {{ {n} }} }}", str(n))
        codes = {(await socket.hear())["payload"][0]["extensions"]["code"] for _ in range(300)}
        return "300 errors" if codes <= {"GRAPHQL_PARSE_FAILED", "RATE_LIMITED"} else str(codes)


@attack("socket: 60 sockets of one user", "20 are let in, others closed 1013")
async def _(siege: Siege) -> str:
    wait, answered, codes = asyncio.Event(), asyncio.Semaphore(0), []

    async def one() -> int:
        async with siege.server.socket() as socket:
            payload = {"token": siege.server.secrets["eve"]}
            try:
                await socket.say({"type": "connection_init", "payload": payload})
                assert (await socket.hear())["type"] == "connection_ack"
                answered.release()
                await asyncio.wait_for(wait.wait(), PATIENCE)
            except ConnectionClosed:
                answered.release()
            return socket.ws.close_code or 0

    for _ in range(3):  # no more at once than one address may open before it signs in
        codes += [asyncio.create_task(one()) for _ in range(20)]
        async with asyncio.timeout(PATIENCE):
            for _ in range(20):
                await answered.acquire()
    wait.set()
    found = sorted(await asyncio.gather(*codes))
    return "20 are let in, others closed 1013" if found == [0] * 20 + [1013] * 40 else str(found)


@attack("socket: 60 strangers' sockets of one address", "20 are let in, others 429")
async def _(siege: Siege) -> str:
    wait, statuses = asyncio.Event(), []

    async def one() -> int:
        try:
            async with siege.server.socket(local_addr=("127.0.0.9", 0)):
                await wait.wait()
                return 101
        except InvalidStatus as refusal:
            return refusal.response.status_code

    tasks = [asyncio.create_task(one()) for _ in range(60)]
    await asyncio.sleep(0.4)
    wait.set()
    statuses = sorted(await asyncio.gather(*tasks))
    return "20 are let in, others 429" if statuses == [101] * 20 + [429] * 40 else str(statuses)


ATTACKS += [
    *(
        Attack(f"frame: {name}", (f"closed {code}",), _framed(sent))
        for name, (sent, code) in FRAMES.items()
    ),
    *(
        Attack(f"handshake: {name}", (said,), _shaken(sent))
        for name, (sent, said) in HANDSHAKES.items()
    ),
]
