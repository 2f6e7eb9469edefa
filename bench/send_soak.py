"""`python -m bench.sendsoak`: kill the server while messages go out, and count what arrives.

Clients send by `messageSend`, each message under an idempotency key, again until it is answered.
A neighbour counts what comes by its recipient. Then, over PostgreSQL, one of two servers is
stopped for longer than its leases last, and wakes up. None may be lost, and one may come twice
only where a server was gone between the end of a message and the note of its answer. Who sends
asks for reports of success, and has one of each message.
"""

import asyncio
import re
import signal
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Annotated, Any

import orjson
import typer
import uvloop
from aiosmtpd.smtp import SMTP, Envelope
from rich.console import Console
from rich.progress import Progress
from sqlalchemy import text

from bench.crashes.crash_rounds import Death, buried
from bench.load.http_client import Target, once
from bench.load.sample_account import READER, make_user
from bench.servers.compared_servers import postgres
from bench.servers.merganser_process import Server, bounded, checked, stop
from bench.servers.ports import HOST, free_port
from merganser.server.environment_factory import opened, owner
from merganser.settings.settings import Settings
from resolvers.auth import api_keys
from resolvers.auth.api_keys import NewKey

PLACES = ("dot", "sent", "owed", "commit", "outside")
PASSINGS = {"dot": 20, "sent": 20, "owed": 20, "commit": 60, "outside": 30}  # of each, at most
CLIENTS = 4
BUSY = 40  # messages that wait at most: so many are under way, and no more
LOOK = 0.02  # seconds between two looks at the store
LIFE, SLOW = 120.0, 240.0  # seconds that a life, and the end of a queue, may take
LONGEST = 3600.0
BEHIND = 60  # messages under way when a worker is stopped
SEND = """mutation ($input: MessageSendInput!) {
  messageSend(input: $input) { submission { queueId } errors { message } } }"""
OPEN = """SELECT count(*) FROM deliveries
  WHERE state IN ('PENDING', 'DEFERRED') OR success_owed IS NOT NULL"""
REPORTS = "SELECT preview FROM messages WHERE subject = 'Your message went on'"
REPORTED = re.compile(r"n[0-9]+@d[0-9]\.example")
UNSURE = """SELECT recipient FROM deliveries
  WHERE final_dot_at IS NOT NULL AND state IN ('PENDING', 'DEFERRED')"""


@dataclass
class Far:
    """The neighbour, who takes all and counts it by recipient."""

    port: int = field(default_factory=free_port)
    came: Counter[str] = field(default_factory=Counter)
    taken_at: dict[str, float] = field(default_factory=dict)  # the first time, by `time.monotonic`
    pause: float = 0.0  # seconds before each answer to the end of a message

    async def handle_DATA(  # noqa: N802
        self, _server: Any, _session: Any, envelope: Envelope
    ) -> str:
        """Take a message."""
        await asyncio.sleep(self.pause)
        self.came.update(envelope.rcpt_tos)
        for to in envelope.rcpt_tos:
            self.taken_at.setdefault(to, time.monotonic())
        return "250 2.0.0 Taken"

    @asynccontextmanager
    async def listening(self) -> AsyncGenerator[None]:
        """Listen meanwhile."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: SMTP(self, hostname="far"), HOST, self.port)
        try:
            yield
        finally:
            server.close()
            await server.wait_closed()


@dataclass
class Post:
    """What clients want sent: recipients by name, each once."""

    answered: set[str] = field(default_factory=set)
    waiting: list[str] = field(default_factory=list)  # sent, and not answered
    made: int = 0

    def next(self) -> str:
        """Another recipient, or one whose message was not answered."""
        if self.waiting:
            return self.waiting.pop(0)
        self.made += 1
        return f"n{self.made}@d{self.made % 7}.example"


@dataclass
class Verdict:
    """What a soak has found."""

    lives: list[tuple[str, int, int]] = field(default_factory=list)  # death, answered, exit code
    answered: int = 0
    came: Counter[str] = field(default_factory=Counter)
    unsure: set[str] = field(default_factory=set)  # after their end when a server died
    unwritten: dict[str, float] = field(default_factory=dict)  # seconds from the first 250 to that
    told: int = 0  # recipients of whom the log says that they may have it twice
    reports: Counter[str] = field(default_factory=Counter)  # of success, by their recipients
    differences: list[str] = field(default_factory=list)

    @property
    def doubled(self) -> int:
        """How many came once more."""
        return sum(times - 1 for times in self.came.values())


def deaths(kills: int, seed: int) -> list[Death]:
    """How each life is to end: at every place in turn, at the nth passing as chance has it."""
    random = Random(seed)  # noqa: S311 - no secret
    each = (PLACES[number % len(PLACES)] for number in range(kills))
    return [Death(place, random.randint(1, PASSINGS[place])) for place in each]


async def soak(
    folder: Path,
    plan: Sequence[Death],
    *,
    told: Callable[[], object] = lambda: None,
) -> Verdict:
    """Kill a server in this empty folder once for each death, then let it end its queue."""
    far, post, verdict = Far(), Post(), Verdict()
    server = Server(folder, more=_more(far))
    secret = await furnished(Settings(data=folder))
    async with far.listening():
        for death in plan:
            life = await _life(server, far, post, secret, death)
            verdict.lives.append((f"{death.place}:{death.nth}", len(post.answered), life.code))
            _note_unsure(verdict, far, [row[0] for row in _rows(server, UNSURE)], life.died_at)
            told()
        process = await server.start()
        try:
            async with asyncio.timeout(SLOW):
                while post.waiting:
                    await _send(server, secret, post)
                while _rows(server, OPEN) != [(0,)]:  # noqa: ASYNC110 - rows have no event
                    await asyncio.sleep(LOOK)
            code = await stop(process)
        finally:
            await buried(process)
        verdict.lives.append(("SIGTERM", len(post.answered), code))
        told()
    verdict.answered, verdict.came = len(post.answered), far.came
    verdict.told = _told(server)
    verdict.reports = _reports(_rows(server, REPORTS))
    verdict.differences = [*differences(verdict, post), *await checked(server)]
    return verdict


def _more(far: Far) -> dict[str, str]:
    return {"MERGANSER_NEXT_HOP": f"smtp://{HOST}:{far.port}?tls=never"}


async def furnished(settings: Settings) -> str:
    """An account; the secret of its key."""
    async with opened(settings, migrate=True) as world:
        user = await make_user(world, READER)
        _, secret = await api_keys.create_key(owner(world), NewKey("soak", user_id=user.id))
        return secret


@dataclass(frozen=True, slots=True)
class Life:
    """How a life ended."""

    code: int
    died_at: float  # by `time.monotonic`


def _note_unsure(verdict: Verdict, far: Far, recipients: Sequence[str], died_at: float) -> None:
    """Note who may get a second copy, and how long the answer was not written when it ended."""
    for to in recipients:
        verdict.unsure.add(to)
        if to in far.taken_at:
            verdict.unwritten.setdefault(to, died_at - far.taken_at[to])


async def _life(server: Server, far: Far, post: Post, secret: str, death: Death) -> Life:
    """One life under load, and its end."""
    process, before = await server.start(fault=death.fault), far.came.total()

    async def killing() -> None:
        if death.place == "outside":
            while far.came.total() < before + death.nth:  # noqa: ASYNC110 - nobody rings
                await asyncio.sleep(0)
            process.kill()

    async def dying() -> Life:
        return Life(await process.wait(), time.monotonic())

    try:
        async with asyncio.timeout(LIFE):
            load = [_load(server, far, post, secret, process) for _ in range(CLIENTS)]
            life = asyncio.create_task(dying())
            await asyncio.gather(life, killing(), *load)
            return await life
    finally:
        await buried(process)


async def _load(
    server: Server, far: Far, post: Post, secret: str, process: asyncio.subprocess.Process
) -> None:
    """Send one after the other until the server is gone."""
    while process.returncode is None:
        if len(post.answered) - len(far.came) > BUSY:
            await asyncio.sleep(LOOK)
        with suppress(OSError, EOFError):  # it died meanwhile
            await _send(server, secret, post)


async def _send(server: Server, secret: str, post: Post) -> None:
    """Send a message; without an answer it waits to be sent again, under the same key."""
    to = post.next()
    given = {
        "to": [{"address": to}],
        "subject": f"Soak {to}",
        "text": "Hello.",
        "requestDsn": True,
        "options": {"idempotencyKey": to},
    }
    answered = False
    try:
        body = {"query": SEND, "variables": {"input": given}}
        answer = await once(Target(server.http, 0, secret), "/graphql", body)
        payload = answer["data"]["messageSend"]
        if payload["errors"]:
            raise RuntimeError(f"refused: {payload['errors']}")
        answered = True
    finally:
        if answered:
            post.answered.add(to)
        else:
            post.waiting.append(to)


def _rows(server: Server, sql: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(f"file:{server.folder / 'merganser.db'}?mode=ro", uri=True)) as db:
        return db.execute(sql).fetchall()


def _reports(rows: Sequence[Any]) -> Counter[str]:
    """Of whom reports tell, by how they begin."""
    return Counter(name for row in rows for name in set(REPORTED.findall(row[0])))


def _told(server: Server) -> int:
    """How many recipients the log names that may have a message twice."""
    lines = (server.folder / "server.log").read_text().splitlines()
    facts = [orjson.loads(line) for line in lines if "mail may arrive twice" in line]
    return sum(fact["recipients"] for fact in facts)


def differences(verdict: Verdict, post: Post) -> list[str]:
    """How what came differs from what was answered."""
    came = verdict.came
    found = [f"{to} was answered and never came" for to in post.answered if not came[to]]
    found += [f"{to} came, and was never sent" for to in came if to not in post.answered]
    found += [
        f"{to} came {times} times, though no server was gone behind its end"
        for to, times in came.items()
        if times > 1 and to not in verdict.unsure
    ]
    found += [
        f"{to} was reported {verdict.reports[to]} times"
        for to in post.answered | set(verdict.reports)
        if verdict.reports[to] != 1
    ]
    if verdict.doubled > verdict.told:
        found.append(f"{verdict.doubled} came twice, and {verdict.told} were counted")
    found += [
        f"{death}: the server ended with {code}"
        for death, _, code in verdict.lives
        if code != (0 if death == "SIGTERM" else -signal.SIGKILL)
    ]
    return found


async def stopped(folder: Path) -> Verdict:
    """Stop one of two servers over PostgreSQL for longer than its leases last; wake it up."""
    far, post, verdict = Far(pause=3.0), Post(), Verdict()
    url = postgres(folder)
    both = [Server(folder / "both", url, more=_more(far)) for _ in range(2)]  # of the same keys
    await asyncio.to_thread(both[0].folder.mkdir)
    settings = Settings(data=both[0].folder, store=url)
    secret = await furnished(settings)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(far.listening())
        world = await stack.enter_async_context(opened(settings))

        async def asked(sql: str) -> list[Any]:
            async with world.database.engine.begin() as connection:
                found = await connection.execute(text(sql))
                return list(found.all()) if found.returns_rows else []

        first = await both[0].start()
        stack.push_async_callback(buried, first)
        for _ in range(BEHIND):
            await _send(both[0], secret, post)
        await _until(lambda: _some(asked, UNSURE))
        first.send_signal(signal.SIGSTOP)
        far.pause = 0.0
        stopped_at = time.monotonic()
        _note_unsure(verdict, far, [row[0] for row in await asked(UNSURE)], stopped_at)
        second = await both[1].start()
        stack.push_async_callback(buried, second)
        await _until(lambda: _none(asked, OPEN))
        first.send_signal(signal.SIGCONT)
        for _ in range(BEHIND):
            await _send(both[1], secret, post)
        await _until(lambda: _none(asked, OPEN))
        await asyncio.sleep(1)  # what the first one had begun comes to its end
        for process in (first, second):
            verdict.lives.append(("SIGTERM", len(post.answered), await stop(process)))
        verdict.reports = _reports(await asked(REPORTS))
    verdict.answered, verdict.came = len(post.answered), far.came
    verdict.told = _told(both[0])
    verdict.differences = differences(verdict, post)
    return verdict


def _range(unwritten: Mapping[str, float]) -> str:
    """The shortest, the usual and the longest time that an answer was not written."""
    seconds = sorted(unwritten.values()) or [0.0]
    usual = seconds[len(seconds) // 2]
    return f"{seconds[0]:.3f} to {seconds[-1]:.3f} s (median {usual:.3f} s, {len(unwritten)})"


Asked = Callable[[str], Awaitable[list[Any]]]


async def _some(asked: Asked, sql: str) -> bool:
    return bool(await asked(sql))


async def _none(asked: Asked, sql: str) -> bool:
    return bool((await asked(sql))[0][0] == 0)


async def _until(true: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(SLOW):
        while not await true():  # noqa: ASYNC110 - rows have no event
            await asyncio.sleep(LOOK)


def main(
    kills: Annotated[int, typer.Option(min=0, help="How often the server is killed.")] = 30,
    seed: Annotated[int, typer.Option(help="When it dies.")] = 1,
) -> None:
    """Kill the server under load, then stop one of two for longer than its leases last."""
    console, found = Console(highlight=False, width=120), list[tuple[str, Verdict]]()
    plan = deaths(kills, seed)

    async def work() -> None:
        with (
            tempfile.TemporaryDirectory(prefix="merganser-sendsoak-") as folder,
            Progress(console=Console(stderr=True), transient=True) as bar,
        ):
            task = bar.add_task("Killing the server", total=len(plan) + 2)
            for name in ("killed", "stopped"):
                await asyncio.to_thread((Path(folder) / name).mkdir)
            if plan:
                killed = await soak(Path(folder) / "killed", plan, told=lambda: bar.advance(task))
                found.append((f"{kills} deaths", killed))
            found.append(("one stopped", await stopped(Path(folder) / "stopped")))

    uvloop.run(bounded(work(), LONGEST))
    for name, verdict in found:
        console.print(
            f"{name}: {verdict.answered} messages, {len(verdict.came)} arrived, "
            f"{verdict.doubled} of them once more, of {len(verdict.unsure)} that could and "
            f"{verdict.told} that were counted; {verdict.reports.total()} reports of success; "
            f"{len(verdict.differences)} differences."
        )
        console.print(f"  Before the end, an answer was unwritten for {_range(verdict.unwritten)}.")
        for line in verdict.differences:
            console.print(f"  {line}", markup=False)
    if any(verdict.differences for _, verdict in found):
        raise typer.Exit(1)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
