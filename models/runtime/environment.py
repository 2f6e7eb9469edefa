"""The outside world, as we are lent it, and the options that are in force."""

import secrets
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlmodel.ext.asyncio.session import AsyncSession

from models.errors import found
from models.events import journal
from models.events.incarnation import Incarnation
from models.events.journal import Entry
from models.events.wakeups import Wakeups
from models.runtime.options import Options
from models.runtime.registration import ObservedClock, Registration
from models.runtime.secret_box import Vault
from models.store.byte_cache import Shelf
from models.store.committed_transactions import is_committed
from models.store.database import Database
from models.store.id_generator import Keys
from models.store.key_collision import TRIES, is_key_collision
from models.store.object_store import Store
from models.store.prepared_statements import Prepared, Rows, Sent, fetched, fetched_all, send

Outcome = TypeVar("Outcome")


def _now() -> datetime:
    return datetime.now(UTC)


def _no_fault(_place: str) -> None:
    """Nothing goes wrong; crash tests bring one that ends the process at a place."""


@dataclass(frozen=True, slots=True)
class Adopted:
    """Options as settings make them, and how far the platform's stream had come by then.

    A unit that changes settings puts it into the `info` of its session, by this type: it is
    in force in this process as soon as the unit is durable.
    """

    options: Options
    number: int


@dataclass(frozen=True, slots=True)
class World:
    """Store, blobs, bells, clock, dice and keys. Tests bring their own."""

    database: Database
    blobs: Store
    secret: bytes = field(repr=False)  # signs what we hand out: addresses of bytes
    vault: Vault = field(default_factory=Vault.fresh, repr=False)  # seals what we must read again
    options: Options = field(default_factory=Options)
    wakeups: Wakeups = field(default_factory=Wakeups)
    shelf: Shelf = field(default_factory=Shelf, repr=False)
    now: Callable[[], datetime] = _now
    random: Callable[[int], bytes] = secrets.token_bytes
    key: Callable[[], int] = field(default_factory=Keys)
    process: Registration = field(default_factory=Registration, repr=False)
    fault: Callable[[str], None] = _no_fault
    clock: ObservedClock = field(init=False, repr=False)  # the same as `now`
    base: Options = field(init=False, repr=False)  # the options we were given, before any setting
    settled: int = field(init=False, default=0, repr=False)  # `Adopted.number` of those in force
    incarnation: Incarnation = field(init=False, default=Incarnation(), repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "base", self.options)
        clock = self.now if isinstance(self.now, ObservedClock) else ObservedClock(self.now)
        object.__setattr__(self, "clock", clock)
        object.__setattr__(self, "now", clock)

    def adopt(self, adopted: "Adopted") -> None:
        """Let other options be in force from now on, unless newer ones are.

        `options` stays a plain attribute: hot paths read it at every message. Whoever needs
        two of them to fit together takes the whole object first.
        """
        if adopted.number >= self.settled:
            object.__setattr__(self, "settled", adopted.number)
            object.__setattr__(self, "options", adopted.options)

    def enter(self, incarnation: Incarnation) -> None:
        """Work in this incarnation of the store; wake all who follow a stream if it is another."""
        before = self.incarnation
        object.__setattr__(self, "incarnation", incarnation)
        if before.base != incarnation.base:
            for stream in self.wakeups.followed:
                self.wakeups.ring(stream, incarnation.base)

    @asynccontextmanager
    async def write(self, *streams: int) -> AsyncGenerator[AsyncSession]:
        """A unit of work on what belongs to these streams: all or nothing. Then bells ring.

        Their rows are locked first. So no two units wait for each other, and what we read
        of an account or a domain stays true until we have written.
        """
        session: AsyncSession | None = None
        try:
            async with self.database.queued(streams), self.database.write() as session:
                await journal.lock(session, streams)
                yield session
        finally:  # a caller that was cancelled during the commit has changed the store
            if session is not None and is_committed(session):
                if adopted := session.info.get(Adopted):
                    self.adopt(adopted)
                self.wakeups.tell({**journal.reached(session), **_rung(session)})

    async def apply(self, work: Callable[["Turn"], Outcome], *streams: int) -> Outcome:
        """A unit of work that is a plain function of its turn: for hot paths.

        It runs again if another process has made the same primary key.
        """

        def unit(connection: Connection) -> tuple[Outcome, Turn]:
            held = journal.hold(connection, streams) if streams else {}
            turn = Turn(connection, self, held)
            return work(turn), turn

        async with self.database.queued(streams):
            for left in reversed(range(TRIES)):
                try:
                    outcome, turn = await self.database.apply(unit)
                    break
                except Exception as problem:
                    if not left or not is_key_collision(problem):
                        raise
        self.wakeups.tell({**turn.reached, **dict.fromkeys(turn.bells, 0)})
        return outcome

    async def apply_aside(self, work: Callable[["Turn"], Outcome]) -> Outcome:
        """A unit of work for heartbeats: it waits for no connection of the others."""

        def unit(connection: Connection) -> tuple[Outcome, Turn]:
            turn = Turn(connection, self)
            return work(turn), turn

        outcome, turn = await self.database.apply_aside(unit)
        self.wakeups.tell({**turn.reached, **dict.fromkeys(turn.bells, 0)})
        return outcome

    async def join(self, session: AsyncSession, work: Callable[["Turn"], Outcome]) -> Outcome:
        """Do `work`, a plain function of its turn, inside the unit of this session."""

        def unit(connection: Connection) -> tuple[Outcome, Turn]:
            turn = Turn(connection, self)
            return work(turn), turn

        outcome, turn = await (await session.connection()).run_sync(unit)
        session.info["reached"] = {**journal.reached(session), **turn.reached}
        ring(session, *turn.bells)
        return outcome


def ring(session: AsyncSession, *bells: int) -> None:
    """Ring these bells of workers once the unit of this session is stored."""
    if bells:
        session.info["bells"] = {**_rung(session), **dict.fromkeys(bells, 0)}


def _rung(session: AsyncSession) -> dict[int, int]:
    known: dict[int, int] = session.info.get("bells", {})
    return known


@dataclass(slots=True)
class Turn:
    """A unit of work on a plain connection, and how far it has brought each stream.

    `held` says where a stream stands, as far as that is known. `bells` of workers are rung
    once it is stored.
    """

    connection: Connection
    world: World
    held: dict[int, int] = field(default_factory=dict)
    reached: dict[int, int] = field(default_factory=dict)
    bells: set[int] = field(default_factory=set)

    def count(self, stream_id: int, many: int) -> int:
        """Take the next numbers of a stream; returns the last. Whoever counts must append."""
        last = self.reached[stream_id] = journal.count(self.connection, stream_id, many)
        self.held.pop(stream_id, None)
        return last

    def append(self, stream_id: int, entry: Entry, *, at: datetime) -> None:
        """Write the entry whose numbers were counted just before."""
        last = self.reached[stream_id]
        journal.append(self.connection, stream_id, entry, last=last, at=at)

    def record(self, stream_id: int, entry: Entry, *, at: datetime) -> int:
        """Count and append; returns the entry's last number."""
        last = self.count(stream_id, len(entry.ids))
        self.append(stream_id, entry, at=at)
        return last

    def stands(self, stream_id: int) -> int:
        """The last number of a stream, which is held from here on."""
        if stream_id not in self.held:
            self.held |= journal.hold(self.connection, [stream_id])
        return found(self.held.get(stream_id), str(stream_id), path=["user"])

    def told(
        self, stream_id: int, entries: Sequence[Entry], *, at: datetime
    ) -> tuple[int, list[Sent]]:
        """The last number of these entries, and what records them: it must be sent."""
        since = self.stands(stream_id)
        last = since + sum(len(entry.ids) for entry in entries)
        self.held[stream_id] = self.reached[stream_id] = last
        return last, journal.told(stream_id, entries, since=since, at=at)

    def fetched(self, statement: Prepared, **given: Any) -> Rows:
        """The rows of a statement that was made once."""
        return fetched(self.connection, statement, given)

    def fetched_all(self, statement: Prepared, given: Sequence[Mapping[str, Any]]) -> Rows:
        """The same with the values of several, of whose rows nobody knows the order."""
        return fetched_all(self.connection, statement, given)

    def send(self, works: Sequence[Sent]) -> None:
        """Change rows, by statements that were made once; none may see what another does."""
        send(self.connection, works)
