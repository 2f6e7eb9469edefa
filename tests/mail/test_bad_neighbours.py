"""Servers that answer wrongly, slowly, endlessly or not at all, at each step."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from mail.fields import Named
from mail.queue import pacing
from mail.routing import Route, next_hop
from models.submission import SubmissionState
from models.world import World
from tests.conftest import Client, Clock
from tests.mail.sending import (
    PACE,
    State,
    deliveries,
    inbox,
    is_now,
    ring,
    send,
    settled,
    state,
    until,
    working,
)

QUICK = replace(PACE, connect=1.0, greeting=1.5, answer=1.0, envelope=1.5, final=1.0)
STEPS = ("GREETING", "EHLO", "MAIL", "RCPT", "DATA", "DOT")
USUAL = {"EHLO": "250-there\r\n250 SIZE 1000000", "DATA": "354 Go on", "QUIT": "221 Bye"}
CAROL = Named("carol@example.net")


@dataclass
class Bad:
    """A server that does at one step what it should not; at the others, what it should."""

    step: str = ""
    what: str = ""
    times: int = 1000  # then it behaves
    together: bool = False  # it takes several commands at once
    said: list[str] = field(default_factory=list)
    taken: int = 0
    port: int = 0
    connections: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self.answer("GREETING", reader, writer)
            while line := await reader.readline():
                verb = line[:4].decode().upper().strip()
                self.said.append(line.decode().strip())
                await self.answer(verb, reader, writer)
                if verb == "DATA" and not (self.step == "DATA" and self.times >= 0):
                    while (await reader.readline()) not in (b".\r\n", b""):
                        pass
                    self.taken += 1
                    await self.answer("DOT", reader, writer)
                if verb == "QUIT":
                    break
        except (OSError, EOFError):
            pass
        finally:
            writer.close()

    async def answer(
        self, step: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if self.together and step == "EHLO":
            usual = "250-there\r\n250-PIPELINING\r\n250 SIZE 1000000"
        else:
            usual = USUAL.get(step, "220 there" if step == "GREETING" else "250 2.0.0 OK")
        if step != self.step or self.times <= 0:
            writer.write(f"{usual}\r\n".encode())
            return
        self.times -= 1
        await DEEDS.get(self.what, _said)(self.what, usual, writer)
        if self.what == "silence":
            await reader.read()

    @asynccontextmanager
    async def listening(self) -> AsyncGenerator[Route]:
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield Route(next_hop(f"smtp://127.0.0.1:{self.port}"))
        finally:
            server.close()


async def _said(what: str, _usual: str, writer: asyncio.StreamWriter) -> None:
    writer.write(f"{what}\r\n".encode())


async def _silence(_what: str, _usual: str, _writer: asyncio.StreamWriter) -> None:
    return


async def _hang_up(_what: str, _usual: str, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def _endless(_what: str, usual: str, writer: asyncio.StreamWriter) -> None:
    for _ in range(100_000):
        writer.write(f"{usual[:3]}-more and more\r\n".encode())
        await writer.drain()


async def _long(_what: str, usual: str, writer: asyncio.StreamWriter) -> None:
    writer.write(usual[:3].encode() + b" " + b"x" * (1 << 20) + b"\r\n")
    await writer.drain()


async def _drip(_what: str, usual: str, writer: asyncio.StreamWriter) -> None:
    for byte in f"{usual[:3]} {'x' * 1000}\r\n".encode():
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.2)


DEEDS: dict[str, Callable[..., Awaitable[None]]] = {
    "silence": _silence,
    "hang up": _hang_up,
    "endless": _endless,
    "long": _long,
    "drip": _drip,
}


@pytest.mark.parametrize(
    "what", ["silence", "hang up", "endless", "long", "drip", "garbage", "999 x"]
)
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("together", [False, True], ids=["in turn", "together"])
async def test_whatever_it_does_the_mail_waits_and_nothing_hangs(
    ada: Client, world: World, *, together: bool, step: str, what: str
) -> None:
    bad = Bad(step, what, together=together)
    async with bad.listening() as route, working(world, route, QUICK):
        row = (await settled(world, await send(ada, CAROL)))["carol"]
    gone = (step, what) in {("EHLO", "garbage"), ("EHLO", "999 x"), ("GREETING", "999 x")}
    if row.state is State.RELAYED:  # it was of no consequence
        assert gone
        return
    assert (row.state, row.lease) == (State.DEFERRED, None)
    assert 400 <= row.last_code < 500
    assert len(row.last_response) <= 600
    assert row.last_response.isprintable()
    # Only behind the dot the other side may have it in spite of all.
    assert (row.final_dot_at is not None) is (step == "DOT" and what != "999 x")


async def test_a_connection_that_died_meanwhile_costs_no_attempt(ada: Client, world: World) -> None:
    there = Bad()
    async with there.listening() as route, working(world, route, QUICK):
        await settled(world, await send(ada, CAROL))
        there.step, there.what, there.times = "MAIL", "hang up", 1
        row = (await settled(world, await send(ada, CAROL)))["carol"]
    assert (row.state, row.attempts) == (State.RELAYED, 1)
    assert (there.connections, there.taken) == (2, 2)


async def test_connections_are_used_again_up_to_their_number(ada: Client, world: World) -> None:
    options = replace(world.options, send_connection_messages=3)
    there = Bad()
    async with there.listening() as route, working(replace(world, options=options), route, QUICK):
        for _ in range(7):
            await settled(world, await send(ada, CAROL))
    assert (there.taken, there.connections) == (7, 3)
    assert there.said.count("QUIT") == 3


async def test_what_was_refused_is_taken_back_before_the_next(ada: Client, world: World) -> None:
    there = Bad("RCPT", "550 5.1.1 No", 1)
    async with there.listening() as route, working(world, route, QUICK):
        await settled(world, await send(ada, CAROL))
        await settled(world, await send(ada, CAROL))
    assert there.connections == 1
    assert [line[:4] for line in there.said] == [
        "EHLO", "MAIL", "RCPT", "RSET", "MAIL", "RCPT", "DATA", "QUIT",
    ]  # fmt: skip


async def test_commands_go_together_where_that_is_offered(ada: Client, world: World) -> None:
    """Whoever is refused, and whatever: the next message begins anew."""
    there = Bad(together=True)
    refusals = [("MAIL", "450 4.0.0 No"), ("RCPT", "550 5.1.1 No"), ("DATA", "451 4.0.0 No")]
    async with there.listening() as route, working(world, route, QUICK):
        await settled(world, await send(ada))
        for step, what in refusals:
            there.step, there.what, there.times = step, what, 2 if step == "RCPT" else 1
            rows = await settled(world, await send(ada))
            assert {f"{row.last_code} {row.last_response}" for row in rows.values()} == {what}
            there.step = ""
            rows = await settled(world, await send(ada))
            assert {row.state for row in rows.values()} == {State.RELAYED}
        there.step, there.what, there.times = "RCPT", "450 4.2.1 Later", 1
        rows = await settled(world, await send(ada))
        assert (rows["carol"].state, rows["dave"].state) == (State.DEFERRED, State.RELAYED)
    assert (there.connections, there.taken) == (1, 7)


async def test_who_is_down_is_left_alone_for_a_while(
    ada: Client, world: World, clock: Clock
) -> None:
    there = Bad("GREETING", "421 4.3.2 Later")
    async with there.listening() as route, working(world, route, QUICK):
        keys = [await send(ada, CAROL) for _ in range(5)]
        rows = [await put_off(world, key) for key in keys]
        tried = [row for row in rows if row.attempts]
        assert 1 <= len(tried) == there.connections < 5
        assert {(row.attempts, row.last_response) for row in tried} == {(1, "4.3.2 Later")}
        there.times = 0
        async with asyncio.timeout(60):
            for key in keys:
                while not await is_now(world, key, "carol", State.RELAYED):
                    await asyncio.sleep(0.5)  # pauses of places are not those of the test's clock
                    clock.tick(minutes=5)
                    ring(world)


@pytest.fixture
def long_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is down is left alone for longer than a test lasts."""
    monkeypatch.setattr(pacing, "FIRST", 250.0)


async def put_off(world: World, key: int) -> Any:
    """The delivery to carol, once nobody holds it and it waits for another time."""
    await until(lambda: is_now(world, key, "carol", State.DEFERRED))
    return (await deliveries(world, key))["carol"]


@pytest.mark.usefixtures("long_down")
async def test_what_is_not_tried_is_no_attempt_and_is_put_off_for_longer_the_older_it_is(
    ada: Client, world: World, clock: Clock
) -> None:
    there = Bad("GREETING", "421 4.3.2 Later")
    async with there.listening() as route, working(world, route, QUICK):
        await put_off(world, await send(ada, CAROL))
        assert there.connections == 1
        key = await send(ada, CAROL)
        row = await put_off(world, key)
        assert (row.attempts, row.last_code, row.last_response, row.mx) == (0, None, None, None)
        assert row.turn_at is None
        assert 200 < (row.next_at - clock()).total_seconds() <= pacing.FIRST
        assert await state(world, key) is SubmissionState.SENDING

        clock.tick(hours=2)
        ring(world)
        until_ = clock() + timedelta(minutes=30)
        await until(lambda: waits_till(world, key, until_))
        row = (await deliveries(world, key))["carol"]
        assert (row.attempts, row.last_response) == (0, None)
    assert there.connections == 1


async def waits_till(world: World, key: int, at: datetime) -> bool:
    row = (await deliveries(world, key))["carol"]
    return bool(row.next_at == at and row.lease is None)


@pytest.mark.usefixtures("long_down")
async def test_what_was_said_last_stands_while_a_place_is_down(
    ada: Client, world: World, clock: Clock
) -> None:
    there, options = (
        Bad("RCPT", "450 4.2.1 Not now"),
        replace(world.options, send_connections_kept=0),
    )
    async with there.listening() as route, working(replace(world, options=options), route, QUICK):
        key = await send(ada, CAROL)
        before = await put_off(world, key)
        there.step, there.what = "GREETING", "421 4.3.2 Later"
        await put_off(world, await send(ada, CAROL))
        clock.tick(minutes=20)
        ring(world)
        await until(lambda: moved(world, key, before.next_at))
        row = (await deliveries(world, key))["carol"]
    assert (row.attempts, row.last_response) == (1, "4.2.1 Not now")
    assert there.connections == 2


async def moved(world: World, key: int, at: datetime) -> bool:
    row = (await deliveries(world, key))["carol"]
    return bool(row.next_at and row.next_at != at and row.lease is None)


@pytest.mark.usefixtures("long_down")
@pytest.mark.parametrize("what", ["delay", "end"])
async def test_delay_and_end_come_in_their_time_though_nobody_is_asked(
    ada: Client, world: World, clock: Clock, what: str
) -> None:
    there = Bad("GREETING", "421 4.3.2 Later")
    async with there.listening() as route:
        first = await send(ada, CAROL)
        async with working(world, route, QUICK):
            await put_off(world, first)
            key = await send(ada, CAROL)
            await put_off(world, key)
            clock.tick(**({"hours": 4.5} if what == "delay" else {"days": 5}))
            ring(world)
            await until(lambda: reported(ada, 2))
    row = (await deliveries(world, key))["carol"]
    (letter, _) = await inbox(ada)
    assert (row.attempts, there.connections) == (0, 1)
    if what == "delay":
        assert (letter.subject, row.state) == ("Your message is delayed", State.DEFERRED)
        assert row.last_response is None
        assert row.delay_told_at == clock()
    else:
        assert letter.subject == "Your message could not be delivered"
        assert (row.state, row.last_response) == (State.EXPIRED, "4.3.2 Later")


async def reported(ada: Client, many: int) -> bool:
    return len(await inbox(ada)) >= many


async def test_a_place_gets_so_many_in_a_minute(ada: Client, world: World, clock: Clock) -> None:
    options = replace(world.options, send_per_minute=6)
    there = Bad()
    async with there.listening() as route, working(replace(world, options=options), route, QUICK):
        keys = [await send(ada, CAROL) for _ in range(4)]

        async def looked_at() -> bool:
            rows = [(await deliveries(world, key))["carol"] for key in keys]
            over = [row.state is State.RELAYED for row in rows]
            late = [row.next_at is not None and row.next_at > clock() for row in rows]
            free = all(row.lease is None for row in rows)
            return free and sum(over) == 1 and sum(late) == len(keys) - 1

        await until(looked_at)
        waiting = [row for key in keys if (row := (await deliveries(world, key))["carol"]).next_at]
        assert [row.attempts for row in waiting] == [0, 0, 0]
        waits = sorted((row.next_at - clock()).total_seconds() for row in waiting)
        assert [round(wait / 10) for wait in waits] == [1, 2, 3]
    assert there.taken == 1
