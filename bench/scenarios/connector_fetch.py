"""Measure fetching of messages from a local Dovecot, and a run that finds nothing new.

Another client reads pages of the same inbox at the same time.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.progress import Progress

from bench.figures.goals import COPIED, COPYING, NOTHING_NEW
from bench.figures.measurements import Fact, percentile
from bench.load.http_client import Target, asking, once, post
from bench.load.message_generator import Writer
from bench.load.sample_account import READER, make_user
from bench.servers.compared_servers import Kind, postgres
from bench.servers.dovecot_server import PASSWORD, Dovecot, dovecot
from bench.servers.merganser_process import (
    PATIENCE,
    Server,
    broken,
    cpu,
    running,
    settled,
    whole_memory,
)
from bench.servers.ports import HOST
from merganser.server.environment_factory import opened, owner
from merganser.settings.settings import Settings
from resolvers.auth import api_keys
from resolvers.auth.api_keys import NewKey

NAME = "mail fetched from elsewhere"
MESSAGES, LETTER = 10_000, 20_000
LONGEST = 600.0  # seconds of a run
LOOK = 0.2
READ = 0.05  # seconds
ALONE = 5.0  # reading pages without a fetch
CREATE = """mutation ($input: ConnectorCreateInput!) {
  connectorCreate(input: $input) { connector { id } errors { message } } }"""
RUN = """mutation ($input: ConnectorRunInput!) {
  connectorRun(input: $input) { runs { id } errors { message } } }"""
STATE = """query ($id: ID!) {
  connectorRun(id: $id) { state error seen imported skipped startedAt finishedAt log } }"""
PAGE = """{ viewer { user { mailbox(by: {path: "INBOX"}) { total messages(first: 50) {
  nodes { id subject from { name address } receivedAt seen flagged size intro } } } } } }"""


@dataclass
class Beside:
    """Memory and page latencies during a fetch."""

    most: int = 0  # PSS in KiB
    pages: list[float] = field(default_factory=list)  # latencies in seconds


async def measured(kind: Kind, folder: Path, many: int, bar: Progress) -> list[Fact]:
    """Fetch messages, and run the connector again."""
    url = postgres(folder) if kind is Kind.POSTGRES else None
    server = Server(folder / "fetching", url, more={"MERGANSER_CONNECTORS_PRIVATE": "on"})
    settings = Settings(data=server.folder, store=url) if url else Settings(data=server.folder)
    task = bar.add_task(NAME, total=3)
    async with opened(settings, migrate=True) as world:
        user = await make_user(world, READER)
        _, secret = await api_keys.create_key(owner(world), NewKey("bench", user_id=user.id))
    await asyncio.to_thread(folder.chmod, 0o755)  # for the user of Dovecot
    with dovecot(folder / "dovecot") as far:
        await asyncio.to_thread(far.save_all, list(letters(many)))
        far.count()  # Dovecot indexes the mailbox now, as on a server in use
        bar.advance(task)
        async with running(server.start) as pid:
            facts = await _fetched(Target(server.http, pid, secret), far, many)
    bar.remove_task(task)
    if problems := broken(server.folder / "server.log"):
        raise RuntimeError(f"the server logged: {problems[0]}")
    return facts


def letters(many: int, size: int = LETTER) -> Iterator[bytes]:
    """Yield unique messages."""
    writer = Writer(seed=size)
    return (writer.letter(number, size=size) for number in range(many))


async def _fetched(target: Target, far: Dovecot, many: int) -> list[Fact]:
    await settled(target.pid)
    await _pages(target, ALONE / 5)
    await settled(target.pid)
    idle, before = whole_memory(target.pid), cpu(target.pid)
    key = await created(target, far, interval=None)
    began = time.perf_counter()
    async with _beside(target) as seen:
        run = await ran(target, key)
        took, used = time.perf_counter() - began, cpu(target.pid) - before
    if run["imported"] != many:
        raise RuntimeError(f"{run['imported']} of {many} messages were fetched: {run['log']}")
    await settled(target.pid, LONGEST)
    behind = cpu(target.pid) - before - used
    alone = await _pages(target, ALONE)
    await settled(target.pid)
    again = await ran(target, key)
    if again["imported"] or again["seen"] != many:
        raise RuntimeError(f"what was there came again: {again['log']}")
    page = "of an inbox page while mail is fetched"
    return [
        Fact(COPIED.format(many), took, "s"),
        Fact("messages fetched in a second", many / took, ""),
        Fact("CPU of a message fetched, with all that goes on meanwhile", used / many * 1e3, "ms"),
        Fact("… and behind the copy", behind / many * 1e3, "ms"),
        Fact(COPYING, (seen.most - idle) / 1024, "MiB"),
        Fact(NOTHING_NEW, _seconds(again), "s"),
        Fact(f"p50 {page}", percentile(seen.pages, 0.5) * 1e3, "ms"),
        Fact(f"p99 {page}", percentile(seen.pages, 0.99) * 1e3, "ms"),
        Fact("p99 of an inbox page with nothing beside", percentile(alone, 0.99) * 1e3, "ms"),
    ]


async def created(target: Target, far: Dovecot, **more: Any) -> str:
    """Create a connector of the target's account that is enabled, and return its ID."""
    given = {
        "host": HOST,
        "port": far.ports["imap"],
        "security": "PLAIN",
        "username": far.user,
        "password": PASSWORD,
        **more,
    }
    payload = await _asked(target, CREATE, {"input": given})
    return str(payload["connector"]["id"])


async def ran(target: Target, key: str) -> Any:
    """Run a connector, or wait for its current run, and return the finished run.

    Raises RuntimeError if the run fails.
    """
    payload = await _asked(target, RUN, {"input": {"ids": [key]}})
    (run,) = payload["runs"]
    async with asyncio.timeout(LONGEST):
        while True:
            row = await _asked(target, STATE, {"id": run["id"]})
            if row["finishedAt"]:
                break
            await asyncio.sleep(LOOK)
    if row["state"] != "SUCCEEDED":
        raise RuntimeError(f"a run ended as {row['state']}: {row['error']}")
    return row


async def _asked(target: Target, query: str, given: Any) -> Any:
    """Return the value of the only field of a document. Raises RuntimeError for errors."""
    answer = await once(target, "/graphql", {"query": query, "variables": given})
    (payload,) = answer["data"].values()
    if payload.get("errors"):
        raise RuntimeError(f"refused: {payload['errors']}")
    return payload


def _seconds(run: Any) -> float:
    begun, ended = (datetime.fromisoformat(run[name]) for name in ("startedAt", "finishedAt"))
    return (ended - begun).total_seconds()


@asynccontextmanager
async def _beside(target: Target) -> AsyncGenerator[Beside]:
    """Measure the server's memory and read pages while the context is open."""
    seen, over = Beside(), asyncio.Event()

    async def look() -> None:
        while not over.is_set():
            seen.most = max(seen.most, await asyncio.to_thread(whole_memory, target.pid))
            with suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), LOOK)

    async def read() -> None:
        while not over.is_set():
            seen.pages += await _pages(target, 1.0)

    work = asyncio.gather(look(), read())
    try:
        yield seen
    finally:
        over.set()
        await work


async def _pages(target: Target, seconds: float) -> list[float]:
    """Read pages for some seconds, and return the latencies."""
    (asker,) = await asking(target, 1)
    request, took = post(target, "/graphql", {"query": PAGE}), list[float]()
    end = time.perf_counter() + min(seconds, PATIENCE)
    while (began := time.perf_counter()) < end:
        _, at = await asker.ask(request)
        took.append(at - began)
        await asyncio.sleep(READ)
    asker.close()
    return took
