"""Kill a server while it forwards messages and sends vacation replies, and count what arrives.

Half of the messages go to an account with a vacation reply, each from another sender. The other
half go to an address that forwards to this account and to an external address. The external
server counts deliveries, also while the other server is down.
"""

import asyncio
import re
import sqlite3
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiosmtpd.smtp import SMTP, Envelope

from bench.crashes.crash_rounds import Death, Ledger, Post, Round, drained, killed
from bench.load.sample_account import READER, make_user
from bench.servers.merganser_process import Server, checked
from bench.servers.ports import HOST, free_port
from merganser.server.environment_factory import opened, owner
from merganser.settings.settings import Settings
from resolvers.addresses import mutations as address_mutations
from resolvers.addresses.mutations import NewAddress
from resolvers.autoreply import autoreplies
from resolvers.users.selection import Users

LIST, FAR = "list@bench.example", "far@elsewhere.example"
PLACES = ("data", "commit", "reply", "dot", "sent", "outside")
SLOW = 400.0  # seconds; entries of a dead server wait for their lease to end
LOOK = 0.2
ANSWER, ONWARD = "answer", "onward"
_SENDER = re.compile(r"\bs([0-9]+)(?=@|$)")  # of s<number>@elsewhere.example, also in SRS
_OPEN = "SELECT 1 FROM deliveries WHERE state IN ('PENDING', 'DEFERRED') LIMIT 1"
_UNSURE = """SELECT recipient, envelope_from, final_dot_at FROM deliveries
    JOIN submissions ON submissions.id = submission_id WHERE final_dot_at IS NOT NULL
    AND deliveries.state IN ('PENDING', 'DEFERRED')"""

Key = tuple[str, int]  # kind, and number of the original message


def _key(sender: str, recipient: str) -> Key:
    """Return kind and number of an outgoing message by its envelope."""
    found = _SENDER.search(recipient if recipient != FAR else sender)
    return ONWARD if recipient == FAR else ANSWER, int(found[1]) if found else -1


@dataclass
class Elsewhere:
    """The external server that accepts and counts all messages."""

    port: int = field(default_factory=free_port)
    came: Counter[Key] = field(default_factory=Counter)

    async def handle_DATA(  # noqa: N802
        self, _server: Any, _session: Any, envelope: Envelope
    ) -> str:
        """Count a message, and accept it."""
        for recipient in envelope.rcpt_tos:
            self.came[_key(envelope.mail_from or "", recipient)] += 1
        return "250 2.0.0 Taken"

    @asynccontextmanager
    async def listening(self) -> AsyncGenerator[None]:
        """Listen while the context is open."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: SMTP(self, hostname="elsewhere.example"), HOST, self.port
        )
        try:
            yield
        finally:
            server.close()
            await server.wait_closed()


class Senders(Post):
    """Messages with one sender each."""

    def envelope(self, mark: str) -> tuple[str, str]:
        """Return sender and recipient of a message."""
        number = number_of(mark)
        return f"s{number}@elsewhere.example", LIST if number % 2 else READER


def number_of(mark: str) -> int:
    """Return the number of a message by its subject."""
    return int(mark.rpartition("-")[2])


@dataclass
class Verdict:
    """The result of a soak with forwards and replies."""

    rounds: list[Round] = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)
    unsure: set[tuple[Key, str]] = field(
        default_factory=set
    )  # sent when a server died, without a stored result
    came: Counter[Key] = field(default_factory=Counter)
    differences: list[str] = field(default_factory=list)

    @property
    def doubled(self) -> int:
        """The number of surplus copies that arrived."""
        return sum(times - 1 for times in self.came.values())


async def soak(
    folder: Path, plan: Sequence[Death], *, seed: int = 1, told: Callable[[Round], None]
) -> Verdict:
    """Kill a server on this empty folder as planned, and compare the received messages."""
    elsewhere, verdict, post = Elsewhere(), Verdict(), Senders(seed)
    more = {
        "MERGANSER_NEXT_HOP": f"smtp://{HOST}:{elsewhere.port}?tls=never",
        "MERGANSER_FORWARDS_DAILY": "0",
    }
    server = Server(folder, more=more)
    await _furnish(folder)
    async with elsewhere.listening():
        for death in plan:
            verdict.rounds.append(await killed(server, post, verdict.ledger, death))
            told(verdict.rounds[-1])
            verdict.unsure.update(_unsure(server))

        async def quiet() -> None:
            async with asyncio.timeout(SLOW):
                while _rows(server, _OPEN):  # noqa: ASYNC110 - rows have no event
                    await asyncio.sleep(LOOK)

        verdict.rounds.append(await drained(server, post, verdict.ledger, quiet))
        told(verdict.rounds[-1])
    verdict.came = elsewhere.came
    verdict.differences = [*differences(verdict), *await checked(server)]
    return verdict


async def _furnish(folder: Path) -> None:
    async with opened(Settings(data=folder), migrate=True) as world:
        user = await make_user(world, READER)
        rule = {"enabled": True, "subject": "Away", "text": "I am away."}
        await autoreplies.set_(owner(world), Users(ids=(user.id,)), rule)
        await address_mutations.create(owner(world), NewAddress(LIST, targets=[READER, FAR]))


def _rows(server: Server, sql: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(f"file:{server.folder / 'merganser.db'}?mode=ro", uri=True)) as db:
        return db.execute(sql).fetchall()


def _unsure(server: Server) -> Iterator[tuple[Key, str]]:
    """Yield deliveries with unknown result, and the time of the final dot."""
    for recipient, sender, at in _rows(server, _UNSURE):
        yield _key(sender, recipient), at


def differences(verdict: Verdict) -> Iterator[str]:
    """Yield the messages that are lost, duplicated or unexpected."""
    for number, each in enumerate(verdict.rounds, 1):
        yield from (f"round {number}: {mark} is lost" for mark in each.seen.lost)
        yield from (f"round {number}: {mark} is stored twice" for mark in each.seen.double)
        if not each.as_planned:
            yield f"round {number}: the server ended with {each.code}"
    wanted = Counter[Key]()
    for mark in verdict.ledger.sent:
        number = number_of(mark)
        if mark not in verdict.ledger.answered:
            yield f"{mark} has never been answered"
        wanted[ANSWER, number] += 1
        wanted[ONWARD, number] += number % 2
    yield from (f"{what} of {number} never came" for what, number in wanted - verdict.came)
    yield from (f"{what} of {number} came unasked" for what, number in verdict.came.keys() - wanted)
    unsure = Counter(key for key, _ in verdict.unsure)
    for (what, number), times in (verdict.came - wanted - unsure).items():
        yield f"{what} of {number} came {times} times more than a death explains"
