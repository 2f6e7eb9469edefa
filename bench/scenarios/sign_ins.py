"""Measure sign-ins: their rate, timing differences, and the effect of a flood on others."""

import asyncio
import itertools
import random
import statistics
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from sqlalchemy import update
from sqlmodel import col

from bench.figures.measurements import Fact, percentile
from bench.load.http_client import LENGTH, Target, post
from bench.load.sample_account import make_user
from bench.servers.merganser_process import hang_up
from bench.servers.ports import HOST
from merganser.server.environment_factory import opened
from merganser.settings.settings import Settings
from models.users.tables import User
from resolvers.auth.passwords import password_hashes

COUNT = 100  # enough that none is throttled
ROUNDS = 3
CONNECTIONS = 16
AT_ONCE = 8  # with the right password
OFFERED = 200  # of pages, and of wrong sign-ins
PASSWORD, WRONG = "correct horse", "battery staple"
SIGN_IN = (
    "mutation In($name: String!, $word: String!) { authenticate(input: {username: $name, "
    "password: $word}) { scope errors { code } } }"
)


class Line:
    """A persistent connection that sends one request after the other."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.ends: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> bytes:
        """Return the response, head and body."""
        if self.ends is None:
            self.ends = await asyncio.open_connection(HOST, self.port)
        reader, writer = self.ends
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        found = LENGTH.search(head)
        return head + await reader.readexactly(int(found[1]) if found else 0)


@asynccontextmanager
async def lines(port: int, many: int) -> AsyncGenerator[list[Line]]:
    """Provide this many connections, and close them at the end."""
    made = [Line(port) for _ in range(many)]
    try:
        yield made
    finally:
        for line in made:
            if line.ends:
                await hang_up(line.ends[1])


async def accounts(env: Mapping[str, str]) -> list[str]:
    """Create accounts with the password, and return their usernames."""
    settings = Settings(data=Path(env["MERGANSER_DATA"]))
    if store := env.get("MERGANSER_STORE"):
        settings = Settings(data=settings.data, store=store)
    names = [f"login{nth}@bench.example" for nth in range(COUNT)]
    async with opened(settings) as world:
        stored = await password_hashes.make(world, PASSWORD)
        made = [await make_user(world, name) for name in names]
        async with world.write() as session:
            these = col(User.id).in_([user.id for user in made])
            await session.exec(update(User).where(these).values(password=stored))
    return names


def sign_in(target: Target, name: str, word: str, place: int) -> bytes:
    """Return a sign-in request, from another network each, by the header of a trusted proxy."""
    body = {"query": SIGN_IN, "variables": {"name": name, "word": word}}
    request = post(Target(target.port, target.pid), "/graphql", body)
    address = f"X-Forwarded-For: 10.{place >> 8 & 255}.{place & 255}.1\r\n".encode()
    head, _, rest = request.partition(b"\r\n")
    return head + b"\r\n" + address + rest


async def measured(
    target: Target, env: Mapping[str, str], pages: Iterator[bytes], seconds: float
) -> list[Fact]:
    """Measure rate, timing and flood with the same accounts."""
    names = await accounts(env)
    facts = [await _rate(target, names, seconds)]
    facts += await _clock(target, names, trials=1000 if seconds >= 1 else 100)
    return facts + await _flood(target, pages, seconds)


async def _rate(target: Target, names: list[str], seconds: float) -> Fact:
    """Measure sign-ins with the right password, without pauses."""
    places, done = itertools.count(), 0
    turns = itertools.cycle(names)
    end = time.perf_counter() + seconds

    async def one(line: Line) -> None:
        nonlocal done
        while time.perf_counter() < end:
            answer = await line.ask(sign_in(target, next(turns), PASSWORD, next(places)))
            if b'"scope":"MASTER"' not in answer:
                raise RuntimeError(f"not a good answer: {answer!r}")
            done += 1

    began = time.perf_counter()
    async with lines(target.port, AT_ONCE) as some:
        await asyncio.gather(*map(one, some))
    return Fact("sign-ins with a password, a second", done / (time.perf_counter() - began), "")


async def _clock(target: Target, names: list[str], trials: int) -> list[Fact]:
    """Time unknown names and wrong passwords in random order, one at a time."""
    wrong = [names[nth % COUNT] for nth in range(trials // 2)]
    unknown = [f"nobody{nth}@bench.example" for nth in range(trials // 2)]
    tries = [(name, True) for name in wrong] + [(name, False) for name in unknown]
    random.Random(1).shuffle(tries)  # noqa: S311 - no secret
    took: dict[bool, list[float]] = {True: [], False: []}
    async with lines(target.port, 1) as (line,):
        for place, (name, there) in enumerate(tries, start=10_000):
            began = time.perf_counter()
            answer = await line.ask(sign_in(target, name, WRONG, place))
            took[there].append((time.perf_counter() - began) * 1e3)
            if b"AUTHENTICATION_FAILED" not in answer:
                raise RuntimeError(f"not a good answer: {answer!r}")
    known, nobody = statistics.median(took[True]), statistics.median(took[False])
    return [
        Fact(f"wrong password, median of {len(wrong)}", known, "ms"),
        Fact(f"unknown name, median of {len(unknown)}, by turns with it", nobody, "ms"),
    ]


async def _flood(target: Target, pages: Iterator[bytes], seconds: float) -> list[Fact]:
    """Return the p99 of pages at a fixed rate without and beside a flood, as medians of rounds."""
    alone, beside, said = list[float](), list[float](), Counter[str]()
    turn = itertools.count()

    def wrong() -> Iterator[bytes]:
        while True:
            nth = next(turn)
            yield sign_in(target, f"stranger{nth}@bench.example", WRONG, nth + 20_000)

    for _ in range(ROUNDS):
        alone.append(percentile(await _offered(target.port, pages, seconds), 0.99))
        flood = asyncio.create_task(_offered(target.port, wrong(), seconds * 1.2, said))
        await asyncio.sleep(seconds * 0.1)
        beside.append(percentile(await _offered(target.port, pages, seconds), 0.99))
        await flood
    before, after = (statistics.median(some) * 1e3 for some in (alone, beside))
    heard = said["AUTHENTICATION_FAILED"] / (ROUNDS * seconds * 1.2)
    flood_of = f"a flood of {OFFERED} wrong sign-ins a second"
    return [
        Fact(f"{OFFERED} inbox pages a second, p99", before, "ms"),
        Fact(f"the same beside {flood_of}", after, "ms"),
        Fact(f"times the p99, beside {flood_of}", after / before, ""),
        Fact("of the flood, hashed", heard, "a second"),
    ]


async def _offered(
    port: int, requests: Iterator[bytes], seconds: float, said: Counter[str] | None = None
) -> list[float]:
    """Send requests at a fixed rate. Returns latencies from the due times."""
    idle: asyncio.LifoQueue[Line] = asyncio.LifoQueue()
    latencies = list[float]()

    async def one(due: float) -> None:
        line = await idle.get()
        answer = await line.ask(next(requests))
        latencies.append(time.perf_counter() - due)
        idle.put_nowait(line)
        if said is not None:
            said["AUTHENTICATION_FAILED" if b"AUTHENTICATION_FAILED" in answer else "other"] += 1
        elif not answer.startswith(b"HTTP/1.1 200") or b'"errors":[{' in answer:
            raise RuntimeError(f"not a good answer: {answer[:2000]!r}")

    async with lines(port, CONNECTIONS if said is None else 256) as some:
        for line in some:
            idle.put_nowait(line)
        begin, tasks = time.perf_counter(), list[asyncio.Task[None]]()
        for nth in range(round(seconds * OFFERED)):
            due = begin + nth / OFFERED
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(asyncio.create_task(one(due)))
        await asyncio.gather(*tasks)
    return latencies
