"""`python -m bench.soak`: kill the server under load, and see that no mail and no event is lost."""

import hashlib
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Annotated, Any, TypeVar

import typer
import uvloop
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from sqlalchemy import select
from sqlmodel import col

from bench import change_stream_soak
from bench.crashes import forward_soak
from bench.crashes.crash_rounds import Death, Ledger, Post, Round, drained, killed
from bench.load.sample_account import TAKER, make_user
from bench.servers.merganser_process import Server, bounded, checked
from mail.storage import message_content
from merganser.server.environment_factory import opened
from merganser.settings.settings import Settings
from models.messages.tables import Message
from models.runtime.environment import World
from models.store.columns import picked

PLACES = ("data", "commit", "reply", "outside")
FIRST, LAST = 5, 40  # the passing, or the letter, at which the server dies
LONGEST = 3600.0  # seconds of a whole run
TOGETHER = 100  # messages that are read back at once
STAMPS = 3  # lines that a delivery puts before a message

Told = Callable[[Round], None]
Found = TypeVar("Found")


@dataclass
class Verdict:
    """What a soak has found."""

    rounds: list[Round] = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)
    differences: list[str] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether nothing is wrong."""
        return not self.differences


def deaths(places: Sequence[str], rounds: int, seed: int) -> list[Death]:
    """How each round is to end: at every place in turn, at the nth passing as chance has it."""
    random = Random(seed)  # noqa: S311 - no secret
    each = (places[number % len(places)] for number in range(rounds))
    return [Death(place, random.randint(FIRST, LAST)) for place in each]


async def soak(folder: Path, plan: Sequence[Death], *, seed: int = 1, told: Told) -> Verdict:
    """Kill a server on this empty folder once for each death, then compare all its mail."""
    verdict, server, post = Verdict(), Server(folder), Post(seed)
    async with opened(Settings(data=folder), migrate=True) as world:
        await make_user(world, TAKER)
    for death in plan:
        verdict.rounds.append(await killed(server, post, verdict.ledger, death))
        told(verdict.rounds[-1])
    verdict.rounds.append(await drained(server, post, verdict.ledger))
    told(verdict.rounds[-1])
    for number, each in enumerate(verdict.rounds, 1):
        verdict.differences += _wrong(number, each)
    verdict.differences += await compared(folder, verdict.ledger)
    verdict.differences += await checked(server)
    return verdict


def _wrong(number: int, each: Round) -> list[str]:
    found = [f"round {number}: {mark} was answered 250 and is lost" for mark in each.seen.lost]
    found += [f"round {number}: {mark} is stored twice" for mark in each.seen.double]
    if not each.as_planned:
        found.append(f"round {number}: the server ended with {each.code}")
    return found


async def compared(folder: Path, ledger: Ledger) -> list[str]:
    """How the store of a stopped server differs from what was sent and answered."""
    async with opened(Settings(data=folder)) as world:
        there = await _digests(world)
    times = Counter(mark for mark, _ in there)
    found = [f"{mark} has never been answered" for mark in ledger.sent.keys() - ledger.answered]
    found += [f"{mark} was answered 250 and is not there" for mark in ledger.answered - times]
    found += [f"{mark} is there {n} times" for mark, n in times.items() if n > 1]
    found += [f"{mark} was never sent" for mark in times.keys() - ledger.sent.keys()]
    found += [
        f"{mark} has other bytes than were sent"
        for mark, digest in there
        if ledger.sent.get(mark, digest) != digest
    ]
    return found


async def _digests(world: World) -> list[tuple[str, str]]:
    """Subject and SHA-256 of each message as it came, of the bytes that a reader gets."""
    asked = select(*picked(Message, {"id", "subject", "blob_id", "structure"}))
    rows, found = await world.database.read(asked.order_by(col(Message.id))), []
    for first in range(0, len(rows), TOGETHER):
        for one in await message_content.sources(world, rows[first : first + TOGETHER]):
            whole = b"".join([chunk async for chunk in one.whole()])
            came = whole.split(b"\r\n", STAMPS)[-1]
            found.append((one.row.subject, hashlib.sha256(came).hexdigest()))
    return found


def main(
    rounds: Annotated[int, typer.Option(min=0, help="How often the server is killed.")] = 20,
    sent: Annotated[
        int, typer.Option(min=0, help="How often it is killed while it forwards and answers.")
    ] = 50,
    seed: Annotated[int, typer.Option(help="Which letters, and when it dies.")] = 1,
    changes: Annotated[
        int, typer.Option(min=0, help="Changes that are followed, on all stores together.")
    ] = 100_000,
) -> None:
    """Kill the server under load; ends with 1 where mail or events are lost, doubled or damaged."""
    whole = _crashes(rounds, seed) if rounds else True
    whole = (_sent_on(sent, seed) if sent else True) and whole
    whole = (change_stream_soak.run(changes, seed) if changes else True) and whole
    if not whole:
        raise typer.Exit(1)


def _crashes(rounds: int, seed: int) -> bool:
    """Kill it under LMTP load, and say what became of the mail; whether it is all there, once."""
    verdict = _done(soak, deaths(PLACES, rounds, seed), seed)
    _show(verdict)
    return verdict.whole


def _sent_on(rounds: int, seed: int) -> bool:
    """Kill it while it forwards and answers, and say what others got of it."""
    verdict = _done(forward_soak.soak, deaths(forward_soak.PLACES, rounds, seed), seed)
    console = Console(highlight=False, width=120)
    console.print(
        f"{len(verdict.rounds) - 1} deaths, {len(verdict.ledger.answered)} letters answered 250, "
        f"{verdict.came.total()} messages sent on and answered, {verdict.doubled} of them once "
        f"more, where {len(verdict.unsure)} were behind their dot when the server died; "
        f"{len(verdict.differences)} differences."
    )
    for line in verdict.differences:
        console.print(f"  {line}", markup=False)
    return not verdict.differences


def _done(kind: Callable[..., Awaitable[Found]], plan: Sequence[Death], seed: int) -> Found:
    """Do a soak in a folder of its own, and show how far it is."""
    found: list[Found] = []

    async def work() -> None:
        with (
            tempfile.TemporaryDirectory(prefix="merganser-soak-") as folder,
            Progress(console=Console(stderr=True), transient=True) as bar,
        ):
            task = bar.add_task("Killing the server", total=len(plan) + 1)
            told: Told = lambda _round: bar.advance(task)  # noqa: E731 - a name for its type
            found.append(await kind(Path(folder), plan, seed=seed, told=told))

    uvloop.run(bounded(work(), LONGEST))
    return found[0]


def _show(verdict: Verdict) -> None:
    console, table = Console(highlight=False, width=120), Table(box=None, padding=(0, 2, 0, 0))
    for name in ("round", "death", "answered 250", "open at start", "… stored", "orphans"):
        table.add_column(name, justify="right")
    for number, each in enumerate(verdict.rounds, 1):
        death = f"{each.death.place}:{each.death.nth}" if each.death else "SIGTERM"
        seen = each.seen
        numbers: tuple[Any, ...] = (number, death, each.answered, seen.waiting, seen.stored)
        table.add_row(*map(str, numbers), "yes" if each.orphans else "")
    console.print(table)
    ledger = verdict.ledger
    again = sum(times > 1 for times in ledger.tried.values())
    console.print(
        f"{len(ledger.sent)} letters sent, {again} of them more than once, "
        f"{len(ledger.answered)} answered 250; {len(verdict.differences)} differences."
    )
    for line in verdict.differences:
        console.print(f"  {line}", markup=False)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
