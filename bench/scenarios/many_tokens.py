"""`python -m bench.scenarios.many_tokens`: 200 users with own tokens that send every 5 seconds.

Other benchmarks send requests with one token without a pause. Real clients send every few
seconds, so short-lived cache entries have expired. The same number of requests with one token
shows the difference.
"""

import asyncio
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.progress import Progress
from sqlalchemy import select
from sqlmodel import col

from bench.figures.measurements import Fact, percentile
from bench.load.http_client import Target, post
from bench.load.sample_account import make_user
from bench.scenarios.sign_ins import Line, lines
from bench.servers.compared_servers import Kind, postgres
from bench.servers.merganser_process import Server, bounded, fine_cpu, running, settled
from merganser.server.environment_factory import opened, owner
from merganser.settings.settings import Settings
from models.runtime.environment import World
from models.store.columns import picked
from models.users.tables import User
from resolvers.auth import access_tokens
from resolvers.auth.access_tokens import NewToken
from resolvers.context import Context

NAME = "occasional users"
USERS = 200
PAUSE = 5.0  # seconds
ROUNDS = 4  # requests of each user
LONGEST = 600.0  # seconds
DOCUMENTS = {  # by name
    "viewer": "{ viewer { role user { id username } } }",
    "mailboxes": "{ mailboxes { nodes { id path unseen } } }",
}


async def measured(
    kind: Kind,
    folder: Path,
    *,
    rounds: int = ROUNDS,
    bar: Progress | None = None,
) -> list[Fact]:
    """Return CPU and latency per document: with 200 tokens, and with one at the same rate."""
    url = postgres(folder) if kind is Kind.POSTGRES else None
    server = Server(folder / "occasional", url)
    settings = Settings(data=server.folder, store=url) if url else Settings(data=server.folder)
    async with opened(settings, migrate=True) as world:
        secrets = await sign_in(world, USERS)
    task = bar.add_task(NAME, total=len(DOCUMENTS)) if bar else None
    facts = list[Fact]()
    async with running(server.start) as pid:
        for name, document in DOCUMENTS.items():
            for whose, some in ((f"{USERS} tokens", secrets), ("one token", secrets[:1] * USERS)):
                bodies = [_request(server, pid, each, document) for each in some]
                await _paced(server, bodies, 0)  # compiles the document
                await settled(pid)
                began, latencies = fine_cpu(pid), list[float]()
                for _ in range(rounds):
                    latencies += await _paced(server, bodies, PAUSE)
                cost = (fine_cpu(pid) - began) * 1e6 / len(latencies)
                text = f"{name}, {whose} every {PAUSE:g} s"
                facts.append(Fact(f"{text}, CPU of a request", cost, "µs"))
                facts.append(Fact(f"{text}, p50", percentile(latencies, 0.5) * 1e3, "ms"))
            if bar and task is not None:
                bar.advance(task)
    return facts


async def sign_in(world: World, many: int) -> list[str]:
    """Create users, and return an access token for each."""
    made = [await make_user(world, f"now-and-then{nth}@bench.example") for nth in range(many)]
    these = select(*picked(User)).where(col(User.id).in_([user.id for user in made]))
    rows = await world.database.read(these)
    async with Context(world, owner(world).viewer).write() as session:
        idle = world.options.token_idle
        return [
            (await access_tokens.create(owner(world), session, NewToken(row, idle)))[0]
            for row in rows
        ]


def _request(server: Server, pid: int, secret: str, document: str) -> bytes:
    return post(Target(server.http, pid, secret), "/graphql", {"query": document})


async def _paced(server: Server, bodies: Sequence[bytes], seconds: float) -> list[float]:
    """Send each request once, evenly over some seconds. Returns latencies from the due times.

    Raises RuntimeError on an error response.
    """
    idle: asyncio.LifoQueue[Line] = asyncio.LifoQueue()
    latencies = list[float]()

    async def one(body: bytes, due: float) -> None:
        line = await idle.get()
        answer = await line.ask(body)
        latencies.append(time.perf_counter() - due)
        idle.put_nowait(line)
        if not answer.startswith(b"HTTP/1.1 200") or b'"errors":[{' in answer:
            raise RuntimeError(f"not a good answer: {answer[:2000]!r}")

    async with lines(server.http, 16) as some:
        for line in some:
            idle.put_nowait(line)
        begin, tasks = time.perf_counter(), list[asyncio.Task[None]]()
        for nth, body in enumerate(bodies):
            due = begin + nth * seconds / len(bodies)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(asyncio.create_task(one(body, due)))
        await asyncio.gather(*tasks)
        await asyncio.sleep(max(0.0, begin + seconds - time.perf_counter()))
    return latencies


def bench(
    store: Annotated[Kind, typer.Option(help="Where rows lie.")] = Kind.SQLITE,
    rounds: Annotated[int, typer.Option(help="Requests of each user.")] = ROUNDS,
) -> None:
    """Measure requests of many users with pauses."""

    async def work() -> None:
        with tempfile.TemporaryDirectory(prefix="merganser-occasional-") as folder:
            for fact in await measured(store, Path(folder), rounds=rounds):
                typer.echo(f"{fact.name:60} {fact.value:10.1f} {fact.unit}")

    uvloop.run(bounded(work(), LONGEST))


if __name__ == "__main__":
    typer.run(bench)
