"""Attacks by WebSocket: handshakes, frames and operations."""

import asyncio
import json
import struct
from typing import Any

from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.support.attacks.attack_runner import (
    AttackedServer,
    AttackList,
    ServerAttack,
)
from tests.support.time_limits import HANG_SECONDS

ATTACKS = AttackList()
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
SIZE_IN_16_BITS, CLOSE_FRAME = 126, 0x88  # RFC 6455, section 5.2
CHANGES_SUBSCRIPTION = "subscription { changes { cursor } }"


def handshake(**headers: str) -> bytes:
    header_values = UPGRADE | {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{name}: {value}" for name, value in header_values.items() if value]
    return "\r\n".join(["GET /graphql HTTP/1.1", *lines, "", ""]).encode()


def frame(payload: bytes, first_byte: int = 0x81) -> bytes:
    """A frame with a pattern of zeros."""
    size = len(payload)
    if size < 126:
        return bytes([first_byte, 0x80 | size]) + MASK + payload
    return bytes([first_byte, 0xFE]) + struct.pack("!H", size) + MASK + payload


FRAMES = {
    "not masked": (b"\x81\x02{}", 1002),
    "reserved bits": (frame(b"{}", 0xF1), 1002),
    "an unknown opcode": (frame(b"{}", 0x83), 1002),
    "a fragmented ping": (frame(b"x", 0x09), 1002),
    "a ping of 200 bytes": (frame(b"x" * 200, 0x89), 1002),
    "a continuation without a start": (frame(b"x", 0x80), 1002),
    "2^63 bytes announced": (b"\x81\xff" + struct.pack("!Q", 1 << 63) + MASK, 1009),
    "2 MiB announced": (b"\x81\xff" + struct.pack("!Q", 1 << 21) + MASK, 1009),
    "text that is not UTF-8": (frame(b'"\xff\xfe"'), 1007),
    "a binary message": (frame(b"{}", 0x82), 4400),
    "text that is not JSON": (frame(b"{"), 4400),
    "an unknown type": (frame(b'{"type": "hack"}'), 4400),
    "a JSON list": (frame(b"[]"), 4400),
    "9,000 nested brackets": (frame(b"[" * 9000 + b"]" * 9000), 4400),
    "an operation before connection_init": (
        frame(b'{"type": "subscribe", "id": "1", "payload": {"query": "{ viewer { role } }"}}'),
        4401,
    ),
    "an operation ID of 9,000 characters": (
        frame(json.dumps({"type": "complete", "id": "x" * 9000}).encode()),
        4400,
    ),
    "connection_init twice": (frame(b'{"type": "connection_init"}') * 2, 4429),
    "a wrong credential": (
        frame(b'{"type": "connection_init", "payload": {"token": "mgk_x"}}'),
        4403,
    ),
}
HANDSHAKES = {
    "another version": (handshake(Sec_WebSocket_Version="7"), "400"),
    "no Sec-WebSocket-Key": (handshake(Sec_WebSocket_Key=""), "400"),
    "an invalid Sec-WebSocket-Key": (handshake(Sec_WebSocket_Key="x"), "400"),
    "a foreign Origin": (handshake(Origin="https://evil.example"), "403"),
    "a header field of 12 kB": (handshake(X_Long="x" * 12_000), "400 BAD_USER_INPUT"),
    "another path": (handshake().replace(b"/graphql", b"/rest/uploads"), "403"),
    "an upgrade to h2c": (
        handshake(Upgrade="h2c", Connection="Upgrade, close"),
        "400 BAD_USER_INPUT",
    ),
}


def _frame_attack(data: bytes) -> Any:
    async def run(target: AttackedServer) -> str:
        async with (
            asyncio.timeout(HANG_SECONDS),
            target.open_connection(handshake()) as (reader, writer),
        ):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
            writer.write(data)
            while True:  # the frames of the server are short and not masked
                opcode, size = await reader.readexactly(2)
                if size == SIZE_IN_16_BITS:
                    (size,) = struct.unpack("!H", await reader.readexactly(2))
                payload = await reader.readexactly(size)
                if opcode == CLOSE_FRAME:
                    return f"closed {struct.unpack('!H', payload[:2])[0]}"

    return run


def _handshake_attack(data: bytes) -> Any:
    async def run(target: AttackedServer) -> str:
        return (await target.send_raw(data)).summary

    return run


@attack("socket: 1,000 subscriptions at once", "100 run, 900 are refused")
async def _(target: AttackedServer) -> str:
    async with target.server.open_websocket(target.server.secrets["bob"]) as socket:
        for n in range(1000):
            await socket.subscribe(CHANGES_SUBSCRIPTION, str(n))
        refused_count = 0
        while refused_count < 900:
            received = await socket.read_frame()
            assert received["type"] == "error", received
            assert received["payload"][0]["extensions"]["code"] == "RATE_LIMITED"
            refused_count += 1
        return "100 run, 900 are refused" if await socket.receives_nothing(0.1) else "more"


@attack("socket: 3,000 pings", "3,000 pongs")
async def _(target: AttackedServer) -> str:
    async with target.server.open_websocket(target.server.secrets["bob"]) as socket:
        for _ in range(3000):
            await socket.send_frame({"type": "ping"})
        received = [(await socket.read_frame())["type"] for _ in range(3000)]
        return "3,000 pongs" if set(received) == {"pong"} else "other"


@attack("socket: 300 invalid documents", "300 errors")
async def _(target: AttackedServer) -> str:
    async with target.server.open_websocket(target.server.secrets["bob"]) as socket:
        for n in range(300):
            await socket.subscribe(f"{{ viewer {{ {n} }} }}", str(n))
        codes = {
            (await socket.read_frame())["payload"][0]["extensions"]["code"] for _ in range(300)
        }
        return "300 errors" if codes <= {"GRAPHQL_PARSE_FAILED", "RATE_LIMITED"} else str(codes)


@attack("socket: 60 WebSockets of one user", "20 are let in, others closed 1013")
async def _(target: AttackedServer) -> str:
    all_answered, answered = asyncio.Event(), asyncio.Semaphore(0)

    async def connect() -> int:
        async with target.server.open_websocket() as socket:
            payload = {"token": target.server.secrets["eve"]}
            try:
                await socket.send_frame({"type": "connection_init", "payload": payload})
                assert (await socket.read_frame())["type"] == "connection_ack"
                answered.release()
                await all_answered.wait()
            except ConnectionClosed:
                answered.release()
            return socket.ws.close_code or 0

    codes: list[asyncio.Task[int]] = []
    async with asyncio.timeout(HANG_SECONDS), asyncio.TaskGroup() as group:
        for _ in range(3):  # at most as many at once as one address may open before the sign-in
            codes += [group.create_task(connect()) for _ in range(20)]
            for _ in range(20):
                await answered.acquire()
        all_answered.set()
    close_codes = sorted(task.result() for task in codes)
    return (
        "20 are let in, others closed 1013"
        if close_codes == [0] * 20 + [1013] * 40
        else str(close_codes)
    )


@attack("socket: 60 anonymous WebSockets of one IP address", "20 are let in, others 429")
async def _(target: AttackedServer) -> str:
    answered = asyncio.Barrier(60)  # the sockets stay open until all clients have an answer

    async def connect() -> int:
        try:
            async with target.server.open_websocket(local_addr=("127.0.0.9", 0)):
                await answered.wait()
                return 101
        except InvalidStatus as error:
            await answered.wait()
            return error.response.status_code

    async with asyncio.timeout(HANG_SECONDS), asyncio.TaskGroup() as group:
        tasks = [group.create_task(connect()) for _ in range(60)]
    statuses = sorted(task.result() for task in tasks)
    return "20 are let in, others 429" if statuses == [101] * 20 + [429] * 40 else str(statuses)


ATTACKS += [
    *(
        ServerAttack(f"frame: {name}", (f"closed {code}",), _frame_attack(data))
        for name, (data, code) in FRAMES.items()
    ),
    *(
        ServerAttack(f"handshake: {name}", (expected,), _handshake_attack(data))
        for name, (data, expected) in HANDSHAKES.items()
    ),
]
