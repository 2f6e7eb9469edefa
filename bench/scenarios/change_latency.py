"""Measure how soon watchers of many accounts receive events, and their cost."""

import asyncio
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.progress import Progress

from bench.figures.goals import CHANGED, IDLE, LETTER, MADE
from bench.figures.measurements import Fact, percentile
from bench.load.http_client import Asker, Target, asking, post
from bench.load.lmtp_client import connected
from bench.load.message_generator import Writer
from bench.load.sample_account import make_user
from bench.scenarios.live_subscriptions import EVENTS, LONGEST, Listener, listening
from bench.servers.compared_servers import Kind, postgres
from bench.servers.merganser_process import Server, broken, memory, running, settled
from graph.types.global_ids import encode
from mail.recipients import address_resolution
from mail.storage import received_messages
from merganser.server.environment_factory import opened, owner
from merganser.server.sockets import raise_open_file_limit
from merganser.settings.settings import Settings
from models.runtime.environment import World
from resolvers.auth import api_keys
from resolvers.auth.api_keys import NewKey

NAME = "live: watchers"
TOGETHER = 16
QUIET = 0.03  # seconds
CLIENTS = 4  # that change flags
SPARE = 200  # besides the sockets of watchers
FLAG = """mutation ($input: MessageUpdateInput!) {
  messageUpdate(input: $input) { updatedCount errors { message } } }"""


@dataclass(frozen=True, slots=True)
class Size:
    """The extent of the measurement."""

    accounts: int = 500  # with one watcher each
    letters: int = 500
    pace: int = 200  # changes per second
    seconds: float = 15.0  # of changes
    idle: int = 5000  # subscribers, spread over the accounts

    @property
    def steps(self) -> int:
        """The number of steps of the progress bar."""
        return self.accounts + self.letters + int(self.pace * self.seconds) + self.idle


@dataclass(frozen=True, slots=True)
class Account:
    """The address, credential and a message of an account. The ID is a global ID."""

    address: str
    secret: str = field(repr=False)
    message: str


@dataclass(frozen=True, slots=True)
class Followed:
    """An account with its target and its watcher."""

    account: Account
    target: Target
    watcher: Listener


Step = Callable[[], None]


async def measured(kind: Kind, folder: Path, size: Size, bar: Progress) -> list[Fact]:
    """Measure the memory of idle subscribers, then the latency of deliveries and changes.

    Raises RuntimeError if the limit of open files is too low.
    """
    raise_open_file_limit()
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most < size.idle + SPARE:
        raise RuntimeError(f"{size.idle} subscribers need as many open files; {most} are allowed")
    url = postgres(folder) if kind is Kind.POSTGRES else None
    server = Server(folder / "heard", url)
    settings = Settings(data=server.folder, store=url) if url else Settings(data=server.folder)
    task = bar.add_task("watchers", total=size.steps)

    def done() -> None:
        bar.advance(task)

    async with opened(settings, migrate=True) as world:
        accounts = await furnish(world, size.accounts, done)
    async with running(server.start) as pid:
        targets = [Target(server.http, pid, account.secret) for account in accounts]
        facts = await _idle(targets, size.idle)
        bar.advance(task, size.idle)
        watchers = await listening(targets, EVENTS)
        crew = [Followed(*one) for one in zip(accounts, targets, watchers, strict=True)]
        await settled(pid)
        facts += await _letters(crew, server.lmtp, size.letters, done)
        await settled(pid)
        facts += await _changes(crew, size, done)
        _stop(watchers)
    bar.remove_task(task)
    if problems := broken(server.folder / "server.log"):
        raise RuntimeError(f"the server logged: {problems[0]}")
    return facts


async def furnish(world: World, many: int, done: Step) -> list[Account]:
    """Create accounts, each with an API key and one message."""
    letter = await received_messages.read(Writer().letter(0))

    async def account(number: int) -> Account:
        address = f"w{number}@bench.example"
        user = await make_user(world, address)
        _, secret = await api_keys.create_key(owner(world), NewKey("bench", user_id=user.id))
        to = await address_resolution.recipient(world, address)
        placed = await received_messages.receive(world, letter, to, "bob@example.com")
        done()
        return Account(address, secret, encode("Message", placed.message_id))

    made = list[Account]()
    for first in range(0, many, TOGETHER):
        numbers = range(first, min(first + TOGETHER, many))
        made += await asyncio.gather(*map(account, numbers))
    return made


def _stop(watchers: Sequence[Listener]) -> None:
    for watcher in watchers:
        watcher.transport.abort()


async def _idle(targets: Sequence[Target], count: int) -> list[Fact]:
    """Return the memory of idle subscribers, spread over the accounts."""
    pid = targets[0].pid
    _stop(await listening(targets[:1], EVENTS))  # the first subscriber causes imports
    await settled(pid)
    before, _ = memory(pid)
    subscribers = await listening([targets[n % len(targets)] for n in range(count)], EVENTS)
    await settled(pid)
    now, _ = memory(pid)
    _stop(subscribers)
    await settled(pid)
    return [Fact(f"{count:,} {IDLE}", (now - before) / 1024, "MiB")]


async def _letters(crew: Sequence[Followed], port: int, count: int, done: Step) -> list[Fact]:
    """Measure the time from the 250 of a delivery to its event, account by account."""
    neighbour, writer = await connected(port), Writer(seed=2)
    heard = list[float]()
    for number in range(count):
        one, raw = crew[number % len(crew)], writer.letter(number)
        coming = one.watcher.expect()
        reply = await neighbour.deliver(one.account.address, raw)
        answered = time.perf_counter()
        if not reply.startswith("250"):
            raise RuntimeError(f"not delivered: {reply}")
        async with asyncio.timeout(LONGEST):
            heard.append(await coming - answered)
        if b"MESSAGE_ADDED" not in one.watcher.heard:
            raise RuntimeError(f"no event of a message: {one.watcher.heard!r}")
        done()
        await asyncio.sleep(QUIET)
    await neighbour.close()
    return _late(f"{len(crew)} watchers: {LETTER}", heard)


def _late(name: str, seconds: Sequence[float]) -> list[Fact]:
    """Return percentiles of latencies in ms; events before the reply count as 0."""
    late = [max(one, 0.0) * 1e3 for one in seconds]
    return [
        Fact(f"{name}, p50", percentile(late, 0.5), "ms"),
        Fact(f"{name}, p99", percentile(late, 0.99), "ms"),
        Fact(f"{name}, worst of {len(late):,}", max(late), "ms"),
    ]


async def _changes(crew: Sequence[Followed], size: Size, done: Step) -> list[Fact]:
    """Measure the time from the response of a mutation to its event, at a steady rate."""
    numbers, began = iter(range(int(size.pace * size.seconds))), time.perf_counter()
    made = list[tuple[float, float, asyncio.Future[float]]]()  # sent, answered, event received

    async def client(asker: Asker) -> None:
        for number in numbers:  # shared by all clients
            one, again = crew[number % len(crew)], number // len(crew) % 2
            request = _flag(one, flagged=not again)
            await asyncio.sleep(max(began + number / size.pace - time.perf_counter(), 0))
            coming, sent = one.watcher.expect(), time.perf_counter()
            data, answered = await asker.ask(request)
            if int(data["messageUpdate"]["updatedCount"]) != 1:
                raise RuntimeError(f"nothing was changed: {data}")
            made.append((sent, answered, coming))
            done()

    askers = await asking(crew[0].target, CLIENTS)
    await asyncio.gather(*map(client, askers))
    took = time.perf_counter() - began
    async with asyncio.timeout(LONGEST):
        heard = await asyncio.gather(*(coming for _, _, coming in made))
    for asker in askers:
        asker.close()
    after = [at - answered for at, (_, answered, _) in zip(heard, made, strict=True)]
    whole = [at - sent for at, (sent, _, _) in zip(heard, made, strict=True)]
    name = f"{len(crew)} watchers:"
    return [
        Fact(f"{name} {MADE}, {size.pace} asked", len(made) / took, ""),
        *_late(f"{name} {CHANGED}", after),
        Fact(f"{name} from the mutation to its event, p50", percentile(whole, 0.5) * 1e3, "ms"),
        Fact(f"{name} from the mutation to its event, p99", percentile(whole, 0.99) * 1e3, "ms"),
    ]


def _flag(one: Followed, *, flagged: bool) -> bytes:
    given = {"select": {"ids": [one.account.message]}, "set": {"flagged": flagged}}
    return post(one.target, "/graphql", {"query": FLAG, "variables": {"input": given}})
