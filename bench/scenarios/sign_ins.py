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

from bench.figures.measurements import MeasuredValue, percentile
from bench.load.http_client import CONTENT_LENGTH, BenchmarkTarget, encode_post_request
from bench.load.sample_account import create_user
from bench.servers.merganser_process import close_connection
from bench.servers.ports import HOST
from merganser.server.environment_factory import open_environment
from merganser.settings.settings import Settings
from models.users.tables import User
from resolvers.auth.passwords import password_hashes

ACCOUNT_COUNT = 100  # enough that none is throttled
ROUNDS = 3
CONNECTION_COUNT = 16
CONCURRENT_SIGN_INS = 8  # with the right password
REQUESTS_PER_SECOND = 200  # of pages, and of wrong sign-ins
PASSWORD, WRONG_PASSWORD = "correct horse", "battery staple"
SIGN_IN_MUTATION = (
    "mutation In($name: String!, $word: String!) { passwordVerify(input: {username: $name, "
    "password: $word, scope: FULL}) { errors { code } } }"
)


class PersistentConnection:
    """A persistent connection that sends one request after the other."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send_request(self, request: bytes) -> bytes:
        """Return the response, head and body."""
        if self.streams is None:
            self.streams = await asyncio.open_connection(HOST, self.port)
        reader, writer = self.streams
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        match = CONTENT_LENGTH.search(head)
        return head + await reader.readexactly(int(match[1]) if match else 0)


@asynccontextmanager
async def open_connections(
    port: int, connection_count: int
) -> AsyncGenerator[list[PersistentConnection]]:
    """Provide this many connections, and close them at the end."""
    connections = [PersistentConnection(port) for _ in range(connection_count)]
    try:
        yield connections
    finally:
        for line in connections:
            if line.streams:
                await close_connection(line.streams[1])


async def create_accounts(process_environment: Mapping[str, str]) -> list[str]:
    """Create accounts with the password, and return their usernames."""
    settings = Settings(data=Path(process_environment["MERGANSER_DATA"]))
    if store := process_environment.get("MERGANSER_DATABASE_URL"):
        settings = Settings(data=settings.data, database_url=store)
    names = [f"login{nth}@bench.example" for nth in range(ACCOUNT_COUNT)]
    async with open_environment(settings) as environment:
        stored = await password_hashes.hash_password(environment, PASSWORD)
        users = [await create_user(environment, name) for name in names]
        async with environment.write_session() as session:
            is_new_user = col(User.id).in_([user.id for user in users])
            await session.exec(update(User).where(is_new_user).values(password=stored))
    return names


def encode_sign_in(
    target: BenchmarkTarget, username: str, password: str, network_number: int
) -> bytes:
    """Return a sign-in request, from another network each, by the header of a trusted proxy."""
    body = {"query": SIGN_IN_MUTATION, "variables": {"name": username, "word": password}}
    request = encode_post_request(BenchmarkTarget(target.port, target.pid), "/graphql", body)
    address = (
        f"X-Forwarded-For: 10.{network_number >> 8 & 255}.{network_number & 255}.1\r\n".encode()
    )
    head, _, rest = request.partition(b"\r\n")
    return head + b"\r\n" + address + rest


async def measure_sign_ins(
    target: BenchmarkTarget,
    process_environment: Mapping[str, str],
    page_requests: Iterator[bytes],
    seconds: float,
) -> list[MeasuredValue]:
    """Measure rate, timing and flood with the same accounts."""
    names = await create_accounts(process_environment)
    facts = [await _measure_rate(target, names, seconds)]
    facts += await _measure_timing(target, names, trials=1000 if seconds >= 1 else 100)
    return facts + await _measure_flood(target, page_requests, seconds)


async def _measure_rate(
    target: BenchmarkTarget, usernames: list[str], seconds: float
) -> MeasuredValue:
    """Measure sign-ins with the right password, without pauses."""
    numbers, sign_in_count = itertools.count(), 0
    turns = itertools.cycle(usernames)
    end = time.perf_counter() + seconds

    async def sign_in_repeatedly(connection: PersistentConnection) -> None:
        nonlocal sign_in_count
        while time.perf_counter() < end:
            answer = await connection.send_request(
                encode_sign_in(target, next(turns), PASSWORD, next(numbers))
            )
            if b'"errors":[]' not in answer:
                raise RuntimeError(f"unexpected response: {answer!r}")
            sign_in_count += 1

    started_at = time.perf_counter()
    async with open_connections(target.port, CONCURRENT_SIGN_INS) as some:
        await asyncio.gather(*map(sign_in_repeatedly, some))
    return MeasuredValue(
        "sign-ins with a password per second",
        sign_in_count / (time.perf_counter() - started_at),
        "",
    )


async def _measure_timing(
    target: BenchmarkTarget, usernames: list[str], trials: int
) -> list[MeasuredValue]:
    """Time unknown names and wrong passwords in random order, one at a time."""
    wrong = [usernames[nth % ACCOUNT_COUNT] for nth in range(trials // 2)]
    unknown = [f"nobody{nth}@bench.example" for nth in range(trials // 2)]
    tries = [(name, True) for name in wrong] + [(name, False) for name in unknown]
    random.Random(1).shuffle(tries)  # noqa: S311 - no secret
    took: dict[bool, list[float]] = {True: [], False: []}
    async with open_connections(target.port, 1) as (line,):
        for number, (name, is_known) in enumerate(tries, start=10_000):
            started_at = time.perf_counter()
            answer = await line.send_request(encode_sign_in(target, name, WRONG_PASSWORD, number))
            took[is_known].append((time.perf_counter() - started_at) * 1e3)
            if b"AUTHENTICATION_FAILED" not in answer:
                raise RuntimeError(f"unexpected response: {answer!r}")
    known_user_ms = statistics.median(took[True])
    unknown_user_ms = statistics.median(took[False])
    return [
        MeasuredValue(
            f"sign-in with a wrong password, median of {len(wrong)}", known_user_ms, "ms"
        ),
        MeasuredValue(
            f"sign-in with an unknown username, median of {len(unknown)}", unknown_user_ms, "ms"
        ),
    ]


async def _measure_flood(
    target: BenchmarkTarget, page_requests: Iterator[bytes], seconds: float
) -> list[MeasuredValue]:
    """Return the p99 of pages at a fixed rate without and during a flood, as medians of rounds."""
    unloaded, loaded, error_counts = list[float](), list[float](), Counter[str]()
    numbers = itertools.count()

    def wrong_sign_ins() -> Iterator[bytes]:
        while True:
            nth = next(numbers)
            yield encode_sign_in(
                target, f"stranger{nth}@bench.example", WRONG_PASSWORD, nth + 20_000
            )

    for _ in range(ROUNDS):
        unloaded.append(
            percentile(await send_at_fixed_rate(target.port, page_requests, seconds), 0.99)
        )
        flood = asyncio.create_task(
            send_at_fixed_rate(target.port, wrong_sign_ins(), seconds * 1.2, error_counts)
        )
        await asyncio.sleep(seconds * 0.1)
        loaded.append(
            percentile(await send_at_fixed_rate(target.port, page_requests, seconds), 0.99)
        )
        await flood
    before, after = (statistics.median(some) * 1e3 for some in (unloaded, loaded))
    hashed_per_second = error_counts["AUTHENTICATION_FAILED"] / (ROUNDS * seconds * 1.2)
    failed_sign_ins = f"{REQUESTS_PER_SECOND} failed sign-ins per second"
    return [
        MeasuredValue(f"{REQUESTS_PER_SECOND} inbox pages per second, p99", before, "ms"),
        MeasuredValue(f"the same during {failed_sign_ins}", after, "ms"),
        MeasuredValue(f"p99 ratio during {failed_sign_ins}", after / before, ""),
        MeasuredValue(
            "failed sign-ins whose password was hashed, per second", hashed_per_second, ""
        ),
    ]


async def send_at_fixed_rate(
    port: int, requests: Iterator[bytes], seconds: float, outcomes: Counter[str] | None = None
) -> list[float]:
    """Send requests at a fixed rate. Returns latencies from the due times."""
    idle: asyncio.LifoQueue[PersistentConnection] = asyncio.LifoQueue()
    latencies = list[float]()

    async def send_when_due(due_at: float) -> None:
        line = await idle.get()
        answer = await line.send_request(next(requests))
        latencies.append(time.perf_counter() - due_at)
        idle.put_nowait(line)
        if outcomes is not None:
            outcomes[
                "AUTHENTICATION_FAILED" if b"AUTHENTICATION_FAILED" in answer else "other"
            ] += 1
        elif not answer.startswith(b"HTTP/1.1 200") or b'"errors":[{' in answer:
            raise RuntimeError(f"unexpected response: {answer[:2000]!r}")

    async with open_connections(port, CONNECTION_COUNT if outcomes is None else 256) as some:
        for line in some:
            idle.put_nowait(line)
        begin, tasks = time.perf_counter(), list[asyncio.Task[None]]()
        for nth in range(round(seconds * REQUESTS_PER_SECOND)):
            due = begin + nth / REQUESTS_PER_SECOND
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(asyncio.create_task(send_when_due(due)))
        await asyncio.gather(*tasks)
    return latencies
