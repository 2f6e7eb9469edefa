"""`python -m bench.fetchsoak`: kill the server while it copies mail, and compare byte by byte."""

import asyncio
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Annotated, Any

import typer
import uvloop
from rich.console import Console
from rich.progress import Progress
from sqlalchemy import select

from bench.crashes.crash_rounds import Death, Ledger, Post, buried, stored
from bench.load.sample_account import READER, make_user
from bench.servers.dovecot_server import PASSWORD, Dovecot, dovecot
from bench.servers.merganser_process import Server, bounded, checked, stop
from bench.servers.ports import HOST
from mail.storage import message_content, message_flags
from merganser.server.environment_factory import opened, owner
from merganser.settings.settings import Settings
from models.connectors import Protocol, Security
from models.mailboxes.tables import Mailbox
from models.messages.tables import Message
from models.store.columns import picked
from resolvers.connectors import mutations as connector_mutations

KEEPING = ("fetched", "commit", "outside")  # places of death where the source keeps its mail
DELETING = (*KEEPING, "expunged")
PASSINGS = {"fetched": 4, "commit": 100, "outside": 100, "expunged": 2}  # at most, of each place
FOLDERS = ("INBOX", "Sent", "Work/Deep")
FLAGS = {  # of a Maildir, and as we have them; in turn
    "": set[str](),
    "S": {"\\Seen"},
    "FS": {"\\Flagged", "\\Seen"},
    "RS": {"\\Answered", "\\Seen"},
    "DS": {"\\Draft", "\\Seen"},
}
COMING = 150  # messages that come before each life
SHOWN = {
    "id",
    "subject",
    "blob_id",
    "structure",
    "mailbox_id",
    *message_flags.SYSTEM_FLAGS,
    "keywords",
}
TOGETHER = 100  # messages that are read back at once
LOOK = 0.02  # seconds between two looks at the store
LIFE = 120.0  # seconds
LONGEST = 3600.0  # of a whole run

Row = tuple[str, str, frozenset[str], str]  # mark, folder, flags, digest


@dataclass
class Source:
    """What has come to the account elsewhere."""

    far: Dovecot
    post: Post
    ledger: Ledger = field(default_factory=Ledger)
    came: set[Row] = field(default_factory=set)
    files: dict[str, str] = field(default_factory=dict)  # marks by the names of files

    def add(self, many: int) -> None:
        """Let messages come, some into each folder, with some of all flags."""
        kinds = [(folder, flags) for folder in FOLDERS for flags in FLAGS]
        for nth, (folder, flags) in enumerate(kinds):
            marks = [self.post.next(self.ledger) for _ in range(nth, many, len(kinds))]
            raws = [self.post.written.pop(mark) for mark in marks]
            names = self.far.fill(raws, folder, flags)
            self.files.update(zip(names, marks, strict=True))
            for mark, raw in zip(marks, raws, strict=True):
                digest = sha256(raw).hexdigest()
                self.came.add((mark, folder, frozenset(FLAGS[flags]), digest))

    def left(self) -> set[str]:
        """The marks of what is still there."""
        places = [self.far.maildir(folder) / part for folder in FOLDERS for part in ("new", "cur")]
        names = (file.name.partition(":")[0] for place in places for file in place.iterdir())
        return {self.files[name] for name in names if name in self.files}


@dataclass(frozen=True, slots=True)
class Life:
    """One life of the server: how it was to end, and what was where behind it."""

    death: Death | None
    code: int
    orphans: bool
    copied: int  # messages
    left: int  # at the source
    lost: Sequence[str]
    double: Sequence[str]


@dataclass
class Verdict:
    """What a soak has found."""

    lives: list[Life] = field(default_factory=list)
    came: int = 0
    differences: list[str] = field(default_factory=list)


def deaths(places: Sequence[str], kills: int, seed: int) -> list[Death]:
    """How each life is to end: at every place in turn, at the nth passing as chance has it."""
    random = Random(seed)  # noqa: S311 - no secret
    each = (places[number % len(places)] for number in range(kills))
    return [Death(place, random.randint(1, PASSINGS[place])) for place in each]


async def soak(
    folder: Path,
    plan: Sequence[Death],
    *,
    seed: int = 1,
    delete: bool = False,
    told: Callable[[Life], None] = lambda _: None,
) -> Verdict:
    """Kill a server in this empty folder once for each death, then compare all its mail.

    With `delete` what has come is deleted at the source. All may enter the folder that this one
    is in.
    """
    server = Server(folder / "server", more={"MERGANSER_CONNECTORS_PRIVATE": "on"})
    await asyncio.to_thread(folder.chmod, 0o755)  # for whoever Dovecot runs as
    verdict = Verdict()
    with dovecot(folder / "dovecot") as far:
        source = Source(far, Post(seed))
        for name in FOLDERS[1:]:
            far.doveadm("mailbox create", name)
        far.doveadm("mailbox status", "messages", "INBOX")
        key = await _furnished(server, far, delete=delete)
        for death in [*plan, None, None]:  # the last two find their peace, and one finds nothing
            if death or not verdict.lives or verdict.lives[-1].death:
                source.add(COMING)
            await _due(server, key)
            verdict.lives.append(await _life(server, source, death))
            told(verdict.lives[-1])
        verdict.came = len(source.came)
        verdict.differences = [*_wrong(verdict, source, delete=delete), *await checked(server)]
    verdict.differences += differences(source.came, await copied(server.folder))
    return verdict


async def _furnished(server: Server, far: Dovecot, *, delete: bool) -> int:
    """An account with a connector; its key."""
    given = {
        "name": "far",
        "protocol": Protocol.IMAP,
        "security": Security.PLAIN,
        "host": HOST,
        "port": far.ports["imap"],
        "mechanism": "PLAIN",
        "username": far.user,
        "interval": None,
        "source_retention": timedelta(0) if delete else None,
    }
    settings = Settings(data=server.folder, connectors_private=True)
    async with opened(settings, migrate=True) as world:
        user = await make_user(world, READER)
        return await connector_mutations.create(owner(world), user.id, given, PASSWORD)


async def _due(server: Server, key: int) -> None:
    """Have the connector run, or its run go on, as soon as there is a server."""
    async with opened(Settings(data=server.folder)) as world:
        await connector_mutations.start(owner(world), [key], trial=False)


async def _life(server: Server, source: Source, death: Death | None) -> Life:
    process, before = await server.start(fault=death.fault if death else ""), _count(server)
    try:
        async with asyncio.timeout(LIFE):
            if death is None:
                while _running(server):  # noqa: ASYNC110 - rows have no event
                    await asyncio.sleep(LOOK)
                code = await stop(process)
            elif death.place == "outside":
                while _count(server) < before + death.nth:  # noqa: ASYNC110 - likewise
                    await asyncio.sleep(LOOK)
                process.kill()
            code = await process.wait()
    finally:
        orphans = await buried(process)
    there, left = stored(server), source.left()
    return Life(
        death,
        code,
        orphans,
        there.total(),
        len(left),
        [mark for mark in source.ledger.sent if mark not in left and not there[mark]],
        [mark for mark, times in there.items() if times > 1],
    )


def _count(server: Server) -> int:
    return int(_asked(server, "SELECT count(*) FROM connector_messages"))


def _running(server: Server) -> bool:
    return bool(_asked(server, "SELECT count(*) FROM connectors WHERE run_id IS NOT NULL"))


def _asked(server: Server, sql: str) -> Any:
    with closing(sqlite3.connect(f"file:{server.folder / 'merganser.db'}?mode=ro", uri=True)) as db:
        return db.execute(sql).fetchone()[0]


def _wrong(verdict: Verdict, source: Source, *, delete: bool) -> Iterator[str]:
    """What was otherwise than it should be in single lives, and at the source in the end."""
    for number, life in enumerate(verdict.lives, 1):
        yield from (f"life {number}: {mark} is neither there nor here" for mark in life.lost)
        yield from (f"life {number}: {mark} is here twice" for mark in life.double)
        if life.code != (-9 if life.death else 0):
            yield f"life {number}: the server ended with {life.code}"
    left, marks = source.left(), source.ledger.sent.keys()
    if delete:
        yield from (f"{mark} is still at the source" for mark in left)
    else:
        yield from (f"{mark} is gone at the source" for mark in marks - left)


async def copied(folder: Path) -> list[Row]:
    """What is in the store of a stopped server, of the bytes that a reader gets."""
    found = list[Row]()
    async with opened(Settings(data=folder)) as world:
        boxes = await world.database.read(select(*picked(Mailbox, {"id", "path"})))
        paths = {box.id: box.path for box in boxes}
        rows = await world.database.read(select(*picked(Message, SHOWN)))
        for at in range(0, len(rows), TOGETHER):
            for one in await message_content.sources(world, rows[at : at + TOGETHER]):
                row, digest = one.row, sha256()
                async for chunk in one.whole():
                    digest.update(chunk)
                flags = frozenset(message_flags.flags(row))
                path = paths.get(row.mailbox_id, "")
                found.append((row.subject, path, flags, digest.hexdigest()))
    return found


def differences(came: set[Row], there: Sequence[Row]) -> list[str]:
    """How what is here differs from what has come to the source."""
    times, wanted = Counter(mark for mark, *_ in there), {mark for mark, *_ in came}
    found = [f"{mark} is missing" for mark in sorted(wanted - times.keys())]
    found += [f"{mark} is here {many} times" for mark, many in times.items() if many > 1]
    found += [f"{mark} never came" for mark in sorted(times.keys() - wanted)]
    by_mark = {mark: (path, flags, digest) for mark, path, flags, digest in came}
    for mark, *its in there:
        pairs = zip(("folder", "flags", "bytes"), its, by_mark.get(mark, its), strict=True)
        found += [f"{mark} has other {what} here" for what, here, far in pairs if here != far]
    return found


def main(
    kills: Annotated[int, typer.Option(min=1, help="How often the server is killed.")] = 20,
    seed: Annotated[int, typer.Option(help="Which messages, and when it dies.")] = 1,
) -> None:
    """Kill the server in the middle of a copy, once with a source that keeps its mail, once not."""
    whole = [_done(kills, seed, delete=delete) for delete in (False, True)]
    if not all(whole):
        raise typer.Exit(1)


def _done(kills: int, seed: int, *, delete: bool) -> bool:
    """Do a soak in a folder of its own, and say what came of it; whether nothing differs."""
    console, found = Console(highlight=False, width=120), list[Verdict]()
    plan = deaths(DELETING if delete else KEEPING, kills, seed)

    async def work() -> None:
        with (
            tempfile.TemporaryDirectory(prefix="merganser-fetchsoak-") as folder,
            Progress(console=Console(stderr=True), transient=True) as bar,
        ):
            task = bar.add_task("Killing the server", total=len(plan) + 2)
            found.append(
                await soak(
                    Path(folder), plan, seed=seed, delete=delete, told=lambda _: bar.advance(task)
                )
            )

    uvloop.run(bounded(work(), LONGEST))
    (verdict,) = found
    for life in verdict.lives:
        death = f"{life.death.place}:{life.death.nth}" if life.death else "SIGTERM"
        console.print(f"{death:14} {life.copied:6} here, {life.left:6} at the source")
    console.print(
        f"{'What has come is deleted there' if delete else 'The source keeps its mail'}: "
        f"{kills} deaths, {verdict.came} messages; {len(verdict.differences)} differences."
    )
    for line in verdict.differences:
        console.print(f"  {line}", markup=False)
    return not verdict.differences


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
